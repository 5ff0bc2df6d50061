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
            let Range { start, end } = place.within(line);
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

/// Keeps tabs, so that carets stand below what they mean.
fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}
