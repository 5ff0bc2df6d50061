//! The input of the targets that compare chunkings.

use arbitrary::Arbitrary;

/// Bytes, and how to cut them.
#[derive(Arbitrary, Debug)]
pub struct Chunked<'a> {
    sizes: [u8; 8],
    /// All bytes, as one chunk.
    pub bytes: &'a [u8],
}

impl<'a> Chunked<'a> {
    /// The bytes in chunks, whose sizes take turns. Some are empty.
    pub fn chunks(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.bytes;
        let mut sizes = self.sizes.into_iter().cycle();
        let mut turns = 0;
        std::iter::from_fn(move || {
            turns += 1;
            // Every eighth chunk has a byte at least, so that this ends.
            let least = usize::from(turns % 8 == 0);
            let size = usize::from(sizes.next()?).max(least).min(rest.len());
            if rest.is_empty() {
                return None;
            }
            let (chunk, after) = rest.split_at(size);
            rest = after;
            Some(chunk)
        })
    }
}
