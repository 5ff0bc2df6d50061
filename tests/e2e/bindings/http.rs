//! Bindings over plain HTTP.

use h2::Reason;
use thalweg_proto::bindings::{ComponentInitialRequest, Message};

use crate::support::{
    binding::{Told, component_data, initial_response, metadata, proxy, told},
    client::Client,
    component::{Component, Traits, ready, refuse},
    plain::{Peer, PlainUpstream},
    proxy::TestProxy,
    upstream::{Call, nobody},
    values,
};

const ECHO: &str = "echo: {echo: {}}";
const STREAM: &str = "/v1.0-alpha1/bindings/it/stream?operation=create";

async fn with_component(component: &Component) -> (TestProxy, Client) {
    let proxy = proxy(&[&format!(
        "it: {{component: {{address: \"{}\"}}}}",
        component.address
    )])
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

/// What the initial message to a component says.
async fn opening(call: &mut Call) -> ComponentInitialRequest {
    match call.told().await {
        Some(Told::Initial(opening)) => ComponentInitialRequest::decode(opening).unwrap(),
        other => panic!("no initial message: {other:?}"),
    }
}

fn head(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: e2e\r\n{fields}\r\n")
}

// === the stream ===

#[tokio::test]
async fn both_directions_stream_over_http2() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.request("POST", STREAM, &[]).await;
    let (mut served, mut outgoing) = component.stream().await;
    outgoing
        .message(&initial_response(
            "text/plain",
            &[("etag", "1"), ("Two Words", "x")],
        ))
        .await;

    // The head comes with the first message of the component, before any payload.
    let (head, mut incoming) = call.head().await;
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-type"], "text/plain");
    assert_eq!(head.headers()["metadata.etag"], "1");
    assert_eq!(head.headers()["x-dapr-metadata-etag"], "1");

    for (number, text) in [(0, "one"), (1, "two")] {
        call.outgoing.data(text).await;
        assert_eq!(served.told().await, Some(told(number + 1, text)));
        outgoing
            .message(&component_data(number, text.as_bytes()))
            .await;
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), text);
    }
    call.outgoing.end();
    assert_eq!(served.told().await, None);
    outgoing.message(&component_data(2, b"after the end")).await;
    outgoing.trailers(&[("grpc-status", "0")]);
    let (rest, end) = incoming.rest().await;
    assert_eq!(rest, "after the end");
    assert!(end.unwrap().is_empty());
}

#[tokio::test]
async fn both_directions_stream_over_http1() {
    for method in ["POST", "PUT"] {
        let mut component = Component::start().await;
        let (proxy, _) = with_component(&component).await;
        let mut client = Peer::connect(&proxy.address).await;
        client
            .write(head(method, STREAM, "transfer-encoding: chunked\r\n"))
            .await;
        let (mut served, mut outgoing) = component.stream().await;
        outgoing.message(&initial_response("", &[])).await;

        let head = client.head().await;
        assert_eq!(head.line, "HTTP/1.1 200 OK");
        assert_eq!(head.values("content-type"), ["application/octet-stream"]);
        assert_eq!(head.values("transfer-encoding"), ["chunked"]);

        for (number, text) in [(0, "one"), (1, "two")] {
            client.write_chunk(text.as_bytes()).await;
            assert_eq!(served.told().await, Some(told(number + 1, text)));
            outgoing
                .message(&component_data(number, text.as_bytes()))
                .await;
            assert_eq!(client.chunk().await, text);
        }
        client.write("0\r\n\r\n").await;
        assert_eq!(served.told().await, None);
        outgoing.trailers(&[("grpc-status", "0")]);
        assert_eq!(client.chunked().await.0, "");
    }
}

#[tokio::test]
async fn request_with_a_length_is_streamed_as_it_comes() {
    let mut component = Component::start().await;
    let (proxy, _) = with_component(&component).await;
    let mut client = Peer::connect(&proxy.address).await;
    client
        .write(head("POST", STREAM, "content-length: 6\r\n") + "one")
        .await;

    let (mut served, mut outgoing) = component.stream().await;
    assert_eq!(served.told().await, Some(told(1, "one")));
    client.write("two").await;
    assert_eq!(served.told().await, Some(told(2, "two")));
    assert_eq!(served.told().await, None);
    outgoing.trailers(&[("grpc-status", "0")]);

    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
    assert_eq!(client.chunked().await.0, "");
}

#[tokio::test]
async fn upload_may_be_larger_than_what_dapr_takes() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let body: Vec<u8> = (0..6_u32 << 20).map(|at| (at % 251) as u8).collect();

    let (answer, ()) = tokio::join!(client.post(STREAM, &body), async {
        let (mut served, mut outgoing) = component.stream().await;
        assert!(served.incoming.data(1).await == body, "the bytes differ");
        outgoing.trailers(&[("grpc-status", "0")]);
    });

    assert_eq!(answer.status, 200);
}

// === what is asked for ===

#[tokio::test]
async fn operation_and_metadata_come_from_headers_and_query() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;

    // Header names have no case; the query keeps its own, wins, and is decoded.
    let target = "/v1.0-alpha1/bindings/it/stream?operation=get&metadata.blobName=a%20b&metadata.ttlInSeconds=1&other=x";
    let pairs = [
        ("dapr-operation", "create"),
        ("metadata-blobname", "from the header"),
        ("metadata-one", "1"),
        ("metadata-one", "the second is not heard"),
        ("x-dapr-metadata-two", "2"),
        ("x-other", "x"),
    ];
    let _call = client.request("PUT", target, &pairs).await;
    let opening = opening(&mut component.call().await).await;
    assert_eq!(opening.operation, "create");
    assert_eq!(
        opening.metadata,
        metadata(&[
            ("blobName", "a b"),
            ("one", "1"),
            ("ttlInSeconds", "1"),
            ("two", "2")
        ])
    );
}

#[tokio::test]
async fn name_of_a_binding_may_need_decoding() {
    let proxy = proxy(&["\"my binding\": {echo: {}}"]).await;
    let client = Client::connect(&proxy).await;

    let target = "/v1.0-alpha1/bindings/my%20binding/stream?operation=create";
    assert_eq!(client.post(target, b"hi").await.body, "hi");
}

#[tokio::test]
async fn trace_goes_to_the_component_and_other_headers_do_not() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let pairs = [("traceparent", "00-1-2-01"), ("authorization", "secret")];

    let _call = client.request("POST", STREAM, &pairs).await;

    let served = component.call().await;
    assert_eq!(served.headers()["traceparent"], "00-1-2-01");
    assert!(!served.headers().contains_key("authorization"));
}

// === errors before the first byte ===

#[tokio::test]
async fn errors_are_statuses_with_json() {
    let component = Component::start().await;
    let away = nobody().await;
    let proxy = proxy(&[
        &format!("it: {{component: {{address: \"{}\"}}}}", component.address),
        &format!("away: {{component: {{address: \"{away}\"}}}}"),
    ])
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;

    for (target, status, code) in [
        (
            "/v1.0-alpha1/bindings/nobody/stream?operation=create",
            404,
            "ERR_NO_BINDING",
        ),
        ("/v1.0-alpha1/bindings/it/stream", 400, "ERR_BAD_REQUEST"),
        (
            "/v1.0-alpha1/bindings/it/stream?operation=",
            400,
            "ERR_BAD_REQUEST",
        ),
        (
            "/v1.0-alpha1/bindings/it/stream?operation=explode",
            400,
            "ERR_UNSUPPORTED_OPERATION",
        ),
        (
            "/v1.0-alpha1/bindings/away/stream?operation=create",
            503,
            "ERR_COMPONENT_UNAVAILABLE",
        ),
        ("/v1.0/bindings/nobody", 404, "ERR_NO_BINDING"),
    ] {
        let answer = client.post(target, b"x").await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.error().0, code, "{target}");
    }
    assert!(!component.has_call());
}

#[tokio::test]
async fn failure_of_a_component_before_its_answer_is_a_status() {
    for (grpc, http) in [
        ("3", 400),
        ("5", 404),
        ("6", 409),
        ("7", 403),
        ("8", 429),
        ("12", 501),
        ("13", 500),
        ("14", 503),
        ("4", 504),
    ] {
        let mut component = Traits::streaming().start().await;
        let (_proxy, client) = with_component(&component).await;
        // It has to be known that it streams, or UNIMPLEMENTED would mean something else.
        let (answer, ()) = tokio::join!(client.post(STREAM, b""), async {
            let (_call, mut outgoing) = component.stream().await;
            outgoing.trailers(&[("grpc-status", "0")]);
        });
        assert_eq!(answer.status, 200);

        // With the status in the head, and behind a head.
        for behind_a_head in [false, true] {
            let (answer, ()) = tokio::join!(client.post(STREAM, b"x"), async {
                let mut served = component.call().await;
                if behind_a_head {
                    let mut outgoing = served.respond();
                    outgoing.trailers(&[("grpc-status", grpc), ("grpc-message", "sorry")]);
                } else {
                    refuse(&mut served, grpc, "sorry");
                }
            });
            assert_eq!(answer.status, http, "{grpc}");
            assert!(answer.error().1.contains("sorry"), "{answer:?}");
        }
    }
}

// === failures after it ===

#[tokio::test]
async fn failure_after_the_first_byte_is_a_reset_over_http2() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    // With a status, with a broken sequence, without any status, with a reset.
    for how in 0..4 {
        let mut call = client.request("POST", STREAM, &[]).await;
        let (mut served, mut outgoing) = component.stream().await;
        outgoing.message(&component_data(0, b"half")).await;
        let (head, mut incoming) = call.head().await;
        assert_eq!(head.status(), 200);
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), "half");

        match how {
            0 => outgoing.trailers(&[("grpc-status", "13")]),
            1 => outgoing.message(&component_data(5, b"gap")).await,
            2 => outgoing.end(),
            _ => served.respond.send_reset(Reason::INTERNAL_ERROR),
        }

        let (rest, end) = incoming.rest().await;
        assert_eq!(rest, "", "{how}");
        assert!(end.unwrap_err().is_reset(), "{how}");
        drop(served.told());
    }
}

#[tokio::test]
async fn failure_after_the_first_byte_aborts_the_chunked_body() {
    for with_status in [true, false] {
        let mut component = Component::start().await;
        let (proxy, _) = with_component(&component).await;
        let mut client = Peer::connect(&proxy.address).await;
        client
            .write(head("POST", STREAM, "content-length: 0\r\n"))
            .await;
        let (_served, mut outgoing) = component.stream().await;
        outgoing.message(&component_data(0, b"half")).await;
        client.head().await;
        assert_eq!(client.chunk().await, "half");

        if with_status {
            outgoing.trailers(&[("grpc-status", "13")]);
        } else {
            component.kill();
        }

        // The connection ends, and the body has no end.
        assert_eq!(client.rest().await, "");
    }
}

#[tokio::test]
async fn client_that_leaves_is_a_cancel_at_once() {
    for fields in ["transfer-encoding: chunked\r\n", "content-length: 100\r\n"] {
        let mut component = Component::start().await;
        let (proxy, _) = with_component(&component).await;
        let mut client = Peer::connect(&proxy.address).await;
        client.write(head("POST", STREAM, fields)).await;
        client.write("1\r\nx\r\n").await;
        let (_served, mut outgoing) = component.stream().await;

        drop(client);

        outgoing.reset_by_peer().await;
    }
}

// === expectations ===

#[tokio::test]
async fn who_expects_a_100_gets_it_for_what_will_be_read() {
    let mut component = Component::start().await;
    let (proxy, _) = with_component(&component).await;
    let mut client = Peer::connect(&proxy.address).await;
    let fields = "content-length: 5\r\nexpect: 100-continue\r\n";
    client.write(head("POST", STREAM, fields)).await;

    assert_eq!(client.head().await.line, "HTTP/1.1 100 Continue");
    client.write("hello").await;

    let (mut served, mut outgoing) = component.stream().await;
    assert!(!served.headers().contains_key("expect"));
    assert_eq!(served.told().await, Some(told(1, "hello")));
    outgoing.trailers(&[("grpc-status", "0")]);
    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn who_expects_a_100_gets_none_for_what_is_refused() {
    let component = Component::start().await;
    let away = nobody().await;
    let proxy = proxy(&[
        &format!("it: {{component: {{address: \"{}\"}}}}", component.address),
        &format!("away: {{component: {{address: \"{away}\"}}}}"),
    ])
    .await;
    ready(&proxy, "it").await;

    for (target, line) in [
        (
            "/v1.0-alpha1/bindings/nobody/stream?operation=create",
            "HTTP/1.1 404 Not Found",
        ),
        (
            "/v1.0-alpha1/bindings/it/stream",
            "HTTP/1.1 400 Bad Request",
        ),
        (
            "/v1.0-alpha1/bindings/it/stream?operation=explode",
            "HTTP/1.1 400 Bad Request",
        ),
        (
            "/v1.0-alpha1/bindings/away/stream?operation=create",
            "HTTP/1.1 503 Service Unavailable",
        ),
        ("/v1.0/bindings/nobody", "HTTP/1.1 404 Not Found"),
    ] {
        let mut client = Peer::connect(&proxy.address).await;
        let fields = "content-length: 5\r\nexpect: 100-continue\r\n";
        client.write(head("POST", target, fields)).await;
        assert_eq!(client.head().await.line, line, "{target}");
    }
}

// === unary ===

#[tokio::test]
async fn unary_call_is_json_there_and_whatever_comes_back() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    for (json, data) in [
        (r#"{"operation": "create", "data": {"a":1}}"#, r#"{"a":1}"#),
        // A string arrives with its quotes, as with Dapr.
        (r#"{"operation": "create", "data": "text"}"#, "\"text\""),
        // Numbers and the order of keys are as the client wrote them.
        (
            r#"{"data": {"b":1.10,"a":12345678901234567890123}, "operation": "create"}"#,
            r#"{"b":1.10,"a":12345678901234567890123}"#,
        ),
    ] {
        let answer = client.post("/v1.0/bindings/echo", json.as_bytes()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.body, data);
    }

    let nothing = br#"{"operation": "create", "data": null, "metadata": null}"#;
    assert_eq!(
        client.post("/v1.0/bindings/echo", nothing).await.status,
        204
    );
    let json = br#"{"operation": "create", "metadata": {"key": "v"}}"#;
    let answer = client.post("/v1.0/bindings/echo", json).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (204, &b""[..]));
    assert_eq!(values(&answer.headers, "metadata.key"), ["v"]);
    assert_eq!(values(&answer.headers, "x-dapr-metadata-key"), ["v"]);
}

#[tokio::test]
async fn bad_unary_calls_are_told_what_is_wrong() {
    let proxy = proxy(&["echo: {echo: {}, buffer: {max_bytes: 64}}"]).await;
    let client = Client::connect(&proxy).await;

    let large = [b' '; 65];
    for (json, status, code) in [
        (&b"{"[..], 400, "ERR_MALFORMED_REQUEST"),
        (b"", 400, "ERR_MALFORMED_REQUEST"),
        (b"[]", 400, "ERR_MALFORMED_REQUEST"),
        (b"{}", 400, "ERR_BAD_REQUEST"),
        (
            br#"{"operation":"create","metadata":{"a":1}}"#,
            400,
            "ERR_MALFORMED_REQUEST",
        ),
        (
            br#"{"operation":"create","metadata":["a"]}"#,
            400,
            "ERR_MALFORMED_REQUEST",
        ),
        (&large[..], 413, "ERR_BUFFER_OVERFLOW"),
    ] {
        let answer = client.post("/v1.0/bindings/echo", json).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.error().0, code);
    }
}

// === the bounds of metadata ===

/// So many entries of metadata as JSON.
fn json_with(count: usize, value: &str) -> String {
    let entries: Vec<_> = (0..count)
        .map(|index| format!("\"k{index}\":\"{value}\""))
        .collect();
    format!(
        "{{\"operation\":\"create\",\"metadata\":{{{}}}}}",
        entries.join(",")
    )
}

#[tokio::test]
async fn metadata_have_a_bound_that_the_binding_sets() {
    let proxy = proxy(&[ECHO, "it: {echo: {}, buffer: {max_metadata: 3}}"]).await;
    let client = Client::connect(&proxy).await;
    let refused = (431, "ERR_TOO_MUCH_METADATA".to_owned());

    for (name, most) in [("echo", 128), ("it", 3)] {
        let unary = format!("/v1.0/bindings/{name}");
        let query = |count| -> String {
            (0..count)
                .map(|index| format!("&metadata.k{index}=v"))
                .collect()
        };
        let stream = |count| {
            format!(
                "/v1.0-alpha1/bindings/{name}/stream?operation=create{}",
                query(count)
            )
        };

        assert_eq!(
            client
                .post(&unary, json_with(most, "v").as_bytes())
                .await
                .status,
            204
        );
        assert_eq!(client.post(&stream(most), b"").await.status, 200);
        let too_many = json_with(most + 1, "v");
        for answer in [
            client.post(&unary, too_many.as_bytes()).await,
            client.post(&stream(most + 1), b"").await,
        ] {
            assert_eq!((answer.status.as_u16(), answer.error().0), refused);
            assert!(
                answer
                    .error()
                    .1
                    .contains(&format!("more than {most} metadata (buffer.max_metadata)"))
            );
        }
    }
    // The same key counts each time, and few that are large are too much as well.
    let same = format!(
        "{{\"operation\":\"create\",\"metadata\":{{{}\"a\":\"\"}}}}",
        "\"a\":\"\",".repeat(200_000)
    );
    let large = json_with(100, &"x".repeat(10_000));
    for json in [same, large] {
        let answer = client.post("/v1.0/bindings/echo", json.as_bytes()).await;
        assert_eq!((answer.status.as_u16(), answer.error().0), refused);
    }
    let reason = "thalweg_proxy_ends_total{reason=\"too_much_metadata\"}";
    assert_eq!(proxy.metric(reason).await, 6);
}

#[tokio::test]
async fn answer_with_too_much_metadata_is_refused() {
    let mut component = Component::start().await;
    let proxy = proxy(&[&format!(
        "it: {{component: {{address: \"{}\"}}, buffer: {{max_metadata: 1}}}}",
        component.address
    )])
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;

    let (answer, ()) = tokio::join!(client.post(STREAM, b""), async {
        let (_call, mut outgoing) = component.stream().await;
        let first = initial_response("", &[("a", "1"), ("b", "2")]);
        outgoing.message(&first).await;
        outgoing.trailers(&[("grpc-status", "0")]);
    });

    assert_eq!(
        (answer.status.as_u16(), answer.error().0),
        (502, "ERR_TOO_MUCH_METADATA".to_owned())
    );
}

#[tokio::test]
async fn name_of_an_operation_has_a_bound() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;
    let json = |length: usize| format!("{{\"operation\":\"{}\"}}", "x".repeat(length));

    let good = client
        .post("/v1.0/bindings/echo", json(256).as_bytes())
        .await;
    let bad = client
        .post("/v1.0/bindings/echo", json(257).as_bytes())
        .await;

    assert_eq!(
        (good.status.as_u16(), bad.error().0.as_str()),
        (204, "ERR_BAD_REQUEST")
    );
}

// === web pages ===

#[tokio::test]
async fn pages_of_other_origins_reach_no_binding() {
    let proxy = TestProxy::start(&format!(
        "listeners:\n\
         - {{name: it, address: \"127.0.0.1:0\", allowed_origins: [\"https://app.test\"]}}\n\
         bindings: {{{ECHO}}}\n"
    ))
    .await;
    let unary = "/v1.0/bindings/echo";
    let stream = "/v1.0-alpha1/bindings/echo/stream?operation=create";
    let own = proxy.address.to_string();

    for (target, good) in [
        (unary, "HTTP/1.1 204 No Content"),
        (stream, "HTTP/1.1 200 OK"),
    ] {
        for (host, fields, line) in [
            (
                &*own,
                "origin: http://evil.test\r\n",
                "HTTP/1.1 403 Forbidden",
            ),
            (
                &own,
                "sec-fetch-site: cross-site\r\n",
                "HTTP/1.1 403 Forbidden",
            ),
            (
                &own,
                "sec-fetch-site: same-site\r\n",
                "HTTP/1.1 403 Forbidden",
            ),
            // A name that its owner lets lead here: for a browser, this is the page's own origin.
            (
                "evil.test",
                "origin: http://evil.test\r\nsec-fetch-site: same-origin\r\n",
                "HTTP/1.1 403 Forbidden",
            ),
            (
                &own,
                &*format!("origin: http://{own}\r\nsec-fetch-site: same-origin\r\n"),
                good,
            ),
            (
                "any.test",
                "origin: https://app.test\r\nsec-fetch-site: cross-site\r\n",
                good,
            ),
            ("any.test", "", good),
        ] {
            let mut client = Peer::connect(&proxy.address).await;
            let json = "{\"operation\":\"create\"}";
            client
                .write(format!(
                    "POST {target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{fields}\r\n{json}",
                    json.len()
                ))
                .await;
            let head = client.head().await;
            assert_eq!(head.line, line, "{target} {host} {fields}");
            if line != good {
                assert_eq!(head.values("thalweg-reason"), ["foreign_origin"]);
            }
        }
    }
}

// === what follows the routes ===

#[tokio::test]
async fn other_paths_follow_the_routes() {
    let upstream = PlainUpstream::bind().await;
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [\"{}\"], protocol: http1}}}}\n\
         routes: [{{name: main, cluster: main}}]\n\
         bindings: {{it: {{echo: {{}}}}}}\n",
        upstream.address
    ))
    .await;
    let mut client = Peer::connect(&proxy.address).await;
    let mut served = None;

    for (method, target) in [
        ("POST", "/v1.0-alpha1/bindings/it"),
        ("POST", "/v1.0-alpha1/bindings//stream"),
        ("POST", "/v1.0-alpha1/bindings/it/stream/more"),
        ("POST", "/v1.0/bindings/"),
        ("POST", "/v1.0/bindings/it/more"),
        ("POST", "/v1.0/state/it"),
    ] {
        client
            .write(head(method, target, "content-length: 0\r\n"))
            .await;
        if served.is_none() {
            served = Some(upstream.accept().await);
        }
        let peer = served.as_mut().unwrap();
        assert_eq!(
            peer.head().await.line,
            format!("{method} {target} HTTP/1.1")
        );
        peer.write("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(client.head().await.line, "HTTP/1.1 204 No Content");
    }
}
