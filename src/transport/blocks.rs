//! Header blocks that an HTTP/2 peer has begun and not ended.
//!
//! **Why.** The codec keeps a block to itself until it is whole, and while it is not, nothing else may come on its connection (RFC 9113,
//! section 6.10): no answer to a PING, and no other stream. Somebody has to see how long that lasts.
//!
//! **How.** The heads of frames are looked at as the codec takes them, nine bytes each; payload is skipped.

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const HEAD: usize = 9;

/// Follows what one peer sends.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Bytes of the present frame's payload that are to come.
    left: usize,
    /// What has come of the next frame's head.
    head: [u8; HEAD],
    filled: usize,
    open: bool,
    /// The present frame is the last of its block.
    ends: bool,
    /// Blocks that have begun.
    begun: u64,
}

impl Blocks {
    /// Of a peer that says something else in its first bytes.
    pub(super) fn behind(first: usize) -> Self {
        Self {
            left: first,
            head: [0; HEAD],
            filled: 0,
            open: false,
            ends: false,
            begun: 0,
        }
    }

    /// The number of the block that is under way.
    pub(super) fn open(&self) -> Option<u64> {
        self.open.then_some(self.begun)
    }

    /// Looks at the next bytes.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.left.min(bytes.len());
            bytes = &bytes[skipped..];
            self.left -= skipped;
            if self.left > 0 {
                return;
            }
            if std::mem::take(&mut self.ends) {
                self.open = false;
            }
            let part = bytes.len().min(HEAD - self.filled);
            self.head[self.filled..self.filled + part].copy_from_slice(&bytes[..part]);
            self.filled += part;
            bytes = &bytes[part..];
            if self.filled < HEAD {
                return;
            }
            self.filled = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
            if matches!(kind, HEADERS | CONTINUATION) {
                self.begun += u64::from(!self.open);
                self.open = true;
                self.ends = flags & END_HEADERS != 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, len, kind, flags, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(HEADERS, len.into()));
        frame
    }

    #[test]
    fn block_is_open_from_its_first_head_to_its_last_byte() {
        // What is sent, and whether a block is open behind it.
        let frames = [
            (b"preface".to_vec(), None),
            (frame(0, END_HEADERS, 20), None),
            (frame(HEADERS, END_HEADERS, 20), None),
            (frame(HEADERS, 0, 3), Some(2)),
            (frame(CONTINUATION, 0, 0), Some(2)),
            (frame(CONTINUATION, END_HEADERS, 0), None),
            (frame(HEADERS, 0, 0), Some(3)),
            (frame(CONTINUATION, END_HEADERS, 9), None),
            (frame(6, 0, 8), None),
        ];
        for piece in 1..40 {
            let mut blocks = Blocks::behind(7);
            for (bytes, open) in &frames {
                for piece in bytes.chunks(piece) {
                    blocks.follow(piece);
                }
                assert_eq!(blocks.open(), *open, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn frame_that_is_not_all_there_is_open() {
        let mut blocks = Blocks::behind(0);
        let frame = frame(HEADERS, END_HEADERS, 5);

        blocks.follow(&frame[..8]);
        assert_eq!(blocks.open(), None);
        blocks.follow(&frame[8..13]);
        assert_eq!(blocks.open(), Some(1));
        blocks.follow(&frame[13..]);
        assert_eq!(blocks.open(), None);
    }
}
