//! From what was written to what is meant: defaults chosen, texts parsed, names looked up.
//!
//! A value that cannot be resolved is told and something harmless put in its place, so that the
//! search for faults goes on; a [`Config`] with such a stand-in never leaves this module's parent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use thalweg_filters::chain::Filter;

use super::faults::{Faults, suggest};
use super::raw;
use super::units::{Count, Size, Unit};
use super::{
    Address, Admin, AuthorityMatch, Cluster, Config, Http1, Http2, Listener, ListenerTimeouts,
    Match, PathMatch, Pool, Route, RouteTimeouts, ServerHttp2, Target,
};

/// The largest window HTTP/2 knows.
const WINDOW_MAX: u64 = (1 << 31) - 1;

/// The smallest window of a connection HTTP/2 knows.
const CONNECTION_WINDOW_MIN: u64 = (1 << 16) - 1;

/// How many stalled streams a connection must bear before the others stand still.
const STALLED_STREAMS_MIN: u32 = 4;

/// Takes the defaults for what was not written, and tells what makes no sense.
pub(super) fn resolve(raw: raw::Config, faults: &mut Faults) -> Config {
    let mut resolve = Resolve { faults };
    let admin = resolve.admin(raw.admin.unwrap_or_default());
    let listeners = resolve.listeners(raw.listeners, admin.as_ref());
    let filters = resolve.filters(raw.filters.unwrap_or_default(), "filters");
    let clusters: BTreeMap<String, Arc<Cluster>> = (raw.clusters.unwrap_or_default().into_iter())
        .map(|(name, cluster)| (name.clone(), Arc::new(resolve.cluster(name, cluster))))
        .collect();
    let routes = resolve.routes(raw.routes.unwrap_or_default(), &clusters, &filters);
    Config {
        admin,
        workers: raw.workers.map_or_else(cores, Count::usize),
        drain_timeout: or(
            raw.drain.unwrap_or_default().timeout,
            Duration::from_secs(25),
        ),
        listeners,
        clusters: clusters.into_values().collect(),
        routes,
    }
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The duration that was written, or the default.
fn or(written: Option<super::units::Duration>, default: Duration) -> Duration {
    written.map_or(default, Duration::from)
}

struct Resolve<'a> {
    faults: &'a mut Faults,
}

// === admin and listeners ===

impl Resolve<'_> {
    fn admin(&mut self, raw: raw::Admin) -> Option<Admin> {
        let address = match raw.address.as_deref() {
            None => (Ipv4Addr::LOCALHOST, 9901).into(),
            Some("none") => return None,
            Some(text) => match self.address(text, "admin.address") {
                Address::Tcp(address) => address,
                Address::Unix(_) => {
                    let hint = "write an IP address and a port, or `none` for no such port";
                    self.faults
                        .add("admin.address", "must be a TCP address", hint);
                    nowhere()
                }
            },
        };
        if !address.ip().is_loopback() && raw.token.is_none() && !self.faults.covers("admin.token")
        {
            self.faults.add(
                "admin.address",
                format!("`{address}` can be reached from other machines, and there is no token"),
                "add `token: ${ADMIN_TOKEN}` below `admin`, or listen on 127.0.0.1",
            );
        }
        Some(Admin {
            address,
            token: raw.token,
        })
    }

    fn listeners(&mut self, raw: Vec<raw::Listener>, admin: Option<&Admin>) -> Vec<Listener> {
        let mut names = HashMap::new();
        let mut addresses = HashMap::new();
        if let Some(admin) = admin {
            addresses.insert(Address::Tcp(admin.address), "the admin port".to_owned());
        }
        let mut listeners = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("listeners[{index}]");
            self.unique_name(&mut names, &raw.name, &path);

            let listener = self.listener(raw, &path);
            let any_port = matches!(listener.address, Address::Tcp(address) if address.port() == 0);
            let name = format!("the listener `{}`", listener.name);
            if !any_port && let Some(other) = addresses.insert(listener.address.clone(), name) {
                let message = format!("`{}` is taken by {other}", listener.address);
                let path = format!("{path}.address");
                self.faults
                    .add(&path, message, "give each an address of its own");
            }
            listeners.push(listener);
        }
        listeners
    }

    fn listener(&mut self, raw: raw::Listener, path: &str) -> Listener {
        let timeouts = raw.timeouts.unwrap_or_default();
        let http1 = raw.http1.unwrap_or_default();
        let http2 = raw.http2.unwrap_or_default();
        let default = Listener {
            name: raw.name,
            address: self.address(&raw.address, &format!("{path}.address")),
            max_connections: 10_000,
            timeouts: ListenerTimeouts::default(),
            http1: Http1::default(),
            http2: ServerHttp2::default(),
        };
        let windows = self.server_windows(&http2.http2, &format!("{path}.http2"));
        Listener {
            max_connections: raw
                .max_connections
                .map_or(default.max_connections, Count::usize),
            timeouts: ListenerTimeouts {
                preface: or(timeouts.preface, default.timeouts.preface),
                first_headers: or(timeouts.first_headers, default.timeouts.first_headers),
                stall: or(timeouts.stall, default.timeouts.stall),
            },
            http1: Http1 {
                max_headers: http1
                    .max_headers
                    .map_or(default.http1.max_headers, Count::usize),
                max_header_bytes: (http1.max_header_bytes)
                    .map_or(default.http1.max_header_bytes, Size::usize),
                keep_alive: or(http1.keep_alive, default.http1.keep_alive),
            },
            http2: ServerHttp2 {
                max_concurrent_streams: (http2.max_concurrent_streams)
                    .map_or(default.http2.max_concurrent_streams, Count::u32),
                http2: resolve_http2(&http2.http2, windows),
            },
            ..default
        }
    }

    fn address(&mut self, text: &str, path: &str) -> Address {
        text.parse().unwrap_or_else(|bad: super::BadAddress| {
            self.faults.add(path, bad.message, bad.hint);
            Address::Tcp(nowhere())
        })
    }

    /// Names are labels of metrics: two of the same could not be told apart.
    fn unique_name(&mut self, names: &mut HashMap<String, String>, name: &str, path: &str) {
        if let Some(first) = names.insert(name.to_owned(), path.to_owned()) {
            let message = format!("`{name}` is the name of {first} already");
            let path = format!("{path}.name");
            self.faults
                .add(&path, message, "give each a name of its own");
        }
    }
}

/// A stand-in that clashes with nothing.
fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

// === http2 ===

/// Stream window and connection window.
type Windows = (u32, u32);

impl Resolve<'_> {
    fn server_windows(&mut self, raw: &raw::Http2, path: &str) -> Windows {
        let default = u64::from(Http2::default().connection_window);
        let stream = stream_window(raw);
        let least = stream * u64::from(STALLED_STREAMS_MIN);
        self.windows(raw, least, least.max(default), path)
    }

    fn upstream_windows(&mut self, raw: &raw::Http2, streams: u32, path: &str) -> Windows {
        let stream = stream_window(raw);
        let least = stream * u64::from(streams.min(STALLED_STREAMS_MIN));
        self.windows(raw, least, stream * u64::from(streams), path)
    }

    fn windows(&mut self, raw: &raw::Http2, least: u64, default: u64, path: &str) -> Windows {
        let stream = stream_window(raw);
        let show = |size| Unit::Size.show(size);
        let connection = match raw.connection_window {
            Some(Size(written)) => {
                if written < least {
                    self.faults.add(
                        &format!("{path}.connection_window"),
                        format!(
                            "{} is too little for a `stream_window` of {}: a few stalled streams \
                             would stop all others",
                            show(written),
                            show(stream),
                        ),
                        format!("write {} or more, or lower `stream_window`", show(least)),
                    );
                }
                written
            }
            None => {
                if default > WINDOW_MAX {
                    self.faults.add(
                        &format!("{path}.stream_window"),
                        format!(
                            "{} for each stream makes {} for a connection, and HTTP/2 ends below {}",
                            show(stream),
                            show(default),
                            show(WINDOW_MAX + 1),
                        ),
                        "lower it, lower the streams on a connection, or write `connection_window`",
                    );
                }
                default.max(CONNECTION_WINDOW_MIN)
            }
        };
        (Size(stream).u32(), Size(connection.min(WINDOW_MAX)).u32())
    }
}

fn stream_window(raw: &raw::Http2) -> u64 {
    let default = Http2::default().stream_window.into();
    raw.stream_window.map_or(default, |size| size.0)
}

fn resolve_http2(raw: &raw::Http2, (stream_window, connection_window): Windows) -> Http2 {
    let default = Http2::default();
    Http2 {
        stream_window,
        connection_window,
        max_frame_size: raw.max_frame_size.map_or(default.max_frame_size, Size::u32),
        max_header_list_size: (raw.max_header_list_size)
            .map_or(default.max_header_list_size, Size::u32),
        max_headers: raw.max_headers.map_or(default.max_headers, Count::usize),
        send_buffer: raw.send_buffer.map_or(default.send_buffer, Size::usize),
        header_table_size: (raw.header_table_size).map_or(default.header_table_size, Size::u32),
        max_reset_streams: (raw.max_reset_streams).map_or(default.max_reset_streams, Count::usize),
        max_pending_resets: (raw.max_pending_resets)
            .map_or(default.max_pending_resets, Count::usize),
        max_local_resets: raw
            .max_local_resets
            .map_or(default.max_local_resets, Count::usize),
        reset_memory: or(raw.reset_memory, default.reset_memory),
        data_frame_budget: (raw.data_frame_budget)
            .map_or(connection_window as usize / 2, Size::usize),
    }
}

// === clusters ===

impl Resolve<'_> {
    fn cluster(&mut self, name: String, raw: raw::Cluster) -> Cluster {
        let path = format!("clusters.{name}");
        let endpoints = (raw.endpoints.iter().enumerate())
            .map(|(index, text)| self.endpoint(text, &format!("{path}.endpoints[{index}]")))
            .collect();
        let pool = resolve_pool(&raw.pool.unwrap_or_default());
        let http2 = raw.http2.unwrap_or_default();
        let streams = pool.max_streams_per_connection;
        let windows = self.upstream_windows(&http2, streams, &format!("{path}.http2"));
        Cluster {
            name,
            endpoints,
            protocol: raw.protocol.unwrap_or_default(),
            http2: resolve_http2(&http2, windows),
            connect_timeout: or(raw.connect_timeout, Duration::from_secs(2)),
            pool,
            stall: or(raw.stall, Duration::from_secs(60)),
        }
    }

    fn endpoint(&mut self, text: &str, path: &str) -> Address {
        let address = self.address(text, path);
        if matches!(address, Address::Tcp(address) if address.port() == 0) {
            let hint = "write the port that the upstream listens on";
            self.faults
                .add(path, format!("`{text}` has no valid port"), hint);
        }
        address
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
        max_pending: raw.max_pending.map_or(default.max_pending, Count::usize),
        max_connection_age: or(raw.max_connection_age, default.max_connection_age),
        idle_timeout: or(raw.idle_timeout, default.idle_timeout),
    }
}

// === routes ===

impl Resolve<'_> {
    fn routes(
        &mut self,
        raw: Vec<raw::Route>,
        clusters: &BTreeMap<String, Arc<Cluster>>,
        filters: &[Filter],
    ) -> Vec<Route> {
        let mut names = HashMap::new();
        let mut routes = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("routes[{index}]");
            self.unique_name(&mut names, &raw.name, &path);
            routes.push(Route {
                matches: self.matches(raw.matches.unwrap_or_default(), &format!("{path}.match")),
                targets: self.targets(raw.cluster, raw.clusters, clusters, &path),
                timeouts: RouteTimeouts {
                    stall: or(
                        raw.timeouts.unwrap_or_default().stall,
                        RouteTimeouts::default().stall,
                    ),
                },
                filters: match raw.filters {
                    Some(own) => self.filters(own, &format!("{path}.filters")),
                    None => filters.to_vec(),
                },
                name: raw.name,
            });
        }
        routes
    }

    fn targets(
        &mut self,
        one: Option<String>,
        several: Option<Vec<raw::WeightedCluster>>,
        known: &BTreeMap<String, Arc<Cluster>>,
        path: &str,
    ) -> Vec<Target> {
        let cluster_path = format!("{path}.cluster");
        let clusters_path = format!("{path}.clusters");
        let mut look_up = |name: &str, weight, path: &str| {
            let cluster = self.cluster_named(name, known, path)?;
            Some(Target { cluster, weight })
        };
        match (one, several) {
            (Some(name), None) => look_up(&name, 1, &cluster_path).into_iter().collect(),
            (None, Some(several)) => {
                let idle = several.iter().all(|cluster| cluster.weight.0 == 0);
                let targets = (several.iter().enumerate())
                    .filter_map(|(index, cluster)| {
                        let path = format!("{clusters_path}[{index}].name");
                        look_up(&cluster.name, cluster.weight.u32(), &path)
                    })
                    .collect();
                if idle {
                    let hint = "give at least one cluster a weight above `0`";
                    self.faults
                        .add(&clusters_path, "all weights are zero", hint);
                }
                targets
            }
            (Some(_), Some(_)) => {
                let hint = "keep one of the two";
                self.faults
                    .add_key(&clusters_path, "`cluster` is here as well", hint);
                Vec::new()
            }
            (None, None) => {
                if !self.faults.covers(&clusters_path) {
                    let hint = "add `cluster: NAME`, or `clusters` with weights";
                    self.faults.add(&cluster_path, "missing", hint);
                }
                Vec::new()
            }
        }
    }

    fn cluster_named(
        &mut self,
        name: &str,
        known: &BTreeMap<String, Arc<Cluster>>,
        path: &str,
    ) -> Option<Arc<Cluster>> {
        let cluster = known.get(name).cloned();
        // Clusters that could not be read are not to be called unknown.
        if cluster.is_none() && !self.faults.covers("clusters") {
            let hint = suggest(name, known.keys().map(String::as_str));
            self.faults
                .add(path, format!("there is no cluster `{name}`"), hint);
        }
        cluster
    }

    /// Reads each filter with its own types, and none twice.
    fn filters(&mut self, raw: Vec<raw::FilterEntry>, path: &str) -> Vec<Filter> {
        let mut names = HashSet::new();
        let mut filters = Vec::new();
        for (index, raw::FilterEntry(entry)) in raw.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            if self.faults.covers(&path) {
                continue;
            }
            let entry = match entry {
                Value::String(name) => json!({ name: {} }),
                map => map,
            };
            match serde_json::from_value::<Filter>(entry) {
                Ok(filter) if names.insert(filter.name()) => filters.push(filter),
                Ok(filter) => {
                    let message = format!("`{}` is in this list already", filter.name());
                    self.faults.add(&path, message, "remove one of them");
                }
                Err(error) => self.faults.add(&path, error.to_string(), ""),
            }
        }
        filters
    }
}

// === matches ===

impl Resolve<'_> {
    fn matches(&mut self, raw: raw::Match, path: &str) -> Match {
        let ways = [
            ("path", raw.path.is_some()),
            ("path_prefix", raw.path_prefix.is_some()),
            ("grpc", raw.grpc.is_some()),
        ];
        let mut written = ways.iter().filter(|(_, written)| *written);
        if let (Some((first, _)), Some((second, _))) = (written.next(), written.next()) {
            let message = format!("`{first}` is here as well");
            let hint = "keep one of them, and write a second route for the other";
            self.faults
                .add_key(&format!("{path}.{second}"), &message, hint);
        }
        let headers = raw.headers.unwrap_or_default();
        Match {
            path: if let Some(text) = raw.path {
                Some(PathMatch::Exact(self.path(text, &format!("{path}.path"))))
            } else if let Some(text) = raw.path_prefix {
                Some(PathMatch::Prefix(
                    self.path(text, &format!("{path}.path_prefix")),
                ))
            } else {
                raw.grpc
                    .map(|grpc| self.grpc(grpc, &format!("{path}.grpc")))
            },
            authority: (raw.authority)
                .map(|text| self.authority(&text, &format!("{path}.authority"))),
            headers: (headers.iter())
                .filter_map(|(name, value)| {
                    self.header(name, value, &format!("{path}.headers.{name}"))
                })
                .collect(),
        }
    }

    fn path(&mut self, text: String, path: &str) -> String {
        if !text.starts_with('/') {
            let message = format!("`{text}` does not begin with `/`");
            self.faults.add(path, message, format!("write `/{text}`"));
        } else if text.contains(['?', '#']) {
            let hint = "a query plays no part in the choice of a route: leave it out";
            self.faults
                .add(path, format!("`{text}` is more than a path"), hint);
        }
        text
    }

    fn grpc(&mut self, raw: raw::Grpc, path: &str) -> PathMatch {
        if raw.service.contains('/') {
            let hint = "write the name alone, such as `helloworld.Greeter`, and the method \
                        under `method`";
            let message = format!("`{}` is a path", raw.service);
            self.faults.add(&format!("{path}.service"), message, hint);
        }
        if let Some(method) = raw.method.as_ref().filter(|method| method.contains('/')) {
            let hint = "write the name alone, such as `SayHello`";
            self.faults.add(
                &format!("{path}.method"),
                format!("`{method}` is a path"),
                hint,
            );
        }
        PathMatch::Service {
            service: raw.service,
            method: raw.method,
        }
    }

    fn authority(&mut self, text: &str, path: &str) -> AuthorityMatch {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return AuthorityMatch::Any;
        }
        let suffix = text
            .strip_prefix('*')
            .filter(|suffix| suffix.starts_with('.'));
        if suffix.unwrap_or(&text).contains('*') || suffix == Some(".") {
            let hint = "a star stands for whole labels at the front: `\"*.example.test\"`";
            self.faults
                .add(path, format!("`{text}` has a star where none can be"), hint);
        }
        match suffix {
            Some(suffix) => AuthorityMatch::Suffix(suffix.to_owned()),
            None => AuthorityMatch::Exact(text),
        }
    }

    fn header(&mut self, name: &str, value: &str, path: &str) -> Option<(HeaderName, HeaderValue)> {
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            let hint = match name.strip_prefix(':') {
                Some("path") => "use `path`, `path_prefix` or `grpc`",
                Some("authority") => "use `authority`",
                _ => "write letters, digits and `-`, such as `x-tenant`",
            };
            self.faults.add_key(path, "not the name of a header", hint);
            return None;
        };
        let Ok(value) = HeaderValue::from_str(value) else {
            let hint = "write visible characters, on one line";
            self.faults.add(path, "not the value of a header", hint);
            return None;
        };
        Some((header, value))
    }
}
