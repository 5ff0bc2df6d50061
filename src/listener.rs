//! Accepts connections and hands each to the worker with the fewest live streams.
//!
//! The loop ends when the proxy drains, and for no other reason: an accept that fails, because the process is out of file
//! descriptors or the peer has gone again, is counted and tried again after a short wait.

use std::{
    io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path, pin::pin, sync::Arc, time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, UnixListener, UnixSocket},
    sync::{Semaphore, watch},
    time::sleep,
};

use crate::{
    config::Address,
    drain::{Phase, reached},
    serve::Front,
    upstream::connect::prepare,
    worker::{Accepted, AcceptedSocket, Handle},
};

/// The first wait after a failed accept; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Connections that the kernel keeps for us before we accept them. When they are more, clients are left to try again, which
/// takes them a second and longer; so this has room for all clients of a busy proxy that come back at once. The kernel lowers
/// it to its own limit (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Bound,
    front: Arc<Front>,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds the address.
    pub(crate) async fn bind(front: Arc<Front>) -> io::Result<Self> {
        let socket = match &front.settings.address {
            Address::Tcp(address) => {
                let socket = match address {
                    SocketAddr::V4(_) => TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => TcpSocket::new_v6()?,
                };
                // The connections of the process before this one may linger.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                Bound::Tcp(socket.listen(BACKLOG)?)
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                Bound::Unix(socket.listen(BACKLOG)?)
            }
            // The configuration gives listeners no such address.
            Address::Host(..) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { socket, front })
    }

    /// The address that was bound; the port is the real one where the configuration says 0.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match &self.socket {
            Bound::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            Bound::Unix(_) => Ok(self.front.settings.address.clone()),
        }
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
                self.accept().await.map(|socket| (socket, permit))
            };
            let accepted = tokio::select! {
                // Dropping a wait to accept loses no connection: one that was not accepted stays in the backlog.
                _ = &mut drained => break,
                accepted = next => accepted,
            };
            match accepted {
                Ok((socket, permit)) => {
                    wait = FIRST_WAIT;
                    self.front.stats.accepted.increment();
                    let worker = workers.iter().min_by_key(|worker| worker.load());
                    let worker = worker
                        .expect("there is at least one worker; the configuration refuses none");
                    worker.take(Accepted {
                        socket,
                        front: Arc::clone(&self.front),
                        permit,
                    });
                }
                Err(error) => {
                    self.front.stats.accept_errors.increment();
                    tracing::warn!(listener = self.front.settings.name, %error, "an accept failed; trying again");
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
        if let (Bound::Unix(_), Address::Unix(path)) = (&self.socket, &self.front.settings.address)
        {
            let _ = std::fs::remove_file(path);
        }
    }

    async fn accept(&self) -> io::Result<AcceptedSocket> {
        Ok(match &self.socket {
            Bound::Tcp(listener) => {
                AcceptedSocket::Tcp(prepare(listener.accept().await?.0)?.into_std()?)
            }
            Bound::Unix(listener) => AcceptedSocket::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

/// Removes a socket file that nobody listens on: a process that was killed leaves it behind.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            std::fs::remove_file(path)
        }
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is in its place",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
