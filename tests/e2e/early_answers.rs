//! HTTP/1.1 upstreams that answer before they have heard all, and what becomes of the rest.

use http::Request;

use crate::support::{
    binding::{payload, proxy},
    client::{Call, Client},
    plain::{Peer, PlainUpstream},
    proxy::{TestProxy, Yaml},
};

const OPEN: &str = "thalweg_cluster_connections{cluster=\"main\"}";
const CONNECTED: &str = "thalweg_cluster_connected_total{cluster=\"main\"}";
const STREAMS: &str = "thalweg_cluster_streams{cluster=\"main\"}";

/// A whole answer, behind which the connection may be used again.
const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn with(cluster: &str) -> (PlainUpstream, TestProxy, Client) {
    let upstream = PlainUpstream::bind().await;
    let yaml = Yaml::to_http1(&upstream.address).cluster(cluster);
    let proxy = yaml.start().await;
    let client = Client::connect(&proxy).await;
    (upstream, proxy, client)
}

/// An upload that has begun, and the upstream that hears it.
async fn upload(client: &Client, upstream: &PlainUpstream) -> (Call, Peer) {
    let mut call = client.open(Request::post("http://e2e.test/"), false).await;
    call.outgoing.data("begun").await;
    let mut heard = upstream.accept().await;
    heard.head().await;
    assert_eq!(heard.chunk().await, "begun");
    (call, heard)
}

#[tokio::test]
async fn whole_answer_ends_the_upload_and_its_connection() {
    let (upstream, proxy, client) = with("pool: {max_connections: 8}").await;

    for answer in [
        WHOLE,
        "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let (mut call, mut heard) = upload(&client, &upstream).await;
        heard.write(answer).await;
        call.answer().await;

        assert_eq!(proxy.metric(OPEN).await, 0, "{answer}");
        assert_eq!(proxy.metric(STREAMS).await, 0, "{answer}");
        assert_eq!(
            heard.rest().await,
            "",
            "nothing goes there behind the answer"
        );
    }
}

#[tokio::test]
async fn whole_answer_ends_the_upload_of_an_http1_client() {
    let (upstream, proxy, _) = with("pool: {max_connections: 8}").await;
    let mut client = Peer::connect(&proxy.address).await;
    client
        .write("POST / HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 1000000\r\n\r\nbegun")
        .await;
    let mut heard = upstream.accept().await;
    heard.head().await;
    assert_eq!(heard.bytes(5).await, "begun");

    heard.write(WHOLE).await;

    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
    assert_eq!(client.bytes(2).await, "ok");
    assert_eq!(heard.rest().await, "");
    assert_eq!(proxy.metric(OPEN).await, 0);
}

#[tokio::test]
async fn uploads_behind_early_answers_stay_within_the_connections() {
    let (upstream, proxy, client) = with("pool: {max_connections: 2}").await;
    let mut calls = Vec::new();

    for _ in 0..20 {
        let (mut call, mut heard) = upload(&client, &upstream).await;
        heard.write(WHOLE).await;
        call.answer().await;
        assert!(proxy.metric(OPEN).await <= 2);
        calls.push((call, heard));
    }

    assert_eq!(proxy.metric(CONNECTED).await, 20);
    assert_eq!(proxy.metric(OPEN).await, 0);
}

#[tokio::test]
async fn client_that_leaves_takes_the_connection_with_it() {
    let (upstream, proxy, client) = with("pool: {max_connections: 8}").await;

    // Before an answer, and within one.
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"] {
        let (mut call, mut heard) = upload(&client, &upstream).await;
        heard.write(answer).await;
        if !answer.is_empty() {
            let (_, mut incoming) = call.head().await;
            assert_eq!(incoming.chunk().await.unwrap().unwrap(), "half");
        }

        call.outgoing.reset(h2::Reason::CANCEL);

        assert_eq!(heard.rest().await, "");
        proxy.metric_is(OPEN, 0).await;
    }
}

/// All of the request was there before the answer, though not all of it was written yet.
#[tokio::test]
async fn connection_is_kept_when_the_request_is_whole_too() {
    let (upstream, proxy, client) = with("pool: {max_connections: 1}").await;
    let mut call = client.open(Request::post("http://e2e.test/"), false).await;
    call.outgoing.data("hello").await;
    call.outgoing.end();
    let mut heard = upstream.accept().await;
    for _ in 0..3 {
        heard.head().await;
        assert_eq!(heard.chunked().await.0, "hello");
        heard.write(WHOLE).await;
        assert_eq!(call.answer().await.body, "ok");

        call = client.open(Request::post("http://e2e.test/"), false).await;
        call.outgoing.data("hello").await;
        call.outgoing.end();
    }
    assert_eq!(proxy.metric(CONNECTED).await, 1);
}

/// Each attempt that fails lets go of the request before the next one reads it from its beginning.
#[tokio::test]
async fn attempts_of_a_handshake_leave_no_connection_behind() {
    let upstream = PlainUpstream::bind().await;
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{}/in\"}}, resiliency: {{retry: {{policy: constant, duration: 1ms, max_retries: 3}}}}}}",
        upstream.address
    )])
    .await;
    let client = Client::connect(&proxy).await;
    let open = "thalweg_cluster_connections{cluster=\"binding/it\"}";
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.message(&payload(0, b"zero")).await;

    for _ in 0..3 {
        let mut heard = upstream.accept().await;
        heard.head().await;
        assert_eq!(heard.chunk().await, "zero");
        heard
            .write("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert_eq!(
            heard.rest().await,
            "",
            "the attempt is over, and so is its connection"
        );
    }
    let mut heard = upstream.accept().await;
    heard.head().await;
    assert_eq!(proxy.metric(open).await, 1);
    call.outgoing.message(&payload(1, b"one")).await;
    call.outgoing.end();
    assert_eq!(heard.chunked().await.0, "zeroone");
    heard.write(WHOLE).await;

    assert_eq!(call.answer().await.payload(), "ok");
    assert!(proxy.metric(open).await <= 1);
}
