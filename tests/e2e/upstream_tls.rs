//! TLS towards upstreams: whom the proxy believes, what it shows, and that what is cut never looks whole.

use std::net::SocketAddr;

use rustls::version::{TLS12, TLS13};
use thalweg_proto::status::Code;
use tokio::net::TcpListener;

use crate::support::{
    authority::{Authority, Files, Pair},
    binding,
    child::Running,
    client::Client,
    flood::{Backend, ECHO, Flood, SINK, SPRING, STUCK, at_rest},
    framed,
    plain::{Peer, PlainUpstream},
    proxy::{TestProxy, Yaml},
    stream::Answer,
    tls::{Front, Manners, Shaken},
    upstream::{self, Call, Served, Upstream, echo},
    within,
};

const HOST: &str = "backend.test";

/// Who vouches for the upstream, and the files of the proxy.
struct Scene {
    authority: Authority,
    files: Files,
}

impl Scene {
    fn new() -> Self {
        let (authority, files) = (Authority::new("root"), Files::new());
        files.write("ca.pem", authority.pem());
        Self { authority, files }
    }

    /// A server with a good certificate.
    fn manners(&self) -> Manners {
        Manners::with(self.authority.server(&[HOST]))
    }

    /// A proxy to it; `keys` are more keys of the cluster's `tls`, in which `DIR` is the folder of the files.
    async fn proxy(&self, yaml: Yaml, keys: &str) -> TestProxy {
        let keys = keys.replace("DIR", self.files.path().to_str().unwrap());
        let ca = self.files.path().join("ca.pem");
        let tls = format!("tls: {{ca: {}, reload_interval: 20ms{keys}}}", ca.display());
        (yaml.cluster(&tls).listener("error_details: true"))
            .start()
            .await
    }

    /// What becomes of a call to an upstream.
    async fn call(&self, front: &Front, keys: &str) -> Answer {
        let proxy = self.proxy(Yaml::to(front.address), keys).await;
        let client = Client::connect(&proxy).await;
        let answer = client.unary(ECHO, b"hello").await;
        if answer.code() != Code::Ok {
            assert_eq!(answer.reason(), Some("upstream_tls_failed"), "{answer:?}");
            assert_eq!(answer.code(), Code::Unavailable);
            proxy
                .metric_is(&metric("handshake_failures_total"), 1)
                .await;
        }
        answer
    }
}

const NAMED: &str = ", server_name: backend.test";

fn metric(name: &str) -> String {
    format!("thalweg_cluster_tls_{name}{{cluster=\"main\"}}")
}

async fn echoing() -> Served {
    Upstream::start().await.serve(echo)
}

fn address(server: &str) -> SocketAddr {
    server.parse().unwrap()
}

// === who is believed ===

#[tokio::test]
async fn call_goes_through_under_both_versions_and_says_that_it_is_https() {
    for version in [&TLS12, &TLS13] {
        let scene = Scene::new();
        let schemes = Upstream::start().await.serve(|mut call: Call| async move {
            let uri = &call.head.uri;
            let said = format!("{} {}", uri.scheme_str().unwrap(), uri.authority().unwrap());
            let mut outgoing = call.respond();
            outgoing.message(said.as_bytes()).await;
            outgoing.trailers(&[("grpc-status", "0")]);
        });
        let front = scene.manners().only(version);
        let front = front.before(address(&schemes.address)).await;
        let proxy = scene.proxy(Yaml::to(front.address), NAMED).await;
        let client = Client::connect(&proxy).await;

        let answer = client.unary("/e2e.Echo/Talk", b"").await;

        // The name of the certificate is nobody's authority: that is the client's.
        assert_eq!(answer.messages(), ["https e2e.test"], "{answer:?}");
        assert_eq!(
            front.shaken(),
            [Shaken {
                host: Some(HOST.into()),
                protocol: Some("h2".into()),
                certificate: false,
                resumed: false,
            }]
        );
        assert_eq!(proxy.metric(&metric("handshakes_total")).await, 1);
    }
}

#[tokio::test]
async fn certificate_for_the_endpoints_own_address_needs_no_name() {
    let scene = Scene::new();
    let backend = echoing().await;
    let manners = Manners::with(scene.authority.server(&["127.0.0.1"]));
    let front = manners.before(address(&backend.address)).await;

    let answer = scene.call(&front, "").await;

    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    assert_eq!(
        front.shaken()[0].host,
        None,
        "an address is no host to ask for"
    );
}

#[tokio::test]
async fn upstream_that_is_not_to_be_believed_is_told_by_what_is_wrong() {
    let scene = Scene::new();
    let backend = echoing().await;
    let other = Authority::new("another");
    let authority = &scene.authority;
    for (pair, keys, told) in [
        (
            other.server(&[HOST]),
            NAMED,
            "an issuer that is not trusted (tls.ca)",
        ),
        (
            authority.server(&["else.test"]),
            NAMED,
            "is not for `backend.test` (tls.server_name)",
        ),
        (
            authority.server(&[HOST]),
            "",
            "is not for `127.0.0.1` (tls.server_name)",
        ),
        (authority.expired(HOST), NAMED, "certificate has expired"),
    ] {
        let front = Manners::with(pair).before(address(&backend.address)).await;

        let answer = scene.call(&front, keys).await;

        assert!(answer.text().contains(told), "{told}: {}", answer.text());
        assert!(
            answer.text().starts_with("cluster main: "),
            "{}",
            answer.text()
        );
    }
    assert_eq!(backend.connections(), 0, "nothing was said to any of them");
}

#[tokio::test]
async fn upstream_that_does_not_agree_to_http2_is_an_error() {
    let scene = Scene::new();
    let backend = echoing().await;
    for protocols in [&["http/1.1"][..], &[]] {
        let front = scene.manners().speaking(protocols);
        let front = front.before(address(&backend.address)).await;

        let answer = scene.call(&front, NAMED).await;

        let told = "does not agree to HTTP/2 under TLS (protocol)";
        assert!(
            answer.text().contains(told),
            "{protocols:?}: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn upstream_in_the_clear_is_an_error_that_says_so() {
    let scene = Scene::new();
    // One that answers the handshake with bytes of its own, and one that just closes.
    let backend = echoing().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for (endpoint, told) in [
        (&backend.address, "does not speak TLS (tls)"),
        (&closing, "no connection: "),
    ] {
        let proxy = scene.proxy(Yaml::to(endpoint), NAMED).await;
        let client = Client::connect(&proxy).await;

        let answer = client.unary(ECHO, b"hello").await;

        assert_eq!(answer.code(), Code::Unavailable);
        assert!(answer.text().contains(told), "{}", answer.text());
    }
}

#[tokio::test]
async fn upstream_that_says_nothing_has_until_the_connect_timeout() {
    let scene = Scene::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = Yaml::to(silent.local_addr().unwrap()).cluster("connect_timeout: 50ms");
    let proxy = scene.proxy(yaml, NAMED).await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary(ECHO, b"hello").await;

    assert_eq!(answer.reason(), Some("upstream_connect_timeout"));
    assert!(
        answer.text().contains("(connect_timeout)"),
        "{}",
        answer.text()
    );
}

// === what is shown ===

#[tokio::test]
async fn certificate_is_shown_to_those_who_want_one() {
    let scene = Scene::new();
    let backend = echoing().await;
    let ours = scene.authority.client("proxy", Vec::new(), 1);
    let theirs = Authority::new("another").client("proxy", Vec::new(), 1);
    let shown = |name: &str, pair: &Pair| {
        let pair = scene.files.pair(name, pair);
        format!("{NAMED}, certificate: {pair}")
    };
    let (ours, theirs) = (shown("ours", &ours), shown("theirs", &theirs));
    for version in [&TLS12, &TLS13] {
        let front = scene.manners().knowing(&scene.authority).only(version);
        let front = front.before(address(&backend.address)).await;

        let answer = scene.call(&front, &ours).await;
        assert_eq!(answer.code(), Code::Ok, "{answer:?}");
        assert!(front.shaken()[0].certificate);

        let answer = scene.call(&front, NAMED).await;
        let told = "wants a client certificate (tls.certificate)";
        assert!(answer.text().contains(told), "{}", answer.text());

        let answer = scene.call(&front, &theirs).await;
        let told = "refuses our certificate or the connection: ";
        assert!(answer.text().contains(told), "{}", answer.text());
    }
}

#[tokio::test]
async fn refusal_of_our_certificate_is_told_over_http1_too() {
    let scene = Scene::new();
    let backend = PlainUpstream::bind().await;
    let front = scene.manners().knowing(&scene.authority);
    let front = front.before(address(&backend.address)).await;
    let proxy = scene.proxy(Yaml::to_http1(front.address), NAMED).await;
    let mut client = Peer::connect(&proxy.address).await;

    client.write("GET / HTTP/1.1\r\nhost: e2e\r\n\r\n").await;

    let head = client.head().await;
    assert_eq!(
        head.values("thalweg-reason"),
        ["upstream_tls_failed"],
        "{head:?}"
    );
    assert_eq!(proxy.metric(&metric("handshake_failures_total")).await, 1);
}

// === coming back, and renewal ===

#[tokio::test]
async fn session_is_resumed_by_the_next_connection() {
    let scene = Scene::new();
    let backend = echoing().await;
    let front = scene.manners().before(address(&backend.address)).await;
    let yaml = Yaml::to(front.address).cluster("pool: {max_streams_per_connection: 1}");
    let proxy = scene.proxy(yaml, NAMED).await;
    let client = Client::connect(&proxy).await;

    let mut held = client.call(ECHO, &[]).await;
    held.outgoing.message(b"one").await;
    held.head().await;
    assert_eq!(client.unary(ECHO, b"two").await.code(), Code::Ok);

    assert!(!front.shaken()[0].resumed);
    assert!(front.shaken()[1..].iter().any(|it| it.resumed));
    assert!(proxy.metric(&metric("resumed_total")).await > 0);
}

#[tokio::test]
async fn renewed_files_are_for_new_connections_and_open_streams_notice_nothing() {
    let scene = Scene::new();
    let backend = echoing().await;
    let first = scene.manners().before(address(&backend.address)).await;
    let another = Authority::new("another");
    let second = Manners::with(another.server(&[HOST]));
    let second = second.before(address(&backend.address)).await;
    let ca = scene.files.path().join("ca.pem");
    let cluster = |front: &Front| {
        format!(
            "{{endpoints: [{}], connect_timeout: 1m, tls: {{ca: {}, server_name: {HOST}, reload_interval: 20ms}}}}",
            front.address,
            ca.display(),
        )
    };
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\", error_details: true}}]\n\
         clusters: {{main: {}, second: {}}}\n\
         routes:\n\
         - {{name: second, cluster: second, match: {{headers: {{to: second}}}}}}\n\
         - {{name: main, cluster: main}}\n",
        cluster(&first),
        cluster(&second),
    ))
    .await;
    let client = Client::connect(&proxy).await;
    let mut open = client.call(ECHO, &[]).await;
    open.outgoing.message(b"before").await;
    let (_, mut incoming) = open.head().await;
    assert_eq!(incoming.message().await.unwrap(), "before");
    let to_second = async || {
        let mut call = client.call(ECHO, &[("to", "second")]).await;
        call.outgoing.message(b"hello").await;
        call.outgoing.end();
        call.answer().await
    };
    assert_eq!(to_second().await.reason(), Some("upstream_tls_failed"));

    // What is no good changes nothing, and is told.
    scene.files.write("ca.pem", "no certificate");
    let failures = "thalweg_cluster_tls_reload_failures_total{cluster=\"second\"}";
    proxy.reaches(failures, 1).await;
    assert!(to_second().await.text().contains("(tls.ca)"));

    scene.files.write("ca.pem", another.pem());
    for name in ["main", "second"] {
        let reloads = format!("thalweg_cluster_tls_reloads_total{{cluster=\"{name}\"}}");
        proxy.metric_is(&reloads, 1).await;
    }

    assert_eq!(to_second().await.code(), Code::Ok);
    open.outgoing.message(b"after").await;
    assert_eq!(incoming.message().await.unwrap(), "after");
}

// === ends ===

/// Asks over HTTP/1.1 for an answer whose end is that of its connection.
async fn until_close(rude: bool) -> (Vec<u8>, bool) {
    let scene = Scene::new();
    let backend = PlainUpstream::bind().await;
    let mut manners = scene.manners().speaking(&["http/1.1"]);
    if rude {
        manners = manners.rude();
    }
    let front = manners.before(address(&backend.address)).await;
    let proxy = scene.proxy(Yaml::to_http1(front.address), NAMED).await;
    let mut client = Peer::connect(&proxy.address).await;
    let request = "GET / HTTP/1.1\r\nhost: e2e\r\nconnection: close\r\n\r\n";
    client.write(request).await;
    let mut peer = backend.accept().await;
    peer.head().await;
    peer.write("HTTP/1.1 200 OK\r\n\r\nthe answer").await;

    let head = client.head().await;
    assert_eq!(head.line, "HTTP/1.1 200 OK");
    assert_eq!(client.chunk().await, "the answer");
    drop(peer);

    let rest = client.rest().await;
    (rest.to_vec(), rest.ends_with(b"0\r\n\r\n"))
}

#[tokio::test]
async fn answer_up_to_the_close_is_whole_only_with_the_word_that_tls_has_for_it() {
    let (rest, whole) = until_close(false).await;
    assert!(whole, "{rest:?}");

    let (rest, whole) = until_close(true).await;
    assert!(!whole, "{rest:?}");
}

#[tokio::test]
async fn connection_that_is_cut_breaks_off_its_streams() {
    let scene = Scene::new();
    let mut backend = Upstream::start().await;
    let front = scene
        .manners()
        .rude()
        .before(address(&backend.address))
        .await;
    let proxy = scene.proxy(Yaml::to(front.address), NAMED).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(ECHO, &[]).await;
    call.outgoing.message(b"hello").await;
    let mut served = backend.call().await;
    let mut outgoing = served.respond();
    outgoing.message(b"half an answer").await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "half an answer");

    served.connection.vanish();

    let (rest, trailers) = incoming.rest().await;
    assert!(rest.is_empty());
    let status = trailers.unwrap().get("grpc-status").unwrap().clone();
    assert_eq!(Code::from_header(status.as_bytes()), Code::Unavailable);
}

// === bytes ===

#[tokio::test]
async fn large_streams_both_ways_cost_little_memory() {
    const LARGE: usize = 64 << 20;
    const MOST: usize = 24 << 20;
    let scene = Scene::new();
    let backend = Backend::start(&upstream::builder(), framed(b"")).await;
    let front = scene
        .manners()
        .before(address(&backend.upstream.address))
        .await;
    let proxy = Running::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{}], connect_timeout: 1m, tls: {{ca: {}/ca.pem, server_name: {HOST}}}}}}}\n\
         routes: [{{name: main, cluster: main}}]\n",
        front.address,
        scene.files.path().display(),
    ))
    .await;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    let client = Client::connect_with(&proxy.address, &builder).await;
    assert_eq!(client.unary(ECHO, b"first").await.code(), Code::Ok);
    let base = proxy.memory();

    let mut call = client.call(SINK, &[]).await;
    for _ in 0..LARGE / (1 << 20) {
        call.outgoing.data(vec![3; 1 << 20]).await;
    }
    call.outgoing.end();
    assert_eq!(call.answer().await.messages(), [LARGE.to_string()]);

    let mut call = client.call(SPRING, &[]).await;
    call.outgoing.message(LARGE.to_string().as_bytes()).await;
    let (_, mut incoming) = call.head().await;
    let mut came = 0;
    while let Some(chunk) = incoming.chunk().await {
        came += chunk.unwrap().len();
    }
    assert_eq!(came, LARGE);

    let more = proxy.memory().saturating_sub(base);
    assert!(more < MOST, "{more} bytes more than before");
}

#[tokio::test]
async fn upstream_that_does_not_read_slows_the_sender_and_nobody_else() {
    let scene = Scene::new();
    let mut narrow = upstream::builder();
    narrow.initial_window_size(64 * 1024);
    let mut backend = Backend::start(&narrow, framed(b"")).await;
    let front = scene
        .manners()
        .before(address(&backend.upstream.address))
        .await;
    let proxy = scene.proxy(Yaml::to(front.address), NAMED).await;
    let client = Client::connect(&proxy).await;

    let call = client.call(STUCK, &[]).await;
    let flood = Flood::start(call.outgoing, framed(&[7; 10_000]));
    let _hoard = backend.stuck().await;

    let sent = at_rest(&client, || flood.sent.get()).await;
    assert!((64 << 10..2 << 20).contains(&sent), "{sent} bytes");
}

// === bindings ===

#[tokio::test]
async fn binding_of_an_https_url_speaks_tls_and_asks_for_its_host() {
    let scene = Scene::new();
    let backend = PlainUpstream::bind().await;
    let manners = Manners::with(scene.authority.server(&["localhost"]));
    let front = manners
        .speaking(&["http/1.1"])
        .before(address(&backend.address))
        .await;
    let proxy = binding::proxy(&[&format!(
        "it: {{http: {{url: \"https://localhost:{}/in\", tls: {{ca: {}/ca.pem}}}}}}",
        front.address.port(),
        scene.files.path().display(),
    )])
    .await;
    let client = Client::connect(&proxy).await;

    let serving = async {
        let mut peer = backend.accept().await;
        let head = peer.head().await;
        assert_eq!(head.line, "POST /in HTTP/1.1");
        let (body, _) = peer.chunked().await;
        assert_eq!(body, "hello");
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nthere")
            .await;
        peer
    };
    let (answer, _peer) = within("the binding answers", async {
        let path = "/v1.0-alpha1/bindings/it/stream?operation=create";
        tokio::join!(client.post(path, b"hello"), serving)
    })
    .await;

    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"there"[..])
    );
    assert_eq!(front.shaken()[0].host.as_deref(), Some("localhost"));
}

#[tokio::test]
async fn health_checks_shake_hands_as_streams_do() {
    let scene = Scene::new();
    let upstream = Upstream::start().await.serve(upstream::refuse_http);
    let front = scene
        .manners()
        .before(upstream.address.parse().unwrap())
        .await;
    for (name, available) in [(HOST, 1), ("somebody.else.test", 0)] {
        let check = "health_check: {http: {path: /418, expect: 418}, interval: 20ms}";
        let yaml = Yaml::to(front.address).cluster(check);
        let proxy = scene.proxy(yaml, &format!(", server_name: {name}")).await;

        let turned = "thalweg_cluster_endpoints_turned_unhealthy_total{cluster=\"main\"}";
        let state = "thalweg_cluster_endpoints_available{cluster=\"main\"}";
        proxy.metric_is(turned, 1 - available).await;
        proxy.metric_is(state, available).await;
        if available == 1 {
            let checked = "thalweg_cluster_health_checks_total{cluster=\"main\"}";
            proxy.reaches(checked, 3).await;
            assert_eq!(proxy.metric(turned).await, 0);
        }
    }
}
