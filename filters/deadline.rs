//! Ends calls whose `grpc-timeout` has passed.
//!
//! **Why.** A client that has given up must not keep an upstream busy, and it must hear DEADLINE_EXCEEDED and not a bare
//! reset, also from an upstream that knows nothing of deadlines.
//!
//! **How.** The deadline was computed once, when the headers arrived, and lies in the [`StreamContext`]. The timer covers
//! the wait for the response's head and then moves into its body. Work is polled first and the clock second, so that an
//! answer which is already there is never late. What is left of the time is told to the upstream by `forward`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use thalweg_proto::status::Code;
use tokio::time::{Sleep, sleep_until};
use tower::Service;

use crate::{Body, Chunk, Error, Side, StreamContext};

type Timer = Pin<Box<Sleep>>;

/// Holds each call to its `grpc-timeout`; see the [module docs](self).
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

pin_project! {
    /// Waits for the response's head, up to the deadline.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: F,
        timer: Option<Timer>,
    }
}

struct DeadlineBody {
    inner: Body,
    timer: Timer,
}

// === impl Deadline ===

impl<S> Deadline<S> {
    /// Guards `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let deadline = request.extensions().get().and_then(StreamContext::deadline);
        DeadlineFuture {
            timer: deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            inner: self.inner.call(request),
        }
    }
}

// === impl DeadlineFuture ===

impl<F> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            return Poll::Ready(match (result, this.timer.take()) {
                (Ok(response), Some(timer)) => {
                    Ok(response.map(|body| body.wrap(|inner| DeadlineBody { inner, timer })))
                }
                (result, _) => result,
            });
        }
        match this.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Err(exceeded())),
            None => Poll::Pending,
        }
    }
}

// === impl DeadlineBody ===

impl http_body::Body for DeadlineBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            // A stream that always has something to say is held to its deadline too; only its end is never late.
            let ends = frame
                .as_ref()
                .is_none_or(|frame| !frame.as_ref().is_ok_and(Frame::is_data));
            if ends || self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Ready(frame);
            }
            return Poll::Ready(Some(Err(exceeded())));
        }
        self.timer.as_mut().poll(cx).map(|()| Some(Err(exceeded())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn exceeded() -> Error {
    Error::new(
        Code::DeadlineExceeded,
        "grpc_timeout",
        Side::Client,
        "the call's grpc-timeout has passed",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;
    use crate::stream::Protocol;

    fn request(timeout: Duration) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        let now = Instant::now();
        request.extensions_mut().insert(StreamContext::new(
            Protocol::Grpc,
            now,
            Some(now + timeout),
        ));
        request
    }

    /// A body that never says anything.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            Poll::Pending
        }
    }

    async fn next(body: &mut Body) -> Option<Result<Frame<Chunk>, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    use http_body::Body as _;

    #[tokio::test(start_paused = true)]
    async fn silent_upstream_is_cut_off_at_the_deadline() {
        let mut service = Deadline::new(service_fn(|_| {
            std::future::pending::<Result<Response<Body>, Error>>()
        }));
        let started = Instant::now();

        let error = service
            .call(request(Duration::from_secs(3)))
            .await
            .unwrap_err();

        assert_eq!(
            (error.code(), error.reason()),
            (Code::DeadlineExceeded, "grpc_timeout")
        );
        assert_eq!(started.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_moves_into_the_response_body() {
        let mut service = Deadline::new(service_fn(async |_| Ok(Response::new(Body::new(Silent)))));

        let mut body = service
            .call(request(Duration::from_secs(3)))
            .await
            .unwrap()
            .into_body();

        let error = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn answer_that_is_already_there_is_never_late() {
        let mut service = Deadline::new(service_fn(async |_| Ok(Response::new(Body::empty()))));

        assert!(service.call(request(Duration::ZERO)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn talkative_stream_is_held_to_its_deadline_too() {
        let mut service =
            Deadline::new(service_fn(async |_| Ok(Response::new(Body::full("more")))));

        let mut body = service
            .call(request(Duration::ZERO))
            .await
            .unwrap()
            .into_body();

        assert!(next(&mut body).await.unwrap().is_err());
    }
}
