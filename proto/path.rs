//! Whether every server reads a path the same way.
//!
//! **Why.** A proxy decides by a path what may pass, and the server behind it reads the same path by rules of its own:
//! many take `/public/%2e%2e/admin`, `/public/..;/admin` or `/public/..%5cadmin` for `/admin`. What two readers may
//! understand differently must be refused or written anew before anybody decides by it.
//!
//! **How.** Each segment is looked at as it is written, and nothing is decoded twice. [`check`] names what makes a path
//! ambiguous; [`normalized`] writes it as RFC 3986, section 6.2.2, would, where only dots make it so.
//!
//! ```
//! use thalweg_proto::path::{PathFault, check, normalized};
//!
//! assert_eq!(check("/shop.v1.Shop/Get"), Ok(()));
//! assert_eq!(check("/public/%2e%2E/admin"), Err(PathFault::DotSegment));
//! assert_eq!(normalized("/public/%2e%2E/%61dmin").as_deref(), Ok("/admin"));
//! ```

use std::{borrow::Cow, fmt};

/// What servers read differently in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// A segment is `.` or `..`, however its dots are written.
    DotSegment,
    /// A segment is `.` or `..` with parameters behind it, as in `..;x=1`.
    DotParameters,
    /// `%2f`: a slash for some, and part of a name for others.
    EncodedSlash,
    /// `\` or `%5c`: a slash on some systems.
    Backslash,
    /// `%00`, where names end for some.
    EncodedNul,
    /// A control character, which no path may have.
    Control,
    /// `#`, with which a fragment begins, or `?`, with which a query does.
    Delimiter,
    /// `%` without two hexadecimal digits behind it.
    BadEscape,
}

/// Whether a path without its query means the same to all who read it. It need not begin with a slash.
pub fn check(path: &str) -> Result<(), PathFault> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .try_for_each(segment)
}

/// The same path with its dot segments resolved and what needs no escape unescaped. Slashes in a row stay.
///
/// A path that is fine is not copied. One that stays ambiguous when its dots are resolved is refused; what climbs out of the root ends
/// there, as RFC 3986 has it.
pub fn normalized(path: &str) -> Result<Cow<'_, str>, PathFault> {
    let mut dots = false;
    // The first fault of a path may hide another.
    for part in path.as_bytes().split(|byte| *byte == b'/') {
        match segment(part) {
            Ok(()) => {}
            Err(PathFault::DotSegment) => dots = true,
            Err(fault) => return Err(fault),
        }
    }
    if !dots && !escapes(path).any(is_unreserved) {
        return Ok(Cow::Borrowed(path));
    }
    let path = unescaped(path);
    let (root, relative) = match path.strip_prefix('/') {
        Some(relative) => ("/", relative),
        None => ("", &*path),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = relative.split('/').peekable();
    while let Some(part) = parts.next() {
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            name => {
                kept.push(name);
                continue;
            }
        }
        // `/a/.` and `/a/b/..` are folders.
        if parts.peek().is_none() {
            kept.push("");
        }
    }
    Ok(Cow::Owned(format!("{root}{}", kept.join("/"))))
}

fn segment(segment: &[u8]) -> Result<(), PathFault> {
    let mut rest = segment;
    let mut plain = true;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                plain = false;
                match escaped(after).ok_or(PathFault::BadEscape)? {
                    b'/' => return Err(PathFault::EncodedSlash),
                    b'\\' => return Err(PathFault::Backslash),
                    0 => return Err(PathFault::EncodedNul),
                    _ => {}
                }
            }
            b'\\' => return Err(PathFault::Backslash),
            b'#' | b'?' => return Err(PathFault::Delimiter),
            0..0x20 | 0x7f => return Err(PathFault::Control),
            _ => {}
        }
    }
    // A name that begins with neither is none of the two.
    if !(segment.starts_with(b".") || !plain && segment.starts_with(b"%")) {
        return Ok(());
    }
    let mut rest = segment;
    let mut dots = 0;
    while let Some(after) = without(rest, b'.') {
        rest = after;
        dots += 1;
    }
    match dots {
        1 | 2 if rest.is_empty() => Err(PathFault::DotSegment),
        1 | 2 if without(rest, b';').is_some() => Err(PathFault::DotParameters),
        _ => Ok(()),
    }
}

/// What follows one character, however it is written.
fn without(text: &[u8], wanted: u8) -> Option<&[u8]> {
    match text.split_first()? {
        (byte, rest) if *byte == wanted => Some(rest),
        (b'%', rest) if escaped(rest)? == wanted => rest.get(2..),
        _ => None,
    }
}

/// The byte that two hexadecimal digits behind a `%` stand for.
fn escaped(after: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (&[high, low], _) = after.split_first_chunk()?;
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// The bytes that are written with a `%`.
fn escapes(path: &str) -> impl Iterator<Item = u8> {
    let bytes = path.as_bytes();
    let percents = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    percents.filter_map(|(at, _)| escaped(&bytes[at + 1..]))
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn unescaped(path: &str) -> String {
    let mut whole = String::with_capacity(path.len());
    let mut parts = path.split('%');
    whole.extend(parts.next());
    for part in parts {
        match (escaped(part.as_bytes()), part.get(2..)) {
            (Some(byte), Some(rest)) if is_unreserved(byte) => {
                whole.push(char::from(byte));
                whole.push_str(rest);
            }
            _ => {
                whole.push('%');
                whole.push_str(part);
            }
        }
    }
    whole
}

// === impl PathFault ===

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DotSegment => "the path has a segment `.` or `..`",
            Self::DotParameters => "the path has a segment `.` or `..` with parameters",
            Self::EncodedSlash => "the path has an encoded slash",
            Self::Backslash => "the path has a backslash",
            Self::EncodedNul => "the path has an encoded NUL",
            Self::Control => "the path has a control character",
            Self::Delimiter => "the path has a `#` or a `?`",
            Self::BadEscape => "the path has a `%` without two hexadecimal digits behind it",
        })
    }
}

impl std::error::Error for PathFault {}

#[cfg(test)]
mod tests {
    use super::{PathFault::*, *};

    #[test]
    fn ordinary_paths_are_plain() {
        for path in [
            "",
            "/",
            "/shop.v1.Shop/Get",
            "/a//b/",
            "/.well-known/acme",
            "/...",
            "/..a/.b/a..",
            "/a;b=..",
            "/caf%C3%A9/%20/100%25",
            "/%41/%2d",
            "relative/path",
            "/ä",
        ] {
            assert_eq!(check(path), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn each_fault_is_named() {
        for (path, fault) in [
            ("..", DotSegment),
            ("/.", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/./b", DotSegment),
            ("/a/%2e%2E/b", DotSegment),
            ("/a/.%2e/b", DotSegment),
            ("/a/%2e", DotSegment),
            ("/a/..;/b", DotParameters),
            ("/a/..;x=1/b", DotParameters),
            ("/a/%2e.%3bx", DotParameters),
            ("/a/.;/b", DotParameters),
            ("/a/..%2fb", EncodedSlash),
            ("/a%2Fb", EncodedSlash),
            ("/a/..\\b", Backslash),
            ("/a/..%5Cb", Backslash),
            ("/a%00", EncodedNul),
            ("/a\0", Control),
            ("/a\r\n", Control),
            ("/a\u{7f}", Control),
            ("/..#", Delimiter),
            ("/a?b", Delimiter),
            ("/a%", BadEscape),
            ("/a%2", BadEscape),
            ("/a%u002e", BadEscape),
            ("/%+2e", BadEscape),
            ("/%é", BadEscape),
        ] {
            assert_eq!(check(path), Err(fault), "{path:?}");
        }
    }

    #[test]
    fn dots_are_resolved_and_needless_escapes_undone() {
        for (path, expected) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/public/%2e%2e/admin", "/admin"),
            ("/../../etc", "/etc"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/a//../b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/%61%2db/%C3%A9%20", "/a-b/%C3%A9%20"),
            ("/%2525", "/%2525"),
        ] {
            let found = normalized(path).unwrap();

            assert_eq!(found, expected, "{path:?}");
            assert_eq!(check(&found), Ok(()), "{path:?}");
        }
        assert!(matches!(normalized("/a/b%20"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn what_is_not_about_dots_cannot_be_mended() {
        for (path, fault) in [
            ("/a/../b%2fc", EncodedSlash),
            ("/../..;/b", DotParameters),
            ("/./%", BadEscape),
            ("/../%%32e", BadEscape),
            ("/a\\..", Backslash),
        ] {
            assert_eq!(normalized(path), Err(fault), "{path:?}");
        }
    }
}
