//! An HTTP/2 connection from a client, on the `h2` crate's own builder.
//!
//! The connection's task reads, writes and accepts; each stream is a task of its own on the same thread. A stream's task
//! owns all that the stream holds on either side, so that its end, however it comes, ends everything.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{Request, Response, Version};
use http_body::Body as _;
use thalweg_filters::{Body, StreamContext};
use tokio::{
    task::spawn_local,
    time::{sleep, timeout},
};

use crate::{
    config::ServerHttp2,
    pump::{Pump, Stop},
    receive::{self, Sender},
    serve::{Front, answer, drained, stream_context},
    stall::{Stall, StallWatch},
    transport::{Payload, Transport, driven},
    worker::Worker,
};

/// Serves the connection until it ends.
pub(super) async fn serve(transport: Transport, front: Arc<Front>, worker: Rc<Worker>) {
    transport.batch();
    let handshake = driven(
        transport.clone(),
        builder(&front.settings.http2).handshake(transport.clone()),
    );
    let connection = match timeout(front.settings.timeouts.preface, handshake).await {
        Ok(Ok(Ok(connection))) => connection,
        Ok(_) => return front.stats.errors.increment(),
        Err(_) => return front.stats.preface_timeouts.increment(),
    };
    if let Err(error) = drive(connection, transport, &front, worker).await {
        front.stats.errors.increment();
        tracing::debug!(listener = front.settings.name, %error, "connection ended");
    }
}

async fn drive(
    mut connection: server::Connection<Transport, Payload>,
    transport: Transport,
    front: &Arc<Front>,
    worker: Rc<Worker>,
) -> io::Result<()> {
    let mut stall = StallWatch::new(front.settings.timeouts.stall);
    let mut first_headers = Some(Box::pin(sleep(front.settings.timeouts.first_headers)));
    // Polled once, to leave the task's waker there, and again only when there is news.
    let mut drain = Some(Box::pin(drained(Rc::clone(&worker))));
    let mut drain_polled = false;
    std::future::poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    first_headers = None;
                    spawn_local(Rc::clone(&worker).guard(stream(
                        request,
                        respond,
                        Arc::clone(front),
                        Rc::clone(&worker),
                    )));
                }
                Poll::Ready(Some(Err(error))) => {
                    let _ = transport.poll_drain(cx);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if (!std::mem::replace(&mut drain_polled, true)
            || worker.drain.has_changed().unwrap_or(true))
            && drain
                .as_mut()
                .is_some_and(|drain| drain.as_mut().poll(cx).is_ready())
        {
            drain = None;
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if first_headers
            .as_mut()
            .is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
        {
            first_headers = None;
            front.stats.first_headers_timeouts.increment();
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if let Poll::Ready(Err(error)) = transport.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        stall.poll(cx, &transport).map(|()| {
            front.stats.stalls.increment();
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client took no bytes for timeouts.stall",
            ))
        })
    })
    .await
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
async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Payload>,
    front: Arc<Front>,
    worker: Rc<Worker>,
) {
    let context = stream_context(&request);
    let request = request.map(|body| receive::body(body, Sender::Client));
    let most_headers = front.settings.http2.http2.max_headers;
    let answer = answer(request, context.clone(), worker, most_headers);
    let Some(response) = unless_reset(&mut respond, &context, answer).await else {
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
    if !ended {
        send_body(body, sink, &context, front.settings.timeouts.stall).await;
    }
}

async fn send_body(
    body: Body,
    sink: h2::SendStream<Payload>,
    context: &StreamContext,
    stall: std::time::Duration,
) {
    let mut pump = Pump::new(body, sink, Stall::new(stall));
    match std::future::poll_fn(|cx| pump.poll(cx)).await {
        Ok(()) => {}
        Err(Stop::Sink(code)) => context.set_cancel_code(code.unwrap_or(Reason::CANCEL)),
        Err(Stop::Source(error)) => pump.reset(error.reset_code()),
        // The client does not read; nothing else could still be told to it.
        Err(Stop::Stalled(limit)) => {
            tracing::debug!(
                ?limit,
                "stream ended: the client took no bytes for timeouts.stall"
            );
            pump.reset(Reason::CANCEL);
        }
    }
}

/// The answer, or `None` if the client resets the stream first.
async fn unless_reset<T>(
    respond: &mut SendResponse<Payload>,
    context: &StreamContext,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = pin!(answer);
    std::future::poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(answer) = Pin::as_mut(&mut answer).poll(cx) {
            return Poll::Ready(Some(answer));
        }
        respond.poll_reset(cx).map(|reset| {
            context.set_cancel_code(reset.unwrap_or(Reason::CANCEL));
            None
        })
    })
    .await
}
