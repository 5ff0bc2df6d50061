//! Notices a far side that takes nothing while bytes wait for it: of a stream, and of a whole connection.
//!
//! No timer is touched for each byte. It is set when something has waited for a whole turn of the worker, and when it fires,
//! it looks whether anything has moved since. So a stall is noticed after one to two times the limit, and what waits
//! only for its connection's next write costs no timer at all.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use crate::{telemetry::ClusterStats, transport::Transport};

/// Ready once something has waited for `limit` and too little has moved.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    /// Fewer bytes are too few.
    least: u64,
    set: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    timer: Pin<Box<Sleep>>,
    /// What had moved when the timer was set.
    before: u64,
    /// Since then, there was a time when nothing waited. What has moved tells nothing then.
    rested: bool,
}

/// Watches the writes of one stream.
#[derive(Debug)]
pub(crate) struct Stall {
    moved: u64,
    /// It has waited for a turn already, and nothing has moved.
    waited: bool,
    ends: Watch,
    marks: Option<Marks>,
}

/// The stalled streams of one connection, and the gauge of those of all.
#[derive(Debug)]
pub(crate) struct Stalled {
    here: Cell<usize>,
    /// Bytes of some stream have been granted.
    has_taken: Cell<bool>,
    stats: Arc<ClusterStats>,
}

/// Counts a stream among the stalled ones of its connection while it is one.
#[derive(Debug)]
struct Marks {
    watch: Watch,
    stalled: Rc<Stalled>,
    marked: bool,
}

/// Watches the writes of one connection.
#[derive(Debug)]
pub(crate) struct StallWatch(Watch);

// === impl Watch ===

impl Watch {
    /// Zero never ends.
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            least: 1,
            set: None,
        }
    }

    /// `moved` grows with every byte that the far side takes.
    fn poll(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<()> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        loop {
            let limit = self.limit;
            let wait = self.set.get_or_insert_with(|| Wait {
                timer: Box::pin(sleep(limit)),
                before: moved,
                rested: false,
            });
            ready!(wait.timer.as_mut().poll(cx));
            if !wait.rested && moved - wait.before < self.least {
                return Poll::Ready(());
            }
            self.set = None;
        }
    }

    /// Nothing waits now.
    fn rest(&mut self) {
        if let Some(wait) = &mut self.set {
            wait.rested = true;
        }
    }
}

// === impl Stall ===

impl Stall {
    /// Ends a stream after `limit`; zero waits for ever.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            moved: 0,
            waited: false,
            ends: Watch::new(limit),
            marks: None,
        }
    }

    /// What moves in that time must be `least` bytes.
    #[must_use]
    pub(crate) fn at_least(mut self, least: u64) -> Self {
        self.ends.least = least;
        self
    }

    /// Besides, counts the stream in `stalled` from `after` on, until its bytes move again.
    #[must_use]
    pub(crate) fn marking(mut self, stalled: Rc<Stalled>, after: Duration) -> Self {
        self.marks = Some(Marks {
            watch: Watch::new(after),
            stalled,
            marked: false,
        });
        self
    }

    /// Notes bytes that the far side has taken.
    pub(crate) fn moved(&mut self, count: usize) {
        self.moved += count as u64;
        self.waited = false;
        if let Some(marks) = &mut self.marks {
            marks.stalled.has_taken.set(true);
            marks.mark(false);
        }
    }

    /// Nothing waits now, but more may come.
    pub(crate) fn rest(&mut self) {
        self.ends.rest();
    }

    /// All has moved: no timer is wanted any more.
    pub(crate) fn settle(&mut self) {
        self.ends.set = None;
        self.marks = None;
    }

    /// Whether what waits does so for longer than for its connection's next turn.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited
    }

    /// Ready with the limit once it has passed. To be polled while bytes wait.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        if !std::mem::replace(&mut self.waited, true) {
            // Behind the connections that may help it, if they have news.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(marks) = &mut self.marks
            && !marks.marked
            && marks.watch.poll(cx, self.moved).is_ready()
        {
            marks.mark(true);
        }
        self.ends.poll(cx, self.moved).map(|()| self.ends.limit)
    }
}

// === impl Stalled ===

impl Stalled {
    pub(crate) fn new(stats: Arc<ClusterStats>) -> Self {
        Self {
            here: Cell::new(0),
            has_taken: Cell::new(false),
            stats,
        }
    }

    /// Whether the connection has any.
    pub(crate) fn any(&self) -> bool {
        self.here.get() > 0
    }

    /// Whether the far side will most likely take a few bytes of one more stream.
    pub(crate) fn takes_more(&self) -> bool {
        self.has_taken.get() && !self.any()
    }

    fn count(&self, more: bool) {
        if more {
            self.here.set(self.here.get() + 1);
            self.stats.stalled_streams.increment();
        } else {
            self.here.set(self.here.get() - 1);
            self.stats.stalled_streams.decrement();
        }
    }
}

// === impl Marks ===

impl Marks {
    fn mark(&mut self, stalled: bool) {
        if std::mem::replace(&mut self.marked, stalled) != stalled {
            self.stalled.count(stalled);
            self.watch.set = None;
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.mark(false);
    }
}

// === impl StallWatch ===

impl StallWatch {
    /// Zero never stalls.
    pub(crate) fn new(limit: Duration) -> Self {
        Self(Watch::new(limit))
    }

    /// What moves in that time must be `least` bytes.
    #[must_use]
    pub(crate) fn at_least(mut self, least: u64) -> Self {
        self.0.least = least;
        self
    }

    /// Ready once the socket has taken too little of what waits for the limit.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, transport: &Transport) -> Poll<()> {
        match transport.write_progress() {
            Some(written) => self.0.poll(cx, written),
            // A timer that is left running fires once and finds nothing stuck.
            None => {
                self.0.rest();
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tokio_test::{assert_pending, assert_ready, task::spawn};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn stream_that_takes_nothing_stalls() {
        let mut stall = Stall::new(60 * SECOND);
        let mut poll = spawn(std::future::poll_fn(move |cx| stall.poll(cx)));

        assert_pending!(poll.poll());
        assert!(poll.is_woken(), "it looks again behind its connection");
        assert_pending!(poll.poll());
        advance(61 * SECOND).await;

        assert_eq!(assert_ready!(poll.poll()), 60 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn one_byte_in_time_is_enough() {
        let mut stall = Stall::new(60 * SECOND);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());

        for _ in 0..5 {
            assert!(stall.poll(&mut cx).is_pending());
            assert!(stall.poll(&mut cx).is_pending());
            advance(40 * SECOND).await;
            stall.moved(1);
        }

        assert!(stall.poll(&mut cx).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn trickle_below_the_least_progress_stalls() {
        let mut stall = Stall::new(60 * SECOND).at_least(1000);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());

        assert!(stall.poll(&mut cx).is_pending());
        assert!(stall.poll(&mut cx).is_pending());
        advance(30 * SECOND).await;
        stall.moved(999);
        assert!(stall.poll(&mut cx).is_pending());
        assert!(stall.poll(&mut cx).is_pending());
        advance(31 * SECOND).await;

        assert!(stall.poll(&mut cx).is_ready());
    }

    /// Who has little to send makes little progress.
    #[tokio::test(start_paused = true)]
    async fn stream_on_which_nothing_waited_for_a_while_has_not_stalled() {
        let mut stall = Stall::new(60 * SECOND).at_least(1000);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let wait = |stall: &mut Stall, cx: &mut Context<'_>| {
            assert!(stall.poll(cx).is_pending());
            assert!(stall.poll(cx).is_pending());
        };

        wait(&mut stall, &mut cx);
        stall.moved(1);
        stall.rest();
        advance(61 * SECOND).await;
        wait(&mut stall, &mut cx);
        advance(59 * SECOND).await;
        wait(&mut stall, &mut cx);

        advance(2 * SECOND).await;
        assert!(stall.poll(&mut cx).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_stream_is_marked_until_its_bytes_move() {
        let stats = Arc::<ClusterStats>::default();
        let stalled = Rc::new(Stalled::new(Arc::clone(&stats)));
        let mut stall = Stall::new(Duration::ZERO).marking(Rc::clone(&stalled), SECOND);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());

        assert!(stall.poll(&mut cx).is_pending());
        assert!(stall.poll(&mut cx).is_pending());
        advance(2 * SECOND).await;
        assert!(stall.poll(&mut cx).is_pending());
        assert!(stalled.any());
        assert_eq!(stats.stalled_streams.get(), 1);

        stall.moved(1);
        assert!(!stalled.any());

        assert!(stall.poll(&mut cx).is_pending());
        assert!(stall.poll(&mut cx).is_pending());
        advance(2 * SECOND).await;
        assert!(stall.poll(&mut cx).is_pending());
        drop(stall);
        assert!(!stalled.any());
    }
}
