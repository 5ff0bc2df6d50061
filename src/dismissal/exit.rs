//! The response of a stream that may be dismissed, and the decision that it is time to end.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderName, HeaderValue, header::RETRY_AFTER};
use thalweg_filters::{Chunk, Error, StreamContext, stream::Protocol};
use thalweg_proto::frame::FrameInspector;
use tokio::time::{Sleep, sleep};

use super::Progress;
use crate::{config::Drain, telemetry::Process};

const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Ends a stream that was aborted at once, and one that was dismissed between two messages.
pub(crate) struct Exit {
    stream: StreamContext,
    /// `None` if the request has no body.
    request: Option<Rc<Progress>>,
    /// Where the response's messages end; `None` for plain HTTP, which has none.
    frames: Option<FrameInspector>,
    settings: Rc<Drain>,
    process: Arc<Process>,
    /// Runs from the dismissal.
    force: Option<Pin<Box<Sleep>>>,
    /// Something of the response does not pass any more.
    cut: bool,
    /// It was time already when this was last looked at.
    settled: bool,
}

impl Exit {
    pub(crate) fn new(
        stream: StreamContext,
        request: Option<Rc<Progress>>,
        settings: Rc<Drain>,
        process: Arc<Process>,
    ) -> Self {
        let frames = (stream.protocol() == Protocol::Grpc).then(FrameInspector::new);
        Self {
            stream,
            request,
            frames,
            settings,
            process,
            force: None,
            cut: false,
            settled: false,
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.stream.protocol()
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Whether some of the response was kept back, so that its real end would not be true.
    pub(crate) fn has_cut(&self) -> bool {
        self.cut
    }

    /// The part of a chunk that goes to the client, if any does.
    pub(crate) fn pass(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        if self.cut {
            return None;
        }
        let ends = self.stream.dismissed().is_some() && self.request_is_settled();
        let Some(frames) = &mut self.frames else {
            return Some(chunk);
        };
        if !ends {
            // An answer that is no gRPC passes as it is. It has no boundary, ever.
            let _ = frames.count(chunk.as_slice());
            return Some(chunk);
        }
        let all = chunk.len();
        let end = frames.finish(chunk.as_slice()).unwrap_or(all);
        self.cut = end < all;
        (end > 0).then(|| chunk.split_to(end))
    }

    /// Ready with the status when the stream has to end now. To be polled while nothing comes of the response, and while it is
    /// dismissed, always.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Poll::Ready(error) = self.stream.poll_aborted(cx) {
            return Poll::Ready(error);
        }
        let Some(error) = self.stream.dismissed() else {
            return Poll::Pending;
        };
        if self.is_between_messages() {
            if std::mem::replace(&mut self.settled, true) {
                return Poll::Ready(self.with_pushback(error));
            }
            // A reset takes back what its connection has not written. So the upstream's connection goes first: it was woken when
            // it was handed the last bytes, and this comes behind.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.settled = false;
        let limit = self.settings.force;
        let force = self.force.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(force.as_mut().poll(cx));
        self.process.forced_ends.increment();
        Poll::Ready(self.with_pushback(error))
    }

    /// Whether [`Exit::poll`] has something to decide.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.stream.dismissed().is_some()
    }

    fn is_between_messages(&self) -> bool {
        self.frames
            .as_ref()
            .is_some_and(FrameInspector::is_at_boundary)
            && self.request_is_settled()
    }

    fn request_is_settled(&self) -> bool {
        self.request
            .as_ref()
            .is_none_or(|request| request.is_settled())
    }

    /// Tells each client another time to come back, so that they do not all come at once.
    fn with_pushback(&self, error: &Error) -> Error {
        let millis = u64::try_from(self.settings.spread.as_millis()).unwrap_or(u64::MAX);
        let wait = fastrand::u64(0..=millis);
        match self.protocol() {
            Protocol::Grpc => error
                .clone()
                .with_header(RETRY_PUSHBACK, HeaderValue::from(wait)),
            Protocol::Http => error
                .clone()
                .with_header(RETRY_AFTER, HeaderValue::from(wait.div_ceil(1000))),
        }
    }
}
