//! An HTTP/2 connection from a client, on the `h2` crate's own builder.
//!
//! The connection's task reads, writes and accepts; each stream is a task of its own on the same thread. A stream's task
//! owns all that the stream holds on either side, so that its end, however it comes, ends everything.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use h2::{
    PingPong, Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use thalweg_filters::{Body, StreamContext, stream::Protocol};
use tokio::{
    task::spawn_local,
    time::{Sleep, sleep_until, timeout},
};

use crate::{
    config::ServerHttp2,
    headers::Seen,
    keepalive::{self, Keepalive},
    patience::Patience,
    pump::{Intake, Pump, Stop},
    receive::{self, Unread},
    serve::{
        self, Client, Front, LINGER, LINGER_BYTES, answer, drained,
        expect::{self, Expected},
        stream_context,
    },
    stall::{Stall, StallWatch},
    telemetry::ListenerStats,
    transport::{Payload, Transport, driven},
    worker::Worker,
};

/// Serves the connection until it ends.
pub(super) async fn serve(
    transport: Transport,
    client: Client,
    front: Arc<Front>,
    worker: Rc<Worker>,
) {
    transport.batch();
    transport.follow_header_blocks();
    let handshake = builder(&front.settings.http2).handshake(transport.clone());
    // On the heap, and gone with its end: the connection's task keeps no room for it.
    let handshake = Box::pin(driven(transport.clone(), handshake));
    let mut patience = Patience::new(front.settings.timeouts.preface);
    let mut connection = match patience.with(handshake).await {
        Some(Ok(Ok(connection))) => connection,
        Some(_) => return front.stats.errors.increment(),
        None => return front.stats.preface_timeouts.increment(),
    };
    let ping = connection.ping_pong();
    let timeouts = &front.settings.timeouts;
    let mut drive = Drive {
        ping: Rc::new(RefCell::new(ping.expect("it is taken once"))),
        connection,
        transport,
        expiry: (client.expiry.as_ref()).map(|expiry| Box::pin(sleep_until(expiry.at))),
        client: Rc::new(client),
        stall: StallWatch::new(timeouts.stall).at_least(timeouts.stall_min_progress),
        keepalive: Keepalive::new(&front.settings.http2.http2.keepalive),
        first_headers: Some(Patience::new(timeouts.first_headers)),
        header_block: None,
        drain: Some(Box::pin(drained(Arc::clone(&front)))),
        drain_polled: false,
        front,
        worker,
    };
    match std::future::poll_fn(|cx| drive.poll(cx)).await {
        Ok(()) => {
            let transport = drive.transport.clone();
            drop(drive);
            serve::linger(transport).await;
        }
        Err(error) => {
            drive.front.stats.errors.increment();
            tracing::debug!(listener = drive.front.settings.name, %error, "connection ended");
        }
    }
}

/// The connection, and the clocks that it is held to.
struct Drive<D> {
    connection: server::Connection<Transport, Payload>,
    ping: Rc<RefCell<PingPong>>,
    transport: Transport,
    client: Rc<Client>,
    /// Until the client's certificate ends.
    expiry: Option<Pin<Box<Sleep>>>,
    stall: StallWatch,
    keepalive: Keepalive,
    /// Until the first request.
    first_headers: Option<Patience>,
    /// Until the end of a header block that is under way, and which that is.
    header_block: Option<(u64, Patience)>,
    /// Polled once, to leave the task's waker there, and again only when there is news.
    drain: Option<Pin<Box<D>>>,
    drain_polled: bool,
    front: Arc<Front>,
    worker: Rc<Worker>,
}

impl<D: Future<Output = ()>> Drive<D> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.first_headers = None;
                    let (front, worker) = (Arc::clone(&self.front), Rc::clone(&self.worker));
                    let (client, ping) = (Rc::clone(&self.client), Rc::clone(&self.ping));
                    // In a box, since a task moves what it runs when it begins and when it ends.
                    spawn_local(Box::pin(stream(
                        request, respond, client, ping, front, worker,
                    )));
                }
                Poll::Ready(Some(Err(error))) => {
                    let _ = self.transport.poll_drain(cx);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if self.drains(cx) {
            self.go_away(cx);
        }
        let block = self.transport.header_block();
        if self.header_block.as_ref().map(|(block, _)| *block) != block {
            let limit = self.front.settings.timeouts.first_headers;
            self.header_block = block.map(|block| (block, Patience::new(limit)));
        }
        let mut late = |patience: &mut Patience| patience.poll_end(cx).is_ready();
        if self.first_headers.as_mut().is_some_and(&mut late)
            || (self.header_block.as_mut()).is_some_and(|(_, patience)| late(patience))
        {
            self.front.stats.first_headers_timeouts.increment();
            // A graceful end would wait until the client has answered a PING, and one that says nothing never does.
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            let _ = self.connection.poll_accept(cx);
            let _ = self.transport.poll_drain(cx);
            return Poll::Ready(Ok(()));
        }
        let expires = |timer: &mut Pin<Box<Sleep>>| timer.as_mut().poll(cx).is_ready();
        if self.expiry.as_mut().is_some_and(expires) {
            self.expiry = None;
            if let Some(error) = self.front.expire(&self.client) {
                self.client.refused.get_or_init(|| error);
            }
            self.go_away(cx);
        }
        if let Poll::Ready(Err(error)) = self.transport.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        let read = self.transport.read_progress();
        let ping = || keepalive::ping(&mut self.ping.borrow_mut());
        let late = if self.stall.poll(cx, &self.transport).is_ready() {
            self.front.stats.stalls.increment();
            "the client took too few bytes for timeouts.stall (stall_min_progress)"
        } else if self.keepalive.poll(cx, read, true, ping).is_ready() {
            self.front.stats.keepalive_timeouts.increment();
            "the client left a PING without an answer for http2.keepalive.timeout"
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)))
    }

    fn drains(&mut self, cx: &mut Context<'_>) -> bool {
        let polled = std::mem::replace(&mut self.drain_polled, true);
        if polled && !self.front.phases.has_changed().unwrap_or(true) {
            return false;
        }
        let begins = |drain: &mut Pin<Box<D>>| drain.as_mut().poll(cx).is_ready();
        let begins = self.drain.as_mut().is_some_and(begins);
        if begins {
            self.drain = None;
        }
        begins
    }

    fn go_away(&mut self, cx: &Context<'_>) {
        self.connection.graceful_shutdown();
        // The frame is written by the next poll.
        cx.waker().wake_by_ref();
    }
}

fn builder(settings: &ServerHttp2) -> server::Builder {
    let common = &settings.http2;
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(common.stream_window)
        .initial_connection_window_size(common.connection_window)
        .max_frame_size(common.max_frame_size)
        .max_header_list_size(common.max_header_list_size)
        .max_send_buffer_size(common.send_buffer)
        .header_table_size(common.header_table_size)
        .max_concurrent_reset_streams(common.max_reset_streams)
        .max_pending_accept_reset_streams(common.max_pending_resets)
        .max_local_error_reset_streams(Some(common.max_local_resets))
        .reset_stream_duration(common.reset_memory)
        .data_frame_budget(common.data_frame_budget)
        .max_concurrent_streams(settings.max_concurrent_streams);
    builder
}

/// One stream, from its headers to its end.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` would keep its arguments twice"
)]
fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Payload>,
    client: Rc<Client>,
    ping: Rc<RefCell<PingPong>>,
    front: Arc<Front>,
    worker: Rc<Worker>,
) -> impl Future<Output = ()> {
    async move {
        let seen = Seen::of(&request);
        let context = stream_context(&request, &seen, worker.share());
        let _live = worker.live(&context);
        let _expiring = (client.expiry.as_ref()).map(|expiry| expiry.join(&context));
        let (parts, body) = request.into_parts();
        // gRPC clients know what a reset after a whole answer means; of others, some lose the answer over it.
        let (body, progress, unread) = match context.protocol() {
            Protocol::Grpc => {
                let (body, progress) = receive::messages(body, &context);
                (body, progress, None)
            }
            Protocol::Http => {
                let (body, unread) = receive::held_body(body, &context);
                (body, None, Some(unread))
            }
        };
        let (body, mut expected) = expect::expected(&parts, &seen, body);
        let request = Request::from_parts(parts, body);
        let exit = worker.exit(&context, progress);
        let answer = pin!(answer(
            request,
            &seen,
            context.clone(),
            exit,
            &client,
            &front,
            &worker
        ));
        let Some(response) = unless_reset(&mut respond, &context, &mut expected, answer).await
        else {
            return;
        };

        let (parts, body) = response.into_parts();
        let mut head = Response::from_parts(parts, ());
        *head.version_mut() = Version::HTTP_2;
        let ended = body.is_end_stream();
        // Fails only when the client has left already.
        let Ok(sink) = respond.send_response(head, ended) else {
            return;
        };
        let body = if ended { Body::empty() } else { body };
        let timeouts = &front.settings.timeouts;
        let mut pump = Pump::new(
            Intake::new(body),
            sink,
            Stall::new(timeouts.stall).at_least(timeouts.stall_min_progress),
            Some(context.clone()),
        )
        .with_last_words(timeouts.last_words);
        if !ended {
            send_body(&mut pump, &context, &front.stats).await;
            if pump.has_overtaken() {
                front.stats.last_words.increment();
            }
        }
        if let Some(unread) = unread.filter(Unread::is_partial) {
            // On the heap: few streams come here.
            Box::pin(linger(pump, unread, &ping)).await;
        }
    }
}

/// Reads on for a moment, when a stream has been answered, until its client has noticed that it need not upload the rest.
async fn linger(mut pump: Pump, unread: Unread, ping: &RefCell<PingPong>) {
    pump.forget_source();
    let mut left = LINGER_BYTES;
    let reading = std::future::poll_fn(|cx| match pump.poll_reset(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => unread.poll_discard(cx, &mut left),
    });
    let _ = timeout(LINGER, reading).await;
    // curl 7.88 ends such an upload, and then sleeps until one more frame comes.
    keepalive::ping(&mut ping.borrow_mut());
}

async fn send_body(pump: &mut Pump, context: &StreamContext, stats: &ListenerStats) {
    match std::future::poll_fn(|cx| pump.poll(cx)).await {
        Ok(()) => {}
        Err(Stop::Sink(code)) => context.set_cancel_code(code.unwrap_or(Reason::CANCEL)),
        Err(Stop::Source(error)) => pump.reset(error.reset_code()),
        // The client does not read; nothing else could still be told to it.
        Err(Stop::Stalled(limit)) => {
            stats.stalls.increment();
            tracing::debug!(
                ?limit,
                "stream ended: the client took too few bytes for timeouts.stall (stall_min_progress)"
            );
            pump.reset(Reason::CANCEL);
        }
    }
}

/// The answer, or `None` if the client resets the stream first. A client that waits until its body is wanted hears that on the way.
async fn unless_reset<T>(
    respond: &mut SendResponse<Payload>,
    context: &StreamContext,
    expected: &mut Option<Expected>,
    mut answer: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    std::future::poll_fn(|cx: &mut Context<'_>| {
        let answer = Pin::as_mut(&mut answer).poll(cx);
        let is_wanted = |body: &mut Expected| match answer {
            Poll::Ready(_) => body.is_held(),
            Poll::Pending => body.poll_read(cx).is_ready(),
        };
        if expected.take_if(is_wanted).is_some() {
            let mut head = Response::new(());
            *head.status_mut() = StatusCode::CONTINUE;
            // Fails only when the client has left already.
            let _ = respond.send_informational(head);
        }
        if let Poll::Ready(answer) = answer {
            return Poll::Ready(Some(answer));
        }
        respond.poll_reset(cx).map(|reset| {
            context.set_cancel_code(reset.unwrap_or(Reason::CANCEL));
            None
        })
    })
    .await
}
