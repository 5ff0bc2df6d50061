//! `thalweg reload`, `drain`, `health` and `status`: what an operator asks of a running proxy, for those without curl.

use std::process::ExitCode;

use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    bindings::{columns, print},
    exit::{self, Class, Failure, visible},
    operator::Operator,
};

/// Make a running proxy read its configuration again.
#[derive(Args, Debug)]
pub(super) struct Reload {
    #[command(flatten)]
    operator: Operator,
}

/// Let a running proxy end as after SIGTERM.
#[derive(Args, Debug)]
pub(super) struct Drain {
    #[command(flatten)]
    operator: Operator,
}

/// Say whether a running proxy takes new streams; the exit code is 0 while it does. For health checks of containers.
#[derive(Args, Debug)]
pub(super) struct Health {
    #[command(flatten)]
    operator: Operator,
}

/// Show the clusters of a running proxy: each endpoint with its state and its streams.
#[derive(Args, Debug)]
pub(super) struct Status {
    /// Print the answer as it comes, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

impl Reload {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let (status, body) = self.operator.ask(Method::POST, "/reload").await?;
            match status {
                StatusCode::OK => print(&body),
                StatusCode::UNPROCESSABLE_ENTITY => {
                    let faults = String::from_utf8_lossy(&body).trim_end().to_owned();
                    Err(Failure::new(Class::Usage, faults))
                }
                _ => Err(self.operator.refused("/reload", status)),
            }
        })
    }
}

impl Drain {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let (status, body) = self.operator.ask(Method::POST, "/drain").await?;
            match status {
                StatusCode::ACCEPTED => print(&body),
                _ => Err(self.operator.refused("/drain", status)),
            }
        })
    }
}

impl Health {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let (status, body) = self.operator.ask(Method::GET, "/readyz").await?;
            match status {
                StatusCode::OK => print(&body),
                StatusCode::SERVICE_UNAVAILABLE => {
                    let message =
                        format!("{} takes no new streams: it drains", self.operator.admin);
                    Err(Failure::new(Class::Unavailable, message))
                }
                _ => Err(self.operator.refused("/readyz", status)),
            }
        })
    }
}

impl Status {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(async {
            let answer = self.operator.get("/clusters").await?;
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
