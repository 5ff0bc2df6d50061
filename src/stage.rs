//! What was taken from a stream and waits for the far side.
//!
//! Large chunks wait as they are. Small ones that queue up are copied together: one frame goes out instead of many, and the
//! read buffers that a few bytes each would keep alive are let go. A stage is bounded by its stream's window, since the
//! credit of what it holds has not been given back.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use thalweg_filters::{Chunk, body::Credit};

/// Chunks up to this size are copied together when they queue up; a larger one is cheaper to send as it is.
const SMALL: usize = 1024;

/// The most that is put together into one piece.
const MERGED: usize = 16 * 1024;

/// What was taken from the source and not yet granted by the far side.
#[derive(Default)]
pub(crate) struct Stage {
    chunks: VecDeque<Chunk>,
    /// Small chunks put together, behind all others.
    merged: BytesMut,
    merged_credit: Credit,
    len: usize,
    /// The front is a few bytes in the middle of somebody's read buffer.
    pins: bool,
}

// === impl Stage ===

impl Stage {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, chunk: Chunk) {
        if chunk.is_empty() {
            // It would leave as an empty frame, and some peers count those as an attack.
            return;
        }
        let first = self.len == 0;
        self.len += chunk.len();
        if first || chunk.len() > SMALL {
            self.seal();
            self.pins = first && chunk.len() <= SMALL;
            self.chunks.push_back(chunk);
            return;
        }
        if self.merged.len() + chunk.len() > MERGED {
            self.seal();
        }
        let (bytes, credit) = chunk.into_parts();
        self.merged.extend_from_slice(&bytes);
        self.merged_credit.absorb(credit);
    }

    /// Puts bytes before all others, whose credit was given back before.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.pins = false;
            self.chunks.push_front(Chunk::from(bytes));
        }
    }

    /// Queues what was put together behind the other chunks.
    fn seal(&mut self) {
        if !self.merged.is_empty() {
            let credit = std::mem::take(&mut self.merged_credit);
            self.chunks
                .push_back(Chunk::from_parts(self.merged.split().freeze(), credit));
        }
    }

    /// Takes up to `most` bytes from the front.
    pub(crate) fn pop(&mut self, most: usize) -> Chunk {
        if self.chunks.is_empty() {
            self.seal();
        }
        let front = self
            .chunks
            .front_mut()
            .expect("`len` counts the bytes of the chunks");
        let chunk = if front.len() <= most {
            self.chunks.pop_front().unwrap_or_default()
        } else {
            front.split_to(most)
        };
        self.len -= chunk.len();
        self.pins &= !chunk.is_empty()
            && self
                .chunks
                .front()
                .is_some_and(|front| front.len() <= SMALL);
        chunk
    }

    /// A few bytes that have to wait must not hold the whole read buffer that they lie in.
    pub(crate) fn unpin_small(&mut self) {
        if std::mem::take(&mut self.pins)
            && let Some(front) = self.chunks.front_mut()
        {
            let (bytes, credit) = std::mem::take(front).into_parts();
            *front = Chunk::from_parts(Bytes::copy_from_slice(&bytes), credit);
        }
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::body::Ledger;

    use super::*;

    fn staged(sizes: &[usize]) -> (std::sync::Arc<Ledger>, Stage) {
        let ledger = Ledger::window(usize::MAX);
        let mut stage = Stage::default();
        for (index, size) in sizes.iter().enumerate() {
            stage.push(ledger.take(Bytes::from(vec![u8::try_from(index).unwrap(); *size])));
        }
        (ledger, stage)
    }

    fn pop_all(stage: &mut Stage, most: usize) -> Vec<Chunk> {
        std::iter::from_fn(|| (!stage.is_empty()).then(|| stage.pop(most))).collect()
    }

    #[test]
    fn small_chunks_leave_together_and_in_order() {
        let (ledger, mut stage) = staged(&[10; 100]);

        let chunks = pop_all(&mut stage, usize::MAX);

        let bytes: Vec<u8> = chunks.iter().flat_map(Chunk::as_slice).copied().collect();
        let expected: Vec<u8> = (0..100).flat_map(|index| [index; 10]).collect();
        assert_eq!((chunks.len(), bytes), (2, expected));
        assert_eq!(ledger.held(), 1000);
        drop(chunks);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn large_chunks_are_not_copied() {
        let large = Bytes::from(vec![1; 64 * 1024]);
        let mut stage = Stage::default();

        stage.push(Chunk::from(Bytes::from_static(b"small")));
        stage.push(Chunk::from(Bytes::from_static(b"small")));
        stage.push(Chunk::from(large.clone()));
        let chunks = pop_all(&mut stage, usize::MAX);

        assert_eq!(
            chunks.iter().map(Chunk::len).collect::<Vec<_>>(),
            [5, 5, 64 * 1024]
        );
        assert_eq!(chunks[2].as_slice().as_ptr(), large.as_ptr());
    }

    #[test]
    fn grant_splits_a_chunk_and_its_credit() {
        let (ledger, mut stage) = staged(&[5000]);

        let first = stage.pop(2000);
        assert_eq!((first.len(), stage.len()), (2000, 3000));
        drop(first);

        assert_eq!(ledger.held(), 3000);
    }

    #[test]
    fn waiting_bytes_let_go_of_the_read_buffer() {
        let buffer = Bytes::from(vec![0; 16 * 1024]);
        let mut stage = Stage::default();
        stage.push(Chunk::from(buffer.slice(..10)));

        stage.unpin_small();
        let waiting = stage.pop(10);

        assert_ne!(waiting.as_slice().as_ptr(), buffer.as_ptr());
    }
}
