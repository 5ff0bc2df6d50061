//! `thalweg bindings`: asks a running proxy which bindings it serves, and what they can do.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use serde::Deserialize;

use super::{
    exit::{self, Class, Failure, visible},
    operator::Operator,
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
            let answer = self.operator.get("/bindings").await?;
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

pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::of_output("standard output", &error))
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

/// Rows of as many cells each, the first of them the heading; all columns but the last are as wide as their widest cell.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let mut lines = String::new();
    for row in rows {
        let (last, others) = row.split_last().expect("a row has cells");
        for (column, cell) in others.iter().enumerate() {
            let padding = width(column) - cell.chars().count() + 2;
            lines.push_str(cell);
            lines.extend(std::iter::repeat_n(' ', padding));
        }
        lines.push_str(last);
        lines.push('\n');
    }
    lines
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
