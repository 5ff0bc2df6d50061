//! Accepts connections and hands each to the worker with the fewest live streams.
//!
//! The loop ends when the proxy drains, and for no other reason: an accept that fails, because the process is out of file
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

    /// Accepts until the proxy drains.
    pub(crate) async fn run(self, workers: Arc<Vec<Handle>>, phases: watch::Receiver<Phase>) {
        let permits = Arc::new(Semaphore::new(self.front.settings.max_connections));
        let mut drained = pin!(reached(phases, Phase::Draining));
        let mut wait = FIRST_WAIT;
        loop {
            let next = async {
                let permit = match Arc::clone(&permits).try_acquire_owned() {
                    Ok(permit) => permit,
                    Err(_) => {
                        self.front.stats.full.increment();
                        tracing::warn!(
                            listener = self.front.settings.name,
                            max_connections = self.front.settings.max_connections,
                            "as many connections are open as may be; the next wait for one to close"
                        );
                        Arc::clone(&permits)
                            .acquire_owned()
                            .await
                            .expect("the semaphore is never closed")
                    }
                };
                self.socket.accept().await.map(|socket| (socket, permit))
            };
            let accepted = tokio::select! {
                // Dropping a wait to accept loses no connection: one that was not accepted stays in the backlog.
                _ = &mut drained => break,
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
        self.empty(&permits, &workers);
        if turned_away {
            sleep(HANDSHAKES).await;
            self.empty(&permits, &workers);
        }
    }

    /// Accepts what waits already, before the socket is closed: those clients have connected, and whatever they say would
    /// come to nothing.
    fn empty(&self, permits: &Arc<Semaphore>, workers: &[Handle]) {
        while let Ok(permit) = Arc::clone(permits).try_acquire_owned()
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
