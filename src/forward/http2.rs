//! The exchange with an HTTP/2 upstream.
//!
//! Request and response move at the same time and on one task: whoever reads the response's body drives the upload with it.
//! So there is one thing to drop when the client leaves, and its dropping resets the upstream's stream at once, also while
//! the upload is blocked.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use h2::Reason;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error, Side, StreamContext};
use thalweg_proto::{deadline, status::Code};
use tokio::time::Instant;

use crate::{
    config::RouteTimeouts,
    forward::connected,
    headers,
    pump::{Intake, Pump, Stop},
    receive::{self, Sender},
    upstream::{Cluster, balance::Balance, http2},
};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Opens a stream, sends the request's head, and waits for the response's.
pub(crate) async fn exchange(
    cluster: &Cluster,
    endpoints: &Balance<http2::Pool>,
    request: Request<Body>,
    timeouts: &RouteTimeouts,
) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    let stream = parts.extensions.remove::<StreamContext>();
    headers::for_http2(&mut parts, cluster.tls)?;
    let mut intake = Intake::new(body);
    let lease = {
        let mut lease = pin!(connected(
            cluster,
            timeouts,
            endpoints.open(http2::Pool::lease)
        ));
        std::future::poll_fn(|cx| match lease.as_mut().poll(cx) {
            Poll::Pending => intake
                .poll(cx)
                .map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            ready => ready,
        })
        .await?
    };
    let done = intake.is_done();
    if let Some(deadline) = stream.as_ref().and_then(StreamContext::deadline) {
        // Less than the client gave, by the time that the stream has spent here.
        let left = deadline::format(deadline.saturating_duration_since(Instant::now()));
        if let Ok(value) = HeaderValue::from_str(left.as_str()) {
            parts.headers.insert(GRPC_TIMEOUT, value);
        }
    }
    let sender = lease.sender(&cluster.label);
    let (response, sink) = lease
        .open(Request::from_parts(parts, ()), done)
        .map_err(|error| sender.error(error))?;
    let upload = if done { Upload::Done } else { Upload::Running };
    let mut exchange = Exchange {
        upload,
        pump: Pump::new(
            intake,
            sink,
            lease
                .stall(timeouts.stall)
                .at_least(timeouts.stall_min_progress),
        ),
        stream,
        sender,
        complete: false,
        stall_min_progress: timeouts.stall_min_progress,
        lease,
    };

    let mut response = pin!(response);
    let head = std::future::poll_fn(|cx| {
        exchange.poll_upload(cx)?;
        response
            .as_mut()
            .poll(cx)
            .map_err(|error| exchange.sender.error(error))
    })
    .await?;

    let (mut parts, download) = head.into_parts();
    parts.version = Version::HTTP_11;
    let most_headers = exchange.lease.max_headers();
    if parts.headers.len() > most_headers {
        let message = format!(
            "{}: the answer has {} headers, and at most {most_headers} are taken (http2.max_headers)",
            cluster.label,
            parts.headers.len()
        );
        return Err(Error::new(
            Code::ResourceExhausted,
            "upstream_too_many_headers",
            Side::Upstream,
            message,
        )
        .with_http_status(502));
    }
    let download = receive::body(download, exchange.sender.clone());
    if download.is_end_stream() {
        exchange.complete = true;
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    Ok(Response::from_parts(
        parts,
        Body::new(Download {
            exchange,
            body: download,
        }),
    ))
}

/// Both directions of one stream to an upstream.
struct Exchange {
    upload: Upload,
    pump: Pump,
    stream: Option<StreamContext>,
    sender: Sender,
    /// The response has come whole, or the stream was reset.
    complete: bool,
    stall_min_progress: u64,
    lease: http2::Lease,
}

#[derive(PartialEq, Eq)]
enum Upload {
    Running,
    Done,
}

/// The response's body, which drives the upload as it is read.
struct Download {
    exchange: Exchange,
    body: Body,
}

// === impl Exchange ===

impl Exchange {
    /// Moves the request on. An error ends the stream; a far side that wants no more of the request does not, for it may
    /// have answered already.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.upload == Upload::Done {
            return Ok(());
        }
        let Poll::Ready(result) = self.pump.poll(cx) else {
            return Ok(());
        };
        self.upload = Upload::Done;
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Sink(_)) => {
                // The response's side tells what became of the stream. What the client still sends is let go of.
                self.pump.forget_source();
                Ok(())
            }
            Err(Stop::Source(error)) => {
                let code = match error.side() {
                    Side::Client => error.reset_code(),
                    _ => Reason::CANCEL,
                };
                self.reset(code);
                Err(error)
            }
            Err(Stop::Stalled(limit)) => {
                self.reset(Reason::CANCEL);
                let Sender::Upstream { label, .. } = &self.sender else {
                    unreachable!("an exchange is with an upstream")
                };
                let message = match self.stall_min_progress {
                    0 | 1 => format!(
                        "{label}: the upstream took no bytes for {limit:?} (timeouts.stall)"
                    ),
                    least => format!(
                        "{label}: the upstream took fewer than {least} bytes in {limit:?} (timeouts.stall, stall_min_progress)"
                    ),
                };
                Err(Error::new(
                    Code::Unavailable,
                    "upstream_stalled",
                    Side::Upstream,
                    message,
                ))
            }
        }
    }

    fn reset(&mut self, code: Reason) {
        if !std::mem::replace(&mut self.complete, true) {
            self.pump.reset(code);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The client has left, or somebody has given up in its place.
        let code = self
            .stream
            .as_ref()
            .map_or(Reason::CANCEL, StreamContext::cancel_code);
        self.reset(code);
    }
}

// === impl Download ===

impl http_body::Body for Download {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        if let Err(error) = this.exchange.poll_upload(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        // The response is over: whatever the client still sends is not wanted any more.
        this.exchange.complete |= !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
