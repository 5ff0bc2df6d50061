//! The proxy's own `grpc.health.v1.Health`: load balancers and probes ask it whether to send streams here.
//!
//! **Why.** Whoever speaks gRPC asks for health where it would send its calls: on the listener, over the same connection. The admin
//! endpoints answer over HTTP/1.1 and on a port that strangers do not reach.
//!
//! **How.** Behind all routes of the file stands one more, which leads here. So a route that takes these calls comes first, and where
//! one route takes everything, the health service that clients reach is the upstream's, as it was without the proxy.
//!
//! The service with the empty name is the proxy: it serves until it drains. Those who watch hear of that at once, and then
//! their streams end, since a stream that waits for news would hold the drain up.

use std::{future::poll_fn, pin::Pin, rc::Rc, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, Request, Response, header, request::Parts};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use thalweg_filters::{Body, Chunk, Error, Side, StreamContext, stream::Protocol};
use thalweg_proto::{
    bindings::{Message, framed},
    health::{CHECK, HealthCheckRequest, HealthCheckResponse, SERVICE, ServingStatus, WATCH},
    status::Code,
};
use tokio::sync::watch;

use crate::{
    config::{self, Config, Destination, HealthService, Match, PathMatch, Route},
    drain::Phase,
    router::covers,
    telemetry::Process,
};

/// The longest request that is read: the name of a service, and that of a cluster is never so long.
const REQUEST_MAX: usize = 4 * 1024;

/// One worker's health service.
pub(crate) struct Health {
    settings: HealthService,
    phases: watch::Receiver<Phase>,
    process: Arc<Process>,
}

/// A client that is told of every change.
struct Watcher {
    health: Rc<Health>,
    service: String,
    told: Option<ServingStatus>,
    phases: watch::Receiver<Phase>,
    _place: Place,
}

/// One of `health_service.max_watchers`.
struct Place(Arc<Process>);

// === impl Health ===

impl Health {
    pub(crate) fn new(
        settings: &HealthService,
        phases: watch::Receiver<Phase>,
        process: Arc<Process>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            phases,
            process,
        }
    }

    /// What the calls look like that it answers.
    pub(crate) fn matches() -> Match {
        Match {
            path: Some(PathMatch::Service {
                service: SERVICE.into(),
                method: None,
            }),
            ..Match::default()
        }
    }

    /// Before which route it comes: behind all others, unless one of them would take its calls and cannot carry them, since gRPC
    /// does not go over HTTP/1.1.
    pub(crate) fn place(config: &Config) -> usize {
        let asked = Self::matches();
        let in_the_way = |route: &Route| match &route.destination {
            Destination::Clusters(targets) => {
                let mut protocols = targets.iter().map(|target| target.cluster.protocol);
                protocols.all(|protocol| protocol == config::Protocol::Http1)
                    && covers(&route.matches, &asked)
            }
            Destination::RoutesBelow => false,
        };
        let first = config.routes.iter().position(in_the_way);
        first.unwrap_or(config.routes.len())
    }

    /// Whether a request asks how the proxy is.
    pub(crate) fn is_asked_by(request: &Request<Body>) -> bool {
        [CHECK, WATCH].contains(&request.uri().path())
    }

    /// Answers a call.
    pub(crate) async fn call(
        self: Rc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let (parts, mut body) = request.into_parts();
        let path = parts.uri.path();
        if !is_grpc(&parts) || ![CHECK, WATCH].contains(&path) {
            let message = format!("no route for {path:.256}");
            let error = Error::new(Code::Unimplemented, "no_route", Side::Client, message);
            return Err(error.with_http_status(404));
        }
        let HealthCheckRequest { service } = asked(&mut body).await?;
        let body = if path == WATCH {
            self.watch(service)?
        } else {
            self.check(&service)?
        };
        let mut response = Response::new(body);
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, grpc);
        Ok(response)
    }

    fn check(&self, service: &str) -> Result<Body, Error> {
        let status = self.status(service);
        if status == ServingStatus::ServiceUnknown {
            let message =
                format!("no service `{service:.256}`: ask with the empty name for the proxy");
            return Err(Error::new(
                Code::NotFound,
                "unknown_service",
                Side::Client,
                message,
            ));
        }
        let ok = [("grpc-status", Code::Ok.as_str())].map(|(name, value)| {
            (
                name.parse().expect("a name"),
                HeaderValue::from_static(value),
            )
        });
        Ok(Body::with_trailers(
            message(status),
            ok.into_iter().collect(),
        ))
    }

    fn watch(self: Rc<Self>, service: String) -> Result<Body, Error> {
        let most = self.settings.max_watchers;
        let Some(place) = Place::take(&self.process, most) else {
            return Err(Error::new(
                Code::ResourceExhausted,
                "too_many_watchers",
                Side::Proxy,
                format!("{most} streams already watch (health_service.max_watchers)"),
            ));
        };
        let watcher = Watcher {
            phases: self.phases.clone(),
            health: self,
            service,
            told: None,
            _place: place,
        };
        let news = stream::unfold(watcher, async |mut watcher| {
            let news = watcher.news().await;
            Some((news.map(Frame::data), watcher))
        });
        Ok(Body::new(StreamBody::new(news)))
    }

    fn status(&self, service: &str) -> ServingStatus {
        if !service.is_empty() {
            ServingStatus::ServiceUnknown
        } else if *self.phases.borrow() >= Phase::Leaving {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        }
    }
}

/// Health is asked for over gRPC only.
fn is_grpc(parts: &Parts) -> bool {
    let stream = parts.extensions.get::<StreamContext>();
    stream.is_some_and(|stream| stream.protocol() == Protocol::Grpc)
}

/// The first message of a request. What follows it is let go of.
async fn asked(body: &mut Body) -> Result<HealthCheckRequest, Error> {
    let malformed = |what: &str| {
        let message = format!("the request cannot be read: {what}");
        Error::new(
            Code::InvalidArgument,
            "malformed_message",
            Side::Client,
            message,
        )
    };
    let mut read = BytesMut::new();
    loop {
        if let Some((&[flag, ref length @ ..], rest)) = read.split_first_chunk::<5>() {
            let length = u32::from_be_bytes(*length) as usize;
            if flag != 0 {
                return Err(malformed("it is compressed"));
            }
            if length > REQUEST_MAX {
                return Err(malformed("it is longer than any name"));
            }
            if let Some(message) = rest.get(..length) {
                return HealthCheckRequest::decode(message)
                    .map_err(|error| malformed(&error.to_string()));
            }
        }
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            Some(frame) => {
                if let Ok(chunk) = frame?.into_data() {
                    read.extend_from_slice(chunk.as_slice());
                }
            }
            None => return Err(malformed("it ended before its message")),
        }
    }
}

fn message(status: ServingStatus) -> Bytes {
    framed(&HealthCheckResponse::from(status))
}

// === impl Watcher ===

impl Watcher {
    /// The next change, or the end.
    async fn news(&mut self) -> Result<Chunk, Error> {
        loop {
            let drains = *self.phases.borrow_and_update() == Phase::Draining;
            let status = self.health.status(&self.service);
            if self.told.replace(status) != Some(status) {
                return Ok(Chunk::from(message(status)));
            }
            if drains {
                return Err(Error::new(
                    Code::Unavailable,
                    "drain",
                    Side::Proxy,
                    "the proxy drains",
                ));
            }
            // The sender is gone when the whole proxy is, and this stream with it.
            let _ = self.phases.changed().await;
        }
    }
}

// === impl Place ===

impl Place {
    fn take(process: &Arc<Process>, most: usize) -> Option<Self> {
        if process.health_watchers.increment_below(most as u64) {
            return Some(Self(Arc::clone(process)));
        }
        process.health_watcher_overflows.increment();
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.health_watchers.decrement();
    }
}
