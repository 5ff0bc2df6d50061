//! Numbers as people write them in settings: `100`, `64KiB`, `5s`.

use std::fmt;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

/// What a number measures. The amount is kept in the smallest step: one, a byte, a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Plain numbers.
    Count,
    /// Bytes.
    Size,
    /// Milliseconds.
    Duration,
}

/// A plain number of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

/// A number of bytes, written `64KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A number of milliseconds, written `5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub u64);

// === impl Unit ===

impl Unit {
    /// The unit that a schema calls by this `format`.
    pub fn from_format(format: &str) -> Option<Self> {
        [Self::Count, Self::Size, Self::Duration]
            .into_iter()
            .find(|unit| unit.format() == format)
    }

    /// Its name in the schema.
    pub fn format(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Size => "size",
            Self::Duration => "duration",
        }
    }

    /// Its name in a sentence.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Count => "a whole number",
            Self::Size => "a size",
            Self::Duration => "a duration",
        }
    }

    /// How to write one.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Count => "write digits only, such as `100`",
            Self::Size => "write a whole number of bytes, `KiB`, `MiB` or `GiB`, such as `64KiB`",
            Self::Duration => "write a whole number of `ms`, `s`, `m` or `h`, such as `5s`",
        }
    }

    /// Reads an amount, or `None` where the text is not one.
    pub fn parse(self, text: &str) -> Option<u64> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let (_, factor) = self.steps().iter().find(|(name, _)| *name == suffix)?;
        digits.parse::<u64>().ok()?.checked_mul(*factor)
    }

    /// Writes an amount in the largest step that leaves no rest.
    pub fn show(self, amount: u64) -> String {
        if amount == 0 && self == Self::Duration {
            return "0s".into();
        }
        let whole =
            |(_, factor): &&(&str, u64)| amount >= *factor && amount.is_multiple_of(*factor);
        let (name, factor) = self.steps().iter().find(whole).unwrap_or(&("", 1));
        format!("{}{name}", amount / factor)
    }

    /// Suffixes and what they multiply by, the largest first.
    fn steps(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Count => &[("", 1)],
            Self::Size => &[
                ("GiB", 1 << 30),
                ("MiB", 1 << 20),
                ("KiB", 1 << 10),
                ("", 1),
                ("B", 1),
            ],
            Self::Duration => &[("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)],
        }
    }

    fn pattern(self) -> &'static str {
        // An editor sees the file before the environment is filled in, hence the second half.
        match self {
            Self::Count => r"^([0-9]+|.*\$\{.*)$",
            Self::Size => r"^([0-9]+([KMG]i)?B?|.*\$\{.*)$",
            Self::Duration => r"^([0-9]+(ms|s|m|h)|.*\$\{.*)$",
        }
    }
}

// === impl Duration ===

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        Self::from_millis(duration.0)
    }
}

// === impl Count, impl Size ===

macro_rules! narrow {
    ($name:ident) => {
        impl $name {
            /// As much of it as fits: the schema's maximum has seen to it that all does.
            pub fn u32(self) -> u32 {
                u32::try_from(self.0).unwrap_or(u32::MAX)
            }

            /// As much of it as fits: the schema's maximum has seen to it that all does.
            pub fn usize(self) -> usize {
                usize::try_from(self.0).unwrap_or(usize::MAX)
            }
        }
    };
}

narrow!(Count);
narrow!(Size);

// === all three, read and described alike ===

macro_rules! quantity {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text(Unit::$name)).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&Unit::$name.show(self.0))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let unit = Unit::$name;
                let types: &[&str] = match unit {
                    Unit::Duration => &["string"],
                    Unit::Count | Unit::Size => &["integer", "string"],
                };
                json_schema!({"type": types, "format": unit.format(), "pattern": unit.pattern()})
            }
        }
    };
}

quantity!(Count);
quantity!(Size);
quantity!(Duration);

/// Takes numbers and text alike: what came from the environment is always text.
struct Text(Unit);

impl Visitor<'_> for Text {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.noun())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let refuse = || E::custom(format!("`{text}` is not {}", self.0.noun()));
        self.0.parse(text).ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::Unit::{Count, Duration, Size};

    #[test]
    fn each_suffix_multiplies() {
        assert_eq!(Count.parse("100"), Some(100));
        assert_eq!(Size.parse("512"), Some(512));
        assert_eq!(Size.parse("512B"), Some(512));
        assert_eq!(Size.parse("64KiB"), Some(65_536));
        assert_eq!(Size.parse("2GiB"), Some(2_147_483_648));
        assert_eq!(Duration.parse("250ms"), Some(250));
        assert_eq!(Duration.parse("0s"), Some(0));
        assert_eq!(Duration.parse("1h"), Some(3_600_000));
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        for text in [
            "",
            "s",
            "5",
            "-1s",
            "1.5s",
            "5 s",
            "1h30m",
            "5S",
            "99999999999999999h",
        ] {
            assert_eq!(Duration.parse(text), None, "{text}");
        }
        for text in ["64KB", "64k", "64kib", "KiB", "1e3"] {
            assert_eq!(Size.parse(text), None, "{text}");
        }
        assert_eq!(Count.parse("1_000"), None);
    }

    #[test]
    fn amounts_are_shown_in_the_largest_exact_step() {
        assert_eq!(Count.show(1000), "1000");
        assert_eq!(Size.show(0), "0");
        assert_eq!(Size.show(1000), "1000");
        assert_eq!(Size.show(4 << 20), "4MiB");
        assert_eq!(Duration.show(0), "0s");
        assert_eq!(Duration.show(90_000), "90s");
        assert_eq!(Duration.show(250), "250ms");
        assert_eq!(Duration.show(3_600_000), "1h");
    }

    #[test]
    fn what_is_shown_reads_back() {
        for amount in [1, 999, 1000, 1024, 60_000, 65_535, 65_536, 7_200_000] {
            for unit in [Count, Size, Duration] {
                assert_eq!(unit.parse(&unit.show(amount)), Some(amount));
            }
        }
    }
}
