//! Where streams are forwarded to.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{CertificateFiles, Http2, Status};
use crate::config::Protocol;
use thalweg_filters::units::{Count, Duration};

/// Speaks TLS with the endpoints. `{}` takes all defaults.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct UpstreamTls {
    /// A file in PEM with the roots that vouch for the endpoints. Default: those that this machine
    /// trusts.
    #[schemars(length(min = 1))]
    pub(in crate::config) ca: Option<String>,

    /// The name or the IP address that the certificates of the endpoints must be for. Default: the
    /// host of each endpoint, so an endpoint with an IP address must have that address in its
    /// certificate. A Unix socket has none.
    #[schemars(length(min = 1))]
    pub(in crate::config) server_name: Option<String>,

    /// What is shown to endpoints that ask who we are. Default: nothing, and those that insist refuse
    /// us.
    pub(in crate::config) certificate: Option<CertificateFiles>,

    /// How often the files are looked at for changes; `0s` is never. Default `5s`, as for listeners.
    /// Open connections notice nothing.
    pub(in crate::config) reload_interval: Option<Duration>,
}

/// Asks each endpoint again and again whether it is well: with one of `grpc`, `http` and `tcp`, on a
/// connection of its own each time, under TLS if the cluster has it. Each is asked by the process and
/// not by each worker. An endpoint counts as well until it was asked; then its first answer decides,
/// and later ones by `healthy` and `unhealthy`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HealthCheck {
    /// Calls `grpc.health.v1.Health/Check`; SERVING is well.
    pub(in crate::config) grpc: Option<GrpcCheck>,

    /// Sends a GET, as the cluster's `protocol` has it.
    pub(in crate::config) http: Option<HttpCheck>,

    /// Opens a connection; `{}` for its settings. Under TLS, it shakes hands too.
    pub(in crate::config) tcp: Option<TcpCheck>,

    /// The wait between two checks, a tenth more or less at random. Default `5s`: an endpoint that
    /// has died is noticed in 15s, and its failed dials keep streams off it sooner.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) interval: Option<Duration>,

    /// Longest a check may take, the dial included; beyond, it has failed. Default `2s`.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) timeout: Option<Duration>,

    /// Good checks in a row that it takes to be well again. Default `2`, against flapping.
    #[schemars(range(min = 1, max = 1000))]
    pub(in crate::config) healthy: Option<Count>,

    /// Bad checks in a row that it takes to be well no more. Default `3`: one may be lost.
    #[schemars(range(min = 1, max = 1000))]
    pub(in crate::config) unhealthy: Option<Count>,

    /// `true` ends gRPC streams on an endpoint that is found not to be well, between two messages, so
    /// that their clients open them elsewhere; but not while no other endpoint is available. Default
    /// `false`: it may still serve the streams that it has.
    pub(in crate::config) dismiss: Option<bool>,
}

/// Calls `grpc.health.v1.Health/Check`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct GrpcCheck {
    /// The service that is asked for. Default: the server as a whole.
    pub(in crate::config) service: Option<String>,
}

/// Sends a GET.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HttpCheck {
    /// Of this path: `/healthz`.
    #[schemars(length(min = 1))]
    pub(in crate::config) path: String,

    /// The status that is good. Default: any from 200 to 299.
    #[schemars(range(min = 200, max = 599))]
    pub(in crate::config) expect: Option<Count>,
}

/// Opens a connection.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TcpCheck {}

/// When an endpoint is taken out because of how its streams end.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Outlier {
    /// Streams that end badly, one after another and on all workers together, until the endpoint is taken
    /// out; dials that fail count too. Default `5`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) consecutive: Option<Count>,

    /// The age up to which a bad end of a stream counts. Default `10s`: a server that is stopped in
    /// good order ends old streams too.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) young: Option<Duration>,

    /// The gRPC statuses that are bad ends, by name or by number, in the answer or standing for what
    /// happened to it: UNAVAILABLE for lost connections and HTTP 502 and 503, INTERNAL for most resets
    /// and for HTTP 500. Default `[UNAVAILABLE]`: the others a client can bring about at will, and so
    /// take endpoints from all.
    #[schemars(length(min = 1))]
    pub(in crate::config) statuses: Option<Vec<Status>>,

    /// How long an endpoint is out the first time. Each further time it is so much longer, until a
    /// stream goes well there. Default `30s`.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) ejection: Option<Duration>,

    /// The longest that an endpoint is out. Default `5m`.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) max_ejection: Option<Duration>,

    /// Of a hundred endpoints, so many may be out at the same time. Default `50`: where most fail, the
    /// fault is mostly elsewhere, and the others would fall under the load of all. With `100`, all may
    /// be out; then streams are sent to any.
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::config) max_ejected_percent: Option<Count>,
}

/// A set of interchangeable endpoints.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Cluster {
    /// Where the upstreams are: a list of addresses, or `dns` or `file`, from where it comes.
    pub(in crate::config) endpoints: Endpoints,

    /// Which endpoint takes a stream. Default `least_streams`, which needs no thought: it evens out
    /// streams that live long, and keeps off endpoints that are slow.
    pub(in crate::config) balance: Option<Balance>,

    /// Time in which an endpoint that is added or comes back grows from a tenth of its share to the
    /// whole. Default `0s`: it takes its share at once, which only hurts servers that must warm up
    /// first, and a long start would put off the balance of long streams.
    pub(in crate::config) slow_start: Option<Duration>,

    /// `true` ends gRPC streams on an endpoint that has been removed, between two messages, so that
    /// their clients open them elsewhere. Default `false`: they go on for as long as the endpoint
    /// does, since a name may leave out an address for a while.
    pub(in crate::config) dismiss_removed: Option<bool>,

    /// Asks each endpoint again and again whether it is well, and sends no new streams to those that are
    /// not; open streams go on. Default: none, and an endpoint is known by its dials alone.
    pub(in crate::config) health_check: Option<HealthCheck>,

    /// Takes an endpoint out for a while whose streams end badly, one after another; `{}` takes all
    /// defaults below. Default: none, since only who runs the service knows which statuses are the
    /// endpoint's fault.
    pub(in crate::config) outlier: Option<Outlier>,

    /// What the endpoints speak. Default `http2`, as gRPC servers do.
    pub(in crate::config) protocol: Option<Protocol>,

    /// Speaks TLS with the endpoints, 1.2 and 1.3. Default: none, and bytes go in the clear.
    pub(in crate::config) tls: Option<UpstreamTls>,

    /// How HTTP/2 is spoken with the endpoints.
    pub(in crate::config) http2: Option<Http2>,

    /// Longest a dial may take, with its TLS handshake and until the first word of HTTP/2. Default `2s`:
    /// one lost packet is made good in that time. Time in which the proxy did not come round to look
    /// is not counted. How long a stream waits for its place is `pool.wait_timeout`.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) connect_timeout: Option<Duration>,

    /// How connections are shared and kept.
    pub(in crate::config) pool: Option<Pool>,

    /// How long a connection may have bytes to send of which the upstream takes none; `0s` is for
    /// ever. Default `60s`, as for clients.
    pub(in crate::config) stall: Option<Duration>,
}

/// Where the endpoints of a cluster come from: a list, or a map that says where it is.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Endpoints {
    /// The list itself.
    Listed(EndpointList),
    /// Where the list comes from.
    Source(EndpointSource),
}

/// Addresses of the upstreams: `127.0.0.1:50051`, `"[::1]:50051"` or `unix:/run/x.sock`. IP
/// addresses only, and `localhost`, which is `127.0.0.1`.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(in crate::config) struct EndpointList(
    #[schemars(length(min = 1))] pub(in crate::config) Vec<EndpointEntry>,
);

/// Where the endpoints come from, other than from this file. One of `dns` and `file`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct EndpointSource {
    /// A name and a port, `greeter.svc:50051`. Every address of the name is an endpoint. The name is
    /// looked up again and again; when that fails or finds nothing, the endpoints stay.
    #[schemars(length(min = 1))]
    pub(in crate::config) dns: Option<String>,

    /// A file in YAML or JSON with a list as it would stand here, up to 4 MiB. It is read again when
    /// it changes; one that is not good is told in the log, and the endpoints stay. At the start it
    /// must be good.
    #[schemars(length(min = 1))]
    pub(in crate::config) file: Option<String>,

    /// Time between two looks, a tenth more or less at random. Default `5s` for `dns`, as most
    /// resolvers remember answers for so long at least, and `1s` for `file`.
    #[schemars(extend("minimum" = 10))]
    pub(in crate::config) refresh: Option<Duration>,
}

/// An endpoint by its address, or a map to say more.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum EndpointEntry {
    /// The address of an upstream: `127.0.0.1:50051`, `"[::1]:50051"` or `unix:/run/x.sock`.
    Address(String),
    /// An endpoint and its weight.
    Weighted(WeightedEndpoint),
}

/// An endpoint and its weight.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct WeightedEndpoint {
    /// The address of the upstream.
    pub(in crate::config) address: String,

    /// Its part of the streams, in proportion to the weights of the others. Default `1`.
    #[schemars(range(min = 1, max = 1_000))]
    pub(in crate::config) weight: Option<Count>,
}

/// Which endpoint takes a stream: the name of a way, or a map of its name to its settings.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Balance {
    /// The name of a way that has no settings.
    Named(BalanceName),
    /// A way that has settings.
    By(BalanceBy),
}

/// A way to choose an endpoint that has no settings.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum BalanceName {
    /// Of two endpoints drawn at random by weight, the one with fewer streams for its weight.
    LeastStreams,
    /// Each in turn, as often as its weight says.
    RoundRobin,
}

/// A way to choose an endpoint that has settings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct BalanceBy {
    /// Streams with the same value of a header go to the same endpoint, and when endpoints come or
    /// go, only those streams move that must.
    pub(in crate::config) ring_hash: RingHash,
}

/// What a stream is known by.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RingHash {
    /// The header, such as `x-user`; a filter may have set it, as `initial_message` does from a field
    /// of the first message. Streams without it are balanced as by `least_streams`.
    #[schemars(length(min = 1))]
    pub(in crate::config) header: String,
}

/// How connections to upstreams are shared and kept.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Pool {
    /// Connections to one endpoint, for each worker. Default `1024`: with a hundred streams on
    /// each, a hundred thousand streams stay open.
    #[schemars(range(min = 1, max = 65_535))]
    pub(in crate::config) max_connections: Option<Count>,

    /// Streams on one HTTP/2 connection, and fewer if the upstream says so. Default `100`, the
    /// number that servers commonly grant.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(in crate::config) max_streams_per_connection: Option<Count>,

    /// Streams open or waiting at once in the whole cluster, over all workers; further ones are
    /// refused at once. Streams that begin at the same moment on several workers may exceed it by
    /// as many. Default: as many as the listeners let in.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(in crate::config) max_streams: Option<Count>,

    /// Dials to one endpoint on their way at once, for each worker; each that lands starts the next
    /// while streams wait. Default `16`: with HTTP/2 that is room for 1,600 streams in the time of
    /// one dial, and a hundred TLS handshakes at once would hold up everything else.
    #[schemars(range(min = 1, max = 65_535))]
    pub(in crate::config) max_dials: Option<Count>,

    /// Streams that may wait for a connection, for each worker; further ones are refused at once.
    /// Default: as many as the listeners let in, since after a restart all come back at once, and
    /// one that waits costs a few kilobytes. `0` lets none wait, not even for the first connection.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(in crate::config) max_pending: Option<Count>,

    /// Longest that a stream waits for its place on a connection, up to an eighth more; when a dial
    /// fails and there is nothing else to wait for, it hears of that at once. Default `30s`: in that
    /// time a hundred thousand streams find their places, and few clients wait longer. Time in which
    /// the proxy did not come round to look is not counted.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) wait_timeout: Option<Duration>,

    /// Time after which a stream whose bytes the upstream does not take marks its connection: new
    /// streams then go to another one, because a connection shares one window. Default `1s`.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) avoid_stalled: Option<Duration>,

    /// Age at which a connection takes no new streams and ends with its last one; `0s` is never.
    /// Default `0s`: only load balancers that spread connections need it.
    pub(in crate::config) max_connection_age: Option<Duration>,

    /// How long a connection without streams is kept. Default `90s`, longer than most pauses.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) idle_timeout: Option<Duration>,
}
