//! Which names clients may invoke, and where each leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{Method, Uri};
use serde_json::Value;
use thalweg_filters::units::{Count, Size};
use thalweg_filters::{chain::Filter, initial_message, sequence};

use super::routes::route_timeouts;
use super::{Resolve, or};
use crate::config::environment::Environment;
use crate::config::{
    Address, Binding, BindingTarget, CircuitBreaker, Cluster, Component, ComponentSockets, Dapr,
    Endpoints, HttpTarget, Protocol, Resiliency, raw,
};

/// The filter that comes before the binding is known.
const INITIAL_MESSAGE: &str = "initial_message";

/// How Dapr and its SDKs name the folder of sockets.
const FOLDER_VARIABLES: [&str; 3] = [
    "DAPR_COMPONENTS_SOCKETS_FOLDER",
    "DAPR_COMPONENT_SOCKETS_FOLDER",
    "DAPR_COMPONENT_SOCKET_FOLDER",
];

/// The filters of a binding, out of those of the whole file.
pub(in crate::config) fn behind_the_front(filters: &[Filter]) -> Vec<Filter> {
    let behind = |filter: &&Filter| filter.name() != INITIAL_MESSAGE;
    filters.iter().filter(behind).cloned().collect()
}

/// The filters of a binding that has none of its own. Its payload is numbered, so `sequence` is the last of them, wanted or not:
/// without it, a stream with a hole in it would look whole.
pub(in crate::config) fn default_filters(filters: &[Filter]) -> Vec<Filter> {
    let mut filters = behind_the_front(filters);
    if !filters
        .iter()
        .any(|filter| matches!(filter, Filter::Sequence(_)))
    {
        filters.push(Filter::Sequence(sequence::Config::default()));
    }
    filters
}

/// How clients may name their binding: as the filter `initial_message` in the list says, without the fields that it may read.
pub(super) fn front(filters: &[Filter]) -> initial_message::Config {
    let config = filters.iter().find_map(|filter| match filter {
        Filter::InitialMessage(config) => Some(config),
        _ => None,
    });
    config.map_or_else(initial_message::Config::default, |config| {
        initial_message::Config {
            timeout: config.timeout,
            max_bytes: config.max_bytes,
            ..initial_message::Config::default()
        }
    })
}

pub(super) fn dapr(raw: raw::Dapr) -> Dapr {
    let default = Dapr::default();
    Dapr {
        app_id: raw.app_id.unwrap_or(default.app_id),
        namespace: raw.namespace.unwrap_or(default.namespace),
    }
}

pub(super) fn component_sockets(
    raw: Option<raw::ComponentSockets>,
    env: &Environment<'_>,
) -> Option<ComponentSockets> {
    let raw = match raw {
        Some(raw::ComponentSockets::More(more)) => more,
        Some(raw::ComponentSockets::Folder(folder)) => raw::MoreComponentSockets {
            folder: Some(folder),
            ..Default::default()
        },
        None => raw::MoreComponentSockets::default(),
    };
    let variable = |name: &&str| env(name).filter(|value| !value.is_empty());
    let folder = (raw.folder).or_else(|| FOLDER_VARIABLES.iter().find_map(variable))?;
    (folder != "none").then(|| ComponentSockets {
        folder: folder.into(),
        interval: or(raw.interval, ComponentSockets::INTERVAL),
        max: raw.max.map_or(ComponentSockets::MAX, Count::usize),
    })
}

impl Resolve<'_> {
    pub(super) fn bindings(
        &mut self,
        raw: BTreeMap<String, raw::Binding>,
        clusters: &BTreeMap<String, Arc<Cluster>>,
        filters: &[Filter],
    ) -> Vec<Arc<Binding>> {
        let behind = default_filters(filters);
        let mut bindings = Vec::new();
        for (name, raw) in raw {
            let path = format!("bindings.{name}");
            let targets = [
                ("object_store", raw.object_store.is_some()),
                ("echo", raw.echo.is_some()),
                ("component", raw.component.is_some()),
                ("dapr", raw.dapr.is_some()),
                ("http", raw.http.is_some()),
            ];
            self.one_target(&targets, &path);
            let target = if let Some(raw) = raw.object_store {
                self.object_store(raw, &format!("{path}.object_store"))
                    .map(BindingTarget::ObjectStore)
            } else if let Some(raw) = raw.component {
                self.component(&name, raw, &format!("{path}.component"))
                    .map(BindingTarget::Component)
            } else if let Some(raw) = raw.dapr {
                self.dapr_cluster(&raw.cluster, clusters, &format!("{path}.dapr.cluster"))
                    .map(|cluster| BindingTarget::Dapr { cluster })
            } else if let Some(raw) = raw.http {
                self.http_target(&name, raw, &format!("{path}.http"))
                    .map(BindingTarget::Http)
            } else {
                None
            };
            let resiliency = raw.resiliency.unwrap_or_default();
            let buffer = raw.buffer.unwrap_or_default();
            bindings.push(Arc::new(Binding {
                target: target.unwrap_or(BindingTarget::Echo),
                buffer_max_bytes: (buffer.max_bytes).map_or(Binding::BUFFER_MAX_BYTES, Size::usize),
                max_metadata: (buffer.max_metadata).map_or(Binding::MAX_METADATA, Count::usize),
                resiliency: self.resiliency(resiliency, &format!("{path}.resiliency")),
                timeouts: route_timeouts(raw.timeouts),
                filters: match raw.filters {
                    Some(own) => self.filters_behind(own, &format!("{path}.filters")),
                    None => behind.clone(),
                },
                name: name.clone(),
            }));
            // Last, since nothing is told below a name that is at fault.
            self.binding_name(&name, &path);
        }
        bindings
    }

    fn binding_name(&mut self, name: &str, path: &str) {
        if name.is_empty() {
            let hint = "write the name by which clients invoke it";
            self.faults.add_key(path, "must not be empty", hint);
        } else if name.contains('/') || name.contains(char::is_control) {
            let message = "a name has no `/` and no control characters";
            let hint = "leave them out: the name is one part of a path";
            self.faults.add_key(path, message, hint);
        }
    }

    fn one_target(&mut self, targets: &[(&str, bool)], path: &str) {
        let mut written = targets.iter().filter(|(_, written)| *written);
        match (written.next(), written.next()) {
            (Some((first, _)), Some((second, _))) => {
                let message = format!("`{first}` is here as well");
                let hint = "keep one of the two, and write a second binding for the other";
                self.faults
                    .add_key(&format!("{path}.{second}"), &message, hint);
            }
            (None, _) => {
                let misspelt =
                    |(key, _): &(&str, bool)| self.faults.covers(&format!("{path}.{key}"));
                if !targets.iter().any(misspelt) {
                    let hint = "add `object_store`, `component`, `dapr`, `http` or `echo: {}`";
                    self.faults
                        .add(path, "leads nowhere: it has no target", hint);
                }
            }
            (Some(_), None) => {}
        }
    }

    /// A binding's own filters.
    fn filters_behind(&mut self, raw: Vec<raw::FilterEntry>, path: &str) -> Vec<Filter> {
        for (index, raw::FilterEntry(entry)) in raw.iter().enumerate() {
            let is_before = match entry {
                Value::String(name) => name == INITIAL_MESSAGE,
                entry => entry.get(INITIAL_MESSAGE).is_some(),
            };
            if is_before {
                self.faults.add(
                    &format!("{path}[{index}]"),
                    format!("`{INITIAL_MESSAGE}` comes before the binding is known"),
                    "move it to the top-level `filters`, which all bindings share",
                );
            }
        }
        behind_the_front(&self.filters(raw, path))
    }
}

// === targets ===

impl Resolve<'_> {
    fn component(&mut self, name: &str, raw: raw::Component, path: &str) -> Option<Component> {
        let socket_path = format!("{path}.socket");
        let address_path = format!("{path}.address");
        let address = match (raw.socket, raw.address) {
            (Some(socket), None) => Some(self.socket(&socket, &socket_path)),
            (None, Some(address)) => Some(self.endpoint(&address, &address_path)),
            (Some(_), Some(_)) => {
                let hint = "keep one of the two";
                self.faults
                    .add_key(&address_path, "`socket` is here as well", hint);
                None
            }
            (None, None) => {
                if !self.faults.covers(&address_path) {
                    let hint = "add `socket: PATH`, or `address: 127.0.0.1:50051`";
                    self.faults.add(&socket_path, "missing", hint);
                }
                None
            }
        };
        let instance = self.instance(raw.instance, name, path);
        Some(Component {
            cluster: Cluster::of_binding(name, address?, Protocol::Http2, None),
            instance,
            metadata: raw.metadata.unwrap_or_default(),
            ping: or(raw.ping, Component::PING),
        })
    }

    fn socket(&mut self, text: &str, path: &str) -> Address {
        if text.starts_with("unix:") {
            let hint = "write the path alone, such as `/tmp/dapr-components-sockets/orders.sock`";
            let message = format!("`{text}` is an address, and a path is wanted");
            self.faults.add(path, message, hint);
        }
        self.address(&format!("unix:{text}"), path)
    }

    /// The instance travels in a header.
    fn instance(&mut self, written: Option<String>, name: &str, path: &str) -> String {
        let hint = match written {
            Some(_) => "write ASCII letters, digits and signs",
            None => "that is the binding's name; add `instance` in ASCII letters, digits and signs",
        };
        let text = written.unwrap_or_else(|| name.to_owned());
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            let path = format!("{path}.instance");
            let message = format!("`{text}` cannot be the value of a header");
            self.faults.add(&path, message, hint);
        }
        text
    }

    fn dapr_cluster(
        &mut self,
        name: &str,
        clusters: &BTreeMap<String, Arc<Cluster>>,
        path: &str,
    ) -> Option<Arc<Cluster>> {
        let cluster = self.cluster_named(name, clusters, path)?;
        if cluster.protocol != Protocol::Http2 {
            let message = format!("the cluster `{name}` speaks HTTP/1.1, and Dapr speaks gRPC");
            let hint = "name a cluster with `protocol: http2`";
            self.faults.add(path, message, hint);
        }
        Some(cluster)
    }

    fn http_target(&mut self, name: &str, raw: raw::Http, path: &str) -> Option<HttpTarget> {
        let method =
            (raw.method).and_then(|method| self.method(&method, &format!("{path}.method")));
        let url = read_url(&raw.url);
        if let Err((message, hint)) = &url {
            self.faults.add(&format!("{path}.url"), message, *hint);
        }
        let url = url.ok()?;
        let protocol = raw.protocol.unwrap_or(Protocol::Http1);
        let tls_path = format!("{path}.tls");
        if raw.tls.is_some() && !url.tls {
            let hint = "let the URL begin with `https://`, or leave it out";
            self.faults
                .add_key(&tls_path, "means nothing without `https`", hint);
        }
        let tls = url.tls.then(|| {
            let mut tls = raw.tls.unwrap_or_default();
            let host = url.authority.host().trim_matches(['[', ']']);
            tls.server_name.get_or_insert_with(|| host.to_owned());
            self.upstream_tls(tls, &Endpoints::one(url.address.clone()), &tls_path)
        });
        Some(HttpTarget {
            cluster: Cluster::of_binding(name, url.address, protocol, tls),
            authority: url.authority,
            path_and_query: url.path_and_query,
            method,
            pass_credentials: raw.pass_credentials.unwrap_or(false),
        })
    }

    fn method(&mut self, text: &str, path: &str) -> Option<Method> {
        const COMMON: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"];
        let capitals = text.to_ascii_uppercase();
        let hint = "write one such as `POST`".to_owned();
        let (message, hint) = match Method::from_bytes(text.as_bytes()) {
            Ok(Method::CONNECT) => ("asks for a tunnel, and a binding is none", hint),
            Ok(_) if text != capitals && COMMON.contains(&&*capitals) => {
                let hint = format!("write it in capitals: `{capitals}`");
                ("is not the method of that name", hint)
            }
            Ok(method) => return Some(method),
            Err(_) => ("is not the name of a method", hint),
        };
        self.faults.add(path, format!("`{text}` {message}"), hint);
        None
    }
}

/// What an HTTP URL says.
struct Url {
    tls: bool,
    address: Address,
    authority: Authority,
    path_and_query: PathAndQuery,
}

/// Reads a URL, or tells what is wrong with it and the way out.
fn read_url(text: &str) -> Result<Url, (String, &'static str)> {
    const EXAMPLE: &str = "write one such as `http://127.0.0.1:8000/in`";
    let no_url = || (format!("`{text}` is not an HTTP URL"), EXAMPLE);
    let uri: Uri = text.parse().map_err(|_| no_url())?;
    let (tls, standard_port) = match uri.scheme_str() {
        Some("http") => (false, 80),
        Some("https") => (true, 443),
        Some(_) | None => return Err(no_url()),
    };
    let parts = uri.into_parts();
    let authority = parts.authority.ok_or_else(no_url)?;
    if authority.as_str().contains('@') {
        let hint = "leave out what stands before the `@`";
        return Err(("a user name in a URL is not sent".into(), hint));
    }
    if text.contains('#') {
        let hint = "leave out what follows the `#`";
        return Err(("a fragment of a URL is not sent".into(), hint));
    }
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => standard_port,
        _ => (authority.port_u16().filter(|port| *port > 0)).ok_or_else(|| {
            let hint = "a port is a number from 1 to 65535";
            (format!("`{authority}` has no valid port"), hint)
        })?,
    };
    let address = read_host(authority.host(), port).ok_or_else(|| {
        let hint = "write an IP address or a name, such as `hooks.example.test`";
        (format!("`{authority}` names no host"), hint)
    })?;
    let target = (parts.path_and_query).map_or_else(String::new, |target| target.to_string());
    let target = if target.starts_with('/') {
        target
    } else {
        format!("/{target}")
    };
    Ok(Url {
        tls,
        address,
        authority,
        path_and_query: target.parse().map_err(|_| no_url())?,
    })
}

fn read_host(host: &str, port: u16) -> Option<Address> {
    // As an endpoint reads: IPv4, IPv6 in brackets, and `localhost`.
    if let Ok(address @ Address::Tcp(_)) = format!("{host}:{port}").parse() {
        return Some(address);
    }
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_name = host.chars().all(in_name) && host.contains(|c: char| c.is_ascii_alphanumeric());
    is_name.then(|| Address::Host(host.to_owned(), port))
}

// === resiliency ===

impl Resolve<'_> {
    fn resiliency(&mut self, raw: raw::Resiliency, path: &str) -> Resiliency {
        Resiliency {
            timeout: raw.timeout.map(Into::into),
            retry: (raw.retry).map(|retry| self.retry(retry, &format!("{path}.retry"))),
            circuit_breaker: (raw.circuit_breaker).and_then(
                |raw::CircuitBreakerEntry(settings)| {
                    self.circuit_breaker(settings, &format!("{path}.circuit_breaker"))
                },
            ),
        }
    }

    fn circuit_breaker(&mut self, settings: Value, path: &str) -> Option<CircuitBreaker> {
        if settings.is_null() || !self.faults.trusts(path) {
            return None;
        }
        let read = serde_json::from_value(settings);
        if let Err(error) = &read {
            self.faults.add(path, error.to_string(), "");
        }
        read.ok()
    }
}
