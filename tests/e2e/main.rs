//! Whole proxies on real sockets, between scripted peers.
//!
//! | file | what it promises |
//! |---|---|
//! | `admin` | what the operator is told |
//! | `backpressure` | how far a sender gets whose reader does not read |
//! | `bindings` | what bindings promise, line by line, to clients of gRPC and of plain HTTP |
//! | `cli` | what the binary says and how it exits |
//! | `clusters` | where endpoints come from, which of them takes a stream, and what becomes of streams when they go |
//! | `deadlines` | what `grpc-timeout` promises, and what it tells the upstream |
//! | `door` | what is taken from a request and set on it before its route is looked for, and what is not let in |
//! | `drain` | how the proxy stops, and what its streams notice of it |
//! | `early_answers` | HTTP/1.1 upstreams that answer before they have heard all |
//! | `endings` | how streams end when somebody does not keep to the plan |
//! | `errors` | what clients are told of errors, and how soon |
//! | `framing` | where a message ends, whom it is for, and whether its sender is to go on |
//! | `health` | who is asked for its health, and who finds out about that of others |
//! | `held` | what all streams together make the proxy hold, and what it does when that is too much |
//! | `http` | plain HTTP, over every pair of protocols |
//! | `invoke` | what `thalweg invoke` and `thalweg bindings` promise to those who type them |
//! | `judged` | that a client's own word decides neither whether it is judged nor what becomes of others |
//! | `limits` | what a client can make the proxy hold, beside what docs/limits.md says of it |
//! | `loops` | requests that go in a circle |
//! | `proxy_protocol` | who may say where a connection comes from, and what becomes of those who say it badly |
//! | `reload` | what becomes of streams, connections and counters when the configuration changes |
//! | `resets` | what each reset code of one side becomes on the other |
//! | `retries` | streams that fail before their answer begins, and what becomes of them |
//! | `routes` | what is told of routes: which one a request takes and why, and where their values come from |
//! | `safety` | the limits that keep a rude peer from hurting others |
//! | `shapes` | every kind of call, as client and upstream see it |
//! | `start` | what a newcomer meets: files to start with, the first lines, completions, manual pages |
//! | `strangers` | what clients get that do not keep to the protocol, or keep to the least of it |
//! | `takeover` | a new process takes the addresses of an old one, and no client notices |
//! | `timeouts` | how long each phase of a stream may take |
//! | `tls` | TLS on listeners: who is let in, and what becomes of sessions and of files that change |
//! | `upstream_tls` | TLS towards upstreams: whom the proxy believes, what it shows, and what a cut looks like |
//! | `upstreams` | which connection and which endpoint a stream takes |
//!
//! Each test is named as what it promises. Ports are 0, every wait is bounded, and nothing sleeps to give others time: a test
//! waits for what it has asked for, and fails when that does not come.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error has failed, and clippy.toml allows it in test functions only"
)]

mod admin;
mod backpressure;
mod bindings;
mod cli;
mod clusters;
mod deadlines;
mod door;
mod drain;
mod early_answers;
mod endings;
mod errors;
mod framing;
mod health;
mod held;
mod http;
mod invoke;
mod judged;
mod limits;
mod loops;
mod proxy_protocol;
mod reload;
mod resets;
mod retries;
mod routes;
mod safety;
mod shapes;
mod start;
mod strangers;
#[allow(
    dead_code,
    reason = "a vocabulary; not every word is needed at every time"
)]
mod support;
mod takeover;
mod timeouts;
mod tls;
mod upstream_tls;
mod upstreams;
