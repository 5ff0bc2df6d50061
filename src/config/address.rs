//! Where to listen and where to connect.

use std::error::Error;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a Unix socket, less the zero that ends it.
const UNIX_PATH_MAX: usize = 107;

/// A TCP address, `127.0.0.1:8080`, or a Unix socket, `unix:/run/thalweg.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
    /// A name that is looked up at each dial, and a port. Only the URL of a binding makes one: no
    /// text reads as such an address.
    Host(String, u16),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq)]
pub struct BadAddress {
    pub(super) message: String,
    pub(super) hint: &'static str,
}

// === impl Address ===

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |message: &str, hint| BadAddress {
            message: format!("`{text}` {message}"),
            hint,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(bad("has no path", "write `unix:/run/thalweg.sock`")),
                1..=UNIX_PATH_MAX => Ok(Self::Unix(path.into())),
                _ => Err(bad(
                    "is too long for a socket",
                    "a path has at most 107 bytes",
                )),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && !text.ends_with(']') => (host, port),
            _ => return Err(bad("has no port", "write `127.0.0.1:8080` or `unix:/path`")),
        };
        let Ok(port) = port.parse() else {
            return Err(bad("has no valid port", "a port is a number up to 65535"));
        };
        match host {
            // The one name that means the same everywhere.
            "localhost" => Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            "" | "*" => Err(bad(
                "names no host",
                "write `127.0.0.1`, or `0.0.0.0` for every interface",
            )),
            _ if host.contains(':') => Err(bad(
                "is not an IPv6 address and port",
                "write the address in brackets: `\"[::1]:8080\"`",
            )),
            _ => Err(bad(
                "is a name, and names are not looked up",
                "write its IP address, such as `127.0.0.1:50051`",
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

// === impl BadAddress ===

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.hint)
    }
}

impl Error for BadAddress {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_shown() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:80",
            "unix:/run/x.sock",
            "unix:x.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn localhost_is_the_only_name() {
        let localhost: Address = "localhost:50051".parse().unwrap();
        assert_eq!(localhost.to_string(), "127.0.0.1:50051");
        assert!("greeter.svc:50051".parse::<Address>().is_err());
    }

    #[test]
    fn each_mistake_has_its_own_words() {
        let told = |text: &str| text.parse::<Address>().unwrap_err().message;
        assert_eq!(told("127.0.0.1"), "`127.0.0.1` has no port");
        assert_eq!(told("[::1]"), "`[::1]` has no port");
        assert_eq!(told("127.0.0.1:"), "`127.0.0.1:` has no port");
        assert_eq!(told("1.2.3.4:99999"), "`1.2.3.4:99999` has no valid port");
        assert_eq!(told(":8080"), "`:8080` names no host");
        assert_eq!(told("::1:80"), "`::1:80` is not an IPv6 address and port");
        assert_eq!(told("unix:"), "`unix:` has no path");
    }
}
