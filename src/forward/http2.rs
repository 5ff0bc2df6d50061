//! The exchange with an HTTP/2 upstream.
//!
//! Request and response move at the same time and on one task: whoever reads the response's body drives the upload with it.
//! So there is one thing to drop when the client leaves, and its dropping resets the upstream's stream at once, also while
//! the upload is blocked.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use h2::{Reason, client::ResponseFuture};
use http::{HeaderValue, Request, Response, Version, request::Parts};
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error, Side, StreamContext, body::Ledger, ending::grpc_status};
use thalweg_proto::{deadline, status::Code};
use tokio::time::{Instant, sleep};

use crate::{
    config::RouteTimeouts,
    dismissal::Member,
    forward::{connected, judge},
    headers::{self, GRPC_TIMEOUT},
    pump::{Intake, Pump, Stop},
    receive::{self, Sender},
    retry::{Attempts, Failure, No, Retries},
    upstream::{Cluster, balance::Balance, http2, outlier::Trial},
};

/// Opens a stream, sends the request's head, and waits for the response's; and does so again where `retries` allow it.
pub(crate) fn exchange(
    cluster: &Cluster,
    endpoints: &Balance<http2::Pool>,
    request: Request<Body>,
    timeouts: &RouteTimeouts,
    retries: Option<&Retries>,
) -> impl Future<Output = Result<Response<Body>, Error>> {
    let (mut parts, body) = request.into_parts();
    let stream = parts.extensions.remove::<StreamContext>();
    let deadline = stream.as_ref().and_then(StreamContext::deadline);
    let mut intake = Intake::new(body);
    let mut attempts = Attempts::new(retries);
    async move {
        headers::for_http2(&mut parts, cluster.tls)?;
        // Where the last attempt failed.
        let mut failed_at = None;
        loop {
            let avoided = failed_at.as_ref();
            let lease = match endpoints.best(&parts.headers, avoided) {
                Ok(best) => match best.lease_now() {
                    Some(lease) => Ok(lease),
                    None => {
                        let opening =
                            endpoints.open(best, &parts.headers, avoided, http2::Pool::lease);
                        let opened = connected(cluster, timeouts, opening);
                        // On the heap: few streams come here.
                        Box::pin(reading(&mut intake, opened)).await?
                    }
                },
                Err(error) => Err(error),
            };
            let (failure, rest) = match lease {
                // Every endpoint was tried.
                Err(error) => (Failure::Failed(error), Some(intake)),
                Ok(lease) => {
                    failed_at = Some(Arc::clone(lease.endpoint()));
                    let head = head(&mut parts, &attempts, deadline);
                    let opened =
                        Exchange::open(cluster, lease, head, intake, &stream, timeouts, &attempts);
                    match opened {
                        Ok((exchange, response)) => {
                            match exchange.answer(response, cluster, &attempts).await? {
                                Ok(response) => return Ok(response),
                                Err(failed) => *failed,
                            }
                        }
                        Err(failed) => *failed,
                    }
                }
            };
            let again = match rest {
                Some(_) => attempts.again(&failure, deadline, Instant::now()),
                None => Err(No::Unwanted),
            };
            match (again, rest) {
                (Ok(wait), Some(rest)) => {
                    cluster.stats.retries.increment();
                    tracing::debug!(cluster = %cluster.label, ?wait, "a stream failed and is tried again");
                    drop(failure);
                    intake = rest;
                    if !wait.is_zero() {
                        reading(&mut intake, sleep(wait)).await?;
                    }
                }
                (no, _) => {
                    if no == Err(No::Budget) {
                        cluster.stats.retry_overflows.increment();
                    }
                    return failure.told();
                }
            }
        }
    }
}

/// Waits for something, and reads what the client sends meanwhile.
async fn reading<F: Future>(intake: &mut Intake, waited_for: F) -> Result<F::Output, Error> {
    let mut waited_for = pin!(waited_for);
    std::future::poll_fn(|cx| match waited_for.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => match intake.poll_waiting(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        },
    })
    .await
}

/// The head of the request for one attempt; the last takes it and need not copy.
fn head(parts: &mut Parts, attempts: &Attempts<'_>, deadline: Option<Instant>) -> Request<()> {
    let mut head = Request::new(());
    *head.version_mut() = parts.version;
    if attempts.are_left() {
        *head.method_mut() = parts.method.clone();
        *head.uri_mut() = parts.uri.clone();
        *head.headers_mut() = parts.headers.clone();
    } else {
        *head.method_mut() = std::mem::take(&mut parts.method);
        *head.uri_mut() = std::mem::take(&mut parts.uri);
        *head.headers_mut() = std::mem::take(&mut parts.headers);
        // What is known of the request goes with it, and so does what it counted.
        parts.extensions.clear();
    }
    let headers = head.headers_mut();
    attempts.tell(headers);
    if let Some(deadline) = deadline {
        // Less than the client gave, by the time that the stream has spent here.
        let left = deadline::format(deadline.saturating_duration_since(Instant::now()));
        if let Ok(value) = HeaderValue::from_str(left.as_str()) {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
    head
}

/// Whether an upstream has not begun with a stream, and never will: it says so of the stream, or by a GOAWAY that leaves it out
/// (RFC 9113, sections 8.7 and 6.8).
fn is_refusal(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Both directions of one stream to an upstream. It becomes the response's body, and drives the upload as that is read.
struct Exchange {
    upload: Upload,
    /// What the upstream answers, once the head of it is there.
    download: Body,
    /// Tells what has come of the answer and waits for the client; there from its first chunk on.
    ledger: Option<Arc<Ledger>>,
    pump: Pump,
    stream: Option<StreamContext>,
    sender: Sender,
    /// The response has come whole, or the stream was reset.
    complete: bool,
    stall_min_progress: u64,
    /// Its place among those that end with the endpoint.
    _member: Option<Member>,
    /// What it will say about the endpoint.
    trial: Option<Trial>,
    lease: http2::Lease,
}

#[derive(PartialEq, Eq)]
enum Upload {
    Running,
    /// The upstream wants no more of it. Until the answer says why, the request may be wanted by another.
    Stopped,
    Done,
}

/// An attempt that failed, and the request from its beginning, if it can be sent again.
type Failed = Box<(Failure, Option<Intake>)>;

// === impl Exchange ===

impl Exchange {
    /// Opens a stream, and keeps what is sent for as long as there may be another attempt.
    fn open(
        cluster: &Cluster,
        lease: http2::Lease,
        head: Request<()>,
        intake: Intake,
        stream: &Option<StreamContext>,
        timeouts: &RouteTimeouts,
        attempts: &Attempts<'_>,
    ) -> Result<(Box<Self>, ResponseFuture), Failed> {
        let sender = lease.sender(&cluster.label);
        let done = intake.is_done();
        let (response, sink) = match lease.open(head, done) {
            Ok(opened) => opened,
            // Nothing of it has left.
            Err(error) => {
                return Err(Box::new((
                    Failure::Refused(sender.error(error)),
                    Some(intake),
                )));
            }
        };
        let least = timeouts.stall_min_progress;
        let stall = lease.stall(timeouts.stall).at_least(least);
        let mut pump = Pump::new(intake, sink, stall, stream.clone()).with_head(lease.takes_more());
        if let Some(limit) = attempts.kept() {
            pump = pump.keeping(limit);
        }
        let exchange = Box::new(Self {
            upload: if done { Upload::Done } else { Upload::Running },
            download: Body::empty(),
            ledger: None,
            pump,
            stream: stream.clone(),
            sender,
            complete: false,
            stall_min_progress: least,
            _member: stream.as_ref().and_then(|stream| lease.join(stream)),
            trial: lease.trial(),
            lease,
        });
        Ok((exchange, response))
    }

    /// Waits for the head of the response. An error of the request itself comes first.
    async fn answer(
        mut self: Box<Self>,
        mut response: ResponseFuture,
        cluster: &Cluster,
        attempts: &Attempts<'_>,
    ) -> Result<Result<Response<Body>, Failed>, Error> {
        let head = std::future::poll_fn(|cx| {
            if let Err(error) = self.poll_upload(cx) {
                return Poll::Ready(Err(error));
            }
            Pin::new(&mut response).poll(cx).map(Ok)
        })
        .await;
        let head = match head {
            Ok(head) => head,
            Err(error) if error.side() == Side::Upstream => {
                self.fails(&error);
                return Ok(Err(Box::new((Failure::Failed(error), self.pump.rewind()))));
            }
            Err(error) => return Err(error),
        };
        let (mut parts, download) = match head {
            Ok(head) => head.into_parts(),
            Err(error) => {
                let refused = is_refusal(&error);
                let error = self.sender.error(error);
                let failure = if refused {
                    Failure::Refused(error)
                } else {
                    self.fails(&error);
                    Failure::Failed(error)
                };
                return Ok(Err(Box::new((failure, self.pump.rewind()))));
            }
        };
        parts.version = Version::HTTP_11;
        if let Some(trial) = &mut self.trial {
            trial.answered(parts.status);
        }
        let most_headers = self.lease.max_headers();
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
        let body = receive::body(download, self.sender.clone(), self.stream.as_ref());
        if body.is_end_stream() {
            self.complete = true;
            if let Some(trial) = self.trial.take() {
                trial.ends_with_head(&parts.headers);
            }
            let response = Response::from_parts(parts, Body::empty());
            return Ok(match grpc_status(response.headers()) {
                Some(code) if attempts.matches(code) => {
                    let failure = Failure::Status(response, code);
                    Err(Box::new((failure, self.pump.rewind())))
                }
                _ => Ok(response),
            });
        }
        self.settle();
        self.download = body;
        Ok(Ok(Response::from_parts(parts, Body::boxed(self))))
    }

    fn fails(&mut self, error: &Error) {
        if let Some(trial) = self.trial.take() {
            trial.fails(error);
        }
    }

    /// The answer has begun, and there will be no other attempt.
    fn settle(&mut self) {
        self.pump.settle();
        if self.upload == Upload::Stopped {
            self.let_go();
        }
    }

    /// What the client still sends is let go of.
    fn let_go(&mut self) {
        self.upload = Upload::Done;
        self.pump.forget_source();
    }

    /// Moves the request on. An error ends the stream; a far side that wants no more of the request does not, for it may
    /// have answered already.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.upload != Upload::Running {
            return Ok(());
        }
        let Poll::Ready(result) = self.pump.poll(cx) else {
            return Ok(());
        };
        self.upload = Upload::Done;
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Sink(_)) => {
                // The response's side tells what became of the stream.
                if self.pump.keeps() {
                    self.upload = Upload::Stopped;
                } else {
                    self.let_go();
                }
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

impl http_body::Body for Exchange {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        // The answer first: whoever takes all of it asks until there is no more, and the upload wants one look and not one for each frame.
        let Poll::Ready(frame) = Pin::new(&mut this.download).poll_frame(cx) else {
            let Err(error) = this.poll_upload(cx) else {
                return Poll::Pending;
            };
            let waits = this.ledger.as_ref().is_some_and(|ledger| ledger.held() > 0);
            return Poll::Ready(Some(Err(match waits {
                // An upstream that cannot get rid of its answer need not take more of the request.
                true if error.side() == Side::Upstream => error.with_side(Side::Client),
                _ => error,
            })));
        };
        if this.ledger.is_none()
            && let Some(Ok(frame)) = &frame
            && let Some(chunk) = frame.data_ref()
        {
            this.ledger = chunk.ledger().cloned();
        }
        // The response is over: whatever the client still sends is not wanted any more.
        this.complete |= !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        judge(&mut this.trial, frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.download.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.download.size_hint()
    }
}
