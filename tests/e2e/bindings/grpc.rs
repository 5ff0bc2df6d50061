//! `InvokeBindingAlpha1` and `InvokeBinding`, and what clients get that do not keep to them.

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use thalweg_proto::{
    bindings::{
        ComponentInitialRequest, InitialResponse, InvokeBindingRequest, InvokeBindingResponse,
        Message,
    },
    status::Code,
};

use crate::support::{
    binding::{
        STREAM, Told, UNARY, component_data, initial, initial_response, metadata, payload, proxy,
        put_bytes, put_number, runtime, told, yaml,
    },
    client::{Client, grpc},
    component::{Component, Traits, ready},
    framed,
    proxy::TestProxy,
    upstream::{Upstream, echo},
};

const ECHO: &str = "echo: {echo: {}}";

/// A proxy before a component, and a client, once the component is ready.
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

// === what works ===

#[tokio::test]
async fn both_directions_are_translated_message_by_message_at_once() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[("blobName", "a.txt")]).await;

    let mut served = component.call().await;
    assert_eq!(served.headers()["x-component-instance"], "it");
    assert!(served.head.uri.authority().is_some());
    let Some(Told::Initial(opening)) = served.told().await else {
        panic!("no initial message")
    };
    let opening = ComponentInitialRequest::decode(opening).unwrap();
    assert_eq!(opening.operation, "create");
    assert_eq!(opening.metadata, metadata(&[("blobName", "a.txt")]));

    // The answer's first message comes at once, before any payload went either way.
    let mut outgoing = served.respond();
    outgoing
        .message(&initial_response("text/plain", &[("etag", "1")]))
        .await;
    let (head, mut incoming) = call.head().await;
    assert_eq!(head.status(), 200);
    let first = runtime(&incoming.message().await.unwrap()).response();
    assert_eq!(first.metadata, metadata(&[("etag", "1")]));
    assert_eq!(first.content_type, "text/plain");

    // To a component payload is numbered from 1, from a component and everywhere else from 0.
    for (number, text) in [(0, "zero"), (1, ""), (2, "two")] {
        call.outgoing
            .message(&payload(number, text.as_bytes()))
            .await;
        assert_eq!(served.told().await, Some(told(number + 1, text)));
        outgoing
            .message(&component_data(number, text.as_bytes()))
            .await;
        let back = incoming.message().await.unwrap();
        assert_eq!(runtime(&back), told(number, text));
    }
    call.outgoing.end();
    assert_eq!(served.told().await, None);
    outgoing.message(&component_data(3, b"after the end")).await;
    outgoing.trailers(&[("grpc-status", "0"), ("etag", "2")]);
    let (rest, trailers) = incoming.rest().await;
    assert_eq!(runtime(&rest[5..]), told(3, "after the end"));
    let trailers = trailers.unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["etag"], "2");
}

#[tokio::test]
async fn echo_gives_back_metadata_and_payload_of_every_size() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;
    let pairs = [("key1", "value1"), ("Key2", "")];
    let mebibyte = Bytes::from(vec![7; 1 << 20]);

    for data in [&b"hello world"[..], b"", &mebibyte[..256 * 1024], &mebibyte] {
        let mut call = client.invoke("echo", &pairs).await;
        let (head, mut incoming) = call.head().await;
        assert_eq!(head.headers()["content-type"], "application/grpc");
        for (number, piece) in data.chunks(64 * 1024).enumerate() {
            let message = payload(number as u64, piece);
            call.outgoing.message(&message).await;
            if number == 0 {
                let first = runtime(&incoming.message().await.unwrap()).response();
                assert_eq!(first.metadata, metadata(&pairs));
            }
            let back = runtime(&incoming.message().await.unwrap());
            assert_eq!(
                back,
                Told::Payload(number as u64, Bytes::copy_from_slice(piece))
            );
        }
        call.outgoing.end();
        let (rest, trailers) = incoming.rest().await;
        assert!(data.is_empty() || rest.is_empty());
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn component_may_cut_its_answer_as_it_likes_and_leave_the_initial_message_out() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.end();

    let (_call, mut outgoing) = component.stream().await;
    let mut stream = vec![];
    for number in 0..3 {
        stream.extend_from_slice(&framed(&component_data(number, b"abc")));
    }
    for byte in stream {
        outgoing.data(vec![byte]).await;
    }
    outgoing.trailers(&[("grpc-status", "0")]);

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.told().len(), 4);
    assert_eq!(answer.told()[0].response(), InitialResponse::default());
    assert_eq!(answer.payload(), "abcabcabc");
}

#[tokio::test]
async fn all_that_protobuf_allows_is_understood() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[]).await;

    // Unknown fields before and behind the known; payload without a number, with its fields turned round, and with nothing at
    // all in it.
    let mut first = vec![];
    put_bytes(&mut first, 15, b"unknown");
    first.extend_from_slice(&initial("it", "create", &[("k", "v")]));
    put_number(&mut first, 16, 1);
    call.outgoing.message(&first).await;
    let mut absent_number = vec![];
    put_bytes(&mut absent_number, 1, b"absent");
    let mut turned = vec![];
    put_number(&mut turned, 2, 1);
    put_bytes(&mut turned, 9, b"unknown");
    put_bytes(&mut turned, 1, b"turned");
    let mut empty = vec![];
    put_number(&mut empty, 2, 2);
    for content in [absent_number, turned, empty] {
        let mut message = vec![];
        put_bytes(&mut message, 7, b"unknown");
        put_bytes(&mut message, 2, &content);
        call.outgoing.message(&message).await;
    }
    call.outgoing.end();

    let mut served = component.call().await;
    let Some(Told::Initial(opening)) = served.told().await else {
        panic!("no initial message")
    };
    let opening = ComponentInitialRequest::decode(opening).unwrap();
    assert_eq!(opening.metadata, metadata(&[("k", "v")]));
    for expected in [told(1, "absent"), told(2, "turned"), told(3, "")] {
        assert_eq!(served.told().await, Some(expected));
    }
    assert_eq!(served.told().await, None);
}

#[tokio::test]
async fn component_that_answers_before_it_reads_is_heard() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;

    // It is done while the client still speaks.
    let mut served = component.call().await;
    let mut outgoing = served.respond();
    outgoing.message(&initial_response("", &[])).await;
    outgoing.message(&component_data(0, b"enough")).await;
    outgoing.trailers(&[("grpc-status", "0")]);

    let answer = call.answer().await;
    assert_eq!(
        (answer.code(), answer.payload()),
        (Code::Ok, "enough".into())
    );
    drop(served);
}

#[tokio::test]
async fn status_of_a_component_comes_through_with_its_details() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;

    let mut call = client.invoke("it", &[]).await;
    let (_call, mut outgoing) = component.stream().await;
    outgoing.message(&component_data(0, b"half")).await;
    outgoing.trailers(&[
        ("grpc-status", "6"),
        ("grpc-message", "there%20is one"),
        ("grpc-status-details-bin", "CAY"),
    ]);

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::AlreadyExists);
    assert_eq!(answer.text(), "there is one");
    assert_eq!(answer.trailers["grpc-status-details-bin"], "CAY");
    assert_eq!(answer.payload(), "half");
}

#[tokio::test]
async fn deadline_of_the_client_holds_and_is_passed_on() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[("grpc-timeout", "1S")]).await;
    call.outgoing.message(&initial("it", "create", &[])).await;

    let mut served = component.call().await;
    assert!(served.headers().contains_key("grpc-timeout"));

    assert_eq!(call.answer().await.code(), Code::DeadlineExceeded);
    served.reset_by_peer().await;
}

// === unary ===

fn unary(name: &str, operation: &str, data: &'static [u8]) -> Vec<u8> {
    InvokeBindingRequest {
        name: name.into(),
        data: Bytes::from_static(data),
        metadata: metadata(&[("camelCase", "x")]),
        operation: operation.into(),
    }
    .encode_to_vec()
}

#[tokio::test]
async fn unary_call_reaches_streaming_targets_and_brings_metadata_as_headers_too() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    let answer = client
        .unary(UNARY, &unary("echo", "create", b"hello"))
        .await;

    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.headers["metadata.camelcase"], "x");
    let response = InvokeBindingResponse::decode(answer.messages()[0].clone()).unwrap();
    assert_eq!(response.data, "hello");
    assert_eq!(response.metadata, metadata(&[("camelCase", "x")]));
}

#[tokio::test]
async fn bad_unary_calls_are_told_what_is_wrong() {
    let proxy = proxy(&["echo: {echo: {}, buffer: {max_bytes: 8}}"]).await;
    let client = Client::connect(&proxy).await;

    for (message, code, text) in [
        (
            unary("", "create", b""),
            Code::InvalidArgument,
            "binding name is required",
        ),
        (
            unary("echo", "", b""),
            Code::InvalidArgument,
            "operation is required",
        ),
        (
            unary("nobody", "create", b""),
            Code::NotFound,
            "couldn't find output binding nobody",
        ),
        (
            unary("echo", "create", b"nine byte"),
            Code::ResourceExhausted,
            "buffer.max_bytes",
        ),
        (b"\x0f".to_vec(), Code::InvalidArgument, "cannot be read"),
    ] {
        let answer = client.unary(UNARY, &message).await;
        assert_eq!(answer.code(), code, "{}", answer.text());
        assert!(answer.text().contains(text), "{}", answer.text());
    }

    let mut none = client.call(UNARY, &[]).await;
    none.outgoing.end();
    assert_eq!(none.answer().await.code(), Code::InvalidArgument);
    let mut two = client.call(UNARY, &[]).await;
    for _ in 0..2 {
        two.outgoing.message(&unary("echo", "create", b"")).await;
    }
    two.outgoing.end();
    assert_eq!(two.answer().await.code(), Code::InvalidArgument);
}

// === what follows the routes ===

#[tokio::test]
async fn other_methods_and_paths_follow_the_routes() {
    let upstream = Upstream::start().await.serve(echo);
    let routed =
        "listeners: [{name: it, address: \"127.0.0.1:0\"}]\nroutes: [{name: main, cluster: main}]";
    let clusters = format!("clusters: {{main: {{endpoints: [\"{upstream}\"], protocol: http2}}}}");
    let with = TestProxy::start(&format!("{routed}\n{clusters}\nbindings: {{{ECHO}}}")).await;
    let without = TestProxy::start(&format!("{routed}\n{clusters}")).await;

    let with = Client::connect(&with).await;
    for path in [
        "/dapr.proto.runtime.v1.Dapr/GetState",
        "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha2",
        "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1/",
        "/other.v1.Dapr/InvokeBindingAlpha1",
    ] {
        assert_eq!(with.unary(path, b"hi").await.messages(), ["hi"], "{path}");
    }

    // Where nothing is bound, its methods are as any other.
    let without = Client::connect(&without).await;
    for path in [STREAM, UNARY] {
        assert_eq!(
            without.unary(path, b"hi").await.messages(),
            ["hi"],
            "{path}"
        );
    }
}

// === bad input ===

#[tokio::test]
async fn first_message_must_say_what_is_wanted() {
    let component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;

    for (message, code, text) in [
        (
            initial("nobody", "create", &[]),
            Code::NotFound,
            "couldn't find output binding nobody",
        ),
        (
            initial("", "create", &[]),
            Code::InvalidArgument,
            "binding name is required",
        ),
        (
            initial("it", "", &[]),
            Code::InvalidArgument,
            "operation is required",
        ),
        (
            payload(0, b"early"),
            Code::InvalidArgument,
            "must contain initial_request",
        ),
        (
            vec![],
            Code::InvalidArgument,
            "must contain initial_request",
        ),
        (
            b"\xff\xff\xff".to_vec(),
            Code::InvalidArgument,
            "cannot be read",
        ),
        (
            initial("it", "explode", &[]),
            Code::FailedPrecondition,
            "create get",
        ),
    ] {
        let mut call = client.call(STREAM, &[]).await;
        call.outgoing.message(&message).await;
        let answer = call.answer().await;
        assert_eq!(answer.code(), code, "{}", answer.text());
        assert!(answer.text().contains(text), "{}", answer.text());
    }
    assert!(!component.has_call());
}

#[tokio::test]
async fn initial_and_payload_in_one_message_is_no_opening() {
    let component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[]).await;
    let mut both = initial("it", "create", &[]);
    both.extend_from_slice(&payload(0, b"both"));

    call.outgoing.message(&both).await;

    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn half_close_before_the_first_message_is_told() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    let mut nothing = client.call(STREAM, &[]).await;
    nothing.outgoing.end();
    assert_eq!(nothing.answer().await.code(), Code::InvalidArgument);

    let mut a_part = client.call(STREAM, &[]).await;
    a_part.outgoing.data(&b"\0\0\0\0\x10\x0a"[..]).await;
    a_part.outgoing.end();
    assert_eq!(a_part.answer().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn silent_and_trickling_clients_have_the_time_that_is_set() {
    let yaml = yaml(&[ECHO]);
    let yaml = format!("filters: [metrics, initial_message: {{timeout: 300ms}}]\n{yaml}");
    let proxy = TestProxy::start_bare(&yaml).await;
    let client = Client::connect(&proxy).await;

    let mut silent = client.call(STREAM, &[]).await;
    let answer = silent.answer().await;
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert_eq!(answer.reason(), Some("initial_message_timeout"));

    // All of it but its last byte.
    let mut trickling = client.call(STREAM, &[]).await;
    let opening = framed(&initial("echo", "create", &[]));
    for byte in &opening[..opening.len() - 1] {
        trickling.outgoing.data(vec![*byte]).await;
    }
    assert_eq!(trickling.answer().await.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn first_message_is_bounded_by_its_declared_length() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(STREAM, &[]).await;

    call.outgoing.data(&b"\0\xff\xff\xff\xff\x0a"[..]).await;

    assert_eq!(call.answer().await.code(), Code::ResourceExhausted);
}

// === compression ===

fn gzip(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    std::io::Write::write_all(&mut encoder, message).unwrap();
    let mut framed = framed(&encoder.finish().unwrap()).to_vec();
    framed[0] = 1;
    framed.into()
}

#[tokio::test]
async fn gzip_is_read_from_the_first_message_to_the_last() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[("grpc-encoding", "gzip")]).await;

    call.outgoing
        .data(gzip(&initial("it", "create", &[])))
        .await;
    call.outgoing.data(gzip(&payload(0, &[7; 100_000]))).await;
    call.outgoing.message(&payload(1, b"not compressed")).await;
    call.outgoing.end();

    let mut served = component.call().await;
    assert!(!served.headers().contains_key("grpc-encoding"));
    assert!(matches!(served.told().await, Some(Told::Initial(_))));
    let data = served.incoming.data(1).await;
    assert_eq!(data.len(), 100_000 + "not compressed".len());
}

#[tokio::test]
async fn other_encodings_are_refused_and_the_known_ones_told() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    for path in [STREAM, UNARY] {
        let mut call = client.call(path, &[("grpc-encoding", "zstd")]).await;
        let answer = call.answer().await;
        assert_eq!(answer.code(), Code::Unimplemented);
        assert_eq!(answer.headers["grpc-accept-encoding"], "identity,gzip");
    }
}

#[tokio::test]
async fn bombs_do_not_go_off() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    // As the first message, and later.
    let mut first = client.call(STREAM, &[("grpc-encoding", "gzip")]).await;
    first.outgoing.data(gzip(&vec![0; 1 << 20])).await;
    assert_eq!(first.answer().await.code(), Code::ResourceExhausted);

    let mut later = client.call(STREAM, &[("grpc-encoding", "gzip")]).await;
    later
        .outgoing
        .data(gzip(&initial("echo", "create", &[])))
        .await;
    later.outgoing.data(gzip(&vec![0; 8 << 20])).await;
    assert_eq!(later.answer().await.code(), Code::ResourceExhausted);

    let mut unary = client.call(UNARY, &[("grpc-encoding", "gzip")]).await;
    unary.outgoing.data(gzip(&vec![0; 8 << 20])).await;
    unary.outgoing.try_end();
    assert_eq!(unary.answer().await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn flag_without_an_encoding_is_a_fault() {
    let proxy = proxy(&[ECHO]).await;
    let client = Client::connect(&proxy).await;

    let mut first = client.call(STREAM, &[]).await;
    first
        .outgoing
        .data(gzip(&initial("echo", "create", &[])))
        .await;
    assert_eq!(first.answer().await.code(), Code::InvalidArgument);

    let mut later = client.invoke("echo", &[]).await;
    later.outgoing.data(gzip(&payload(0, b"x"))).await;
    assert_eq!(later.answer().await.code(), Code::Unimplemented);
}

// === a component that does not tell ===

#[tokio::test]
async fn operations_that_nobody_lists_are_all_allowed() {
    let mut component = Traits::streaming().no_operations().start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[]).await;
    call.outgoing.message(&initial("it", "explode", &[])).await;
    call.outgoing.end();

    let mut served = component.call().await;
    let Some(Told::Initial(opening)) = served.told().await else {
        panic!("no initial message")
    };
    let opening = ComponentInitialRequest::decode(opening).unwrap();
    assert_eq!(opening.operation, "explode");
}

#[tokio::test]
async fn first_message_is_judged_before_anything_is_dialed() {
    // Nobody is there, and nobody is needed to say so.
    let proxy = proxy(&["it: {component: {address: \"127.0.0.1:1\"}}"]).await;
    let client = Client::connect(&proxy).await;
    let request = grpc(STREAM);
    let mut call = client.open(request, false).await;

    call.outgoing.message(&initial("it", "create", &[])).await;

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.reason(), Some("component_unavailable"));
}

// === the bounds of metadata ===

/// A message with so many empty entries at a field, and behind what opens it.
fn flood(start: &[u8], field: u64, count: usize) -> Vec<u8> {
    let mut message = start.to_vec();
    for _ in 0..count {
        put_bytes(&mut message, field, b"");
    }
    message
}

#[tokio::test]
async fn metadata_are_counted_before_they_are_collected() {
    let proxy = proxy(&[
        "echo: {echo: {}, buffer: {max_metadata: 3}}",
        "other: {echo: {}}",
    ])
    .await;
    let client = Client::connect(&proxy).await;
    let pairs: Vec<_> = ["a", "b", "c", "d"].map(|key| (key, "x")).into();
    let refused = (Code::ResourceExhausted, Some("too_much_metadata"));

    // A binding's own bound, once it is known which it is.
    let mut good = client.invoke("echo", &pairs[..3]).await;
    good.outgoing.end();
    assert_eq!(good.answer().await.code(), Code::Ok);
    let answer = client.invoke("echo", &pairs).await.answer().await;
    assert_eq!((answer.code(), answer.reason()), refused);
    let mut good = client.invoke("other", &pairs).await;
    good.outgoing.end();
    assert_eq!(good.answer().await.code(), Code::Ok);

    // The largest of all before that; an entry with the same key counts each time.
    let mut first = vec![];
    put_bytes(&mut first, 1, &flood(&[], 3, 13_000));
    let mut call = client.call(STREAM, &[]).await;
    call.outgoing.message(&first).await;
    let answer = call.answer().await;
    assert_eq!((answer.code(), answer.reason()), refused);
    let whole = flood(&unary("echo", "create", b""), 3, 600_000);
    let answer = client.unary(UNARY, &whole).await;
    assert_eq!((answer.code(), answer.reason()), refused);
}

#[tokio::test]
async fn bound_of_a_unary_call_is_told_as_it_is_set() {
    let proxy = proxy(&["echo: {echo: {}}"]).await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call(UNARY, &[]).await;
    let message = unary("echo", "create", &[0; (4 << 20) + (1 << 17)]);
    // It is refused when it is too large, and not when it is whole.
    let _ = call.outgoing.try_data(framed(&message)).await;

    let text = call.answer().await.text();
    assert!(text.contains("more than 4194304 bytes"), "{text}");
}
