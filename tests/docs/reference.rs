//! `docs/configuration.md` is made from the JSON Schema, and so from the comments on the types that are parsed.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;
use thalweg_filters::units::Unit;

use super::root;

const PAGE: &str = "docs/configuration.md";

const INTRODUCTION: &str = "# Configuration

<!-- Made from the comments in src/config/raw.rs and filters/: REWRITE_GOLDEN=1 cargo test --test docs -->

Every key there is. `thalweg check FILE` says whether a file is good, and all that is wrong if it is not; unknown keys are faults.
`thalweg schema` prints the same as a JSON Schema, with which editors complete and check. [config.yaml](../config.yaml) shows each
default in its place.
";

/// The page, as it is being written.
struct Reference<'a> {
    schema: &'a Value,
    page: String,
}

#[test]
fn reference_says_what_the_code_says() {
    let schema = serde_json::from_str(&thalweg::config::schema()).unwrap();

    let page = Reference::of(&schema);

    let path = root().join(PAGE);
    if std::env::var_os("REWRITE_GOLDEN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "{PAGE} is not up to date: run `REWRITE_GOLDEN=1 cargo test --test docs` and read the difference"
    );
}

// === impl Reference ===

impl<'a> Reference<'a> {
    fn of(schema: &'a Value) -> String {
        let mut page = INTRODUCTION.to_owned();
        let (_, how_written) = description(schema).split_once("\n\n").unwrap();
        write!(page, "\n{how_written}\n").unwrap();
        let mut reference = Self { schema, page };
        for (key, property) in schema["properties"].as_object().unwrap() {
            write!(reference.page, "\n## {key}\n\n{}\n", description(property)).unwrap();
            if schema["required"]
                .as_array()
                .unwrap()
                .contains(&key.as_str().into())
            {
                reference.page.push_str("\nThis key is required.\n");
            }
            reference.explain(property, key, true);
        }
        reference.page
    }

    /// The maps in a value, each with its keys, and then the maps in those.
    fn explain(&mut self, schema: &'a Value, path: &str, section: bool) {
        let alternatives = self.alternatives(schema);
        // Beside a map, the items want another name than by their brackets, which links do not see.
        let items = if alternatives.iter().any(|it| has_keys(it)) {
            ".ITEM"
        } else {
            "[]"
        };
        let choice = alternatives.iter().filter(|it| has_keys(it)).count() > 1;
        for schema in alternatives {
            if !schema["items"].is_null() {
                self.explain(&schema["items"], &format!("{path}{items}"), section);
            }
            if schema["additionalProperties"].is_object() {
                self.explain(
                    &schema["additionalProperties"],
                    &format!("{path}.NAME"),
                    section,
                );
            }
            if choice && has_keys(schema) {
                // One of several maps, each of which is told by its one key.
                for (key, property) in schema["properties"].as_object().unwrap() {
                    let path = format!("{path}.{key}");
                    self.heading(&path, schema);
                    self.explain(property, &path, true);
                }
            } else if has_keys(schema) {
                self.map(schema, path, section);
            }
        }
    }

    fn map(&mut self, schema: &'a Value, path: &str, section: bool) {
        if section {
            if path.ends_with("[]") || path.ends_with(".NAME") {
                write!(self.page, "\nThe keys of `{path}`:\n").unwrap();
            }
        } else {
            self.heading(path, schema);
        }
        self.page
            .push_str("\n| Key | Type | Default | What it says |\n|---|---|---|---|\n");
        let properties = schema["properties"].as_object().unwrap();
        for (key, property) in properties {
            let required =
                (schema["required"].as_array().into_iter().flatten()).any(|it| it == key);
            let default = if required {
                "required".into()
            } else {
                default(property)
            };
            let about = description(property).replace('\n', " ").replace('|', "\\|");
            let kind = self.kind(property);
            writeln!(self.page, "| `{key}` | {kind} | {default} | {about} |").unwrap();
        }
        for (key, property) in properties {
            // Filters are the same wherever they stand, and have a section.
            if !is_filters(property) {
                self.explain(property, &format!("{path}.{key}"), false);
            }
        }
    }

    fn heading(&mut self, path: &str, schema: &Value) {
        let about = description(schema);
        write!(self.page, "\n### `{path}`\n\n{about}\n").unwrap();
    }

    /// What a value may be, with all references and choices followed.
    fn alternatives(&self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.strip_prefix("#/$defs/").unwrap();
            return self.alternatives(&self.schema["$defs"][name]);
        }
        for choice in ["anyOf", "oneOf"] {
            if let Some(several) = schema[choice].as_array() {
                return several
                    .iter()
                    .flat_map(|it| self.alternatives(it))
                    .collect();
            }
        }
        vec![schema]
    }

    /// What a value may be, in a few words.
    fn kind(&self, schema: &'a Value) -> String {
        if is_filters(schema) {
            return "list of [filters](#filters)".into();
        }
        let mut words = Vec::new();
        for schema in self.alternatives(schema) {
            let text = |it: &Value| it.as_str().map(|it| format!("`{it}`"));
            words.extend(text(&schema["const"]));
            words.extend(
                schema["enum"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(text),
            );
            if words
                .last()
                .is_some_and(|_| !schema["const"].is_null() || !schema["enum"].is_null())
            {
                continue;
            }
            let types = match &schema["type"] {
                Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                one => vec![one.as_str().unwrap_or_default()],
            };
            words.extend(
                match (
                    schema["format"].as_str().and_then(Unit::from_format),
                    types.as_slice(),
                ) {
                    (Some(unit), _) => Some(range(unit, schema)),
                    (None, ["array", ..]) => {
                        Some(format!("list of {}", self.kind(&schema["items"])))
                    }
                    (None, ["object", ..]) if schema["additionalProperties"].is_object() => {
                        Some(format!(
                            "map of names to {}",
                            self.kind(&schema["additionalProperties"])
                        ))
                    }
                    (None, ["object", ..]) => Some("map".into()),
                    (None, ["string", ..]) => Some("text".into()),
                    (None, ["integer", ..]) => Some("number".into()),
                    (None, ["boolean", ..]) => Some("`true` or `false`".into()),
                    (None, _) => None,
                },
            );
        }
        match words.split_last() {
            Some((last, before)) if !before.is_empty() => {
                format!("{} or {last}", before.join(", "))
            }
            _ => words.concat(),
        }
    }
}

fn has_keys(schema: &Value) -> bool {
    schema["properties"].is_object()
}

fn is_filters(schema: &Value) -> bool {
    schema["items"]["$ref"] == "#/$defs/Filter"
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// `size, 16KiB to 1MiB`.
fn range(unit: Unit, schema: &Value) -> String {
    let name = match unit {
        Unit::Count => "number",
        Unit::Size => "size",
        Unit::Duration => "duration",
    };
    let bound = |key: &str| schema[key].as_u64().map(|amount| unit.show(amount));
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!("{name}, {least} to {most}"),
        (Some(least), None) => format!("{name}, at least {least}"),
        (None, Some(most)) => format!("{name}, at most {most}"),
        (None, None) => name.into(),
    }
}

/// What the description says after the word `Default`, up to the reason for it.
fn default(schema: &Value) -> String {
    let about = description(schema).replace('\n', " ");
    let Some((_, after)) = about.split_once("Default") else {
        return "none".into();
    };
    let after = after.trim_start_matches([':', ' ']);
    let mut in_code = false;
    let end = after.char_indices().find(|(at, letter)| {
        in_code ^= *letter == '`';
        let rest = &after[at + letter.len_utf8()..];
        !in_code && ".,:;".contains(*letter) && (rest.is_empty() || rest.starts_with(' '))
    });
    let end = end.map_or(after.len(), |(at, _)| at);
    after[..end].replace('|', "\\|")
}
