//! One worker: a thread with a runtime of its own, upstream pools of its own, and chains of its own.
//!
//! Both connections of a stream live on one worker, so nothing on the way of a byte is shared between threads. What crosses
//! threads is a socket when it is handed over, a configuration when it is another, and counters when they are read.
//!
//! [`snapshot`] is what a configuration means to one worker, and [`reclaim`] what it does when too much is held.

use std::{
    cell::RefCell,
    io,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use http::Request;
use thalweg_filters::{
    Body, Error, Side, StreamContext, chain::ChainFuture, deadline::DeadlineFuture, held::Share,
};
use thalweg_proto::status::Code;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::{self, LocalOptions},
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::{JoinSet, spawn_local},
    time::timeout,
};

use crate::{
    bindings::Shared,
    config::{Config, Drain},
    dismissal::{Exit, Group, Member, Progress},
    drain::Phase,
    health::Health,
    serve::{self, Front},
    telemetry::{Process, Telemetry},
    transport::Socket,
};

mod reclaim;
mod snapshot;

use snapshot::{Builder, Snapshot};

/// What the tasks of one worker share.
pub(crate) struct Worker {
    /// What is in force. A stream has what it uses of it to itself, and keeps it when this changes.
    snapshot: RefCell<Rc<Snapshot>>,
    builder: Builder,
    pub(crate) process: Arc<Process>,
    load: Arc<Load>,
    /// All live streams.
    streams: Rc<Group>,
    /// What they hold.
    share: Arc<Share>,
}

/// A worker as the rest of the process sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    load: Arc<Load>,
    thread: thread::JoinHandle<Farewell>,
}

/// What became of the streams that outlived `drain.timeout`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Farewell {
    /// They were to end behind their current messages.
    pub(crate) dismissed: usize,
    /// They did not in time, and went with their connections.
    pub(crate) lost: usize,
}

/// What a worker is told. Connections are bounded by the permits of their listeners, and of configurations there is one at a
/// time: whoever sends one waits until it is in force.
#[derive(Debug)]
enum Order {
    Serve(Accepted),
    Configure(Configured),
}

/// A configuration on its way to a worker, which has nothing in it that could fail.
#[derive(Debug)]
struct Configured {
    config: Arc<Config>,
    shared: Shared,
    done: oneshot::Sender<()>,
}

/// A socket on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: AcceptedSocket,
    pub(crate) front: Arc<Front>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// A socket that belongs to no runtime.
#[derive(Debug)]
pub(crate) enum AcceptedSocket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// What decides who takes the next connection.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    streams: AtomicUsize,
    connections: AtomicUsize,
}

/// One live stream, on the worker's load.
pub(crate) struct Live {
    worker: Rc<Worker>,
    _member: Member,
}

/// Starts a worker's thread.
pub(crate) fn start(
    index: usize,
    config: Arc<Config>,
    telemetry: &Arc<Telemetry>,
    shared: &Shared,
    phases: watch::Receiver<Phase>,
) -> io::Result<Handle> {
    let (orders, inbox) = mpsc::unbounded_channel();
    let load = Arc::<Load>::default();
    let (telemetry, shared) = (Arc::clone(telemetry), shared.clone());
    let shared_load = Arc::clone(&load);
    let name = format!("worker-{index}");
    let thread = thread::Builder::new().name(name).spawn(move || {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        // Without a runtime there is nothing to serve with; the process says so and goes on with its other workers.
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker could not start");
                return Farewell::default();
            }
        };
        runtime.block_on(async move {
            let builder = Builder {
                worker: index,
                telemetry,
                phases,
                aborts: Rc::default(),
            };
            let worker = Worker::new(builder, config, shared, shared_load);
            run(Rc::new(worker), inbox).await
        })
    })?;
    Ok(Handle {
        orders,
        load,
        thread,
    })
}

/// Does what it is told until the orders end, and then goes on for as long as the drain may last.
async fn run(worker: Rc<Worker>, mut orders: mpsc::UnboundedReceiver<Order>) -> Farewell {
    let mut connections = JoinSet::new();
    let (streams, share) = (Rc::clone(&worker.streams), Arc::clone(&worker.share));
    spawn_local(reclaim::watch(streams, share));
    while let Some(order) = orders.recv().await {
        let accepted = match order {
            Order::Serve(accepted) => accepted,
            Order::Configure(configured) => {
                worker.take_up(configured);
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let Accepted {
            socket,
            front,
            permit,
        } = accepted;
        let Ok(socket) = socket.adopt() else { continue };
        let worker = Rc::clone(&worker);
        connections.spawn_local(async move {
            let _connected = Connected::new(&worker, &front, permit);
            serve::connection(socket, Arc::clone(&front), Rc::clone(&worker)).await;
        });
    }
    let farewell = worker.drain(&mut connections).await;
    connections.shutdown().await;
    worker.builder.aborts.finish().await;
    farewell
}

/// How long the last words of streams that were cut may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

// === impl Worker ===

impl Worker {
    fn new(builder: Builder, config: Arc<Config>, shared: Shared, load: Arc<Load>) -> Self {
        Self {
            snapshot: RefCell::new(Rc::new(builder.build(config, shared, None))),
            process: Arc::clone(&builder.telemetry.process),
            share: Share::new(Arc::clone(&builder.telemetry.process.held)),
            builder,
            load,
            streams: Rc::default(),
        }
    }

    /// Waits until streams and connections have ended by themselves, then until their current messages have, and no longer.
    async fn drain(&self, connections: &mut JoinSet<()>) -> Farewell {
        let Drain {
            timeout: limit,
            force,
            ..
        } = *self.snapshot.borrow().farewell;
        let mut end = pin!(async { while connections.join_next().await.is_some() {} });
        let mut farewell = Farewell::default();
        if timeout(limit, &mut end).await.is_ok() {
            return farewell;
        }
        let left = self.streams.len();
        farewell.dismissed = left;
        if left > 0 {
            tracing::warn!(
                streams = left,
                ?limit,
                "streams are ended behind their current messages (drain.timeout)"
            );
            let message = format!(
                "the proxy stops, and the stream was still open after {limit:?} (drain.timeout)"
            );
            self.streams.dismiss(&Error::new(
                Code::Unavailable,
                "drain",
                Side::Proxy,
                message,
            ));
            if timeout(force + LAST_WORDS, end).await.is_err() {
                farewell.lost = self.streams.len();
                tracing::warn!(
                    streams = farewell.lost,
                    ?force,
                    "connections are cut (drain.force)"
                );
            }
        }
        farewell
    }

    /// Sends a request to the binding that it calls, or on its route, unless so much is held that nothing new is taken.
    pub(crate) fn call(
        &self,
        request: Request<Body>,
    ) -> Result<DeadlineFuture<ChainFuture>, Error> {
        if self.share.total().is_near() && !Health::is_asked_by(&request) {
            return Err(reclaim::full(self.share.total()));
        }
        self.snapshot.borrow().call(request)
    }

    /// Puts another configuration in force, for the streams that begin from now on.
    fn take_up(&self, configured: Configured) {
        let Configured {
            config,
            shared,
            done,
        } = configured;
        let before = Rc::clone(&self.snapshot.borrow());
        let next = self.builder.build(config, shared, Some(&before));
        self.snapshot.replace(Rc::new(next));
        // What nobody needs any more ends here, before anybody hears that it has.
        drop(before);
        let _ = done.send(());
    }

    /// Where the bytes of its streams are added up.
    pub(crate) fn share(&self) -> Option<Arc<Share>> {
        Some(Arc::clone(&self.share))
    }

    /// Counts a stream on the worker's load while it lives, and its panic if it ends in one. The runtime catches the panic;
    /// the stream's handles, dropped on the way, reset both its sides.
    pub(crate) fn live(self: &Rc<Self>, stream: &StreamContext) -> Live {
        self.load.streams.fetch_add(1, Relaxed);
        Live {
            worker: Rc::clone(self),
            _member: self.streams.join(stream),
        }
    }

    /// What ends the stream if it is aborted or dismissed.
    pub(crate) fn exit(&self, stream: &StreamContext, request: Option<Rc<Progress>>) -> Exit {
        let (settings, process) = (
            Rc::clone(&self.snapshot.borrow().farewell),
            Arc::clone(&self.process),
        );
        Exit::new(stream.clone(), request, settings, process)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.worker.load.streams.fetch_sub(1, Relaxed);
        if thread::panicking() {
            self.worker.process.panics.increment();
        }
    }
}

/// One live connection, on the worker's load and the listener's gauge; holds the listener's permit.
struct Connected {
    load: Arc<Load>,
    front: Arc<Front>,
    _permit: OwnedSemaphorePermit,
}

impl Connected {
    fn new(worker: &Worker, front: &Arc<Front>, permit: OwnedSemaphorePermit) -> Self {
        front.stats.live.increment();
        Self {
            load: Arc::clone(&worker.load),
            front: Arc::clone(front),
            _permit: permit,
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.front.stats.live.decrement();
        self.load.connections.fetch_sub(1, Relaxed);
    }
}

// === impl Handle ===

impl Handle {
    /// Hands a socket over, unless the worker is gone.
    pub(crate) fn take(&self, accepted: Accepted) {
        self.load.connections.fetch_add(1, Relaxed);
        let _ = self.orders.send(Order::Serve(accepted));
    }

    /// Hands a configuration over; the answer comes when it is in force, or never if the worker is gone.
    pub(crate) fn configure(&self, config: Arc<Config>, shared: Shared) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        let configured = Configured {
            config,
            shared,
            done,
        };
        let _ = self.orders.send(Order::Configure(configured));
        answer
    }

    /// The fewer, the sooner it takes the next connection: live streams, then connections.
    pub(crate) fn load(&self) -> (usize, usize) {
        (
            self.load.streams.load(Relaxed),
            self.load.connections.load(Relaxed),
        )
    }

    /// Lets the worker end, which it does when nobody can give it orders any more. What is left is to wait for it.
    pub(crate) fn release(self) -> thread::JoinHandle<Farewell> {
        self.thread
    }
}

// === impl AcceptedSocket ===

impl AcceptedSocket {
    /// Makes it one of this thread's runtime.
    pub(crate) fn adopt(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Socket::Unix(UnixStream::from_std(socket)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http::Response;
    use http_body::Frame;
    use thalweg_filters::Chunk;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Semaphore,
        task::{LocalSet, spawn_local},
    };
    use tower::service_fn;

    use super::*;

    /// A body that ends in a panic.
    struct Panics;

    impl http_body::Body for Panics {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            panic!("on purpose")
        }
    }

    /// A worker whose routes end in panics, by path: at the call, before the head, within the body; all others answer.
    fn worker() -> (Rc<Worker>, Arc<Front>, watch::Sender<Phase>) {
        let yaml = "listeners: [{name: it, address: \"127.0.0.1:0\"}]\n";
        let config = crate::config::parse(yaml, "test.yaml", &|_| None).unwrap();
        let end = service_fn(|request: Request<Body>| {
            let path = request.uri().path().to_owned();
            assert_ne!(path, "/call", "on purpose");
            async move {
                assert_ne!(path, "/head", "on purpose");
                Ok(Response::new(if path == "/body" {
                    Body::new(Panics)
                } else {
                    Body::full("fine")
                }))
            }
        });
        let (drain, drains) = watch::channel(Phase::Serving);
        let builder = Builder {
            worker: 0,
            telemetry: Arc::default(),
            phases: drains.clone(),
            aborts: Rc::default(),
        };
        let front = Front {
            settings: config.listeners[0].clone(),
            tls: None,
            stats: Arc::default(),
            phases: drains,
        };
        let worker = Worker {
            snapshot: RefCell::new(Rc::new(builder.leading_to(Arc::new(config), end))),
            builder,
            process: Arc::default(),
            streams: Rc::default(),
            load: Arc::default(),
            share: Share::new(Arc::default()),
        };
        (Rc::new(worker), Arc::new(front), drain)
    }

    /// A connection to the worker.
    async fn connect(worker: &Rc<Worker>, front: &Arc<Front>) -> UnixStream {
        let (client, server) = UnixStream::pair().unwrap();
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let (worker, front) = (Rc::clone(worker), Arc::clone(front));
        spawn_local(async move {
            let _connected = Connected::new(&worker, &front, permit);
            serve::connection(Socket::Unix(server), Arc::clone(&front), worker).await;
        });
        client
    }

    #[tokio::test]
    async fn panic_ends_one_stream_alone_and_is_counted() {
        let local = LocalSet::new();
        let test = local.run_until(async {
            let (worker, front, _drain) = worker();
            let socket = connect(&worker, &front).await;
            let (sender, connection) = h2::client::handshake(socket).await.unwrap();
            spawn_local(connection);
            let ask = async |path: &str| {
                let request = Request::get(format!("http://unit.test{path}"))
                    .body(())
                    .unwrap();
                let mut sender = sender.clone().ready().await.unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                let mut body = response.await?.into_body();
                body.data().await.unwrap_or_else(|| Ok(Bytes::new()))
            };

            for path in ["/call", "/head", "/body"] {
                let error: h2::Error = ask(path).await.unwrap_err();
                assert!(error.is_reset(), "{path}: {error}");
            }

            assert_eq!(ask("/").await.unwrap(), "fine");
            assert_eq!(worker.process.panics.get(), 3);
            assert_eq!(worker.load.streams.load(Relaxed), 0);
        });
        test.await;
    }

    #[tokio::test]
    async fn panic_ends_one_http1_connection_alone_and_is_counted() {
        let local = LocalSet::new();
        let test = local.run_until(async {
            let (worker, front, _drain) = worker();
            let ask = async |path: &str| {
                let mut socket = connect(&worker, &front).await;
                let request =
                    format!("GET {path} HTTP/1.1\r\nhost: unit.test\r\nconnection: close\r\n\r\n");
                socket.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).await.unwrap();
                answer
            };

            for path in ["/call", "/head", "/body"] {
                let answer = ask(path).await;
                assert!(
                    !answer.ends_with("0\r\n\r\n"),
                    "{path} looks whole: {answer}"
                );
            }

            assert!(ask("/").await.ends_with("\r\n\r\nfine"));
            assert_eq!(worker.process.panics.get(), 3);
            assert_eq!(worker.load.streams.load(Relaxed), 0);
        });
        test.await;
    }
}
