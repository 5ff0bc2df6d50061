//! Reads gzip up to a limit.
//!
//! **Why.** A kilobyte of gzip can stand for a megabyte, so whoever must look into a compressed message bounds what comes
//! out of it, and not only what went in.
//!
//! **How.** Decoding stops one byte past the limit; what would have followed is never made. Memory is the output, which
//! grows with what has really come out to at most twice the limit, and some 50 KiB for the decoder itself.

use std::{fmt, io::Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

/// Why gzip could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// More came out than the limit allows.
    TooLarge,
    /// It is no gzip, is cut short, or its checksum is wrong.
    Malformed,
}

/// What `compressed` stands for, if that is at most `limit` bytes.
///
/// Members that follow one another are one message, as RFC 1952, 2.2, has it.
pub fn inflate(compressed: &[u8], limit: usize) -> Result<Bytes, InflateError> {
    let mut whole = Vec::new();
    // The byte past the limit proves that there is more; at the limit itself, it makes the checksum be read.
    MultiGzDecoder::new(compressed)
        .take((limit as u64).saturating_add(1))
        .read_to_end(&mut whole)
        .map_err(|_| InflateError::Malformed)?;
    if whole.len() > limit {
        return Err(InflateError::TooLarge);
    }
    // Without the room that it had left to grow.
    Ok(Bytes::from(whole.into_boxed_slice()))
}

// === impl InflateError ===

impl fmt::Display for InflateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "more comes out of the gzip than is allowed",
            Self::Malformed => "it is not sound gzip",
        })
    }
}

impl std::error::Error for InflateError {}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    pub(crate) fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_was_compressed_comes_out() {
        for plain in [&b""[..], b"x", &[7; 100_000]] {
            assert_eq!(inflate(&deflate(plain), 100_000).unwrap(), plain);
        }
    }

    #[test]
    fn limit_is_exact() {
        let gzip = deflate(&[7; 1000]);

        assert_eq!(inflate(&gzip, 1000).unwrap().len(), 1000);
        assert_eq!(inflate(&gzip, 999), Err(InflateError::TooLarge));
        assert_eq!(inflate(&deflate(b"x"), 0), Err(InflateError::TooLarge));
        assert_eq!(inflate(&deflate(b""), 0).unwrap(), "");
    }

    #[test]
    fn bomb_of_a_gigabyte_goes_off_at_the_limit() {
        let member = deflate(&vec![0; 1 << 20]);
        let mut bomb = member.repeat(1024);
        assert_eq!(inflate(&bomb, 65_536), Err(InflateError::TooLarge));

        // Nothing past the limit is decoded: the rest may be anything.
        bomb.truncate(member.len() / 2);
        bomb.extend([0xff; 64]);
        assert_eq!(inflate(&bomb, 65_536), Err(InflateError::TooLarge));
        assert_eq!(inflate(&bomb, 2 << 20), Err(InflateError::Malformed));
    }

    #[test]
    fn members_in_a_row_are_one_message() {
        let gzip = [deflate(b"thal"), deflate(b"weg")].concat();

        assert_eq!(inflate(&gzip, 7).unwrap(), "thalweg");
        assert_eq!(inflate(&gzip, 6), Err(InflateError::TooLarge));
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let gzip = deflate(b"thalweg");
        for end in 0..gzip.len() {
            assert_eq!(
                inflate(&gzip[..end], 100),
                Err(InflateError::Malformed),
                "{end}"
            );
        }

        let mut changed = gzip.clone();
        let checksum = gzip.len() - 8;
        changed[checksum] ^= 1;
        assert_eq!(inflate(&changed, 7), Err(InflateError::Malformed));
        assert_eq!(
            inflate(&[&gzip[..], b"more"].concat(), 100),
            Err(InflateError::Malformed)
        );
    }
}
