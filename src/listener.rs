//! Accepts connections and hands each to the worker with the fewest live streams.
//!
//! The loop ends when the listener does, with the proxy or with its address in the configuration, and for no other reason: an accept that fails, because the process is out of file
//! descriptors or the peer has gone again, is counted and tried again after a short wait.

use std::{io, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

use crate::{
    config::Address,
    drain::{Phase, reached},
    serve::Front,
    worker::{Accepted, AcceptedSocket, Handle},
};

mod sockets;

use self::sockets::Accepting;
pub(crate) use self::sockets::{Bound, Sockets};

/// The first wait after a failed accept; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long clients may still take that have begun to connect when nobody else may begin: a round trip of any network. Less than
/// the second after which those who were turned away try again, and should find another process.
const HANDSHAKES: Duration = Duration::from_millis(500);

/// A socket that listens, and what its connections have in common.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Accepting,
    front: Arc<Front>,
}

impl Listener {
    /// Listens on the address of the settings.
    pub(crate) fn bind(front: Arc<Front>, sockets: &mut Sockets) -> io::Result<Self> {
        let socket = sockets.listen(&front.settings.address)?.register()?;
        Ok(Self { socket, front })
    }

    /// The address that was bound; the port is the real one where the configuration says 0.
    pub(crate) fn address(&self) -> io::Result<Address> {
        self.socket.address()
    }

    /// What the next connection is met with.
    pub(crate) fn front(&self) -> Arc<Front> {
        Arc::clone(&self.front)
    }

    /// Accepts until the listener drains. Connections are met with the last of `fronts`.
    pub(crate) async fn run(
        mut self,
        mut fronts: watch::Receiver<Arc<Front>>,
        workers: Arc<Vec<Handle>>,
    ) {
        let mut permits = Permits::default();
        let mut drained = pin!(reached(self.front.phases.clone(), Phase::Draining));
        let mut wait = FIRST_WAIT;
        loop {
            self.front = Arc::clone(&fronts.borrow_and_update());
            let most = self.front.settings.max_connections;
            let next = async {
                let permit = match permits.take_now(most) {
                    Some(permit) => permit,
                    None => {
                        self.front.stats.full.increment();
                        tracing::warn!(
                            listener = self.front.settings.name,
                            max_connections = most,
                            "as many connections are open as may be; the next wait for one to close"
                        );
                        permits.take(most).await
                    }
                };
                self.socket.accept().await.map(|socket| (socket, permit))
            };
            let accepted = tokio::select! {
                // Dropping a wait to accept loses no connection: one that was not accepted stays in the backlog.
                () = &mut drained => break,
                // Its sender goes with the listener's phases, which end the loop.
                Ok(()) = fronts.changed() => continue,
                accepted = next => accepted,
            };
            match accepted {
                Ok((socket, permit)) => {
                    wait = FIRST_WAIT;
                    self.hand_over(socket, permit, &workers);
                }
                Err(error) => {
                    self.front.stats.accept_errors.increment();
                    tracing::warn!(listener = self.front.settings.name, %error, "an accept failed; trying again");
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
        let turned_away = self.socket.turn_away().unwrap_or_else(|error| {
            tracing::warn!(listener = self.front.settings.name, %error, "clients that connect right now may be reset");
            false
        });
        self.empty(&mut permits, &workers);
        if turned_away {
            sleep(HANDSHAKES).await;
            self.empty(&mut permits, &workers);
        }
    }

    /// Accepts what waits already, before the socket is closed: those clients have connected, and whatever they say would
    /// come to nothing.
    fn empty(&self, permits: &mut Permits, workers: &[Handle]) {
        while let Some(permit) = permits.take_now(self.front.settings.max_connections)
            && let Some(socket) = self.socket.accept_last()
        {
            self.hand_over(socket, permit, workers);
        }
    }

    fn hand_over(&self, socket: AcceptedSocket, permit: OwnedSemaphorePermit, workers: &[Handle]) {
        self.front.stats.accepted.increment();
        let worker = workers.iter().min_by_key(|worker| worker.load());
        let worker = worker.expect("there is at least one worker; the configuration refuses none");
        worker.take(Accepted {
            socket,
            front: Arc::clone(&self.front),
            permit,
        });
    }
}

/// Bounds the connections that are open at once, by a number that may change while they are.
#[derive(Debug)]
struct Permits {
    all: Arc<Semaphore>,
    count: usize,
}

impl Default for Permits {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(0)),
            count: 0,
        }
    }
}

impl Permits {
    /// One of `most`, if it is free.
    fn take_now(&mut self, most: usize) -> Option<OwnedSemaphorePermit> {
        if let Some(more) = most.checked_sub(self.count) {
            self.all.add_permits(more);
            self.count = most;
        }
        let excess = u32::try_from(self.count - most).ok()?;
        if excess > 0 {
            self.all.try_acquire_many(excess).ok()?.forget();
            self.count = most;
        }
        Arc::clone(&self.all).try_acquire_owned().ok()
    }

    /// One of `most`, when it is free. Connections that have become too many stay open, and none is taken before enough of them have
    /// closed.
    async fn take(&mut self, most: usize) -> OwnedSemaphorePermit {
        if self.count > most {
            let excess = u32::try_from(self.count - most).unwrap_or(u32::MAX);
            let excess = self.all.acquire_many(excess).await;
            excess.expect("the semaphore is never closed").forget();
            self.count = most;
        }
        let permit = Arc::clone(&self.all).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, task::spawn};

    use super::*;

    #[test]
    fn fewer_connections_are_allowed_once_enough_have_closed() {
        let mut permits = Permits::default();
        let mut held: Vec<_> = (0..3).map(|_| permits.take_now(3).unwrap()).collect();

        assert!(permits.take_now(3).is_none());
        // Two are too many now, and one is in use: all three must close before the next is taken.
        for _ in 0..2 {
            assert!(permits.take_now(1).is_none());
            held.pop();
        }
        assert!(permits.take_now(1).is_none());
        held.pop();
        let one = permits.take_now(1);
        assert!(one.is_some() && permits.take_now(1).is_none());
    }

    #[test]
    fn wait_that_is_given_up_costs_nothing() {
        let mut permits = Permits::default();
        let held = [permits.take_now(2).unwrap(), permits.take_now(2).unwrap()];
        {
            let mut waiting = spawn(permits.take(1));
            assert_pending!(waiting.poll());
        }

        // The number was raised again meanwhile.
        assert!(permits.take_now(3).is_some());
        drop(held);
        let three: Vec<_> = (0..3).map_while(|_| permits.take_now(3)).collect();
        assert_eq!(three.len(), 3);
        assert!(permits.take_now(3).is_none());
    }
}
