//! Headers where the protocols of the two sides differ.
//!
//! What belongs to one connection stays on it: the hop-by-hop headers, those that `Connection` names, which are removed as soon as
//! a head has come, and the framing, which each side writes anew. So what one side says about the length of a body is never taken on trust by the other.

use std::io;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use thalweg_filters::{Body, Error, Side};
use thalweg_proto::{method::is_grpc_content_type, status::Code};

const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// How long a call of gRPC may take.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How many proxies of this kind a request has passed; whatever a request becomes on its way, it keeps this.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("thalweg-hops");

const NO_AUTHORITY: &str = "the request's Host is no authority";

/// Removes what belongs to one HTTP/1.1 connection.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let wants_trailers = headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
    headers.remove(header::TE);
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// What one walk through a request's headers finds. Nearly all have little of it, and to look up each of these names would cost far
/// more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// As HTTP/2 counts them.
    pub(crate) size: usize,
    pub(crate) content_types: usize,
    /// The first content type is gRPC's.
    pub(crate) says_grpc: bool,
    pub(crate) has_grpc_timeout: bool,
    hosts: usize,
    /// Something is said of how the body ends.
    pub(crate) is_framed: bool,
    pub(crate) expects: bool,
}

impl Seen {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self::in_headers(request.headers())
    }

    fn in_headers(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.size += 32 + name.as_str().len() + value.len();
            if *name == header::CONTENT_TYPE {
                if seen.content_types == 0 {
                    seen.says_grpc = is_grpc_content_type(value.as_bytes());
                }
                seen.content_types += 1;
            }
            seen.hosts += usize::from(*name == header::HOST);
            seen.is_framed |= *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
            seen.expects |= *name == header::EXPECT;
            seen.has_grpc_timeout |= *name == GRPC_TIMEOUT;
        }
        seen
    }
}

/// Refuses a request whose host is in doubt: two readers of it might see two different ones (RFC 9112, 3.2). One that names none is
/// served, unless its protocol demands one.
pub(crate) fn check_host(
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
    seen: &Seen,
) -> Result<(), Error> {
    let host = match seen.hosts {
        0 if version == Version::HTTP_11 => {
            return Err(bad_host("the request has no Host"));
        }
        0 => None,
        1 => headers.get(header::HOST).map(HeaderValue::as_bytes),
        _ => return Err(bad_host("the request has more than one Host")),
    };
    let authority = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    if host.into_iter().chain(authority).all(is_authority) {
        Ok(())
    } else {
        Err(bad_host(NO_AUTHORITY))
    }
}

/// Whether it is a host, with or without a port, and nothing else: no user, no path, no list of two. Empty means that there is no
/// host (RFC 9110, 7.2).
fn is_authority(text: &[u8]) -> bool {
    let behind = match text {
        [b'[', rest @ ..] => {
            let is_address = |byte: &&u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
            match &rest[rest.iter().take_while(is_address).count()..] {
                [b']', behind @ ..] => behind,
                _ => return false,
            }
        }
        _ => {
            let is_name = |byte: &&u8| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
            };
            &text[text.iter().take_while(is_name).count()..]
        }
    };
    match behind {
        [] => true,
        [b':', port @ ..] => behind.len() < text.len() && port.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// Refuses a request whose body could be framed in two ways, or in one that nobody here undoes.
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), Error> {
    if !is_plainly_framed(headers) {
        return Err(Error::new(
            Code::Unimplemented,
            "unknown_transfer_coding",
            Side::Client,
            "the request's transfer-encoding is another than chunked, which alone is undone here",
        )
        .with_http_status(501));
    }
    // Over HTTP/1.1 the codec has seen to it.
    if headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(Error::new(
            Code::InvalidArgument,
            "bad_content_length",
            Side::Client,
            "the request has more than one content-length",
        ));
    }
    Ok(())
}

/// Whether a body has no transfer coding but chunked: what another has done to it would go on undone, and unsaid.
pub(crate) fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| {
        let coding = coding.as_bytes().trim_ascii();
        coding.eq_ignore_ascii_case(b"chunked")
    };
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Whether hyper could not read what came, be it a head or the framing of a body; otherwise the connection has failed.
pub(crate) fn is_malformed(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            let is_of_tls = error
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>());
            let kind = error.kind();
            return !is_of_tls
                && matches!(
                    kind,
                    io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
                );
        }
        source = cause.source();
    }
    error.is_parse()
}

/// Takes the expectation off a request, and refuses what nobody here can meet (RFC 9110, 10.1.1). That the body is wanted is said to the
/// client by whoever reads it.
pub(crate) fn take_expectation(headers: &mut HeaderMap) -> Result<(), Error> {
    let Some(expected) = headers.remove(header::EXPECT) else {
        return Ok(());
    };
    if is_continue(&expected) {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidArgument,
        "unknown_expectation",
        Side::Client,
        "the request expects something other than 100-continue",
    )
    .with_http_status(417))
}

/// Whether a client waits with its body until somebody wants it.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(is_continue)
}

fn is_continue(expected: &HeaderValue) -> bool {
    expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Makes a request fit for an HTTP/2 upstream. Under TLS its scheme is `https`, whatever the client has said: there are servers
/// that refuse another. In the clear the client's scheme is passed on, for backends that build links of it.
pub(crate) fn for_http2(parts: &mut Parts, tls: bool) -> Result<(), Error> {
    parts.version = Version::HTTP_2;
    let fits = match parts.uri.scheme() {
        Some(scheme) => !tls || *scheme == Scheme::HTTPS,
        None => false,
    };
    if fits && parts.uri.authority().is_some() {
        parts.headers.remove(header::HOST);
        return Ok(());
    }
    let host = parts.headers.remove(header::HOST);
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) if !host.is_empty() => {
            Authority::try_from(host.as_bytes()).map_err(|_| bad_host(NO_AUTHORITY))?
        }
        _ => {
            // It names no host, and none is made up. `h2` passes on such a request as one that has come over HTTP/1.1.
            parts.version = Version::HTTP_11;
            return Ok(());
        }
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority);
    uri.path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).map_err(|_| bad_host(NO_AUTHORITY))?;
    Ok(())
}

/// Makes a request fit for an HTTP/1.1 upstream.
pub(crate) fn for_http1(parts: &mut Parts) -> Result<(), Error> {
    let from_http2 = parts.version == Version::HTTP_2;
    parts.version = Version::HTTP_11;
    // It is what the route was found by, whatever `Host` says beside it (RFC 9112, 3.2.2).
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad_host(NO_AUTHORITY))?;
        parts.headers.insert(header::HOST, host);
    } else {
        // A request that names no host says so (RFC 9112, 3.2).
        let host = parts.headers.entry(header::HOST);
        host.or_insert(HeaderValue::from_static(""));
    }
    if from_http2 {
        join_cookies(&mut parts.headers);
    }
    let path = parts
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    Ok(())
}

/// Says how the body of a request to an HTTP/1.1 upstream is framed, where hyper would not: it sends no body with GET and HEAD
/// unless it is told to, and a POST without a body leaves it open whether one will come (RFC 9110, 8.6).
pub(crate) fn frame_body(parts: &mut Parts, body: &Body) {
    if parts.headers.contains_key(header::CONTENT_LENGTH) {
        return;
    }
    if body.is_end_stream() {
        if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            let none = HeaderValue::from_static("0");
            parts.headers.insert(header::CONTENT_LENGTH, none);
        }
    } else if body.size_hint().exact().is_none() {
        // hyper takes it away again if the body turns out to be empty before the head is written.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
}

/// HTTP/2 may send a cookie in crumbs; HTTP/1.1 wants them in one header (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<&[u8]> = headers
            .get_all(header::COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(header::COOKIE, cookie);
        }
    }
}

fn bad_host(message: &'static str) -> Error {
    Error::new(Code::InvalidArgument, "bad_host", Side::Client, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn headers_of_one_connection_stay_on_it() {
        let mut headers = parts(
            Request::get("/")
                .header("connection", "keep-alive, X-Private")
                .header("keep-alive", "timeout=5")
                .header("x-private", "1")
                .header("upgrade", "websocket")
                .header("transfer-encoding", "chunked")
                .header("te", "gzip, trailers")
                .header("x-public", "2"),
        )
        .headers;

        strip_hop_by_hop(&mut headers);

        let left: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(left, [("x-public", "2"), ("te", "trailers")]);
    }

    #[test]
    fn host_becomes_the_authority_and_back() {
        let mut request = parts(Request::get("/a?b=c").header("host", "example.test:81"));

        for_http2(&mut request, false).unwrap();
        assert_eq!(request.uri, "http://example.test:81/a?b=c");
        assert!(!request.headers.contains_key("host"));

        for_http1(&mut request).unwrap();
        assert_eq!(
            (request.uri.to_string(), &request.headers["host"]),
            (
                "/a?b=c".into(),
                &HeaderValue::from_static("example.test:81")
            )
        );
    }

    #[test]
    fn scheme_is_https_under_tls_and_the_clients_in_the_clear() {
        for (asked, tls, sent) in [
            ("http://a.test/x", true, "https://a.test/x"),
            ("https://a.test/x", true, "https://a.test/x"),
            ("https://a.test/x", false, "https://a.test/x"),
            ("http://a.test/x", false, "http://a.test/x"),
        ] {
            let mut request = parts(Request::post(asked).version(Version::HTTP_2));

            for_http2(&mut request, tls).unwrap();

            assert_eq!(request.uri, sent);
        }
    }

    #[test]
    fn host_in_doubt_is_refused() {
        let good = |hosts: &[&str], version| {
            let request = hosts.iter().fold(Request::get("/"), |request, host| {
                request.header("host", *host)
            });
            let parts = parts(request);
            check_host(
                version,
                &parts.uri,
                &parts.headers,
                &Seen::in_headers(&parts.headers),
            )
            .is_ok()
        };

        assert!(good(&["a"], Version::HTTP_11));
        assert!(!good(&[], Version::HTTP_11));
        assert!(good(&[], Version::HTTP_10));
        assert!(good(&[], Version::HTTP_2));
        assert!(!good(&["a", "a"], Version::HTTP_10));
        assert!(!good(&["a", "b"], Version::HTTP_2));
    }

    #[test]
    fn host_is_a_host_and_a_port_and_nothing_else() {
        for good in [
            "",
            "a",
            "a_b.test",
            "A-1.test:80",
            "a.test:",
            "127.0.0.1:8080",
            "[::1]",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(is_authority(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "a/b?c", "a,b", "u@a", "u:p@a", "a b", " ", "a#", "a\\b", ":80", "a:b", "a:80:80",
            "[::1", "[a", "[::1]x", "a%2fb", "a;b",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad:?}");
        }
        assert!(!is_authority("ä".as_bytes()));
        let request = parts(Request::get("http://user@a.test/").header("host", "a.test"));
        assert!(
            check_host(
                Version::HTTP_2,
                &request.uri,
                &request.headers,
                &Seen::in_headers(&request.headers)
            )
            .is_err()
        );
    }

    #[test]
    fn host_that_nobody_named_is_not_made_up() {
        let mut request = parts(Request::get("/").version(Version::HTTP_10));
        for_http1(&mut request).unwrap();
        assert_eq!(request.headers["host"], "");

        for host in [None, Some("")] {
            let builder = Request::get("/x");
            let mut request = parts(
                host.into_iter()
                    .fold(builder, |it, host| it.header("host", host)),
            );
            for_http2(&mut request, false).unwrap();
            assert_eq!((request.uri.authority(), request.uri.path()), (None, "/x"));
            assert!(!request.headers.contains_key("host"));
        }
    }

    #[test]
    fn only_chunked_is_undone() {
        let plain = |codings: &[&str]| {
            let all = codings.iter().fold(Request::get("/"), |request, coding| {
                request.header("transfer-encoding", *coding)
            });
            is_plainly_framed(&parts(all).headers)
        };

        assert!(plain(&[]) && plain(&["chunked"]) && plain(&["Chunked "]));
        for other in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &["gzip"],
            &["identity"],
            &[""],
        ] {
            assert!(!plain(other), "{other:?}");
        }
    }

    #[test]
    fn crumbs_of_a_cookie_are_joined() {
        let mut request = parts(
            Request::get("http://a/")
                .version(Version::HTTP_2)
                .header("cookie", "a=1")
                .header("cookie", "b=2"),
        );

        for_http1(&mut request).unwrap();

        assert_eq!(request.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn host_that_is_no_authority_is_refused() {
        let mut request = parts(Request::get("/").header("host", "a b"));

        assert_eq!(
            for_http2(&mut request, false).unwrap_err().reason(),
            "bad_host"
        );
    }
}
