//! The request of a stream that may be dismissed.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Frame, SizeHint};
use thalweg_filters::{
    Chunk, Error, StreamContext,
    body::{Credit, Ledger},
};
use thalweg_proto::frame::FrameInspector;

/// Passes what the client sends, and once its stream is dismissed no more than the rest of the current message.
pub(crate) struct Upload<B> {
    inner: B,
    stream: StreamContext,
    frames: FrameInspector,
    progress: Rc<Progress>,
    /// Of what does not pass any more. It is not given back while the stream lasts, and so there is no more than one window.
    kept: Credit,
    /// The client has sent all, but not all has passed.
    withheld: bool,
}

/// How far a request has come, as the response's side sees it.
#[derive(Debug)]
pub(crate) struct Progress {
    /// A message has passed in part.
    within: Cell<bool>,
    ledger: Arc<Ledger>,
    /// Bytes that do not pass any more.
    kept: Cell<usize>,
}

// === impl Progress ===

impl Progress {
    /// Whether whole messages have passed, and the far side has taken them.
    pub(crate) fn is_settled(&self) -> bool {
        !self.within.get() && self.ledger.held() == self.kept.get()
    }
}

// === impl Upload ===

impl<B> Upload<B> {
    /// `inner` is what the client sends on `stream`, booked in `ledger`.
    pub(crate) fn new(inner: B, ledger: Arc<Ledger>, stream: StreamContext) -> Self {
        Self {
            inner,
            stream,
            frames: FrameInspector::new(),
            progress: Rc::new(Progress {
                within: Cell::new(false),
                ledger,
                kept: Cell::new(0),
            }),
            kept: Credit::default(),
            withheld: false,
        }
    }

    /// What the response's side has to know of it.
    pub(crate) fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }

    /// The part of a chunk that passes, if any does.
    fn pass(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        if self.stream.dismissed().is_none() {
            // A body that is no gRPC body is the upstream's affair. It has no boundary, ever.
            let _ = self.frames.count(chunk.as_slice());
            self.progress.within.set(!self.frames.is_at_boundary());
            return Some(chunk);
        }
        let all = chunk.len();
        let end = self.frames.finish(chunk.as_slice()).unwrap_or(all);
        self.progress.within.set(!self.frames.is_at_boundary());
        let passes = chunk.split_to(end);
        if !chunk.is_empty() {
            let (bytes, credit) = chunk.into_parts();
            self.progress
                .kept
                .set(self.progress.kept.get() + bytes.len());
            self.kept.absorb(credit);
        }
        (!passes.is_empty()).then_some(passes)
    }

    fn has_kept(&self) -> bool {
        self.progress.kept.get() > 0
    }
}

impl<B> http_body::Body for Upload<B>
where
    B: http_body::Body<Data = Chunk, Error = Error> + Unpin,
{
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        while !this.withheld {
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
            let end = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => match this.pass(chunk) {
                        Some(chunk) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                        None => continue,
                    },
                    Err(trailers) => Some(Ok(trailers)),
                },
                end => end,
            };
            // A request that was cut must not look complete.
            this.withheld = this.has_kept() && !matches!(end, Some(Err(_)));
            if !this.withheld {
                this.progress.within.set(false);
                return Poll::Ready(end);
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        !self.has_kept() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> Drop for Upload<B> {
    fn drop(&mut self) {
        // Nobody wants any more of it: there is nothing to wait for.
        self.progress.within.set(false);
        self.progress.kept.set(0);
    }
}
