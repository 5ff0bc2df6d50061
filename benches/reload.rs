//! How long a reload takes at a thousand routes: from the file's text to the answer of the last worker.
//!
//! Between two reloads one route changes, as it does when somebody edits a file; and, for the worst case, all of them.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that meets an error has failed"
)]

use std::{fmt::Write as _, time::Duration};

use thalweg::{app::App, config};
use tokio::time::Instant;

const ROUTES: usize = 1000;
const CLUSTERS: usize = 100;

/// A thousand routes with the filters that a route commonly has; `changed` of them differ by `round`.
fn yaml(changed: usize, round: usize) -> String {
    let mut yaml = String::from(
        "admin: {address: none}\nworkers: 2\nlisteners: [{name: it, address: \"127.0.0.1:0\"}]\n\
         filters: [metrics, circuit_breaker]\nclusters:\n",
    );
    for cluster in 0..CLUSTERS {
        let port = 10_000 + cluster;
        let _ = writeln!(yaml, "  c{cluster}: {{endpoints: [127.0.0.1:{port}]}}");
    }
    yaml.push_str("routes:\n");
    for route in 0..ROUTES {
        let path = if route < changed {
            format!("/package.Service{route}/Method{round}")
        } else {
            format!("/package.Service{route}/")
        };
        let cluster = route % CLUSTERS;
        let _ = writeln!(
            yaml,
            "  - name: route-{route}\n    match: {{path_prefix: {path}, headers: {{x-tenant: blue}}}}\n    cluster: c{cluster}"
        );
    }
    yaml
}

fn median(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort();
    (all[all.len() / 2], all[all.len() - 1])
}

async fn measure(app: &mut App, changed: usize) {
    // `cargo test --benches` wants to know that it runs, and no more.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_bench { 50 } else { 1 };
    let (mut read, mut taken_up) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let yaml = yaml(changed, round);
        let begun = Instant::now();
        let config = config::parse(&yaml, "bench.yaml", &|_| None).unwrap();
        read.push(begun.elapsed());
        let begun = Instant::now();
        let changes = app.reload(config).await.unwrap();
        taken_up.push(begun.elapsed());
        assert!(changes.routes.changed.len() >= changed.min(1));
    }
    let (read, most_read) = median(read);
    let (taken, most_taken) = median(taken_up);
    println!(
        "{ROUTES} routes, {changed} changed: read {read:.1?} (at most {most_read:.1?}), taken up {taken:.1?} (at most {most_taken:.1?})"
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let config = config::parse(&yaml(0, 0), "bench.yaml", &|_| None).unwrap();
        let mut app = App::start(config).await.unwrap();
        measure(&mut app, 1).await;
        measure(&mut app, ROUTES).await;
        app.drain().await;
    });
}
