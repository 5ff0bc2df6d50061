//! Who a client is, as backends are told.
//!
//! **Why.** A backend sees the proxy's socket, and must be told where a request really comes from. It believes what it is told, so
//! nobody but a proxy may say it: limits, audits and permissions hang on these headers.
//!
//! **How.** What is said is made once a connection, from its socket, its PROXY header and its certificate. What a request says of
//! itself is taken away, under every name by which servers read it, unless the connection comes from a trusted network: then a proxy
//! has said it, and our own word is added.

use std::{cell::RefCell, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use thalweg_proto::header::{same_beginning, same_name};

use crate::config;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// What the names begin with by which proxies commonly tell.
const FAMILY: &str = "x-forwarded";

/// The others. The last two are a path that takes the place of the one that the route was found by.
const OTHERS: [&str; 7] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "x-original-url",
    "x-rewrite-url",
];

/// What is told of the requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// What they say of themselves is believed.
    trusted: bool,
    /// `None` where the listener tells nothing.
    told: Option<Told>,
    /// What the client's certificate says.
    pub(super) certificate: Option<HeaderValue>,
}

#[derive(Debug)]
struct Told {
    /// A Unix socket's peer has none.
    address: Option<HeaderValue>,
    proto: HeaderValue,
    /// The host of the last request: nearly always that of the next.
    host: RefCell<Option<HeaderValue>>,
}

/// Whether only a proxy may say what stands under this name.
pub(super) fn is_claim(name: &str) -> bool {
    // Most names end here.
    matches!(name.as_bytes(), [b'f' | b't' | b'x', ..])
        && (same_beginning(name, FAMILY) || OTHERS.iter().any(|other| same_name(name, other)))
}

// === impl Origin ===

impl Origin {
    /// Of a connection from `address`, which is that of its PROXY header if it has one.
    pub(super) fn new(settings: &config::Forwarded, address: Option<IpAddr>, tls: bool) -> Self {
        let told = settings.set.then(|| Told {
            address: address
                .and_then(|address| HeaderValue::try_from(address.to_canonical().to_string()).ok()),
            proto: HeaderValue::from_static(if tls { "https" } else { "http" }),
            host: RefCell::default(),
        });
        Self {
            trusted: settings.trusts(address),
            told,
            certificate: None,
        }
    }

    /// Whether a claim under this name is believed. A proxy that is to be trusted writes no `_`, so that it may be a client's
    /// whom it has let through.
    pub(super) fn believes(&self, name: &str) -> bool {
        self.trusted && !name.contains('_')
    }

    /// Says who the client is, in a request that says nothing more of it but what is believed.
    pub(super) fn tell<B>(&self, request: &mut Request<B>) {
        if let Some(told) = &self.told {
            let host = told.host(request);
            let headers = request.headers_mut();
            if let Some(address) = &told.address {
                self.add(headers, FOR, address);
            }
            self.suggest(headers, PROTO, Some(told.proto.clone()));
            self.suggest(headers, HOST, host);
        }
        if let Some(certificate) = &self.certificate {
            self.add(request.headers_mut(), CERTIFICATE, certificate);
        }
    }

    /// Sets a header, behind what a proxy before us has said.
    fn add(&self, headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
        if self.trusted && headers.contains_key(&name) {
            let said = headers.get_all(&name).iter().map(HeaderValue::as_bytes);
            let all: Vec<&[u8]> = said.chain([value.as_bytes()]).collect();
            // One header, and not one more: some servers read the first of several alone. What was good apart is good together.
            if let Ok(all) = HeaderValue::from_bytes(&all.join(&b", "[..])) {
                headers.insert(name, all);
            }
        } else {
            headers.insert(name, value.clone());
        }
    }

    /// Sets a header, unless a proxy before us has.
    fn suggest(&self, headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
        if let Some(value) = value
            && !(self.trusted && headers.contains_key(&name))
        {
            headers.insert(name, value);
        }
    }
}

impl Told {
    /// The host that the client asks for.
    fn host<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        let Some(authority) = request.uri().authority() else {
            return request.headers().get(header::HOST).cloned();
        };
        let mut last = self.host.borrow_mut();
        if !matches!(&*last, Some(known) if known == authority.as_str()) {
            *last = HeaderValue::from_str(authority.as_str()).ok();
        }
        last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "192.0.2.7";

    /// What a backend reads after a request came from 192.0.2.7 in the clear.
    fn told(trusted: &[&str], sent: &[(&'static str, &'static str)]) -> Vec<String> {
        let settings = config::Forwarded {
            trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            ..config::Forwarded::default()
        };
        let origin = Origin::new(&settings, Some(CLIENT.parse().unwrap()), false);
        let mut request = Request::get("http://a.test/").body(()).unwrap();
        for (name, value) in sent {
            request
                .headers_mut()
                .append(*name, HeaderValue::from_static(value));
        }
        crate::serve::door::forget_claims(request.headers_mut(), &origin);
        origin.tell(&mut request);
        let mut told: Vec<String> = (request.headers().iter())
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        told.sort();
        told
    }

    #[test]
    fn strangers_word_is_replaced() {
        let ours = [
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: a.test",
            "x-forwarded-proto: http",
        ];
        assert_eq!(told(&[], &[]), ours);
        for name in [
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "x_forwarded_prefix",
            "x-forwarded-client-cert",
            "x_forwarded-client_cert",
            "forwarded",
            "x-real-ip",
            "x_real_ip",
            "true-client-ip",
            "x-original-url",
        ] {
            let twice = [(name, "forged"), (name, "twice")];
            assert_eq!(told(&[], &twice), ours, "{name}");
            assert_eq!(told(&["10.0.0.0/8"], &twice), ours, "{name}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_left_alone() {
        for name in ["x-forward", "xforwarded-for", "x-real-ips", "forward", "te"] {
            let told = told(&[], &[(name, "1")]);
            assert!(told.contains(&format!("{name}: 1")), "{told:?}");
        }
    }

    #[test]
    fn trusted_word_is_kept_and_ours_stands_behind_it() {
        let sent = [
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-for", "203.0.113.1, 203.0.113.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.test"),
            ("x-real-ip", "198.51.100.1"),
            ("x_forwarded_for", "forged"),
            ("x_real_ip", "forged"),
        ];

        assert_eq!(
            told(&["192.0.2.0/24"], &sent),
            [
                "x-forwarded-for: 198.51.100.1, 203.0.113.1, 203.0.113.2, 192.0.2.7",
                "x-forwarded-host: shop.test",
                "x-forwarded-proto: https",
                "x-real-ip: 198.51.100.1",
            ]
        );
        assert_eq!(told(&["192.0.2.0/24"], &[]).len(), 3);
    }

    #[test]
    fn host_is_that_of_each_request() {
        let origin = Origin::new(&config::Forwarded::default(), None, true);
        for (target, host, told) in [
            ("http://a.test/", None, Some("a.test")),
            ("http://a.test/", None, Some("a.test")),
            ("http://b.test:81/", Some("c.test"), Some("b.test:81")),
            ("/", Some("c.test"), Some("c.test")),
            ("/", None, None),
        ] {
            let mut request = Request::get(target).body(()).unwrap();
            if let Some(host) = host {
                request
                    .headers_mut()
                    .insert("host", HeaderValue::from_static(host));
            }

            origin.tell(&mut request);

            let found = request.headers().get("x-forwarded-host");
            assert_eq!(found.map(|host| host.to_str().unwrap()), told);
            assert_eq!(request.headers()["x-forwarded-proto"], "https");
            assert!(!request.headers().contains_key("x-forwarded-for"));
        }
    }
}
