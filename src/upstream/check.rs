//! Asks endpoints again and again whether they are well, and takes those out that are not.
//!
//! **Why.** A server may take connections long after it has stopped to be of any use, and knows of itself what nobody else sees:
//! that its database is gone, that it drains.
//!
//! **How.** One task an endpoint, for the whole process; each check has a connection of its own, so that it also finds what keeps
//! new ones from being opened. An endpoint counts as well until it was asked. Its first answer decides, and from then on it takes
//! several of the same kind in a row, so that one lost packet takes nobody out. Checks are spread at random, so that
//! an endpoint is not asked by everybody at once.

use std::{collections::HashMap, future::poll_fn, pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use thalweg_filters::ending::grpc_status;
use thalweg_proto::{
    bindings::{Message, framed},
    health::{CHECK, HealthCheckRequest, HealthCheckResponse, ServingStatus},
    status::{Code, decode_message},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::{connect::connect, endpoint::Endpoint, roster::Roster};
use crate::{
    config::{self, Address, HealthCheck, Protocol, Question},
    patience::Patience,
    telemetry::ClusterStats,
    tls,
};

/// The longest answer that is read. One that is well has two bytes behind its head.
const ANSWER_MAX: usize = 4 * 1024;

/// How the endpoints of one cluster are asked.
#[derive(Debug)]
pub(super) struct Checker {
    cluster: String,
    protocol: Protocol,
    settings: HealthCheck,
    tls: Option<Arc<tls::Upstream>>,
    stats: Arc<ClusterStats>,
    /// Tells the workers that an endpoint was taken out.
    unwell: watch::Sender<()>,
}

/// What is known of an endpoint, and how many checks in a row have said otherwise.
#[derive(Debug, Default)]
struct Verdict {
    well: Option<bool>,
    otherwise: u32,
}

/// Asks all endpoints that there are, and those that come.
pub(super) async fn all(mut rosters: watch::Receiver<Arc<Roster>>, checker: Arc<Checker>) {
    let mut tasks = JoinSet::new();
    // A task holds its endpoint, so no other has its address in memory.
    let mut asked: HashMap<usize, AbortHandle> = HashMap::new();
    loop {
        let roster = Arc::clone(&rosters.borrow_and_update());
        let mut gone = std::mem::take(&mut asked);
        for endpoint in roster.endpoints() {
            let key = Arc::as_ptr(endpoint).addr();
            let task = gone.remove(&key).unwrap_or_else(|| {
                let (checker, endpoint) = (Arc::clone(&checker), Arc::clone(endpoint));
                tasks.spawn(async move { checker.look_after(&endpoint).await })
            });
            asked.insert(key, task);
        }
        for task in gone.into_values() {
            task.abort();
        }
        drop(roster);
        if rosters.changed().await.is_err() {
            return;
        }
        while tasks.try_join_next().is_some() {}
    }
}

// === impl Verdict ===

impl Verdict {
    /// Takes up the outcome of a check; tells whether the endpoint is well if that has changed, or was not known.
    fn judge(&mut self, good: bool, settings: &HealthCheck) -> Option<bool> {
        let wanted = match self.well {
            None => 1,
            Some(well) if well == good => {
                self.otherwise = 0;
                return None;
            }
            Some(true) => settings.unhealthy,
            Some(false) => settings.healthy,
        };
        self.otherwise += 1;
        if self.otherwise < wanted {
            return None;
        }
        *self = Self {
            well: Some(good),
            otherwise: 0,
        };
        Some(good)
    }
}

// === impl Checker ===

impl Checker {
    /// `None` if the cluster does not want it.
    pub(super) fn of(
        cluster: &config::Cluster,
        tls: Option<&Arc<tls::Upstream>>,
        stats: &Arc<ClusterStats>,
        unwell: &watch::Sender<()>,
    ) -> Option<Self> {
        Some(Self {
            cluster: cluster.name.clone(),
            protocol: cluster.protocol,
            settings: cluster.health_check.clone()?,
            tls: tls.map(Arc::clone),
            stats: Arc::clone(stats),
            unwell: unwell.clone(),
        })
    }

    /// For as long as the endpoint is there.
    async fn look_after(&self, endpoint: &Endpoint) {
        let mut verdict = Verdict::default();
        loop {
            let outcome = self.check(endpoint.address()).await;
            self.stats.health_checks.increment();
            if outcome.is_err() {
                self.stats.health_failures.increment();
            }
            if let Some(well) = verdict.judge(outcome.is_ok(), &self.settings)
                && endpoint.set_healthy(well)
            {
                self.tell(endpoint.address(), outcome);
            }
            sleep(self.settings.interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }

    fn tell(&self, endpoint: &Address, outcome: Result<(), String>) {
        let cluster = &self.cluster;
        match outcome {
            Ok(()) => tracing::info!(%cluster, %endpoint, "the endpoint is well again"),
            Err(fault) => {
                self.stats.unhealthy.increment();
                self.unwell.send_replace(());
                tracing::warn!(%cluster, %endpoint, fault, "the endpoint is not well, and gets no new streams");
            }
        }
    }

    /// Asks once; an error is what is wrong.
    async fn check(&self, endpoint: &Address) -> Result<(), String> {
        let limit = self.settings.timeout;
        let mut patience = Patience::new(limit);
        let outcome = patience.with(async {
            let failed = |error: std::io::Error| format!("no connection: {error}");
            let socket = connect(endpoint).await.map_err(failed)?;
            let Some(tls) = &self.tls else {
                return self.ask(socket, endpoint).await;
            };
            let socket = tls.connect_plainly(socket, endpoint).await;
            let failed = |error| format!("no TLS: {error}");
            self.ask(socket.map_err(failed)?, endpoint).await
        });
        outcome
            .await
            .unwrap_or_else(|| Err(format!("no answer within {limit:?} (health_check.timeout)")))
    }

    async fn ask<S>(&self, socket: S, endpoint: &Address) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match &self.settings.question {
            Question::Tcp => Ok(()),
            Question::Grpc { service } => {
                let service = service.clone();
                let message = framed(&HealthCheckRequest { service });
                let mut request = Request::post(self.uri(endpoint, CHECK));
                if let Some(headers) = request.headers_mut() {
                    let grpc = HeaderValue::from_static("application/grpc");
                    headers.insert(header::CONTENT_TYPE, grpc);
                    headers.insert(header::TE, HeaderValue::from_static("trailers"));
                }
                let request = request.body(()).map_err(|error| error.to_string())?;
                let (status, bytes, ending) = over_http2(socket, request, message).await?;
                serving(status, &bytes, &ending)
            }
            Question::Http { path, expect } => {
                let uri = self.uri(endpoint, path.as_str());
                let request = Request::get(uri)
                    .body(())
                    .map_err(|error| error.to_string())?;
                let status = match self.protocol {
                    Protocol::Http2 => over_http2(socket, request, Bytes::new()).await?.0,
                    Protocol::Http1 => over_http1(socket, request).await?,
                };
                let good = match expect {
                    Some(expected) => status.as_u16() == *expected,
                    None => status.is_success(),
                };
                good.then_some(())
                    .ok_or_else(|| format!("it answered with HTTP {status}"))
            }
        }
    }

    fn uri(&self, endpoint: &Address, path: &str) -> Uri {
        let authority = match endpoint {
            Address::Tcp(address) => address.to_string(),
            Address::Host(host, port) => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".into(),
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(authority);
        // A host that is no authority could not have been dialed.
        uri.path_and_query(path).build().unwrap_or_default()
    }
}

/// What an answer of `grpc.health.v1.Health/Check` says.
fn serving(status: StatusCode, bytes: &[u8], ending: &HeaderMap) -> Result<(), String> {
    match grpc_status(ending) {
        Some(Code::Ok) => {}
        Some(code) => {
            let message = ending.get("grpc-message");
            let message = message.map(|text| decode_message(text.as_bytes()));
            let message = message.unwrap_or_default();
            return Err(format!("it answered with {}: {message}", code.name()));
        }
        None => return Err(format!("it answered with no gRPC, but HTTP {status}")),
    }
    let message = bytes.get(5..).filter(|_| bytes[0] == 0);
    let answer = message.and_then(|message| HealthCheckResponse::decode(message).ok());
    match answer.map(|answer| answer.status()) {
        Some(ServingStatus::Serving) => Ok(()),
        Some(status) => Err(format!("it says {status:?}")),
        None => Err("its answer cannot be read".into()),
    }
}

/// Status, bytes, and the trailers, or the headers if there are none.
async fn over_http2<S>(
    socket: S,
    request: Request<()>,
    body: Bytes,
) -> Result<(StatusCode, BytesMut, HeaderMap), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |error: h2::Error| format!("no HTTP/2: {error}");
    let (sender, connection) = h2::client::handshake(socket).await.map_err(lost)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(lost)?;
        let (response, mut sink) = sender
            .send_request(request, body.is_empty())
            .map_err(lost)?;
        if !body.is_empty() {
            // So few bytes fit any window.
            sink.send_data(body, true).map_err(lost)?;
        }
        let (head, mut body) = response.await.map_err(lost)?.into_parts();
        let mut whole = BytesMut::new();
        while let Some(bytes) = body.data().await {
            whole.extend_from_slice(&bytes.map_err(lost)?);
            if whole.len() > ANSWER_MAX {
                return Err("its answer has no end".into());
            }
        }
        let trailers = poll_fn(|cx| body.poll_trailers(cx)).await.map_err(lost)?;
        Ok((head.status, whole, trailers.unwrap_or(head.headers)))
    };
    driven(connection, exchange).await
}

async fn over_http1<S>(socket: S, request: Request<()>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |error: hyper::Error| format!("no HTTP/1.1: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(lost)?;
    let (mut parts, ()) = request.into_parts();
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.map_err(|error| error.to_string())?;
        parts.headers.insert(header::HOST, host);
    }
    parts.uri = (parts.uri.path_and_query())
        .map(|path| Uri::from(path.clone()))
        .unwrap_or_default();
    let request = Request::from_parts(parts, Empty::<Bytes>::new());
    let exchange = async {
        let response = sender.send_request(request).await.map_err(lost)?;
        Ok(response.status())
    };
    driven(connection, exchange).await
}

/// An exchange on a connection. The connection may end first: an answer may have come with its last bytes.
async fn driven<T, E>(
    connection: impl Future<Output = Result<(), E>>,
    exchange: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> HealthCheck {
        HealthCheck {
            question: Question::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy: 2,
            unhealthy: 3,
            dismiss: false,
        }
    }

    /// What becomes of each check: `+` for good and `-` for bad, and what is told of it.
    fn told(checks: &str) -> Vec<Option<bool>> {
        let mut verdict = Verdict::default();
        let good = checks.chars().map(|check| check == '+');
        good.map(|good| verdict.judge(good, &settings())).collect()
    }

    #[test]
    fn first_check_decides() {
        assert_eq!(told("+"), [Some(true)]);
        assert_eq!(told("-"), [Some(false)]);
    }

    #[test]
    fn it_takes_as_many_in_a_row_as_the_thresholds_say() {
        assert_eq!(
            told("+--+---")[1..],
            [None, None, None, None, None, Some(false)]
        );
        assert_eq!(told("-+-++")[1..], [None, None, None, Some(true)]);
        assert_eq!(told("+---++-")[3..], [Some(false), None, Some(true), None]);
    }

    #[test]
    fn answer_is_good_only_if_it_says_serving() {
        let ending = |status: &'static str| {
            HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                HeaderValue::from_static(status),
            )])
        };
        let says = |status: ServingStatus| framed(&HealthCheckResponse::from(status));
        let ok = StatusCode::OK;

        assert_eq!(
            serving(ok, &says(ServingStatus::Serving), &ending("0")),
            Ok(())
        );
        for (bytes, ending) in [
            (says(ServingStatus::NotServing), ending("0")),
            (says(ServingStatus::Unknown), ending("0")),
            (Bytes::new(), ending("0")),
            (Bytes::new(), ending("12")),
            (says(ServingStatus::Serving), HeaderMap::new()),
        ] {
            assert!(
                serving(ok, &bytes, &ending).is_err(),
                "{bytes:?} {ending:?}"
            );
        }
    }
}
