//! Finds where gRPC messages begin and end, and takes nothing.
//!
//! **Why.** A proxy that counts, times or judges messages must know their boundaries, but HTTP
//! cuts a body into chunks wherever it likes: a chunk may hold a thousand messages, or one byte of
//! the head of one. Collecting messages to look at them would cost memory by the sender's choice.
//!
//! **How.** Each message is a head of five bytes, then its payload:
//!
//! ```text
//! | flag: 0 or 1 (compressed) | length: u32, big endian | payload: `length` bytes |
//! ```
//!
//! The inspector remembers only the part of a head that has come and how much payload is due.
//! Payload is stepped over by arithmetic, so its size costs nothing.
//!
//! ```
//! use thalweg_proto::frame::{Event, FrameInspector, Head};
//!
//! let mut inspector = FrameInspector::new();
//! assert_eq!(inspector.inspect(&[0, 0, 0]).count(), 0); // not yet a whole head
//!
//! let events: Result<Vec<_>, _> = inspector.inspect(&[0, 2, b'h', b'i']).collect();
//! let head = Head { compressed: false, length: 2 };
//! assert_eq!(events, Ok(vec![Event::Start(head), Event::Payload { start: 2, end: 4 }, Event::End]));
//! ```

use std::{fmt, iter::FusedIterator};

/// The flag and the length that stand before every message.
const HEAD_SIZE: usize = 5;

/// Reads the chunks of one gRPC body and reports the boundaries of its messages.
#[derive(Clone, Debug, Default)]
pub struct FrameInspector {
    messages: u64,
    /// Payload of the current message that is still to come.
    left: u32,
    /// The head of the current message. A bad flag stays here for good: that is what makes the
    /// inspector stay failed.
    head: [u8; HEAD_SIZE],
    /// How much of `head` has come: nothing between messages, all of it within a payload.
    have: u8,
}

// One lives in every direction of every inspected stream.
const _: () = assert!(size_of::<FrameInspector>() <= 24);

/// What the head of a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The payload is compressed, as the header `grpc-encoding` says.
    pub compressed: bool,
    /// Size of the payload in bytes.
    pub length: u32,
}

/// One thing seen in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The head of a message is whole.
    Start(Head),
    /// `chunk[start..end]` is payload of the current message. Never empty.
    Payload {
        /// Index of the first byte in the given chunk.
        start: usize,
        /// Index after the last byte in the given chunk.
        end: usize,
    },
    /// The current message is whole.
    End,
}

/// Why a body is no gRPC body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A message began with a byte that is neither 0 nor 1.
    BadFlag(u8),
}

/// The events of one chunk; see [`FrameInspector::inspect`].
#[derive(Debug)]
pub struct Events<'a> {
    inspector: &'a mut FrameInspector,
    chunk: &'a [u8],
    at: usize,
    failed: bool,
}

// === impl FrameInspector ===

impl FrameInspector {
    /// An inspector for a body of which nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports what is in the next chunk of the body.
    ///
    /// The events end after the first error. Dropping them early loses events, but never the
    /// place: the rest of the chunk is still accounted for.
    pub fn inspect<'a>(&'a mut self, chunk: &'a [u8]) -> Events<'a> {
        Events {
            inspector: self,
            chunk,
            at: 0,
            failed: false,
        }
    }

    /// Takes the next chunk of the body and says how many messages ended in it.
    ///
    /// After an error, [`messages`](Self::messages) still counts those that ended before it.
    pub fn count(&mut self, chunk: &[u8]) -> Result<u64, FrameError> {
        let before = self.messages;
        let mut at = 0;
        loop {
            if self.is_at_boundary() {
                at += self.pass_whole_messages(&chunk[at..]);
            }
            match self.step(chunk, &mut at) {
                Some(event) => event?,
                None => return Ok(self.messages - before),
            };
        }
    }

    /// Takes the next chunk of the body up to the end of the current message, and says how many bytes that is: none between
    /// messages, and all of them if the message goes on behind the chunk.
    pub fn finish(&mut self, chunk: &[u8]) -> Result<usize, FrameError> {
        let mut at = 0;
        while !self.is_at_boundary() {
            match self.step(chunk, &mut at) {
                Some(event) => event?,
                None => break,
            };
        }
        Ok(at)
    }

    /// Whole messages seen so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the body may end here: false within a head or a payload, and after an error.
    pub fn is_at_boundary(&self) -> bool {
        self.have == 0
    }

    /// Counts the whole, sound messages that `chunk` begins with and returns their size.
    ///
    /// Small messages come by the hundred in a chunk; this is several times faster than `step`,
    /// which deals with whatever follows them.
    fn pass_whole_messages(&mut self, chunk: &[u8]) -> usize {
        let mut rest = chunk;
        while let Some((&[0..=1, ref length @ ..], after)) = rest.split_first_chunk::<HEAD_SIZE>() {
            let Some(after) = after.get(u32::from_be_bytes(*length) as usize..) else {
                break;
            };
            self.messages += 1;
            rest = after;
        }
        chunk.len() - rest.len()
    }

    /// Moves `at` to the next event of `chunk`; `None` when the chunk holds no more.
    #[inline]
    fn step(&mut self, chunk: &[u8], at: &mut usize) -> Option<Result<Event, FrameError>> {
        let rest = &chunk[*at..];
        let have = usize::from(self.have);

        if have == HEAD_SIZE {
            if self.left == 0 {
                self.have = 0;
                self.messages += 1;
                return Some(Ok(Event::End));
            }
            if rest.is_empty() {
                return None;
            }
            let taken = rest.len().min(self.left as usize);
            let start = *at;
            *at += taken;
            self.left -= taken as u32; // it is at most `left`
            return Some(Ok(Event::Payload { start, end: *at }));
        }

        // Nearly every head lies in one chunk: a copy of known size, and no loop.
        let taken = match rest.first_chunk() {
            Some(head) if have == 0 => {
                self.head = *head;
                HEAD_SIZE
            }
            _ => {
                let taken = rest.len().min(HEAD_SIZE - have);
                self.head[have..have + taken].copy_from_slice(&rest[..taken]);
                taken
            }
        };

        let [flag, length @ ..] = self.head;
        if flag > 1 {
            self.have = 1;
            return Some(Err(FrameError::BadFlag(flag)));
        }
        *at += taken;
        self.have += taken as u8; // at most 5
        if usize::from(self.have) < HEAD_SIZE {
            return None;
        }
        self.left = u32::from_be_bytes(length);
        Some(Ok(Event::Start(Head {
            compressed: flag == 1,
            length: self.left,
        })))
    }
}

// === impl Events ===

impl Iterator for Events<'_> {
    type Item = Result<Event, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let event = self.inspector.step(self.chunk, &mut self.at);
        self.failed = matches!(event, Some(Err(_)));
        event
    }
}

impl FusedIterator for Events<'_> {}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        while let Some(Ok(_)) = self.inspector.step(self.chunk, &mut self.at) {}
    }
}

// === impl FrameError ===

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFlag(flag) => {
                write!(f, "a gRPC message begins with flag {flag}, expected 0 or 1")
            }
        }
    }
}

impl std::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(inspector: &mut FrameInspector, chunk: &[u8]) -> Vec<Result<Event, FrameError>> {
        inspector.inspect(chunk).collect()
    }

    fn start(length: u32) -> Result<Event, FrameError> {
        Ok(Event::Start(Head {
            compressed: false,
            length,
        }))
    }

    #[test]
    fn finish_takes_no_more_than_the_current_message() {
        let mut inspector = FrameInspector::new();
        assert_eq!(inspector.finish(&[0, 0, 0, 0, 1]), Ok(0), "none has begun");

        assert_eq!(inspector.count(&[0, 0, 0]), Ok(0));
        assert_eq!(inspector.finish(&[0]), Ok(1), "within a head");
        assert_eq!(inspector.finish(&[3, b'a']), Ok(2), "within a payload");
        assert_eq!(inspector.finish(b"bcdef"), Ok(2));

        assert!(inspector.is_at_boundary());
        assert_eq!(inspector.messages(), 1);
    }

    #[test]
    fn finish_ends_a_message_without_payload_with_its_head() {
        let mut inspector = FrameInspector::new();
        assert_eq!(inspector.count(&[0, 0, 0, 0]), Ok(0));

        assert_eq!(inspector.finish(&[0, 1, 2]), Ok(1));
        assert!(inspector.is_at_boundary());
    }

    #[test]
    fn body_that_is_no_grpc_body_has_no_boundary_to_finish_at() {
        let mut inspector = FrameInspector::new();
        assert_eq!(inspector.count(b"<html>"), Err(FrameError::BadFlag(b'<')));

        assert_eq!(inspector.finish(b"more"), Err(FrameError::BadFlag(b'<')));
        assert!(!inspector.is_at_boundary());
    }

    #[test]
    fn zero_length_message_starts_and_ends() {
        let mut inspector = FrameInspector::new();

        let seen = events(&mut inspector, &[0; 10]);

        let one = [start(0), Ok(Event::End)];
        assert_eq!(seen, [one, one].concat());
        assert_eq!(inspector.messages(), 2);
        assert!(inspector.is_at_boundary());
    }

    #[test]
    fn message_in_single_bytes_is_one_message() {
        let mut inspector = FrameInspector::new();

        let mut seen = Vec::new();
        for byte in [0, 0, 0, 0, 1, b'x'] {
            seen.extend(events(&mut inspector, &[byte]));
        }

        let payload = Ok(Event::Payload { start: 0, end: 1 });
        assert_eq!(seen, [start(1), payload, Ok(Event::End)]);
    }

    #[test]
    fn boundary_is_neither_in_a_head_nor_in_a_payload() {
        let mut inspector = FrameInspector::new();

        let at_boundary: Vec<bool> = [0, 0, 0, 0, 1, b'x', 0]
            .iter()
            .map(|byte| {
                inspector.count(&[*byte]).unwrap();
                inspector.is_at_boundary()
            })
            .collect();

        assert_eq!(
            at_boundary,
            [false, false, false, false, false, true, false]
        );
    }

    #[test]
    fn compressed_flag_is_reported() {
        let mut inspector = FrameInspector::new();

        let first = inspector.inspect(&[1, 0, 0, 0, 7]).next();

        let head = Head {
            compressed: true,
            length: 7,
        };
        assert_eq!(first, Some(Ok(Event::Start(head))));
    }

    #[test]
    fn longest_message_costs_no_memory_and_no_overflow() {
        let mut inspector = FrameInspector::new();
        let chunk = vec![0xff; 1 << 20];

        inspector.count(&[0, 0xff, 0xff, 0xff, 0xff]).unwrap();
        for _ in 0..4095 {
            assert_eq!(inspector.count(&chunk), Ok(0));
        }

        // One byte short of 4 GiB: the last byte of the last chunk is already the next head.
        assert_eq!(inspector.count(&chunk), Err(FrameError::BadFlag(0xff)));
        assert_eq!(inspector.messages(), 1);
    }

    #[test]
    fn bad_flag_is_refused_at_its_first_byte_and_for_ever() {
        let mut inspector = FrameInspector::new();
        let bad = Err(FrameError::BadFlag(b'G'));

        let seen = events(&mut inspector, b"\0\0\0\0\0GET / HTTP/1.1");

        assert_eq!(seen, [start(0), Ok(Event::End), bad]);
        assert_eq!(events(&mut inspector, &[0; 5]), [bad]);
        assert_eq!(events(&mut inspector, &[]), [bad]);
        assert_eq!(inspector.count(&[0; 5]), Err(FrameError::BadFlag(b'G')));
        assert_eq!(inspector.messages(), 1);
        assert!(!inspector.is_at_boundary());
    }

    #[test]
    fn events_dropped_early_keep_the_place() {
        let mut inspector = FrameInspector::new();

        drop(inspector.inspect(&[0, 0, 0, 0, 1, b'x', 0, 0]));

        assert_eq!(inspector.messages(), 1);
        assert_eq!(inspector.count(&[0, 0, 1, b'y']), Ok(1));
    }

    #[test]
    fn count_says_what_ended_in_this_chunk() {
        let mut inspector = FrameInspector::new();

        assert_eq!(inspector.count(&[0, 0, 0, 0, 2, b'a']), Ok(0));
        assert_eq!(inspector.count(&[b'b', 0, 0, 0, 0, 0, 0]), Ok(2));
        assert_eq!(inspector.count(&[]), Ok(0));
        assert_eq!(inspector.messages(), 2);
    }
}
