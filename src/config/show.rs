//! The configuration as a file that says everything in full.

use serde_json::{Map, Value, json};

use super::{
    Address, Admin, AuthorityMatch, Backoff, Balance, Binding, BindingTarget, Bucket,
    CertificateFiles, Cluster, ComponentSockets, Config, Destination, Endpoint, Endpoints,
    Forwarded, HealthCheck, Http2, HttpTarget, Listener, Match, ObjectStore, Outlier, PathMatch,
    Place, Pool, Question, Resiliency, Retry, Route, RouteRetry, RouteTimeouts, Secret, Tls,
    UpstreamTls,
};
use thalweg_filters::chain::Filter;
use thalweg_filters::units::Unit;
use thalweg_proto::status::Code;

/// What is shown of a secret.
const HIDDEN: &str = "***";

/// Loads back to the same configuration, but for what stays hidden: the token, the metadata of
/// components, and the queries of URLs.
pub(super) fn config(config: &Config) -> Value {
    let bindings = config.bindings.iter();
    let clusters = config.clusters.iter();
    json!({
        "admin": admin(config.admin.as_ref()),
        "workers": config.workers,
        "max_held": size(config.max_held),
        "takeover": config.takeover,
        "reload": {"interval": duration(config.reload_interval)},
        "drain": {
            "delay": duration(config.drain.delay),
            "timeout": duration(config.drain.timeout),
            "force": duration(config.drain.force),
            "spread": duration(config.drain.spread),
        },
        "health_service": match &config.health_service {
            None => json!({"enabled": false}),
            Some(service) => json!({"enabled": true, "max_watchers": service.max_watchers}),
        },
        "dapr": {"app_id": config.dapr.app_id, "namespace": config.dapr.namespace},
        "listeners": config.listeners.iter().map(listener).collect::<Value>(),
        "filters": filters(&config.filters),
        "bindings": bindings.map(|it| (it.name.clone(), binding(it))).collect::<Value>(),
        "component_sockets": component_sockets(config.component_sockets.as_ref()),
        "clusters": clusters.map(|it| (it.name.clone(), cluster(it))).collect::<Value>(),
        "routes": config.routes.iter().map(route).collect::<Value>(),
    })
}

fn admin(admin: Option<&Admin>) -> Value {
    match admin {
        None => json!({"address": "none"}),
        Some(Admin {
            address,
            token: None,
        }) => json!({"address": address.to_string()}),
        Some(Admin {
            address,
            token: Some(_),
        }) => {
            json!({"address": address.to_string(), "token": HIDDEN})
        }
    }
}

fn listener(listener: &Listener) -> Value {
    let Listener {
        timeouts,
        http1,
        http2,
        ..
    } = listener;
    let mut shared = self::http2(&http2.http2);
    shared["max_concurrent_streams"] = http2.max_concurrent_streams.into();
    let mut all = json!({
        "name": listener.name,
        "address": listener.address.to_string(),
        "max_connections": listener.max_connections,
        "allowed_origins": listener.allowed_origins,
        "error_details": listener.error_details,
        "forwarded": forwarded(&listener.forwarded),
        "paths": listener.paths,
        "max_hops": listener.max_hops,
        "timeouts": {
            "handshake": duration(timeouts.handshake),
            "preface": duration(timeouts.preface),
            "first_headers": duration(timeouts.first_headers),
            "stall": duration(timeouts.stall),
            "stall_min_progress": Unit::Size.show(timeouts.stall_min_progress),
            "last_words": duration(timeouts.last_words),
        },
        "http1": {
            "max_headers": http1.max_headers,
            "max_header_bytes": size(http1.max_header_bytes),
            "keep_alive": duration(http1.keep_alive),
        },
        "http2": shared,
    });
    if let Some(proxy) = &listener.proxy_protocol {
        let trusted = proxy.trusted.iter().map(ToString::to_string);
        all["proxy_protocol"] = json!({"trusted": trusted.collect::<Value>()});
    }
    if let Some(tls) = &listener.tls {
        all["tls"] = self::tls(tls);
    }
    all
}

fn forwarded(forwarded: &Forwarded) -> Value {
    let unix = forwarded.trusted_unix.then(|| "unix".to_owned());
    let networks = forwarded.trusted.iter().map(ToString::to_string);
    json!({
        "trusted": networks.chain(unix).collect::<Value>(),
        "set": forwarded.set,
    })
}

fn tls(tls: &Tls) -> Value {
    let mut all = json!({
        "certificates": tls.certificates.iter().map(pair).collect::<Value>(),
        "reload_interval": duration(tls.reload_interval),
    });
    if let Some(clients) = &tls.clients {
        all["client_ca"] = json!(clients.ca);
        all["client_auth"] = json!(clients.auth);
        if !clients.crls.is_empty() {
            all["client_crls"] = json!(clients.crls);
        }
    }
    all
}

fn http2(http2: &Http2) -> Value {
    json!({
        "stream_window": size(http2.stream_window as usize),
        "connection_window": size(http2.connection_window as usize),
        "max_frame_size": size(http2.max_frame_size as usize),
        "max_header_list_size": size(http2.max_header_list_size as usize),
        "max_headers": http2.max_headers,
        "send_buffer": size(http2.send_buffer),
        "header_table_size": size(http2.header_table_size as usize),
        "max_reset_streams": http2.max_reset_streams,
        "max_pending_resets": http2.max_pending_resets,
        "max_local_resets": http2.max_local_resets,
        "reset_memory": duration(http2.reset_memory),
        "keepalive": {
            "interval": duration(http2.keepalive.interval),
            "timeout": duration(http2.keepalive.timeout),
        },
        "data_frame_budget": size(http2.data_frame_budget),
    })
}

fn cluster(cluster: &Cluster) -> Value {
    let mut all = json!({
        "endpoints": endpoints(&cluster.endpoints),
        "balance": balance(&cluster.balance),
        "slow_start": duration(cluster.slow_start),
        "dismiss_removed": cluster.dismiss_removed,
        "protocol": cluster.protocol,
        "http2": http2(&cluster.http2),
        "connect_timeout": duration(cluster.connect_timeout),
        "pool": pool(&cluster.pool),
        "stall": duration(cluster.stall),
    });
    if let Some(tls) = &cluster.tls {
        all["tls"] = upstream_tls(tls);
    }
    if let Some(check) = &cluster.health_check {
        all["health_check"] = health_check(check);
    }
    if let Some(outlier) = &cluster.outlier {
        all["outlier"] = self::outlier(outlier);
    }
    all
}

fn upstream_tls(tls: &UpstreamTls) -> Value {
    let mut all = json!({"reload_interval": duration(tls.reload_interval)});
    if let Some(ca) = &tls.ca {
        all["ca"] = json!(ca);
    }
    if let Some(name) = &tls.server_name {
        all["server_name"] = name.to_str().into();
    }
    if let Some(pair) = &tls.certificate {
        all["certificate"] = self::pair(pair);
    }
    all
}

fn pair(pair: &CertificateFiles) -> Value {
    json!({"cert": pair.cert, "key": pair.key})
}

fn endpoints(endpoints: &Endpoints) -> Value {
    match endpoints {
        Endpoints::Listed(endpoints) => (endpoints.iter())
            .map(|Endpoint { address, weight }| match weight {
                1 => json!(address.to_string()),
                weight => json!({"address": address.to_string(), "weight": weight}),
            })
            .collect(),
        Endpoints::Dns {
            host,
            port,
            refresh,
        } => json!({"dns": format!("{host}:{port}"), "refresh": duration(*refresh)}),
        Endpoints::File { path, refresh } => json!({"file": path, "refresh": duration(*refresh)}),
    }
}

fn balance(balance: &Balance) -> Value {
    match balance {
        Balance::LeastStreams => json!("least_streams"),
        Balance::RoundRobin => json!("round_robin"),
        Balance::RingHash { header } => json!({"ring_hash": {"header": header.as_str()}}),
    }
}

fn health_check(check: &HealthCheck) -> Value {
    let mut all = json!({
        "interval": duration(check.interval),
        "timeout": duration(check.timeout),
        "healthy": check.healthy,
        "unhealthy": check.unhealthy,
        "dismiss": check.dismiss,
    });
    match &check.question {
        Question::Grpc { service } => all["grpc"] = json!({"service": service}),
        Question::Http { path, expect } => {
            all["http"] = json!({"path": path.as_str()});
            if let Some(status) = expect {
                all["http"]["expect"] = json!(status);
            }
        }
        Question::Tcp => all["tcp"] = json!({}),
    }
    all
}

fn outlier(outlier: &Outlier) -> Value {
    let statuses = outlier.statuses.iter();
    json!({
        "consecutive": outlier.consecutive,
        "young": duration(outlier.young),
        "statuses": statuses.map(|code| code.name()).collect::<Value>(),
        "ejection": duration(outlier.ejection),
        "max_ejection": duration(outlier.max_ejection),
        "max_ejected_percent": outlier.max_ejected_percent,
    })
}

fn pool(pool: &Pool) -> Value {
    let mut all = json!({
        "max_connections": pool.max_connections,
        "max_streams_per_connection": pool.max_streams_per_connection,
        "avoid_stalled": duration(pool.avoid_stalled),
        "max_dials": pool.max_dials,
        "wait_timeout": duration(pool.wait_timeout),
        "max_connection_age": duration(pool.max_connection_age),
        "idle_timeout": duration(pool.idle_timeout),
    });
    if let Some(most) = pool.max_streams {
        all["max_streams"] = most.into();
    }
    if let Some(most) = pool.max_pending {
        all["max_pending"] = most.into();
    }
    all
}

pub(super) fn route(route: &Route) -> Value {
    let mut all = json!({
        "name": route.name,
        "match": matches(&route.matches),
        "filters": filters(&route.filters),
    });
    match &route.destination {
        Destination::RoutesBelow => {
            all["continue"] = true.into();
            return all;
        }
        Destination::Clusters(targets) => match targets.as_slice() {
            [one] if one.weight == 1 => all["cluster"] = json!(one.cluster.name),
            several => {
                all["clusters"] = several
                    .iter()
                    .map(|target| json!({"name": target.cluster.name, "weight": target.weight}))
                    .collect();
            }
        },
    }
    all["timeouts"] = route_timeouts(&route.timeouts);
    all["retry"] = route_retry(&route.retry);
    all
}

fn route_retry(retry: &RouteRetry) -> Value {
    let mut all = json!({
        "max_retries": retry.max_retries,
        "matching": codes(&retry.matching),
        "replay_bytes": size(retry.replay_bytes),
        "budget": {"percent": retry.budget.percent, "burst": retry.budget.burst},
    });
    waits(&mut all, &retry.backoff);
    all
}

fn codes(codes: &[Code]) -> Value {
    codes.iter().map(|code| code.name()).collect()
}

/// The keys of how long to wait.
fn waits(all: &mut Value, backoff: &Backoff) {
    match *backoff {
        Backoff::Constant(wait) => all["duration"] = duration(wait).into(),
        Backoff::Exponential {
            first,
            max_interval,
        } => {
            all["duration"] = duration(first).into();
            all["max_interval"] = duration(max_interval).into();
        }
    }
}

fn route_timeouts(timeouts: &RouteTimeouts) -> Value {
    let phases = &timeouts.phases;
    json!({
        "connect": duration(timeouts.connect),
        "first_response": duration(phases.first_response),
        "stall": duration(timeouts.stall),
        "stall_min_progress": Unit::Size.show(timeouts.stall_min_progress),
        "idle_request": duration(phases.idle_request),
        "idle_response": duration(phases.idle_response),
        "max_age": duration(phases.max_age),
    })
}

/// A filter without settings is shown by its bare name.
fn filters(filters: &[Filter]) -> Value {
    let show = |filter: &Filter| match serde_json::to_value(filter) {
        Ok(shown) if shown[filter.name()] != json!({}) => shown,
        _ => filter.name().into(),
    };
    filters.iter().map(show).collect()
}

fn binding(binding: &Binding) -> Value {
    let (kind, target) = target(&binding.target);
    json!({
        kind: target,
        "buffer": {
            "max_bytes": size(binding.buffer_max_bytes),
            "max_metadata": binding.max_metadata,
        },
        "resiliency": resiliency(&binding.resiliency),
        "timeouts": route_timeouts(&binding.timeouts),
        "filters": filters(&binding.filters),
    })
}

fn target(target: &BindingTarget) -> (&'static str, Value) {
    match target {
        BindingTarget::ObjectStore(store) => ("object_store", object_store(store)),
        BindingTarget::Echo => ("echo", json!({})),
        BindingTarget::Component(component) => {
            let keys = component.metadata.keys();
            let mut all = json!({
                "instance": component.instance,
                "metadata": keys.map(|key| (key.clone(), json!(HIDDEN))).collect::<Value>(),
                "ping": duration(component.ping),
            });
            for endpoint in component.cluster.endpoints.listed() {
                match &endpoint.address {
                    Address::Unix(path) => all["socket"] = path.display().to_string().into(),
                    address => all["address"] = address.to_string().into(),
                }
            }
            ("component", all)
        }
        BindingTarget::Dapr { cluster } => ("dapr", json!({"cluster": cluster.name})),
        BindingTarget::Http(http) => {
            let mut all = json!({
                "url": url(http),
                "protocol": http.cluster.protocol,
                "pass_credentials": http.pass_credentials,
            });
            if let Some(method) = &http.method {
                all["method"] = method.as_str().into();
            }
            if let Some(tls) = &http.cluster.tls {
                all["tls"] = upstream_tls(tls);
            }
            ("http", all)
        }
    }
}

fn object_store(store: &ObjectStore) -> Value {
    let mut all = json!({"part_size": size(store.part_size)});
    let scheme = store.place.scheme();
    let mut in_bucket = |bucket: &Bucket, keys: &[(&str, Option<String>)]| {
        let Bucket {
            name,
            prefix,
            endpoint,
        } = bucket;
        all["url"] = format!("{scheme}://{name}/{prefix}").into();
        let endpoint = ("endpoint", endpoint.clone());
        for (key, value) in keys.iter().chain([&endpoint]) {
            if let Some(value) = value {
                all[key] = value.as_str().into();
            }
        }
    };
    let file = |secret: &Option<Secret>| Some(secret.as_ref()?.file.display().to_string());
    match &store.place {
        Place::Files(folder) => all["url"] = format!("file://{}", folder.display()).into(),
        Place::Memory { max_bytes } => {
            all["url"] = "memory://".into();
            all["max_bytes"] = size(*max_bytes).into();
        }
        Place::S3 {
            bucket,
            region,
            access_key_id,
            secret_access_key,
            session_token,
        } => in_bucket(
            bucket,
            &[
                ("region", region.clone()),
                ("access_key_id", access_key_id.clone()),
                ("secret_access_key_file", file(secret_access_key)),
                ("session_token_file", file(session_token)),
            ],
        ),
        Place::Azure {
            bucket,
            account,
            account_key,
        } => in_bucket(
            bucket,
            &[
                ("account", account.clone()),
                ("account_key_file", file(account_key)),
            ],
        ),
        Place::Google {
            bucket,
            service_account,
        } => in_bucket(bucket, &[("service_account_file", file(service_account))]),
        Place::Http { url } => all["url"] = url.as_str().into(),
    }
    all
}

fn url(http: &HttpTarget) -> String {
    let hidden = http.path_and_query.query().map_or("", |_| "?***");
    format!(
        "{}://{}{}{hidden}",
        if http.cluster.tls.is_some() {
            "https"
        } else {
            "http"
        },
        http.authority,
        http.path_and_query.path()
    )
}

fn resiliency(resiliency: &Resiliency) -> Value {
    let mut all = Map::new();
    if let Some(timeout) = resiliency.timeout {
        all.insert("timeout".into(), duration(timeout).into());
    }
    if let Some(retry) = &resiliency.retry {
        all.insert("retry".into(), self::retry(retry));
    }
    if let Some(breaker) = &resiliency.circuit_breaker {
        all.insert("circuit_breaker".into(), json!(breaker));
    }
    Value::Object(all)
}

fn retry(retry: &Retry) -> Value {
    let policy = match retry.backoff {
        Backoff::Constant(_) => "constant",
        Backoff::Exponential { .. } => "exponential",
    };
    let mut all = json!({
        "policy": policy,
        "max_retries": retry.max_retries,
        "matching": codes(&retry.matching),
        "replay_bytes": size(retry.replay_bytes),
    });
    waits(&mut all, &retry.backoff);
    all
}

fn component_sockets(sockets: Option<&ComponentSockets>) -> Value {
    match sockets {
        None => "none".into(),
        Some(sockets) => json!({
            "folder": sockets.folder.display().to_string(),
            "interval": duration(sockets.interval),
            "max": sockets.max,
        }),
    }
}

fn matches(matches: &Match) -> Value {
    let mut all = Map::new();
    match &matches.path {
        Some(PathMatch::Exact(path)) => all.insert("path".into(), json!(path)),
        Some(PathMatch::Prefix(path)) => all.insert("path_prefix".into(), json!(path)),
        Some(PathMatch::Service { service, method }) => {
            let method = method.iter().map(|method| ("method", method));
            let grpc = [("service", service)].into_iter().chain(method);
            all.insert(
                "grpc".into(),
                grpc.map(|(key, text)| (key, json!(text))).collect(),
            )
        }
        None => None,
    };
    let authority = match &matches.authority {
        Some(AuthorityMatch::Exact(name)) => Some(name.clone()),
        Some(AuthorityMatch::Suffix(suffix)) => Some(format!("*{suffix}")),
        Some(AuthorityMatch::Any) => Some("*".into()),
        None => None,
    };
    if let Some(authority) = authority {
        all.insert("authority".into(), authority.into());
    }
    if !matches.headers.is_empty() {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = matches.headers.iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), text(value.as_bytes()).into()));
        all.insert("headers".into(), Value::Object(headers.collect()));
    }
    Value::Object(all)
}

pub(super) fn duration(duration: std::time::Duration) -> String {
    Unit::Duration.show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn size(bytes: usize) -> String {
    Unit::Size.show(bytes as u64)
}
