//! TLS on listeners: who is let in, what the upstream hears of them, and what becomes of sessions and files that change.

use std::{io, os::unix::fs::symlink, time::Duration};

use h2::client::Builder;
use http::Request;
use rcgen::SanType;
use thalweg_proto::status::Code;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};
use tokio_rustls::rustls::{
    HandshakeKind,
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};

use crate::support::{
    authority::{Authority, Files, Pair},
    child::{Folder, Running},
    client::Client,
    flood::{Backend, ECHO, FLOOD, SINK, SPRING},
    framed,
    hands::{Hands, dial},
    plain,
    plain::PlainUpstream,
    proxy::{TestProxy, Yaml},
    raw,
    upstream::{self, Served, Upstream, echo},
    values, within,
};

const HOST: &str = "e2e.test";
const XFCC: &str = "x-forwarded-client-cert";

/// A proxy with one certificate, and what its clients need to know.
struct Secured {
    authority: Authority,
    files: Files,
    proxy: TestProxy,
}

impl Secured {
    /// `keys` are more keys below `tls`, in which `DIR` is the folder of the files.
    async fn start(yaml: Yaml, keys: &str) -> Self {
        let (authority, files) = (Authority::new("root"), Files::new());
        let pair = files.pair("server", &authority.server(&[HOST]));
        files.write("ca.pem", authority.pem());
        let keys = keys.replace("DIR", files.path().to_str().unwrap());
        let tls = format!("tls: {{certificates: [{pair}], reload_interval: 20ms{keys}}}");
        let proxy = yaml.listener(&tls).start().await;
        Self {
            authority,
            files,
            proxy,
        }
    }

    fn hands(&self) -> Hands {
        Hands::trusting(&self.authority)
    }

    async fn metric(&self, name: &str) -> u64 {
        let line = format!("thalweg_listener_tls_{name}{{listener=\"it\"}}");
        self.proxy.metric(&line).await
    }

    async fn metric_is(&self, name: &str, wanted: u64) {
        let line = format!("thalweg_listener_tls_{name}{{listener=\"it\"}}");
        self.proxy.metric_is(&line, wanted).await;
    }
}

const REQUIRED: &str = ", client_ca: DIR/ca.pem";
const OPTIONAL: &str = ", client_ca: DIR/ca.pem, client_auth: optional";

async fn echoing() -> Served {
    Upstream::start().await.serve(echo)
}

/// Answers each request with its own [`XFCC`], as the body.
async fn mirroring() -> Served {
    let upstream = Upstream::start().await;
    upstream.serve(|mut call| async move {
        let seen = values(call.headers(), XFCC).join(" | ");
        let alike = call.headers().contains_key("x_forwarded_client_cert");
        let mut outgoing = call.respond_with(200, &[]);
        outgoing
            .data(format!("<{seen}>{}", if alike { " alike" } else { "" }))
            .await;
        outgoing.end();
    })
}

fn der(pair: &Pair) -> CertificateDer<'static> {
    pair.der().0
}

// === handshakes ===

#[tokio::test]
async fn client_gets_the_protocol_that_it_asks_for() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;

    for version in [&TLS12, &TLS13] {
        let hands = it.hands().only(version);
        let client = hands.client(&it.proxy.address, HOST).await;
        let answer = client.unary(ECHO, b"over HTTP/2").await;
        assert_eq!(answer.messages(), ["over HTTP/2"]);

        let answer = hands.get(&it.proxy.address, HOST).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    it.metric_is("handshakes_total", 4).await;
}

#[tokio::test]
async fn client_that_asks_for_no_protocol_may_begin_with_either() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;
    let hands = it.hands().speaking(&[]);

    let stream = hands.shake(&it.proxy.address, HOST).await.unwrap();
    let client = Client::over(stream, &Builder::new()).await;
    assert_eq!(client.unary(ECHO, b"hello").await.code(), Code::Ok);

    let mut stream = hands.shake(&it.proxy.address, HOST).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer comes", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn client_that_knows_neither_protocol_is_told_so() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;

    let hands = it.hands().speaking(&[b"smtp"]);
    let error = hands.shake(&it.proxy.address, HOST).await.unwrap_err();

    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    it.metric_is("handshake_failures_total", 1).await;
}

#[tokio::test]
async fn certificate_is_the_one_with_the_name() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pairs = [
        &["first.test", "127.0.0.1"][..],
        &["a.shop.test"],
        &["*.shop.test", "shop.test"],
    ]
    .map(|names| authority.server(names));
    let names = ["first", "second", "third"];
    let entries = names
        .iter()
        .zip(&pairs)
        .map(|(name, pair)| files.pair(name, pair));
    let entries: Vec<String> = entries.collect();
    let tls = format!("tls: {{certificates: [{}]}}", entries.join(", "));
    let proxy = Yaml::to(&echoing().await).listener(&tls).start().await;
    let hands = Hands::trusting(&authority);

    for (host, index) in [
        ("first.test", 0),
        ("a.shop.test", 1),
        ("A.Shop.test", 1),
        ("b.shop.test", 2),
        ("shop.test", 2),
        // An address is no name: the client asks for none.
        ("127.0.0.1", 0),
    ] {
        let stream = hands.shake(&proxy.address, host).await.unwrap();
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        assert_eq!(*shown, der(&pairs[index]), "{host}");
    }
    for unknown in ["other.test", "a.b.shop.test"] {
        let error = hands.shake(&proxy.address, unknown).await.unwrap_err();
        assert!(
            error.to_string().contains("first.test"),
            "{unknown}: {error}"
        );
    }
}

#[tokio::test]
async fn silent_client_and_one_that_trickles_have_until_the_deadline() {
    let yaml = Yaml::to(&echoing().await).listener("timeouts: {handshake: 200ms}");
    let it = Secured::start(yaml, "").await;

    let mut silent = dial(&it.proxy.address).await;
    let read = within("the connection closes", silent.read_u8()).await;
    assert!(read.is_err());
    it.metric_is("handshake_timeouts_total", 1).await;

    // A handshake record that never ends, a byte at a time.
    let mut trickling = dial(&it.proxy.address).await;
    trickling
        .write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc])
        .await
        .unwrap();
    within("the connection closes", async {
        // Slowly enough that the record is not whole at the deadline.
        while trickling.write_all(&[3]).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    it.metric_is("handshake_timeouts_total", 2).await;
}

#[tokio::test]
async fn garbage_is_a_failure_and_hurts_nobody() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;

    let mut client = dial(&it.proxy.address).await;
    client.write_all(&[0x16; 2000]).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the connection closes", client.read_to_end(&mut answer)).await;

    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    it.metric_is("handshake_failures_total", 1).await;
    let client = it.hands().client(&it.proxy.address, HOST).await;
    assert_eq!(client.unary(ECHO, b"hello").await.code(), Code::Ok);
}

// === the wrong port ===

#[tokio::test]
async fn request_in_the_clear_is_told_to_use_tls() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;

    let mut client = plain::Peer::connect(&it.proxy.address).await;
    client
        .write("GET / HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(head.line, "HTTP/1.1 400 Bad Request");
    assert_eq!(head.values("thalweg-reason"), ["tls_required"]);
    let body = client.rest().await;
    assert!(
        String::from_utf8_lossy(&body).contains("https://"),
        "{body:?}"
    );

    let client = Client::connect(&it.proxy).await;
    let answer = client.unary(ECHO, b"hello").await;
    assert_eq!(answer.code(), Code::FailedPrecondition);
    assert_eq!(answer.reason(), Some("tls_required"));
    it.metric_is("missing_total", 2).await;
}

#[tokio::test]
async fn tls_to_a_plain_port_is_closed_and_counted() {
    let proxy = Yaml::to(&echoing().await).start().await;

    let hands = Hands::trusting(&Authority::new("root"));
    hands.shake(&proxy.address, HOST).await.unwrap_err();

    let line = "thalweg_listener_unexpected_tls_total{listener=\"it\"}";
    proxy.metric_is(line, 1).await;
}

// === clients with certificates ===

#[tokio::test]
async fn required_certificate_must_be_shown_and_believed() {
    let it = Secured::start(Yaml::to(&mirroring().await), REQUIRED).await;
    let stranger = Authority::new("stranger").client("orders", Vec::new(), 1);
    let known = it.authority.client("orders", Vec::new(), 1);

    for version in [&TLS12, &TLS13] {
        let hands = it.hands().only(version);
        // TLS 1.3 tells the client only after the client believes that it is in.
        let error = hands.get(&it.proxy.address, HOST).await.unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("CertificateRequired") || told.contains("HandshakeFailure"),
            "{told}"
        );
        let error = hands
            .clone()
            .showing(&stranger)
            .get(&it.proxy.address, HOST)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("UnknownCA"), "{error}");

        let answer = hands
            .showing(&known)
            .get(&it.proxy.address, HOST)
            .await
            .unwrap();
        assert!(answer.contains("Subject=\"CN=orders\""), "{answer}");
    }
    it.metric_is("handshake_failures_total", 4).await;
}

#[tokio::test]
async fn optional_certificate_may_be_missing_but_not_bad() {
    let it = Secured::start(Yaml::to(&mirroring().await), OPTIONAL).await;
    let stranger = Authority::new("stranger").client("orders", Vec::new(), 1);
    let known = it.authority.client("orders", Vec::new(), 1);

    let answer = it.hands().get(&it.proxy.address, HOST).await.unwrap();
    assert!(answer.contains("\r\n<>\r\n"), "{answer}");
    let answer = it
        .hands()
        .showing(&known)
        .get(&it.proxy.address, HOST)
        .await
        .unwrap();
    assert!(answer.contains("Subject=\"CN=orders\""), "{answer}");
    let hands = it.hands().showing(&stranger);
    hands.get(&it.proxy.address, HOST).await.unwrap_err();
}

#[tokio::test]
async fn revoked_certificate_is_refused() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&[HOST]));
    let ca = files.write("ca.pem", authority.pem());
    let crl = files.write("crl.pem", &authority.revokes(&[7]));
    let tls = format!(
        "tls: {{certificates: [{pair}], client_ca: {}, client_crls: [{}]}}",
        ca.display(),
        crl.display()
    );
    let proxy = Yaml::to(&mirroring().await).listener(&tls).start().await;
    let hands = Hands::trusting(&authority);

    let revoked = hands
        .clone()
        .showing(&authority.client("out", Vec::new(), 7));
    let error = revoked.get(&proxy.address, HOST).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRevoked"), "{error}");
    let good = hands.showing(&authority.client("in", Vec::new(), 8));
    let answer = good.get(&proxy.address, HOST).await.unwrap();
    assert!(answer.contains("CN=in"), "{answer}");
}

#[tokio::test]
async fn upstream_hears_what_the_certificate_says_and_nobody_can_write_into_it() {
    let it = Secured::start(Yaml::to(&mirroring().await), REQUIRED).await;
    let names = vec![
        SanType::URI("spiffe://e2e.test/ns/shop/sa/orders".try_into().unwrap()),
        SanType::URI(
            "https://a.test/?b=c;URI=spiffe://forged,\""
                .try_into()
                .unwrap(),
        ),
        SanType::DnsName("orders.e2e.test".try_into().unwrap()),
    ];
    let pair = it
        .authority
        .client("or\";URI=spiffe://forged,O=x\\ ", names, 1);
    let client = it
        .hands()
        .showing(&pair)
        .client(&it.proxy.address, HOST)
        .await;

    let request = Request::get("https://e2e.test/")
        .header(XFCC, "Subject=\"CN=admin\"")
        .header(XFCC, "Subject=\"CN=root\"")
        .header("x_forwarded_client_cert", "Subject=\"CN=admin\"");
    let answer = client.open(request, true).await.answer().await;

    let seen = String::from_utf8(answer.body.to_vec()).unwrap();
    let (hash, rest) = seen.split_once(';').unwrap();
    let hash = hash.strip_prefix("<Hash=").unwrap();
    assert_eq!(hash.len(), 64, "{seen}");
    assert_eq!(
        rest,
        "Subject=\"CN=or\\22\\3BURI\\3Dspiffe://forged\\2CO\\3Dx\\5C\\20\"\
         ;URI=spiffe://e2e.test/ns/shop/sa/orders\
         ;URI=https://a.test/?b=c%3BURI=spiffe://forged%2C%22\
         ;DNS=orders.e2e.test>"
    );
}

#[tokio::test]
async fn certificate_with_more_names_than_a_header_holds_is_refused() {
    let it = Secured::start(Yaml::to(&mirroring().await), REQUIRED).await;
    let name = |index| SanType::DnsName(format!("host-{index}.e2e.test").try_into().unwrap());
    let pair = it.authority.client("many", (0..300).map(name).collect(), 1);

    let hands = it.hands().showing(&pair);
    let answer = hands.get(&it.proxy.address, HOST).await.unwrap();

    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains("thalweg-reason: client_certificate_refused"),
        "{answer}"
    );
}

/// Long enough for a handshake and a call on a busy machine.
const BRIEF: i64 = 3;

#[tokio::test]
async fn streams_end_with_the_certificate_of_their_client() {
    let mut upstream = Upstream::start().await;
    let it = Secured::start(Yaml::to(&upstream), REQUIRED).await;
    let lasting = it
        .hands()
        .showing(&it.authority.client("lasting", vec![], 1));
    let lasting = lasting.client(&it.proxy.address, HOST).await;
    let mut other = lasting.call(ECHO, &[]).await;
    let mut other_running = upstream.call().await;
    let brief = it
        .hands()
        .showing(&it.authority.brief_client("brief", BRIEF));
    let client = brief.client(&it.proxy.address, HOST).await;
    let mut call = client.call(ECHO, &[]).await;
    call.outgoing.message(b"hello").await;
    let mut running = upstream.call().await;
    assert_eq!(running.incoming.message().await.unwrap(), "hello");

    let answer = call.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("client_certificate_expired"))
    );
    assert_eq!(running.incoming.broken().await, h2::Reason::CANCEL);
    let live = "thalweg_listener_connections_live{listener=\"it\"}";
    it.proxy.metric_is(live, 1).await;
    it.metric_is("expired_clients_total", 1).await;
    // Who has a certificate that is still good notices nothing.
    other.outgoing.message(b"still here").await;
    assert_eq!(
        other_running.incoming.message().await.unwrap(),
        "still here"
    );
    other_running.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(other.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn connection_over_http1_ends_with_the_certificate_of_its_client() {
    let it = Secured::start(Yaml::to(&echoing().await), REQUIRED).await;
    let pair = it.authority.brief_client("brief", BRIEF);
    let hands = it.hands().showing(&pair).speaking(&[b"http/1.1"]);
    let mut idle = hands.shake(&it.proxy.address, HOST).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await
        .unwrap();

    let mut answer = String::new();
    let read = idle.read_to_string(&mut answer);
    within("the connection ends", read).await.unwrap();

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    it.metric_is("expired_clients_total", 1).await;
}

#[tokio::test]
async fn clients_in_the_clear_cannot_name_themselves() {
    let proxy = Yaml::to(&mirroring().await).start().await;

    let request = Request::get("http://e2e.test/")
        .header(XFCC, "Subject=\"CN=admin\"")
        .header("x_forwarded-client_cert", "Subject=\"CN=admin\"")
        .header("x_forwarded_client_cert", "Subject=\"CN=admin\"");
    let answer = Client::connect(&proxy)
        .await
        .open(request, true)
        .await
        .answer()
        .await;

    assert_eq!(answer.body, "<>");
}

// === sessions ===

/// Connects once for a ticket and once to use it; says how the second handshake went.
async fn come_back(
    hands: &Hands,
    first: &TestProxy,
    second: &TestProxy,
) -> io::Result<HandshakeKind> {
    hands.get(&first.address, HOST).await?;
    let stream = hands.shake(&second.address, HOST).await?;
    Ok(stream.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test]
async fn session_is_resumed_and_its_client_still_known() {
    let it = Secured::start(Yaml::to(&mirroring().await), REQUIRED).await;
    let pair = it.authority.client("orders", Vec::new(), 1);

    for version in [&TLS12, &TLS13] {
        let hands = it.hands().only(version).showing(&pair);
        let before = it.metric("resumed_total").await;
        let kind = come_back(&hands, &it.proxy, &it.proxy).await.unwrap();
        assert_eq!(kind, HandshakeKind::Resumed);
        it.metric_is("resumed_total", before + 1).await;

        let answer = hands.get(&it.proxy.address, HOST).await.unwrap();
        assert!(answer.contains("Subject=\"CN=orders\""), "{answer}");
        it.metric_is("resumed_total", before + 2).await;
    }
}

#[tokio::test]
async fn session_of_one_listener_is_none_on_another() {
    let upstream = mirroring().await;
    let open = Secured::start(Yaml::to(&upstream), "").await;
    let pair = open.files.pair("server", &open.authority.server(&[HOST]));
    let tls = format!(
        "tls: {{certificates: [{pair}], client_ca: {}/ca.pem}}",
        open.files.path().display()
    );
    let closed = Yaml::to(&upstream).listener(&tls).start().await;

    for version in [&TLS12, &TLS13] {
        let hands = open.hands().only(version);
        assert_eq!(
            come_back(&hands, &open.proxy, &open.proxy).await.unwrap(),
            HandshakeKind::Resumed
        );
        let came_back = hands.get(&closed.address, HOST).await;
        came_back.expect_err("a client without a certificate is refused, ticket or not");
    }
}

#[tokio::test]
async fn revocation_makes_old_tickets_void() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&[HOST]));
    let ca = files.write("ca.pem", authority.pem());
    let crl = files.write("crl.pem", &authority.revokes(&[]));
    let tls = format!(
        "tls: {{certificates: [{pair}], client_ca: {}, client_crls: [{}], reload_interval: 20ms}}",
        ca.display(),
        crl.display()
    );
    let proxy = Yaml::to(&mirroring().await).listener(&tls).start().await;
    let hands = Hands::trusting(&authority).showing(&authority.client("out", Vec::new(), 7));
    let kind = come_back(&hands, &proxy, &proxy).await.unwrap();
    assert_eq!(kind, HandshakeKind::Resumed);

    files.write("crl.pem", &authority.revokes(&[7]));
    let line = "thalweg_listener_tls_reloads_total{listener=\"it\"}";
    proxy.metric_is(line, 1).await;

    let error = hands.get(&proxy.address, HOST).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRevoked"), "{error}");
}

// === renewal ===

#[tokio::test]
async fn renewed_certificate_is_used_and_open_streams_notice_nothing() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;
    let hands = it.hands();
    let client = hands.client(&it.proxy.address, HOST).await;
    let mut call = client.call(ECHO, &[]).await;
    call.outgoing.message(b"before").await;
    let (_, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "before");

    let renewed = it.authority.server(&[HOST]);
    it.files.pair("server", &renewed);
    it.metric_is("reloads_total", 1).await;

    let stream = it.hands().shake(&it.proxy.address, HOST).await.unwrap();
    assert_eq!(
        stream.get_ref().1.peer_certificates().unwrap()[0],
        der(&renewed)
    );
    call.outgoing.message(b"after").await;
    assert_eq!(incoming.message().await.unwrap(), "after");
    // A ticket from before is good still: who is believed has not changed.
    let stream = hands.shake(&it.proxy.address, HOST).await.unwrap();
    assert_eq!(
        stream.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
}

#[tokio::test]
async fn broken_renewal_is_counted_and_the_old_certificate_stays() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;
    let expiry = it.metric("certificate_expiry_seconds").await;
    assert!(expiry > 0);

    // The certificate without its key.
    it.files
        .write("server.pem", &it.authority.expired(HOST).cert);
    let line = "thalweg_listener_tls_reload_failures_total{listener=\"it\"}";
    it.proxy.reaches(line, 2).await;
    let client = it.hands().client(&it.proxy.address, HOST).await;
    assert_eq!(client.unary(ECHO, b"hello").await.code(), Code::Ok);
    assert_eq!(it.metric("certificate_expiry_seconds").await, expiry);

    // And both, in the end.
    it.files.pair("server", &it.authority.expired(HOST));
    it.metric_is("reloads_total", 1).await;
    assert_eq!(it.metric("certificate_expiry_seconds").await, 978_307_200);
}

#[tokio::test]
async fn swap_of_a_link_to_a_folder_is_a_renewal() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let renewed = authority.server(&[HOST]);
    for (folder, pair) in [
        ("first", authority.server(&[HOST])),
        ("second", renewed.clone()),
    ] {
        std::fs::create_dir(files.path().join(folder)).unwrap();
        files.pair(&format!("{folder}/server"), &pair);
    }
    let dir = files.path();
    symlink("first", dir.join("..data")).unwrap();
    for name in ["server.pem", "server.key"] {
        symlink(format!("..data/{name}"), dir.join(name)).unwrap();
    }
    let tls = format!(
        "tls: {{certificates: [{{cert: {0}/server.pem, key: {0}/server.key}}], reload_interval: 20ms}}",
        dir.display()
    );
    let proxy = Yaml::to(&echoing().await).listener(&tls).start().await;

    symlink("second", dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();

    let line = "thalweg_listener_tls_reloads_total{listener=\"it\"}";
    proxy.metric_is(line, 1).await;
    let hands = Hands::trusting(&authority);
    let stream = hands.shake(&proxy.address, HOST).await.unwrap();
    assert_eq!(
        stream.get_ref().1.peer_certificates().unwrap()[0],
        der(&renewed)
    );
}

// === ends ===

/// Begins an upload over HTTP/1.1; gives back its connection, and the head as the upstream saw it.
async fn upload(
    it: &Secured,
    upstream: &PlainUpstream,
) -> (
    tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    plain::Peer,
) {
    let hands = it.hands().speaking(&[b"http/1.1"]);
    let mut stream = hands.shake(&it.proxy.address, HOST).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nhost: e2e.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut peer = upstream.accept().await;
    peer.head().await;
    assert_eq!(peer.chunk().await, "hello");
    (stream, peer)
}

#[tokio::test]
async fn half_a_record_is_no_part_of_an_upload() {
    let upstream = PlainUpstream::bind().await;
    let it = Secured::start(Yaml::to_http1(&upstream.address), "").await;
    let (stream, mut peer) = upload(&it, &upstream).await;

    let (mut socket, mut tls) = stream.into_inner();
    io::Write::write_all(&mut tls.writer(), b"0\r\n\r\n").unwrap();
    let mut sealed = Vec::new();
    tls.write_tls(&mut sealed).unwrap();
    socket.write_all(&sealed[..sealed.len() - 1]).await.unwrap();
    socket.shutdown().await.unwrap();

    assert_eq!(
        peer.rest().await,
        "",
        "the upstream's connection breaks within the body"
    );
}

#[tokio::test]
async fn upload_whose_socket_just_ends_is_not_whole() {
    let upstream = PlainUpstream::bind().await;
    let it = Secured::start(Yaml::to_http1(&upstream.address), "").await;
    let (stream, mut peer) = upload(&it, &upstream).await;

    drop(stream.into_inner());

    assert_eq!(
        peer.rest().await,
        "",
        "the upstream's connection breaks within the body"
    );
}

#[tokio::test]
async fn answer_without_length_ends_with_a_word_only_if_it_is_whole() {
    for whole in [true, false] {
        let mut upstream = Upstream::start().await;
        let it = Secured::start(Yaml::to(&upstream), "").await;
        let hands = it.hands().speaking(&[b"http/1.1"]);
        let mut stream = hands.shake(&it.proxy.address, HOST).await.unwrap();
        // To a client of HTTP/1.0, an answer lasts as long as the connection.
        stream
            .write_all(b"GET / HTTP/1.0\r\nhost: e2e.test\r\n\r\n")
            .await
            .unwrap();
        let mut call = upstream.call().await;
        let mut outgoing = call.respond_with(200, &[]);
        outgoing.data("some of it").await;

        let mut head = [0; 12];
        within("the answer begins", stream.read_exact(&mut head))
            .await
            .unwrap();
        assert_eq!(&head, b"HTTP/1.0 200");
        if whole {
            outgoing.end();
        } else {
            outgoing.reset(h2::Reason::INTERNAL_ERROR);
        }

        let mut rest = Vec::new();
        let read = within("the answer ends", stream.read_to_end(&mut rest)).await;
        match read {
            Ok(_) => assert!(whole && rest.ends_with(b"some of it"), "{rest:?}"),
            Err(error) => {
                assert!(!whole, "{error}");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
            }
        }
    }
}

#[tokio::test]
async fn drain_ends_connections_with_a_word() {
    let mut upstream = Upstream::start().await;
    let it = Secured::start(Yaml::to(&upstream), "").await;
    let hands = it.hands();
    let mut idle = hands.shake(&it.proxy.address, HOST).await.unwrap();
    let mut said = raw::PREFACE.to_vec();
    said.extend(raw::settings(&[]));
    said.extend(raw::settings_ack());
    idle.write_all(&said).await.unwrap();
    let client = hands.client(&it.proxy.address, HOST).await;
    let mut call = client.call(ECHO, &[]).await;
    let mut running = upstream.call().await;

    let drained = tokio::spawn(it.proxy.drain());
    running.finish_with(200, &[("grpc-status", "0")]);

    assert_eq!(call.answer().await.code(), Code::Ok);
    drop(client);
    drop(idle);
    within("the drain ends", drained).await.unwrap();
}

// === bytes ===

#[tokio::test]
async fn bytes_of_every_size_come_whole_both_ways() {
    let it = Secured::start(Yaml::to(&echoing().await), "").await;
    let client = it.hands().client(&it.proxy.address, HOST).await;

    for size in [0, 1, 100, 4096, 16_383, 16_384, 16_385, 70_000, 1_000_000] {
        let sent: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        let answer = client.unary(ECHO, &sent).await;
        assert!(answer.messages() == [sent], "{size}");
    }
}

#[tokio::test]
async fn large_streams_both_ways_and_a_client_that_reads_nothing_cost_little_memory() {
    const LARGE: usize = 64 << 20;
    const MOST: usize = 24 << 20;
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 60_000])).await;
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&[HOST]));
    let proxy = Running::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\", tls: {{certificates: [{pair}]}}}}]\n\
         clusters: {{main: {{endpoints: [{}]}}}}\n\
         routes: [{{name: main, cluster: main}}]\n",
        backend.upstream
    ))
    .await;
    let mut builder = Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    let hands = Hands::trusting(&authority);
    let client = hands.client_with(&proxy.address, HOST, &builder).await;
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

    let mut stuck = hands.shake(&proxy.address, HOST).await.unwrap();
    let mut said = raw::PREFACE.to_vec();
    said.extend(raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 1 << 30)]));
    said.extend(raw::window_update(0, 1 << 30));
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", FLOOD),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    said.extend(raw::headers(1, &fields, true));
    stuck.write_all(&said).await.unwrap();
    let flood = backend.flood().await;
    flood.sent.reach(4 << 20).await;
    assert_eq!(client.unary(ECHO, b"others").await.code(), Code::Ok);

    let more = proxy.memory().saturating_sub(base);
    assert!(more < MOST, "{more} bytes more than before");
}

#[tokio::test]
async fn client_that_takes_nothing_stalls_under_tls_too() {
    let mut backend = Backend::start(&upstream::builder(), framed(&[7; 60_000])).await;
    let yaml = Yaml::to(&backend.upstream).listener("timeouts: {stall: 200ms}");
    let it = Secured::start(yaml, "").await;
    let mut builder = Builder::new();
    builder
        .initial_window_size(1 << 30)
        .initial_connection_window_size(1 << 30);
    let stream = it.hands().shake(&it.proxy.address, HOST).await.unwrap();
    let (mut sender, mut connection) = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let request = Request::post(format!("https://e2e.test{FLOOD}"));
    let request = request
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (_response, _outgoing) = sender.send_request(request, true).unwrap();

    // Driven until the flood has begun, and then no more.
    let flood = tokio::select! {
        flood = backend.flood() => flood,
        ended = &mut connection => panic!("{ended:?}"),
    };

    flood.broken().await;
    let line = "thalweg_listener_stalls_total{listener=\"it\"}";
    it.proxy.metric_is(line, 1).await;
}

#[tokio::test]
async fn workers_know_the_sessions_of_each_other() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&[HOST]));
    let upstream = mirroring().await;
    let proxy = TestProxy::start_as(&format!(
        "admin: {{address: \"127.0.0.1:0\"}}\nworkers: 4\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\", tls: {{certificates: [{pair}]}}}}]\n\
         clusters: {{main: {{endpoints: [{upstream}]}}}}\nroutes: [{{name: main, cluster: main}}]\n"
    ))
    .await;
    let hands = Hands::trusting(&authority);
    hands.get(&proxy.address, HOST).await.unwrap();

    // Each stays open, and so the next goes to another worker.
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = hands.shake(&proxy.address, HOST).await.unwrap();
        assert_eq!(
            stream.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Resumed)
        );
        // The tickets for the next time come with the first bytes.
        let mut said = raw::PREFACE.to_vec();
        said.extend(raw::settings(&[]));
        stream.write_all(&said).await.unwrap();
        within("the proxy answers", stream.read_u8()).await.unwrap();
        open.push(stream);
    }
}

// === the command line ===

#[tokio::test]
async fn certificates_to_try_with_are_made_and_work() {
    let folder = Folder::empty();
    let said = folder.run(&["certs", "--dir", "tls", "--name", HOST]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stdout.contains("cert: tls/server.pem"),
        "{}",
        said.stdout
    );
    let read = |name: &str| std::fs::read_to_string(folder.path().join("tls").join(name)).unwrap();
    for (name, mode) in [
        ("ca.key", 0o600),
        ("server.key", 0o600),
        ("client.key", 0o600),
        ("ca.pem", 0o644),
    ] {
        let found = std::fs::metadata(folder.path().join("tls").join(name)).unwrap();
        assert_eq!(
            std::os::unix::fs::MetadataExt::mode(&found) & 0o777,
            mode,
            "{name}"
        );
    }

    let before = read("server.key");
    let said = folder.run(&["certs", "--name", HOST]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("--force"), "{}", said.stderr);
    assert_eq!(read("server.key"), before);
    let said = folder.run(&["certs", "--name", HOST, "--force"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_ne!(read("server.key"), before);

    let dir = folder.path().join("tls");
    let tls = format!(
        "tls: {{certificates: [{{cert: {0}/server.pem, key: {0}/server.key}}], client_ca: {0}/ca.pem}}",
        dir.display()
    );
    let proxy = Yaml::to(&mirroring().await).listener(&tls).start().await;
    let pair = Pair {
        cert: read("client.pem"),
        key: read("client.key"),
    };
    let hands = Hands::trusting_pem(&read("ca.pem")).showing(&pair);
    let answer = hands.get(&proxy.address, HOST).await.unwrap();
    assert!(
        answer.contains("URI=spiffe://thalweg.test/client"),
        "{answer}"
    );
}

#[tokio::test]
async fn expired_certificate_is_a_warning() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.expired(HOST));
    let folder = Folder::with(&format!(
        "listeners:\n  - name: it\n    address: 127.0.0.1:0\n    tls:\n      certificates: [{pair}]\n"
    ));

    let said = folder.run(&["check"]).await;

    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("config.yaml:5:"), "{}", said.stdout);
    assert!(
        said.stdout.contains("the certificate has expired"),
        "{}",
        said.stdout
    );
}
