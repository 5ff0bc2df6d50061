//! Whether a request was meant for the admin endpoints, by its `Host`.
//!
//! **Why.** Any web page can let its own name lead to 127.0.0.1 (DNS rebinding). To the browser, what then answers on this machine
//! is the page's own server, and the page may read it. What it cannot change is `Host`, which has its name.
//!
//! **How.** Only what no stranger can have as his name is answered to: `localhost`, loopback addresses, and the address that is
//! listened on; on any port, since ports are forwarded. A request without a `Host` is of no browser. Whoever brings a token needs
//! none of this: a page does not have it.

use std::net::IpAddr;

use http::{Request, header, uri::Authority};

/// The first name that a request gives and that is not ours.
pub(super) fn foreign<B>(request: &Request<B>, bound: IpAddr) -> Option<String> {
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts = hosts.map(http::HeaderValue::as_bytes);
    let target = request.uri().authority();
    target
        .map(|target| target.as_str().as_bytes())
        .into_iter()
        .chain(hosts)
        .find(|host| !is_ours(host, bound))
        .map(|host| String::from_utf8_lossy(host).into_owned())
}

fn is_ours(host: &[u8], bound: IpAddr) -> bool {
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_matches(['[', ']']);
    let at = |address: IpAddr| {
        let address = address.to_canonical();
        address.is_loopback() || address == bound.to_canonical()
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(target: &str, hosts: &[&str]) -> bool {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(()).unwrap();
        foreign(&request, "192.0.2.7".parse().unwrap()).is_some()
    }

    #[test]
    fn names_that_are_nobody_elses_are_answered_to() {
        for host in [
            "localhost",
            "LocalHost:9901",
            "127.0.0.1",
            "127.0.0.1:19901",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:9901",
            "[::ffff:127.0.0.1]:9901",
            "192.0.2.7:9901",
        ] {
            assert!(!is_refused("/config", &[host]), "{host}");
        }
        assert!(!is_refused("/config", &[]));
        assert!(!is_refused("http://localhost:9901/config", &["localhost"]));
    }

    #[test]
    fn all_others_are_not() {
        for host in [
            "",
            "evil.test",
            "evil.test:9901",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "127.0.0.1@evil.test",
            "evil.test@127.0.0.1",
            "localhost,evil.test",
            "localhost evil.test",
            "192.0.2.8",
            "0.0.0.0:9901",
            "[::]:9901",
            "2130706433",
        ] {
            assert!(is_refused("/config", &[host]), "{host}");
        }
        assert!(is_refused("/config", &["localhost", "evil.test"]));
        assert!(is_refused("http://evil.test/config", &["localhost"]));
    }
}
