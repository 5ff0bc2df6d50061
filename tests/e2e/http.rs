//! Plain HTTP, over every pair of protocols.

use bytes::Bytes;
use h2::Reason;
use http::Request;
use thalweg_proto::status::Code;

use crate::support::{
    client::Client,
    plain::{Peer, PlainUpstream},
    proxy::{TestProxy, Yaml},
    raw,
    upstream::{Upstream, echo},
    within,
};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
}

fn post_chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\r\n")
}

async fn with_http1() -> (PlainUpstream, TestProxy) {
    let upstream = PlainUpstream::bind().await;
    let proxy = Yaml::to_http1(&upstream.address).start().await;
    (upstream, proxy)
}

async fn with_http2() -> (Upstream, TestProxy) {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    (upstream, proxy)
}

// === both bodies at once ===
//
// Each side speaks only when it has heard the other, so bytes that anyone held back would be the last.

#[tokio::test]
async fn bodies_move_both_ways_at_once_from_http1_to_http1() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write(post_chunked("/talk")).await;
    let mut upstream = upstream.accept().await;
    assert_eq!(upstream.head().await.line, "POST /talk HTTP/1.1");
    upstream.write(CHUNKED).await;
    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
    for _ in 0..100 {
        client.write_chunk(b"there").await;
        assert_eq!(upstream.chunk().await, "there");
        upstream.write_chunk(b"back").await;
        assert_eq!(client.chunk().await, "back");
    }
    client.write_chunk(b"").await;
    assert_eq!(upstream.chunked().await.0, "");
    upstream.write_chunk(b"").await;
    assert_eq!(client.chunked().await.0, "");
}

#[tokio::test]
async fn bodies_move_both_ways_at_once_from_http1_to_http2() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write(post_chunked("/talk")).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond_with(200, &[]);
    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
    for _ in 0..100 {
        client.write_chunk(b"there").await;
        assert_eq!(upstream.incoming.chunk().await.unwrap().unwrap(), "there");
        outgoing.data("back").await;
        assert_eq!(client.chunk().await, "back");
    }
    client.write_chunk(b"").await;
    upstream.incoming.rest().await.1.unwrap();
    outgoing.end();
    assert_eq!(client.chunked().await.0, "");
}

#[tokio::test]
async fn bodies_move_both_ways_at_once_from_http2_to_http1() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;

    let mut call = client
        .open(Request::post("http://e2e.test/talk"), false)
        .await;
    let mut upstream = upstream.accept().await;
    let head = upstream.head().await;
    assert_eq!(
        (head.line.as_str(), head.values("host")),
        ("POST /talk HTTP/1.1", vec!["e2e.test"])
    );
    upstream.write(CHUNKED).await;
    let (_, mut incoming) = call.head().await;
    for _ in 0..100 {
        call.outgoing.data("there").await;
        assert_eq!(upstream.chunk().await, "there");
        upstream.write_chunk(b"back").await;
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), "back");
    }
    call.outgoing.end();
    assert_eq!(upstream.chunked().await.0, "");
    upstream.write_chunk(b"").await;
    incoming.rest().await.1.unwrap();
}

#[tokio::test]
async fn bodies_move_both_ways_at_once_from_http2_to_http2() {
    let (mut upstream, proxy) = with_http2().await;
    let client = Client::connect(&proxy).await;

    let mut call = client
        .open(Request::post("http://e2e.test/talk"), false)
        .await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond_with(200, &[]);
    let (_, mut incoming) = call.head().await;
    for _ in 0..100 {
        call.outgoing.data("there").await;
        assert_eq!(upstream.incoming.chunk().await.unwrap().unwrap(), "there");
        outgoing.data("back").await;
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), "back");
    }
    call.outgoing.end();
    upstream.incoming.rest().await.1.unwrap();
    outgoing.end();
    incoming.rest().await.1.unwrap();
}

#[tokio::test]
async fn large_bodies_pass_unchanged_between_the_protocols() {
    let body: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
    let (upstream, proxy) = with_http1().await;
    let sent = body.clone();
    let answered = tokio::spawn(async move {
        for _ in 0..2 {
            let mut upstream = upstream.accept().await;
            upstream.head().await;
            let (received, _) = upstream.chunked().await;
            assert!(received == sent, "the request has changed on its way");
            upstream
                .write(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    sent.len()
                ))
                .await;
            upstream.write(&sent).await;
        }
    });

    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::post("http://e2e.test/"), false).await;
    call.outgoing.data(body.clone()).await;
    call.outgoing.end();
    assert!(
        call.answer().await.body == body,
        "the answer has changed on its way"
    );

    let mut client = Peer::connect(&proxy.address).await;
    client.write(post_chunked("/")).await;
    client.write_chunk(&body).await;
    client.write_chunk(b"").await;
    client.head().await;
    assert!(
        client.bytes(body.len()).await == body,
        "the answer has changed on its way"
    );
    within("the upstream has seen both", answered)
        .await
        .unwrap();
}

// === heads ===

const PRIVATE: &str = "connection: keep-alive, x-private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nupgrade: websocket\r\nte: gzip, trailers\r\nx-public: 2\r\n";
const HOP_BY_HOP: [&str; 5] = [
    "x-private",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "connection",
];

#[tokio::test]
async fn what_belongs_to_one_connection_stays_on_it() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client
        .write(format!("GET / HTTP/1.1\r\nhost: e2e.test\r\n{PRIVATE}\r\n"))
        .await;
    let mut upstream = upstream.accept().await;
    let request = upstream.head().await;
    upstream
        .write(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{PRIVATE}\r\n"
        ))
        .await;
    let response = client.head().await;

    for name in HOP_BY_HOP {
        assert!(!request.has(name), "{name} in {request:?}");
        assert!(!response.has(name), "{name} in {response:?}");
    }
    assert_eq!(request.values("x-public"), ["2"]);
    assert_eq!(request.values("te"), ["trailers"]);
    assert_eq!(response.values("x-public"), ["2"]);
}

#[tokio::test]
async fn what_belongs_to_http1_does_not_reach_http2() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;

    client
        .write(format!(
            "GET /a?b=c HTTP/1.1\r\nhost: e2e.test:81\r\n{PRIVATE}\r\n"
        ))
        .await;
    let mut upstream = upstream.call().await;
    upstream.finish_with(200, &[("x-public", "2")]);

    for name in HOP_BY_HOP.into_iter().chain(["host", "transfer-encoding"]) {
        assert!(
            !upstream.headers().contains_key(name),
            "{name} in {:?}",
            upstream.headers()
        );
    }
    assert_eq!(upstream.head.uri, "http://e2e.test:81/a?b=c");
    assert_eq!(upstream.headers()["te"], "trailers");
    assert_eq!(client.head().await.values("x-public"), ["2"]);
}

#[tokio::test]
async fn what_belongs_to_http1_does_not_reach_an_http2_client() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;

    let mut upstream = upstream.accept().await;
    upstream.head().await;
    upstream
        .write(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{PRIVATE}\r\n0\r\n\r\n"
        ))
        .await;

    let answer = call.answer().await;
    for name in HOP_BY_HOP.into_iter().chain(["transfer-encoding"]) {
        assert!(!answer.headers.contains_key(name), "{name} in {answer:?}");
    }
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-public"]),
        (200, &"2".parse().unwrap())
    );
}

#[tokio::test]
async fn length_that_is_known_is_told() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client
        .write("POST / HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 5\r\n\r\nhello")
        .await;
    let mut upstream = upstream.accept().await;
    let request = upstream.head().await;
    assert_eq!(
        (
            request.values("content-length"),
            request.has("transfer-encoding")
        ),
        (vec!["5"], false)
    );
    assert_eq!(upstream.bytes(5).await, "hello");
    upstream
        .write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nworld")
        .await;
    let response = client.head().await;

    assert_eq!(
        (
            response.values("content-length"),
            response.has("transfer-encoding")
        ),
        (vec!["5"], false)
    );
    assert_eq!(client.bytes(5).await, "world");
}

#[tokio::test]
async fn cookies_that_come_in_crumbs_are_one_header_for_http1() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let request = Request::get("http://e2e.test/")
        .header("cookie", "a=1")
        .header("cookie", "b=2");

    let _call = client.open(request, true).await;

    assert_eq!(
        upstream.accept().await.head().await.values("cookie"),
        ["a=1; b=2"]
    );
}

// === lengths that are lies ===

#[tokio::test]
async fn request_shorter_than_it_says_never_looks_complete() {
    let (mut upstream, proxy) = with_http2().await;
    let client = Client::connect(&proxy).await;
    let request = Request::post("http://e2e.test/").header("content-length", "10");

    let mut call = client.open(request, false).await;
    call.outgoing.data("short").await;
    let mut upstream = upstream.call().await;
    assert_eq!(upstream.incoming.chunk().await.unwrap().unwrap(), "short");
    call.outgoing.end();

    upstream.incoming.broken().await;
}

#[tokio::test]
async fn request_shorter_than_it_says_never_looks_complete_to_http1() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let request = Request::post("http://e2e.test/").header("content-length", "10");

    let mut call = client.open(request, false).await;
    call.outgoing.data("short").await;
    let mut upstream = upstream.accept().await;
    assert_eq!(upstream.head().await.values("content-length"), ["10"]);
    assert_eq!(upstream.bytes(5).await, "short");
    call.outgoing.end();

    assert_eq!(
        upstream.rest().await,
        "",
        "the connection ends before the length is reached"
    );
}

/// What is beyond the length would be the next request on the upstream's connection.
#[tokio::test]
async fn request_longer_than_it_says_is_not_passed_on_beyond_its_length() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let request = Request::post("http://e2e.test/").header("content-length", "5");

    let mut call = client.open(request, false).await;
    call.outgoing.data("hello").await;
    let mut upstream = upstream.accept().await;
    upstream.head().await;
    assert_eq!(upstream.bytes(5).await, "hello");
    call.outgoing.data_now("GET /smuggled HTTP/1.1\r\n\r\n");

    assert_eq!(upstream.rest().await, "");
}

#[tokio::test]
async fn answer_shorter_than_it_says_is_broken_off_for_http1() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(get("/")).await;

    let mut upstream = upstream.accept().await;
    upstream.head().await;
    upstream
        .write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort")
        .await;
    drop(upstream);

    assert_eq!(client.head().await.values("content-length"), ["10"]);
    assert_eq!(
        client.rest().await,
        "short",
        "the connection ends before the length is reached"
    );
}

#[tokio::test]
async fn chunked_answer_without_its_end_is_broken_off_for_http1() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(get("/")).await;

    let mut upstream = upstream.accept().await;
    upstream.head().await;
    upstream.write(CHUNKED).await;
    upstream.write_chunk(b"half of").await;
    client.head().await;
    assert_eq!(client.chunk().await, "half of");
    drop(upstream);

    assert_eq!(
        client.rest().await,
        "",
        "the connection ends without a last chunk"
    );
}

#[tokio::test]
async fn answer_shorter_than_it_says_is_broken_off_for_http2() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;

    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ] {
        let mut call = client.open(Request::get("http://e2e.test/"), true).await;
        let mut upstream = upstream.accept().await;
        upstream.head().await;
        upstream.write(head).await;
        let (_, mut incoming) = call.head().await;
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), "short");
        drop(upstream);

        assert_eq!(incoming.broken().await, Reason::INTERNAL_ERROR);
    }
}

#[tokio::test]
async fn answer_shorter_than_it_says_over_http2_is_broken_off() {
    let (mut upstream, proxy) = with_http2().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;
    let mut upstream = upstream.call().await;

    let mut outgoing = upstream.respond_with(200, &[("content-length", "10")]);
    outgoing.data("short").await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.chunk().await.unwrap().unwrap(), "short");
    outgoing.end();

    incoming.broken().await;
}

// === connections ===

#[tokio::test]
async fn connections_are_kept_for_the_next_request_on_both_sides() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write(get("/0")).await;
    let mut upstream = upstream.accept().await;
    for turn in 0..20 {
        assert_eq!(upstream.head().await.line, format!("GET /{turn} HTTP/1.1"));
        upstream
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        client.head().await;
        assert_eq!(client.bytes(2).await, "ok");
        client.write(get(&format!("/{}", turn + 1))).await;
    }
    assert_eq!(
        proxy
            .metric("thalweg_cluster_connected_total{cluster=\"main\"}")
            .await,
        1
    );
}

#[tokio::test]
async fn connection_whose_exchange_broke_is_not_used_again() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client
        .open(Request::get("http://e2e.test/first"), true)
        .await;
    let mut first = upstream.accept().await;
    first.head().await;
    first
        .write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        .await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.chunk().await.unwrap().unwrap(), "half");

    call.outgoing.reset(Reason::CANCEL);
    assert_eq!(
        first.rest().await,
        "",
        "the connection closes, with no other request on it"
    );

    let mut call = client
        .open(Request::get("http://e2e.test/second"), true)
        .await;
    let mut second = upstream.accept().await;
    assert_eq!(second.head().await.line, "GET /second HTTP/1.1");
    second.write(EMPTY).await;
    assert_eq!(call.answer().await.status, 200);
}

/// The upstream has answered and will read the rest of the request as rubbish, or not at all.
#[tokio::test]
async fn connection_with_an_early_answer_is_not_used_again() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client
        .open(Request::post("http://e2e.test/first"), false)
        .await;
    call.outgoing.data("the first of many").await;
    let mut first = upstream.accept().await;
    first.head().await;
    first
        .write("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(call.answer().await.status, 413);

    let mut call = client
        .open(Request::get("http://e2e.test/second"), true)
        .await;
    let mut second = upstream.accept().await;
    assert_eq!(second.head().await.line, "GET /second HTTP/1.1");
    second.write(EMPTY).await;
    assert_eq!(call.answer().await.status, 200);
}

#[tokio::test]
async fn idle_connection_that_the_upstream_closed_costs_nobody_a_request() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;
    let mut first = upstream.accept().await;
    first.head().await;
    first.write(EMPTY).await;
    call.answer().await;
    drop(first);

    let mut call = client.open(Request::get("http://e2e.test/"), true).await;
    let mut second = upstream.accept().await;
    second.head().await;
    second.write(EMPTY).await;

    assert_eq!(call.answer().await.status, 200);
}

#[tokio::test]
async fn upstream_that_closes_without_an_answer_is_a_bad_gateway() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(get("/")).await;

    let mut upstream = upstream.accept().await;
    upstream.head().await;
    drop(upstream);

    let head = client.head().await;
    assert!(head.line.starts_with("HTTP/1.1 502"), "{}", head.line);
    assert_eq!(head.values("thalweg-reason"), ["upstream_lost"]);
}

#[tokio::test]
async fn client_of_http1_that_leaves_is_a_cancel() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(get("/waiting")).await;
    let mut waiting = upstream.call().await;
    drop(client);
    assert_eq!(waiting.reset_by_peer().await, Reason::CANCEL);

    let mut client = Peer::connect(&proxy.address).await;
    client.write(post_chunked("/talking")).await;
    let mut talking = upstream.call().await;
    client.write_chunk(b"half of").await;
    assert_eq!(talking.incoming.chunk().await.unwrap().unwrap(), "half of");
    drop(client);
    assert_eq!(talking.incoming.broken().await, Reason::CANCEL);
}

#[tokio::test]
async fn requests_to_http1_wait_their_turn_within_the_bound() {
    let upstream = PlainUpstream::bind().await;
    let proxy = Yaml::to_http1(&upstream.address)
        .cluster("pool: {max_connections: 1, max_pending: 1}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut first = client
        .open(Request::get("http://e2e.test/first"), true)
        .await;
    let mut peer = upstream.accept().await;
    peer.head().await;
    let mut second = client
        .open(Request::get("http://e2e.test/second"), true)
        .await;
    proxy
        .metric_is("thalweg_cluster_pending{cluster=\"main\"}", 1)
        .await;

    let answer = client
        .open(Request::get("http://e2e.test/third"), true)
        .await
        .answer()
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (503, Some("upstream_pending_overflow"))
    );

    peer.write(EMPTY).await;
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(peer.head().await.line, "GET /second HTTP/1.1");
    peer.write(EMPTY).await;
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn early_answer_reaches_a_client_of_http1_whole() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(post_chunked("/")).await;
    client.write_chunk(b"the first of many").await;
    let mut upstream = upstream.call().await;
    upstream.incoming.chunk().await.unwrap().unwrap();

    let mut outgoing = upstream.respond_with(413, &[]);
    outgoing.data(vec![7; 100_000]).await;
    outgoing.end();

    assert!(client.head().await.line.starts_with("HTTP/1.1 413"));
    assert_eq!(client.chunked().await.0, vec![7; 100_000]);
    upstream.incoming.broken().await;
}

// === answers without a body ===

#[tokio::test]
async fn client_of_http1_reads_a_refusal_after_an_upload_that_nobody_wanted() {
    let proxy = TestProxy::start("listeners: [{name: main, address: \"127.0.0.1:0\"}]").await;
    let mut client = Peer::connect(&proxy.address).await;

    client
        .write("POST / HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 4000000\r\n\r\n")
        .await;
    client.write(vec![0; 4_000_000]).await;

    assert_eq!(client.head().await.line, "HTTP/1.1 404 Not Found");
    let _ = client.rest().await;
}

#[tokio::test]
async fn client_of_http2_may_end_its_upload_after_a_refusal() {
    let proxy = TestProxy::start("listeners: [{name: main, address: \"127.0.0.1:0\"}]").await;
    let mut client = raw::Peer::client(&proxy.address, &[]).await;
    let request = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "e2e.test"),
        (":path", "/"),
    ];

    client.write(&raw::headers(1, &request, false)).await;
    client
        .until(|frame| frame.stream == 1 && frame.ends_stream())
        .await;
    let before = client.synchronize().await;
    client.write(&raw::data(1, b"the rest", true)).await;
    let after = client.synchronize().await;

    let mut frames = before.iter().chain(&after);
    assert!(
        !frames.any(|frame| frame.kind == raw::RST_STREAM),
        "{before:?} {after:?}"
    );
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_order() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    let exchanges = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", EMPTY),
    ];
    client
        .write(format!(
            "{} / HTTP/1.1\r\nhost: e2e.test\r\n\r\n",
            exchanges[0].0
        ))
        .await;
    let mut upstream = upstream.accept().await;

    for (at, (method, answer)) in exchanges.into_iter().enumerate() {
        assert_eq!(upstream.head().await.line, format!("{method} / HTTP/1.1"));
        upstream.write(answer).await;
        let head = client.head().await;
        assert_eq!(head.line, answer.split("\r\n").next().unwrap());
        assert!(!head.has("transfer-encoding"), "{head:?}");
        if let Some((next, _)) = exchanges.get(at + 1) {
            client
                .write(format!("{next} / HTTP/1.1\r\nhost: e2e.test\r\n\r\n"))
                .await;
        }
    }
}

#[tokio::test]
async fn head_is_answered_with_the_length_of_what_get_would_bring() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::head("http://e2e.test/"), true).await;
    let mut peer = upstream.accept().await;
    assert_eq!(peer.head().await.line, "HEAD / HTTP/1.1");
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        .await;

    let answer = call.answer().await;

    assert_eq!((answer.reset, answer.body.len()), (None, 0));
    assert_eq!(answer.headers["content-length"], "1000");

    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;
    client
        .write("HEAD / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;
    upstream
        .call()
        .await
        .finish_with(200, &[("content-length", "1000")]);
    let head = client.head().await;
    assert_eq!(head.values("content-length"), ["1000"]);
    client.write(get("/next")).await;
    upstream.call().await.finish_with(204, &[]);
    assert!(client.head().await.line.starts_with("HTTP/1.1 204"));
}

// === the rest of HTTP/1.1 ===

/// RFC 9112, section 3.2.2: what stands in `Host` beside a whole URI is not looked at, and must not be passed on.
#[tokio::test]
async fn host_of_a_whole_uri_wins_over_the_header() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client
        .write("GET http://e2e.test:81/a?b HTTP/1.1\r\nhost: other.test\r\n\r\n")
        .await;

    let request = upstream.accept().await.head().await;
    assert_eq!(
        (request.line.as_str(), request.values("host")),
        ("GET /a?b HTTP/1.1", vec!["e2e.test:81"])
    );
}

#[tokio::test]
async fn client_of_http1_0_reads_up_to_the_end_of_the_connection() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;
    client
        .write("GET / HTTP/1.0\r\nhost: e2e.test\r\n\r\n")
        .await;

    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond_with(200, &[]);
    outgoing.data("all of it").await;
    outgoing.end();

    let head = client.head().await;
    assert!(!head.has("transfer-encoding"), "{head:?}");
    assert_eq!(client.rest().await, "all of it");
}

#[tokio::test]
async fn client_that_waits_for_leave_to_send_gets_it() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write("POST / HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.line, "HTTP/1.1 100 Continue");
    client.write("hello").await;
    let mut upstream = upstream.accept().await;
    let request = upstream.head().await;
    assert!(!request.has("expect"), "{request:?}");
    assert_eq!(upstream.bytes(5).await, "hello");
    upstream.write(EMPTY).await;

    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn hints_before_the_answer_do_not_take_its_place() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;

    let mut upstream = upstream.accept().await;
    upstream.head().await;
    upstream
        .write(format!(
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{EMPTY}"
        ))
        .await;

    assert_eq!(call.answer().await.status, 200);
}

#[tokio::test]
async fn trailers_of_http1_reach_http2_and_do_no_harm_to_http1() {
    let (upstream, proxy) = with_http1().await;
    let body = "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n";
    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;
    let mut peer = upstream.accept().await;
    peer.head().await;
    peer.write(format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n{body}"
    ))
    .await;

    let answer = call.answer().await;
    assert_eq!(
        (answer.body, &answer.trailers["x-sum"]),
        ("hello".into(), &"7".parse().unwrap())
    );

    let mut client = Peer::connect(&proxy.address).await;
    client.write(get("/")).await;
    peer.head().await;
    peer.write(format!("{CHUNKED}{body}")).await;
    client.head().await;
    assert_eq!(client.chunked().await.0, "hello");
    client.write(get("/next")).await;
    assert_eq!(peer.head().await.line, "GET /next HTTP/1.1");
}

#[tokio::test]
async fn trailers_of_a_request_reach_http2() {
    let (mut upstream, proxy) = with_http2().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write("POST / HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n").await;

    let (body, trailers) = upstream.call().await.incoming.rest().await;
    assert_eq!(
        (body, &trailers.unwrap()["x-sum"]),
        (Bytes::from("hello"), &"7".parse().unwrap())
    );
}

// === gRPC where it cannot go ===

#[tokio::test]
async fn grpc_over_http1_is_refused_with_a_clear_word() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write("POST /e2e.Echo/Unary HTTP/1.1\r\nhost: e2e.test\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n").await;

    let head = client.head().await;
    assert!(head.line.starts_with("HTTP/1.1 505"), "{}", head.line);
    assert_eq!(head.values("thalweg-reason"), ["grpc_over_http1"]);
    let length: usize = head.values("content-length")[0].parse().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&client.bytes(length).await).unwrap();
    assert!(
        json["message"]
            .as_str()
            .unwrap()
            .contains("gRPC needs HTTP/2"),
        "{json}"
    );
}

#[tokio::test]
async fn grpc_to_a_cluster_of_http1_is_refused_with_a_clear_word() {
    let (_upstream, proxy) = with_http1().await;

    let answer = Client::connect(&proxy)
        .await
        .unary("/e2e.Echo/Unary", b"x")
        .await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unimplemented, Some("cluster_speaks_http1"))
    );
    assert!(answer.text().contains("cluster main"), "{}", answer.text());
}
