//! Opens a stream to a binding's target, under the binding's timeout, retries and breaker.
//!
//! **Why.** Before a target has said anything, a failure can be made good: nothing has been done that could not be done again. Once
//! it has answered, a second attempt might do everything twice, and a timeout would kill a stream that is well. So all
//! three hold for the handshake only, which ends with the first message of the answer, or with a failure before it.
//!
//! **How.** They are nested as in Dapr: each attempt asks the breaker and has the whole timeout to itself. A retry needs the request from
//! its beginning, which [`Replay`] has for as long as little of it was read; afterwards there is none. A breaker that
//! rejects ends the retries.
//!
//! A target that has never answered may turn out to know only unary calls. Then the stream is opened once more, as such a call. That
//! is not a retry: nothing had begun.

use std::{
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{
    Body, Chunk, Error, Side,
    circuit_breaker::{Breaker, Whole},
    ending::grpc_status,
};
use thalweg_proto::status::{Code, decode_message};
use tokio::time::{sleep, timeout};

use super::{
    Invocation, Target, buffered, component::control::Streams, dapr::NOT_KNOWN_TO_DAPR,
    replay::Replay,
};
use crate::{
    config, retry,
    telemetry::{BindingStats, Telemetry},
};

/// The end of a binding's chain.
pub(super) struct Handshake {
    label: String,
    target: Target,
    policy: config::Resiliency,
    breaker: Option<Breaker>,
    buffer_max: usize,
    stats: Arc<BindingStats>,
}

/// How an attempt went.
enum Outcome {
    /// The answer has begun.
    Established(Response<Body>),
    /// The target's own answer is that it failed.
    Refused {
        response: Response<Body>,
        code: Code,
        /// It is what one hears who streams to a method that there is not.
        no_such_method: bool,
    },
    /// There is no answer.
    Failed(Error),
}

// === impl Handshake ===

impl Handshake {
    pub(super) fn new(binding: &config::Binding, target: Target, telemetry: &Telemetry) -> Self {
        let label = format!("binding {}", binding.name);
        let policy = binding.resiliency.clone();
        let breaker = (policy.circuit_breaker.as_ref())
            .map(|settings| telemetry.breakers.handshake_breaker(&label, settings));
        Self {
            target,
            breaker,
            buffer_max: binding.buffer_max_bytes,
            stats: telemetry.process.binding(&binding.name),
            policy,
            label,
        }
    }

    pub(super) async fn call(
        self: Rc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let invocation: Arc<Invocation> = request
            .extensions()
            .get()
            .map(Arc::clone)
            .expect("whoever sends a stream to a binding says what it wants");
        let unproven = self.may_find_no_streams(&invocation);
        if !unproven && self.policy == config::Resiliency::default() {
            return self.target.open(&invocation, request).await;
        }
        // On the heap: most streams go without.
        Box::pin(self.with_care(&invocation, request)).await
    }

    /// Whether the stream might find that the target knows no streams. A unary call finds nothing out.
    fn may_find_no_streams(&self, invocation: &Invocation) -> bool {
        !invocation.unary && self.target.is_unproven()
    }

    async fn with_care(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        let retry = self.policy.retry.as_ref();
        let mut kept = retry.map_or(0, |retry| retry.replay_bytes);
        if self.may_find_no_streams(invocation) {
            kept = kept.max(self.buffer_max);
        }
        let (body, whole) = match &self.breaker {
            Some(_) => Whole::watch(body),
            None => (body, Whole::default()),
        };
        let booked = buffered::booking(&parts);
        let replay = Replay::new(body, kept, booked, &self.stats);
        let mut retries = 0;
        loop {
            let permit = match &self.breaker {
                Some(breaker) => Some(breaker.admit()?),
                None => None,
            };
            // It may have become known since the last attempt, by another stream or by reflection.
            let unproven = self.may_find_no_streams(invocation);
            let request = Request::from_parts(parts.clone(), replay.body());
            let outcome = self.attempt(invocation, request).await;
            match outcome {
                Outcome::Established(_) if unproven => self.target.learn(Streams::Yes),
                Outcome::Refused {
                    no_such_method: true,
                    ..
                } if unproven => {
                    self.target.learn(Streams::No);
                    if replay.is_intact() {
                        continue;
                    }
                }
                _ => {}
            }
            let code = outcome.code();
            if let Some(permit) = permit {
                match &outcome {
                    Outcome::Established(_) => permit.success(),
                    Outcome::Refused { code, .. } => permit.judge_status(*code, &whole),
                    Outcome::Failed(error) if error.side() == Side::Upstream => {
                        permit.judge_failure(code, &whole);
                    }
                    // Neither a client nor the proxy itself says anything of the target.
                    Outcome::Failed(_) => drop(permit),
                }
            }
            let wait = retry.and_then(|retry| wait(retry, retries, code));
            match (outcome, wait) {
                (Outcome::Established(response), _) => {
                    replay.settle();
                    return Ok(response);
                }
                (outcome, Some(wait))
                    if outcome.side() != Some(Side::Client) && replay.is_intact() =>
                {
                    tracing::debug!(
                        binding = self.label,
                        code = code.name(),
                        ?wait,
                        "the handshake failed and is tried again"
                    );
                    drop(outcome);
                    self.stats.retries.increment();
                    retries += 1;
                    pause(&replay, wait).await?;
                }
                (Outcome::Refused { response, .. }, _) => return Ok(response),
                (Outcome::Failed(error), _) => return Err(error),
            }
        }
    }

    async fn attempt(&self, invocation: &Invocation, request: Request<Body>) -> Outcome {
        let attempt = async {
            match self.target.open(invocation, request).await {
                Ok(response) => first_message(response).await,
                Err(error) => Outcome::Failed(error),
            }
        };
        let Some(limit) = self.policy.timeout else {
            return attempt.await;
        };
        timeout(limit, attempt).await.unwrap_or_else(|_| {
            self.stats.handshake_timeouts.increment();
            Outcome::Failed(Error::new(
                Code::DeadlineExceeded,
                "handshake_timeout",
                Side::Upstream,
                format!(
                    "{}: no answer within {limit:?} (resiliency.timeout)",
                    self.label
                ),
            ))
        })
    }
}

/// Waits for the first message of an answer, or for what comes in its place.
async fn first_message(response: Response<Body>) -> Outcome {
    if let Some(code) = failure(response.headers()) {
        let no_such_method = no_such_method(code, response.headers());
        return Outcome::Refused {
            response,
            code,
            no_such_method,
        };
    }
    if grpc_status(response.headers()).is_some() {
        return Outcome::Established(response);
    }
    let (parts, mut body) = response.into_parts();
    let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    let refused = match &first {
        Some(Ok(frame)) => frame.trailers_ref().and_then(|trailers| {
            let code = failure(trailers)?;
            Some((code, no_such_method(code, trailers)))
        }),
        Some(Err(error)) => return Outcome::Failed(error.clone()),
        None => None,
    };
    let body = Body::new(Begun {
        first: first.and_then(Result::ok),
        rest: body,
    });
    let response = Response::from_parts(parts, body);
    match refused {
        Some((code, no_such_method)) => Outcome::Refused {
            response,
            code,
            no_such_method,
        },
        None => Outcome::Established(response),
    }
}

/// The status in headers or trailers, if it is one of failure.
fn failure(headers: &HeaderMap) -> Option<Code> {
    grpc_status(headers).filter(|code| *code != Code::Ok)
}

/// Whether a status is what one hears who streams to a method that there is not.
fn no_such_method(code: Code, headers: &HeaderMap) -> bool {
    let message = headers.get("grpc-message");
    code == Code::Unimplemented
        || message
            .is_some_and(|message| decode_message(message.as_bytes()).contains(NOT_KNOWN_TO_DAPR))
}

/// How long to wait before a handshake that ended with `code` is tried again; `None` if it is not.
fn wait(retry: &config::Retry, retries: u32, code: Code) -> Option<Duration> {
    if retries >= retry.max_retries || !retry.matching.contains(&code) {
        return None;
    }
    Some(retry::wait(&retry.backoff, retries))
}

/// Waits, and meanwhile reads what the client sends: an HTTP/2 stream that nobody reads is one whose small frames pile up.
async fn pause(replay: &Replay, wait: Duration) -> Result<(), Error> {
    let mut wait = pin!(sleep(wait));
    std::future::poll_fn(|cx| match wait.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Ok(())),
        Poll::Pending => replay.poll_ahead(cx).map(Err),
    })
    .await
}

// === impl Outcome ===

impl Outcome {
    fn code(&self) -> Code {
        match self {
            Self::Established(_) => Code::Ok,
            Self::Refused { code, .. } => *code,
            Self::Failed(error) => error.code(),
        }
    }

    /// Whose doing it is that it went wrong; `None` if it did not.
    fn side(&self) -> Option<Side> {
        match self {
            Self::Established(_) => None,
            Self::Refused { .. } => Some(Side::Upstream),
            Self::Failed(error) => Some(error.side()),
        }
    }
}

/// A body of which the first frame has been looked at.
struct Begun {
    first: Option<Frame<Chunk>>,
    rest: Body,
}

impl http_body::Body for Begun {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
