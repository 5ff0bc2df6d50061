//! Who hears what when somebody leaves, dies or breaks the rules.

use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    binding::{
        STREAM, Told, component_data, initial, initial_response, payload, proxy, runtime, told,
    },
    client::Client,
    component::{Component, Traits, ready, refuse},
    framed,
    proxy::TestProxy,
    upstream::{Upstream, nobody},
};

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

/// A proxy before another runtime, and a client.
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

// === the client leaves ===

#[tokio::test]
async fn client_that_leaves_before_its_first_message_leaves_nothing_behind() {
    let component = Component::start().await;
    let (proxy, client) = with_component(&component).await;
    let mut call = client.call(STREAM, &[]).await;
    call.outgoing.data(&b"\0\0\0"[..]).await;

    call.outgoing.reset(Reason::CANCEL);
    drop(call);

    // Its place is free again, and the component never heard of it.
    let mut next = client.invoke("it", &[]).await;
    next.outgoing.end();
    let mut component = component;
    let (_call, mut outgoing) = component.stream().await;
    outgoing.trailers(&[("grpc-status", "0")]);
    assert_eq!(next.answer().await.code(), Code::Ok);
    assert!(!component.has_call());
    drop(proxy);
}

#[tokio::test]
async fn client_that_leaves_during_the_handshake_is_a_cancel_at_once() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;

    let mut served = component.call().await;
    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(served.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn client_that_leaves_mid_upload_is_a_cancel_at_once() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    let (mut served, mut outgoing) = component.stream().await;
    outgoing.message(&initial_response("", &[])).await;
    // In the middle of a message.
    let message = framed(&payload(0, &[7; 1000]));
    call.outgoing.data(message.slice(..500)).await;

    call.outgoing.reset(Reason::CANCEL);

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    assert_eq!(served.incoming.broken().await, Reason::CANCEL);
}

#[tokio::test]
async fn client_that_leaves_mid_download_is_a_cancel_at_once() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.end();
    let (mut served, mut outgoing) = component.stream().await;
    assert_eq!(served.told().await, None);
    outgoing.message(&component_data(0, b"first")).await;
    let (_head, mut incoming) = call.head().await;
    assert!(matches!(
        runtime(&incoming.message().await.unwrap()),
        Told::Initial(_)
    ));

    drop((incoming, call));
    client.vanish().await;

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

// === the component dies ===

#[tokio::test]
async fn component_that_is_not_there_yet_is_unavailable() {
    let address = nobody().await;
    let proxy = proxy(&[&format!("it: {{component: {{address: \"{address}\"}}}}")]).await;
    let client = Client::connect(&proxy).await;

    let answer = client.stream("it", &[b"x"]).await;

    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.reason(), Some("component_unavailable"));
    assert!(answer.text().contains("binding it"), "{}", answer.text());
}

#[tokio::test]
async fn component_that_dies_in_the_handshake_is_unavailable() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    let _served = component.call().await;

    component.kill();

    assert_eq!(call.answer().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn component_that_dies_mid_upload_is_unavailable() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    let (mut served, mut outgoing) = component.stream().await;
    outgoing.message(&initial_response("", &[])).await;
    let (_head, mut incoming) = call.head().await;
    incoming.message().await.unwrap();
    call.outgoing.message(&payload(0, b"first")).await;
    assert_eq!(served.told().await, Some(told(1, "first")));

    component.kill();

    let (_, end) = incoming.rest().await;
    assert_eq!(end.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn component_that_dies_mid_download_never_looks_done() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.end();
    let (_served, mut outgoing) = component.stream().await;
    outgoing.message(&component_data(0, b"first")).await;
    let (_head, mut incoming) = call.head().await;
    incoming.message().await.unwrap();
    assert_eq!(
        runtime(&incoming.message().await.unwrap()),
        told(0, "first")
    );

    component.kill();

    let (rest, end) = incoming.rest().await;
    assert!(rest.is_empty());
    assert_eq!(end.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn component_that_ends_without_a_status_never_looks_done() {
    for traits in [Traits::streaming(), Traits::unary()] {
        let mut component = traits.start().await;
        let (_proxy, client) = with_component(&component).await;
        let mut call = client.invoke("it", &[]).await;
        call.outgoing.end();

        let mut served = component.call().await;
        let mut outgoing = served.respond();
        outgoing.message(&component_data(0, b"all of it")).await;
        outgoing.end();

        assert_ne!(call.answer().await.code_or_unknown(), Code::Ok);
    }
}

#[tokio::test]
async fn component_that_answers_http_instead_of_grpc_is_a_failure_of_that_kind() {
    for traits in [Traits::streaming(), Traits::unary()] {
        let mut component = traits.start().await;
        let (_proxy, client) = with_component(&component).await;

        // As a load balancer does that has nobody behind it.
        let mut call = client.invoke("it", &[]).await;
        call.outgoing.end();
        let mut served = component.call().await;
        served.finish_with(503, &[("content-length", "0")]);
        let answer = call.answer().await;
        assert_eq!(answer.code_or_unknown(), Code::Unavailable, "{answer:?}");

        // To plain HTTP it is no success either.
        let mut call = client
            .request(
                "POST",
                "/v1.0-alpha1/bindings/it/stream?operation=create",
                &[],
            )
            .await;
        call.outgoing.end();
        let mut served = component.call().await;
        let mut outgoing = served.respond_with(503, &[("content-type", "text/html")]);
        outgoing.data(&b"<html>try later</html>"[..]).await;
        outgoing.end();
        let answer = call.answer().await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
}

// === the client breaks the rules ===

#[tokio::test]
async fn bad_number_of_the_client_never_arrives_whole_and_resets_the_component() {
    for (numbers, got, expected) in [(&[1][..], 1, 0), (&[0, 0], 0, 1), (&[0, 2], 2, 1)] {
        let mut component = Component::start().await;
        let (_proxy, client) = with_component(&component).await;
        let mut call = client.invoke("it", &[]).await;
        let (mut served, mut outgoing) = component.stream().await;
        outgoing.message(&initial_response("", &[])).await;

        // The last of them comes in two parts; it is large enough for the first to go on at once.
        let (bad, good) = numbers.split_last().unwrap();
        for number in good {
            call.outgoing.message(&payload(*number, b"good")).await;
        }
        for number in 1..=good.len() as u64 {
            assert_eq!(served.told().await, Some(told(number, "good")));
        }
        let message = framed(&payload(*bad, &[7; 20_000]));
        call.outgoing.data(message.slice(..10_000)).await;
        call.outgoing.data(message.slice(10_000..)).await;

        let (rest, end) = served.incoming.rest().await;
        assert!(rest.len() < 20_000, "{} bytes of it came", rest.len());
        assert_eq!(end.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        let answer = call.answer().await;
        assert_eq!(answer.code(), Code::InvalidArgument);
        let text = answer.text();
        assert!(text.contains(&format!("got {got}")), "{text}");
        assert!(text.contains(&format!("expected {expected}")), "{text}");
    }
}

#[tokio::test]
async fn bad_messages_of_the_client_end_the_stream_and_reset_the_component() {
    let mut both = payload(0, b"x");
    both.extend_from_slice(&initial("it", "create", &[]));
    for bad in [
        initial("it", "create", &[]),
        both,
        b"\x12\x05x".to_vec(),
        vec![],
    ] {
        let mut component = Component::start().await;
        let (_proxy, client) = with_component(&component).await;
        let mut call = client.invoke("it", &[]).await;
        let (mut served, mut outgoing) = component.stream().await;
        outgoing.message(&initial_response("", &[])).await;

        call.outgoing.message(&bad).await;

        let (rest, end) = served.incoming.rest().await;
        assert_eq!(rest, "");
        assert_eq!(end.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        assert_eq!(call.answer().await.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn half_close_within_a_message_is_no_end() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    let (mut served, _outgoing) = component.stream().await;

    let message = framed(&payload(0, &[7; 1000]));
    call.outgoing.data(message.slice(..500)).await;
    call.outgoing.end();

    assert_eq!(served.incoming.broken().await, Reason::INTERNAL_ERROR);
    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn bad_number_ends_the_stream_while_the_component_says_nothing() {
    // The component neither answers nor reads: nobody but the proxy can end this.
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut call = client.invoke("it", &[]).await;
    let mut served = component.call().await;

    call.outgoing.message(&payload(7, b"bad")).await;

    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
    assert_eq!(served.reset_by_peer().await, Reason::INTERNAL_ERROR);
}

// === the far side breaks the rules ===

#[tokio::test]
async fn bad_answers_of_a_component_are_internal_and_name_the_binding() {
    let again = initial_response("", &[]);
    for (bad, text) in [
        (component_data(3, b"x"), "got 3, expected 1"),
        (again.to_vec(), "initial message"),
        (b"\x12\x05x".to_vec(), ""),
    ] {
        let mut component = Component::start().await;
        let (_proxy, client) = with_component(&component).await;
        let mut call = client.invoke("it", &[]).await;
        let (mut served, mut outgoing) = component.stream().await;
        outgoing.message(&initial_response("", &[])).await;
        outgoing.message(&component_data(0, b"good")).await;
        let (_head, mut incoming) = call.head().await;
        incoming.message().await.unwrap();
        assert_eq!(runtime(&incoming.message().await.unwrap()), told(0, "good"));

        outgoing.message(&bad).await;

        let (rest, end) = incoming.rest().await;
        assert_eq!(rest, "");
        let trailers = end.unwrap();
        assert_eq!(trailers["grpc-status"], "13");
        let message = trailers["grpc-message"].to_str().unwrap();
        assert!(message.contains("binding it"), "{message}");
        assert!(message.replace("%20", " ").contains(text), "{message}");
        assert_eq!(served.incoming.broken().await, Reason::CANCEL);
    }
}

#[tokio::test]
async fn bad_number_of_another_runtime_is_internal_and_names_the_binding() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = with_runtime(&upstream).await;
    let mut call = client.invoke("it", &[]).await;
    let mut served = upstream.call().await;
    assert_eq!(served.path(), STREAM);
    let mut outgoing = served.respond();
    outgoing.message(&initial_response("", &[])).await;
    outgoing.message(&payload(1, b"bad")).await;

    let answer = call.answer().await;

    assert_eq!(answer.code(), Code::Internal);
    assert!(answer.text().contains("binding/it"), "{}", answer.text());
    assert_eq!(served.incoming.broken().await, Reason::CANCEL);
}

#[tokio::test]
async fn bytes_to_another_runtime_pass_as_they_are() {
    let mut upstream = Upstream::start().await;
    let (_proxy, client) = with_runtime(&upstream).await;
    let opening = framed(&initial("it", "create", &[("k", "v")]));
    let data = framed(&payload(0, b"data"));
    let mut call = client.call(STREAM, &[("x-own", "1")]).await;
    call.outgoing.data(opening.clone()).await;
    call.outgoing.data(data.clone()).await;
    call.outgoing.end();

    let mut served = upstream.call().await;
    assert_eq!(served.headers()["x-own"], "1");
    let (bytes, _) = served.incoming.rest().await;
    assert_eq!(bytes, [opening, data].concat());
    let mut outgoing = served.respond();
    let back = framed(&initial_response("", &[]));
    outgoing.data(back.clone()).await;
    outgoing.trailers(&[("grpc-status", "0"), ("x-sum", "9")]);

    let answer = call.answer().await;
    assert_eq!((answer.body.clone(), answer.code()), (back, Code::Ok));
    assert_eq!(answer.trailers["x-sum"], "9");
}

#[tokio::test]
async fn unimplemented_operation_of_a_proven_component_is_told_as_it_is() {
    let mut component = Component::start().await;
    let (_proxy, client) = with_component(&component).await;
    let mut first = client.invoke("it", &[]).await;
    let (_call, mut outgoing) = component.stream().await;
    outgoing.message(&initial_response("", &[])).await;
    outgoing.trailers(&[("grpc-status", "0")]);
    assert_eq!(first.answer().await.code(), Code::Ok);

    // It has shown that it streams, so this says something else.
    let mut second = client.invoke("it", &[]).await;
    let mut served = component.call().await;
    refuse(&mut served, "12", "not this one");

    let answer = second.answer().await;
    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::Unimplemented, "not this one")
    );
    assert!(!component.has_call());
}
