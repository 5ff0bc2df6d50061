//! `thalweg bindings`: asks a running proxy which bindings it serves, and what they can do.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::{Duration, timeout};

use super::{
    connect::{Connection, Overheard, Server, Speak, Tls},
    exit::{self, Class, Failure, visible},
};

/// The longest wait for the answer, which takes no work.
const ANSWER: Duration = Duration::from_secs(10);

/// The largest answer that is taken.
const ANSWER_MAX: usize = 16 << 20;

/// List the bindings that a running proxy serves.
#[derive(Args, Debug)]
pub(super) struct Bindings {
    /// Where its admin endpoints are.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "THALWEG_ADMIN",
        default_value = "http://127.0.0.1:9901"
    )]
    admin: Server,
    /// What `admin.token` of its configuration says.
    #[arg(long, env = "THALWEG_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the answer as it comes, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: Tls,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    kind: String,
    operations: Option<Vec<String>>,
    state: Option<String>,
}

// === impl Bindings ===

impl Bindings {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let answer = self.ask().await?;
            if self.json {
                return print(&answer);
            }
            let listed: Vec<Listed> = serde_json::from_slice(&answer).map_err(|error| {
                let message = format!(
                    "{} answers what is no list of bindings: {error}",
                    self.admin
                );
                Failure::new(Class::Protocol, message)
            })?;
            print(table(&listed).as_bytes())
        })
    }

    async fn ask(&self) -> Result<Bytes, Failure> {
        let (connection, overheard) = self
            .admin
            .connect("--admin", &self.tls, Speak::Http1)
            .await?;
        match timeout(ANSWER, self.exchange(connection, &overheard)).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("no answer came from {} within {ANSWER:?}", self.admin);
                Err(Failure::new(Class::Unavailable, message))
            }
        }
    }

    async fn exchange(
        &self,
        connection: Connection,
        overheard: &Overheard,
    ) -> Result<Bytes, Failure> {
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
            .send_request(self.request()?)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        let failure = match status {
            StatusCode::OK => return Ok(body),
            StatusCode::UNAUTHORIZED => {
                let message = format!("{} wants another token", self.admin);
                Failure::new(Class::NoPermission, message)
                    .hint("--token gives it: `admin.token` of the proxy's configuration")
            }
            StatusCode::NOT_FOUND => {
                let message = format!("{} has no /bindings", self.admin);
                Failure::new(Class::NoInput, message).hint(
                    "--admin wants the address of the admin endpoints, not that of a listener",
                )
            }
            _ => {
                let message = format!("{} answered {status}", self.admin);
                Failure::new(Class::of_status(status.as_u16()), message)
            }
        };
        Err(failure)
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, Failure> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = http::Uri::from_static("/bindings");
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

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::of_output("standard output", &error))
}

/// The bindings in columns, with a heading.
fn table(listed: &[Listed]) -> String {
    let mut rows = vec![["NAME".to_owned(), "KIND".into(), "OPERATIONS".into()]];
    rows.extend(listed.iter().map(|binding| {
        let operations = match (&binding.operations, binding.state.as_deref()) {
            (_, Some("unavailable")) => "(unavailable)".into(),
            (None, _) => "(any)".into(),
            (Some(operations), _) => operations.join(" "),
        };
        [
            visible(&binding.name),
            visible(&binding.kind),
            visible(&operations),
        ]
    }));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let (names, kinds) = (width(0), width(1));
    let lines = rows
        .iter()
        .map(|[name, kind, operations]| format!("{name:names$}  {kind:kinds$}  {operations}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let listed: Vec<Listed> = serde_json::from_str(
            r#"[
                {"name": "échos", "kind": "echo", "operations": null},
                {"name": "orders-of-today", "kind": "component", "operations": ["create", "get"], "state": "ready"},
                {"name": "gone", "kind": "component", "operations": null, "state": "unavailable"}
            ]"#,
        )
        .unwrap();

        let expected = "\
            NAME             KIND       OPERATIONS\n\
            échos            echo       (any)\n\
            orders-of-today  component  create get\n\
            gone             component  (unavailable)\n";
        assert_eq!(table(&listed), expected);
    }
}
