//! Drives one connection from a client.
//!
//! | file | what it holds |
//! |---|---|
//! | [`http2`] | the connection and its streams, on the `h2` crate |
//! | [`http1`] | the connection and its requests, on hyper |

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Method, Request, Response, Version, header};
use thalweg_filters::{Body, Error, Side, StreamContext, stream::Protocol};
use thalweg_proto::{deadline, method::is_grpc_content_type, status::Code};
use tokio::time::{Instant, timeout};

use crate::{
    config, headers,
    respond::respond,
    telemetry::ListenerStats,
    transport::{Socket, Spoken, Transport},
    worker::Worker,
};

mod http1;
mod http2;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How long a client that is still uploading may take to read the answer that it need not go on.
const LINGER: Duration = Duration::from_secs(1);

/// The most that is read of such an upload meanwhile.
const LINGER_BYTES: usize = 16 << 20;

/// What the connections of one listener have in common.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) settings: config::Listener,
    pub(crate) stats: Arc<ListenerStats>,
}

/// Serves a connection to its end.
pub(crate) async fn connection(socket: Socket, front: Arc<Front>, worker: Rc<Worker>) {
    let transport = Transport::new(socket);
    let spoken = timeout(
        front.settings.timeouts.preface,
        std::future::poll_fn(|cx| transport.poll_spoken(cx)),
    )
    .await;
    match spoken {
        Ok(Ok(Spoken::Http2)) => http2::serve(transport, front, worker).await,
        Ok(Ok(Spoken::Http1)) => http1::serve(transport, front, worker).await,
        // Nothing was said: a port scan, a health check of the socket, a client that has changed its mind.
        Ok(Err(_)) => {}
        Err(_) => front.stats.preface_timeouts.increment(),
    }
}

/// Answers one request, whatever becomes of it.
fn answer(
    request: Request<Body>,
    stream: StreamContext,
    worker: &Worker,
    most_headers: usize,
) -> impl Future<Output = Response<Body>> + use<> {
    let process = Arc::clone(&worker.process);
    respond(
        stream.clone(),
        process,
        route(request, stream, worker, most_headers),
    )
}

fn route(
    mut request: Request<Body>,
    stream: StreamContext,
    worker: &Worker,
    most_headers: usize,
) -> Result<impl Future<Output = Result<Response<Body>, Error>> + use<>, Error> {
    if request.headers().len() > most_headers {
        let message = format!(
            "{} headers, and at most {most_headers} are taken (max_headers)",
            request.headers().len()
        );
        return Err(Error::new(
            Code::ResourceExhausted,
            "too_many_headers",
            Side::Client,
            message,
        )
        .with_http_status(431));
    }
    if says_grpc(request.headers()) && stream.protocol() != Protocol::Grpc {
        return Err(Error::new(
            Code::Unimplemented,
            "grpc_over_http1",
            Side::Client,
            "gRPC needs HTTP/2, and this request came over HTTP/1.1; for cleartext, let the client use HTTP/2 by prior knowledge",
        )
        .with_http_status(505));
    }
    headers::check_host(request.version(), request.headers())?;
    if let Some(value) = request.headers().get(GRPC_TIMEOUT)
        && stream.protocol() == Protocol::Grpc
        && let Err(fault) = deadline::parse(value.as_bytes())
    {
        return Err(Error::new(
            Code::InvalidArgument,
            "bad_grpc_timeout",
            Side::Client,
            format!("grpc-timeout: {fault}"),
        ));
    }
    if request.method() == Method::CONNECT {
        return Err(Error::new(
            Code::Unimplemented,
            "connect_refused",
            Side::Client,
            "CONNECT is not served",
        )
        .with_http_status(405));
    }
    request.extensions_mut().insert(stream);
    worker.call(request)
}

/// What is known of a stream when its headers have come.
fn stream_context<B>(request: &Request<B>) -> StreamContext {
    let started_at = Instant::now();
    let headers = request.headers();
    // Over HTTP/1.1 there is no gRPC, and whoever tried it reads HTTP statuses.
    if request.version() != Version::HTTP_2 || !says_grpc(headers) {
        return StreamContext::new(Protocol::Http, started_at, None);
    }
    // A value that cannot be read is refused by `route`, where there is a status to say so.
    let timeout = headers
        .get(GRPC_TIMEOUT)
        .and_then(|value| deadline::parse(value.as_bytes()).ok());
    StreamContext::new(
        Protocol::Grpc,
        started_at,
        timeout.and_then(|timeout| started_at.checked_add(timeout)),
    )
}

fn says_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| is_grpc_content_type(value.as_bytes()))
}

/// Ready when the worker begins to drain.
async fn drained(worker: Rc<Worker>) {
    // The sender is gone when the whole proxy is.
    let _ = worker.drain.clone().wait_for(|drains| *drains).await;
}
