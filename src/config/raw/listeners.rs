//! Where clients connect, and how.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Http2;
use crate::config::{ClientAuth, Paths};
use thalweg_filters::units::{Count, Duration, Size};

/// A port for clients.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Listener {
    /// What metrics and logs call it.
    #[schemars(length(min = 1))]
    pub(in crate::config) name: String,

    /// `127.0.0.1:8080`, `"[::1]:8080"` (in quotes: brackets mean a list) or
    /// `unix:/run/thalweg.sock`.
    pub(in crate::config) address: String,

    /// Connections open at once; further ones wait until one closes. Default `10000`, which bounds
    /// memory and stays below the usual limits on open files.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) max_connections: Option<Count>,

    /// Origins of web pages that may call bindings over plain HTTP: `https://app.example.test`. Default: none, and only
    /// pages of the proxy's own origin may. Whoever is no browser is not concerned.
    pub(in crate::config) allowed_origins: Option<Vec<String>>,

    /// Takes the addresses of clients from balancers that pass on TCP and say so by the PROXY
    /// protocol, version 1 or 2. Default: none. What it says counts as the address of the
    /// connection.
    pub(in crate::config) proxy_protocol: Option<ProxyProtocol>,

    /// What upstreams are told of where a request comes from, and who is believed that says it already.
    pub(in crate::config) forwarded: Option<Forwarded>,

    /// What becomes of paths that servers read differently, such as `/public/../admin` or `/public%2fadmin`: `refuse`, with 400;
    /// `normalize`, which rewrites what can be before the route is looked for, and refuses the rest; or
    /// `pass`, as they came. Default `refuse`: a route that does not match would be no protection.
    pub(in crate::config) paths: Option<Paths>,

    /// Proxies of this kind that a request may pass one after another, this one included; beyond, it goes in a circle and is
    /// refused. Default `10`: chains are shorter, and each round of a circle is one more stream.
    #[schemars(range(min = 1, max = 32))]
    pub(in crate::config) max_hops: Option<Count>,

    /// Serves clients under TLS, 1.2 and 1.3, and those in the clear no more. Default: none. Clients
    /// choose HTTP/2 or HTTP/1.1 in the handshake.
    pub(in crate::config) tls: Option<Tls>,

    /// Whether clients are told the details of errors that the log has: addresses of endpoints, paths of
    /// sockets, words of operating system and TLS. Default `false`, as strangers learn from them how the
    /// inside looks; everybody hears what failed, and the reason.
    pub(in crate::config) error_details: Option<bool>,

    /// How long clients may take.
    pub(in crate::config) timeouts: Option<ListenerTimeouts>,

    /// Limits for clients that speak HTTP/1.1.
    pub(in crate::config) http1: Option<Http1>,

    /// Limits for clients that speak HTTP/2.
    pub(in crate::config) http2: Option<ServerHttp2>,
}

/// Takes the addresses of clients from balancers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ProxyProtocol {
    /// Networks where the balancers are: `10.0.0.0/8`, `"fd00::/8"`, or one address. Their connections
    /// must begin with a PROXY header; those of all others are taken as they are, so that nobody else
    /// can claim an address.
    #[schemars(length(min = 1))]
    pub(in crate::config) trusted: Vec<String>,
}

/// What upstreams are told of where a request comes from.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Forwarded {
    /// Networks of proxies that say it truly: `10.0.0.0/8`, `"fd00::/8"`, one address, or `unix` for the peers of a Unix socket.
    /// What others say in `x-forwarded-*`, `forwarded`, `x-real-ip` and the like is removed. Default: none.
    pub(in crate::config) trusted: Option<Vec<String>>,

    /// Whether requests are given `x-forwarded-for`, `x-forwarded-proto` and `x-forwarded-host`. Default `true`; `false`
    /// where upstreams are strangers, who need not know.
    pub(in crate::config) set: Option<bool>,
}

/// Serves clients under TLS.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tls {
    /// Certificates and their keys. A client gets the one that has the name it asks for, `*.` standing
    /// for one label, and the first if there is none or it asks for none.
    #[schemars(length(min = 1))]
    pub(in crate::config) certificates: Vec<CertificateFiles>,

    /// A file in PEM with the roots of clients' certificates. Default: none, and clients are not asked
    /// for certificates. What a certificate says reaches the upstream in
    /// `x-forwarded-client-cert`.
    #[schemars(length(min = 1))]
    pub(in crate::config) client_ca: Option<String>,

    /// Whether clients must show a certificate: `required` or `optional`. Default `required`, if there
    /// is a `client_ca`. One that is bad is refused in either case.
    pub(in crate::config) client_auth: Option<ClientAuth>,

    /// Files in PEM with the lists of clients' certificates that are void. Default: none. If there are
    /// any, there must be one of each authority between a certificate and its root.
    pub(in crate::config) client_crls: Option<Vec<String>>,

    /// How often the files are looked at for changes; `0s` is never. Default `5s`: renewed certificates
    /// are there days before the old ones end. Open connections notice nothing.
    pub(in crate::config) reload_interval: Option<Duration>,
}

/// A certificate and its key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CertificateFiles {
    /// A file in PEM: the certificate, and after it those between it and its root.
    #[schemars(length(min = 1))]
    pub(in crate::config) cert: String,

    /// A file in PEM: the private key, not encrypted.
    #[schemars(length(min = 1))]
    pub(in crate::config) key: String,
}

/// How long clients may take.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ListenerTimeouts {
    /// Longest a TLS handshake may take, from the connection's beginning, with the PROXY header before
    /// it if there is one. Default `10s`: several round
    /// trips of any network, and a client that trickles costs a slot.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) handshake: Option<Duration>,

    /// Longest wait for the first bytes, which tell the protocol; under TLS, for those after the
    /// handshake. Default `10s`: ample for any network, and a silent connection costs a slot.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) preface: Option<Duration>,

    /// Longest wait from there to the headers of the first request; with HTTP/2, also for the rest of
    /// any headers that have begun. Default `10s`, against clients that trickle.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) first_headers: Option<Duration>,

    /// How long a stream or a connection may have bytes to send of which the client takes too few;
    /// `0s` is for ever. Default `60s`: a network that hiccups recovers sooner, a dead client never
    /// does.
    pub(in crate::config) stall: Option<Duration>,

    /// How many bytes a client must take within `stall` while any wait; fewer are a stall too, unless
    /// no more waited. Default `1KiB`, 17 bytes a second: one that is slow may be slow, and one
    /// that takes a byte now and then only holds on to memory.
    #[schemars(range(min = 1))]
    pub(in crate::config) stall_min_progress: Option<Size>,

    /// How long the status of a stream that has failed waits behind bytes of which the client takes
    /// none; then those are dropped and it goes before them. `0s` waits for as long as `stall`. Default
    /// `3s`: what the client does not read is worth less than to hear that no more comes.
    pub(in crate::config) last_words: Option<Duration>,
}

/// Limits for clients that speak HTTP/1.1.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Http1 {
    /// Most headers in a request. Default `100`, several times what browsers send.
    #[schemars(range(min = 1, max = 10_000))]
    pub(in crate::config) max_headers: Option<Count>,

    /// Most bytes of all headers of a request together, and so the read buffer of a connection.
    /// Default `64KiB`, room for large cookies and tokens.
    #[schemars(range(min = 8192, max = 1_048_576))]
    pub(in crate::config) max_header_bytes: Option<Size>,

    /// How long an idle connection waits for its next request. Default `75s`, longer than the 60s
    /// of common load balancers, so that they and not we close it.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) keep_alive: Option<Duration>,
}

/// Limits for clients that speak HTTP/2.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ServerHttp2 {
    /// Streams a client may have open on one connection. Default `1000`, room for a busy gRPC
    /// client; together with the windows it bounds the memory of a connection.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(in crate::config) max_concurrent_streams: Option<Count>,

    #[serde(flatten)]
    pub(in crate::config) http2: Http2,
}
