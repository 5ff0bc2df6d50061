//! What differs between two configurations, as operators are told of it.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::config::{Config, Route};

/// The most names of a kind that a line of the log tells.
const NAMES: usize = 10;

/// What differs between a configuration and the one before it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Which listeners differ.
    pub listeners: Difference,
    /// Which routes differ, or lead to a cluster that does.
    pub routes: Difference,
    /// Which clusters differ.
    pub clusters: Difference,
    /// Which bindings differ, or lead to a cluster that does.
    pub bindings: Difference,
    /// What else differs, as the file calls it.
    pub others: Vec<&'static str>,
}

/// What differs between two lists of things with names.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The names that are there now.
    pub added: Vec<String>,
    /// The names that mean something else now.
    pub changed: Vec<String>,
    /// The names that are there no more.
    pub removed: Vec<String>,
}

// === impl Changes ===

impl Changes {
    pub(super) fn between(before: &Config, after: &Config) -> Self {
        let mut others = Vec::new();
        let mut differs = |key, differs| {
            if differs {
                others.push(key);
            }
        };
        differs("max_held", before.max_held != after.max_held);
        differs("reload", before.reload_interval != after.reload_interval);
        differs("drain", before.drain != after.drain);
        differs(
            "health_service",
            before.health_service != after.health_service,
        );
        differs("filters", before.filters != after.filters);
        differs(
            "component_sockets",
            before.component_sockets != after.component_sockets,
        );
        differs(
            "the order of routes",
            reordered(&before.routes, &after.routes),
        );
        Self {
            listeners: Difference::between(&before.listeners, &after.listeners, |it| &it.name),
            routes: Difference::between(&before.routes, &after.routes, |it| &it.name),
            clusters: Difference::between(&before.clusters, &after.clusters, |it| &it.name),
            bindings: Difference::between(&before.bindings, &after.bindings, |it| &it.name),
            others,
        }
    }
}

/// Whether routes that are in both lists have changed places.
fn reordered(before: &[Route], after: &[Route]) -> bool {
    let places: BTreeMap<&str, usize> = (before.iter().enumerate())
        .map(|(place, route)| (&*route.name, place))
        .collect();
    let places = after.iter().filter_map(|route| places.get(&*route.name));
    !places.is_sorted()
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, difference) in [
            ("listeners", &self.listeners),
            ("routes", &self.routes),
            ("clusters", &self.clusters),
            ("bindings", &self.bindings),
        ] {
            for (how, names) in [
                ("added", &difference.added),
                ("changed", &difference.changed),
                ("removed", &difference.removed),
            ] {
                if !names.is_empty() {
                    parts.push(format!("{what} {how}: {}", listed(names)));
                }
            }
        }
        if !self.others.is_empty() {
            parts.push(format!("changed: {}", self.others.join(", ")));
        }
        match parts.is_empty() {
            true => f.write_str("nothing has changed"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}

fn listed(names: &[String]) -> String {
    match names.len().checked_sub(NAMES) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..NAMES].join(", ")),
    }
}

// === impl Difference ===

impl Difference {
    fn between<T: PartialEq>(before: &[T], after: &[T], name: impl Fn(&T) -> &String) -> Self {
        let by_name = |all| -> BTreeMap<&String, &T> {
            let all: &[T] = all;
            all.iter().map(|it| (name(it), it)).collect()
        };
        let (old, new) = (by_name(before), by_name(after));
        let names = |of: &[T], wanted: &dyn Fn(&T) -> bool| -> Vec<String> {
            let found = of.iter().filter(|it| wanted(it));
            found.map(|it| name(it).clone()).collect()
        };
        Self {
            added: names(after, &|it| !old.contains_key(name(it))),
            changed: names(after, &|it| {
                old.get(name(it)).is_some_and(|known| *known != it)
            }),
            removed: names(before, &|it| !new.contains_key(name(it))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &str, rest: &str) -> Config {
        let yaml = format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             clusters: {{a: {{endpoints: [\"127.0.0.1:1\"]}}, b: {{endpoints: [\"127.0.0.1:2\"]}}}}\n\
             routes: [{routes}]\n{rest}"
        );
        crate::config::parse(&yaml, "test.yaml", &|_| None).unwrap()
    }

    fn route(name: &str, cluster: &str) -> String {
        format!("{{name: {name}, match: {{path: /{name}}}, cluster: {cluster}}}")
    }

    #[test]
    fn names_what_differs() {
        let before = config(&[route("x", "a"), route("y", "a")].join(","), "");
        let after = config(
            &[route("y", "b"), route("z", "a")].join(","),
            "drain: {timeout: 1s}\nbindings: {echo: {echo: {}}}",
        );

        let changes = Changes::between(&before, &after);

        assert_eq!(
            changes.to_string(),
            "routes added: z; routes changed: y; routes removed: x; bindings added: echo; changed: drain"
        );
    }

    #[test]
    fn order_of_routes_is_a_change() {
        let before = config(&[route("x", "a"), route("y", "a")].join(","), "");
        let after = config(&[route("y", "a"), route("x", "a")].join(","), "");

        let changes = Changes::between(&before, &after);

        assert_eq!(changes.to_string(), "changed: the order of routes");
        assert_eq!(
            Changes::between(&after, &after).to_string(),
            "nothing has changed"
        );
    }

    #[test]
    fn thousand_routes_are_one_line() {
        let names: Vec<String> = (0..1000)
            .map(|index| route(&format!("r{index}"), "a"))
            .collect();

        let changes = Changes::between(&config("", ""), &config(&names.join(","), ""));

        assert_eq!(
            changes.to_string(),
            "routes added: r0, r1, r2, r3, r4, r5, r6, r7, r8, r9 and 990 more"
        );
    }
}
