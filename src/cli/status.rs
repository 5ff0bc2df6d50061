//! `thalweg status`: asks a running proxy for its clusters and the state of their endpoints.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::{
    exit::{self, Class, Failure, visible},
    operator::{Operator, columns, print},
};

/// Show the clusters of a running proxy: each endpoint with its state and its streams.
#[derive(Args, Debug)]
pub(super) struct Status {
    /// Print the answer as it comes, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

// === impl Status ===

impl Status {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let answer = self.operator.ask(Method::GET, "/clusters").await?;
            if self.json {
                return print(&answer);
            }
            let clusters: Value = serde_json::from_slice(&answer).map_err(|error| {
                let message = format!(
                    "{} answers what is no list of clusters: {error}",
                    self.operator.admin
                );
                Failure::new(Class::Protocol, message)
            })?;
            print(table(&clusters).as_bytes())
        })
    }
}

/// Each endpoint of each cluster in columns, with a heading.
fn table(clusters: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => visible(text),
        other => other.to_string(),
    };
    let mut rows = vec![
        ["CLUSTER", "ENDPOINT", "STATE", "STREAMS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, cluster) in clusters.as_object().into_iter().flatten() {
        for endpoint in cluster["endpoints"].as_array().into_iter().flatten() {
            rows.push(vec![
                visible(name),
                text(&endpoint["address"]),
                text(&endpoint["state"]),
                text(&endpoint["streams"]),
            ]);
        }
        if let Some(fault) = cluster["fault"].as_str() {
            rows.push(vec![
                visible(name),
                "-".into(),
                "stale".into(),
                visible(fault),
            ]);
        }
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_endpoint_has_a_line() {
        let clusters = json!({
            "greeter": {"available": 1, "endpoints": [
                {"address": "127.0.0.1:1", "weight": 1, "state": "available", "streams": 7},
                {"address": "127.0.0.1:22222", "weight": 1, "state": "unreachable", "streams": 0},
            ]},
            "named": {"available": 0, "endpoints": [], "fault": "cannot look up x"},
        });

        assert_eq!(
            table(&clusters),
            "CLUSTER  ENDPOINT         STATE        STREAMS\n\
             greeter  127.0.0.1:1      available    7\n\
             greeter  127.0.0.1:22222  unreachable  0\n\
             named    -                stale        cannot look up x\n"
        );
    }
}
