//! What becomes of streams, connections and counters when the configuration changes.

use std::{
    fmt::{Display, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use h2::client::Builder;
use http::Request;
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::rustls::HandshakeKind;

use crate::support::{
    authority::{Authority, Files},
    child::Running,
    client::Client,
    hands::Hands,
    proxy::TestProxy,
    upstream::{Upstream, echo},
    within,
};

const OK: [(&str, &str); 1] = [("grpc-status", "0")];
const TALK: &str = "/e2e.Echo/Talk";
const SUCCESSFUL: &str = "thalweg_config_last_reload_successful";
const RELOADS: &str = "thalweg_config_reloads_total";
const FAILURES: &str = "thalweg_config_reload_failures_total";

/// A configuration with one listener; the clusters by name and endpoint, and the routes by path and cluster.
fn yaml(clusters: &[(&str, &str)], routes: &[(&str, &str)]) -> String {
    let mut yaml = String::from("listeners: [{name: it, address: \"127.0.0.1:0\"}]\nclusters:\n");
    for (name, endpoint) in clusters {
        let _ = writeln!(
            yaml,
            "  {name}: {{endpoints: [\"{endpoint}\"], connect_timeout: 1m}}"
        );
    }
    yaml.push_str("routes:\n");
    for (path, cluster) in routes {
        let _ = writeln!(
            yaml,
            "  - {{name: \"{path}\", match: {{path_prefix: {path}}}, cluster: {cluster}}}"
        );
    }
    yaml
}

/// The same with what a proxy in the test's own process wants besides.
fn whole(yaml: &str) -> String {
    format!("admin: {{address: \"127.0.0.1:0\"}}\nworkers: 2\nfilters: [metrics]\n{yaml}")
}

async fn connect(proxy: &Running) -> Client {
    Client::connect_with(&proxy.address, &Builder::new()).await
}

// === who asks for it ===

#[tokio::test]
async fn hangup_takes_up_the_file_for_new_streams_and_leaves_those_that_run() {
    let (mut old, mut new) = (Upstream::start().await, Upstream::start().await);
    let (at_old, at_new) = (old.address.clone(), new.address.clone());
    let clusters = [("old", &*at_old), ("new", &*at_new)];
    let mut proxy = Running::start(&yaml(&clusters, &[("/", "old")])).await;
    let client = connect(&proxy).await;
    let mut before = client.call(TALK, &[]).await;
    let mut held = old.call().await;
    let mut back = held.respond();
    let (_, mut incoming) = before.head().await;

    proxy.write(&yaml(&clusters, &[("/", "new")]));
    proxy.signal("HUP").await;
    proxy
        .says("the configuration was reloaded: routes changed: /")
        .await;

    let mut after = client.call(TALK, &[]).await;
    new.call().await.finish_with(200, &OK);
    assert_eq!(after.answer().await.code(), Code::Ok);
    // The one that had begun goes on where it was, both ways.
    before.outgoing.message(b"there").await;
    assert_eq!(held.incoming.message().await.unwrap(), "there");
    back.message(b"back").await;
    assert_eq!(incoming.message().await.unwrap(), "back");
    before.outgoing.end();
    assert!(held.incoming.message().await.is_none());
    back.trailers(&OK);
    let (_, trailers) = incoming.rest().await;
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn post_is_answered_when_the_file_is_in_force_with_what_has_changed() {
    let (mut old, mut new) = (Upstream::start().await, Upstream::start().await);
    let (at_old, at_new) = (old.address.clone(), new.address.clone());
    let clusters = [("old", &*at_old), ("new", &*at_new)];
    let proxy = Running::start(&yaml(&clusters, &[("/", "old")])).await;
    let client = connect(&proxy).await;
    let mut call = client.call(TALK, &[]).await;
    old.call().await.finish_with(200, &OK);
    call.answer().await;

    let reply = proxy
        .reload(&yaml(
            &clusters[1..],
            &[("/e2e.Echo/", "new"), ("/", "new")],
        ))
        .await;

    assert_eq!(reply.status, 200, "{}", reply.body);
    let changes: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(
        changes["routes"]["added"],
        serde_json::json!(["/e2e.Echo/"])
    );
    assert_eq!(changes["routes"]["changed"], serde_json::json!(["/"]));
    assert_eq!(changes["clusters"]["removed"], serde_json::json!(["old"]));
    let mut call = client.call(TALK, &[]).await;
    new.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
    let config = proxy.operator.get("/config").await.body;
    assert!(
        config.contains("/e2e.Echo/") && !config.contains(&old.address),
        "{config}"
    );
    assert_eq!(proxy.operator.metric(SUCCESSFUL).await, 1);
    assert_eq!(proxy.operator.metric(RELOADS).await, 1);
}

#[tokio::test]
async fn reload_is_asked_for_by_post_alone() {
    let upstream = Upstream::start().await;
    let proxy = Running::start(&yaml(&[("main", &upstream.address)], &[("/", "main")])).await;

    let reply = proxy.operator.get("/reload").await;

    assert_eq!(reply.status, 405);
    assert_eq!(proxy.operator.metric(RELOADS).await, 0);
}

#[tokio::test]
async fn reloads_that_are_asked_for_at_once_are_all_done() {
    let upstream = Upstream::start().await;
    let proxy = Running::start(&yaml(&[("main", &upstream.address)], &[("/", "main")])).await;

    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let operator = proxy.operator;
        asked.spawn(async move { operator.ask("POST", "/reload", "").await.status });
    }

    assert!(asked.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(proxy.operator.metric(RELOADS).await, 8);
}

#[tokio::test]
async fn file_that_changes_is_taken_up_where_it_is_watched() {
    let (mut old, mut new) = (Upstream::start().await, Upstream::start().await);
    let (at_old, at_new) = (old.address.clone(), new.address.clone());
    let clusters = [("old", &*at_old), ("new", &*at_new)];
    let watched = |cluster| {
        format!(
            "reload: {{interval: 20ms}}\n{}",
            yaml(&clusters, &[("/", cluster)])
        )
    };
    let mut proxy = Running::start(&watched("old")).await;
    let client = connect(&proxy).await;
    let mut call = client.call(TALK, &[]).await;
    old.call().await.finish_with(200, &OK);
    call.answer().await;

    proxy.write("routs: []");
    proxy.says("the configuration was not reloaded").await;
    proxy.write(&watched("new"));
    proxy
        .says("the configuration was reloaded: routes changed: /")
        .await;

    let mut call = client.call(TALK, &[]).await;
    new.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
    // A file that is no good is tried once, until it changes.
    assert_eq!(proxy.operator.metric(FAILURES).await, 1);
}

// === what is refused ===

#[tokio::test]
async fn faulty_file_leaves_all_as_it_was_and_is_told_with_every_fault() {
    let mut upstream = Upstream::start().await;
    let good = yaml(&[("main", &upstream.address)], &[("/", "main")]);
    let mut proxy = Running::start(&good).await;
    let client = connect(&proxy).await;
    let before = proxy.operator.get("/config").await.body;
    let taken_up = proxy
        .operator
        .metric("thalweg_config_last_reload_success_timestamp_seconds")
        .await;
    assert!(taken_up > 1_700_000_000);
    assert_eq!(proxy.operator.metric(SUCCESSFUL).await, 1);

    let reply = proxy
        .reload("listeners: []\nroutes: [{name: x, cluster: nowhere}]\nrouts: []\n")
        .await;

    assert_eq!(reply.status, 422, "{}", reply.body);
    assert!(
        reply.body.contains("routs") && reply.body.contains("listeners"),
        "{}",
        reply.body
    );
    let record = proxy.says("the configuration was not reloaded").await;
    assert!(
        record.contains("routs: unknown key") && record.contains("listeners: must not be empty"),
        "{record}"
    );
    assert_eq!(proxy.operator.metric(SUCCESSFUL).await, 0);
    assert_eq!(proxy.operator.metric(FAILURES).await, 1);
    assert_eq!(proxy.operator.get("/config").await.body, before);
    let mut call = client.call(TALK, &[]).await;
    upstream.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);

    assert_eq!(proxy.reload(&good).await.status, 200);
    assert_eq!(proxy.operator.metric(SUCCESSFUL).await, 1);
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_and_nothing_else_is_taken_up() {
    let upstream = Upstream::start().await;
    let before = yaml(&[("main", &upstream.address)], &[("/a/", "main")]);
    let mut proxy = TestProxy::start_as(&whole(&before)).await;
    let after = whole(&yaml(&[("main", &upstream.address)], &[("/", "main")]));

    let after = after.replace("workers: 2", "workers: 3\ndapr: {app_id: other}");
    let error = proxy.reload(&after).await.unwrap_err().to_string();

    assert_eq!(
        error,
        "workers, dapr: cannot change while the process runs, and needs a restart"
    );
    let client = Client::connect(&proxy).await;
    assert_eq!(client.unary(TALK, b"").await.reason(), Some("no_route"));
}

#[tokio::test]
async fn store_that_cannot_be_opened_leaves_all_as_it_was() {
    let upstream = Upstream::start().await;
    let before = yaml(&[("main", &upstream.address)], &[("/a/", "main")]);
    let mut proxy = TestProxy::start_as(&whole(&before)).await;
    let after = yaml(&[("main", &upstream.address)], &[("/", "main")]);

    let bindings = "bindings: {files: {object_store: {url: \"file:///dev/null/nothing\"}}}\n";
    let error = proxy
        .reload(&whole(&format!("{after}{bindings}")))
        .await
        .unwrap_err();

    assert!(
        error
            .to_string()
            .starts_with("binding files: cannot open its store"),
        "{error}"
    );
    let client = Client::connect(&proxy).await;
    assert_eq!(client.unary(TALK, b"").await.reason(), Some("no_route"));
    assert_eq!(proxy.metric(SUCCESSFUL).await, 0);
}

#[tokio::test]
async fn proxy_that_drains_reloads_nothing() {
    let mut upstream = Upstream::start().await;
    let yaml = yaml(&[("main", &upstream.address)], &[("/", "main")]);
    let mut proxy = Running::start(&yaml).await;
    let client = connect(&proxy).await;
    let mut call = client.call(TALK, &[]).await;
    let mut held = upstream.call().await;
    proxy.signal("TERM").await;
    proxy.says("draining").await;

    let reply = proxy.reload(&yaml).await;

    assert_eq!(reply.status, 503, "{}", reply.body);
    held.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
    drop(client);
    assert!(proxy.ends().await.0.success());
}

// === what lives on ===

/// A hundred streams talk without a pause while the configuration changes fifty times.
#[tokio::test]
async fn hundred_streams_lose_nothing_over_fifty_reloads() {
    const STREAMS: usize = 100;
    const AHEAD: u64 = 8;
    let (upstream, other) = (
        Upstream::start().await.serve(echo),
        Upstream::start().await.serve(echo),
    );
    let clusters = [("main", &*upstream.address), ("other", &*other.address)];
    let config = |routes: &[(&str, &str)]| yaml(&clusters, routes);
    let talk = (TALK, "main");
    let proxy = Running::start(&config(&[talk])).await;
    let stop = Arc::new(AtomicBool::new(false));
    let moved = Arc::new(AtomicU64::new(0));
    let mut streams = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(connect(&proxy).await);
    }
    for index in 0..STREAMS {
        let mut call = clients[index % clients.len()].call(TALK, &[]).await;
        let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
        streams.spawn(async move {
            let mut sent: u64 = 0;
            call.outgoing.message(&sent.to_be_bytes()).await;
            sent += 1;
            let (_, mut incoming) = call.head().await;
            let mut received: u64 = 0;
            while let Some(message) = incoming.message().await {
                assert_eq!(message, received.to_be_bytes()[..], "stream {index}");
                received += 1;
                moved.fetch_add(1, SeqCst);
                while !stop.load(SeqCst) && sent < received + AHEAD {
                    call.outgoing.message(&sent.to_be_bytes()).await;
                    sent += 1;
                }
                if stop.load(SeqCst) && received == sent {
                    call.outgoing.end();
                }
            }
            assert_eq!(received, sent, "stream {index}");
            let (_, trailers) = incoming.rest().await;
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        });
    }
    let faulty = "routes: [{name: x, cluster: nowhere}]";

    for round in 0..50 {
        let (yaml, wanted) = match round % 5 {
            0 => (config(&[("/other/", "other"), talk]), 200),
            1 => (faulty.to_owned(), 422),
            2 => (
                config(&[talk, ("/other/", "main"), ("/more/", "other")]),
                200,
            ),
            // The streams' own route is another object now, and later it is gone.
            3 => (config(&[(TALK, "other")]), 200),
            _ => (config(&[("/other/", "other")]), 200),
        };
        let reply = proxy.reload(&yaml).await;
        assert_eq!(reply.status, wanted, "{}", reply.body);
        // All streams together have said more since.
        let seen = moved.load(SeqCst);
        within("messages move", async {
            while moved.load(SeqCst) < seen + STREAMS as u64 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    stop.store(true, SeqCst);

    within("all streams end", async {
        while let Some(ended) = streams.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    let ends = proxy.operator.get("/metrics").await.body;
    assert!(
        !ends
            .lines()
            .any(|line| line.starts_with("thalweg_proxy_ends_total{")),
        "{ends}"
    );
    assert_eq!(proxy.operator.metric(RELOADS).await, 40);
    assert_eq!(proxy.operator.metric(FAILURES).await, 10);
}

#[tokio::test]
async fn unchanged_cluster_keeps_its_connections() {
    let mut upstream = Upstream::start().await;
    let clusters = [("main", &*upstream.address.clone())];
    let mut proxy = TestProxy::start_as(&whole(&yaml(&clusters, &[("/", "main")]))).await;
    let client = Client::connect(&proxy).await;
    for routes in [
        &[("/", "main")][..],
        &[("/new/", "main"), ("/", "main")],
        &[("/e2e", "main")],
    ] {
        proxy
            .reload(&whole(&yaml(&clusters, routes)))
            .await
            .unwrap();
        let mut call = client.call(TALK, &[]).await;
        upstream.call().await.finish_with(200, &OK);
        assert_eq!(call.answer().await.code(), Code::Ok);
    }

    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn cluster_that_is_gone_closes_its_connections_after_their_last_stream() {
    let mut upstream = Upstream::start().await;
    let without = "listeners: [{name: it, address: \"127.0.0.1:0\"}]\n";
    let with = format!(
        "{without}clusters: {{main: {{endpoints: [\"{upstream}\"], pool: {{idle_timeout: 1h}}}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    );
    let mut proxy = TestProxy::start_as(&whole(&with)).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(TALK, &[]).await;
    let mut held = upstream.call().await;

    let changes = proxy.reload(&whole(without)).await.unwrap();

    assert_eq!(
        changes.to_string(),
        "routes removed: main; clusters removed: main"
    );
    assert_eq!(client.unary(TALK, b"").await.reason(), Some("no_route"));
    // The stream and its connection live on, and so do their counters.
    let connections = "thalweg_cluster_connections{cluster=\"main\"}";
    assert_eq!(proxy.metric(connections).await, 1);
    assert_eq!(
        proxy.metric("thalweg_streams_live{route=\"main\"}").await,
        1
    );
    let mut back = held.respond();
    back.message(b"still").await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "still");
    call.outgoing.end();
    back.trailers(&OK);
    incoming.rest().await.1.unwrap();
    proxy.metric_is(connections, 0).await;
    // Nobody counts here any more, and the next reload forgets it.
    proxy.reload(&whole(without)).await.unwrap();
    assert!(!proxy.admin("/metrics").await.contains("\"main\""));
}

#[tokio::test]
async fn breaker_remembers_over_a_reload_that_leaves_it_as_it_is() {
    let mut upstream = Upstream::start().await;
    let config = |path: &str| {
        whole(&format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             clusters: {{main: {{endpoints: [\"{upstream}\"]}}}}\n\
             routes: [{{name: main, match: {{path_prefix: {path}}}, cluster: main, filters: [metrics, {{circuit_breaker: {{trip: consecutiveFailures > 1, timeout: 1h}}}}]}}]\n"
        ))
    };
    let (first, second) = (config("/"), config("/e2e"));
    let mut proxy = TestProxy::start_as(&first).await;
    let client = Client::connect(&proxy).await;
    for _ in 0..2 {
        let mut call = client.call(TALK, &[]).await;
        upstream
            .call()
            .await
            .finish_with(200, &[("grpc-status", "14")]);
        assert_eq!(call.answer().await.code(), Code::Unavailable);
    }
    assert_eq!(client.unary(TALK, b"").await.reason(), Some("circuit_open"));

    // The route is another, but what it leads to and the breaker's settings are the same.
    let changes = proxy.reload(&second).await.unwrap();

    assert_eq!(changes.to_string(), "routes changed: main");
    assert_eq!(client.unary(TALK, b"").await.reason(), Some("circuit_open"));
    assert_eq!(
        proxy
            .metric("thalweg_streams_started_total{route=\"main\"}")
            .await,
        4
    );
}

#[tokio::test]
async fn route_that_goes_on_to_those_below_finds_them_as_they_are_now() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let config = |cluster: &str| {
        whole(&format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             clusters: {{first: {{endpoints: [\"{first}\"]}}, second: {{endpoints: [\"{second}\"]}}}}\n\
             routes:\n  - {{name: all, continue: true, filters: [initial_message]}}\n  - {{name: below, cluster: {cluster}}}\n"
        ))
    };
    let (before, after) = (config("first"), config("second"));
    let mut proxy = TestProxy::start_as(&before).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(TALK, &[]).await;
    call.outgoing.message(b"one").await;
    first.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);

    proxy.reload(&after).await.unwrap();

    let mut call = client.call(TALK, &[]).await;
    call.outgoing.message(b"two").await;
    second.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

// === listeners ===

/// A configuration whose routes all lead to one upstream, with listeners as they are written.
fn listening(upstream: &impl Display, listeners: &[&str]) -> String {
    let listeners = listeners.join("}, {");
    whole(&format!(
        "listeners: [{{{listeners}}}]\n\
         clusters: {{main: {{endpoints: [\"{upstream}\"], connect_timeout: 1m}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    ))
}

async fn client_of(address: &Address) -> Client {
    Client::connect_with(address, &Builder::new()).await
}

const IT: &str = "name: it, address: \"127.0.0.1:0\"";
const OTHER: &str = "name: other, address: \"127.0.0.1:0\"";

#[tokio::test]
async fn listener_that_is_added_serves_when_the_reload_is_answered() {
    let mut upstream = Upstream::start().await;
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[IT])).await;
    let first = proxy.address.clone();

    let changes = proxy
        .reload(&listening(&upstream, &[OTHER, IT]))
        .await
        .unwrap();

    assert_eq!(changes.to_string(), "listeners added: other");
    assert_eq!(proxy.listener("it"), first);
    for address in [&first, &proxy.listener("other")] {
        let mut call = client_of(address).await.call(TALK, &[]).await;
        upstream.call().await.finish_with(200, &OK);
        assert_eq!(call.answer().await.code(), Code::Ok);
    }
}

#[tokio::test]
async fn listener_that_is_gone_refuses_connections_and_leaves_its_streams() {
    let mut upstream = Upstream::start().await;
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[IT, OTHER])).await;
    let Address::Tcp(gone) = proxy.listener("other") else {
        panic!()
    };
    let client = client_of(&Address::Tcp(gone)).await;
    let mut call = client.call(TALK, &[]).await;
    let mut held = upstream.call().await;
    let mut back = held.respond();
    let (_, mut incoming) = call.head().await;

    proxy.reload(&listening(&upstream, &[IT])).await.unwrap();

    assert!(TcpStream::connect(gone).await.is_err(), "it still listens");
    call.outgoing.message(b"there").await;
    assert_eq!(held.incoming.message().await.unwrap(), "there");
    back.message(b"back").await;
    assert_eq!(incoming.message().await.unwrap(), "back");
    let live = "thalweg_listener_connections_live{listener=\"other\"}";
    assert_eq!(proxy.metric(live).await, 1);
    call.outgoing.end();
    back.trailers(&OK);
    incoming.rest().await.1.unwrap();
    // The client was told to open no more streams, and its connection closes after the last.
    proxy.metric_is(live, 0).await;
    let fresh = client_of(&proxy.address).await;
    let mut call = fresh.call(TALK, &[]).await;
    upstream.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn listener_that_changes_keeps_its_socket_and_meets_new_connections_anew() {
    let mut upstream = Upstream::start().await;
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[IT])).await;
    let address = proxy.address.clone();
    let old = client_of(&address).await;
    proxy
        .metric_is("thalweg_listener_connections_live{listener=\"it\"}", 1)
        .await;
    let strict = format!("{IT}, http2: {{max_headers: 8}}");

    let changes = proxy
        .reload(&listening(&upstream, &[&strict]))
        .await
        .unwrap();

    assert_eq!(changes.to_string(), "listeners changed: it");
    assert_eq!(proxy.listener("it"), address);
    let many: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"]
        .map(|name| (name, "1"))
        .into();
    let refused = client_of(&address)
        .await
        .call(TALK, &many)
        .await
        .answer()
        .await;
    assert_eq!(refused.reason(), Some("too_many_headers"));
    let mut call = old.call(TALK, &many).await;
    upstream.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn more_connections_are_let_in_when_the_limit_is_raised() {
    let mut upstream = Upstream::start().await;
    let one = format!("{IT}, max_connections: 1");
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[&one])).await;
    let address = proxy.address.clone();
    let _first = client_of(&address).await;
    proxy
        .metric_is("thalweg_listener_connections_live{listener=\"it\"}", 1)
        .await;
    let second = client_of(&address).await;
    let mut call = second.call(TALK, &[]).await;
    proxy
        .reaches(
            "thalweg_listener_connections_full_total{listener=\"it\"}",
            1,
        )
        .await;
    assert!(!upstream.has_call());

    proxy.reload(&listening(&upstream, &[IT])).await.unwrap();

    upstream.call().await.finish_with(200, &OK);
    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn address_that_is_taken_leaves_all_as_it_was() {
    let upstream = Upstream::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[IT])).await;
    let before = proxy.address.clone();

    let third = format!("name: third, address: \"{}\"", taken.local_addr().unwrap());
    let error = proxy.reload(&listening(&upstream, &[OTHER, &third])).await;

    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("listener third: cannot listen on"),
        "{error}"
    );
    assert_eq!(proxy.listener("it"), before);
    client_of(&before).await;
    assert_eq!(proxy.metric(SUCCESSFUL).await, 0);
}

#[tokio::test]
async fn address_of_a_unix_socket_may_go_and_come_back() {
    let mut upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.sock");
    let unix = format!("name: unix, address: \"unix:{}\"", path.display());
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[IT])).await;

    for _ in 0..2 {
        proxy
            .reload(&listening(&upstream, &[IT, &unix]))
            .await
            .unwrap();
        let client = client_of(&Address::Unix(path.clone())).await;
        let mut call = client.call(TALK, &[]).await;
        upstream.call().await.finish_with(200, &OK);
        assert_eq!(call.answer().await.code(), Code::Ok);
        proxy.reload(&listening(&upstream, &[IT])).await.unwrap();
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn tls_that_is_the_same_keeps_its_tickets_and_that_which_changes_is_met_anew() {
    const HOST: &str = "e2e.test";
    let upstream = Upstream::start().await;
    let upstream = upstream.serve(|mut call| async move { call.finish_with(200, &OK) });
    let (authority, files) = (Authority::new("root"), Files::new());
    let first = authority.server(&[HOST]);
    let second = authority.server(&[HOST]);
    let under = |pair: &str| format!("{IT}, tls: {{certificates: [{pair}]}}");
    let before = under(&files.pair("first", &first));
    let after = under(&files.pair("second", &second));
    let mut proxy = TestProxy::start_as(&listening(&upstream, &[&before])).await;
    let address = proxy.address.clone();
    let hands = Hands::trusting(&authority);
    // A request, since TLS 1.3 hands tickets out after the handshake.
    hands.get(&address, HOST).await.unwrap();

    proxy
        .reload(&listening(&upstream, &[&before, OTHER]))
        .await
        .unwrap();

    let stream = hands.shake(&address, HOST).await.unwrap();
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    assert_eq!(kind, HandshakeKind::Resumed);

    proxy
        .reload(&listening(&upstream, &[&after]))
        .await
        .unwrap();

    assert_eq!(proxy.listener("it"), address);
    let stream = hands.shake(&address, HOST).await.unwrap();
    let shown = stream.get_ref().1;
    assert_eq!(shown.handshake_kind().unwrap(), HandshakeKind::Full);
    assert_eq!(shown.peer_certificates().unwrap()[0], second.der().0);

    // And from TLS to none.
    proxy.reload(&listening(&upstream, &[IT])).await.unwrap();
    let mut clear = client_of(&address).await.call(TALK, &[]).await;
    assert_eq!(clear.answer().await.code(), Code::Ok);
}

// === bindings ===

#[tokio::test]
async fn objects_in_memory_outlive_a_reload_and_bindings_come_and_go() {
    let config = |bindings: &str| {
        whole(&format!(
            "listeners: [{{{IT}}}]\nbindings: {{store: {{object_store: {{url: \"memory://\"}}}}{bindings}}}\n"
        ))
    };
    let mut proxy = TestProxy::start_as(&config("")).await;
    let put = Request::put(
        "http://e2e.test/v1.0-alpha1/bindings/store/stream?operation=create&metadata.key=it",
    );
    let client = client_of(&proxy.address).await;
    let mut call = client.open(put, false).await;
    call.outgoing.data("kept").await;
    call.outgoing.end();
    let answer = call.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let echo = || Request::put("http://e2e.test/v1.0-alpha1/bindings/echo/stream?operation=create");
    assert_eq!(client.open(echo(), true).await.answer().await.status, 404);

    let changes = proxy.reload(&config(", echo: {echo: {}}")).await.unwrap();

    assert_eq!(changes.to_string(), "bindings added: echo");
    assert_eq!(client.open(echo(), true).await.answer().await.status, 200);
    let get = Request::post(
        "http://e2e.test/v1.0-alpha1/bindings/store/stream?operation=get&metadata.key=it",
    );
    let answer = client.open(get, true).await.answer().await;
    assert_eq!(answer.body, "kept");
}
