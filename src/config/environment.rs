//! Fills in `${NAME}` and `${NAME:-default}` from the environment.
//!
//! Every text value is filled in, quoted or not; keys are not. What comes from the environment
//! stays one text value: it can hold a number or a duration, but no list and no further key.
//! `$${NAME}` is the text `${NAME}` itself.

use serde_json::Value;

use super::load::join;
use super::report::Report;

/// Looks up one variable.
pub(super) type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Fills in every text below this value.
pub(super) fn fill(value: &mut Value, path: &str, env: &Environment<'_>, faults: &mut Report) {
    match value {
        Value::String(text) => match expand(text, env) {
            Ok(full) => *text = full,
            Err(Unfilled { message, hint }) => faults.add(path, message, hint),
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{path}[{index}]"), env, faults);
            }
        }
        Value::Object(entries) => {
            for (key, item) in entries {
                fill(item, &join(path, key), env, faults);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Why a text cannot be filled in.
struct Unfilled {
    message: String,
    hint: String,
}

fn expand(text: &str, env: &Environment<'_>) -> Result<String, Unfilled> {
    let mut full = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            full.push_str(&rest[..start]);
            full.push('{');
            rest = &rest[start + 2..];
            continue;
        }
        full.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = inside.find('}') else {
            return Err(Unfilled {
                message: "`${` without `}`".into(),
                hint: "close it, or write `$${` for the characters themselves".into(),
            });
        };
        full.push_str(&look_up(&inside[..end], env)?);
        rest = &inside[end + 1..];
    }
    full.push_str(rest);
    Ok(full)
}

/// The value of `NAME` or `NAME:-default`. As in a shell, an empty variable takes its default.
fn look_up(reference: &str, env: &Environment<'_>) -> Result<String, Unfilled> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if name.is_empty() || !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        return Err(Unfilled {
            message: format!("`${{{reference}}}` does not name an environment variable"),
            hint: "write `${NAME}` or `${NAME:-default}`".into(),
        });
    }
    let value = env(name).filter(|value| !value.is_empty() || default.is_none());
    value
        .or_else(|| default.map(str::to_owned))
        .ok_or_else(|| Unfilled {
            message: format!("the environment variable `{name}` is not set"),
            hint: format!("set it, or give a default: `${{{name}:-default}}`"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, &env).map_err(|unfilled| unfilled.message)
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(expanded("127.0.0.1:${PORT}"), Ok("127.0.0.1:8080".into()));
        assert_eq!(expanded("${PORT}${PORT}"), Ok("80808080".into()));
        assert_eq!(expanded("[${EMPTY}]"), Ok("[]".into()));
        assert_eq!(expanded("$PORT costs 5$"), Ok("$PORT costs 5$".into()));
    }

    #[test]
    fn defaults_stand_in_for_what_is_unset_or_empty() {
        assert_eq!(expanded("${PORT:-1}"), Ok("8080".into()));
        assert_eq!(expanded("${NONE:-[::1]:80}"), Ok("[::1]:80".into()));
        assert_eq!(expanded("${EMPTY:-1}"), Ok("1".into()));
        assert_eq!(expanded("${NONE:-}"), Ok(String::new()));
    }

    #[test]
    fn a_doubled_dollar_stands_for_itself() {
        assert_eq!(
            expanded("$${PORT} is ${PORT}"),
            Ok("${PORT} is 8080".into())
        );
    }

    #[test]
    fn what_is_filled_in_is_not_read_again() {
        let env = |_: &str| Some("${PORT}".to_owned());
        assert!(matches!(expand("${ANY}", &env).as_deref(), Ok("${PORT}")));
    }

    #[test]
    fn what_cannot_be_filled_in_is_a_fault() {
        let unset = "the environment variable `NONE` is not set";
        assert_eq!(expanded("a ${NONE} b"), Err(unset.into()));
        assert_eq!(expanded("${PORT"), Err("`${` without `}`".into()));
        assert!(expanded("${}").is_err());
        assert!(expanded("${A B}").is_err());
    }
}
