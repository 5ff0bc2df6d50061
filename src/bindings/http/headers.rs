//! Which metadata of a client become headers of the request.
//!
//! **Why.** A service trusts some headers because only the proxy in front of it writes them: where a client is, what its
//! certificate says, which path it asked for. A client must not be able to say these for itself. So they are refused, and not left
//! out: who sends one is told that it has no effect.
//!
//! **How.** By name, with `_` for `-` as well: some servers read the two as one. Whatever else a client names goes through, as
//! with Dapr's own HTTP binding.

use std::collections::BTreeMap;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

use super::super::bad_request;

/// What becomes of an entry of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It belongs to the connection or to the framing, and each side writes its own; as with Dapr, it is passed over.
    Framing,
    /// It is for the proxy alone to say.
    Ours,
    /// It proves who asks.
    Credential,
    Plain,
}

const FRAMING: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
];

/// Where a client is and what stands between; what overrules the URL or the method; what is meant for another proxy or for a
/// runtime. `proxy` itself becomes a variable in the environment of CGI programs, which send their requests there.
const OURS: [&str; 14] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "proxy",
    "proxy-authorization",
    "proxy-authenticate",
    "dapr-api-token",
];

/// How further such names begin.
const OURS_BEGIN: [&str; 4] = ["x-forwarded-", "x-original-", "x-envoy-", "thalweg-"];

const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// Sets headers from metadata.
pub(super) fn set(
    headers: &mut HeaderMap,
    metadata: &BTreeMap<String, String>,
    pass_credentials: bool,
) -> Result<(), Error> {
    for (name, value) in metadata {
        let Ok(header) = HeaderName::try_from(name.as_str()) else {
            continue; // A name that HTTP cannot carry means nothing to a web service.
        };
        match Kind::of(&header) {
            _ if name == "path" => continue,
            Kind::Framing => continue,
            Kind::Credential if !pass_credentials => {
                return Err(forbidden(format!(
                    "metadata {header} would prove who asks, and clients of this binding prove nothing to its service (http.pass_credentials)"
                )));
            }
            Kind::Ours => {
                return Err(forbidden(format!(
                    "metadata {header} would be a header that only the proxy may set"
                )));
            }
            Kind::Credential | Kind::Plain => {}
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| bad_request(format!("metadata {header} cannot be a header's value")))?;
        let set = headers.try_insert(header, value);
        set.map_err(|_| bad_request("there are more metadata than a request has headers"))?;
    }
    Ok(())
}

fn forbidden(message: String) -> Error {
    Error::new(
        Code::InvalidArgument,
        "forbidden_metadata",
        Side::Client,
        message,
    )
}

// === impl Kind ===

impl Kind {
    fn of(header: &HeaderName) -> Self {
        let name = header.as_str().replace('_', "-");
        let is_in = |names: &[&str]| names.contains(&&*name);
        if is_in(&FRAMING) {
            Self::Framing
        } else if is_in(&OURS) || OURS_BEGIN.iter().any(|start| name.starts_with(start)) {
            Self::Ours
        } else if is_in(&CREDENTIALS) {
            Self::Credential
        } else {
            Self::Plain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_one(name: &str, pass_credentials: bool) -> Result<HeaderMap, &'static str> {
        let metadata = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        let mut headers = HeaderMap::new();
        set(&mut headers, &metadata, pass_credentials)
            .map(|()| headers)
            .map_err(|error| error.reason())
    }

    #[test]
    fn what_only_the_proxy_may_say_is_refused_in_any_spelling() {
        for name in [
            "x-forwarded-for",
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "x-forwarded_proto",
            "Forwarded",
            "x_real_ip",
            "Via",
            "X-Original-URL",
            "x-http-method-override",
            "x-envoy-internal",
            "thalweg_reason",
            "Proxy",
            "proxy-authorization",
            "dapr-api-token",
        ] {
            for pass in [false, true] {
                assert_eq!(set_one(name, pass), Err("forbidden_metadata"), "{name}");
            }
        }
    }

    #[test]
    fn credentials_pass_where_they_may() {
        for name in ["authorization", "Authorization", "COOKIE"] {
            assert_eq!(set_one(name, false), Err("forbidden_metadata"), "{name}");
            assert_eq!(set_one(name, true).unwrap().len(), 1, "{name}");
        }
    }

    #[test]
    fn framing_is_passed_over_and_the_rest_is_set() {
        for name in [
            "Host",
            "content_length",
            "transfer-encoding",
            "te",
            "path",
            "two words",
        ] {
            assert!(set_one(name, false).unwrap().is_empty(), "{name}");
        }
        for name in [
            "X-Own",
            "content-type",
            "accept",
            "x-forwardedness",
            "user_agent",
        ] {
            assert_eq!(set_one(name, false).unwrap().len(), 1, "{name}");
        }
    }

    #[test]
    fn flood_is_refused_and_no_panic() {
        let metadata = (0..40_000).map(|index| (format!("x-{index}"), String::new()));

        let set = set(&mut HeaderMap::new(), &metadata.collect(), false);

        assert_eq!(set.unwrap_err().reason(), "bad_request");
    }
}
