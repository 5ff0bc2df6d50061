//! Requests that go in a circle.

use thalweg_proto::status::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    binding::{STREAM, initial},
    child::Folder,
    client::Client,
    hands::dial,
    proxy::{TestProxy, Yaml},
    upstream::Upstream,
    values, within,
};

const LIVE: &str = "thalweg_streams_live{route=\"main\"}";
const STREAMS: &str = "thalweg_cluster_streams{cluster=\"main\"}";
const REFUSED: &str = "thalweg_proxy_ends_total{reason=\"loop_detected\"}";

const STARTED: &str = "thalweg_streams_started_total{route=\"main\"}";

/// A cluster that leads to a listener of the same proxy; `more` comes before the route to it.
struct Circle {
    proxy: TestProxy,
    _folder: tempfile::TempDir,
}

async fn circle(protocol: &str, keys: &str, more: &str) -> Circle {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("it.sock").display());
    let proxy = TestProxy::start(&format!(
        "listeners:\n\
         - {{name: door, address: \"127.0.0.1:0\"{keys}}}\n\
         - {{name: it, address: \"{socket}\"{keys}}}\n\
         clusters:\n  \
           main: {{endpoints: [\"{socket}\"], protocol: {protocol}}}\n\
         {more}\n"
    ))
    .await;
    Circle {
        proxy,
        _folder: folder,
    }
}

const ROUTE: &str = "routes: [{name: main, cluster: main}]";

#[tokio::test]
async fn circle_has_so_many_rounds_and_no_more() {
    let Circle { proxy, .. } = &circle("http2", "", ROUTE).await;
    let client = Client::connect(proxy).await;

    // One that has said all, and one that would go on.
    assert_eq!(
        client.unary("/e2e.Echo/Talk", b"round").await.reason(),
        Some("loop_detected")
    );
    assert_eq!(proxy.metric(STARTED).await, 10);
    let mut open = client.call("/e2e.Echo/Talk", &[]).await;
    let answer = open.answer().await;

    assert_eq!(answer.code(), Code::FailedPrecondition);
    assert!(answer.text().contains("max_hops"), "{}", answer.text());
    assert_eq!(proxy.metric(STARTED).await, 20);
    assert_eq!(proxy.metric(REFUSED).await, 2);
    proxy.metric_is(LIVE, 0).await;
    proxy.metric_is(STREAMS, 0).await;
}

#[tokio::test]
async fn circle_over_http1_ends_likewise() {
    let Circle { proxy, .. } = &circle("http1", ", max_hops: 3", ROUTE).await;
    let mut socket = dial(&proxy.address).await;
    let request = "POST / HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\
                   thalweg-hops: x\r\nconnection: close\r\n\r\n";

    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer comes", socket.read_to_string(&mut answer))
        .await
        .unwrap();

    assert!(answer.starts_with("HTTP/1.1 508 "), "{answer}");
    assert!(answer.contains("ERR_LOOP_DETECTED"), "{answer}");
    assert_eq!(proxy.metric(STARTED).await, 3);
    proxy.metric_is(LIVE, 0).await;
    proxy.metric_is(STREAMS, 0).await;
}

/// The round before the last one leads to an upstream that says nothing, so that all of them are open.
#[tokio::test]
async fn client_that_leaves_takes_every_round_with_it() {
    for protocol in ["http2", "http1"] {
        let mut silent = Upstream::start().await;
        let more = format!(
            "  silent: {{endpoints: [\"{silent}\"]}}\n\
             routes:\n\
             - {{name: silent, match: {{headers: {{thalweg-hops: \"10\"}}}}, cluster: silent}}\n\
             - {{name: main, cluster: main}}"
        );
        let Circle { proxy, .. } = &circle(protocol, "", &more).await;
        let client = Client::connect(proxy).await;
        let request = http::Request::post("http://e2e.test/");
        let call = client.open(request, false).await;
        let mut last = silent.call().await;
        assert_eq!(last.headers()["thalweg-hops"], "10");
        proxy.metric_is(LIVE, 9).await;

        drop(call);

        last.reset_by_peer().await;
        proxy.metric_is(LIVE, 0).await;
        proxy.metric_is(STREAMS, 0).await;
    }
}

/// At an edge and beside a service, say.
#[tokio::test]
async fn chain_of_proxies_is_no_circle() {
    let mut upstream = Upstream::start().await;
    let mut last = Yaml::to(&upstream).start().await;
    let mut chain = Vec::new();
    for _ in 0..4 {
        let next = Yaml::to(&last.address).start().await;
        chain.push(std::mem::replace(&mut last, next));
    }
    let client = Client::connect(&last).await;

    let mut call = client
        .call("/e2e.Echo/Talk", &[("thalweg-hops", "nonsense")])
        .await;
    let mut served = upstream.call().await;

    assert_eq!(values(served.headers(), "thalweg-hops"), ["5"]);
    served.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

// === bindings ===

/// What a binding sends is another request, and goes in the same circle.
#[tokio::test]
async fn binding_that_calls_itself_has_so_many_rounds() {
    let binding = "bindings: {it: {dapr: {cluster: main}}}";
    let Circle { proxy, .. } = &circle("http2", "", binding).await;
    let client = Client::connect(proxy).await;
    let mut call = client.call(STREAM, &[("thalweg-hops", "2")]).await;
    call.outgoing.message(&initial("it", "create", &[])).await;

    let answer = call.answer().await;

    assert_eq!(answer.code(), Code::FailedPrecondition, "{answer:?}");
    assert_eq!(proxy.metric(REFUSED).await, 1);
    proxy.metric_is(STREAMS, 0).await;
}

#[tokio::test]
async fn binding_whose_url_is_its_own_has_so_many_rounds() {
    let yaml = |address: &str| {
        format!(
            "admin: {{address: \"127.0.0.1:0\"}}\nworkers: 1\nfilters: [metrics]\n\
             listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             bindings: {{it: {{http: {{url: \"http://{address}{TARGET}\"}}}}}}\n"
        )
    };
    const TARGET: &str = "/v1.0-alpha1/bindings/it/stream?operation=create";
    let mut proxy = TestProxy::start_as(&yaml("127.0.0.1:1")).await;
    let own = yaml(&proxy.address.to_string());
    proxy.reload(&own).await.unwrap();
    let client = Client::connect(&proxy).await;
    let request = http::Request::post(format!("http://e2e.test{TARGET}"));
    let mut call = client.open(request, true).await;

    let answer = call.answer().await;

    assert!(answer.status.is_server_error() || answer.status.is_client_error());
    assert_eq!(proxy.metric(REFUSED).await, 1);
    proxy
        .metric_is("thalweg_cluster_streams{cluster=\"binding/it\"}", 0)
        .await;
}

// === what `check` sees of it ===

#[tokio::test]
async fn check_tells_of_clusters_that_lead_back() {
    let folder = Folder::with(
        "listeners:\n\
         - {name: plain, address: \"0.0.0.0:8080\"}\n\
         - {name: local, address: \"unix:/run/it.sock\"}\n\
         bindings: {hook: {http: {url: \"http://localhost:8080/in\"}}}\n\
         clusters:\n  \
           me: {endpoints: [\"127.0.0.1:8080\"]}\n  \
           too: {endpoints: [\"unix:/run/it.sock\"]}\n  \
           other: {endpoints: [\"127.0.0.1:8081\", \"10.0.0.1:8080\"]}\n\
         routes:\n\
         - {name: me, match: {path: /a}, cluster: me}\n\
         - {name: too, match: {path: /b}, cluster: too}\n\
         - {name: other, cluster: other}\n",
    );

    let said = folder.run(&["check"]).await;

    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for line in [
        "cluster me leads to 127.0.0.1:8080, where the listener plain of this file listens: its streams may go in a circle",
        "cluster too leads to unix:/run/it.sock, where the listener local of this file listens",
        "binding hook leads to 127.0.0.1:8080, where the listener plain of this file listens",
    ] {
        assert!(said.stdout.contains(line), "{}", said.stdout);
    }
    assert_eq!(said.stdout.matches("in a circle").count(), 3);
}
