//! Streams that fail before their answer begins, and what becomes of them.

use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    client::Client,
    proxy::{TestProxy, Yaml},
    raw::{self, RawUpstream},
    upstream::{Call, Upstream, builder, echo},
};

const PATH: &str = "/e2e.Echo/Talk";
const OK: [(&str, &str); 1] = [("grpc-status", "0")];
const UNAVAILABLE: [(&str, &str); 2] =
    [("content-type", "application/grpc"), ("grpc-status", "14")];
const RETRIES: &str = "thalweg_cluster_retries_total{cluster=\"main\"}";
const OVERFLOWS: &str = "thalweg_cluster_retry_overflows_total{cluster=\"main\"}";
const MATCHING: &str = "retry: {matching: [UNAVAILABLE], duration: 1ms}";

/// Takes a message, and answers with it.
async fn echo_one(call: &mut Call) {
    let message = call.incoming.message().await.unwrap();
    assert_eq!(call.incoming.message().await, None);
    let mut outgoing = call.respond();
    outgoing.message(&message).await;
    outgoing.trailers(&OK);
}

async fn started(upstream: &impl ToString, route: &str) -> (TestProxy, Client) {
    let proxy = match route {
        "" => Yaml::to(upstream.to_string()).start().await,
        route => Yaml::to(upstream.to_string()).route(route).start().await,
    };
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

// === streams that nobody has begun ===

#[tokio::test]
async fn refused_stream_is_tried_again_with_all_that_was_sent() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, "").await;
    let mut call = client.call(PATH, &[("x-kept", "yes")]).await;
    call.outgoing.message(b"hi").await;
    let mut refused = upstream.call().await;
    assert_eq!(refused.incoming.message().await.unwrap(), b"hi"[..]);

    refused.reset(Reason::REFUSED_STREAM);

    let mut again = upstream.call().await;
    assert_eq!(again.path(), PATH);
    assert_eq!(again.headers()["x-kept"], "yes");
    assert!(!again.headers().contains_key("grpc-previous-rpc-attempts"));
    call.outgoing.end();
    echo_one(&mut again).await;
    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.messages(), [&b"hi"[..]]);
    assert_eq!(proxy.metric(RETRIES).await, 1);
}

#[tokio::test]
async fn stream_that_a_goaway_leaves_out_goes_to_another_connection_and_others_go_on() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let mut first = client.call(PATH, &[]).await;
    let mut peer = upstream.handshake(&[]).await;
    let head = |frame: &raw::Frame| frame.kind == raw::HEADERS;
    let begun = peer.until(head).await.stream;
    let mut second = client.call(PATH, &[]).await;
    let left_out = peer.until(head).await.stream;
    assert!(left_out > begun);

    peer.write(&raw::goaway(begun, 0)).await;

    let mut other = upstream.handshake(&[]).await;
    let stream = other.until(head).await.stream;
    let answer = |stream| raw::headers(stream, &[(":status", "200"), OK[0]], true);
    other.write(&answer(stream)).await;
    assert_eq!(second.answer().await.code(), Code::Ok);
    peer.write(&answer(begun)).await;
    assert_eq!(first.answer().await.code(), Code::Ok);
    assert_eq!(proxy.metric(RETRIES).await, 1);
}

#[tokio::test]
async fn refused_stream_goes_to_another_endpoint_if_there_is_one() {
    let refusing = Upstream::start().await.serve(|mut call| async move {
        call.reset(Reason::REFUSED_STREAM);
    });
    let taking = Upstream::start().await.serve(echo);
    for policy in ["least_streams", "round_robin"] {
        let yaml = Yaml::to(&refusing).and(&taking);
        let proxy = yaml.cluster(&format!("balance: {policy}")).start().await;
        let client = Client::connect(&proxy).await;

        for _ in 0..40 {
            assert_eq!(client.unary(PATH, b"hi").await.code(), Code::Ok);
        }

        assert!(proxy.metric(RETRIES).await > 0, "nothing was refused");
    }
}

#[tokio::test]
async fn stream_that_is_refused_again_is_told_so() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, "").await;
    let mut call = client.call(PATH, &[]).await;

    for _ in 0..2 {
        upstream.call().await.reset(Reason::REFUSED_STREAM);
    }

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.reason(), Some("upstream_reset"));
    assert_eq!(proxy.metric(RETRIES).await, 1);
}

#[tokio::test]
async fn refused_stream_is_not_tried_again_where_the_route_wants_none() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, "retry: {max_retries: 0}").await;
    let mut call = client.call(PATH, &[]).await;

    upstream.call().await.reset(Reason::REFUSED_STREAM);

    assert_eq!(call.answer().await.code(), Code::Unavailable);
    assert_eq!(proxy.metric(RETRIES).await, 0);
}

#[tokio::test]
async fn plain_http_is_tried_again_when_it_was_refused() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = started(&upstream, "").await;
    let mut call = client
        .open(http::Request::put("http://e2e.test/x"), false)
        .await;
    call.outgoing.data("abc").await;
    upstream.call().await.reset(Reason::REFUSED_STREAM);
    let mut again = upstream.call().await;
    call.outgoing.trailers(&[("x-after", "all")]);

    let (body, trailers) = again.incoming.rest().await;

    assert_eq!(body, "abc");
    assert_eq!(trailers.unwrap()["x-after"], "all");
    again.finish_with(204, &[]);
    assert_eq!(call.answer().await.status, 204);
}

// === streams that may have been begun ===

#[tokio::test]
async fn stream_that_may_have_been_begun_is_not_tried_again() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, "").await;

    let mut reset = client.call(PATH, &[]).await;
    upstream.call().await.reset(Reason::INTERNAL_ERROR);
    assert_eq!(reset.answer().await.code(), Code::Internal);

    let mut refused = client.call(PATH, &[]).await;
    upstream.call().await.finish_with(200, &UNAVAILABLE);
    assert_eq!(refused.answer().await.code(), Code::Unavailable);

    let mut lost = client.call(PATH, &[]).await;
    let held = upstream.call().await;
    held.connection.vanish();
    assert_eq!(lost.answer().await.reason(), Some("upstream_lost"));

    assert_eq!(proxy.metric(RETRIES).await, 0);
}

#[tokio::test]
async fn status_that_matches_is_tried_again_and_the_upstream_is_told() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.message(b"hi").await;
    call.outgoing.end();
    let mut refused = upstream.call().await;
    assert_eq!(refused.incoming.message().await.unwrap(), b"hi"[..]);

    refused.finish_with(200, &UNAVAILABLE);

    let mut again = upstream.call().await;
    assert_eq!(again.headers()["grpc-previous-rpc-attempts"], "1");
    echo_one(&mut again).await;
    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.messages(), [&b"hi"[..]]);
    assert_eq!(proxy.metric(RETRIES).await, 1);
}

#[tokio::test]
async fn stream_whose_connection_is_lost_is_tried_again_where_that_matches() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.message(b"hi").await;
    call.outgoing.end();

    let held = upstream.call().await;
    held.connection.vanish();

    echo_one(&mut upstream.call().await).await;
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn nothing_is_tried_again_once_the_answer_has_begun() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[]).await;
    let mut begun = upstream.call().await;
    let mut outgoing = begun.respond();
    let (_, mut rest) = call.head().await;

    outgoing.reset(Reason::REFUSED_STREAM);

    let (_, end) = rest.rest().await;
    assert_eq!(end.unwrap()["grpc-status"], "14");
    assert_eq!(proxy.metric(RETRIES).await, 0);
}

#[tokio::test]
async fn request_of_which_too_much_was_sent_is_not_tried_again() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, "retry: {replay_bytes: 10}").await;
    // Each message is five bytes longer than its payload.
    for (payload, retried) in [(&b"fives"[..], true), (b"sixsix", false)] {
        let before = proxy.metric(RETRIES).await;
        let mut call = client.call(PATH, &[]).await;
        call.outgoing.message(payload).await;
        call.outgoing.end();
        let mut refused = upstream.call().await;
        assert_eq!(refused.incoming.message().await.unwrap(), payload);

        refused.reset(Reason::REFUSED_STREAM);

        if retried {
            echo_one(&mut upstream.call().await).await;
        }
        let wanted = if retried { Code::Ok } else { Code::Unavailable };
        assert_eq!(call.answer().await.code(), wanted);
        assert_eq!(proxy.metric(RETRIES).await - before, u64::from(retried));
    }
}

// === what the upstream asks for ===

#[tokio::test]
async fn upstream_that_does_not_want_to_hear_of_a_stream_again_does_not() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[]).await;
    let never = [
        UNAVAILABLE[0],
        UNAVAILABLE[1],
        ("grpc-retry-pushback-ms", "-1"),
    ];

    upstream.call().await.finish_with(200, &never);

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.headers["grpc-retry-pushback-ms"], "-1");
    assert_eq!(proxy.metric(RETRIES).await, 0);
}

#[tokio::test]
async fn what_the_client_sends_during_the_wait_is_not_lost() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.message(b"before").await;
    let mut refused = upstream.call().await;
    assert_eq!(refused.incoming.message().await.unwrap(), b"before"[..]);
    let soon = [
        UNAVAILABLE[0],
        UNAVAILABLE[1],
        ("grpc-retry-pushback-ms", "300"),
    ];

    refused.finish_with(200, &soon);
    proxy.metric_is(RETRIES, 1).await;
    call.outgoing.message(b"meanwhile").await;
    call.outgoing.end();

    let mut again = upstream.call().await;
    for wanted in [&b"before"[..], b"meanwhile"] {
        assert_eq!(again.incoming.message().await.unwrap(), wanted);
    }
    assert_eq!(again.incoming.message().await, None);
    again.respond().trailers(&OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn client_that_leaves_during_the_wait_is_not_tried_again() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut leaves = client.call("/e2e.Echo/Leaves", &[]).await;
    let later = [
        UNAVAILABLE[0],
        UNAVAILABLE[1],
        ("grpc-retry-pushback-ms", "200"),
    ];
    upstream.call().await.finish_with(200, &later);
    proxy.metric_is(RETRIES, 1).await;

    leaves.outgoing.reset(Reason::CANCEL);
    proxy
        .metric_is("thalweg_streams_live{route=\"main\"}", 0)
        .await;

    // The next that the upstream hears of is another stream, which waits longer than the first would have.
    let mut stays = client.call("/e2e.Echo/Stays", &[]).await;
    let later = [
        UNAVAILABLE[0],
        UNAVAILABLE[1],
        ("grpc-retry-pushback-ms", "400"),
    ];
    upstream.call().await.finish_with(200, &later);
    let mut again = upstream.call().await;
    assert_eq!(again.path(), "/e2e.Echo/Stays");
    again.respond().trailers(&OK);
    assert_eq!(stays.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn stream_whose_deadline_would_pass_meanwhile_hears_the_upstreams_own_words() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = started(&upstream, MATCHING).await;
    let mut call = client.call(PATH, &[("grpc-timeout", "4S")]).await;
    let late = [
        UNAVAILABLE[0],
        UNAVAILABLE[1],
        ("grpc-retry-pushback-ms", "4000"),
    ];

    upstream.call().await.finish_with(200, &late);

    assert_eq!(call.answer().await.code(), Code::Unavailable);
    assert_eq!(proxy.metric(RETRIES).await, 0);
}

// === how many ===

#[tokio::test]
async fn retries_end_with_their_budget() {
    let mut upstream = Upstream::start().await;
    let budget = "retry: {budget: {percent: 0, burst: 1}}";
    let (proxy, client) = started(&upstream, budget).await;

    let mut first = client.call(PATH, &[]).await;
    upstream.call().await.reset(Reason::REFUSED_STREAM);
    upstream.call().await.respond().trailers(&OK);
    assert_eq!(first.answer().await.code(), Code::Ok);

    let mut second = client.call(PATH, &[]).await;
    upstream.call().await.reset(Reason::REFUSED_STREAM);
    assert_eq!(second.answer().await.reason(), Some("upstream_reset"));

    assert_eq!(proxy.metric(RETRIES).await, 1);
    assert_eq!(proxy.metric(OVERFLOWS).await, 1);
}

#[tokio::test]
async fn storm_of_refusals_leaves_nothing_behind() {
    let mut many = builder();
    many.max_concurrent_streams(1000);
    let upstream = Upstream::start_with(&many)
        .await
        .serve(|mut call| async move {
            if call.headers().contains_key("x-refuse") {
                call.reset(Reason::REFUSED_STREAM);
            } else {
                echo_one(&mut call).await;
            }
        });
    let (proxy, client) = started(&upstream, "retry: {budget: {burst: 1000}}").await;
    let mut calls = Vec::new();
    for index in 0..200 {
        let refuse = [("x-refuse", "yes")];
        let headers = if index % 2 == 0 { &refuse[..] } else { &[] };
        let mut call = client.call(PATH, headers).await;
        call.outgoing.message(b"hi").await;
        call.outgoing.end();
        calls.push(call);
    }

    for (index, call) in calls.iter_mut().enumerate() {
        let wanted = if index % 2 == 0 {
            Code::Unavailable
        } else {
            Code::Ok
        };
        assert_eq!(call.answer().await.code(), wanted);
    }

    assert_eq!(proxy.metric(RETRIES).await, 100);
    for gauge in ["streams", "pending"] {
        let gauge = format!("thalweg_cluster_{gauge}{{cluster=\"main\"}}");
        proxy.metric_is(&gauge, 0).await;
    }
}
