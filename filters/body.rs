//! Every body in the proxy, and the credit that its chunks carry.
//!
//! **Why.** HTTP/2 slows a sender by not giving back the window that its bytes used up. Whoever gives it back when
//! bytes *arrive* has to hold whatever the far side does not take; whoever gives it back when bytes were *handed on*
//! holds one window and no more. So each [`Chunk`] carries its [`Credit`] with it through the filters, and the credit
//! returns by itself when the chunk's last owner lets go of it: the pump after the bytes are in the far side's window,
//! an HTTP/1.1 connection after they are in the socket, or anyone who drops the chunk.
//!
//! **How.** A stream has one [`Ledger`]. It counts what is held, and returns credit in batches, because a window update
//! for every small chunk costs more than the chunk. A source without a window of its own (HTTP/1.1) is given one: its
//! ledger says when it may be read again.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::{Error, StreamContext, stream::Booking};

/// Credit is returned once this much has gathered, or nothing is held any more.
const RETURN_BATCH: usize = 32 * 1024;

/// A body of the proxy, request or response. Costs nothing when empty.
#[derive(Default)]
pub struct Body(Option<Pin<Box<dyn http_body::Body<Data = Chunk, Error = Error>>>>);

/// Bytes on their way, with the credit that returns when they have been handed on.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Bytes,
    credit: Credit,
}

/// The right to send some bytes more, owed to the sender of a stream. Returns itself when dropped.
#[derive(Default)]
pub struct Credit {
    ledger: Option<Arc<Ledger>>,
    amount: usize,
}

/// What one direction of one stream holds, and how its sender is paid back.
pub struct Ledger(Mutex<Account>);

struct Account {
    source: Source,
    /// Whose bytes these are.
    stream: Option<StreamContext>,
    held: usize,
    unreturned: usize,
}

enum Source {
    Http2(h2::FlowControl),
    Window { size: usize, reader: Option<Waker> },
}

// === impl Body ===

impl Body {
    /// A body without bytes and without trailers.
    pub const fn empty() -> Self {
        Self(None)
    }

    /// Takes any body; one that has already ended becomes [`Body::empty`].
    pub fn new(body: impl http_body::Body<Data = Chunk, Error = Error> + 'static) -> Self {
        if body.is_end_stream() {
            Self::empty()
        } else {
            Self(Some(Box::pin(body)))
        }
    }

    /// Takes a body that lies on the heap already.
    pub fn boxed(body: Box<impl http_body::Body<Data = Chunk, Error = Error> + 'static>) -> Self {
        Self(Some(Box::into_pin(body)))
    }

    /// A body of bytes that nobody waits to be paid for.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::new(Full {
            bytes: Some(bytes.into()),
            trailers: None,
        })
    }

    /// Bytes that nobody waits to be paid for, and trailers.
    pub fn with_trailers(bytes: impl Into<Bytes>, trailers: HeaderMap) -> Self {
        Self::new(Full {
            bytes: Some(bytes.into()),
            trailers: Some(trailers),
        })
    }

    /// Wraps what is there; an empty body stays empty, since nothing will ever come of it.
    #[must_use]
    pub fn wrap<B>(self, wrapper: impl FnOnce(Self) -> B) -> Self
    where
        B: http_body::Body<Data = Chunk, Error = Error> + 'static,
    {
        if self.0.is_none() {
            self
        } else {
            Self(Some(Box::pin(wrapper(self))))
        }
    }
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        match &mut self.0 {
            Some(body) => body.as_mut().poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_none() {
            "Body(empty)"
        } else {
            "Body"
        })
    }
}

/// What the proxy made itself.
struct Full {
    bytes: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Full {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let bytes = self.bytes.take().map(|bytes| Frame::data(bytes.into()));
        let frame = bytes.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.as_ref().is_none_or(Bytes::is_empty) && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

// === impl Chunk ===

impl Chunk {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes, where they lie.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Another handle to the bytes, without their credit.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Takes the first `at` bytes, with their share of the credit.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        Self {
            bytes: self.bytes.split_to(at),
            credit: self.credit.split(at),
        }
    }

    /// Where the bytes are booked, if anybody waits to be paid for them.
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.credit.ledger.as_ref()
    }

    /// Parts bytes and credit, for a sink that must keep the bytes longer than the sender should wait.
    pub fn into_parts(self) -> (Bytes, Credit) {
        (self.bytes, self.credit)
    }

    /// Joins bytes with the credit that was taken for them.
    pub fn from_parts(bytes: Bytes, credit: Credit) -> Self {
        Self { bytes, credit }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            credit: Credit::default(),
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        drop(self.credit.split(count));
    }
}

// === impl Credit ===

impl Credit {
    fn split(&mut self, at: usize) -> Self {
        let amount = at.min(self.amount);
        self.amount -= amount;
        Self {
            ledger: if amount > 0 {
                self.ledger.clone()
            } else {
                None
            },
            amount,
        }
    }

    /// Returns the credit of bytes that go on to be held, and are what this books from now on. `None` if they are nobody's.
    pub fn hand_over(mut self) -> Option<Booking> {
        let amount = std::mem::take(&mut self.amount);
        let ledger = self.ledger.as_ref().filter(|_| amount > 0)?;
        let stream = ledger.account().stream.clone();
        ledger.give_back(amount, stream.is_none());
        stream.map(|stream| stream.booked(amount))
    }

    /// Adds another credit of the same stream; of another stream, that one returns at once.
    pub fn absorb(&mut self, mut other: Self) {
        match (&self.ledger, &other.ledger) {
            (Some(mine), Some(theirs)) if Arc::ptr_eq(mine, theirs) => {
                self.amount += std::mem::take(&mut other.amount);
            }
            (None, _) => std::mem::swap(self, &mut other),
            _ => {}
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.amount > 0
            && let Some(ledger) = &self.ledger
        {
            ledger.give_back(self.amount, true);
        }
    }
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credit({})", self.amount)
    }
}

// === impl Ledger ===

impl Ledger {
    /// For a stream that HTTP/2 delivers.
    pub fn http2(flow: h2::FlowControl) -> Arc<Self> {
        Self::new(Source::Http2(flow))
    }

    /// For a source without a window of its own: [`Ledger::poll_open`] holds it back while `size` bytes are held.
    pub fn window(size: usize) -> Arc<Self> {
        Self::new(Source::Window { size, reader: None })
    }

    fn new(source: Source) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Account {
            source,
            stream: None,
            held: 0,
            unreturned: 0,
        })))
    }

    /// What is held counts as the stream's from now on, if it is known whose it is.
    #[must_use]
    pub fn of<'a>(self: Arc<Self>, stream: impl Into<Option<&'a StreamContext>>) -> Arc<Self> {
        self.account().stream = stream.into().cloned();
        self
    }

    /// Books bytes that have arrived.
    pub fn take(self: &Arc<Self>, bytes: Bytes) -> Chunk {
        let amount = bytes.len();
        let mut account = self.account();
        account.held += amount;
        if let Some(stream) = &account.stream {
            stream.hold(amount);
        }
        drop(account);
        Chunk {
            bytes,
            credit: Credit {
                ledger: Some(Arc::clone(self)),
                amount,
            },
        }
    }

    /// Bytes that have arrived and were not handed on yet.
    pub fn held(&self) -> usize {
        self.account().held
    }

    /// Whether the source may be read; always so for HTTP/2, whose sender keeps to its window by itself.
    pub fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut account = self.account();
        let held = account.held;
        match &mut account.source {
            Source::Window { size, reader } if held >= *size => {
                *reader = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// `let_go` says whether the stream holds the bytes no more.
    fn give_back(&self, amount: usize, let_go: bool) {
        let mut account = self.account();
        account.held -= amount;
        account.unreturned += amount;
        if let_go && let Some(stream) = &account.stream {
            stream.let_go(amount);
        }
        if account.unreturned < RETURN_BATCH && account.held > 0 {
            return;
        }
        let returned = std::mem::take(&mut account.unreturned);
        let waker = match &mut account.source {
            Source::Http2(flow) => {
                // Fails only for more than was received, and the ledger has booked each byte.
                let _ = flow.release_capacity(returned);
                None
            }
            Source::Window { reader, .. } => reader.take(),
        };
        drop(account);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        // The sums stay true even if a holder panicked: each is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger(held {})", self.held())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use tokio::time::Instant;

    use super::*;
    use crate::stream::Protocol;

    fn chunk(ledger: &Arc<Ledger>, len: usize) -> Chunk {
        ledger.take(Bytes::from(vec![7; len]))
    }

    #[test]
    fn dropped_chunk_returns_its_credit() {
        let ledger = Ledger::window(10);

        let whole = chunk(&ledger, 10);
        assert_eq!(ledger.held(), 10);
        drop(whole);

        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn split_chunks_share_the_credit() {
        let ledger = Ledger::window(10);
        let mut rest = chunk(&ledger, 10);

        let first = rest.split_to(4);
        drop(first);
        assert_eq!((rest.len(), ledger.held()), (6, 6));
        drop(rest);

        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn bytes_parted_from_their_credit_may_outlive_it() {
        let ledger = Ledger::window(10);

        let (bytes, credit) = chunk(&ledger, 10).into_parts();
        drop(credit);

        assert_eq!((bytes.len(), ledger.held()), (10, 0));
    }

    #[test]
    fn merged_credit_returns_once() {
        let ledger = Ledger::window(100);
        let (_, mut credit) = chunk(&ledger, 10).into_parts();
        let (_, other) = chunk(&ledger, 5).into_parts();

        credit.absorb(other);
        assert_eq!(ledger.held(), 15);
        drop(credit);

        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn advancing_returns_credit_as_bytes_leave() {
        let ledger = Ledger::window(10);
        let mut sent = chunk(&ledger, 10);

        sent.advance(7);

        assert_eq!(ledger.held(), 3);
    }

    #[test]
    fn full_window_holds_the_reader_until_bytes_are_handed_on() {
        let mut cx = Context::from_waker(noop_waker_ref());
        let ledger = Ledger::window(10);

        let held = chunk(&ledger, 10);
        assert!(ledger.poll_open(&mut cx).is_pending());
        drop(held);

        assert!(ledger.poll_open(&mut cx).is_ready());
    }

    #[test]
    fn stream_holds_what_waits_for_its_far_side() {
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);
        let ledger = Ledger::window(10).of(&stream);

        let mut waiting = chunk(&ledger, 10);
        assert_eq!(stream.held(), 10);
        waiting.advance(7);
        assert_eq!((stream.held(), stream.moved_since()), (3, 7));
        drop(waiting);

        assert_eq!(stream.held(), 0);
    }

    #[test]
    fn ended_body_is_empty() {
        use http_body::Body as _;

        assert!(Body::full("").is_end_stream());
        assert!(!Body::full("x").is_end_stream());
        assert!(Body::empty().is_end_stream());
    }
}
