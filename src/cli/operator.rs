//! Asks the admin endpoints of a running proxy, for every command that does.

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Duration, timeout};

use super::{
    connect::{Connection, Overheard, Server, Speak, Tls},
    exit::{Class, Failure},
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
    /// What is answered, if it is as it should be.
    pub(super) async fn get(&self, path: &'static str) -> Result<Bytes, Failure> {
        let (status, body) = self.ask(Method::GET, path).await?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(self.refused(path, status))
    }

    /// What is answered, with its status; only a token that is not taken is a failure.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &'static str,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let (connection, overheard) = self
            .admin
            .connect("--admin", &self.tls, Speak::Http1)
            .await?;
        let exchange = self.exchange(method, path, connection, &overheard);
        let Ok(answer) = timeout(ANSWER, exchange).await else {
            let message = format!("no answer came from {} within {ANSWER:?}", self.admin);
            return Err(Failure::new(Class::Unavailable, message));
        };
        let (status, body) = answer?;
        if status == StatusCode::UNAUTHORIZED {
            let what = if self.token.is_some() {
                "wants another token"
            } else {
                "wants a token"
            };
            let message = format!("{} {what}", self.admin);
            return Err(Failure::new(Class::NoPermission, message)
                .hint("--token gives it: `admin.token` of the proxy's configuration"));
        }
        Ok((status, body))
    }

    /// What a status means that was not expected.
    pub(super) fn refused(&self, path: &str, status: StatusCode) -> Failure {
        if status == StatusCode::NOT_FOUND {
            let message = format!("{} has no {path}", self.admin);
            return Failure::new(Class::NoInput, message)
                .hint("--admin wants the address of the admin endpoints, not that of a listener");
        }
        let message = format!("{} answered {status}", self.admin);
        Failure::new(Class::of_status(status.as_u16()), message)
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
