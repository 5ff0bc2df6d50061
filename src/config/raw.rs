//! The file as people write it. Each comment on a field is its line in the manual.
//!
//! These types are read twice: as a JSON Schema, which editors show and against which
//! [`check`](super::check) finds every slip in a file at once, and by serde.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value;

use super::{CircuitBreaker, ClientAuth, Protocol};
use thalweg_filters::units::{Count, Duration, Size};
use thalweg_proto::status::Code;

/// What Thalweg does, in one file: where it listens, where it forwards to, and which stream goes
/// where.
///
/// Durations are written `250ms`, `5s`, `1m` or `1h`; sizes `64KiB`, `4MiB`, `1GiB` or in plain
/// bytes. `${NAME}` and `${NAME:-default}` in a value are filled in from the environment.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Thalweg")]
pub(super) struct Config {
    /// The port of the operator: metrics, health, this configuration as it was understood.
    pub(super) admin: Option<Admin>,

    /// Threads that carry streams. Default: one per core, since a worker never waits for another.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) workers: Option<Count>,

    /// Lets a new process listen on the addresses of this one while this one still runs, the port of the
    /// operator among them, so that a new binary takes over without a refused connection. Both must
    /// have it, and run as the same user. Default `false`: a second process is mostly a mistake, and hears
    /// that the address is in use.
    pub(super) takeover: Option<bool>,

    /// When this file is read again, beside SIGHUP and `POST /reload`.
    pub(super) reload: Option<Reload>,

    /// How Thalweg stops.
    pub(super) drain: Option<Drain>,

    /// Where clients connect. At least one; each answers HTTP/1.1 and HTTP/2 on the same port.
    #[schemars(length(min = 1))]
    pub(super) listeners: Vec<Listener>,

    /// The proxy's own `grpc.health.v1.Health`, on every listener.
    pub(super) health_service: Option<HealthService>,

    /// Labels of the metrics that have Dapr's names.
    pub(super) dapr: Option<Dapr>,

    /// The filters of every route and binding that has none of its own, the outermost first.
    /// Default: none. Bindings take `initial_message` from here alone, with its settings: their
    /// first message is always read, since it names the binding.
    pub(super) filters: Option<Vec<FilterEntry>>,

    /// Names that clients may invoke, by `InvokeBinding` and by `/bindings/NAME/stream`, and where
    /// each leads. Each has one of `echo`, `component`, `dapr` and `http`.
    pub(super) bindings: Option<BTreeMap<String, Binding>>,

    /// A folder in which every socket becomes a binding with the name of its file, less the
    /// ending; or a map, to say more; or `none`. Default: the folder that
    /// `DAPR_COMPONENTS_SOCKETS_FOLDER`, `DAPR_COMPONENT_SOCKETS_FOLDER` or
    /// `DAPR_COMPONENT_SOCKET_FOLDER` names in the environment, the first that is set, as Dapr and
    /// its SDKs spell it; if none is, no folder. A binding that is written here comes before
    /// a socket of its name.
    pub(super) component_sockets: Option<ComponentSockets>,

    /// Where streams are forwarded to: sets of interchangeable endpoints, by name.
    pub(super) clusters: Option<BTreeMap<String, Cluster>>,

    /// Which stream goes where. The first route in the list that matches takes the stream, so
    /// put the narrow ones before the broad; a stream that none matches is refused.
    pub(super) routes: Option<Vec<Route>>,
}

/// The port of the operator.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// Where the operator's port listens; `none` switches it off. Default `127.0.0.1:9901`, which
    /// only this machine can reach. Any other than a loopback address needs a token.
    pub(super) address: Option<String>,

    /// The word that requests must carry as `authorization: Bearer TOKEN`. Default: none, as
    /// befits a loopback address. Take it from the environment rather than write it here.
    #[schemars(length(min = 1))]
    pub(super) token: Option<String>,
}

/// When this file is read again.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reload {
    /// How often the file is looked at for changes, links followed; one that has changed and looks the
    /// same a second time is taken up. Default `0s`, which is never: a file that is saved in the
    /// middle of an edit may be good and still not be what was meant.
    pub(super) interval: Option<Duration>,
}

/// How Thalweg stops.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// How long connections are still accepted after the order to stop, while `/readyz` already
    /// says that no more should come. Default `0s`, since it is a plain wait for whoever has no load
    /// balancer; behind one, a little more than the time between two of its probes.
    pub(super) delay: Option<Duration>,

    /// How long open streams may go on when the listeners have closed. Then they end behind their
    /// current messages. Default `25s`, a little under the 30s after which orchestrators commonly
    /// kill.
    pub(super) timeout: Option<Duration>,

    /// How long the current messages of a stream may take when it is to end, here and wherever
    /// streams are ended between messages; then it is cut. Plain HTTP, which has no messages, has
    /// this time as well. Default `3s`, which together with `timeout` is still under 30s.
    pub(super) force: Option<Duration>,

    /// A client whose stream was ended so is told to come back after a random time up to this, in
    /// `grpc-retry-pushback-ms` or `retry-after`, so that not all come back at once. Default `5s`.
    pub(super) spread: Option<Duration>,
}

/// The proxy's own `grpc.health.v1.Health`. A route that takes its calls comes first.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthService {
    /// `false` answers these calls with no more than routes do. Default `true`: load balancers and
    /// probes that speak gRPC ask there, and it tells no more than whether Thalweg takes streams.
    pub(super) enabled: Option<bool>,

    /// Streams of `Watch` open at once, on all listeners together; further ones are refused. Default
    /// `1000`, as each costs a stream that only waits.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) max_watchers: Option<Count>,
}

/// A port for clients.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// What metrics and logs call it.
    #[schemars(length(min = 1))]
    pub(super) name: String,

    /// `127.0.0.1:8080`, `"[::1]:8080"` (in quotes: brackets mean a list) or
    /// `unix:/run/thalweg.sock`.
    pub(super) address: String,

    /// Connections open at once; further ones wait until one closes. Default `10000`, which bounds
    /// memory and stays below the usual limits on open files.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_connections: Option<Count>,

    /// Takes the addresses of clients from balancers that pass on TCP and say so by the PROXY
    /// protocol, version 1 or 2. Default: none. What it says goes to the upstream as the last
    /// address of `x-forwarded-for`.
    pub(super) proxy_protocol: Option<ProxyProtocol>,

    /// Serves clients under TLS, 1.2 and 1.3, and those in the clear no more. Default: none. Clients
    /// choose HTTP/2 or HTTP/1.1 in the handshake.
    pub(super) tls: Option<Tls>,

    /// How long clients may take.
    pub(super) timeouts: Option<ListenerTimeouts>,

    /// Limits for clients that speak HTTP/1.1.
    pub(super) http1: Option<Http1>,

    /// Limits for clients that speak HTTP/2.
    pub(super) http2: Option<ServerHttp2>,
}

/// Takes the addresses of clients from balancers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyProtocol {
    /// Networks where the balancers are: `10.0.0.0/8`, `"fd00::/8"`, or one address. Their connections
    /// must begin with a PROXY header; those of all others are taken as they are, so that nobody else
    /// can claim an address.
    #[schemars(length(min = 1))]
    pub(super) trusted: Vec<String>,
}

/// Serves clients under TLS.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// Certificates and their keys. A client gets the one that has the name it asks for, `*.` standing
    /// for one label, and the first if there is none or it asks for none.
    #[schemars(length(min = 1))]
    pub(super) certificates: Vec<CertificateFiles>,

    /// A file in PEM with the roots of clients' certificates. Default: none, and clients are not asked
    /// for certificates. What a certificate says reaches the upstream in
    /// `x-forwarded-client-cert`.
    #[schemars(length(min = 1))]
    pub(super) client_ca: Option<String>,

    /// Whether clients must show a certificate: `required` or `optional`. Default `required`, if there
    /// is a `client_ca`. One that is bad is refused in either case.
    pub(super) client_auth: Option<ClientAuth>,

    /// Files in PEM with the lists of clients' certificates that are void. Default: none. If there are
    /// any, there must be one of each authority between a certificate and its root.
    pub(super) client_crls: Option<Vec<String>>,

    /// How often the files are looked at for changes; `0s` is never. Default `5s`: renewed certificates
    /// are there days before the old ones end. Open connections notice nothing.
    pub(super) reload_interval: Option<Duration>,
}

/// Speaks TLS with the endpoints. `{}` takes all defaults.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpstreamTls {
    /// A file in PEM with the roots that vouch for the endpoints. Default: those that this machine
    /// trusts.
    #[schemars(length(min = 1))]
    pub(super) ca: Option<String>,

    /// The name or the IP address that the certificates of the endpoints must be for. Default: the
    /// host of each endpoint, so an endpoint with an IP address must have that address in its
    /// certificate. A Unix socket has none.
    #[schemars(length(min = 1))]
    pub(super) server_name: Option<String>,

    /// What is shown to endpoints that ask who we are. Default: nothing, and those that insist refuse
    /// us.
    pub(super) certificate: Option<CertificateFiles>,

    /// How often the files are looked at for changes; `0s` is never. Default `5s`, as for listeners.
    /// Open connections notice nothing.
    pub(super) reload_interval: Option<Duration>,
}

/// A certificate and its key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateFiles {
    /// A file in PEM: the certificate, and after it those between it and its root.
    #[schemars(length(min = 1))]
    pub(super) cert: String,

    /// A file in PEM: the private key, not encrypted.
    #[schemars(length(min = 1))]
    pub(super) key: String,
}

/// How long clients may take.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerTimeouts {
    /// Longest a TLS handshake may take, from the connection's beginning, with the PROXY header before
    /// it if there is one. Default `10s`: several round
    /// trips of any network, and a client that trickles costs a slot.
    #[schemars(extend("minimum" = 1))]
    pub(super) handshake: Option<Duration>,

    /// Longest wait for the first bytes, which tell the protocol; under TLS, for those after the
    /// handshake. Default `10s`: ample for any network, and a silent connection costs a slot.
    #[schemars(extend("minimum" = 1))]
    pub(super) preface: Option<Duration>,

    /// Longest wait from there to the headers of the first request; with HTTP/1.1, for the headers
    /// of every request once begun. Default `10s`, against clients that trickle.
    #[schemars(extend("minimum" = 1))]
    pub(super) first_headers: Option<Duration>,

    /// How long a connection may have bytes to send of which the client takes none; `0s` is for
    /// ever. Default `60s`: a network that hiccups recovers sooner, a dead client never does.
    pub(super) stall: Option<Duration>,
}

/// Limits for clients that speak HTTP/1.1.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http1 {
    /// Most headers in a request. Default `100`, several times what browsers send.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) max_headers: Option<Count>,

    /// Most bytes of all headers of a request together, and so the read buffer of a connection.
    /// Default `64KiB`, room for large cookies and tokens.
    #[schemars(range(min = 8192, max = 1_048_576))]
    pub(super) max_header_bytes: Option<Size>,

    /// How long an idle connection waits for its next request. Default `75s`, longer than the 60s
    /// of common load balancers, so that they and not we close it.
    #[schemars(extend("minimum" = 1))]
    pub(super) keep_alive: Option<Duration>,
}

/// Limits for clients that speak HTTP/2.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerHttp2 {
    /// Streams a client may have open on one connection. Default `1000`, room for a busy gRPC
    /// client; together with the windows it bounds the memory of a connection.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_concurrent_streams: Option<Count>,

    #[serde(flatten)]
    pub(super) http2: Http2,
}

/// How HTTP/2 is spoken on one connection.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http2 {
    /// Bytes the peer may send ahead on one stream: the memory a stalled stream costs in that
    /// direction. Default `256KiB`, full speed at 100 Mbit/s and 20 ms.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) stream_window: Option<Size>,

    /// Bytes the peer may send ahead on all streams of a connection together. Default on a
    /// listener `4MiB`, and never under four times `stream_window`, or a few stalled streams
    /// would stop the others; in a cluster `stream_window` times `max_streams_per_connection`,
    /// so that the stalled streams of one client cannot hold up those of strangers.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    pub(super) connection_window: Option<Size>,

    /// Largest frame the peer may send. Default `64KiB`: larger ones gain little, and each delays
    /// the other streams of its connection.
    #[schemars(range(min = 16_384, max = 1_048_576))]
    pub(super) max_frame_size: Option<Size>,

    /// Most bytes of the headers of one message, as HTTP/2 counts them. Default `32KiB`, twice the
    /// hard limit of common gRPC libraries.
    #[schemars(range(min = 1024, max = 1_048_576))]
    pub(super) max_header_list_size: Option<Size>,

    /// Most headers in one message. Default `128`: many tiny ones cost more than their bytes tell.
    #[schemars(range(min = 8, max = 10_000))]
    pub(super) max_headers: Option<Count>,

    /// Bytes kept for one stream while the peer's socket takes none. Default `64KiB`: enough to
    /// keep a socket busy, little enough for thousands of streams.
    #[schemars(range(min = 16_384, max = 16_777_216))]
    pub(super) send_buffer: Option<Size>,

    /// Size of the table with which the peer compresses headers. Default `4KiB`, the protocol's
    /// own; `0` forbids such a table.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub(super) header_table_size: Option<Size>,

    /// Reset streams remembered, so that frames still on their way are told from errors. Default
    /// `1000`: a proxy resets streams all day.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) max_reset_streams: Option<Count>,

    /// Streams the peer may open and reset before we look at them; beyond, the connection ends.
    /// Default `200`: impatient clients stay below, a rapid reset attack does not.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_pending_resets: Option<Count>,

    /// Streams we may reset because of the peer's errors in the life of a connection; beyond, it
    /// ends. Default `100000`, since connections to a proxy live long.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(super) max_local_resets: Option<Count>,

    /// How long a reset stream is remembered. Default `5s`, longer than any round trip.
    #[schemars(extend("minimum" = 1))]
    pub(super) reset_memory: Option<Duration>,

    /// PINGs, by which a peer is found that is gone without a word.
    pub(super) keepalive: Option<Keepalive>,

    /// Allowance for the overhead of small data frames; beyond, the connection ends, as whoever
    /// sends a byte a frame costs more than he says. Default half of `connection_window`.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) data_frame_budget: Option<Size>,
}

/// Asks each endpoint again and again whether it is well: with one of `grpc`, `http` and `tcp`, on a
/// connection of its own each time, under TLS if the cluster has it. Each is asked by the process and
/// not by each worker. An endpoint counts as well until it was asked; then its first answer decides,
/// and later ones by `healthy` and `unhealthy`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthCheck {
    /// Calls `grpc.health.v1.Health/Check`; SERVING is well.
    pub(super) grpc: Option<GrpcCheck>,

    /// Sends a GET, as the cluster's `protocol` has it.
    pub(super) http: Option<HttpCheck>,

    /// Opens a connection; `{}` for its settings. Under TLS, it shakes hands too.
    pub(super) tcp: Option<TcpCheck>,

    /// The wait between two checks, a tenth more or less at random. Default `5s`: an endpoint that
    /// has died is noticed in 15s, and its failed dials keep streams off it sooner.
    #[schemars(extend("minimum" = 1))]
    pub(super) interval: Option<Duration>,

    /// Longest a check may take, the dial included; beyond, it has failed. Default `2s`.
    #[schemars(extend("minimum" = 1))]
    pub(super) timeout: Option<Duration>,

    /// Good checks in a row that it takes to be well again. Default `2`, against flapping.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) healthy: Option<Count>,

    /// Bad checks in a row that it takes to be well no more. Default `3`: one may be lost.
    #[schemars(range(min = 1, max = 1000))]
    pub(super) unhealthy: Option<Count>,

    /// `true` ends gRPC streams on an endpoint that is found not to be well, between two messages, so
    /// that their clients open them elsewhere; but not while no other endpoint is available. Default
    /// `false`: it may still serve the streams that it has.
    pub(super) dismiss: Option<bool>,
}

/// Calls `grpc.health.v1.Health/Check`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GrpcCheck {
    /// The service that is asked for. Default: the server as a whole.
    pub(super) service: Option<String>,
}

/// Sends a GET.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpCheck {
    /// Of this path: `/healthz`.
    #[schemars(length(min = 1))]
    pub(super) path: String,

    /// The status that is good. Default: any from 200 to 299.
    #[schemars(range(min = 200, max = 599))]
    pub(super) expect: Option<Count>,
}

/// Opens a connection.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpCheck {}

/// When an endpoint is taken out because of how its streams end.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Outlier {
    /// Streams that end badly, one after another and on all workers together, until the endpoint is taken
    /// out; dials that fail count too. Default `5`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) consecutive: Option<Count>,

    /// The age up to which a bad end of a stream counts. Default `10s`: a server that is stopped in
    /// good order ends old streams too.
    #[schemars(extend("minimum" = 1))]
    pub(super) young: Option<Duration>,

    /// The gRPC statuses that are bad ends, by name or by number; resets and lost connections always
    /// are, and with plain HTTP the statuses from 500. Default `[UNAVAILABLE, INTERNAL, DATA_LOSS]`.
    #[schemars(length(min = 1))]
    pub(super) statuses: Option<Vec<Status>>,

    /// How long an endpoint is out the first time. Each further time it is so much longer, until a
    /// stream goes well there. Default `30s`.
    #[schemars(extend("minimum" = 1))]
    pub(super) ejection: Option<Duration>,

    /// The longest that an endpoint is out. Default `5m`.
    #[schemars(extend("minimum" = 1))]
    pub(super) max_ejection: Option<Duration>,

    /// Of a hundred endpoints, so many may be out at the same time. Default `50`: where most fail, the
    /// fault is mostly elsewhere, and the others would fall under the load of all. With `100`, all may
    /// be out; then streams are sent to any.
    #[schemars(range(min = 1, max = 100))]
    pub(super) max_ejected_percent: Option<Count>,
}

/// PINGs, by which a peer is found that is gone without a word.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Keepalive {
    /// How long nothing comes from the peer before it is sent a PING; `0s` is never. The PING goes out
    /// after one to two such waits. Clients are asked at any time, upstreams only while streams
    /// are open. Default `5m`, what gRPC servers permit: they send away those who ask more often.
    pub(super) interval: Option<Duration>,

    /// How long nothing comes after that until the connection is given up; whatever comes is an
    /// answer. Default `60s`, as long as a peer may stall: one that is merely busy is back by then.
    #[schemars(extend("minimum" = 1))]
    pub(super) timeout: Option<Duration>,
}

/// A set of interchangeable endpoints.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    /// Where the upstreams are: a list of addresses, or `dns` or `file`, from where it comes.
    pub(super) endpoints: Endpoints,

    /// Which endpoint takes a stream. Default `least_streams`, which needs no thought: it evens out
    /// streams that live long, and keeps off endpoints that are slow.
    pub(super) balance: Option<Balance>,

    /// Time in which an endpoint that is added or comes back grows from a tenth of its share to the
    /// whole. Default `0s`: it takes its share at once, which only hurts servers that must warm up
    /// first, and a long start would put off the balance of long streams.
    pub(super) slow_start: Option<Duration>,

    /// `true` ends gRPC streams on an endpoint that has been removed, between two messages, so that
    /// their clients open them elsewhere. Default `false`: they go on for as long as the endpoint
    /// does, since a name may leave out an address for a while.
    pub(super) dismiss_removed: Option<bool>,

    /// Asks each endpoint again and again whether it is well, and sends no new streams to those that are
    /// not; open streams go on. Default: none, and an endpoint is known by its dials alone.
    pub(super) health_check: Option<HealthCheck>,

    /// Takes an endpoint out for a while whose streams end badly, one after another; `{}` takes all
    /// defaults below. Default: none, since only who runs the service knows which statuses are the
    /// endpoint's fault.
    pub(super) outlier: Option<Outlier>,

    /// What the endpoints speak. Default `http2`, as gRPC servers do.
    pub(super) protocol: Option<Protocol>,

    /// Speaks TLS with the endpoints, 1.2 and 1.3. Default: none, and bytes go in the clear.
    pub(super) tls: Option<UpstreamTls>,

    /// How HTTP/2 is spoken with the endpoints.
    pub(super) http2: Option<Http2>,

    /// Longest a dial may take, and longest a stream waits for a connection. Default `2s`: one
    /// lost packet is made good in that time.
    #[schemars(extend("minimum" = 1))]
    pub(super) connect_timeout: Option<Duration>,

    /// How connections are shared and kept.
    pub(super) pool: Option<Pool>,

    /// How long a connection may have bytes to send of which the upstream takes none; `0s` is for
    /// ever. Default `60s`, as for clients.
    pub(super) stall: Option<Duration>,
}

/// Where the endpoints of a cluster come from: a list, or a map that says where it is.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Endpoints {
    /// The list itself.
    Listed(EndpointList),
    /// Where the list comes from.
    Source(EndpointSource),
}

/// Addresses of the upstreams: `127.0.0.1:50051`, `"[::1]:50051"` or `unix:/run/x.sock`. IP
/// addresses only, and `localhost`, which is `127.0.0.1`.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct EndpointList(#[schemars(length(min = 1))] pub(super) Vec<EndpointEntry>);

/// Where the endpoints come from, other than from this file. One of `dns` and `file`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointSource {
    /// A name and a port, `greeter.svc:50051`. Every address of the name is an endpoint. The name is
    /// looked up again and again; when that fails or finds nothing, the endpoints stay.
    #[schemars(length(min = 1))]
    pub(super) dns: Option<String>,

    /// A file in YAML or JSON with a list as it would stand here, up to 4 MiB. It is read again when
    /// it changes; one that is not good is told in the log, and the endpoints stay. At the start it
    /// must be good.
    #[schemars(length(min = 1))]
    pub(super) file: Option<String>,

    /// Time between two looks, a tenth more or less at random. Default `5s` for `dns`, as most
    /// resolvers remember answers for so long at least, and `1s` for `file`.
    #[schemars(extend("minimum" = 10))]
    pub(super) refresh: Option<Duration>,
}

/// An endpoint by its address, or a map to say more.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum EndpointEntry {
    /// The address of an upstream: `127.0.0.1:50051`, `"[::1]:50051"` or `unix:/run/x.sock`.
    Address(String),
    /// An endpoint and its weight.
    Weighted(WeightedEndpoint),
}

/// An endpoint and its weight.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightedEndpoint {
    /// The address of the upstream.
    pub(super) address: String,

    /// Its part of the streams, in proportion to the weights of the others. Default `1`.
    #[schemars(range(min = 1, max = 1_000))]
    pub(super) weight: Option<Count>,
}

/// Which endpoint takes a stream: the name of a way, or a map of its name to its settings.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Balance {
    /// The name of a way that has no settings.
    Named(BalanceName),
    /// A way that has settings.
    By(BalanceBy),
}

/// A way to choose an endpoint that has no settings.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum BalanceName {
    /// Of two endpoints drawn at random by weight, the one with fewer streams for its weight.
    LeastStreams,
    /// Each in turn, as often as its weight says.
    RoundRobin,
}

/// A way to choose an endpoint that has settings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BalanceBy {
    /// Streams with the same value of a header go to the same endpoint, and when endpoints come or
    /// go, only those streams move that must.
    pub(super) ring_hash: RingHash,
}

/// What a stream is known by.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RingHash {
    /// The header, such as `x-user`; a filter may have set it, as `initial_message` does from a field
    /// of the first message. Streams without it are balanced as by `least_streams`.
    #[schemars(length(min = 1))]
    pub(super) header: String,
}

/// How connections to upstreams are shared and kept.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    /// Connections to one endpoint, for each worker. Default `1024`: with a hundred streams on
    /// each, a hundred thousand streams stay open.
    #[schemars(range(min = 1, max = 65_535))]
    pub(super) max_connections: Option<Count>,

    /// Streams on one HTTP/2 connection, and fewer if the upstream says so. Default `100`, the
    /// number that servers commonly grant.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_streams_per_connection: Option<Count>,

    /// Streams open or waiting at once in the whole cluster, over all workers; further ones are
    /// refused at once. Streams that begin at the same moment on several workers may exceed it by
    /// as many. Default: as many as the listeners let in.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(super) max_streams: Option<Count>,

    /// Streams that may wait for a connection, for each worker; further ones are refused at once.
    /// Default `1024`. `0` lets none wait, not even for the first connection.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) max_pending: Option<Count>,

    /// Time after which a stream whose bytes the upstream does not take marks its connection: new
    /// streams then go to another one, because a connection shares one window. Default `1s`.
    #[schemars(extend("minimum" = 1))]
    pub(super) avoid_stalled: Option<Duration>,

    /// Age at which a connection takes no new streams and ends with its last one; `0s` is never.
    /// Default `0s`: only load balancers that spread connections need it.
    pub(super) max_connection_age: Option<Duration>,

    /// How long a connection without streams is kept. Default `90s`, longer than most pauses.
    #[schemars(extend("minimum" = 1))]
    pub(super) idle_timeout: Option<Duration>,
}

/// Which streams go where.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// What metrics and logs call it.
    #[schemars(length(min = 1))]
    pub(super) name: String,

    /// What a stream must look like: all that is said here must hold. Default: any stream.
    #[serde(rename = "match")]
    pub(super) matches: Option<Match>,

    /// The cluster that takes the streams. Either this, `clusters` or `continue`.
    pub(super) cluster: Option<String>,

    /// Several clusters that share the streams by weight. Either this, `cluster` or `continue`.
    #[schemars(length(min = 1))]
    pub(super) clusters: Option<Vec<WeightedCluster>>,

    /// `true` sends the streams on to the routes below, after the filters of this one: those match
    /// again, and find the headers that a filter has set, such as those that `initial_message`
    /// takes from the first message. A stream that none of them matches is refused. The filters of
    /// both routes apply, and the timeouts of the lower one. Default `false`.
    #[serde(rename = "continue")]
    pub(super) goes_on: Option<bool>,

    /// How long streams may take.
    pub(super) timeouts: Option<RouteTimeouts>,

    /// What becomes of streams that fail before their answer begins.
    pub(super) retry: Option<RouteRetry>,

    /// The filters of this route, the outermost first, in place of the default ones; `[]` for
    /// none.
    pub(super) filters: Option<Vec<FilterEntry>>,
}

/// What becomes of streams that fail before their answer begins. A stream that the upstream has
/// refused, so that nobody has begun with it, is tried again in any case; one that was perhaps begun
/// only if its status is in `matching`. Once the head of an answer has come there is no retry, nor
/// when it would come after the client's deadline. Only for upstreams that speak HTTP/2.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteRetry {
    /// Attempts after the first. Default `1`, as gRPC's clients do with streams that were refused:
    /// an upstream that restarts refuses a few, and another endpoint takes them. `0` tries none
    /// again.
    #[schemars(range(min = 0, max = 100))]
    pub(super) max_retries: Option<Count>,

    /// The gRPC statuses that are worth another attempt, by name or by number, when the upstream
    /// answers with nothing else or there is no answer. Default: none, since the upstream may have
    /// begun with the stream, and only you know whether it may be done twice. An upstream says in
    /// `grpc-retry-pushback-ms` when it wants to hear of the stream again, or with `-1` that it
    /// does not.
    pub(super) matching: Option<Vec<Status>>,

    /// The first wait; each further one is half as long again, spread at random. Default `100ms`. A
    /// stream that was refused is first tried again without a wait.
    #[schemars(extend("minimum" = 1))]
    pub(super) duration: Option<Duration>,

    /// The longest wait. Default `5s`. An upstream that asks for a longer one has its answer passed
    /// on, so that the client may wait itself.
    #[schemars(extend("minimum" = 1))]
    pub(super) max_interval: Option<Duration>,

    /// Bytes of the request that are kept so that they can be sent again. A stream that has sent more
    /// is not tried again. Default `64KiB`: most requests whole, and the most memory that it costs a
    /// stream until its answer begins.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(super) replay_bytes: Option<Size>,

    /// How many retries there may be, so that they do not drown an upstream that is in need.
    pub(super) budget: Option<RetryBudget>,
}

/// How many retries there may be, for each worker.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryBudget {
    /// Retries for each hundred streams, in the long run. Default `20`: an upstream at its limit
    /// hears at most a fifth more.
    #[schemars(range(min = 0, max = 1000))]
    pub(super) percent: Option<Count>,

    /// Retries that there may be at once, when there were none for a while. Default `100`: the streams
    /// of a connection that goes away.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) burst: Option<Count>,
}

/// What a stream must look like. At most one of `path`, `path_prefix` and `grpc`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Match {
    /// The whole path, without the query: `/status`.
    pub(super) path: Option<String>,

    /// How the path begins: `/helloworld.Greeter/`. `/` is every path.
    pub(super) path_prefix: Option<String>,

    /// A gRPC service, or one method of it.
    pub(super) grpc: Option<Grpc>,

    /// The host the client asks for: `api.example.test`, `"*.example.test"` for any host below it,
    /// or `"*"` (in quotes: a bare star means something else). Default: any.
    #[schemars(length(min = 1))]
    pub(super) authority: Option<String>,

    /// Headers that must be there with just this value. Default: none.
    pub(super) headers: Option<BTreeMap<String, String>>,
}

/// A gRPC service, or one method of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Grpc {
    /// The full name of the service: `helloworld.Greeter`.
    #[schemars(length(min = 1))]
    pub(super) service: String,

    /// The name of the method: `SayHello`. Default: every method.
    #[schemars(length(min = 1))]
    pub(super) method: Option<String>,
}

/// A cluster and its share of the streams.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightedCluster {
    /// The name of the cluster.
    pub(super) name: String,

    /// Its share, in proportion to the other weights. `0` sends it nothing.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) weight: Count,
}

/// How long streams may take.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTimeouts {
    /// Longest wait for a connection, where the cluster's `connect_timeout` is too long for this
    /// kind of stream. Default `0s`, which leaves it to the cluster.
    pub(super) connect: Option<Duration>,

    /// Longest wait for the head of the answer, from the time that the stream has passed the filters;
    /// a wait for a connection counts. Default `0s`, for ever: an upload may take its time, and who
    /// calls knows best and says `grpc-timeout`.
    pub(super) first_response: Option<Duration>,

    /// How long bytes of a stream may wait while the upstream takes none; `0s` is for ever.
    /// Default `60s`. A stream on which nobody speaks is not stalled and may last for ever.
    pub(super) stall: Option<Duration>,

    /// How many bytes the upstream must take within `stall` while any wait; fewer are a stall too.
    /// Default `1`: one that is slow is not ill.
    #[schemars(range(min = 1))]
    pub(super) stall_min_progress: Option<Size>,

    /// How long a client may say nothing that has not half-closed, unless its bytes wait for the
    /// upstream. It is noticed after once to twice this time. Default `0s`, for ever. How long the first
    /// message may take, the filter `initial_message` says.
    pub(super) idle_request: Option<Duration>,

    /// The same for the upstream, from the head of its answer on. Default `0s`, for ever.
    pub(super) idle_response: Option<Duration>,

    /// Age at which a stream ends between two messages, with UNAVAILABLE and a word when to come
    /// back; each a little earlier, up to a fifth and by chance. So long streams come to new endpoints,
    /// too. Plain HTTP is cut, `drain.force` later. Default `0s`, never.
    pub(super) max_age: Option<Duration>,
}

/// Labels of the metrics that have Dapr's names.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dapr {
    /// The label `app_id`. Default `thalweg`; `${APP_ID:-thalweg}` takes it from where Dapr's
    /// tools put it.
    pub(super) app_id: Option<String>,

    /// The label `namespace`. Default empty, as with Dapr outside of Kubernetes;
    /// `${NAMESPACE:-}` takes it from where Dapr puts it inside.
    pub(super) namespace: Option<String>,
}

/// A name that clients may invoke, and where it leads: one of `object_store`, `echo`, `component`,
/// `dapr` and `http`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Binding {
    /// Files in a folder, or objects in a store: S3, Azure Blob, Google Cloud Storage and those
    /// that speak like them.
    pub(super) object_store: Option<ObjectStore>,

    /// Answers with what the client sends, for tests: `{}`.
    pub(super) echo: Option<Echo>,

    /// A pluggable component of Dapr. One that has no `InvokeStream` is called by `Invoke`, with
    /// the stream collected first.
    pub(super) component: Option<Component>,

    /// Another server of bindings: one that streams, or a stock daprd, for which the stream is
    /// collected first.
    pub(super) dapr: Option<DaprServer>,

    /// A plain HTTP service: the stream is the body of one request, and the body of its response
    /// is the answer.
    pub(super) http: Option<Http>,

    /// What is kept whole of a stream for a far side that does not stream.
    pub(super) buffer: Option<Buffer>,

    /// What becomes of handshakes that fail. A handshake ends with the first message of the
    /// response, or with a failure before it; nothing here touches a stream that is established.
    pub(super) resiliency: Option<Resiliency>,

    /// How long streams may take.
    pub(super) timeouts: Option<RouteTimeouts>,

    /// The filters of this binding, the outermost first, in place of the default ones; `[]` for
    /// none. Default: the top-level list, and behind it `sequence`, since the payload of bindings
    /// is numbered and a stream with a hole in it must not look whole. `initial_message` is not among them: it comes before the binding is known, and stands
    /// in the top-level list.
    pub(super) filters: Option<Vec<FilterEntry>>,
}

/// Files in a folder, or objects in a store. Credentials that no key names come from the
/// environment, where the tools of the store's maker look for them: `AWS_*`, `AZURE_*`, `GOOGLE_*`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ObjectStore {
    /// Where the objects are: `file://./data` (made if it is not there), `memory://`,
    /// `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`, or
    /// `http://HOST/PATH` for a server that knows GET, PUT and DELETE. The prefix may be left out.
    #[schemars(length(min = 1))]
    pub(super) url: String,

    /// Where the store's service is, for one that speaks like S3, Azure Blob or Google Cloud
    /// Storage: `http://127.0.0.1:9000`. Default: the maker's own.
    #[schemars(length(min = 1))]
    pub(super) endpoint: Option<String>,

    /// The region of an S3 bucket. Default: `AWS_REGION`, or `us-east-1`.
    #[schemars(length(min = 1))]
    pub(super) region: Option<String>,

    /// Who asks, with S3. Default: `AWS_ACCESS_KEY_ID`, or what the machine is.
    #[schemars(length(min = 1))]
    pub(super) access_key_id: Option<String>,

    /// A file that holds the secret of `access_key_id`. Files with secrets are read when the
    /// configuration is, and blanks around what they hold are left out.
    #[schemars(length(min = 1))]
    pub(super) secret_access_key_file: Option<String>,

    /// A file that holds the token of temporary credentials of S3.
    #[schemars(length(min = 1))]
    pub(super) session_token_file: Option<String>,

    /// The storage account, with Azure. Default: `AZURE_STORAGE_ACCOUNT_NAME`.
    #[schemars(length(min = 1))]
    pub(super) account: Option<String>,

    /// A file that holds a key of the storage account.
    #[schemars(length(min = 1))]
    pub(super) account_key_file: Option<String>,

    /// The file of a service account of Google Cloud. Default: `GOOGLE_APPLICATION_CREDENTIALS`,
    /// or what the machine is.
    #[schemars(length(min = 1))]
    pub(super) service_account_file: Option<String>,

    /// Bytes of an object that are kept until the store has taken them: what an upload costs in
    /// memory. Default `8MiB`, so that an object of 80 GB has no more parts than stores allow, and
    /// `1MiB` for files and memory. S3 and Google Cloud Storage want at least `5MiB`.
    #[schemars(extend("minimum" = 65536, "maximum" = 1_073_741_824))]
    pub(super) part_size: Option<Size>,

    /// Most bytes of all objects in `memory://` together; further ones are refused. Default
    /// `256MiB`: enough to try things out.
    #[schemars(extend("minimum" = 1))]
    pub(super) max_bytes: Option<Size>,
}

/// Answers with what the client sends.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Echo {}

/// A pluggable component of Dapr. One of `socket` and `address`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Component {
    /// The path of its Unix socket: `/tmp/dapr-components-sockets/orders.sock`.
    #[schemars(length(min = 1))]
    pub(super) socket: Option<String>,

    /// Its TCP address, `127.0.0.1:50051`, in place of a socket.
    pub(super) address: Option<String>,

    /// Which instance of the component is meant, as it is told by `x-component-instance`. Default:
    /// the name of the binding, as Dapr has it.
    #[schemars(length(min = 1))]
    pub(super) instance: Option<String>,

    /// What its `Init` is called with. Default: nothing. Values may be secrets, so none is ever
    /// shown; take them from the environment rather than write them here.
    pub(super) metadata: Option<BTreeMap<String, String>>,

    /// How often `Ping` is called to see whether the component is well. Default `10s`: soon enough
    /// for people to wait for, and nothing to a component.
    #[schemars(extend("minimum" = 1))]
    pub(super) ping: Option<Duration>,
}

/// Another server of bindings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DaprServer {
    /// The cluster where it is, with `protocol: http2`. It is asked for a binding of the same name.
    pub(super) cluster: String,
}

/// A plain HTTP service.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// Where requests go: `http://127.0.0.1:8000/in`, or `https` for TLS. A name is looked up at
    /// each dial.
    #[schemars(length(min = 1))]
    pub(super) url: String,

    /// The method of every request, in capitals. Default: by the operation that the client names.
    /// `create` is POST; `get`, `post`, `put`, `delete`, `head`, `patch` and `options` are
    /// themselves.
    #[schemars(length(min = 1))]
    pub(super) method: Option<String>,

    /// What the service speaks. Default `http1`, which every HTTP server speaks; `http2` in the
    /// clear needs one that takes it without being asked first, as gRPC servers do.
    pub(super) protocol: Option<Protocol>,

    /// Whom to trust, and how to prove oneself, where the URL begins with `https`. Default: as this
    /// machine does, and nothing is shown.
    pub(super) tls: Option<UpstreamTls>,
}

/// What is kept whole of a stream for a far side that does not stream.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Buffer {
    /// Most bytes of a request, and of an answer, that is kept whole: for components without
    /// `InvokeStream`, a stock daprd, and unary calls. Beyond, the call is refused. Default
    /// `4MiB`, the largest message that gRPC libraries and Dapr take by default.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub(super) max_bytes: Option<Size>,
}

/// What becomes of handshakes that fail.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Resiliency {
    /// Longest that one attempt at a handshake may take: up to the first message of the response.
    /// It never ends a stream that is established. Default: none, as with Dapr, since some answers
    /// only begin when the last byte of the request is there.
    #[schemars(extend("minimum" = 1))]
    pub(super) timeout: Option<Duration>,

    /// When a handshake that failed is tried again. Default: never, as with Dapr. `{}` takes all
    /// defaults below.
    pub(super) retry: Option<Retry>,

    /// When a binding whose handshakes fail is given a rest: the settings of the filter
    /// `circuit_breaker`. Each attempt counts. Default: never, as with Dapr. `{}` takes all
    /// defaults.
    pub(super) circuit_breaker: Option<CircuitBreakerEntry>,
}

/// When a handshake that failed is tried again. It is only tried again while the request that was
/// passed on can be said again word for word: that is, up to `replay_bytes` of it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    /// How the waits grow. Default `constant`, as with Dapr.
    pub(super) policy: Option<RetryPolicy>,

    /// The wait between two attempts; with `exponential`, the first. Default `5s` for `constant`
    /// and `500ms` for `exponential`, as with Dapr.
    #[schemars(extend("minimum" = 1))]
    pub(super) duration: Option<Duration>,

    /// The longest wait, with `exponential` alone. Default `60s`, as with Dapr.
    #[schemars(extend("minimum" = 1))]
    pub(super) max_interval: Option<Duration>,

    /// Attempts after the first; the client waits for all of them. Default `3`. Dapr tries for
    /// ever by default; here every retry has a limit.
    #[schemars(range(min = 0, max = 1000))]
    pub(super) max_retries: Option<Count>,

    /// The gRPC statuses that are worth another attempt, by name or by number. Default
    /// `[UNAVAILABLE]`, the one status that means that the call was most likely not begun: a
    /// connection that failed, a component that starts. Dapr tries again after any; but an
    /// operation that failed midway and is not safe to repeat, such as `create`, would be done
    /// twice. Add `DEADLINE_EXCEEDED` to try again after `timeout` as well, and further ones, where
    /// all operations are safe to repeat.
    #[schemars(length(min = 1))]
    pub(super) matching: Option<Vec<Status>>,

    /// Bytes of the request that are kept so that they can be sent again. A stream that has passed
    /// on more is not tried again. Default `64KiB`: most requests whole, and the memory that it
    /// costs each handshake.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(super) replay_bytes: Option<Size>,
}

/// How the waits between attempts grow.
#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum RetryPolicy {
    /// Always the same wait.
    #[default]
    Constant,
    /// Each wait half as long again as the one before, spread at random, so that clients which
    /// failed together do not come back together.
    Exponential,
}

/// A folder, or a map to say more.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum ComponentSockets {
    /// The folder, or `none`.
    Folder(#[schemars(length(min = 1))] String),
    /// The folder and how it is looked into.
    More(MoreComponentSockets),
}

/// The folder and how it is looked into.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoreComponentSockets {
    /// The folder, or `none`. Default: the one that the environment names.
    #[schemars(length(min = 1))]
    pub(super) folder: Option<String>,

    /// How often the folder is looked into. Default `1s`: one who starts a component waits no
    /// longer, and a look costs microseconds.
    #[schemars(extend("minimum" = 1))]
    pub(super) interval: Option<Duration>,

    /// Most bindings that come of it; further sockets are passed over. Default `256`, far more than
    /// components on one machine.
    #[schemars(range(min = 1, max = 65_536))]
    pub(super) max: Option<Count>,
}

/// The settings of a circuit breaker, which it reads itself.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct CircuitBreakerEntry(pub(super) Value);

impl JsonSchema for CircuitBreakerEntry {
    fn schema_name() -> Cow<'static, str> {
        CircuitBreaker::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        CircuitBreaker::json_schema(generator)
    }
}

/// The status of a failed call, by name or by number.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Status(pub(super) Value);

impl JsonSchema for Status {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Code::ALL[1..].iter().map(|code| code.name()).collect();
        json_schema!({
            "description": "The status of a failed gRPC call, by name or by number.",
            "anyOf": [
                {"type": "string", "enum": names},
                {"type": "integer", "minimum": 1, "maximum": names.len()},
            ],
        })
    }
}

/// A filter by its bare name, or a map of its name to its settings.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct FilterEntry(pub(super) Value);

impl JsonSchema for FilterEntry {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let filter = thalweg_filters::chain::Filter::json_schema(generator);
        let variants = filter.get("oneOf").and_then(Value::as_array);
        let names: Vec<&String> = (variants.into_iter().flatten())
            .filter_map(|variant| variant["properties"].as_object()?.keys().next())
            .collect();
        json_schema!({
            "description": "A filter by its bare name, or a map of its name to its settings.",
            "anyOf": [{"type": "string", "enum": names}, filter],
        })
    }
}
