//! What it costs to look at gRPC frames: by size of the messages, and by how they are cut into chunks.
//!
//! Throughput is of the bytes looked at. Only the heads are touched, so it grows with the size of the messages; where it
//! does not, a loop over payload has crept in.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use thalweg_proto::FrameInspector;

const TOTAL: usize = 1 << 20;

fn frames(message: usize) -> Vec<u8> {
    let mut head = vec![0];
    head.extend(u32::try_from(message).expect("small").to_be_bytes());
    let mut bytes = Vec::with_capacity(TOTAL + message + head.len());
    while bytes.len() < TOTAL {
        bytes.extend_from_slice(&head);
        bytes.resize(bytes.len() + message, 7);
    }
    bytes
}

fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/count");
    for message in [20, 100, 1024, 64 * 1024] {
        let bytes = frames(message);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        for chunk in [1024, 16 * 1024, 64 * 1024] {
            group.bench_with_input(
                BenchmarkId::new(
                    format!("messages of {message}"),
                    format!("chunks of {chunk}"),
                ),
                &bytes,
                |bencher, bytes| {
                    bencher.iter(|| {
                        let mut frames = FrameInspector::new();
                        for chunk in bytes.chunks(chunk) {
                            frames.count(black_box(chunk)).expect("the frames are good");
                        }
                        frames.messages()
                    });
                },
            );
        }
    }
    group.finish();
}

fn inspect(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/inspect");
    for message in [20, 1024, 64 * 1024] {
        let bytes = frames(message);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(
            BenchmarkId::new("messages of", message),
            &bytes,
            |bencher, bytes| {
                bencher.iter(|| {
                    let mut frames = FrameInspector::new();
                    bytes
                        .chunks(16 * 1024)
                        .map(|chunk| frames.inspect(black_box(chunk)).count())
                        .sum::<usize>()
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, count, inspect);
criterion_main!(benches);
