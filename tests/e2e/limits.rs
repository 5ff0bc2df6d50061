//! What a client can make the proxy hold, beside what docs/limits.md says of it.
//!
//! Each test brings so many of one kind about, each of them in its worst state and at rest, and holds the memory of the process
//! against the formula. It may be half as much again, or two thirds: a formula that says too much is no help either.

use thalweg::config::Address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use crate::support::{
    authority::{Authority, Files},
    binding::{UNARY, payload, put_bytes},
    child::{Folder, Running},
    client::{Call, Client},
    flood::{Backend, ECHO, FLOOD, Flood, Hoard, SINK, STUCK, at_rest},
    framed,
    hands::Hands,
    plain, raw,
    upstream::{Upstream, builder},
    within,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// === what docs/limits.md says ===

/// A connection of a client, or to an upstream.
const CONNECTION: usize = 24 * KIB;

/// `http2.max_frame_size`, by default.
const FRAME: usize = 64 * KIB;

/// What TLS adds to a connection.
const TLS: usize = 16 * KIB;

/// A stream, with its places on both sides.
const STREAM: usize = 8 * KIB;

/// What has gathered of a connection for one write.
const ONE_WRITE: usize = 144 * KIB;

/// What has gathered of an answer over HTTP/1.1 for one write.
const PLAIN_WRITE: usize = 64 * KIB;

/// `http1.max_header_bytes`, by default: a read buffer.
const PLAIN_READ: usize = 64 * KIB;

/// `http2.stream_window`, by default.
const WINDOW: usize = 256 * KIB;

/// `http2.max_header_list_size`, by default.
const HEADERS: usize = 32 * KIB;

/// What a store is read by.
const PIECE: usize = 256 * KIB;

/// `http2.send_buffer`, by default.
const SEND_BUFFER: usize = 64 * KIB;

// === the proxy and those around it ===

/// What a test adds to the configuration, line by line.
#[derive(Default)]
struct Keys<'a> {
    listeners: &'a str,
    clusters: &'a str,
    bindings: &'a str,
    routes: &'a str,
}

/// A proxy before anything has happened to it, and somebody who asks on from time to time.
struct Before {
    proxy: Running,
    backend: Backend,
    beside: Client,
    memory: usize,
    folder: Folder,
}

impl Before {
    async fn start() -> Self {
        Self::with(Keys::default()).await
    }

    async fn with(keys: Keys<'_>) -> Self {
        let backend = Backend::start(&builder(), framed(&[7; 9000])).await;
        let folder = Folder::empty();
        let Keys {
            listeners,
            clusters,
            bindings,
            routes,
        } = keys;
        let yaml = format!(
            "listeners:\n  - {{name: it, address: \"unix:FOLDER/it.sock\"}}\n{listeners}\
             clusters:\n  main: {{endpoints: [BACKEND], connect_timeout: 1m}}\n{clusters}\
             bindings: {{{bindings}}}\n\
             routes:\n{routes}  - {{name: main, cluster: main}}\n"
        );
        let yaml = yaml
            .replace("FOLDER", folder.path().to_str().unwrap())
            .replace("BACKEND", &backend.upstream.to_string());
        let proxy = Running::start(&yaml).await;
        let beside = connect(&proxy).await;
        for _ in 0..100 {
            // What is there once only comes with the first calls.
            beside.unary(ECHO, &[7; 100 * KIB]).await;
        }
        Self {
            memory: proxy.memory(),
            proxy,
            backend,
            beside,
            folder,
        }
    }

    /// Waits until nothing of it moves any more.
    async fn rest(&self, floods: &[Flood]) {
        at_rest(&self.beside, || {
            floods.iter().map(|flood| flood.sent.get()).sum()
        })
        .await;
    }

    /// What has come since must be what the formula says.
    async fn has_grown_by(&self, formula: usize) {
        println!(
            "held {}",
            self.proxy.operator.metric("thalweg_held_bytes").await
        );
        let grown = self.proxy.memory().saturating_sub(self.memory);
        let percent = 100 * grown / formula;
        println!("{grown} bytes, {percent} % of the {formula} that the formula says");
        assert!(
            (67..=150).contains(&percent),
            "{grown} bytes are {percent} % of the {formula} that docs/limits.md says"
        );
    }

    /// A new connection on which nothing was said.
    async fn socket(&self) -> UnixStream {
        let Address::Unix(path) = &self.proxy.address else {
            panic!("it listens on {}", self.proxy.address)
        };
        within("the client connects", UnixStream::connect(path))
            .await
            .unwrap()
    }

    /// Somebody who takes calls, gives them all the room of the world, and reads nothing.
    fn deaf_upstream(&self) -> JoinHandle<()> {
        let listener = UnixListener::bind(self.folder.path().join("deaf.sock")).unwrap();
        tokio::spawn(async move {
            let mut sockets = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let said = [
                    raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 1 << 24)]),
                    raw::settings_ack(),
                    raw::window_update(0, 1 << 30),
                ];
                socket.write_all(&said.concat()).await.unwrap();
                sockets.push(socket);
            }
        })
    }
}

async fn connect(proxy: &Running) -> Client {
    Client::connect_with(&proxy.address, &h2::client::Builder::new()).await
}

/// So many clients with so many streams each.
async fn calls(
    before: &Before,
    clients: usize,
    streams: usize,
    path: &str,
) -> Vec<(Client, Vec<Call>)> {
    let mut all = Vec::new();
    for _ in 0..clients {
        let client = connect(&before.proxy).await;
        let mut calls = Vec::new();
        for _ in 0..streams {
            calls.push(client.call(path, &[]).await);
        }
        all.push((client, calls));
    }
    all
}

/// All of them send for as long as they can.
fn flooded(
    clients: Vec<(Client, Vec<Call>)>,
) -> (Vec<Client>, Vec<Flood>, Vec<h2::client::ResponseFuture>) {
    let (mut alive, mut floods, mut responses) = (Vec::new(), Vec::new(), Vec::new());
    for (client, calls) in clients {
        alive.push(client);
        for Call { outgoing, response } in calls {
            floods.push(Flood::start(outgoing, framed(&[7; 9000])));
            responses.push(response);
        }
    }
    (alive, floods, responses)
}

// === what is there without a byte ===

#[tokio::test]
async fn idle_connections() {
    const COUNT: usize = 400;
    let before = Before::start().await;

    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let client = connect(&before.proxy).await;
        client.unary(ECHO, b"hello").await;
        clients.push(client);
    }
    before.rest(&[]).await;

    before.has_grown_by(COUNT * CONNECTION).await;
}

#[tokio::test]
async fn frames_that_do_not_end() {
    const COUNT: usize = 200;
    let before = Before::start().await;

    let mut sockets = Vec::new();
    for _ in 0..COUNT {
        let mut socket = before.socket().await;
        // Only those who have heard of it may send larger frames.
        let hello = [raw::PREFACE, &raw::settings(&[])].concat();
        socket.write_all(&hello).await.unwrap();
        let mut settings = [0; 9];
        within("settings", socket.read_exact(&mut settings))
            .await
            .unwrap();
        let frames = [
            raw::settings_ack(),
            raw::headers(1, &raw::grpc(SINK), false),
            raw::data(1, &[7; FRAME], false),
        ];
        let frames = frames.concat();
        let (all_but_a_byte, _) = frames.split_at(frames.len() - 1);
        socket.write_all(all_but_a_byte).await.unwrap();
        sockets.push(socket);
    }
    let live = "thalweg_streams_live{route=\"main\"}";
    before.proxy.operator.metric_is(live, COUNT as u64).await;
    before.rest(&[]).await;

    before
        .has_grown_by(COUNT * (CONNECTION + FRAME + STREAM))
        .await;
}

#[tokio::test]
async fn headers_of_http1_that_do_not_end() {
    const COUNT: usize = 200;
    let before = Before::start().await;

    let mut peers = Vec::new();
    for _ in 0..COUNT {
        let mut peer = before.socket().await;
        let head = "GET / HTTP/1.1\r\nhost: a\r\nx-long: ".to_owned() + &"x".repeat(60 * KIB);
        peer.write_all(head.as_bytes()).await.unwrap();
        peers.push(peer);
    }
    before.rest(&[]).await;

    before.has_grown_by(COUNT * (CONNECTION + PLAIN_READ)).await;
}

#[tokio::test]
async fn idle_connections_of_http1() {
    const COUNT: usize = 400;
    let before = Before::start().await;

    let mut peers = Vec::new();
    for _ in 0..COUNT {
        let mut peer = before.socket().await;
        let head = "GET / HTTP/1.1\r\nhost: a\r\nx-long: ".to_owned();
        let head = head + &"x".repeat(12 * KIB) + "\r\n\r\n";
        peer.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        within("an answer", peer.read_exact(&mut answer))
            .await
            .unwrap();
        peers.push(peer);
    }
    before.rest(&[]).await;

    before.has_grown_by(COUNT * CONNECTION).await;
}

#[tokio::test]
async fn idle_connections_under_tls() {
    const COUNT: usize = 200;
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&["e2e.test"]));
    let before = Before::with(Keys {
        listeners: &format!("  - {{name: tls, address: \"unix:FOLDER/tls.sock\", tls: {{certificates: [{pair}]}}}}\n"),
        ..Keys::default()
    })
    .await;
    let hands = Hands::trusting(&authority);

    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let socket = UnixStream::connect(before.folder.path().join("tls.sock"));
        let stream = hands.shake_on(socket.await.unwrap(), "e2e.test").await;
        let client = Client::over(stream.unwrap(), &h2::client::Builder::new()).await;
        client.unary(ECHO, b"hello").await;
        clients.push(client);
    }
    before.rest(&[]).await;

    before.has_grown_by(COUNT * (CONNECTION + TLS)).await;
}

#[tokio::test]
async fn silent_streams() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 100;
    let before = Before::start().await;

    let mut clients = calls(&before, CLIENTS, STREAMS, ECHO).await;
    let mut there = Vec::new();
    for (_, calls) in &mut clients {
        for call in calls {
            there.push(call.head().await);
        }
    }
    before.rest(&[]).await;

    // On the other side are as many connections, of a hundred streams each.
    before
        .has_grown_by(CLIENTS * (STREAMS * STREAM + 2 * CONNECTION))
        .await;
    drop(clients);
}

// === what is on its way ===

/// The client's socket takes nothing, and nothing but the socket holds it back.
#[tokio::test]
async fn answers_that_nobody_reads() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 10;
    let mut before = Before::start().await;

    let mut readers = Vec::new();
    let mut floods = Vec::new();
    for _ in 0..CLIENTS {
        let mut reader = before.socket().await;
        let mut said = raw::PREFACE.to_vec();
        said.extend(raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 1 << 24)]));
        said.extend(raw::window_update(0, 1 << 30));
        for index in 0..STREAMS {
            let id = u32::try_from(2 * index + 1).unwrap();
            said.extend(raw::headers(id, &raw::grpc(FLOOD), true));
        }
        reader.write_all(&said).await.unwrap();
        readers.push(reader);
        for _ in 0..STREAMS {
            floods.push(before.backend.flood().await);
        }
    }
    for flood in &floods {
        flood.sent.reach(WINDOW).await;
    }
    before.rest(&floods).await;

    let streams = CLIENTS * STREAMS * (WINDOW + SEND_BUFFER + STREAM);
    before
        .has_grown_by(streams + CLIENTS * (ONE_WRITE + 2 * CONNECTION))
        .await;
}

#[tokio::test]
async fn requests_that_nobody_reads() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 10;
    let before = Before::with(Keys {
        clusters: "  deaf: {endpoints: [\"unix:FOLDER/deaf.sock\"]}\n",
        routes: "  - {name: deaf, match: {path: /e2e.Bounds/Stuck}, cluster: deaf}\n",
        ..Keys::default()
    })
    .await;
    let _deaf = before.deaf_upstream();

    let (_clients, floods, _responses) = flooded(calls(&before, CLIENTS, STREAMS, STUCK).await);
    for flood in &floods {
        flood.sent.reach(WINDOW).await;
    }
    before.rest(&floods).await;

    let streams = CLIENTS * STREAMS * (WINDOW + SEND_BUFFER + STREAM);
    before
        .has_grown_by(streams + CLIENTS * CONNECTION + ONE_WRITE)
        .await;
}

#[tokio::test]
async fn answers_that_nobody_reads_over_http1() {
    const COUNT: usize = 50;
    let mut before = Before::start().await;

    let mut peers = Vec::new();
    let mut floods = Vec::new();
    for _ in 0..COUNT {
        let mut peer = before.socket().await;
        let head = format!("POST {FLOOD} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        peer.write_all(head.as_bytes()).await.unwrap();
        peers.push(peer);
        floods.push(before.backend.flood().await);
    }
    for flood in &floods {
        flood.sent.reach(WINDOW).await;
    }
    before.rest(&floods).await;

    before
        .has_grown_by(COUNT * (WINDOW + PLAIN_WRITE + STREAM + CONNECTION))
        .await;
}

#[tokio::test]
async fn requests_that_nobody_reads_over_http1() {
    const COUNT: usize = 50;
    let before = Before::with(Keys {
        clusters: "  deaf: {endpoints: [\"unix:FOLDER/deaf.sock\"]}\n",
        routes: "  - {name: deaf, match: {path: /e2e.Bounds/Stuck}, cluster: deaf}\n",
        ..Keys::default()
    })
    .await;
    let _deaf = before.deaf_upstream();

    let mut writing = Vec::new();
    for _ in 0..COUNT {
        let mut peer = before.socket().await;
        writing.push(tokio::spawn(async move {
            let head = format!(
                "POST {STUCK} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
                1 << 30
            );
            peer.write_all(head.as_bytes()).await.unwrap();
            let _ = peer.write_all(&vec![7; 2 * MIB]).await;
        }));
    }
    before
        .proxy
        .operator
        .metric_is("thalweg_streams_live{route=\"deaf\"}", COUNT as u64)
        .await;
    before.rest(&[]).await;

    before
        .has_grown_by(COUNT * (WINDOW + SEND_BUFFER + 2 * PLAIN_READ + STREAM + CONNECTION))
        .await;
    for task in writing {
        task.abort();
    }
}

/// A cluster with room for one stream, and the route to it.
const NARROW: &str = "  narrow:\n    endpoints: [BACKEND]\n    pool: {max_connections: 1, max_streams_per_connection: 1, wait_timeout: 1h}\n";
const TO_NARROW: &str = "  - {name: narrow, match: {path: /e2e.Bounds/Stuck}, cluster: narrow}\n";

// === what is kept ===

/// The message of a call that comes but for its last byte.
async fn all_but_a_byte(call: &mut Call, size: usize) {
    let message = framed(&vec![7; size]);
    call.outgoing.data(message.slice(..message.len() - 1)).await;
}

#[tokio::test]
async fn first_messages() {
    const CLIENTS: usize = 10;
    const STREAMS: usize = 20;
    let before = Before::with(Keys {
        routes: "  - name: first\n    match: {path: /e2e.Bounds/Stuck}\n    cluster: main\n    filters: [initial_message: {timeout: 1h, max_bytes: 128KiB}]\n",
        ..Keys::default()
    })
    .await;

    let mut clients = calls(&before, CLIENTS, STREAMS, STUCK).await;
    for (_, calls) in &mut clients {
        for call in calls {
            all_but_a_byte(call, 128 * KIB).await;
        }
    }
    before.rest(&[]).await;

    before
        .has_grown_by(CLIENTS * (STREAMS * (128 * KIB + STREAM) + CONNECTION))
        .await;
}

/// The upstream reads all and answers nothing.
#[tokio::test]
async fn requests_that_may_be_sent_again() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 10;
    let before = Before::with(Keys {
        routes: "  - {name: again, match: {path: /e2e.Bounds/Stuck}, cluster: main, retry: {replay_bytes: 256KiB}}\n",
        ..Keys::default()
    })
    .await;

    let mut clients = calls(&before, CLIENTS, STREAMS, STUCK).await;
    for (_, calls) in &mut clients {
        for call in calls {
            call.outgoing.data(vec![7; 256 * KIB]).await;
        }
    }
    before.rest(&[]).await;

    let streams = CLIENTS * STREAMS * (256 * KIB + STREAM);
    before
        .has_grown_by(streams + CLIENTS * 2 * CONNECTION)
        .await;
}

#[tokio::test]
async fn requests_that_wait_for_a_place() {
    const CLIENTS: usize = 20;
    const STREAMS: usize = 10;
    let mut before = Before::with(Keys {
        clusters: NARROW,
        routes: TO_NARROW,
        ..Keys::default()
    })
    .await;
    let _first = before.beside.call(STUCK, &[]).await;
    let _there = before.backend.stuck().await;

    let (_clients, floods, _responses) = flooded(calls(&before, CLIENTS, STREAMS, STUCK).await);
    for flood in &floods {
        flood.sent.reach(WINDOW).await;
    }
    before.rest(&floods).await;

    let streams = CLIENTS * STREAMS * (WINDOW + STREAM);
    before.has_grown_by(streams + CLIENTS * CONNECTION).await;
}

/// Nothing but their headers, of as many bytes as there may be.
#[tokio::test]
async fn headers_that_wait_for_a_place() {
    const CLIENTS: usize = 10;
    const STREAMS: usize = 40;
    let mut before = Before::with(Keys {
        clusters: NARROW,
        routes: TO_NARROW,
        ..Keys::default()
    })
    .await;
    let _first = before.beside.call(STUCK, &[]).await;
    let _there = before.backend.stuck().await;
    let value = "x".repeat(212);
    let names: Vec<_> = (0..120).map(|index| format!("x-{index:04}")).collect();
    let fields: Vec<_> = (names.iter())
        .map(|name| (name.as_str(), value.as_str()))
        .collect();

    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(&before.proxy).await;
        let mut calls = Vec::new();
        for _ in 0..STREAMS {
            calls.push(client.call(STUCK, &fields).await);
        }
        clients.push((client, calls));
    }
    before
        .proxy
        .operator
        .metric_is("thalweg_cluster_pending{cluster=\"narrow\"}", 400)
        .await;

    let streams = CLIENTS * STREAMS * (2 * HEADERS + STREAM);
    before.has_grown_by(streams + CLIENTS * CONNECTION).await;
}

#[tokio::test]
async fn calls_that_are_collected() {
    const COUNT: usize = 10;
    let before = Before::with(Keys {
        bindings: "it: {echo: {}}",
        ..Keys::default()
    })
    .await;

    let mut clients = calls(&before, COUNT, 1, UNARY).await;
    for (_, calls) in &mut clients {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"it");
        put_bytes(&mut message, 2, &vec![7; 4 * MIB - 64 * KIB]);
        let message = framed(&message);
        calls[0]
            .outgoing
            .data(message.slice(..message.len() - 1))
            .await;
    }
    before.rest(&[]).await;

    before
        .has_grown_by(COUNT * (4 * MIB + STREAM + CONNECTION))
        .await;
}

/// The store takes no part.
#[tokio::test]
async fn uploads() {
    const COUNT: usize = 10;
    let store = plain::PlainUpstream::bind().await;
    let files = Files::new();
    let secret = files.write("secret", "secret");
    let binding = format!(
        "it: {{object_store: {{url: \"s3://bucket\", endpoint: \"http://{}\", part_size: 5MiB, access_key_id: me, secret_access_key_file: {}}}}}",
        store.address,
        secret.display()
    );
    let before = Before::with(Keys {
        bindings: &binding,
        ..Keys::default()
    })
    .await;

    let mut clients = Vec::new();
    for index in 0..COUNT {
        let client = connect(&before.proxy).await;
        let target =
            format!("/v1.0-alpha1/bindings/it/stream?operation=create&metadata.key=a{index}");
        let call = client.request("POST", &target, &[]).await;
        clients.push((client, vec![call]));
    }
    let (_clients, floods, _responses) = flooded(clients);
    for flood in &floods {
        flood.sent.reach(5 * MIB).await;
    }
    before.rest(&floods).await;

    before
        .has_grown_by(COUNT * (5 * MIB + WINDOW + STREAM + 2 * CONNECTION))
        .await;
}

/// Nobody knows whether it streams, and it does not say.
#[tokio::test]
async fn requests_to_a_silent_runtime() {
    const CLIENTS: usize = 10;
    const STREAMS: usize = 4;
    let mut wide = builder();
    wide.initial_connection_window_size(128 << 20);
    let silent = Upstream::start_with(&wide).await.serve(async |mut call| {
        let _held = Hoard::start(call.incoming);
        let _reset = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
    });
    let before = Before::with(Keys {
        clusters: &format!("  silent: {{endpoints: [{silent}]}}\n"),
        bindings: "it: {dapr: {cluster: silent}, buffer: {max_bytes: 1MiB}}",
        ..Keys::default()
    })
    .await;

    let (mut alive, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        let client = connect(&before.proxy).await;
        for _ in 0..STREAMS {
            let mut call = client.invoke("it", &[]).await;
            for number in 0..15 {
                call.outgoing
                    .message(&payload(number, &[7; 64 * KIB]))
                    .await;
            }
            clients.push(call);
        }
        alive.push(client);
    }
    before.rest(&[]).await;

    let streams = CLIENTS * STREAMS * (MIB + STREAM);
    before.has_grown_by(streams + CLIENTS * CONNECTION).await;
}

#[tokio::test]
async fn objects_that_nobody_reads() {
    const COUNT: usize = 100;
    let files = Files::new();
    std::fs::write(files.path().join("large"), vec![7; 8 * MIB]).unwrap();
    let before = Before::with(Keys {
        bindings: &format!(
            "it: {{object_store: {{url: \"file://{}\"}}}}",
            files.path().display()
        ),
        ..Keys::default()
    })
    .await;

    let mut peers = Vec::new();
    for _ in 0..COUNT {
        let mut peer = before.socket().await;
        let head = "POST /v1.0-alpha1/bindings/it/stream?operation=get&metadata.key=large HTTP/1.1\r\n\
                    host: a\r\ncontent-length: 0\r\n\r\n";
        peer.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        within("an answer", peer.read_exact(&mut answer))
            .await
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        peers.push(peer);
    }
    before.rest(&[]).await;

    before
        .has_grown_by(COUNT * (2 * PIECE + STREAM + CONNECTION))
        .await;
}
