//! What clients are told of errors.

use http::Request;

use crate::support::{
    client::Client,
    proxy::{TestProxy, Yaml},
    upstream::nobody,
};

const TALK: &str = "/e2e.Errors/Talk";

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
