//! Asks a silent peer whether it is still there, and tells when it is not.
//!
//! **Why.** A peer that has frozen, or lies behind a load balancer that has lost it, is silent as a peer is that has nothing to say.
//! Its streams would wait for ever, and nobody behind the proxy can find out, since PINGs do not pass a proxy.
//!
//! **How.** A PING is sent when nothing was read for an interval. Whatever is read from then on, its answer or not, is a sign of life; if
//! nothing is for the whole timeout, the peer is given up. No timer is touched for each byte: it is set once an interval, and when it
//! fires, it looks whether anything was read meanwhile. So the PING comes after one to two intervals of silence, and
//! never sooner than an interval after the last, which is what gRPC's servers hold their clients to.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use h2::{Ping, PingPong};
use tokio::time::{Sleep, sleep};

use crate::config;

/// Watches over one connection.
#[derive(Debug)]
pub(crate) struct Keepalive {
    settings: config::Keepalive,
    timer: Option<Pin<Box<Sleep>>>,
    /// What had been read when the timer was set.
    read: u64,
    /// The timer is that of an answer.
    asked: bool,
}

// === impl Keepalive ===

impl Keepalive {
    pub(crate) fn new(settings: &config::Keepalive) -> Self {
        Self {
            settings: settings.clone(),
            timer: None,
            read: 0,
            asked: false,
        }
    }

    /// Ready once the peer has left a PING without an answer. `read` grows with every byte that comes; `ask` sends the PING, and
    /// is not called while it is not `wanted`.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        read: u64,
        wanted: bool,
        ask: impl FnOnce(),
    ) -> Poll<()> {
        if self.settings.interval.is_zero() {
            return Poll::Pending;
        }
        if self.asked && self.read != read {
            self.asked = false;
            self.timer = None;
        }
        let mut ask = Some(ask);
        loop {
            let wait = if self.asked {
                self.settings.timeout
            } else {
                self.settings.interval
            };
            let timer = self.timer.get_or_insert_with(|| {
                self.read = read;
                Box::pin(sleep(wait))
            });
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            let silent = self.read == read;
            if silent && self.asked {
                return Poll::Ready(());
            }
            self.asked = silent && wanted;
            if self.asked
                && let Some(ask) = ask.take()
            {
                ask();
            }
        }
    }
}

/// Sends a PING, unless one is on its way: then the answer to that will do.
pub(crate) fn ping(ping: &mut PingPong) {
    // HTTP/2 as `h2` speaks it has one PING at a time, and the answer to the last has to be taken before the next.
    let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
    let _ = ping.send_ping(Ping::opaque());
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use tokio::time::advance;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    /// A connection whose PINGs are counted.
    struct Watched {
        keepalive: task::Spawn<Keepalive>,
        read: u64,
        wanted: bool,
        pings: Cell<usize>,
    }

    impl Watched {
        fn new() -> Self {
            let settings = config::Keepalive {
                interval: MINUTE,
                timeout: SECOND,
            };
            Self {
                keepalive: task::spawn(Keepalive::new(&settings)),
                read: 0,
                wanted: true,
                pings: Cell::new(0),
            }
        }

        async fn after(&mut self, time: Duration) -> Poll<()> {
            advance(time).await;
            let Self {
                keepalive,
                read,
                wanted,
                pings,
            } = self;
            let ask = || pings.set(pings.get() + 1);
            keepalive.enter(|cx, mut it| it.poll(cx, *read, *wanted, ask))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn peer_without_an_answer_is_given_up() {
        let mut it = Watched::new();

        assert_pending!(it.after(Duration::ZERO).await);
        assert_pending!(it.after(MINUTE).await);
        assert_eq!(it.pings.get(), 1);
        assert_pending!(it.after(SECOND / 2).await);
        assert_ready!(it.after(SECOND).await);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_read_is_an_answer() {
        let mut it = Watched::new();
        assert_pending!(it.after(Duration::ZERO).await);
        assert_pending!(it.after(MINUTE).await);

        it.read += 1;

        assert_pending!(it.after(SECOND).await);
        assert_pending!(it.after(MINUTE).await);
        assert_eq!(it.pings.get(), 2);
        assert_ready!(it.after(SECOND).await);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_speaks_is_not_asked() {
        let mut it = Watched::new();
        assert_pending!(it.after(Duration::ZERO).await);

        for _ in 0..10 {
            it.read += 1;
            assert_pending!(it.after(MINUTE).await);
        }

        assert_eq!(it.pings.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_is_not_asked_while_nobody_wants_to_know() {
        let mut it = Watched::new();
        it.wanted = false;
        assert_pending!(it.after(Duration::ZERO).await);

        for _ in 0..10 {
            assert_pending!(it.after(MINUTE).await);
        }

        assert_eq!(it.pings.get(), 0);
        it.wanted = true;
        assert_pending!(it.after(MINUTE).await);
        assert_eq!(it.pings.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_interval_between_two_pings() {
        let mut it = Watched::new();
        assert_pending!(it.after(Duration::ZERO).await);

        // Every PING is answered at once, and nothing else ever comes.
        for _ in 0..60 * 60 {
            let before = it.pings.get();
            assert_pending!(it.after(SECOND).await);
            it.read += (it.pings.get() - before) as u64;
        }

        assert!((29..=60).contains(&it.pings.get()), "{}", it.pings.get());
    }
}
