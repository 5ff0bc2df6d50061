//! What an operator asks of a running proxy and tells it, without curl: every command that speaks with the admin endpoints.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Duration, timeout};

use super::{
    connect::{Connection, Overheard, Server, Speak, Tls},
    exit::{self, Class, Failure, visible},
};

/// The longest wait for the answer. A reload reads files and looks names up; all else takes no work.
const ANSWER: Duration = Duration::from_secs(30);

/// The largest answer that is taken.
const ANSWER_MAX: usize = 16 << 20;

/// Where the admin endpoints are, and who asks.
#[derive(Args, Debug)]
pub(super) struct Operator {
    /// Where its admin endpoints are.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "THALWEG_ADMIN",
        default_value = "http://127.0.0.1:9901"
    )]
    pub(super) admin: Server,
    /// What `admin.token` of its configuration says.
    #[arg(long, env = "THALWEG_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    tls: Tls,
}

// === impl Operator ===

impl Operator {
    /// Tells the proxy something, and prints what it answers.
    pub(super) fn order(&self, method: Method, path: &'static str) -> ExitCode {
        exit::run(async { print(&self.ask(method, path).await?) })
    }

    /// What is answered, if that is as it should be.
    pub(super) async fn ask(&self, method: Method, path: &'static str) -> Result<Bytes, Failure> {
        let (connection, overheard) = self
            .admin
            .connect("--admin", &self.tls, Speak::Http1)
            .await?;
        let exchange = self.exchange(method, path, connection, &overheard);
        let Ok(answer) = timeout(ANSWER, exchange).await else {
            let message = format!("no answer came from {} within {ANSWER:?}", self.admin);
            return Err(Failure::new(Class::Unavailable, message));
        };
        match answer? {
            (status, body) if status.is_success() => Ok(body),
            (status, body) => Err(self.refused(path, status, &body)),
        }
    }

    /// What an answer means that is not as it should be.
    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> Failure {
        let admin = &self.admin;
        match status {
            StatusCode::UNAUTHORIZED => {
                let which = if self.token.is_some() { "another" } else { "a" };
                let message = format!("{admin} wants {which} token");
                Failure::new(Class::NoPermission, message)
                    .hint("--token gives it: `admin.token` of the proxy's configuration")
            }
            StatusCode::NOT_FOUND => {
                let message = format!("{admin} has no {path}");
                Failure::new(Class::NoInput, message).hint(
                    "--admin wants the address of the admin endpoints, not that of a listener",
                )
            }
            _ => {
                // A configuration that is refused ends `reload` as it ends `check`.
                let class = match status {
                    StatusCode::UNPROCESSABLE_ENTITY => Class::Usage,
                    _ => Class::of_status(status.as_u16()),
                };
                let why = String::from_utf8_lossy(body);
                let lines: Vec<_> = why.trim_end().lines().map(visible).collect();
                Failure::new(class, format!("{admin} answered {status}")).hint(lines.join("\n"))
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &'static str,
        connection: Connection,
        overheard: &Overheard,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let broken = |error: &dyn std::fmt::Display| {
            (overheard.explain(&self.admin, Speak::Http1)).unwrap_or_else(|| {
                let message = format!("no answer of HTTP came from {}: {error}", self.admin);
                Failure::new(Class::Protocol, message)
            })
        };
        let (mut sender, driver) = http1::handshake(TokioIo::new(connection))
            .await
            .map_err(|error| broken(&error))?;
        tokio::spawn(driver);
        let response = sender
            .send_request(self.request(method, path)?)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, body))
    }

    fn request(
        &self,
        method: Method,
        path: &'static str,
    ) -> Result<Request<Empty<Bytes>>, Failure> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_static(path);
        let host = HeaderValue::try_from(self.admin.authority.as_str());
        request
            .headers_mut()
            .extend(host.ok().map(|host| (header::HOST, host)));
        if let Some(token) = &self.token {
            let bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                Failure::new(
                    Class::Usage,
                    "--token has characters that no header can carry",
                )
            })?;
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        Ok(request)
    }
}

pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::of_output("standard output", &error))
}

/// Rows of as many cells each, the first of them the heading; all columns but the last are as wide as their widest cell.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let mut lines = String::new();
    for row in rows {
        let (last, others) = row.split_last().expect("a row has cells");
        for (column, cell) in others.iter().enumerate() {
            let padding = width(column) - cell.chars().count() + 2;
            lines.push_str(cell);
            lines.extend(std::iter::repeat_n(' ', padding));
        }
        lines.push_str(last);
        lines.push('\n');
    }
    lines
}
