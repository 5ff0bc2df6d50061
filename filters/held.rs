//! How many bytes streams make the process hold, one by one and all together.
//!
//! **Why.** Windows bound one stream and one connection. Nothing else bounds their number times their size: a thousand
//! clients that each keep to their windows can still fill the memory. So all that is held is added up, and at a limit the
//! process can refuse what is new and let go of what stands still.
//!
//! **How.** A stream books what it holds in its [`StreamContext`](crate::StreamContext): bytes that wait for the far side (its
//! [`Ledger`](crate::body::Ledger) does that), copies for another attempt, frames in a codec's send buffer. Each worker has a
//! [`Share`] of the [`Total`] and settles with it in steps of 64 KiB, so that workers do not write to one cache line for
//! each chunk; the total is wrong by one step a worker at most.

use std::sync::{
    Arc,
    atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// A worker settles with the total when it owes it this much.
const STEP: usize = 64 * 1024;

/// The most that a limit can be; the sums stay far from their ends.
const MOST: usize = isize::MAX as usize / 2;

/// What all streams of the process hold, and the most that they should.
#[derive(Debug)]
pub struct Total {
    held: AtomicUsize,
    limit: AtomicUsize,
    nearing: Notify,
}

/// One worker's part of the [`Total`].
#[derive(Debug)]
pub struct Share {
    total: Arc<Total>,
    /// Booked by the worker, and not by the total so far.
    unsettled: AtomicIsize,
}

/// What one stream holds, and what it has let go of.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    held: AtomicUsize,
    moved: AtomicU64,
    /// What had moved when somebody last asked.
    seen: AtomicU64,
    share: Option<Arc<Share>>,
}

// === impl Total ===

impl Default for Total {
    /// Nothing is held yet, and there is no limit.
    fn default() -> Self {
        Self {
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(MOST),
            nearing: Notify::new(),
        }
    }
}

impl Total {
    /// Nothing is held yet, and `limit` bytes may be.
    pub fn new(limit: usize) -> Arc<Self> {
        let total = Self::default();
        total.set_limit(limit);
        Arc::new(total)
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        // A release may be settled before the booking that it is of, by another thread; so it can be below zero for a moment.
        self.held.load(Relaxed).cast_signed().max(0).cast_unsigned()
    }

    /// The most that should be held.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes the most that should be held.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit.min(MOST), Relaxed);
        self.nearing.notify_waiters();
    }

    /// From here on nothing new is taken: seven eighths of the limit.
    pub fn brink(&self) -> usize {
        let limit = self.limit();
        limit - limit / 8
    }

    /// How much is held beyond three quarters of the limit, where there is room again.
    pub fn too_much(&self) -> usize {
        let limit = self.limit();
        self.held().saturating_sub(limit - limit / 4)
    }

    /// Whether so much is held that nothing new should be taken.
    pub fn is_near(&self) -> bool {
        self.held() >= self.brink()
    }

    /// Ready when so much is held that nothing new should be taken.
    pub async fn nears(&self) {
        loop {
            let nearing = self.nearing.notified();
            if self.is_near() {
                return;
            }
            nearing.await;
        }
    }

    fn add(&self, amount: isize) {
        let before = self.held.fetch_add(amount.cast_unsigned(), Relaxed);
        let brink = self.brink();
        let after = before.wrapping_add_signed(amount);
        if amount > 0 && before < brink && after >= brink {
            self.nearing.notify_waiters();
        }
    }
}

// === impl Share ===

impl Share {
    /// Of a worker that has booked nothing yet.
    pub fn new(total: Arc<Total>) -> Arc<Self> {
        Arc::new(Self {
            total,
            unsettled: AtomicIsize::new(0),
        })
    }

    /// What it is a share of.
    pub fn total(&self) -> &Arc<Total> {
        &self.total
    }

    fn add(&self, amount: isize) {
        let unsettled = self.unsettled.fetch_add(amount, Relaxed) + amount;
        if unsettled.unsigned_abs() >= STEP {
            self.total.add(self.unsettled.swap(0, Relaxed));
        }
    }
}

// === impl Holding ===

impl Holding {
    pub(crate) fn new(share: Option<Arc<Share>>) -> Self {
        Self {
            share,
            ..Self::default()
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    pub(crate) fn share(&self) -> Option<&Arc<Share>> {
        self.share.as_ref()
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Relaxed);
        if let Some(share) = &self.share {
            share.add(bytes.cast_signed());
        }
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
        self.moved.fetch_add(bytes as u64, Relaxed);
        if let Some(share) = &self.share {
            share.add(-bytes.cast_signed());
        }
    }

    /// What was let go of since this was last asked.
    pub(crate) fn moved_since(&self) -> u64 {
        let moved = self.moved.load(Relaxed);
        moved - self.seen.swap(moved, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task::spawn};

    use super::*;

    #[test]
    fn what_streams_hold_is_one_sum_within_a_step_for_each_worker() {
        let total = Total::new(1 << 30);
        let shares = [
            Share::new(Arc::clone(&total)),
            Share::new(Arc::clone(&total)),
        ];
        let streams: Vec<_> = (0..100)
            .map(|index| Holding::new(Some(Arc::clone(&shares[index % 2]))))
            .collect();

        for stream in &streams {
            stream.add(10_000);
        }
        assert!(total.held().abs_diff(1_000_000) < 2 * STEP);
        for stream in &streams {
            stream.remove(10_000);
        }

        assert!(total.held() < 2 * STEP, "{}", total.held());
        assert_eq!(streams[0].held(), 0);
    }

    #[test]
    fn stream_tells_what_has_moved_since_the_last_time() {
        let stream = Holding::default();
        stream.add(100);

        assert_eq!(stream.moved_since(), 0);
        stream.remove(30);
        assert_eq!((stream.held(), stream.moved_since()), (70, 30));
        assert_eq!(stream.moved_since(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_hears_that_the_limit_is_near() {
        let total = Total::new(8 * STEP);
        let stream = Holding::new(Some(Share::new(Arc::clone(&total))));
        let mut waiting = spawn(total.nears());

        stream.add(6 * STEP);
        assert_pending!(waiting.poll());
        stream.add(STEP);

        assert!(waiting.is_woken());
        assert_ready!(waiting.poll());
        assert!(total.is_near());
    }

    #[tokio::test]
    async fn lower_limit_is_near_at_once() {
        let total = Total::new(100 * STEP);
        Holding::new(Some(Share::new(Arc::clone(&total)))).add(10 * STEP);
        let mut waiting = spawn(total.nears());
        assert_pending!(waiting.poll());

        total.set_limit(10 * STEP);

        assert_ready!(waiting.poll());
    }
}
