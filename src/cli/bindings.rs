//! `thalweg bindings`: asks a running proxy which bindings it serves, and what they can do.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde::Deserialize;

use super::{
    exit::{self, Class, Failure, visible},
    operator::{Operator, columns, print},
};

/// List the bindings that a running proxy serves.
#[derive(Args, Debug)]
pub(super) struct Bindings {
    /// Print the answer as it comes, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    kind: String,
    operations: Option<Vec<String>>,
    state: Option<String>,
}

// === impl Bindings ===

impl Bindings {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let answer = self.operator.ask(Method::GET, "/bindings").await?;
            if self.json {
                return print(&answer);
            }
            let listed: Vec<Listed> = serde_json::from_slice(&answer).map_err(|error| {
                let message = format!(
                    "{} answers what is no list of bindings: {error}",
                    self.operator.admin
                );
                Failure::new(Class::Protocol, message)
            })?;
            print(table(&listed).as_bytes())
        })
    }
}

/// The bindings in columns, with a heading.
fn table(listed: &[Listed]) -> String {
    let mut rows = vec![vec!["NAME".to_owned(), "KIND".into(), "OPERATIONS".into()]];
    rows.extend(listed.iter().map(|binding| {
        let operations = match (&binding.operations, binding.state.as_deref()) {
            (_, Some("unavailable")) => "(unavailable)".into(),
            (None, _) => "(any)".into(),
            (Some(operations), _) => operations.join(" "),
        };
        vec![
            visible(&binding.name),
            visible(&binding.kind),
            visible(&operations),
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let listed: Vec<Listed> = serde_json::from_str(
            r#"[
                {"name": "échos", "kind": "echo", "operations": null},
                {"name": "orders-of-today", "kind": "component", "operations": ["create", "get"], "state": "ready"},
                {"name": "gone", "kind": "component", "operations": null, "state": "unavailable"}
            ]"#,
        )
        .unwrap();

        let expected = "\
            NAME             KIND       OPERATIONS\n\
            échos            echo       (any)\n\
            orders-of-today  component  create get\n\
            gone             component  (unavailable)\n";
        assert_eq!(table(&listed), expected);
    }
}
