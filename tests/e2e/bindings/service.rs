//! Web services behind a binding.

use thalweg_proto::status::Code;

use crate::support::{
    binding::{Told, initial, payload, proxy, runtime, told},
    client::Client,
    plain::{Peer, PlainUpstream},
    proxy::TestProxy,
    upstream::{Upstream, refuse_http},
    within,
};

const STREAM: &str = "/v1.0-alpha1/bindings/it/stream";

async fn with_service(address: &str, more: &str) -> (TestProxy, Client) {
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{address}/in?key=1\"}}{more}}}"
    )])
    .await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

async fn open(
    client: &Client,
    operation: &str,
    pairs: &[(&str, &str)],
) -> crate::support::client::Call {
    let mut call = client.call(crate::support::binding::STREAM, &[]).await;
    call.outgoing
        .message(&initial("it", operation, pairs))
        .await;
    call
}

#[tokio::test]
async fn stream_is_the_body_of_one_request_and_its_answer_streams_back() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;
    let pairs = [
        ("X-Own", "1"),
        ("path", "/sub/file?more=2"),
        ("content-length", "99"),
        ("Transfer-Encoding", "gzip"),
        ("not a header", "x"),
    ];
    let mut call = open(&client, "create", &pairs).await;

    let mut served = service.accept().await;
    let head = served.head().await;
    assert_eq!(head.line, "POST /in/sub/file?key=1&more=2 HTTP/1.1");
    assert_eq!(head.values("host"), [service.address.as_str()]);
    assert_eq!(head.values("x-own"), ["1"]);
    assert_eq!(head.values("transfer-encoding"), ["chunked"]);
    assert!(!head.has("content-length") && !head.has("path"));
    served
        .write("HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\netag: 7\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let (_head, mut incoming) = call.head().await;
    let first = runtime(&incoming.message().await.unwrap()).response();
    assert_eq!(first.content_type, "text/plain");
    assert_eq!(first.metadata["statusCode"], "201");
    assert_eq!(first.metadata["etag"], "7");

    for (number, text) in [(0, "one"), (1, "two")] {
        call.outgoing
            .message(&payload(number, text.as_bytes()))
            .await;
        assert_eq!(served.chunk().await, text);
        served.write_chunk(text.as_bytes()).await;
        assert_eq!(
            runtime(&incoming.message().await.unwrap()),
            told(number, text)
        );
    }
    call.outgoing.end();
    assert_eq!(served.chunked().await.0, "");
    served.write("0\r\n\r\n").await;
    let (rest, end) = incoming.rest().await;
    assert_eq!(rest, "");
    assert_eq!(end.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn service_may_speak_http2() {
    let mut upstream = Upstream::start().await;
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{upstream}/in\", protocol: http2}}}}"
    )])
    .await;
    let client = Client::connect(&proxy).await;
    let mut call = client
        .request("PUT", &format!("{STREAM}?operation=put"), &[])
        .await;
    call.outgoing.data("up").await;
    call.outgoing.end();

    let mut served = upstream.call().await;
    assert_eq!((served.head.method.as_str(), served.path()), ("PUT", "/in"));
    assert!(!served.headers().contains_key("content-type"));
    let (body, _) = served.incoming.rest().await;
    assert_eq!(body, "up");
    let mut outgoing = served.respond_with(200, &[("content-type", "text/plain")]);
    outgoing.data("down").await;
    outgoing.end();

    let answer = call.answer().await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"down"[..])
    );
    assert_eq!(answer.headers["content-type"], "text/plain");
    assert_eq!(answer.headers["metadata.statuscode"], "200");
}

#[tokio::test]
async fn operation_is_the_method_and_unknown_ones_are_refused() {
    let mut upstream = Upstream::start().await;
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{upstream}/in\", protocol: http2}}}}"
    )])
    .await;
    let client = Client::connect(&proxy).await;

    for (operation, method) in [
        ("create", "POST"),
        ("get", "GET"),
        ("delete", "DELETE"),
        ("patch", "PATCH"),
    ] {
        let mut call = open(&client, operation, &[]).await;
        call.outgoing.end();
        let mut served = upstream.call().await;
        assert_eq!(served.head.method, method);
        served.finish_with(204, &[]);
        let answer = call.answer().await;
        assert_eq!(answer.code(), Code::Ok);
        assert_eq!(answer.told()[0].response().metadata["statusCode"], "204");
    }
    let answer = open(&client, "explode", &[]).await.answer().await;
    assert_eq!(answer.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn path_cannot_climb_and_metadata_cannot_smuggle() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;

    for pairs in [
        ("path", "../admin"),
        ("path", "a/../../admin"),
        ("path", "a b"),
        ("path", "..#"),
        ("path", "x/..#y"),
        ("path", "a#b"),
        ("path", "a?b=c#d"),
        ("path", "%2e%2E/admin"),
        ("path", "%2e%2e%2fadmin"),
        ("path", "..%2fadmin"),
        ("path", "..%5cadmin"),
        ("path", "..\\admin"),
        ("path", "..;/admin"),
        ("path", "a%00"),
        ("path", "a%"),
        ("path", "a\nb"),
        ("path", "?key=2"),
        ("path", "a?b=c&k%65y=2"),
        ("x-own", "1\r\nx-evil: 2"),
    ] {
        let answer = open(&client, "create", &[pairs]).await.answer().await;
        assert_eq!(answer.code(), Code::InvalidArgument, "{pairs:?}");
    }
}

#[tokio::test]
async fn client_cannot_say_what_only_the_proxy_may() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;

    for name in [
        "x-forwarded-client-cert",
        "X_Forwarded_Client_Cert",
        "x-forwarded-for",
        "forwarded",
        "x-real-ip",
        "x-original-url",
        "dapr-api-token",
        "authorization",
        "cookie",
    ] {
        let answer = open(&client, "create", &[(name, "x")]).await.answer().await;
        assert_eq!(answer.code(), Code::InvalidArgument, "{name}");
        assert_eq!(answer.headers["thalweg-reason"], "forbidden_metadata");
    }
    let target = format!("{STREAM}?operation=create&metadata.X-Forwarded-For=6.6.6.6");
    assert_eq!(
        client.post(&target, b"").await.error().0,
        "ERR_FORBIDDEN_METADATA"
    );
}

#[tokio::test]
async fn credentials_pass_where_the_binding_lets_them() {
    let service = PlainUpstream::bind().await;
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{}/in\", pass_credentials: true}}}}",
        service.address
    )])
    .await;
    let client = Client::connect(&proxy).await;

    let pairs = [("Authorization", "Bearer 1"), ("accept", "text/plain")];
    let _call = open(&client, "create", &pairs).await;

    let head = service.accept().await.head().await;
    assert_eq!(head.values("authorization"), ["Bearer 1"]);
    assert_eq!(head.values("accept"), ["text/plain"]);
    let forged = open(&client, "create", &[("x-forwarded-for", "x")]).await;
    let answer = { forged }.answer().await;
    assert_eq!(answer.headers["thalweg-reason"], "forbidden_metadata");
}

#[tokio::test]
async fn header_that_comes_twice_is_one_entry() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;
    let mut call = open(&client, "create", &[]).await;
    call.outgoing.end();

    let mut served = service.accept().await;
    served.head().await;
    served
        .write("HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n")
        .await;

    let answer = call.answer().await;
    assert_eq!(
        answer.told()[0].response().metadata["set-cookie"],
        "a=1, b=2"
    );
}

#[tokio::test]
async fn status_of_a_refusal_comes_through() {
    let upstream = Upstream::start().await.serve(refuse_http);
    let proxy = proxy(&[&format!(
        "it: {{http: {{url: \"http://{upstream}/\", protocol: http2}}}}"
    )])
    .await;
    let client = Client::connect(&proxy).await;

    for (status, code) in [
        ("400", Code::InvalidArgument),
        ("401", Code::Unauthenticated),
        ("403", Code::PermissionDenied),
        ("404", Code::NotFound),
        ("409", Code::Aborted),
        ("413", Code::ResourceExhausted),
        ("422", Code::InvalidArgument),
        ("429", Code::ResourceExhausted),
        ("500", Code::Internal),
        ("503", Code::Unavailable),
    ] {
        let mut call = open(&client, "create", &[("path", status)]).await;
        assert_eq!(call.answer().await.code(), code, "{status}");
        let answer = client
            .post(
                &format!("{STREAM}?operation=create&metadata.path={status}"),
                b"x",
            )
            .await;
        assert_eq!(answer.status.as_str(), status);
        assert_eq!(answer.error().0, "ERR_INVOKE_OUTPUT_BINDING");
    }
}

#[tokio::test]
async fn what_a_client_asks_wrongly_does_not_trip_the_breaker() {
    for more in [
        "filters: [metrics, circuit_breaker: {trip: consecutiveFailures > 0}]",
        "resiliency: {circuit_breaker: {trip: consecutiveFailures > 0}}",
    ] {
        let upstream = Upstream::start().await.serve(refuse_http);
        let proxy = proxy(&[&format!(
            "it: {{http: {{url: \"http://{upstream}/\", protocol: http2}}, {more}}}"
        )])
        .await;
        let client = Client::connect(&proxy).await;
        let post = async |status: &str| {
            let target = format!("{STREAM}?operation=create&metadata.path={status}");
            client.post(&target, b"x").await.status.as_u16()
        };

        assert_eq!(post("404").await, 404);
        assert_eq!(post("422").await, 422);
        assert_eq!(post("404").await, 404);
        assert_eq!(post("500").await, 500);
        assert_eq!(post("404").await, 404);
        assert_eq!(post("503").await, 503);
        // Now it rests.
        assert_eq!(post("404").await, 503);
    }
}

#[tokio::test]
async fn answer_that_breaks_off_never_looks_done() {
    for head in ["transfer-encoding: chunked", "content-length: 100"] {
        let service = PlainUpstream::bind().await;
        let (_proxy, client) = with_service(&service.address, "").await;
        let mut call = open(&client, "create", &[]).await;
        call.outgoing.end();

        let mut served = service.accept().await;
        served.head().await;
        served
            .write(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nhalf\r\n"))
            .await;
        let (_head, mut incoming) = call.head().await;
        assert!(matches!(
            runtime(&incoming.message().await.unwrap()),
            Told::Initial(_)
        ));
        incoming.message().await.unwrap();
        drop(served);

        let (_, end) = incoming.rest().await;
        assert_eq!(end.unwrap()["grpc-status"], "14");
    }
}

#[tokio::test]
async fn client_that_leaves_breaks_the_request_off() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;
    let mut call = open(&client, "create", &[]).await;
    call.outgoing.message(&payload(0, b"half")).await;
    let mut served = service.accept().await;
    served.head().await;
    assert_eq!(served.chunk().await, "half");

    client.vanish().await;

    // No last chunk comes: what is there is not all of it.
    assert_eq!(served.rest().await, "");
    drop(call);
}

#[tokio::test]
async fn bad_number_breaks_the_request_off() {
    let service = PlainUpstream::bind().await;
    let (_proxy, client) = with_service(&service.address, "").await;
    let mut call = open(&client, "create", &[]).await;
    call.outgoing.message(&payload(0, b"good")).await;
    let mut served = service.accept().await;
    served.head().await;
    assert_eq!(served.chunk().await, "good");

    call.outgoing.message(&payload(2, b"bad")).await;

    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
    assert_eq!(served.rest().await, "");
}

#[tokio::test]
async fn retry_over_http1_says_the_request_again_while_the_client_goes_on() {
    let service = PlainUpstream::bind().await;
    let more = ", resiliency: {timeout: 1s, retry: {duration: 1ms, matching: [DEADLINE_EXCEEDED]}}";
    let (_proxy, client) = with_service(&service.address, more).await;
    let mut call = open(&client, "create", &[]).await;
    let sending = async {
        for number in 0..200 {
            call.outgoing
                .message(&payload(number, &[number as u8; 50]))
                .await;
            tokio::task::yield_now().await;
        }
        call.outgoing.end();
        call.answer().await
    };
    let serving = async {
        // The first takes the head, a little of the body, and says nothing.
        let mut silent = service.accept().await;
        silent.head().await;
        silent.chunk().await;
        silent.rest().await;
        let mut served: Peer = service.accept().await;
        served.head().await;
        let (body, _) = served.chunked().await;
        served
            .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        body
    };

    let (answer, body) = within("both are done", async { tokio::join!(sending, serving) }).await;

    assert_eq!(answer.code(), Code::Ok);
    let expected: Vec<u8> = (0..200_u8).flat_map(|number| [number; 50]).collect();
    assert!(body == expected, "the bytes differ");
}
