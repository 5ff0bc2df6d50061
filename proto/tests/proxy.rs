//! What holds for every header of the PROXY protocol: it is the same however it comes, and says what was written into it.

use std::net::{IpAddr, SocketAddr};

use proptest::{collection::vec, prelude::*, sample::Index};
use thalweg_proto::proxy::{Header, LONGEST, parse};

/// How a balancer writes a header.
#[derive(Clone, Copy, Debug)]
enum Version {
    Line,
    Binary,
}

fn write(version: Version, source: SocketAddr, destination_port: u16, tlv: &[u8]) -> Vec<u8> {
    let (source_ip, port) = (source.ip(), source.port());
    match version {
        Version::Line => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {source_ip} {source_ip} {port} {destination_port}\r\n").into()
        }
        Version::Binary => {
            let (family, ip) = match source_ip {
                IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
                IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
            };
            let ports = [port.to_be_bytes(), destination_port.to_be_bytes()].concat();
            let tlv_len = u16::try_from(tlv.len()).expect("a short one").to_be_bytes();
            let rest = [&ip, &ip, &ports, &[0xe0][..], &tlv_len, tlv].concat();
            let len = u16::try_from(rest.len())
                .expect("a short one")
                .to_be_bytes();
            [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family][..], &len, &rest].concat()
        }
    }
}

fn header() -> impl Strategy<Value = (Vec<u8>, SocketAddr)> {
    let version = prop_oneof![Just(Version::Line), Just(Version::Binary)];
    let parts = (
        version,
        any::<SocketAddr>(),
        any::<u16>(),
        vec(any::<u8>(), 0..300),
    );
    parts.prop_map(|(version, source, destination_port, tlv)| {
        let source = SocketAddr::new(source.ip(), source.port());
        (write(version, source, destination_port, &tlv), source)
    })
}

/// The first prefix that says anything says what all of it says.
fn does_not_depend_on_how_it_comes(bytes: &[u8]) {
    let whole = parse(bytes);
    let mut prefixes = (0..=bytes.len()).map(|end| (end, parse(&bytes[..end])));
    match prefixes.find(|(_, found)| *found != Ok(None)) {
        Some((end, first)) => {
            assert_eq!(first, whole);
            if let Ok(Some(header)) = first {
                assert_eq!(header.len, end);
                assert!(end <= LONGEST);
            }
        }
        None => assert_eq!(whole, Ok(None)),
    }
}

proptest! {
    #[test]
    fn header_says_what_was_written((bytes, source) in header(), after in vec(any::<u8>(), 0..20)) {
        let all = [bytes.clone(), after].concat();
        prop_assert_eq!(parse(&all), Ok(Some(Header { len: bytes.len(), source: Some(source) })));
        for end in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..end]), Ok(None));
        }
    }

    #[test]
    fn damaged_header_breaks_nothing((mut bytes, _) in header(), at in any::<Index>(), byte in any::<u8>()) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        does_not_depend_on_how_it_comes(&bytes);
    }

    #[test]
    fn garbage_breaks_nothing(line in any::<bool>(), rest in vec(any::<u8>(), 0..300)) {
        let begin: &[u8] = if line { b"PROXY " } else { b"\r\n\r\n\0\r\nQUIT\n\x21" };
        does_not_depend_on_how_it_comes(&rest);
        does_not_depend_on_how_it_comes(&[begin, &rest].concat());
    }
}
