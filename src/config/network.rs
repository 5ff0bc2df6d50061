//! Ranges of IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses with the same first bits: `10.0.0.0/8`, or one alone: `192.0.2.7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    address: IpAddr,
    /// The bits that all have in common.
    bits: u8,
}

// === impl Network ===

impl Network {
    /// Whether an address is in it. An IPv4 address is the same when it comes over IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first(address.to_canonical()) == Some(self.address)
    }

    /// The first address of the network of this size that an address is in, if it is of the same family.
    fn first(&self, address: IpAddr) -> Option<IpAddr> {
        match (self.address, address) {
            (IpAddr::V4(_), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                Some(Ipv4Addr::from(address.to_bits() & mask).into())
            }
            (IpAddr::V6(_), IpAddr::V6(address)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                Some(Ipv6Addr::from(address.to_bits() & mask).into())
            }
            _ => None,
        }
    }
}

impl FromStr for Network {
    type Err = (String, String);

    /// A fault comes with the way out.
    fn from_str(text: &str) -> Result<Self, (String, String)> {
        let bad = || {
            let hint = "write one such as `10.0.0.0/8`, `\"fd00::/8\"` or `192.0.2.7`";
            (format!("`{text}` is not a network"), hint.to_owned())
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(bad());
        }
        let network = Self { address, bits };
        match network.first(address) {
            Some(first) if first != address => {
                let message = format!("`{text}` does not begin where such a network begins");
                let hint = format!(
                    "write `{first}/{bits}` for all of it, or `{address}` for the one address"
                );
                Err((message, hint))
            }
            _ => Ok(network),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().unwrap();
        network.contains(address.parse().unwrap())
    }

    #[test]
    fn address_is_in_it_if_the_first_bits_are_the_same() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("192.0.2.7", "192.0.2.7"));
        assert!(!contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(contains("fd00::/8", "fdff::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(!contains("::/0", "10.0.0.1"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
    }

    #[test]
    fn network_reads_back_as_shown() {
        for text in ["10.0.0.0/8", "192.0.2.7/32", "::/0", "fd00::/8"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_network_is_told() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "fd00::/129",
            "10.0.0/8",
            "host/8",
            "/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let (_, hint) = "10.1.2.3/8".parse::<Network>().unwrap_err();
        assert!(hint.contains("`10.0.0.0/8`"), "{hint}");
    }
}
