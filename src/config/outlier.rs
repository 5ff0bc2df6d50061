//! When an endpoint is taken out because of how its streams end.

use std::time::Duration;

use thalweg_proto::status::Code;

/// When an endpoint is taken out because of how its streams end.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// Streams that end badly in a row until it is taken out; at least 1.
    pub consecutive: u32,
    /// The age up to which a bad end counts.
    pub young: Duration,
    /// The statuses that are bad ends.
    pub statuses: Vec<Code>,
    /// How long it is out the first time; each further time in a row it is that much longer.
    pub ejection: Duration,
    /// The longest that it is out.
    pub max_ejection: Duration,
    /// Of a hundred endpoints, so many may be out at the same time.
    pub max_ejected_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive: 5,
            young: Duration::from_secs(10),
            statuses: vec![Code::Unavailable],
            ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
        }
    }
}
