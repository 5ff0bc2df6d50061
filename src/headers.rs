//! Headers where the protocols of the two sides differ.
//!
//! What belongs to one connection stays on it: the hop-by-hop headers, those that `Connection` names, which are removed as soon as
//! a head has come, and the framing, which each side writes anew. So what one side says about the length of a body is never taken on trust by the other.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

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

/// Refuses a request whose host is in doubt: two readers of it might see two different ones (RFC 9112, 3.2).
pub(crate) fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Error> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_11 => Err(bad_host("the request has no Host")),
        (_, Some(_)) => Err(bad_host("the request has more than one Host")),
        _ => Ok(()),
    }
}

/// Makes a request fit for an HTTP/2 upstream. Under TLS its scheme is `https`, whatever the client has said: there are servers
/// that refuse another. In the clear the client's scheme is passed on, for backends that build links of it.
pub(crate) fn for_http2(parts: &mut Parts, tls: bool) -> Result<(), Error> {
    let from_http1 = parts.version != Version::HTTP_2;
    parts.version = Version::HTTP_2;
    if from_http1 {
        // The proxy has answered the expectation itself by reading the body.
        parts.headers.remove(header::EXPECT);
    }
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
        (None, Some(host)) => {
            Authority::try_from(host.as_bytes()).map_err(|_| bad_host(NO_AUTHORITY))?
        }
        (None, None) => Authority::from_static("localhost"),
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
    parts.headers.remove(header::EXPECT);
    // It is what the route was found by, whatever `Host` says beside it (RFC 9112, 3.2.2).
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad_host(NO_AUTHORITY))?;
        parts.headers.insert(header::HOST, host);
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
    use http::Request;

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
            check_host(version, &parts(request).headers).is_ok()
        };

        assert!(good(&["a"], Version::HTTP_11));
        assert!(!good(&[], Version::HTTP_11));
        assert!(good(&[], Version::HTTP_10));
        assert!(good(&[], Version::HTTP_2));
        assert!(!good(&["a", "a"], Version::HTTP_10));
        assert!(!good(&["a", "b"], Version::HTTP_2));
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
