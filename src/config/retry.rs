//! What becomes of streams of a route that fail before their answer begins.

use std::time::Duration;

use thalweg_proto::status::Code;

use super::Backoff;

/// What becomes of streams that fail before their answer begins.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteRetry {
    /// Attempts after the first.
    pub max_retries: u32,
    /// The statuses that are tried again, beside streams that were refused.
    pub matching: Vec<Code>,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// Most bytes of a request that are kept to be sent again.
    pub replay_bytes: usize,
    /// How many retries there may be.
    pub budget: RetryBudget,
}

/// How many retries there may be, for each worker.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    /// For each hundred streams.
    pub percent: u32,
    /// At once.
    pub burst: u32,
}

// === impl RouteRetry; `raw` tells why ===

impl RouteRetry {
    pub(super) const FIRST: Duration = Duration::from_millis(100);
    pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(5);
}

impl Default for RouteRetry {
    fn default() -> Self {
        Self {
            max_retries: 1,
            matching: Vec::new(),
            backoff: Backoff::Exponential {
                first: Self::FIRST,
                max_interval: Self::MAX_INTERVAL,
            },
            replay_bytes: 64 << 10,
            budget: RetryBudget {
                percent: 20,
                burst: 100,
            },
        }
    }
}
