//! One worker: a thread with a runtime of its own, upstream pools of its own, and chains of its own.
//!
//! Both connections of a stream live on one worker, so nothing on the way of a byte is shared between threads. What crosses
//! threads is a socket when it is handed over, and counters when they are read.

use std::{
    cell::RefCell,
    io,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use http::{Request, Response};
use thalweg_filters::{
    Body, Error, Side, StreamContext,
    chain::{Chain, ChainFuture, Surroundings},
    deadline::{Deadline, DeadlineFuture},
    timeouts::Timeouts,
};
use thalweg_proto::status::Code;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::{Builder, LocalOptions},
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tower::{Service, service_fn};

use crate::{
    bindings::{Aborts, Api, Bindings, Call, Shared},
    config::{Config, Destination, Drain, Match},
    dismissal::{Exit, Group, Member, Progress},
    drain::Phase,
    forward::Forward,
    health::Health,
    router::Router,
    serve::{self, Front},
    telemetry::{Process, Telemetry},
    transport::Socket,
    upstream::Cluster,
};

/// What the tasks of one worker share.
pub(crate) struct Worker {
    routes: Router<Deadline<SharedChain>>,
    /// Takes the calls of bindings, before the routes; `None` where there are no bindings.
    bindings: Option<RefCell<Deadline<Api>>>,
    /// Uploads of bindings that were given up.
    aborts: Rc<Aborts>,
    pub(crate) process: Arc<Process>,
    pub(crate) phases: watch::Receiver<Phase>,
    load: Arc<Load>,
    /// All live streams.
    streams: Rc<Group>,
    /// How they are let go of.
    farewell: Rc<Drain>,
}

/// A chain that the worker's routes lead to, and those of every chain that goes on to the routes below it.
#[derive(Clone)]
struct SharedChain(Rc<RefCell<Chain>>);

/// A worker as the rest of the process sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    sockets: mpsc::UnboundedSender<Accepted>,
    load: Arc<Load>,
    thread: thread::JoinHandle<()>,
}

/// A socket on its way to a worker. The permit that bounds the listener's connections bounds this queue too.
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
    name: String,
    config: Arc<Config>,
    telemetry: &Arc<Telemetry>,
    shared: &Shared,
    phases: watch::Receiver<Phase>,
) -> io::Result<Handle> {
    let (sockets, accepted) = mpsc::unbounded_channel();
    let load = Arc::<Load>::default();
    let (telemetry, shared) = (Arc::clone(telemetry), shared.clone());
    let shared_load = Arc::clone(&load);
    let thread = thread::Builder::new().name(name).spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        // Without a runtime there is nothing to serve with; the process says so and goes on with its other workers.
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a worker could not start"),
        };
        runtime.block_on(async move {
            let worker = Worker::new(&config, &telemetry, &shared, phases, shared_load);
            run(Rc::new(worker), accepted).await;
        });
    })?;
    Ok(Handle {
        sockets,
        load,
        thread,
    })
}

/// Serves what is handed over until the sockets end, and then for as long as the drain may last.
async fn run(worker: Rc<Worker>, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
    let mut connections = JoinSet::new();
    while let Some(accepted) = accepted.recv().await {
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
    worker.drain(&mut connections).await;
    connections.shutdown().await;
    worker.aborts.finish().await;
}

/// How long the last words of streams that were cut may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

// === impl Worker ===

impl Worker {
    fn new(
        config: &Config,
        telemetry: &Arc<Telemetry>,
        shared: &Shared,
        phases: watch::Receiver<Phase>,
        load: Arc<Load>,
    ) -> Self {
        let process = Arc::clone(&telemetry.process);
        let clusters: Vec<Rc<Cluster>> = config
            .clusters
            .iter()
            .map(|cluster| {
                let tls = shared.upstreams.of(&cluster.name);
                Rc::new(Cluster::new(cluster, tls, process.cluster(&cluster.name)))
            })
            .collect();
        let cluster = |name: &str| {
            let found = clusters.iter().find(|cluster| &*cluster.name == name);
            Rc::clone(found.expect("the configuration resolved the names of clusters"))
        };
        // From the last to the first, so that each finds those below it.
        let mut below: Vec<(Match, SharedChain)> = Vec::new();
        for route in config.routes.iter().rev() {
            // Routes to one cluster share its breaker; any other is the route's own.
            let target = match &route.destination {
                Destination::Clusters(targets) if targets.len() == 1 => {
                    format!("cluster {}", targets[0].cluster.name)
                }
                _ => format!("route {}", route.name),
            };
            let surroundings = Surroundings {
                route: &route.name,
                target: &target,
                binding: None,
                metrics: &telemetry.streams,
                breakers: &telemetry.breakers,
            };
            let chain = match &route.destination {
                Destination::Clusters(targets) => {
                    let targets = targets
                        .iter()
                        .map(|target| (cluster(&target.cluster.name), target.weight));
                    let forward = Rc::new(Forward::new(targets, route.timeouts));
                    let end =
                        service_fn(move |request| Forward::call(Rc::clone(&forward), request));
                    let end = Timeouts::new(end, route.timeouts.phases);
                    Chain::build(&route.filters, surroundings, end)
                }
                Destination::RoutesBelow => {
                    let routes: Router<SharedChain> = below.iter().rev().cloned().collect();
                    let end = service_fn(move |request| {
                        let taken = send(&routes, request);
                        async { taken?.await }
                    });
                    Chain::build(&route.filters, surroundings, end)
                }
            };
            below.push((route.matches.clone(), SharedChain::new(chain)));
        }
        let health = config.health_service.as_ref().map(|settings| {
            let health = Rc::new(Health::new(settings, phases.clone(), Arc::clone(&process)));
            let end = service_fn(move |request| Rc::clone(&health).call(request));
            (Health::matches(), SharedChain::new(Chain::new(end)))
        });
        let routes = below
            .into_iter()
            .rev()
            .chain(health)
            .map(|(conditions, chain)| (conditions, Deadline::new(chain)))
            .collect();
        let aborts = Rc::<Aborts>::default();
        let bindings = Bindings::new(config, telemetry, &clusters, shared, Rc::clone(&aborts));
        let bindings = Rc::new(bindings);
        let api = Api::new(bindings, &config.bindings_front);
        Self {
            routes,
            bindings: api.map(|api| RefCell::new(Deadline::new(api))),
            aborts,
            process,
            phases,
            load,
            streams: Rc::default(),
            farewell: Rc::new(config.drain.clone()),
        }
    }

    /// Waits until streams and connections have ended by themselves, then until their current messages have, and no longer.
    async fn drain(&self, connections: &mut JoinSet<()>) {
        let Drain {
            timeout: limit,
            force,
            ..
        } = *self.farewell;
        let mut end = pin!(async { while connections.join_next().await.is_some() {} });
        if timeout(limit, &mut end).await.is_ok() {
            return;
        }
        let left = self.streams.len();
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
                tracing::warn!(
                    streams = self.streams.len(),
                    ?force,
                    "connections are cut (drain.force)"
                );
            }
        }
    }

    /// Sends a request to the binding that it calls, or on its route.
    pub(crate) fn call(
        &self,
        mut request: Request<Body>,
    ) -> Result<DeadlineFuture<ChainFuture>, Error> {
        if let Some(bindings) = &self.bindings
            && let Some(call) = Call::of(&request)
        {
            request.extensions_mut().insert(call);
            return Ok(bindings.borrow_mut().call(request));
        }
        send(&self.routes, request)
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
        let (settings, process) = (Rc::clone(&self.farewell), Arc::clone(&self.process));
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

/// Sends a request on the first of the routes that matches.
fn send<S>(routes: &Router<S>, request: Request<Body>) -> Result<S::Future, Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error> + Clone,
{
    let (parts, body) = request.into_parts();
    let Some(route) = routes.find(&parts) else {
        let message = format!("no route for {}", parts.uri.path());
        return Err(
            Error::new(Code::Unimplemented, "no_route", Side::Client, message)
                .with_http_status(404),
        );
    };
    Ok(route.clone().call(Request::from_parts(parts, body)))
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

// === impl SharedChain ===

impl SharedChain {
    fn new(chain: Chain) -> Self {
        Self(Rc::new(RefCell::new(chain)))
    }
}

impl Service<Request<Body>> for SharedChain {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ChainFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.borrow_mut().poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ChainFuture {
        self.0.borrow_mut().call(request)
    }
}

// === impl Handle ===

impl Handle {
    /// Hands a socket over, unless the worker is gone.
    pub(crate) fn take(&self, accepted: Accepted) {
        self.load.connections.fetch_add(1, Relaxed);
        let _ = self.sockets.send(accepted);
    }

    /// The fewer, the sooner it takes the next connection: live streams, then connections.
    pub(crate) fn load(&self) -> (usize, usize) {
        (
            self.load.streams.load(Relaxed),
            self.load.connections.load(Relaxed),
        )
    }

    /// Waits for the worker's end, which comes when nobody can hand it sockets any more.
    pub(crate) fn join(self) {
        drop(self.sockets);
        // A worker that panicked has said so already.
        let _ = self.thread.join();
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
    use std::pin::Pin;

    use bytes::Bytes;
    use http_body::Frame;
    use thalweg_filters::Chunk;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Semaphore,
        task::{LocalSet, spawn_local},
    };

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
        let telemetry = Telemetry::default();
        let surroundings = Surroundings {
            route: "it",
            target: "route it",
            binding: None,
            metrics: &telemetry.streams,
            breakers: &telemetry.breakers,
        };
        let chain = SharedChain::new(Chain::build(&[], surroundings, end));
        let routes = [(Match::default(), Deadline::new(chain))];
        let (drain, drains) = watch::channel(Phase::Serving);
        let worker = Worker {
            routes: routes.into_iter().collect(),
            bindings: None,
            aborts: Rc::default(),
            process: Arc::default(),
            phases: drains,
            load: Arc::default(),
            streams: Rc::default(),
            farewell: Rc::default(),
        };
        let front = Front {
            settings: config.listeners[0].clone(),
            tls: None,
            stats: Arc::default(),
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
