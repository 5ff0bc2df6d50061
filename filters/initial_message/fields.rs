//! Which fields of the first message are asked for, and what is made of them.

use std::{collections::BTreeMap, mem, ops::Range};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use thalweg_proto::{
    field::{FieldPath, FieldPaths, FieldValue, FieldWalker},
    header::same_name,
    status::Code,
};

use super::malformed;
use crate::{Error, Side};

/// Header names and the paths of the fields that they are set from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Headers {
    names: Vec<HeaderName>,
    /// One for each name.
    paths: FieldPaths,
}

/// Paths of the fields that must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Required(FieldPaths);

/// What stands at a path of a message; the last one, if there are several.
#[derive(Clone, Default)]
struct Found {
    value: Option<FieldValue>,
    /// Where it lies, if it is text and not empty.
    bytes: Range<usize>,
    /// There were several, and of different wire types.
    mixed: bool,
}

/// Longest value that a header is given: servers commonly take 8 KiB for all headers of a request.
const VALUE_MAX: usize = 4096;

const MIXED: &str = "it is there with two wire types";

/// Names that HTTP or the proxy itself gives a meaning to; beside them, gRPC keeps what begins with `grpc-`.
const RESERVED: [&str; 13] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

// === impl Headers ===

impl TryFrom<BTreeMap<String, String>> for Headers {
    type Error = String;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, String> {
        let mut names = Vec::with_capacity(map.len());
        let mut paths: Vec<FieldPath> = Vec::with_capacity(map.len());
        for (text, path) in map {
            let name = settable(&text)?;
            if names.contains(&name) {
                return Err(format!("the header `{name}` is there twice"));
            }
            let path = path
                .parse()
                .map_err(|fault| format!("`{path}` for the header `{name}`: {fault}"))?;
            names.push(name);
            paths.push(path);
        }
        for path in &paths {
            let within = format!("{path}.");
            if let Some(deeper) = (paths.iter()).find(|it| it.to_string().starts_with(&within)) {
                return Err(format!(
                    "`{path}` is a message if `{deeper}` is in it, and a message cannot be a header"
                ));
            }
        }
        let paths = FieldPaths::new(&paths).map_err(|fault| format!("headers: {fault}"))?;
        Ok(Self { names, paths })
    }
}

impl From<Headers> for BTreeMap<String, String> {
    fn from(headers: Headers) -> Self {
        let entries = headers.names.iter().zip(headers.paths.as_slice());
        entries
            .map(|(name, path)| (name.to_string(), path.to_string()))
            .collect()
    }
}

impl Headers {
    /// Removes what the client sent under the names, and under those that servers take for the same.
    pub(super) fn clear(&self, map: &mut HeaderMap) {
        let ours = |name: &&HeaderName| {
            let mut names = self.names.iter();
            names.any(|own| same_name(own.as_str(), name.as_str()))
        };
        let sent: Vec<HeaderName> = map.keys().filter(ours).cloned().collect();
        for name in sent {
            map.remove(name);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Sets the headers from a message.
    pub(super) fn set(&self, message: &[u8], map: &mut HeaderMap) -> Result<(), Error> {
        for (name, (path, found)) in self.names.iter().zip(find(&self.paths, message)?) {
            let value = found.header(message).map_err(|fault| {
                bad_field(format!(
                    "field {path} of the first message cannot be the header {name}: {fault}"
                ))
            })?;
            if let Some(value) = value {
                map.insert(name, value);
            }
        }
        Ok(())
    }
}

/// A header name that may be set from a message.
fn settable(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("`{text}` is not the name of a header"))?;
    let name_is = name.as_str();
    if name_is.starts_with("grpc-") || RESERVED.contains(&name_is) {
        return Err(format!(
            "the header `{name}` belongs to the protocol and cannot be set from a message"
        ));
    }
    if name_is.ends_with("-bin") {
        return Err(format!(
            "the header `{name}` would be read as base64, and fields are set as they are: choose a name without `-bin`"
        ));
    }
    Ok(name)
}

// === impl Required ===

impl TryFrom<Vec<String>> for Required {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let paths: Vec<FieldPath> = texts
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|fault| format!("`{text}` in `required`: {fault}"))
            })
            .collect::<Result<_, _>>()?;
        FieldPaths::new(&paths)
            .map(Self)
            .map_err(|fault| format!("required: {fault}"))
    }
}

impl From<Required> for Vec<String> {
    fn from(required: Required) -> Self {
        let paths = required.0.as_slice();
        paths.iter().map(ToString::to_string).collect()
    }
}

impl Required {
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    /// Refuses a message without the fields.
    pub(super) fn demand(&self, message: &[u8]) -> Result<(), Error> {
        for (path, found) in find(&self.0, message)? {
            if found.mixed {
                return Err(bad_field(format!(
                    "field {path} of the first message: {MIXED}"
                )));
            }
            if found.is_empty() {
                return Err(Error::new(
                    Code::InvalidArgument,
                    "missing_field",
                    Side::Client,
                    format!(
                        "field {path} of the first message is absent or empty, and must not be"
                    ),
                ));
            }
        }
        Ok(())
    }
}

// === reading a message ===

/// What stands at each of the paths.
fn find<'a>(
    paths: &'a FieldPaths,
    message: &[u8],
) -> Result<impl Iterator<Item = (&'a FieldPath, Found)> + use<'a>, Error> {
    let list = paths.as_slice();
    let mut all = vec![Found::default(); list.len()];
    if !list.is_empty() {
        let mut walker = FieldWalker::new(paths.clone());
        walker
            .walk(message, |event| all[event.path].see(event.value))
            .and_then(|()| walker.finish())
            .map_err(|fault| {
                malformed(format!("the first message is not sound protobuf: {fault}"))
            })?;
    }
    Ok(list.iter().zip(all))
}

// === impl Found ===

impl Found {
    fn see(&mut self, value: FieldValue) {
        match value {
            FieldValue::End => {}
            // The message lies in one piece, so a field does, too.
            FieldValue::Bytes { start, end } => self.bytes = start..end,
            _ => {
                let kind = mem::discriminant(&value);
                self.mixed |= self
                    .value
                    .is_some_and(|other| mem::discriminant(&other) != kind);
                self.value = Some(value);
            }
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self.value, None | Some(FieldValue::Start { length: 0 }))
    }

    /// What the header is to say. An empty field is none to protobuf, which mostly does not send it at all.
    fn header(&self, message: &[u8]) -> Result<Option<HeaderValue>, &'static str> {
        if self.mixed {
            return Err(MIXED);
        }
        match self.value {
            _ if self.is_empty() => Ok(None),
            Some(FieldValue::Varint(number) | FieldValue::Fixed64(number)) => {
                Ok(Some(number.into()))
            }
            Some(FieldValue::Fixed32(number)) => Ok(Some(number.into())),
            _ => header_text(&message[self.bytes.clone()]).map(Some),
        }
    }
}

/// Text as gRPC allows it in metadata: printable ASCII, and no spaces around it, which HTTP/2 forbids (RFC 9113, 8.2.1).
fn header_text(text: &[u8]) -> Result<HeaderValue, &'static str> {
    if text.len() > VALUE_MAX {
        return Err("it is longer than 4096 bytes");
    }
    if text.trim_ascii().len() < text.len() {
        return Err("it begins or ends with a space");
    }
    HeaderValue::from_bytes(text)
        .ok()
        .filter(|value| value.to_str().is_ok() && !text.contains(&b'\t'))
        .ok_or("it is not printable ASCII")
}

fn bad_field(message: String) -> Error {
    Error::new(Code::InvalidArgument, "bad_field", Side::Client, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&str, &str)]) -> Result<Headers, String> {
        let entry = |(name, path): &(&str, &str)| ((*name).to_owned(), (*path).to_owned());
        Headers::try_from(entries.iter().map(entry).collect::<BTreeMap<_, _>>())
    }

    fn required(paths: &[&str]) -> Required {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        Required::try_from(paths).unwrap()
    }

    /// The header `x` that field 1 of `message` becomes.
    fn set(message: &[u8]) -> Result<Option<HeaderValue>, Error> {
        let mut map = HeaderMap::new();
        headers(&[("x", "1")]).unwrap().set(message, &mut map)?;
        Ok(map.remove("x"))
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&[0x0a, text.len() as u8], text].concat()
    }

    #[test]
    fn text_and_numbers_become_headers() {
        assert_eq!(set(&text(b"a b")).unwrap().unwrap(), "a b");
        assert_eq!(set(&[0x08, 0xac, 0x02]).unwrap().unwrap(), "300");
        assert_eq!(set(&[0x08, 0]).unwrap().unwrap(), "0");
        assert_eq!(set(&[0x0d, 1, 1, 0, 0]).unwrap().unwrap(), "257");
        assert_eq!(
            set(&[0x09, 2, 0, 0, 0, 0, 0, 0, 1]).unwrap().unwrap(),
            "72057594037927938"
        );
    }

    #[test]
    fn absent_and_empty_fields_become_no_header() {
        assert_eq!(set(&[]).unwrap(), None);
        assert_eq!(set(&[0x10, 1]).unwrap(), None);
        assert_eq!(set(&text(b"")).unwrap(), None);
    }

    #[test]
    fn last_occurrence_wins_also_when_it_is_empty() {
        let twice = |last: &[u8]| [text(b"first"), text(last)].concat();

        assert_eq!(set(&twice(b"last")).unwrap().unwrap(), "last");
        assert_eq!(set(&twice(b"")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_a_header_is_refused() {
        for bad in [
            &b"a\nb"[..],
            b"a\tb",
            b"a\0",
            b"\x7f",
            "é".as_bytes(),
            b" a",
            b"a ",
            b"\ta",
        ] {
            let error = set(&text(bad)).unwrap_err();

            assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
            assert_eq!(error.reason(), "bad_field");
            assert!(error.message().contains("header x:"), "{error}");
        }
    }

    #[test]
    fn value_of_a_header_is_bounded() {
        let long = |length: usize| {
            let head = [0x0a, length as u8 | 0x80, (length >> 7) as u8];
            [&head[..], &vec![b'a'; length]].concat()
        };

        assert_eq!(set(&long(VALUE_MAX)).unwrap().unwrap().len(), VALUE_MAX);
        assert_eq!(set(&long(VALUE_MAX + 1)).unwrap_err().reason(), "bad_field");
    }

    #[test]
    fn field_with_two_wire_types_is_refused() {
        let smuggled = [text(b"trusted"), vec![0x08, 7]].concat();

        assert_eq!(set(&smuggled).unwrap_err().reason(), "bad_field");
        let error = required(&["1"]).demand(&smuggled).unwrap_err();
        assert_eq!(error.reason(), "bad_field");
    }

    #[test]
    fn required_field_is_there_and_not_empty() {
        let name = required(&["1.1"]);

        assert!(name.demand(&text(&text(b"n"))).is_ok());
        for message in [vec![], text(b""), text(&text(b"")), vec![0x08, 1]] {
            let error = name.demand(&message).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert_eq!(error.reason(), "missing_field");
            assert!(error.message().contains("field 1.1 "), "{error}");
        }
        // A message that is entered is there as well.
        assert!(required(&["1", "1.1"]).demand(&text(&text(b"n"))).is_ok());
        assert!(required(&["1"]).demand(&[0x08, 0]).is_ok());
    }

    #[test]
    fn unsound_protobuf_is_refused() {
        let error = set(&[0x0a, 5, b'x']).unwrap_err();

        assert_eq!(
            (error.code(), error.reason()),
            (Code::InvalidArgument, "malformed_message")
        );
    }

    #[test]
    fn each_fault_of_a_header_is_told() {
        let fault = |name, path| headers(&[(name, path)]).unwrap_err();

        for name in [":path", "a b", ""] {
            assert!(fault(name, "1").contains("is not the name of a header"));
        }
        for name in ["host", "TE", "Content-Type", "grpc-timeout", "connection"] {
            assert!(
                fault(name, "1").contains("belongs to the protocol"),
                "{name}"
            );
        }
        assert!(fault("x-trace-bin", "1").contains("base64"));
        assert!(fault("x", "1.0").contains("`1.0` for the header `x`: a field path is"));
    }

    #[test]
    fn entries_that_contradict_one_another_are_refused() {
        let twice = headers(&[("X-A", "1"), ("x-a", "2")]).unwrap_err();
        assert_eq!(twice, "the header `x-a` is there twice");

        let within = headers(&[("x-a", "1.2"), ("x-b", "1")]).unwrap_err();
        assert!(within.starts_with("`1` is a message if `1.2` is in it"));
        assert!(headers(&[("x-a", "1.2"), ("x-b", "12")]).is_ok());

        let same = headers(&[("x-a", "1"), ("x-b", "1")]).unwrap_err();
        assert!(same.contains("the same field path is there twice"));
    }
}
