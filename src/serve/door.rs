//! What every request passes before its route is looked for.
//!
//! **Why.** Routes, filters and backends believe what stands in a request. So what belongs to the client's connection, and what only
//! a proxy may say, is gone before anything of ours is written and before anything is decided by what is left: a client that
//! could have `Host` or `x-forwarded-for` removed later would choose what a backend believes.
//!
//! **How.** In this order:
//!
//! 1. What belongs to the connection is removed, with the headers that `Connection` names. One that names what is not the
//!    connection's refuses the request. Over HTTP/2 there is nothing to do: such a request is malformed to the codec (RFC 9113, 8.2.2).
//! 2. A path that another server may read differently is refused or rewritten, as `paths` of the listener says. From here on there
//!    is one path, by which the route is found and which the backend gets.
//! 3. A request that has passed too many proxies of this kind is refused: it goes in a circle, and each round is one more stream.
//! 4. What the request says of its [`origin`](super::origin) is taken away, and what is so is said in its place.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, uri::PathAndQuery};
use thalweg_filters::{Error, Side};
use thalweg_proto::{
    header::{same_beginning, same_name},
    path,
    status::Code,
};

use super::{
    Client,
    origin::{Origin, is_claim},
};
use crate::{
    config::{Listener, Paths},
    headers::{HOPS, strip_hop_by_hop},
};

/// Headers that are for the far end of the way, and that no connection may take out.
const END_TO_END: [&str; 14] = [
    "authorization",
    "baggage",
    "cache-control",
    "cookie",
    "date",
    "host",
    "origin",
    "range",
    "referer",
    "traceparent",
    "tracestate",
    "trailer",
    "user-agent",
    "via",
];

/// How further ones begin.
const END_TO_END_FAMILIES: [&str; 7] = [
    "accept", "content-", "dapr-", "grpc-", "if-", "sec-", "thalweg-",
];

/// The numbers up to the most that `max_hops` may be, one after another.
const NUMBERS: &str = "01234567891011121314151617181920212223242526272829303132";

/// Lets a request in, with what backends may believe and nothing else of the kind; or tells why not.
pub(super) fn pass<B>(
    request: &mut Request<B>,
    client: &Client,
    settings: &Listener,
) -> Result<(), Error> {
    if request.version() != Version::HTTP_2 {
        leave_the_connection(request.headers_mut())?;
    }
    settle_path(request.uri_mut(), settings.paths)?;
    count_hop(request.headers_mut(), settings.max_hops)?;
    forget_claims(request.headers_mut(), &client.origin);
    client.origin.tell(request);
    Ok(())
}

// === what belongs to the connection ===

fn leave_the_connection(headers: &mut HeaderMap) -> Result<(), Error> {
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',') {
            let name = name.trim_ascii();
            if name.is_empty() {
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(name) else {
                return Err(bad_connection("what is not the name of a header"));
            };
            if let Some(what) = end_to_end(name.as_str()) {
                return Err(bad_connection(what));
            }
        }
    }
    strip_hop_by_hop(headers);
    Ok(())
}

/// What kind of header it is that this name, or one that servers take for it, belongs to, if it is one for the far end.
fn end_to_end(name: &str) -> Option<&'static str> {
    if is_claim(name) {
        return Some("a header that tells who the client is");
    }
    let one = END_TO_END.iter().find(|known| same_name(name, known));
    let mut families = END_TO_END_FAMILIES.iter();
    one.or_else(|| families.find(|family| same_beginning(name, family)))
        .copied()
}

fn bad_connection(what: &'static str) -> Error {
    Error::new(
        Code::InvalidArgument,
        "bad_connection",
        Side::Client,
        format!("Connection names {what}, and may only name what ends with the connection"),
    )
}

// === the path ===

fn settle_path(uri: &mut Uri, paths: Paths) -> Result<(), Error> {
    if paths == Paths::Pass || is_plain(uri.path(), paths) {
        return Ok(());
    }
    let settled = path::normalized(uri.path()).map_err(|fault| bad_path(fault.to_string()))?;
    match paths {
        Paths::Refuse => match settled {
            std::borrow::Cow::Borrowed(_) => Ok(()),
            std::borrow::Cow::Owned(_) => Err(bad_path(match path::check(uri.path()) {
                Err(fault) => fault.to_string(),
                Ok(()) => {
                    "the path has a letter, a digit or one of `-._~` written with a `%`".into()
                }
            })),
        },
        Paths::Normalize => {
            let path = one_slash(&settled);
            replace_path(uri, &path)
        }
        Paths::Pass => Ok(()),
    }
}

/// Whether a path has nothing that needs a closer look; nearly all have not.
fn is_plain(path: &str, paths: Paths) -> bool {
    let mut before = b'/';
    path.bytes().enumerate().all(|(at, byte)| {
        let after_slash = std::mem::replace(&mut before, byte) == b'/';
        match byte {
            b'%' | b'\\' => false,
            b'.' => !after_slash,
            b'/' => !after_slash || at == 0 || paths != Paths::Normalize,
            _ => true,
        }
    })
}

/// The path with one slash where there are several.
fn one_slash(path: &str) -> String {
    let mut one = String::with_capacity(path.len());
    for sign in path.chars() {
        if sign != '/' || !one.ends_with('/') {
            one.push(sign);
        }
    }
    one
}

fn replace_path(uri: &mut Uri, path: &str) -> Result<(), Error> {
    let unfit = |_| bad_path("the path makes no URI once it is normalized".into());
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(unfit)?);
    *uri = Uri::from_parts(parts)
        .map_err(|_| bad_path("the path makes no URI once it is normalized".into()))?;
    Ok(())
}

fn bad_path(fault: String) -> Error {
    let message = format!(
        "{fault}, so that servers behind the proxy might read another path (`paths` of the listener: `normalize` rewrites what can be, `pass` lets it through)"
    );
    Error::new(Code::InvalidArgument, "bad_path", Side::Client, message).with_http_status(400)
}

// === circles ===

fn count_hop(headers: &mut HeaderMap, most: usize) -> Result<(), Error> {
    let Some(told) = headers.insert(HOPS, number(1)) else {
        return Ok(());
    };
    // One that cannot be read is of nobody's who counts.
    let passed: usize = (told.to_str().ok())
        .and_then(|hops| hops.parse().ok())
        .unwrap_or(0);
    if passed >= most {
        let message = format!(
            "the request has passed {passed} proxies already, and at most {most} may be in a row (max_hops): does a cluster lead back to this listener?"
        );
        return Err(Error::new(
            Code::FailedPrecondition,
            "loop_detected",
            Side::Proxy,
            message,
        )
        .with_http_status(508));
    }
    headers.insert(HOPS, number(passed + 1));
    Ok(())
}

/// A small number, without a copy.
fn number(number: usize) -> HeaderValue {
    let at = match number {
        0..10 => number..number + 1,
        _ => 2 * number - 10..2 * number - 8,
    };
    HeaderValue::from_static(&NUMBERS[at])
}

// === the origin ===

/// Takes away what a request says of its origin and nobody believes.
pub(super) fn forget_claims(headers: &mut HeaderMap, origin: &Origin) {
    let claims = headers.keys().filter(|name| {
        let name = name.as_str();
        is_claim(name) && !origin.believes(name)
    });
    let claims: Vec<HeaderName> = claims.cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(names: &str) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        headers.insert("x-private", HeaderValue::from_static("1"));
        headers.insert("connection", HeaderValue::from_str(names).unwrap());
        leave_the_connection(&mut headers).map(|()| headers)
    }

    #[test]
    fn connection_takes_what_is_its_own() {
        for names in [
            "close",
            "keep-alive, X-Private",
            "upgrade,,te , http2-settings",
        ] {
            let headers = connection(names).unwrap();
            assert!(!headers.contains_key("connection"), "{names}");
            let private = names.contains("Private");
            assert_eq!(headers.contains_key("x-private"), !private, "{names}");
        }
    }

    #[test]
    fn connection_that_names_another_header_is_refused() {
        for name in [
            "host",
            "Host",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-client-cert",
            "forwarded",
            "x-real-ip",
            "content-length",
            "content_type",
            "authorization",
            "cookie",
            "date",
            "trailer",
            "dapr-api-token",
            "grpc-timeout",
            "thalweg-hops",
            "if-none-match",
            "sec-fetch-site",
            ":authority",
            "a b",
            "\"close\"",
        ] {
            for names in [name.to_owned(), format!("close, {name}")] {
                let error = connection(&names).unwrap_err();
                assert_eq!(error.reason(), "bad_connection", "{names}");
            }
        }
    }

    fn settled(target: &str, paths: Paths) -> Result<String, &'static str> {
        let mut uri: Uri = target.parse().unwrap();
        settle_path(&mut uri, paths)
            .map(|()| uri.to_string())
            .map_err(|error| error.reason())
    }

    #[test]
    fn path_in_doubt_is_refused_rewritten_or_passed() {
        for (path, normalized) in [
            ("/public/../admin", Some("/admin")),
            ("/public/%2e%2E/admin?a=/../b", Some("/admin?a=/../b")),
            ("/public/.%2e/admin", Some("/admin")),
            ("/public/..;/admin", None),
            ("/public/..%2fadmin", None),
            ("/public/..%5cadmin", None),
            ("/public%2fadmin", None),
            ("/a%00", None),
            ("/%61dmin", Some("/admin")),
            ("/a/./b", Some("/a/b")),
            ("/a/.", Some("/a/")),
            ("/..", Some("/")),
            ("/%", None),
            ("http://a.test/public/../admin", Some("http://a.test/admin")),
        ] {
            let normalized = normalized.map(str::to_owned).ok_or("bad_path");
            assert_eq!(settled(path, Paths::Refuse), Err("bad_path"), "{path}");
            assert_eq!(settled(path, Paths::Normalize), normalized, "{path}");
            assert_eq!(settled(path, Paths::Pass).as_deref(), Ok(path));
        }
    }

    #[test]
    fn path_without_doubt_is_left_alone() {
        for path in [
            "/",
            "*",
            "/shop.v1.Shop/Get",
            "/.well-known/acme",
            "/...?x=/../%2f",
            "/a;b=c/d%20e%C3%A9",
        ] {
            for paths in [Paths::Refuse, Paths::Normalize, Paths::Pass] {
                assert_eq!(settled(path, paths).as_deref(), Ok(path));
            }
        }
        assert_eq!(settled("/a//b/", Paths::Refuse).as_deref(), Ok("/a//b/"));
        assert_eq!(
            settled("//a///b?c//d", Paths::Normalize).as_deref(),
            Ok("/a/b?c//d")
        );
    }

    #[test]
    fn hops_are_counted_up_to_the_most() {
        let count = |told: Option<&'static str>, most| {
            let mut headers = HeaderMap::new();
            headers.extend(told.map(|told| (HOPS, HeaderValue::from_static(told))));
            count_hop(&mut headers, most).map(|()| headers[HOPS].clone())
        };
        for hops in 0..32 {
            assert_eq!(number(hops).to_str().unwrap(), hops.to_string());
        }
        assert_eq!(count(None, 1).unwrap(), "1");
        assert_eq!(count(Some("9"), 10).unwrap(), "10");
        assert_eq!(count(Some("31"), 32).unwrap(), "32");
        assert_eq!(count(Some("-4"), 10).unwrap(), "1");
        for (told, most) in [("1", 1), ("10", 10), ("99999", 10)] {
            let error = count(Some(told), most).unwrap_err();
            assert_eq!(error.reason(), "loop_detected");
            assert!(error.message().contains("max_hops"));
        }
    }
}
