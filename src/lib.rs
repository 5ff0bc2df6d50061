//! Thalweg: a proxy for streams.
//!
//! It stands between clients and upstreams that speak gRPC or HTTP, and forwards what they say without collecting it. A slow
//! reader slows the writer, and memory stays flat whether a stream carries a kilobyte or a terabyte.
//!
//! # The house
//!
//! Three crates, one above the other; Cargo sees to it that nobody looks up.
//!
//! | floor | where | what |
//! |---|---|---|
//! | 0 | `proto/` | what is true of the bytes alone: gRPC frames, protobuf fields, statuses, deadlines |
//! | 1 | `filters/` | what may be said about one stream: the body, the error, one file a filter |
//! | 2 | `src/` | what owns a socket, a task, or a map of upstreams |
//!
//! In `src/`, the way of a stream is a row of files, and the rest is around it.
//!
//! | | files |
//! |---|---|
//! | the way of a stream | `listener` → `worker` → `transport` (and `tls`) → `serve` → `respond` → `router` → filters → `forward` → `upstream` |
//! | the way through a binding | `router`'s place is taken by `bindings`: the call is recognised, its first message read, its binding found; then filters → handshake → a target, one file each |
//! | what moves its bytes | `receive` (from HTTP/2 into a body), `pump` (from a body into HTTP/2), `stage` (what waits in between), `eager` (for sinks that read when they please), `stall` (who takes nothing), `keepalive` (who says nothing) |
//! | what ends it | `respond`, and `dismissal` for planned ends, which come between two messages |
//! | around it | `config` (the file), `app` (start and end), `admin`, `telemetry`, `cli`, `stamp` (whether a file has changed), `patience` (how long something may take) |
//!
//! # The life of a stream
//!
//! 1. `listener` takes a permit, accepts, and hands the socket to the worker with the fewest live streams.
//! 2. `worker` is a thread with a runtime, upstream connections and filter chains of its own. Both connections of a
//!    stream live on it, so that nothing on the way of a byte is shared between threads. What the configuration means to it is
//!    its `snapshot`; when the file changes, `app` hands every worker another, and a stream keeps what it began with.
//! 3. `transport` is the socket as the codecs see it: it reads all that has come and writes once a turn. Under TLS it also opens and
//!    seals; `tls` has the certificates, and says what the client's own tells the upstream.
//! 4. `serve` takes a balancer's word for where the connection comes from, if it is to be believed. It looks at the first bytes, or shakes hands and hears which protocol it will be, and drives the connection: the `h2` crate for HTTP/2, hyper for HTTP/1.1. Each HTTP/2
//!    stream becomes one task, which owns all that the stream holds on both sides. Its request passes the `door`, where what belongs to
//!    the client's connection and what only a proxy may say is taken away, before anything of ours is set or decided by it.
//! 5. `respond` is the outermost layer: it turns every error into a gRPC status, or into an HTTP status with a JSON error.
//!    Nothing else writes a status.
//! 6. `router` finds the route: the first in the file whose every condition holds. Behind them all stands `health`, the proxy's own health service. Calls of bindings are recognised before it, and
//!    take the way that `bindings` tells: whatever the client speaks becomes one form, which the binding's target translates for
//!    its far side as it passes. A route may send the stream on, after
//!    its filters, to the routes below it, which match again.
//! 7. The filters of the route follow, in the file's order, inside the deadline that `grpc-timeout` sets. They may answer, or
//!    wrap either body. None reads ahead.
//! 8. `forward` picks the cluster and `upstream` one of its endpoints, which the whole process
//!    knows from its `directory`; there it lends a place on a connection that has room, or dials, under TLS if the
//!    cluster has it.
//!    One that the upstream refuses is opened once more, with what was sent of it until then: `retry` says whether and when.
//! 9. The head goes out before the first byte of the body. From now on the response's body drives both directions: reading
//!    it moves the request on as well.
//! 10. Bytes move as the far side takes them. Each chunk carries its credit, which returns to the sender when the chunk has been
//!     handed on, so a stream holds one window and no more. Trailers, resets and cancels move both ways.
//! 11. When the stream's task ends, however it ends, everything that it owned is dropped: places return, the upstream's stream
//!     is reset if it was not over, and the metrics count the stream by its real ending.
//!
//! # Where this differs from the first design
//!
//! - The deadline is a filter in form but not in the list: a call with a `grpc-timeout` is held to it on every route.
//! - There is one task a stream and none for the upload. It ends both directions by being dropped, and it costs less than
//!   two tasks that wake each other.
//! - Windows of upstream connections are as wide as all their streams' together, so that stalled downloads cannot use them up;
//!   and a connection on which an upload has stalled takes no new streams (`pool.avoid_stalled`).
//! - A backend's reset reaches a gRPC client as the status that gRPC gives to its code, with a message that names the
//!   cluster, and not as a bare reset. Plain HTTP gets the reset. `docs/status.md` has the tables.
//! - The first message of a binding's call is read before the binding's filters, since it says which they are. `initial_message` in
//!   the top-level list sets how long that may take; breaker, metrics and sequence belong to the binding.
//! - The small messages of bindings are structs with annotations and not generated code: there are a dozen, and a test holds
//!   them against `proto/schema`.
//! - Beside the windows there is one budget for the whole process (`max_held`): each stream books what it holds, `worker::reclaim` ends
//!   those that stand still when it is nearly spent, and `docs/limits.md` has the sum.
//! - A message is judged by `sequence` while the chunk with its last byte is in hand, so that nothing has to be withheld.

mod admin;
pub mod app;
mod bindings;
pub mod cli;
pub mod config;
mod dismissal;
mod drain;
mod eager;
mod forward;
mod headers;
mod health;
mod keepalive;
mod listener;
mod patience;
mod pump;
mod receive;
mod respond;
mod retry;
mod router;
mod serve;
mod stage;
mod stall;
mod stamp;
mod telemetry;
mod tls;
mod transport;
pub mod upstream;
mod worker;
