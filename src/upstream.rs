//! Upstream connections: one set per worker, so that both connections of a stream live on one thread.
//!
//! | file | what it holds |
//! |---|---|
//! | [`balance`] | which endpoint takes the next stream |
//! | [`connect`] | dialing a socket |
//! | [`http2`] | connections that carry many streams |
//! | [`http1`] | connections that carry one request at a time |

use std::{cell::Cell, rc::Rc, sync::Arc};

use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

use crate::{config, telemetry::ClusterStats};

pub(crate) mod balance;
pub(crate) mod connect;
pub(crate) mod http1;
pub(crate) mod http2;

/// One worker's connections to a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: Arc<str>,
    /// What messages call it.
    pub(crate) label: Arc<str>,
    pub(crate) endpoints: Endpoints,
}

/// The endpoints of a cluster, by the protocol that they speak.
#[derive(Debug)]
pub(crate) enum Endpoints {
    Http2(balance::Balance<http2::Pool>),
    Http1(balance::Balance<http1::Pool>),
}

/// What the connections of one cluster have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Arc<config::Cluster>,
    pub(crate) stats: Arc<ClusterStats>,
    /// Streams that wait for a connection.
    pending: Cell<usize>,
}

/// One stream that waits for a connection, for as long as it does.
#[derive(Debug)]
struct Pending<'a>(&'a Shared);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get() - 1);
        self.0.stats.pending.decrement();
    }
}

impl Cluster {
    pub(crate) fn new(settings: &Arc<config::Cluster>, stats: Arc<ClusterStats>) -> Self {
        let name: Arc<str> = settings.name.as_str().into();
        let shared = Rc::new(Shared {
            name: Arc::clone(&name),
            settings: Arc::clone(settings),
            stats,
            pending: Cell::new(0),
        });
        let addresses = settings.endpoints.iter().cloned();
        let endpoints = match settings.protocol {
            config::Protocol::Http2 => Endpoints::Http2(
                addresses
                    .map(|address| http2::Pool::new(Rc::clone(&shared), address))
                    .collect(),
            ),
            config::Protocol::Http1 => Endpoints::Http1(
                addresses
                    .map(|address| http1::Pool::new(Rc::clone(&shared), address))
                    .collect(),
            ),
        };
        Self {
            name,
            label: settings.label.as_str().into(),
            endpoints,
        }
    }
}

impl Shared {
    /// The error of a stream that found no connection.
    fn unavailable(&self, reason: &'static str, what: impl std::fmt::Display) -> Error {
        Error::new(
            Code::Unavailable,
            reason,
            Side::Upstream,
            format!("{}: {what}", self.settings.label),
        )
    }

    /// One more stream that waits for a connection, or a refusal.
    fn pending(&self) -> Result<Pending<'_>, Error> {
        let most = self.settings.pool.max_pending;
        if self.pending.get() >= most {
            self.stats.pending_overflows.increment();
            return Err(self.unavailable(
                "upstream_pending_overflow",
                format_args!("{most} streams already wait for a connection (pool.max_pending)"),
            ));
        }
        self.pending.set(self.pending.get() + 1);
        self.stats.pending.increment();
        Ok(Pending(self))
    }

    fn too_late(&self) -> Error {
        self.stats.connect_timeouts.increment();
        self.unavailable(
            "upstream_connect_timeout",
            format_args!(
                "no connection within {:?} (connect_timeout)",
                self.settings.connect_timeout
            ),
        )
    }
}
