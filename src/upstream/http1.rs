//! Connections that carry one request at a time, to one endpoint, of one worker.
//!
//! A connection returns to the pool when both bodies of its last exchange have ended cleanly, which hyper alone can tell:
//! its handle becomes ready again. Anything else closes it: an exchange that ends with its request under way, or without a whole
//! answer, takes its connection with it, and with that the request's body, before anything else happens. A place is given back when
//! its connection is idle or gone. The newest idle connection is used first, so that the others grow old and close.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::noop_waker_ref;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use thalweg_filters::{Body, Error};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::{AbortHandle, spawn_local},
    time::{Instant, sleep, timeout},
};

use crate::{
    eager::Handed,
    headers,
    patience::Patience,
    stall::StallWatch,
    upstream::{
        Shared, balance,
        endpoint::{Endpoint, Live},
        outlier::Trial,
    },
};

/// How long a connection may take to write the rest of a whole request when its answer is there already.
const LINGER: Duration = Duration::from_secs(1);

/// The connections to one endpoint.
pub(crate) struct Pool {
    shared: Rc<Shared>,
    endpoint: Arc<Endpoint>,
    idle: RefCell<Vec<(Connection, Instant)>>,
    /// A task watches the idle ones.
    expiring: Cell<bool>,
    /// One permit a request: a connection carries one at a time. Closed when the endpoint is gone.
    permits: Arc<Semaphore>,
    /// One permit a dial that is on its way.
    dials: Semaphore,
}

/// One connection. An idle one closes in peace when this is dropped.
struct Connection {
    sender: http1::SendRequest<Body>,
    driven: Driven,
    task: AbortHandle,
}

/// What moves a connection, and owns all of it; nothing, once that has ended.
type Driven = Rc<RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>>;

/// One connection, held for one exchange. Dropping it ends both.
pub(crate) struct Lease {
    connection: Option<Connection>,
    reused: bool,
    /// The connection is not kept, whatever becomes of the exchange.
    is_last: bool,
    place: Place,
}

/// A place on a connection, until that is idle or gone.
struct Place {
    pool: Rc<Pool>,
    _permit: OwnedSemaphorePermit,
    _live: Live,
}

/// Counts a connection for as long as it lives.
struct Counted(Rc<Shared>);

/// How a request went that has no answer.
pub(crate) enum Failed {
    /// The connection was closed while it was idle: not a byte of the request was written.
    Unsent(Box<Request<Body>>),
    Lost(Error),
}

// === impl Pool ===

impl Pool {
    /// A connection, idle or new: within `pool.wait_timeout` it may be dialed, and within `connect_timeout` it is.
    pub(crate) async fn lease(self: Rc<Self>) -> Result<Lease, Error> {
        let live = self.endpoint.live();
        let mut patience = Patience::new(self.shared.settings.pool.wait_timeout);
        let permit = patience.with(self.permit()).await;
        let permit = permit.unwrap_or_else(|| Err(self.shared.crowded(&self.endpoint)))?;
        if let Some(connection) = self.take_idle() {
            return Ok(self.lend(connection, true, permit, live));
        }
        let connection = self.dial(&mut patience).await?;
        Ok(self.lend(connection, false, permit, live))
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _pending = self.shared.pending()?;
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|_| self.shared.removed(&self.endpoint))
    }

    /// The right to dial.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        if let Ok(turn) = self.dials.try_acquire() {
            return Ok(turn);
        }
        let _pending = self.shared.pending()?;
        let turn = self.dials.acquire().await;
        Ok(turn.expect("the semaphore is never closed"))
    }

    fn lend(
        self: &Rc<Self>,
        connection: Connection,
        reused: bool,
        permit: OwnedSemaphorePermit,
        live: Live,
    ) -> Lease {
        self.shared.stats.streams.increment();
        Lease {
            connection: Some(connection),
            reused,
            is_last: false,
            place: Place {
                pool: Rc::clone(self),
                _permit: permit,
                _live: live,
            },
        }
    }

    /// The newest idle connection that is still good.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some((mut connection, _)) = idle.pop() {
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Dials when it is its turn, which it may wait for with `patience`.
    async fn dial(&self, patience: &mut Patience) -> Result<Connection, Error> {
        let turn = patience.with(self.turn()).await;
        let _turn = turn.unwrap_or_else(|| Err(self.shared.waited(&self.endpoint)))?;
        let _dialing = self.shared.dialing();
        let opened = async {
            let transport = self.shared.dial(self.endpoint.address()).await?;
            let mut builder = http1::Builder::new();
            builder.max_buf_size(64 * 1024);
            let (sender, connection) = builder
                .handshake(TokioIo::new(transport.clone()))
                .await
                .map_err(io::Error::other)?;
            Ok((transport, sender, connection))
        };
        let mut patience = Patience::new(self.shared.settings.connect_timeout);
        let (transport, sender, connection) = match patience.with(opened).await {
            Some(opened) => opened
                .map_err(|error: io::Error| self.shared.no_connection(&self.endpoint, &error))?,
            None => return Err(self.shared.too_late(&self.endpoint)),
        };
        self.endpoint.reached();
        let counted = Counted::new(&self.shared);
        let driven: Driven = Rc::new(RefCell::new(Some(Box::pin(async move {
            let shared = &counted.0;
            let mut connection = pin!(connection);
            let mut stall = StallWatch::new(shared.settings.stall);
            std::future::poll_fn(|cx| {
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    if let Err(error) = ended {
                        tracing::debug!(cluster = %shared.name, %error, "connection lost");
                    }
                    return Poll::Ready(());
                }
                stall
                    .poll(cx, &transport)
                    .map(|()| shared.stats.stalls.increment())
            })
            .await;
        }))));
        let driver = Rc::clone(&driven);
        let task = spawn_local(std::future::poll_fn(move |cx| {
            let mut driven = driver.borrow_mut();
            if let Some(connection) = &mut *driven {
                ready!(connection.as_mut().poll(cx));
                *driven = None;
            }
            Poll::Ready(())
        }));
        Ok(Connection {
            sender,
            driven,
            task: task.abort_handle(),
        })
    }

    fn keep(self: &Rc<Self>, connection: Connection) {
        let settings = &self.shared.settings.pool;
        let mut idle = self.idle.borrow_mut();
        if idle.len() < settings.max_connections && !self.permits.is_closed() {
            idle.push((connection, Instant::now()));
            if !self.expiring.replace(true) {
                spawn_local(Rc::clone(self).expire(settings.idle_timeout));
            }
        }
    }

    /// Closes connections that nobody has used for `limit`, until none is idle.
    async fn expire(self: Rc<Self>, limit: Duration) {
        while !self.idle.borrow().is_empty() {
            sleep(limit).await;
            let fresh = |(_, since): &mut (Connection, Instant)| since.elapsed() < limit;
            self.idle.borrow_mut().retain_mut(fresh);
        }
        self.expiring.set(false);
    }
}

impl balance::Pool for Pool {
    fn new(shared: &Rc<Shared>, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            shared: Rc::clone(shared),
            endpoint: Arc::clone(endpoint),
            idle: RefCell::default(),
            expiring: Cell::new(false),
            permits: Arc::new(Semaphore::new(shared.settings.pool.max_connections)),
            dials: Semaphore::new(shared.settings.pool.max_dials),
        }
    }

    fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    fn close(&self) {
        self.permits.close();
        self.idle.borrow_mut().clear();
    }

    /// No gRPC stream is here, and plain HTTP has no messages.
    fn dismiss(&self, _: &Error) {}
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pool({:?}, {} idle)",
            self.endpoint,
            self.idle.borrow().len()
        )
    }
}

// === impl Connection ===

impl Connection {
    /// Whether both bodies of the last exchange have ended cleanly, and the other side has not closed it.
    fn is_idle(&mut self) -> bool {
        let ready = (self.sender).poll_ready(&mut Context::from_waker(noop_waker_ref()));
        matches!(ready, Poll::Ready(Ok(())))
    }

    /// Closes it now, with all that it owns.
    fn cut(self) {
        self.task.abort();
        let driven = self.driven.borrow_mut().take();
        drop(driven);
    }
}

// === impl Counted ===

impl Counted {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.stats.connected.increment();
        shared.stats.connections.increment();
        Self(Rc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.stats.connections.decrement();
        self.0.stats.retired.increment();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.shared.stats.streams.decrement();
    }
}

// === impl Lease ===

impl Lease {
    /// Sends the request, and waits for the head of the answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failed> {
        let connection = self.connection.as_mut().expect("it is there until the end");
        let mut failure = match connection.sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        if self.reused
            && let Some(request) = failure.take_message()
        {
            return Err(Failed::Unsent(Box::new(request)));
        }
        Err(Failed::Lost(self.lost(failure.into_error())))
    }

    /// A new connection in place of one that was closed.
    pub(crate) async fn redial(&mut self) -> Result<(), Error> {
        let pool = &self.place.pool;
        let mut patience = Patience::new(pool.shared.settings.pool.wait_timeout);
        self.connection = Some(pool.dial(&mut patience).await?);
        self.reused = false;
        Ok(())
    }

    /// The answer is whole. So what a client still sends is not wanted any more: with a request that was not `handed` over as a
    /// whole, the connection closes.
    pub(crate) fn answered(mut self, handed: &Handed) {
        let whole = handed.is_whole() && !self.is_last;
        let Some(mut connection) = self.connection.take_if(|_| whole) else {
            return;
        };
        if connection.is_idle() {
            self.place.pool.keep(connection);
            return;
        }
        spawn_local(async move {
            self.connection = Some(connection);
            let connection = self.connection.as_mut().expect("it was just put there");
            if let Ok(Ok(())) = timeout(LINGER, connection.sender.ready()).await
                && let Some(connection) = self.connection.take()
            {
                self.place.pool.keep(connection);
            }
        });
    }

    /// The connection is not to be used again: it may not be clear where its answers end.
    pub(crate) fn make_last(&mut self) {
        self.is_last = true;
    }

    /// What the exchange will say about the endpoint, if endpoints are judged.
    pub(crate) fn trial(&self) -> Option<Trial> {
        Trial::begin(&self.place.pool.shared.directory, &self.place.pool.endpoint)
    }

    /// How much of a response may wait for the client.
    pub(crate) fn window(&self) -> usize {
        self.place.pool.shared.settings.http2.stream_window as usize
    }

    /// What a broken exchange means to the client.
    pub(crate) fn lost(&self, error: hyper::Error) -> Error {
        let mut source: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(cause) = source {
            // Our own request body failed: that is the reason, and not the connection that broke over it.
            if let Some(error) = cause.downcast_ref::<Error>() {
                return error.clone();
            }
            source = cause.source();
        }
        let Pool {
            shared, endpoint, ..
        } = &*self.place.pool;
        // Under TLS, an upstream may refuse us after the handshake only: with the answer to the first request.
        let refusal = (shared.tls.as_ref()).and_then(|tls| tls.refusal(&error, endpoint.address()));
        let lost = match refusal {
            Some(refusal) => {
                let (cluster, endpoint) = (&shared.name, endpoint.address());
                tracing::warn!(%cluster, %endpoint, error = %refusal, hint = refusal.hint, "no connection");
                shared
                    .unavailable("upstream_tls_failed", "no connection")
                    .with_detail(format_args!("{endpoint}: {refusal}"))
            }
            None if headers::is_malformed(&error) => {
                let what = format_args!(
                    "the upstream's answer is no HTTP/1.1: {error} (if it speaks HTTP/2, as servers of gRPC do, say `protocol: http2` on the cluster)"
                );
                shared.unavailable("upstream_bad_answer", what)
            }
            None => shared.unavailable("upstream_lost", "the connection to the upstream was lost"),
        };
        lost.with_http_status(502).with_source(error)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use http::HeaderMap;
    use socket2::{Domain, Socket, Type};
    use tokio::task::LocalSet;

    use super::*;
    use crate::{
        config,
        upstream::{Cluster, Endpoints, directory::Directories},
    };

    /// The endpoint answers no other dial: nobody takes it off the queue.
    #[tokio::test]
    async fn dial_in_place_of_a_closed_connection_has_its_time() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(
                &"127.0.0.1:0"
                    .parse::<std::net::SocketAddr>()
                    .unwrap()
                    .into(),
            )
            .unwrap();
        socket.listen(0).unwrap();
        let listener: std::net::TcpListener = socket.into();
        let address = listener.local_addr().unwrap();
        let yaml = format!(
            "clusters: {{main: {{endpoints: [{address}], protocol: http1, connect_timeout: 100ms}}}}\n\
             listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\nroutes: [{{name: it, cluster: main}}]"
        );
        let config = config::parse(&yaml, "test.yaml", &|_| None).unwrap();
        let directories = Directories::new(Arc::default());

        let local = LocalSet::new();
        let exchange = local.run_until(async {
            let cluster = Cluster::new(directories.of(&config.clusters[0]), None);
            let Endpoints::Http1(endpoints) = &cluster.endpoints else {
                unreachable!("the protocol is http1")
            };
            let headers = HeaderMap::new();
            let best = endpoints.best(&headers, None).unwrap();
            let lease = endpoints.open(best, &headers, None, Pool::lease);
            let mut lease = lease.await.unwrap();
            let _served = listener.accept().unwrap();
            let _queue: Vec<_> = (0..4)
                .map(|_| {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.connect(&address.into());
                    TcpStream::from(socket)
                })
                .collect();
            lease.redial().await
        });

        assert_eq!(
            exchange.await.unwrap_err().reason(),
            "upstream_connect_timeout"
        );
    }
}
