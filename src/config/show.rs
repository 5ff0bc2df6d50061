//! The configuration as a file that says everything in full.

use serde_json::{Map, Value, json};

use super::{
    Admin, AuthorityMatch, Cluster, Config, Http2, Listener, Match, PathMatch, Pool, Route,
};
use thalweg_filters::{chain::Filter, units::Unit};

/// Loads back to the same configuration, but for the token, which stays hidden.
pub(super) fn config(config: &Config) -> Value {
    let clusters = config.clusters.iter();
    json!({
        "admin": admin(config.admin.as_ref()),
        "workers": config.workers,
        "drain": {"timeout": duration(config.drain_timeout)},
        "listeners": config.listeners.iter().map(listener).collect::<Value>(),
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
            json!({"address": address.to_string(), "token": "***"})
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
    json!({
        "name": listener.name,
        "address": listener.address.to_string(),
        "max_connections": listener.max_connections,
        "timeouts": {
            "preface": duration(timeouts.preface),
            "first_headers": duration(timeouts.first_headers),
            "stall": duration(timeouts.stall),
        },
        "http1": {
            "max_headers": http1.max_headers,
            "max_header_bytes": size(http1.max_header_bytes),
            "keep_alive": duration(http1.keep_alive),
        },
        "http2": shared,
    })
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
        "data_frame_budget": size(http2.data_frame_budget),
    })
}

fn cluster(cluster: &Cluster) -> Value {
    json!({
        "endpoints": cluster.endpoints.iter().map(ToString::to_string).collect::<Value>(),
        "protocol": cluster.protocol,
        "http2": http2(&cluster.http2),
        "connect_timeout": duration(cluster.connect_timeout),
        "pool": pool(&cluster.pool),
        "stall": duration(cluster.stall),
    })
}

fn pool(pool: &Pool) -> Value {
    json!({
        "max_connections": pool.max_connections,
        "max_streams_per_connection": pool.max_streams_per_connection,
        "avoid_stalled": duration(pool.avoid_stalled),
        "max_pending": pool.max_pending,
        "max_connection_age": duration(pool.max_connection_age),
        "idle_timeout": duration(pool.idle_timeout),
    })
}

fn route(route: &Route) -> Value {
    let mut all = json!({
        "name": route.name,
        "match": matches(&route.matches),
        "timeouts": {"stall": duration(route.timeouts.stall)},
        "filters": route.filters.iter().map(filter).collect::<Value>(),
    });
    let targets = route.targets.iter();
    match route.targets.as_slice() {
        [one] if one.weight == 1 => all["cluster"] = json!(one.cluster.name),
        _ => {
            all["clusters"] = targets
                .map(|target| json!({"name": target.cluster.name, "weight": target.weight}))
                .collect();
        }
    }
    all
}

/// By its bare name, if there is no more to say.
fn filter(filter: &Filter) -> Value {
    match serde_json::to_value(filter) {
        Ok(Value::Object(entry)) if entry.values().any(|settings| *settings != json!({})) => {
            entry.into()
        }
        _ => filter.name().into(),
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

fn duration(duration: std::time::Duration) -> String {
    Unit::Duration.show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn size(bytes: usize) -> String {
    Unit::Size.show(bytes as u64)
}
