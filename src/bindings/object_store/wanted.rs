//! What the metadata of a call say, in any of the spellings of Dapr's storage bindings.
//!
//! Names are compared without regard to case, `_` and `-`, because HTTP writes the names of its headers in small letters and people
//! write `if_none_match` as well as `ifNoneMatch`. Names that mean nothing here are passed over, as by Dapr.

use std::collections::BTreeMap;

use object_store::{Attribute, Attributes, GetRange, PutMode, UpdateVersion, path::Path};
use thalweg_filters::Error;

use super::super::bad_request;

/// Spellings of the name of the object: S3 and Google Cloud Storage, Azure Blob, local files.
const KEY: [&str; 3] = ["key", "blobname", "filename"];

/// The longest name that all stores take.
const KEY_MAX: usize = 1024;

/// What is stored beside an object, under the names of Dapr.
const ATTRIBUTES: [(&str, Attribute); 5] = [
    ("contentType", Attribute::ContentType),
    ("cacheControl", Attribute::CacheControl),
    ("contentDisposition", Attribute::ContentDisposition),
    ("contentEncoding", Attribute::ContentEncoding),
    ("contentLanguage", Attribute::ContentLanguage),
];

/// The metadata of a call, by their names in one spelling.
pub(super) struct Wanted<'a>(BTreeMap<String, &'a str>);

/// What is to become of the SHA-256 of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Unwanted,
    Computed,
    /// An object with another is refused.
    Expected([u8; 32]),
}

// === impl Wanted ===

impl<'a> Wanted<'a> {
    pub(super) fn new(metadata: &'a BTreeMap<String, String>) -> Self {
        let all = metadata.iter().filter(|(_, value)| !value.is_empty());
        Self(all.map(|(name, value)| (folded(name), &**value)).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(&folded(name)).copied()
    }

    /// The name of the object, if there is one.
    pub(super) fn key(&self) -> Result<Option<Path>, Error> {
        let mut named = KEY.iter().filter_map(|name| self.0.get(*name).copied());
        let Some(text) = named.next() else {
            return Ok(None);
        };
        if named.any(|other| other != text) {
            return Err(bad_request(
                "metadata key, blobName and fileName are one thing, and say different names",
            ));
        }
        let bad = |why: &str| bad_request(format!("metadata key {text:?} {why}"));
        if text.len() > KEY_MAX {
            return Err(bad_request(format!(
                "metadata key has more than {KEY_MAX} bytes"
            )));
        }
        if text.starts_with('/') || text.ends_with('/') {
            return Err(bad("begins or ends with a slash"));
        }
        match Path::parse(text) {
            Ok(key) => Ok(Some(key)),
            Err(_) => Err(bad(
                "has a part that is empty, `.`, `..` or holds a control character",
            )),
        }
    }

    pub(super) fn if_match(&self) -> Option<&'a str> {
        self.get("ifmatch")
    }

    pub(super) fn if_none_match(&self) -> Option<&'a str> {
        self.get("ifnonematch")
    }

    /// Under which condition an object is written.
    pub(super) fn mode(&self) -> Result<PutMode, Error> {
        match (self.if_none_match(), self.if_match()) {
            (None, None) => Ok(PutMode::Overwrite),
            (Some("*"), None) => Ok(PutMode::Create),
            // Google Cloud Storage goes by the version, the others by the tag.
            (None, Some(tag)) if tag != "*" => Ok(PutMode::Update(UpdateVersion {
                e_tag: Some(tag.to_owned()),
                version: Some(tag.to_owned()),
            })),
            (Some(_), Some(_)) => Err(bad_request(
                "metadata ifMatch and ifNoneMatch exclude each other",
            )),
            _ => Err(bad_request(
                "a create takes ifNoneMatch with `*`, for an object that is not there yet, or ifMatch with the etag of the one that is",
            )),
        }
    }

    pub(super) fn checksum(&self) -> Result<Checksum, Error> {
        let text = match self.get("sha256") {
            None | Some("false") => return Ok(Checksum::Unwanted),
            Some("true") => return Ok(Checksum::Computed),
            Some(text) => text,
        };
        let mut sum = [0; 32];
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return Err(bad_request(
                "metadata sha256 is `true`, or 64 hexadecimal digits",
            ));
        }
        for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        Ok(Checksum::Expected(sum))
    }

    /// `bytes=0-99`, `bytes=100-`, `bytes=-100`, or the same without the unit.
    pub(super) fn range(&self) -> Result<Option<GetRange>, Error> {
        let Some(text) = self.get("range") else {
            return Ok(None);
        };
        let bad = || {
            bad_request(format!(
                "metadata range {text:?} is none: write `bytes=0-99`, `bytes=100-` or `bytes=-100`"
            ))
        };
        let range = text.strip_prefix("bytes=").unwrap_or(text);
        let (first, last) = range.split_once('-').ok_or_else(bad)?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits).ok_or_else(bad)
        };
        Ok(Some(match (first, last) {
            ("", last) => GetRange::Suffix(number(last)?),
            (first, "") => GetRange::Offset(number(first)?),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                let end = last.checked_add(1).filter(|_| first <= last);
                GetRange::Bounded(first..end.ok_or_else(bad)?)
            }
        }))
    }

    /// What is stored beside the object.
    pub(super) fn attributes(&self) -> Attributes {
        let written = ATTRIBUTES.iter().filter_map(|(name, attribute)| {
            let value = self.get(name)?;
            Some((attribute.clone(), value.to_owned()))
        });
        written.collect()
    }

    /// Stores forget nothing by themselves, and one who asks for it must not believe that they do.
    pub(super) fn refuse_ttl(&self) -> Result<(), Error> {
        match self.get("ttl").or_else(|| self.get("ttlinseconds")) {
            None => Ok(()),
            Some(_) => Err(bad_request(
                "metadata ttl: objects stay until they are deleted; set a lifecycle rule in the store instead",
            )),
        }
    }
}

/// The attributes that have names here.
pub(super) fn named_attributes(
    attributes: &Attributes,
) -> impl Iterator<Item = (&'static str, &str)> {
    (ATTRIBUTES.iter()).filter_map(|(name, attribute)| Some((*name, &**attributes.get(attribute)?)))
}

/// A name that nobody has chosen before.
pub(super) fn random_key() -> Path {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    // The version and the variant of a random UUID.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Path::from(parts.join("-"))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn folded(name: &str) -> String {
    let letters = name.chars().filter(|c| !matches!(c, '_' | '-'));
    letters.map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        all.iter().map(owned).collect()
    }

    fn key(text: &str) -> Result<Option<Path>, Error> {
        Wanted::new(&metadata(&[("key", text)])).key()
    }

    #[test]
    fn object_is_named_in_any_spelling() {
        for name in [
            "key",
            "Key",
            "blobName",
            "blobname",
            "blob_name",
            "fileName",
            "file-name",
        ] {
            let metadata = metadata(&[(name, "a/b.txt")]);
            let key = Wanted::new(&metadata).key().unwrap().unwrap();
            assert_eq!(key.as_ref(), "a/b.txt", "{name}");
        }
        assert!(Wanted::new(&BTreeMap::new()).key().unwrap().is_none());
    }

    #[test]
    fn two_names_for_one_object_are_refused() {
        let metadata = metadata(&[("key", "a"), ("blobName", "b")]);
        let error = Wanted::new(&metadata).key().unwrap_err();
        assert_eq!(error.reason(), "bad_request");
    }

    #[test]
    fn key_is_taken_as_it_is_written() {
        for text in [
            "a b", "ü/ñ", "100%", "a+b", "a#1", "a?b", "~x", ".hidden", "a..b", "x=y&z",
        ] {
            assert_eq!(key(text).unwrap().unwrap().as_ref(), text);
        }
    }

    #[test]
    fn key_that_leads_elsewhere_is_refused() {
        let long = "k".repeat(KEY_MAX + 1);
        for text in [
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "a\nb",
            "a\0b",
            &long,
        ] {
            assert!(key(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn condition_is_one_that_can_be_kept() {
        let mode = |all: &[(&str, &str)]| Wanted::new(&metadata(all)).mode();
        assert!(matches!(mode(&[]), Ok(PutMode::Overwrite)));
        assert!(matches!(
            mode(&[("if_none_match", "*")]),
            Ok(PutMode::Create)
        ));
        assert!(matches!(
            mode(&[("ifMatch", "\"1\"")]),
            Ok(PutMode::Update(_))
        ));
        assert!(mode(&[("ifNoneMatch", "\"1\"")]).is_err());
        assert!(mode(&[("ifMatch", "*")]).is_err());
        assert!(mode(&[("ifMatch", "\"1\""), ("ifNoneMatch", "*")]).is_err());
    }

    #[test]
    fn checksum_is_asked_for_or_given() {
        let checksum = |text: &str| Wanted::new(&metadata(&[("sha256", text)])).checksum();
        assert_eq!(checksum("true").unwrap(), Checksum::Computed);
        assert_eq!(checksum("").unwrap(), Checksum::Unwanted);
        let mut sum = [0xab; 32];
        sum[31] = 1;
        let text = hex(&sum).to_uppercase();
        assert_eq!(checksum(&text).unwrap(), Checksum::Expected(sum));
        assert!(checksum("abc").is_err());
        assert!(checksum(&"x".repeat(64)).is_err());
    }

    #[test]
    fn range_is_read_as_http_writes_it() {
        let range = |text: &str| Wanted::new(&metadata(&[("range", text)])).range();
        assert_eq!(
            range("bytes=0-99").unwrap(),
            Some(GetRange::Bounded(0..100))
        );
        assert_eq!(range("5-5").unwrap(), Some(GetRange::Bounded(5..6)));
        assert_eq!(range("bytes=7-").unwrap(), Some(GetRange::Offset(7)));
        assert_eq!(range("bytes=-7").unwrap(), Some(GetRange::Suffix(7)));
        let beyond = format!("0-{}", u64::MAX);
        for text in ["bytes=", "-", "9-1", "a-b", "0-1,5-6", "+1-2", "1", &beyond] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn random_keys_are_uuids_and_differ() {
        let (one, other) = (random_key(), random_key());
        assert_ne!(one, other);
        let text = one.as_ref();
        assert_eq!((text.len(), &text[14..15]), (36, "4"));
    }
}
