//! A body that can be read again, as long as little of it was read.
//!
//! **Why.** A handshake that failed may be tried again, if the next attempt can be given the same request. That takes memory, so there is
//! a bound to it: what was read is kept up to there, and beyond it the request is spent.
//!
//! **How.** All attempts read from one [`Replay`]. What an attempt reads is kept, without its credit, which the sender gets back as
//! bytes are handed on. Once the stream stands, [`Replay::settle`] lets go of what is kept.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error};

/// The request of all attempts.
#[derive(Clone)]
pub(super) struct Replay(Rc<RefCell<Source>>);

struct Source {
    body: Body,
    /// Read by an attempt, and there for the next one.
    kept: Vec<Bytes>,
    /// How much of `kept` the present attempt has read.
    at: usize,
    kept_len: usize,
    limit: usize,
    /// Read while no attempt was under way.
    ahead: VecDeque<Chunk>,
    /// The request has ended, without an error.
    ended: bool,
    /// What was read is not all there any more.
    spent: bool,
    settled: bool,
}

/// What one attempt reads.
struct Reader(Replay);

// === impl Replay ===

impl Replay {
    /// Keeps up to `limit` bytes.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        Self(Rc::new(RefCell::new(Source {
            ended: body.is_end_stream(),
            body,
            kept: Vec::new(),
            at: 0,
            kept_len: 0,
            limit,
            ahead: VecDeque::new(),
            spent: false,
            settled: false,
        })))
    }

    /// The request from its beginning. There must be no other reader, and the request not be spent.
    pub(super) fn body(&self) -> Body {
        self.0.borrow_mut().at = 0;
        Body::new(Reader(self.clone()))
    }

    /// Whether another attempt can be given the whole request.
    pub(super) fn is_intact(&self) -> bool {
        !self.0.borrow().spent
    }

    /// No other attempt will come.
    pub(super) fn settle(&self) {
        let mut source = self.0.borrow_mut();
        source.settled = true;
        source.forget();
    }

    /// Reads on while nobody else does; the client's window bounds what comes. Never ready but for an error.
    pub(super) fn poll_ahead(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut source = self.0.borrow_mut();
        while !source.ended {
            match ready!(source.poll_frame(cx)) {
                Some(Ok(chunk)) => source.ahead.push_back(chunk),
                Some(Err(error)) => return Poll::Ready(error),
                None => {}
            }
        }
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
        self.kept_len += chunk.len();
        if self.settled || self.spent || self.kept_len > self.limit {
            self.spent = true;
        } else {
            self.kept.push(chunk.bytes());
            self.at = self.kept.len();
        }
        self.forget();
    }

    /// Lets go of what nobody will read.
    fn forget(&mut self) {
        if (self.spent || self.settled) && self.at >= self.kept.len() {
            self.kept = Vec::new();
            self.at = 0;
        }
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
        let mut source = self.0.0.borrow_mut();
        if let Some(kept) = source.kept.get(source.at).cloned() {
            source.at += 1;
            source.forget();
            return Poll::Ready(Some(Ok(Frame::data(Chunk::from(kept)))));
        }
        let chunk = match source.ahead.pop_front() {
            Some(chunk) => chunk,
            None => match ready!(source.poll_frame(cx)) {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            },
        };
        source.keep(&chunk);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.0.0.borrow();
        source.at >= source.kept.len()
            && source.ahead.is_empty()
            && (source.ended || source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::body::Ledger;
    use tokio::sync::mpsc;

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
        let replay = Replay::new(body, 10);
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
        let replay = Replay::new(body, 6);
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
        let replay = Replay::new(body, 10);
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
        let replay = Replay::new(body, 10);
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
        let replay = Replay::new(body, 10);
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
        let replay = Replay::new(body, 10);
        sender
            .send(ledger.take(Bytes::from_static(b"abc")))
            .unwrap();

        let mut pause = tokio_test::task::spawn(());
        assert!(pause.enter(|cx, _| replay.poll_ahead(cx)).is_pending());

        assert_eq!(ledger.held(), 3);
        assert_eq!(read(&mut replay.body()), b"abc");
        assert_eq!(ledger.held(), 0);
    }
}
