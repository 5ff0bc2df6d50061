//! What is taken from a request and set on it before its route is looked for, and what is not let in.

use h2::client::Builder;
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    authority::{Authority, Files},
    client::{Client, grpc},
    hands::{Hands, dial},
    plain::{self, PlainUpstream},
    proxy::{TestProxy, Yaml},
    raw,
    upstream::{Call, Served, Upstream},
    values, within,
};

/// Answers each request with its path and headers, a line each.
async fn mirroring() -> Served {
    let upstream = Upstream::start().await;
    upstream.serve(|mut call: Call| async move {
        let mut seen = format!("path: {}\n", call.head.uri);
        for (name, value) in call.headers() {
            seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        let mut outgoing = call.respond_with(200, &[("mirrored", "yes")]);
        outgoing.data(seen).await;
        outgoing.end();
    })
}

/// What came back for a request: of the upstream, its mirror image.
struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    /// What the upstream saw under a name.
    fn seen(&self, name: &str) -> Vec<&str> {
        assert!(self.text.contains("mirrored: yes"), "{}", self.text);
        let (_, body) = self.text.split_once("\r\n\r\n").unwrap();
        let lines = body.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// Whether the proxy refused it for this reason, and the upstream never heard of it.
    #[track_caller]
    fn is_refused(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        let told = format!("thalweg-reason: {reason}\r\n");
        assert!(self.text.contains(&told), "{}", self.text);
    }
}

/// Asks over HTTP/1.1, each line of the fields with its end.
async fn ask(address: &Address, target: &str, fields: &str) -> Answer {
    let mut socket = dial(address).await;
    let request =
        format!("GET {target} HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n{fields}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    within("the answer comes", socket.read_to_string(&mut text))
        .await
        .unwrap();
    Answer {
        status: text.split(' ').nth(1).unwrap().parse().unwrap(),
        text,
    }
}

/// What the upstream has seen of a request over HTTP/2.
async fn seen(client: &Client, headers: &[(&str, &str)]) -> http::HeaderMap {
    let mut request = grpc("/e2e.Echo/Talk");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut call = client.open(request, true).await;
    let (_, mut incoming) = call.head().await;
    let (body, _) = incoming.rest().await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut seen = http::HeaderMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
        seen.append(
            http::HeaderName::try_from(name).unwrap(),
            value.parse().unwrap(),
        );
    }
    seen
}

// === what belongs to the connection ===

/// The proxy's own headers and those that the upstream trusts are out of the reach of `Connection`.
#[tokio::test]
async fn connection_that_names_what_is_not_its_own_is_refused() {
    let proxy = Yaml::to(&mirroring().await.address).start().await;

    for name in [
        "host",
        "x-forwarded-for",
        "x_forwarded_for",
        "X-Forwarded-Client-Cert",
        "content-length",
        "authorization",
        "dapr-api-token",
        "grpc-timeout",
        ":authority",
    ] {
        let fields = format!("connection: close, {name}\r\n");
        let answer = ask(&proxy.address, "/", &fields).await;
        answer.is_refused(400, "bad_connection");
    }
}

#[tokio::test]
async fn what_belongs_to_the_connection_does_not_pass_and_no_route_is_found_by_it() {
    let upstream = PlainUpstream::bind().await;
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [\"{}\"], protocol: http1}}}}\n\
         routes:\n\
         - {{name: private, match: {{headers: {{x-private: \"1\"}}}}, cluster: main}}\n\
         - {{name: main, match: {{path: /open}}, cluster: main}}\n",
        upstream.address
    ))
    .await;

    let private = "connection: x-private, keep-alive\r\nkeep-alive: timeout=5\r\nx-private: 1\r\n";
    let answer = ask(&proxy.address, "/hidden", private).await;
    answer.is_refused(404, "no_route");

    let mut client = plain::Peer::connect(&proxy.address).await;
    client
        .write(format!(
            "GET /open HTTP/1.1\r\nhost: e2e.test\r\n{private}\r\n"
        ))
        .await;
    let head = upstream.accept().await.head().await;
    for gone in ["x-private", "keep-alive"] {
        assert!(!head.has(gone), "{head:?}");
    }
    assert_eq!(head.values("host"), ["e2e.test"]);
    assert_eq!(head.values("x-forwarded-for"), ["127.0.0.1"]);
}

/// RFC 9113, 8.2.2.
#[tokio::test]
async fn over_http2_connection_is_malformed() {
    let proxy = Yaml::to(&mirroring().await.address).start().await;
    let mut client = raw::Peer::client(&proxy.address, &[]).await;
    let head = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "e2e.test"),
        (":path", "/"),
        ("connection", "x-forwarded-for"),
    ];

    client.write(&raw::headers(1, &head, true)).await;

    let end = client.until(|frame| frame.stream == 1).await;
    assert_eq!(end.kind, raw::RST_STREAM, "{end:?}");
}

// === who the client is ===

const FORGED: [(&str, &str); 9] = [
    ("x-forwarded-for", "6.6.6.6"),
    ("x_forwarded_for", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-port", "443"),
    ("x_forwarded-client_cert", "Hash=00"),
    ("forwarded", "for=6.6.6.6"),
    ("x-real-ip", "6.6.6.6"),
    ("x_real_ip", "6.6.6.6"),
];

#[tokio::test]
async fn upstream_is_told_who_the_client_is_and_never_by_the_client() {
    let proxy = Yaml::to(&mirroring().await.address).start().await;
    let client = Client::connect(&proxy).await;

    for headers in [&FORGED[..], &[]] {
        let fields: String = (headers.iter())
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let over_http1 = ask(&proxy.address, "/", &fields).await;
        let over_http2 = seen(&client, headers).await;
        for (name, told) in [
            ("x-forwarded-for", vec!["127.0.0.1"]),
            ("x-forwarded-proto", vec!["http"]),
            ("x-forwarded-host", vec!["e2e.test"]),
            ("x-forwarded-port", vec![]),
            ("x_forwarded_for", vec![]),
            ("x_forwarded-client_cert", vec![]),
            ("forwarded", vec![]),
            ("x-real-ip", vec![]),
            ("x_real_ip", vec![]),
        ] {
            assert_eq!(over_http1.seen(name), told, "{name}");
            assert_eq!(values(&over_http2, name), told, "{name}");
        }
    }
}

#[tokio::test]
async fn proxy_in_a_trusted_network_is_believed_and_told_of_as_well() {
    let trusted = "forwarded: {trusted: [127.0.0.0/8]}";
    let proxy = Yaml::to(&mirroring().await.address)
        .listener(trusted)
        .start()
        .await;
    let fields = "x-forwarded-for: 198.51.100.1\r\nx-forwarded-for: 203.0.113.1\r\n\
                  x-forwarded-proto: https\r\nx-forwarded-host: shop.test\r\n\
                  forwarded: for=198.51.100.1\r\nx_forwarded_for: 6.6.6.6\r\n";

    let answer = ask(&proxy.address, "/", fields).await;

    for (name, told) in [
        (
            "x-forwarded-for",
            vec!["198.51.100.1, 203.0.113.1, 127.0.0.1"],
        ),
        ("x-forwarded-proto", vec!["https"]),
        ("x-forwarded-host", vec!["shop.test"]),
        ("forwarded", vec!["for=198.51.100.1"]),
        ("x_forwarded_for", vec![]),
    ] {
        assert_eq!(answer.seen(name), told, "{name}");
    }
}

/// Trust in the balancer that passes on TCP is no trust in whoever comes through it.
#[tokio::test]
async fn behind_a_balancer_it_is_the_client_who_is_trusted_or_not() {
    let keys = "proxy_protocol: {trusted: [127.0.0.0/8]}, forwarded: {trusted: [127.0.0.0/8, 192.0.2.0/24]}";
    let proxy = Yaml::to(&mirroring().await.address)
        .listener(keys)
        .start()
        .await;

    for (line, told) in [
        ("PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n", "203.0.113.9"),
        (
            "PROXY TCP4 192.0.2.9 10.0.0.1 1 2\r\n",
            "6.6.6.6, 192.0.2.9",
        ),
    ] {
        let mut socket = dial(&proxy.address).await;
        socket.write_all(line.as_bytes()).await.unwrap();
        let client = Client::over(socket, &Builder::new()).await;
        let seen = seen(&client, &[("x-forwarded-for", "6.6.6.6")]).await;
        assert_eq!(values(&seen, "x-forwarded-for"), [told]);
    }
}

#[tokio::test]
async fn proto_is_that_of_the_clients_connection() {
    let (authority, files) = (Authority::new("root"), Files::new());
    let pair = files.pair("server", &authority.server(&["e2e.test"]));
    let proxy = Yaml::to(&mirroring().await.address)
        .listener(&format!("tls: {{certificates: [{pair}]}}"))
        .start()
        .await;
    let client = Hands::trusting(&authority)
        .client(&proxy.address, "e2e.test")
        .await;

    let seen = seen(&client, &[("x-forwarded-proto", "http")]).await;

    assert_eq!(values(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&seen, "x-forwarded-host"), ["e2e.test"]);
}

#[tokio::test]
async fn peer_of_a_unix_socket_has_no_address_and_is_believed_if_so_told() {
    let folder = tempfile::tempdir().unwrap();
    let forged = [("x-forwarded-for", "6.6.6.6")];
    for (keys, told) in [
        ("max_connections: 10", vec![]),
        ("forwarded: {trusted: [unix]}", vec!["6.6.6.6"]),
    ] {
        let socket = folder.path().join(format!("{}.sock", told.len()));
        let proxy = Yaml::to(&mirroring().await.address)
            .at(format!("unix:{}", socket.display()))
            .listener(keys)
            .start()
            .await;
        let client = Client::connect(&proxy).await;

        let seen = seen(&client, &forged).await;

        assert_eq!(values(&seen, "x-forwarded-for"), told);
        assert_eq!(values(&seen, "x-forwarded-proto"), ["http"]);
    }
}

#[tokio::test]
async fn upstreams_that_are_strangers_are_told_nothing() {
    let proxy = Yaml::to(&mirroring().await.address)
        .listener("forwarded: {set: false}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let seen = seen(&client, &FORGED).await;

    for (name, _) in FORGED {
        assert!(!seen.contains_key(name), "{name}");
    }
}

/// To many servers `x_tenant` is `x-tenant`.
#[tokio::test]
async fn twins_of_headers_that_a_filter_sets_are_taken_away() {
    let filter = "filters: [{initial_message: {headers: {x-tenant: \"1\"}}}]";
    let proxy = Yaml::to(&mirroring().await.address)
        .route(filter)
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let forged = [
        ("x_tenant", "forged"),
        ("x-tenant", "forged"),
        ("x_other", "1"),
    ];

    let mut call = client.call("/e2e.Echo/Talk", &forged).await;
    call.outgoing.message(b"\x0a\x03red").await;
    call.outgoing.end();
    let answer = call.answer().await;

    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.contains("x-tenant: red\n"), "{text}");
    assert!(text.contains("x_other: 1\n"), "{text}");
    assert!(!text.contains("forged"), "{text}");
}

// === paths ===

const IN_DOUBT: [&str; 10] = [
    "/public/../admin",
    "/public/./admin",
    "/public/%2e%2e/admin",
    "/public/.%2E/admin",
    "/public/..;/admin",
    "/public/..%2fadmin",
    "/public/..%5cadmin",
    "/public/..\\admin",
    "/public/a%00",
    "/public/%61dmin",
];

async fn public(keys: &str) -> TestProxy {
    Yaml::to(&mirroring().await.address)
        .listener(keys)
        .route("match: {path_prefix: /public/}")
        .start()
        .await
}

#[tokio::test]
async fn path_that_servers_read_differently_is_refused() {
    let proxy = public("max_connections: 10").await;
    let client = Client::connect(&proxy).await;

    for path in IN_DOUBT {
        ask(&proxy.address, path, "")
            .await
            .is_refused(400, "bad_path");
        // Over HTTP/2, and for gRPC.
        let answer = client.unary(path, b"").await;
        assert_eq!(answer.code(), Code::InvalidArgument, "{path}");
        assert_eq!(answer.headers["thalweg-reason"], "bad_path");
    }
    for path in [
        "/public/a//b",
        "/public/.well-known",
        "/public/a%20b?x=/../%2f",
    ] {
        let answer = ask(&proxy.address, path, "").await;
        assert_eq!(answer.seen("path"), [format!("http://e2e.test{path}")]);
    }
}

/// The calls of bindings are paths, too.
#[tokio::test]
async fn path_in_doubt_calls_no_binding() {
    let proxy = TestProxy::start(
        "listeners: [{name: it, address: \"127.0.0.1:0\"}]\nbindings: {it: {echo: {}}}\n",
    )
    .await;
    let target = "/v1.0/x/../bindings/it";

    ask(&proxy.address, target, "")
        .await
        .is_refused(400, "bad_path");
}

#[tokio::test]
async fn path_is_rewritten_before_its_route_is_found_if_so_told() {
    let proxy = public("paths: normalize").await;

    for (path, told) in [
        ("/public/a/../b?x=/../", "/public/b?x=/../"),
        ("/x/%2e%2e/public//%61/.", "/public/a/"),
    ] {
        let answer = ask(&proxy.address, path, "").await;
        assert_eq!(answer.seen("path"), [format!("http://e2e.test{told}")]);
    }
    // It is somewhere else than it looks.
    for path in ["/public/../admin", "/public/%2e%2e/admin"] {
        ask(&proxy.address, path, "")
            .await
            .is_refused(404, "no_route");
    }
    for path in ["/public/..;/admin", "/public/..%2fadmin", "/public/a%00"] {
        ask(&proxy.address, path, "")
            .await
            .is_refused(400, "bad_path");
    }
}

#[tokio::test]
async fn path_passes_as_it_came_if_so_told() {
    let proxy = public("paths: pass").await;

    for path in IN_DOUBT {
        let answer = ask(&proxy.address, path, "").await;
        assert_eq!(answer.seen("path"), [format!("http://e2e.test{path}")]);
    }
}
