//! What is told of routes: to whoever asks on the command line, and to the operator.

use serde_json::{Value, json};

use crate::support::{child::Folder, proxy::TestProxy};

const YAML: &str = r#"admin: {address: none}
listeners: [{name: it, address: "127.0.0.1:0"}]
filters: [metrics]
bindings:
  echo: {echo: {}}
clusters:
  greeter: {endpoints: ["127.0.0.1:50051"]}
  web: {endpoints: ["127.0.0.1:8000"], protocol: http1}
routes:
  - name: tenants
    match: {headers: {x-tenant: blue}}
    continue: true
    filters: []
  - name: hosts
    match: {authority: "*.example.test"}
    clusters: [{name: greeter, weight: 2}, {name: web, weight: 1}]
  - name: greeter
    match: {grpc: {service: helloworld.Greeter}}
    cluster: greeter
    timeouts: {max_age: 1h}
"#;

const HELLO: &str = "/helloworld.Greeter/SayHello";

/// What `thalweg routes explain` says, in its lines, each with single spaces.
async fn explain(yaml: &str, arguments: &[&str]) -> Vec<String> {
    let folder = Folder::with(yaml);
    let said = folder
        .run(&[&["routes", "explain"], arguments].concat())
        .await;
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    said.stdout.lines().map(words).collect()
}

fn has(lines: &[String], wanted: &str) {
    assert!(
        lines.iter().any(|line| line == wanted),
        "no `{wanted}` in {lines:#?}"
    );
}

#[tokio::test]
async fn route_that_is_taken_is_told_with_all_that_a_stream_meets() {
    let lines = explain(
        YAML,
        &["POST", HELLO, "-H", "x-tenant: blue", "-H", "host: a.test"],
    )
    .await;

    assert_eq!(lines[0], "tenants applies: x-tenant: blue");
    has(&lines, "filters [] config.yaml:13");
    has(
        &lines,
        "and on to the routes below, as the filters leave the request",
    );
    has(
        &lines,
        "hosts no: the host is a.test, and not host *.example.test",
    );
    has(&lines, "greeter taken: /helloworld.Greeter/*");
    has(&lines, "cluster greeter config.yaml:19");
    has(
        &lines,
        r#"filters ["metrics"] the top-level filters, config.yaml:3"#,
    );
    has(&lines, "timeouts.max_age 1h config.yaml:20");
    has(&lines, "timeouts.stall 1m default");
}

#[tokio::test]
async fn first_route_that_matches_is_the_last_that_is_told() {
    let lines = explain(YAML, &["GET", &format!("http://x.example.test{HELLO}")]).await;

    assert_eq!(
        lines[0],
        "tenants no: there is no header x-tenant, and wanted is `blue`"
    );
    assert_eq!(lines[1], "hosts taken: host *.example.test");
    has(
        &lines,
        r#"clusters [{"name":"greeter","weight":2},{"name":"web","weight":1}] config.yaml:16"#,
    );
    assert!(
        !lines.iter().any(|line| line.starts_with("greeter ")),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn request_that_no_route_takes_is_told_what_it_lacks() {
    let lines = explain(YAML, &["GET", "/x", "-H", "x-tenant: red"]).await;

    assert_eq!(
        lines,
        [
            "tenants no: the header x-tenant is `red`, and not `blue`",
            "hosts no: there is no host (-H 'host: NAME'), and wanted is host *.example.test",
            "greeter no: the path is not /helloworld.Greeter/*",
            "no route takes it: it is refused with UNIMPLEMENTED, or 404 (no_route)",
        ]
    );
}

#[tokio::test]
async fn calls_that_take_no_route_are_told() {
    let grpc = ["-H", "content-type: application/grpc"];
    let stream = "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1";
    for (method, path, headers, told) in [
        (
            "POST",
            "/v1.0-alpha1/bindings/echo/stream",
            &[][..],
            "a call of the binding echo, and no route is asked",
        ),
        (
            "POST",
            "/v1.0-alpha1/bindings/none/stream",
            &[],
            "a call of the binding none, and there is none of that name: it is refused",
        ),
        (
            "POST",
            stream,
            &grpc,
            "a call of a binding: its first message says of which, and no route is asked",
        ),
        (
            "POST",
            "/grpc.health.v1.Health/Check",
            &grpc,
            "no route takes it: the proxy answers itself, since it serves grpc.health.v1.Health",
        ),
    ] {
        let lines = explain(YAML, &[&[method, path], headers].concat()).await;
        has(&lines, told);
    }
    // Without gRPC's content type it does not follow the routes either.
    let lines = explain(YAML, &["POST", stream]).await;
    assert!(lines[0].starts_with("a call of a binding, which is refused: "));
    assert!(lines[0].ends_with(" (not_grpc)"), "{lines:?}");
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let folder = Folder::with(YAML);
    for arguments in [
        &["GET", "x"][..],
        &["GET", "/x", "-H", "no-colon"],
        &["GE T", "/x"],
    ] {
        let said = folder
            .run(&[&["routes", "explain"], arguments].concat())
            .await;
        assert_ne!(said.code, Some(0), "{said:?}");
        assert_eq!(said.stdout, "");
        assert!(!said.stderr.is_empty());
    }
    let said = Folder::with("listners: []")
        .run(&["routes", "explain", "GET", "/x"])
        .await;
    assert_eq!(said.code, Some(64), "{said:?}");
}

#[tokio::test]
async fn operator_reads_every_route_and_where_its_values_come_from() {
    let yaml = YAML.replace(
        "admin: {address: none}",
        "admin: {address: \"127.0.0.1:0\"}",
    );
    let proxy = TestProxy::start_as(&yaml).await;

    let routes: Value = serde_json::from_str(&proxy.admin("/routes").await).unwrap();

    let names: Vec<_> = routes
        .as_array()
        .unwrap()
        .iter()
        .map(|route| &route["name"])
        .collect();
    assert_eq!(names, ["tenants", "hosts", "greeter"]);
    let greeter = &routes[2];
    assert_eq!(
        greeter["match"],
        json!({"grpc": {"service": "helloworld.Greeter"}})
    );
    assert_eq!(greeter["timeouts"]["max_age"], "1h");
    let from = &greeter["from"];
    assert_eq!(from["match"], "test.yaml:18");
    assert_eq!(from["timeouts.max_age"], "test.yaml:20");
    assert_eq!(from["timeouts.stall"], "default");
    assert_eq!(from["filters"], "the top-level filters, test.yaml:3");
    assert_eq!(routes[0]["from"]["filters"], "test.yaml:13");
}
