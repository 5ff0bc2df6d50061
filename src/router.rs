//! Finds the route of a stream: the first in the list whose every condition holds.
//!
//! The order is the file's, so whoever reads the file knows which route is taken. What a route leads to is the router's
//! caller's business: it is a list of values, each with its conditions.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts};
use thalweg_proto::method::Method;

use crate::config::{AuthorityMatch, Match, PathMatch};

/// Routes in order, each leading to a `T`.
#[derive(Debug)]
pub(crate) struct Router<T>(Vec<(Match, T)>);

impl<T> Router<T> {
    /// The first route that matches.
    pub(crate) fn find(&self, parts: &Parts) -> Option<&T> {
        self.0
            .iter()
            .find(|(conditions, _)| matches(conditions, parts))
            .map(|(_, target)| target)
    }
}

impl<T> FromIterator<(Match, T)> for Router<T> {
    fn from_iter<I: IntoIterator<Item = (Match, T)>>(routes: I) -> Self {
        Self(routes.into_iter().collect())
    }
}

/// Why a route does not take a stream: the condition that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Miss<'a> {
    /// The path is another.
    Path,
    /// The authority is another, or there is none.
    Authority(Option<&'a str>),
    /// The header is not there with this value.
    Header(&'a HeaderName, &'a HeaderValue),
}

fn matches(conditions: &Match, parts: &Parts) -> bool {
    miss(conditions, parts).is_none()
}

/// The first condition that does not hold.
pub(crate) fn miss<'a>(conditions: &'a Match, parts: &'a Parts) -> Option<Miss<'a>> {
    if let Some(path) = &conditions.path
        && !path_matches(path, parts.uri.path())
    {
        return Some(Miss::Path);
    }
    if let Some(wanted) = &conditions.authority {
        let found = authority(&parts.uri, &parts.headers);
        if !found.is_some_and(|found| authority_matches(wanted, found)) {
            return Some(Miss::Authority(found));
        }
    }
    let missing = |(name, wanted): &&(HeaderName, HeaderValue)| {
        let mut values = parts.headers.get_all(name).iter();
        !values.any(|value| value == wanted)
    };
    let (name, wanted) = conditions.headers.iter().find(missing)?;
    Some(Miss::Header(name, wanted))
}

fn path_matches(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::Service { service, method } => Method::parse(path).is_ok_and(|called| {
            called.service == service
                && method
                    .as_deref()
                    .is_none_or(|method| called.method == method)
        }),
    }
}

/// Whether `earlier` takes every stream that `later` would take. It may say no where the answer is yes, and never the other way.
pub(crate) fn covers(earlier: &Match, later: &Match) -> bool {
    let path = match (&earlier.path, &later.path) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(earlier), Some(later)) => path_covers(earlier, later),
    };
    let authority = match (&earlier.authority, &later.authority) {
        (None, _) | (Some(AuthorityMatch::Any), Some(_)) => true,
        (Some(earlier), Some(AuthorityMatch::Exact(name))) => authority_matches(earlier, name),
        (Some(AuthorityMatch::Suffix(earlier)), Some(AuthorityMatch::Suffix(later))) => {
            later.ends_with(earlier.as_str())
        }
        _ => false,
    };
    let headers = (earlier.headers.iter()).all(|header| later.headers.contains(header));
    path && authority && headers
}

fn path_covers(earlier: &PathMatch, later: &PathMatch) -> bool {
    match (earlier, later) {
        (_, PathMatch::Exact(path)) => path_matches(earlier, path),
        (PathMatch::Prefix(earlier), PathMatch::Prefix(later)) => {
            later.starts_with(earlier.as_str())
        }
        (PathMatch::Prefix(_), PathMatch::Service { service, method }) => {
            let method = method.as_deref().unwrap_or_default();
            path_matches(earlier, &format!("/{service}/{method}"))
        }
        (
            PathMatch::Service { service, method },
            PathMatch::Service {
                service: later_service,
                method: later_method,
            },
        ) => service == later_service && (method.is_none() || method == later_method),
        (PathMatch::Exact(path), PathMatch::Service { service, method }) => {
            (method.as_ref()).is_some_and(|method| *path == format!("/{service}/{method}"))
        }
        (PathMatch::Exact(_) | PathMatch::Service { .. }, PathMatch::Prefix(_)) => false,
    }
}

/// The authority that the client asked for, by `:authority` or by `Host`.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| {
            headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
        })
}

/// Compares with and without the port: a route that names none takes any.
fn authority_matches(wanted: &AuthorityMatch, found: &str) -> bool {
    let without_port = match found.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => found,
    };
    match wanted {
        AuthorityMatch::Any => true,
        AuthorityMatch::Exact(exact) => {
            exact.eq_ignore_ascii_case(found) || exact.eq_ignore_ascii_case(without_port)
        }
        AuthorityMatch::Suffix(suffix) => [found, without_port].iter().any(|found| {
            found.len() > suffix.len()
                && found
                    .get(found.len() - suffix.len()..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(uri: &str, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn found(conditions: Match, uri: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let router: Router<()> = [(conditions, ())].into_iter().collect();
        router.find(&request(uri, headers)).is_some()
    }

    fn by_path(path: PathMatch) -> Match {
        Match {
            path: Some(path),
            authority: None,
            headers: Vec::new(),
        }
    }

    fn by_authority(authority: AuthorityMatch) -> Match {
        Match {
            path: None,
            authority: Some(authority),
            headers: Vec::new(),
        }
    }

    #[test]
    fn first_route_that_matches_is_taken() {
        let router: Router<&str> = [
            (by_path(PathMatch::Exact("/a.B/C".into())), "exact"),
            (by_path(PathMatch::Prefix("/a.B/".into())), "prefix"),
            (by_path(PathMatch::Prefix("/".into())), "rest"),
        ]
        .into_iter()
        .collect();

        let taken =
            ["/a.B/C", "/a.B/D", "/x"].map(|path| *router.find(&request(path, &[])).unwrap());

        assert_eq!(taken, ["exact", "prefix", "rest"]);
    }

    #[test]
    fn service_and_method_match_whole_names() {
        let service = |method: Option<&str>| {
            by_path(PathMatch::Service {
                service: "a.B".into(),
                method: method.map(Into::into),
            })
        };

        assert!(found(service(None), "/a.B/C", &[]));
        assert!(found(service(Some("C")), "/a.B/C", &[]));
        assert!(!found(service(Some("C")), "/a.B/CC", &[]));
        assert!(!found(service(None), "/a.BB/C", &[]));
        assert!(!found(service(None), "/a.B/C/D", &[]));
    }

    #[test]
    fn authority_matches_with_and_without_port_and_by_wildcard() {
        let exact = || by_authority(AuthorityMatch::Exact("a.test".into()));
        let suffix = || by_authority(AuthorityMatch::Suffix(".a.test".into()));

        assert!(found(exact(), "http://A.test:81/", &[]));
        assert!(found(exact(), "/", &[("host", "a.test")]));
        assert!(!found(exact(), "http://b.a.test/", &[]));
        assert!(found(suffix(), "http://b.a.test:81/", &[]));
        assert!(!found(suffix(), "http://a.test/", &[]));
        assert!(!found(exact(), "/", &[]));
    }

    #[test]
    fn all_headers_must_be_there() {
        let conditions = Match {
            path: None,
            authority: None,
            headers: vec![(
                HeaderName::from_static("x-tenant"),
                HeaderValue::from_static("blue"),
            )],
        };

        assert!(found(
            conditions.clone(),
            "/",
            &[("x-tenant", "red"), ("x-tenant", "blue")]
        ));
        assert!(!found(conditions, "/", &[("x-tenant", "red")]));
    }

    #[test]
    fn broader_conditions_cover_narrower_ones_and_never_the_reverse() {
        let prefix = |path: &str| by_path(PathMatch::Prefix(path.into()));
        let exact = |path: &str| by_path(PathMatch::Exact(path.into()));
        let service = |method: Option<&str>| {
            by_path(PathMatch::Service {
                service: "a.B".into(),
                method: method.map(Into::into),
            })
        };
        let host = |name: &str| by_authority(AuthorityMatch::Exact(name.into()));
        let below = |suffix: &str| by_authority(AuthorityMatch::Suffix(suffix.into()));
        let blue = Match {
            headers: vec![(
                HeaderName::from_static("x-tenant"),
                HeaderValue::from_static("blue"),
            )],
            ..Match::default()
        };

        for (broad, narrow) in [
            (Match::default(), prefix("/a")),
            (Match::default(), blue),
            (prefix("/"), prefix("/a")),
            (prefix("/a.B/"), exact("/a.B/C")),
            (prefix("/a.B/"), service(None)),
            (prefix("/a.B/C"), service(Some("CD"))),
            (service(None), service(Some("C"))),
            (service(None), exact("/a.B/C")),
            (by_authority(AuthorityMatch::Any), host("x.a.test")),
            (below(".a.test"), host("x.a.test")),
            (below(".a.test"), below(".x.a.test")),
            (host("a.test"), host("a.test:81")),
        ] {
            assert!(covers(&broad, &narrow), "{broad:?} {narrow:?}");
            assert!(!covers(&narrow, &broad), "{narrow:?} {broad:?}");
        }
        assert!(covers(&exact("/a.B/C"), &service(Some("C"))));
        assert!(!covers(&prefix("/a"), &prefix("/b")));
        assert!(!covers(&prefix("/a.B/C"), &service(None)));
        assert!(!covers(&below(".a.test"), &host("a.test")));
    }
}
