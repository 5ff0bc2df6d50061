//! What somebody who starts the proxy wants to know first: where it listens, and what to try.
//!
//! It goes to standard output, since it is for people; the log, which machines read, is on standard error.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::{Address, BindingTarget, Config};

/// What may stand in a URL as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The lines to paste are made from what is really there.
pub(super) struct Welcome<'a> {
    pub(super) config: &'a Config,
    /// The listeners' names and the addresses that they are bound to.
    pub(super) listeners: &'a [(String, Address)],
    pub(super) admin: Option<SocketAddr>,
}

impl fmt::Display for Welcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Thalweg {} listens on\n", env!("CARGO_PKG_VERSION"))?;
        for (name, address) in self.listeners {
            writeln!(f, "  {address}   {name}")?;
        }
        if let Some(address) = self.admin {
            writeln!(f, "  {address}   admin")?;
        }
        for (index, line) in self.lines().iter().enumerate() {
            if index == 0 {
                writeln!(f, "\nTry, from another terminal:\n")?;
            }
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl Welcome<'_> {
    /// Commands that work here and now: an upload, a download, and the metrics.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let (Some(address), Some((name, keeps))) = (self.in_the_clear(), self.binding()) {
            let (socket, origin) = origin(address);
            let name = utf8_percent_encode(name, ENCODED).to_string();
            let url = format!("{origin}/v1.0-alpha1/bindings/{name}/stream");
            let upload = format!("echo hello | curl{socket} -T - \"{url}?operation=create");
            if keeps {
                lines.push(format!("{upload}&metadata.key=hello.txt\""));
                lines.push(format!(
                    "curl{socket} -X POST \"{url}?operation=get&metadata.key=hello.txt\""
                ));
            } else {
                lines.push(format!("{upload}\""));
            }
        }
        if let (Some(address), Some(settings)) = (self.admin, &self.config.admin) {
            let token = match settings.token {
                Some(_) => " -H \"Authorization: Bearer TOKEN\"",
                None => "",
            };
            lines.push(format!("curl{token} http://{}/metrics", reachable(address)));
        }
        lines
    }

    /// Where curl needs to be told of no certificates.
    fn in_the_clear(&self) -> Option<&Address> {
        let mut all = self.config.listeners.iter().zip(self.listeners);
        let (_, (_, address)) = all.find(|(settings, _)| settings.tls.is_none())?;
        Some(address)
    }

    /// A binding to try, and whether it keeps what it is sent.
    fn binding(&self) -> Option<(&str, bool)> {
        let mut bindings = self.config.bindings.iter();
        let store = bindings.find(|it| matches!(it.target, BindingTarget::ObjectStore(_)));
        let mut bindings = self.config.bindings.iter();
        let echo = bindings.find(|it| matches!(it.target, BindingTarget::Echo));
        store
            .map(|store| (store.name.as_str(), true))
            .or_else(|| echo.map(|echo| (echo.name.as_str(), false)))
    }
}

/// How curl reaches an address: what it must be told besides, and how the URL begins.
fn origin(address: &Address) -> (String, String) {
    match address {
        Address::Unix(path) => (
            format!(" --unix-socket \"{}\"", path.display()),
            "http://localhost".into(),
        ),
        Address::Tcp(address) => (String::new(), format!("http://{}", reachable(*address))),
        Address::Host(host, port) => (String::new(), format!("http://{host}:{port}")),
    }
}

/// An address of every interface is reached on this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn lines(yaml: &str, address: &str) -> Vec<String> {
        let config = config::parse(yaml, "test.yaml", &|_| None).unwrap();
        let welcome = Welcome {
            config: &config,
            listeners: &[("it".into(), address.parse().unwrap())],
            admin: config.admin.as_ref().map(|admin| admin.address),
        };
        welcome.lines()
    }

    #[test]
    fn lines_name_the_binding_and_where_it_is_reached() {
        let yaml = "listeners: [{name: it, address: \"0.0.0.0:0\"}]\nbindings: {a b: {echo: {}}}\nadmin: {address: \"0.0.0.0:9901\", token: secret}\n";

        assert_eq!(
            lines(yaml, "0.0.0.0:7000"),
            [
                "echo hello | curl -T - \"http://127.0.0.1:7000/v1.0-alpha1/bindings/a%20b/stream?operation=create\"",
                "curl -H \"Authorization: Bearer TOKEN\" http://127.0.0.1:9901/metrics",
            ]
        );
        assert_eq!(
            lines(yaml, "unix:/run/it.sock")[0],
            "echo hello | curl --unix-socket \"/run/it.sock\" -T - \"http://localhost/v1.0-alpha1/bindings/a%20b/stream?operation=create\""
        );
    }

    #[test]
    fn nothing_is_promised_that_is_not_there() {
        let yaml = "listeners: [{name: it, address: \"127.0.0.1:0\"}]\nadmin: {address: none}\n";

        assert_eq!(lines(yaml, "127.0.0.1:7000"), [""; 0]);
    }
}
