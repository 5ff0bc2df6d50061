//! What was taken from a stream and waits for the far side.
//!
//! **Why.** A chunk is a slice of the buffer that a codec has read it into, and keeps all of that for as long as it lies here: sixteen times
//! its own bytes and more, if other streams' frames lay around it. A stage is bounded by its stream's window, since the credit of
//! what it holds has not been given back; but a window counts payload, and not memory.
//!
//! **How.** What leaves at once leaves as it came; only small chunks behind others are copied together, so that one frame goes out instead of
//! many. Once something has to wait ([`Stage::wait`]), all of it is copied together, and so is what comes behind it, but for
//! chunks that are large enough to be most of their buffers.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use thalweg_filters::{Chunk, body::Credit, pieces};

/// Chunks up to this size are copied together when they queue up; a larger one is cheaper to send as it is.
const SMALL: usize = 1024;

/// Chunks from this size on stay as they are while they wait. It is the frame that most peers send, and such a one has a buffer of about
/// its own size.
const LARGE: usize = 16 * 1024;

/// The most that is put together into one piece.
const MERGED: usize = 16 * 1024;

/// What was taken from the source and not yet granted by the far side.
#[derive(Default)]
pub(crate) struct Stage {
    /// Before all others, if it is not empty. Most streams never have two chunks here, and need no list.
    first: Chunk,
    chunks: VecDeque<Chunk>,
    /// Chunks put together, behind all others.
    merged: BytesMut,
    merged_credit: Credit,
    len: usize,
    /// The far side takes no more for now, and nothing here pins what is not its own.
    waiting: bool,
    /// How long the front was before parts of it left; zero if it is whole.
    front_was: usize,
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
        let as_it_is = if self.waiting {
            chunk.len() >= LARGE
        } else {
            chunk.len() > SMALL || self.len == 0
        };
        self.len += chunk.len();
        if !as_it_is {
            self.merge(chunk);
        } else if self.len == chunk.len() {
            self.first = chunk;
        } else {
            self.seal();
            self.chunks.push_back(chunk);
        }
    }

    /// Puts bytes before all others, whose credit was given back before.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.front_was = 0;
            self.list_first();
            self.first = Chunk::from(bytes);
        }
    }

    fn list_first(&mut self) {
        if !self.first.is_empty() {
            self.chunks.push_front(std::mem::take(&mut self.first));
        }
    }

    fn merge(&mut self, mut chunk: Chunk) {
        while !chunk.is_empty() {
            let room = MERGED - self.merged.len();
            let (bytes, credit) = chunk.split_to(chunk.len().min(room)).into_parts();
            pieces::extend(&mut self.merged, &bytes, MERGED);
            self.merged_credit.absorb(credit);
            if self.merged.len() == MERGED {
                self.seal();
            }
        }
    }

    /// What was put together.
    fn take_merged(&mut self) -> Chunk {
        let credit = std::mem::take(&mut self.merged_credit);
        Chunk::from_parts(self.merged.split().freeze(), credit)
    }

    /// Queues what was put together behind the other chunks.
    fn seal(&mut self) {
        if !self.merged.is_empty() {
            let merged = self.take_merged();
            self.chunks.push_back(merged);
        }
    }

    /// Takes up to `most` bytes from the front.
    pub(crate) fn pop(&mut self, most: usize) -> Chunk {
        if self.first.is_empty() {
            let next = self.chunks.pop_front();
            self.first = next.unwrap_or_else(|| self.take_merged());
        }
        let chunk = if self.first.len() <= most {
            self.front_was = 0;
            std::mem::take(&mut self.first)
        } else {
            self.front_was = self.front_was.max(self.first.len());
            self.first.split_to(most)
        };
        self.len -= chunk.len();
        self.waiting &= self.len > 0;
        chunk
    }

    /// The far side takes no more for now: what is here lets go of the buffers that it was read into.
    pub(crate) fn wait(&mut self) {
        if self.len == 0 {
            return;
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.seal();
            self.list_first();
            self.front_was = 0;
            self.len = 0;
            for chunk in std::mem::take(&mut self.chunks) {
                self.push(chunk);
            }
        } else if self.front_was >= 2 * self.first.len() && !self.first.is_empty() {
            // What is left of it holds the whole. No byte is copied so more often than it can be halved.
            self.front_was = 0;
            let (bytes, credit) = std::mem::take(&mut self.first).into_parts();
            self.first = Chunk::from_parts(Bytes::copy_from_slice(&bytes), credit);
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

    /// Chunks as a codec makes them, each in the middle of a buffer that is far larger, and the buffers.
    fn read(sizes: &[usize]) -> (Stage, Vec<Bytes>) {
        let mut stage = Stage::default();
        let buffers: Vec<_> = (sizes.iter())
            .map(|size| {
                let buffer = Bytes::from(vec![5; 256 * 1024]);
                stage.push(Chunk::from(buffer.slice(100..100 + size)));
                buffer
            })
            .collect();
        (stage, buffers)
    }

    #[test]
    fn what_waits_lets_go_of_the_buffers_it_was_read_into() {
        for sizes in [&[10][..], &[1025], &[1025; 64], &[10, 8000, 10, 16_383]] {
            let (mut stage, buffers) = read(sizes);

            stage.wait();

            assert!(buffers.iter().all(Bytes::is_unique), "{sizes:?}");
            let lengths = pop_all(&mut stage, usize::MAX)
                .into_iter()
                .map(|chunk| chunk.len());
            assert_eq!(lengths.sum::<usize>(), sizes.iter().sum::<usize>());
        }
    }

    #[test]
    fn what_comes_behind_what_waits_is_copied_with_it() {
        let (mut stage, _) = read(&[10]);
        stage.wait();
        let buffer = Bytes::from(vec![0; 256 * 1024]);

        stage.push(Chunk::from(buffer.slice(..8000)));
        assert!(buffer.is_unique());
        pop_all(&mut stage, usize::MAX);
        stage.push(Chunk::from(buffer.slice(..8000)));

        assert!(!buffer.is_unique(), "it would leave at once");
    }

    #[test]
    fn large_chunk_waits_as_it_is_until_little_of_it_is_left() {
        let large = Bytes::from(vec![1; 64 * 1024]);
        let mut stage = Stage::default();
        stage.push(Chunk::from(large.clone()));

        stage.wait();
        assert!(!large.is_unique());
        drop(stage.pop(30 * 1024));
        stage.wait();
        assert!(!large.is_unique());
        drop(stage.pop(3 * 1024));
        stage.wait();

        assert!(large.is_unique());
        assert_eq!(stage.pop(usize::MAX).len(), 31 * 1024);
    }

    #[test]
    fn order_and_credit_outlive_the_copying() {
        let sizes = [10, 2000, 20_000, 10, 10, 16_000, 1025];
        let (ledger, mut stage) = staged(&sizes);
        let expected: Vec<u8> = (0..)
            .zip(sizes)
            .flat_map(|(index, size)| vec![index; size])
            .collect();

        stage.wait();
        let chunks = pop_all(&mut stage, 7000);

        let bytes: Vec<u8> = chunks.iter().flat_map(Chunk::as_slice).copied().collect();
        assert_eq!(bytes, expected);
        assert_eq!(ledger.held(), expected.len());
        drop(chunks);
        assert_eq!(ledger.held(), 0);
    }
}
