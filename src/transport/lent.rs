//! Buffers that belong to the worker and are lent for a turn.
//!
//! A large buffer makes few system calls of many, but thousands of idle connections cannot each own one. So a connection
//! borrows it when there are bytes to put in, and gives it back when they are gone.

use std::cell::RefCell;

/// Size of a lent buffer: the most that one read takes.
const BUFFER: usize = 256 * 1024;

/// How many buffers a worker keeps for the next turn. More than two are needed only while sockets are stuck.
const BUFFERS_KEPT: usize = 8;

thread_local! {
    /// The worker's buffers. Each is full length, so that lending one clears nothing.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes in a buffer that is borrowed from the worker while there are any.
#[derive(Default)]
pub(super) struct Lent {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

// === impl Lent ===

impl Lent {
    pub(super) fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Fills the room behind what is filled, as far as `fill` does, and says how far that was.
    pub(super) fn fill_with<R>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> (usize, R) {
        self.make_room(1);
        let (count, result) = fill(&mut self.buffer[self.end..]);
        self.end += count;
        self.return_if_empty();
        (count, result)
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Makes sure of room behind what is filled, which is always far less than a whole buffer.
    fn make_room(&mut self, wanted: usize) {
        if self.buffer.len() - self.end >= wanted {
            return;
        }
        let mut buffer = BUFFERS
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| vec![0; BUFFER]);
        let filled = self.filled().len();
        buffer[..filled].copy_from_slice(self.filled());
        give_back(std::mem::replace(&mut self.buffer, buffer));
        (self.start, self.end) = (0, filled);
    }

    pub(super) fn take(&mut self, count: usize) {
        self.start += count;
        self.return_if_empty();
    }

    fn return_if_empty(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            give_back(std::mem::take(&mut self.buffer));
        }
    }

    /// Keeps just what is filled, and lets the buffer go to others: for bytes that are stuck.
    pub(super) fn shrink(&mut self) {
        if self.buffer.len() == BUFFER {
            let kept = self.filled().to_vec();
            (self.start, self.end) = (0, kept.len());
            give_back(std::mem::replace(&mut self.buffer, kept));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buffer));
    }
}

fn give_back(buffer: Vec<u8>) {
    if buffer.len() == BUFFER {
        // Fails only while the thread ends, when nobody borrows any more.
        let _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < BUFFERS_KEPT {
                buffers.push(buffer);
            }
        });
    }
}
