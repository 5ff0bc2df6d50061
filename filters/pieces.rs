//! Bytes that are kept for longer than they need to pass, in buffers of their own.
//!
//! **Why.** A chunk is a slice of the buffer that a codec has read it into. Whoever keeps a byte of it keeps the whole buffer, with
//! the padding, the wrapping and the other streams' frames that lie in it: a thousand times the byte that he has counted. So what is
//! kept is copied, and what it costs is what it counts.
//!
//! **How.** A buffer grows with what comes, up to 64 KiB and not a byte beyond, which [`extend`] sees to; then there is another. So
//! little costs little, and nothing that is large is ever moved: beside the bytes themselves there is room for one more piece at most.

use bytes::{Bytes, BytesMut};

/// The most that lies in one buffer.
const PIECE: usize = 64 * 1024;

/// Bytes in their order.
#[derive(Debug, Default)]
pub struct Pieces {
    whole: Vec<Bytes>,
    /// Behind all others.
    last: BytesMut,
    len: usize,
}

// === impl Pieces ===

impl Pieces {
    /// How many they are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies more behind those that are there.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let room = PIECE - self.last.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            extend(&mut self.last, now, PIECE);
            bytes = later;
            if self.last.len() == PIECE {
                self.seal();
            }
        }
    }

    /// All that is there, to be read where it lies. More may be pushed behind it.
    pub fn sealed(&mut self) -> &[Bytes] {
        self.seal();
        &self.whole
    }

    /// Takes all that is there.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.seal();
        std::mem::take(self).whole
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.whole.push(self.last.split().freeze());
        }
    }
}

/// Puts `bytes` at the end of a buffer that will hold `most` and no more. By itself a buffer doubles, and so past its end: allocators
/// have room for 16 KiB, and the next size that they have is a quarter larger.
pub fn extend(buffer: &mut BytesMut, bytes: &[u8], most: usize) {
    let len = buffer.len() + bytes.len();
    if len > buffer.capacity() {
        let room = len.max((2 * buffer.capacity()).min(most));
        let mut larger = BytesMut::with_capacity(room);
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_holds_nothing_but_itself() {
        let read = Bytes::from(vec![7; 256 * 1024]);
        let mut pieces = Pieces::default();

        pieces.push(&read.slice(..1));
        pieces.push(&read.slice(1000..200_000));
        let kept = pieces.take();

        assert!(read.is_unique());
        let lengths: Vec<_> = kept.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [PIECE, PIECE, PIECE, 199_001 - 3 * PIECE]);
        assert_eq!(pieces.len(), 0);
    }

    #[test]
    fn little_costs_little() {
        let mut pieces = Pieces::default();
        for _ in 0..100 {
            pieces.push(b"x");
        }
        assert!(pieces.last.capacity() <= 256, "{pieces:?}");

        pieces.push(&[0; PIECE]);
        assert!(pieces.last.capacity() <= PIECE, "{pieces:?}");
    }

    #[test]
    fn no_buffer_grows_past_its_end() {
        for step in [1, 7, 1000, 1025, PIECE / 2 + 1] {
            let mut buffer = BytesMut::new();
            while buffer.len() + step <= PIECE {
                extend(&mut buffer, &vec![0; step], PIECE);
                assert!(buffer.capacity() <= PIECE, "{step}");
            }
        }
    }

    #[test]
    fn more_comes_behind_what_was_read() {
        let mut pieces = Pieces::default();

        pieces.push(b"abc");
        assert_eq!(pieces.sealed(), [&b"abc"[..]]);
        pieces.push(b"de");

        assert_eq!(pieces.sealed(), [&b"abc"[..], b"de"]);
        assert_eq!(pieces.len(), 5);
    }
}
