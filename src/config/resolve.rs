//! From what was written to what is meant: defaults chosen, texts parsed, names looked up.
//!
//! A value that cannot be resolved is told and something harmless put in its place, so that the
//! search for faults goes on; a [`Config`] with such a stand-in never leaves this module's parent.

mod bindings;
mod clusters;
mod endpoints;
mod health;
mod http2;
mod object_store;
mod retry;
mod routes;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use super::environment::Environment;
use super::report::Report;
use super::{
    Address, Admin, BadAddress, Cluster, Config, Drain, Forwarded, HealthService, Http1, Listener,
    ListenerTimeouts, Network, Origins, ProxyProtocol, ServerHttp2, WebOrigin, memory, raw,
};
pub(super) use bindings::default_filters;
pub(super) use endpoints::endpoints;
use thalweg_filters::{
    chain::Filter,
    metrics,
    units::{self, Count, Size},
};

/// Takes the defaults for what was not written, and tells what makes no sense.
pub(super) fn resolve(raw: raw::Config, env: &Environment<'_>, faults: &mut Report) -> Config {
    let mut resolve = Resolve { faults };
    let admin = resolve.admin(raw.admin.unwrap_or_default());
    let listeners = resolve.listeners(raw.listeners, admin.as_ref(), raw.takeover.unwrap_or(false));
    let filters = match raw.filters {
        Some(filters) => resolve.filters(filters, "filters"),
        // Whoever runs it wants to see what it does.
        None => vec![Filter::Metrics(metrics::Config::default())],
    };
    let clusters: BTreeMap<String, Arc<Cluster>> = (raw.clusters.unwrap_or_default().into_iter())
        .map(|(name, cluster)| (name.clone(), Arc::new(resolve.cluster(name, cluster))))
        .collect();
    let bindings = resolve.bindings(raw.bindings.unwrap_or_default(), &clusters, &filters);
    let routes = resolve.routes(raw.routes.unwrap_or_default(), &clusters, &filters);
    Config {
        admin,
        workers: raw.workers.map_or_else(cores, Count::usize),
        max_held: (raw.max_held).map_or_else(max_held, Size::usize),
        takeover: raw.takeover.unwrap_or(false),
        reload_interval: or(raw.reload.unwrap_or_default().interval, Duration::ZERO),
        drain: drain(raw.drain.unwrap_or_default()),
        health_service: health_service(&raw.health_service.unwrap_or_default()),
        dapr: bindings::dapr(raw.dapr.unwrap_or_default()),
        listeners,
        bindings,
        bindings_front: bindings::front(&filters),
        component_sockets: bindings::component_sockets(raw.component_sockets, env),
        filters,
        clusters: clusters.into_values().collect(),
        routes,
        warnings: Vec::new(),
        origins: Origins::default(),
    }
}

fn drain(raw: raw::Drain) -> Drain {
    let default = Drain::default();
    Drain {
        delay: or(raw.delay, default.delay),
        timeout: or(raw.timeout, default.timeout),
        force: or(raw.force, default.force),
        spread: or(raw.spread, default.spread),
    }
}

fn health_service(raw: &raw::HealthService) -> Option<HealthService> {
    let default = HealthService::default();
    raw.enabled.unwrap_or(true).then(|| HealthService {
        max_watchers: raw.max_watchers.map_or(default.max_watchers, Count::usize),
    })
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

fn max_held() -> usize {
    usize::try_from(memory::available() / 2).unwrap_or(usize::MAX)
}

/// The duration that was written, or the default.
fn or(written: Option<units::Duration>, default: Duration) -> Duration {
    written.map_or(default, Duration::from)
}

struct Resolve<'a> {
    faults: &'a mut Report,
}

// === admin and listeners ===

impl Resolve<'_> {
    fn admin(&mut self, raw: raw::Admin) -> Option<Admin> {
        let address = match raw.address.as_deref() {
            None => (Ipv4Addr::LOCALHOST, 9901).into(),
            Some("none") => return None,
            Some(text) => match self.address(text, "admin.address") {
                Address::Tcp(address) => address,
                Address::Unix(_) | Address::Host(..) => {
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

    /// `shared` says that an address may be listened on more than once.
    fn listeners(
        &mut self,
        raw: Vec<raw::Listener>,
        admin: Option<&Admin>,
        shared: bool,
    ) -> Vec<Listener> {
        let mut names = HashMap::new();
        let mut addresses: Vec<(Address, String)> = Vec::new();
        if let Some(admin) = admin {
            addresses.push((Address::Tcp(admin.address), "the admin port".to_owned()));
        }
        let mut listeners = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("listeners[{index}]");
            self.unique_name(&mut names, &raw.name, &path);

            let listener = self.listener(raw, &path);
            let any_port = matches!(listener.address, Address::Tcp(address) if address.port() == 0);
            let name = format!("the listener `{}`", listener.name);
            let mut others = addresses.iter();
            let clash = others.find_map(|(other, whose)| {
                if *other == listener.address {
                    Some(format!("`{other}` is taken by {whose}"))
                } else if !shared && overlap(other, &listener.address) {
                    let address = &listener.address;
                    Some(format!("`{address}` overlaps with `{other}` of {whose}"))
                } else {
                    None
                }
            });
            if !any_port && let Some(message) = clash {
                let path = format!("{path}.address");
                self.faults
                    .add(&path, message, "give each an address of its own");
            }
            addresses.push((listener.address.clone(), name));
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
            allowed_origins: Vec::new(),
            proxy_protocol: None,
            forwarded: Forwarded::default(),
            paths: raw.paths.unwrap_or_default(),
            max_hops: raw.max_hops.map_or(10, Count::usize),
            tls: raw.tls.map(|tls| self.tls(tls, &format!("{path}.tls"))),
            error_details: raw.error_details.unwrap_or(false),
            timeouts: ListenerTimeouts::default(),
            http1: Http1::default(),
            http2: ServerHttp2::default(),
        };
        let windows = self.server_windows(&http2.http2, &format!("{path}.http2"));
        let proxy_path = format!("{path}.proxy_protocol");
        let allowed_origins = raw.allowed_origins.unwrap_or_default();
        Listener {
            allowed_origins: self.origins(&allowed_origins, &format!("{path}.allowed_origins")),
            proxy_protocol: (raw.proxy_protocol)
                .map(|raw| self.proxy_protocol(&raw, &default.address, &proxy_path)),
            forwarded: self.forwarded(
                raw.forwarded.unwrap_or_default(),
                &default.address,
                &format!("{path}.forwarded"),
            ),
            max_connections: raw
                .max_connections
                .map_or(default.max_connections, Count::usize),
            timeouts: ListenerTimeouts {
                handshake: or(timeouts.handshake, default.timeouts.handshake),
                preface: or(timeouts.preface, default.timeouts.preface),
                first_headers: or(timeouts.first_headers, default.timeouts.first_headers),
                stall: or(timeouts.stall, default.timeouts.stall),
                stall_min_progress: (timeouts.stall_min_progress)
                    .map_or(default.timeouts.stall_min_progress, |size| size.0),
                last_words: or(timeouts.last_words, default.timeouts.last_words),
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
                http2: http2::resolve(&http2.http2, windows),
            },
            ..default
        }
    }

    fn origins(&mut self, raw: &[String], path: &str) -> Vec<WebOrigin> {
        let origins = raw.iter().enumerate().filter_map(|(index, text)| {
            let fault = |(message, hint): (String, String)| {
                self.faults.add(&format!("{path}[{index}]"), message, hint);
            };
            text.parse().map_err(fault).ok()
        });
        origins.collect()
    }

    fn proxy_protocol(
        &mut self,
        raw: &raw::ProxyProtocol,
        address: &Address,
        path: &str,
    ) -> ProxyProtocol {
        if matches!(address, Address::Unix(_)) {
            let message = "means nothing on a Unix socket, whose peers have no addresses";
            let hint = "listen on a TCP address, or leave it out";
            self.faults.add_key(path, message, hint);
        }
        let trusted =
            raw.trusted.iter().enumerate().filter_map(|(index, text)| {
                self.network(text, &format!("{path}.trusted[{index}]"))
            });
        ProxyProtocol {
            trusted: trusted.collect(),
        }
    }

    fn forwarded(&mut self, raw: raw::Forwarded, address: &Address, path: &str) -> Forwarded {
        const UNIX: &str = "unix";

        let on_unix = matches!(address, Address::Unix(_));
        let written = raw.trusted.unwrap_or_default();
        let mut trusted = Vec::new();
        for (index, text) in written.iter().enumerate() {
            let path = format!("{path}.trusted[{index}]");
            match (text == UNIX, on_unix) {
                (true, true) => {}
                (false, false) => trusted.extend(self.network(text, &path)),
                (true, false) => {
                    let message = "means nothing on a TCP address";
                    let hint = "write a network such as `10.0.0.0/8`, or listen on a Unix socket";
                    self.faults.add(&path, message, hint);
                }
                (false, true) => {
                    let message = "means nothing on a Unix socket, whose peers have no addresses";
                    self.faults.add(
                        &path,
                        message,
                        "write `unix` to trust whoever may open the socket",
                    );
                }
            }
        }
        Forwarded {
            trusted,
            trusted_unix: on_unix && written.iter().any(|text| text == UNIX),
            set: raw.set.unwrap_or(true),
        }
    }

    fn network(&mut self, text: &str, path: &str) -> Option<Network> {
        let fault = |(message, hint): (String, String)| self.faults.add(path, message, hint);
        text.parse().map_err(fault).ok()
    }

    fn address(&mut self, text: &str, path: &str) -> Address {
        text.parse().unwrap_or_else(|bad: BadAddress| {
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

/// Whether one of two addresses stands for every interface, and so for the other as well; the system lets nobody listen on both.
fn overlap(one: &Address, other: &Address) -> bool {
    let (Address::Tcp(one), Address::Tcp(other)) = (one, other) else {
        return false;
    };
    let takes = |all: &SocketAddr, one: &SocketAddr| {
        // `[::]` takes IPv4 as well.
        all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
    };
    one.port() == other.port() && one.port() != 0 && (takes(one, other) || takes(other, one))
}

/// A stand-in that clashes with nothing.
fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
