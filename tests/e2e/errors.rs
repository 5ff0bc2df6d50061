//! What clients are told of errors, and how soon.

use http::Request;

use crate::support::{
    client::Client,
    flood::{Flood, at_rest},
    framed, plain,
    proxy::{TestProxy, Yaml},
    raw,
    upstream::{Upstream, echo, nobody},
};

const TALK: &str = "/e2e.Errors/Talk";
const WAITED: &str = "thalweg_listener_last_words_total{listener=\"it\"}";

/// What would tell a stranger how the inside looks.
fn assert_discreet(text: &str, secrets: &[&str]) {
    for secret in secrets.iter().chain(&["os error", "127.0.0.1", ".sock"]) {
        assert!(!text.contains(secret), "{secret} is told: {text}");
    }
}

// === addresses ===

#[tokio::test]
async fn strangers_hear_what_failed_and_not_where() {
    let address = nobody().await.to_string();
    for details in [false, true] {
        let proxy = Yaml::to(&address)
            .listener(&format!("error_details: {details}"))
            .start()
            .await;
        let client = Client::connect(&proxy).await;

        let grpc = client.unary(TALK, b"x").await;
        let get = Request::get("http://e2e.test/file");
        let json = client.open(get, true).await.answer().await;
        let json = String::from_utf8(json.body.to_vec()).unwrap();

        assert_eq!(grpc.reason(), Some("upstream_connect_failed"));
        for text in [grpc.text(), json] {
            assert!(text.contains("cluster main: no connection"), "{text}");
            assert_eq!(text.contains(&address), details, "{text}");
            if !details {
                assert_discreet(&text, &[]);
            }
        }
    }
}

#[tokio::test]
async fn strangers_hear_no_paths_of_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("secret.sock");
    let socket = socket.to_str().unwrap();
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [\"unix:{socket}\"]}}}}\n\
         bindings: {{orders: {{component: {{socket: \"{socket}\"}}}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    ))
    .await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary(TALK, b"x").await;
    assert_discreet(&answer.text(), &["secret", socket]);
    let post = Request::post("http://e2e.test/v1.0-alpha1/bindings/orders/stream?operation=x");
    let answer = client.open(post, true).await.answer().await;
    assert_eq!(answer.reason(), Some("component_unavailable"));
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_discreet(&text, &["secret", socket]);
}

// === last words ===

/// Opens a call of gRPC on a stream whose window takes ten bytes.
async fn narrow(proxy: &TestProxy) -> raw::Peer {
    let mut peer = raw::Peer::client(&proxy.address, &[(raw::INITIAL_WINDOW_SIZE, 10)]).await;
    peer.write(&raw::headers(1, &raw::grpc(TALK), true)).await;
    peer
}

#[tokio::test]
async fn status_of_failure_overtakes_bytes_that_the_client_does_not_take() {
    for ours in [false, true] {
        let mut upstream = Upstream::start().await;
        let proxy = Yaml::to(&upstream)
            .listener("timeouts: {last_words: 50ms, stall: 1h}")
            .start()
            .await;
        let mut peer = narrow(&proxy).await;
        let mut call = upstream.call().await;
        let mut outgoing = call.respond();
        outgoing.message(&[7; 100]).await;
        let first = peer.until(|frame| frame.kind == raw::DATA).await;

        if ours {
            call.connection.vanish();
        } else {
            outgoing.trailers(&[("grpc-status", "13")]);
        }

        let next = peer.until(|frame| frame.stream == 1).await;
        assert_eq!((next.kind, next.ends_stream()), (raw::HEADERS, true));
        assert_eq!(first.payload.len(), 10);
        proxy.metric_is(WAITED, 1).await;
    }
}

#[tokio::test]
async fn status_of_success_waits_for_what_comes_before_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("timeouts: {last_words: 1ms}")
        .start()
        .await;
    let mut peer = narrow(&proxy).await;
    let mut call = upstream.call().await;
    let mut outgoing = call.respond();
    outgoing.message(&[7; 100]).await;
    outgoing.trailers(&[("grpc-status", "0")]);

    let mut bytes = 0;
    let mut end = None;
    // Ten of them come at once, and the rest when there is room.
    while end.is_none() {
        let frame = peer.until(|frame| frame.stream == 1).await;
        if frame.kind == raw::DATA {
            bytes += frame.payload.len();
            if bytes == 10 {
                peer.synchronize().await;
                peer.write(&raw::window_update(1, 1000)).await;
            }
        }
        end = frame.ends_stream().then_some(frame.kind);
    }
    assert_eq!((end, bytes), (Some(raw::HEADERS), 105));
    assert_eq!(proxy.metric(WAITED).await, 0);
}

#[tokio::test]
async fn break_of_an_answer_does_not_wait_for_an_http1_client_that_takes_nothing() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .listener("timeouts: {last_words: 50ms, stall: 1h}")
        .start()
        .await;
    let mut peer = plain::Peer::connect_narrow(&proxy.address).await;
    peer.write("GET /file HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;
    let mut call = upstream.call().await;
    let flood = Flood::start(call.respond_with(200, &[]), framed(&[7; 64 * 1024]));
    upstream.serve(echo);
    let other = Client::connect(&proxy).await;
    at_rest(&other, || flood.sent.get()).await;
    drop(other);

    call.connection.vanish();

    proxy.metric_is(WAITED, 1).await;
    let live = "thalweg_listener_connections_live{listener=\"it\"}";
    proxy.metric_is(live, 0).await;
}
