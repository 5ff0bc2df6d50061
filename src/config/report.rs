//! Collects what is wrong while the reading goes on.

use std::collections::{HashMap, HashSet};

use super::faults::{Fault, Faults, Place};
use super::load::Broken;
use super::origins::Origins;

/// The faults found so far, and what is needed to tell them well.
pub(super) struct Report {
    file: String,
    text: String,
    places: Places,
    faults: Vec<Fault>,
    /// What is no fault, but worth a look.
    doubts: Vec<Fault>,
    /// Paths about which enough has been said.
    settled: HashSet<String>,
}

/// Where each key and value of the file stands, by path: `listeners[0].address`.
#[derive(Default)]
pub(super) struct Places {
    pub(super) keys: HashMap<String, Place>,
    pub(super) values: HashMap<String, Place>,
}

// === impl Report ===

impl Report {
    /// Nothing is wrong yet.
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            places: Places::default(),
            faults: Vec::new(),
            doubts: Vec::new(),
            settled: HashSet::new(),
        }
    }

    /// The value, if nothing was wrong with it.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Faults> {
        if self.faults.is_empty() {
            Ok(value)
        } else {
            Err(Faults::new(self.file, self.faults))
        }
    }

    /// The file is not YAML: nothing else can be said about it.
    pub(super) fn broken(mut self, broken: Broken) -> Faults {
        self.add_at(broken.place, "", broken.message, broken.hint);
        Faults::new(self.file, self.faults)
    }

    /// The types refuse what the schema allowed.
    pub(super) fn unforeseen(mut self, error: &serde_json::Error) -> Faults {
        self.add_at(None, "", error.to_string(), "");
        Faults::new(self.file, self.faults)
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

    /// Whether nothing has been told about this path, what holds it and what it holds.
    pub(super) fn trusts(&self, path: &str) -> bool {
        let below = |settled: &String| ancestors(settled).any(|above| above == path);
        !self.covers(path) && !self.settled.iter().any(below)
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
        let place = self.nearest_place(path);
        self.add_at(place, path, message, hint);
    }

    /// A value that works, and is worth a look.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        let place = self.nearest_place(path);
        let doubt = self.fault(place, path, message.into(), hint.into());
        self.doubts.push(doubt);
    }

    /// Where the keys stand that routes and filters are made of.
    pub(super) fn origins(&self) -> Origins {
        let wanted = |path: &str| path.starts_with("routes[") || path == "filters";
        let keys = self.places.keys.iter().filter(|(path, _)| wanted(path));
        Origins::new(
            &self.file,
            keys.map(|(path, place)| (path.clone(), place.line))
                .collect(),
        )
    }

    /// What is worth a look, in words.
    pub(super) fn warnings(&mut self) -> Vec<String> {
        let file = &self.file;
        (self.doubts.drain(..))
            .map(|doubt| Faults::new(file.clone(), vec![doubt]).to_string())
            .collect()
    }

    fn nearest_place(&self, path: &str) -> Option<Place> {
        ancestors(path).find_map(|path| self.places.values.get(path).copied())
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
        let fault = self.fault(place, path, message.into(), hint.into());
        self.faults.push(fault);
    }

    fn fault(&self, place: Option<Place>, path: &str, message: String, hint: String) -> Fault {
        let line = place.and_then(|place| self.text.lines().nth(place.line.checked_sub(1)?));
        Fault {
            place,
            line: line.map(str::to_owned),
            path: path.to_owned(),
            message,
            hint,
        }
    }
}

/// The path, what holds it, what holds that, and so on up to the whole file.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        let up = path.rfind(['.', '[']).unwrap_or(0);
        (!path.is_empty()).then(|| &path[..up])
    })
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
