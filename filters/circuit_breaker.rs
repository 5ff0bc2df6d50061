//! Gives an upstream that fails a rest, and its clients an answer at once.
//!
//! **Why.** Streams that are bound to fail cost both sides their time, and an upstream that is on its knees needs fewer
//! of them to get up. Who is told quickly, with the time to come back, can do something else meanwhile.
//!
//! **How.** Dapr's breaker (gobreaker 0.5) with its settings, defaults and metrics, and two settings of our own:
//!
//! 1. It admits all and counts how streams end. After each failure it asks `trip`; if that holds, it rejects.
//! 2. It rejects for `timeout`: UNAVAILABLE, or 503, with `retry-after`.
//! 3. Then it probes: `max_requests` streams pass, in total. If all of them end well it admits again; the first failure
//!    makes it reject again.
//!
//! A stream is judged once and by its real end, not by how it began:
//!
//! | the end of the stream | judged as |
//! |---|---|
//! | a gRPC status that is in `statuses`, answered by the upstream or standing for what it did: it cannot be reached, resets, breaks off or breaks a rule | failure |
//! | DEADLINE_EXCEEDED, if it is in `statuses` and the upstream had the whole request for `min_deadline` and has said nothing yet: by the client's `grpc-timeout` or a limit of the proxy's | failure: an upstream that hangs shows in nothing else |
//! | DEADLINE_EXCEEDED otherwise | neutral: the client chose the time, or was waited for itself |
//! | HTTP 502 or 503 with UNAVAILABLE in `statuses`, 504 with DEADLINE_EXCEEDED, 500 with INTERNAL; even if the body was not read to the end | failure |
//! | a reset or a broken rule of the upstream's whose status is not in `statuses` | neutral |
//! | gRPC without a status | as the status that the HTTP status stands for |
//! | gRPC status CANCELLED | neutral: somebody on the client's side gave up |
//! | the client cancels, resets, leaves, is silent or breaks a rule | neutral |
//! | the proxy refuses, by a limit or a filter | neutral: the upstream was not asked, or cannot help it |
//! | any other gRPC status or HTTP status | success: the upstream was there and answered |
//!
//! A neutral stream is as if it had never been; if it was a probe, another may take its place.
//!
//! **What one client can do.** It must not shut the others out. Dapr takes every error for a failure, also INVALID_ARGUMENT or
//! NOT_FOUND. Here a status counts only if a client cannot bring it about at will, and most can be: servers answer a message that is
//! too large with RESOURCE_EXHAUSTED, one that is malformed with INTERNAL or a reset, a request that their code did not expect with
//! UNKNOWN or HTTP 500. Who knows the clients adds those to `statuses`. And who is a probe must not decide for ever:
//!
//! - one that has begun to answer and lived for a second has succeeded;
//! - one that has no answer after five seconds loses its place to another, and its end still counts;
//! - a breaker that has probed for `timeout` without a failure admits again: nothing speaks against the upstream any more.
//!
//! A breaker belongs to a target (a cluster, a binding) and to its settings, and is shared by all routes and workers that
//! name both. Streams that outlive a change of its state, or an `interval`, are ignored at their end, so a long stream from
//! before a failure says nothing about the time after.
//!
//! **Order.** Inside of filters that refuse streams for the client's faults; outside of nothing but `metrics`, which should
//! see what is rejected.
//!
//! ```yaml
//! filters:
//!   - circuit_breaker: {max_requests: 1, interval: 0s, timeout: 60s, trip: consecutiveFailures > 5}
//! ```

mod registry;
mod state;
mod statuses;
mod trip;
mod whole;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, header::CONTENT_TYPE};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thalweg_proto::{method::is_grpc_content_type, status::Code};
use tokio::time::Instant;
use tower::{Layer, Service};

pub use self::{
    registry::{Breaker, Permit, Registry},
    state::{Counts, Machine, Outcome, Phase, Rejection, Ticket},
    statuses::Statuses,
    trip::{Fault, Trip},
    whole::Whole,
};
use crate::{
    Body, Chunk, Error, Side, StreamContext,
    ending::grpc_status,
    stream::Protocol,
    units::{Count, Duration},
};

/// Settings of `circuit_breaker`; the first four with the names and defaults of Dapr's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "CircuitBreaker")]
pub struct Config {
    /// Streams that may pass in total while the breaker is half-open, and that must all end well for it to close. Default
    /// `1`, the least harm to an upstream that is still down; more where streams are long, since others wait for them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Count,

    /// How often the counts are cleared while the breaker is closed; `0s` is never. Default `0s`, right for counts in a row.
    /// With counts in total, take longer than streams live: one that ends after the clearing does not count.
    #[schemars(extend("maximum" = 86_400_000))]
    pub interval: Duration,

    /// How long the breaker stays open before it lets streams through to probe. Default `60s`, in which most upstreams
    /// restart.
    #[schemars(extend("minimum" = 1, "maximum" = 86_400_000))]
    pub timeout: Duration,

    /// When to open: a condition in CEL, asked after each failure, on `requests`, `totalSuccesses`, `totalFailures`,
    /// `consecutiveSuccesses` and `consecutiveFailures`. Default `consecutiveFailures > 5`: bad luck rarely strikes six
    /// times in a row.
    pub trip: Trip,

    /// The gRPC statuses that are failures, by name or by number, whether the upstream answered them or they stand for what it
    /// did. HTTP 502 and 503 go with UNAVAILABLE, 504 with DEADLINE_EXCEEDED, 500 with INTERNAL. Default
    /// `[DEADLINE_EXCEEDED, UNAVAILABLE]`: most others a client can bring about at will, and one client would shut all others
    /// out. With Dapr every error counts; where all clients are your own, add INTERNAL, UNKNOWN and RESOURCE_EXHAUSTED.
    pub statuses: Statuses,

    /// How long an upstream must have had a whole request, without a word, for a passed deadline to be its failure. Default `1s`:
    /// a client that gives less has not waited for it. More where methods take longer by nature.
    #[schemars(extend("minimum" = 1, "maximum" = 86_400_000))]
    pub min_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_requests: Count(1),
            interval: Duration(0),
            timeout: Duration(60_000),
            trip: Trip::default(),
            statuses: Statuses::default(),
            min_deadline: Duration(1000),
        }
    }
}

impl Config {
    /// What a status says that the upstream has answered.
    fn of_status(&self, code: Code) -> Outcome {
        match code {
            Code::Cancelled => Outcome::Neutral,
            code if self.statuses.contains(code) => Outcome::Failure,
            _ => Outcome::Success,
        }
    }

    /// What it says that the upstream is at fault for an end with this status.
    fn of_failure(&self, code: Code, request: &Whole) -> Outcome {
        let unfair = code == Code::DeadlineExceeded && !request.lasts(self.min_deadline.into());
        match self.statuses.contains(code) && !unfair {
            true => Outcome::Failure,
            false => Outcome::Neutral,
        }
    }

    fn of_http(&self, status: u16) -> Outcome {
        let code = match status {
            500 => Code::Internal,
            502 | 503 => Code::Unavailable,
            504 => Code::DeadlineExceeded,
            _ => return Outcome::Success,
        };
        self.of_status(code)
    }
}

/// Adds [`CircuitBreaker`] to a route.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer {
    breaker: Breaker,
}

/// Admits or rejects, and judges what it admitted; see the [module docs](self).
#[derive(Clone, Debug)]
pub struct CircuitBreaker<S> {
    inner: S,
    breaker: Breaker,
}

pin_project! {
    /// Waits for the response's head; or says at once that there will be none.
    #[derive(Debug)]
    pub struct CircuitBreakerFuture<F> {
        // None if the stream was not admitted.
        #[pin]
        inner: Option<F>,
        judge: Option<Judge>,
        rejection: Option<Error>,
    }
}

/// Watches for the real end.
struct JudgedBody {
    inner: Body,
    judge: Judge,
}

/// One admitted stream, judged once, at the latest when dropped.
#[derive(Debug)]
struct Judge {
    permit: Option<Permit>,
    context: Option<StreamContext>,
    whole: Whole,
    /// What the response's head said, once it is there.
    head: Option<Answer>,
    /// Some of the answer has come behind the head.
    answering: bool,
}

/// What an upstream answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Grpc(Code),
    Http(u16),
}

// === impl CircuitBreakerLayer ===

impl CircuitBreakerLayer {
    /// Asks `breaker` about each stream.
    pub fn new(breaker: Breaker) -> Self {
        Self { breaker }
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker {
            inner,
            breaker: self.breaker.clone(),
        }
    }
}

// === impl CircuitBreaker ===

impl<S> Service<Request<Body>> for CircuitBreaker<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = CircuitBreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.breaker.admit() {
            Err(error) => CircuitBreakerFuture {
                inner: None,
                judge: None,
                rejection: Some(error),
            },
            Ok(permit) => {
                let context = request.extensions().get().cloned();
                let (parts, body) = request.into_parts();
                let (body, whole) = Whole::watch(body);
                let request = Request::from_parts(parts, body);
                let judge = Judge {
                    permit: Some(permit),
                    context,
                    whole,
                    head: None,
                    answering: false,
                };
                CircuitBreakerFuture {
                    judge: Some(judge),
                    inner: Some(self.inner.call(request)),
                    rejection: None,
                }
            }
        }
    }
}

// === impl CircuitBreakerFuture ===

impl<F> Future for CircuitBreakerFuture<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            return match this.rejection.take() {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            };
        };
        let result = ready!(inner.poll(cx));
        let Some(mut judge) = this.judge.take() else {
            return Poll::Ready(result);
        };
        Poll::Ready(match result {
            Err(error) => {
                judge.error(&error);
                Err(error)
            }
            Ok(response) => {
                judge.head(&response);
                if response.body().is_end_stream() {
                    judge.complete();
                    return Poll::Ready(Ok(response));
                }
                Ok(response.map(|body| body.wrap(|inner| JudgedBody { inner, judge })))
            }
        })
    }
}

// === impl JudgedBody ===

impl http_body::Body for JudgedBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => self.judge.complete(),
            Some(Err(error)) => self.judge.error(error),
            Some(Ok(frame)) => {
                self.judge.answering |= frame.is_data();
                if let Some(trailers) = frame.trailers_ref() {
                    if let (Some(Answer::Grpc(_)), Some(code)) =
                        (self.judge.head, grpc_status(trailers))
                    {
                        self.judge.head = Some(Answer::Grpc(code));
                    }
                    self.judge.complete();
                }
            }
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

impl Drop for JudgedBody {
    fn drop(&mut self) {
        // A reader that knows the length need not ask for the end to have reached it.
        if self.inner.is_end_stream() {
            self.judge.complete();
        }
    }
}

// === impl Judge ===

impl Judge {
    fn head(&mut self, response: &Response<Body>) {
        let context = self.context.as_ref();
        // An upstream that answers gRPC has said how it went, whatever the client takes it for.
        let content_type = response.headers().get(CONTENT_TYPE);
        let grpc = context.is_some_and(|context| context.protocol() == Protocol::Grpc)
            || content_type.is_some_and(|value| is_grpc_content_type(value.as_bytes()));
        let (status, code) = (response.status().as_u16(), grpc_status(response.headers()));
        let begins = grpc && status == 200 && code.is_none();
        self.head = Some(if grpc {
            Answer::Grpc(code.unwrap_or_else(|| Code::from_http(status)))
        } else {
            Answer::Http(status)
        });
        if let Some(permit) = &self.permit
            && (begins || self.of_answer() == Outcome::Success)
        {
            permit.answered();
        }
    }

    /// What the upstream has answered so far.
    fn of_answer(&self) -> Outcome {
        let Some(permit) = &self.permit else {
            return Outcome::Neutral;
        };
        let config = permit.config();
        match self.head {
            // The client's time has run out over there, too.
            Some(Answer::Grpc(Code::DeadlineExceeded)) if self.has_deadline() => {
                self.timed_out(!self.answering)
            }
            Some(Answer::Grpc(code)) => config.of_status(code),
            Some(Answer::Http(status)) => config.of_http(status),
            None => Outcome::Neutral,
        }
    }

    /// The answer has come to its end.
    fn complete(&mut self) {
        self.end(self.of_answer());
    }

    fn error(&mut self, error: &Error) {
        self.end(self.of_error(error));
    }

    fn of_error(&self, error: &Error) -> Outcome {
        let Some(permit) = &self.permit else {
            return Outcome::Neutral;
        };
        match (error.side(), error.code()) {
            (Side::Client, Code::DeadlineExceeded) => self.timed_out(!self.answering),
            (Side::Upstream, code) => permit.config().of_failure(code, &self.whole),
            _ => Outcome::Neutral,
        }
    }

    /// The client's deadline has passed. It tells of the upstream only if that is silent, and nobody waits for the client.
    fn timed_out(&self, silent: bool) -> Outcome {
        match &self.permit {
            Some(permit) if silent => {
                (permit.config()).of_failure(Code::DeadlineExceeded, &self.whole)
            }
            _ => Outcome::Neutral,
        }
    }

    fn has_deadline(&self) -> bool {
        let context = self.context.as_ref();
        context.is_some_and(|context| context.deadline().is_some())
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            permit.judge(outcome);
        }
    }

    /// Somebody further out let go of the stream: the client, or who holds it to its time.
    fn abandoned(&self) -> Outcome {
        let context = self.context.as_ref();
        if let Some(error) = context.and_then(StreamContext::aborted) {
            return self.of_error(error);
        }
        let deadline = context.and_then(StreamContext::deadline);
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return self.timed_out(!self.answering);
        }
        match self.head {
            Some(Answer::Http(_)) if self.of_answer() == Outcome::Failure => Outcome::Failure,
            _ => Outcome::Neutral,
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.end(self.abandoned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
    use serde::de::{IntoDeserializer, value::MapDeserializer};
    use tower::service_fn;

    use super::*;

    type Frames = Vec<Result<Frame<Chunk>, Error>>;

    /// Frames in a row, then the end; or nothing more, ever, if it hangs.
    struct Script {
        frames: std::vec::IntoIter<Result<Frame<Chunk>, Error>>,
        hangs: bool,
    }

    impl http_body::Body for Script {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            match self.frames.next() {
                None if self.hangs => Poll::Pending,
                frame => Poll::Ready(frame),
            }
        }
    }

    fn data() -> Result<Frame<Chunk>, Error> {
        Ok(Frame::data(Chunk::from(Bytes::from_static(b"hi"))))
    }

    fn trailers(status: &'static str) -> Result<Frame<Chunk>, Error> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        Ok(Frame::trailers(trailers))
    }

    fn error(side: Side, code: Code) -> Error {
        Error::new(code, "x", side, "x")
    }

    fn answer(status: u16, frames: Frames) -> Result<Response<Body>, Error> {
        let frames = frames.into_iter();
        let body = Script {
            frames,
            hangs: false,
        };
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = status.try_into().unwrap();
        Ok(response)
    }

    fn hanging(status: u16) -> Result<Response<Body>, Error> {
        let body = Script {
            frames: vec![data()].into_iter(),
            hangs: true,
        };
        answer(status, vec![]).map(|response| response.map(|_| Body::new(body)))
    }

    fn headers_only(status: &'static str) -> Result<Response<Body>, Error> {
        let mut response = Response::new(Body::empty());
        let value = HeaderValue::from_static(status);
        response.headers_mut().insert("grpc-status", value);
        Ok(response)
    }

    fn request(protocol: Protocol, deadline: Option<Instant>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        let context = StreamContext::new(protocol, Instant::now(), deadline);
        request.extensions_mut().insert(context);
        request
    }

    /// A breaker that trips at once and closes at once, so that its state tells the one outcome: it has been tripped and
    /// now probes.
    async fn probing() -> Breaker {
        let config = Config {
            trip: Trip::parse("true").unwrap(),
            ..Config::default()
        };
        let breaker = Registry::default().breaker("cluster it", &config);
        breaker.admit().unwrap().failure();
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        breaker
    }

    /// What the probe's end was taken for, by what becomes of those who come after it.
    fn outcome(breaker: &Breaker) -> Outcome {
        match (breaker.admit(), breaker.admit()) {
            (Ok(_one), Ok(_two)) => Outcome::Success,
            (Ok(_one), Err(error)) => {
                assert_eq!(error.reason(), "circuit_probing");
                Outcome::Neutral
            }
            (Err(error), _) => {
                assert_eq!(error.reason(), "circuit_open", "nothing was reported");
                Outcome::Failure
            }
        }
    }

    async fn read(body: &mut Body) {
        while std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))
            .await
            .is_some_and(|frame| frame.is_ok())
        {}
    }

    /// What one stream that is read to its end is taken for.
    async fn judged(protocol: Protocol, result: Result<Response<Body>, Error>) -> Outcome {
        let breaker = probing().await;
        let mut result = Some(result);
        let mut service = CircuitBreakerLayer::new(breaker.clone()).layer(service_fn(move |_| {
            std::future::ready(result.take().unwrap())
        }));
        if let Ok(response) = service.call(request(protocol, None)).await {
            let mut body = response.into_body();
            if !body.is_end_stream() {
                assert_eq!(
                    breaker.admit().unwrap_err().reason(),
                    "circuit_probing",
                    "judged before its end"
                );
            }
            read(&mut body).await;
        }
        outcome(&breaker)
    }

    #[tokio::test(start_paused = true)]
    async fn every_grpc_status_is_judged_by_the_table() {
        for code in Code::ALL {
            // What else tells of a failure can be brought about by a client.
            let expected = match code {
                Code::DeadlineExceeded | Code::Unavailable => Outcome::Failure,
                Code::Cancelled => Outcome::Neutral,
                _ => Outcome::Success,
            };
            let status = code.as_str();

            let late = judged(Protocol::Grpc, answer(200, vec![data(), trailers(status)])).await;
            let early = judged(Protocol::Grpc, headers_only(status)).await;

            assert_eq!((late, early), (expected, expected), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn grpc_without_a_status_is_judged_by_the_http_status() {
        for (status, expected) in [
            (503, Outcome::Failure),
            (200, Outcome::Success),
            (404, Outcome::Success),
        ] {
            let found = judged(Protocol::Grpc, answer(status, vec![data()])).await;
            assert_eq!(found, expected, "{status}");
        }
        let empty = HeaderMap::new();
        let trailers = vec![data(), Ok(Frame::trailers(empty))];
        assert_eq!(
            judged(Protocol::Grpc, answer(503, trailers)).await,
            Outcome::Failure
        );
    }

    #[tokio::test(start_paused = true)]
    async fn http_is_judged_by_its_status_at_its_clean_end() {
        for (status, expected) in [
            (200, Outcome::Success),
            (404, Outcome::Success),
            (429, Outcome::Success),
            (501, Outcome::Success),
            (500, Outcome::Success),
            (502, Outcome::Failure),
            (503, Outcome::Failure),
            (504, Outcome::Failure),
        ] {
            let with_body = judged(Protocol::Http, answer(status, vec![data()])).await;
            let with_trailers =
                judged(Protocol::Http, answer(status, vec![data(), trailers("14")])).await;
            let mut bare = Response::new(Body::empty());
            *bare.status_mut() = status.try_into().unwrap();
            let bare = judged(Protocol::Http, Ok(bare)).await;

            assert_eq!([with_body, with_trailers, bare], [expected; 3], "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_judged_by_their_side_before_and_within_the_answer() {
        for (side, code, expected) in [
            (Side::Upstream, Code::Unavailable, Outcome::Failure),
            // A reset, which a client can bring about with a frame that is none.
            (Side::Upstream, Code::Internal, Outcome::Neutral),
            (Side::Upstream, Code::Cancelled, Outcome::Neutral),
            // None has left the upstream its time.
            (Side::Upstream, Code::DeadlineExceeded, Outcome::Neutral),
            (Side::Client, Code::DeadlineExceeded, Outcome::Neutral),
            (Side::Client, Code::Cancelled, Outcome::Neutral),
            (Side::Client, Code::Internal, Outcome::Neutral),
            (Side::Proxy, Code::Unavailable, Outcome::Neutral),
        ] {
            for protocol in [Protocol::Grpc, Protocol::Http] {
                let early = judged(protocol, Err(error(side, code))).await;
                let late =
                    judged(protocol, answer(200, vec![data(), Err(error(side, code))])).await;

                assert_eq!([early, late], [expected; 2], "{side:?} {code} {protocol:?}");
            }
        }
    }

    /// What a stream is taken for that is dropped: before its head, or within its body.
    async fn dropped(status: Option<u16>, spoil: impl FnOnce(&StreamContext)) -> Outcome {
        let breaker = probing().await;
        let mut service =
            CircuitBreakerLayer::new(breaker.clone()).layer(service_fn(move |_| async move {
                match status {
                    Some(status) => hanging(status),
                    None => std::future::pending().await,
                }
            }));
        let deadline = Instant::now() + std::time::Duration::from_secs(1);
        let request = request(Protocol::Http, Some(deadline));
        let context = request.extensions().get::<StreamContext>().unwrap().clone();
        let mut call = Box::pin(service.call(request));
        let mut response = call.as_mut().now_or_never();
        if let Some(Ok(response)) = &mut response {
            read(response.body_mut()).now_or_never();
        }
        spoil(&context);
        drop((call, response));
        outcome(&breaker)
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_lets_go_is_neutral() {
        assert_eq!(dropped(None, |_| ()).await, Outcome::Neutral);
        assert_eq!(dropped(Some(200), |_| ()).await, Outcome::Neutral);
    }

    #[tokio::test(start_paused = true)]
    async fn failing_http_status_fails_whoever_reads_on() {
        assert_eq!(dropped(Some(503), |_| ()).await, Outcome::Failure);
    }

    #[tokio::test(start_paused = true)]
    async fn abort_is_judged_by_its_error() {
        for (side, expected) in [
            (Side::Upstream, Outcome::Failure),
            (Side::Client, Outcome::Neutral),
        ] {
            let abort = |context: &StreamContext| context.abort(error(side, Code::Unavailable));
            assert_eq!(dropped(None, abort).await, expected);
            assert_eq!(dropped(Some(200), abort).await, expected);
        }
    }

    /// What a call with this deadline is taken for that passes: to an upstream that never ends, behind `frames` of an answer if there
    /// is one.
    async fn overdue(millis: u64, body: Body, frames: Option<Frames>) -> Outcome {
        let breaker = probing().await;
        let mut frames = Some(frames);
        let inner = CircuitBreakerLayer::new(breaker.clone()).layer(service_fn(move |request| {
            let frames = frames.take().flatten();
            async move {
                let mut body = Request::into_body(request);
                read(&mut body).await;
                let Some(frames) = frames else {
                    return std::future::pending().await;
                };
                let frames = frames.into_iter();
                let answer = Script {
                    frames,
                    hangs: true,
                };
                Ok(Response::new(Body::new(answer)))
            }
        }));
        let mut service = crate::deadline::Deadline::new(inner);
        let deadline = Instant::now() + std::time::Duration::from_millis(millis);
        let call = service.call(request(Protocol::Grpc, Some(deadline)).map(|_| body));
        match call.await {
            Ok(response) => read(&mut response.into_body()).await,
            Err(error) => assert_eq!(error.reason(), "grpc_timeout"),
        }
        outcome(&breaker)
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_is_a_failure_of_an_upstream_that_had_its_time_and_is_silent() {
        for request in [Body::empty(), Body::full("hello")] {
            assert_eq!(overdue(1000, request, None).await, Outcome::Failure);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_that_a_client_has_chosen_or_waited_for_itself_says_nothing() {
        let open = || {
            let frames = vec![data()].into_iter();
            Body::new(Script {
                frames,
                hangs: true,
            })
        };

        for millis in [0, 1, 999] {
            let found = overdue(millis, Body::full("hello"), None).await;
            assert_eq!(found, Outcome::Neutral, "{millis}");
        }
        // The upstream may be waiting for the rest of the request.
        assert_eq!(overdue(20_000, open(), None).await, Outcome::Neutral);
        // It answers, and a stream that lasts ends by its deadline.
        let answer = Some(vec![data()]);
        assert_eq!(
            overdue(20_000, Body::full("hello"), answer).await,
            Outcome::Success
        );
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_that_the_upstream_tells_of_is_the_client_s_where_there_is_one() {
        for (deadline, expected) in [(Some(0), Outcome::Neutral), (None, Outcome::Failure)] {
            let breaker = probing().await;
            let mut service = CircuitBreakerLayer::new(breaker.clone())
                .layer(service_fn(async |_| headers_only("4")));
            let deadline =
                deadline.map(|millis| Instant::now() + std::time::Duration::from_millis(millis));

            service
                .call(request(Protocol::Grpc, deadline))
                .await
                .unwrap();

            assert_eq!(outcome(&breaker), expected, "{deadline:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answer_of_grpc_is_judged_as_such_whatever_the_client_calls_it() {
        let answer = answer(200, vec![data(), trailers("14")]).map(|mut response| {
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(CONTENT_TYPE, grpc);
            response
        });

        assert_eq!(judged(Protocol::Http, answer).await, Outcome::Failure);
    }

    #[tokio::test(start_paused = true)]
    async fn probe_that_lives_behind_its_head_lets_the_others_in() {
        let breaker = probing().await;
        let mut service =
            CircuitBreakerLayer::new(breaker.clone()).layer(service_fn(async |_| hanging(200)));

        let mut kept = service.call(request(Protocol::Grpc, None)).await.unwrap();
        read(kept.body_mut()).now_or_never();
        assert_eq!(breaker.admit().unwrap_err().reason(), "circuit_probing");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;

        assert_eq!(outcome(&breaker), Outcome::Success);
    }

    #[tokio::test(start_paused = true)]
    async fn body_of_known_length_need_not_be_asked_for_its_end() {
        let breaker = probing().await;
        let mut service = CircuitBreakerLayer::new(breaker.clone())
            .layer(service_fn(async |_| Ok(Response::new(Body::full("hello")))));

        let response = service.call(request(Protocol::Http, None)).await.unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(5));
        let mut body = response.into_body();
        std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(body.is_end_stream());
        drop(body);

        assert_eq!(outcome(&breaker), Outcome::Success);
    }

    #[tokio::test(start_paused = true)]
    async fn rejected_stream_never_reaches_the_upstream() {
        let registry = Registry::default();
        let touchy = Config {
            trip: Trip::parse("true").unwrap(),
            ..Config::default()
        };
        let asked = Rc::new(Cell::new(0));
        let counter = Rc::clone(&asked);
        let mut service = CircuitBreakerLayer::new(registry.breaker("cluster it", &touchy)).layer(
            service_fn(move |_| {
                counter.set(counter.get() + 1);
                std::future::ready(Err::<Response<Body>, _>(error(
                    Side::Upstream,
                    Code::Unavailable,
                )))
            }),
        );

        let first = service.call(request(Protocol::Grpc, None)).await;
        let second = service.call(request(Protocol::Grpc, None)).await;

        assert_eq!(first.unwrap_err().reason(), "x");
        let rejected = second.unwrap_err();
        assert_eq!(rejected.reason(), "circuit_open");
        let minute = HeaderValue::from_static("60");
        assert_eq!(rejected.header(), Some((&RETRY_AFTER, &minute)));
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn settings_have_dapr_s_defaults_and_no_unknown_key() {
        type Fault = serde::de::value::Error;
        let read = |entries: Vec<(&'static str, &'static str)>| {
            let map: MapDeserializer<'_, _, Fault> = MapDeserializer::new(entries.into_iter());
            Config::deserialize(map.into_deserializer())
        };

        assert_eq!(read(vec![]), Ok(Config::default()));
        let dapr = vec![
            ("max_requests", "1"),
            ("interval", "0s"),
            ("timeout", "60s"),
            ("trip", "consecutiveFailures > 5"),
            ("min_deadline", "1s"),
        ];
        assert_eq!(read(dapr), Ok(Config::default()));
        assert!(read(vec![("trips", "true")]).is_err());
        assert!(read(vec![("trip", "1")]).is_err());

        let statuses = |written: serde_json::Value| {
            let settings = serde_json::json!({"statuses": written});
            serde_json::from_value::<Config>(settings).map(|config| config.statuses)
        };
        let written = serde_json::json!(["INTERNAL", 14]);
        let read = statuses(written).unwrap();
        assert_eq!(
            read,
            [Code::Internal, Code::Unavailable].into_iter().collect()
        );
        let shown = serde_json::to_value(&read).unwrap();
        assert_eq!(shown, serde_json::json!(["INTERNAL", "UNAVAILABLE"]));
        for wrong in ["OK", "NONE"] {
            let fault = statuses(serde_json::json!([wrong]))
                .unwrap_err()
                .to_string();
            assert!(fault.contains("no status of a failure"), "{fault}");
        }
    }
}
