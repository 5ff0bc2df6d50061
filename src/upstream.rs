//! Upstream connections: one set per worker, so that both connections of a stream live on one thread.
//!
//! | file | what it holds |
//! |---|---|
//! | [`balance`] | which endpoint takes the next stream |
//! | [`connect`] | dialing a socket |
//! | [`http2`] | connections that carry many streams |
//! | [`http1`] | connections that carry one request at a time |

use std::{cell::Cell, io, rc::Rc, sync::Arc};

use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

use crate::{
    config::{self, Address},
    telemetry::ClusterStats,
    tls,
    transport::Transport,
};

pub(crate) mod balance;
pub(crate) mod connect;
pub(crate) mod http1;
pub(crate) mod http2;

/// One worker's connections to a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// What messages call it.
    pub(crate) label: Arc<str>,
    /// Whether its connections are under TLS.
    pub(crate) tls: bool,
    pub(crate) stats: Arc<ClusterStats>,
    pub(crate) endpoints: Endpoints,
    settings: Arc<config::Cluster>,
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
    tls: Option<Arc<tls::Upstream>>,
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
    /// `tls` is what the settings ask for, or `None` if they ask for none.
    pub(crate) fn new(
        settings: &Arc<config::Cluster>,
        tls: Option<Arc<tls::Upstream>>,
        stats: Arc<ClusterStats>,
    ) -> Self {
        let shared = Rc::new(Shared {
            name: settings.name.as_str().into(),
            settings: Arc::clone(settings),
            tls,
            stats: Arc::clone(&stats),
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
            label: settings.label.as_str().into(),
            tls: settings.tls.is_some(),
            stats,
            endpoints,
            settings: Arc::clone(settings),
        }
    }

    /// What it was built from.
    pub(crate) fn settings(&self) -> &Arc<config::Cluster> {
        &self.settings
    }
}

/// No stream will be opened any more. Connections close after their last.
impl Drop for Cluster {
    fn drop(&mut self) {
        match &self.endpoints {
            Endpoints::Http2(pools) => pools.all().iter().for_each(|pool| pool.close()),
            Endpoints::Http1(pools) => pools.all().iter().for_each(|pool| pool.close()),
        }
    }
}

impl Shared {
    /// Connects to an endpoint, under TLS if the cluster has it.
    async fn dial(&self, endpoint: &Address) -> io::Result<Transport> {
        let transport = Transport::new(connect::connect(endpoint).await?);
        if let Some(tls) = &self.tls {
            tls.connect(&transport, endpoint).await?;
        }
        Ok(transport)
    }

    /// Counts a dial that has failed, and makes the error of the streams that have waited for it.
    fn no_connection(&self, endpoint: &Address, error: &io::Error) -> Error {
        self.stats.connect_failures.increment();
        let broken = tls::Broken::of(error);
        let hint = broken.map(|broken| broken.hint);
        tracing::warn!(cluster = %self.name, %endpoint, %error, hint, "no connection");
        let reason = match broken {
            Some(_) => "upstream_tls_failed",
            None => "upstream_connect_failed",
        };
        self.unavailable(reason, format_args!("no connection to {endpoint}: {error}"))
    }

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
