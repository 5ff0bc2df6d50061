//! What is checked in each direction, as people write it.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use thalweg_proto::field::FieldPath;

use crate::units::Count;

/// Settings of `sequence`: whose messages are numbered, and in which fields. At least one direction is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Settings", into = "Settings")]
pub struct Config {
    /// The client's messages, if they are checked.
    pub(super) request: Option<Box<Fields>>,
    /// The upstream's messages, if they are checked.
    pub(super) response: Option<Box<Fields>>,
}

/// Settings of `sequence`. Default: both directions, with the fields of Dapr's `InvokeBindingAlpha1`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where the client's messages have their numbers, or `none` to let them pass unread. Default: as in
    /// `InvokeBindingAlpha1`, `{number: "2.2", payload: "2", initial: "1"}`; but `none` if `response` names fields,
    /// since the streams are then of another protocol.
    request: Option<Direction>,

    /// Where the upstream's messages have their numbers, or `none` to let them pass unread. Default: as in
    /// `InvokeBindingAlpha1`, `{number: "2.2", payload: "2", initial: "1"}`; but `none` if `request` names fields,
    /// since the streams are then of another protocol.
    response: Option<Direction>,
}

/// One direction: fields, or the word `none`.
enum Direction {
    None,
    Fields(Box<Fields>),
}

/// Where messages have their numbers. A field is given by its number, `"2"`, or by the numbers on the way to it:
/// `"2.2"` is field 2 of the message in field 2. In quotes, for without them YAML makes a `2.1` of `2.10`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The field with the number of a message. A `uint64` or another varint but `sint64`; where it is absent, the number
    /// is 0, as protobuf has it.
    pub(super) number: Field,

    /// The field that every message with a number has once. A message, bytes or a string; a message that has neither this
    /// nor `initial` is refused. Default: none, and every message but the initial one has a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payload: Option<Field>,

    /// The field that makes a message the initial one, which has no number. A message, bytes or a string. It comes first
    /// or not at all, and a client must begin with it. Default: none, and no message is an initial one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initial: Option<Field>,

    /// The number of the first message that has one. Default `0`, as in `InvokeBindingAlpha1`.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    #[serde(default = "zero")]
    pub(super) first: Count,
}

/// Where a field lies, written `"2.2"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field(pub(super) FieldPath);

fn zero() -> Count {
    Count(0)
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            request: Some(Fields::api_013()),
            response: Some(Fields::api_013()),
        }
    }
}

impl TryFrom<Settings> for Config {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let names_fields =
            |direction: &Option<Direction>| matches!(direction, Some(Direction::Fields(_)));
        let default = (!names_fields(&settings.request) && !names_fields(&settings.response))
            .then(Fields::api_013);
        let resolve = |direction| match direction {
            None => default.clone(),
            Some(Direction::None) => None,
            Some(Direction::Fields(fields)) => Some(fields),
        };
        let config = Self {
            request: resolve(settings.request),
            response: resolve(settings.response),
        };
        if config.request.is_none() && config.response.is_none() {
            return Err(
                "`request` and `response` are both `none`: nothing is left to check".into(),
            );
        }
        for (name, fields) in [("request", &config.request), ("response", &config.response)] {
            if let Some(fields) = fields {
                fields.check().map_err(|fault| format!("{name}: {fault}"))?;
            }
        }
        Ok(config)
    }
}

impl From<Config> for Settings {
    fn from(config: Config) -> Self {
        let write =
            |fields: Option<Box<Fields>>| Some(fields.map_or(Direction::None, Direction::Fields));
        Self {
            request: write(config.request),
            response: write(config.response),
        }
    }
}

// === impl Fields ===

impl Fields {
    /// The fields of `InvokeBindingStreamRequest` and `InvokeBindingStreamResponse`.
    pub(super) fn api_013() -> Box<Self> {
        Box::new(Self {
            number: Field(FieldPath::new(&[2, 2])),
            payload: Some(Field(FieldPath::new(&[2]))),
            initial: Some(Field(FieldPath::new(&[1]))),
            first: Count(0),
        })
    }

    /// A number may lie in a payload; any other fields within one another could never be satisfied.
    fn check(&self) -> Result<(), String> {
        let number = ("number", Some(self.number));
        let payload = ("payload", self.payload);
        let initial = ("initial", self.initial);
        let pairs = [
            (number, payload),
            (number, initial),
            (payload, initial),
            (initial, payload),
            (initial, number),
        ];
        for ((outer_name, outer), (inner_name, inner)) in pairs {
            let (Some(outer), Some(inner)) = (outer, inner) else {
                continue;
            };
            if outer == inner {
                return Err(format!(
                    "`{outer_name}` and `{inner_name}` are the same field, {outer}"
                ));
            }
            if inner.to_string().starts_with(&format!("{outer}.")) {
                return Err(format!(
                    "`{inner_name}`, {inner}, lies within `{outer_name}`, {outer}"
                ));
            }
        }
        Ok(())
    }
}

// === impl Direction ===

const EXPECTED: &str = "`none` or a map of fields";

impl Serialize for Direction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Fields(fields) => fields.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Direction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrMap)
    }
}

/// An untagged enum would swallow the reason why a field path is none.
struct WordOrMap;

impl<'de> Visitor<'de> for WordOrMap {
    type Value = Direction;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Direction, E> {
        match text {
            "none" => Ok(Direction::None),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Direction, A::Error> {
        Box::deserialize(MapAccessDeserializer::new(map)).map(Direction::Fields)
    }
}

impl JsonSchema for Direction {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Direction".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = generator.subschema_for::<Fields>();
        json_schema!({"anyOf": [{"type": "string", "const": "none"}, fields]})
    }
}

// === impl Field ===

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathText).map(Self)
    }
}

/// Takes `2` like `"2"`, but never `2.10`, which YAML has already made a 2.1 of.
struct PathText;

impl Visitor<'_> for PathText {
    type Value = FieldPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field path in quotes, such as \"2.2\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<FieldPath, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<FieldPath, E> {
        text.parse()
            .map_err(|fault| E::custom(format_args!("`{text}`: {fault}")))
    }
}

impl JsonSchema for Field {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Field".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // An editor sees the file before the environment is filled in, hence the second half.
        let pattern = r"^([1-9][0-9]*(\.[1-9][0-9]*)*|.*\$\{.*)$";
        json_schema!({"type": ["string", "integer"], "pattern": pattern})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn read(value: Value) -> Result<Config, String> {
        from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_checks_both_directions_as_api_013_numbers_them() {
        assert_eq!(read(json!({})), Ok(Config::default()));
        assert_eq!(read(json!({"request": null})), Ok(Config::default()));
        assert!(Config::default().request.is_some());
        assert_eq!(Config::default().request, Config::default().response);
    }

    #[test]
    fn none_switches_one_direction_off_and_leaves_the_other() {
        let config = read(json!({"response": "none"})).unwrap();

        assert_eq!(
            (config.request, config.response),
            (Some(Fields::api_013()), None)
        );
    }

    #[test]
    fn fields_of_one_direction_say_nothing_of_the_other() {
        let config = read(json!({"response": {"number": "3"}})).unwrap();

        assert_eq!(config.request, None);
        let fields = config.response.unwrap();
        assert_eq!(fields.number.to_string(), "3");
        assert_eq!(
            (fields.payload, fields.initial, fields.first),
            (None, None, Count(0))
        );
    }

    #[test]
    fn example_of_the_module_is_read() {
        let config = read(json!({
            "request": {"number": "2.2", "payload": "2", "initial": 1, "first": 0},
            "response": "none",
        }));

        assert_eq!(config.unwrap().request, Some(Fields::api_013()));
    }

    #[test]
    fn what_is_shown_reads_back() {
        for value in [
            json!({}),
            json!({"request": "none"}),
            json!({"request": {"number": "1.2.3", "first": "7"}}),
            json!({"request": {"number": "1"}, "response": {"number": "2.10", "payload": 2}}),
        ] {
            let config = read(value).unwrap();

            let shown = serde_json::to_value(&config).unwrap();

            assert_eq!(read(shown), Ok(config));
        }
    }

    #[test]
    fn each_slip_is_named() {
        for (value, fault) in [
            (
                json!({"request": "none", "response": "none"}),
                "nothing is left to check",
            ),
            (
                json!({"request": "off"}),
                "expected `none` or a map of fields",
            ),
            (json!({"request": {}}), "missing field `number`"),
            (json!({"requests": "none"}), "unknown field `requests`"),
            (
                json!({"request": {"number": "1", "last": 2}}),
                "unknown field `last`",
            ),
            (
                json!({"request": {"number": "2.x"}}),
                "`2.x`: a field path is numbers",
            ),
            (
                json!({"request": {"number": "1.1.1.1.1.1.1.1.1"}}),
                "has at most 8 numbers",
            ),
            (
                json!({"request": {"number": 2.2}}),
                "a field path in quotes",
            ),
            (
                json!({"request": {"number": "1", "first": "-1"}}),
                "`-1` is not a whole number",
            ),
            (
                json!({"response": {"number": "1", "payload": "1"}}),
                "response: `number` and `payload` are the same field, 1",
            ),
            (
                json!({"request": {"number": "1.2", "initial": "1"}}),
                "request: `number`, 1.2, lies within `initial`, 1",
            ),
            (
                json!({"request": {"number": "2", "payload": "2.1"}}),
                "request: `payload`, 2.1, lies within `number`, 2",
            ),
        ] {
            let told = read(value.clone()).unwrap_err();

            assert!(told.contains(fault), "{value} is told as: {told}");
        }
    }

    #[test]
    fn field_that_begins_with_the_same_digits_lies_elsewhere() {
        let fields = json!({"number": "12.1", "payload": "12", "initial": "1"});

        assert!(read(json!({"request": fields})).is_ok());
    }

    #[test]
    fn schema_describes_what_is_written() {
        let schema = schemars::schema_for!(Config).to_value();

        let named = |key: &str| schema["properties"][key].clone();
        for key in ["request", "response"] {
            assert!(
                named(key).to_string().contains(r#""const":"none""#),
                "{schema}"
            );
        }
        let fields = &schema["$defs"]["Fields"];
        assert_eq!(fields["required"], json!(["number"]));
        assert_eq!(fields["additionalProperties"], json!(false));
        assert_eq!(fields["properties"]["first"]["format"], json!("count"));
        assert_eq!(schema["additionalProperties"], json!(false));
    }
}
