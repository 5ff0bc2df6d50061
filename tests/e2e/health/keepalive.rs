//! PINGs to peers that say nothing, and from peers that say nothing else.

use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    client::Client,
    proxy::Yaml,
    raw::{self, Frame, Peer, RawUpstream},
    upstream::{Upstream, echo},
};

const PATH: &str = "/e2e.Echo/Talk";
const OK: [(&str, &str); 2] = [(":status", "200"), ("grpc-status", "0")];
/// A busy machine answers within the timeout.
const SOON: &str = "http2: {keepalive: {interval: 50ms, timeout: 5s}}";
/// The same, for tests that wait until it has passed.
const AT_ONCE: &str = "http2: {keepalive: {interval: 50ms, timeout: 1s}}";
const UPSTREAMS: &str = "thalweg_cluster_keepalive_timeouts_total{cluster=\"main\"}";
const CLIENTS: &str = "thalweg_listener_keepalive_timeouts_total{listener=\"it\"}";

fn is_ping(frame: &Frame) -> bool {
    frame.kind == raw::PING && frame.flags & raw::ACK == 0
}

async fn pong(peer: &mut Peer, ping: &Frame) {
    peer.write(&raw::frame(raw::PING, raw::ACK, 0, &ping.payload))
        .await;
}

#[tokio::test]
async fn streams_of_an_upstream_that_has_frozen_end_with_the_setting_that_did_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).cluster(AT_ONCE).start().await;
    let client = Client::connect(&proxy).await;
    let mut before = client.call(PATH, &[]).await;
    let mut within = client.call(PATH, &[]).await;
    let held = upstream.call().await;
    let mut answered = upstream.call().await;
    let _outgoing = answered.respond();
    let (head, mut rest) = within.head().await;
    assert_eq!(head.status(), 200);

    held.connection.freeze();

    let answer = before.answer().await;
    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.reason(), Some("upstream_keepalive_timeout"));
    assert!(
        answer.text().contains("http2.keepalive.timeout"),
        "{}",
        answer.text()
    );
    let (_, end) = rest.rest().await;
    assert_eq!(end.unwrap()["thalweg-reason"], "upstream_keepalive_timeout");
    assert_eq!(proxy.metric(UPSTREAMS).await, 1);
}

#[tokio::test]
async fn upstream_that_answers_pings_may_say_nothing_else_for_as_long_as_it_likes() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).cluster(SOON).start().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;

    for _ in 0..3 {
        let ping = peer.until(is_ping).await;
        pong(&mut peer, &ping).await;
    }
    peer.write(&raw::headers(stream, &OK, true)).await;

    assert_eq!(call.answer().await.code(), Code::Ok);
    assert_eq!(proxy.metric(UPSTREAMS).await, 0);
}

#[tokio::test]
async fn client_that_has_frozen_is_given_up_and_its_upstreams_hear_of_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).listener(AT_ONCE).start().await;
    let mut client = Peer::client(&proxy.address, &[]).await;
    client
        .write(&raw::headers(1, &raw::grpc(PATH), false))
        .await;
    let mut call = upstream.call().await;

    assert!(is_ping(&client.until(is_ping).await));

    client.closed().await;
    assert_eq!(call.reset_by_peer().await, Reason::CANCEL);
    assert_eq!(proxy.metric(CLIENTS).await, 1);
}

#[tokio::test]
async fn client_that_answers_pings_is_kept_without_streams() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream)
        .listener(
            "timeouts: {first_headers: 1h}, http2: {keepalive: {interval: 50ms, timeout: 5s}}",
        )
        .start()
        .await;
    let mut client = Peer::client(&proxy.address, &[]).await;

    for _ in 0..3 {
        let ping = client.until(is_ping).await;
        pong(&mut client, &ping).await;
    }

    client.synchronize().await;
    assert_eq!(proxy.metric(CLIENTS).await, 0);
}

/// The codec answers one PING after the other and reads no further while an answer waits, so that a flood costs no memory.
#[tokio::test]
async fn flood_of_pings_from_a_client_that_reads_nothing_is_held_back() {
    const FLOOD: usize = 64 << 20;
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("timeouts: {stall: 200ms}")
        .start()
        .await;
    let mut client = Peer::client(&proxy.address, &[]).await;
    let pings = raw::frame(raw::PING, 0, 0, b"no pause").repeat(4096);

    let mut written = 0;
    while client.try_write(&pings).await.is_ok() {
        written += pings.len();
        assert!(written < FLOOD, "the proxy takes any number of PINGs");
    }

    assert_eq!(
        proxy
            .metric("thalweg_listener_stalls_total{listener=\"it\"}")
            .await,
        1
    );
}
