//! The end of a route's chain: picks the cluster, opens a stream there, and joins the two.
//!
//! | file | what it holds |
//! |---|---|
//! | [`http2`] | the exchange with an HTTP/2 upstream: gRPC and plain HTTP |
//! | [`http1`] | the exchange with an HTTP/1.1 upstream: plain HTTP |

use std::{cell::Cell, rc::Rc, time::Duration};

use http::{Request, Response};
use thalweg_filters::{Body, Error};

use crate::upstream::{Cluster, Endpoints};

pub(crate) mod http1;
pub(crate) mod http2;

/// Where a route leads.
#[derive(Debug)]
pub(crate) struct Forward {
    targets: Vec<Target>,
    stall: Duration,
}

#[derive(Debug)]
struct Target {
    cluster: Rc<Cluster>,
    weight: i64,
    /// How far the target is behind its share.
    owed: Cell<i64>,
}

impl Forward {
    /// To clusters by weight. `stall` is the route's `timeouts.stall`.
    pub(crate) fn new(
        targets: impl IntoIterator<Item = (Rc<Cluster>, u32)>,
        stall: Duration,
    ) -> Self {
        let targets = targets
            .into_iter()
            .map(|(cluster, weight)| Target {
                cluster,
                weight: weight.into(),
                owed: Cell::new(0),
            })
            .collect();
        Self { targets, stall }
    }

    /// Sends a request on, and answers with the head of the response; the bodies go on moving as the response's is read.
    pub(crate) async fn call(
        self: Rc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        send(self.cluster(), request, self.stall).await
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

/// Sends a request to a cluster; see [`Forward::call`].
pub(crate) async fn send(
    cluster: &Cluster,
    request: Request<Body>,
    stall: Duration,
) -> Result<Response<Body>, Error> {
    match &cluster.endpoints {
        Endpoints::Http2(endpoints) => http2::exchange(cluster, endpoints, request, stall).await,
        // Far larger than the other, and so not a part of this future.
        Endpoints::Http1(endpoints) => Box::pin(http1::exchange(cluster, endpoints, request)).await,
    }
}
