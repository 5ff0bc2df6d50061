//! What the binary says, and how it exits.

use thalweg_proto::status::Code;
use tokio::net::TcpListener;

use crate::support::{
    child::{Folder, Running},
    client::{self, Client},
    flood::ECHO,
    proxy::TestProxy,
    upstream::{self, Upstream, echo},
    within,
};

const GOOD: &str = "admin: {address: none}\nlisteners: [{name: it, address: \"127.0.0.1:0\"}]\n";
const FAULTY: &str =
    "listeners: [{name: it, address: \"127.0.0.1:0\", max_conections: 3}]\nworkers: 0\n";

fn to(upstream: &impl ToString) -> String {
    format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{}]}}}}\n\
         routes: [{{name: main, cluster: main}}]\n",
        upstream.to_string()
    )
}

async fn connect(proxy: &Running) -> Client {
    Client::connect_with(&proxy.address, &h2::client::Builder::new()).await
}

// === those who do not read all ===

#[tokio::test]
async fn who_reads_the_first_line_alone_hears_of_no_failure() {
    let folder = Folder::with(GOOD);
    let binary = env!("CARGO_BIN_EXE_thalweg");

    for command in [
        "man",
        "schema",
        "check config.yaml",
        "completions bash",
        "init -o -",
    ] {
        // The shell tells the exit code of the first command and not of `true`, which reads nothing.
        let line = format!("{{ {binary} {command}; echo \"code $?\" >&2; }} | true");
        let said = folder.shell(&line).await;

        assert_eq!(said.stderr, "code 0\n", "{command}");
    }
}

#[tokio::test]
async fn configuration_to_start_with_may_go_to_standard_output() {
    let folder = Folder::empty();

    let said = folder.run(&["init", "edge", "-o", "-"]).await;

    assert_eq!(said.code, Some(0));
    assert!(said.stdout.contains("listeners:"), "{}", said.stdout);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn certificates_are_for_names_that_clients_can_ask_for() {
    let folder = Folder::empty();

    for bad in ["bad name", "*", "", "a..b", "-a.test", "a/b", "*.*.test"] {
        let said = folder.run(&["certs", &format!("--name={bad}")]).await;
        assert_eq!(said.code, Some(1), "{bad}");
        assert!(said.stderr.contains("is no host"), "{}", said.stderr);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    for good in ["*.example.test", "::1", "my_host", "a-1.b"] {
        let said = folder.run(&["certs", "--force", "--name", good]).await;
        assert_eq!(said.code, Some(0), "{good}: {}", said.stderr);
    }
}

#[tokio::test]
async fn log_that_is_misspelt_is_refused() {
    let folder = Folder::with(GOOD);
    let binary = env!("CARGO_BIN_EXE_thalweg");

    for words in ["garbage", "garbage=nope=x", "debgu"] {
        let said = folder.shell(&format!("THALWEG_LOG={words} {binary}")).await;

        assert_eq!(said.code, Some(64), "{words}");
        assert!(said.stderr.contains("THALWEG_LOG"), "{}", said.stderr);
        assert!(said.stderr.contains("debug, trace"), "{}", said.stderr);
    }
}

// === configurations ===

#[tokio::test]
async fn check_reads_what_the_proxy_would() {
    let folder = Folder::empty();
    std::fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    std::fs::write(folder.path().join("faulty.yaml"), FAULTY).unwrap();
    let binary = env!("CARGO_BIN_EXE_thalweg");

    for (line, code) in [
        ("THALWEG_CONFIG=good.yaml BIN check", 0),
        ("THALWEG_CONFIG=faulty.yaml BIN check", 64),
        ("THALWEG_CONFIG=faulty.yaml BIN check good.yaml", 0),
        ("BIN check -c good.yaml", 0),
        ("BIN check --config faulty.yaml", 64),
        ("BIN check - < good.yaml", 0),
        ("BIN check - < faulty.yaml", 64),
        ("BIN check --config - < good.yaml", 0),
        ("BIN check", 64),
    ] {
        let said = folder.shell(&line.replace("BIN", binary)).await;
        assert_eq!(said.code, Some(code), "{line}: {}", said.stderr);
    }
    let said = folder
        .shell(&format!("{binary} check - < faulty.yaml"))
        .await;
    assert!(
        said.stderr.starts_with("standard input:1:"),
        "{}",
        said.stderr
    );
}

/// One file for each way to fail; and the folder is as it was.
#[tokio::test]
async fn check_calls_nothing_good_with_which_the_proxy_cannot_start() {
    let rest = "admin: {address: none}\nlisteners: [{name: it, address: \"127.0.0.1:0\"}]\n";
    for (keys, word) in [
        (
            "clusters: {a: {endpoints: {file: nope.yaml}}}\n",
            "nope.yaml",
        ),
        (
            "clusters: {a: {endpoints: {file: config.yaml}}}\n",
            "config.yaml",
        ),
        (
            "clusters: {a: {endpoints: [127.0.0.1:1], tls: {ca: nope.pem}}}\n",
            "nope.pem",
        ),
        (
            "bindings: {a: {object_store: {url: \"file:///proc/nope\"}}}\n",
            "/proc/nope",
        ),
        (
            "bindings: {a: {object_store: {url: \"file://config.yaml/data\"}}}\n",
            "config.yaml/data",
        ),
    ] {
        let folder = Folder::with(&format!("{rest}{keys}"));

        let checked = folder.run(&["check"]).await;
        let told = folder.run(&["check", "--json"]).await;
        let served = folder.run(&["serve"]).await;

        assert_eq!(checked.code, Some(64), "{keys}");
        assert_eq!(told.code, Some(64), "{keys}");
        let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
        let fault = &told["faults"][0];
        assert_eq!(fault["file"], "config.yaml", "{told}");
        assert!(fault["path"].as_str().unwrap().contains(".a."), "{told}");
        assert!(fault["help"].is_string(), "{told}");
        assert!(checked.stderr.contains(word), "{keys}: {}", checked.stderr);
        assert_ne!(served.code, Some(0), "{keys}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    for keys in [
        "bindings: {a: {object_store: {url: \"file://./data/deep\"}}}\n",
        "",
    ] {
        let folder = Folder::with(&format!("{rest}{keys}"));
        assert_eq!(folder.run(&["check"]).await.code, Some(0), "{keys}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn check_tells_programs_what_it_tells_people() {
    let folder = Folder::with(FAULTY);

    let said = folder.run(&["check", "--json"]).await;

    assert_eq!(said.code, Some(64));
    let told: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(told["good"], false);
    let faults = told["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2);
    assert_eq!(faults[0]["path"], "listeners[0].max_conections");
    assert_eq!(faults[0]["line"], 1);
    assert!(
        faults[0]["help"]
            .as_str()
            .unwrap()
            .contains("max_connections")
    );
    let folder = Folder::with(GOOD);
    let said = folder.run(&["check", "--json"]).await;
    assert_eq!(said.code, Some(0));
    let told: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&told["good"], told["faults"].as_array().unwrap().len()),
        (&true.into(), 0)
    );
}

#[tokio::test]
async fn faulty_configuration_is_refused_with_all_its_faults() {
    let folder = Folder::with(FAULTY);

    for arguments in [
        &["serve", "--config", "config.yaml"][..],
        &["--config", "config.yaml"],
        &["check", "config.yaml"],
        &["check"],
        &[],
    ] {
        let said = folder.run(arguments).await;

        assert_eq!(said.code, Some(64), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
        for words in [
            "config.yaml:1",
            "max_conections",
            "max_connections",
            "config.yaml:2",
            "workers",
        ] {
            assert!(
                said.stderr.contains(words),
                "{arguments:?}: {}",
                said.stderr
            );
        }
    }
}

#[tokio::test]
async fn configuration_that_is_not_there_is_named() {
    let folder = Folder::empty();

    for (arguments, file) in [
        (&["--config", "elsewhere.yaml"][..], "elsewhere.yaml"),
        (&["check", "elsewhere.yaml"], "elsewhere.yaml"),
        (&[], "config.yaml"),
    ] {
        let said = folder.run(arguments).await;

        assert_eq!(said.code, Some(64), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(file), "{arguments:?}: {}", said.stderr);
    }
}

#[tokio::test]
async fn folder_without_configuration_is_told_how_to_get_one() {
    for arguments in [&[][..], &["serve"], &["check"]] {
        let said = Folder::empty().run(arguments).await;

        assert_eq!(said.code, Some(64), "{arguments:?}: {said:?}");
        for words in ["there is no config.yaml", "thalweg init", "--config FILE"] {
            assert!(
                said.stderr.contains(words),
                "{arguments:?}: {}",
                said.stderr
            );
        }
    }
}

#[tokio::test]
async fn good_configuration_is_called_good_and_is_not_served() {
    let folder = Folder::with(GOOD);

    for arguments in [&["check", "config.yaml"][..], &["check"]] {
        let said = folder.run(arguments).await;

        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.stdout.contains("config.yaml: good"), "{said:?}");
        assert_eq!(said.stderr, "");
    }
}

#[tokio::test]
async fn check_tells_where_everything_leads_and_what_is_worth_a_look() {
    let folder = Folder::with(
        r#"
        admin: {address: none}
        listeners:
          - {name: plain, address: "127.0.0.1:8080"}
          - {name: local, address: "unix:/run/it.sock"}
        bindings:
          echo: {echo: {}}
          orders: {component: {socket: /run/orders.sock, metadata: {key: secret}}}
          remote: {dapr: {cluster: daprd}}
          webhook: {http: {url: "http://127.0.0.1:8000/in?key=secret"}}
        component_sockets: /run/components
        clusters:
          daprd: {endpoints: ["127.0.0.1:50001"]}
          greeter: {endpoints: ["127.0.0.1:50051", "unix:/run/greeter.sock"]}
          spare: {endpoints: ["127.0.0.1:1"]}
          web: {endpoints: ["127.0.0.1:8000"], protocol: http1}
        routes:
          - {name: tenants, match: {headers: {x-tenant: blue}}, continue: true}
          - {name: greeter, match: {grpc: {service: helloworld.Greeter}}, cluster: greeter}
          - {name: hello, match: {path: /helloworld.Greeter/SayHello}, cluster: web, filters: [metrics, sequence]}
          - name: rest
            match: {authority: "*.example.test"}
            clusters: [{name: web, weight: 1}, {name: greeter, weight: 2}]
        "#,
    );

    let said = folder.run(&["check"]).await;

    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    assert_eq!(
        said.stdout,
        "config.yaml: good (2 listeners, 4 bindings, 4 routes, 4 clusters)

listeners
  plain   127.0.0.1:8080
  local   unix:/run/it.sock

bindings
  echo      echo
  orders    component /run/orders.sock
  remote    dapr daprd
  webhook   http http://127.0.0.1:8000/in?***
  ...       component, for each socket in /run/components

routes
  tenants   x-tenant: blue: on to the routes below
  greeter   /helloworld.Greeter/*: greeter (127.0.0.1:50051, unix:/run/greeter.sock)
  hello     /helloworld.Greeter/SayHello: web (127.0.0.1:8000)
  rest      host *.example.test: 1 of web (127.0.0.1:8000) and 2 of greeter (127.0.0.1:50051, unix:/run/greeter.sock)

worth a look
  admin.address is none: nobody can read metrics, or ask whether it is ready
  route hello is never taken: greeter, above it, takes every stream that it would
  route hello refuses every stream to web: sequence takes gRPC alone, and an HTTP/1.1 cluster cannot carry it; give the route filters of its own
  cluster spare is not used by any route or binding
"
    );
}

#[tokio::test]
async fn schema_is_a_json_schema_of_the_file() {
    let said = Folder::empty().run(&["schema"]).await;

    assert_eq!(said.code, Some(0));
    let schema: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(
        schema["$schema"]
            .as_str()
            .unwrap()
            .contains("json-schema.org")
    );
    for key in [
        "admin",
        "workers",
        "drain",
        "listeners",
        "filters",
        "clusters",
        "routes",
    ] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(schema["required"], serde_json::json!(["listeners"]));
    assert_eq!(schema["additionalProperties"], false);
}

#[tokio::test]
async fn versions_are_told() {
    let folder = Folder::empty();
    let version = concat!("thalweg ", env!("CARGO_PKG_VERSION"), "\n");

    for arguments in [["version"], ["--version"], ["-V"]] {
        let said = folder.run(&arguments).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), version));
    }
}

#[tokio::test]
async fn command_line_that_is_wrong_is_refused_with_a_hint() {
    let said = Folder::with(GOOD).run(&["--confg", "config.yaml"]).await;

    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("--config"), "{}", said.stderr);
}

// === running ===

#[tokio::test]
async fn port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();

    for yaml in [
        format!("admin: {{address: none}}\nlisteners: [{{name: front, address: \"{address}\"}}]\n"),
        format!(
            "admin: {{address: \"{address}\"}}\nlisteners: [{{name: front, address: \"127.0.0.1:0\"}}]\n"
        ),
    ] {
        let said = Folder::with(&yaml).run(&[]).await;

        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(
            said.stderr.contains(&address.to_string()),
            "{}",
            said.stderr
        );
        assert!(
            said.stderr.contains("another process listens there"),
            "{}",
            said.stderr
        );
        let whose = if yaml.contains("none") {
            "listener front"
        } else {
            "admin"
        };
        assert!(said.stderr.contains(whose), "{}", said.stderr);
    }
}

#[tokio::test]
async fn without_arguments_it_serves_the_file_in_its_folder() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Running::without_arguments(&to(&upstream)).await;

    let answer = connect(&proxy).await.unary(ECHO, b"hello").await;

    assert_eq!(answer.messages(), ["hello"]);
}

#[tokio::test]
async fn signal_lets_streams_end_and_exits_with_success() {
    for signal in ["TERM", "INT"] {
        let mut upstream = Upstream::start().await;
        let mut proxy = Running::start(&to(&upstream)).await;
        let client = connect(&proxy).await;
        let mut call = client.call(ECHO, &[]).await;
        let mut running = upstream.call().await;

        proxy.signal(signal).await;
        proxy.says("draining").await;
        within("the proxy is no longer ready", async {
            while proxy.operator.get("/readyz").await.status != 503 {}
        })
        .await;
        call.outgoing.message(b"still here").await;
        assert_eq!(running.incoming.message().await.unwrap(), "still here");
        assert!(proxy.runs());
        running.respond().trailers(&[("grpc-status", "0")]);
        assert_eq!(call.answer().await.code(), Code::Ok);

        let (status, _) = proxy.ends().await;
        assert_eq!(status.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn operator_lets_streams_end_as_a_signal_does() {
    let mut upstream = Upstream::start().await;
    let mut proxy = Running::start(&to(&upstream)).await;
    let client = connect(&proxy).await;
    let mut call = client.call(ECHO, &[]).await;
    let mut running = upstream.call().await;

    let reply = proxy.operator.ask("POST", "/drain", "").await;
    proxy.says("draining").await;
    running.finish_with(200, &[("grpc-status", "0")]);

    assert_eq!(reply.status, 202);
    assert_eq!(call.answer().await.code(), Code::Ok);
    let (status, _) = proxy.ends().await;
    assert_eq!(status.code(), Some(0));
}

/// As an orchestrator stops it whose hook asks for the drain before the signal comes.
#[tokio::test]
async fn first_signal_behind_a_drain_that_was_asked_for_lets_it_go_on() {
    const CLIENTS: usize = 4;
    const STREAMS: usize = 25;
    let upstream = Upstream::start().await.serve(echo);
    let yaml = format!("drain: {{timeout: 2s}}\n{}", to(&upstream));
    let mut proxy = Running::start(&yaml).await;
    let mut calls = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(&proxy).await;
        for _ in 0..STREAMS {
            let mut call = client.call(ECHO, &[]).await;
            call.outgoing.message(b"hello").await;
            let (head, mut incoming) = call.head().await;
            assert_eq!(incoming.message().await.unwrap(), "hello");
            calls.push((call, head, incoming));
        }
    }
    let (mut first, head, mut incoming) = calls.remove(0);

    proxy.operator.ask("POST", "/drain", "").await;
    proxy.says("draining").await;
    proxy.signal("TERM").await;
    proxy.says("the drain goes on").await;
    first.outgoing.end();

    let ended = client::answer(head, &mut incoming).await;
    assert_eq!((ended.code(), ended.reason()), (Code::Ok, None));
    for (_call, head, mut incoming) in calls {
        let dismissed = client::answer(head, &mut incoming).await;
        assert_eq!(dismissed.code(), Code::Unavailable);
        assert_eq!(dismissed.reason(), Some("drain"));
    }
    let (status, said) = proxy.ends().await;
    assert_eq!(status.code(), Some(0));
    assert!(
        said.contains("drained ended=1 dismissed=99 cut=0"),
        "{said}"
    );
}

#[tokio::test]
async fn second_signal_behind_a_drain_that_was_asked_for_ends_it_at_once() {
    let mut upstream = Upstream::start().await;
    let mut proxy = Running::start(&to(&upstream)).await;
    let client = connect(&proxy).await;
    let _call = client.call(ECHO, &[]).await;
    let _running: upstream::Call = upstream.call().await;

    proxy.operator.ask("POST", "/drain", "").await;
    proxy.says("draining").await;
    proxy.signal("INT").await;
    proxy.says("the drain goes on").await;
    proxy.signal("TERM").await;

    let (status, _) = proxy.ends().await;
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn second_signal_ends_it_at_once() {
    let mut upstream = Upstream::start().await;
    let mut proxy = Running::start(&to(&upstream)).await;
    let client = connect(&proxy).await;
    let _call = client.call(ECHO, &[]).await;
    let _running: upstream::Call = upstream.call().await;

    proxy.signal("TERM").await;
    proxy.says("draining").await;
    proxy.signal("TERM").await;

    let (status, _) = proxy.ends().await;
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn streams_that_outlast_the_drain_are_ended() {
    let mut upstream = Upstream::start().await;
    let yaml = format!("drain: {{timeout: 100ms}}\n{}", to(&upstream));
    let proxy = Running::start(&yaml).await;
    let client = connect(&proxy).await;
    let mut call = client.call(ECHO, &[]).await;
    let mut running = upstream.call().await;

    proxy.signal("TERM").await;

    assert_eq!(call.answer().await.reason(), Some("drain"));
    let (status, said) = proxy.ends().await;
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("streams=1 limit=100ms"), "{said}");
    assert!(
        said.contains("drained ended=0 dismissed=1 cut=0 seconds="),
        "{said}"
    );
    running.incoming.try_message().await.unwrap_err();
}

/// One that is idle is told to go, and no stream is waited for.
#[tokio::test]
async fn idle_connections_do_not_keep_it_from_ending() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Running::start(&to(&upstream)).await;
    let client = connect(&proxy).await;
    client.unary(ECHO, b"hello").await;

    proxy.signal("TERM").await;

    let (status, said) = proxy.ends().await;
    assert_eq!(status.code(), Some(0));
    assert!(!said.contains("are cut"), "{said}");
}

// === orders to a running proxy ===

#[tokio::test]
async fn operator_needs_no_curl() {
    let upstream = Upstream::start().await.serve(echo);
    let mut proxy = Running::start(&to(&upstream)).await;
    let admin = format!("--admin=http://{}", proxy.operator.0);
    let folder = Folder::empty();
    let run = async |command: &str| folder.run(&[command, &admin]).await;

    let health = run("health").await;
    assert_eq!((health.code, &*health.stdout), (Some(0), "ready\n"));
    let status = run("status").await;
    assert_eq!(status.code, Some(0));
    let line = format!("main     {}", upstream.address);
    assert!(status.stdout.starts_with("CLUSTER"), "{}", status.stdout);
    assert!(status.stdout.contains(&line), "{}", status.stdout);

    proxy.write(&format!("{}drain: {{timeout: 1s}}\n", to(&upstream)));
    let reload = run("reload").await;
    assert_eq!(reload.code, Some(0), "{}", reload.stderr);
    assert!(reload.stdout.contains("\"drain\""), "{}", reload.stdout);
    proxy.write("listeners: []\n");
    let reload = run("reload").await;
    assert_eq!(reload.code, Some(64));
    for told in [
        ":4:12: listeners: ",
        "\nthe configuration before stays in force",
    ] {
        assert!(reload.stderr.contains(told), "{}", reload.stderr);
    }

    let drain = run("drain").await;
    assert_eq!((drain.code, &*drain.stdout), (Some(0), "draining\n"));
    proxy.says("draining").await;
    let (status, _) = proxy.ends().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(run("health").await.code, Some(69));
}

#[tokio::test]
async fn operator_is_told_where_the_token_goes() {
    let folder = Folder::empty();
    let proxy = TestProxy::start_with_admin(
        "{address: \"127.0.0.1:0\", token: sesame}",
        "listeners: [{name: it, address: \"127.0.0.1:0\"}]\n",
    )
    .await;
    let admin = format!("--admin=http://{}", proxy.operator().0);

    for command in ["status", "reload", "drain"] {
        let said = folder.run(&[command, &admin]).await;
        assert_eq!(said.code, Some(77), "{command}");
        assert!(said.stderr.contains("wants a token"), "{}", said.stderr);
        let said = folder.run(&[command, &admin, "--token=other"]).await;
        assert!(said.stderr.contains("another token"), "{}", said.stderr);
    }
    let said = folder.run(&["status", &admin, "--token=sesame"]).await;
    assert_eq!(said.code, Some(0));
    let said = folder.run(&["health", &admin]).await;
    assert_eq!(said.code, Some(0), "a probe has no token");
}
