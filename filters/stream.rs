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

use crate::{
    Error, Side,
    held::{Holding, Share},
};

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
    holding: Holding,
}

/// Bytes that a stream holds beside those that wait for their far side; booked until this is dropped. One of [`Booking::default`] is nobody's.
#[derive(Debug, Default)]
pub struct Booking {
    stream: Option<StreamContext>,
    bytes: usize,
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
    /// For a stream whose headers arrived at `started_at`, and whose bytes nobody adds up.
    pub fn new(protocol: Protocol, started_at: Instant, deadline: Option<Instant>) -> Self {
        Self::held_in(None, protocol, started_at, deadline)
    }

    /// For a stream whose headers arrived at `started_at`, and whose bytes are its worker's share of all that is held.
    pub fn held_in(
        share: Option<Arc<Share>>,
        protocol: Protocol,
        started_at: Instant,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                started_at,
                deadline,
                verdict: OnceLock::new(),
                dismissal: OnceLock::new(),
                watcher: AtomicWaker::new(),
                cancel_code: AtomicU32::new(h2::Reason::CANCEL.into()),
                holding: Holding::new(share),
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

    /// Bytes that the stream makes the process hold.
    pub fn held(&self) -> usize {
        self.inner.holding.held()
    }

    /// Bytes that it has let go of since this was last asked.
    pub fn moved_since(&self) -> u64 {
        self.inner.holding.moved_since()
    }

    /// Books bytes that the stream holds beside those that wait for their far side.
    pub fn book(&self, bytes: usize) -> Booking {
        self.hold(bytes);
        self.clone().booked(bytes)
    }

    /// Bytes that were booked before, by somebody else.
    pub(crate) fn booked(self, bytes: usize) -> Booking {
        Booking {
            stream: Some(self),
            bytes,
        }
    }

    pub(crate) fn hold(&self, bytes: usize) {
        self.inner.holding.add(bytes);
    }

    pub(crate) fn let_go(&self, bytes: usize) {
        self.inner.holding.remove(bytes);
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

impl Booking {
    /// Books more, unless the process holds so much that what can be done without should not be kept.
    #[must_use]
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let Some(stream) = &self.stream else {
            return true;
        };
        let share = stream.inner.holding.share();
        if share.is_some_and(|share| share.total().is_near()) {
            return false;
        }
        stream.hold(bytes);
        self.bytes += bytes;
        true
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.let_go(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Total;

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

    #[test]
    fn booking_ends_when_it_is_dropped_and_does_not_grow_near_the_limit() {
        let total = Total::new(1 << 20);
        let share = Some(Share::new(Arc::clone(&total)));
        let stream = StreamContext::held_in(share, Protocol::Grpc, Instant::now(), None);

        let mut kept = stream.book(100);
        assert!(kept.try_grow(1 << 20), "nothing was held so far");
        assert!(!kept.try_grow(1), "{total:?}");
        assert_eq!(stream.held(), 100 + (1 << 20));
        drop(kept);

        assert_eq!((stream.held(), total.is_near()), (0, false));
        assert!(Booking::default().try_grow(usize::MAX));
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
