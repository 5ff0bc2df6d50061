//! Metadata of calls, counted before anybody collects them.
//!
//! **Why.** On the wire an entry takes two bytes, and in a map a hundred beside its text. So a message of a bounded size is not
//! bounded in memory, and its entries are counted while they are still bytes.

use std::fmt;

use crate::field::{FieldError, FieldEvent, FieldPath, FieldPaths, FieldValue, FieldWalker};

/// How much metadata may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Bytes of all keys and values together.
    pub bytes: usize,
}

/// A message that has metadata in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// [`FirstRequest`](super::FirstRequest).
    FirstRequest,
    /// [`InvokeBindingRequest`](super::InvokeBindingRequest).
    UnaryRequest,
    /// [`InitialResponse`](super::InitialResponse).
    InitialResponse,
    /// [`InvokeBindingResponse`](super::InvokeBindingResponse), and a component's [`InvokeResponse`](super::InvokeResponse).
    UnaryResponse,
}

/// Why metadata are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// There are too many entries.
    Entries,
    /// They have too many bytes together.
    Bytes,
    /// They lie in what is no message.
    Malformed(FieldError),
}

/// How much is read before the count is looked at again.
const STEP: usize = 1024;

// === impl Bounds ===

impl Bounds {
    /// Makes room for one more entry, if there is any.
    pub fn take(&mut self, bytes: usize) -> Result<(), Excess> {
        self.entries = self.entries.checked_sub(1).ok_or(Excess::Entries)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Excess::Bytes)?;
        Ok(())
    }

    /// Whether the metadata of an encoded message keep within the bounds. Reads no further than to where they do not.
    pub fn check(mut self, message: &[u8], place: Place) -> Result<(), Excess> {
        let paths = FieldPaths::new(&[place.path()]).expect("it is one path");
        let mut walker = FieldWalker::new(paths);
        let mut taken = Ok(());
        for part in message.chunks(STEP) {
            let walked = walker.walk(part, |FieldEvent { value, .. }| {
                if let FieldValue::Start { length } = value
                    && taken.is_ok()
                {
                    taken = self.take(usize::try_from(length).unwrap_or(usize::MAX));
                }
            });
            walked.map_err(Excess::Malformed)?;
            taken?;
        }
        walker.finish().map_err(Excess::Malformed)
    }
}

// === impl Place ===

impl Place {
    fn path(self) -> FieldPath {
        FieldPath::new(match self {
            Self::FirstRequest => &[1, 3],
            Self::UnaryRequest => &[3],
            Self::InitialResponse => &[1],
            Self::UnaryResponse => &[2],
        })
    }
}

// === impl Excess ===

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries => f.write_str("there are too many metadata"),
            Self::Bytes => f.write_str("the metadata have too many bytes"),
            Self::Malformed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Excess {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::{FirstRequest, InvokeBindingRequest, Message};

    const BOUNDS: Bounds = Bounds {
        entries: 2,
        bytes: 20,
    };

    fn call(pairs: &[(&str, &str)]) -> InvokeBindingRequest {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        InvokeBindingRequest {
            name: "a name that is longer than the bound".into(),
            data: vec![b'x'; 10_000].into(),
            metadata: pairs.iter().map(owned).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn what_keeps_within_is_taken_whatever_lies_beside_it() {
        let whole = call(&[("a", "1"), ("b", "2")]).encode_to_vec();

        assert_eq!(BOUNDS.check(&whole, Place::UnaryRequest), Ok(()));
        assert_eq!(BOUNDS.check(&[], Place::UnaryRequest), Ok(()));
    }

    #[test]
    fn one_entry_or_byte_too_many_is_refused() {
        let many = call(&[("a", "1"), ("b", "2"), ("c", "3")]).encode_to_vec();
        let large = call(&[("a", "1"), ("b", "more than there is room for")]).encode_to_vec();

        assert_eq!(
            BOUNDS.check(&many, Place::UnaryRequest),
            Err(Excess::Entries)
        );
        assert_eq!(
            BOUNDS.check(&large, Place::UnaryRequest),
            Err(Excess::Bytes)
        );
    }

    #[test]
    fn same_key_counts_each_time_and_so_does_the_message_around_it() {
        // Twice the same initial request with an empty entry in it, and then a third one.
        let first = b"\x0a\x02\x1a\0".repeat(3);

        assert_eq!(BOUNDS.check(&first[..8], Place::FirstRequest), Ok(()));
        assert_eq!(
            BOUNDS.check(&first, Place::FirstRequest),
            Err(Excess::Entries)
        );
        let decoded = FirstRequest::decode(&first[..]).unwrap();
        let metadata = decoded.initial_request.unwrap().metadata;
        assert_eq!(metadata.len(), 1, "a map knows of one");
    }

    #[test]
    fn nothing_is_read_behind_the_excess() {
        let mut flood = b"\x1a\0".repeat(STEP);
        flood.push(0xff);

        assert_eq!(
            BOUNDS.check(&flood, Place::UnaryRequest),
            Err(Excess::Entries)
        );
        let malformed = BOUNDS.check(b"\x1a\x05a", Place::UnaryRequest);
        assert_eq!(malformed, Err(Excess::Malformed(FieldError::Truncated)));
    }
}
