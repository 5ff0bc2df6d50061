//! What the filter chain costs: a stream through no filter, and through each.
//!
//! The difference to `none` is what a filter adds to a unary call (one message each way) and to each message of a stream.

use std::{
    hint::black_box,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use thalweg_filters::{
    Body, Chunk, Error, StreamContext,
    chain::{Chain, Filter, Surroundings},
    circuit_breaker, metrics,
    stream::Protocol,
};
use tokio::time::Instant;
use tower::{Service, service_fn};

/// So many messages, then trailers.
struct Messages(u32);

impl http_body::Body for Messages {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";
        Poll::Ready(match self.0 {
            0 => None,
            1 => {
                self.0 = 0;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => {
                self.0 -= 1;
                Some(Ok(Frame::data(Chunk::from(Bytes::from_static(MESSAGE)))))
            }
        })
    }
}

fn drain(mut body: Body) {
    let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
        let _ = black_box(frame);
    }
}

fn stream(chain: &mut Chain) {
    let mut request = Request::new(Body::new(Messages(2)));
    let context = StreamContext::new(Protocol::Grpc, Instant::now(), None);
    request.extensions_mut().insert(context);
    let response = chain
        .call(request)
        .now_or_never()
        .expect("nothing waits")
        .expect("nothing fails");
    drain(response.into_body());
}

fn chains(criterion: &mut Criterion) {
    let breaker = circuit_breaker::Config::default();
    let all: [(&str, &[Filter]); 3] = [
        ("none", &[]),
        ("metrics", &[Filter::Metrics(metrics::Config {})]),
        ("circuit_breaker", &[Filter::CircuitBreaker(breaker)]),
    ];
    let mut group = criterion.benchmark_group("chain");
    for (name, filters) in all {
        for messages in [1, 1000] {
            let registry = metrics::Registry::default();
            let breakers = circuit_breaker::Registry::default();
            let surroundings = Surroundings {
                worker: 0,
                route: "bench",
                target: "cluster bench",
                binding: None,
                metrics: &registry,
                breakers: &breakers,
            };
            let end = service_fn(move |request: Request<Body>| async move {
                drain(request.into_body());
                Ok(Response::new(Body::new(Messages(messages + 1))))
            });
            let mut chain = Chain::build(filters, surroundings, end);
            group.bench_function(
                BenchmarkId::new(name, format!("{messages} messages")),
                |bencher| {
                    bencher.iter(|| stream(&mut chain));
                },
            );
        }
    }
    group.finish();
}

criterion_group!(benches, chains);
criterion_main!(benches);
