//! Drives one connection from a client.
//!
//! | file | what it holds |
//! |---|---|
//! | [`http2`] | the connection and its streams, on the `h2` crate |
//! | [`http1`] | the connection and its requests, on hyper |
//! | [`door`] | what every request passes before its route is looked for |
//! | [`origin`] | who the client is, as backends are told |
//! | [`expect`] | the body of a client that waits until somebody wants it |
//! | [`expiry`] | the end of a client's certificate while its connection is open |
//! | [`pages`] | which requests come from web pages of other origins |
//! | [`proxied`] | where a connection comes from that a balancer has passed on |

use std::{cell::OnceCell, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{Method, Request, Response, Version};
use thalweg_filters::{
    Body, Error, Side, StreamContext,
    held::Share,
    stream::{Booking, Protocol},
};
use thalweg_proto::{deadline, status::Code};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    bindings::ForeignPage,
    config,
    dismissal::Exit,
    drain::{Phase, reached},
    headers::{self, GRPC_TIMEOUT, Seen},
    patience::Patience,
    respond::respond,
    telemetry::ListenerStats,
    tls::{Accepted, Identity, Tls},
    transport::{Socket, Spoken, Transport},
    worker::Worker,
};

mod door;
mod expect;
mod expiry;
mod http1;
mod http2;
mod origin;
mod pages;
mod proxied;

use self::{expiry::Expiry, origin::Origin};

/// How long a client that is still uploading may take to read the answer that it need not go on.
const LINGER: Duration = Duration::from_secs(1);

/// The most that is read of an upload that nobody wants.
const LINGER_BYTES: usize = 16 << 20;

/// What the connections of one listener have in common.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) settings: config::Listener,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) stats: Arc<ListenerStats>,
    /// How far the end of the listener has come: the proxy's end, or that of its address in the configuration.
    pub(crate) phases: watch::Receiver<Phase>,
}

impl Front {
    /// The certificate of a client has ended: what it has open ends, and what it still asks for hears why.
    fn expire(&self, client: &Client) -> Option<Error> {
        let expiry = client.expiry.as_ref()?;
        if let Some(tls) = &self.tls {
            tls.stats.expired_clients.increment();
        }
        Some(expiry.dismiss())
    }
}

/// Who is at the other end of a connection, as far as is known.
#[derive(Debug, Default)]
struct Client {
    /// What backends are told of it.
    origin: Origin,
    /// Why none of its requests is served any more, if that is so.
    refused: OnceCell<Error>,
    /// When its certificate ends.
    expiry: Option<Expiry>,
}

/// Serves a connection to its end.
pub(crate) async fn connection(socket: Socket, front: Arc<Front>, worker: Rc<Worker>) {
    let transport = Transport::new(socket);
    // On the heap, and gone with its end: the connection's task keeps no room for it.
    let Some((spoken, client)) = Box::pin(begin(&transport, &front)).await else {
        return;
    };
    match spoken {
        Spoken::Http2 => http2::serve(transport, client, front, worker).await,
        Spoken::Http1 => http1::serve(transport, client, front, worker).await,
        Spoken::Tls => front.stats.unexpected_tls.increment(),
    }
}

/// What is spoken on a connection, and by whom; `None` when nothing will be.
async fn begin(transport: &Transport, front: &Front) -> Option<(Spoken, Client)> {
    let mut patience = Patience::new(front.settings.timeouts.handshake);
    let address = match &front.settings.proxy_protocol {
        Some(settings) => Some(proxied::address(transport, settings, front, &mut patience).await?),
        None => transport.peer(),
    };
    let tls = front.tls.is_some();
    let mut client = Client {
        origin: Origin::new(&front.settings.forwarded, address, tls),
        ..Client::default()
    };
    if let Some(tls) = &front.tls {
        match secure(transport, tls, front, &mut patience).await? {
            Some(Accepted {
                spoken,
                certificate,
            }) => {
                match certificate {
                    Ok(None) => {}
                    Ok(Some(Identity { header, left })) => {
                        client.origin.certificate = Some(header);
                        client.expiry = Expiry::after(left);
                    }
                    Err(error) => client.refused = error.into(),
                }
                if let Some(spoken) = spoken {
                    return Some((spoken, client));
                }
            }
            None => client.refused = tls_required().into(),
        }
    }
    let mut patience = Patience::new(front.settings.timeouts.preface);
    let looked = patience.with(look(transport)).await;
    if looked.is_none() {
        front.stats.preface_timeouts.increment();
    }
    // Where nothing was said: a port scan, a health check of the socket, a client that has changed its mind.
    let spoken = looked?.ok()?;
    Some((spoken, client))
}

/// The handshake with a client; within it, `None` when the client has begun without one.
async fn secure(
    transport: &Transport,
    tls: &Tls,
    front: &Front,
    patience: &mut Patience,
) -> Option<Option<Accepted>> {
    let handshake = async {
        match look(transport).await {
            Ok(Spoken::Tls) => Some(tls.accept(transport).await.map(Some)),
            Ok(_) => Some(Ok(None)),
            Err(_) => None,
        }
    };
    let listener = &front.settings.name;
    match patience.with(handshake).await {
        Some(None) => None,
        Some(Some(Ok(accepted))) => {
            if accepted.is_none() {
                tls.stats.missing.increment();
            }
            Some(accepted)
        }
        Some(Some(Err(error))) => {
            tls.stats.handshake_failures.increment();
            tracing::debug!(listener, %error, "a TLS handshake failed");
            let mut transport = transport.clone();
            if transport.shutdown().await.is_ok() {
                linger(transport).await;
            }
            None
        }
        None => {
            tls.stats.handshake_timeouts.increment();
            None
        }
    }
}

fn tls_required() -> Error {
    Error::new(
        Code::FailedPrecondition,
        "tls_required",
        Side::Client,
        "this port wants TLS, and the request came in the clear; for HTTP, let the address begin with https://",
    )
    .with_http_status(400)
}

async fn look(transport: &Transport) -> std::io::Result<Spoken> {
    std::future::poll_fn(|cx| transport.poll_spoken(cx)).await
}

/// Reads on for a moment, when all that is to be said is written and the sending side closed. A socket that is closed with bytes
/// unread resets its connection, and a client that was still sending would lose what was said to it last: over HTTP/1.1 the answer that
/// says why nobody reads (RFC 9112, 9.6), over HTTP/2 the status of a stream that a drain has ended.
async fn linger(mut transport: Transport) {
    let mut unread = BytesMut::with_capacity(16 * 1024);
    let reading = async {
        let mut left = LINGER_BYTES;
        while let Ok(count @ 1..) = transport.read_buf(&mut unread).await
            && count < left
        {
            left -= count;
            unread.clear();
        }
    };
    let _ = timeout(LINGER, reading).await;
}

/// Answers one request, whatever becomes of it.
fn answer(
    request: Request<Body>,
    seen: &Seen,
    stream: StreamContext,
    exit: Exit,
    client: &Client,
    front: &Front,
    worker: &Worker,
) -> impl Future<Output = Response<Body>> + use<> {
    let details = front.settings.error_details;
    respond(
        exit,
        route(request, seen, stream, client, front, worker),
        details,
    )
}

fn route(
    mut request: Request<Body>,
    seen: &Seen,
    stream: StreamContext,
    client: &Client,
    front: &Front,
    worker: &Worker,
) -> Result<impl Future<Output = Result<Response<Body>, Error>> + use<>, Error> {
    if let Some(error) = client.refused.get() {
        return Err(error.clone());
    }
    let most_headers = match request.version() {
        Version::HTTP_2 => front.settings.http2.http2.max_headers,
        _ => front.settings.http1.max_headers,
    };
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
    if seen.content_types > 1 {
        // Whoever is behind us may believe another of them than we do.
        return Err(Error::new(
            Code::InvalidArgument,
            "content_types",
            Side::Client,
            "the request has more than one content-type",
        ));
    }
    if seen.says_grpc && stream.protocol() != Protocol::Grpc {
        return Err(Error::new(
            Code::Unimplemented,
            "grpc_over_http1",
            Side::Client,
            "gRPC needs HTTP/2, and this request came over HTTP/1.1; for cleartext, let the client use HTTP/2 by prior knowledge",
        )
        .with_http_status(505));
    }
    headers::check_host(request.version(), request.uri(), request.headers(), seen)?;
    if seen.is_framed {
        headers::check_framing(request.headers())?;
    }
    if seen.expects {
        headers::take_expectation(request.headers_mut())?;
    }
    if seen.has_grpc_timeout
        && stream.protocol() == Protocol::Grpc
        && let Some(value) = request.headers().get(GRPC_TIMEOUT)
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
    door::pass(&mut request, client, &front.settings)?;
    // A page that wants to speak gRPC must ask first, and nobody answers it.
    let Front { settings, tls, .. } = front;
    if stream.protocol() == Protocol::Http
        && pages::is_foreign(&request, &settings.allowed_origins, tls.is_some())
    {
        request.extensions_mut().insert(ForeignPage);
    }
    if seen.size >= LargeHead::LEAST {
        let head = LargeHead::of(seen.size, &stream);
        request.extensions_mut().insert(head);
    }
    request.extensions_mut().insert(stream);
    worker.call(request)
}

/// Headers that the stream holds until its request has been passed on for the last time: one that may be tried again keeps them
/// until its answer begins. It lies in the extensions of the request, and goes with them. What is usual is part of what a stream
/// costs anyway.
#[derive(Clone)]
struct LargeHead {
    _booked: Arc<Booking>,
}

impl LargeHead {
    /// Headers of less than this, as HTTP/2 counts them, do not count.
    const LEAST: usize = 1024;

    fn of(size: usize, stream: &StreamContext) -> Self {
        // The codec has read them into buffers, and the map has its own.
        Self {
            _booked: Arc::new(stream.book(2 * size)),
        }
    }
}

/// What is known of a stream when its headers have come, and whose bytes count in `share`.
pub(crate) fn stream_context<B>(
    request: &Request<B>,
    seen: &Seen,
    share: Option<Arc<Share>>,
) -> StreamContext {
    let started_at = Instant::now();
    // Over HTTP/1.1 there is no gRPC, and whoever tried it reads HTTP statuses.
    if request.version() != Version::HTTP_2 || !seen.says_grpc {
        return StreamContext::held_in(share, Protocol::Http, started_at, None);
    }
    let timeout = if seen.has_grpc_timeout {
        request.headers().get(GRPC_TIMEOUT)
    } else {
        None
    };
    // A value that cannot be read is refused by `route`, where there is a status to say so.
    let timeout = timeout.and_then(|value| deadline::parse(value.as_bytes()).ok());
    StreamContext::held_in(
        share,
        Protocol::Grpc,
        started_at,
        timeout.and_then(|timeout| started_at.checked_add(timeout)),
    )
}

/// Ready when the listener's connections are to take no more streams.
async fn drained(front: Arc<Front>) {
    reached(front.phases.clone(), Phase::Draining).await;
}
