//! A body that can be read again, as long as little of it was read.
//!
//! **Why.** A handshake that failed may be tried again, if the next attempt can be given the same request. That takes memory, so there is
//! a bound to it: what was read is kept up to there, and beyond it the request is spent.
//!
//! **How.** All attempts read from one [`Replay`]. What an attempt reads is copied, and goes on with its credit, which the sender gets
//! back as bytes are handed on: kept bytes hold no buffer but their own, however they were cut into frames. They are booked as
//! the stream's, and where the process holds too much already, no more is kept; then the stream goes on and cannot be sent
//! again. Once it stands, [`Replay::settle`] lets go of them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error, Side, pieces::Pieces, stream::Booking};
use thalweg_proto::status::Code;

use crate::{stage::Stage, telemetry::BindingStats};

/// The request of all attempts.
#[derive(Clone)]
pub(super) struct Replay(Rc<RefCell<Source>>);

struct Source {
    body: Body,
    /// Read by an attempt, and there for the next one.
    kept: Pieces,
    limit: usize,
    booked: Booking,
    stats: Arc<BindingStats>,
    /// The number of the present attempt.
    attempt: u64,
    /// What the present attempt has to read again first.
    again: VecDeque<Bytes>,
    /// Read while no attempt was under way.
    ahead: Stage,
    /// The request has ended, without an error.
    ended: bool,
    /// What was read is not all there any more.
    spent: bool,
    settled: bool,
}

/// What one attempt reads.
struct Reader {
    replay: Replay,
    attempt: u64,
}

// === impl Replay ===

impl Replay {
    /// Keeps up to `limit` bytes, in `booked`.
    pub(super) fn new(
        body: Body,
        limit: usize,
        booked: Booking,
        stats: &Arc<BindingStats>,
    ) -> Self {
        Self(Rc::new(RefCell::new(Source {
            ended: body.is_end_stream(),
            body,
            kept: Pieces::default(),
            limit,
            booked,
            stats: Arc::clone(stats),
            attempt: 0,
            again: VecDeque::new(),
            ahead: Stage::default(),
            spent: false,
            settled: false,
        })))
    }

    /// The request from its beginning, which must not be spent. Who reads for an attempt before this one reads no more.
    pub(super) fn body(&self) -> Body {
        let mut source = self.0.borrow_mut();
        source.attempt += 1;
        source.again = source.kept.sealed().iter().cloned().collect();
        let attempt = source.attempt;
        // Whether it has anything to read is asked at once.
        drop(source);
        Body::new(Reader {
            replay: self.clone(),
            attempt,
        })
    }

    /// Whether another attempt can be given the whole request.
    pub(super) fn is_intact(&self) -> bool {
        !self.0.borrow().spent
    }

    /// No other attempt will come.
    pub(super) fn settle(&self) {
        let mut source = self.0.borrow_mut();
        source.settled = true;
        source.let_go();
    }

    /// Reads on while nobody else does; the client's window bounds what comes. Never ready but for an error.
    pub(super) fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut source = self.0.borrow_mut();
        while !source.ended {
            match source.poll_frame(cx) {
                Poll::Ready(Some(Ok(chunk))) => source.ahead.push(chunk),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error),
                Poll::Ready(None) => {}
                Poll::Pending => break,
            }
        }
        source.ahead.wait();
        Poll::Pending
    }
}

// === impl Source ===

impl Source {
    /// The next chunk; a request's trailers mean nothing to a binding.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, Error>>> {
        while !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => return Poll::Ready(Some(Ok(chunk))),
                    Err(_) => self.ended = true,
                },
                Some(Err(error)) => {
                    self.spent = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(None)
    }

    /// Keeps what the present attempt has read, after all that was kept before.
    fn keep(&mut self, chunk: &Chunk) {
        if self.settled || self.spent {
            self.spent = true;
        } else if self.kept.len() + chunk.len() <= self.limit && self.booked.try_grow(chunk.len()) {
            self.kept.push(chunk.as_slice());
        } else {
            self.spent = true;
            self.let_go();
            if self.limit > 0 {
                self.stats.replay_overflows.increment();
            }
        }
    }

    fn let_go(&mut self) {
        self.kept = Pieces::default();
        self.booked = Booking::default();
    }
}

// === impl Reader ===

impl http_body::Body for Reader {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let mut source = self.replay.0.borrow_mut();
        if self.attempt != source.attempt {
            // Whoever still holds this body must not take from the next attempt what is its own.
            return Poll::Ready(Some(Err(Error::new(
                Code::Cancelled,
                "attempt_over",
                Side::Proxy,
                "another attempt reads the request now",
            ))));
        }
        if let Some(again) = source.again.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(Chunk::from(again)))));
        }
        let chunk = if source.ahead.is_empty() {
            match ready!(source.poll_frame(cx)) {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        } else {
            source.ahead.pop(usize::MAX)
        };
        source.keep(&chunk);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.replay.0.borrow();
        self.attempt == source.attempt
            && source.again.is_empty()
            && source.ahead.is_empty()
            && (source.ended || source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::{
        StreamContext,
        body::Ledger,
        held::{Share, Total},
        stream::Protocol,
    };
    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    /// A body that is told what to say while it is read; its sender's end is its own.
    struct Told(mpsc::UnboundedReceiver<Chunk>);

    impl http_body::Body for Told {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            let chunk = ready!(self.0.poll_recv(cx));
            Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    fn told() -> (mpsc::UnboundedSender<Chunk>, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Body::new(Told(receiver)))
    }

    fn replay(body: Body, limit: usize) -> Replay {
        Replay::new(body, limit, Booking::default(), &Arc::default())
    }

    fn say(sender: &mpsc::UnboundedSender<Chunk>, text: &'static [u8]) {
        sender.send(Chunk::from(Bytes::from_static(text))).unwrap();
    }

    /// What can be read now.
    fn read(body: &mut Body) -> Vec<u8> {
        let mut task = tokio_test::task::spawn(());
        let mut whole = Vec::new();
        while let Poll::Ready(Some(frame)) = task.enter(|cx, _| Pin::new(&mut *body).poll_frame(cx))
        {
            whole.extend_from_slice(frame.unwrap().into_data().unwrap().as_slice());
        }
        whole
    }

    #[test]
    fn each_attempt_reads_from_the_beginning() {
        let (sender, body) = told();
        let replay = replay(body, 10);
        say(&sender, b"abc");

        assert_eq!(read(&mut replay.body()), b"abc");
        say(&sender, b"def");
        drop(sender);
        let mut second = replay.body();

        assert_eq!(read(&mut second), b"abcdef");
        assert!(second.is_end_stream());
        assert_eq!(read(&mut replay.body()), b"abcdef");
        assert!(replay.is_intact());
    }

    #[test]
    fn request_is_spent_one_byte_past_the_limit() {
        let (sender, body) = told();
        let replay = replay(body, 6);
        let mut first = replay.body();

        say(&sender, b"abcdef");
        assert_eq!(read(&mut first), b"abcdef");
        assert!(replay.is_intact());
        say(&sender, b"g");

        assert_eq!(read(&mut first), b"g");
        assert!(!replay.is_intact());
        assert!(replay.0.borrow().kept.is_empty());
    }

    #[test]
    fn nothing_is_kept_once_the_stream_stands() {
        let (sender, body) = told();
        let replay = replay(body, 10);
        let mut only = replay.body();
        say(&sender, b"abc");
        assert_eq!(read(&mut only), b"abc");

        replay.settle();
        say(&sender, b"def");

        assert_eq!(read(&mut only), b"def");
        assert!(replay.0.borrow().kept.is_empty());
    }

    #[test]
    fn attempt_that_has_not_read_all_again_reads_it_though_the_stream_stands() {
        let (sender, body) = told();
        let replay = replay(body, 10);
        say(&sender, b"abc");
        assert_eq!(read(&mut replay.body()), b"abc");

        let mut second = replay.body();
        replay.settle();

        assert_eq!(read(&mut second), b"abc");
    }

    #[test]
    fn credit_returns_though_bytes_are_kept() {
        let (sender, body) = told();
        let ledger = Ledger::window(10);
        let replay = replay(body, 10);
        sender
            .send(ledger.take(Bytes::from_static(b"abc")))
            .unwrap();

        assert_eq!(read(&mut replay.body()), b"abc");

        assert_eq!(ledger.held(), 0);
        assert_eq!(read(&mut replay.body()), b"abc");
    }

    #[test]
    fn what_comes_between_attempts_waits_with_its_credit() {
        let (sender, body) = told();
        let ledger = Ledger::window(10);
        let replay = replay(body, 10);
        sender
            .send(ledger.take(Bytes::from_static(b"abc")))
            .unwrap();

        let mut pause = tokio_test::task::spawn(());
        assert!(pause.enter(|cx, _| replay.poll_ahead(cx)).is_pending());

        assert_eq!(ledger.held(), 3);
        assert_eq!(read(&mut replay.body()), b"abc");
        assert_eq!(ledger.held(), 0);
    }

    /// Padding, wrapping and other streams' frames lie in the same buffers.
    #[test]
    fn what_is_kept_or_read_ahead_holds_no_read_buffer() {
        let (sender, body) = told();
        let replay = replay(body, 1 << 20);
        let buffers = [0; 8].map(|_| Bytes::from(vec![9; 64 * 1024]));
        let (kept, ahead) = buffers.split_at(4);

        for buffer in kept {
            sender.send(Chunk::from(buffer.slice(5..2000))).unwrap();
        }
        read(&mut replay.body());
        for buffer in ahead {
            sender.send(Chunk::from(buffer.slice(5..2000))).unwrap();
        }
        let mut pause = tokio_test::task::spawn(());
        assert!(pause.enter(|cx, _| replay.poll_ahead(cx)).is_pending());

        assert!(buffers.iter().all(Bytes::is_unique));
        assert_eq!(read(&mut replay.body()), [9; 8 * 1995]);
    }

    /// hyper holds the body of a request for as long as its connection does, which may be longer than the attempt.
    #[test]
    fn attempt_that_is_over_takes_nothing_from_the_next() {
        let (sender, body) = told();
        let replay = replay(body, 10);
        let mut first = replay.body();
        let mut second = replay.body();
        say(&sender, b"abc");

        let mut task = tokio_test::task::spawn(());
        let late = task.enter(|cx, _| Pin::new(&mut first).poll_frame(cx));

        assert!(matches!(late, Poll::Ready(Some(Err(_)))));
        assert!(!first.is_end_stream());
        assert_eq!(read(&mut second), b"abc");
    }

    #[test]
    fn what_is_kept_is_booked_and_is_not_kept_where_too_much_is_held() {
        let total = Total::new(1 << 20);
        let share = Some(Share::new(Arc::clone(&total)));
        let stream = StreamContext::held_in(share, Protocol::Grpc, Instant::now(), None);
        let stats = Arc::<BindingStats>::default();
        let (sender, body) = told();
        let replay = Replay::new(body, 10, stream.book(0), &stats);
        let mut only = replay.body();

        say(&sender, b"abc");
        assert_eq!(read(&mut only), b"abc");
        assert_eq!(stream.held(), 3);

        let others = stream.book(1 << 20);
        say(&sender, b"def");
        assert_eq!(read(&mut only), b"def");
        drop(others);

        assert!(!replay.is_intact());
        assert_eq!((stream.held(), stats.replay_overflows.get()), (0, 1));
    }
}
