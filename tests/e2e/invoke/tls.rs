//! Whom it trusts, and how it proves itself.

use thalweg::config::Address;
use tokio::process::Command;

use super::{TRANSPORTS, invoke, run};
use crate::support::{
    authority::Authority,
    binding,
    child::{Folder, Said},
    proxy::TestProxy,
    tls::{Front, Manners},
};

/// An echo behind TLS, for the name `localhost`, and the files that clients need.
struct Scene {
    _proxy: TestProxy,
    front: Front,
    folder: Folder,
}

// === impl Scene ===

impl Scene {
    /// With `mutual`, clients must have a certificate of the authority's.
    async fn new(mutual: bool) -> Self {
        Self::with(mutual, &["h2", "http/1.1"]).await
    }

    async fn with(mutual: bool, protocols: &[&str]) -> Self {
        let proxy = binding::proxy(&["echo: {echo: {}}"]).await;
        let (authority, folder) = (Authority::new("ours"), Folder::empty());
        let client = authority.client("client", Vec::new(), 1);
        for (name, pem) in [
            ("ca.pem", authority.pem()),
            ("other.pem", Authority::new("another").pem()),
            ("cert.pem", &client.cert),
            ("key.pem", &client.key),
            ("empty.pem", ""),
        ] {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        let mut manners = Manners::with(authority.server(&["localhost"])).speaking(protocols);
        if mutual {
            manners = manners.knowing(&authority);
        }
        let Address::Tcp(address) = proxy.address else {
            panic!("the proxy listens on TCP")
        };
        let front = manners.before(address).await;
        Self {
            _proxy: proxy,
            front,
            folder,
        }
    }

    fn command(&self, scheme: &str, host: &str, transport: &[&str]) -> Command {
        let address = format!("{scheme}://{host}:{}", self.front.address.port());
        let mut command = invoke(&address, &["echo", "-v", "-m", "answer=42"]);
        command.args(transport).current_dir(self.folder.path());
        command
    }

    /// Calls the echo, over both transports, which must agree.
    async fn call(&self, scheme: &str, host: &str, arguments: &[&str]) -> Said {
        // The authorities that the machine trusts: one that issued none of these certificates.
        self.call_on("other.pem", scheme, host, arguments).await
    }

    /// The same, on a machine that trusts the authorities of a file.
    async fn call_on(&self, trusted: &str, scheme: &str, host: &str, arguments: &[&str]) -> Said {
        let mut saids = vec![];
        for transport in TRANSPORTS {
            let mut command = self.command(scheme, host, transport);
            command.args(arguments);
            command
                .env("SSL_CERT_FILE", trusted)
                .env_remove("SSL_CERT_DIR");
            saids.push(run(command).await);
        }
        assert_eq!(saids[0].code, saids[1].code, "{saids:?}");
        saids.remove(0)
    }
}

#[tokio::test]
async fn server_with_a_certificate_of_the_authority_is_trusted() {
    let scene = Scene::new(false).await;

    let said = scene.call("https", "localhost", &["--ca", "ca.pem"]).await;

    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("answer: 42\n"), "{}", said.stderr);
}

#[tokio::test]
async fn server_of_an_unknown_authority_is_not_trusted() {
    let scene = Scene::new(false).await;

    let said = scene
        .call("https", "localhost", &["--ca", "other.pem"])
        .await;

    assert_eq!(said.code, Some(77), "{}", said.stderr);
    assert!(said.stderr.contains("not trusted"), "{}", said.stderr);
    assert!(said.stderr.contains("--ca "), "{}", said.stderr);
}

#[tokio::test]
async fn machine_decides_whom_to_trust_unless_a_file_does() {
    let scene = Scene::new(false).await;

    let said = scene.call_on("ca.pem", "https", "localhost", &[]).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let said = scene.call_on("other.pem", "https", "localhost", &[]).await;
    assert_eq!(said.code, Some(77), "{}", said.stderr);
    let said = scene.call_on("empty.pem", "https", "localhost", &[]).await;
    assert_eq!(said.code, Some(64), "{}", said.stderr);
    assert!(said.stderr.contains("--ca "), "{}", said.stderr);

    let file = ["--ca", "other.pem"];
    let said = scene.call_on("ca.pem", "https", "localhost", &file).await;
    assert_eq!(said.code, Some(77), "{}", said.stderr);
}

#[tokio::test]
async fn server_of_another_name_is_not_trusted_unless_that_name_is_given() {
    let scene = Scene::new(false).await;

    let said = scene.call("https", "127.0.0.1", &["--ca", "ca.pem"]).await;
    assert_eq!(said.code, Some(77), "{}", said.stderr);
    assert!(said.stderr.contains("--server-name "), "{}", said.stderr);

    let named = ["--ca", "ca.pem", "--server-name", "localhost"];
    let said = scene.call("https", "127.0.0.1", &named).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[tokio::test]
async fn server_may_want_a_certificate_of_the_client() {
    let scene = Scene::new(true).await;

    let said = scene.call("https", "localhost", &["--ca", "ca.pem"]).await;
    assert_eq!(said.code, Some(77), "{}", said.stderr);
    assert!(said.stderr.contains("--cert and --key"), "{}", said.stderr);

    let proven = ["--ca", "ca.pem", "--cert", "cert.pem", "--key", "key.pem"];
    let said = scene.call("https", "localhost", &proven).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[tokio::test]
async fn server_that_speaks_tls_is_told_from_one_that_does_not() {
    let scene = Scene::new(false).await;

    let said = scene.call("http", "127.0.0.1", &[]).await;

    assert_eq!(said.code, Some(76), "{}", said.stderr);
    let expected = format!("speaks TLS\nwrite https://{}", scene.front.address);
    assert!(said.stderr.contains(&expected), "{}", said.stderr);
}

#[tokio::test]
async fn server_that_speaks_the_other_http_over_tls_is_told_apart() {
    for (spoken, codes) in [
        (&["http/1.1"][..], [76, 0]),
        (&["h2"], [0, 76]),
        // One that does not say what it speaks is taken for the older.
        (&[], [76, 0]),
    ] {
        let scene = Scene::with(false, spoken).await;
        for (transport, code) in TRANSPORTS.into_iter().zip(codes) {
            let mut command = scene.command("https", "localhost", transport);
            command.args(["--ca", "ca.pem"]);
            let said = run(command).await;

            assert_eq!(said.code, Some(code), "{spoken:?}: {}", said.stderr);
            assert_eq!(said.stderr.contains("--http"), code != 0, "{}", said.stderr);
        }
    }
}

#[tokio::test]
async fn files_of_certificates_that_cannot_be_used_are_named() {
    let scene = Scene::new(false).await;

    for (arguments, words) in [
        (&["--ca", "nowhere.pem"][..], "--ca nowhere.pem"),
        (&["--ca", "empty.pem"], "--ca empty.pem"),
        (
            &["--ca", "ca.pem", "--cert", "empty.pem", "--key", "key.pem"],
            "--cert empty.pem",
        ),
        (
            &["--ca", "ca.pem", "--cert", "cert.pem", "--key", "cert.pem"],
            "--key cert.pem",
        ),
    ] {
        let said = scene.call("https", "localhost", arguments).await;
        assert_eq!(said.code, Some(64), "{}", said.stderr);
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }
}
