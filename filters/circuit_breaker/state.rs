//! A breaker's decision, as a value without clock, lock or waker.

use std::time::Duration;

use tokio::time::Instant;

use super::Config;
use crate::units;

/// Told to those who come while others probe: nobody knows when a probe ends, so they are asked to come back soon.
const PROBING_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a breaker decides, by the counts of one generation.
///
/// Each change of state begins a generation with counts of zero, and so does each `interval`. A stream belongs to the
/// generation that admitted it; if that is over when the stream ends, its outcome tells nothing about the upstream of
/// today and is ignored.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    state: State,
    generation: u64,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All may pass. The counts begin anew at `clears_at`.
    Admitting { clears_at: Option<Instant> },
    /// None may pass.
    Rejecting { until: Instant },
    /// A few may pass, and decide for all. How many have is in the counts.
    Probing,
}

/// What the streams of one generation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Streams admitted, but for those that ended without telling anything.
    pub requests: u64,
    /// Streams that ended well.
    pub total_successes: u64,
    /// Streams that failed.
    pub total_failures: u64,
    /// Streams that ended well since one failed.
    pub consecutive_successes: u64,
    /// Streams that failed since one ended well.
    pub consecutive_failures: u64,
}

/// A breaker's state by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All may pass; Dapr calls it closed.
    Admitting,
    /// A few may pass; Dapr calls it half-open.
    Probing,
    /// None may pass; Dapr calls it open.
    Rejecting,
}

/// A stream's place in the generation that admitted it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket {
    generation: u64,
}

/// Why a stream was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// [`Phase::Rejecting`] or [`Phase::Probing`].
    pub phase: Phase,
    /// When it is worth coming back.
    pub retry_after: Duration,
}

/// What a stream's end says about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It served the stream.
    Success,
    /// It did not.
    Failure,
    /// Nothing: the stream might as well not have been.
    Neutral,
}

// === impl Machine ===

impl Machine {
    /// Admits from `now` on.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut machine = Self {
            config,
            state: State::Probing,
            generation: 0,
            counts: Counts::default(),
        };
        machine.admit_all(now);
        machine
    }

    /// Lets a stream pass, or says why not.
    pub fn admit(&mut self, now: Instant) -> Result<Ticket, Rejection> {
        self.catch_up(now);
        match self.state {
            State::Rejecting { until } => Err(Rejection {
                phase: Phase::Rejecting,
                retry_after: until.saturating_duration_since(now),
            }),
            State::Probing if self.counts.requests >= self.probes() => Err(Rejection {
                phase: Phase::Probing,
                retry_after: PROBING_RETRY_AFTER,
            }),
            State::Admitting { .. } | State::Probing => {
                self.counts.requests += 1;
                Ok(Ticket {
                    generation: self.generation,
                })
            }
        }
    }

    /// Judges by the end of a stream that was admitted.
    pub fn report(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.catch_up(now);
        if ticket.generation != self.generation {
            return;
        }
        let counts = &mut self.counts;
        match outcome {
            Outcome::Neutral => counts.requests = counts.requests.saturating_sub(1),
            Outcome::Success => {
                counts.total_successes += 1;
                counts.consecutive_successes += 1;
                counts.consecutive_failures = 0;
                if self.state == State::Probing
                    && self.counts.consecutive_successes >= self.probes()
                {
                    self.admit_all(now);
                }
            }
            Outcome::Failure => {
                counts.total_failures += 1;
                counts.consecutive_failures += 1;
                counts.consecutive_successes = 0;
                if self.state == State::Probing || self.config.trip.holds(&self.counts) {
                    let until = later(now, self.config.timeout);
                    self.enter(State::Rejecting { until });
                }
            }
        }
    }

    /// The state at `now`, in which the next stream would find it.
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Admitting { .. } => Phase::Admitting,
            State::Rejecting { until } if now < until => Phase::Rejecting,
            State::Rejecting { .. } | State::Probing => Phase::Probing,
        }
    }

    /// The state that was last entered, whatever the clock says.
    pub(super) fn entered(&self) -> Phase {
        match self.state {
            State::Admitting { .. } => Phase::Admitting,
            State::Rejecting { .. } => Phase::Rejecting,
            State::Probing => Phase::Probing,
        }
    }

    /// Does what only the clock brings about.
    fn catch_up(&mut self, now: Instant) {
        match self.state {
            State::Admitting {
                clears_at: Some(clears_at),
            } if now >= clears_at => self.admit_all(now),
            State::Rejecting { until } if now >= until => self.enter(State::Probing),
            _ => {}
        }
    }

    fn admit_all(&mut self, now: Instant) {
        let interval = self.config.interval;
        let clears_at = (interval.0 > 0).then(|| later(now, interval));
        self.enter(State::Admitting { clears_at });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.counts = Counts::default();
    }

    fn probes(&self) -> u64 {
        self.config.max_requests.0.max(1)
    }
}

/// No further than a year, so that no setting overflows the clock.
fn later(now: Instant, wait: units::Duration) -> Instant {
    now + Duration::from(wait).min(Duration::from_secs(365 * 86_400))
}

impl Phase {
    /// All, in the order in which metrics print them.
    pub const ALL: [Self; 3] = [Self::Admitting, Self::Probing, Self::Rejecting];

    /// Dapr's word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Admitting => "closed",
            Self::Probing => "half-open",
            Self::Rejecting => "open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Trip, *};
    use crate::units::Count;

    fn machine(max_requests: u64, interval: u64, trip: &str) -> (Machine, Instant) {
        let now = Instant::now();
        let config = Config {
            max_requests: Count(max_requests),
            interval: units::Duration(interval),
            timeout: units::Duration(10_000),
            trip: Trip::parse(trip).unwrap(),
        };
        (Machine::new(config, now), now)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn run(machine: &mut Machine, outcome: Outcome, now: Instant) {
        let ticket = machine.admit(now).unwrap();
        machine.report(ticket, outcome, now);
    }

    #[test]
    fn failures_in_a_row_trip_it_and_a_success_between_does_not() {
        let (mut machine, now) = machine(1, 0, "consecutiveFailures > 1");

        for outcome in [Outcome::Failure, Outcome::Success, Outcome::Failure] {
            run(&mut machine, outcome, now);
            assert_eq!(machine.phase(now), Phase::Admitting);
        }

        run(&mut machine, Outcome::Failure, now);
        assert_eq!(machine.phase(now), Phase::Rejecting);
    }

    #[test]
    fn only_a_failure_asks_whether_to_trip() {
        let (mut machine, now) = machine(1, 0, "requests >= 2");

        run(&mut machine, Outcome::Success, now);
        run(&mut machine, Outcome::Success, now);
        run(&mut machine, Outcome::Neutral, now);
        assert_eq!(machine.phase(now), Phase::Admitting);

        run(&mut machine, Outcome::Failure, now);
        assert_eq!(machine.phase(now), Phase::Rejecting);
    }

    #[test]
    fn it_rejects_until_the_timeout_and_then_probes() {
        let (mut machine, now) = machine(1, 0, "true");
        run(&mut machine, Outcome::Failure, now);

        assert_eq!(
            machine.admit(now + seconds(3)),
            Err(Rejection {
                phase: Phase::Rejecting,
                retry_after: seconds(7)
            })
        );
        let almost = now + seconds(10) - Duration::from_nanos(1);
        assert!(machine.admit(almost).is_err());

        assert_eq!(machine.phase(now + seconds(10)), Phase::Probing);
        assert!(machine.admit(now + seconds(10)).is_ok());
    }

    #[test]
    fn probes_are_counted_in_total_and_their_successes_admit_all() {
        let (mut machine, now) = machine(2, 0, "true");
        run(&mut machine, Outcome::Failure, now);
        let now = now + seconds(10);

        run(&mut machine, Outcome::Success, now);
        let second = machine.admit(now).unwrap();
        // One has ended, but two have been admitted.
        assert_eq!(
            machine.admit(now),
            Err(Rejection {
                phase: Phase::Probing,
                retry_after: seconds(1)
            })
        );

        machine.report(second, Outcome::Success, now);
        assert_eq!(machine.phase(now), Phase::Admitting);
        assert_eq!(machine.counts, Counts::default());
    }

    #[test]
    fn failed_probe_rejects_anew_whatever_trip_says() {
        let (mut machine, start) = machine(2, 0, "totalFailures > 1");
        run(&mut machine, Outcome::Failure, start);
        run(&mut machine, Outcome::Failure, start);
        let now = start + seconds(12);

        let first = machine.admit(now).unwrap();
        let second = machine.admit(now).unwrap();
        machine.report(first, Outcome::Failure, now);

        assert_eq!(machine.phase(now), Phase::Rejecting);
        assert_eq!(machine.phase(now + seconds(10)), Phase::Probing);
        // The other probe was of a generation that is over.
        machine.report(second, Outcome::Success, now);
        assert_eq!(machine.phase(now), Phase::Rejecting);
    }

    #[test]
    fn cancelled_probe_gives_its_permit_back() {
        let (mut machine, now) = machine(1, 0, "true");
        run(&mut machine, Outcome::Failure, now);
        let now = now + seconds(10);

        let probe = machine.admit(now).unwrap();
        assert!(machine.admit(now).is_err());
        machine.report(probe, Outcome::Neutral, now);

        assert_eq!(machine.phase(now), Phase::Probing);
        run(&mut machine, Outcome::Success, now);
        assert_eq!(machine.phase(now), Phase::Admitting);
    }

    #[test]
    fn cancelled_stream_leaves_no_count() {
        let (mut machine, now) = machine(1, 0, "false");

        run(&mut machine, Outcome::Failure, now);
        run(&mut machine, Outcome::Neutral, now);

        assert_eq!(
            machine.counts,
            Counts {
                requests: 1,
                total_failures: 1,
                consecutive_failures: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn stream_from_before_the_trip_neither_opens_nor_closes() {
        let (mut machine, now) = machine(1, 0, "consecutiveFailures > 1");
        let [good, bad, worse, cancelled] = [(); 4].map(|()| machine.admit(now).unwrap());
        run(&mut machine, Outcome::Failure, now);
        run(&mut machine, Outcome::Failure, now);
        let later = now + seconds(10);

        let probe = machine.admit(later).unwrap();
        machine.report(good, Outcome::Success, later);
        assert_eq!(machine.phase(later), Phase::Probing, "nothing admits all");
        machine.report(bad, Outcome::Failure, later);
        assert_eq!(machine.phase(later), Phase::Probing, "nothing rejects");
        machine.report(cancelled, Outcome::Neutral, later);
        assert!(machine.admit(later).is_err(), "no permit is made up");

        machine.report(probe, Outcome::Success, later);
        machine.report(worse, Outcome::Failure, later);
        assert_eq!(machine.counts, Counts::default());
    }

    #[test]
    fn interval_clears_the_counts_and_begins_a_generation() {
        let (mut machine, now) = machine(1, 5000, "totalFailures > 1");
        run(&mut machine, Outcome::Failure, now);
        let old = machine.admit(now).unwrap();

        let later = now + seconds(5);
        run(&mut machine, Outcome::Failure, later);
        machine.report(old, Outcome::Failure, later);
        assert_eq!(machine.phase(later), Phase::Admitting);

        run(&mut machine, Outcome::Failure, later + seconds(4));
        assert_eq!(machine.phase(later + seconds(4)), Phase::Rejecting);
    }

    #[test]
    fn without_interval_the_counts_stay() {
        let (mut machine, now) = machine(1, 0, "totalFailures > 1");

        run(&mut machine, Outcome::Failure, now);
        run(&mut machine, Outcome::Failure, now + seconds(86_400));

        assert_eq!(machine.phase(now + seconds(86_400)), Phase::Rejecting);
    }
}
