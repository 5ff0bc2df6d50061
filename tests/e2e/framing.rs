//! Where a message ends, whom it is for, and whether its sender is to go on: what two readers must not read in two ways.

use http::Request;

use crate::support::{
    binding,
    client::Client,
    component::{Component, ready},
    plain::{Head, Peer, PlainUpstream},
    proxy::{TestProxy, Yaml},
    raw,
    upstream::{Upstream, nobody},
    within,
};

async fn with_http1() -> (PlainUpstream, TestProxy) {
    let upstream = PlainUpstream::bind().await;
    let proxy = Yaml::to_http1(&upstream.address).start().await;
    (upstream, proxy)
}

/// The head of the answer to a request, before any of its body is read.
async fn ask(proxy: &TestProxy, request: impl AsRef<[u8]>) -> (Peer, Head) {
    let mut client = Peer::connect(&proxy.address).await;
    client.write(request).await;
    let head = client.head().await;
    (client, head)
}

const GET: &str = "GET / HTTP/1.1\r\nhost: e2e.test\r\n\r\n";

// === answers ===

#[tokio::test]
async fn length_beside_chunks_reaches_nobody() {
    let (upstream, proxy) = with_http1().await;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

    let mut client = Peer::connect(&proxy.address).await;
    client.write(GET).await;
    let mut heard = upstream.accept().await;
    heard.head().await;
    heard.write(answer).await;
    let head = client.head().await;
    assert_eq!(head.values("transfer-encoding"), ["chunked"]);
    assert!(!head.has("content-length"), "{head:?}");
    assert_eq!(client.chunked().await.0, "hello");
    assert_eq!(
        heard.rest().await,
        "",
        "such a connection is not used again"
    );

    let client = Client::connect(&proxy).await;
    let mut call = client.open(Request::get("http://e2e.test/"), true).await;
    let mut heard = upstream.accept().await;
    heard.head().await;
    heard.write(answer).await;
    let answer = call.answer().await;
    assert!(!answer.headers.contains_key("content-length"), "{answer:?}");
    assert_eq!((answer.body.as_ref(), answer.reset), (&b"hello"[..], None));
}

#[tokio::test]
async fn answer_that_cannot_be_understood_is_a_bad_gateway_that_says_so() {
    let (upstream, proxy) = with_http1().await;

    for answer in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nxx",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let mut client = Peer::connect(&proxy.address).await;
        client.write(GET).await;
        let mut heard = upstream.accept().await;
        heard.head().await;
        heard.write(answer).await;

        let head = client.head().await;
        assert_eq!(head.line, "HTTP/1.1 502 Bad Gateway", "{answer}");
        assert_eq!(
            head.values("thalweg-reason"),
            ["upstream_bad_answer"],
            "{answer}"
        );
        heard.rest().await;
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write(GET).await;
    let mut heard = upstream.accept().await;
    heard.head().await;
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    heard
        .write(interim.repeat(1000) + "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn status_without_a_name_gets_none() {
    let (mut upstream, proxy) = {
        let upstream = Upstream::start().await;
        let proxy = Yaml::to(&upstream).start().await;
        (upstream, proxy)
    };
    let mut client = Peer::connect(&proxy.address).await;
    client.write(GET).await;
    upstream.call().await.finish_with(520, &[]);
    assert_eq!(client.head().await.line, "HTTP/1.1 520 ");
}

// === bodies of requests ===

#[tokio::test]
async fn coding_that_nobody_undoes_is_refused() {
    let proxy = Yaml::to_http1(nobody().await).start().await;

    for coding in [
        "gzip, chunked",
        "chunked, chunked",
        "gzip\r\ntransfer-encoding: chunked",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n"
        );
        let (_, head) = ask(&proxy, request).await;
        assert_eq!(head.line, "HTTP/1.1 501 Not Implemented", "{coding}");
        assert_eq!(head.values("thalweg-reason"), ["unknown_transfer_coding"]);
    }
}

#[tokio::test]
async fn two_lengths_are_refused_over_http2() {
    let proxy = Yaml::to_http1(nobody().await).start().await;
    let client = Client::connect(&proxy).await;
    let request = Request::get("http://e2e.test/")
        .header("content-length", "5")
        .header("content-length", "5");

    let mut call = client.open(request, false).await;
    call.outgoing.data("hello").await;
    let answer = call.answer().await;

    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (400, Some("bad_content_length"))
    );
}

#[tokio::test]
async fn body_of_unknown_length_reaches_http1_with_every_method() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;

    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
        let request = Request::builder().method(method).uri("http://e2e.test/");
        let mut call = client.open(request, false).await;
        call.outgoing.data("hello").await;
        call.outgoing.end();
        let mut heard = upstream.accept().await;
        let head = heard.head().await;
        assert_eq!(head.values("transfer-encoding"), ["chunked"], "{head:?}");
        assert_eq!(heard.chunked().await.0, "hello", "{method}");

        let mut client = Peer::connect(&proxy.address).await;
        let request = format!(
            "{method} / HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        client.write(request).await;
        let mut heard = upstream.accept().await;
        heard.head().await;
        assert_eq!(heard.chunked().await.0, "hello", "{method}");
    }
}

#[tokio::test]
async fn body_that_is_not_there_is_not_announced() {
    let (upstream, proxy) = with_http1().await;
    let client = Client::connect(&proxy).await;

    for (method, length) in [
        ("GET", vec![]),
        ("HEAD", vec![]),
        ("DELETE", vec![]),
        ("POST", vec!["0"]),
    ] {
        let request = Request::builder().method(method).uri("http://e2e.test/");
        let _call = client.open(request, true).await;
        let mut heard = upstream.accept().await;
        let head = heard.head().await;
        assert!(!head.has("transfer-encoding"), "{head:?}");
        assert_eq!(head.values("content-length"), length, "{method}");
    }
}

#[tokio::test]
async fn binding_that_gets_sends_what_there_is_to_send() {
    let upstream = PlainUpstream::bind().await;
    let it = format!("it: {{http: {{url: \"http://{}/in\"}}}}", upstream.address);
    let proxy = binding::proxy(&[&it]).await;
    let client = Client::connect(&proxy).await;

    let target = "/v1.0-alpha1/bindings/it/stream?operation=get";
    let mut call = client.request("POST", target, &[]).await;
    call.outgoing.data("hello").await;
    call.outgoing.end();
    let mut heard = upstream.accept().await;
    assert_eq!(heard.head().await.line, "GET /in HTTP/1.1");
    assert_eq!(heard.chunked().await.0, "hello");

    let json = r#"{"operation": "get"}"#;
    let (_answer, ()) = tokio::join!(client.post("/v1.0/bindings/it", json.as_bytes()), async {
        let mut heard = upstream.accept().await;
        let head = heard.head().await;
        assert!(
            !head.has("transfer-encoding"),
            "a service that wants no body hears of none: {head:?}"
        );
        heard.write("HTTP/1.1 204 No Content\r\n\r\n").await;
    });
}

#[tokio::test]
async fn body_that_is_badly_framed_is_the_clients_fault() {
    let mut component = Component::start().await;
    let it = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    let proxy = binding::proxy(&[&it]).await;
    ready(&proxy, "it").await;

    for chunk in [
        "5\nhello\r\n",
        "5;a\nb\r\nhello\r\n",
        "x\r\n",
        "5\r\nhelloo\r\n",
    ] {
        let mut client = Peer::connect(&proxy.address).await;
        client.write("POST /v1.0-alpha1/bindings/it/stream?operation=create HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut call = component.call().await;
        client.write(chunk).await;
        let head = client.head().await;
        assert_eq!(head.line, "HTTP/1.1 400 Bad Request", "{chunk:?}");
        assert_eq!(head.values("thalweg-reason"), ["bad_body"], "{chunk:?}");
        call.reset_by_peer().await;
    }
}

// === hosts ===

#[tokio::test]
async fn host_that_is_more_than_a_host_is_refused_whatever_the_upstream_speaks() {
    for yaml in [Yaml::to(nobody().await), Yaml::to_http1(nobody().await)] {
        let proxy = yaml.start().await;
        for host in ["a/b?c", "a,b", "user@a", "a b", "a#b", "a:b"] {
            let (_, head) = ask(&proxy, format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
            assert_eq!(head.line, "HTTP/1.1 400 Bad Request", "{host}");
            assert_eq!(head.values("thalweg-reason"), ["bad_host"], "{host}");
        }
        let client = Client::connect(&proxy).await;
        let mut call = client
            .open(Request::get("http://user@e2e.test/"), true)
            .await;
        let answer = call.answer().await;
        assert_eq!(
            (answer.status.as_u16(), answer.reason()),
            (400, Some("bad_host"))
        );
    }
}

#[tokio::test]
async fn request_that_names_no_host_is_passed_on_without_one() {
    let (upstream, proxy) = with_http1().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write("GET /old HTTP/1.0\r\n\r\n").await;
    let head = upstream.accept().await.head().await;
    assert_eq!(
        (head.line.as_str(), head.values("host")),
        ("GET /old HTTP/1.1", vec![""])
    );

    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut client = Peer::connect(&proxy.address).await;
    client.write("GET /old HTTP/1.0\r\n\r\n").await;
    let call = upstream.call().await;
    assert_eq!((call.head.uri.authority(), call.path()), (None, "/old"));

    let mut client = raw::Peer::client(&proxy.address, &[]).await;
    let pairs = [(":method", "GET"), (":scheme", "http"), (":path", "/new")];
    client.write(&raw::headers(1, &pairs, true)).await;
    let call = upstream.call().await;
    assert_eq!((call.head.uri.authority(), call.path()), (None, "/new"));
}

// === expectations ===

const ECHO: &str = "echo: {echo: {}}";
const STREAM: &str = "/v1.0-alpha1/bindings/echo/stream?operation=create";

#[tokio::test]
async fn body_is_asked_for_before_an_answer_that_is_there_early() {
    let proxy = binding::proxy(&[ECHO]).await;
    let mut client = Peer::connect(&proxy.address).await;

    for _ in 0..2 {
        client.write(format!("PUT {STREAM} HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")).await;
        assert_eq!(client.head().await.line, "HTTP/1.1 100 Continue");
        client.write_chunk(b"hello").await;
        client.write_chunk(b"").await;
        assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
        assert_eq!(client.chunked().await.0, "hello");
    }
}

#[tokio::test]
async fn body_that_has_come_already_is_read_all_the_same() {
    let proxy = binding::proxy(&[ECHO]).await;
    let (mut client, head) = ask(&proxy, format!("PUT {STREAM} HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\nhello")).await;

    // Whoever has heard a 100 by then may take it away.
    let head = match head.line.as_str() {
        "HTTP/1.1 100 Continue" => client.head().await,
        _ => head,
    };
    assert_eq!(head.line, "HTTP/1.1 200 OK");
    assert_eq!(client.chunked().await.0, "hello");
}

#[tokio::test]
async fn body_is_asked_for_over_http2() {
    let proxy = binding::proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    for kind in ["text/plain", "application/grpc"] {
        let mut call = match kind {
            "text/plain" => {
                client
                    .request("PUT", STREAM, &[("expect", "100-Continue")])
                    .await
            }
            _ => {
                client
                    .call(binding::STREAM, &[("expect", "100-continue")])
                    .await
            }
        };
        let interim = std::future::poll_fn(|cx| call.response.poll_informational(cx));
        let interim = within("the client is told to go on", interim).await;
        assert_eq!(interim.unwrap().unwrap().status(), 100, "{kind}");
        if kind == "text/plain" {
            call.outgoing.data("hello").await;
            call.outgoing.end();
            assert_eq!(call.answer().await.body, "hello");
        }
    }
}

#[tokio::test]
async fn body_that_nobody_wants_is_not_asked_for_over_http2() {
    let proxy = binding::proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    let mut call = client
        .request("PUT", "/nowhere", &[("expect", "100-continue")])
        .await;
    let interim = std::future::poll_fn(|cx| call.response.poll_informational(cx));
    assert!(
        within("the answer comes", interim).await.is_none(),
        "it is the first that comes"
    );
    assert_eq!(call.answer().await.status, 404);
}

#[tokio::test]
async fn expectations_stay_with_the_proxy() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let _call = client
        .request("PUT", "/", &[("expect", "100-continue")])
        .await;
    let call = upstream.call().await;
    assert!(!call.headers().contains_key("expect"));

    let mut call = client
        .request("PUT", "/", &[("expect", "the unexpected")])
        .await;
    let answer = call.answer().await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (417, Some("unknown_expectation"))
    );
}

// === header blocks ===

#[tokio::test]
async fn header_block_that_does_not_end_closes_its_connection() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("timeouts: {first_headers: 50ms}")
        .start()
        .await;
    let mut client = raw::Peer::client(&proxy.address, &[]).await;
    let pairs = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "e2e.test"),
        (":path", "/"),
    ];
    client.write(&raw::headers(1, &pairs, true)).await;
    upstream.call().await.finish_with(200, &[]);
    client.until(raw::Frame::ends_stream).await;

    // A beginning, and behind it the head of a frame whose bytes come one by one.
    let begun = raw::headers(3, &pairs, true);
    let (head, block) = begun.split_at(9);
    client
        .write(&raw::frame(raw::HEADERS, raw::END_STREAM, 3, &block[..5]))
        .await;
    let more = raw::frame(raw::CONTINUATION, 0, 3, &[0; 16_000]);
    client.write(&more[..head.len()]).await;
    for byte in &more[head.len()..] {
        if client.try_write(&[*byte]).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }

    client.closed().await;
    let timeouts = "thalweg_listener_first_headers_timeouts_total{listener=\"it\"}";
    assert_eq!(proxy.metric(timeouts).await, 1);
}

/// The codec drops them without a word. Then at least they are nobody's headers.
#[tokio::test]
async fn pseudo_headers_among_trailers_reach_nobody() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut client = raw::Peer::client(&proxy.address, &[]).await;
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "e2e.test"),
        (":path", "/"),
    ];
    client.write(&raw::headers(1, &pairs, false)).await;
    let trailers = [(":path", "/other"), ("x-last", "1")];
    client.write(&raw::headers(1, &trailers, true)).await;

    let mut call = upstream.call().await;
    let (_, trailers) = call.incoming.rest().await;
    let trailers = trailers.unwrap();
    let names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!((call.path(), names), ("/", vec!["x-last"]));
}
