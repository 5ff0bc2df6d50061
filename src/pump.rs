//! Moves a body into an HTTP/2 stream as fast as the far side takes it.
//!
//! **Why.** Flow control has to reach from end to end: the sender is slowed by the far side and by nothing else. Not
//! reading would be the simple way, but an `h2` connection closes itself when small frames pile up unread.
//!
//! **How.**
//! 1. Take all that the source has. Its sender keeps to a window, so this is at most one window. Small chunks behind others
//!    are put together, which makes one frame of many; and what has to wait is copied out of the read buffers that it would pin.
//! 2. Send what the far side's windows grant. Only bytes that were granted leave, and only then does their credit
//!    return to the sender. A small request may leave with its head ([`Pump::with_head`]).
//! 3. When all is sent, send the trailers or the end.
//! 4. Always watch for a reset from the far side, also while there is nothing to send and while a write is blocked.
//! 5. Where a client takes nothing of an answer that has failed, its status goes before the bytes that wait: trailers need no
//!    window. The bytes are dropped, and nothing looks whole, since the status is one of failure.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body as _;
use thalweg_filters::{
    Body, Error, StreamContext, ending::grpc_status, pieces::Pieces, stream::Booking,
};
use thalweg_proto::status::Code;

use crate::{stage::Stage, stall::Stall, transport::Payload};

/// The most that leaves with the head of a request.
const WITH_HEAD: usize = 4 * 1024;

/// Moves one body into one stream; see the [module docs](self).
pub(crate) struct Pump {
    intake: Intake,
    sink: SendStream<Payload>,
    stall: Stall,
    /// Whose bytes these are.
    stream: Option<StreamContext>,
    finished: bool,
    kept: Option<Kept>,
    /// So much may leave before it is granted, if it is all that there is.
    ahead: usize,
    /// How long a status of failure waits for a far side that takes nothing; zero waits on.
    last_words: Duration,
    /// Runs while it does. Few streams come to that.
    waiting: Option<Box<Stall>>,
    overtook: bool,
}

/// What has been sent, for as long as it may have to be sent again.
struct Kept {
    /// Copies, for the bytes themselves lie in read buffers that are far larger.
    bytes: Pieces,
    booked: Booking,
    end: Option<End>,
    limit: usize,
}

/// What has been taken of a body. It may be filled before there is a stream to move it into, for a client does not wait
/// with its small frames until an upstream is found.
pub(crate) struct Intake {
    source: Body,
    staged: Stage,
    ended: Option<End>,
}

/// Why a pump stopped before the end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The source failed; the sink was not told yet.
    Source(Error),
    /// The far side takes no more, and this is its code; `None` when its connection is gone.
    Sink(Option<Reason>),
    /// The far side has taken nothing for so long.
    Stalled(Duration),
}

#[derive(Clone)]
enum End {
    Clean,
    Trailers(HeaderMap),
}

// === impl Intake ===

impl Intake {
    pub(crate) fn new(source: Body) -> Self {
        Self {
            source,
            staged: Stage::default(),
            ended: None,
        }
    }

    /// Takes all that has come.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.ended.is_none() {
            match Pin::new(&mut self.source).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.ended = Some(End::Clean),
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) => self.staged.push(chunk),
                    Err(frame) => self.ended = frame.into_trailers().ok().map(End::Trailers),
                },
            }
        }
        Ok(())
    }

    /// Takes all that has come, while there is nowhere to move it.
    pub(crate) fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.poll(cx)?;
        self.staged.wait();
        Ok(())
    }

    /// Whether there is nothing to move and never will be.
    pub(crate) fn is_done(&self) -> bool {
        match &self.ended {
            None => self.source.is_end_stream() && self.staged.is_empty(),
            Some(End::Clean) => self.staged.is_empty(),
            Some(End::Trailers(_)) => false,
        }
    }
}

// === impl Pump ===

impl Pump {
    /// What it has in hand counts as held by `stream`.
    pub(crate) fn new(
        intake: Intake,
        sink: SendStream<Payload>,
        stall: Stall,
        stream: Option<StreamContext>,
    ) -> Self {
        Self {
            intake,
            sink,
            stall,
            stream,
            finished: false,
            kept: None,
            ahead: 0,
            last_words: Duration::ZERO,
            waiting: None,
            overtook: false,
        }
    }

    /// Lets a status of failure overtake bytes of which the client takes none for `limit`; zero never does. For answers alone: a
    /// request that was cut must not look complete, whatever its trailers say.
    #[must_use]
    pub(crate) fn with_last_words(mut self, limit: Duration) -> Self {
        self.last_words = limit;
        self
    }

    /// Whether bytes were dropped for that.
    pub(crate) fn has_overtaken(&self) -> bool {
        self.overtook
    }

    /// Lets a small request leave with its head, if `takes_more` says that the far side has room for it. The codec grants a new
    /// stream nothing before its connection's next turn, and most calls would take one turn more and another write. Where there
    /// is no room after all, those bytes wait in the codec, and no stall is seen.
    #[must_use]
    pub(crate) fn with_head(mut self, takes_more: bool) -> Self {
        self.ahead = if takes_more { WITH_HEAD } else { 0 };
        self
    }

    /// Keeps what is sent, up to `limit`, so that it can be sent again; and less where the process holds too much.
    #[must_use]
    pub(crate) fn keeping(mut self, limit: usize) -> Self {
        self.kept = Some(Kept {
            bytes: Pieces::default(),
            booked: (self.stream.as_ref()).map_or_else(Booking::default, |stream| stream.book(0)),
            end: None,
            limit,
        });
        self
    }

    /// Whether all that was sent can be sent again.
    pub(crate) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// Nothing will have to be sent again.
    pub(crate) fn settle(&mut self) {
        self.kept = None;
    }

    /// The body from its beginning, for another stream, if all that was sent was kept. This one moves nothing any more.
    pub(crate) fn rewind(&mut self) -> Option<Intake> {
        let Kept { mut bytes, end, .. } = self.kept.take()?;
        let empty = Intake::new(Body::empty());
        let mut intake = std::mem::replace(&mut self.intake, empty);
        for piece in bytes.take().into_iter().rev() {
            intake.staged.put_back(piece);
        }
        intake.ended = end.or(intake.ended);
        Some(intake)
    }

    /// Ready once the body has been moved whole, with its end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.intake.poll(cx).map_err(Stop::Source)?;
        match self.send_granted(cx) {
            Ok(()) => {}
            Err(Stop::Sink(_)) => return Poll::Ready(Err(Stop::Sink(self.reset_by_far_side(cx)))),
            Err(stop) => return Poll::Ready(Err(stop)),
        }
        if self.finished {
            self.stall.settle();
            return Poll::Ready(Ok(()));
        }
        match self.sink.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(Err(Stop::Sink(Some(reason)))),
            Poll::Ready(Err(_)) => Poll::Ready(Err(Stop::Sink(None))),
            Poll::Pending if self.intake.staged.is_empty() => {
                self.stall.rest();
                Poll::Pending
            }
            Poll::Pending if self.overtakes(cx) => self.poll(cx),
            Poll::Pending => {
                if self.stall.has_waited() {
                    self.intake.staged.wait();
                }
                self.stall.poll(cx).map(|limit| Err(Stop::Stalled(limit)))
            }
        }
    }

    /// Drops what waits before a status of failure once that has waited for long enough.
    fn overtakes(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(End::Trailers(trailers)) = &self.intake.ended else {
            return false;
        };
        let failed = grpc_status(trailers).is_some_and(|code| code != Code::Ok);
        if !failed || self.last_words.is_zero() {
            return false;
        }
        let waiting = (self.waiting).get_or_insert_with(|| Box::new(Stall::new(self.last_words)));
        if waiting.poll(cx).is_pending() {
            return false;
        }
        self.overtook = true;
        self.intake.staged = Stage::default();
        self.sink.reserve_capacity(0);
        true
    }

    /// Lets go of what still comes; for a far side that wants no more of it.
    pub(crate) fn forget_source(&mut self) {
        self.intake = Intake::new(Body::empty());
    }

    /// Ready when the far side has reset the stream.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sink.poll_reset(cx).map(|_| ())
    }

    /// Resets the stream, whether or not the body was moved whole.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.sink.send_reset(reason);
    }

    fn send_granted(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let gone = |_| Stop::Sink(None);
        if !self.intake.staged.is_empty() {
            self.sink.reserve_capacity(self.intake.staged.len());
        }
        while !self.intake.staged.is_empty() {
            let granted = match self.sink.capacity() {
                0 if self.intake.staged.len() <= self.ahead => self.ahead,
                granted => granted,
            };
            if granted == 0 {
                match self.sink.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(_)) | None) => return Err(Stop::Sink(None)),
                    Poll::Pending => return Ok(()),
                }
            }
            self.ahead = 0;
            let chunk = self.intake.staged.pop(granted);
            self.stall.moved(chunk.len());
            if let Some(waiting) = &mut self.waiting {
                waiting.moved(chunk.len());
            }
            self.keep(chunk.as_slice());
            let last =
                self.intake.staged.is_empty() && matches!(self.intake.ended, Some(End::Clean));
            let payload = Payload::new(chunk, self.stream.as_ref());
            self.sink.send_data(payload, last).map_err(gone)?;
            self.finished = last;
        }
        if !self.finished {
            let end = self.intake.ended.take();
            if let Some(kept) = &mut self.kept {
                kept.end.clone_from(&end);
            }
            match end {
                Some(End::Trailers(trailers)) => self.sink.send_trailers(trailers).map_err(gone)?,
                Some(End::Clean) => self
                    .sink
                    .send_data(Payload::default(), true)
                    .map_err(gone)?,
                None => return Ok(()),
            }
            self.finished = true;
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        let Some(kept) = &mut self.kept else { return };
        if kept.bytes.len() + bytes.len() <= kept.limit && kept.booked.try_grow(bytes.len()) {
            kept.bytes.push(bytes);
        } else {
            self.kept = None;
        }
    }

    fn reset_by_far_side(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        match self.sink.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Some(reason),
            _ => None,
        }
    }
}
