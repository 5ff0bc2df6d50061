//! Holds a file against the schema and tells every slip at once.
//!
//! **Why.** A typed parse ends at its first error; a user with five typing errors would run the
//! program five times. And what an editor underlines by the schema is then just what we refuse.
//!
//! **How.** File and schema are walked together. What is wrong is told, then replaced by the
//! least that the schema allows, so that the typed parse succeeds and the faults of meaning can
//! be found in the same run. [`Report`] keeps quiet about what comes of such a replacement.
//!
//! Only as much of JSON Schema is understood as `raw.rs` uses.

use serde_json::{Map, Value};

use super::load::join;
use super::report::{Report, nearest, suggest};
use thalweg_filters::units::Unit;

/// Tells what is wrong in `value` and makes it fit.
pub(super) fn check(schema: &Value, value: &mut Value, faults: &mut Report) {
    let named = &schema["$defs"];
    Check { named, faults }.value(schema, value, "");
}

struct Check<'a> {
    /// The parts of the schema that others refer to.
    named: &'a Value,
    faults: &'a mut Report,
}

// === impl Check ===

impl Check<'_> {
    fn value(&mut self, schema: &Value, value: &mut Value, path: &str) {
        let allowed = alternatives(self.named, schema);
        let fitting: Vec<&Value> = (allowed.iter().copied())
            .filter(|schema| fits(schema, value))
            .collect();
        let sound = match value {
            _ if fitting.is_empty() => {
                let message = format!("expected {}, found {}", expected(&allowed), found(value));
                self.refuse(path, message, rewrite(&allowed, value))
            }
            Value::Object(entries) => self.map(&fitting, entries, path),
            Value::Array(items) => self.list(fitting[0], items, path),
            Value::String(text) => self.scalar(&fitting, text, path),
            Value::Number(number) => self.scalar(&fitting, &number.to_string(), path),
            Value::Null | Value::Bool(_) => true,
        };
        if !sound {
            *value = least(self.named, &allowed);
        }
    }

    fn map(&mut self, fitting: &[&Value], entries: &mut Map<String, Value>, path: &str) -> bool {
        // Where there is a choice, as between filters, the key that is there makes it.
        let chosen = (fitting.iter().copied())
            .find(|schema| {
                entries
                    .keys()
                    .any(|key| !schema["properties"][key].is_null())
            })
            .unwrap_or(fitting[0]);
        let free = &chosen["additionalProperties"];
        if !free.is_object() {
            self.remove_unknown_keys(chosen, fitting, entries, path);
            self.add_missing_keys(chosen, entries, path);
        }
        for (key, item) in entries {
            let schema = chosen["properties"].get(key).unwrap_or(free);
            self.value(schema, item, &join(path, key));
        }
        true
    }

    fn remove_unknown_keys(
        &mut self,
        chosen: &Value,
        fitting: &[&Value],
        entries: &mut Map<String, Value>,
        path: &str,
    ) {
        let known: Vec<&str> = fitting.iter().flat_map(|schema| keys(schema)).collect();
        let (mut meant, before) = (Vec::new(), entries.len());
        entries.retain(|key, _| {
            let at = join(path, key);
            if keys(chosen).any(|known| known == key) {
                return true;
            }
            if known.contains(&key.as_str()) {
                let hint = "give it an item of its own in the list";
                self.faults.add_key(&at, "one key too many", hint);
                return false;
            }
            self.faults
                .add_key(&at, "unknown key", suggest(key, known.iter().copied()));
            meant.extend(nearest(key, &known));
            false
        });
        if fitting.len() > 1 && entries.len() < before {
            // It was another that was chosen, and this one only stands in for it.
            let required = chosen["required"].as_array().into_iter().flatten();
            for key in required.filter_map(Value::as_str) {
                self.faults.settle(&join(path, key));
            }
        }
        // That a misspelt key is missing goes without saying.
        for key in meant {
            if !entries.contains_key(key) {
                self.faults.settle(&join(path, key));
            }
        }
    }

    fn add_missing_keys(&mut self, chosen: &Value, entries: &mut Map<String, Value>, path: &str) {
        for key in chosen["required"].as_array().into_iter().flatten() {
            let Some(key) = key.as_str().filter(|key| !entries.contains_key(*key)) else {
                continue;
            };
            let schema = &chosen["properties"][key];
            let about = first_sentence(schema["description"].as_str().unwrap_or_default());
            let hint = format!("add `{key}`: {about}");
            self.faults.add(&join(path, key), "missing", hint);
            let value = least(self.named, &alternatives(self.named, schema));
            entries.insert(key.to_owned(), value);
        }
    }

    fn list(&mut self, schema: &Value, items: &mut [Value], path: &str) -> bool {
        if schema["minItems"].as_u64() > Some(items.len() as u64) {
            return self.refuse(path, "must not be empty", describe(schema));
        }
        for (index, item) in items.iter_mut().enumerate() {
            self.value(&schema["items"], item, &format!("{path}[{index}]"));
        }
        true
    }

    fn scalar(&mut self, fitting: &[&Value], text: &str, path: &str) -> bool {
        let schema = fitting[0];
        if let Some(unit) = unit(schema) {
            return self.quantity(schema, unit, text, path);
        }
        let words: Vec<&str> = fitting.iter().flat_map(|schema| words(schema)).collect();
        if !words.is_empty() && !words.contains(&text) {
            let message = format!("`{text}` is not known here");
            return self.refuse(path, message, suggest(text, words));
        }
        if schema["minLength"].as_u64() > Some(text.len() as u64) {
            return self.refuse(path, "must not be empty", describe(schema));
        }
        true
    }

    fn quantity(&mut self, schema: &Value, unit: Unit, text: &str, path: &str) -> bool {
        let Some(amount) = unit.parse(text) else {
            let message = format!("`{text}` is not {}", unit.noun());
            return self.refuse(path, message, unit.hint());
        };
        let least = schema["minimum"].as_u64().unwrap_or(0);
        let most = schema["maximum"].as_u64().unwrap_or(u64::MAX);
        let problem = match amount {
            _ if amount < least => "little",
            _ if amount > most => "much",
            _ => return true,
        };
        let hint = match schema["maximum"].as_u64() {
            Some(most) => format!("write {} to {}", unit.show(least), unit.show(most)),
            None => format!("write {} or more", unit.show(least)),
        };
        self.refuse(path, format!("`{text}` is too {problem}"), hint)
    }

    /// Tells a fault, and that the value is not sound.
    fn refuse(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) -> bool {
        self.faults.add(path, message, hint);
        false
    }
}

// === the schema ===

/// The schemas of which a value must fit one, with references followed.
fn alternatives<'a>(named: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or(name);
        return alternatives(named, &named[name]);
    }
    match (schema["anyOf"].as_array()).or_else(|| schema["oneOf"].as_array()) {
        Some(some) => some
            .iter()
            .flat_map(|schema| alternatives(named, schema))
            .collect(),
        None => vec![schema],
    }
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let list = schema["type"].as_array().into_iter().flatten();
    list.chain([&schema["type"]]).filter_map(Value::as_str)
}

fn keys(schema: &Value) -> impl Iterator<Item = &str> {
    let properties = schema["properties"].as_object().into_iter();
    properties.flat_map(Map::keys).map(String::as_str)
}

/// The words a text must be one of, if it must.
fn words(schema: &Value) -> impl Iterator<Item = &str> {
    let list = schema["enum"].as_array().into_iter().flatten();
    list.chain([&schema["const"]]).filter_map(Value::as_str)
}

fn unit(schema: &Value) -> Option<Unit> {
    schema["format"].as_str().and_then(Unit::from_format)
}

fn fits(schema: &Value, value: &Value) -> bool {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if unit(schema).is_some() => return true,
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    types(schema).any(|name| name == kind || (name == "number" && kind == "integer"))
}

/// The least that one of the alternatives allows.
fn least(named: &Value, allowed: &[&Value]) -> Value {
    let schema = allowed[0];
    if allowed.iter().any(|schema| fits(schema, &Value::Null)) {
        return Value::Null;
    }
    if let Some(unit) = unit(schema) {
        return unit.show(schema["minimum"].as_u64().unwrap_or(0)).into();
    }
    match types(schema).next() {
        Some("array") => Value::Array(Vec::new()),
        Some("object") => (schema["required"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .map(|key| {
                let schema = &schema["properties"][key];
                (key.to_owned(), least(named, &alternatives(named, schema)))
            })
            .collect(),
        _ => words(schema).next().unwrap_or_default().into(),
    }
}

// === words for people ===

fn expected(allowed: &[&Value]) -> String {
    let mut nouns: Vec<&str> = Vec::new();
    for schema in allowed {
        let noun = match (unit(schema), types(schema).next()) {
            (Some(unit), _) => unit.noun(),
            (None, Some("string")) => "text",
            (None, Some("array")) => "a list",
            (None, Some("object")) => "a map",
            (None, Some("integer")) => "a whole number",
            (None, Some("number")) => "a number",
            (None, Some("boolean")) => "`true` or `false`",
            _ => continue,
        };
        if !nouns.contains(&noun) {
            nouns.push(noun);
        }
    }
    nouns.join(" or ")
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("`{value}`"),
        // It may be a secret, and its line is shown if it is none.
        Value::Number(_) => "a number".into(),
        Value::String(_) => "text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a map".into(),
    }
}

/// How to turn a value of the wrong kind into one of the right kind.
fn rewrite(allowed: &[&Value], value: &Value) -> String {
    match (expected(allowed).as_str(), value) {
        ("text", Value::Number(_) | Value::Bool(_)) => "put it in quotes".into(),
        ("a list" | "a list or a map", Value::String(text)) => format!("write a list: `[{text}]`"),
        ("a list", _) => "write its items below, each after a `-`".into(),
        ("a map", Value::Array(_)) => "write `key: value` lines, without `-`".into(),
        ("a map", _) => "write `key: value` lines below, or `{}` for none".into(),
        _ => describe(allowed[0]),
    }
}

fn describe(schema: &Value) -> String {
    match unit(schema) {
        Some(unit) => unit.hint().into(),
        None => first_sentence(schema["description"].as_str().unwrap_or_default()),
    }
}

/// The first sentence of a description, as the rest of a sentence.
fn first_sentence(text: &str) -> String {
    let text = text.replace('\n', " ");
    let end = text.find(". ").unwrap_or(text.len());
    let sentence = text[..end].trim_end_matches('.');
    let mut chars = sentence.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}
