//! An HTTP/1.1 connection from a client, on hyper.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, ext::ReasonPhrase, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thalweg_filters::{Body, Chunk, Error, Side, StreamContext, body::Ledger};
use thalweg_proto::status::Code;
use tokio::time::{sleep, sleep_until};

use crate::{
    dismissal::Member,
    eager::eager,
    headers::{self, Seen},
    patience::Patience,
    serve::{Client, Front, LINGER, answer, drained, expect, linger, stream_context},
    stall::StallWatch,
    transport::Transport,
    worker::{Live, Worker},
};

/// Serves the connection until it ends.
pub(super) async fn serve(
    transport: Transport,
    client: Client,
    front: Arc<Front>,
    worker: Rc<Worker>,
) {
    let settings = &front.settings;
    let window = settings.http2.http2.stream_window as usize;
    let asked = Cell::new(false);
    let broken = Rc::<Broken>::default();
    let service = service_fn(|request: Request<Incoming>| {
        asked.set(true);
        let seen = Seen::of(&request);
        let context = stream_context(&request, &seen, worker.share());
        let expiring = (client.expiry.as_ref()).map(|expiry| expiry.join(&context));
        let live = (worker.live(&context), expiring);
        let broken = Rc::clone(&broken);
        let exit = worker.exit(&context, None);
        let (head, incoming) = request.into_parts();
        let (body, expected) = expect::expected(&head, &seen, receive(incoming, window, &context));
        let request = Request::from_parts(head, body);
        let answer = answer(request, &seen, context, exit, &client, &front, &worker);
        async move {
            let answer = answer.await;
            if let Some(expected) = expected {
                // hyper says 100 when it finds the body asked for, but not behind the head of an answer.
                expected.ask().await;
            }
            Ok::<_, Infallible>(finish(answer, live, broken))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // It runs from the end of one request to the whole head of the next.
            .header_read_timeout(settings.http1.keep_alive)
            .max_headers(settings.http1.max_headers)
            .max_buf_size(settings.http1.max_header_bytes)
            .serve_connection(TokioIo::new(transport.clone()), service)
    );
    let mut drain = pin!(drained(Arc::clone(&front)).fuse());
    // The first request of a connection that is just there is on its way: it is waited for.
    let mut first_request = pin!(
        async {
            drained(Arc::clone(&front)).await;
            sleep(LINGER).await;
        }
        .fuse()
    );
    let mut expiry = pin!(
        async {
            match &client.expiry {
                Some(expiry) => sleep_until(expiry.at).await,
                None => std::future::pending().await,
            }
        }
        .fuse()
    );
    let (mut drains, mut told) = (false, false);
    let mut first_headers = Patience::new(settings.timeouts.first_headers);
    let mut stall =
        StallWatch::new(settings.timeouts.stall).at_least(settings.timeouts.stall_min_progress);
    let mut last_words = StallWatch::new(settings.timeouts.last_words);
    let result = std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(match ended {
                    Ok(()) => Ok(()),
                    // The client has paused for longer than `keep_alive`.
                    Err(error) if error.is_timeout() => Ok(()),
                    Err(error) => Err(error.to_string()),
                });
            }
            drains |= drain.as_mut().poll(cx).is_ready();
            let late = first_request.as_mut().poll(cx).is_ready();
            let expired = expiry.as_mut().poll(cx).is_ready();
            if expired {
                front.expire(&client);
            }
            if told || !(expired || drains && (asked.get() || late)) {
                break;
            }
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        if !asked.get() && first_headers.poll_end(cx).is_ready() {
            front.stats.first_headers_timeouts.increment();
            return Poll::Ready(Ok(()));
        }
        // hyper asks for the rest of an answer when the client takes it, and would not hear before that there is none.
        if broken.is_set(cx) && last_words.poll(cx, &transport).is_ready() {
            front.stats.last_words.increment();
            return Poll::Ready(Err(
                "the answer broke off, and the client took no bytes for timeouts.last_words"
                    .to_owned(),
            ));
        }
        stall.poll(cx, &transport).map(|()| {
            front.stats.stalls.increment();
            Err("the client took too few bytes for timeouts.stall (stall_min_progress)".to_owned())
        })
    })
    .await;
    match result {
        Ok(()) => linger(transport).await,
        Err(error) => {
            front.stats.errors.increment();
            tracing::debug!(listener = front.settings.name, error, "connection ended");
        }
    }
}

fn finish(
    response: Response<Body>,
    live: (Live, Option<Member>),
    broken: Rc<Broken>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status.canonical_reason().is_none() {
        // hyper would write "<none>". A phrase that an upstream has given is there already.
        let phrase = match parts.status.as_u16() {
            499 => ReasonPhrase::from_static(b"Client Closed Request"),
            _ => ReasonPhrase::from_static(b""),
        };
        parts.extensions.get_or_insert_with(|| phrase);
    }
    let body = body.wrap(|inner| Sent {
        inner,
        broken,
        _live: live,
    });
    Response::from_parts(parts, eager(body))
}

/// Whether the answer of a connection has broken off, so that the connection cannot go on.
#[derive(Default)]
struct Broken {
    set: Cell<bool>,
    connection: RefCell<Option<Waker>>,
}

impl Broken {
    fn set(&self) {
        self.set.set(true);
        if let Some(connection) = self.connection.take() {
            connection.wake();
        }
    }

    /// Whoever has asked is woken when it is.
    fn is_set(&self, cx: &Context<'_>) -> bool {
        let mut connection = self.connection.borrow_mut();
        if !self.set.get() && !matches!(&*connection, Some(waker) if waker.will_wake(cx.waker())) {
            *connection = Some(cx.waker().clone());
        }
        self.set.get()
    }
}

/// The response's body. The stream lives for as long as it does.
struct Sent {
    inner: Body,
    broken: Rc<Broken>,
    _live: (Live, Option<Member>),
}

impl http_body::Body for Sent {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Err(_)) = &frame {
            self.broken.set();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The request's body. It is read no further than a window while nobody takes the bytes.
fn receive(incoming: Incoming, window: usize, context: &StreamContext) -> Body {
    Body::new(Received {
        incoming,
        ledger: Ledger::window(window).of(context),
    })
}

struct Received {
    incoming: Incoming,
    ledger: Arc<Ledger>,
}

impl http_body::Body for Received {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        ready!(this.ledger.poll_open(cx));
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            match frame {
                Ok(frame) => Ok(frame.map_data(|bytes| this.ledger.take(bytes))),
                Err(error) if headers::is_malformed(&error) => Err(Error::new(
                    Code::InvalidArgument,
                    "bad_body",
                    Side::Client,
                    "the request's body is not framed as HTTP/1.1 wants it",
                )
                .with_source(error)),
                Err(error) => Err(Error::new(
                    Code::Cancelled,
                    "client_cancelled",
                    Side::Client,
                    "the client's connection was lost before the request was whole",
                )
                .with_source(error)),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
