//! How the endpoints of a cluster are asked whether they are well.

use std::time::Duration;

use http::uri::PathAndQuery;

/// How the endpoints of a cluster are asked whether they are well.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// What is asked.
    pub question: Question,
    /// The wait between two checks, a tenth more or less at random.
    pub interval: Duration,
    /// Longest a check may take, the dial included.
    pub timeout: Duration,
    /// Good checks in a row until an endpoint is well again; at least 1.
    pub healthy: u32,
    /// Bad checks in a row until it is not; at least 1.
    pub unhealthy: u32,
    /// Whether gRPC streams on an endpoint end when it is found not to be well.
    pub dismiss: bool,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// `grpc.health.v1.Health/Check`, for a service.
    Grpc {
        /// Its name; empty means the server as a whole.
        service: String,
    },
    /// A GET.
    Http {
        /// Of this.
        path: PathAndQuery,
        /// The status that is good; any `2xx` if absent.
        expect: Option<u16>,
    },
    /// Whether it takes a connection.
    Tcp,
}

impl HealthCheck {
    pub(super) const INTERVAL: Duration = Duration::from_secs(5);
    pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
    pub(super) const HEALTHY: u32 = 2;
    pub(super) const UNHEALTHY: u32 = 3;
}
