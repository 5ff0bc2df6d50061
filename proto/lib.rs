//! Facts of the wire, true of the bytes alone: no I/O, no clock, no runtime.
//!
//! **Why.** What a proxy believes about the bytes of strangers decides what it lets through. Those
//! beliefs stand here, apart from sockets and timers, where plain tests, properties and a fuzzer
//! reach all of them.
//!
//! **How.** Parsers look at bytes where they lie. They never take, copy or collect payload, allocate
//! nothing by a length that a peer declares, and give the same answer however the bytes are cut into
//! chunks. No input makes them panic: what is malformed is a small, comparable error, which names
//! the fault in words that are safe to send back.
//!
//! | File | What it knows |
//! |---|---|
//! | [`frame`] | where gRPC messages begin and end in a body |
//! | [`field`] | which protobuf fields lie at given paths in a message |
//! | [`status`] | gRPC codes, from and to HTTP and HTTP/2 resets; `grpc-message` |
//! | [`deadline`] | `grpc-timeout`, read and written |
//! | [`bindings`] | the messages of output bindings, and how payload is wrapped in them |
//! | [`health`] | the messages of gRPC's health checks |
//! | [`proxy`] | the header of the PROXY protocol |
//! | [`path`] | whether every server reads a path the same way |
//! | [`header`] | which names of headers are one to some servers |
//! | [`method`] | `/package.Service/Method`, and which content types are gRPC |
//!
//! `tests/chunking.rs` and `tests/proxy.rs` hold the properties, `fuzz/` a fuzz target for each parser. `schema/` has the messages of bindings and of health checks
//! for those who generate code from them.

pub mod bindings;
pub mod deadline;
pub mod field;
pub mod frame;
pub mod header;
pub mod health;
pub mod method;
pub mod path;
pub mod proxy;
pub mod status;

pub use field::{FieldPath, FieldPaths, FieldWalker};
pub use frame::{FrameError, FrameInspector};
pub use method::Method;
pub use status::Code;
