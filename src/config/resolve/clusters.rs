//! Where streams may go.

use std::time::Duration;

use super::{Resolve, http2, or};
use crate::config::bindings::BINDING_CLUSTER;
use crate::config::{Cluster, Pool, raw};
use thalweg_filters::units::Count;

impl Resolve<'_> {
    pub(super) fn cluster(&mut self, name: String, raw: raw::Cluster) -> Cluster {
        let path = format!("clusters.{name}");
        if name.starts_with(BINDING_CLUSTER) {
            let message = format!("names that begin with `{BINDING_CLUSTER}` belong to bindings");
            self.faults.add_key(&path, &message, "choose another name");
        }
        let endpoints = self.endpoints(raw.endpoints, &format!("{path}.endpoints"));
        let balance = self.balance(raw.balance, &format!("{path}.balance"));
        let tls = (raw.tls).map(|tls| self.upstream_tls(tls, &endpoints, &format!("{path}.tls")));
        let pool = resolve_pool(&raw.pool.unwrap_or_default());
        let http2 = raw.http2.unwrap_or_default();
        let streams = pool.max_streams_per_connection;
        let windows = self.upstream_windows(&http2, streams, &format!("{path}.http2"));
        self.pings_to_upstreams(&http2, &format!("{path}.http2"));
        let protocol = raw.protocol.unwrap_or_default();
        let health_check = raw
            .health_check
            .map(|check| self.health_check(check, protocol, &format!("{path}.health_check")));
        let outlier = raw
            .outlier
            .map(|outlier| self.outlier(outlier, &format!("{path}.outlier")));
        Cluster {
            label: format!("cluster {name}"),
            name,
            endpoints,
            balance,
            slow_start: or(raw.slow_start, Duration::ZERO),
            dismiss_removed: raw.dismiss_removed.unwrap_or(false),
            health_check,
            outlier,
            protocol,
            tls,
            http2: http2::resolve(&http2, windows),
            connect_timeout: or(raw.connect_timeout, Cluster::CONNECT_TIMEOUT),
            pool,
            stall: or(raw.stall, Cluster::STALL),
        }
    }
}

fn resolve_pool(raw: &raw::Pool) -> Pool {
    let default = Pool::default();
    Pool {
        max_connections: raw
            .max_connections
            .map_or(default.max_connections, Count::usize),
        max_streams_per_connection: (raw.max_streams_per_connection)
            .map_or(default.max_streams_per_connection, Count::u32),
        max_streams: raw.max_streams.map(Count::usize),
        max_dials: raw.max_dials.map_or(default.max_dials, Count::usize),
        max_pending: raw.max_pending.map(Count::usize),
        wait_timeout: or(raw.wait_timeout, default.wait_timeout),
        avoid_stalled: or(raw.avoid_stalled, default.avoid_stalled),
        max_connection_age: or(raw.max_connection_age, default.max_connection_age),
        idle_timeout: or(raw.idle_timeout, default.idle_timeout),
    }
}
