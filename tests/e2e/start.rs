//! What a newcomer meets: files to start with, the first lines, completions and manual pages.

use std::{fs, net::Ipv4Addr, path::Path};

use thalweg::config::{self, Address};

use crate::support::{
    child::{Folder, Running},
    client::Client,
    hands::Hands,
    upstream::{Upstream, echo},
};

const STARTERS: [&str; 3] = ["local", "sidecar", "edge"];

fn starter(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(format!("src/cli/init/{name}.yaml"))).unwrap()
}

/// The same, on ports of the test's own.
fn on_free_ports(name: &str) -> String {
    let text = starter(name).replace("${THALWEG_PORT:-8080}", "8080");
    text.replace(":8080", ":0")
        .replace(":8443", ":0")
        .replace(":9901", ":0")
}

/// What stands in a folder, in alphabetical order.
fn listed(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

// === files to start with ===

#[tokio::test]
async fn starters_are_good_and_make_nobody_look_twice() {
    for name in STARTERS {
        let folder = Folder::empty();

        let written = folder.run(&["init", name]).await;
        if written.stdout.contains("`thalweg certs`") {
            assert_eq!(folder.run(&["certs"]).await.code, Some(0));
        }
        let checked = folder.run(&["check"]).await;

        assert_eq!(written.code, Some(0), "{name}: {written:?}");
        assert_eq!(checked.code, Some(0), "{name}: {checked:?}");
        assert!(!checked.stdout.contains("worth a look"), "{checked:?}");
        let mut listed = listed(&folder);
        listed.retain(|entry| entry != "tls");
        assert_eq!(listed, ["config.yaml"], "{name}");
        assert_eq!(fs::read_to_string(folder.config()).unwrap(), starter(name));
    }
}

#[tokio::test]
async fn init_alone_writes_local_and_output_says_where() {
    let folder = Folder::empty();

    let alone = folder.run(&["init"]).await;
    let elsewhere = folder.run(&["init", "edge", "-o", "edge.yaml"]).await;

    assert!(alone.stdout.contains("start with `thalweg`"), "{alone:?}");
    assert!(
        elsewhere.stdout.contains("`thalweg --config edge.yaml`"),
        "{elsewhere:?}"
    );
    assert_eq!(listed(&folder), ["config.yaml", "edge.yaml"]);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("config.yaml"), starter("local"));
    assert_eq!(read("edge.yaml"), starter("edge"));
}

#[tokio::test]
async fn file_that_is_there_is_left_alone_unless_forced() {
    let folder = Folder::with("mine");

    let refused = folder.run(&["init"]).await;

    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(listed(&folder), ["config.yaml"]);
    assert_eq!(fs::read_to_string(folder.config()).unwrap(), "mine");

    let forced = folder.run(&["init", "--force"]).await;

    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert_eq!(listed(&folder), ["config.yaml"]);
    assert_eq!(
        fs::read_to_string(folder.config()).unwrap(),
        starter("local")
    );
}

#[tokio::test]
async fn unknown_starter_is_refused_with_those_there_are() {
    let folder = Folder::empty();

    let said = folder.run(&["init", "cloud"]).await;

    assert_eq!(said.code, Some(2));
    for name in STARTERS {
        assert!(said.stderr.contains(name), "{}", said.stderr);
    }
    assert_eq!(listed(&folder), [""; 0]);
}

#[tokio::test]
async fn file_that_cannot_be_written_is_named() {
    let said = Folder::empty()
        .run(&["init", "-o", "no/such/it.yaml"])
        .await;

    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("cannot write no/such/it.yaml"),
        "{}",
        said.stderr
    );
}

/// Such as a service manager that gives every service its own ports.
#[test]
fn ports_of_sidecar_come_from_the_environment() {
    let env = |name: &str| match name {
        "THALWEG_PORT" => Some("7000".to_owned()),
        "DAPR_GRPC_PORT" => Some("7001".to_owned()),
        "DAPR_HTTP_PORT" => Some("7002".to_owned()),
        _ => None,
    };

    let config = config::parse(&starter("sidecar"), "sidecar.yaml", &env).unwrap();

    let clusters = config.clusters.iter();
    let ports: Vec<String> = clusters.map(|it| it.endpoints.to_string()).collect();
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:7000");
    assert_eq!(ports, ["127.0.0.1:7001", "127.0.0.1:7002"]);
}

#[tokio::test]
async fn sidecar_forwards_what_it_is_for() {
    let upstream = Upstream::start().await.serve(echo);
    let sockets = tempfile::tempdir().unwrap();
    let yaml = on_free_ports("sidecar")
        .replace("127.0.0.1:${DAPR_GRPC_PORT:-50001}", &upstream.to_string())
        .replace(
            "/tmp/dapr-components-sockets",
            sockets.path().to_str().unwrap(),
        );
    let proxy = Running::start_as_written(&yaml).await;
    let client = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;

    forwards(&client, "/dapr.proto.runtime.v1.Dapr/GetState").await;
}

#[tokio::test]
async fn edge_forwards_what_it_is_for_under_tls() {
    let upstream = Upstream::start().await.serve(echo);
    let folder = Folder::empty();
    assert_eq!(folder.run(&["certs"]).await.code, Some(0));
    let tls = folder.path().join("tls");
    let yaml = on_free_ports("edge")
        .replace("127.0.0.1:50051", &upstream.to_string())
        .replace("tls/server", tls.join("server").to_str().unwrap());
    let proxy = Running::start_as_written(&yaml).await;
    let ca = fs::read_to_string(tls.join("ca.pem")).unwrap();
    let Address::Tcp(bound) = proxy.address else {
        panic!("{} is no port", proxy.address)
    };
    let here = Address::Tcp((Ipv4Addr::LOCALHOST, bound.port()).into());
    let client = Hands::trusting_pem(&ca).client(&here, "localhost").await;

    forwards(&client, "/helloworld.Greeter/SayHello").await;
}

async fn forwards(client: &Client, path: &str) {
    let taken = client.unary(path, b"hello").await;
    let refused = client.unary("/other.Service/Call", b"hello").await;

    assert_eq!(taken.messages(), ["hello"], "{path}");
    assert_eq!(refused.reason(), Some("no_route"), "{path}");
}

// === the first lines ===

#[tokio::test]
async fn lines_to_paste_do_what_they_say() {
    let mut proxy = Running::start_as_written(&on_free_ports("local")).await;

    let welcome = proxy.welcomes("/metrics").await;

    let address = format!("  {}   plain", proxy.address);
    assert!(welcome.contains(&address), "{welcome:#?}");
    let (metrics, before) = welcome.split_last().unwrap();
    let curls = before.iter().filter(|line| line.contains("curl"));
    let mut heard = String::new();
    for line in curls {
        let said = Folder::empty().shell(line).await;
        assert_eq!(said.code, Some(0), "{line}: {said:?}");
        heard = said.stdout;
    }
    assert_eq!(heard, "hello\n", "the last one answers with what was sent");
    let said = Folder::empty().shell(metrics).await;
    assert!(said.stdout.contains("thalweg_build_info"), "{said:?}");
}

// === completions and manual pages ===

const COMMANDS: [&str; 10] = [
    "serve",
    "init",
    "check",
    "schema",
    "invoke",
    "bindings",
    "certs",
    "completions",
    "man",
    "version",
];

#[tokio::test]
async fn completions_name_every_command_and_bash_reads_them() {
    let folder = Folder::empty();

    for shell in ["bash", "zsh", "fish"] {
        let script = folder.run(&["completions", shell]).await;

        assert_eq!(script.code, Some(0), "{script:?}");
        for command in COMMANDS {
            assert!(script.stdout.contains(command), "{shell}: {command}");
        }
        fs::write(folder.path().join(shell), script.stdout).unwrap();
    }
    // What bash completes after `thalweg ini`.
    let line = r#"bash -n bash && bash -c '. ./bash; COMP_WORDS=(thalweg ini) COMP_CWORD=1; _thalweg thalweg ini thalweg; echo "${COMPREPLY[@]}"'"#;
    let said = folder.shell(line).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "init\n"),
        "{said:?}"
    );
}

#[tokio::test]
async fn manual_has_a_page_for_every_command() {
    let folder = Folder::empty();

    let printed = folder.run(&["man"]).await;
    let written = folder.run(&["man", "--dir", "pages"]).await;

    assert_eq!((printed.code, written.code), (Some(0), Some(0)));
    assert_eq!(written.stdout, "");
    let page = |name: &str| {
        fs::read_to_string(folder.path().join(format!("pages/{name}.1")))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let main = page("thalweg");
    assert!(printed.stdout.starts_with(&main));
    for command in COMMANDS {
        let own = page(&format!("thalweg-{command}"));
        assert!(main.contains(&format!("thalweg\\-{command}(1)")), "{main}");
        assert!(own.contains(&format!(".TH thalweg-{command} 1")), "{own}");
        assert!(printed.stdout.contains(&own), "{command}");
    }
}
