//! What may be said about one stream.
//!
//! A filter is a tower layer around the rest of a stream's way: it may answer, wrap the body that comes from the
//! client, or wrap the body that goes back. It owns no socket and spawns no task. One filter is one file.
//!
//! | file | what it holds |
//! |---|---|
//! | [`body`] | the one [`Body`], whose chunks carry their flow-control credit |
//! | [`error`] | why the proxy ended a stream |
//! | [`stream`] | what all filters of one stream share, and the way to abort it |
//! | [`ending`] | the four ways in which a stream ends |
//! | [`chain`] | the closed list of filters, and how a chain is built |
//! | [`circuit_breaker`] | gives a failing upstream a rest |
//! | [`deadline`] | ends calls whose `grpc-timeout` has passed |
//! | [`gzip`] | reads gzip up to a limit |
//! | [`held`] | how many bytes streams make the process hold |
//! | [`initial_message`] | waits for the first message, and sets headers from its fields |
//! | [`sequence`] | refuses streams whose messages are not numbered one after another |
//! | [`metrics`] | counts streams, bytes and messages by route, and bindings in Dapr's words |
//! | [`pieces`] | bytes that are kept for longer than they need to pass |
//! | [`timeouts`] | ends streams on which a phase takes too long |
//! | [`units`] | numbers as people write them in settings: `64KiB`, `5s` |

pub mod body;
pub mod chain;
pub mod circuit_breaker;
pub mod deadline;
pub mod ending;
pub mod error;
pub mod gzip;
pub mod held;
pub mod initial_message;
pub mod metrics;
pub mod pieces;
pub mod sequence;
pub mod stream;
pub mod timeouts;
pub mod units;

pub use body::{Body, Chunk};
pub use error::{Error, Side};
pub use stream::StreamContext;
