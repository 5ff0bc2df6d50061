//! What is tried again, and how often.

use serde_json::Value;
use thalweg_filters::units::{Count, Duration, Size};
use thalweg_proto::status::Code;

use super::{Resolve, or};
use crate::config::{Backoff, Retry, RetryBudget, RouteRetry, raw, show};

impl Resolve<'_> {
    /// Of the streams of a route.
    pub(super) fn route_retry(&mut self, raw: raw::RouteRetry, path: &str) -> RouteRetry {
        let default = RouteRetry::default();
        let budget = raw.budget.unwrap_or_default();
        let matching =
            (raw.matching).map(|statuses| self.statuses(&statuses, &format!("{path}.matching")));
        let waits = (RouteRetry::FIRST, RouteRetry::MAX_INTERVAL);
        RouteRetry {
            max_retries: raw.max_retries.map_or(default.max_retries, Count::u32),
            matching: matching.unwrap_or(default.matching),
            backoff: self.exponential(raw.duration, raw.max_interval, waits, path),
            replay_bytes: raw.replay_bytes.map_or(default.replay_bytes, Size::usize),
            budget: RetryBudget {
                percent: budget.percent.map_or(default.budget.percent, Count::u32),
                burst: budget.burst.map_or(default.budget.burst, Count::u32),
            },
        }
    }

    /// Of the handshakes of a binding.
    pub(super) fn retry(&mut self, raw: raw::Retry, path: &str) -> Retry {
        let default = Retry::default();
        let matching =
            (raw.matching).map(|statuses| self.statuses(&statuses, &format!("{path}.matching")));
        Retry {
            backoff: match raw.policy.unwrap_or_default() {
                raw::RetryPolicy::Constant => {
                    if raw.max_interval.is_some() {
                        let hint = "leave it out, or write `policy: exponential`";
                        let path = format!("{path}.max_interval");
                        self.faults
                            .add_key(&path, "waits that are constant do not grow", hint);
                    }
                    Backoff::Constant(or(raw.duration, Backoff::CONSTANT))
                }
                raw::RetryPolicy::Exponential => {
                    let default = (Backoff::FIRST, Backoff::MAX_INTERVAL);
                    self.exponential(raw.duration, raw.max_interval, default, path)
                }
            },
            max_retries: raw.max_retries.map_or(default.max_retries, Count::u32),
            matching: matching.unwrap_or(default.matching),
            replay_bytes: raw.replay_bytes.map_or(default.replay_bytes, Size::usize),
        }
    }

    fn status(&mut self, written: &Value, path: &str) -> Option<Code> {
        let failures = Code::ALL.into_iter().skip(1);
        let code = match written {
            Value::String(name) => failures.into_iter().find(|code| code.name() == name),
            number => failures
                .into_iter()
                .find(|code| number.as_u64() == Some(code.number().into())),
        };
        if code.is_none() {
            let hint = "write a name such as `UNAVAILABLE`, or a number from 1 to 16";
            let message = format!("{written} is not the status of a failed call");
            self.faults.add(path, message, hint);
        }
        code
    }

    fn exponential(
        &mut self,
        first: Option<Duration>,
        max_interval: Option<Duration>,
        default: (std::time::Duration, std::time::Duration),
        path: &str,
    ) -> Backoff {
        let first = or(first, default.0);
        let max_interval = or(max_interval, default.1);
        if first > max_interval {
            let message = "the first wait is longer than the longest";
            let longest = show::duration(max_interval);
            let hint = format!("write `{longest}` or less, or raise `max_interval`");
            let path = format!("{path}.duration");
            self.faults.add(&path, message, hint);
        }
        Backoff::Exponential {
            first,
            max_interval,
        }
    }

    /// Statuses by name or number, each once.
    pub(super) fn statuses(&mut self, statuses: &[raw::Status], path: &str) -> Vec<Code> {
        let mut codes = Vec::new();
        for (index, raw::Status(status)) in statuses.iter().enumerate() {
            match self.status(status, &format!("{path}[{index}]")) {
                Some(code) if !codes.contains(&code) => codes.push(code),
                _ => {}
            }
        }
        codes
    }
}
