//! What all filters of one stream share. It lives in the extensions of the request.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use thalweg_proto::status::Code;
use tokio::time::Instant;

use crate::{Error, Side};

/// What all filters of one stream share; a clone is another handle to the same stream.
#[derive(Clone, Debug)]
pub struct StreamContext {
    inner: Arc<Inner>,
    protocol: Protocol,
}

#[derive(Debug)]
struct Inner {
    started_at: Instant,
    deadline: Option<Instant>,
    verdict: OnceLock<Error>,
    dismissal: OnceLock<Error>,
    watcher: AtomicWaker,
    cancel_code: AtomicU32,
}

/// What the client speaks, and therefore how it hears of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Statuses travel in `grpc-status`.
    Grpc,
    /// Statuses are HTTP statuses; after the first byte, only a visible break is left.
    Http,
}

impl StreamContext {
    /// For a stream whose headers arrived at `started_at`.
    pub fn new(protocol: Protocol, started_at: Instant, deadline: Option<Instant>) -> Self {
        Self {
            inner: Arc::new(Inner {
                started_at,
                deadline,
                verdict: OnceLock::new(),
                dismissal: OnceLock::new(),
                watcher: AtomicWaker::new(),
                cancel_code: AtomicU32::new(h2::Reason::CANCEL.into()),
            }),
            protocol,
        }
    }

    /// The same stream where it goes on in another protocol: what came as plain HTTP is gRPC from here on.
    #[must_use]
    pub fn speaking(&self, protocol: Protocol) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            protocol,
        }
    }

    /// When the stream's headers arrived.
    pub fn started_at(&self) -> Instant {
        self.inner.started_at
    }

    /// When its `grpc-timeout` passes, if it has one.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.deadline
    }

    /// What the client speaks, or what was made of it on the way.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Ends the stream from anywhere, with `error` as its status. The first abort wins.
    pub fn abort(&self, error: Error) {
        if self.inner.verdict.set(error).is_ok() {
            self.inner.watcher.wake();
        }
    }

    /// Ready once somebody has aborted the stream; watched by `respond` alone.
    pub fn poll_aborted(&self, cx: &mut Context<'_>) -> Poll<Error> {
        self.inner.watcher.register(cx.waker());
        match self.inner.verdict.get() {
            Some(error) => Poll::Ready(error.clone()),
            None => Poll::Pending,
        }
    }

    /// Why the stream was aborted, if it was.
    pub fn aborted(&self) -> Option<&Error> {
        self.inner.verdict.get()
    }

    /// Ends the stream from anywhere, with `error` as its status, but behind the messages that are on their way. The first
    /// dismissal counts, and an abort goes before it.
    pub fn dismiss(&self, error: Error) {
        if self.inner.dismissal.set(error).is_ok() {
            self.inner.watcher.wake();
        }
    }

    /// Why the stream is to end behind its current messages, if it is. Whoever has polled [`Self::poll_aborted`] is woken when
    /// this changes.
    pub fn dismissed(&self) -> Option<&Error> {
        self.inner.dismissal.get()
    }

    /// Notes the code with which the client reset the stream, to be passed on to the upstream.
    pub fn set_cancel_code(&self, code: h2::Reason) {
        // "No error" from a client that leaves in the middle is a cancel all the same.
        if code != h2::Reason::NO_ERROR {
            self.inner.cancel_code.store(code.into(), Ordering::Relaxed);
        }
    }

    /// The code for the upstream when the stream is dropped before its end.
    pub fn cancel_code(&self) -> h2::Reason {
        self.inner.cancel_code.load(Ordering::Relaxed).into()
    }
}

/// Refuses a stream where `who` has to read messages and the client does not say that there are any. To let it pass unread
/// would leave it to the client whether it is judged: many a gRPC server never looks at the content type.
pub fn not_grpc(who: &str) -> Error {
    let message = format!(
        "{who} reads messages of gRPC, and this is no request of gRPC: it takes HTTP/2 and the content-type application/grpc"
    );
    Error::new(Code::Unimplemented, "not_grpc", Side::Client, message).with_http_status(415)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_abort_wins_and_wakes() {
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);
        let mut watch = tokio_test::task::spawn(std::future::poll_fn(|cx| stream.poll_aborted(cx)));
        tokio_test::assert_pending!(watch.poll());

        stream.abort(Error::new(
            Code::Unavailable,
            "drain",
            Side::Proxy,
            "the proxy drains",
        ));
        stream.abort(Error::new(Code::Internal, "late", Side::Proxy, "too late"));

        assert!(watch.is_woken());
        assert_eq!(tokio_test::assert_ready!(watch.poll()).reason(), "drain");
    }

    #[tokio::test]
    async fn first_dismissal_counts_and_wakes() {
        let error = |reason| Error::new(Code::Unavailable, reason, Side::Proxy, "later");
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);
        let mut watch = tokio_test::task::spawn(std::future::poll_fn(|cx| stream.poll_aborted(cx)));
        tokio_test::assert_pending!(watch.poll());

        stream.dismiss(error("max_age"));
        stream.dismiss(error("drain"));

        assert!(watch.is_woken());
        assert_eq!(stream.dismissed().map(Error::reason), Some("max_age"));
        tokio_test::assert_pending!(watch.poll());
    }

    #[tokio::test]
    async fn cancel_without_an_error_is_still_a_cancel() {
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);

        stream.set_cancel_code(h2::Reason::NO_ERROR);
        assert_eq!(stream.cancel_code(), h2::Reason::CANCEL);

        stream.set_cancel_code(h2::Reason::INTERNAL_ERROR);
        assert_eq!(stream.cancel_code(), h2::Reason::INTERNAL_ERROR);
    }
}
