//! An endpoint as the whole process knows it: where it is, how much it carries, and whether it can take more.
//!
//! One object an endpoint, shared by all workers and by whoever looks after its health. All that changes is an atomic, so
//! that a choice between endpoints takes no lock. Whoever learns something says it here:
//!
//! - the pools say that a dial has failed or succeeded (`Endpoint::unreachable`, `Endpoint::reached`), and how many streams
//!   there are;
//! - whoever checks its health says [`Endpoint::set_healthy`];
//! - whoever judges its streams says [`Endpoint::eject`].
//!
//! An endpoint that is new among others, or that comes back, begins with a small share of the streams, which grows to the full
//! one in the course of `slow_start`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::config::Address;

/// How long an endpoint is passed over after a dial has failed.
pub(crate) const PASS_OVER: Duration = Duration::from_secs(1);

/// The share with which a slow start begins: enough that it begins at all.
const FIRST_SHARE: f64 = 0.1;

/// One endpoint of a cluster.
pub struct Endpoint {
    address: Address,
    weight: AtomicU32,
    streams: AtomicUsize,
    unhealthy: AtomicBool,
    ejected: Until,
    /// Streams that ended badly, one after another.
    bad_ends: AtomicU32,
    /// Times that it was taken out since a stream went well.
    ejections: AtomicU32,
    unreachable: Until,
    warming: Until,
    slow_start: Duration,
    /// What times are counted from.
    epoch: Instant,
}

/// A moment that is to come, or none.
#[derive(Default)]
struct Until(AtomicU64);

/// What keeps streams from an endpoint, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes its share.
    Available,
    /// It takes a share that still grows.
    Warming,
    /// Its health checks fail.
    Unhealthy,
    /// Its streams ended badly.
    Ejected,
    /// A dial has just failed.
    Unreachable,
}

/// One stream that is open at an endpoint, or waits for a place there, for as long as it does.
#[derive(Debug)]
pub(crate) struct Live(Arc<Endpoint>);

// === impl State ===

impl State {
    /// What the operator reads.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Warming => "warming",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Unreachable => "unreachable",
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// One that takes its full share at once.
    pub fn new(address: Address, weight: u32, slow_start: Duration) -> Self {
        Self {
            address,
            weight: AtomicU32::new(weight),
            streams: AtomicUsize::new(0),
            unhealthy: AtomicBool::new(false),
            ejected: Until::default(),
            bad_ends: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            unreachable: Until::default(),
            warming: Until::default(),
            slow_start,
            epoch: Instant::now(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How much it takes, in proportion to the others.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Sets the weight, and tells what it was.
    pub(crate) fn set_weight(&self, weight: u32) -> u32 {
        self.weight.swap(weight, Relaxed)
    }

    /// Streams that are open or wait, of all workers.
    pub fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// Streams for each part of the weight that counts now.
    pub fn load(&self) -> f64 {
        self.streams() as f64 / (f64::from(self.weight()) * self.share())
    }

    /// Counts a stream for as long as the answer is kept.
    pub(crate) fn live(self: &Arc<Self>) -> Live {
        self.streams.fetch_add(1, Relaxed);
        Live(Arc::clone(self))
    }

    /// Whether it may get new streams.
    pub fn is_available(&self) -> bool {
        !self.unhealthy.load(Relaxed)
            && !self.is_before(&self.ejected)
            && !self.is_before(&self.unreachable)
    }

    /// What keeps streams from it.
    pub fn state(&self) -> State {
        if self.unhealthy.load(Relaxed) {
            State::Unhealthy
        } else if self.is_before(&self.ejected) {
            State::Ejected
        } else if self.is_before(&self.unreachable) {
            State::Unreachable
        } else if self.is_before(&self.warming) {
            State::Warming
        } else {
            State::Available
        }
    }

    /// The part of its weight that counts: less than 1 in the course of a slow start.
    pub fn share(&self) -> f64 {
        let left = self.left(&self.warming);
        if left.is_zero() {
            return 1.0;
        }
        (1.0 - left.as_secs_f64() / self.slow_start.as_secs_f64()).max(FIRST_SHARE)
    }

    /// Begins a slow start.
    pub(crate) fn warm_up(&self) {
        if !self.slow_start.is_zero() {
            self.set(&self.warming, self.slow_start);
        }
    }

    /// Takes it out or in again, as its health checks say; tells whether that was news.
    pub fn set_healthy(&self, healthy: bool) -> bool {
        let news = self.unhealthy.swap(!healthy, Relaxed) == healthy;
        if news && healthy {
            self.warm_up();
        }
        news
    }

    /// Takes it out for so long, and longer each further time until a stream goes well there; tells how long. It comes back slowly.
    pub fn eject(&self, first: Duration, longest: Duration) -> Duration {
        let times = self.ejections.fetch_add(1, Relaxed).saturating_add(1);
        let time = first.saturating_mul(times).min(longest);
        self.set(&self.ejected, time);
        if !self.slow_start.is_zero() {
            self.set(&self.warming, time + self.slow_start);
        }
        self.bad_ends.store(0, Relaxed);
        time
    }

    /// Whether its streams ended so badly that it is out.
    pub(crate) fn is_ejected(&self) -> bool {
        self.is_before(&self.ejected)
    }

    /// A stream ended badly there; tells how many have, one after another.
    pub(crate) fn went_badly(&self) -> u32 {
        self.bad_ends.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// A stream went well there.
    pub(crate) fn went_well(&self) {
        // Read first: all workers share the line of memory, and most streams go well.
        if self.bad_ends.load(Relaxed) != 0 {
            self.bad_ends.store(0, Relaxed);
        }
        // One that had begun before it was taken out says nothing of later ones.
        if self.ejections.load(Relaxed) != 0 && !self.is_ejected() {
            self.ejections.store(0, Relaxed);
        }
    }

    /// Remembers that a dial has failed: others are preferred for a while.
    pub(crate) fn unreachable(&self) {
        self.set(&self.unreachable, PASS_OVER);
    }

    /// Remembers that a dial has succeeded.
    pub(crate) fn reached(&self) {
        // Read first: all workers share the line of memory, and most dials follow one that has succeeded.
        if self.unreachable.0.load(Relaxed) != 0 {
            self.unreachable.0.store(0, Relaxed);
        }
    }

    /// Whether a dial has failed so recently that another is not worth its while.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.is_before(&self.unreachable)
    }

    fn set(&self, until: &Until, time: Duration) {
        let end = self.epoch.elapsed() + time;
        let millis = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
        until.0.store(millis, Relaxed);
    }

    fn is_before(&self, until: &Until) -> bool {
        !self.left(until).is_zero()
    }

    /// Reads the clock only if there is something to wait for.
    fn left(&self, until: &Until) -> Duration {
        match until.0.load(Relaxed) {
            0 => Duration::ZERO,
            millis => Duration::from_millis(millis).saturating_sub(self.epoch.elapsed()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, state, streams) = (&self.address, self.state(), self.streams());
        write!(f, "Endpoint({address}, {state:?}, {streams} streams)")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint(slow_start: Duration) -> Endpoint {
        Endpoint::new("127.0.0.1:1".parse().unwrap(), 1, slow_start)
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_that_cannot_be_dialed_is_passed_over_for_a_while() {
        let endpoint = endpoint(Duration::ZERO);

        endpoint.unreachable();
        assert_eq!(endpoint.state(), State::Unreachable);
        assert!(!endpoint.is_available());
        tokio::time::advance(PASS_OVER).await;
        assert!(endpoint.is_available());

        endpoint.unreachable();
        endpoint.reached();
        assert!(endpoint.is_available());
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_that_comes_back_begins_with_a_small_share_that_grows() {
        let endpoint = endpoint(10 * SECOND);
        assert_eq!(endpoint.share(), 1.0);

        endpoint.set_healthy(false);
        assert_eq!(endpoint.state(), State::Unhealthy);
        assert!(endpoint.set_healthy(true), "that is news");
        assert!(!endpoint.set_healthy(true), "and now it is not");

        assert_eq!(endpoint.state(), State::Warming);
        assert_eq!(endpoint.share(), FIRST_SHARE);
        tokio::time::advance(5 * SECOND).await;
        assert!((endpoint.share() - 0.5).abs() < 0.01);
        tokio::time::advance(5 * SECOND).await;
        assert_eq!(
            (endpoint.share(), endpoint.state()),
            (1.0, State::Available)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn ejected_endpoint_is_back_after_its_time_and_the_next_time_is_longer() {
        let endpoint = endpoint(Duration::ZERO);

        assert_eq!(endpoint.eject(30 * SECOND, 45 * SECOND), 30 * SECOND);
        assert_eq!(endpoint.state(), State::Ejected);
        endpoint.went_well();
        tokio::time::advance(30 * SECOND).await;
        assert!(endpoint.is_available());

        assert_eq!(endpoint.eject(30 * SECOND, 45 * SECOND), 45 * SECOND);
        tokio::time::advance(45 * SECOND).await;
        endpoint.went_well();
        assert_eq!(endpoint.eject(30 * SECOND, 45 * SECOND), 30 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn bad_ends_count_only_in_a_row() {
        let endpoint = endpoint(Duration::ZERO);

        assert_eq!((endpoint.went_badly(), endpoint.went_badly()), (1, 2));
        endpoint.went_well();
        assert_eq!(endpoint.went_badly(), 1);
        endpoint.eject(SECOND, SECOND);
        assert_eq!(endpoint.went_badly(), 1);
    }

    #[test]
    fn streams_count_by_weight() {
        let endpoint = Arc::new(Endpoint::new("unix:x".parse().unwrap(), 4, Duration::ZERO));

        let one = endpoint.live();
        let _other = endpoint.live();
        assert_eq!((endpoint.streams(), endpoint.load()), (2, 0.5));
        drop(one);
        assert_eq!(endpoint.streams(), 1);
    }
}
