//! Whether a stream that failed before its answer began is tried again, and when.
//!
//! **Why.** A stream that an upstream refused was never begun, and may be tried elsewhere without a doubt; so it is, once, unless the
//! route says otherwise. Other failures leave it open whether something was done, and only who runs the upstream knows whether it may
//! be done twice: those are tried again where the route says so.
//!
//! **How.** [`Attempts`] is the account of one stream. A retry needs that one is left of `max_retries`, that it would not come after the
//! deadline, and a token of the route's budget: every stream brings a part of one, and every retry takes a whole one. So
//! when everything fails, the upstream hears a fifth more than it would otherwise, and not several times as much.
//! An upstream may say in `grpc-retry-pushback-ms` when it wants to hear of the stream again, or that it does not.

use std::{
    cell::Cell,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use thalweg_filters::{Body, Error};
use thalweg_proto::status::Code;
use tokio::time::Instant;

use crate::config::{Backoff, RetryBudget, RouteRetry};

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// What one worker does about the streams of one route that fail.
#[derive(Debug)]
pub(crate) struct Retries {
    policy: RouteRetry,
    budget: Budget,
}

/// The retries of one stream.
pub(crate) struct Attempts<'a> {
    retries: Option<&'a Retries>,
    made: u32,
    /// Attempts that the upstream may have begun with.
    seen: u32,
}

/// How an attempt failed.
pub(crate) enum Failure {
    /// Nobody has begun with it.
    Refused(Error),
    /// It may have been begun.
    Failed(Error),
    /// The upstream's own answer is that it failed, and it sent nothing else.
    Status(Response<Body>, Code),
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// The route does not want one, or not so many.
    Unwanted,
    /// The budget is used up.
    Budget,
}

/// What retries are paid from.
#[derive(Debug)]
struct Budget {
    settings: RetryBudget,
    /// Hundredths of a retry.
    left: Cell<u64>,
}

/// A whole retry, in hundredths.
const WHOLE: u64 = 100;

// === impl Retries ===

impl Retries {
    pub(crate) fn new(policy: &RouteRetry) -> Self {
        Self {
            policy: policy.clone(),
            budget: Budget::new(policy.budget.clone()),
        }
    }
}

// === impl Attempts ===

impl<'a> Attempts<'a> {
    /// Of a stream that begins.
    pub(crate) fn new(retries: Option<&'a Retries>) -> Self {
        if let Some(retries) = retries {
            retries.budget.earn();
        }
        Self {
            retries,
            made: 0,
            seen: 0,
        }
    }

    /// Whether there may be another attempt after the present one.
    pub(crate) fn are_left(&self) -> bool {
        self.retries
            .is_some_and(|retries| self.made < retries.policy.max_retries)
    }

    /// Bytes of the request to be kept for that.
    pub(crate) fn kept(&self) -> Option<usize> {
        let retries = self.retries.filter(|_| self.are_left())?;
        Some(retries.policy.replay_bytes)
    }

    /// Whether the route wants an answer with this status to be tried again.
    pub(crate) fn matches(&self, code: Code) -> bool {
        self.retries
            .is_some_and(|retries| retries.policy.matching.contains(&code))
    }

    /// Pays for another attempt, and says how long it has to wait.
    pub(crate) fn again(
        &mut self,
        failure: &Failure,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<Duration, No> {
        let retries = self
            .retries
            .filter(|_| self.are_left())
            .ok_or(No::Unwanted)?;
        let wait = self.wait(failure, &retries.policy).ok_or(No::Unwanted)?;
        if deadline.is_some_and(|deadline| now + wait >= deadline) {
            return Err(No::Unwanted);
        }
        if !retries.budget.spend() {
            return Err(No::Budget);
        }
        self.made += 1;
        if !matches!(failure, Failure::Refused(_)) {
            self.seen += 1;
        }
        Ok(wait)
    }

    fn wait(&self, failure: &Failure, policy: &RouteRetry) -> Option<Duration> {
        let pushback = match failure {
            // At once: it goes to another connection, if not to another endpoint.
            Failure::Refused(_) if self.made == 0 => return Some(Duration::ZERO),
            Failure::Refused(_) => None,
            Failure::Failed(error) if self.matches(error.code()) => None,
            Failure::Status(response, code) if self.matches(*code) => {
                response.headers().get(PUSHBACK)
            }
            _ => return None,
        };
        let Some(pushback) = pushback else {
            return Some(wait(&policy.backoff, self.made));
        };
        // Whatever is no number of milliseconds means never, a negative number among it (gRFC A6).
        let millis: u64 = pushback.to_str().ok()?.parse().ok()?;
        let wait = Duration::from_millis(millis);
        (wait <= policy.backoff.longest()).then_some(wait)
    }

    /// Tells the upstream of the attempts before, those of the client among them.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if self.seen == 0 {
            return;
        }
        let told = headers.get(PREVIOUS_ATTEMPTS);
        let before = told.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        let all = before.unwrap_or(0).saturating_add(self.seen);
        headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(all));
    }
}

// === impl Failure ===

impl Failure {
    /// What the client hears if there is no other attempt.
    pub(crate) fn told(self) -> Result<Response<Body>, Error> {
        match self {
            Self::Refused(error) | Self::Failed(error) => Err(error),
            Self::Status(response, _) => Ok(response),
        }
    }
}

// === impl Budget ===

impl Budget {
    fn new(settings: RetryBudget) -> Self {
        let left = Cell::new(u64::from(settings.burst) * WHOLE);
        Self { settings, left }
    }

    fn earn(&self) {
        let most = u64::from(self.settings.burst) * WHOLE;
        let more = self.left.get() + u64::from(self.settings.percent);
        self.left.set(more.min(most));
    }

    fn spend(&self) -> bool {
        let Some(left) = self.left.get().checked_sub(WHOLE) else {
            return false;
        };
        self.left.set(left);
        true
    }
}

/// The wait before a retry, when there were so many before it.
pub(crate) fn wait(backoff: &Backoff, retries: u32) -> Duration {
    match *backoff {
        Backoff::Constant(wait) => wait,
        Backoff::Exponential {
            first,
            max_interval,
        } => {
            let grown = 1.5_f64.powi(retries.min(64).cast_signed());
            let wait = first.mul_f64(grown.min(1e6)).min(max_interval);
            // Between half as long and half as long again, so that those who failed together do not come back together.
            wait.mul_f64(0.5 + random())
        }
    }
}

/// From 0 to 1. A hasher's keys are random, and this needs no more than that.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use thalweg_filters::Side;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn retries(change: impl FnOnce(&mut RouteRetry)) -> Retries {
        let mut policy = RouteRetry {
            max_retries: 3,
            matching: vec![Code::Unavailable],
            ..RouteRetry::default()
        };
        change(&mut policy);
        Retries::new(&policy)
    }

    fn error(code: Code) -> Error {
        Error::new(code, "x", Side::Upstream, "x")
    }

    fn refused() -> Failure {
        Failure::Refused(error(Code::Unavailable))
    }

    fn pushed_back(value: &'static str) -> Failure {
        let mut response = Response::new(Body::empty());
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(PUSHBACK, value);
        Failure::Status(response, Code::Unavailable)
    }

    fn again(attempts: &mut Attempts<'_>, failure: &Failure) -> Result<Duration, No> {
        attempts.again(failure, None, Instant::now())
    }

    #[test]
    fn refused_stream_is_tried_again_at_once_and_then_with_waits() {
        let retries = retries(|_| {});
        let mut attempts = Attempts::new(Some(&retries));

        assert_eq!(again(&mut attempts, &refused()), Ok(Duration::ZERO));
        assert!(again(&mut attempts, &refused()).unwrap() > Duration::ZERO);
        assert!(again(&mut attempts, &refused()).is_ok());
        assert!(!attempts.are_left());
        assert_eq!(again(&mut attempts, &refused()), Err(No::Unwanted));
    }

    #[test]
    fn only_statuses_that_match_are_tried_again() {
        let retries = retries(|_| {});
        let mut attempts = Attempts::new(Some(&retries));
        let failed = |code| Failure::Failed(error(code));

        assert_eq!(
            again(&mut attempts, &failed(Code::Internal)),
            Err(No::Unwanted)
        );
        assert!(again(&mut attempts, &failed(Code::Unavailable)).is_ok());
    }

    #[test]
    fn upstream_says_when_and_whether_it_wants_to_hear_of_the_stream_again() {
        let retries = retries(|_| {});
        let answer = |value| again(&mut Attempts::new(Some(&retries)), &pushed_back(value));

        assert_eq!(answer("17"), Ok(17 * MILLI));
        assert_eq!(answer("0"), Ok(Duration::ZERO));
        for never in ["-1", "soon", "", "99999999999999999999"] {
            assert_eq!(answer(never), Err(No::Unwanted), "{never}");
        }
        // Longer than a stream is to wait here: the client hears it and may wait itself.
        assert_eq!(answer("3600000"), Err(No::Unwanted));
    }

    #[test]
    fn nothing_is_tried_that_would_come_after_the_deadline() {
        let retries = retries(|_| {});
        let mut attempts = Attempts::new(Some(&retries));
        let now = Instant::now();
        let failure = pushed_back("17");

        let late = attempts.again(&failure, Some(now + 17 * MILLI), now);
        let in_time = attempts.again(&failure, Some(now + 18 * MILLI), now);

        assert_eq!((late, in_time), (Err(No::Unwanted), Ok(17 * MILLI)));
    }

    #[test]
    fn retries_are_a_share_of_the_streams_once_the_burst_is_used_up() {
        let retries = retries(|policy| {
            policy.budget = RetryBudget {
                percent: 20,
                burst: 10,
            };
        });
        let mut made = 0;
        for _ in 0..1000 {
            let mut attempts = Attempts::new(Some(&retries));
            match again(&mut attempts, &refused()) {
                Ok(_) => made += 1,
                Err(no) => assert_eq!(no, No::Budget),
            }
        }

        assert!((200..=212).contains(&made), "{made} of 1000 were retried");
    }

    #[test]
    fn upstream_hears_of_attempts_that_it_may_have_seen() {
        let retries = retries(|_| {});
        let mut attempts = Attempts::new(Some(&retries));
        let mut headers = HeaderMap::new();

        again(&mut attempts, &refused()).unwrap();
        attempts.tell(&mut headers);
        assert!(headers.is_empty(), "nobody has seen the first");

        again(&mut attempts, &pushed_back("0")).unwrap();
        attempts.tell(&mut headers);
        assert_eq!(headers[PREVIOUS_ATTEMPTS], "1");

        let mut clients = HeaderMap::new();
        clients.insert(PREVIOUS_ATTEMPTS, HeaderValue::from_static("2"));
        attempts.tell(&mut clients);
        assert_eq!(clients[PREVIOUS_ATTEMPTS], "3");
    }

    #[test]
    fn stream_without_a_policy_is_tried_once() {
        let mut attempts = Attempts::new(None);

        assert_eq!(attempts.kept(), None);
        assert_eq!(again(&mut attempts, &refused()), Err(No::Unwanted));
    }
}
