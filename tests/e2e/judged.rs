//! What a client says of itself decides neither whether it is judged nor what becomes of others.

use bytes::Bytes;
use h2::Reason;
use http::Request;
use thalweg_proto::status::Code;

use crate::support::{
    client::{Client, grpc},
    flood::Flood,
    framed, plain,
    proxy::{TestProxy, Yaml},
    upstream::Upstream,
    within,
};

const TALK: &str = "/e2e.Echo/Talk";

/// A message that `sequence` would refuse, and that lacks every field.
const BAD: &[u8] = &[0, 0, 0, 0, 0];

/// What a gRPC server may take for gRPC, though it does not say so.
const DISGUISES: [Option<&str>; 5] = [
    None,
    Some("text/plain"),
    Some("application/grpcx"),
    Some("application/grpc-web"),
    Some("text/plain, application/grpc"),
];

fn disguised(path: &str, content_type: Option<&str>) -> http::request::Builder {
    let request = Request::post(format!("http://e2e.test{path}")).header("te", "trailers");
    match content_type {
        Some(content_type) => request.header("content-type", content_type),
        None => request,
    }
}

// === filters that judge messages ===

#[tokio::test]
async fn content_type_does_not_switch_off_a_filter_that_judges() {
    for filter in [
        "sequence",
        "initial_message: {required: [\"1\"]}",
        "initial_message: {headers: {x-tenant: \"1\"}}",
    ] {
        let upstream = Upstream::start().await;
        let proxy = Yaml::to(&upstream)
            .route(&format!("filters: [{{{filter}}}]").replace("{sequence}", "sequence"))
            .start()
            .await;
        let client = Client::connect(&proxy).await;

        for disguise in DISGUISES {
            let mut call = client.open(disguised(TALK, disguise), false).await;
            call.outgoing.data_now(Bytes::from_static(BAD));
            let answer = call.answer().await;

            assert_eq!(answer.status, 415, "{filter} {disguise:?}");
            assert_eq!(answer.reason(), Some("not_grpc"));
        }
        let mut plain = plain::Peer::connect(&proxy.address).await;
        plain
            .write(format!(
                "POST {TALK} HTTP/1.1\r\nhost: e2e.test\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        assert_eq!(
            plain.head().await.line,
            "HTTP/1.1 415 Unsupported Media Type"
        );
        assert!(!upstream.has_call());
    }
}

#[tokio::test]
async fn plain_http_passes_where_nothing_is_judged() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("filters: [metrics, {initial_message: {timeout: 1m}}, circuit_breaker]")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let mut call = client.open(disguised("/page", None), true).await;
    upstream.call().await.finish_with(200, &[]);

    assert_eq!(call.answer().await.status, 200);
}

#[tokio::test]
async fn more_than_one_content_type_is_refused_everywhere() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let with = |types: [&str; 2]| {
        let request = disguised(TALK, Some(types[0])).header("content-type", types[1]);
        client.open(request, true)
    };

    let answer = with(["text/plain", "application/grpc"])
        .await
        .answer()
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (400, Some("content_types"))
    );
    let answer = with(["application/grpc", "text/plain"])
        .await
        .answer()
        .await;
    assert_eq!(answer.code(), Code::InvalidArgument);
    assert_eq!(answer.reason(), Some("content_types"));

    let mut plain = plain::Peer::connect(&proxy.address).await;
    plain
        .write("GET / HTTP/1.1\r\nhost: e2e.test\r\ncontent-type: text/plain\r\ncontent-type: text/html\r\n\r\n")
        .await;
    assert_eq!(plain.head().await.line, "HTTP/1.1 400 Bad Request");
    assert!(!upstream.has_call());
}

#[tokio::test]
async fn status_in_a_request_makes_no_whole_of_a_part() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("filters: [sequence]")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(TALK, &[]).await;
    // The head of a message of nine bytes, and one of them.
    call.outgoing.data(&[0, 0, 0, 0, 9, 0x0a][..]).await;
    let mut served = upstream.call().await;
    call.outgoing.trailers(&[("grpc-status", "1")]);

    assert_ne!(served.reset_by_peer().await, Reason::NO_ERROR);
    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::InvalidArgument);
    assert_eq!(answer.reason(), Some("malformed_message"));
}

// === calls of bindings ===

#[tokio::test]
async fn call_of_a_binding_that_comes_otherwise_does_not_follow_the_routes() {
    let upstream = Upstream::start().await;
    let yaml = format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{daprd: {{endpoints: [\"{upstream}\"]}}}}\n\
         bindings: {{it: {{echo: {{}}}}}}\n\
         routes: [{{name: all, cluster: daprd}}]\n"
    );
    let proxy = TestProxy::start(&yaml).await;
    let client = Client::connect(&proxy).await;

    for method in ["InvokeBindingAlpha1", "InvokeBinding"] {
        for disguise in DISGUISES {
            let path = format!("/dapr.proto.runtime.v1.Dapr/{method}");
            let answer = client
                .open(disguised(&path, disguise), true)
                .await
                .answer()
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.reason()),
                (415, Some("not_grpc"))
            );
        }
    }
    for path in ["/v1.0/bindings/it", "/v1.0-alpha1/bindings/it/stream"] {
        let answer = client.open(grpc(path), true).await.answer().await;
        assert_eq!(
            (answer.code(), answer.reason()),
            (Code::Unimplemented, Some("not_http"))
        );

        let get = Request::get(format!("http://e2e.test{path}"));
        let answer = client.open(get, true).await.answer().await;
        assert_eq!(
            (answer.status.as_u16(), answer.reason()),
            (405, Some("wrong_method"))
        );
        assert_eq!(answer.headers["allow"], "POST, PUT");
    }
    assert!(!upstream.has_call());
}

// === breakers ===

#[tokio::test]
async fn deadlines_of_one_client_shut_nobody_out() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("filters: [circuit_breaker]")
        .start()
        .await;
    let (rude, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);

    for timeout in ["1n", "1n", "1n", "1n", "20m", "20m", "20m"] {
        let mut call = rude.call(TALK, &[("grpc-timeout", timeout)]).await;
        call.outgoing.end();
        assert_eq!(call.answer().await.code(), Code::DeadlineExceeded);
    }
    upstream.serve(crate::support::upstream::echo);

    assert_eq!(
        other.unary("/e2e.Echo/Unary", b"hello").await.code(),
        Code::Ok
    );
}

#[tokio::test]
async fn statuses_that_a_client_can_bring_about_shut_nobody_out() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("filters: [circuit_breaker]")
        .start()
        .await;
    let (rude, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);

    for status in ["8", "13", "2", "8", "13", "2"] {
        let mut call = rude.call(TALK, &[]).await;
        upstream
            .call()
            .await
            .finish_with(200, &[("grpc-status", status)]);
        assert_eq!(call.answer().await.code().as_str(), status);
    }
    for _ in 0..6 {
        let mut call = rude.call(TALK, &[]).await;
        upstream.call().await.reset(Reason::INTERNAL_ERROR);
        assert_eq!(call.answer().await.code(), Code::Internal);
    }
    upstream.serve(crate::support::upstream::echo);

    assert_eq!(
        other.unary("/e2e.Echo/Unary", b"hello").await.code(),
        Code::Ok
    );
}

#[tokio::test]
async fn limits_that_one_client_reaches_shut_nobody_out() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .cluster("pool: {max_streams: 1}")
        .route("filters: [circuit_breaker]")
        .start()
        .await;
    let rude = Client::connect(&proxy).await;
    let mut held = rude.call(TALK, &[]).await;
    let mut served = upstream.call().await;

    for _ in 0..7 {
        let answer = rude.unary(TALK, b"").await;
        assert_eq!(answer.reason(), Some("upstream_too_many_streams"));
    }
    served.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(held.answer().await.code(), Code::Ok);
    upstream.serve(crate::support::upstream::echo);

    let other = Client::connect(&proxy).await;
    assert_eq!(
        other.unary("/e2e.Echo/Unary", b"hello").await.code(),
        Code::Ok
    );
}

#[tokio::test]
async fn uploads_of_a_client_that_reads_nothing_shut_nobody_out() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("timeouts: {stall: 100ms}, filters: [{circuit_breaker: {trip: consecutiveFailures > 0}}]")
        .start()
        .await;
    let (rude, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);
    let mut call = rude.call(TALK, &[]).await;
    let mut served = upstream.call().await;
    // More than the client's windows take, which gives nothing of them back.
    let mut answer = served.respond();
    answer.data_now(vec![7; 100 * 1024]);
    let (_head, _unread) = call.head().await;

    let flood = Flood::start(call.outgoing, framed(&[7; 64 * 1024]));
    answer.reset_by_peer().await;
    drop(flood);
    upstream.serve(crate::support::upstream::echo);

    let answer = other.unary("/e2e.Echo/Unary", b"hello").await;
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn probe_that_never_ends_shuts_nobody_out() {
    for answers in [true, false] {
        let mut upstream = Upstream::start().await;
        let proxy = Yaml::to(&upstream)
            .route("filters: [{circuit_breaker: {trip: consecutiveFailures > 0, timeout: 100ms}}]")
            .start()
            .await;
        let (rude, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);
        let mut call = rude.call(TALK, &[]).await;
        upstream
            .call()
            .await
            .finish_with(200, &[("grpc-status", "14")]);
        assert_eq!(call.answer().await.code(), Code::Unavailable);

        let (mut probe, mut served) = within("the breaker probes", async {
            loop {
                let mut call = rude.call(TALK, &[]).await;
                tokio::select! {
                    served = upstream.call() => break (call, served),
                    head = call.head() => assert_eq!(head.0.headers()["thalweg-reason"], "circuit_open"),
                }
            }
        })
        .await;
        if answers {
            let mut outgoing = served.respond();
            probe.head().await;
            outgoing.message(b"on and on").await;
        }
        upstream.serve(crate::support::upstream::echo);
        within("the others come in", async {
            while other.unary("/e2e.Echo/Unary", b"hello").await.code() != Code::Ok {}
        })
        .await;
        drop(probe);
    }
}
