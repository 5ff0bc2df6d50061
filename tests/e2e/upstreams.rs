//! Which connection and which endpoint a stream takes, and what happens when there is none.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::net::TcpListener;

use crate::support::{
    client::{Call, Client},
    proxy::{TestProxy, Yaml},
    raw::{self, RawUpstream},
    upstream::{self, Upstream, builder, echo, nobody},
};

const PATH: &str = "/e2e.Echo/Talk";
const OK: [(&str, &str); 1] = [("grpc-status", "0")];
const CONNECTED: &str = "thalweg_cluster_connected_total{cluster=\"main\"}";
const CONNECTIONS: &str = "thalweg_cluster_connections{cluster=\"main\"}";
const DIALING: &str = "thalweg_cluster_dialing{cluster=\"main\"}";
const PENDING: &str = "thalweg_cluster_pending{cluster=\"main\"}";
const STREAMS: &str = "thalweg_cluster_streams{cluster=\"main\"}";

async fn open(client: &Client, count: usize) -> Vec<Call> {
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(client.call(PATH, &[]).await);
    }
    calls
}

// === the peer's limit ===

#[tokio::test]
async fn another_connection_is_opened_before_the_peers_limit_is_reached() {
    let mut ten = builder();
    ten.max_concurrent_streams(10);
    let mut upstream = Upstream::start_with(&ten).await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    // Eight of ten is as full as a connection gets before the next is dialed.
    let _seven = open(&client, 7).await;
    let held = upstream.calls(7).await;
    assert!(held.iter().all(|call| call.connection.index == 0));
    assert_eq!(proxy.metric(CONNECTED).await, 1);
    let _eighth = open(&client, 1).await;

    proxy.metric_is(CONNECTED, 2).await;
}

#[tokio::test]
async fn never_more_streams_are_open_than_the_peer_allows() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .cluster("pool: {max_connections: 1}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut calls = open(&client, 4).await;
    let mut peer = upstream
        .handshake(&[(raw::MAX_CONCURRENT_STREAMS, 2)])
        .await;

    // The next may come only when one before it has ended.
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(peer.until(|frame| frame.kind == raw::HEADERS).await.stream);
    }
    proxy.metric_is(PENDING, 2).await;
    for _ in 0..2 {
        let before = peer.synchronize().await;
        assert!(
            before.iter().all(|frame| frame.kind != raw::HEADERS),
            "more streams than are allowed"
        );
        let done = streams.remove(0);
        peer.write(&raw::headers(done, &[(":status", "200"), OK[0]], true))
            .await;
        peer.write(&raw::rst_stream(done, 0)).await;
        streams.push(peer.until(|frame| frame.kind == raw::HEADERS).await.stream);
    }
    for done in streams {
        peer.write(&raw::headers(done, &[(":status", "200"), OK[0]], true))
            .await;
    }

    for call in &mut calls {
        assert_eq!(call.answer().await.code(), Code::Ok);
    }
}

#[tokio::test]
async fn many_more_calls_than_there_is_room_for_all_get_their_turn() {
    let mut three = builder();
    three.max_concurrent_streams(3);
    let open_now = Arc::<AtomicUsize>::default();
    let most = Arc::<AtomicUsize>::default();
    let (counted, seen) = (Arc::clone(&open_now), Arc::clone(&most));
    let upstream = Upstream::start_with(&three).await.serve(move |call| {
        let (counted, seen) = (Arc::clone(&counted), Arc::clone(&seen));
        async move {
            seen.fetch_max(counted.fetch_add(1, SeqCst) + 1, SeqCst);
            // It is off the count before the proxy can know of its end.
            let mut call = call;
            let message = call.incoming.message().await.unwrap();
            let mut outgoing = call.respond();
            outgoing.message(&message).await;
            counted.fetch_sub(1, SeqCst);
            outgoing.trailers(&OK);
        }
    });
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {max_connections: 2}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let mut calls = open(&client, 100).await;
    for call in &mut calls {
        call.outgoing.message(b"x").await;
        call.outgoing.end();
    }
    for call in &mut calls {
        assert_eq!(call.answer().await.code(), Code::Ok);
    }

    assert!(
        most.load(SeqCst) <= 6,
        "{} streams at once",
        most.load(SeqCst)
    );
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn limit_that_the_peer_raises_serves_those_who_wait() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .cluster("pool: {max_connections: 1}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let _calls = open(&client, 2).await;
    let mut peer = upstream
        .handshake(&[(raw::MAX_CONCURRENT_STREAMS, 1)])
        .await;
    peer.until(|frame| frame.kind == raw::HEADERS).await;
    proxy.metric_is(PENDING, 1).await;

    peer.write(&raw::settings(&[(raw::MAX_CONCURRENT_STREAMS, 2)]))
        .await;

    peer.until(|frame| frame.kind == raw::HEADERS).await;
}

#[tokio::test]
async fn our_own_limit_holds_where_the_peer_has_none() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {max_streams_per_connection: 2, max_connections: 3}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let _calls = open(&client, 6).await;

    let mut carried = [0; 3];
    for call in upstream.calls(6).await {
        carried[call.connection.index] += 1;
    }
    assert_eq!(carried, [2, 2, 2]);
}

// === the queue ===

/// One connection with room for one stream, which is taken, and a queue of two.
async fn full(wait_timeout: &str) -> (Upstream, TestProxy, Client, Call, upstream::Call) {
    let mut one = builder();
    one.max_concurrent_streams(1);
    let mut upstream = Upstream::start_with(&one).await;
    let proxy = Yaml::to(&upstream)
        .cluster(&format!(
            "pool: {{max_connections: 1, max_pending: 2, wait_timeout: {wait_timeout}}}"
        ))
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let holding = client.call(PATH, &[]).await;
    let held = upstream.call().await;
    (upstream, proxy, client, holding, held)
}

#[tokio::test]
async fn stream_that_finds_the_queue_full_is_refused_at_once() {
    let (_upstream, proxy, client, _holding, _held) = full("1h").await;
    let _waiting = open(&client, 2).await;
    proxy.metric_is(PENDING, 2).await;

    let answer = client.call(PATH, &[]).await.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_pending_overflow"))
    );
    let text = answer.text();
    assert!(
        text.contains("cluster main") && text.contains("max_pending"),
        "{text}"
    );
    assert_eq!(
        proxy
            .metric("thalweg_cluster_pending_overflows_total{cluster=\"main\"}")
            .await,
        1
    );
}

#[tokio::test]
async fn stream_that_waits_in_vain_is_given_up_in_time() {
    let (_upstream, proxy, client, _holding, _held) = full("200ms").await;

    let answer = client.call(PATH, &[]).await.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_too_many_connections"))
    );
    let text = answer.text();
    assert!(
        text.contains("cluster main")
            && text.contains("pool.max_connections")
            && text.contains("200ms")
            && text.contains("pool.wait_timeout"),
        "{text}"
    );
    proxy.metric_is(PENDING, 0).await;
}

#[tokio::test]
async fn stream_that_waits_gets_the_place_of_one_that_ends() {
    let (mut upstream, proxy, client, mut holding, mut held) = full("1h").await;
    let mut waiting = client.call(PATH, &[]).await;
    proxy.metric_is(PENDING, 1).await;

    holding.outgoing.end();
    held.incoming.rest().await.1.unwrap();
    held.finish_with(200, &OK);
    assert_eq!(holding.answer().await.code(), Code::Ok);

    upstream.call().await.finish_with(200, &OK);
    assert_eq!(waiting.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn client_that_gives_up_waiting_leaves_the_queue() {
    let (_upstream, proxy, client, _holding, _held) = full("1h").await;
    let mut waiting = open(&client, 2).await;
    proxy.metric_is(PENDING, 2).await;

    for call in &mut waiting {
        call.outgoing.reset(h2::Reason::CANCEL);
    }

    proxy.metric_is(PENDING, 0).await;
    let _waiting = open(&client, 2).await;
    proxy.metric_is(PENDING, 2).await;
}

#[tokio::test]
async fn cancelled_wait_gives_its_place_to_the_next() {
    let (mut upstream, proxy, client, mut holding, mut held) = full("1h").await;
    let mut gone = client.call(PATH, &[]).await;
    proxy.metric_is(PENDING, 1).await;
    let mut waiting = client.call(PATH, &[]).await;
    proxy.metric_is(PENDING, 2).await;
    gone.outgoing.reset(h2::Reason::CANCEL);
    proxy.metric_is(PENDING, 1).await;

    holding.outgoing.end();
    held.incoming.rest().await.1.unwrap();
    held.finish_with(200, &OK);

    upstream.call().await.finish_with(200, &OK);
    assert_eq!(waiting.answer().await.code(), Code::Ok);
}

// === storms ===

#[tokio::test]
async fn storm_at_a_cold_proxy_finds_room() {
    let mut hundred = builder();
    hundred.max_concurrent_streams(100);
    let mut upstream = Upstream::start_with(&hundred).await;
    let proxy = Yaml::to(&upstream).start().await;

    let mut storm = Vec::new();
    for _ in 0..2 {
        let client = Client::connect(&proxy).await;
        storm.push((open(&client, 750).await, client));
    }

    // None of them ends before all are open.
    let held = upstream.calls(1500).await;
    assert_eq!(held.len(), 1500);
    proxy.metric_is(PENDING, 0).await;
    assert_eq!(proxy.metric(STREAMS).await, 1500);
}

#[tokio::test]
async fn streams_that_have_gone_before_the_upstream_is_ready_cost_nothing() {
    const MANY: usize = 10_000;
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .listener("http2: {max_concurrent_streams: 20000}")
        .cluster("pool: {max_pending: 1000000}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut calls = open(&client, MANY).await;
    proxy.metric_is(PENDING, MANY as u64).await;

    for call in &mut calls {
        call.outgoing.reset(h2::Reason::CANCEL);
    }
    proxy.metric_is(PENDING, 0).await;
    let mut peer = upstream.handshake(&[]).await;

    let mut call = client.call(PATH, &[]).await;
    let stream = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;
    peer.write(&raw::headers(stream, &[(":status", "200"), OK[0]], true))
        .await;
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn dials_are_paced_and_each_that_lands_starts_the_next() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .cluster("pool: {max_dials: 2, max_streams_per_connection: 1}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut calls = open(&client, 5).await;
    proxy.metric_is(PENDING, 5).await;
    let mut silent = vec![upstream.accept().await, upstream.accept().await];
    assert_eq!(proxy.metric(DIALING).await, 2);

    // Connections that were accepted and say nothing are still being dialed.
    let mut open = Vec::new();
    for waiting in (0..5).rev() {
        let mut peer = silent.remove(0);
        peer.write(&raw::settings(&[])).await;
        peer.bytes(raw::PREFACE.len()).await;
        peer.until(|frame| frame.kind == raw::HEADERS).await;
        proxy.metric_is(PENDING, waiting).await;
        assert!(proxy.metric(DIALING).await <= 2);
        if waiting > 0 {
            silent.push(upstream.accept().await);
        }
        open.push(peer);
    }

    // One more is dialed for those who may come.
    proxy.metric_is(DIALING, 1).await;
    calls.clear();
}

#[tokio::test]
async fn all_who_wait_hear_of_a_dial_that_fails_when_nothing_else_is_left() {
    let proxy = Yaml::to(nobody().await)
        .cluster("pool: {max_dials: 3, max_streams_per_connection: 1, wait_timeout: 1h}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let mut calls = open(&client, 20).await;

    for call in &mut calls {
        let answer = call.answer().await;
        assert_eq!(answer.reason(), Some("upstream_connect_failed"));
    }
}

#[tokio::test]
async fn who_waits_behind_a_dial_that_failed_need_not_wait_for_a_new_stream() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let _holding = client.call(PATH, &[]).await;
    let mut full = upstream
        .handshake(&[(raw::MAX_CONCURRENT_STREAMS, 1)])
        .await;
    full.until(|frame| frame.kind == raw::HEADERS).await;
    let _waiting = client.call(PATH, &[]).await;

    drop(upstream.accept().await);

    let mut another = upstream.handshake(&[]).await;
    another.until(|frame| frame.kind == raw::HEADERS).await;
}

#[tokio::test]
async fn wait_for_dials_that_last_has_an_end_of_its_own() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Yaml::to(silent.local_addr().unwrap())
        .cluster("connect_timeout: 1h, pool: {wait_timeout: 100ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let answer = client.call(PATH, &[]).await.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_wait_timeout"))
    );
    assert!(
        answer.text().contains("pool.wait_timeout"),
        "{}",
        answer.text()
    );
    let waited = "thalweg_cluster_wait_timeouts_total{cluster=\"main\"}";
    assert_eq!(proxy.metric(waited).await, 1);
}

// === the end of connections ===

#[tokio::test]
async fn connection_that_was_sent_away_takes_no_new_streams() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let mut old = client.call(PATH, &[]).await;
    let mut first = upstream.handshake(&[]).await;
    let stream = first.until(|frame| frame.kind == raw::HEADERS).await.stream;

    first.write(&raw::goaway(stream, 0)).await;
    first.synchronize().await;
    let mut new = open(&client, 5).await;

    let mut second = upstream.handshake(&[]).await;
    for _ in 0..5 {
        let taken = second
            .until(|frame| frame.kind == raw::HEADERS)
            .await
            .stream;
        second
            .write(&raw::headers(taken, &[(":status", "200"), OK[0]], true))
            .await;
    }
    for call in &mut new {
        assert_eq!(call.answer().await.code(), Code::Ok);
    }
    first
        .write(&raw::headers(stream, &[(":status", "200"), OK[0]], true))
        .await;
    assert_eq!(old.answer().await.code(), Code::Ok);
    proxy.metric_is(CONNECTIONS, 1).await;
}

#[tokio::test]
async fn connection_that_is_old_ends_with_its_last_stream() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {max_connection_age: 50ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut old = client.call(PATH, &[]).await;
    let mut held = upstream.call().await;

    proxy
        .metric_is("thalweg_cluster_retired_total{cluster=\"main\"}", 1)
        .await;
    let _new = client.call(PATH, &[]).await;
    let next = upstream.call().await;
    assert_eq!(next.connection.index, 1);
    let mut outgoing = held.respond();
    outgoing.message(b"still here").await;
    outgoing.trailers(&OK);

    let answer = old.answer().await;
    assert_eq!(
        (answer.code(), answer.messages()),
        (Code::Ok, vec!["still here".into()])
    );
    proxy.metric_is(CONNECTIONS, 1).await;
}

#[tokio::test]
async fn connection_without_streams_is_closed_in_time() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {idle_timeout: 50ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);

    proxy.metric_is(CONNECTIONS, 0).await;

    assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn connection_with_a_silent_stream_is_not_idle() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {idle_timeout: 10ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut silent = client.call(PATH, &[]).await;
    let mut held = upstream.call().await;

    // Many times the limit, in which an idle connection would have gone.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;

    assert_eq!(proxy.metric(CONNECTIONS).await, 1);
    held.finish_with(200, &OK);
    assert_eq!(silent.answer().await.code(), Code::Ok);
}

// === endpoints ===

#[tokio::test]
async fn dead_endpoint_costs_nobody_a_call() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(nobody().await).and(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for _ in 0..20 {
        assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);
    }
}

#[tokio::test]
async fn all_endpoints_dead_is_unavailable() {
    let proxy = Yaml::to(nobody().await).and(nobody().await).start().await;

    let answer = Client::connect(&proxy).await.unary(PATH, b"x").await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_connect_failed"))
    );
    assert!(answer.text().contains("cluster main"), "{}", answer.text());
}

#[tokio::test]
async fn endpoint_with_fewer_streams_takes_the_next() {
    let mut first = Upstream::start().await;
    let mut second = Upstream::start().await;
    let proxy = Yaml::to(&first).and(&second).start().await;
    let client = Client::connect(&proxy).await;

    let _calls = open(&client, 10).await;

    let (_first, _second) = (first.calls(5).await, second.calls(5).await);
}

#[tokio::test]
async fn silent_endpoint_is_passed_over_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(silent.local_addr().unwrap())
        .and(&upstream)
        .cluster("connect_timeout: 500ms")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    for _ in 0..4 {
        assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);
    }
}

// === routes that go on to those below ===

#[tokio::test]
async fn stream_that_goes_on_takes_the_first_route_below_that_matches() {
    let (above, below) = (Upstream::start().await, Upstream::start().await.serve(echo));
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]
clusters: {{above: {{endpoints: [{above}]}}, below: {{endpoints: [{below}], connect_timeout: 1m}}}}
routes:
  - {{name: first, match: {{path: /never}}, cluster: above}}
  - {{name: second, continue: true}}
  - {{name: third, match: {{path_prefix: /e2e.}}, continue: true}}
  - {{name: fourth, match: {{path: {PATH}}}, cluster: below}}
"
    ))
    .await;
    let client = Client::connect(&proxy).await;

    let taken = client.unary(PATH, b"x").await;
    let refused = client.unary("/e2e.Other/Talk", b"x").await;

    assert_eq!(taken.code(), Code::Ok);
    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::Unimplemented, Some("no_route"))
    );
    for (route, streams) in [("first", 0), ("second", 2), ("third", 2), ("fourth", 1)] {
        let begun = format!("thalweg_streams_started_total{{route=\"{route}\"}}");
        proxy.metric_is(&begun, streams).await;
    }
    assert_eq!(above.connections(), 0);
}

// === sockets in the file system ===

#[tokio::test]
async fn unix_sockets_carry_streams_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start_on(&folder.path().join("upstream.sock")).serve(echo);
    let listener = folder.path().join("listener.sock");
    let proxy = Yaml::to(&upstream)
        .at(format!("unix:{}", listener.display()))
        .start()
        .await;
    assert_eq!(proxy.address, Address::Unix(listener.clone()));
    let client = Client::connect(&proxy).await;

    let answer = client.unary(PATH, &[7; 1 << 20]).await;

    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.messages(), [vec![7; 1 << 20]]);
    drop(client);
    proxy.drain().await;
    assert!(!listener.exists(), "the socket's file is left behind");
}

// === weights ===

#[tokio::test]
async fn clusters_share_the_streams_by_weight() {
    let many = Upstream::start().await;
    let few = Upstream::start().await;
    let (many_address, few_address) = (many.address.clone(), few.address.clone());
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    for (upstream, count) in [many, few].into_iter().zip(&counts) {
        let count = Arc::clone(count);
        upstream.serve(move |mut call| {
            count.fetch_add(1, SeqCst);
            async move { call.finish_with(200, &OK) }
        });
    }
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{many: {{endpoints: [{many_address}]}}, few: {{endpoints: [{few_address}]}}, none: {{endpoints: [{}]}}}}\n\
         routes: [{{name: it, clusters: [{{name: many, weight: 80}}, {{name: few, weight: 20}}, {{name: none, weight: 0}}]}}]\n",
        nobody().await
    ))
    .await;
    let client = Client::connect(&proxy).await;

    for _ in 0..100 {
        assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);
    }

    assert_eq!(counts.map(|count| count.load(SeqCst)), [80, 20]);
}
