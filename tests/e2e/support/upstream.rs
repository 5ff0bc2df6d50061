//! An upstream on the `h2` crate.

use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use h2::{
    Reason,
    server::{Builder, SendResponse},
};
use http::{HeaderMap, Response, request::Parts};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::mpsc,
    task::AbortHandle,
};

use super::{
    headers,
    stream::{Incoming, Outgoing},
    within,
};

/// A scripted upstream. It accepts connections and streams at once, and does nothing else by itself.
pub(crate) struct Upstream {
    /// As the configuration wants it.
    pub(crate) address: String,
    calls: mpsc::UnboundedReceiver<Call>,
    connections: Arc<AtomicUsize>,
    life: Life,
}

/// The end of an upstream, in the hands of whoever may bring it about.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<Mutex<Living>>);

#[derive(Default)]
struct Living {
    accepting: Option<AbortHandle>,
    connections: Vec<Connection>,
}

/// A call, as its upstream holds it.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) incoming: Incoming,
    pub(crate) connection: Connection,
    pub(crate) respond: SendResponse<Bytes>,
}

/// The connection that a call came on.
#[derive(Clone)]
pub(crate) struct Connection {
    /// The how many-th of the upstream, from 0.
    pub(crate) index: usize,
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    GoAway,
    GoAwayAtOnce(Reason),
    Vanish,
    Freeze,
}

// === impl Upstream ===

impl Upstream {
    /// With windows so large that they are in nobody's way.
    pub(crate) async fn start() -> Self {
        Self::start_with(&builder()).await
    }

    /// With settings of its own.
    pub(crate) async fn start_with(builder: &Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::listen(listener, builder.clone())
    }

    /// Where nobody listened so far.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        Self::listen(TcpListener::bind(address).await.unwrap(), builder())
    }

    /// From now on, on a listener whose connections nobody has answered so far.
    pub(crate) fn listen(listener: TcpListener, builder: Builder) -> Self {
        let (upstream, accepted) = Self::new(listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                accepted.serve(socket, &builder);
            }
        });
        upstream.life.0.lock().unwrap().accepting = Some(accepting.abort_handle());
        upstream
    }

    /// On a Unix socket.
    pub(crate) fn start_on(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (upstream, accepted) = Self::new(format!("unix:{}", path.display()));
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                accepted.serve(socket, &builder());
            }
        });
        upstream.life.0.lock().unwrap().accepting = Some(accepting.abort_handle());
        upstream
    }

    fn new(address: impl ToString) -> (Self, Accepted) {
        let (sender, calls) = mpsc::unbounded_channel();
        let connections = Arc::<AtomicUsize>::default();
        let upstream = Self {
            address: address.to_string(),
            calls,
            connections: Arc::clone(&connections),
            life: Life::default(),
        };
        let accepted = Accepted {
            calls: sender,
            connections,
            life: upstream.life.clone(),
        };
        (upstream, accepted)
    }

    /// The next call. Whoever drops a call breaks it off.
    pub(crate) async fn call(&mut self) -> Call {
        within("a call reaches the upstream", self.calls.recv())
            .await
            .unwrap()
    }

    /// The next call, whenever it comes.
    pub(crate) async fn next(&mut self) -> Option<Call> {
        self.calls.recv().await
    }

    /// The next so many calls.
    pub(crate) async fn calls(&mut self, count: usize) -> Vec<Call> {
        let mut calls = Vec::new();
        while calls.len() < count {
            calls.push(self.call().await);
        }
        calls
    }

    /// Whether a call has come already.
    pub(crate) fn has_call(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Gives every call to `script`, each on a task of its own.
    pub(crate) fn serve<F, S>(mut self, script: S) -> Served
    where
        S: Fn(Call) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let served = Served {
            address: self.address.clone(),
            connections: Arc::clone(&self.connections),
        };
        tokio::spawn(async move {
            while let Some(call) = self.calls.recv().await {
                tokio::spawn(script(call));
            }
        });
        served
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// What it lives by.
    pub(crate) fn life(&self) -> Life {
        self.life.clone()
    }
}

impl Life {
    /// As when the process is killed: nobody listens any more, and every connection is closed without a word.
    pub(crate) fn end(&self) {
        let living = std::mem::take(&mut *self.0.lock().unwrap());
        living.accepting.unwrap().abort();
        for connection in living.connections {
            connection.vanish();
        }
    }
}

/// An upstream whose calls go to a script.
pub(crate) struct Served {
    /// As the configuration wants it.
    pub(crate) address: String,
    connections: Arc<AtomicUsize>,
}

impl Served {
    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// Answers each message with itself, and the end with the status OK.
pub(crate) async fn echo(mut call: Call) {
    let mut outgoing = call.respond();
    while let Ok(Some(message)) = call.incoming.try_message().await {
        outgoing.message(&message).await;
    }
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// Answers plain HTTP with the status that its path says.
pub(crate) async fn refuse_http(mut call: Call) {
    let status = call.path().trim_start_matches('/').parse().unwrap();
    call.finish_with(status, &[]);
}

/// A builder whose windows are in nobody's way.
pub(crate) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    builder
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

// === connections ===

struct Accepted {
    calls: mpsc::UnboundedSender<Call>,
    connections: Arc<AtomicUsize>,
    life: Life,
}

impl Accepted {
    fn serve<S>(&self, socket: S, builder: &Builder)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let connection = Connection {
            index: self.connections.fetch_add(1, SeqCst),
            orders,
        };
        (self.life.0.lock().unwrap().connections).push(connection.clone());
        let calls = self.calls.clone();
        let builder = builder.clone();
        tokio::spawn(async move {
            let Ok(mut driver) = builder.handshake::<_, Bytes>(socket).await else {
                return;
            };
            loop {
                tokio::select! {
                    order = ordered.recv() => match order {
                        Some(Order::GoAway) => driver.graceful_shutdown(),
                        Some(Order::GoAwayAtOnce(reason)) => driver.abrupt_shutdown(reason),
                        Some(Order::Freeze) => while !matches!(ordered.recv().await, Some(Order::Vanish) | None) {},
                        Some(Order::Vanish) => return,
                        None => unreachable!("this task holds a sender"),
                    },
                    accepted = driver.accept() => match accepted {
                        Some(Ok((request, respond))) => {
                            let (head, body) = request.into_parts();
                            let call = Call {
                                head,
                                incoming: Incoming::new(body),
                                connection: connection.clone(),
                                respond,
                            };
                            // The test is over, and with it all that it wanted to know.
                            let _ = calls.send(call);
                        }
                        Some(Err(_)) | None => return,
                    },
                }
            }
        });
    }
}

impl Connection {
    /// Sends GOAWAY, and ends with the last stream.
    pub(crate) fn go_away(&self) {
        self.order(Order::GoAway);
    }

    /// Sends GOAWAY with a code, and closes.
    pub(crate) fn go_away_at_once(&self, reason: Reason) {
        self.order(Order::GoAwayAtOnce(reason));
    }

    /// Closes the socket without a word.
    pub(crate) fn vanish(&self) {
        self.order(Order::Vanish);
    }

    /// Reads and writes nothing any more.
    pub(crate) fn freeze(&self) {
        self.order(Order::Freeze);
    }

    fn order(&self, order: Order) {
        // A connection that is gone has nothing left to do.
        let _ = self.orders.send(order);
    }
}

// === impl Call ===

impl Call {
    /// Where the call goes.
    pub(crate) fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// The headers of the request.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Answers with the head of a gRPC response.
    pub(crate) fn respond(&mut self) -> Outgoing {
        self.respond_with(200, &[("content-type", "application/grpc")])
    }

    /// Answers with a head.
    pub(crate) fn respond_with(&mut self, status: u16, pairs: &[(&str, &str)]) -> Outgoing {
        Outgoing::new(self.head_with(status, pairs, false))
    }

    /// Answers with a head, and nothing after it.
    pub(crate) fn finish_with(&mut self, status: u16, pairs: &[(&str, &str)]) {
        self.head_with(status, pairs, true);
    }

    fn head_with(
        &mut self,
        status: u16,
        pairs: &[(&str, &str)],
        end: bool,
    ) -> h2::SendStream<Bytes> {
        let mut response = Response::new(());
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = headers(pairs);
        self.respond.send_response(response, end).unwrap()
    }

    /// Breaks the stream off before an answer.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// The code with which the proxy breaks the stream off, while there is no answer.
    pub(crate) async fn reset_by_peer(&mut self) -> Reason {
        let reset = std::future::poll_fn(|cx| self.respond.poll_reset(cx));
        within("the proxy breaks the stream off", reset)
            .await
            .unwrap()
    }
}
