//! What the configuration file means, parsed and resolved.
//!
//! **Why.** Whoever runs a proxy edits this file under pressure. So it is strict, nothing in it is
//! silently ignored, and one run tells every fault with its line and a way out.
//!
//! **How.**
//! 1. `load` reads the YAML as a tree that knows where everything stands.
//! 2. `environment` fills in `${NAME}`.
//! 3. `check` holds the tree against the JSON Schema of the types in `raw`, where each key is
//!    described.
//! 4. `resolve` turns `raw` into the types below: defaults chosen, names looked up.
//!
//! Steps 2 to 4 collect their faults and carry on; a fault in any of them fails the whole.
//!
//! ```yaml
//! listeners:
//!   - name: plain
//!     address: 127.0.0.1:8080
//!
//! clusters:
//!   greeter:
//!     endpoints: [127.0.0.1:50051]
//!
//! routes:
//!   - name: greeter
//!     match: {path_prefix: /helloworld.Greeter/}
//!     cluster: greeter
//! ```

mod address;
mod bindings;
mod check;
mod endpoints;
mod environment;
mod faults;
mod health;
mod load;
mod memory;
mod network;
mod origins;
mod outlier;
mod raw;
mod report;
mod resolve;
mod retry;
mod show;
mod tls;
mod web_origin;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thalweg_filters::{chain::Filter, initial_message, timeouts};

pub use address::{Address, BadAddress};
pub use bindings::{
    Backoff, Binding, BindingTarget, Bucket, CircuitBreaker, Component, ComponentSockets, Dapr,
    HttpTarget, ObjectStore, Place, Resiliency, Retry, Secret,
};
pub(crate) use endpoints::endpoints;
pub use endpoints::{Balance, Endpoint, Endpoints};
pub use faults::Faults;
pub(crate) use faults::Unusable;
pub use health::{HealthCheck, Question};
pub use network::Network;
pub use origins::Origins;
pub use outlier::Outlier;
use report::Report;
pub use retry::{RetryBudget, RouteRetry};
pub use tls::{CertificateFiles, ClientAuth, Clients, Tls, UpstreamTls};
pub use web_origin::WebOrigin;

/// Everything the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The port of the operator, unless it is switched off.
    pub admin: Option<Admin>,
    /// Threads that carry streams.
    pub workers: usize,
    /// Bytes that all streams together should hold at most.
    pub max_held: usize,
    /// Whether a new process may listen on the same addresses while this one runs.
    pub takeover: bool,
    /// How often the file is looked at for changes; zero is never.
    pub reload_interval: Duration,
    /// How it stops.
    pub drain: Drain,
    /// The proxy's own health service, unless it is switched off.
    pub health_service: Option<HealthService>,
    /// What metrics with Dapr's names say in Dapr's labels.
    pub dapr: Dapr,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// The filters of all that has none of its own, as they were written.
    pub filters: Vec<Filter>,
    /// Names that clients may invoke, each once, in alphabetical order.
    pub bindings: Vec<Arc<Binding>>,
    /// How long, and in how many bytes, a client may take to name its binding.
    pub bindings_front: initial_message::Config,
    /// Where further bindings are looked for.
    pub component_sockets: Option<ComponentSockets>,
    /// Where streams may go, by name. Those that bindings make for themselves are not among them.
    pub clusters: Vec<Arc<Cluster>>,
    /// Which stream goes where; the first that matches takes it.
    pub routes: Vec<Route>,
    /// What works and is worth a look, as faults are told.
    pub warnings: Vec<String>,
    /// Where all this is written.
    pub origins: Origins,
}

/// How the proxy stops, and how it lets go of streams.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// How long connections are still accepted when it has said that it is no longer ready.
    pub delay: Duration,
    /// How long open streams may go on after that.
    pub timeout: Duration,
    /// How long the current messages of a stream may take that is to end.
    pub force: Duration,
    /// The clients of streams that were ended are told to come back at random times within so long.
    pub spread: Duration,
}

/// The port of the operator.
#[derive(Clone, PartialEq)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    /// The bearer token that requests must carry. Always there if the address is not loopback.
    pub token: Option<String>,
}

/// The proxy's own `grpc.health.v1.Health`.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthService {
    /// Streams of `Watch` open at once.
    pub max_watchers: usize,
}

/// A port for clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// What metrics and logs call it; no other listener has this name.
    pub name: String,
    /// Where it listens; no other listener has this address, except a TCP port of zero.
    pub address: Address,
    /// Connections open at once.
    pub max_connections: usize,
    /// The origins of web pages that may call bindings, beside its own.
    pub allowed_origins: Vec<WebOrigin>,
    /// Whether balancers say where connections come from.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What upstreams are told of where requests come from.
    pub forwarded: Forwarded,
    /// What becomes of paths that servers read differently.
    pub paths: Paths,
    /// Proxies of this kind that a request may pass, this one included; 1 to 32.
    pub max_hops: usize,
    /// TLS; `None` serves in the clear.
    pub tls: Option<Tls>,
    /// Whether clients are told the details of errors.
    pub error_details: bool,
    /// How long clients may take.
    pub timeouts: ListenerTimeouts,
    /// Limits for clients that speak HTTP/1.1.
    pub http1: Http1,
    /// Limits for clients that speak HTTP/2.
    pub http2: ServerHttp2,
}

/// Where connections come from that a balancer has passed on.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyProtocol {
    /// Where the balancers are; at least one.
    pub trusted: Vec<Network>,
}

/// What upstreams are told of where requests come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Forwarded {
    /// Whose word is believed, by address.
    pub trusted: Vec<Network>,
    /// Whether that of a Unix socket's peers is.
    pub trusted_unix: bool,
    /// Whether they are told anything.
    pub set: bool,
}

/// What becomes of paths that servers read differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Paths {
    /// They are refused.
    #[default]
    Refuse,
    /// They are rewritten to what they mean, and refused if that is in doubt.
    Normalize,
    /// They pass as they came.
    Pass,
}

/// How long clients may take.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTimeouts {
    /// Longest a TLS handshake may take, and a PROXY header before it.
    pub handshake: Duration,
    /// Longest wait for the first bytes, which tell the protocol.
    pub preface: Duration,
    /// Longest wait from there to the first request headers; with HTTP/1.1, for the headers of
    /// every request once begun.
    pub first_headers: Duration,
    /// How long a client may take too few of the bytes that wait for it; zero is for ever.
    pub stall: Duration,
    /// Fewer bytes than these within `stall` are too few, unless no more waited.
    pub stall_min_progress: u64,
    /// How long the status of a stream that has failed waits behind bytes that the client does not take; zero is as long as
    /// `stall`.
    pub last_words: Duration,
}

/// Limits for HTTP/1.1.
#[derive(Clone, Debug, PartialEq)]
pub struct Http1 {
    /// Most headers in a request.
    pub max_headers: usize,
    /// Most bytes of all headers of a request together.
    pub max_header_bytes: usize,
    /// How long an idle connection waits for its next request.
    pub keep_alive: Duration,
}

/// How HTTP/2 is spoken on one connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2 {
    /// Bytes the peer may send ahead on one stream; at most 2³¹ − 1.
    pub stream_window: u32,
    /// Bytes the peer may send ahead on all streams together; at most 2³¹ − 1.
    pub connection_window: u32,
    /// Largest frame the peer may send.
    pub max_frame_size: u32,
    /// Most bytes of the headers of one message.
    pub max_header_list_size: u32,
    /// Most headers in one message.
    pub max_headers: usize,
    /// Bytes kept for one stream while the socket takes none.
    pub send_buffer: usize,
    /// Size of the table with which the peer compresses headers.
    pub header_table_size: u32,
    /// Reset streams remembered.
    pub max_reset_streams: usize,
    /// Streams the peer may open and reset before they are looked at.
    pub max_pending_resets: usize,
    /// Streams we may reset for the peer's errors in the life of a connection.
    pub max_local_resets: usize,
    /// How long a reset stream is remembered.
    pub reset_memory: Duration,
    /// PINGs to a silent peer.
    pub keepalive: Keepalive,
    /// Allowance for the overhead of small data frames.
    pub data_frame_budget: usize,
}

/// PINGs to a silent peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Keepalive {
    /// How long nothing comes before a PING is sent; zero is never.
    pub interval: Duration,
    /// How long nothing comes after it until the connection is given up.
    pub timeout: Duration,
}

/// How HTTP/2 is spoken with a client.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerHttp2 {
    /// What holds for both sides.
    pub http2: Http2,
    /// Streams a client may have open on one connection.
    pub max_concurrent_streams: u32,
}

/// A set of interchangeable endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// What routes and metrics call it; `binding/orders` if a binding made it for itself.
    pub name: String,
    /// What messages call it: `cluster greeter` or `binding orders`.
    pub label: String,
    /// Where its upstreams are.
    pub endpoints: Endpoints,
    /// Which of them takes a stream.
    pub balance: Balance,
    /// Time in which a new endpoint comes to its full share; zero is none.
    pub slow_start: Duration,
    /// Whether streams end with the endpoint that they are on.
    pub dismiss_removed: bool,
    /// How they are asked whether they are well, if they are.
    pub health_check: Option<HealthCheck>,
    /// When endpoints are taken out because of how their streams end.
    pub outlier: Option<Outlier>,
    /// What they speak.
    pub protocol: Protocol,
    /// TLS; `None` goes in the clear.
    pub tls: Option<UpstreamTls>,
    /// How HTTP/2 is spoken with them.
    pub http2: Http2,
    /// Longest a dial may take.
    pub connect_timeout: Duration,
    /// How connections are shared and kept.
    pub pool: Pool,
    /// How long an upstream may take none of the bytes that wait for it; zero is for ever.
    pub stall: Duration,
}

/// What the endpoints of a cluster speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/2, without asking first whether they do; under TLS they must agree to it.
    #[default]
    Http2,
    /// HTTP/1.1, one stream on a connection at a time.
    Http1,
}

/// How connections to upstreams are shared and kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Connections to one endpoint, for each worker.
    pub max_connections: usize,
    /// Streams on one HTTP/2 connection.
    pub max_streams_per_connection: u32,
    /// Streams open or waiting in the whole cluster, if there is such a limit.
    pub max_streams: Option<usize>,
    /// Dials to one endpoint on their way at once, for each worker.
    pub max_dials: usize,
    /// Streams that may wait for a connection, for each worker, if there is such a limit.
    pub max_pending: Option<usize>,
    /// Longest that a stream waits for a place on a connection.
    pub wait_timeout: Duration,
    /// After so long, a stream whose bytes the upstream does not take keeps new streams off its
    /// connection.
    pub avoid_stalled: Duration,
    /// Age at which a connection takes no new streams; zero is never.
    pub max_connection_age: Duration,
    /// How long a connection without streams is kept.
    pub idle_timeout: Duration,
}

/// Which streams go where.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What metrics and logs call it; no other route has this name.
    pub name: String,
    /// What a stream must look like.
    pub matches: Match,
    /// Where the stream goes after the filters.
    pub destination: Destination,
    /// How long streams may take. If they go on to the routes below, those say it.
    pub timeouts: RouteTimeouts,
    /// What becomes of streams that fail before their answer begins. If they go on, those below say it.
    pub retry: RouteRetry,
    /// What the stream passes, the outermost first; none is there twice.
    pub filters: Vec<Filter>,
}

/// What a stream must look like: everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// The host the client asks for.
    pub authority: Option<AuthorityMatch>,
    /// Headers that must be there with just this value.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// Just this.
    Exact(String),
    /// Anything that begins with this.
    Prefix(String),
    /// `/service/method`, of a gRPC service.
    Service {
        /// The full name of the service.
        service: String,
        /// The name of the method; every method if absent.
        method: Option<String>,
    },
}

/// What an authority must be. In lower case, as host names are compared.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthorityMatch {
    /// Just this.
    Exact(String),
    /// Anything that ends with this: `.example.test`, from `*.example.test`.
    Suffix(String),
    /// Anything.
    Any,
}

/// Where the streams of a route go after its filters.
#[derive(Clone, Debug, PartialEq)]
pub enum Destination {
    /// To clusters: at least one, and the weights are not all zero.
    Clusters(Vec<Target>),
    /// On to the routes below, at least one, which match the request as the filters have left it.
    RoutesBelow,
}

/// A cluster and its share of the streams.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Who takes the stream.
    pub cluster: Arc<Cluster>,
    /// In proportion to the weights of the other targets.
    pub weight: u32,
}

/// How long the streams of a route may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteTimeouts {
    /// Longest wait for a connection; zero leaves it to the cluster.
    pub connect: Duration,
    /// How long bytes may wait while the far side takes too few; zero is for ever.
    pub stall: Duration,
    /// How many bytes the far side must take in that time; at least one.
    pub stall_min_progress: u64,
    /// How long each phase may take.
    pub phases: timeouts::Config,
}

/// Reads a file and the environment of the process.
pub fn load(path: &Path) -> Result<Config, Faults> {
    let name = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(mut file) => load_from(&mut file, &name),
        Err(error) => Err(Faults::unreadable(name, &error)),
    }
}

/// The same of what stands anywhere, and is called `name` in faults.
pub(crate) fn load_from(source: &mut dyn io::Read, name: &str) -> Result<Config, Faults> {
    let mut text = String::new();
    match source.read_to_string(&mut text) {
        Ok(_) => parse(&text, name, &|variable| std::env::var(variable).ok()),
        Err(error) => Err(Faults::unreadable(name.to_owned(), &error)),
    }
}

/// Reads a text. `file_name` is what faults call it, `env` looks up environment variables.
pub fn parse(
    text: &str,
    file_name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Faults> {
    let mut report = Report::new(file_name, text);
    let load::Document { mut value, places } = match load::read(text) {
        Ok(document) => document,
        Err(broken) => return Err(report.broken(broken)),
    };
    report.locate(places);
    environment::fill(&mut value, "", env, &mut report);
    check::check(&raw_schema(), &mut value, &mut report);
    match serde_json::from_value(value) {
        Ok(raw) => {
            let mut config = resolve::resolve(raw, env, &mut report);
            config.warnings = report.warnings();
            config.origins = report.origins();
            report.finish(config)
        }
        // What the schema lets pass and the types do not: only our own mistake is seen here.
        Err(error) => Err(report.unforeseen(&error)),
    }
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> String {
    format!("{:#}", raw_schema())
}

fn raw_schema() -> serde_json::Value {
    schemars::schema_for!(raw::Config).to_value()
}

// === impl Config ===

impl Config {
    /// The file that would say all this in full, with every default spelled out and all
    /// secrets hidden.
    pub fn to_json(&self) -> serde_json::Value {
        show::config(self)
    }

    /// The filters of a binding that has none of its own: all but those that come before it, and `sequence`.
    pub fn binding_filters(&self) -> Vec<Filter> {
        resolve::default_filters(&self.filters)
    }
}

// === impl Forwarded ===

impl Forwarded {
    /// Whether the word of a connection from this address is believed; one without an address comes by a Unix socket.
    pub(crate) fn trusts(&self, address: Option<IpAddr>) -> bool {
        match address {
            Some(address) => (self.trusted.iter()).any(|network| network.contains(address)),
            None => self.trusted_unix,
        }
    }
}

// === impl ProxyProtocol ===

impl ProxyProtocol {
    /// Whether this peer is a balancer.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }
}

// === impl Cluster ===

impl Cluster {
    /// Whether streams end on endpoints that are found not to be well.
    pub(crate) fn dismisses_unhealthy(&self) -> bool {
        self.health_check
            .as_ref()
            .is_some_and(|check| check.dismiss)
    }
}

// === impl Admin ===

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("Admin")
            .field("address", &self.address)
            .field("token", &token)
            .finish()
    }
}

// === the defaults; `raw` tells why ===

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(25),
            force: Duration::from_secs(3),
            spread: Duration::from_secs(5),
        }
    }
}

impl Default for HealthService {
    fn default() -> Self {
        Self { max_watchers: 1000 }
    }
}

impl Default for Forwarded {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            trusted_unix: false,
            set: true,
        }
    }
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            preface: Duration::from_secs(10),
            first_headers: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            stall_min_progress: 1024,
            last_words: Duration::from_secs(3),
        }
    }
}

impl Default for Http1 {
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_header_bytes: 64 << 10,
            keep_alive: Duration::from_secs(75),
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            max_frame_size: 64 << 10,
            max_header_list_size: 32 << 10,
            max_headers: 128,
            send_buffer: 64 << 10,
            header_table_size: 4 << 10,
            max_reset_streams: 1000,
            max_pending_resets: 200,
            max_local_resets: 100_000,
            reset_memory: Duration::from_secs(5),
            keepalive: Keepalive::default(),
            data_frame_budget: 2 << 20,
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5 * 60),
            timeout: Duration::from_secs(60),
        }
    }
}

impl Default for ServerHttp2 {
    fn default() -> Self {
        Self {
            http2: Http2::default(),
            max_concurrent_streams: 1000,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_streams_per_connection: 100,
            max_streams: None,
            max_dials: 16,
            max_pending: None,
            wait_timeout: Duration::from_secs(30),
            avoid_stalled: Duration::from_secs(1),
            max_connection_age: Duration::ZERO,
            idle_timeout: Duration::from_secs(90),
        }
    }
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::ZERO,
            stall: Duration::from_secs(60),
            stall_min_progress: 1024,
            phases: timeouts::Config::default(),
        }
    }
}
