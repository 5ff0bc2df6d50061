//! What the operator is told.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use h2::Reason;
use http::Request;
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::net::TcpStream;

use crate::support::{
    child::{Folder, Running},
    client::Client,
    component::{Component, Traits, ready},
    operator::Operator,
    proxy::{TestProxy, Yaml},
    upstream::{Upstream, echo, nobody},
    within,
};

/// The operator's manual.
const MANUAL: &str = concat!(
    include_str!("../../docs/operation.md"),
    include_str!("../../docs/tls.md")
);

// === endpoints ===

#[tokio::test]
async fn probes_say_that_it_lives_and_is_ready() {
    let proxy = Yaml::to(nobody().await).start().await;

    for path in ["/livez", "/readyz"] {
        let reply = proxy.operator().get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(
            reply.head.contains("content-type: text/plain"),
            "{}",
            reply.head
        );
    }
}

#[tokio::test]
async fn proxy_that_drains_lives_and_is_not_ready() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let (address, operator) = (proxy.address.clone(), proxy.operator());
    let client = Client::connect(&proxy).await;
    let mut call = client.call("/e2e.Echo/Talk", &[]).await;
    let mut running = upstream.call().await;

    let drained = tokio::spawn(proxy.drain());
    within("the proxy says that it drains", async {
        while operator.get("/readyz").await.status != 503 {}
    })
    .await;
    let Address::Tcp(address) = address else {
        unreachable!("it listens on TCP")
    };
    within("connections are refused", async {
        while TcpStream::connect(address).await.is_ok() {}
    })
    .await;

    assert_eq!(operator.get("/livez").await.status, 200);
    assert_eq!(
        operator
            .metric("thalweg_streams_live{route=\"main\"}")
            .await,
        1
    );
    running.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(call.answer().await.code(), Code::Ok);
    within("the drain ends", drained).await.unwrap();
}

/// The right to look does not come with it, and no page that is open in a browser can do it behind its user's back.
#[tokio::test]
async fn only_who_may_and_means_to_makes_it_drain() {
    let upstream = Upstream::start().await;
    let yaml = format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{upstream}]}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    );
    let proxy =
        TestProxy::start_with_admin("{address: \"127.0.0.1:0\", token: sesame}", &yaml).await;
    let operator = proxy.operator();
    let token = "authorization: Bearer sesame\r\n";
    let foreign = format!("{token}origin: https://elsewhere.test\r\n");

    assert_eq!(operator.ask("POST", "/drain", "").await.status, 401);
    assert_eq!(operator.ask("GET", "/drain", token).await.status, 405);
    assert_eq!(operator.ask("POST", "/drain", &foreign).await.status, 403);
    assert_eq!(operator.get("/readyz").await.status, 200);

    assert_eq!(operator.ask("POST", "/drain", token).await.status, 202);
    within("the proxy is no longer ready", async {
        while operator.get("/readyz").await.status != 503 {}
    })
    .await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused() {
    let proxy = Yaml::to(nobody().await).start().await;
    let operator = proxy.operator();

    for path in ["/", "/metric", "/metrics/", "/config.yaml"] {
        assert_eq!(operator.get(path).await.status, 404, "{path}");
    }
    for path in ["/metrics", "/config", "/livez"] {
        assert_eq!(operator.ask("POST", path, "").await.status, 405, "{path}");
        let head = operator.ask("HEAD", path, "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn token_is_wanted_for_all_but_the_probes() {
    let proxy = with_token().await;
    let operator = proxy.operator();

    for path in ["/metrics", "/config", "/bindings", "/nowhere"] {
        for wrong in [
            "",
            "authorization: Bearer\r\n",
            "authorization: Bearer \r\n",
            "authorization: Bearer sesame-opeN\r\n",
            "authorization: Bearer sesame-open-\r\n",
            "authorization: Basic sesame-open\r\n",
            "authorization: sesame-open\r\n",
        ] {
            let reply = operator.ask("GET", path, wrong).await;
            assert_eq!(reply.status, 401, "{path} {wrong}");
            assert!(!reply.body.contains("sesame"), "{}", reply.body);
        }
    }
    let right = "authorization: Bearer sesame-open\r\n";
    assert_eq!(operator.ask("GET", "/metrics", right).await.status, 200);
    assert_eq!(operator.ask("GET", "/nowhere", right).await.status, 404);
    for path in ["/livez", "/readyz"] {
        assert_eq!(operator.get(path).await.status, 200);
    }
}

/// A page whose own name leads to 127.0.0.1 is, to the browser, the page's own server.
#[tokio::test]
async fn without_a_token_no_web_page_can_read_it_under_its_own_name() {
    let proxy = Yaml::to(nobody().await).start().await;
    let operator = proxy.operator();
    let ask = async |target: &str, fields: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nconnection: close\r\n{fields}\r\n");
        operator.say(&head).await
    };

    for fields in [
        "host: evil.test\r\n",
        "host: evil.test:9901\r\n",
        "host: localhost\r\nhost: evil.test\r\n",
        "host: evil.test\r\nx-forwarded-host: localhost\r\nforwarded: host=localhost\r\n",
        "host: evil.test\r\nauthorization: Bearer sesame-open\r\n",
    ] {
        for path in ["/config", "/metrics", "/routes", "/clusters", "/nowhere"] {
            let reply = ask(path, fields).await;
            assert_eq!(reply.status, 403, "{path} {fields}");
            assert!(reply.body.contains("admin.token"), "{}", reply.body);
        }
    }
    let by_target = ask("http://evil.test/config", "host: localhost\r\n").await;
    assert_eq!(by_target.status, 403);
    let order = "POST /drain HTTP/1.1\r\nhost: evil.test\r\nconnection: close\r\n\r\n";
    assert_eq!(operator.say(order).await.status, 403);

    for host in ["localhost:9901", "127.0.0.1", "[::1]:1"] {
        assert_eq!(
            ask("/config", &format!("host: {host}\r\n")).await.status,
            200
        );
    }
    // No browser leaves it out.
    assert_eq!(ask("/config", "").await.status, 200);
    assert_eq!(ask("/readyz", "host: evil.test\r\n").await.status, 200);
}

#[tokio::test]
async fn with_a_token_it_has_any_name() {
    let proxy = with_token().await;
    let head = "GET /config HTTP/1.1\r\nhost: proxy.example.test\r\nauthorization: Bearer sesame-open\r\nconnection: close\r\n\r\n";

    assert_eq!(proxy.operator().say(head).await.status, 200);
}

#[tokio::test]
async fn bindings_are_told_with_what_they_can_do_and_without_their_secrets() {
    let folder = Folder::empty();
    let found = Traits::streaming()
        .no_operations()
        .start_on(&folder.path().join("found.sock"));
    let orders = Component::start().await;
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         bindings:\n  \
           echo: {{echo: {{}}}}\n  \
           orders: {{component: {{address: \"{}\", metadata: {{password: secret}}}}}}\n  \
           gone: {{component: {{socket: {}/none/gone.sock}}}}\n  \
           web: {{http: {{url: \"http://127.0.0.1:1/in?key=secret\"}}}}\n  \
           hook: {{http: {{url: \"http://127.0.0.1:1/in\", method: PUT}}}}\n  \
           remote: {{dapr: {{cluster: daprs}}}}\n\
         clusters: {{daprs: {{endpoints: [\"127.0.0.1:1\"]}}}}\n\
         component_sockets: {{folder: {}, interval: 10ms}}\n",
        orders.address,
        folder.path().display(),
        folder.path().display(),
    ))
    .await;
    ready(&proxy, "orders").await;
    ready(&proxy, "found").await;

    let reply = proxy.operator().get("/bindings").await;

    assert!(
        reply.head.contains("content-type: application/json"),
        "{}",
        reply.head
    );
    assert!(!reply.body.contains("secret"), "{}", reply.body);
    let listed: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let methods = [
        "create", "get", "head", "post", "put", "patch", "delete", "options",
    ];
    let expected = serde_json::json!([
        {"name": "echo", "kind": "echo", "operations": null},
        {"name": "found", "kind": "component", "operations": null, "state": "ready"},
        {"name": "gone", "kind": "component", "operations": null, "state": "unavailable"},
        {"name": "hook", "kind": "http", "operations": null},
        {"name": "orders", "kind": "component", "operations": ["create", "get"], "state": "ready"},
        {"name": "remote", "kind": "dapr", "operations": null},
        {"name": "web", "kind": "http", "operations": methods},
    ]);
    assert_eq!(listed, expected);
    drop(found);
}

#[tokio::test]
async fn proxy_without_bindings_tells_of_none() {
    let proxy = Yaml::to(nobody().await).start().await;

    assert_eq!(proxy.operator().get("/bindings").await.body, "[]\n");
}

#[tokio::test]
async fn configuration_is_told_in_full_and_without_its_secrets() {
    let proxy = with_token().await;

    let right = "authorization: Bearer sesame-open\r\n";
    let reply = proxy.operator().ask("GET", "/config", right).await;

    assert!(
        reply.head.contains("content-type: application/json"),
        "{}",
        reply.head
    );
    assert!(!reply.body.contains("sesame"), "{}", reply.body);
    let config: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(config["admin"]["token"], "***");
    assert_eq!(config["workers"], 1);
    let listener = &config["listeners"][0];
    assert_eq!(listener["max_connections"], 7);
    assert_eq!(listener["http2"]["stream_window"], "256KiB", "a default");
    assert_eq!(
        config["clusters"]["main"]["connect_timeout"], "2s",
        "a default"
    );
    assert_eq!(config["routes"][0]["name"], "main");
}

async fn with_token() -> TestProxy {
    TestProxy::start_with_admin(
        "{address: \"127.0.0.1:0\", token: sesame-open}",
        &format!(
            "listeners: [{{name: it, address: \"127.0.0.1:0\", max_connections: 7}}]\n\
             clusters: {{main: {{endpoints: [{}]}}}}\n\
             routes: [{{name: main, cluster: main}}]\n",
            nobody().await
        ),
    )
    .await
}

// === metrics ===

/// One metric, as it is printed.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// From the labels, as they are printed, to the number; of a histogram with the end of the name in front.
    samples: BTreeMap<String, f64>,
}

/// Everything that is printed, in the text format of OpenMetrics.
struct Metrics(BTreeMap<String, Family>);

impl Metrics {
    async fn read(operator: Operator) -> Self {
        let reply = operator.metrics_as("application/openmetrics-text").await;
        assert_eq!(reply.status, 200);
        assert!(
            reply
                .head
                .contains("content-type: application/openmetrics-text; version=1.0.0")
        );
        let text = reply
            .body
            .strip_suffix("# EOF\n")
            .expect("the text has an end");
        let mut families = BTreeMap::<String, Family>::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (what, name, rest) = (words.next(), words.next().unwrap(), words.next());
                let family = families.entry(name.to_owned()).or_default();
                match what.unwrap() {
                    "HELP" => rest.unwrap().clone_into(&mut family.help),
                    "TYPE" => rest.unwrap().clone_into(&mut family.kind),
                    other => panic!("{other} in {line}"),
                }
                name.clone_into(&mut current);
                continue;
            }
            let (sample, number) = line.rsplit_once(' ').unwrap();
            let rest = sample.strip_prefix(&current);
            let rest = rest.unwrap_or_else(|| panic!("{line} does not belong to {current}"));
            let family = families.get_mut(&current).unwrap();
            let known = family
                .samples
                .insert(rest.to_owned(), number.parse().unwrap());
            assert!(known.is_none(), "{line} is there twice");
        }
        Self(families)
    }

    /// The number behind a name with its labels; 0 if it is not there.
    #[track_caller]
    fn number(&self, name: &str, rest: &str) -> f64 {
        let family = self.0.get(name);
        let family = family.unwrap_or_else(|| panic!("{name} is not there"));
        family.samples.get(rest).copied().unwrap_or_default()
    }

    /// The sum over all samples whose labels have these words.
    fn sum(&self, name: &str, words: &str) -> f64 {
        let samples = self.0[name].samples.iter();
        samples
            .filter(|(labels, _)| labels.contains(words))
            .map(|(_, number)| number)
            .sum()
    }
}

/// A proxy with calls of every kind behind it: two routes, and on `main` three calls that end well, one with a status of the
/// upstream, one cancelled by the client, one broken off by the upstream, and a plain request.
async fn after_known_calls() -> (TestProxy, Upstream, Client) {
    let mut upstream = Upstream::start().await;
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{upstream}]}}, down: {{endpoints: [{}]}}}}\n\
         routes:\n\
         - {{name: down, match: {{path_prefix: /down/}}, cluster: down}}\n\
         - {{name: main, match: {{path_prefix: /main/}}, cluster: main}}\n",
        nobody().await
    ))
    .await;
    let client = Client::connect(&proxy).await;

    for _ in 0..3 {
        let mut call = client.call("/main/Good", &[]).await;
        call.outgoing.message(b"12345").await;
        call.outgoing.end();
        let mut answering = upstream.call().await;
        assert_eq!(answering.incoming.message().await.unwrap(), "12345");
        let mut outgoing = answering.respond();
        outgoing.message(b"1234567890").await;
        outgoing.message(b"").await;
        outgoing.trailers(&[("grpc-status", "0")]);
        assert_eq!(call.answer().await.messages().len(), 2);
    }
    let mut call = client.call("/main/NotFound", &[]).await;
    call.outgoing.end();
    upstream
        .call()
        .await
        .finish_with(200, &[("grpc-status", "5")]);
    assert_eq!(call.answer().await.code(), Code::NotFound);

    let call = client.call("/main/Cancelled", &[]).await;
    let mut cancelled = upstream.call().await;
    drop(call);
    assert_eq!(cancelled.reset_by_peer().await, Reason::CANCEL);

    let mut call = client.call("/main/Broken", &[]).await;
    upstream.call().await.reset(Reason::ENHANCE_YOUR_CALM);
    assert_eq!(call.answer().await.code(), Code::ResourceExhausted);

    let get = Request::get("http://e2e.test/main/plain");
    let mut call = client.open(get, true).await;
    let mut outgoing = upstream.call().await.respond_with(204, &[]);
    outgoing.end();
    assert_eq!(call.answer().await.status.as_u16(), 204);

    let unavailable = client.unary("/down/Call", b"").await;
    assert_eq!(unavailable.code(), Code::Unavailable);
    let nowhere = client.unary("/nowhere/Call", b"").await;
    assert_eq!(nowhere.code(), Code::Unimplemented);

    let operator = proxy.operator();
    for route in ["main", "down"] {
        let live = format!("thalweg_streams_live{{route=\"{route}\"}}");
        operator.metric_is(&live, 0).await;
    }
    (proxy, upstream, client)
}

#[tokio::test]
async fn every_stream_is_counted_once_by_its_real_ending() {
    let (proxy, _upstream, _client) = after_known_calls().await;

    let metrics = Metrics::read(proxy.operator()).await;

    let started = |route: &str| {
        let labels = format!("_total{{route=\"{route}\"}}");
        metrics.number("thalweg_streams_started", &labels)
    };
    assert_eq!((started("main"), started("down")), (7.0, 1.0));
    let ended: BTreeMap<&str, f64> = metrics.0["thalweg_streams_ended"]
        .samples
        .iter()
        .filter(|(_, count)| **count > 0.0)
        .map(|(labels, count)| (labels.as_str(), *count))
        .collect();
    let expected = BTreeMap::from([
        (
            "_total{route=\"down\",status=\"UNAVAILABLE\",ending=\"error\"}",
            1.0,
        ),
        (
            "_total{route=\"main\",status=\"OK\",ending=\"trailers\"}",
            3.0,
        ),
        (
            "_total{route=\"main\",status=\"NOT_FOUND\",ending=\"trailers\"}",
            1.0,
        ),
        (
            "_total{route=\"main\",status=\"CANCELLED\",ending=\"dropped\"}",
            1.0,
        ),
        (
            "_total{route=\"main\",status=\"RESOURCE_EXHAUSTED\",ending=\"error\"}",
            1.0,
        ),
        (
            "_total{route=\"main\",status=\"2xx\",ending=\"clean\"}",
            1.0,
        ),
    ]);
    assert_eq!(ended, expected);
}

#[tokio::test]
async fn bytes_and_messages_are_counted_each_way() {
    let (proxy, _upstream, _client) = after_known_calls().await;

    let metrics = Metrics::read(proxy.operator()).await;

    let counted = |name: &str, direction: &str| {
        let labels = format!("_total{{route=\"main\",direction=\"{direction}\"}}");
        metrics.number(name, &labels)
    };
    assert_eq!(counted("thalweg_messages", "request"), 3.0);
    assert_eq!(counted("thalweg_messages", "response"), 6.0);
    assert_eq!(counted("thalweg_bytes", "request"), 3.0 * (5.0 + 5.0));
    assert_eq!(
        counted("thalweg_bytes", "response"),
        3.0 * (5.0 + 10.0 + 5.0)
    );
}

#[tokio::test]
async fn histograms_count_every_stream_and_every_first_message() {
    let (proxy, _upstream, _client) = after_known_calls().await;

    let metrics = Metrics::read(proxy.operator()).await;

    for (name, labels, count) in [
        ("thalweg_stream_duration_seconds", "route=\"main\"", 7.0),
        ("thalweg_stream_duration_seconds", "route=\"down\"", 1.0),
        (
            "thalweg_first_message_seconds",
            "route=\"main\",direction=\"request\"",
            3.0,
        ),
        (
            "thalweg_first_message_seconds",
            "route=\"main\",direction=\"response\"",
            3.0,
        ),
    ] {
        assert_eq!(
            metrics.number(name, &format!("_count{{{labels}}}")),
            count,
            "{name} {labels}"
        );
        assert!(metrics.number(name, &format!("_sum{{{labels}}}")) >= 0.0);
        let buckets: Vec<f64> = metrics.0[name]
            .samples
            .iter()
            .filter(|(found, _)| found.starts_with("_bucket") && found.contains(labels))
            .map(|(_, number)| *number)
            .collect();
        assert!(buckets.len() > 10, "{name} {labels}");
        assert!(buckets.iter().all(|bucket| *bucket <= count));
        let all = metrics.0[name].samples.iter().find(|(found, _)| {
            found.starts_with("_bucket") && found.contains(labels) && found.contains("le=\"+Inf\"")
        });
        assert_eq!(
            all.map(|(_, number)| *number),
            Some(count),
            "{name} {labels}"
        );
    }
}

#[tokio::test]
async fn listeners_clusters_and_ends_are_counted() {
    let (proxy, _upstream, _client) = after_known_calls().await;
    let operator = proxy.operator();

    let metrics = Metrics::read(operator).await;

    for (name, rest, number) in [
        (
            "thalweg_listener_connections_accepted",
            "_total{listener=\"it\"}",
            1.0,
        ),
        (
            "thalweg_listener_connections_live",
            "{listener=\"it\"}",
            1.0,
        ),
        (
            "thalweg_listener_connection_errors",
            "_total{listener=\"it\"}",
            0.0,
        ),
        ("thalweg_cluster_connections", "{cluster=\"main\"}", 1.0),
        ("thalweg_cluster_connected", "_total{cluster=\"main\"}", 1.0),
        ("thalweg_cluster_streams", "{cluster=\"main\"}", 0.0),
        ("thalweg_cluster_pending", "{cluster=\"main\"}", 0.0),
        (
            "thalweg_cluster_connect_failures",
            "_total{cluster=\"down\"}",
            1.0,
        ),
        ("thalweg_cluster_connections", "{cluster=\"down\"}", 0.0),
        ("thalweg_panics", "_total", 0.0),
    ] {
        assert_eq!(metrics.number(name, rest), number, "{name}{rest}");
    }
    let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(metrics.number("thalweg_build_info", version), 1.0);
    for reason in [
        "client_cancelled",
        "upstream_reset",
        "upstream_connect_failed",
        "no_route",
    ] {
        let rest = format!("_total{{reason=\"{reason}\"}}");
        assert_eq!(metrics.number("thalweg_proxy_ends", &rest), 1.0, "{reason}");
    }
    assert_eq!(metrics.sum("thalweg_proxy_ends", ""), 4.0);
}

/// Both ways: what the manual names is printed, and what is printed stands in the manual.
#[tokio::test]
async fn metrics_are_those_of_the_manual() {
    let (proxy, _upstream, _client) = after_known_calls().await;

    let metrics = Metrics::read(proxy.operator()).await;

    let mut named = Vec::new();
    for line in MANUAL.lines().filter(|line| {
        let known = ["| `thalweg_", "| `dapr_", "| `process_"];
        known.iter().any(|begins| line.starts_with(begins))
    }) {
        named.push(line.split('`').nth(1).unwrap().to_owned());
    }
    let mut printed = Vec::new();
    for (name, family) in &metrics.0 {
        assert!(!family.help.is_empty(), "{name} has no help");
        printed.push(match family.kind.as_str() {
            "counter" => format!("{name}_total"),
            // Dapr's own counters have no such suffix, and OpenMetrics knows no counter without it.
            "gauge" | "histogram" | "unknown" => name.clone(),
            other => panic!("{name} is a {other}"),
        });
    }
    named.sort();
    printed.sort();
    assert_eq!(printed, named);
}

/// As Prometheus did before OpenMetrics, and as many agents still do.
#[tokio::test]
async fn metrics_are_told_in_the_older_format_to_those_who_ask_for_no_other() {
    let (proxy, _upstream, _client) = after_known_calls().await;

    for accept in ["*/*", "text/plain;version=0.0.4"] {
        let reply = proxy.operator().metrics_as(accept).await;

        assert!(
            reply
                .head
                .contains("content-type: text/plain; version=0.0.4"),
            "{}",
            reply.head
        );
        let mut types = BTreeMap::new();
        for line in reply.body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|end| {
                    let family = name.strip_suffix(end);
                    family.is_some_and(|family| {
                        types.get(family).is_some_and(|kind| kind == "histogram")
                    })
                });
                assert!(types.contains_key(name) || of_histogram, "{line}");
            }
        }
        assert_eq!(types["thalweg_streams_started_total"], "counter");
        assert_eq!(types["dapr_component_output_binding_count"], "untyped");
        assert!(!reply.body.contains("# EOF"));
    }
}

#[tokio::test]
async fn process_tells_what_it_takes_of_the_machine() {
    let proxy = Running::start("listeners: [{name: it, address: \"127.0.0.1:0\"}]\n").await;

    let metrics = Metrics::read(proxy.operator).await;

    let resident = metrics.number("process_resident_memory_bytes", "");
    let really = proxy.memory() as f64;
    assert!(
        (resident / really - 1.0).abs() < 0.2,
        "{resident}, {really}"
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - metrics.number("process_start_time_seconds", "");
    assert!((-2.0..600.0).contains(&age), "{age} s");
    let open = metrics.number("process_open_fds", "");
    assert!((5.0..200.0).contains(&open), "{open}");
    assert!(metrics.number("process_max_fds", "") > open);
    assert!(metrics.number("process_threads", "") >= 3.0);
    // It is told in hundredths of a second: each answer takes a part of one.
    while Metrics::read(proxy.operator)
        .await
        .number("process_cpu_seconds", "_total")
        == 0.0
    {}
}

#[tokio::test]
async fn endpoints_tell_whether_they_may_get_streams() {
    let upstream = Upstream::start().await.serve(echo);
    let nobody = nobody().await;
    let proxy = Yaml::to(&upstream).and(nobody).start().await;
    let client = Client::connect(&proxy).await;

    for _ in 0..20 {
        client.unary("/e2e.Echo/Talk", b"hello").await;
    }

    let metrics = Metrics::read(proxy.operator()).await;
    let of = |endpoint: &dyn ToString| {
        let labels = format!("{{cluster=\"main\",endpoint=\"{}\"}}", endpoint.to_string());
        metrics.0["thalweg_endpoint_available"].samples[&labels]
    };
    assert_eq!((of(&upstream), of(&nobody)), (1.0, 0.0));
}

#[tokio::test]
async fn streams_are_counted_unless_that_is_unwanted() {
    for (filters, counted) in [("", true), ("filters: []\n", false)] {
        let proxy = Running::start_as_written(&format!(
            "admin: {{address: \"127.0.0.1:0\"}}\n{filters}\
             listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
             clusters: {{main: {{endpoints: [{}]}}}}\n\
             routes: [{{name: main, cluster: main}}]\n",
            nobody().await
        ))
        .await;

        let client = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;
        client.unary("/e2e.Echo/Talk", b"hello").await;

        let metrics = proxy.operator.get("/metrics").await.body;

        let line = "thalweg_streams_started_total{route=\"main\"} 1";
        assert_eq!(metrics.contains(line), counted, "{filters}");
    }
}

#[tokio::test]
async fn live_streams_are_a_gauge() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let (live, cluster) = (
        "thalweg_streams_live{route=\"main\"}",
        "thalweg_cluster_streams{cluster=\"main\"}",
    );
    let operator = proxy.operator();

    let (mut first, second) = (client.call("/a", &[]).await, client.call("/b", &[]).await);
    let (mut one, _two) = (upstream.call().await, upstream.call().await);
    operator.metric_is(live, 2).await;
    operator.metric_is(cluster, 2).await;

    one.finish_with(200, &[("grpc-status", "0")]);
    first.answer().await;
    operator.metric_is(live, 1).await;
    drop(second);
    operator.metric_is(live, 0).await;
    operator.metric_is(cluster, 0).await;
}

#[tokio::test]
async fn scrapes_do_not_wait_for_streams_nor_streams_for_scrapes() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    // More than the admin endpoints take: connections on which nothing is asked.
    let mut silent = Vec::new();
    for _ in 0..300 {
        let admin = proxy.operator().0;
        silent.push(
            within("the kernel accepts", TcpStream::connect(admin))
                .await
                .unwrap(),
        );
    }

    assert_eq!(
        client.unary("/e2e.Echo/Talk", b"hello").await.code(),
        Code::Ok
    );

    drop(silent);
    assert_eq!(proxy.operator().get("/livez").await.status, 200);
}
