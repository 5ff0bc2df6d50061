//! Connections that carry many streams, to one endpoint, of one worker.
//!
//! **Why a pool of our own.** The `h2` crate accepts more streams than the peer allows and queues them where nobody sees
//! them. Here a stream is only opened on a connection that has room for it by the peer's own word.
//!
//! **How.** A connection is used once the peer's SETTINGS have arrived: they say how many streams it takes, and that it
//! speaks HTTP/2 at all. A stream takes the connection with the fewest; when the fullest tolerable level is passed
//! on all of them, another is dialed in the background, and a stream that finds no room waits, within a bound, for the
//! first slot or connection that becomes free. As many connections are dialed as those who wait will need, a few at a time: each
//! that lands starts the next. A connection is retired when it is lost, sent away (GOAWAY), idle or
//! old: it takes no new streams, and closes after its last.
//!
//! | file | what it holds |
//! |---|---|
//! | [`waiting`] | the streams that wait |

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, task::noop_waker_ref};
use h2::{PingPong, SendStream, client};
use http::Request;
use thalweg_filters::{Error, StreamContext, stream::Protocol};
use tokio::{task::spawn_local, time::sleep};

use self::waiting::Waiting;
use crate::{
    dismissal::{Group, Member},
    keepalive::{self, Keepalive},
    patience::{Patience, SLICES},
    receive::{Sender, Silence},
    stall::{Stall, StallWatch, Stalled},
    transport::{Payload, Transport, driven},
    upstream::{
        Dialing, Shared, balance,
        endpoint::{Endpoint, Live, PASS_OVER},
        outlier::Trial,
    },
};

mod waiting;

/// Another connection is dialed when all are this full, in tenths of what the peer allows.
const CROWDED_TENTHS: usize = 8;

/// The connections to one endpoint.
pub(crate) struct Pool {
    shared: Rc<Shared>,
    endpoint: Arc<Endpoint>,
    state: RefCell<State>,
    waiting: Waiting<Result<Lease, Error>>,
    /// A task counts the rounds of those who wait.
    keeps_time: Cell<bool>,
    /// The endpoint is gone: no new connection, and no new stream.
    closed: Cell<bool>,
    /// The gRPC streams that end with the endpoint.
    streams: Rc<Group>,
}

struct State {
    connections: Vec<Rc<Connection>>,
    dialing: usize,
    /// Streams that a connection takes which is on its way, as far as is known.
    room: usize,
}

struct Connection {
    sender: RefCell<client::SendRequest<Payload>>,
    /// Streams that are open.
    active: Cell<usize>,
    /// Streams that may be open: the peer's limit or ours.
    limit: Cell<usize>,
    /// Streams whose bytes the upstream has not taken for `pool.avoid_stalled`.
    stalled: Rc<Stalled>,
    /// A stream was opened or ended since this was last looked at.
    used: Cell<bool>,
    silence: Silence,
}

/// The right to open one stream, and its place on the connection for as long as it is open.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Rc<Connection>,
    _live: Live,
}

// === impl Pool ===

impl Pool {
    /// A place for one stream, now or within `pool.wait_timeout`.
    pub(crate) async fn lease(self: Rc<Self>) -> Result<Lease, Error> {
        if self.closed.get() {
            return Err(self.shared.removed(&self.endpoint));
        }
        if let Some(lease) = self.lease_now() {
            return Ok(lease);
        }
        let _waits = self.endpoint.live();
        let _pending = self.shared.pending()?;
        let place = self.waiting.join();
        self.dial_if_wanted();
        if !self.keeps_time.replace(true) {
            let slice = self.shared.settings.pool.wait_timeout / SLICES;
            spawn_local(Self::keep_time(Rc::downgrade(&self), slice));
        }
        place.await
    }

    /// Ends waits that last too long, for as long as anybody waits.
    async fn keep_time(pool: Weak<Self>, slice: Duration) {
        loop {
            sleep(slice).await;
            let Some(pool) = pool.upgrade() else { return };
            pool.waiting.end_round(SLICES, || Err(pool.out_of_time()));
            if pool.waiting.is_empty() {
                return pool.keeps_time.set(false);
            }
        }
    }

    fn out_of_time(&self) -> Error {
        if self.is_full() {
            self.shared.crowded(&self.endpoint)
        } else {
            self.shared.waited(&self.endpoint)
        }
    }

    /// A place on the connection with the fewest streams, if one has room. A connection on which a stream has stalled is the
    /// last choice, and none as long as another may be dialed.
    pub(crate) fn lease_now(self: &Rc<Self>) -> Option<Lease> {
        loop {
            let state = self.state.borrow();
            let may_dial = self.may_dial(&state) || state.dialing > 0;
            let connection = state
                .connections
                .iter()
                .filter(|connection| connection.active.get() < connection.limit.get())
                .filter(|connection| !(may_dial && connection.has_stalled()))
                .min_by_key(|connection| (connection.has_stalled(), connection.active.get()))
                .cloned()?;
            drop(state);
            if !connection.is_usable() {
                // Sent away; the streams that it still has go on.
                self.retire(&connection);
                continue;
            }
            connection.active.set(connection.active.get() + 1);
            connection.used.set(true);
            self.shared.stats.streams.increment();
            let lease = Lease {
                pool: Rc::clone(self),
                connection,
                _live: self.endpoint.live(),
            };
            if lease.connection.is_crowded() {
                self.dial_if_wanted();
            }
            return Some(lease);
        }
    }

    /// Whether there are as many connections as there may be.
    fn is_full(&self) -> bool {
        self.state.borrow().connections.len() >= self.shared.settings.pool.max_connections
    }

    /// Dials when there is need of room, as often as there is need that no dial on its way would meet.
    fn dial_if_wanted(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        while self.may_dial(&state) && self.wants_more(&state) {
            state.dialing += 1;
            spawn_local(Rc::clone(self).dial());
        }
    }

    fn wants_more(&self, state: &State) -> bool {
        let connections = &mut state.connections.iter();
        let mut crowded =
            || connections.all(|connection| connection.is_crowded() || connection.has_stalled());
        self.waiting.len() > state.dialing * state.room || (state.dialing == 0 && crowded())
    }

    /// Not beyond `max_connections`, nor more than a few at a time; and after a dial that has failed not at once again, unless there
    /// is nothing else to hope for.
    fn may_dial(&self, state: &State) -> bool {
        let pool = &self.shared.settings.pool;
        !self.closed.get()
            && state.dialing < pool.max_dials
            && state.connections.len() + state.dialing < pool.max_connections
            && (!self.endpoint.is_unreachable()
                || state.connections.is_empty() && state.dialing == 0)
    }

    /// Opens a connection and drives it to its end.
    async fn dial(self: Rc<Self>) {
        let guard = DialGuard {
            _dialing: self.shared.dialing(),
            pool: Rc::clone(&self),
        };
        let mut patience = Patience::new(self.shared.settings.connect_timeout);
        let opened = patience
            .with(async {
                let transport = self.shared.dial(self.endpoint.address()).await?;
                let opened = self.open(transport.clone()).await;
                // The codec above passes on the words of what broke TLS, and no more.
                opened.map_err(|error| match (&self.shared.tls, transport.broken()) {
                    (Some(tls), Some(cause)) => {
                        tls.explained(io::Error::other(cause), self.endpoint.address())
                    }
                    _ => error,
                })
            })
            .await;
        match opened {
            Some(Ok(_)) if self.closed.get() => {}
            Some(Ok((sender, driver))) => {
                self.endpoint.reached();
                let limit = driver.limit(&self);
                let connection = Rc::new(Connection {
                    sender: RefCell::new(sender),
                    active: Cell::new(0),
                    limit: Cell::new(limit),
                    stalled: Rc::new(Stalled::new(Arc::clone(&self.shared.stats))),
                    used: Cell::new(true),
                    silence: Silence::default(),
                });
                self.admit(&connection, limit);
                drop(guard);
                self.shared.stats.connected.increment();
                self.shared.stats.connections.increment();
                let weak = Rc::downgrade(&connection);
                drop(connection);
                driver.run(&self, &weak).await;
                self.shared.stats.connections.decrement();
                if let Some(connection) = weak.upgrade() {
                    self.retire(&connection);
                }
            }
            failed => {
                let error = match failed {
                    Some(Err(error)) => self.shared.no_connection(&self.endpoint, &error),
                    _ => self.shared.too_late(&self.endpoint),
                };
                self.fail_waiting(&error);
                drop(guard);
                // Until then nobody dials who has other connections to hope for, and that may be in vain.
                let pool = Rc::downgrade(&self);
                drop(self);
                sleep(PASS_OVER).await;
                if let Some(pool) = pool.upgrade()
                    && !pool.waiting.is_empty()
                {
                    pool.dial_if_wanted();
                }
            }
        }
    }

    /// Begins HTTP/2 on a connection, and waits for the peer's SETTINGS.
    async fn open(
        &self,
        transport: Transport,
    ) -> io::Result<(client::SendRequest<Payload>, Driver)> {
        transport.batch();
        let handshake = self.builder().handshake(transport.clone());
        let handshake = driven(transport.clone(), handshake).await?;
        let (sender, mut connection) = handshake.map_err(io::Error::other)?;
        let mut driver = Driver {
            ping: connection.ping_pong().expect("it is taken once"),
            connection,
            transport,
            stall: StallWatch::new(self.shared.settings.stall),
            keepalive: Keepalive::new(&self.shared.settings.http2.keepalive),
        };
        driver.settings().await?;
        Ok((sender, driver))
    }

    fn builder(&self) -> client::Builder {
        let settings = &self.shared.settings.http2;
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(settings.max_frame_size)
            .max_header_list_size(settings.max_header_list_size)
            .max_send_buffer_size(settings.send_buffer)
            .header_table_size(settings.header_table_size)
            .max_concurrent_reset_streams(settings.max_reset_streams)
            .max_pending_accept_reset_streams(settings.max_pending_resets)
            .max_local_error_reset_streams(Some(settings.max_local_resets))
            .reset_stream_duration(settings.reset_memory)
            .data_frame_budget(settings.data_frame_budget)
            // No stream before the peer has said how many it takes.
            .initial_max_send_streams(0)
            .max_concurrent_streams(0)
            .enable_push(false);
        builder
    }

    /// Hands free places to those who wait, in their order, and dials for those who are left.
    fn serve_waiting(self: &Rc<Self>) {
        while !self.waiting.is_empty() {
            let Some(lease) = self.lease_now() else {
                return self.dial_if_wanted();
            };
            // Whoever is in the queue takes it: a lease that is dropped would come back here.
            let _taken = self.waiting.answer_first(Ok(lease));
        }
    }

    /// A dial has landed: here is a connection, and the next will hardly take more streams than this one.
    fn admit(&self, connection: &Rc<Connection>, limit: usize) {
        let mut state = self.state.borrow_mut();
        state.connections.push(Rc::clone(connection));
        state.room = limit;
    }

    /// After a dial that failed: those who wait hear of it, unless there is still something to wait for.
    fn fail_waiting(&self, error: &Error) {
        let state = self.state.borrow();
        let was_last = state.connections.is_empty() && state.dialing == 1;
        drop(state);
        if was_last {
            self.waiting.answer_all(|| Err(error.clone()));
        }
    }

    fn retire(self: &Rc<Self>, connection: &Rc<Connection>) {
        let mut state = self.state.borrow_mut();
        let before = state.connections.len();
        state
            .connections
            .retain(|other| !Rc::ptr_eq(other, connection));
        if state.connections.len() < before {
            self.shared.stats.retired.increment();
        }
        drop(state);
        if !self.waiting.is_empty() {
            self.dial_if_wanted();
        }
    }
}

impl balance::Pool for Pool {
    fn new(shared: &Rc<Shared>, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            shared: Rc::clone(shared),
            endpoint: Arc::clone(endpoint),
            state: RefCell::new(State {
                connections: Vec::new(),
                dialing: 0,
                room: shared.settings.pool.max_streams_per_connection as usize,
            }),
            waiting: Waiting::default(),
            keeps_time: Cell::new(false),
            closed: Cell::new(false),
            streams: Rc::default(),
        }
    }

    fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    fn close(&self) {
        self.closed.set(true);
        // The streams on a connection hold it, and so it closes after the last of them.
        for _ in std::mem::take(&mut self.state.borrow_mut().connections) {
            self.shared.stats.retired.increment();
        }
        self.waiting
            .answer_all(|| Err(self.shared.removed(&self.endpoint)));
    }

    fn dismiss(&self, error: &Error) {
        self.streams.dismiss(error);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({:?})", self.endpoint)
    }
}

/// Takes a dial off the count, however it ends, and serves those whom it has brought room.
struct DialGuard {
    pool: Rc<Pool>,
    _dialing: Dialing,
}

impl Drop for DialGuard {
    fn drop(&mut self) {
        self.pool.state.borrow_mut().dialing -= 1;
        self.pool.serve_waiting();
    }
}

// === impl Connection ===

impl Connection {
    fn is_crowded(&self) -> bool {
        self.active.get() * 10 >= self.limit.get() * CROWDED_TENTHS
    }

    fn has_stalled(&self) -> bool {
        self.stalled.any()
    }

    /// Whether it takes new streams: not after a GOAWAY or an error.
    fn is_usable(&self) -> bool {
        let mut sender = self.sender.borrow_mut();
        match sender.poll_ready(&mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(result) => result.is_ok(),
            Poll::Pending => {
                // The last stream of this handle is not open yet, because the peer's count lags behind ours. A new handle
                // may open the next.
                let fresh = sender.clone();
                *sender = fresh;
                true
            }
        }
    }
}

// === impl Lease ===

impl Lease {
    /// Watches the stream's upload: ends it after `limit`, and keeps others off the connection long before.
    pub(crate) fn stall(&self, limit: Duration) -> Stall {
        let after = self.pool.shared.settings.pool.avoid_stalled;
        Stall::new(limit).marking(Rc::clone(&self.connection.stalled), after)
    }

    /// Whether the upstream will most likely take a few bytes of this stream at once.
    pub(crate) fn takes_more(&self) -> bool {
        self.connection.stalled.takes_more()
    }

    /// Who sends the answers, for a cluster that messages call `label`.
    pub(crate) fn sender(&self, label: &Arc<str>) -> Sender {
        Sender::Upstream {
            label: Arc::clone(label),
            silence: Rc::clone(&self.connection.silence),
        }
    }

    /// Where the stream goes.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.pool.endpoint
    }

    /// What the stream will say about the endpoint, if endpoints are judged.
    pub(crate) fn trial(&self) -> Option<Trial> {
        Trial::begin(&self.pool.shared.directory, &self.pool.endpoint)
    }

    /// Most headers that an answer may have.
    pub(crate) fn max_headers(&self) -> usize {
        self.pool.shared.settings.http2.max_headers
    }

    /// Lets a stream end with the endpoint, if the cluster wants it. Plain HTTP has no messages between which it could.
    pub(crate) fn join(&self, stream: &StreamContext) -> Option<Member> {
        let settings = &self.pool.shared.settings;
        let ends = settings.dismiss_removed || settings.dismisses_unhealthy();
        let joins = ends && stream.protocol() == Protocol::Grpc;
        joins.then(|| self.pool.streams.join(stream))
    }

    /// Opens the stream. The lease is to be kept until the stream has ended.
    pub(crate) fn open(
        &self,
        head: Request<()>,
        end_of_stream: bool,
    ) -> Result<(client::ResponseFuture, SendStream<Payload>), h2::Error> {
        self.connection
            .sender
            .borrow_mut()
            .send_request(head, end_of_stream)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.active.set(self.connection.active.get() - 1);
        self.connection.used.set(true);
        self.pool.shared.stats.streams.decrement();
        self.pool.serve_waiting();
    }
}

/// Drives one connection: reading, writing, and the limits that change on the way.
struct Driver {
    connection: client::Connection<Transport, Payload>,
    ping: PingPong,
    transport: Transport,
    stall: StallWatch,
    keepalive: Keepalive,
}

impl Driver {
    /// Until the peer's SETTINGS have arrived.
    async fn settings(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(end) = self.poll(cx) {
                return Poll::Ready(Err(end
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())));
            }
            if self.connection.max_concurrent_send_streams() > 0 {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        })
        .await
        .map_err(|error| {
            let told = format!(
                "no HTTP/2 settings came: {error} (if it speaks HTTP/1.1, say `protocol: http1` on the cluster)"
            );
            io::Error::new(error.kind(), told)
        })
    }

    /// Streams that the connection takes now: as many as the peer grants, and no more than we want.
    fn limit(&self, pool: &Pool) -> usize {
        let most = pool.shared.settings.pool.max_streams_per_connection;
        let granted = self.connection.max_concurrent_send_streams();
        granted.min(most as usize)
    }

    /// Until the connection has ended.
    async fn run(mut self, pool: &Rc<Pool>, connection: &Weak<Connection>) {
        let settings = &pool.shared.settings.pool;
        // A connection that is old has been retired once and for all.
        let mut old = pin!(some_time(settings.max_connection_age).fuse());
        let mut idle = pin!(some_time(settings.idle_timeout));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(end) = self.poll(cx) {
                if let Err(error) = end {
                    tracing::debug!(cluster = %pool.shared.name, endpoint = %pool.endpoint.address(), %error, "connection lost");
                }
                return Poll::Ready(());
            }
            if self.stall.poll(cx, &self.transport).is_ready() {
                pool.shared.stats.stalls.increment();
                return Poll::Ready(());
            }
            let Some(connection) = connection.upgrade() else { return Poll::Pending };
            if self.poll_silence(cx, &connection).is_ready() {
                pool.shared.stats.keepalive_timeouts.increment();
                connection.silence.set(Some(pool.shared.settings.http2.keepalive.timeout));
                return Poll::Ready(());
            }
            let limit = self.limit(pool);
            if connection.limit.replace(limit) < limit {
                pool.serve_waiting();
            }
            if old.as_mut().poll(cx).is_ready() {
                pool.retire(&connection);
            }
            while idle.as_mut().poll(cx).is_ready() {
                if !connection.used.replace(false) && connection.active.get() == 0 {
                    pool.retire(&connection);
                }
                idle.set(some_time(settings.idle_timeout));
            }
            Poll::Pending
        })
        .await;
    }

    /// Ready when the peer has left a PING without an answer. It is asked only while streams are open: gRPC's servers send
    /// away those who ask without.
    fn poll_silence(&mut self, cx: &mut Context<'_>, connection: &Connection) -> Poll<()> {
        let Self {
            keepalive,
            transport,
            ping,
            ..
        } = self;
        let wanted = connection.active.get() > 0;
        keepalive.poll(cx, transport.read_progress(), wanted, || {
            keepalive::ping(ping);
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = std::pin::Pin::new(&mut self.connection).poll(cx);
        if let Poll::Ready(Err(error)) = self.transport.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        end.map_err(io::Error::other)
    }
}

/// Sleeps; zero is never.
async fn some_time(time: Duration) {
    if time.is_zero() {
        std::future::pending::<()>().await;
    }
    sleep(time).await;
}
