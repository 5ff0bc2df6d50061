//! What the configuration file says, and what is said about one that is wrong.
//!
//! Each message is compared with a file in `tests/golden`. To accept new wording, run the tests
//! with `REWRITE_GOLDEN=1` and read the difference.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thalweg::config::{
    self, AuthorityMatch, Backoff, Binding, BindingTarget, Bucket, Config, Destination, Faults,
    PathMatch, Place, Protocol, Route, Secret, Target,
};
use thalweg_filters::chain::Filter;
use thalweg_proto::status::Code;

const MINIMAL: &str = "listeners: [{name: plain, address: 127.0.0.1:8080}]\n";

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("9000".into()),
        "STREAMS" => Some("7".into()),
        "TOKEN" => Some("12345".into()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Faults> {
    config::parse(text, "config.yaml", &env)
}

fn accepted(text: &str) -> Config {
    parse(text).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Compares the faults of a text with a golden file; says how many there are.
fn refused(name: &str, text: &str) -> usize {
    let faults = parse(text).expect_err("the text should be refused");
    assert_golden(name, &faults.to_string());
    faults.len()
}

fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.txt"));
    let actual = format!("{actual}\n");
    if std::env::var_os("REWRITE_GOLDEN").is_some() {
        fs::write(&path, &actual).expect("tests/golden can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{}", path.display());
}

/// A sound file with one route, whose lines are given.
fn with_route(lines: &str) -> String {
    let lines = lines.replace('\n', "\n    ");
    format!(
        "{MINIMAL}clusters:\n  greeter: {{endpoints: [127.0.0.1:1]}}\n  web: {{endpoints: \
         [127.0.0.1:2]}}\nroutes:\n  - name: it\n    {lines}\n"
    )
}

fn targets(route: &Route) -> &[Target] {
    match &route.destination {
        Destination::Clusters(targets) => targets,
        Destination::RoutesBelow => &[],
    }
}

// === the shipped file ===

fn shipped() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.yaml");
    let text = fs::read_to_string(&path).expect("config.yaml is there");
    (path, text)
}

#[test]
fn shipped_file_loads() {
    let (path, _) = shipped();

    let config = config::load(&path).unwrap_or_else(|faults| panic!("{faults}"));

    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.unwrap().address.to_string(), "127.0.0.1:9901");
    let names: Vec<&str> = config.clusters.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["greeter", "web"]);
    assert_eq!(config.clusters[1].protocol, Protocol::Http1);
    assert_eq!(targets(&config.routes[0])[0].cluster, config.clusters[0]);
}

/// Else the file would teach wrong defaults.
#[test]
fn shipped_file_shows_the_defaults() {
    let bare = "
        listeners: [{name: plain, address: 127.0.0.1:8080}]
        filters: [metrics]
        bindings:
          echo: {echo: {}}
          files: {object_store: {url: \"file://./data\"}}
          memory: {object_store: {url: \"memory://\"}}
        clusters:
          greeter: {endpoints: [127.0.0.1:50051]}
          web: {endpoints: [127.0.0.1:8000], protocol: http1}
        routes:
          - {name: greeter, match: {path_prefix: /helloworld.Greeter/}, cluster: greeter}
          - {name: web, match: {path_prefix: /}, cluster: web}
    ";

    assert_eq!(accepted(&shipped().1), accepted(bare));
}

#[test]
fn shipped_file_mentions_every_key() {
    let schema: Value = serde_json::from_str(&config::schema()).unwrap();
    let (_, text) = shipped();

    let mut keys = Vec::new();
    each_schema(&schema, &mut |schema| {
        let properties = schema["properties"].as_object().into_iter().flatten();
        keys.extend(properties.map(|(key, _)| key.clone()));
    });

    assert!(keys.len() > 60, "the schema was walked in full");
    for key in keys {
        let word = format!("{key}:");
        let mut lines = text
            .lines()
            .map(|line| line.trim_start_matches(['#', '-', ' ']));
        let within = |at: &str| text.contains(&format!("{at}{word}"));
        assert!(
            lines.any(|line| line.starts_with(&word)) || within("{") || within(", "),
            "config.yaml does not mention `{key}`",
        );
    }
}

#[test]
fn every_key_is_described_and_every_number_has_its_range() {
    let schema: Value = serde_json::from_str(&config::schema()).unwrap();

    each_schema(&schema, &mut |schema| {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            // A bare reference is a variant, which is described one level up.
            let described = property.get("description").or_else(|| property.get("$ref"));
            assert!(described.is_some(), "`{key}` is not described");
            if matches!(property["format"].as_str(), Some("size" | "count")) {
                assert!(property["minimum"].is_u64(), "`{key}` has no minimum");
                assert!(
                    property["maximum"].as_u64() < Some(1 << 31),
                    "`{key}` has no maximum"
                );
            }
        }
    });
}

fn each_schema(schema: &Value, visit: &mut dyn FnMut(&Value)) {
    match schema {
        Value::Object(entries) => {
            visit(schema);
            entries
                .values()
                .for_each(|schema| each_schema(schema, visit));
        }
        Value::Array(items) => items.iter().for_each(|schema| each_schema(schema, visit)),
        _ => {}
    }
}

#[test]
fn yaml_in_the_module_doc_loads() {
    let source = include_str!("../src/config.rs");
    let doc = source.lines().filter_map(|line| line.strip_prefix("//!"));
    let block = doc.skip_while(|line| *line != " ```yaml").skip(1);
    let block: Vec<&str> = block.take_while(|line| *line != " ```").collect();

    let config = accepted(&block.join("\n"));

    assert_eq!(config.routes[0].name, "greeter");
}

// === what is accepted ===

#[test]
fn one_listener_is_enough() {
    let config = accepted(MINIMAL);

    assert!(config.workers >= 1);
    assert_eq!(config.drain.timeout, Duration::from_secs(25));
    assert_eq!(config.listeners[0].max_connections, 10_000);
    assert!(config.routes.is_empty());
}

#[test]
fn upstream_connections_hold_the_windows_of_all_their_streams() {
    let config = accepted(&format!(
        "{MINIMAL}clusters:\n  a: {{endpoints: [unix:/a], http2: {{stream_window: 1MiB}}, pool: \
         {{max_streams_per_connection: 10}}}}"
    ));

    let http2 = &config.clusters[0].http2;
    assert_eq!(http2.connection_window, 10 << 20);
    assert_eq!(http2.data_frame_budget, 5 << 20);
    assert_eq!(config.clusters[0].endpoints.to_string(), "unix:/a");
}

#[test]
fn wide_stream_windows_widen_the_connection() {
    let text = MINIMAL.replace("8080}", "8080, http2: {stream_window: 2MiB}}");

    assert_eq!(
        accepted(&text).listeners[0].http2.http2.connection_window,
        8 << 20
    );
}

#[test]
fn matches_are_read() {
    let text = with_route(
        "match: {grpc: {service: a.B, method: C}, authority: \"*.Example.test\", headers: {X-Y: z}}
         clusters: [{name: greeter, weight: 80}, {name: web, weight: 20}]
         filters: [metrics: {}]",
    );
    let route = &accepted(&text.replace("\n             ", "\n    ")).routes[0];

    let service = PathMatch::Service {
        service: "a.B".into(),
        method: Some("C".into()),
    };
    assert_eq!(route.matches.path, Some(service));
    let suffix = AuthorityMatch::Suffix(".example.test".into());
    assert_eq!(route.matches.authority, Some(suffix));
    assert_eq!(route.matches.headers[0].0, "x-y");
    let weights: Vec<u32> = targets(route).iter().map(|target| target.weight).collect();
    assert_eq!(weights, [80, 20]);
    assert_eq!(route.filters[0].name(), "metrics");
}

#[test]
fn routes_take_the_default_filters_unless_they_have_their_own() {
    let text = "
        listeners: [{name: plain, address: unix:/x}]
        filters: [metrics]
        clusters: {a: {endpoints: [unix:/a]}}
        routes: [{name: default, cluster: a}, {name: none, cluster: a, filters: []}]
    ";
    let config = accepted(text);

    assert_eq!(config.routes[0].filters.len(), 1);
    assert!(config.routes[1].filters.is_empty());
}

#[test]
fn breaker_in_full_shows_and_reads_back_as_it_was() {
    let text = with_route(
        "cluster: web
filters: [metrics, {circuit_breaker: {max_requests: 3, trip: 'requests > 9'}}]",
    );
    let config = accepted(&text);

    let shown = config.to_json();

    let filters = &shown["routes"][0]["filters"];
    let breaker = serde_json::json!({"circuit_breaker": {
        "max_requests": "3", "interval": "0s", "timeout": "1m", "trip": "requests > 9",
        "statuses": ["DEADLINE_EXCEEDED", "UNAVAILABLE"], "min_deadline": "1s",
    }});
    assert_eq!(*filters, serde_json::json!(["metrics", breaker]));
    let again = accepted(&shown.to_string());
    assert_eq!(again.routes[0].filters, config.routes[0].filters);
}

#[test]
fn route_may_go_on_to_those_below() {
    let text = "
        listeners: [{name: plain, address: unix:/x}]
        clusters: {a: {endpoints: [unix:/a]}}
        routes: [{name: first, continue: true}, {name: last, cluster: a, continue: false}]
    ";
    let config = accepted(text);

    assert_eq!(config.routes[0].destination, Destination::RoutesBelow);
    assert_eq!(targets(&config.routes[1])[0].cluster, config.clusters[0]);
}

#[test]
fn environment_fills_values_quoted_or_not() {
    let text = "
        admin: {token: \"${TOKEN}\"}
        listeners:
          - name: '${NAME:-plain}'
            address: 127.0.0.1:${PORT}
            http2:
              max_concurrent_streams: ${STREAMS}
              stream_window: ${WINDOW:-64KiB}
    ";
    let config = accepted(text);

    let listener = &config.listeners[0];
    assert_eq!(config.admin.unwrap().token.as_deref(), Some("12345"));
    assert_eq!(listener.name, "plain");
    assert_eq!(listener.address.to_string(), "127.0.0.1:9000");
    assert_eq!(listener.http2.max_concurrent_streams, 7);
    assert_eq!(listener.http2.http2.stream_window, 64 << 10);
}

#[test]
fn admin_can_be_switched_off() {
    assert!(accepted(&format!("admin: null\n{MINIMAL}")).admin.is_some());
    assert!(
        accepted(&format!("admin: {{address: none}}\n{MINIMAL}"))
            .admin
            .is_none()
    );
}

// === bindings ===

/// A sound file with the binding `it`, whose lines are given, and a cluster of each kind.
fn with_health_check(keys: &str) -> String {
    let check = format!("health_check: {{{keys}}}");
    format!("{MINIMAL}clusters: {{web: {{endpoints: [127.0.0.1:8000], {check}}}}}\n")
}

fn with_binding(lines: &str) -> String {
    let lines = lines.replace('\n', "\n    ");
    format!(
        "{MINIMAL}clusters:\n  daprs: {{endpoints: [127.0.0.1:1]}}\n  web: {{endpoints: \
         [127.0.0.1:2], protocol: http1}}\nbindings:\n  it:\n    {lines}\n"
    )
}

fn binding(lines: &str) -> Binding {
    (*accepted(&with_binding(lines)).bindings[0]).clone()
}

/// A binding of each kind that says all that it can.
const BINDINGS: &str = "
listeners: [{name: plain, address: 127.0.0.1:8080}]
dapr: {app_id: shop, namespace: test}
filters: [metrics]
clusters: {daprs: {endpoints: [unix:/daprd.sock]}}
bindings:
  echo: {echo: {}}
  orders:
    component: {socket: /orders.sock, instance: other, metadata: {password: hush}, ping: 1m}
    buffer: {max_bytes: 1MiB}
    resiliency:
      timeout: 5s
      retry:
        policy: exponential
        duration: 1s
        max_interval: 30s
        max_retries: 5
        matching: [DEADLINE_EXCEEDED, 14, 4]
        replay_bytes: 1KiB
      circuit_breaker: {max_requests: 2, interval: 1m, timeout: 30s, trip: totalFailures > 2}
    timeouts: {stall: 1s}
    filters: []
  remote: {dapr: {cluster: daprs}, resiliency: {retry: {}, circuit_breaker: {}}}
  stock: {component: {address: 127.0.0.1:50051}}
  webhook: {http: {url: \"http://hooks.test:81/in?code=hush\", method: PUT, protocol: http2}}
component_sockets: {folder: /sockets, interval: 2s, max: 7}
";

#[test]
fn bindings_are_read() {
    let config = accepted(BINDINGS);

    assert_eq!(
        (&*config.dapr.app_id, &*config.dapr.namespace),
        ("shop", "test")
    );
    let names: Vec<&str> = config.bindings.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["echo", "orders", "remote", "stock", "webhook"]);
    let [echo, orders, remote, stock, webhook] = &*config.bindings else {
        unreachable!("there are five")
    };
    assert_eq!(echo.target, BindingTarget::Echo);
    assert_eq!((echo.filters.len(), orders.filters.len()), (2, 0));

    let BindingTarget::Component(component) = &orders.target else {
        panic!("{orders:?}")
    };
    assert_eq!(component.cluster.name, "binding/orders");
    assert_eq!(component.cluster.label, "binding orders");
    assert_eq!(component.cluster.endpoints.to_string(), "unix:/orders.sock");
    assert_eq!(
        (&*component.instance, &*component.metadata["password"]),
        ("other", "hush")
    );
    let retry = orders.resiliency.retry.as_ref().unwrap();
    let backoff = Backoff::Exponential {
        first: Duration::from_secs(1),
        max_interval: Duration::from_secs(30),
    };
    assert_eq!(retry.backoff, backoff);
    assert_eq!(retry.matching, [Code::DeadlineExceeded, Code::Unavailable]);

    let cluster = config.clusters[0].clone();
    assert_eq!(cluster.label, "cluster daprs");
    assert_eq!(remote.target, BindingTarget::Dapr { cluster });
    assert_eq!(
        config.clusters.len(),
        1,
        "those of bindings are not among them"
    );

    let BindingTarget::Component(component) = &stock.target else {
        panic!("{stock:?}")
    };
    assert_eq!(component.cluster.endpoints.to_string(), "127.0.0.1:50051");
    assert_eq!(component.instance, "stock");

    let BindingTarget::Http(http) = &webhook.target else {
        panic!("{webhook:?}")
    };
    assert_eq!(http.cluster.endpoints.to_string(), "hooks.test:81");
    assert_eq!(http.cluster.protocol, Protocol::Http2);
    assert_eq!(http.authority, "hooks.test:81");
    assert_eq!(http.path_and_query, "/in?code=hush");
    assert_eq!(http.method, Some(http::Method::PUT));
}

#[test]
fn store_is_chosen_by_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, " hush \n").unwrap();
    let read = |url: &str, more: &str| {
        let BindingTarget::ObjectStore(store) =
            binding(&format!("object_store: {{url: \"{url}\"{more}}}")).target
        else {
            panic!("{url}")
        };
        store
    };
    let at = |name: &str, prefix: &str, endpoint: Option<&str>| Bucket {
        name: name.into(),
        prefix: prefix.into(),
        endpoint: endpoint.map(Into::into),
    };
    let hush = Some(Secret {
        file: secret.clone(),
        text: "hush".into(),
    });
    let file = secret.display();

    let files = read("file://./data", "");
    assert_eq!(files.place, Place::Files("./data".into()));
    assert_eq!(files.part_size, 1 << 20);
    assert_eq!(read("file:///data", "").place, Place::Files("/data".into()));
    let memory = read("memory://", ", max_bytes: 1KiB").place;
    assert_eq!(memory, Place::Memory { max_bytes: 1024 });
    let more = format!(
        ", endpoint: \"http://a.test:9/\", access_key_id: me, secret_access_key_file: {file}"
    );
    let s3 = read("s3://bucket/some/prefix/", &more);
    assert_eq!(s3.part_size, 8 << 20);
    assert!(!format!("{s3:?}").contains("hush"), "{s3:?}");
    let expected = Place::S3 {
        bucket: at("bucket", "some/prefix", Some("http://a.test:9")),
        region: None,
        access_key_id: Some("me".into()),
        secret_access_key: hush.clone(),
        session_token: None,
    };
    assert_eq!(s3.place, expected);
    let more = format!(", account: me, account_key_file: {file}, part_size: 64KiB");
    let expected = Place::Azure {
        bucket: at("container", "", None),
        account: Some("me".into()),
        account_key: hush.clone(),
    };
    assert_eq!(read("az://container", &more).place, expected);
    let expected = Place::Google {
        bucket: at("bucket", "", None),
        service_account: hush,
    };
    let more = format!(", service_account_file: {file}");
    assert_eq!(read("gs://bucket/", &more).place, expected);
    let url = "https://a.test/objects".to_owned();
    assert_eq!(
        read("https://a.test/objects/", "").place,
        Place::Http { url }
    );
}

#[test]
fn url_has_a_port_and_a_path_of_its_own_or_the_usual_ones() {
    let read = |url: &str| {
        let BindingTarget::Http(http) = binding(&format!("http: {{url: \"{url}\"}}")).target else {
            panic!("{url}")
        };
        assert_eq!(
            (http.cluster.protocol, http.method),
            (Protocol::Http1, None)
        );
        (
            http.cluster.endpoints.to_string(),
            http.path_and_query.to_string(),
        )
    };

    assert_eq!(
        read("http://localhost"),
        ("127.0.0.1:80".into(), "/".into())
    );
    assert_eq!(
        read("http://[::1]:81/a/b"),
        ("[::1]:81".into(), "/a/b".into())
    );
    assert_eq!(
        read("HTTP://a.test?x=1"),
        ("a.test:80".into(), "/?x=1".into())
    );
}

#[test]
fn clusters_of_bindings_have_the_defaults_of_clusters() {
    let config = accepted(
        "{listeners: [{name: a, address: unix:/x}], clusters: {a: {endpoints: [unix:/a]}}, \
         bindings: {a: {component: {socket: /a}}}}",
    );

    let BindingTarget::Component(component) = &config.bindings[0].target else {
        panic!("{:?}", config.bindings)
    };
    let mut cluster = (*component.cluster).clone();
    cluster.name = "a".into();
    cluster.label = "cluster a".into();
    assert_eq!(cluster, *config.clusters[0]);
}

#[test]
fn discovered_binding_is_as_one_that_says_nothing_else() {
    let written = accepted(&format!(
        "{MINIMAL}filters: [metrics]\nbindings: {{it: {{component: {{socket: /it.sock}}}}}}\n"
    ));

    let filters = written.binding_filters();
    let found = Binding::discovered("it", Path::new("/it.sock"), &filters);

    assert_eq!(found, *written.bindings[0]);
    let names: Vec<&str> = found.filters.iter().map(Filter::name).collect();
    assert_eq!(names, ["metrics", "sequence"]);
}

#[test]
fn folder_of_sockets_is_written_or_comes_from_the_environment() {
    let folder = |lines: &str, variables: &[(&str, &str)]| {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let config = config::parse(&format!("{MINIMAL}{lines}"), "config.yaml", &env);
        let sockets = config
            .unwrap_or_else(|faults| panic!("{faults}"))
            .component_sockets;
        sockets.map(|sockets| sockets.folder.display().to_string())
    };
    let set = [
        ("DAPR_COMPONENTS_SOCKETS_FOLDER", ""),
        ("DAPR_COMPONENT_SOCKET_FOLDER", "/third"),
        ("DAPR_COMPONENT_SOCKETS_FOLDER", "/second"),
    ];

    assert_eq!(folder("", &[]), None);
    assert_eq!(folder("", &set).as_deref(), Some("/second"));
    assert_eq!(
        folder("component_sockets: {max: 5}", &set).as_deref(),
        Some("/second")
    );
    assert_eq!(
        folder("component_sockets: /mine", &set).as_deref(),
        Some("/mine")
    );
    assert_eq!(folder("component_sockets: none", &set), None);
}

#[test]
fn json_is_yaml_too() {
    let json = r#"{"listeners": [{"name": "plain", "address": "127.0.0.1:8080"}]}"#;

    assert_eq!(accepted(json), accepted(MINIMAL));
}

// === what is shown ===

#[test]
fn what_is_shown_loads_back() {
    let text = with_route(
        "match: {path: /a, authority: \"*\", headers: {x-a: b}}\nclusters: [{name: web, weight: 3}]",
    );
    let bindings = BINDINGS
        .replace("metadata: {password: hush}, ", "")
        .replace("?code=hush", "");
    let retries = with_route(
        "cluster: web\nretry: {max_retries: 3, matching: [UNAVAILABLE, 4], max_interval: 1s, budget: {burst: 7}}",
    );
    let checked =
        with_health_check("http: {path: /healthz, expect: 204}, interval: 1s, unhealthy: 1");
    let goes_on = with_route("continue: true") + "  - {name: web, cluster: web}\n";
    for text in [
        &text,
        &goes_on,
        &retries,
        &checked,
        &bindings,
        &shipped().1,
        &format!("admin: {{address: none}}\n{MINIMAL}"),
    ] {
        let config = accepted(text);
        assert_eq!(accepted(&config.to_json().to_string()), config);
    }
}

#[test]
fn secrets_are_not_shown() {
    for text in [&format!("admin: {{token: hush}}\n{MINIMAL}"), BINDINGS] {
        let config = accepted(text);

        assert!(!format!("{config:?}").contains("hush"));
        assert!(!config.to_json().to_string().contains("hush"));
    }
    let shown = accepted(BINDINGS).to_json();
    let metadata = &shown["bindings"]["orders"]["component"]["metadata"];
    assert_eq!(*metadata, serde_json::json!({"password": "***"}));
}

// === what is refused, and in which words ===

#[test]
fn faults_of_every_kind_are_told_at_once_in_the_order_of_lines() {
    let text = "\
admin:
  adress: 0.0.0.0:9901
listeners:
  - name: plain
    address: localhost
    timeouts: {stall: 5}
  - name: plain
    address: 127.0.0.1:${NO_SUCH_PORT}
    tunnel: {}
clusters:
  greeter:
    endpoints: 127.0.0.1:50051
    http2: {max_frame_size: 2MiB}
routes:
  - name: greeter
    match: {path_prefix: helloworld.Greeter}
    cluster: greter
  - cluster: greeter
    filters: [metric]
";
    assert_eq!(refused("all_at_once", text), 12);
}

#[test]
fn one_mistake_is_told_once() {
    let typo = "listeners: [{name: a, adress: unix:/a}]";
    assert_eq!(
        parse(typo).unwrap_err().len(),
        1,
        "the key is not also missing"
    );

    let both = "listeners: [{name: a, adress: unix:/a, address: b}]";
    assert_eq!(
        parse(both).unwrap_err().len(),
        2,
        "the other key has its own fault"
    );

    let filters = format!("{MINIMAL}filters: [metrics, {{metric: {{}}}}]");
    assert_eq!(
        parse(&filters).unwrap_err().len(),
        1,
        "no filter is there twice"
    );

    let list = format!("{MINIMAL}clusters: []\nroutes: [{{name: a, cluster: b}}]");
    assert_eq!(
        parse(&list).unwrap_err().len(),
        1,
        "the cluster is not also unknown"
    );

    let item = "listeners: [5, {name: a, address: unix:/a}]";
    assert_eq!(
        parse(item).unwrap_err().len(),
        1,
        "the name is not also missing"
    );
}

/// Whatever stands in place of a value, the schema tells it, with a line; the types never do.
#[test]
fn any_wrong_value_is_told_with_its_place() {
    let (_, text) = shipped();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        let Some((key, _)) = line.split_once(": ") else {
            continue;
        };
        for wrong in [
            "",
            "[]",
            "[[]]",
            "{}",
            "{a: b}",
            "-1",
            "1.5",
            "true",
            "x y",
            "99999999999",
        ] {
            let text = text.replacen(line, &format!("{key}: {wrong}"), 1);
            for told in parse(&text).err().iter().map(ToString::to_string) {
                assert!(told.starts_with("config.yaml:"), "{key}: {wrong}\n{told}");
                let place = told["config.yaml:".len()..].split(':').next();
                assert!(
                    place.is_some_and(|line| line.parse::<u32>().is_ok()),
                    "{told}"
                );
            }
        }
    }
}

#[test]
fn missing_file() {
    let faults = config::load(Path::new("no/such/config.yaml")).unwrap_err();

    assert_golden("missing_file", &faults.to_string());
}

/// One test for each fault: its name, which is that of the golden file, and the text.
macro_rules! refused {
    ($($name:ident: $text:expr;)*) => {$(
        #[test]
        fn $name() {
            refused(stringify!($name), $text);
        }
    )*};
}

refused! {
    // The file as such.
    syntax: "listeners:\n  - name: plain\n    address: [::1]:8080\n";
    bare_star: &with_route("match: {authority: *.example.test}\ncluster: web");
    key_twice: "admin:\n  address: none\n  address: none\n";
    two_documents: "admin: {}\n---\nadmin: {}\n";
    empty_file: "";

    // Keys, kinds and ranges.
    unknown_key: "listeners:\n  - name: plain\n    adress: 127.0.0.1:8080\n";
    unknown_key_unlike_any: &format!("{MINIMAL}no_such_key: 1\n");
    missing_key: "listeners:\n  - name: plain\n";
    no_listeners: "listeners: []\n";
    empty_name: "listeners:\n  - name: ''\n    address: unix:/x\n";
    text_instead_of_list: &format!("{MINIMAL}clusters:\n  a:\n    endpoints: unix:/a\n");
    number_instead_of_text: "listeners:\n  - name: 5\n    address: unix:/x\n";
    nothing_instead_of_map: &format!("{MINIMAL}clusters:\n  greeter:\n");
    bad_duration: &format!("{MINIMAL}drain:\n  timeout: 5\n");
    bad_size: &MINIMAL.replace("8080}", "8080, http2: {stream_window: 64KB}}");
    bad_number: &format!("{MINIMAL}workers: two\n");
    size_out_of_range: &MINIMAL.replace("8080}", "8080, http2: {max_frame_size: 2MiB}}");
    zero_connections: &MINIMAL.replace("8080}", "8080, max_connections: 0}");
    zero_duration: &MINIMAL.replace("8080}", "8080, timeouts: {preface: 0s}}");
    unknown_protocol: &format!("{MINIMAL}clusters:\n  a: {{endpoints: [unix:/a], protocol: h2}}\n");

    // The environment.
    variable_not_set: "listeners:\n  - name: plain\n    address: \"127.0.0.1:${NONE}\"\n";
    variable_not_closed: "listeners:\n  - name: ${NONE\n    address: unix:/x\n";

    // Files as other hands leave them.
    tabs: "listeners:\n\t- name: plain\n";
    indents: "listeners:\n  - name: plain\n   address: 127.0.0.1:1\n";
    long_line: &format!(
        "{MINIMAL}clusters: {{some: {{endpoints: [127.0.0.1:1]}}, wrong: {{endpoint: [127.0.0.1:1]}}{}}}\n",
        (0..1000)
            .map(|index| format!(", c{index}: {{endpoints: [127.0.0.1:1]}}"))
            .collect::<String>(),
    );

    // Addresses.
    address_without_port: "listeners:\n  - name: plain\n    address: 127.0.0.1\n";
    host_name: &format!("{MINIMAL}clusters:\n  a:\n    endpoints: [greeter.svc:50051]\n");
    endpoint_is_a_url: &format!("{MINIMAL}clusters:\n  a:\n    endpoints: [\"https://10.0.0.7:443\"]\n");
    endpoint_port_zero: &format!("{MINIMAL}clusters:\n  a:\n    endpoints: [127.0.0.1:0]\n");
    admin_without_token: &format!("admin:\n  address: 0.0.0.0:9901\n{MINIMAL}");
    admin_on_socket: &format!("admin:\n  address: unix:/x\n{MINIMAL}");
    address_taken: "listeners:\n  - {name: a, address: unix:/x}\n  - {name: b, address: unix:/x}\n";
    address_within_another: "listeners:\n  - {name: a, address: \"0.0.0.0:80\"}\n  - {name: b, address: \"127.0.0.1:80\"}\n";
    address_within_that_of_ipv6: "listeners:\n  - {name: a, address: \"127.0.0.1:80\"}\n  - {name: b, address: \"[::]:80\"}\n";
    address_of_admin: "listeners:\n  - name: plain\n    address: 127.0.0.1:9901\n";

    // Names.
    listener_name_taken:
        "listeners:\n  - {name: a, address: unix:/x}\n  - {name: a, address: unix:/y}\n";
    route_name_taken: &with_route("cluster: web").replace(
        "routes:\n",
        "routes:\n  - name: it\n    cluster: greeter\n",
    );
    unknown_cluster: &with_route("cluster: greter");
    no_clusters: &format!("{MINIMAL}routes: [{{name: a, cluster: b}}]\n");

    // Windows.
    narrow_connection:
        &MINIMAL.replace("8080}", "8080, http2: {stream_window: 4MiB, connection_window: 8MiB}}");
    wide_streams: &format!(
        "{MINIMAL}clusters:\n  a:\n    endpoints: [unix:/a]\n    http2: {{stream_window: 64MiB}}\n"
    );

    // Routes.
    cluster_and_clusters: &with_route("cluster: web\nclusters: [{name: web, weight: 1}]");
    no_cluster: &with_route("match: {path: /}");
    no_endpoints: &format!("{MINIMAL}clusters:\n  a: {{endpoints: []}}\n");
    zero_weights: &with_route("clusters: [{name: web, weight: 0}, {name: greeter, weight: 0}]");
    path_without_slash: &with_route("match: {path: status}\ncluster: web");
    path_with_query: &with_route("match: {path: /status?verbose}\ncluster: web");
    two_paths: &with_route("match: {path: /a, path_prefix: /b}\ncluster: web");
    service_is_a_path: &with_route("match: {grpc: {service: /a.B/C}}\ncluster: web");
    filter_of_others: &format!("{MINIMAL}filters: [{{ratelimit: {{}}}}, gzip]\n");
    service_is_a_glob: &with_route("match: {grpc: {service: shop.v1.*, method: \"Un*\"}}\ncluster: web");
    authority_is_a_url: &with_route("match: {authority: \"api.example.test/x\"}\ncluster: web");
    stray_star: &with_route("match: {authority: \"api.*.test\"}\ncluster: web");
    bad_header_name: &with_route("match: {headers: {\"x tenant\": blue}}\ncluster: web");
    pseudo_header: &with_route("match: {headers: {\":authority\": blue}}\ncluster: web");
    bad_header_value: &with_route("match: {headers: {x-tenant: \"a\\nb\"}}\ncluster: web");

    nothing_below: &with_route("continue: true");
    cluster_and_continue: &with_route("cluster: web\ncontinue: true")
        .replace("true\n", "true\n  - {name: web, cluster: web}\n");
    health_check_asks_nothing: &with_health_check("interval: 1s");
    health_check_asks_twice: &with_health_check("grpc: {}, tcp: {}");
    health_check_of_no_path: &with_health_check("http: {path: healthz}");
    health_check_by_grpc_over_http1: &with_health_check("grpc: {}")
        .replace("grpc: {}}", "grpc: {}}, protocol: http1");
    retry_of_success: &with_route("cluster: web\nretry: {matching: [OK, UNAVAILABLE]}");
    retry_waits_shrink: &with_route("cluster: web\nretry: {duration: 6s}");
    retries_above: &with_route("continue: true\nretry: {max_retries: 0}")
        .replace("0}\n", "0}\n  - {name: web, cluster: web}\n");
    timeouts_above: &with_route("continue: true\ntimeouts: {stall: 1s}")
        .replace("1s}\n", "1s}\n  - {name: web, cluster: web}\n");
    cluster_like_binding: &format!("{MINIMAL}clusters: {{binding/a: {{endpoints: [unix:/a]}}}}\n");

    // Bindings.
    binding_without_target: &with_binding("buffer: {max_bytes: 1MiB}");
    binding_with_two_targets: &with_binding("echo: {}\ndapr: {cluster: daprs}");
    binding_target_misspelt: &with_binding("componnt: {socket: /x}");
    binding_name_empty: &with_binding("echo: {}").replace("  it:", "  \"\":");
    binding_name_is_a_path: &with_binding("echo: {}").replace("  it:", "  a/b:");
    component_without_socket: &with_binding("component: {}");
    component_with_socket_and_address:
        &with_binding("component: {socket: /x, address: 127.0.0.1:1}");
    component_socket_is_an_address: &with_binding("component: {socket: unix:/x}");
    component_instance_not_ascii:
        &with_binding("component: {socket: /x}").replace("  it:", "  bücher:");
    dapr_without_cluster: &with_binding("dapr: {}");
    dapr_unknown_cluster: &with_binding("dapr: {cluster: dapr}");
    dapr_over_http1: &with_binding("dapr: {cluster: web}");
    store_url_unknown: &with_binding("object_store: {url: \"ftp://there\"}");
    store_without_folder: &with_binding("object_store: {url: \"file://\"}");
    store_memory_with_place: &with_binding("object_store: {url: \"memory://there\"}");
    store_without_bucket: &with_binding("object_store: {url: \"s3://\"}");
    store_prefix_climbs: &with_binding("object_store: {url: \"s3://bucket/a/../b\"}");
    store_key_of_another: &with_binding(
        "object_store: {url: \"file://./data\", region: here, account: me, max_bytes: 1MiB}"
    );
    store_id_without_secret: &with_binding("object_store: {url: \"s3://bucket\", access_key_id: me}");
    store_secret_missing: &with_binding(
        "object_store: {url: \"az://bucket\", account_key_file: /nowhere/key}"
    );
    store_endpoint_no_url: &with_binding("object_store: {url: \"s3://bucket\", endpoint: \"localhost:9\"}");
    store_part_too_small: &with_binding("object_store: {url: \"s3://bucket\", part_size: 1MiB}");
    origin_with_a_path: "listeners: [{name: it, address: \"127.0.0.1:1\", allowed_origins: [\"https://app.test/x\", \"*\"]}]";
    proxy_networks: "listeners: [{name: it, address: \"127.0.0.1:1\", proxy_protocol: {trusted: [10.1.0.0/8, 10.0.0.0/40, balancer]}}]";
    proxy_without_networks: "listeners: [{name: it, address: \"127.0.0.1:1\", proxy_protocol: {trusted: []}}]";
    proxy_on_a_socket: "listeners: [{name: it, address: \"unix:/run/it.sock\", proxy_protocol: {trusted: [10.0.0.0/8]}}]";
    forwarded_networks: "listeners: [{name: it, address: \"127.0.0.1:1\", forwarded: {trusted: [10.1.0.0/8, unix, edge]}}]";
    forwarded_on_a_socket: "listeners: [{name: it, address: \"unix:/run/it.sock\", forwarded: {trusted: [unix, 10.0.0.0/8]}}]";
    hops_without_end: "listeners: [{name: it, address: \"127.0.0.1:1\", max_hops: 33}]";
    paths_misspelt: "listeners: [{name: it, address: \"127.0.0.1:1\", paths: normalise}]";
    tls_for_a_url_without: &with_binding("http: {url: \"http://hooks.test/in\", tls: {}}");
    url_without_scheme: &with_binding("http: {url: hooks.test/in}");
    url_with_user: &with_binding("http: {url: \"http://me:secret@hooks.test/in\"}");
    url_with_fragment: &with_binding("http: {url: \"http://hooks.test/in#there\"}");
    url_with_bad_port: &with_binding("http: {url: \"http://hooks.test:99999/in\"}");
    url_without_host: &with_binding("http: {url: \"http://h$$ks.test/in\"}");
    method_not_a_token: &with_binding("http: {url: \"http://a.test\", method: \"PO ST\"}");
    method_in_small_letters: &with_binding("http: {url: \"http://a.test\", method: post}");
    method_connect: &with_binding("http: {url: \"http://a.test\", method: CONNECT}");
    retry_unknown_policy: &with_binding("echo: {}\nresiliency: {retry: {policy: linear}}");
    retry_constant_with_longest:
        &with_binding("echo: {}\nresiliency: {retry: {max_interval: 1m}}");
    retry_first_over_longest:
        &with_binding("echo: {}\nresiliency: {retry: {policy: exponential, duration: 2m}}");
    retry_for_ever: &with_binding("echo: {}\nresiliency: {retry: {max_retries: -1}}");
    retry_unknown_status:
        &with_binding("echo: {}\nresiliency: {retry: {matching: [UNAVAILBLE]}}");
    retry_status_out_of_range: &with_binding("echo: {}\nresiliency: {retry: {matching: [0]}}");
    breaker_unknown_key:
        &with_binding("echo: {}\nresiliency: {circuit_breaker: {max_request: 1}}");
    sockets_list: &format!("{MINIMAL}component_sockets: [/tmp]\n");

    // Filters.
    unknown_filter: &with_route("cluster: web\nfilters: [metric]");
    unknown_filter_in_map: &with_route("cluster: web\nfilters: [{metric: {}}]");
    unknown_key_in_filter: &with_route("cluster: web\nfilters: [{metrics: {bucket: 1}}]");
    bad_trip: &with_route("cluster: web\nfilters: [{circuit_breaker: {trip: consecutiveFailure > 5}}]");
    breaker_without_timeout: &with_route("cluster: web\nfilters: [{circuit_breaker: {timeout: 0s}}]");
    filter_twice: &with_route("cluster: web\nfilters: [metrics, {metrics: {}}]");
}

// === TLS ===

/// A folder with a good pair, `a.pem` and `a.key`, another, `b.pem` and `b.key`, and a root, `ca.pem`.
fn certificates() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a", "b"] {
        let made = rcgen::generate_simple_self_signed([format!("{name}.test")]).expect("a pair");
        let write = |ending: &str, text: &str| {
            fs::write(folder.path().join(format!("{name}.{ending}")), text).expect("a file");
        };
        write("pem", &made.cert.pem());
        write("key", &made.signing_key.serialize_pem());
    }
    fs::copy(folder.path().join("a.pem"), folder.path().join("ca.pem")).expect("a file");
    folder
}

/// A file whose one listener has these keys below `tls`.
fn with_tls(lines: &str) -> String {
    let lines = lines.replace('\n', "\n      ");
    format!("listeners:\n  - name: it\n    address: 127.0.0.1:8443\n    tls:\n      {lines}\n")
}

/// Compares with a golden file; the variable `DIR` is the folder.
fn tls_refused(name: &str, folder: &Path, lines: &str) {
    let dir = folder.display().to_string();
    let env = |name: &str| (name == "DIR").then(|| dir.clone());
    let faults = config::parse(&with_tls(lines), "config.yaml", &env).expect_err(name);
    assert_golden(name, &faults.to_string());
}

#[test]
fn tls_shows_and_reads_back_as_it_was() {
    let folder = certificates();
    let dir = folder.path().display();
    let lines = format!(
        "certificates: [{{cert: {dir}/a.pem, key: {dir}/a.key}}, {{cert: {dir}/b.pem, key: \
         {dir}/b.key}}]\nclient_ca: {dir}/ca.pem\nclient_auth: optional\nreload_interval: 1m"
    );
    let config = accepted(&with_tls(&lines));

    let tls = config.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates.len(), 2);
    let clients = tls.clients.as_ref().unwrap();
    assert_eq!(clients.auth, config::ClientAuth::Optional);
    assert_eq!(tls.reload_interval, Duration::from_secs(60));
    let again = accepted(&config.to_json().to_string());
    assert_eq!(again.listeners, config.listeners);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn client_certificates_are_required_unless_said_otherwise() {
    let folder = certificates();
    let dir = folder.path().display();
    let lines =
        format!("certificates: [{{cert: {dir}/a.pem, key: {dir}/a.key}}]\nclient_ca: {dir}/ca.pem");

    let tls = accepted(&with_tls(&lines)).listeners[0]
        .tls
        .clone()
        .unwrap();

    assert_eq!(tls.clients.unwrap().auth, config::ClientAuth::Required);
    assert_eq!(tls.reload_interval, Duration::from_secs(5));
}

#[test]
fn tls_files_that_are_no_good_are_told() {
    let folder = certificates();
    let dir = folder.path();
    fs::write(dir.join("empty.pem"), "").unwrap();
    fs::write(
        dir.join("damaged.pem"),
        "-----BEGIN CERTIFICATE-----\nMAAC\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fs::write(
        dir.join("encrypted.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAC\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    fs::write(
        dir.join("bad.crl"),
        "-----BEGIN X509 CRL-----\nMAAC\n-----END X509 CRL-----\n",
    )
    .unwrap();
    let good = "certificates: [{cert: '${DIR}/a.pem', key: '${DIR}/a.key'}]";
    for (name, lines) in [
        (
            "tls_no_such_files",
            "certificates: [{cert: '${DIR}/none.pem', key: '${DIR}/none.key'}]\nclient_ca: '${DIR}/none.pem'",
        ),
        (
            "tls_file_is_a_folder",
            "certificates: [{cert: '${DIR}', key: '${DIR}/a.key'}]",
        ),
        (
            "tls_empty_files",
            "certificates: [{cert: '${DIR}/empty.pem', key: '${DIR}/empty.pem'}]\nclient_ca: '${DIR}/empty.pem'\nclient_crls: ['${DIR}/empty.pem']",
        ),
        (
            "tls_damaged_certificate",
            "certificates: [{cert: '${DIR}/damaged.pem', key: '${DIR}/a.key'}]\nclient_ca: '${DIR}/damaged.pem'",
        ),
        (
            "tls_swapped_files",
            "certificates: [{cert: '${DIR}/a.key', key: '${DIR}/a.pem'}]",
        ),
        (
            "tls_encrypted_key",
            "certificates: [{cert: '${DIR}/a.pem', key: '${DIR}/encrypted.key'}]",
        ),
        (
            "tls_key_of_another",
            "certificates:\n  - {cert: '${DIR}/a.pem', key: '${DIR}/a.key'}\n  - {cert: '${DIR}/b.pem', key: '${DIR}/a.key'}",
        ),
        ("tls_no_certificates", "certificates: []"),
        (
            "tls_clients_without_ca",
            &format!("{good}\nclient_auth: required\nclient_crls: []"),
        ),
        (
            "tls_unknown_auth",
            &format!("{good}\nclient_ca: '${{DIR}}/ca.pem'\nclient_auth: requird"),
        ),
        (
            "tls_bad_crl",
            &format!("{good}\nclient_ca: '${{DIR}}/ca.pem'\nclient_crls: ['${{DIR}}/bad.crl']"),
        ),
    ] {
        tls_refused(name, dir, lines);
    }
}

/// A file whose one cluster has these endpoints, and these keys below `tls`.
fn with_upstream_tls(endpoint: &str, lines: &str) -> String {
    let lines = lines.replace('\n', "\n      ");
    format!(
        "listeners: [{{name: it, address: \"127.0.0.1:8080\"}}]\nclusters:\n  main:\n    endpoints: \
         [\"{endpoint}\"]\n    tls:\n      {lines}\n"
    )
}

#[test]
fn proxy_protocol_shows_and_reads_back_as_it_was() {
    let yaml = "listeners: [{name: it, address: \"127.0.0.1:1\", proxy_protocol: {trusted: [10.0.0.0/8, \"fd00::/8\", 192.0.2.7]}}]";
    let config = accepted(yaml);
    let trusted = &config.listeners[0].proxy_protocol.as_ref().unwrap().trusted;
    let shown: Vec<_> = trusted.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]);
    let again = accepted(&config.to_json().to_string());
    assert_eq!(again.listeners, config.listeners);
}

#[test]
fn what_a_listener_lets_in_shows_and_reads_back_as_it_was() {
    for keys in [
        "address: \"127.0.0.1:1\", forwarded: {trusted: [10.0.0.0/8], set: false}, paths: normalize, max_hops: 3",
        "address: \"unix:/run/it.sock\", forwarded: {trusted: [unix]}, paths: pass",
    ] {
        let config = accepted(&format!("listeners: [{{name: it, {keys}}}]"));
        let again = accepted(&config.to_json().to_string());
        assert_eq!(again.listeners, config.listeners);
    }
}

#[test]
fn upstream_tls_shows_and_reads_back_as_it_was() {
    let folder = certificates();
    let dir = folder.path().display();
    let lines = format!(
        "ca: {dir}/ca.pem\nserver_name: backend.test\ncertificate: {{cert: {dir}/a.pem, key: \
         {dir}/a.key}}\nreload_interval: 1m"
    );
    let config = accepted(&with_upstream_tls("unix:/run/x.sock", &lines));
    let tls = config.clusters[0].tls.as_ref().unwrap();
    assert_eq!(tls.server_name.as_ref().unwrap().to_str(), "backend.test");
    let again = accepted(&config.to_json().to_string());
    assert_eq!(again.clusters, config.clusters);

    let binding = format!("http: {{url: \"https://[::1]/in\", tls: {{ca: {dir}/ca.pem}}}}");
    let config = accepted(&with_binding(&binding));
    let again = accepted(&config.to_json().to_string());
    assert_eq!(again.bindings, config.bindings);
    let BindingTarget::Http(target) = &config.bindings[0].target else {
        panic!("{:?}", config.bindings)
    };
    let tls = target.cluster.tls.as_ref().unwrap();
    assert_eq!(tls.server_name.as_ref().unwrap().to_str(), "::1");
    assert_eq!(target.cluster.endpoints.to_string(), "[::1]:443");
}

#[test]
fn upstream_tls_that_is_no_good_is_told() {
    let folder = certificates();
    let dir = folder.path();
    for (name, endpoint, lines) in [
        (
            "upstream_tls_no_such_files",
            "127.0.0.1:1",
            "ca: '${DIR}/none.pem'\ncertificate: {cert: '${DIR}/none.pem', key: '${DIR}/none.key'}",
        ),
        (
            "upstream_tls_key_of_another",
            "127.0.0.1:1",
            "ca: '${DIR}/ca.pem'\ncertificate: {cert: '${DIR}/a.pem', key: '${DIR}/b.key'}",
        ),
        (
            "upstream_tls_name_with_port",
            "127.0.0.1:1",
            "server_name: backend.test:443",
        ),
        (
            "upstream_tls_socket_without_name",
            "unix:/run/x.sock",
            "ca: '${DIR}/ca.pem'",
        ),
    ] {
        let text = with_upstream_tls(endpoint, lines);
        let dir = dir.display().to_string();
        let env = |name: &str| (name == "DIR").then(|| dir.clone());
        let faults = config::parse(&text, "config.yaml", &env).expect_err(name);
        assert_golden(name, &faults.to_string());
    }
}

#[test]
fn pings_that_grpc_servers_do_not_permit_are_a_warning_and_none_are_not() {
    let with = |keys: &str| {
        let keepalive = format!("http2: {{keepalive: {{{keys}}}}}");
        format!("{MINIMAL}clusters: {{web: {{endpoints: [127.0.0.1:8000], {keepalive}}}}}\n")
    };
    let often = accepted(&with("interval: 1m")).warnings;

    let [warning] = often.as_slice() else {
        panic!("{often:?}")
    };
    assert!(
        warning.contains("clusters.web.http2.keepalive.interval: "),
        "{warning}"
    );
    for keys in ["interval: 0s", "interval: 5m", "timeout: 1s"] {
        let config = accepted(&with(keys));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(accepted(&config.to_json().to_string()), config);
    }
}

#[test]
fn certificate_that_no_client_will_get_is_a_warning() {
    let folder = certificates();
    let dir = folder.path().display();
    let params = rcgen::CertificateParams::default();
    let key = rcgen::KeyPair::generate().unwrap();
    let nameless = params.self_signed(&key).unwrap().pem();
    fs::write(folder.path().join("c.pem"), nameless).unwrap();
    fs::write(folder.path().join("c.key"), key.serialize_pem()).unwrap();
    let lines = format!(
        "certificates:\n  - {{cert: {dir}/a.pem, key: {dir}/a.key}}\n  - {{cert: {dir}/c.pem, key: {dir}/c.key}}"
    );

    let warnings = accepted(&with_tls(&lines)).warnings;

    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}")
    };
    let place = "config.yaml:7:18: listeners[0].tls.certificates[1].cert: ";
    assert!(warning.starts_with(place), "{warning}");
}

#[test]
fn globs_and_regular_expressions_in_paths_are_worth_a_look() {
    for (line, hint) in [
        ("match: {path_prefix: \"/x/*\"}", "leave the star out"),
        ("match: {path: \"/a/[0-9]+\"}", "no regular expressions"),
        ("match: {path: \"^/a$\"}", ""),
        ("match: {path: /a.b-c_d~e/f@g:h}", ""),
    ] {
        let text = with_route(&format!("{line}\ncluster: web"));
        let Ok(config) = parse(&text) else {
            assert!(line.contains('^'), "{line}");
            continue;
        };
        let warnings = config.warnings.join("\n");
        assert_eq!(warnings.is_empty(), hint.is_empty(), "{line}: {warnings}");
        assert!(warnings.contains(hint), "{line}: {warnings}");
    }
}
