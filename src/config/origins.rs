//! Where the values of routes come from: a line of the file, the top-level list, or the default.
//!
//! **Why.** What a stream is held to may be written in three places. Whoever looks for the one to change should not have to search.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Config, show};

/// Where each key of the file stands.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    file: String,
    /// Lines by path: `routes[0].timeouts.stall`.
    lines: HashMap<String, usize>,
}

/// Two files that mean the same are the same, wherever it is written.
impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

// === impl Origins ===

impl Origins {
    pub(super) fn new(file: &str, lines: HashMap<String, usize>) -> Self {
        Self {
            file: file.to_owned(),
            lines,
        }
    }

    /// `config.yaml:12`, if it is written there.
    fn of(&self, path: &str) -> Option<String> {
        let line = self.lines.get(path)?;
        Some(format!("{}:{line}", self.file))
    }
}

impl Config {
    /// Every route with the values that it has in effect, and under `from` where each comes from.
    pub fn routes_to_json(&self) -> Value {
        (0..self.routes.len())
            .map(|index| self.route_to_json(index))
            .collect()
    }

    /// One of them, by its place in the order.
    pub(crate) fn route_to_json(&self, index: usize) -> Value {
        let mut shown = show::route(&self.routes[index]);
        let path = format!("routes[{index}]");
        let mut from = Map::new();
        for (key, value) in shown.as_object().into_iter().flatten() {
            self.trace(&path, key, value, &mut from);
        }
        shown["from"] = json!(from);
        shown
    }

    /// Where a value comes from; in a map of settings, where each of them does.
    fn trace(&self, route: &str, key: &str, value: &Value, from: &mut Map<String, Value>) {
        let path = format!("{route}.{key}");
        let settings = ["timeouts", "retry", "budget"];
        if let Some(values) = value.as_object()
            && settings
                .iter()
                .any(|it| key == *it || key.ends_with(&format!(".{it}")))
        {
            for (name, value) in values {
                self.trace(route, &format!("{key}.{name}"), value, from);
            }
            return;
        }
        let inherited = || {
            (key == "filters")
                .then(|| self.origins.of("filters"))
                .flatten()
        };
        let origin = match (self.origins.of(&path), inherited()) {
            (Some(own), _) => own,
            (None, Some(list)) => format!("the top-level filters, {list}"),
            (None, None) => "default".to_owned(),
        };
        from.insert(key.to_owned(), origin.into());
    }
}
