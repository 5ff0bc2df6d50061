//! The closed list of filters, and how a chain is built from it.
//!
//! A new filter is one file and three lines here: its variant, its name, and its layer. The compiler finds all three.
//! Filters are boxed at this seam and nowhere else, so each filter is an ordinary generic tower layer, and the order is
//! whatever the YAML says.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::{Layer, Service};

use crate::{Body, Error, circuit_breaker, initial_message, metrics, sequence};

/// A filter that a route may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Counts streams, bytes and messages by route.
    Metrics(metrics::Config),
    /// Refuses streams whose messages are not numbered one after another.
    Sequence(sequence::Config),
    /// Waits for the first message of a gRPC stream, and tells fields of it in headers.
    InitialMessage(initial_message::Config),
    /// Gives a failing upstream a rest: answers at once instead of asking it.
    CircuitBreaker(circuit_breaker::Config),
}

/// What the filters of a chain are built with.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The route that the chain serves.
    pub route: &'a str,
    /// What the chain leads to, in words for messages: `cluster greeter`, `binding orders`.
    pub target: &'a str,
    /// The binding that it leads to, if it does.
    pub binding: Option<&'a str>,
    /// The number of the worker that it belongs to.
    pub worker: usize,
    /// Where its counters are kept.
    pub metrics: &'a metrics::Registry,
    /// Where its breakers are found.
    pub breakers: &'a circuit_breaker::Registry,
}

/// The rest of a stream's way, whatever it is made of. It belongs to one worker and never leaves its thread.
pub struct Chain(
    Box<dyn Service<Request<Body>, Response = Response<Body>, Error = Error, Future = ChainFuture>>,
);

/// A response in the making.
pub type ChainFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>>>>;

/// Makes one type of all services.
struct Boxed<S>(S);

// === impl Filter ===

impl Filter {
    /// The filter's name in the YAML.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Metrics(_) => "metrics",
            Self::Sequence(_) => "sequence",
            Self::InitialMessage(_) => "initial_message",
            Self::CircuitBreaker(_) => "circuit_breaker",
        }
    }

    /// Whether it has to read messages, and so refuses what is not gRPC.
    pub fn reads_messages(&self) -> bool {
        match self {
            Self::Sequence(_) => true,
            Self::InitialMessage(config) => config.reads(),
            Self::Metrics(_) | Self::CircuitBreaker(_) => false,
        }
    }

    fn wrap<S>(&self, inner: S, surroundings: Surroundings<'_>) -> Chain
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Error> + 'static,
        S::Future: 'static,
    {
        match self {
            Self::Sequence(config) => {
                Chain::new(sequence::SequenceLayer::new(config, surroundings.route).layer(inner))
            }
            Self::InitialMessage(config) => {
                Chain::new(initial_message::InitialMessageLayer::new(config).layer(inner))
            }
            Self::Metrics(_) => {
                let binding = surroundings.binding;
                let binding = binding.map(|name| surroundings.metrics.binding(name));
                let stats = (surroundings.metrics).route(surroundings.route, surroundings.worker);
                Chain::new(
                    metrics::MetricsLayer::new(stats)
                        .with_binding(binding)
                        .layer(inner),
                )
            }
            Self::CircuitBreaker(config) => {
                let breaker = surroundings.breakers.breaker(surroundings.target, config);
                Chain::new(circuit_breaker::CircuitBreakerLayer::new(breaker).layer(inner))
            }
        }
    }
}

// === impl Chain ===

impl Chain {
    /// Boxes a service.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Error> + 'static,
        S::Future: 'static,
    {
        Self(Box::new(Boxed(service)))
    }

    /// Puts `filters`, the outermost first, around `inner`.
    pub fn build<S>(filters: &[Filter], surroundings: Surroundings<'_>, inner: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Error> + 'static,
        S::Future: 'static,
    {
        let Some((innermost, others)) = filters.split_last() else {
            return Self::new(inner);
        };
        // What is innermost is known, and needs no box of its own.
        let chain = innermost.wrap(inner, surroundings);
        (others.iter().rev()).fold(chain, |chain, filter| filter.wrap(chain, surroundings))
    }
}

impl Service<Request<Body>> for Chain {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ChainFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ChainFuture {
        self.0.call(request)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

// === impl Boxed ===

impl<S> Service<Request<Body>> for Boxed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
    S::Future: 'static,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = ChainFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ChainFuture {
        Box::pin(self.0.call(request))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;
    use crate::{StreamContext, stream::Protocol};

    #[tokio::test]
    async fn chain_of_all_filters_passes_a_stream() {
        let registry = metrics::Registry::default();
        let surroundings = Surroundings {
            route: "greeter",
            target: "cluster greeter",
            binding: None,
            worker: 0,
            metrics: &registry,
            breakers: &circuit_breaker::Registry::default(),
        };
        let filters = [
            Filter::Metrics(metrics::Config {}),
            Filter::Sequence(sequence::Config::default()),
            Filter::CircuitBreaker(circuit_breaker::Config::default()),
        ];

        let mut chain = Chain::build(
            &filters,
            surroundings,
            service_fn(async |_| Ok(Response::new(Body::full("hello")))),
        );

        let mut request = Request::new(Body::empty());
        let stream = StreamContext::new(Protocol::Grpc, Instant::now(), None);
        request.extensions_mut().insert(stream);

        assert!(chain.call(request).await.is_ok());
    }
}
