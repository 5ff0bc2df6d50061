//! What is wrong with a configuration file, all of it, and how to put it right.
//!
//! ```text
//! config.yaml:3:5: listeners[0].adress: unknown key
//!   |
//! 3 |     adress: 127.0.0.1:8080
//!   |     ^^^^^^
//!   = help: did you mean `address`?
//! ```

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;

use serde_json::{Value, json};

/// The most of a line that is shown, in characters. What is wrong stands in its middle.
const WIDTH: usize = 100;

/// Every fault of one configuration file, in the order of its lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    file: String,
    faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) place: Option<Place>,
    /// The text of the line where it is.
    pub(super) line: Option<String>,
    /// The key or value: `listeners[0].address`. Empty for the file as such.
    pub(super) path: String,
    pub(super) message: String,
    pub(super) hint: String,
}

/// Something else that a good file names and that cannot be used.
pub(crate) struct Unusable {
    /// The key that names it.
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

/// A stretch of one line. Lines and columns count from one, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) length: usize,
}

// === impl Faults ===

impl Faults {
    pub(super) fn new(file: String, mut faults: Vec<Fault>) -> Self {
        // Sorting is stable: what has no place comes first, what shares one stays in order.
        faults.sort_by_key(|fault| fault.place);
        Self { file, faults }
    }

    /// The one fault of a file that cannot be read.
    pub(super) fn unreadable(file: String, error: &io::Error) -> Self {
        let (message, hint) = match error.kind() {
            io::ErrorKind::NotFound => (
                "there is no such file".into(),
                "put a `config.yaml` here, or name another with `--config FILE`; the one that comes \
             with Thalweg explains every key",
            ),
            io::ErrorKind::InvalidData => ("not UTF-8".into(), "save the file as UTF-8"),
            _ => (
                error.to_string(),
                "check that the file can be read, or name another with `--config FILE`",
            ),
        };
        let fault = Fault {
            place: None,
            line: None,
            path: String::new(),
            message,
            hint: hint.into(),
        };
        Self::new(file, vec![fault])
    }

    /// Of a file whose text is good.
    pub(crate) fn beside_the_text(file: String, unusable: Vec<Unusable>) -> Self {
        let faults = unusable.into_iter().map(|unusable| Fault {
            place: None,
            line: None,
            path: unusable.path,
            message: unusable.message,
            hint: unusable.help.to_owned(),
        });
        Self::new(file, faults.collect())
    }

    /// The same for programs. Lines and columns count from one.
    pub(crate) fn to_json(&self) -> Value {
        let faults = self.faults.iter().map(|fault| {
            json!({
                "file": self.file,
                "line": fault.place.map(|place| place.line),
                "column": fault.place.map(|place| place.column),
                "path": fault.path,
                "message": fault.message,
                "help": fault.hint,
            })
        });
        faults.collect()
    }

    /// All of them in one line without the file's own, for a log whose records are lines.
    pub(crate) fn in_one_line(&self) -> String {
        let faults = self.faults.iter().map(|fault| {
            let mut words = self.file.clone();
            if let Some(place) = fault.place {
                words += &format!(":{}:{}", place.line, place.column);
            }
            if !fault.path.is_empty() {
                words += &format!(": {}", fault.path);
            }
            words += &format!(": {}", fault.message);
            if !fault.hint.is_empty() {
                words += &format!(" ({})", fault.hint);
            }
            words.replace('\n', " ")
        });
        faults.collect::<Vec<_>>().join("; ")
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.faults.len()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            fault.show(&self.file, f)?;
        }
        Ok(())
    }
}

impl Error for Faults {}

// === impl Fault ===

impl Fault {
    fn show(&self, file: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(file)?;
        if let Some(place) = self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;

        let margin = self.place.map_or(0, |place| place.line.to_string().len());
        if let (Some(place), Some(line)) = (self.place, &self.line) {
            let (line, Range { start, end }) = around(&without_secrets(line), place.within(line));
            let indent: String = line.chars().take(start).map(blank).collect();
            let carets = "^".repeat(end - start);
            write!(f, "\n{:margin$} |", "")?;
            write!(f, "\n{} | {line}", place.line)?;
            write!(f, "\n{:margin$} | {indent}{carets}", "")?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n{:margin$} = help: {}", "", self.hint)?;
        }
        Ok(())
    }
}

// === impl Place ===

impl Place {
    /// The characters of the line to underline: at least one, none past its text.
    fn within(self, line: &str) -> Range<usize> {
        let width = line.trim_end().chars().count();
        let start = self.column.saturating_sub(1);
        let end = (start + self.length).min(width).max(start + 1);
        start..end
    }
}

/// The words by which secrets are called.
const SECRETS: [&str; 4] = ["token", "secret", "password", "credential"];
const KEYS: [&str; 3] = ["access_key", "account_key", "api_key"];

/// The line with a sign for each of a value that is secret, or looks so: it may go into a log, or to whoever asked for a reload. What is
/// misspelt is still a secret, and where it is not clear how far one goes, more is hidden.
fn without_secrets(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(colon) = rest.find(':') {
        let behind = &rest[colon + 1..];
        let blanks = behind.len() - behind.trim_start().len();
        let (before, value) = rest.split_at(colon + 1 + blanks);
        shown.push_str(before);
        rest = value;
        let key = before[..colon].trim_end();
        let name = key.trim_end_matches(['"', '\'']);
        // Behind a key in quotes, no blank is needed.
        if blanks == 0 && name == key {
            continue;
        }
        let name = name.rsplit(|c: char| !c.is_alphanumeric() && !"_-".contains(c));
        if name.into_iter().next().is_some_and(is_secret) {
            let in_braces = shown.matches(['{', '[']).count() > shown.matches(['}', ']']).count();
            let hidden = extent(value, in_braces);
            shown.push_str(&value[..hidden.start]);
            shown.extend(value[hidden.clone()].chars().map(|_| '•'));
            rest = &value[hidden.end..];
        }
    }
    shown.push_str(rest);
    shown
}

/// What of a line is a value that begins it.
fn extent(line: &str, in_braces: bool) -> Range<usize> {
    // The name of a variable is no secret; what stands behind it may be.
    let start = match line.strip_prefix("${").and_then(|name| name.find('}')) {
        Some(end) => "${".len() + end + 1,
        None => 0,
    };
    let plain = &line[start..];
    let length = match plain.chars().next() {
        Some('"') => quoted(plain, |rest| match rest.strip_prefix('\\') {
            Some(escaped) => 1 + escaped.chars().next().map_or(0, char::len_utf8),
            None => 0,
        }),
        Some('\'') => quoted(plain, |rest| if rest.starts_with("''") { 2 } else { 0 }),
        // The keys within are looked at by themselves.
        Some('{') => 0,
        Some('[') => plain.find(']').unwrap_or(plain.len()),
        _ => {
            let ends = [
                plain.find(" #"),
                plain.find([',', '}', ']']).filter(|_| in_braces),
            ];
            ends.into_iter().flatten().min().unwrap_or(plain.len())
        }
    };
    start..start + length
}

/// How far a text in quotes goes. `escaped` is the length of what stands for something else where a text begins.
fn quoted(text: &str, escaped: impl Fn(&str) -> usize) -> usize {
    let quote = &text[..1];
    let mut at = 1;
    while at < text.len() {
        let rest = &text[at..];
        match escaped(rest) {
            0 if rest.starts_with(quote) => return at + 1,
            0 => at += rest.chars().next().map_or(0, char::len_utf8),
            length => at += length,
        }
    }
    text.len()
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // The path of one, or who it is of.
    if name.ends_with("_file") || name.ends_with("_id") {
        return false;
    }
    if KEYS.iter().any(|key| name.ends_with(key)) {
        return true;
    }
    let like = |word: &str, secret: &str| {
        // Of a long word, to compare it would take long.
        word.len().abs_diff(secret.len()) <= 1 && strsim::damerau_levenshtein(word, secret) <= 1
    };
    let mut words = name.split(['_', '-']);
    words.any(|word| {
        let mut secrets = SECRETS.iter();
        secrets.any(|secret| word.contains(secret) || like(word, secret))
    })
}

/// As much of a long line as is worth a look, and where in it `marked` is.
fn around(line: &str, marked: Range<usize>) -> (String, Range<usize>) {
    let all = line.chars().count();
    if all <= WIDTH {
        return (line.to_owned(), marked);
    }
    let first = marked.start.saturating_sub(WIDTH / 2).min(all - WIDTH);
    let before = if first > 0 { "…" } else { "" };
    let after = if first + WIDTH < all { "…" } else { "" };
    let shown: String = line.chars().skip(first).take(WIDTH).collect();
    let start = marked.start - first + before.chars().count();
    let end = start + marked.len().min(WIDTH - (marked.start - first));
    (format!("{before}{shown}{after}"), start..end.max(start + 1))
}

/// Keeps tabs, so that carets stand below what they mean.
fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (line, shown) in [
            ("  token: abc", "  token: •••"),
            (
                "admin: {tokn: sup3r, address: x}",
                "admin: {tokn: •••••, address: x}",
            ),
            (
                "  secret_access_key: \"a, b\" # c",
                "  secret_access_key: •••••• # c",
            ),
            (
                "  metadata: {passwrod: 'x', url: y}",
                "  metadata: {passwrod: •••, url: y}",
            ),
            ("  token: ${TOKEN}", "  token: ${TOKEN}"),
            (
                "  secret_access_key_file: secrets/s3",
                "  secret_access_key_file: secrets/s3",
            ),
            (
                "  - {name: plain, address: 127.0.0.1:1}",
                "  - {name: plain, address: 127.0.0.1:1}",
            ),
            ("    header: x-monkey", "    header: x-monkey"),
            (
                "  certificates: [{cert: a.pem, key: a.key}]",
                "  certificates: [{cert: a.pem, key: a.key}]",
            ),
            ("  \"token\": x", "  \"token\": •"),
            (
                "{\"token\":\"x\", \"url\":\"y\"}",
                "{\"token\":•••, \"url\":\"y\"}",
            ),
            ("  password: a#b, c: d # e", "  password: ••••••••• # e"),
            ("  password: \"a\\\" b\" # c", "  password: ••••••• # c"),
            ("  password: 'it''s' # c", "  password: ••••••• # c"),
            ("  password: \"not closed", "  password: •••••••••••"),
            ("  password: ${NAME}more", "  password: ${NAME}••••"),
            ("  passwords: [a, b] # c", "  passwords: •••••] # c"),
            (
                "  credentials: {password: é, url: y}",
                "  credentials: {password: •, url: y}",
            ),
            ("  token:", "  token:"),
            ("  - http://secret:8080", "  - http://secret:8080"),
            (
                "  {account_key: abc, access_key_id: me}",
                "  {account_key: •••, access_key_id: me}",
            ),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }

    #[test]
    fn long_line_is_shown_around_what_is_wrong() {
        let line = "x".repeat(150) + "wrong" + &"y".repeat(150);

        let (shown, marked) = around(&line, 150..155);

        assert_eq!(shown.chars().count(), WIDTH + 2);
        let marked: String = shown
            .chars()
            .skip(marked.start)
            .take(marked.len())
            .collect();
        assert_eq!(marked, "wrong");
        assert_eq!(around("short", 0..5), ("short".to_owned(), 0..5));
        let (shown, marked) = around(&line, 304..305);
        assert_eq!((shown.chars().last(), marked.start), (Some('y'), WIDTH));
    }
}
