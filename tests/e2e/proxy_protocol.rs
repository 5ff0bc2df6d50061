//! Who may say where a connection comes from, and what becomes of those who say it badly.

use h2::client::Builder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    authority::{Authority, Files},
    client::{Client, grpc},
    flood::ECHO,
    hands::{Hands, dial},
    proxy::{TestProxy, Yaml},
    upstream::{Call, Served, Upstream},
    values, within,
};

const TRUSTED: &str = "proxy_protocol: {trusted: [127.0.0.0/8]}";
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: e2e\r\nconnection: close\r\n\r\n";

/// A header of version 2, from `[2001:db8::7]:4660`.
fn binary() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    header.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    header.extend([0; 16]);
    header.extend([0x12, 0x34, 0x01, 0xbb]);
    header
}

/// Answers each request with its own `x-forwarded-for`, as the body.
async fn mirroring() -> Served {
    let upstream = Upstream::start().await;
    upstream.serve(|mut call: Call| async move {
        let seen = values(call.headers(), "x-forwarded-for").join(" | ");
        let mut outgoing = call.respond_with(200, &[]);
        outgoing.data(format!("<{seen}>")).await;
        outgoing.end();
    })
}

async fn proxy(keys: &str) -> TestProxy {
    Yaml::to(&mirroring().await.address)
        .listener(keys)
        .start()
        .await
}

fn metric(name: &str) -> String {
    format!("thalweg_listener_proxy_header{name}_total{{listener=\"it\"}}")
}

/// A connection that begins with these bytes.
async fn saying(proxy: &TestProxy, bytes: &[u8]) -> TcpStream {
    let mut socket = dial(&proxy.address).await;
    socket.write_all(bytes).await.unwrap();
    socket
}

/// All that comes up to the end; what was lost to a reset did not come.
async fn rest(mut socket: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = within("the connection ends", socket.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

/// What the upstream has seen, asked over HTTP/2.
async fn seen(client: &Client) -> String {
    let mut call = client.open(grpc(ECHO), true).await;
    let (_, mut incoming) = call.head().await;
    let (body, _) = incoming.rest().await;
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn address_of_the_client_reaches_the_upstream_over_http1() {
    let proxy = proxy(TRUSTED).await;

    for (header, told) in [(LINE, "<192.0.2.7>"), (&binary(), "<2001:db8::7>")] {
        let socket = saying(&proxy, &[header, REQUEST].concat()).await;
        let answer = rest(socket).await;
        assert!(answer.contains(told), "{answer}");
    }
    assert_eq!(proxy.metric(&metric("s")).await, 2);
}

#[tokio::test]
async fn address_of_the_client_reaches_the_upstream_over_http2_on_every_stream() {
    let proxy = proxy(TRUSTED).await;
    let socket = saying(&proxy, LINE).await;
    let client = Client::over(socket, &Builder::new()).await;

    for _ in 0..3 {
        assert_eq!(seen(&client).await, "<192.0.2.7>");
    }
}

#[tokio::test]
async fn header_comes_before_tls() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&["e2e.test"]));
    let proxy = proxy(&format!("{TRUSTED}, tls: {{certificates: [{pair}]}}")).await;
    let hands = Hands::trusting(&authority);

    let socket = saying(&proxy, &binary()).await;
    let stream = hands.shake_on(socket, "e2e.test").await.unwrap();
    let client = Client::over(stream, &Builder::new()).await;

    assert_eq!(seen(&client).await, "<2001:db8::7>");
}

#[tokio::test]
async fn header_may_come_in_single_bytes() {
    let proxy = proxy(TRUSTED).await;
    for header in [LINE, &binary()] {
        let mut socket = dial(&proxy.address).await;
        for byte in header {
            // Without delay on the socket, each byte is a segment of its own.
            socket.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let client = Client::over(socket, &Builder::new()).await;
        assert_ne!(seen(&client).await, "<127.0.0.1>");
    }
}

#[tokio::test]
async fn balancer_that_speaks_for_itself_is_itself() {
    let proxy = proxy(TRUSTED).await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for header in [&local[..], b"PROXY UNKNOWN\r\n"] {
        let client = Client::over(saying(&proxy, header).await, &Builder::new()).await;
        assert_eq!(seen(&client).await, "<127.0.0.1>");
    }
}

#[tokio::test]
async fn clients_own_words_are_not_passed_on() {
    let proxy = proxy(TRUSTED).await;
    let request =
        "GET / HTTP/1.1\r\nhost: e2e\r\nx-forwarded-for: 10.9.8.7\r\nconnection: close\r\n\r\n";
    let socket = saying(&proxy, &[LINE, request.as_bytes()].concat()).await;

    let answer = rest(socket).await;

    assert!(answer.contains("<192.0.2.7>"), "{answer}");
}

#[tokio::test]
async fn trusted_peer_without_a_good_header_is_closed_and_counted() {
    let proxy = proxy(TRUSTED).await;
    let cut = &LINE[..20];
    let bad_version = b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c";
    for (count, bytes) in [
        REQUEST,
        b"PROXY TCP4 nonsense\r\n",
        bad_version,
        &[b'\r'; 300],
        cut,
    ]
    .into_iter()
    .enumerate()
    {
        let mut socket = saying(&proxy, bytes).await;
        socket.shutdown().await.unwrap();
        assert_eq!(rest(socket).await, "", "{bytes:?}");
        proxy
            .metric_is(&metric("_failures"), count as u64 + 1)
            .await;
    }

    // One that says nothing just looks whether anybody listens.
    let mut socket = dial(&proxy.address).await;
    socket.shutdown().await.unwrap();
    assert_eq!(rest(socket).await, "");
    assert_eq!(proxy.metric(&metric("_failures")).await, 5);
    assert_eq!(proxy.metric(&metric("s")).await, 0);
}

#[tokio::test]
async fn header_has_until_the_deadline_of_the_handshake() {
    let proxy = proxy(&format!("{TRUSTED}, timeouts: {{handshake: 50ms}}")).await;

    let socket = saying(&proxy, &LINE[..20]).await;

    assert_eq!(rest(socket).await, "");
    proxy.metric_is(&metric("_timeouts"), 1).await;
}

#[tokio::test]
async fn header_of_a_stranger_is_a_bad_request_and_nobody_is_somebody_else() {
    let proxy = proxy("proxy_protocol: {trusted: [10.0.0.0/8, \"::/0\"]}").await;

    for header in [LINE, &binary()] {
        let answer = rest(saying(&proxy, &[header, REQUEST].concat()).await).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{answer}"
        );
        assert!(!answer.contains('<'), "{answer}");
    }
    // Without one it is served as who it is.
    let answer = rest(saying(&proxy, REQUEST).await).await;
    assert!(answer.contains("<127.0.0.1>"), "{answer}");
    assert_eq!(proxy.metric(&metric("s")).await, 0);
}

#[tokio::test]
async fn listener_without_the_key_takes_no_header() {
    let proxy = proxy("max_connections: 10").await;

    let answer = rest(saying(&proxy, &[LINE, REQUEST].concat()).await).await;
    assert!(!answer.contains('<'), "{answer}");
    let answer = rest(saying(&proxy, REQUEST).await).await;
    assert!(answer.contains("<127.0.0.1>"), "{answer}");
}
