//! Which stream goes where.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use thalweg_filters::{chain::Filter, timeouts};

use super::{Resolve, or};
use crate::config::report::suggest;
use crate::config::{
    AuthorityMatch, Cluster, Destination, Match, PathMatch, Route, RouteTimeouts, Target, raw,
};

impl Resolve<'_> {
    pub(super) fn routes(
        &mut self,
        raw: Vec<raw::Route>,
        clusters: &BTreeMap<String, Arc<Cluster>>,
        filters: &[Filter],
    ) -> Vec<Route> {
        let mut names = HashMap::new();
        let mut routes = Vec::new();
        let last = raw.len().saturating_sub(1);
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("routes[{index}]");
            self.unique_name(&mut names, &raw.name, &path);
            let goes_on = raw.goes_on.unwrap_or_default();
            if goes_on {
                self.goes_on(index == last, &path);
                self.said_below(raw.timeouts.is_some(), &format!("{path}.timeouts"));
                self.said_below(raw.retry.is_some(), &format!("{path}.retry"));
            }
            routes.push(Route {
                matches: self.matches(raw.matches.unwrap_or_default(), &format!("{path}.match")),
                destination: self.destination(raw.cluster, raw.clusters, goes_on, clusters, &path),
                timeouts: route_timeouts(raw.timeouts),
                retry: self.route_retry(raw.retry.unwrap_or_default(), &format!("{path}.retry")),
                filters: match raw.filters {
                    Some(own) => self.filters(own, &format!("{path}.filters")),
                    None => filters.to_vec(),
                },
                name: raw.name,
            });
        }
        routes
    }

    /// What goes on to the routes below needs one.
    fn goes_on(&mut self, is_last: bool, path: &str) {
        if is_last {
            let hint = "move it above the routes that it leads to, or name a `cluster`";
            let path = format!("{path}.continue");
            self.faults.add(&path, "there is no route below", hint);
        }
    }

    /// What goes on has the timeouts and the retries of the route that takes it.
    fn said_below(&mut self, is_written: bool, path: &str) {
        if is_written {
            let message = "the route that takes the stream in the end says these";
            self.faults.add_key(path, message, "leave it out here");
        }
    }

    fn destination(
        &mut self,
        one: Option<String>,
        several: Option<Vec<raw::WeightedCluster>>,
        goes_on: bool,
        known: &BTreeMap<String, Arc<Cluster>>,
        path: &str,
    ) -> Destination {
        let at = |key: &str| format!("{path}.{key}");
        let ways = [
            ("cluster", one.is_some()),
            ("clusters", several.is_some()),
            ("continue", goes_on),
        ];
        let mut written = ways.iter().filter(|(_, written)| *written);
        match (written.next(), written.next()) {
            (Some((first, _)), Some((second, _))) => {
                let message = format!("`{first}` is here as well");
                self.faults
                    .add_key(&at(second), &message, "keep one of the two");
            }
            (None, _) if !ways.iter().any(|(key, _)| self.faults.covers(&at(key))) => {
                let hint = "add `cluster: NAME`, `clusters` with weights, or `continue: true`";
                self.faults.add(&at("cluster"), "missing", hint);
            }
            _ => {}
        }
        if goes_on {
            return Destination::RoutesBelow;
        }
        let clusters_path = at("clusters");
        let mut look_up = |name: &str, weight, path: &str| {
            let cluster = self.cluster_named(name, known, path)?;
            Some(Target { cluster, weight })
        };
        let mut targets = Vec::new();
        if let Some(name) = one {
            targets.extend(look_up(&name, 1, &at("cluster")));
        }
        for (index, cluster) in several.iter().flatten().enumerate() {
            let path = format!("{clusters_path}[{index}].name");
            targets.extend(look_up(&cluster.name, cluster.weight.u32(), &path));
        }
        if several.is_some_and(|several| several.iter().all(|cluster| cluster.weight.0 == 0)) {
            let hint = "give at least one cluster a weight above `0`";
            self.faults
                .add(&clusters_path, "all weights are zero", hint);
        }
        Destination::Clusters(targets)
    }

    pub(super) fn cluster_named(
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
    pub(super) fn filters(&mut self, raw: Vec<raw::FilterEntry>, path: &str) -> Vec<Filter> {
        let mut names = HashSet::new();
        let mut filters = Vec::new();
        for (index, raw::FilterEntry(entry)) in raw.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            if !self.faults.trusts(&path) {
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
                Err(error) => {
                    let error = error.to_string();
                    match error.strip_prefix("trip: ") {
                        Some(fault) => {
                            let hint = "write a condition such as `consecutiveFailures > 5`";
                            let path = format!("{path}.circuit_breaker.trip");
                            self.faults.add(&path, fault, hint);
                        }
                        None => self.faults.add(&path, error, ""),
                    }
                }
            }
        }
        filters
    }
}

/// Whether protobuf would take it for the name of a service or of a method.
fn is_grpc_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte))
}

pub(super) fn route_timeouts(raw: Option<raw::RouteTimeouts>) -> RouteTimeouts {
    let raw = raw.unwrap_or_default();
    let default = RouteTimeouts::default();
    RouteTimeouts {
        connect: or(raw.connect, default.connect),
        stall: or(raw.stall, default.stall),
        stall_min_progress: (raw.stall_min_progress)
            .map_or(default.stall_min_progress, |size| size.0),
        phases: timeouts::Config {
            first_response: or(raw.first_response, default.phases.first_response),
            idle_request: or(raw.idle_request, default.phases.idle_request),
            idle_response: or(raw.idle_response, default.phases.idle_response),
            max_age: or(raw.max_age, default.phases.max_age),
        },
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
        } else if text.contains(['*', '[', ']', '(', ')', '^', '$', '|', '\\', '+']) {
            let hint = if path.ends_with("path_prefix") && text.ends_with('*') {
                "leave the star out: a prefix takes all that begins with it"
            } else {
                "there are no globs and no regular expressions here; `path_prefix` takes all that begins with it"
            };
            self.faults
                .warn(path, format!("`{text}` is read letter by letter"), hint);
        }
        text
    }

    fn grpc(&mut self, raw: raw::Grpc, path: &str) -> PathMatch {
        if raw.service.contains('/') {
            let hint = "write the name alone, such as `helloworld.Greeter`, and the method \
                        under `method`";
            let message = format!("`{}` is a path", raw.service);
            self.faults.add(&format!("{path}.service"), message, hint);
        } else if !is_grpc_name(&raw.service) {
            let hint = "write one whole name, such as `helloworld.Greeter`; `path_prefix: /helloworld.` takes all services of a package";
            let message = format!("`{}` is no name of a service", raw.service);
            self.faults.add(&format!("{path}.service"), message, hint);
        }
        if let Some(method) = raw.method.as_ref().filter(|method| method.contains('/')) {
            let hint = "write the name alone, such as `SayHello`";
            self.faults.add(
                &format!("{path}.method"),
                format!("`{method}` is a path"),
                hint,
            );
        } else if let Some(method) = raw.method.as_ref().filter(|method| !is_grpc_name(method)) {
            let hint =
                "write one whole name, such as `SayHello`, or leave `method` out for all of them";
            let message = format!("`{method}` is no name of a method");
            self.faults.add(&format!("{path}.method"), message, hint);
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
        if text.contains('/') {
            let hint = "write the host alone, such as `api.example.test`";
            self.faults
                .add(path, format!("`{text}` is more than a host"), hint);
        } else if suffix.unwrap_or(&text).contains('*') || suffix == Some(".") {
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
