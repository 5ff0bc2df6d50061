//! The limits that keep a rude peer from hurting others: what happens past each, and who is told.

use bytes::{Buf, Bytes};
use h2::Reason;
use http::Request;
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::{net::TcpStream, task::JoinSet};

use crate::support::{
    child::Running,
    client::{self, Client},
    flood::{Backend, ECHO, FLOOD, Hoard, STUCK},
    framed, plain,
    proxy::{TestProxy, Yaml},
    raw::{self, RawUpstream},
    stream::Answer,
    upstream::{self, Upstream, echo, nobody},
};

const KIB: usize = 1024;

/// A counter of the listener of these tests.
fn listener(name: &str) -> String {
    format!("thalweg_listener_{name}{{listener=\"it\"}}")
}

/// A request as HEADERS that open a stream of gRPC.
fn open(stream: u32, path: &str, end: bool) -> Vec<u8> {
    raw::headers(stream, &raw::grpc(path), end)
}

async fn to_nobody() -> Yaml {
    Yaml::to(nobody().await)
}

async fn to_echo() -> Yaml {
    Yaml::to(Upstream::start().await.serve(echo))
}

/// The whole of GOAWAY: the last stream, and the code.
async fn goaway(peer: &mut raw::Peer) -> (u32, u32) {
    let frame = peer.until(|frame| frame.kind == raw::GOAWAY).await;
    let mut payload = &frame.payload[..];
    (payload.get_u32(), payload.get_u32())
}

// === silent clients ===

#[tokio::test]
async fn client_that_says_nothing_is_cut_off() {
    let yaml = to_nobody().await.listener("timeouts: {preface: 50ms}");
    let proxy = yaml.start().await;

    raw::Peer::connect(&proxy.address).await.closed().await;

    let operator = proxy.operator();
    operator
        .metric_is(&listener("preface_timeouts_total"), 1)
        .await;
    operator.metric_is(&listener("connections_live"), 0).await;
}

#[tokio::test]
async fn client_that_says_half_a_preface_is_cut_off() {
    let yaml = to_nobody().await.listener("timeouts: {preface: 50ms}");
    let proxy = yaml.start().await;

    let mut peer = raw::Peer::connect(&proxy.address).await;
    peer.write(&raw::PREFACE[..12]).await;
    peer.closed().await;

    let operator = proxy.operator();
    operator
        .metric_is(&listener("preface_timeouts_total"), 1)
        .await;
}

#[tokio::test]
async fn client_that_opens_no_stream_is_told_before_it_is_cut_off() {
    let yaml = to_nobody().await;
    let proxy = yaml
        .listener("timeouts: {first_headers: 50ms}")
        .start()
        .await;

    let mut peer = raw::Peer::client(&proxy.address, &[]).await;

    let (_, code) = goaway(&mut peer).await;
    assert_eq!(code, 0);
    peer.closed().await;
    let operator = proxy.operator();
    operator.metric_is(&listener("connections_live"), 0).await;
}

#[tokio::test]
async fn client_that_has_opened_a_stream_may_be_silent_for_ever_after() {
    let mut upstream = Upstream::start().await;
    let yaml = Yaml::to(&upstream).listener("timeouts: {first_headers: 50ms}");
    let proxy = yaml.start().await;
    let talker = Client::connect(&proxy).await;
    let mut call = talker.call(ECHO, &[]).await;
    let mut upstream = upstream.call().await;

    // When another client has been sent away for its silence, that time has passed for this one too.
    let mut silent = raw::Peer::client(&proxy.address, &[]).await;
    goaway(&mut silent).await;

    upstream.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(call.answer().await.code(), Code::Ok);
    let mut call = talker.call(ECHO, &[]).await;
    call.outgoing.end();
}

#[tokio::test]
async fn http1_client_that_says_half_a_head_is_cut_off() {
    let yaml = to_nobody().await;
    let proxy = yaml
        .listener("timeouts: {first_headers: 50ms}")
        .start()
        .await;

    let mut peer = plain::Peer::connect(&proxy.address).await;
    peer.write("GET / HTTP/1.1\r\nhost: e2e").await;
    peer.rest().await;

    let operator = proxy.operator();
    operator
        .metric_is(&listener("first_headers_timeouts_total"), 1)
        .await;
    operator.metric_is(&listener("connections_live"), 0).await;
}

#[tokio::test]
async fn http1_connection_is_kept_for_the_next_request_and_not_for_ever() {
    let yaml = to_nobody().await;
    let proxy = yaml
        .listener("timeouts: {first_headers: 50ms}, http1: {keep_alive: 300ms}")
        .start()
        .await;
    let mut peer = plain::Peer::connect(&proxy.address).await;
    let mut ask = async || {
        peer.write("HEAD / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
            .await;
        peer.head().await.line
    };

    assert_eq!(ask().await, "HTTP/1.1 503 Service Unavailable");
    // When another client has been cut off for its silence, this one has been silent for as long.
    let mut silent = raw::Peer::client(&proxy.address, &[]).await;
    goaway(&mut silent).await;
    assert_eq!(ask().await, "HTTP/1.1 503 Service Unavailable");

    peer.rest().await;
    let operator = proxy.operator();
    operator.metric_is(&listener("connections_live"), 0).await;
    let errors = operator.metric(&listener("connection_errors_total")).await;
    assert_eq!(errors, 0, "that a pause ends is no error");
}

// === stalled readers ===

#[tokio::test]
async fn client_whose_socket_takes_no_bytes_is_cut_off() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 64 * KIB])).await;
    let yaml = Yaml::to(&backend.upstream).listener("timeouts: {stall: 100ms}");
    let proxy = yaml.start().await;

    let mut peer = raw::Peer::connect(&proxy.address).await;
    let hello = [
        raw::PREFACE,
        &raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 1 << 30)]),
        &raw::window_update(0, 1 << 30),
        &open(1, FLOOD, true),
    ];
    peer.write(&hello.concat()).await;
    let flood = backend.flood().await;

    assert_eq!(flood.broken().await, Some(Reason::CANCEL));
    let operator = proxy.operator();
    operator.metric_is(&listener("stalls_total"), 1).await;
    operator.metric_is(&listener("connections_live"), 0).await;
}

#[tokio::test]
async fn http1_client_whose_socket_takes_no_bytes_is_cut_off() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 64 * KIB])).await;
    let yaml = Yaml::to(&backend.upstream).listener("timeouts: {stall: 100ms}");
    let proxy = yaml.start().await;

    let mut peer = plain::Peer::connect_narrow(&proxy.address).await;
    peer.write(format!("GET {FLOOD} HTTP/1.1\r\nhost: e2e.test\r\n\r\n"))
        .await;
    let flood = backend.flood().await;

    assert_eq!(flood.broken().await, Some(Reason::CANCEL));
    let operator = proxy.operator();
    operator.metric_is(&listener("stalls_total"), 1).await;
    operator.metric_is(&listener("connections_live"), 0).await;
}

#[tokio::test]
async fn stream_that_its_client_does_not_read_ends_alone() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 64 * KIB])).await;
    let yaml = Yaml::to(&backend.upstream).listener("timeouts: {stall: 100ms}");
    let proxy = yaml.start().await;
    let mut wide = h2::client::Builder::new();
    wide.initial_connection_window_size(1 << 20);
    let client = Client::connect_with(&proxy.address, &wide).await;

    let mut call = client.call(FLOOD, &[]).await;
    call.outgoing.end();
    let (_, mut incoming) = call.head().await;
    let flood = backend.flood().await;
    assert_eq!(flood.broken().await, Some(Reason::CANCEL));

    // What has come is there to be read, and after it the break.
    let (body, end) = incoming.rest().await;
    assert_eq!(end.unwrap_err().reason(), Some(Reason::CANCEL));
    assert_eq!(body.len(), 65_535);
    assert_eq!(client.unary(ECHO, b"others").await.code(), Code::Ok);
}

/// A byte at a time is slow, and it is not stalled where that is progress enough.
#[tokio::test]
async fn stream_whose_client_takes_a_byte_at_a_time_goes_on() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 64 * KIB])).await;
    let stall = "timeouts: {stall: 50ms, stall_min_progress: 1}";
    let yaml = Yaml::to(&backend.upstream).listener(stall);
    let proxy = yaml.start().await;
    let mut peer = raw::Peer::client(&proxy.address, &[(raw::INITIAL_WINDOW_SIZE, 0)]).await;
    peer.write(&open(1, FLOOD, true)).await;
    let _trickle = backend.flood().await;
    let mut taken = 0;

    // The clock of this test: other streams of which not a byte is taken, until each is ended.
    for stalled in [3, 5, 7] {
        peer.write(&open(stalled, FLOOD, true)).await;
        loop {
            let byte = [raw::window_update(1, 1), raw::window_update(0, 1)].concat();
            peer.write(&byte).await;
            let frame = peer
                .until(|frame| matches!(frame.kind, raw::DATA | raw::RST_STREAM))
                .await;
            if frame.kind == raw::RST_STREAM {
                assert_eq!(frame.stream, stalled, "the slow stream was ended");
                break;
            }
            assert_eq!(frame.stream, 1);
            taken += frame.payload.len();
        }
    }

    assert!(taken > 3);
}

/// To take a byte now and then is no way to make the proxy hold a window for ever. Others on the connection are left alone.
#[tokio::test]
async fn stream_whose_client_takes_less_than_the_least_is_ended() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 64 * KIB])).await;
    let stall = "timeouts: {stall: 50ms, stall_min_progress: 1MiB}";
    let yaml = Yaml::to(&backend.upstream).listener(stall);
    let proxy = yaml.start().await;
    let mut peer = raw::Peer::client(&proxy.address, &[(raw::INITIAL_WINDOW_SIZE, 0)]).await;
    peer.write(&open(1, FLOOD, true)).await;
    let _trickle = backend.flood().await;

    let ended = loop {
        let byte = [raw::window_update(1, 1), raw::window_update(0, 1)].concat();
        peer.write(&byte).await;
        let frame = peer
            .until(|frame| matches!(frame.kind, raw::DATA | raw::RST_STREAM))
            .await;
        if frame.kind == raw::RST_STREAM {
            break frame;
        }
    };

    assert_eq!(ended.stream, 1);
    peer.write(&open(3, "/grpc.health.v1.Health/Check", false))
        .await;
    peer.write(&raw::data(3, &framed(b""), true)).await;
    peer.until(|frame| frame.kind == raw::HEADERS && frame.stream == 3)
        .await;
    proxy
        .metric_is("thalweg_streams_live{route=\"main\"}", 0)
        .await;
}

// === limits of a connection ===

#[tokio::test]
async fn connection_past_the_limit_waits_for_one_to_close() {
    let yaml = to_echo().await.listener("max_connections: 2");
    let proxy = yaml.start().await;
    let operator = proxy.operator();
    let (first, second) = (Client::connect(&proxy).await, Client::connect(&proxy).await);
    assert_eq!(first.unary(ECHO, b"1").await.code(), Code::Ok);
    assert_eq!(second.unary(ECHO, b"2").await.code(), Code::Ok);

    let third = Client::connect(&proxy).await;
    let mut call = third.call(ECHO, &[]).await;
    call.outgoing.end();
    operator
        .metric_is(&listener("connections_full_total"), 1)
        .await;
    assert_eq!(first.unary(ECHO, b"1").await.code(), Code::Ok);
    assert_eq!(operator.metric(&listener("connections_live")).await, 2);
    assert_eq!(
        operator
            .metric(&listener("connections_accepted_total"))
            .await,
        2
    );

    second.vanish().await;
    assert_eq!(call.answer().await.code(), Code::Ok);
    assert_eq!(
        operator
            .metric(&listener("connections_accepted_total"))
            .await,
        3
    );
}

#[tokio::test]
async fn streams_past_the_limit_are_refused_and_the_others_go_on() {
    let mut upstream = Upstream::start().await;
    let yaml = Yaml::to(&upstream).listener("http2: {max_concurrent_streams: 2}");
    let proxy = yaml.start().await;

    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    for stream in [1, 3, 5] {
        peer.write(&open(stream, ECHO, true)).await;
    }
    let reset = peer.until(|frame| frame.kind == raw::RST_STREAM).await;
    assert_eq!((reset.stream, reset.code()), (5, 7), "REFUSED_STREAM");

    for _ in 0..2 {
        let mut call = upstream.call().await;
        call.finish_with(200, &[("grpc-status", "0")]);
        peer.until(raw::Frame::ends_stream).await;
    }
    assert!(!upstream.has_call());
    peer.write(&open(7, ECHO, true)).await;
    upstream.call().await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let yaml = to_nobody().await.listener("http2: {max_pending_resets: 5}");
    let proxy = yaml.start().await;

    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    let burst: Vec<u8> = (0..20)
        .map(|index| 2 * index + 1)
        .flat_map(|stream| [open(stream, ECHO, false), raw::rst_stream(stream, 8)].concat())
        .collect();
    peer.write(&burst).await;

    let (_, code) = goaway(&mut peer).await;
    assert_eq!(code, 11, "ENHANCE_YOUR_CALM");
    peer.closed().await;
}

// === limits of a head ===

/// A call with so many headers of its own.
async fn with_headers(proxy: &TestProxy, grpc: bool, name: &str, count: usize) -> Answer {
    let mut request = if grpc {
        client::grpc(ECHO)
    } else {
        Request::get("http://e2e.test/")
    };
    for index in 0..count {
        let name = name.replace('#', &index.to_string());
        request = request.header(name, format!("v{index}"));
    }
    Client::connect(proxy)
        .await
        .open(request, true)
        .await
        .answer()
        .await
}

#[tokio::test]
async fn repeated_headers_and_crumbs_of_cookies_are_counted_one_by_one() {
    let proxy = to_echo()
        .await
        .listener("http2: {max_headers: 20}")
        .start()
        .await;

    for name in ["x-same", "cookie"] {
        assert_eq!(with_headers(&proxy, true, name, 18).await.code(), Code::Ok);
        let refused = with_headers(&proxy, true, name, 19).await;
        assert_eq!(refused.reason(), Some("too_many_headers"), "{name}");
    }
}

/// The HTTP/2 library refuses it before there is a stream that could say more.
#[tokio::test]
async fn request_whose_headers_are_too_large_is_refused() {
    let proxy = to_echo()
        .await
        .listener("http2: {max_header_list_size: 4KiB}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    for request in [client::grpc(ECHO), Request::get("http://e2e.test/")] {
        let request = request.header("x-large", "v".repeat(5000));
        let answer = client.open(request, false).await.answer().await;
        assert_eq!(answer.status.as_u16(), 431);
    }

    assert_eq!(client.unary(ECHO, b"others").await.code(), Code::Ok);
}

/// RFC 9113 lets a peer end the connection over a head that is a burden, and the state of header compression cannot be kept
/// without reading it.
#[tokio::test]
async fn head_without_end_ends_its_connection() {
    let proxy = to_echo()
        .await
        .listener("http2: {max_header_list_size: 4KiB}")
        .start()
        .await;
    let mut peer = raw::Peer::client(&proxy.address, &[]).await;

    let head = open(1, ECHO, false);
    let unfinished = raw::frame(raw::HEADERS, 0, 1, &head[9..]);
    let mut field = vec![0, 1, b'x', 100];
    field.extend([b'v'; 100]);
    peer.write(&unfinished).await;
    for _ in 0..1000 {
        if peer
            .try_write(&raw::frame(raw::CONTINUATION, 0, 1, &field))
            .await
            .is_err()
        {
            break;
        }
    }

    let (_, code) = goaway(&mut peer).await;
    assert_ne!(code, 0);
    peer.closed().await;
}

#[tokio::test]
async fn http1_request_with_too_many_headers_is_refused() {
    let proxy = to_nobody()
        .await
        .listener("http1: {max_headers: 10}")
        .start()
        .await;
    let mut peer = plain::Peer::connect(&proxy.address).await;

    let fields: String = (0..10).map(|index| format!("x-{index}: v\r\n")).collect();
    peer.write(format!("GET / HTTP/1.1\r\nhost: e2e.test\r\n{fields}\r\n"))
        .await;

    let head = peer.head().await;
    assert_eq!(head.line, "HTTP/1.1 431 Request Header Fields Too Large");
}

#[tokio::test]
async fn http1_request_whose_headers_are_too_large_is_refused() {
    let proxy = to_nobody()
        .await
        .listener("http1: {max_header_bytes: 8KiB}")
        .start()
        .await;
    let mut peer = plain::Peer::connect(&proxy.address).await;

    let large = "v".repeat(9000);
    peer.write(format!(
        "GET / HTTP/1.1\r\nhost: e2e.test\r\nx-large: {large}"
    ))
    .await;

    let head = peer.head().await;
    assert_eq!(head.line, "HTTP/1.1 431 Request Header Fields Too Large");
}

#[tokio::test]
async fn answer_with_too_many_headers_is_refused_and_says_why() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .cluster("http2: {max_headers: 10}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(ECHO, &[]).await;
    call.outgoing.end();
    let names: Vec<String> = (0..11).map(|index| format!("x-{index}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let mut rude = upstream.call().await;
    let _body = rude.respond_with(200, &fields);
    let answer = call.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::ResourceExhausted, Some("upstream_too_many_headers"))
    );
    assert!(answer.text().contains("cluster main"), "{}", answer.text());
    assert!(answer.text().contains("max_headers"), "{}", answer.text());
}

#[tokio::test]
async fn answer_whose_headers_are_too_large_is_refused() {
    let mut upstream = Upstream::start().await;
    let yaml = Yaml::to(&upstream).cluster("http2: {max_header_list_size: 4KiB}");
    let proxy = yaml.start().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(ECHO, &[]).await;
    call.outgoing.end();
    let mut rude = upstream.call().await;
    let large = "v".repeat(5000);
    let _body = rude.respond_with(200, &[("x-large", &large)]);
    let answer = call.answer().await;

    assert_eq!(
        answer.code(),
        Code::Internal,
        "{answer:?} {}",
        answer.text()
    );
    let upstream = Upstream::serve(upstream, echo);
    assert_eq!(client.unary(ECHO, b"others").await.code(), Code::Ok);
    assert_eq!(upstream.connections(), 1);
}

// === settings ===

/// The settings that a peer hears of, and the window of the connection.
async fn heard(peer: &mut raw::Peer) -> (Vec<(u16, u32)>, u32) {
    let settings = peer
        .until(|frame| frame.kind == raw::SETTINGS && frame.flags == 0)
        .await;
    let mut payload = settings.payload;
    let mut values = Vec::new();
    while payload.has_remaining() {
        values.push((payload.get_u16(), payload.get_u32()));
    }
    values.sort_unstable();
    let update = peer
        .until(|frame| frame.kind == raw::WINDOW_UPDATE && frame.stream == 0)
        .await;
    (values, 65_535 + (&update.payload[..]).get_u32())
}

const KEYS: &str = "stream_window: 70KiB, connection_window: 700KiB, max_frame_size: 17KiB, \
                    max_header_list_size: 5KiB, header_table_size: 3KiB";

#[tokio::test]
async fn client_hears_of_each_setting() {
    let yaml = to_nobody().await;
    let proxy = yaml
        .listener(&format!("http2: {{{KEYS}, max_concurrent_streams: 77}}"))
        .start()
        .await;

    let mut peer = raw::Peer::connect(&proxy.address).await;
    peer.write(&[raw::PREFACE, &raw::settings(&[])].concat())
        .await;

    let (settings, window) = heard(&mut peer).await;
    let expected = [
        (1, 3 << 10),
        (3, 77),
        (4, 70 << 10),
        (5, 17 << 10),
        (6, 5 << 10),
    ];
    assert_eq!(settings, expected);
    assert_eq!(window, 700 << 10);
}

#[tokio::test]
async fn upstream_hears_of_each_setting() {
    let upstream = RawUpstream::bind().await;
    let yaml = Yaml::to(&upstream.address).cluster(&format!("http2: {{{KEYS}}}"));
    let proxy = yaml.start().await;
    let _call = Client::connect(&proxy).await.call(ECHO, &[]).await;

    let mut peer = upstream.accept().await;
    peer.bytes(raw::PREFACE.len()).await;
    peer.write(&raw::settings(&[])).await;

    let (settings, window) = heard(&mut peer).await;
    // No push, and so no streams of the upstream's own.
    let expected = [
        (1, 3 << 10),
        (2, 0),
        (3, 0),
        (4, 70 << 10),
        (5, 17 << 10),
        (6, 5 << 10),
    ];
    assert_eq!(settings, expected);
    assert_eq!(window, 700 << 10);
}

// === many at once ===

#[tokio::test]
async fn two_hundred_deadlines_that_pass_at_once_hurt_no_connection() {
    let mut backend = Backend::start(&upstream::builder(), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut calls = Vec::new();
    for _ in 0..200 {
        let mut call = client.call(STUCK, &[("grpc-timeout", "300m")]).await;
        call.outgoing.message(b"hello").await;
        calls.push(call);
    }
    for call in &mut calls {
        let answer = call.answer().await;
        assert_eq!(
            (answer.code(), answer.reason()),
            (Code::DeadlineExceeded, Some("grpc_timeout"))
        );
    }

    assert_unhurt(&proxy, &client).await;
    drop(backend.stuck().await);
}

/// The same, when the clients' own clocks are the faster ones.
#[tokio::test]
async fn two_hundred_cancels_at_once_hurt_no_connection() {
    let mut backend = Backend::start(&upstream::builder(), Bytes::new()).await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut calls: Vec<(client::Call, Hoard)> = Vec::new();
    for _ in 0..200 {
        let mut call = client.call(STUCK, &[]).await;
        call.outgoing.message(b"hello").await;
        calls.push((call, backend.stuck().await));
    }
    drop(calls);

    assert_unhurt(&proxy, &client).await;
}

async fn assert_unhurt(proxy: &TestProxy, client: &Client) {
    let operator = proxy.operator();
    operator
        .metric_is("thalweg_cluster_streams{cluster=\"main\"}", 0)
        .await;
    assert_eq!(client.unary(ECHO, b"still there").await.code(), Code::Ok);
    assert_eq!(
        operator.metric(&listener("connection_errors_total")).await,
        0
    );
    assert_eq!(
        operator
            .metric(&listener("connections_accepted_total"))
            .await,
        1
    );
    let retired = "thalweg_cluster_retired_total{cluster=\"main\"}";
    assert_eq!(operator.metric(retired).await, 0);
}

#[tokio::test]
async fn accepting_goes_on_after_the_process_was_out_of_files() {
    let upstream = Upstream::start().await.serve(echo);
    let mut proxy = Running::with_files(
        64,
        &format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             clusters: {{main: {{endpoints: [{upstream}]}}}}\n\
             routes: [{{name: main, cluster: main}}]\n"
        ),
    )
    .await;
    let Address::Tcp(address) = proxy.address else {
        unreachable!("it listens on TCP")
    };

    // They stay where they are, those whom the process has no file for in the kernel's queue.
    let mut crowd = JoinSet::new();
    for _ in 0..500 {
        crowd.spawn(async move {
            let _socket = TcpStream::connect(address).await;
            std::future::pending::<()>().await;
        });
    }
    proxy.says("an accept failed").await;
    crowd.shutdown().await;

    let client = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;
    assert_eq!(client.unary(ECHO, b"hello").await.code(), Code::Ok);
    let errors = proxy
        .operator
        .metric(&listener("accept_errors_total"))
        .await;
    assert!(errors > 0, "it was never out of files");
}
