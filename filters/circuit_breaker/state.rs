//! A breaker's decision, as a value without clock, lock or waker.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::Config;
use crate::units;

/// Told to those who come while others probe: nobody knows when a probe ends, so they are asked to come back soon.
const PROBING_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a probe may go without the head of an answer before its place goes to another. A healthy upstream begins to answer
/// most streams sooner; and of the others one at a time keeps everybody out for no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a probe must have lived behind the head of its answer to have succeeded. An upstream that is still down takes
/// streams and breaks them off at once, or does not take them.
const LIVED: Duration = Duration::from_secs(1);

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
    probes: Probes,
}

/// The probes of this generation that have not ended, by the number of the ticket.
#[derive(Debug, Default)]
struct Probes {
    live: BTreeMap<u64, Probe>,
    last: u64,
    /// The first time at which one of them is due.
    next_due: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    stage: Stage,
    /// When it goes on to the next stage by itself.
    due: Option<Instant>,
}

/// How far a probe has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come of it yet.
    Asked,
    /// Nothing has come for so long that its place went to another. Its end counts all the same.
    Overdue,
    /// The answer has begun.
    Answered,
    /// It has lived long enough to be a success, whatever comes.
    Lived,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All may pass. The counts begin anew at `clears_at`.
    Admitting { clears_at: Option<Instant> },
    /// None may pass.
    Rejecting { until: Instant },
    /// A few may pass, and decide for all. How many have is in the counts. Where none has failed until `ends_at`, nothing speaks
    /// against the upstream any more: clients that leave or hang must not keep the others out for ever.
    Probing { ends_at: Instant },
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
    probe: Option<u64>,
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
            state: State::Rejecting { until: now },
            generation: 0,
            counts: Counts::default(),
            probes: Probes::default(),
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
            State::Probing { .. } if self.counts.requests >= self.wanted() => Err(Rejection {
                phase: Phase::Probing,
                retry_after: PROBING_RETRY_AFTER,
            }),
            State::Admitting { .. } => Ok(self.ticket(None)),
            State::Probing { .. } => {
                let probe = self.probes.begin(now);
                Ok(self.ticket(Some(probe)))
            }
        }
    }

    fn ticket(&mut self, probe: Option<u64>) -> Ticket {
        self.counts.requests += 1;
        Ticket {
            generation: self.generation,
            probe,
        }
    }

    /// Notes that the answer to a probe has begun, and not with a failure.
    pub fn answered(&mut self, ticket: &Ticket, now: Instant) {
        self.catch_up(now);
        if let Some(probe) = ticket.probe
            && ticket.generation == self.generation
            && self.probes.answered(probe, now)
        {
            // It has its place again.
            self.counts.requests += 1;
        }
    }

    /// Judges by the end of a stream that was admitted.
    pub fn report(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.catch_up(now);
        if ticket.generation != self.generation {
            return;
        }
        let stage = ticket.probe.and_then(|probe| self.probes.end(probe));
        let counts = &mut self.counts;
        match (outcome, stage) {
            // It was judged when it had lived for long enough.
            (_, Some(Stage::Lived)) => return,
            (Outcome::Neutral, Some(Stage::Overdue)) => return,
            (Outcome::Neutral, _) => counts.requests = counts.requests.saturating_sub(1),
            (Outcome::Success, Some(Stage::Overdue)) => {
                counts.requests += 1;
                counts.succeed();
            }
            (Outcome::Success, _) => counts.succeed(),
            (Outcome::Failure, _) => {
                counts.total_failures += 1;
                counts.consecutive_failures += 1;
                counts.consecutive_successes = 0;
                let probing = matches!(self.state, State::Probing { .. });
                if probing || self.config.trip.holds(&self.counts) {
                    let until = later(now, self.config.timeout);
                    self.enter(State::Rejecting { until });
                }
            }
        }
        if self.has_recovered(now) {
            self.admit_all(now);
        }
    }

    /// The state at `now`, in which the next stream would find it.
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Admitting { .. } => Phase::Admitting,
            State::Rejecting { until } if now < until => Phase::Rejecting,
            State::Probing { .. } if self.has_recovered(now) => Phase::Admitting,
            State::Rejecting { .. } | State::Probing { .. } => Phase::Probing,
        }
    }

    /// The state that was last entered, whatever the clock says.
    pub(super) fn entered(&self) -> Phase {
        match self.state {
            State::Admitting { .. } => Phase::Admitting,
            State::Rejecting { .. } => Phase::Rejecting,
            State::Probing { .. } => Phase::Probing,
        }
    }

    /// Does what only the clock brings about.
    fn catch_up(&mut self, now: Instant) {
        match self.state {
            State::Admitting {
                clears_at: Some(clears_at),
            } if now >= clears_at => self.admit_all(now),
            State::Rejecting { until } if now >= until => {
                let ends_at = later(now, self.config.timeout);
                self.enter(State::Probing { ends_at });
            }
            State::Probing { .. } if self.has_recovered(now) => self.admit_all(now),
            State::Probing { .. } => {
                let Passed { overdue, lived } = self.probes.catch_up(now);
                self.counts.requests = self.counts.requests.saturating_sub(overdue);
                (0..lived).for_each(|_| self.counts.succeed());
            }
            _ => {}
        }
    }

    /// Whether the probes have shown that the upstream is there again, or that nothing speaks against it.
    fn has_recovered(&self, now: Instant) -> bool {
        let State::Probing { ends_at } = self.state else {
            return false;
        };
        let successes = self.counts.consecutive_successes + self.probes.passed(now).lived;
        successes >= self.wanted() || now >= ends_at
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
        self.probes = Probes::default();
    }

    /// How many probes are to end well.
    fn wanted(&self) -> u64 {
        self.config.max_requests.0.max(1)
    }
}

// === impl Ticket ===

impl Ticket {
    /// Whether much hangs on the stream.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

// === impl Counts ===

impl Counts {
    fn succeed(&mut self) {
        self.total_successes += 1;
        self.consecutive_successes += 1;
        self.consecutive_failures = 0;
    }
}

// === impl Probes ===

/// How many probes have gone on to another stage by the clock.
struct Passed {
    overdue: u64,
    lived: u64,
}

impl Probes {
    fn begin(&mut self, now: Instant) -> u64 {
        self.last += 1;
        self.set(self.last, Stage::Asked, now + PATIENCE);
        self.last
    }

    /// The answer to a probe has begun. Says whether that gives back a place that it had lost.
    fn answered(&mut self, probe: u64, now: Instant) -> bool {
        let stage = self.live.get(&probe).map(|probe| probe.stage);
        if let Some(Stage::Asked | Stage::Overdue) = stage {
            self.set(probe, Stage::Answered, now + LIVED);
        }
        stage == Some(Stage::Overdue)
    }

    fn end(&mut self, probe: u64) -> Option<Stage> {
        self.live.remove(&probe).map(|probe| probe.stage)
    }

    fn set(&mut self, probe: u64, stage: Stage, due: Instant) {
        let due = Some(due);
        self.live.insert(probe, Probe { stage, due });
        self.next_due = self.next_due.min(due).or(due);
    }

    /// Those that are due, and would be caught up with.
    fn passed(&self, now: Instant) -> Passed {
        let mut passed = Passed {
            overdue: 0,
            lived: 0,
        };
        if self.next_due.is_some_and(|due| due <= now) {
            let due = |probe: &&Probe| probe.due.is_some_and(|due| due <= now);
            for probe in self.live.values().filter(due) {
                match probe.stage {
                    Stage::Answered => passed.lived += 1,
                    _ => passed.overdue += 1,
                }
            }
        }
        passed
    }

    fn catch_up(&mut self, now: Instant) -> Passed {
        let passed = self.passed(now);
        if passed.overdue + passed.lived > 0 {
            for probe in self.live.values_mut() {
                if probe.due.take_if(|due| *due <= now).is_some() {
                    probe.stage = match probe.stage {
                        Stage::Answered => Stage::Lived,
                        _ => Stage::Overdue,
                    };
                }
            }
        }
        if self.next_due.is_some_and(|due| due <= now) {
            self.next_due = self.live.values().filter_map(|probe| probe.due).min();
        }
        passed
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
            ..Config::default()
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

    /// A machine that has tripped and may probe, at that time.
    fn probing(max_requests: u64) -> (Machine, Instant) {
        let (mut machine, now) = machine(max_requests, 0, "true");
        run(&mut machine, Outcome::Failure, now);
        (machine, now + seconds(10))
    }

    #[test]
    fn probe_that_has_answered_and_lived_admits_all_however_long_it_lasts() {
        let (mut machine, now) = probing(1);
        let probe = machine.admit(now).unwrap();

        machine.answered(&probe, now + seconds(3));
        assert!(machine.admit(now + seconds(3)).is_err());
        let almost = now + seconds(4) - Duration::from_nanos(1);
        assert_eq!(machine.phase(almost), Phase::Probing);

        assert_eq!(machine.phase(now + seconds(4)), Phase::Admitting);
        assert!(machine.admit(now + seconds(4)).is_ok());
        // What becomes of it is of a time that is over.
        machine.report(probe, Outcome::Failure, now + seconds(5));
        assert_eq!(machine.phase(now + seconds(5)), Phase::Admitting);
    }

    #[test]
    fn probe_that_fails_soon_after_its_head_has_failed() {
        let (mut machine, now) = probing(1);
        let probe = machine.admit(now).unwrap();

        machine.answered(&probe, now);
        machine.report(probe, Outcome::Failure, now + LIVED / 2);

        assert_eq!(machine.phase(now + LIVED), Phase::Rejecting);
    }

    #[test]
    fn place_of_a_probe_without_an_answer_goes_on() {
        let (mut machine, now) = probing(1);
        let hanging = machine.admit(now).unwrap();
        let almost = now + PATIENCE - Duration::from_nanos(1);
        assert!(machine.admit(almost).is_err());

        let now = now + PATIENCE;
        let other = machine.admit(now).unwrap();
        assert!(machine.admit(now).is_err(), "the place was given once");
        drop(hanging);
        machine.report(other, Outcome::Success, now);

        assert_eq!(machine.phase(now), Phase::Admitting);
    }

    #[test]
    fn probe_that_has_lost_its_place_is_heard_all_the_same() {
        let ends = [
            (Outcome::Success, Phase::Admitting),
            (Outcome::Failure, Phase::Rejecting),
            (Outcome::Neutral, Phase::Probing),
        ];
        for (outcome, phase) in ends {
            let (mut machine, now) = probing(1);
            let hanging = machine.admit(now).unwrap();
            let now = now + PATIENCE;
            let _other = machine.admit(now).unwrap();

            machine.report(hanging, outcome, now);

            assert_eq!(machine.phase(now), phase, "{outcome:?}");
            assert!(phase != Phase::Probing || machine.admit(now).is_err());
        }
    }

    #[test]
    fn late_answer_takes_its_place_again() {
        let (mut machine, now) = probing(2);
        let [first, second] = [(); 2].map(|()| machine.admit(now).unwrap());
        let now = now + PATIENCE;
        machine.answered(&first, now);

        let third = machine.admit(now).unwrap();
        assert!(machine.admit(now).is_err());
        machine.report(third, Outcome::Success, now);
        assert_eq!(machine.phase(now), Phase::Probing);

        assert_eq!(machine.phase(now + LIVED), Phase::Admitting);
        machine.report(second, Outcome::Neutral, now + LIVED);
        assert_eq!(machine.phase(now + LIVED), Phase::Admitting);
    }

    #[test]
    fn each_probe_is_counted_once() {
        let (mut machine, now) = probing(2);
        let first = machine.admit(now).unwrap();
        machine.answered(&first, now);
        let now = now + LIVED;
        let _second = machine.admit(now).unwrap();

        machine.report(first, Outcome::Success, now);

        assert_eq!(machine.phase(now), Phase::Probing);
        assert_eq!(machine.counts.consecutive_successes, 1);
    }

    #[test]
    fn probing_without_a_failure_does_not_last_for_ever() {
        let (mut machine, mut now) = probing(1);
        let ends_at = now + seconds(10);
        // Somebody who is always first, and never stays.
        while now < ends_at {
            let probe = machine.admit(now).unwrap();
            assert!(machine.admit(now).is_err());
            now += Duration::from_millis(100);
            machine.report(probe, Outcome::Neutral, now);
        }

        assert_eq!(machine.phase(now), Phase::Admitting);
        assert!(machine.admit(now).is_ok());
        assert!(machine.admit(now).is_ok());
    }
}
