//! The header `grpc-timeout`, read and written.
//!
//! **Why.** A call's deadline travels as the time that is left. A proxy that passes it on must say
//! what is left *now*, and must never promise the upstream more time than the client will wait.
//!
//! **How.** The header is one to eight digits and a unit: `100m` is a tenth of a second. Eight digits
//! do not hold every duration at every unit, so [`format()`] takes the finest unit that fits and
//! rounds down.
//!
//! ```
//! use std::time::Duration;
//! use thalweg_proto::deadline;
//!
//! assert_eq!(deadline::parse(b"100m"), Ok(Duration::from_millis(100)));
//! assert_eq!(deadline::format(Duration::from_secs(5)).as_str(), "5000000u");
//! ```

use std::{fmt, str, time::Duration};

/// The most digits that gRPC allows.
const DIGITS_MAX: usize = 8;

/// The largest number of [`DIGITS_MAX`] digits.
const COUNT_MAX: u64 = 99_999_999;

/// Each unit's letter and length in nanoseconds, finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Why a `grpc-timeout` cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineError {
    /// There is nothing to read.
    Empty,
    /// The last byte is no unit.
    UnknownUnit(u8),
    /// There is a unit and no digit before it.
    NoDigits,
    /// There are more than eight digits.
    TooManyDigits,
    /// This byte stands where a digit belongs.
    NotADigit(u8),
}

/// The text of one `grpc-timeout`, made without allocation by [`format()`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    /// Digits and unit, at the end of the array.
    text: [u8; DIGITS_MAX + 1],
    start: u8,
}

/// Reads the value of `grpc-timeout`.
pub fn parse(value: &[u8]) -> Result<Duration, DeadlineError> {
    let (&letter, digits) = value.split_last().ok_or(DeadlineError::Empty)?;
    let (_, unit) = UNITS
        .into_iter()
        .find(|(unit, _)| *unit == letter)
        .ok_or(DeadlineError::UnknownUnit(letter))?;
    if digits.is_empty() {
        return Err(DeadlineError::NoDigits);
    }
    if digits.len() > DIGITS_MAX {
        return Err(DeadlineError::TooManyDigits);
    }

    let mut count = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return Err(DeadlineError::NotADigit(digit));
        }
        count = count * 10 + u64::from(digit - b'0');
    }

    // Eight digits of hours are more nanoseconds than a u64 holds, so whole seconds go apart.
    const SECOND: u64 = 1_000_000_000;
    Ok(if unit < SECOND {
        Duration::from_nanos(count * unit)
    } else {
        Duration::from_secs(count * (unit / SECOND))
    })
}

/// Writes what is left as a value of `grpc-timeout`, exact or less, never more.
///
/// More than 99999999 hours, which is all that the header can say, is written as that.
pub fn format(left: Duration) -> Timeout {
    let nanos = left.as_nanos();
    let (mut count, letter) = UNITS
        .into_iter()
        .map(|(letter, unit)| (nanos / u128::from(unit), letter))
        .find(|(count, _)| *count <= u128::from(COUNT_MAX))
        .map_or((COUNT_MAX, b'H'), |(count, letter)| (count as u64, letter));

    let mut text = [letter; DIGITS_MAX + 1];
    let mut start = DIGITS_MAX;
    loop {
        start -= 1; // eight times at most: the count has no more digits
        text[start] = b'0' + (count % 10) as u8;
        count /= 10;
        if count == 0 {
            break;
        }
    }
    Timeout {
        text,
        start: start as u8,
    }
}

// === impl Timeout ===

impl Timeout {
    /// The value of the header.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[usize::from(self.start)..]).expect("digits and a letter")
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timeout").field(&self.as_str()).finish()
    }
}

// === impl DeadlineError ===

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("grpc-timeout is empty"),
            Self::UnknownUnit(byte) => write!(
                f,
                "grpc-timeout ends with '{}', expected one of H, M, S, m, u and n",
                byte.escape_ascii()
            ),
            Self::NoDigits => f.write_str("grpc-timeout has no digits before its unit"),
            Self::TooManyDigits => f.write_str("grpc-timeout has more than eight digits"),
            Self::NotADigit(byte) => write!(
                f,
                "grpc-timeout has '{}' where a digit belongs",
                byte.escape_ascii()
            ),
        }
    }
}

impl std::error::Error for DeadlineError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (value, nanos) in [
            ("7n", 7),
            ("7u", 7_000),
            ("7m", 7_000_000),
            ("7S", 7_000_000_000),
            ("7M", 420_000_000_000),
            ("7H", 25_200_000_000_000),
        ] {
            assert_eq!(
                parse(value.as_bytes()),
                Ok(Duration::from_nanos(nanos)),
                "{value}"
            );
        }
    }

    #[test]
    fn longest_timeout_does_not_overflow() {
        let hours = Duration::from_secs(99_999_999 * 3600);

        assert_eq!(parse(b"99999999H"), Ok(hours));
        assert_eq!(format(hours).as_str(), "99999999H");
        assert_eq!(format(Duration::MAX).as_str(), "99999999H");
    }

    #[test]
    fn each_fault_is_named() {
        use DeadlineError::{Empty, NoDigits, NotADigit, TooManyDigits, UnknownUnit};

        assert_eq!(parse(b""), Err(Empty));
        assert_eq!(parse(b"5"), Err(UnknownUnit(b'5')));
        assert_eq!(parse(b"5s"), Err(UnknownUnit(b's')));
        assert_eq!(parse(b"S"), Err(NoDigits));
        assert_eq!(parse(b"123456789S"), Err(TooManyDigits));
        assert_eq!(parse(b"-5S"), Err(NotADigit(b'-')));
        assert_eq!(parse(b" 5S"), Err(NotADigit(b' ')));
        assert_eq!(parse(b"1.5S"), Err(NotADigit(b'.')));
    }

    #[test]
    fn zero_is_zero_nanoseconds() {
        assert_eq!(format(Duration::ZERO).as_str(), "0n");
        assert_eq!(parse(b"0n"), Ok(Duration::ZERO));
    }

    #[test]
    fn finest_unit_that_fits_is_taken_and_rounded_down() {
        for (nanos, text) in [
            (1, "1n"),
            (99_999_999, "99999999n"),
            (100_000_999, "100000u"),
            (99_999_999_999, "99999999u"),
            (100_000_000_000, "100000m"),
            (99_999_999_999_999, "99999999m"),
            (100_000_999_999_999, "100000S"),
        ] {
            assert_eq!(format(Duration::from_nanos(nanos)).as_str(), text);
        }
        assert_eq!(
            format(Duration::from_secs(100_000_019)).as_str(),
            "1666666M"
        );
    }

    #[test]
    fn time_left_is_never_rounded_away() {
        assert_ne!(format(Duration::from_nanos(1)).as_str(), "0n");
    }
}
