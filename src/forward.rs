//! The end of a route's chain: picks the cluster, opens a stream there, and joins the two.
//!
//! | file | what it holds |
//! |---|---|
//! | [`http2`] | the exchange with an HTTP/2 upstream: gRPC and plain HTTP |
//! | [`http1`] | the exchange with an HTTP/1.1 upstream: plain HTTP |

use std::{cell::Cell, future::Future, rc::Rc};

use futures_util::future::Either;
use http::{Request, Response};
use http_body::Frame;
use thalweg_filters::{Body, Chunk, Error, Side, ending::Ending};
use thalweg_proto::status::Code;

use crate::{
    config::{self, RouteTimeouts},
    patience::Patience,
    retry::Retries,
    upstream::{Cluster, Endpoints, outlier::Trial},
};

pub(crate) mod http1;
pub(crate) mod http2;

/// Where a route leads.
#[derive(Debug)]
pub(crate) struct Forward {
    targets: Vec<Target>,
    timeouts: RouteTimeouts,
    retries: Retries,
}

#[derive(Debug)]
struct Target {
    cluster: Rc<Cluster>,
    weight: i64,
    /// How far the target is behind its share.
    owed: Cell<i64>,
}

impl Forward {
    /// To clusters by weight, with the timeouts and retries of the route.
    pub(crate) fn new(
        targets: impl IntoIterator<Item = (Rc<Cluster>, u32)>,
        route: &config::Route,
    ) -> Self {
        let targets = targets
            .into_iter()
            .map(|(cluster, weight)| Target {
                cluster,
                weight: weight.into(),
                owed: Cell::new(0),
            })
            .collect();
        Self {
            targets,
            timeouts: route.timeouts,
            retries: Retries::new(&route.retry),
        }
    }

    /// Sends a request on, and answers with the head of the response; the bodies go on moving as the response's is read.
    pub(crate) async fn call(
        self: Rc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let retries = Some(&self.retries);
        exchange(self.cluster(), request, &self.timeouts, retries).await
    }

    /// Each target in turn by its share, evenly spread: every turn, each is owed its weight, and the one that is owed the most
    /// pays for all.
    fn cluster(&self) -> &Cluster {
        if let [only] = self.targets.as_slice() {
            return &only.cluster;
        }
        let mut total = 0;
        for target in &self.targets {
            total += target.weight;
            target.owed.set(target.owed.get() + target.weight);
        }
        let chosen = self
            .targets
            .iter()
            .max_by_key(|target| target.owed.get())
            .expect("a route has a target; the configuration refuses one without");
        chosen.owed.set(chosen.owed.get() - total);
        &chosen.cluster
    }
}

/// Sends a request to a cluster, once; see [`Forward::call`].
pub(crate) async fn send(
    cluster: &Cluster,
    request: Request<Body>,
    timeouts: &RouteTimeouts,
) -> Result<Response<Body>, Error> {
    exchange(cluster, request, timeouts, None).await
}

fn exchange(
    cluster: &Cluster,
    request: Request<Body>,
    timeouts: &RouteTimeouts,
    retries: Option<&Retries>,
) -> impl Future<Output = Result<Response<Body>, Error>> {
    match &cluster.endpoints {
        Endpoints::Http2(endpoints) => Either::Left(http2::exchange(
            cluster, endpoints, request, timeouts, retries,
        )),
        // Far larger than the other, and so not a part of this future.
        Endpoints::Http1(endpoints) => Either::Right(Box::pin(http1::exchange(
            cluster, endpoints, request, timeouts,
        ))),
    }
}

/// Lets a frame of an answer tell how the stream went, if it is the last.
fn judge(trial: &mut Option<Trial>, frame: Option<&Result<Frame<Chunk>, Error>>) {
    if trial.is_some()
        && let Some(ending) = Ending::of_frame(frame)
        && let Some(trial) = trial.take()
    {
        match frame {
            Some(Err(error)) => trial.fails(error),
            _ => trial.ends(ending),
        }
    }
}

/// A place on a connection within `timeouts.connect`, if that is set. The cluster has limits of its own, for a dial and for the wait.
async fn connected<T>(
    cluster: &Cluster,
    timeouts: &RouteTimeouts,
    open: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let limit = timeouts.connect;
    if limit.is_zero() {
        return open.await;
    }
    let opened = Patience::new(limit).with(open).await;
    opened.unwrap_or_else(|| {
        let message = format!(
            "{}: no connection within {limit:?} (timeouts.connect)",
            cluster.label
        );
        Err(Error::new(
            Code::Unavailable,
            "upstream_connect_timeout",
            Side::Upstream,
            message,
        ))
    })
}
