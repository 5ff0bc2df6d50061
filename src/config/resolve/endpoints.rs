//! Where the endpoints of a cluster come from, and how one is chosen.

use std::{collections::HashMap, net::SocketAddr};

use http::HeaderName;
use thalweg_filters::units::Count;

use super::{Report, Resolve, nowhere, or};
use crate::config::{Address, Balance, Endpoint, Endpoints, raw};

/// Endpoints as they are listed in a file of their own.
pub(in crate::config) fn endpoints(raw: raw::EndpointList, faults: &mut Report) -> Vec<Endpoint> {
    Resolve { faults }.listed(raw, "")
}

impl Resolve<'_> {
    pub(super) fn endpoints(&mut self, raw: raw::Endpoints, path: &str) -> Endpoints {
        let raw::EndpointSource { dns, file, refresh } = match raw {
            raw::Endpoints::Listed(listed) => return Endpoints::Listed(self.listed(listed, path)),
            raw::Endpoints::Source(source) => source,
        };
        match (dns, file) {
            (Some(name), None) => {
                let (host, port) = self.host_and_port(&name, &format!("{path}.dns"));
                Endpoints::Dns {
                    host,
                    port,
                    refresh: or(refresh, Endpoints::DNS_REFRESH),
                }
            }
            (None, Some(file)) => Endpoints::File {
                path: file.into(),
                refresh: or(refresh, Endpoints::FILE_REFRESH),
            },
            (dns, _) => {
                if dns.is_some() {
                    let hint = "keep one of the two";
                    let path = format!("{path}.file");
                    self.faults.add_key(&path, "`dns` is here as well", hint);
                } else if !self.faults.covers(&format!("{path}.dns"))
                    && !self.faults.covers(&format!("{path}.file"))
                {
                    let hint = "add `dns: NAME:PORT` or `file: PATH`, or write a list of addresses";
                    self.faults.add(path, "say where the endpoints are", hint);
                }
                Endpoints::Listed(Vec::new())
            }
        }
    }

    fn listed(&mut self, raw: raw::EndpointList, path: &str) -> Vec<Endpoint> {
        let mut places: HashMap<Address, String> = HashMap::new();
        let mut endpoints = Vec::new();
        for (index, entry) in raw.0.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let (text, weight, path) = match entry {
                raw::EndpointEntry::Address(text) => (text, None, path),
                raw::EndpointEntry::Weighted(it) => {
                    (it.address, it.weight, format!("{path}.address"))
                }
            };
            if let Some((what, hint)) = foreign(&text) {
                self.faults.add(&path, format!("`{text}` {what}"), hint);
                continue;
            }
            let address = self.endpoint(&text, &path);
            let first = places.insert(address.clone(), path.clone());
            if let Some(first) = first.filter(|_| !self.faults.covers(&path)) {
                let hint = "list it once, with a `weight` if it shall take more";
                let message = format!("`{text}` is {first} already");
                self.faults.add(&path, message, hint);
            }
            endpoints.push(Endpoint {
                address,
                weight: weight.map_or(1, Count::u32),
            });
        }
        endpoints
    }

    pub(super) fn endpoint(&mut self, text: &str, path: &str) -> Address {
        let address = self.address(text, path);
        if matches!(address, Address::Tcp(address) if address.port() == 0) {
            let hint = "write the port that the upstream listens on";
            self.faults
                .add(path, format!("`{text}` has no valid port"), hint);
        }
        address
    }

    fn host_and_port(&mut self, text: &str, path: &str) -> (String, u16) {
        let hint = "write a name and a port, such as `greeter.svc:50051`";
        let problem = match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.contains([':', '/']) => {
                match port.parse() {
                    Ok(port) if port > 0 => return (host.to_owned(), port),
                    _ => "has no valid port",
                }
            }
            None if !text.is_empty() => "has no port",
            _ => "is no name and port",
        };
        self.faults.add(path, format!("`{text}` {problem}"), hint);
        (String::new(), nowhere().port())
    }

    pub(super) fn balance(&mut self, raw: Option<raw::Balance>, path: &str) -> Balance {
        match raw {
            None | Some(raw::Balance::Named(raw::BalanceName::LeastStreams)) => {
                Balance::LeastStreams
            }
            Some(raw::Balance::Named(raw::BalanceName::RoundRobin)) => Balance::RoundRobin,
            Some(raw::Balance::By(raw::BalanceBy { ring_hash })) => {
                let raw::RingHash { header } = ring_hash;
                let name = HeaderName::from_bytes(header.as_bytes()).unwrap_or_else(|_| {
                    let path = format!("{path}.ring_hash.header");
                    let hint = "write its name alone, such as `x-user`";
                    let message = format!("`{header}` is not the name of a header");
                    self.faults.add(&path, message, hint);
                    http::header::HOST
                });
                Balance::RingHash { header: name }
            }
        }
    }
}

/// What is wrong with an endpoint as people write it who come from elsewhere, and what they should write; `None` if it is an address,
/// or nothing of the kind.
fn foreign(text: &str) -> Option<(&'static str, String)> {
    if text.starts_with("unix:") {
        return None;
    }
    let (scheme, target) = match text.split_once("://") {
        Some((scheme, target)) => (Some(scheme), target.trim_end_matches('/')),
        None => (None, text),
    };
    let (host, port) = target.rsplit_once(':')?;
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_address = host == "localhost" || target.parse::<SocketAddr>().is_ok();
    let is_name = host.bytes().any(|byte| byte.is_ascii_alphabetic())
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let hint = match (is_port, is_address, is_name) {
        (true, true, _) => format!("write `{target}`"),
        (true, _, true) => format!("have it looked up: `endpoints: {{dns: \"{target}\"}}`"),
        _ => return None,
    };
    match scheme {
        Some("https") => Some((
            "is a URL, and an endpoint is an address",
            format!("{hint}, and `tls: {{}}` beside it"),
        )),
        Some(_) => Some(("is a URL, and an endpoint is an address", hint)),
        None if is_address => None,
        None => Some(("is a name, and a list holds addresses", hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_from_elsewhere_hears_what_to_write_here() {
        let hint = |text: &str| foreign(text).map(|(_, hint)| hint);
        for good in [
            "127.0.0.1:80",
            "[::1]:80",
            "localhost:80",
            "unix:/a://b:1",
            "x",
            "a b:1",
        ] {
            assert_eq!(hint(good), None, "{good}");
        }
        for (text, wanted) in [
            (
                "greeter.svc:80",
                "have it looked up: `endpoints: {dns: \"greeter.svc:80\"}`",
            ),
            ("http://127.0.0.1:80", "write `127.0.0.1:80`"),
            ("http://[::1]:80/", "write `[::1]:80`"),
            ("grpc://localhost:80", "write `localhost:80`"),
            (
                "https://a.test:443",
                "have it looked up: `endpoints: {dns: \"a.test:443\"}`, and `tls: {}` beside it",
            ),
        ] {
            assert_eq!(hint(text).as_deref(), Some(wanted), "{text}");
        }
    }
}
