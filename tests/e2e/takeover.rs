//! A new process takes the addresses of an old one under load: no call fails, and no stream is cut.

use std::{
    net::TcpListener,
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::{
    net::{TcpStream, UnixDatagram, UnixStream},
    task::JoinSet,
};

use crate::support::{
    child::{Folder, Running},
    client::{Call, Client, grpc},
    flood::ECHO,
    framed, plain,
    stream::Incoming,
    upstream::{Served, Upstream, echo},
    within,
};

/// Calls that must go well while a step of the change is on.
const CALLS: usize = 300;

/// Streams that are open from before the change to its end.
const STREAMS: usize = 20;

fn yaml(address: &str, admin: &str, takeover: bool, upstream: &Served) -> String {
    format!(
        "admin: {{address: \"{admin}\"}}\n\
         takeover: {takeover}\n\
         drain: {{timeout: 60s}}\n\
         workers: 2\n\
         listeners: [{{name: it, address: \"{address}\"}}]\n\
         clusters: {{main: {{endpoints: [{upstream}]}}}}\n\
         routes: [{{name: main, match: {{path_prefix: /e2e.}}, cluster: main}}]\n"
    )
}

async fn echoing() -> Served {
    Upstream::start().await.serve(echo)
}

/// Clients that call without a pause. Whatever goes wrong with any call fails the test.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

/// A stream that is open for as long as it is wanted.
struct Long {
    call: Call,
    incoming: Incoming,
}

// === impl Load ===

impl Load {
    /// Clients that keep their connections until they are told to leave them, as gRPC libraries do.
    fn keeping(address: &Address) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: Arc::default(),
            calls: Arc::default(),
        };
        for _ in 0..4 {
            load.spawn(keep(address.clone(), load.stop(), load.calls()));
        }
        load
    }

    /// And such as make a connection for each call, over HTTP/2 and HTTP/1.1.
    fn dialing(address: &Address) -> Self {
        let mut load = Self::keeping(address);
        load.spawn(dial(address.clone(), load.stop(), load.calls()));
        if let Address::Tcp(_) = address {
            load.spawn(dial_plain(address.clone(), load.stop(), load.calls()));
        }
        load
    }

    fn spawn(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        self.clients.spawn(client);
    }

    fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    fn calls(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.calls)
    }

    /// Waits until so many more calls went well.
    async fn goes_on(&mut self) {
        let wanted = self.calls.load(SeqCst) + CALLS;
        within("further calls go well", async {
            while self.calls.load(SeqCst) < wanted {
                assert!(self.clients.try_join_next().is_none(), "a client gave up");
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn ends(mut self) {
        self.stop.store(true, SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}

async fn keep(address: Address, stop: Arc<AtomicBool>, calls: Arc<AtomicUsize>) {
    while !stop.load(SeqCst) {
        let mut sender = connected(&address).await;
        // Told to leave, it finds that out before it sends a call.
        while !stop.load(SeqCst)
            && let Ok(ready) = within("room for a call", sender.ready()).await
        {
            sender = ready;
            unary(&mut sender).await;
            calls.fetch_add(1, SeqCst);
        }
    }
}

async fn dial(address: Address, stop: Arc<AtomicBool>, calls: Arc<AtomicUsize>) {
    while !stop.load(SeqCst) {
        let sender = connected(&address).await;
        // A connection that is told to leave before its first call is as good as none: gRPC libraries dial again.
        if let Ok(mut sender) = within("room for a call", sender.ready()).await {
            unary(&mut sender).await;
            calls.fetch_add(1, SeqCst);
        }
    }
}

async fn dial_plain(address: Address, stop: Arc<AtomicBool>, calls: Arc<AtomicUsize>) {
    while !stop.load(SeqCst) {
        let mut client = plain::Peer::connect(&address).await;
        client
            .write("GET /nowhere HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n\r\n")
            .await;
        assert_eq!(client.head().await.line, "HTTP/1.1 404 Not Found");
        calls.fetch_add(1, SeqCst);
    }
}

async fn connected(address: &Address) -> SendRequest<Bytes> {
    let builder = Builder::new();
    let (sender, driving) = match address {
        Address::Tcp(address) => {
            let socket = TcpStream::connect(address).await.unwrap();
            let (sender, connection) = builder.handshake(socket).await.unwrap();
            (sender, tokio::spawn(async { drop(connection.await) }))
        }
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).await.unwrap();
            let (sender, connection) = builder.handshake(socket).await.unwrap();
            (sender, tokio::spawn(async { drop(connection.await) }))
        }
        Address::Host(..) => panic!("{address} is not where a proxy listens"),
    };
    drop(driving);
    sender
}

async fn unary(sender: &mut SendRequest<Bytes>) {
    let request = grpc(ECHO).body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(framed(b"hello"), true).unwrap();
    let response = within("an answer comes", response).await.unwrap();
    let mut incoming = Incoming::new(response.into_body());
    let (body, trailers) = incoming.rest().await;
    assert_eq!(body, framed(b"hello"));
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
}

// === impl Long ===

impl Long {
    async fn open(client: &Client) -> Self {
        let mut call = client.call(ECHO, &[]).await;
        let (_, incoming) = call.head().await;
        let mut long = Self { call, incoming };
        long.echoes(b"first").await;
        long
    }

    async fn echoes(&mut self, payload: &[u8]) {
        self.call.outgoing.message(payload).await;
        assert_eq!(self.incoming.message().await.unwrap(), payload);
    }

    async fn ends(mut self) {
        self.echoes(b"last").await;
        self.call.outgoing.end();
        let (rest, trailers) = self.incoming.rest().await;
        assert!(rest.is_empty());
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }
}

/// A new process starts beside the old one, and the old one drains, with clients on both and streams that go on to the end.
async fn changes(mut old: Running, mut load: Load, new: impl Future<Output = Running>) {
    let client = Client::connect_with(&old.address, &Builder::new()).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(Long::open(&client).await);
    }
    load.goes_on().await;

    let new = new.await;
    load.goes_on().await;
    old.signal("TERM").await;
    old.says("draining").await;
    load.goes_on().await;

    for mut stream in streams {
        stream.echoes(b"still there").await;
        stream.ends().await;
    }
    let (status, said) = old.ends().await;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("dismissed=0 cut=0"), "{said}");
    assert!(!said.contains("are cut"), "{said}");
    load.goes_on().await;
    load.ends().await;
    let accepted = "thalweg_listener_connections_accepted_total{listener=\"it\"}";
    assert!(new.operator.metric(accepted).await > 0);
}

// === sockets that are handed over ===

#[tokio::test]
async fn socket_that_is_handed_over_serves_old_and_new_process_without_a_lost_connection() {
    let upstream = echoing().await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let yaml = yaml(&address.to_string(), "127.0.0.1:0", false, &upstream);
    let start = || Running::handed(socket.try_clone().unwrap().into(), &yaml);

    let old = start().await;
    let load = Load::dialing(&old.address);
    changes(old, load, start()).await;
}

#[tokio::test]
async fn unix_socket_that_is_handed_over_keeps_its_file() {
    let (upstream, folder) = (echoing().await, Folder::empty());
    let path = folder.path().join("it.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let yaml = yaml(
        &format!("unix:{}", path.display()),
        "127.0.0.1:0",
        false,
        &upstream,
    );

    let proxy = Running::handed(socket.try_clone().unwrap().into(), &yaml).await;
    let client = Client::connect_with(&proxy.address, &Builder::new()).await;
    assert_eq!(client.unary(ECHO, b"hello").await.code(), Code::Ok);
    proxy.signal("TERM").await;
    assert_eq!(proxy.ends().await.0.code(), Some(0));

    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn socket_that_nobody_wants_is_told_of() {
    let upstream = echoing().await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let yaml = yaml("127.0.0.1:0", "127.0.0.1:0", false, &upstream);

    let proxy = Running::handed(socket.into(), &yaml).await;

    assert_ne!(proxy.address, Address::Tcp(address));
    let told = format!("no listener has its address socket={address}");
    assert!(proxy.warnings.contains(&told), "{}", proxy.warnings);
}

// === sockets that are shared ===

#[tokio::test]
async fn two_processes_share_an_address_until_the_old_one_has_drained() {
    let upstream = echoing().await;
    let old = Running::start_as_written(&yaml("127.0.0.1:0", "127.0.0.1:0", true, &upstream)).await;
    let (address, admin) = (old.address.to_string(), old.operator.0.to_string());
    let yaml = yaml(&address, &admin, true, &upstream);

    let load = Load::dialing(&old.address);
    changes(old, load, Running::start_as_written(&yaml)).await;
}

#[tokio::test]
async fn new_unix_socket_takes_the_place_of_the_old_one_without_a_lost_connection() {
    let (upstream, folder) = (echoing().await, Folder::empty());
    let address = format!("unix:{}/it.sock", folder.path().display());
    let yaml = yaml(&address, "127.0.0.1:0", true, &upstream);

    let old = Running::start_as_written(&yaml).await;
    let load = Load::dialing(&old.address);
    changes(old, load, Running::start_as_written(&yaml)).await;

    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(
        left, 1,
        "the socket of the new process, and nothing beside it"
    );
}

#[tokio::test]
async fn second_process_is_refused_where_no_takeover_is_wanted() {
    let upstream = echoing().await;
    for (old, new) in [(false, false), (true, false), (false, true)] {
        let old = yaml("127.0.0.1:0", "127.0.0.1:0", old, &upstream);
        let old = Running::start_as_written(&old).await;
        let new = yaml(&old.address.to_string(), "127.0.0.1:0", new, &upstream);
        let folder = Folder::with(&new);

        let said = folder.run(&[]).await;

        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(
            said.stderr.contains("another process listens there"),
            "{}",
            said.stderr
        );
    }
}

// === who is told ===

#[tokio::test]
async fn supervisor_is_told_when_it_is_ready_and_when_it_stops() {
    let (upstream, folder) = (echoing().await, Folder::empty());
    let path = folder.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let heard = async || {
        let mut bytes = vec![0; 256];
        let length = within("news come", socket.recv(&mut bytes)).await.unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };

    let yaml = yaml("127.0.0.1:0", "127.0.0.1:0", false, &upstream);
    let proxy = Running::notifying(&path, &yaml).await;
    assert_eq!(heard().await, "READY=1\n");
    proxy.signal("TERM").await;

    assert_eq!(heard().await, "STOPPING=1\n");
}
