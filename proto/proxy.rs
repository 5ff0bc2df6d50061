//! The header of the PROXY protocol, versions 1 and 2: who is at the other end of a connection that a balancer has passed on.
//!
//! **Why.** A balancer that passes on TCP hides its clients behind its own address. It says whose connection it is in a
//! header before the first byte. Whoever may say so can claim any address, so whether a header is read at all is the
//! caller's decision; here is only what it says.
//!
//! **How.** [`parse`] is given all that has come so far, and asks for more until the header is whole. It looks at no more than
//! [`LONGEST`] bytes. What follows the addresses of version 2 (TLVs) is skipped, but for the checksum, which must be right if
//! there is one.
//!
//! ```
//! # use thalweg_proto::proxy::parse;
//! let header = parse(b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\nGET /").unwrap().unwrap();
//!
//! assert_eq!(header.source.unwrap().to_string(), "192.0.2.7:56324");
//! assert_eq!(header.len, 41);
//! ```

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The longest header that is taken. Senders are told to stay below 536 bytes; certificates among the TLVs make it more.
pub const LONGEST: usize = 4096;

/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;

/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";

/// How version 2 begins: with what no other protocol takes for its own.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The fixed part of version 2.
const FIXED: usize = 16;

/// The TLV that holds the checksum of the whole header.
const CRC32C: u8 = 0x03;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The bytes that it takes; what the client says follows.
    pub len: usize,
    /// The client's address. `None` when the sender speaks for itself, as its health checks do, or knows none.
    pub source: Option<SocketAddr>,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// They begin with something else.
    Missing,
    /// It is longer than [`LONGEST`], or a line of version 1 longer than any can be.
    TooLong,
    /// The line of version 1 is none.
    BadLine,
    /// A version or a command that does not exist.
    BadVersion,
    /// A family of addresses or a transport that does not exist, or too few bytes for an address.
    BadAddress,
    /// A TLV that reaches beyond the header.
    BadTlv,
    /// Not what the checksum was made of.
    BadChecksum,
}

/// Reads a header that these bytes begin with. `None` if they are not enough to tell.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    if begins(bytes, SIGNATURE) {
        version2(bytes)
    } else if begins(bytes, WORD) {
        version1(bytes)
    } else {
        Err(ProxyError::Missing)
    }
}

/// As far as there are bytes.
fn begins(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes
        .iter()
        .zip(wanted)
        .all(|(byte, wanted)| byte == wanted)
}

// === version 1 ===

fn version1(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    let line = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return match line.len() {
            LONGEST_LINE => Err(ProxyError::TooLong),
            _ => Ok(None),
        };
    };
    let text = str::from_utf8(&line[WORD.len()..end]).map_err(|_| ProxyError::BadLine)?;
    let source = match text.split_once(' ').unwrap_or((text, "")) {
        // Whatever follows is to be ignored.
        ("UNKNOWN", _) => None,
        ("TCP4", rest) => Some(source::<Ipv4Addr>(rest)?),
        ("TCP6", rest) => Some(source::<Ipv6Addr>(rest)?),
        _ => return Err(ProxyError::BadLine),
    };
    Ok(Some(Header {
        len: end + 2,
        source,
    }))
}

/// Source and destination, then their ports.
fn source<A: FromStr + Into<IpAddr>>(text: &str) -> Result<SocketAddr, ProxyError> {
    let words: Vec<&str> = text.splitn(5, ' ').collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(ProxyError::BadLine);
    };
    let address = |text: &str| A::from_str(text).map_err(|_| ProxyError::BadLine);
    let (source, _) = (address(source)?, address(destination)?);
    let (port, _) = (port(source_port)?, port(destination_port)?);
    Ok(SocketAddr::new(source.into(), port))
}

/// Digits and nothing else: no sign, and no zero in front.
fn port(text: &str) -> Result<u16, ProxyError> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let port = text.parse().ok().filter(|_| plain);
    port.ok_or(ProxyError::BadLine)
}

// === version 2 ===

fn version2(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(None);
    };
    let len = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let (version, command) = (fixed[12] >> 4, fixed[12] & 0xf);
    if version != 2 || command > 1 {
        return Err(ProxyError::BadVersion);
    }
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 0xf);
    let addresses = match (family, transport) {
        (0, 0..=2) => 0,
        (1, 0..=2) => 12,
        (2, 0..=2) => 36,
        (3, 0..=2) => 216,
        _ => return Err(ProxyError::BadAddress),
    };
    if len > LONGEST {
        return Err(ProxyError::TooLong);
    }
    let Some(rest) = rest.get(..len - FIXED) else {
        return Ok(None);
    };
    // One who speaks for itself may say nothing, or anything, about addresses.
    let local = command == 0;
    if local && rest.len() < addresses {
        return Ok(Some(Header { len, source: None }));
    }
    let (addresses, tlvs) = rest
        .split_at_checked(addresses)
        .ok_or(ProxyError::BadAddress)?;
    check_tlvs(&bytes[..len], len - tlvs.len())?;
    let source = match (family, transport) {
        _ if local => None,
        (1, 1) => address::<4, 8>(addresses).map(|(ip, port)| (IpAddr::from(ip), port)),
        (2, 1) => address::<16, 32>(addresses).map(|(ip, port)| (IpAddr::from(ip), port)),
        _ => None,
    };
    Ok(Some(Header {
        len,
        source: source.map(SocketAddr::from),
    }))
}

/// The source: an address of `N` bytes at the beginning, and its port behind both addresses.
fn address<const N: usize, const PORT: usize>(bytes: &[u8]) -> Option<([u8; N], u16)> {
    let port = bytes.get(PORT..)?.first_chunk()?;
    Some((*bytes.first_chunk()?, u16::from_be_bytes(*port)))
}

/// Walks the TLVs from `at` to the end of the header.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), ProxyError> {
    while let Some(&[kind, high, low]) = header.get(at..).and_then(|rest| rest.first_chunk()) {
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        let bytes = header.get(value.clone()).ok_or(ProxyError::BadTlv)?;
        if kind == CRC32C {
            let written = bytes.try_into().map_err(|_| ProxyError::BadTlv)?;
            // It was made with zeros in its own place.
            let (before, after) = (&header[..value.start], &header[value.end..]);
            let parts = [before, &[0; 4], after];
            if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(written) {
                return Err(ProxyError::BadChecksum);
            }
        }
        at = value.end;
    }
    match header.len() - at {
        0 => Ok(()),
        _ => Err(ProxyError::BadTlv),
    }
}

/// The checksum of RFC 4960, appendix B. One bit at a time: it is for some dozens of bytes, once a connection.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 }
        })
    });
    !crc
}

// === impl ProxyError ===

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "there is no PROXY header",
            Self::TooLong => "the PROXY header is too long",
            Self::BadLine => "the line of the PROXY header is malformed",
            Self::BadVersion => "the PROXY header is of no version or command that there is",
            Self::BadAddress => "the addresses of the PROXY header are malformed",
            Self::BadTlv => "the PROXY header ends within a TLV",
            Self::BadChecksum => "the checksum of the PROXY header is wrong",
        })
    }
}

impl std::error::Error for ProxyError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family][..], &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];

    fn v6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let destination = Ipv6Addr::LOCALHOST;
        [
            &source.octets()[..],
            &destination.octets(),
            &[0xdc, 0x04, 0x01, 0xbb],
        ]
        .concat()
    }

    fn source_of(bytes: &[u8]) -> Option<String> {
        let header = parse(bytes).unwrap().unwrap();
        assert_eq!(header.len, bytes.len());
        header.source.map(|source| source.to_string())
    }

    fn fault(bytes: &[u8]) -> ProxyError {
        parse(bytes).unwrap_err()
    }

    #[test]
    fn both_versions_tell_the_source() {
        for (header, told) in [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n".to_vec(),
                Some("192.0.2.7:56324"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 56324 0\r\n".to_vec(),
                Some("[2001:db8::7]:56324"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 whatever it is\r\n".to_vec(), None),
            (binary(1, 0x11, &V4), Some("192.0.2.7:56324")),
            (binary(1, 0x21, &v6()), Some("[2001:db8::7]:56324")),
            (binary(1, 0x31, &[b'x'; 216]), None),
            (binary(1, 0x00, b""), None),
            // Of datagrams: not this connection.
            (binary(1, 0x12, &V4), None),
            // Health checks of the balancer, with and without addresses.
            (binary(0, 0x00, b""), None),
            (binary(0, 0x11, &V4), None),
            (binary(0, 0x21, b"odd"), None),
        ] {
            assert_eq!(source_of(&header).as_deref(), told, "{header:?}");
        }
    }

    #[test]
    fn what_follows_is_the_clients() {
        let header = binary(1, 0x11, &V4);
        let found = parse(&[&header, &b"PRI * HTTP/2.0"[..]].concat());
        assert_eq!(found.unwrap().unwrap().len, header.len());
    }

    #[test]
    fn tlvs_are_skipped_and_must_be_whole() {
        let with = |tlvs: &[u8]| binary(1, 0x11, &[&V4, tlvs].concat());
        assert!(source_of(&with(&[0x04, 0, 2, 9, 9, 0xea, 0, 0])).is_some());
        for broken in [
            &[0x04][..],
            &[0x04, 0],
            &[0x04, 0, 3, 1, 1],
            &[0x04, 0, 0, 1],
        ] {
            assert_eq!(fault(&with(broken)), ProxyError::BadTlv, "{broken:?}");
        }
    }

    #[test]
    fn checksum_must_be_right_if_there_is_one() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        let mut header = binary(1, 0x11, &[&V4[..], &[CRC32C, 0, 4, 0, 0, 0, 0]].concat());
        let at = header.len() - 4;
        let checksum = crc32c(header.iter());
        header[at..].copy_from_slice(&checksum.to_be_bytes());
        assert!(source_of(&header).is_some());

        header[FIXED] ^= 1;
        assert_eq!(fault(&header), ProxyError::BadChecksum);
        let short = binary(1, 0x11, &[&V4[..], &[CRC32C, 0, 3, 0, 0, 0]].concat());
        assert_eq!(fault(&short), ProxyError::BadTlv);
    }

    #[test]
    fn what_is_no_header_is_told_at_the_first_byte_that_shows_it() {
        for bytes in [
            &b"G"[..],
            b"PRI",
            b"\x16\x03\x01",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXYTCP4",
        ] {
            assert_eq!(fault(bytes), ProxyError::Missing, "{bytes:?}");
        }
        assert_eq!(parse(b""), Ok(None));
    }

    #[test]
    fn lines_are_read_to_the_letter() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3 1 1\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 1\r\n",
        ] {
            assert_eq!(fault(line.as_bytes()), ProxyError::BadLine, "{line:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let line = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 91], b"\r\n".to_vec()].concat();
        assert_eq!(line.len(), LONGEST_LINE);
        assert_eq!(source_of(&line), None);
        let longer = [&line[..line.len() - 2], b"x\r\n"].concat();
        assert_eq!(fault(&longer), ProxyError::TooLong);

        let most = binary(
            1,
            0x00,
            &[vec![4, 0x0f, 0xed], vec![0; LONGEST - FIXED - 3]].concat(),
        );
        assert_eq!(most.len(), LONGEST);
        assert_eq!(source_of(&most), None);
        // Told by its length, before the rest has come.
        let longer = [SIGNATURE, &[0x21, 0x11, 0x0f, 0xf1][..]].concat();
        assert_eq!(fault(&longer), ProxyError::TooLong);
    }

    #[test]
    fn numbers_that_mean_nothing_are_faults() {
        assert_eq!(fault(&binary(2, 0x11, &V4)), ProxyError::BadVersion);
        let mut first = binary(1, 0x11, &V4);
        first[12] = 0x11;
        assert_eq!(fault(&first), ProxyError::BadVersion);
        assert_eq!(fault(&binary(1, 0x41, &V4)), ProxyError::BadAddress);
        assert_eq!(fault(&binary(1, 0x13, &V4)), ProxyError::BadAddress);
        assert_eq!(fault(&binary(1, 0x21, &V4)), ProxyError::BadAddress);
    }
}
