//! How streams end when somebody does not keep to the plan.

use std::time::Duration;

use h2::Reason;
use thalweg_proto::status::Code;
use tokio::net::TcpListener;

use crate::support::{
    client::{self, Client, grpc},
    framed, plain,
    proxy::{TestProxy, Yaml},
    raw::{self, RawUpstream},
    stream::Answer,
    upstream::{Upstream, builder, nobody},
    within,
};

const PATH: &str = "/e2e.Echo/Talk";
const RESPONSE: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];

#[track_caller]
fn assert_ended(answer: &Answer, code: Code, reason: &str) {
    assert_eq!(
        (answer.code(), answer.reason()),
        (code, Some(reason)),
        "{answer:?}"
    );
    let text = answer.text();
    assert!(
        text.contains("cluster main"),
        "the message names no cluster: {text}"
    );
}

// === whole answers ===

/// The whole answer and the reset lie in one segment, so the proxy knows of the reset before it has looked at the answer.
#[tokio::test]
async fn complete_answer_is_delivered_whole_although_a_reset_without_error_follows() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.message(b"the request has not ended").await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::DATA).await.stream;

    let answer = [
        raw::headers(stream, &RESPONSE, false),
        raw::data(stream, &framed(&[7; 5000]), false),
        raw::headers(stream, &[("grpc-status", "0")], true),
        raw::rst_stream(stream, 0),
    ];
    peer.write(&answer.concat()).await;

    let answer = call.answer().await;
    assert_eq!((answer.code(), answer.reset), (Code::Ok, None));
    assert_eq!(answer.messages(), [vec![7; 5000]]);
    assert_eq!(answer.reason(), None);
}

#[tokio::test]
async fn complete_answer_is_delivered_whole_although_the_client_reads_it_long_after_the_reset() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(10);
    let client = Client::connect_with(&proxy.address, &narrow).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.message(b"the request has not ended").await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::DATA).await.stream;

    let answer = [
        raw::headers(stream, &RESPONSE, false),
        raw::data(stream, &framed(&[7; 5000]), false),
        raw::headers(stream, &[("grpc-status", "0")], true),
        raw::rst_stream(stream, 0),
    ];
    peer.write(&answer.concat()).await;
    // Another exchange on the same connection: when it is over, the proxy has read the reset.
    let mut other = client.call(PATH, &[]).await;
    let next = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;
    peer.write(&raw::headers(
        next,
        &[(":status", "200"), ("grpc-status", "0")],
        true,
    ))
    .await;
    assert_eq!(other.answer().await.code(), Code::Ok);

    let answer = call.answer().await;
    assert_eq!(answer.messages(), [vec![7; 5000]]);
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn head_alone_is_a_complete_answer_although_a_reset_without_error_follows() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.message(b"the request has not ended").await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::DATA).await.stream;

    let head = [RESPONSE[0], RESPONSE[1], ("grpc-status", "16")];
    peer.write(
        &[
            raw::headers(stream, &head, true),
            raw::rst_stream(stream, 0),
        ]
        .concat(),
    )
    .await;

    assert_eq!(call.answer().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn answer_before_a_goaway_in_the_same_segment_is_delivered_whole() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.end();
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(raw::Frame::ends_stream).await.stream;

    let answer = [
        raw::headers(stream, &RESPONSE, false),
        raw::data(stream, &framed(b"whole"), false),
        raw::headers(stream, &[("grpc-status", "0")], true),
        raw::goaway(stream, 0),
    ];
    peer.write(&answer.concat()).await;
    drop(peer);

    let answer = call.answer().await;
    assert_eq!(answer.messages(), ["whole"]);
    assert_eq!(answer.code(), Code::Ok);
}

// === truncated answers ===

#[tokio::test]
async fn truncated_grpc_answer_ends_with_an_error_status() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.message(b"whole").await;
    let (head, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "whole");
    outgoing.reset(Reason::INTERNAL_ERROR);

    let answer = client::answer(head, &mut incoming).await;
    assert_ended(&answer, Code::Internal, "upstream_reset");
    assert!(
        answer.text().contains("INTERNAL_ERROR"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn reset_without_error_does_not_make_a_truncated_answer_complete() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.end();
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(raw::Frame::ends_stream).await.stream;

    let half = &framed(&[7; 100])[..50];
    let answer = [
        raw::headers(stream, &RESPONSE, false),
        raw::data(stream, half, false),
        raw::rst_stream(stream, 0),
    ];
    peer.write(&answer.concat()).await;

    let answer = call.answer().await;
    assert_ended(&answer, Code::Internal, "upstream_reset");
    assert_eq!(answer.body, half, "what came before the reset is delivered");
}

#[tokio::test]
async fn truncated_http_answer_is_reset_with_the_upstreams_code() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let mut call = client
        .open(http::Request::get("http://e2e.test/file"), true)
        .await;

    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond_with(200, &[]);
    outgoing.data("half of").await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.chunk().await.unwrap().unwrap(), "half of");
    outgoing.reset(Reason::ENHANCE_YOUR_CALM);

    assert_eq!(incoming.broken().await, Reason::ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn truncated_answer_to_an_http1_client_is_a_chunked_body_without_its_end() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut client = plain::Peer::connect(&proxy.address).await;
    client
        .write("GET /file HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;

    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond_with(200, &[]);
    outgoing.data("half of").await;
    let head = client.head().await;
    assert_eq!(head.values("transfer-encoding"), ["chunked"]);
    assert_eq!(client.chunk().await, "half of");
    outgoing.reset(Reason::INTERNAL_ERROR);

    assert_eq!(
        client.rest().await,
        "",
        "the connection ends without a last chunk"
    );
}

#[tokio::test]
async fn connection_lost_in_the_middle_ends_a_grpc_answer_with_unavailable() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    let mut upstream = upstream.call().await;
    upstream.respond().message(b"whole").await;
    let (head, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "whole");
    upstream.connection.vanish();

    let answer = client::answer(head, &mut incoming).await;
    assert_ended(&answer, Code::Unavailable, "upstream_lost");
}

#[tokio::test]
async fn connection_lost_before_the_head_is_unavailable() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut other = client
        .open(http::Request::get("http://e2e.test/file"), true)
        .await;

    let first = upstream.call().await;
    let _second = upstream.call().await;
    first.connection.vanish();

    assert_ended(&call.answer().await, Code::Unavailable, "upstream_lost");
    let answer = other.answer().await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (502, Some("upstream_lost"))
    );
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(json["errorCode"], "ERR_UPSTREAM_LOST");
    assert!(
        json["message"].as_str().unwrap().contains("cluster main"),
        "{json}"
    );
}

#[tokio::test]
async fn connection_lost_while_the_request_is_sent_is_unavailable() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let upstream = upstream.call().await;
    // More than all windows together, so that the upload is blocked.
    call.outgoing.data_now(vec![0; 4 << 20]);

    upstream.connection.vanish();

    assert_ended(&call.answer().await, Code::Unavailable, "upstream_lost");
}

// === GOAWAY ===

#[tokio::test]
async fn streams_above_the_last_of_a_goaway_are_unavailable_and_those_below_go_on() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .route("retry: {max_retries: 0}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut first = client.call(PATH, &[]).await;
    let mut peer = upstream.handshake(&[]).await;
    let low = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;
    let mut second = client.call(PATH, &[]).await;
    let high = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;
    assert!(low < high);

    peer.write(&raw::goaway(low, 0)).await;

    assert_ended(&second.answer().await, Code::Unavailable, "upstream_goaway");
    let answer = [
        raw::headers(low, &RESPONSE, false),
        raw::data(low, &framed(b"still here"), false),
        raw::headers(low, &[("grpc-status", "0")], true),
    ];
    peer.write(&answer.concat()).await;
    let answer = first.answer().await;
    assert_eq!(answer.messages(), ["still here"]);
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn goaway_in_the_middle_is_told_with_its_code() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;

    peer.write(&raw::headers(stream, &RESPONSE, false)).await;
    let (head, mut incoming) = call.head().await;
    peer.write(&raw::goaway(0, Reason::ENHANCE_YOUR_CALM.into()))
        .await;

    let answer = client::answer(head, &mut incoming).await;
    assert_ended(&answer, Code::Unavailable, "upstream_goaway");
    assert!(
        answer.text().contains("ENHANCE_YOUR_CALM"),
        "{}",
        answer.text()
    );
}

/// Its GOAWAY said that the stream would be finished.
#[tokio::test]
async fn connection_closed_after_a_goaway_that_spared_the_stream_is_lost() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    let mut upstream = upstream.call().await;
    let _outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;
    upstream.connection.go_away_at_once(Reason::NO_ERROR);

    let answer = client::answer(head, &mut incoming).await;
    assert_ended(&answer, Code::Unavailable, "upstream_lost");
}

#[tokio::test]
async fn graceful_goaway_leaves_open_streams_alone() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;

    upstream.connection.go_away();
    for _ in 0..100 {
        call.outgoing.message(b"there").await;
        assert_eq!(upstream.incoming.message().await.unwrap(), "there");
        outgoing.message(b"back").await;
        assert_eq!(incoming.message().await.unwrap(), "back");
    }
    outgoing.trailers(&[("grpc-status", "0")]);

    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

// === clients who leave ===

#[tokio::test]
async fn cancel_before_the_head_reaches_the_upstream_with_the_clients_code() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;

    call.outgoing.reset(Reason::ENHANCE_YOUR_CALM);

    assert_eq!(upstream.reset_by_peer().await, Reason::ENHANCE_YOUR_CALM);
    // Whoever is left to tell of it is the operator.
    proxy
        .metric_is("thalweg_proxy_ends_total{reason=\"client_cancelled\"}", 1)
        .await;
}

#[tokio::test]
async fn cancel_in_the_middle_reaches_the_upstream_with_the_clients_code() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.message(b"whole").await;
    let (_, mut incoming) = call.head().await;
    incoming.message().await.unwrap();

    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    assert_eq!(upstream.incoming.broken().await, Reason::CANCEL);
}

#[tokio::test]
async fn cancel_after_half_close_reaches_the_upstream() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.message(b"all").await;
    call.outgoing.end();
    let mut upstream = upstream.call().await;
    assert_eq!(upstream.incoming.rest().await.0, framed(b"all"));

    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(upstream.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn cancel_reaches_an_upstream_that_gives_no_window() {
    let mut closed = builder();
    closed.initial_window_size(0);
    let mut upstream = Upstream::start_with(&closed).await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.data_now(vec![0; 1 << 20]);
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    call.head().await;

    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn cancel_reaches_an_upstream_whose_answer_the_client_does_not_read() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.data_now(vec![0; 4 << 20]);
    let (_, _unread) = call.head().await;

    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn lost_client_is_a_cancel_for_each_of_its_upstream_streams() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let _waiting = client.call(PATH, &[]).await;
    let mut waiting = upstream.call().await;
    let mut talking = client.call(PATH, &[]).await;
    let mut answered = upstream.call().await;
    let mut outgoing = answered.respond();
    talking.head().await;

    client.vanish().await;

    assert_eq!(waiting.reset_by_peer().await, Reason::CANCEL);
    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    proxy
        .metric_is("thalweg_cluster_streams{cluster=\"main\"}", 0)
        .await;
}

#[tokio::test]
async fn truncated_request_never_looks_complete_to_the_upstream() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.data(framed(&[7; 100]).slice(..50)).await;
    let mut upstream = upstream.call().await;
    assert_eq!(upstream.incoming.chunk().await.unwrap().unwrap().len(), 50);

    call.outgoing.reset(Reason::INTERNAL_ERROR);

    assert_eq!(upstream.incoming.broken().await, Reason::INTERNAL_ERROR);
}

#[tokio::test]
async fn cancelled_stream_leaves_its_neighbours_alone() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let mut leaving = client.call(PATH, &[]).await;
    let mut left = upstream.call().await;
    let mut staying = client.call(PATH, &[]).await;
    let mut stayed = upstream.call().await;
    assert_eq!(left.connection.index, stayed.connection.index);

    leaving.outgoing.reset(Reason::CANCEL);
    left.reset_by_peer().await;

    staying.outgoing.message(b"here").await;
    assert_eq!(stayed.incoming.message().await.unwrap(), "here");
    stayed.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(staying.answer().await.code(), Code::Ok);
}

// === upstreams that are not there ===

#[tokio::test]
async fn upstream_that_is_down_is_unavailable() {
    let address = nobody().await;
    let proxy = Yaml::to(address).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary(PATH, b"x").await;

    assert_ended(&answer, Code::Unavailable, "upstream_connect_failed");
    assert_eq!(answer.text(), "cluster main: no connection");
    let mut call = client
        .open(http::Request::get("http://e2e.test/file"), true)
        .await;
    assert_eq!(call.answer().await.status, 503);
}

#[tokio::test]
async fn upstream_that_comes_back_is_used_again() {
    let address = nobody().await;
    let proxy = Yaml::to(address).start().await;
    let client = Client::connect(&proxy).await;
    assert_ended(
        &client.unary(PATH, b"x").await,
        Code::Unavailable,
        "upstream_connect_failed",
    );

    let _upstream = Upstream::start_at(address)
        .await
        .serve(crate::support::upstream::echo);

    assert_eq!(client.unary(PATH, b"x").await.code(), Code::Ok);
}

#[tokio::test]
async fn upstream_that_speaks_something_else_is_unavailable() {
    let upstream = plain::PlainUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address)
        .listener("error_details: true")
        .start()
        .await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    let mut peer = upstream.accept().await;
    peer.write("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        .await;

    let answer = call.answer().await;
    assert_ended(&answer, Code::Unavailable, "upstream_connect_failed");
    assert!(answer.text().contains("HTTP/2"), "{}", answer.text());
}

#[tokio::test]
async fn upstream_that_hangs_up_on_the_preface_is_unavailable() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    drop(upstream.accept().await);

    assert_ended(
        &call.answer().await,
        Code::Unavailable,
        "upstream_connect_failed",
    );
}

#[tokio::test]
async fn upstream_that_never_says_its_settings_is_given_up_in_time() {
    // The kernel accepts for a listener, so that a dial succeeds and nothing ever comes.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Yaml::to(silent.local_addr().unwrap())
        .cluster("connect_timeout: 100ms")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary(PATH, b"x").await;

    assert_eq!(answer.code(), Code::Unavailable);
    let reason = answer.reason().unwrap();
    assert!(
        ["upstream_connect_timeout", "upstream_connect_failed"].contains(&reason),
        "{reason}"
    );
    assert!(answer.text().contains("cluster main"), "{}", answer.text());
}

// === no way to go ===

async fn with_a_narrow_route() -> (Upstream, TestProxy) {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("match: {path_prefix: /known/}")
        .start()
        .await;
    (upstream, proxy)
}

#[tokio::test]
async fn grpc_call_that_no_route_takes_is_unimplemented() {
    let (_upstream, proxy) = with_a_narrow_route().await;

    let answer = Client::connect(&proxy).await.unary(PATH, b"x").await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unimplemented, Some("no_route"))
    );
    assert_eq!(answer.status, 200, "gRPC's statuses are not HTTP's");
    assert!(answer.text().contains(PATH), "{}", answer.text());
}

#[tokio::test]
async fn http_request_that_no_route_takes_is_not_found() {
    let (_upstream, proxy) = with_a_narrow_route().await;
    let client = Client::connect(&proxy).await;
    let mut plain = plain::Peer::connect(&proxy.address).await;

    let answer = client
        .open(http::Request::get("http://e2e.test/other"), true)
        .await
        .answer()
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (404, Some("no_route"))
    );

    plain
        .write("GET /other HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;
    let head = plain.head().await;
    assert!(head.line.starts_with("HTTP/1.1 404"), "{}", head.line);
    assert_eq!(head.values("thalweg-reason"), ["no_route"]);
}

#[tokio::test]
async fn refused_call_does_not_wait_for_the_end_of_its_request() {
    let (_upstream, proxy) = with_a_narrow_route().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.open(grpc(PATH), false).await;

    assert_eq!(call.answer().await.code(), Code::Unimplemented);
    assert_eq!(call.outgoing.reset_by_peer().await, Reason::NO_ERROR);
}

/// curl 7.88 sleeps until then, although all has been said.
#[tokio::test]
async fn client_that_ends_a_refused_upload_is_sent_one_more_frame() {
    let proxy = TestProxy::start("listeners: [{name: it, address: \"127.0.0.1:0\"}]\n").await;
    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "e2e"),
        (":path", "/nowhere"),
    ];
    peer.write(&raw::headers(1, &head, false)).await;
    peer.until(|frame| frame.kind == raw::DATA && frame.ends_stream())
        .await;

    peer.write(&raw::data(1, b"", true)).await;

    let ping = |frame: &raw::Frame| frame.kind == raw::PING && frame.flags & raw::ACK == 0;
    let reset = |frame: &raw::Frame| frame.kind == raw::RST_STREAM;
    let next = peer.until(|frame| ping(frame) || reset(frame)).await;
    assert!(ping(&next), "a reset after the end would lose the answer");
}

#[tokio::test]
async fn more_headers_than_the_listener_takes_are_refused() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("http2: {max_headers: 10}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let answer = client
        .call(PATH, &[("x-many", "1"); 20])
        .await
        .answer()
        .await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::ResourceExhausted, Some("too_many_headers"))
    );
    assert!(answer.text().contains("max_headers"), "{}", answer.text());
    let mut request = http::Request::get("http://e2e.test/");
    for _ in 0..20 {
        request = request.header("x-many", "1");
    }
    let answer = client.open(request, true).await.answer().await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (431, Some("too_many_headers"))
    );
    assert!(!upstream.has_call());
}

#[tokio::test]
async fn tunnels_are_refused() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client
        .open(http::Request::connect("e2e.test:443"), false)
        .await
        .answer()
        .await;

    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (405, Some("connect_refused"))
    );
    assert!(!upstream.has_call());
}

#[tokio::test]
async fn host_that_is_none_is_refused() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut client = plain::Peer::connect(&proxy.address).await;

    client
        .write("GET / HTTP/1.1\r\nhost: not a host\r\n\r\n")
        .await;

    let head = client.head().await;
    assert!(head.line.starts_with("HTTP/1.1 400"), "{}", head.line);
    assert_eq!(head.values("thalweg-reason"), ["bad_host"]);
    assert!(!upstream.has_call());
}

// === stalls ===

#[tokio::test]
async fn upstream_that_takes_nothing_is_given_up_and_the_setting_named() {
    let mut closed = builder();
    closed.initial_window_size(0);
    let mut upstream = Upstream::start_with(&closed).await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {stall: 200ms}")
        .start()
        .await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    call.outgoing.data_now(vec![0; 1000]);
    let mut upstream = upstream.call().await;

    let answer = call.answer().await;

    assert_ended(&answer, Code::Unavailable, "upstream_stalled");
    let text = answer.text();
    assert!(
        text.contains("timeouts.stall") && text.contains("200ms"),
        "{text}"
    );
    assert_eq!(upstream.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn client_that_takes_nothing_is_given_up() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("timeouts: {stall: 200ms}")
        .start()
        .await;
    let mut closed = h2::client::Builder::new();
    closed.initial_window_size(0);
    let client = Client::connect_with(&proxy.address, &closed).await;
    let mut call = client.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.data_now(vec![0; 1000]);

    let (_, mut incoming) = call.head().await;

    assert_eq!(incoming.broken().await, Reason::CANCEL);
    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn silence_is_no_stall() {
    let mut upstream = Upstream::start().await;
    let stall = "timeouts: {stall: 10ms}";
    let proxy = Yaml::to(&upstream)
        .listener(stall)
        .route(stall)
        .cluster("stall: 10ms")
        .start()
        .await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;

    // Many times the limit, in which nobody has anything to say.
    tokio::time::sleep(Duration::from_millis(200)).await;

    call.outgoing.message(b"there").await;
    assert_eq!(upstream.incoming.message().await.unwrap(), "there");
    outgoing.message(b"back").await;
    assert_eq!(incoming.message().await.unwrap(), "back");
    outgoing.trailers(&[("grpc-status", "0")]);
    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

// === the end of the proxy ===

#[tokio::test]
async fn drain_lets_open_streams_end_and_takes_no_new_connections() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let address = proxy.address.to_string();
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;

    let drained = tokio::spawn(proxy.drain());
    within("the listener closes", async {
        while tokio::net::TcpStream::connect(&address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    outgoing.message(b"still here").await;
    assert_eq!(incoming.message().await.unwrap(), "still here");
    assert!(!drained.is_finished(), "a stream is open");
    outgoing.trailers(&[("grpc-status", "0")]);

    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
    within("the drain ends", drained).await.unwrap();
}
