//! Timeouts, retries, breakers.

use bytes::Bytes;
use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    binding::{component_data, initial_response, payload, proxy, runtime, told},
    client::Client,
    component::{Component, ready, refuse},
    framed,
    proxy::TestProxy,
    upstream::Call,
    values,
};

const RETRIES: &str = "thalweg_binding_retries_total{binding=\"it\"}";
const TIMEOUTS: &str = "thalweg_binding_handshake_timeouts_total{binding=\"it\"}";
const STREAM: &str = "/v1.0-alpha1/bindings/it/stream?operation=create";

/// A proxy before a component, whose binding has more keys, and a client.
async fn with(component: &mut Component, more: &str) -> (TestProxy, Client) {
    let address = &component.address;
    let proxy = proxy(&[&format!(
        "it: {{component: {{address: \"{address}\"}}, {more}}}"
    )])
    .await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

async fn fine(mut call: Call) {
    let mut outgoing = call.respond();
    while call.told().await.is_some() {}
    outgoing.trailers(&[("grpc-status", "0")]);
}

// === timeouts ===

#[tokio::test]
async fn handshake_has_its_time() {
    let mut component = Component::start().await;
    let (proxy, client) = with(&mut component, "resiliency: {timeout: 50ms}").await;
    let mut call = client.invoke("it", &[]).await;

    // A head is no message yet.
    let mut served = component.call().await;
    let mut outgoing = served.respond();

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert_eq!(answer.reason(), Some("handshake_timeout"));
    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    assert_eq!(proxy.metric(TIMEOUTS).await, 1);

    let (answer, _) = tokio::join!(client.post(STREAM, b"x"), component.call());
    assert_eq!(answer.status, 504);
}

#[tokio::test]
async fn established_stream_outlives_the_timeout() {
    let mut component = Component::start().await;
    let (proxy, client) = with(&mut component, "resiliency: {timeout: 1s}").await;
    let mut long = client.invoke("it", &[]).await;
    let (mut served, mut outgoing) = component.stream().await;
    outgoing.message(&initial_response("", &[])).await;
    let (_head, mut incoming) = long.head().await;
    incoming.message().await.unwrap();

    // Another stream's timeout passes, and so has the first one's.
    let mut short = client.invoke("it", &[]).await;
    let _held = component.call().await;
    assert_eq!(short.answer().await.code(), Code::DeadlineExceeded);
    assert_eq!(proxy.metric(TIMEOUTS).await, 1);

    long.outgoing.message(&payload(0, b"still")).await;
    assert_eq!(served.told().await, Some(told(1, "still")));
    outgoing.message(&component_data(0, b"here")).await;
    let back = incoming.message().await.unwrap();
    assert_eq!(runtime(&back), told(0, "here"));
}

// === retries ===

#[tokio::test]
async fn retry_replays_the_prefix_byte_for_byte() {
    for policy in [
        "constant, duration: 1ms",
        "exponential, duration: 1ms, max_interval: 5ms",
    ] {
        let mut component = Component::start().await;
        let more = format!("resiliency: {{retry: {{policy: {policy}, max_retries: 3}}}}");
        let (proxy, client) = with(&mut component, &more).await;
        let mut call = client.invoke("it", &[("k", "v")]).await;
        call.outgoing.message(&payload(0, b"zero")).await;

        // Each attempt reads a little more before it is refused.
        let mut seen: Vec<Bytes> = vec![];
        for attempt in 0..3 {
            let mut served = component.call().await;
            let mut messages = vec![];
            for _ in 0..2 + attempt {
                messages.push(served.incoming.message().await.unwrap());
            }
            assert_eq!(messages[..seen.len()], seen[..]);
            seen = messages;
            refuse(&mut served, "14", "not yet");
            let next = payload(attempt + 1, &[attempt as u8; 1000]);
            call.outgoing.message(&next).await;
        }
        call.outgoing.end();
        let (mut served, mut outgoing) = component.stream().await;
        let data = served.incoming.data(1).await;
        let expected = [
            b"zero".to_vec(),
            vec![0; 1000],
            vec![1; 1000],
            vec![2; 1000],
        ];
        assert_eq!(data, expected.concat());
        outgoing.trailers(&[("grpc-status", "0")]);

        assert_eq!(call.answer().await.code(), Code::Ok);
        assert_eq!(proxy.metric(RETRIES).await, 3);
        let count = "dapr_component_output_binding_count{app_id=\"thalweg\",component=\"it\",namespace=\"\",operation=\"create\",success=\"true\"}";
        assert_eq!(proxy.metric(count).await, 1);
    }
}

#[tokio::test]
async fn retries_end_with_the_last_failure_of_the_component() {
    let mut component = Component::start().await;
    let more = "resiliency: {retry: {duration: 1ms, max_retries: 2}}";
    let (proxy, client) = with(&mut component, more).await;

    let (answer, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        for number in ["first", "second", "third"] {
            refuse(&mut component.call().await, "14", number);
        }
    });

    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::Unavailable, "third")
    );
    assert_eq!(proxy.metric(RETRIES).await, 2);
    assert!(!component.has_call());
}

#[tokio::test]
async fn only_what_matches_is_tried_again() {
    let mut component = Component::start().await;
    let more =
        "resiliency: {timeout: 1s, retry: {duration: 1ms, matching: [DEADLINE_EXCEEDED, 10]}}";
    let (proxy, client) = with(&mut component, more).await;

    let (answer, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        refuse(&mut component.call().await, "14", "not that one");
    });
    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(proxy.metric(RETRIES).await, 0);

    let (answer, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        refuse(&mut component.call().await, "10", "aborted");
        // This one takes too long.
        let mut slow = component.call().await;
        slow.reset_by_peer().await;
        fine(component.call().await).await;
    });
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(proxy.metric(RETRIES).await, 2);
}

#[tokio::test]
async fn no_retry_once_more_was_consumed_than_is_kept() {
    let mut component = Component::start().await;
    let more =
        "resiliency: {retry: {duration: 1ms, replay_bytes: 1KiB}}, buffer: {max_bytes: 1KiB}";
    let (proxy, client) = with(&mut component, more).await;
    let mut call = client.invoke("it", &[]).await;
    call.outgoing.message(&payload(0, &[7; 2000])).await;

    let mut served = component.call().await;
    served.told().await.unwrap();
    served.told().await.unwrap();
    refuse(&mut served, "14", "too late");

    let answer = call.answer().await;
    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::Unavailable, "too late")
    );
    assert_eq!(proxy.metric(RETRIES).await, 0);
}

#[tokio::test]
async fn no_retry_after_the_first_message_of_the_answer() {
    let mut component = Component::start().await;
    let more = "resiliency: {retry: {duration: 1ms}}";
    let (proxy, client) = with(&mut component, more).await;

    let (answer, ()) = tokio::join!(client.stream("it", &[b"x"]), async {
        let (_call, mut outgoing) = component.stream().await;
        outgoing.message(&initial_response("", &[])).await;
        outgoing.trailers(&[("grpc-status", "14"), ("grpc-message", "later")]);
    });

    assert_eq!(
        (answer.code(), answer.text().as_str()),
        (Code::Unavailable, "later")
    );
    assert_eq!(proxy.metric(RETRIES).await, 0);
    assert!(!component.has_call());
}

#[tokio::test]
async fn bad_number_ends_a_stream_that_waits_for_its_retry() {
    let mut component = Component::start().await;
    let more = "resiliency: {retry: {duration: 1h}}";
    let (proxy, client) = with(&mut component, more).await;
    let mut call = client.invoke("it", &[]).await;
    refuse(&mut component.call().await, "14", "not yet");
    proxy.metric_is(RETRIES, 1).await;

    call.outgoing.message(&payload(3, b"gap")).await;

    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn fault_of_the_client_is_no_reason_to_try_again_nor_to_trip() {
    let mut component = Component::start().await;
    let more = "resiliency: {retry: {duration: 1ms, matching: [INVALID_ARGUMENT, UNAVAILABLE]}, circuit_breaker: {trip: consecutiveFailures > 0}}";
    let (proxy, client) = with(&mut component, more).await;
    let mut call = client.invoke("it", &[]).await;
    let served = component.call().await;
    call.outgoing.message(&payload(3, b"gap")).await;
    assert_eq!(call.answer().await.code(), Code::InvalidArgument);
    drop(served);

    assert_eq!(proxy.metric(RETRIES).await, 0);
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        fine(component.call().await).await;
    });
    assert_eq!(answer.code(), Code::Ok);
}

// === breakers ===

#[tokio::test]
async fn breaker_counts_handshakes_by_their_real_status() {
    for (status, failure) in [
        ("14", true),
        // These a client can bring about.
        ("13", false),
        ("2", false),
        ("3", false),
        ("5", false),
    ] {
        let mut component = Component::start().await;
        let more = "resiliency: {circuit_breaker: {trip: consecutiveFailures > 1}}";
        let (_proxy, client) = with(&mut component, more).await;
        for _ in 0..2 {
            let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
                refuse(&mut component.call().await, status, "sorry");
            });
            assert_eq!(answer.text(), "sorry");
        }

        if failure {
            let answer = client.stream("it", &[]).await;
            assert_eq!(answer.code(), Code::Unavailable);
            assert_eq!(answer.reason(), Some("circuit_open"));
            assert_eq!(values(&answer.headers, "retry-after"), ["60"]);
            let answer = client.post(STREAM, b"x").await;
            assert_eq!(answer.status, 503);
            assert_eq!(values(&answer.headers, "retry-after"), ["60"]);
            assert_eq!(answer.error().0, "ERR_CIRCUIT_OPEN");
            assert!(!component.has_call());
        } else {
            let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
                fine(component.call().await).await;
            });
            assert_eq!(answer.code(), Code::Ok);
        }
    }
}

#[tokio::test]
async fn breaker_that_rejects_ends_the_retries() {
    let mut component = Component::start().await;
    let more = "resiliency: {retry: {duration: 1ms, max_retries: 100}, circuit_breaker: {trip: consecutiveFailures > 1}}";
    let (proxy, client) = with(&mut component, more).await;

    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        for _ in 0..2 {
            refuse(&mut component.call().await, "14", "down");
        }
    });

    assert_eq!(answer.code(), Code::Unavailable);
    assert_eq!(answer.reason(), Some("circuit_open"));
    assert_eq!(proxy.metric(RETRIES).await, 2);
    assert!(!component.has_call());
}

#[tokio::test]
async fn breaker_probes_when_its_time_has_come_and_recovers() {
    let mut component = Component::start().await;
    let more = "resiliency: {circuit_breaker: {trip: consecutiveFailures > 0, timeout: 1ms}}";
    let (_proxy, client) = with(&mut component, more).await;
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        refuse(&mut component.call().await, "14", "down");
    });
    assert_eq!(answer.text(), "down");
    component.serve(fine);

    crate::support::within("it recovers", async {
        while client.stream("it", &[]).await.code() != Code::Ok {}
    })
    .await;
}

#[tokio::test]
async fn filter_judges_the_real_end_beside_the_breaker_of_handshakes() {
    let mut component = Component::start().await;
    // To the handshake all is well; the stream fails at its end.
    let more = "filters: [metrics, circuit_breaker: {trip: consecutiveFailures > 0}, sequence], resiliency: {circuit_breaker: {trip: consecutiveFailures > 0}}";
    let (proxy, client) = with(&mut component, more).await;
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        let (_call, mut outgoing) = component.stream().await;
        outgoing.message(&component_data(0, b"half")).await;
        outgoing.trailers(&[("grpc-status", "14")]);
    });
    assert_eq!(answer.code(), Code::Unavailable);

    let answer = client.stream("it", &[]).await;
    assert_eq!(answer.reason(), Some("circuit_open"));

    // Which of them it was is told apart.
    let metrics = proxy.admin("/metrics").await;
    let state = |name: &str, status: &str| {
        let wanted = [
            "policy=\"circuitbreaker\"".to_owned(),
            format!("name=\"{name}\""),
            format!("status=\"{status}\""),
        ];
        let line = metrics.lines().find(|line| {
            line.starts_with("dapr_resiliency_cb_state{")
                && wanted.iter().all(|label| line.contains(label.as_str()))
        });
        line.map(|line| line.rsplit(' ').next().unwrap().to_owned())
    };
    assert_eq!(
        state("circuit_breaker", "open").as_deref(),
        Some("1"),
        "{metrics}"
    );
    assert_eq!(
        state("resiliency", "closed").as_deref(),
        Some("1"),
        "{metrics}"
    );
}

// === what is counted ===

#[tokio::test]
async fn each_stream_is_counted_once_by_its_real_end() {
    let mut component = Component::start().await;
    let (proxy, client) = with(&mut component, "timeouts: {}").await;
    let line = |operation: &str, success: bool| {
        format!(
            "dapr_component_output_binding_count{{app_id=\"thalweg\",component=\"it\",namespace=\"\",operation=\"{operation}\",success=\"{success}\"}}"
        )
    };
    let (ok, failed) = (line("create", true), line("create", false));

    // Well; over plain HTTP; a failure in the trailers; a component that breaks off; a client that leaves.
    for post in [false, true] {
        let (code, ()) = tokio::join!(
            async {
                if post {
                    client.post(STREAM, b"").await.status.as_u16()
                } else {
                    client.stream("it", &[]).await.status.as_u16()
                }
            },
            async { fine(component.call().await).await }
        );
        assert_eq!(code, 200);
    }
    proxy.metric_is(&ok, 2).await;
    let (_, ()) = tokio::join!(client.stream("it", &[]), async {
        let (_call, mut outgoing) = component.stream().await;
        outgoing.message(&component_data(0, b"half")).await;
        outgoing.trailers(&[("grpc-status", "13")]);
    });
    proxy.metric_is(&failed, 1).await;
    let (answer, ()) = tokio::join!(client.post(STREAM, b""), async {
        let (mut call, _outgoing) = component.stream().await;
        call.respond.send_reset(Reason::INTERNAL_ERROR);
    });
    assert!(answer.status.is_server_error());
    proxy.metric_is(&failed, 2).await;
    let mut call = client.invoke("it", &[]).await;
    let served = component.call().await;
    call.outgoing.data(framed(&payload(0, b"x"))).await;
    call.outgoing.reset(Reason::CANCEL);
    proxy.metric_is(&failed, 3).await;
    drop(served);

    // What is no stream of the binding does not count.
    client.stream("nobody", &[]).await;
    client.post("/v1.0-alpha1/bindings/it/stream", b"").await;
    let metrics = proxy.admin("/metrics").await;
    let count = "dapr_component_output_binding_count{";
    assert_eq!(
        metrics
            .lines()
            .filter(|line| line.starts_with(count))
            .count(),
        2
    );
    assert_eq!(
        (proxy.metric(&ok).await, proxy.metric(&failed).await),
        (2, 3)
    );
    assert!(metrics.contains("# TYPE dapr_component_output_binding_latencies histogram"));
}

#[tokio::test]
async fn words_of_clients_are_no_labels() {
    let mut component = Component::start().await;
    let it = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    let proxy = proxy(&[&it, "store: {object_store: {url: \"memory://\"}}"]).await;
    ready(&proxy, "it").await;
    let client = Client::connect(&proxy).await;
    let line = |component: &str, operation: &str, success: bool| {
        format!(
            "dapr_component_output_binding_count{{app_id=\"thalweg\",component=\"{component}\",namespace=\"\",operation=\"{operation}\",success=\"{success}\"}}"
        )
    };

    // More of them than there are labels, and each as long as a name may be.
    for index in 0..70 {
        for name in ["store", "it"] {
            let target = format!("/v1.0-alpha1/bindings/{name}/stream?operation={index:0200}");
            assert_eq!(client.post(&target, b"").await.status, 400);
        }
    }
    let list = "/v1.0-alpha1/bindings/store/stream?operation=list&metadata.maxResults=none";
    assert_eq!(client.post(list, b"").await.status, 400);
    let (answer, ()) = tokio::join!(client.post(STREAM, b""), async {
        fine(component.call().await).await;
    });
    assert_eq!(answer.status, 200);

    proxy.metric_is(&line("store", "other", false), 70).await;
    proxy.metric_is(&line("store", "list", false), 1).await;
    proxy.metric_is(&line("it", "other", false), 70).await;
    proxy.metric_is(&line("it", "create", true), 1).await;
    let metrics = proxy.admin("/metrics").await;
    let count = "dapr_component_output_binding_count{";
    assert_eq!(
        metrics
            .lines()
            .filter(|line| line.starts_with(count))
            .count(),
        4
    );
}
