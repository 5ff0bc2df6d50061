//! How far a sender gets whose reader does not read, and that he holds up nobody else.
//!
//! The bound of one direction of one stream is the window that the proxy gives the sender, and after it the window that the
//! reader gives the proxy: credit returns to the sender when bytes have entered the reader's window, and not before.

use bytes::{Bytes, BytesMut};
use http::Request;
use thalweg_proto::status::Code;
use tokio::io::AsyncWriteExt;

use crate::support::{
    client::{self, Call, Client},
    flood::{Backend, ECHO, FLOOD, Flood, Hoard, SINK, SPRING, STUCK, at_rest},
    framed, plain,
    proxy::{TestProxy, Yaml},
    raw,
    stream::Incoming,
    take_message,
    upstream::{self, Upstream},
    within,
};

const KIB: usize = 1024;

/// What the proxy gives a sender in these tests.
const OURS: usize = 128 * KIB;

/// What the reader gives the proxy in these tests.
const THEIRS: usize = 64 * KIB;

/// A message of 64 KiB, and one of 20 bytes.
fn messages() -> [Bytes; 2] {
    [framed(&[7; 64 * KIB]), framed(&[7; 20])]
}

/// An upstream's builder with this window for a stream, and one for the connection that is in nobody's way.
fn upstream_with(window: usize) -> h2::server::Builder {
    let mut builder = upstream::builder();
    builder.initial_window_size(u32::try_from(window).unwrap());
    builder
}

/// A client with this window for a stream, and one for the connection that is in nobody's way.
async fn client_with(proxy: &TestProxy, window: usize) -> Client {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(u32::try_from(window).unwrap())
        .initial_connection_window_size(64 << 20);
    Client::connect_with(&proxy.address, &builder).await
}

async fn hoarded(client: &Client) -> Hoard {
    let mut call = client.call(FLOOD, &[]).await;
    call.outgoing.end();
    let (_, incoming) = call.head().await;
    Hoard::start(incoming)
}

// === one stream ===

#[tokio::test]
async fn upload_that_nobody_reads_stops_within_one_window_and_one_window() {
    for message in messages() {
        let mut backend = Backend::start(&upstream_with(THEIRS), message.clone()).await;
        let proxy = Yaml::to(&backend.upstream)
            .listener("http2: {stream_window: 128KiB}")
            .start()
            .await;
        let client = Client::connect(&proxy).await;

        let call = client.call(STUCK, &[]).await;
        let flood = Flood::start(call.outgoing, message);
        let backend = backend.stuck().await;
        flood.sent.reach(OURS).await;
        backend.held.reach(THEIRS).await;
        let sent = at_rest(&client, || flood.sent.get()).await;

        assert!(sent <= OURS + THEIRS, "{sent} bytes could be sent");
        assert_eq!(backend.held.get(), THEIRS);
    }
}

#[tokio::test]
async fn download_that_nobody_reads_stops_within_one_window_and_one_window() {
    for message in messages() {
        let mut backend = Backend::start(&upstream::builder(), message).await;
        let proxy = Yaml::to(&backend.upstream)
            .cluster("http2: {stream_window: 128KiB}")
            .start()
            .await;
        let client = client_with(&proxy, THEIRS).await;

        let hoard = hoarded(&client).await;
        let flood = backend.flood().await;
        flood.sent.reach(OURS).await;
        hoard.held.reach(THEIRS).await;
        let sent = at_rest(&client, || flood.sent.get()).await;

        assert!(sent <= OURS + THEIRS, "{sent} bytes could be sent");
        assert_eq!(hoard.held.get(), THEIRS);
    }
}

/// On a connection that takes bytes, a small request is handed to the codec with its head. It leaves when there is room, and not before.
#[tokio::test]
async fn small_request_that_goes_with_its_head_keeps_to_the_window() {
    let upstream = raw::RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let ok = [(":status", "200"), ("grpc-status", "0")];

    let mut first = client.call("/e2e.Small/First", &[]).await;
    first.outgoing.message(&[7; 1000]).await;
    first.outgoing.end();
    let mut peer = upstream.handshake(&[]).await;
    let data = peer.until(|frame| frame.kind == raw::DATA).await;
    peer.write(&raw::headers(data.stream, &ok, true)).await;
    assert_eq!(first.answer().await.code(), Code::Ok);
    peer.write(&raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 0)]))
        .await;
    peer.until(|frame| frame.kind == raw::SETTINGS && frame.flags == raw::ACK)
        .await;

    let mut second = client.call("/e2e.Small/Second", &[]).await;
    second.outgoing.message(&[7; 1000]).await;
    second.outgoing.end();
    let head = peer.until(|frame| frame.kind == raw::HEADERS).await;
    assert!(
        peer.synchronize()
            .await
            .iter()
            .all(|frame| frame.kind != raw::DATA)
    );
    peer.write(&raw::window_update(head.stream, 600)).await;
    let some = peer.until(|frame| frame.kind == raw::DATA).await;
    peer.write(&raw::window_update(head.stream, 600)).await;
    let rest = peer.until(|frame| frame.kind == raw::DATA).await;

    assert_eq!((some.payload.len(), rest.payload.len()), (600, 405));
    assert!(rest.ends_stream());
    peer.write(&raw::headers(head.stream, &ok, true)).await;
    assert_eq!(second.answer().await.code(), Code::Ok);
}

// === beside others ===

/// What a stream moves that is not held up.
const LARGE: usize = 20 << 20;

/// Uploads so many bytes, all of which are read.
async fn upload(client: &Client, count: usize) {
    let mut call = client.call(SINK, &[]).await;
    let piece = Bytes::from(vec![7; 64 * KIB]);
    for start in (0..count).step_by(piece.len()) {
        let len = piece.len().min(count - start);
        call.outgoing.data(piece.slice(..len)).await;
    }
    call.outgoing.end();
    assert_eq!(call.answer().await.messages(), [count.to_string()]);
}

/// Downloads so many bytes, and reads all.
async fn download(client: &Client, count: usize) {
    let mut call = client.call(SPRING, &[]).await;
    call.outgoing.message(count.to_string().as_bytes()).await;
    call.outgoing.end();
    let answer = call.answer().await;
    assert_eq!((answer.code(), answer.body.len()), (Code::Ok, count));
}

/// So many uploads of which nothing is read, at rest.
async fn stalled_uploads(
    client: &Client,
    backend: &mut Backend,
    count: usize,
    least: usize,
) -> Vec<(Flood, Hoard, h2::client::ResponseFuture)> {
    let mut stalled = Vec::new();
    for _ in 0..count {
        let Call { outgoing, response } = client.call(STUCK, &[]).await;
        let flood = Flood::start(outgoing, framed(&[7; 9000]));
        stalled.push((flood, backend.stuck().await, response));
    }
    for (flood, ..) in &stalled {
        flood.sent.reach(least).await;
    }
    stalled
}

/// So many downloads of which nothing is read.
async fn stalled_downloads(
    client: &Client,
    backend: &mut Backend,
    count: usize,
    least: usize,
) -> Vec<(Flood, Hoard)> {
    let mut stalled = Vec::new();
    for _ in 0..count {
        let hoard = hoarded(client).await;
        stalled.push((backend.flood().await, hoard));
    }
    for (flood, _) in &stalled {
        flood.sent.reach(least).await;
    }
    stalled
}

#[tokio::test]
async fn eight_uploads_that_nobody_reads_leave_a_ninth_at_full_speed() {
    let mut backend = Backend::start(&upstream_with(THEIRS), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let client = Client::connect(&proxy).await;

    let _stalled = stalled_uploads(&client, &mut backend, 8, 256 * KIB).await;

    upload(&client, LARGE).await;
    download(&client, LARGE).await;
    assert_eq!(backend.upstream.connections(), 1);
}

#[tokio::test]
async fn eight_downloads_that_nobody_reads_leave_a_ninth_at_full_speed() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 9000])).await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let client = client_with(&proxy, THEIRS).await;

    let _stalled = stalled_downloads(&client, &mut backend, 8, 256 * KIB).await;

    download(&client, LARGE).await;
    upload(&client, LARGE).await;
    assert_eq!(backend.upstream.connections(), 1);
}

/// The connection to the upstream is one for all, and its window has room for as many streams as it may carry.
#[tokio::test]
async fn hundred_downloads_that_one_client_does_not_read_hold_up_no_stranger() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 9000])).await;
    let proxy = Yaml::to(&backend.upstream)
        .cluster("pool: {max_connections: 1, max_streams_per_connection: 110}")
        .start()
        .await;
    let rude = client_with(&proxy, THEIRS).await;

    let _stalled = stalled_downloads(&rude, &mut backend, 100, 256 * KIB).await;

    let stranger = Client::connect(&proxy).await;
    assert_eq!(stranger.unary(ECHO, b"hello").await.code(), Code::Ok);
    download(&stranger, LARGE).await;
    upload(&stranger, LARGE).await;
    assert_eq!(backend.upstream.connections(), 1);
}

/// With the defaults, those streams are spread over connections.
#[tokio::test]
async fn hundred_downloads_that_one_client_does_not_read_hold_up_no_stranger_by_default() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 9000])).await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let rude = client_with(&proxy, THEIRS).await;

    let _stalled = stalled_downloads(&rude, &mut backend, 100, 256 * KIB).await;

    let stranger = Client::connect(&proxy).await;
    assert_eq!(stranger.unary(ECHO, b"hello").await.code(), Code::Ok);
    download(&stranger, LARGE).await;
}

/// As long as the upstream's connection has room for them.
#[tokio::test]
async fn fifty_uploads_that_the_upstream_does_not_read_hold_up_no_stranger() {
    let mut backend = Backend::start(&upstream_with(THEIRS), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream)
        .listener("http2: {connection_window: 16MiB}")
        .start()
        .await;
    let rude = Client::connect(&proxy).await;

    let _stalled = stalled_uploads(&rude, &mut backend, 50, 256 * KIB).await;

    let stranger = Client::connect(&proxy).await;
    assert_eq!(stranger.unary(ECHO, b"hello").await.code(), Code::Ok);
    upload(&stranger, LARGE).await;
    assert_eq!(backend.upstream.connections(), 1);
}

/// Here the upstream gives a stream 64 KiB and a connection 1 MiB, so that sixteen uploads that it does not read close its
/// connection. Once they count as stalled, whoever comes gets another connection.
#[tokio::test]
async fn uploads_that_fill_the_upstreams_connection_hold_up_no_stranger_who_comes_after() {
    let mut narrow = upstream_with(THEIRS);
    narrow.initial_connection_window_size(1 << 20);
    let mut backend = Backend::start(&narrow, Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream)
        .listener("http2: {connection_window: 16MiB}")
        .cluster("pool: {avoid_stalled: 50ms}")
        .start()
        .await;
    let rude = Client::connect(&proxy).await;

    let stalled = stalled_uploads(&rude, &mut backend, 50, 256 * KIB).await;
    let gauge = "thalweg_cluster_stalled_streams{cluster=\"main\"}";
    proxy.operator().metric_is(gauge, 50).await;

    let stranger = Client::connect(&proxy).await;
    assert_eq!(stranger.unary(ECHO, b"hello").await.code(), Code::Ok);
    upload(&stranger, LARGE).await;
    assert!(backend.upstream.connections() > 1);
    drop(stalled);
    proxy.operator().metric_is(gauge, 0).await;
}

/// Before they count as stalled, others have come to the same connection. That those have to wait is the price of not knowing
/// in time; they go on as soon as there is room.
#[tokio::test]
async fn uploads_that_fill_the_upstreams_connection_hold_up_those_who_were_there_until_they_end() {
    let mut narrow = upstream_with(THEIRS);
    narrow.initial_connection_window_size(1 << 20);
    let mut backend = Backend::start(&narrow, Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream)
        .cluster("pool: {avoid_stalled: 1h}")
        .start()
        .await;
    let rude = Client::connect(&proxy).await;

    let stalled = stalled_uploads(&rude, &mut backend, 16, 256 * KIB).await;
    for (_, hoard, _) in &stalled {
        hoard.held.reach(THEIRS).await;
    }
    let stranger = Client::connect(&proxy).await;
    let mut call = stranger.call(STUCK, &[]).await;
    call.outgoing.message(b"hello").await;
    let waiting = backend.stuck().await;
    for _ in 0..8 {
        let mut there_and_back = stranger.open(client::grpc(ECHO), true).await;
        assert_eq!(there_and_back.answer().await.code(), Code::Ok);
    }
    assert_eq!(waiting.held.get(), 0);

    drop(stalled);
    waiting.held.reach(framed(b"hello").len()).await;
}

// === small messages ===

const MANY: usize = 100_000;

/// Reads messages of 20 bytes, each with its number, and gives back their window in small steps.
async fn read_slowly(incoming: &mut Incoming) -> usize {
    const STEP: usize = KIB;
    let mut buffer = BytesMut::new();
    let mut count = 0;
    while let Some(chunk) = within("the next chunk comes", incoming.raw().data()).await {
        let chunk = chunk.unwrap();
        buffer.extend_from_slice(&chunk);
        while let Some(message) = take_message(&mut buffer) {
            assert_eq!(message, numbered(count));
            count += 1;
        }
        let mut left = chunk.len();
        while left > 0 {
            tokio::task::yield_now().await;
            let step = left.min(STEP);
            incoming
                .raw()
                .flow_control()
                .release_capacity(step)
                .unwrap();
            left -= step;
        }
    }
    assert!(buffer.is_empty());
    count
}

fn numbered(index: usize) -> String {
    format!("{index:020}")
}

/// Nobody has lost a connection, or been sent away.
async fn assert_at_peace(proxy: &TestProxy, client: &Client, connections: usize) {
    assert_eq!(client.unary(ECHO, b"still there").await.code(), Code::Ok);
    assert_eq!(connections, 1);
    let operator = proxy.operator();
    for line in [
        "thalweg_listener_connection_errors_total{listener=\"it\"}",
        "thalweg_cluster_retired_total{cluster=\"main\"}",
    ] {
        assert_eq!(operator.metric(line).await, 0, "{line}");
    }
}

/// An upstream that sends many small messages, or counts those that come.
async fn upstream_of_small_messages() -> upstream::Served {
    // The windows that HTTP/2 begins with.
    let upstream = Upstream::start_with(&h2::server::Builder::new()).await;
    upstream.serve(async |mut call| match call.path() {
        SINK => {
            let mut outgoing = call.respond();
            let count = read_slowly(&mut call.incoming).await;
            outgoing.message(count.to_string().as_bytes()).await;
            outgoing.trailers(&[("grpc-status", "0")]);
        }
        SPRING => {
            let mut outgoing = call.respond();
            for index in 0..MANY {
                outgoing.message(numbered(index).as_bytes()).await;
            }
            outgoing.trailers(&[("grpc-status", "0")]);
        }
        _ => upstream::echo(call).await,
    })
}

#[tokio::test]
async fn hundred_thousand_small_messages_all_reach_a_slow_upstream() {
    let upstream = upstream_of_small_messages().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(SINK, &[]).await;
    for index in 0..MANY {
        call.outgoing.message(numbered(index).as_bytes()).await;
    }
    call.outgoing.end();

    assert_eq!(call.answer().await.messages(), [MANY.to_string()]);
    assert_at_peace(&proxy, &client, upstream.connections()).await;
}

#[tokio::test]
async fn hundred_thousand_small_messages_all_reach_a_slow_client() {
    let upstream = upstream_of_small_messages().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(SPRING, &[]).await;
    call.outgoing.end();
    let (_, mut incoming) = call.head().await;
    assert_eq!(read_slowly(&mut incoming).await, MANY);

    assert_at_peace(&proxy, &client, upstream.connections()).await;
}

#[tokio::test]
async fn hundred_thousand_small_frames_all_reach_a_slow_http1_client() {
    let upstream = upstream_of_small_messages().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut slow = plain::Peer::connect_narrow(&proxy.address).await;

    slow.write(format!("GET {SPRING} HTTP/1.1\r\nhost: e2e.test\r\n\r\n"))
        .await;
    assert_eq!(slow.head().await.line, "HTTP/1.1 200 OK");
    let (body, _) = slow.chunked().await;

    let mut body = BytesMut::from(&body[..]);
    for index in 0..MANY {
        assert_eq!(take_message(&mut body).unwrap(), numbered(index));
    }
    assert!(body.is_empty());
    let client = Client::connect(&proxy).await;
    assert_at_peace(&proxy, &client, upstream.connections()).await;
}

// === HTTP/1.1 ===

/// What hyper may have read beyond the window: its buffer.
const READ_AHEAD: usize = 64 * KIB;

/// Writes a chunked body for as long as the socket takes it.
fn write_for_ever(peer: plain::Peer) -> AbortOnDrop {
    let mut socket = peer.into_socket();
    let mut chunk = b"4000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x4000, 7);
    chunk.extend_from_slice(b"\r\n");
    AbortOnDrop(tokio::spawn(async move {
        while socket.write_all(&chunk).await.is_ok() {}
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the proxy has taken in, in one direction of the route, once it is at rest: while calls come and go beside it, it takes
/// no more, and its socket always has more.
async fn taken_at_rest(proxy: &TestProxy, direction: &str) -> usize {
    let line = format!("thalweg_bytes_total{{route=\"main\",direction=\"{direction}\"}}");
    let taken = async || usize::try_from(proxy.operator().metric(&line).await).unwrap();
    within("the bytes come to rest", async {
        let (mut seen, mut times) = (taken().await, 0);
        while times < 8 {
            // Another connection, on the same worker, to a route without the filter.
            let mut peer = plain::Peer::connect(&proxy.address).await;
            peer.write("GET /e2e.Nowhere HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n\r\n")
                .await;
            assert_eq!(peer.head().await.line, "HTTP/1.1 404 Not Found");
            let now = taken().await;
            times = if now == seen { times + 1 } else { 0 };
            seen = now;
        }
        seen
    })
    .await
}

/// The stalled calls alone are on the route.
const ONLY_STALLED: &str = "match: {path_prefix: /e2e.Bounds/}";

#[tokio::test]
async fn http1_upload_that_nobody_reads_stops_within_one_window_and_one_window() {
    let mut backend = Backend::start(&upstream_with(THEIRS), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream)
        .listener("http2: {stream_window: 128KiB}")
        .route(ONLY_STALLED)
        .start()
        .await;

    let mut peer = plain::Peer::connect(&proxy.address).await;
    let head =
        format!("POST {STUCK} HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\r\n");
    peer.write(head).await;
    let _writing = write_for_ever(peer);
    let hoard = backend.stuck().await;
    hoard.held.reach(THEIRS).await;
    let taken = taken_at_rest(&proxy, "request").await;

    assert!(taken >= OURS, "{taken} bytes were taken");
    assert!(
        taken <= OURS + READ_AHEAD + THEIRS,
        "{taken} bytes were taken"
    );
    assert_eq!(hoard.held.get(), THEIRS);
}

#[tokio::test]
async fn http1_download_that_nobody_reads_stops_within_one_window_and_one_window() {
    let upstream = plain::PlainUpstream::bind().await;
    let proxy = Yaml::to_http1(&upstream.address)
        .cluster("http2: {stream_window: 128KiB}")
        .route(ONLY_STALLED)
        .start()
        .await;
    let client = client_with(&proxy, THEIRS).await;

    let get = Request::get(format!("http://e2e.test{FLOOD}"));
    let mut call = client.open(get, true).await;
    let mut peer = upstream.accept().await;
    peer.head().await;
    peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let _writing = write_for_ever(peer);
    let (_, incoming) = call.head().await;
    let hoard = Hoard::start(incoming);
    hoard.held.reach(THEIRS).await;
    let taken = taken_at_rest(&proxy, "response").await;

    assert!(taken >= OURS, "{taken} bytes were taken");
    assert!(
        taken <= OURS + READ_AHEAD + THEIRS,
        "{taken} bytes were taken"
    );
    assert_eq!(hoard.held.get(), THEIRS);
}

/// Here the reader has no window but its socket, and the kernel has buffers of its own on the way there.
#[tokio::test]
async fn upload_to_an_http1_upstream_that_reads_nothing_stops_when_the_sockets_are_full() {
    let upstream = plain::PlainUpstream::bind_narrow().await;
    let proxy = Yaml::to_http1(&upstream.address)
        .listener("http2: {stream_window: 128KiB}")
        .route(ONLY_STALLED)
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let post = Request::post(format!("http://e2e.test{STUCK}"));
    let call = client.open(post, false).await;
    let flood = Flood::start(call.outgoing, Bytes::from(vec![7; 16 * KIB]));
    let mut peer = upstream.accept().await;
    peer.head().await;
    flood.sent.reach(OURS).await;
    let taken = taken_at_rest(&proxy, "request").await;

    // What hyper has gathered to be written is at most its buffer and the piece that it was handed last.
    let bound = OURS + 2 * READ_AHEAD + kernel_buffers();
    assert!(taken <= bound, "{taken} bytes were taken");
    assert!(
        flood.sent.get() <= bound,
        "{} bytes could be sent",
        flood.sent.get()
    );
    assert!(peer.into_socket().peer_addr().is_ok());
}

#[tokio::test]
async fn download_to_an_http1_client_that_reads_nothing_stops_when_the_sockets_are_full() {
    let mut backend = Backend::start(&upstream::builder(), Bytes::from(vec![7; 16 * KIB])).await;
    let proxy = Yaml::to(&backend.upstream)
        .cluster("http2: {stream_window: 128KiB}")
        .route(ONLY_STALLED)
        .start()
        .await;

    let mut peer = plain::Peer::connect_narrow(&proxy.address).await;
    peer.write(format!("GET {FLOOD} HTTP/1.1\r\nhost: e2e.test\r\n\r\n"))
        .await;
    let flood = backend.flood().await;
    flood.sent.reach(OURS).await;
    let taken = taken_at_rest(&proxy, "response").await;

    let bound = OURS + 2 * READ_AHEAD + kernel_buffers();
    assert!(taken <= bound, "{taken} bytes were taken");
    assert!(
        flood.sent.get() <= bound,
        "{} bytes could be sent",
        flood.sent.get()
    );
    assert!(peer.into_socket().peer_addr().is_ok());
}

/// The most that the kernel keeps of a connection: the sender's buffer, which grows, and the narrow one of the receiver,
/// which the kernel doubles.
fn kernel_buffers() -> usize {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most = limits.split_whitespace().nth(2);
    most.map_or(4 << 20, |most| most.parse().unwrap()) + 2 * plain::NARROW as usize
}

// === what is given back ===

/// Windows so small that a thousand streams pass through them quickly: 32 KiB a stream, 128 KiB a connection.
const SMALL: &str = "http2: {stream_window: 32KiB, connection_window: 128KiB}";

async fn assert_all_given_back(proxy: &TestProxy) {
    for gauge in [
        "thalweg_streams_live{route=\"main\"}",
        "thalweg_cluster_streams{cluster=\"main\"}",
        "thalweg_cluster_pending{cluster=\"main\"}",
    ] {
        proxy.operator().metric_is(gauge, 0).await;
    }
}

/// Four streams fill the window of the connection; if a byte of it were lost, one of them could not fill its own.
#[tokio::test]
async fn thousand_cancelled_uploads_give_back_all_that_they_held() {
    let mut backend = Backend::start(&upstream_with(16 * KIB), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream).listener(SMALL).start().await;
    let client = Client::connect(&proxy).await;
    // Before the proxy's settings have come, a client takes a larger window for granted.
    assert_eq!(client.unary(ECHO, b"first").await.code(), Code::Ok);

    for _ in 0..250 {
        drop(stalled_uploads(&client, &mut backend, 4, 32 * KIB).await);
    }

    assert_all_given_back(&proxy).await;
    let stalled = stalled_uploads(&client, &mut backend, 4, 32 * KIB).await;
    let sent = |index: usize| stalled[index].0.sent.get();
    let sent: usize = (0..4).map(sent).sum();
    assert!(sent <= 4 * (32 + 16) * KIB, "{sent} bytes could be sent");
    drop(stalled);
    assert_all_given_back(&proxy).await;
}

#[tokio::test]
async fn thousand_cancelled_downloads_give_back_all_that_they_held() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 9000])).await;
    let proxy = Yaml::to(&backend.upstream)
        .cluster(SMALL)
        .cluster("pool: {max_connections: 1}")
        .start()
        .await;
    let client = client_with(&proxy, 16 * KIB).await;

    for _ in 0..250 {
        drop(stalled_downloads(&client, &mut backend, 4, 32 * KIB).await);
    }

    assert_all_given_back(&proxy).await;
    let stalled = stalled_downloads(&client, &mut backend, 4, 32 * KIB).await;
    let sent: usize = stalled.iter().map(|(flood, _)| flood.sent.get()).sum();
    assert!(sent <= 4 * (32 + 16) * KIB, "{sent} bytes could be sent");
    assert_eq!(backend.upstream.connections(), 1);
    drop(stalled);
    assert_all_given_back(&proxy).await;
}
