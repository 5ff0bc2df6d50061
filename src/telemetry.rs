//! What the proxy counts beside its streams: connections, refusals, limits that were hit, ends that it made itself.
//!
//! Streams are counted by the filter `metrics`. All that stands here happens once a connection or once a failure, so plain
//! shared atomics do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};
use thalweg_filters::{Error, circuit_breaker, held::Total, metrics};

use crate::config;

/// Everything that `/metrics` prints.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) streams: Arc<metrics::Registry>,
    pub(crate) breakers: Arc<circuit_breaker::Registry>,
    pub(crate) process: Arc<Process>,
}

/// What the proxy counts beside its streams.
#[derive(Debug, Default)]
pub(crate) struct Process {
    /// Streams that the proxy ended itself, by the reason that the client was told.
    ends: Mutex<BTreeMap<&'static str, u64>>,
    /// Streams that were dismissed, and then cut because a message took longer than `drain.force`.
    pub(crate) forced_ends: Count,
    /// Streams that ended in a panic.
    pub(crate) panics: Count,
    /// Bytes that all streams hold, and the most that they should.
    pub(crate) held: Arc<Total>,
    /// Streams that watch the proxy's own health.
    pub(crate) health_watchers: Count,
    /// Those that were one too many.
    pub(crate) health_watcher_overflows: Count,
    pub(crate) config: ConfigStats,
    listeners: Mutex<Named<ListenerStats>>,
    tls: Mutex<Named<TlsStats>>,
    upstream_tls: Mutex<Named<UpstreamTlsStats>>,
    clusters: Mutex<Named<ClusterStats>>,
    bindings: Mutex<Named<BindingStats>>,
}

/// What became of the configurations that were to be taken up.
#[derive(Debug, Default)]
pub(crate) struct ConfigStats {
    /// Those that were taken up, beside the first.
    pub(crate) reloads: Count,
    pub(crate) failures: Count,
    /// Whether the last one was: 1 or 0.
    pub(crate) last_successful: Count,
    /// When the one in force was taken up, in seconds since 1970.
    pub(crate) last_success: Count,
}

/// What several count who each have a name.
type Named<S> = BTreeMap<String, Arc<S>>;

/// What one listener counts.
#[derive(Debug, Default)]
pub(crate) struct ListenerStats {
    pub(crate) accepted: Count,
    pub(crate) live: Count,
    pub(crate) accept_errors: Count,
    /// Times that the listener waited because `max_connections` were open.
    pub(crate) full: Count,
    pub(crate) preface_timeouts: Count,
    pub(crate) first_headers_timeouts: Count,
    pub(crate) stalls: Count,
    /// Streams whose last bytes were dropped so that their status could pass.
    pub(crate) last_words: Count,
    pub(crate) keepalive_timeouts: Count,
    /// Connections that ended with an error of the protocol or of the socket.
    pub(crate) errors: Count,
    /// Connections under TLS to a listener that has none.
    pub(crate) unexpected_tls: Count,
    pub(crate) proxy_headers: Count,
    /// Connections of trusted networks that did not begin with a good PROXY header.
    pub(crate) proxy_header_failures: Count,
    pub(crate) proxy_header_timeouts: Count,
}

/// What one listener with TLS counts besides.
#[derive(Debug, Default)]
pub(crate) struct TlsStats {
    pub(crate) handshakes: Count,
    pub(crate) resumed: Count,
    pub(crate) handshake_failures: Count,
    pub(crate) handshake_timeouts: Count,
    /// Connections that began in the clear.
    pub(crate) missing: Count,
    /// Connections that were open when their client's certificate ended.
    pub(crate) expired_clients: Count,
    pub(crate) reload: ReloadStats,
    /// When the first of the certificates ends, in seconds since 1970.
    pub(crate) certificate_expiry: Count,
}

/// What one cluster with TLS counts besides, over all workers.
#[derive(Debug, Default)]
pub(crate) struct UpstreamTlsStats {
    pub(crate) handshakes: Count,
    pub(crate) resumed: Count,
    pub(crate) handshake_failures: Count,
    pub(crate) reload: ReloadStats,
    /// When the certificate that is shown ends, in seconds since 1970.
    pub(crate) certificate_expiry: Count,
}

/// What is counted of files that may change.
#[derive(Debug, Default)]
pub(crate) struct ReloadStats {
    pub(crate) reloads: Count,
    pub(crate) failures: Count,
}

/// What one cluster counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct ClusterStats {
    pub(crate) connections: Count,
    pub(crate) connected: Count,
    pub(crate) connect_failures: Count,
    pub(crate) connect_timeouts: Count,
    /// Dials on their way now.
    pub(crate) dialing: Count,
    pub(crate) streams: Count,
    pub(crate) pending: Count,
    pub(crate) pending_overflows: Count,
    /// Streams that waited in vain for a place on a connection, although others might have been opened.
    pub(crate) wait_timeouts: Count,
    pub(crate) retired: Count,
    pub(crate) retries: Count,
    pub(crate) retry_overflows: Count,
    pub(crate) stalls: Count,
    pub(crate) keepalive_timeouts: Count,
    pub(crate) stalled_streams: Count,
    /// Streams that were sent to an endpoint although none was available.
    pub(crate) none_available: Count,
    /// Streams refused because `pool.max_streams` were there.
    pub(crate) too_many_streams: Count,
    /// Streams that waited in vain for one of `pool.max_connections`.
    pub(crate) too_many_connections: Count,
    pub(crate) health_checks: Count,
    pub(crate) health_failures: Count,
    pub(crate) unhealthy: Count,
    /// Times that an endpoint was taken out because of how its streams ended.
    pub(crate) ejections: Count,
    /// Times that one was not, because enough others were out.
    pub(crate) ejection_overflows: Count,
    /// Times that endpoints came, went, or changed their weights.
    pub(crate) endpoint_changes: Count,
    /// Looks at the source of the endpoints that found nothing of use.
    pub(crate) endpoint_failures: Count,
    /// Whether the last one did: 1 or 0.
    pub(crate) endpoints_stale: Count,
}

/// What one binding counts beside its streams, over all workers.
#[derive(Debug, Default)]
pub(crate) struct BindingStats {
    /// Whether its component can be used: 1 or 0.
    pub(crate) ready: Count,
    pub(crate) inits: Count,
    pub(crate) ping_failures: Count,
    pub(crate) retries: Count,
    pub(crate) handshake_timeouts: Count,
    /// Streams of which no more was kept for another attempt.
    pub(crate) replay_overflows: Count,
    pub(crate) buffered: Count,
    pub(crate) buffer_overflows: Count,
    pub(crate) aborted_uploads: Count,
    pub(crate) failed_aborts: Count,
}

/// A counter, or a gauge where it is also subtracted from or set.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Telemetry {
    /// Nothing counted yet. Metrics with Dapr's names bear its labels.
    pub(crate) fn new(labels: &config::Dapr) -> Self {
        let (app_id, namespace) = (&*labels.app_id, &*labels.namespace);
        Self {
            streams: Arc::new(metrics::Registry::new(app_id, namespace)),
            breakers: Arc::new(circuit_breaker::Registry::new(app_id, namespace)),
            process: Arc::default(),
        }
    }

    /// Forgets what nobody counts any more: routes, listeners and the like that a configuration had and whose last stream has
    /// ended.
    pub(crate) fn forget_unused(&self) {
        self.streams.forget_unused();
        self.breakers.forget_unused();
        forget_unused(&self.process.listeners);
        forget_unused(&self.process.tls);
        forget_unused(&self.process.upstream_tls);
        forget_unused(&self.process.clusters);
        forget_unused(&self.process.bindings);
    }

    /// A registry of all that is counted, for printing.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&self.streams)));
        registry.register_collector(Box::new(Arc::clone(&self.breakers)));
        registry.register_collector(Box::new(Arc::clone(&self.process)));
        registry
    }
}

impl ConfigStats {
    /// A configuration is in force.
    pub(crate) fn succeeded(&self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(since.as_secs());
        self.last_successful.set(1);
    }

    /// A configuration could not be taken up.
    pub(crate) fn failed(&self) {
        self.failures.increment();
        self.last_successful.set(0);
    }
}

impl Process {
    /// Counts a stream that the proxy ended itself.
    pub(crate) fn ended(&self, error: &Error) {
        *lock(&self.ends).entry(error.reason()).or_default() += 1;
    }

    /// The counters of a listener.
    pub(crate) fn listener(&self, name: &str) -> Arc<ListenerStats> {
        entry(&self.listeners, name)
    }

    /// What the listener counts besides, if it has TLS.
    pub(crate) fn tls(&self, listener: &str) -> Arc<TlsStats> {
        entry(&self.tls, listener)
    }

    /// The counters of a cluster, shared by the workers.
    pub(crate) fn cluster(&self, name: &str) -> Arc<ClusterStats> {
        entry(&self.clusters, name)
    }

    /// What the cluster counts besides, if it has TLS.
    pub(crate) fn upstream_tls(&self, cluster: &str) -> Arc<UpstreamTlsStats> {
        entry(&self.upstream_tls, cluster)
    }

    /// The counters of a binding, shared by the workers.
    pub(crate) fn binding(&self, name: &str) -> Arc<BindingStats> {
        entry(&self.bindings, name)
    }
}

fn entry<S: Default>(all: &Mutex<Named<S>>, name: &str) -> Arc<S> {
    Arc::clone(lock(all).entry(name.to_owned()).or_default())
}

/// Forgets what nobody counts any more.
fn forget_unused<S>(all: &Mutex<Named<S>>) {
    lock(all).retain(|_, stats| Arc::strong_count(stats) > 1);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Count {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Counts one more, unless there are `most` already.
    pub(crate) fn increment_below(&self, most: u64) -> bool {
        let more = |count| (count < most).then_some(count + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub(crate) fn decrement(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

type Reading<S> = (&'static str, &'static str, MetricType, fn(&S) -> &Count);

const CONFIG: [Reading<ConfigStats>; 4] = [
    (
        "thalweg_config_reloads",
        "Changed configurations that were taken up",
        MetricType::Counter,
        |stats| &stats.reloads,
    ),
    (
        "thalweg_config_reload_failures",
        "Configurations that were to be taken up and could not be",
        MetricType::Counter,
        |stats| &stats.failures,
    ),
    (
        "thalweg_config_last_reload_successful",
        "Whether the configuration that was last to be taken up is in force",
        MetricType::Gauge,
        |stats| &stats.last_successful,
    ),
    (
        "thalweg_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was taken up, in seconds since 1970",
        MetricType::Gauge,
        |stats| &stats.last_success,
    ),
];

const LISTENER: [Reading<ListenerStats>; 14] = [
    (
        "connections_accepted",
        "Connections accepted",
        MetricType::Counter,
        |stats| &stats.accepted,
    ),
    (
        "connections_live",
        "Connections open now",
        MetricType::Gauge,
        |stats| &stats.live,
    ),
    (
        "accept_errors",
        "Accepts that failed, and were tried again",
        MetricType::Counter,
        |stats| &stats.accept_errors,
    ),
    (
        "connections_full",
        "Waits because max_connections were open",
        MetricType::Counter,
        |stats| &stats.full,
    ),
    (
        "preface_timeouts",
        "Connections that said nothing within timeouts.preface",
        MetricType::Counter,
        |stats| &stats.preface_timeouts,
    ),
    (
        "first_headers_timeouts",
        "Connections without a request within timeouts.first_headers, or whose headers did not end within it",
        MetricType::Counter,
        |stats| &stats.first_headers_timeouts,
    ),
    (
        "stalls",
        "Connections and streams whose client took fewer bytes than stall_min_progress within timeouts.stall",
        MetricType::Counter,
        |stats| &stats.stalls,
    ),
    (
        "last_words",
        "Streams that failed and whose client took none of the bytes before the status for timeouts.last_words",
        MetricType::Counter,
        |stats| &stats.last_words,
    ),
    (
        "keepalive_timeouts",
        "Connections that left a PING without an answer for http2.keepalive.timeout",
        MetricType::Counter,
        |stats| &stats.keepalive_timeouts,
    ),
    (
        "connection_errors",
        "Connections that ended with an error",
        MetricType::Counter,
        |stats| &stats.errors,
    ),
    (
        "unexpected_tls",
        "Connections under TLS, where the listener has none",
        MetricType::Counter,
        |stats| &stats.unexpected_tls,
    ),
    (
        "proxy_headers",
        "PROXY headers taken",
        MetricType::Counter,
        |stats| &stats.proxy_headers,
    ),
    (
        "proxy_header_failures",
        "Connections from trusted networks without a good PROXY header",
        MetricType::Counter,
        |stats| &stats.proxy_header_failures,
    ),
    (
        "proxy_header_timeouts",
        "PROXY headers that took longer than timeouts.handshake",
        MetricType::Counter,
        |stats| &stats.proxy_header_timeouts,
    ),
];

const TLS: [Reading<TlsStats>; 9] = [
    (
        "tls_handshakes",
        "TLS handshakes done, the resumed ones among them",
        MetricType::Counter,
        |stats| &stats.handshakes,
    ),
    (
        "tls_resumed",
        "TLS sessions that were resumed",
        MetricType::Counter,
        |stats| &stats.resumed,
    ),
    (
        "tls_handshake_failures",
        "TLS handshakes that failed",
        MetricType::Counter,
        |stats| &stats.handshake_failures,
    ),
    (
        "tls_handshake_timeouts",
        "TLS handshakes that took longer than timeouts.handshake",
        MetricType::Counter,
        |stats| &stats.handshake_timeouts,
    ),
    (
        "tls_missing",
        "Connections that began in the clear, where the listener has TLS",
        MetricType::Counter,
        |stats| &stats.missing,
    ),
    (
        "tls_expired_clients",
        "Connections that were open when their client's certificate ended",
        MetricType::Counter,
        |stats| &stats.expired_clients,
    ),
    (
        "tls_reloads",
        "Times that changed TLS files were taken up",
        MetricType::Counter,
        |stats| &stats.reload.reloads,
    ),
    (
        "tls_reload_failures",
        "Times that changed TLS files were tried and not good",
        MetricType::Counter,
        |stats| &stats.reload.failures,
    ),
    (
        "tls_certificate_expiry_seconds",
        "When the first of the certificates ends, in seconds since 1970",
        MetricType::Gauge,
        |stats| &stats.certificate_expiry,
    ),
];

const UPSTREAM_TLS: [Reading<UpstreamTlsStats>; 6] = [
    (
        "tls_handshakes",
        "TLS handshakes done, the resumed ones among them",
        MetricType::Counter,
        |stats| &stats.handshakes,
    ),
    (
        "tls_resumed",
        "TLS sessions that were resumed",
        MetricType::Counter,
        |stats| &stats.resumed,
    ),
    (
        "tls_handshake_failures",
        "TLS handshakes that failed, and refusals after one",
        MetricType::Counter,
        |stats| &stats.handshake_failures,
    ),
    (
        "tls_reloads",
        "Times that changed TLS files were taken up",
        MetricType::Counter,
        |stats| &stats.reload.reloads,
    ),
    (
        "tls_reload_failures",
        "Times that changed TLS files were tried and not good",
        MetricType::Counter,
        |stats| &stats.reload.failures,
    ),
    (
        "tls_certificate_expiry_seconds",
        "When the certificate that is shown ends, in seconds since 1970; 0 if none is",
        MetricType::Gauge,
        |stats| &stats.certificate_expiry,
    ),
];

const CLUSTER: [Reading<ClusterStats>; 26] = [
    (
        "health_checks",
        "Health checks done, those that failed among them",
        MetricType::Counter,
        |stats| &stats.health_checks,
    ),
    (
        "health_check_failures",
        "Health checks that failed",
        MetricType::Counter,
        |stats| &stats.health_failures,
    ),
    (
        "endpoints_turned_unhealthy",
        "Times that an endpoint was taken out because its health checks failed",
        MetricType::Counter,
        |stats| &stats.unhealthy,
    ),
    (
        "ejections",
        "Times that an endpoint was taken out because its streams ended badly",
        MetricType::Counter,
        |stats| &stats.ejections,
    ),
    (
        "ejection_overflows",
        "Times that an endpoint stayed although its streams ended badly, because of outlier.max_ejected_percent",
        MetricType::Counter,
        |stats| &stats.ejection_overflows,
    ),
    (
        "connections",
        "Connections open now",
        MetricType::Gauge,
        |stats| &stats.connections,
    ),
    (
        "connected",
        "Connections opened",
        MetricType::Counter,
        |stats| &stats.connected,
    ),
    (
        "connect_failures",
        "Dials that failed",
        MetricType::Counter,
        |stats| &stats.connect_failures,
    ),
    (
        "connect_timeouts",
        "Dials that took longer than connect_timeout",
        MetricType::Counter,
        |stats| &stats.connect_timeouts,
    ),
    (
        "dialing",
        "Dials on their way now",
        MetricType::Gauge,
        |stats| &stats.dialing,
    ),
    ("streams", "Streams open now", MetricType::Gauge, |stats| {
        &stats.streams
    }),
    (
        "pending",
        "Streams that wait for a connection now",
        MetricType::Gauge,
        |stats| &stats.pending,
    ),
    (
        "pending_overflows",
        "Streams refused because pool.max_pending waited",
        MetricType::Counter,
        |stats| &stats.pending_overflows,
    ),
    (
        "wait_timeouts",
        "Streams that waited pool.wait_timeout for a connection, although others might have been opened",
        MetricType::Counter,
        |stats| &stats.wait_timeouts,
    ),
    (
        "retired",
        "Connections taken out of use: lost, sent away, idle or old",
        MetricType::Counter,
        |stats| &stats.retired,
    ),
    (
        "retries",
        "Streams that failed and were tried again",
        MetricType::Counter,
        |stats| &stats.retries,
    ),
    (
        "retry_overflows",
        "Streams that failed and were not tried again because the route's retry.budget was used up",
        MetricType::Counter,
        |stats| &stats.retry_overflows,
    ),
    (
        "endpoint_changes",
        "Times that endpoints came, went, or changed their weights",
        MetricType::Counter,
        |stats| &stats.endpoint_changes,
    ),
    (
        "endpoint_failures",
        "Looks at the source of the endpoints that found nothing of use",
        MetricType::Counter,
        |stats| &stats.endpoint_failures,
    ),
    (
        "endpoints_stale",
        "Whether the last look at the source of the endpoints found nothing of use",
        MetricType::Gauge,
        |stats| &stats.endpoints_stale,
    ),
    (
        "too_many_streams",
        "Streams refused because pool.max_streams were open or waited",
        MetricType::Counter,
        |stats| &stats.too_many_streams,
    ),
    (
        "too_many_connections",
        "Streams that waited in vain because pool.max_connections were open and full",
        MetricType::Counter,
        |stats| &stats.too_many_connections,
    ),
    (
        "none_available",
        "Streams for which no endpoint was available, and any one was tried",
        MetricType::Counter,
        |stats| &stats.none_available,
    ),
    (
        "stalled_streams",
        "Streams now whose bytes the upstream has not taken for pool.avoid_stalled",
        MetricType::Gauge,
        |stats| &stats.stalled_streams,
    ),
    (
        "stalls",
        "Connections that took no bytes for the cluster's stall",
        MetricType::Counter,
        |stats| &stats.stalls,
    ),
    (
        "keepalive_timeouts",
        "Connections that left a PING without an answer for http2.keepalive.timeout",
        MetricType::Counter,
        |stats| &stats.keepalive_timeouts,
    ),
];

const BINDING: [Reading<BindingStats>; 10] = [
    (
        "component_ready",
        "Whether the component can be used",
        MetricType::Gauge,
        |stats| &stats.ready,
    ),
    (
        "component_inits",
        "Times that the component was told its settings",
        MetricType::Counter,
        |stats| &stats.inits,
    ),
    (
        "ping_failures",
        "Pings that the component did not answer well",
        MetricType::Counter,
        |stats| &stats.ping_failures,
    ),
    (
        "retries",
        "Handshakes that were tried again",
        MetricType::Counter,
        |stats| &stats.retries,
    ),
    (
        "handshake_timeouts",
        "Handshakes that took longer than resiliency.timeout",
        MetricType::Counter,
        |stats| &stats.handshake_timeouts,
    ),
    (
        "replay_overflows",
        "Streams of which no more was kept for another attempt (replay_bytes, buffer.max_bytes, max_held)",
        MetricType::Counter,
        |stats| &stats.replay_overflows,
    ),
    (
        "buffered",
        "Streams that were collected for a far side that cannot stream",
        MetricType::Counter,
        |stats| &stats.buffered,
    ),
    (
        "buffer_overflows",
        "Streams refused because they exceeded buffer.max_bytes",
        MetricType::Counter,
        |stats| &stats.buffer_overflows,
    ),
    (
        "aborted_uploads",
        "Uploads in parts that were given up before the object was complete",
        MetricType::Counter,
        |stats| &stats.aborted_uploads,
    ),
    (
        "failed_aborts",
        "Uploads that the store could not be told to forget",
        MetricType::Counter,
        |stats| &stats.failed_aborts,
    ),
];

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor(
                "thalweg_build_info",
                "The running version",
                None,
                MetricType::Gauge,
            )?
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1_u64)?;
        encoder
            .encode_descriptor(
                "thalweg_panics",
                "Streams that ended in a panic",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&self.panics.get(), None)?;
        for (name, help, bytes) in [
            (
                "thalweg_held_bytes",
                "Bytes that all streams hold now",
                self.held.held(),
            ),
            (
                "thalweg_held_bytes_limit",
                "The most bytes that all streams should hold (max_held)",
                self.held.limit(),
            ),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&(bytes as u64))?;
        }
        encoder
            .encode_descriptor(
                "thalweg_health_watchers",
                "Streams now that watch the proxy's own health",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&self.health_watchers.get())?;
        encoder
            .encode_descriptor(
                "thalweg_health_watcher_overflows",
                "Streams refused because health_service.max_watchers watched",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&self.health_watcher_overflows.get(), None)?;
        for (name, help, kind, read) in &CONFIG {
            let mut metric = encoder.encode_descriptor(name, help, None, *kind)?;
            let count = read(&self.config).get();
            match kind {
                MetricType::Gauge => metric.encode_gauge(&count)?,
                _ => metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?,
            }
        }
        let mut family = encoder.encode_descriptor(
            "thalweg_proxy_ends",
            "Streams that the proxy ended itself, by the reason that the client was told",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in lock(&self.ends).iter() {
            family
                .encode_family(&[("reason", *reason)])?
                .encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        encoder
            .encode_descriptor(
                "thalweg_forced_ends",
                "Streams that were cut because their current message took longer than drain.force",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&self.forced_ends.get(), None)?;
        encode_all(&mut encoder, "listener", &lock(&self.listeners), &LISTENER)?;
        encode_all(&mut encoder, "listener", &lock(&self.tls), &TLS)?;
        encode_all(&mut encoder, "cluster", &lock(&self.clusters), &CLUSTER)?;
        encode_all(
            &mut encoder,
            "cluster",
            &lock(&self.upstream_tls),
            &UPSTREAM_TLS,
        )?;
        encode_all(&mut encoder, "binding", &lock(&self.bindings), &BINDING)
    }
}

fn encode_all<S>(
    encoder: &mut DescriptorEncoder<'_>,
    label: &str,
    all: &Named<S>,
    readings: &[Reading<S>],
) -> fmt::Result {
    for (name, help, kind, read) in readings {
        let name = format!("thalweg_{label}_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, *kind)?;
        for (member, stats) in all {
            let labels = [(label, member.as_str())];
            let mut metric = family.encode_family(&labels)?;
            let count = read(stats).get();
            match kind {
                MetricType::Gauge => metric.encode_gauge(&count)?,
                _ => metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?,
            }
        }
    }
    Ok(())
}
