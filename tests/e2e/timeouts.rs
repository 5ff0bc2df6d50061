//! How long each phase of a stream may take.
//!
//! The limits here are short, and nothing is measured: what must not end is shown by what it still does.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    client::Client,
    framed, plain,
    proxy::{TestProxy, Yaml},
    raw::RawUpstream,
    stream::Answer,
    upstream::{Upstream, builder, echo},
};

const PATH: &str = "/e2e.Echo/Talk";

#[track_caller]
fn assert_ended(answer: &Answer, code: Code, reason: &str, key: &str) {
    assert_eq!(
        (answer.code(), answer.reason()),
        (code, Some(reason)),
        "{answer:?}"
    );
    let text = answer.text();
    assert!(text.contains(&format!("(timeouts.{key})")), "{text}");
}

#[tokio::test]
async fn upstream_that_lets_nobody_in_is_left_sooner_than_its_cluster_says() {
    // It accepts, and then says nothing.
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .route("timeouts: {connect: 50ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary(PATH, b"hello").await;

    assert_ended(
        &answer,
        Code::Unavailable,
        "upstream_connect_timeout",
        "connect",
    );
    assert!(answer.text().contains("cluster main"), "{}", answer.text());
}

#[tokio::test]
async fn upstream_over_http1_that_lets_nobody_in_is_left_too() {
    let mut upstream = plain::PlainUpstream::bind().await;
    let proxy = Yaml::to_http1(&upstream.address)
        .cluster("pool: {max_connections: 1}")
        .route("timeouts: {connect: 50ms}")
        .start()
        .await;
    let mut first = plain::Peer::connect(&proxy.address).await;
    first
        .write(b"GET / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;
    let _holds = accept(&mut upstream).await;

    let mut second = plain::Peer::connect(&proxy.address).await;
    second
        .write(b"GET / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;

    let head = second.head().await;
    assert!(head.line.contains("503"), "{head:?}");
    assert_eq!(head.values("thalweg-reason"), ["upstream_connect_timeout"]);
}

async fn accept(upstream: &mut plain::PlainUpstream) -> plain::Peer {
    let mut peer = upstream.accept().await;
    peer.head().await;
    peer
}

#[tokio::test]
async fn upstream_that_does_not_answer_is_broken_off() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {first_response: 50ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;

    let answer = call.answer().await;

    assert_ended(
        &answer,
        Code::DeadlineExceeded,
        "first_response_timeout",
        "first_response",
    );
    assert_eq!(running.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn silence_of_either_side_ends_the_stream() {
    for key in ["idle_request", "idle_response"] {
        let mut upstream = Upstream::start().await;
        let proxy = Yaml::to(&upstream)
            .route(&format!("timeouts: {{{key}: 50ms}}"))
            .start()
            .await;
        let client = Client::connect(&proxy).await;
        let mut call = client.call(PATH, &[]).await;
        call.outgoing.message(b"there").await;
        let mut running = upstream.call().await;
        let mut outgoing = running.respond();
        outgoing.message(b"back").await;

        let answer = call.answer().await;

        assert_ended(
            &answer,
            Code::DeadlineExceeded,
            &format!("{key}_timeout"),
            key,
        );
        assert_eq!(answer.messages(), ["back"]);
        assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    }
}

#[tokio::test]
async fn half_close_ends_the_wait_for_the_client() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {idle_request: 100ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut quiet = client.call(PATH, &[]).await;
    quiet.outgoing.message(b"there").await;
    quiet.outgoing.end();
    let mut running = upstream.call().await;
    // Another that is as old as the first and is ended tells that the first was spared.
    let mut idle = client.call(PATH, &[]).await;
    let _idle = upstream.call().await;
    assert_eq!(idle.answer().await.reason(), Some("idle_request_timeout"));

    running.respond().trailers(&[("grpc-status", "0")]);

    assert_eq!(quiet.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn upstream_that_takes_too_little_has_stalled() {
    let mut narrow = builder();
    narrow.initial_window_size(100);
    let mut upstream = Upstream::start_with(&narrow).await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {stall: 200ms, stall_min_progress: 64KiB}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.data(framed(&[7; 60_000])).await;
    let mut running = upstream.call().await;
    // It reads on and on, a few bytes at a time.
    let trickle = tokio::spawn(async move {
        while let Some(Ok(_)) = running.incoming.chunk().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });

    let answer = call.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_stalled"))
    );
    assert!(
        answer.text().contains("fewer than 65536 bytes"),
        "{}",
        answer.text()
    );
    trickle.await.unwrap();
}

// === max_age ===

#[tokio::test]
async fn old_stream_ends_between_two_messages_and_its_client_may_come_back() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {max_age: 200ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let mut outgoing = running.respond();
    let sending = tokio::spawn(async move {
        let message = framed(&[7; 3333]);
        // Chunks that end anywhere but with a message, and not more than the client can keep.
        let mut pieces = message.chunks(1000).map(Bytes::copy_from_slice).cycle();
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        while outgoing.try_data(pieces.next().unwrap()).await.is_ok() {
            pace.tick().await;
        }
        outgoing.reset_by_peer().await
    });

    let answer = call.answer().await;

    assert_ended(&answer, Code::Unavailable, "max_age", "max_age");
    assert!((answer.messages().iter()).all(|message| message == &[7; 3333][..]));
    assert!(answer.trailers.contains_key("grpc-retry-pushback-ms"));
    assert_eq!(sending.await.unwrap(), Reason::CANCEL);

    let mut again = client.call(PATH, &[]).await;
    upstream
        .call()
        .await
        .finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(again.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn calls_that_are_young_do_not_notice() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {connect: 1m, first_response: 1m, idle_request: 1m, idle_response: 1m, max_age: 1m}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    for _ in 0..10 {
        let answer = client.unary(PATH, b"hello").await;
        assert_eq!((answer.code(), answer.reason()), (Code::Ok, None));
        assert_eq!(answer.messages(), ["hello"]);
    }
}

// === bindings ===

/// What goes to a binding begins with its name; what comes back is whole messages.
#[tokio::test]
async fn bindings_have_the_same() {
    for (key, code, reason) in [
        (
            "idle_request",
            Code::DeadlineExceeded,
            "idle_request_timeout",
        ),
        (
            "idle_response",
            Code::DeadlineExceeded,
            "idle_response_timeout",
        ),
        ("max_age", Code::Unavailable, "max_age"),
    ] {
        let proxy = TestProxy::start(&format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             bindings: {{echo: {{echo: {{}}, timeouts: {{{key}: 100ms}}}}}}\n"
        ))
        .await;
        let client = Client::connect(&proxy).await;
        let mut call = client.invoke("echo", &[]).await;

        let answer = call.answer().await;

        assert_ended(&answer, code, reason, key);
        assert_eq!(answer.messages().len(), 1, "the echo's own first message");
    }
}
