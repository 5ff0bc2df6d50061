//! The statuses that a breaker takes for a failure of its target.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use thalweg_proto::status::Code;

/// A list of statuses, in the order in which they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<Code>);

/// A status by name or by number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Name(String),
    Number(u32),
}

impl Statuses {
    /// Whether a status is among them.
    pub fn contains(&self, code: Code) -> bool {
        self.0.contains(&code)
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self(vec![Code::DeadlineExceeded, Code::Unavailable])
    }
}

impl FromIterator<Code> for Statuses {
    fn from_iter<I: IntoIterator<Item = Code>>(codes: I) -> Self {
        Self(codes.into_iter().collect())
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|code| code.name()))
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Vec::<Written>::deserialize(deserializer)?;
        let codes = written.into_iter().map(|status| {
            let found = Code::ALL[1..].iter().find(|code| match &status {
                Written::Name(name) => code.name() == name,
                Written::Number(number) => code.number() == *number,
            });
            found.copied().ok_or_else(|| {
                let status = match status {
                    Written::Name(name) => Cow::Owned(name),
                    Written::Number(number) => number.to_string().into(),
                };
                Error::custom(format!(
                    "`{status}` in `statuses` is no status of a failure"
                ))
            })
        });
        codes.collect()
    }
}

impl JsonSchema for Statuses {
    fn schema_name() -> Cow<'static, str> {
        "BreakerStatuses".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Code::ALL[1..].iter().map(|code| code.name()).collect();
        json_schema!({
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"type": "string", "enum": names},
                    {"type": "integer", "minimum": 1, "maximum": names.len()},
                ],
            },
        })
    }
}
