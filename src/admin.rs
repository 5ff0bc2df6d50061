//! The admin endpoints, on a thread of their own, so that a scrape never delays a stream.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process runs |
//! | `/readyz` | 200 while it takes new streams, 503 once it is to end |
//! | `/metrics` | all counters, in the [`exposition`] that is asked for |
//! | `/config` | the configuration as it was resolved, secrets hidden |
//! | `POST /reload` | 200 with what has changed when the configuration file is in force again; 422 with its faults if it is not |
//! | `/clusters` | the clusters with their endpoints, and the state of each, as JSON |
//! | `/routes` | every route with the values that it has in effect, and where each comes from |
//! | `/bindings` | the bindings that it serves now, and what they can do, as JSON |
//! | `POST /drain` | 202; the proxy stops as after SIGTERM |
//!
//! With a token in the configuration, all but the two probes want it as `Authorization: Bearer TOKEN`. Without one, they want a
//! [`host`] that no web page can have.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{Semaphore, watch},
};

use crate::{
    app::Requests,
    bindings::{self, Shared},
    config::{Address, Admin, Config},
    drain::{Phase, advance, reached},
    listener::{Bound, Sockets},
    telemetry::Telemetry,
    worker::AcceptedSocket,
};

mod exposition;
mod host;
mod process;

use exposition::Format;
use process::ProcessCollector;

/// More than an operator and his scrapers need.
const MAX_CONNECTIONS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_ACCEPT: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";

struct Endpoints {
    registry: Registry,
    config: watch::Receiver<Arc<Config>>,
    shared: Shared,
    reloads: Requests,
    /// The address that it listens on.
    bound: IpAddr,
    token: Option<String>,
    phases: watch::Sender<Phase>,
}

/// Binds the address and serves it for as long as the process lives.
pub(crate) fn start(
    settings: &Admin,
    sockets: &mut Sockets,
    config: watch::Receiver<Arc<Config>>,
    shared: &Shared,
    telemetry: &Telemetry,
    reloads: Requests,
    phases: watch::Sender<Phase>,
) -> io::Result<SocketAddr> {
    let listener = sockets.listen(&Address::Tcp(settings.address))?;
    let address = listener.tcp_address()?;
    let takeover = config.borrow().takeover;
    let mut registry = telemetry.registry();
    registry.register_collector(Box::new(Arc::clone(&shared.directories)));
    registry.register_collector(Box::new(ProcessCollector));
    let endpoints = Endpoints {
        registry,
        config,
        shared: shared.clone(),
        reloads,
        bound: address.ip(),
        token: settings.token.clone(),
        phases,
    };
    thread::Builder::new().name("admin".into()).spawn(
        move || match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => runtime.block_on(serve(listener, takeover, Arc::new(endpoints))),
            Err(error) => tracing::error!(%error, "the admin endpoints could not start"),
        },
    )?;
    Ok(address)
}

async fn serve(listener: Bound, takeover: bool, endpoints: Arc<Endpoints>) {
    let listener = match listener.register() {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin endpoints could not start"),
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let phases = endpoints.phases.subscribe();
    let mut handed_on = pin!(async {
        reached(phases, Phase::Draining).await;
        if !takeover {
            pending::<()>().await;
        }
    });
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let accepted = tokio::select! {
            // Whoever has taken over answers from now on. Those who are connected already are answered to the end.
            () = &mut handed_on => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted.and_then(AcceptedSocket::adopt) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "an accept failed on the admin address; trying again");
                tokio::time::sleep(RETRY_ACCEPT).await;
                continue;
            }
        };
        let endpoints = Arc::clone(&endpoints);
        tokio::task::spawn_local(async move {
            let _permit = permit;
            let service = service_fn(|request: Request<Incoming>| {
                let endpoints = Arc::clone(&endpoints);
                async move { Ok::<_, Infallible>(endpoints.answer(&request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
    drop(listener);
    pending().await
}

impl Endpoints {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let probe = matches!(path, "/livez" | "/readyz");
        if !probe && !self.is_allowed(request) {
            let hint =
                "this address wants the header `Authorization: Bearer TOKEN` (admin.token)\n";
            return answer(StatusCode::UNAUTHORIZED, TEXT, hint);
        }
        if !probe
            && self.token.is_none()
            && let Some(host) = host::foreign(request, self.bound)
        {
            let hint = format!(
                "this address answers for itself alone, and the request is for `{host}`: a web page could read it under that name. \
                 Ask for localhost, or set admin.token\n"
            );
            return answer(StatusCode::FORBIDDEN, TEXT, hint);
        }
        match path {
            "/drain" => return self.drain(request),
            "/reload" => return self.reload(request).await,
            _ => {}
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return answer(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET is served here\n",
            );
        }
        match path {
            "/livez" => answer(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" if *self.phases.borrow() >= Phase::Leaving => {
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
            }
            "/readyz" => answer(StatusCode::OK, TEXT, "ready\n"),
            "/metrics" => {
                let format = Format::asked_for(request.headers());
                match format.print(&self.registry) {
                    Ok(metrics) => answer(StatusCode::OK, format.content_type(), metrics),
                    Err(_) => answer(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        TEXT,
                        "the metrics could not be printed\n",
                    ),
                }
            }
            "/config" => json(self.config.borrow().to_json()),
            "/clusters" => json(self.shared.directories.to_json()),
            "/routes" => json(self.config.borrow().routes_to_json()),
            "/bindings" => {
                let listed =
                    bindings::list(&self.config.borrow().bindings, &self.shared.components);
                json(serde_json::json!(listed))
            }
            _ => answer(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /livez, /readyz, /metrics, /config, /routes, /clusters, /bindings, POST /reload and POST /drain\n",
            ),
        }
    }

    async fn reload(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(refusal) = refuse_order(request) {
            return refusal;
        }
        match self.reloads.ask().await {
            Some(Ok(changes)) => json(serde_json::json!(changes)),
            Some(Err(error)) => answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                TEXT,
                format!("{error}\nthe configuration before stays in force\n"),
            ),
            None => answer(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "no reload: the proxy ends, or too many reloads wait already\n",
            ),
        }
    }

    fn drain(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(refusal) = refuse_order(request) {
            return refusal;
        }
        let phases = self.phases.clone();
        // Behind the answer, which this turn of the thread still writes.
        tokio::task::spawn_local(async move { advance(&phases, Phase::Leaving) });
        answer(StatusCode::ACCEPTED, TEXT, "draining\n")
    }

    fn is_allowed(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .map_or(&b""[..], |value| value.as_bytes());
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        // Every byte is compared, so that the time tells nothing of the place of the first difference.
        given.len() == token.len()
            && given
                .iter()
                .zip(token.as_bytes())
                .fold(0, |differs, (a, b)| differs | (a ^ b))
                == 0
    }
}

/// What an order hears that is not to be obeyed.
fn refuse_order(request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    if request.method() != Method::POST {
        let hint = "only POST is served here\n";
        return Some(answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, hint));
    }
    // Any page in a browser on this machine could send one.
    if request.headers().contains_key(header::ORIGIN) {
        let hint = "no page in a browser may ask for this\n";
        return Some(answer(StatusCode::FORBIDDEN, TEXT, hint));
    }
    None
}

fn json(value: serde_json::Value) -> Response<Full<Bytes>> {
    answer(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}
