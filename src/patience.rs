//! How long something may take, by the time in which this worker could have noticed that it was done.
//!
//! **Why.** After a restart everybody comes back at once, and for some seconds each worker has more to do than it comes round to. An
//! answer that has lain in a socket for so long is not late: nobody has looked. A clock that runs on meanwhile refuses clients and
//! gives up upstreams that have done all that was asked of them, and those come back and make it worse.
//!
//! **How.** A limit is counted in slices. What has become late is looked at only after the work itself was polled, and the next
//! slice begins when the worker has come round, not when the last one was due. So what the worker was late by is not counted, and
//! nothing is given up before it was looked at as many times as there are slices.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// Slices of a limit. A dial of a TLS connection takes four turns of its worker: it has connected, two flights have come, and the
/// peer's settings.
pub(crate) const SLICES: u32 = 8;

/// What is left of a limit.
#[derive(Debug)]
pub(crate) struct Patience {
    slice: Duration,
    left: u32,
    /// Of the present slice, which begins with the first look.
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl Patience ===

impl Patience {
    /// It begins to run when it is first looked at.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            slice: limit / SLICES,
            left: SLICES,
            timer: None,
        }
    }

    /// What `work` comes to, or `None` if it takes longer than what is left.
    pub(crate) async fn with<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_end(cx).map(|()| None),
        })
        .await
    }

    /// Ready when nothing is left. To be polled behind the work.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.left > 0 {
            let slice = self.slice;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(slice)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            self.left -= 1;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{Instant, advance};
    use tokio_test::{assert_pending, assert_ready, assert_ready_eq, task::spawn};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_in_time() {
        let begun = Instant::now();

        let output = Patience::new(SECOND).with(pending::<()>()).await;

        assert_eq!(output, None);
        let taken = begun.elapsed();
        assert!((SECOND..SECOND * 11 / 10).contains(&taken), "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_worker_did_not_come_round_is_not_counted() {
        let mut patience = Patience::new(SECOND);
        let mut wait = spawn(patience.with(pending::<()>()));
        assert_pending!(wait.poll());

        // Each turn takes a minute: only the last of them is one too many.
        for _ in 1..SLICES {
            advance(60 * SECOND).await;
            assert_pending!(wait.poll());
        }
        advance(60 * SECOND).await;

        assert_ready_eq!(wait.poll(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_is_never_late() {
        let mut patience = Patience::new(SECOND);
        let mut turns = 0;
        // A dial: it has something to do in several turns, and each comes late.
        let dial = poll_fn(|_| {
            turns += 1;
            if turns < SLICES {
                Poll::Pending
            } else {
                Poll::Ready("done")
            }
        });
        let mut wait = spawn(patience.with(dial));

        for _ in 1..SLICES {
            assert_pending!(wait.poll());
            advance(60 * SECOND).await;
        }

        assert_ready_eq!(wait.poll(), Some("done"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_limit_may_hold_for_one_thing_after_another() {
        let mut patience = Patience::new(SECOND);
        let begun = Instant::now();

        assert_eq!(patience.with(sleep(SECOND / 2)).await, Some(()));
        assert_eq!(patience.with(sleep(SECOND)).await, None);
        let taken = begun.elapsed();
        assert!((SECOND..SECOND * 12 / 10).contains(&taken), "{taken:?}");

        let mut over = spawn(poll_fn(|cx| patience.poll_end(cx)));
        assert_ready!(over.poll());
    }
}
