//! YAML as a tree with places. The only file that knows the YAML crate.
//!
//! The typed parse stops at its first error, so the file is first read as it stands: lists, maps
//! and scalars, and where each of them is. Faults found later point into the file by path.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{Location, Options, Spanned};

use super::faults::Place;
use super::report::Places;

/// What the file says, and where it says it.
pub(super) struct Document {
    pub(super) value: Value,
    pub(super) places: Places,
}

/// Why the file is not YAML.
pub(super) struct Broken {
    pub(super) place: Option<Place>,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// Reads the one document of the text. A text without any is an empty map.
pub(super) fn read(text: &str) -> Result<Document, Broken> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
    };
    let root: Option<Spanned<Node>> = parse(text, options)?;
    let mut places = Places::default();
    let value = match root {
        Some(root) => root.value.lay_out(root.referenced, "", &mut places),
        None => Value::Object(serde_json::Map::new()),
    };
    Ok(Document { value, places })
}

fn parse(text: &str, options: Options) -> Result<Option<Spanned<Node>>, Broken> {
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Broken {
        place: error.location().map(place).filter(|place| place.line > 0),
        ..explain(&error)
    })
}

/// The crate's words, or ours where the crate speaks to programmers.
fn explain(error: &serde_saphyr::Error) -> Broken {
    let (message, hint) = match error {
        serde_saphyr::Error::DuplicateMappingKey { .. } => (
            "this key is here twice".into(),
            "keep one of them, or rename the other",
        ),
        serde_saphyr::Error::MultipleDocuments { .. } => (
            "a second document begins here".into(),
            "keep everything in one, without a line of `---` between",
        ),
        error => {
            let text = error.to_string();
            let end = text.rfind(" at line ").unwrap_or(text.len());
            let text = &text[..end];
            let hint = if text.contains("tab") {
                "indent with spaces: YAML takes no tabs there"
            } else if text.contains("indent")
                || text.contains("block collection")
                || text.contains("block mapping")
                || text.contains("block sequence")
            {
                "let all keys of one map, and all `-` of one list, begin in the same column"
            } else if text.contains("budget") {
                "a file has at most 250,000 values; list endpoints in files of their own (`endpoints: {file: ...}`)"
            } else {
                "text that begins with `*`, `[` or `{`, or holds `: `, needs quotes"
            };
            (text.to_owned(), hint)
        }
    };
    Broken {
        place: None,
        message,
        hint,
    }
}

fn place(location: Location) -> Place {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Place {
        line: number(location.line()),
        column: number(location.column()),
        length: number(location.span().len()),
    }
}

/// A value whose parts know where they stand.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl Node {
    /// Parts the value from the places, which are filed under their paths.
    fn lay_out(self, location: Location, path: &str, places: &mut Places) -> Value {
        places.values.insert(path.to_owned(), place(location));
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => (items.into_iter().enumerate())
                .map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    item.value.lay_out(item.referenced, &path, places)
                })
                .collect(),
            Self::Map(entries) => (entries.into_iter())
                .map(|(key, item)| {
                    let path = join(path, &key.value);
                    places.keys.insert(path.clone(), place(key.referenced));
                    let value = item.value.lay_out(item.referenced, &path, places);
                    (key.value, value)
                })
                .collect(),
        }
    }
}

/// The path of a key in the map at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyNode)
    }
}

struct AnyNode;

impl<'de> Visitor<'de> for AnyNode {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a map")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
