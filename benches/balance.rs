//! What it costs to choose an endpoint among a thousand, by each way to choose.
//!
//! The key is hashed each time as well. In the second half, every second endpoint is down.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderName;
use thalweg::{
    config::Balance,
    upstream::{
        choose::Chooser,
        endpoint::Endpoint,
        roster::{Roster, hash},
    },
};

const ENDPOINTS: u16 = 1000;

/// A thousand endpoints of three weights, of which every `down`-th is down; 0 for none.
fn chooser(policy: &Balance, down: usize) -> Chooser {
    let endpoints = (1..=ENDPOINTS).map(|port| {
        let address = format!("10.0.0.1:{port}").parse().expect("an address");
        Arc::new(Endpoint::new(
            address,
            u32::from(port % 3 + 1),
            Duration::ZERO,
        ))
    });
    let roster = Arc::new(Roster::new(endpoints, policy));
    for endpoint in roster.endpoints().iter().step_by(down.max(1)) {
        endpoint.set_healthy(down == 0);
    }
    Chooser::new(roster, policy)
}

fn choose(criterion: &mut Criterion) {
    let ring = Balance::RingHash {
        header: HeaderName::from_static("x-user"),
    };
    let mut group = criterion.benchmark_group("choose among 1000");
    for (name, policy, down) in [
        ("least_streams", Balance::LeastStreams, 0),
        ("round_robin", Balance::RoundRobin, 0),
        ("ring_hash", ring.clone(), 0),
        ("least_streams, half are down", Balance::LeastStreams, 2),
        ("round_robin, half are down", Balance::RoundRobin, 2),
        ("ring_hash, half are down", ring, 2),
    ] {
        let mut chooser = chooser(&policy, down);
        let mut user = 0_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                user += 1;
                let key = hash(&user.to_le_bytes());
                black_box(chooser.choose(Some(key), |_| false))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, choose);
criterion_main!(benches);
