//! Which requests come from web pages of other origins.
//!
//! **Why.** A browser lets any page send a plain POST to any address, to 127.0.0.1 as well, without asking the server first. What is
//! reached by such a request, and has no other guard than its address, is open to every page that its owner looks at.
//!
//! **How.** Browsers say where a page comes from in `Origin` and `Sec-Fetch-Site`, which no page can write; whoever is no browser
//! sends neither. A page is the proxy's own if its origin is what it was asked for itself. In the clear that is believed of an
//! address and of `localhost` alone: whoever owns a name may let it lead here, and his page then has that very origin (DNS
//! rebinding). Under TLS a name has been proved by its certificate.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Request, header, uri::Authority};

use crate::config::WebOrigin;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a request comes from a page of an origin that is neither the proxy's own nor allowed.
pub(super) fn is_foreign<B>(request: &Request<B>, allowed: &[WebOrigin], tls: bool) -> bool {
    let headers = request.headers();
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next();
    if let Some(origin) = origin
        && origins.next().is_none()
        && allowed.iter().any(|allowed| allowed.is(origin))
    {
        return false;
    }
    let sites = headers.get_all(SEC_FETCH_SITE);
    let mut sites = sites.iter().map(HeaderValue::as_bytes);
    // A page of the same site has another origin. `none` is what a person does without a page.
    if !sites.all(|site| site == b"same-origin" || site == b"none") {
        return true;
    }
    if origin.is_none() {
        return false;
    }
    let Some(own) = own_origin(request, tls) else {
        return true;
    };
    let is_own = |origin: &HeaderValue| origin.as_bytes().eq_ignore_ascii_case(own.as_bytes());
    !headers.get_all(header::ORIGIN).iter().all(is_own)
}

/// The origin of pages that a request's own server has served, if its name is to be believed.
fn own_origin<B>(request: &Request<B>, tls: bool) -> Option<String> {
    let host = || Authority::try_from(request.headers().get(header::HOST)?.as_bytes()).ok();
    let authority = request.uri().authority().cloned().or_else(host)?;
    let name = authority.host();
    let is_address = || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_localhost = || name.eq_ignore_ascii_case("localhost");
    if tls {
        return Some(format!("https://{authority}"));
    }
    (is_address() || is_localhost()).then(|| format!("http://{authority}"))
}

#[cfg(test)]
mod tests {
    use http::request::Builder;

    use super::*;

    fn is_foreign(request: &Request<()>, tls: bool) -> bool {
        super::is_foreign(request, &["https://app.test".parse().unwrap()], tls)
    }

    fn asked(host: &str, fields: &[(&str, &str)]) -> Request<()> {
        let request = Request::post("/").header("host", host);
        let with = |request: Builder, (name, value): &(&str, &str)| request.header(*name, *value);
        fields.iter().fold(request, with).body(()).unwrap()
    }

    #[test]
    fn who_is_no_browser_is_no_page() {
        assert!(!is_foreign(&asked("a.test", &[]), false));
    }

    #[test]
    fn pages_of_other_origins_are_foreign() {
        for fields in [
            &[("origin", "https://evil.test")][..],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("origin", "http://127.0.0.1:8080"),
            ],
            // Another port, another scheme.
            &[("origin", "http://127.0.0.1:9090")],
            &[("origin", "https://127.0.0.1:8080")],
            &[
                ("origin", "http://127.0.0.1:8080"),
                ("origin", "https://evil.test"),
            ],
            &[
                ("origin", "https://app.test"),
                ("origin", "https://evil.test"),
            ],
        ] {
            assert!(
                is_foreign(&asked("127.0.0.1:8080", fields), false),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn own_pages_and_allowed_ones_are_not() {
        for (host, fields) in [
            ("127.0.0.1:8080", &[("origin", "http://127.0.0.1:8080")][..]),
            ("[::1]:8080", &[("origin", "http://[::1]:8080")]),
            (
                "localhost:8080",
                &[
                    ("origin", "http://localhost:8080"),
                    ("sec-fetch-site", "same-origin"),
                ],
            ),
            ("localhost:8080", &[("sec-fetch-site", "none")]),
            (
                "a.test",
                &[
                    ("origin", "https://app.test"),
                    ("sec-fetch-site", "cross-site"),
                ],
            ),
        ] {
            assert!(
                !is_foreign(&asked(host, fields), false),
                "{host} {fields:?}"
            );
        }
    }

    #[test]
    fn name_is_believed_under_tls_alone() {
        let rebound = [
            ("origin", "http://evil.test:8080"),
            ("sec-fetch-site", "same-origin"),
        ];
        let proved = [
            ("origin", "https://own.test"),
            ("sec-fetch-site", "same-origin"),
        ];

        assert!(is_foreign(&asked("evil.test:8080", &rebound), false));
        assert!(is_foreign(&asked("own.test", &proved), false));
        assert!(!is_foreign(&asked("own.test", &proved), true));
    }
}
