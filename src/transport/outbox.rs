//! What a codec has written and the socket has not taken yet.
//!
//! Small pieces are copied together. A large payload is kept where it lies: the codec shows only a slice of it, but the slice
//! is part of a [`Payload`], which has just said so, and whose bytes can be held by another handle. So many frames leave in
//! one vectored write, and none of their payload is copied.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use thalweg_filters::{Chunk, StreamContext, stream::Booking};

use super::{lent::Lent, wire::Wire};

/// What has gathered is written once it is this much, without waiting for the end of the turn. More is not taken from the
/// codec until it has gone, so a stuck connection holds this and one frame.
const WRITE_AT: usize = 128 * 1024;

/// A payload from this size on is kept and not copied.
const KEEP: usize = 4 * 1024;

/// Pieces in one write.
const MOST_SLICES: usize = 64;

/// Bytes on their way into an HTTP/2 stream, booked until the codec has written them.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    bytes: Bytes,
    _booked: Booking,
}

thread_local! {
    /// The payload that a codec has looked at last: the one that it is about to write.
    static SHOWN: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

/// What a codec has written and the socket has not taken yet.
#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Piece>,
    copied: Lent,
    len: usize,
    written: u64,
    stuck: bool,
}

enum Piece {
    /// So many bytes of those that were copied.
    Copied(usize),
    Kept(Bytes),
}

// === impl Payload ===

impl Payload {
    /// Bytes whose credit returns, since they are on their way. The stream that held them still does, or else `stream` does.
    pub(crate) fn new(chunk: Chunk, stream: Option<&StreamContext>) -> Self {
        let (bytes, credit) = chunk.into_parts();
        let booked = (credit.hand_over()).or_else(|| Some(stream?.book(bytes.len())));
        Self {
            bytes,
            _booked: booked.unwrap_or_default(),
        }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.bytes.len() >= KEEP {
            SHOWN.with_borrow_mut(|shown| shown.clone_from(&self.bytes));
        }
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// The owner of a slice that a codec writes, if it is a payload's.
fn owner(slice: &[u8]) -> Option<Bytes> {
    SHOWN.with_borrow(|shown| {
        let (whole, part) = (shown.as_ptr_range(), slice.as_ptr_range());
        (whole.start <= part.start && part.end <= whole.end).then(|| shown.slice_ref(slice))
    })
}

// === impl Outbox ===

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that the wire has taken so far, or `None` while it is not seen stuck.
    pub(super) fn progress(&self) -> Option<u64> {
        self.stuck.then_some(self.written)
    }

    /// Writes past the outbox, for a codec that gathers by itself.
    pub(super) fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let passed = wire.poll_write(cx, slices);
        self.stuck = passed.is_pending();
        if let Poll::Ready(Ok(count)) = &passed {
            self.written += *count as u64;
        }
        passed
    }

    /// Takes what a codec writes, all of it, unless the socket is stuck with what was taken before.
    pub(super) fn poll_push(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.len >= WRITE_AT {
            ready!(self.poll_drain(cx, wire))?;
        }
        let before = self.len;
        for slice in slices {
            self.push(slice);
        }
        Poll::Ready(Ok(self.len - before))
    }

    fn push(&mut self, slice: &[u8]) {
        self.len += slice.len();
        if slice.len() >= KEEP
            && let Some(kept) = owner(slice)
        {
            self.pieces.push_back(Piece::Kept(kept));
            return;
        }
        self.copied.push(slice);
        match self.pieces.back_mut() {
            Some(Piece::Copied(len)) => *len += slice.len(),
            _ => self.pieces.push_back(Piece::Copied(slice.len())),
        }
    }

    /// Writes all; pending while the socket takes no more.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
    ) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let mut copied = self.copied.filled();
            let count = self.pieces.len().min(MOST_SLICES);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(match piece {
                    Piece::Copied(len) => {
                        let (front, rest) = copied.split_at(*len);
                        copied = rest;
                        front
                    }
                    Piece::Kept(bytes) => bytes,
                });
            }
            let written = wire.poll_write(cx, &slices[..count]);
            self.stuck = written.is_pending();
            match written {
                Poll::Pending => {
                    self.copied.shrink();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => self.take(written?),
            }
        }
        let flushed = wire.poll_flush(cx);
        self.stuck = flushed.is_pending();
        flushed
    }

    fn take(&mut self, written: usize) {
        self.written += written as u64;
        self.len -= written;
        let mut left = written;
        while left > 0 {
            let Some(front) = self.pieces.front_mut() else {
                return;
            };
            let (taken, whole) = match front {
                Piece::Copied(len) => {
                    let taken = left.min(*len);
                    *len -= taken;
                    self.copied.take(taken);
                    (taken, *len == 0)
                }
                Piece::Kept(bytes) => {
                    let taken = left.min(bytes.len());
                    bytes.advance(taken);
                    (taken, bytes.is_empty())
                }
            };
            left -= taken;
            if whole {
                self.pieces.pop_front();
            }
        }
        if self.len == 0 {
            // An idle connection owns nothing.
            self.pieces = VecDeque::new();
            SHOWN.with_borrow_mut(Bytes::clear);
        }
    }
}
