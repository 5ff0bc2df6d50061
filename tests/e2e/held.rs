//! What all streams together make the proxy hold, and what it does when that is too much.

use thalweg_proto::status::Code;

use crate::support::{
    client::Client,
    flood::{Backend, ECHO, FLOOD, Hoard, STUCK},
    framed, plain,
    proxy::{TestProxy, Yaml},
    upstream,
};

const KIB: usize = 1024;

/// Of a worker's last step nobody knows yet.
const UNSETTLED: u64 = 64 << 10;

/// What a head with a [`large`] header counts at least: two of its size.
const COUNTED: u64 = 40 << 10;

fn large() -> String {
    "x".repeat(20 * KIB)
}

/// A proxy whose streams should hold 4 MiB together, and whose clients may stall for as long as they like.
async fn narrow(backend: &Backend) -> TestProxy {
    TestProxy::start(&format!(
        "max_held: 4MiB\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\", timeouts: {{stall: 0s}}}}]\n\
         clusters: {{main: {{endpoints: [{}], connect_timeout: 1m}}}}\n\
         routes: [{{name: main, cluster: main}}]\n",
        backend.upstream,
    ))
    .await
}

async fn backend() -> Backend {
    Backend::start(&upstream::builder(), framed(&[7; 9000])).await
}

/// A client of which each stream may have 64 KiB on their way.
async fn connect(proxy: &TestProxy) -> Client {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(64 << 10)
        .initial_connection_window_size(64 << 20);
    Client::connect_with(&proxy.address, &builder).await
}

/// Opens a download of which nothing is read; `None` if nothing new is taken.
async fn stands_still(client: &Client) -> Option<Hoard> {
    let mut call = client.call(FLOOD, &[]).await;
    call.outgoing.end();
    let (head, incoming) = call.head().await;
    match head.headers().get("thalweg-reason") {
        None => Some(Hoard::start(incoming)),
        Some(reason) => {
            assert_eq!(reason, "memory_full");
            None
        }
    }
}

#[tokio::test]
async fn gauge_tells_what_streams_hold_and_the_limit() {
    let mut backend = backend().await;
    let proxy = narrow(&backend).await;
    let client = connect(&proxy).await;
    assert_eq!(proxy.metric("thalweg_held_bytes_limit").await, 4 << 20);

    let hoard = stands_still(&client).await;
    let flood = backend.flood().await;
    flood.sent.reach(256 * KIB).await;

    proxy.reaches("thalweg_held_bytes", 128 << 10).await;
    drop((hoard, flood, client));
    proxy
        .metric_is("thalweg_streams_live{route=\"main\"}", 0)
        .await;
    assert!(proxy.metric("thalweg_held_bytes").await < UNSETTLED);
}

#[tokio::test]
async fn headers_count_until_they_have_been_passed_on() {
    const PASSED: usize = 10;
    const WAITING: usize = 50;
    let mut backend = backend().await;
    let proxy = Yaml::to(&backend.upstream)
        .cluster(&format!(
            "pool: {{max_connections: 1, max_streams_per_connection: {PASSED}}}"
        ))
        .route("retry: {max_retries: 0}")
        .start()
        .await;
    let client = connect(&proxy).await;
    let large = large();
    let head = [("x-large", &*large)];
    let mut passed = Vec::new();
    for _ in 0..PASSED {
        passed.push((client.call(STUCK, &head).await, backend.stuck().await));
    }
    // Were they still counted, it would be 400 KiB.
    assert!(proxy.metric("thalweg_held_bytes").await < UNSETTLED);

    let mut calls = Vec::new();
    for _ in 0..WAITING {
        calls.push(client.call(STUCK, &head).await);
    }

    proxy
        .reaches("thalweg_held_bytes", WAITING as u64 * COUNTED - UNSETTLED)
        .await;
    drop((calls, passed));
    proxy
        .metric_is("thalweg_streams_live{route=\"main\"}", 0)
        .await;
    assert!(proxy.metric("thalweg_held_bytes").await < UNSETTLED);
}

#[tokio::test]
async fn headers_that_may_be_sent_again_count_until_the_answer_begins() {
    const COUNT: usize = 10;
    let mut backend = backend().await;
    let proxy = Yaml::to(&backend.upstream).start().await;
    let client = connect(&proxy).await;
    let large = large();
    let head = [("x-large", &*large)];

    let mut unanswered = Vec::new();
    for _ in 0..COUNT {
        unanswered.push((client.call(STUCK, &head).await, backend.stuck().await));
    }

    proxy
        .reaches("thalweg_held_bytes", COUNT as u64 * COUNTED - UNSETTLED)
        .await;
    drop(unanswered);
    let mut answered = Vec::new();
    for _ in 0..COUNT {
        let mut call = client.call(ECHO, &head).await;
        call.outgoing.message(b"hello").await;
        let (head, mut incoming) = call.head().await;
        assert_eq!(incoming.message().await.unwrap(), "hello");
        answered.push((call, head, incoming));
    }
    proxy
        .metric_is("thalweg_streams_live{route=\"main\"}", COUNT as u64)
        .await;
    assert!(proxy.metric("thalweg_held_bytes").await < UNSETTLED);
}

#[tokio::test]
async fn streams_that_stand_still_end_near_the_limit_and_one_that_reads_on_does_not() {
    let mut backend = backend().await;
    let proxy = narrow(&backend).await;
    let (greedy, honest) = (connect(&proxy).await, Client::connect(&proxy).await);
    let mut call = honest.call(FLOOD, &[]).await;
    call.outgoing.end();
    let (_, mut reads_on) = call.head().await;
    let _flood = backend.flood().await;

    let mut hoards = Vec::new();
    let reclaimed = "thalweg_proxy_ends_total{reason=\"memory_reclaimed\"}";
    while proxy.metric(reclaimed).await == 0 {
        if let Some(hoard) = stands_still(&greedy).await {
            hoards.push((hoard, backend.flood().await));
        }
        assert!(reads_on.chunk().await.unwrap().is_ok());
        assert!(hoards.len() < 200, "nothing stops them");
    }

    for _ in 0..1000 {
        assert!(reads_on.chunk().await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn what_is_new_is_refused_near_the_limit_but_for_the_question_how_the_proxy_is() {
    let mut backend = backend().await;
    let proxy = narrow(&backend).await;
    let (greedy, client) = (connect(&proxy).await, Client::connect(&proxy).await);
    let mut plain = plain::Peer::connect(&proxy.address).await;
    let mut hoards = Vec::new();

    let answer = loop {
        if let Some(hoard) = stands_still(&greedy).await {
            hoards.push((hoard, backend.flood().await));
        }
        let health = client.unary("/grpc.health.v1.Health/Check", b"").await;
        assert_eq!(health.code(), Code::Ok);
        let answer = client.unary(ECHO, b"hello").await;
        if answer.code() != Code::Ok {
            break answer;
        }
        assert!(hoards.len() < 200, "nothing is refused");
    };
    let refused = loop {
        plain
            .write("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            .await;
        let head = plain.head().await;
        if head.line.contains("503") {
            break head;
        }
        plain.chunked().await;
        if let Some(hoard) = stands_still(&greedy).await {
            hoards.push((hoard, backend.flood().await));
        }
    };

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::ResourceExhausted, Some("memory_full"))
    );
    assert!(answer.text().contains("(max_held)"), "{}", answer.text());
    assert_eq!(refused.values("thalweg-reason"), ["memory_full"]);
}
