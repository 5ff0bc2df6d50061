//! Upstream connections: one set per worker, so that both connections of a stream live on one thread.
//!
//! | file | what it holds |
//! |---|---|
//! | `directory` | which endpoints each cluster has, for the whole process |
//! | [`endpoint`] | one endpoint: where it is, what it carries, whether it can take more |
//! | `check` | asks the endpoints whether they are well |
//! | [`roster`] | the endpoints as they are at one time |
//! | [`choose`] | which of them takes the next stream |
//! | `balance` | one worker's connections to all of them |
//! | `outlier` | takes endpoints out whose streams end badly |
//! | `connect` | dialing a socket |
//! | `http2` | connections that carry many streams |
//! | `http1` | connections that carry one request at a time |

use std::{cell::Cell, io, rc::Rc, sync::Arc};

use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

use self::{balance::Balance, directory::Directory, endpoint::Endpoint};
use crate::{
    config::{self, Address},
    telemetry::ClusterStats,
    tls,
    transport::Transport,
};

pub(crate) mod balance;
mod check;
pub mod choose;
pub(crate) mod connect;
pub(crate) mod directory;
pub mod endpoint;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod outlier;
pub mod roster;

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
    Http2(Rc<Balance<http2::Pool>>),
    Http1(Rc<Balance<http1::Pool>>),
}

/// What the connections of one cluster have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Arc<config::Cluster>,
    tls: Option<Arc<tls::Upstream>>,
    pub(crate) stats: Arc<ClusterStats>,
    /// Where the endpoints come from. It lives for as long as a worker uses it.
    directory: Arc<Directory>,
    /// Streams that wait for a connection.
    pending: Cell<usize>,
}

/// One stream that waits for a connection, for as long as it does.
#[derive(Debug)]
struct Pending<'a>(&'a Shared);

/// One dial that is on its way, for as long as it is.
#[derive(Debug)]
struct Dialing(Arc<ClusterStats>);

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.dialing.decrement();
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get() - 1);
        self.0.stats.pending.decrement();
    }
}

impl Cluster {
    /// With no connection so far; the endpoints are followed from now on. `tls` is what the settings ask for, or `None` if they
    /// ask for none.
    pub(crate) fn new(directory: Arc<Directory>, tls: Option<Arc<tls::Upstream>>) -> Self {
        directory.check_health(tls.as_ref());
        let settings = &directory.settings;
        let shared = Rc::new(Shared {
            name: settings.name.as_str().into(),
            settings: Arc::clone(settings),
            tls,
            stats: Arc::clone(&directory.stats),
            pending: Cell::new(0),
            directory: Arc::clone(&directory),
        });
        let endpoints = match settings.protocol {
            config::Protocol::Http2 => Endpoints::Http2(Balance::new(shared, &directory)),
            config::Protocol::Http1 => Endpoints::Http1(Balance::new(shared, &directory)),
        };
        Self {
            label: settings.label.as_str().into(),
            tls: settings.tls.is_some(),
            stats: Arc::clone(&directory.stats),
            endpoints,
            settings: Arc::clone(settings),
        }
    }

    /// What it was built from.
    pub(crate) fn settings(&self) -> &Arc<config::Cluster> {
        &self.settings
    }
}

impl Shared {
    /// One more dial that is on its way.
    fn dialing(&self) -> Dialing {
        self.stats.dialing.increment();
        Dialing(Arc::clone(&self.stats))
    }

    /// Connects to an endpoint, under TLS if the cluster has it.
    async fn dial(&self, endpoint: &Address) -> io::Result<Transport> {
        let transport = Transport::new(connect::connect(endpoint).await?);
        if let Some(tls) = &self.tls {
            tls.connect(&transport, endpoint).await?;
        }
        Ok(transport)
    }

    /// Counts a dial that has failed, and makes the error of the streams that have waited for it.
    fn no_connection(&self, endpoint: &Endpoint, error: &io::Error) -> Error {
        self.dial_failed(endpoint);
        let endpoint = endpoint.address();
        let broken = tls::Broken::of(error);
        let hint = broken.map(|broken| broken.hint);
        tracing::warn!(cluster = %self.name, %endpoint, %error, hint, "no connection");
        let reason = match broken {
            Some(_) => "upstream_tls_failed",
            None => "upstream_connect_failed",
        };
        self.unavailable(reason, "no connection")
            .with_detail(format_args!("{endpoint}: {error}"))
    }

    /// The same of a dial that has taken too long.
    fn too_late(&self, endpoint: &Endpoint) -> Error {
        self.dial_failed(endpoint);
        self.stats.connect_timeouts.increment();
        let (endpoint, limit) = (endpoint.address(), self.settings.connect_timeout);
        tracing::warn!(cluster = %self.name, %endpoint, ?limit, "no connection in time");
        self.unavailable(
            "upstream_connect_timeout",
            format_args!("no connection within {limit:?} (connect_timeout)"),
        )
        .with_detail(endpoint)
    }

    fn dial_failed(&self, endpoint: &Endpoint) {
        self.stats.connect_failures.increment();
        endpoint.unreachable();
        outlier::went_badly(&self.directory, endpoint);
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

    /// The error of a stream that is one too many. A limit of ours says nothing about the upstream, and a client could bring it
    /// about.
    fn overflow(&self, reason: &'static str, what: impl std::fmt::Display) -> Error {
        self.unavailable(reason, what).with_side(Side::Proxy)
    }

    fn no_endpoints(&self) -> Error {
        self.unavailable("upstream_no_endpoints", "it has no endpoints now")
    }

    /// What streams hear that waited for a connection to an endpoint when it was removed.
    fn removed(&self, endpoint: &Endpoint) -> Error {
        self.unavailable(
            "upstream_endpoint_removed",
            "the endpoint was removed from it",
        )
        .with_detail(endpoint.address())
    }

    /// One more stream that waits for a connection, or a refusal.
    fn pending(&self) -> Result<Pending<'_>, Error> {
        if let Some(most) = self.settings.pool.max_pending
            && self.pending.get() >= most
        {
            self.stats.pending_overflows.increment();
            let what =
                format_args!("{most} streams already wait for a connection (pool.max_pending)");
            return Err(self.overflow("upstream_pending_overflow", what));
        }
        self.pending.set(self.pending.get() + 1);
        self.stats.pending.increment();
        Ok(Pending(self))
    }

    /// Refuses a stream that is one too many for the cluster.
    fn admit(&self) -> Result<(), Error> {
        let streams = self.stats.streams.get() + self.stats.pending.get();
        match self.settings.pool.max_streams {
            Some(most) if streams >= most as u64 => {
                self.stats.too_many_streams.increment();
                let what =
                    format_args!("{most} streams are open or wait already (pool.max_streams)");
                Err(self.overflow("upstream_too_many_streams", what))
            }
            _ => Ok(()),
        }
    }

    /// The error of a stream that got no place because no other connection may be opened.
    fn crowded(&self, endpoint: &Endpoint) -> Error {
        self.stats.too_many_connections.increment();
        self.overflow(
            "upstream_too_many_connections",
            format_args!(
                "all {} connections to an endpoint that may be open are full, and none had room within {:?} (pool.max_connections, pool.wait_timeout)",
                self.settings.pool.max_connections, self.settings.pool.wait_timeout
            ),
        )
        .with_detail(endpoint.address())
    }

    /// The error of a stream that got no place although other connections may be opened.
    fn waited(&self, endpoint: &Endpoint) -> Error {
        self.stats.wait_timeouts.increment();
        self.overflow(
            "upstream_wait_timeout",
            format_args!(
                "no connection had room within {:?} (pool.wait_timeout)",
                self.settings.pool.wait_timeout
            ),
        )
        .with_detail(endpoint.address())
    }

    /// What the streams on an endpoint hear that has been removed.
    fn dismissal(&self, endpoint: &Endpoint) -> Error {
        self.unavailable(
            "endpoint_removed",
            "the endpoint was removed from it (dismiss_removed)",
        )
        .with_detail(endpoint.address())
    }

    /// What they hear when its health checks fail.
    fn found_unhealthy(&self, endpoint: &Endpoint) -> Error {
        self.unavailable(
            "endpoint_unhealthy",
            "the endpoint is not healthy by its checks (health_check.dismiss)",
        )
        .with_detail(endpoint.address())
    }
}
