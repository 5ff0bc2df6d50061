//! Connections that carry one request at a time, to one endpoint, of one worker.
//!
//! A connection returns to the pool when both bodies of its last exchange have ended cleanly, which hyper alone can tell:
//! its handle becomes ready again. Anything else closes it. The newest idle connection is used first, so that the others
//! grow old and close.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::noop_waker_ref;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use thalweg_filters::{Body, Error};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::spawn_local,
    time::{Instant, sleep},
};

use crate::{
    patience::Patience,
    stall::StallWatch,
    upstream::{
        Shared, balance,
        endpoint::{Endpoint, Live},
        outlier::Trial,
    },
};

type Sender = http1::SendRequest<Body>;

/// The connections to one endpoint.
pub(crate) struct Pool {
    shared: Rc<Shared>,
    endpoint: Arc<Endpoint>,
    idle: RefCell<Vec<(Sender, Instant)>>,
    /// A task watches the idle ones.
    expiring: Cell<bool>,
    /// One permit a request: a connection carries one at a time. Closed when the endpoint is gone.
    permits: Arc<Semaphore>,
    /// One permit a dial that is on its way.
    dials: Semaphore,
}

/// One connection, held for one exchange.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    sender: Option<Sender>,
    reused: bool,
    _permit: OwnedSemaphorePermit,
    _live: Live,
}

// === impl Pool ===

impl Pool {
    /// A connection, idle or new: within `pool.wait_timeout` it may be dialed, and within `connect_timeout` it is.
    pub(crate) async fn lease(self: Rc<Self>) -> Result<Lease, Error> {
        let live = self.endpoint.live();
        let mut patience = Patience::new(self.shared.settings.pool.wait_timeout);
        let permit = patience.with(self.permit()).await;
        let permit = permit.unwrap_or_else(|| Err(self.shared.crowded(&self.endpoint)))?;
        if let Some(sender) = self.take_idle() {
            return Ok(self.lend(sender, true, permit, live));
        }
        let sender = self.dial(&mut patience).await?;
        Ok(self.lend(sender, false, permit, live))
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
        sender: Sender,
        reused: bool,
        permit: OwnedSemaphorePermit,
        live: Live,
    ) -> Lease {
        self.shared.stats.streams.increment();
        Lease {
            pool: Rc::clone(self),
            sender: Some(sender),
            reused,
            _permit: permit,
            _live: live,
        }
    }

    /// The newest idle connection that is still good.
    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        while let Some((mut sender, _)) = idle.pop() {
            let ready = sender.poll_ready(&mut Context::from_waker(noop_waker_ref()));
            if matches!(ready, Poll::Ready(Ok(()))) {
                return Some(sender);
            }
        }
        None
    }

    /// Dials when it is its turn, which it may wait for with `patience`.
    async fn dial(self: &Rc<Self>, patience: &mut Patience) -> Result<Sender, Error> {
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
        let shared = Rc::clone(&self.shared);
        spawn_local(async move {
            shared.stats.connected.increment();
            shared.stats.connections.increment();
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
            shared.stats.connections.decrement();
            shared.stats.retired.increment();
        });
        Ok(sender)
    }

    fn keep(self: &Rc<Self>, sender: Sender) {
        let settings = &self.shared.settings.pool;
        let mut idle = self.idle.borrow_mut();
        if idle.len() < settings.max_connections && !self.permits.is_closed() {
            idle.push((sender, Instant::now()));
            if !self.expiring.replace(true) {
                spawn_local(Rc::clone(self).expire(settings.idle_timeout));
            }
        }
    }

    /// Closes connections that nobody has used for `limit`, until none is idle.
    async fn expire(self: Rc<Self>, limit: Duration) {
        while !self.idle.borrow().is_empty() {
            sleep(limit).await;
            let fresh = |(_, since): &mut (Sender, Instant)| since.elapsed() < limit;
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

// === impl Lease ===

impl Lease {
    /// Sends the request. An idle connection that turns out to be closed gives the request back, and it goes out once more
    /// on a new one: not a byte of it was written.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        let sender = self.sender.as_mut().expect("a lease sends once");
        let mut failure = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        if self.reused
            && let Some(request) = failure.take_message()
        {
            let mut patience = Patience::new(self.pool.shared.settings.pool.wait_timeout);
            let sender = self.sender.insert(self.pool.dial(&mut patience).await?);
            return sender
                .send_request(request)
                .await
                .map_err(|error| self.lost(error));
        }
        Err(self.lost(failure.into_error()))
    }

    /// What the exchange will say about the endpoint, if endpoints are judged.
    pub(crate) fn trial(&self) -> Option<Trial> {
        Trial::begin(&self.pool.shared.directory, &self.pool.endpoint)
    }

    /// How much of a response may wait for the client.
    pub(crate) fn window(&self) -> usize {
        self.pool.shared.settings.http2.stream_window as usize
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
        } = &*self.pool;
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
            None => shared.unavailable("upstream_lost", "the connection to the upstream was lost"),
        };
        lost.with_http_status(502).with_source(error)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.shared.stats.streams.decrement();
        if let Some(mut sender) = self.sender.take().filter(|sender| !sender.is_closed()) {
            let pool = Rc::clone(&self.pool);
            spawn_local(async move {
                // Ready means that both bodies have ended cleanly; else the connection closes.
                if sender.ready().await.is_ok() {
                    pool.keep(sender);
                }
            });
        }
    }
}
