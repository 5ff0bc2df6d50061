//! Far sides that know no streams.

use bytes::Bytes;
use thalweg_proto::{
    bindings::{
        InvokeBindingRequest, InvokeBindingResponse, InvokeRequest, InvokeResponse, Message,
    },
    status::Code,
};

use crate::support::{
    binding::{STREAM, Told, UNARY, initial_response, metadata, payload, proxy},
    client::Client,
    component::{Component, INVOKE, INVOKE_STREAM, Traits, ready, refuse, reply},
    framed,
    proxy::TestProxy,
    upstream::{Call, Upstream, nobody},
};

async fn with_component(component: &Component, more: &str) -> (TestProxy, Client) {
    let proxy = proxy(&[&format!(
        "it: {{component: {{address: \"{}\"}}{more}}}",
        component.address
    )])
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

async fn with_runtime(upstream: &Upstream) -> (TestProxy, Client) {
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{far: {{endpoints: [\"{upstream}\"], protocol: http2}}}}\n\
         bindings: {{it: {{dapr: {{cluster: far}}}}}}\n"
    ))
    .await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

/// Answers `Invoke` with what it was sent.
async fn answer_invoke(mut call: Call) -> InvokeRequest {
    assert_eq!(call.path(), INVOKE);
    let message = call.incoming.message().await.unwrap();
    assert_eq!(call.incoming.message().await, None);
    let request = InvokeRequest::decode(message).unwrap();
    let answer = InvokeResponse {
        data: request.data.clone(),
        metadata: metadata(&[("etag", "1")]),
        content_type: "text/plain".into(),
    };
    reply(call, &answer).await;
    request
}

/// Answers `InvokeBinding` with what it was sent.
async fn answer_invoke_binding(mut call: Call) -> InvokeBindingRequest {
    assert_eq!(call.path(), UNARY);
    let message = call.incoming.message().await.unwrap();
    let request = InvokeBindingRequest::decode(message).unwrap();
    let answer = InvokeBindingResponse {
        data: request.data.clone(),
        metadata: metadata(&[("etag", "1")]),
    };
    reply(call, &answer).await;
    request
}

// === components ===

#[tokio::test]
async fn component_whose_reflection_lacks_streams_is_invoked_with_all_of_it() {
    let mut component = Traits::unary().start().await;
    let (proxy, client) = with_component(&component, "").await;
    let data = Bytes::from(vec![7; 100_000]);
    let mut call = client.invoke("it", &[("camelCase", "v")]).await;
    call.outgoing.message(&payload(0, &data[..60_000])).await;
    call.outgoing.message(&payload(1, &data[60_000..])).await;
    call.outgoing.end();

    let served = component.call().await;
    assert_eq!(served.headers()["x-component-instance"], "it");
    let request = answer_invoke(served).await;
    assert_eq!(request.data, data);
    assert_eq!(request.operation, "create");
    assert_eq!(request.metadata, metadata(&[("camelCase", "v")]));

    // Back it comes in pieces of 32 KiB.
    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Ok);
    let told = answer.told();
    let first = told[0].response();
    assert_eq!(first.metadata, metadata(&[("etag", "1")]));
    assert_eq!(first.content_type, "text/plain");
    let sizes: Vec<usize> = (told[1..].iter())
        .map(|told| match told {
            Told::Payload(_, data) => data.len(),
            Told::Initial(_) => panic!("a second initial message"),
        })
        .collect();
    assert_eq!(sizes, [32_768, 32_768, 32_768, 1_696]);
    assert_eq!(answer.payload(), data);
    let buffered = "thalweg_binding_buffered_total{binding=\"it\"}";
    assert_eq!(proxy.metric(buffered).await, 1);
}

#[tokio::test]
async fn first_stream_that_is_unimplemented_is_replayed_and_the_second_is_not_tried() {
    let mut component = Traits::streaming().no_reflection().start().await;
    let (_proxy, client) = with_component(&component, "").await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.message(&payload(0, b"fir")).await;

    let mut served = component.call().await;
    assert_eq!(served.path(), INVOKE_STREAM);
    assert!(matches!(served.told().await, Some(Told::Initial(_))));
    served.told().await.unwrap();
    refuse(&mut served, "12", "unknown method");
    call.outgoing.message(&payload(1, b"st")).await;
    call.outgoing.end();
    let request = answer_invoke(component.call().await).await;
    assert_eq!(request.data, "first");
    assert_eq!(call.answer().await.payload(), "first");

    let (second, ()) = tokio::join!(client.stream("it", &[b"second"]), async {
        answer_invoke(component.call().await).await;
    });
    assert_eq!(second.payload(), "second");
}

/// Nothing has to be kept for one that says what it can do; if it is wrong, the next stream finds out.
#[tokio::test]
async fn listed_method_that_is_unimplemented_is_told_and_asked_for_once_more() {
    let mut component = Traits::streaming().start().await;
    let (_proxy, client) = with_component(&component, "").await;

    let (first, ()) = tokio::join!(client.stream("it", &[b"first"]), async {
        refuse(&mut component.call().await, "12", "unknown method");
    });
    assert_eq!(first.code(), Code::Unimplemented);
    let (second, ()) = tokio::join!(client.stream("it", &[b"second"]), async {
        refuse(&mut component.call().await, "12", "unknown method");
        answer_invoke(component.call().await).await;
    });
    assert_eq!(second.payload(), "second");
    let (third, ()) = tokio::join!(client.stream("it", &[b"third"]), async {
        answer_invoke(component.call().await).await;
    });
    assert_eq!(third.payload(), "third");
}

#[tokio::test]
async fn empty_stream_is_an_invoke_without_data() {
    let mut component = Traits::unary().start().await;
    let (_proxy, client) = with_component(&component, "").await;

    let (answer, request) = tokio::join!(client.stream("it", &[]), async {
        answer_invoke(component.call().await).await
    });

    assert_eq!(request.data, "");
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.told().len(), 1);
}

#[tokio::test]
async fn request_beyond_the_buffer_is_refused_and_nothing_is_sent() {
    let component = Traits::unary().start().await;
    let (proxy, client) = with_component(&component, ", buffer: {max_bytes: 10}").await;

    let answer = client.stream("it", &[b"0123456789", b"x"]).await;
    assert_eq!(answer.code(), Code::ResourceExhausted);
    assert_eq!(answer.reason(), Some("buffer_overflow"));

    let stream = "/v1.0-alpha1/bindings/it/stream?operation=create";
    let answer = client.post(stream, b"0123456789x").await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.error().0, "ERR_BUFFER_OVERFLOW");

    assert!(!component.has_call());
    let overflows = "thalweg_binding_buffer_overflows_total{binding=\"it\"}";
    assert_eq!(proxy.metric(overflows).await, 2);
}

#[tokio::test]
async fn request_that_just_fits_the_buffer_is_sent() {
    let mut component = Traits::unary().start().await;
    let (_proxy, client) = with_component(&component, ", buffer: {max_bytes: 10}").await;

    let (answer, request) = tokio::join!(client.stream("it", &[b"01234", b"56789"]), async {
        answer_invoke(component.call().await).await
    });

    assert_eq!(request.data, "0123456789");
    assert_eq!(answer.payload(), "0123456789");
}

#[tokio::test]
async fn answer_beyond_the_buffer_is_refused() {
    let mut component = Traits::unary().start().await;
    let (_proxy, client) = with_component(&component, ", buffer: {max_bytes: 10}").await;

    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        let answer = InvokeResponse {
            data: vec![7; 100_000].into(),
            ..Default::default()
        };
        reply(component.call().await, &answer).await;
    });

    assert_eq!(answer.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn failure_of_an_invoked_component_comes_through() {
    let mut component = Traits::unary().start().await;
    let (_proxy, client) = with_component(&component, "").await;

    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        refuse(&mut component.call().await, "5", "no such blob");
    });
    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::NotFound, "no such blob")
    );

    let stream = "/v1.0-alpha1/bindings/it/stream?operation=create";
    let (answer, ()) = tokio::join!(client.post(stream, b""), async {
        refuse(&mut component.call().await, "5", "no such blob");
    });
    assert_eq!(answer.status, 404);
    assert!(answer.error().1.contains("no such blob"));
}

#[tokio::test]
async fn unary_call_does_not_pass_for_a_stream() {
    let mut component = Traits::streaming().no_reflection().start().await;
    let (_proxy, client) = with_component(&component, "").await;
    let message = InvokeBindingRequest {
        name: "it".into(),
        data: Bytes::from_static(b"unary"),
        operation: "create".into(),
        ..Default::default()
    }
    .encode_to_vec();
    let (answer, _) = tokio::join!(client.unary(UNARY, &message), async {
        answer_invoke(component.call().await).await
    });
    assert_eq!(answer.code(), Code::Ok);

    // That it answers `Invoke` says nothing of its streams.
    let (answer, ()) = tokio::join!(client.stream("it", &[b"stream"]), async {
        refuse(&mut component.call().await, "12", "unknown method");
        answer_invoke(component.call().await).await;
    });
    assert_eq!(answer.payload(), "stream");
}

#[tokio::test]
async fn component_that_comes_during_a_retry_is_still_asked_what_it_knows() {
    let address = nobody().await.to_string();
    let retry = "resiliency: {retry: {duration: 20ms, max_retries: 1000}}";
    let proxy = proxy(&[&format!(
        "it: {{component: {{address: \"{address}\"}}, {retry}}}"
    )])
    .await;
    let client = Client::connect(&proxy).await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.message(&payload(0, b"patient")).await;
    call.outgoing.end();
    proxy
        .reaches("thalweg_binding_retries_total{binding=\"it\"}", 1)
        .await;

    let mut component = Traits::streaming().no_reflection().start_at(&address).await;
    refuse(&mut component.call().await, "12", "unknown method");
    answer_invoke(component.call().await).await;

    assert_eq!(call.answer().await.payload(), "patient");
}

// === daprd ===

#[tokio::test]
async fn stock_daprd_is_known_by_what_it_says() {
    let words =
        "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found";
    // With the status in the head, and behind a head, as when an interceptor has set one.
    for behind_a_head in [false, true] {
        let mut upstream = Upstream::start().await;
        let (_proxy, client) = with_runtime(&upstream).await;
        let mut call = client.invoke("it", &[("k", "v")]).await;
        call.outgoing.message(&payload(0, b"first")).await;
        call.outgoing.end();

        let mut served = upstream.call().await;
        assert_eq!(served.path(), STREAM);
        if behind_a_head {
            served
                .respond()
                .trailers(&[("grpc-status", "2"), ("grpc-message", words)]);
        } else {
            refuse(&mut served, "2", words);
        }
        let request = answer_invoke_binding(upstream.call().await).await;
        assert_eq!(request.name, "it");
        assert_eq!(request.operation, "create");
        assert_eq!(request.data, "first");
        assert_eq!(request.metadata, metadata(&[("k", "v")]));
        let answer = call.answer().await;
        assert_eq!(
            answer.told()[0].response().metadata,
            metadata(&[("etag", "1")])
        );
        assert_eq!(answer.payload(), "first");

        let (second, _) = tokio::join!(client.stream("it", &[b"second"]), async {
            answer_invoke_binding(upstream.call().await).await
        });
        assert_eq!(second.payload(), "second");
    }
}

#[tokio::test]
async fn stock_daprd_that_was_first_called_unary_is_still_found_out() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = with_runtime(&upstream).await;
    let unary = "/v1.0/bindings/it";
    let (answer, _) = tokio::join!(
        client.post(unary, b"{\"operation\": \"create\", \"data\": 1}"),
        async { answer_invoke_binding(upstream.call().await).await }
    );
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"1"[..]));

    let (answer, _) = tokio::join!(client.stream("it", &[b"stream"]), async {
        let mut served = upstream.call().await;
        assert_eq!(served.path(), STREAM);
        refuse(&mut served, "12", "unknown method");
        answer_invoke_binding(upstream.call().await).await
    });
    assert_eq!(answer.payload(), "stream");
}

#[tokio::test]
async fn other_failures_with_status_unknown_are_no_reason_to_buffer() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = with_runtime(&upstream).await;

    let (answer, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        refuse(&mut upstream.call().await, "2", "some other trouble");
    });

    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::Unknown, "some other trouble")
    );
    assert!(!upstream.has_call());
}

#[tokio::test]
async fn stream_that_is_too_long_to_replay_tells_why_and_the_next_is_collected() {
    let mut component = Traits::streaming().no_reflection().start().await;
    let (_proxy, client) = with_component(&component, ", buffer: {max_bytes: 1KiB}").await;
    let mut call = client.invoke("it", &[]).await;
    let mut served = component.call().await;
    assert!(matches!(served.told().await, Some(Told::Initial(_))));
    call.outgoing.message(&payload(0, &[7; 5000])).await;
    served.told().await.unwrap();
    refuse(&mut served, "12", "unknown method");

    assert_eq!(call.answer().await.code(), Code::Unimplemented);

    let (answer, _) = tokio::join!(client.stream("it", &[b"short"]), async {
        answer_invoke(component.call().await).await
    });
    assert_eq!(answer.payload(), "short");
}

#[tokio::test]
async fn runtime_that_streams_is_not_collected() {
    let mut upstream = Upstream::start().await;
    let (proxy, client) = with_runtime(&upstream).await;
    for _ in 0..2 {
        let mut call = client.invoke("it", &[]).await;
        let mut served = upstream.call().await;
        assert_eq!(served.path(), STREAM);
        let mut outgoing = served.respond();
        outgoing.message(&initial_response("", &[])).await;
        let (_head, mut incoming) = call.head().await;
        incoming.message().await.unwrap();
    }
    let buffered = "thalweg_binding_buffered_total{binding=\"it\"}";
    assert_eq!(proxy.metric(buffered).await, 0);
}

#[tokio::test]
async fn runtime_that_is_exchanged_for_a_stock_daprd_is_found_out_by_the_next_stream() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = with_runtime(&upstream).await;
    let (first, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        let mut served = upstream.call().await;
        served.respond().trailers(&[("grpc-status", "0")]);
    });
    assert_eq!(first.code(), Code::Ok);

    let refuse_stream = async |upstream: &mut Upstream| {
        let mut served = upstream.call().await;
        assert_eq!(served.path(), STREAM);
        refuse(&mut served, "12", "unknown method");
    };
    let (second, ()) = tokio::join!(client.stream("it", &[b"x"]), refuse_stream(&mut upstream));
    assert_eq!(second.code(), Code::Unimplemented);

    let (third, _) = tokio::join!(client.stream("it", &[b"third"]), async {
        refuse_stream(&mut upstream).await;
        answer_invoke_binding(upstream.call().await).await
    });
    assert_eq!(third.payload(), "third");
}

// === what all streams hold ===

#[tokio::test]
async fn unary_call_is_refused_where_there_is_no_room_for_it() {
    let proxy = TestProxy::start(
        "max_held: 1MiB\n\
         listeners: [{name: it, address: \"127.0.0.1:0\"}]\n\
         bindings: {echo: {echo: {}}}\n",
    )
    .await;
    let client = Client::connect(&proxy).await;
    let data = vec![b'7'; 2 << 20];

    let text = String::from_utf8_lossy(&data);
    let json = format!("{{\"operation\":\"create\",\"data\":\"{text}\"}}");
    let answer = client.post("/v1.0/bindings/echo", json.as_bytes()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.error().0.as_str()),
        (503, "ERR_MEMORY_FULL")
    );

    let message = InvokeBindingRequest {
        name: "echo".into(),
        data: data.into(),
        operation: "create".into(),
        ..Default::default()
    };
    let mut call = client.call(UNARY, &[]).await;
    // Nobody wants all of it.
    let _ = (call.outgoing.try_data(framed(&message.encode_to_vec()))).await;
    let answer = call.answer().await;
    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::ResourceExhausted, Some("memory_full"))
    );
}

async fn tight(component: &Component) -> (TestProxy, Client) {
    let proxy = TestProxy::start(&format!(
        "max_held: 1MiB\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         bindings: {{it: {{component: {{address: \"{}\"}}}}}}\n",
        component.address
    ))
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

#[tokio::test]
async fn stream_goes_on_though_there_is_no_room_to_keep_it() {
    let mut component = Traits::streaming().no_reflection().start().await;
    let (proxy, client) = tight(&component).await;
    let data = vec![7; 2 << 20];
    let whole = [&data[..]];

    let (answer, count) = tokio::join!(client.stream("it", &whole), async {
        let (mut call, mut outgoing) = component.stream().await;
        let count = call.incoming.data(1).await.len();
        outgoing.trailers(&[("grpc-status", "0")]);
        count
    });

    assert_eq!((answer.code(), count), (Code::Ok, data.len()));
    let overflows = "thalweg_binding_replay_overflows_total{binding=\"it\"}";
    assert_eq!(proxy.metric(overflows).await, 1);
}

#[tokio::test]
async fn what_must_be_kept_whole_is_refused_where_there_is_no_room() {
    let component = Traits::unary().start().await;
    let (_proxy, client) = tight(&component).await;
    let data = vec![7; 2 << 20];

    let mut call = client.invoke("it", &[]).await;
    // Nobody wants all of it.
    let _ = call.outgoing.try_data(framed(&payload(0, &data))).await;
    let refused = call.answer().await;

    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::ResourceExhausted, Some("memory_full"))
    );
}
