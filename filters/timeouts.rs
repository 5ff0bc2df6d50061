//! Ends streams on which a phase takes too long, each phase by a limit of its own.
//!
//! **Why.** A single timeout for a whole stream either kills healthy streams or lets sick ones live. What can be told is how long an
//! upstream may take to answer, how long either side may say nothing, and how old a stream may become. All of them
//! are off unless a route or a binding sets them: a stream that is silent or old is not ill by itself.
//!
//! **How.** There is one timer a stream, set to whatever is due next. Nobody touches it when bytes pass: they leave a mark,
//! and the timer looks for it when it fires. So silence is noticed after one to two times its limit.
//!
//! - `first_response` runs until the head of the answer has come.
//! - `idle_request` runs until the client has half-closed, and `idle_response` from the head of the answer on. A side whose bytes
//!   wait for the other is not idle but held up, which is what `stall` is for.
//! - `max_age` does not break the stream off but dismisses it: it ends between two messages. Each stream is given a bit less than
//!   the limit, up to a fifth and by chance, so that streams which began together do not end together.
//!
//! **Order.** Innermost, around what sends the stream on: what filters take is nobody's fault on either side.
//!
//! ```yaml
//! timeouts: {first_response: 30s, idle_request: 10m, idle_response: 10m, max_age: 1h}
//! ```

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use thalweg_proto::status::Code;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::Service;

use crate::{Body, Chunk, Error, Side, StreamContext, body::Ledger};

/// The limits; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Longest wait for the head of the answer.
    pub first_response: Duration,
    /// Longest silence of the client before it half-closes.
    pub idle_request: Duration,
    /// Longest silence of the upstream within its answer.
    pub idle_response: Duration,
    /// Age at which a stream ends at its next message boundary.
    pub max_age: Duration,
}

/// Holds each stream to the limits; see the [module docs](self).
#[derive(Clone, Debug)]
pub struct Timeouts<S> {
    inner: S,
    config: Config,
}

pin_project! {
    /// Waits for the response's head, within the limits.
    #[derive(Debug)]
    pub struct TimeoutsFuture<F> {
        #[pin]
        inner: F,
        clock: Option<Clock>,
    }
}

/// What is due on one stream, and the one timer for all of it.
#[derive(Debug)]
struct Clock {
    timer: Pin<Box<Sleep>>,
    config: Config,
    stream: StreamContext,
    first_response: Option<Instant>,
    request: Option<Watch>,
    response: Option<Watch>,
    max_age: Option<Instant>,
}

/// When to look again whether a direction is idle.
#[derive(Debug)]
struct Watch {
    due: Instant,
    marks: Rc<Marks>,
}

/// What a direction leaves for the clock.
#[derive(Debug, Default)]
struct Marks {
    /// Bytes have passed since the clock looked.
    moved: Cell<bool>,
    /// Nothing more is to come.
    over: Cell<bool>,
    /// Tells what was received and waits for the other side.
    ledger: RefCell<Option<Arc<Ledger>>>,
}

/// A request that leaves marks.
struct MarkedBody {
    inner: Body,
    marks: Rc<Marks>,
}

/// A response that is held to the limits.
struct TimedBody {
    inner: Body,
    clock: Clock,
}

// === impl Timeouts ===

impl<S> Timeouts<S> {
    /// Guards `inner`.
    pub fn new(inner: S, config: Config) -> Self {
        Self { inner, config }
    }
}

impl<S> Service<Request<Body>> for Timeouts<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = TimeoutsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_limited = self.config != Config::default();
        let stream = request.extensions().get::<StreamContext>();
        let (request, clock) = match stream.filter(|_| is_limited).cloned() {
            Some(stream) => {
                let now = Instant::now();
                let (request, watch) = watch(request, self.config.idle_request, now);
                let clock = Clock::start(self.config, stream, watch, now, fastrand::f64());
                (request, Some(clock))
            }
            None => (request, None),
        };
        TimeoutsFuture {
            inner: self.inner.call(request),
            clock,
        }
    }
}

/// Watches a request's body for silence.
fn watch(request: Request<Body>, limit: Duration, now: Instant) -> (Request<Body>, Option<Watch>) {
    let Some(due) = after(now, limit).filter(|_| !request.body().is_end_stream()) else {
        return (request, None);
    };
    let marks = Rc::<Marks>::default();
    let watch = Watch {
        due,
        marks: Rc::clone(&marks),
    };
    let request = request.map(|body| body.wrap(|inner| MarkedBody { inner, marks }));
    (request, Some(watch))
}

/// `None` where there is no limit, or it is beyond all time.
fn after(now: Instant, limit: Duration) -> Option<Instant> {
    if limit.is_zero() {
        None
    } else {
        now.checked_add(limit)
    }
}

// === impl TimeoutsFuture ===

impl<F> Future for TimeoutsFuture<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            let clock = this.clock.take().and_then(Clock::answered);
            return Poll::Ready(match (result, clock) {
                (Ok(response), Some(clock)) => {
                    Ok(response.map(|body| body.wrap(|inner| TimedBody { inner, clock })))
                }
                (result, _) => result,
            });
        }
        match this.clock {
            Some(clock) => clock.poll(cx).map(Err),
            None => Poll::Pending,
        }
    }
}

// === impl Clock ===

impl Clock {
    /// `chance` is from 0 to 1, and decides how old the stream may become.
    fn start(
        config: Config,
        stream: StreamContext,
        request: Option<Watch>,
        now: Instant,
        chance: f64,
    ) -> Self {
        let mut clock = Self {
            timer: Box::pin(sleep_until(now)),
            first_response: after(now, config.first_response),
            response: None,
            max_age: after(now, config.max_age.mul_f64(1.0 - chance / 5.0)),
            request,
            config,
            stream,
        };
        clock.set();
        clock
    }

    /// The head of the answer has come. `None` if nothing will be due any more.
    fn answered(mut self) -> Option<Self> {
        self.first_response = None;
        self.response = after(Instant::now(), self.config.idle_response).map(|due| Watch {
            due,
            marks: Rc::default(),
        });
        self.set().then_some(self)
    }

    /// Sets the timer to what is due next, if anything is.
    fn set(&mut self) -> bool {
        let watched = [&self.request, &self.response].map(|watch| Some(watch.as_ref()?.due));
        let due = [self.first_response, self.max_age]
            .into_iter()
            .chain(watched);
        let next = due.flatten().min();
        if let Some(next) = next {
            self.timer.as_mut().reset(next);
        }
        next.is_some()
    }

    /// Ready with the error of the first limit that is passed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if let Some(error) = self.look(Instant::now()) {
                return Poll::Ready(error);
            }
            if !self.set() {
                return Poll::Pending;
            }
        }
    }

    /// Looks at all that is due.
    fn look(&mut self, now: Instant) -> Option<Error> {
        let is_due = |due: &mut Instant| *due <= now;
        if self.max_age.take_if(is_due).is_some() {
            self.stream.dismiss(too_old(self.config.max_age));
        }
        if self.first_response.take_if(is_due).is_some() {
            let limit = self.config.first_response;
            let message =
                format!("the upstream did not answer within {limit:?} (timeouts.first_response)");
            return Some(Error::new(
                Code::DeadlineExceeded,
                "first_response_timeout",
                Side::Upstream,
                message,
            ));
        }
        let limit = self.config.idle_request;
        if is_idle(&mut self.request, limit, now) {
            let message =
                format!("the client has sent nothing for {limit:?} (timeouts.idle_request)");
            return Some(
                Error::new(
                    Code::DeadlineExceeded,
                    "idle_request_timeout",
                    Side::Client,
                    message,
                )
                .with_http_status(408),
            );
        }
        let limit = self.config.idle_response;
        if is_idle(&mut self.response, limit, now) {
            let message =
                format!("the upstream has sent nothing for {limit:?} (timeouts.idle_response)");
            return Some(Error::new(
                Code::DeadlineExceeded,
                "idle_response_timeout",
                Side::Upstream,
                message,
            ));
        }
        None
    }
}

/// Whether nothing has passed since this was last due, and there was nothing that could have. If it is not so, it is due again
/// after another `limit`.
fn is_idle(watch: &mut Option<Watch>, limit: Duration, now: Instant) -> bool {
    let Some(Watch { due, marks }) = watch else {
        return false;
    };
    if *due > now {
        return false;
    }
    if marks.over.get() {
        *watch = None;
        return false;
    }
    let waits = marks
        .ledger
        .borrow()
        .as_ref()
        .is_some_and(|ledger| ledger.held() > 0);
    if !marks.moved.replace(false) && !waits {
        return true;
    }
    *due = now + limit;
    false
}

fn too_old(limit: Duration) -> Error {
    let message =
        format!("the stream is as old as a stream may become, {limit:?} (timeouts.max_age)");
    Error::new(Code::Unavailable, "max_age", Side::Proxy, message)
}

// === impl Marks ===

impl Marks {
    fn note(&self, chunk: &Chunk) {
        self.moved.set(true);
        let mut ledger = self.ledger.borrow_mut();
        if ledger.is_none() {
            *ledger = chunk.ledger().cloned();
        }
    }
}

// === impl MarkedBody ===

impl http_body::Body for MarkedBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match frame
            .as_ref()
            .map(|frame| frame.as_ref().map(Frame::data_ref))
        {
            Some(Ok(Some(chunk))) => self.marks.note(chunk),
            _ => self.marks.over.set(true),
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

impl Drop for MarkedBody {
    fn drop(&mut self) {
        // It has ended with its last chunk, or nobody wants the rest.
        self.marks.over.set(true);
    }
}

// === impl TimedBody ===

impl http_body::Body for TimedBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            return this.clock.poll(cx).map(|error| Some(Err(error)));
        };
        if let (Some(Ok(frame)), Some(watch)) = (&frame, &this.clock.response)
            && let Some(chunk) = frame.data_ref()
        {
            watch.marks.note(chunk);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{FutureExt as _, StreamExt as _};
    use http_body_util::StreamBody;
    use tokio::{sync::mpsc, time::advance};
    use tower::service_fn;

    use super::*;
    use crate::stream::Protocol;

    const SECOND: Duration = Duration::from_secs(1);

    /// A body whose frames come from elsewhere; it ends with its sender.
    fn scripted() -> (mpsc::UnboundedSender<Chunk>, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        let body = StreamBody::new(
            frames
                .map(|chunk| Ok(Frame::data(chunk)))
                .fuse()
                .boxed_local(),
        );
        (sender, Body::new(body))
    }

    fn request(body: Body) -> (Request<Body>, StreamContext) {
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);
        let mut request = Request::new(body);
        request.extensions_mut().insert(stream.clone());
        (request, stream)
    }

    async fn next(body: &mut Body) -> Option<Result<Frame<Chunk>, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn chunk() -> Chunk {
        Bytes::from_static(b"some").into()
    }

    #[tokio::test(start_paused = true)]
    async fn upstream_that_does_not_answer_is_late() {
        let config = Config {
            first_response: 30 * SECOND,
            ..Config::default()
        };
        let mut service = Timeouts::new(
            service_fn(|_| std::future::pending::<Result<Response<Body>, Error>>()),
            config,
        );
        let began = Instant::now();

        let error = service.call(request(Body::empty()).0).await.unwrap_err();

        assert_eq!(began.elapsed().as_secs(), 30);
        assert_eq!(
            (error.code(), error.reason(), error.http_status()),
            (Code::DeadlineExceeded, "first_response_timeout", 504)
        );
        assert_eq!(
            error.message(),
            "the upstream did not answer within 30s (timeouts.first_response)"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn answer_that_is_silent_for_too_long_ends_and_one_that_speaks_does_not() {
        let config = Config {
            first_response: SECOND,
            idle_response: 10 * SECOND,
            ..Config::default()
        };
        let (sender, body) = scripted();
        let mut body = Some(body);
        let mut service = Timeouts::new(
            service_fn(move |_| std::future::ready(Ok(Response::new(body.take().unwrap())))),
            config,
        );
        let mut body = service
            .call(request(Body::empty()).0)
            .await
            .unwrap()
            .into_body();

        for _ in 0..5 {
            advance(9 * SECOND).await;
            sender.send(chunk()).unwrap();
            assert!(next(&mut body).await.unwrap().is_ok());
        }
        let began = Instant::now();
        let error = next(&mut body).await.unwrap().unwrap_err();

        assert_eq!(
            (error.code(), error.reason(), error.side()),
            (
                Code::DeadlineExceeded,
                "idle_response_timeout",
                Side::Upstream
            )
        );
        let silence = began.elapsed().as_secs();
        assert!((10..=20).contains(&silence), "after {silence} s");
    }

    /// The upstream reads what comes, and answers with the body that the test holds.
    fn reader(
        config: Config,
    ) -> (
        Timeouts<impl Service<Request<Body>, Response = Response<Body>, Error = Error>>,
        mpsc::UnboundedSender<Chunk>,
    ) {
        let (sender, body) = scripted();
        let mut body = Some(body);
        let service = service_fn(move |request: Request<Body>| {
            let answer = body.take().unwrap();
            let mut upload = request.into_body();
            let frames = futures_util::stream::poll_fn(move |cx| {
                while let Poll::Ready(Some(_)) = Pin::new(&mut upload).poll_frame(cx) {}
                Poll::<Option<Result<Frame<Chunk>, Error>>>::Pending
            });
            let mut answer = answer;
            let both =
                futures_util::stream::poll_fn(move |cx| Pin::new(&mut answer).poll_frame(cx));
            let all = futures_util::stream::select(frames, both);
            std::future::ready(Ok(Response::new(Body::new(StreamBody::new(all)))))
        });
        (Timeouts::new(service, config), sender)
    }

    const IDLE_REQUEST: Config = Config {
        first_response: Duration::ZERO,
        idle_request: Duration::from_secs(10),
        idle_response: Duration::ZERO,
        max_age: Duration::ZERO,
    };

    #[tokio::test(start_paused = true)]
    async fn client_that_is_silent_for_too_long_ends_its_stream() {
        let (mut service, _answer) = reader(IDLE_REQUEST);
        let (upload, body) = scripted();
        let mut body = service.call(request(body).0).await.unwrap().into_body();

        for _ in 0..5 {
            upload.send(chunk()).unwrap();
            assert!(next(&mut body).now_or_never().is_none());
            advance(9 * SECOND).await;
            assert!(next(&mut body).now_or_never().is_none());
        }
        let error = next(&mut body).await.unwrap().unwrap_err();

        assert_eq!(
            (error.reason(), error.side(), error.http_status()),
            ("idle_request_timeout", Side::Client, 408)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_has_half_closed_may_wait() {
        let (mut service, _answer) = reader(IDLE_REQUEST);
        let (upload, body) = scripted();
        let mut body = service.call(request(body).0).await.unwrap().into_body();

        drop(upload);
        assert!(next(&mut body).now_or_never().is_none());
        advance(1000 * SECOND).await;

        assert!(next(&mut body).now_or_never().is_none());
    }

    /// It cannot send: its window is used up by what waits.
    #[tokio::test(start_paused = true)]
    async fn client_whose_bytes_wait_is_not_idle() {
        let ledger = Ledger::window(10);
        let (mut service, _answer) = reader(IDLE_REQUEST);
        let (upload, body) = scripted();
        let mut waits = ledger.take(Bytes::from_static(b"0123456789"));
        let mut body = service.call(request(body).0).await.unwrap().into_body();
        upload.send(waits.split_to(1)).unwrap();

        for _ in 0..10 {
            assert!(next(&mut body).now_or_never().is_none());
            advance(9 * SECOND).await;
        }
        drop(waits);

        assert_eq!(
            next(&mut body).await.unwrap().unwrap_err().reason(),
            "idle_request_timeout"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_is_too_old_is_dismissed_and_goes_on() {
        let config = Config {
            max_age: 100 * SECOND,
            ..Config::default()
        };
        let (mut service, answer) = reader(config);
        let (request, stream) = request(Body::empty());
        let mut body = service.call(request).await.unwrap().into_body();

        advance(79 * SECOND).await;
        assert!(next(&mut body).now_or_never().is_none());
        assert!(stream.dismissed().is_none(), "a fifth is the most");
        advance(22 * SECOND).await;
        assert!(next(&mut body).now_or_never().is_none());

        let error = stream.dismissed().unwrap();
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Unavailable, "max_age")
        );
        assert!(error.message().ends_with("100s (timeouts.max_age)"));
        answer.send(chunk()).unwrap();
        assert!(next(&mut body).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn chance_takes_up_to_a_fifth_of_the_age() {
        let config = Config {
            max_age: 100 * SECOND,
            ..Config::default()
        };
        let (_, stream) = request(Body::empty());
        let now = Instant::now();
        let age = |chance| {
            let clock = Clock::start(config, stream.clone(), None, now, chance);
            clock.max_age.unwrap() - now
        };

        assert_eq!(age(0.0), 100 * SECOND);
        assert_eq!(age(0.5), 90 * SECOND);
        assert_eq!(age(1.0), 80 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_is_watched() {
        let (mut service, _answer) = reader(Config::default());
        let (upload, body) = scripted();
        let (request, stream) = request(body);
        let mut body = service.call(request).await.unwrap().into_body();

        upload.send(chunk()).unwrap();
        advance(Duration::from_secs(1_000_000)).await;

        assert!(next(&mut body).now_or_never().is_none());
        assert!(stream.dismissed().is_none());
    }
}
