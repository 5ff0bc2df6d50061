//! What is wrong with a configuration file, all of it, and how to put it right.
//!
//! ```text
//! config.yaml:3:5: listeners[0].adress: unknown key
//!   |
//! 3 |     adress: 127.0.0.1:8080
//!   |     ^^^^^^
//!   = help: did you mean `address`?
//! ```

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;

use super::load::Broken;

/// Every fault of one configuration file, in the order of its lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    file: String,
    lines: Vec<String>,
    places: Places,
    faults: Vec<Fault>,
    /// Paths about which enough has been said.
    settled: HashSet<String>,
}

/// Where each key and value of the file stands, by path: `listeners[0].address`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Places {
    pub(super) keys: HashMap<String, Place>,
    pub(super) values: HashMap<String, Place>,
}

/// A stretch of one line. Lines and columns count from one, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) length: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Fault {
    place: Option<Place>,
    path: String,
    message: String,
    hint: String,
}

// === impl Faults ===

impl Faults {
    /// Starts with none.
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self {
            file: file.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            places: Places::default(),
            faults: Vec::new(),
            settled: HashSet::new(),
        }
    }

    /// How many there are.
    #[expect(
        clippy::len_without_is_empty,
        reason = "nobody outside holds an empty one"
    )]
    pub fn len(&self) -> usize {
        self.faults.len()
    }

    /// The result, if there is no fault.
    pub(super) fn or<T>(mut self, value: T) -> Result<T, Self> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.sort();
        Err(self)
    }

    /// The file is not YAML: nothing else can be said about it.
    pub(super) fn broken(mut self, broken: Broken) -> Self {
        self.add_at(broken.place, "", broken.message, broken.hint);
        self
    }

    /// The types refuse what the schema allowed.
    pub(super) fn unforeseen(mut self, error: &serde_json::Error) -> Self {
        self.settled.remove("");
        self.add_at(None, "", error.to_string(), "");
        self.sort();
        self
    }

    fn sort(&mut self) {
        // Sorting is stable: what has no place comes first, what shares one stays in order.
        self.faults.sort_by_key(|fault| fault.place);
    }

    /// From here on, paths are known to stand at these places.
    pub(super) fn locate(&mut self, places: Places) {
        self.places = places;
    }

    /// Whether a fault at this path or above it has been told. What lies below a bad value was
    /// guessed, so a fault found there would be an echo.
    pub(super) fn covers(&self, path: &str) -> bool {
        ancestors(path).any(|path| self.settled.contains(path))
    }

    /// Says no more about this path.
    pub(super) fn settle(&mut self, path: &str) {
        self.settled.insert(path.to_owned());
    }

    /// A key that should not be there.
    pub(super) fn add_key(&mut self, path: &str, message: &str, hint: impl Into<String>) {
        let place = self.places.keys.get(path).copied();
        self.add_at(place, path, message, hint);
    }

    /// A value that is wrong, or a key that is missing.
    pub(super) fn add(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        let place = ancestors(path).find_map(|path| self.places.values.get(path).copied());
        self.add_at(place, path, message, hint);
    }

    fn add_at(
        &mut self,
        place: Option<Place>,
        path: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.covers(path) {
            return;
        }
        self.settle(path);
        self.faults.push(Fault {
            place,
            path: path.to_owned(),
            message: message.into(),
            hint: hint.into(),
        });
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            self.show(fault, f)?;
        }
        Ok(())
    }
}

impl Faults {
    fn show(&self, fault: &Fault, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(place) = fault.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if !fault.path.is_empty() {
            write!(f, ": {}", fault.path)?;
        }
        write!(f, ": {}", fault.message)?;

        let margin = fault.place.map_or(0, |place| place.line.to_string().len());
        if let Some(place) = fault.place
            && let Some(line) = self.lines.get(place.line - 1)
        {
            let Range { start, end } = place.within(line);
            let indent: String = line.chars().take(start).map(blank).collect();
            let carets = "^".repeat(end - start);
            write!(f, "\n{:margin$} |", "")?;
            write!(f, "\n{} | {line}", place.line)?;
            write!(f, "\n{:margin$} | {indent}{carets}", "")?;
        }
        if !fault.hint.is_empty() {
            write!(f, "\n{:margin$} = help: {}", "", fault.hint)?;
        }
        Ok(())
    }
}

impl Error for Faults {}

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

/// The path, what holds it, what holds that, and so on up to the whole file.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        let up = path.rfind(['.', '[']).unwrap_or(0);
        (!path.is_empty()).then(|| &path[..up])
    })
}

/// The one fault of a file that cannot be read.
pub(super) fn unreadable(file: &str, error: &io::Error) -> Faults {
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
    let mut faults = Faults::new(file, "");
    faults.add_at(None, "", message, hint);
    faults
}

/// The hint for a name that is not among those known.
pub(super) fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(name, &known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "there are none to choose from".into(),
        None => format!("one of `{}`", known.join("`, `")),
    }
}

/// The known name that a slip of the fingers could have turned into this one.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let slips = |known: &str| strsim::damerau_levenshtein(name, known);
    known
        .iter()
        .map(|known| (slips(known), *known))
        .filter(|(slips, known)| *slips <= 1 + known.len() / 4 && *slips < known.len())
        .min()
        .map(|(_, known)| known)
}
