//! The messages of `grpc.health.v1.Health`, by which gRPC asks whether somebody can be sent calls.
//!
//! **Why.** The proxy answers them for itself, and asks them of its upstreams. They are two, of one field each, so they are structs
//! here as those of bindings are; `schema/` has them as a `.proto` file, and `tests/health.rs` holds the two against each other.

use prost::{Enumeration, Message};

/// The full name of the service.
pub const SERVICE: &str = "grpc.health.v1.Health";

/// The path of its method that answers once.
pub const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The path of its method that answers at every change.
pub const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Asks for the health of a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckRequest {
    /// Its name; empty means whoever is asked as a whole.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// The health of a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealthCheckResponse {
    /// Whether it can be called.
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

/// Whether a service can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    /// It is not known.
    Unknown = 0,
    /// It can.
    Serving = 1,
    /// It cannot.
    NotServing = 2,
    /// There is no such service; only watchers hear this, others get a status of gRPC.
    ServiceUnknown = 3,
}

impl From<ServingStatus> for HealthCheckResponse {
    fn from(status: ServingStatus) -> Self {
        Self {
            status: status.into(),
        }
    }
}
