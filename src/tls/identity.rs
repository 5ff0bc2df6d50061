//! What a client's certificate says, as one header for the upstream, and when that ends.
//!
//! The header is the one that Envoy and Istio have made known, so that many a backend reads it already:
//!
//! ```text
//! x-forwarded-client-cert: Hash=9f86d081…;Subject="CN=orders,O=Example";URI=spiffe://example.test/ns/shop/sa/orders;DNS=orders.example.test
//! ```
//!
//! **Nobody can write into it.** Whatever could end a value is escaped in it: in the subject as `\` and two hexadecimal digits
//! (RFC 4514), in the other names as `%` and two. Within the quotes there is never a quote, and outside of them no `;` and
//! no `,` but those between the parts.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

/// The longest header that is made: half of what servers commonly take of all headers together.
const LONGEST: usize = 4 * 1024;

/// What a client has shown of itself.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The value of the header.
    pub(crate) header: HeaderValue,
    /// How long it is still true.
    pub(crate) left: Duration,
}

/// Reads a certificate, or tells why its client is not served. It has been believed already, though perhaps on an earlier
/// connection.
pub(super) fn read(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Identity, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| refused("the client's certificate cannot be read"))?;
    // It is good for all of its last second.
    let end = parsed.validity().not_after.timestamp().saturating_add(1);
    let end = UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or_default());
    let left = end.duration_since(now).unwrap_or_default();
    if left.is_zero() {
        // A full handshake has looked at it; one that resumes has not.
        return Err(refused(
            "the client's certificate has expired since its session began",
        ));
    }
    let mut text = String::from("Hash=");
    for byte in digest(&SHA256, certificate).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str(";Subject=\"");
    subject(&mut text, parsed.subject());
    text.push('"');
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            let (key, name) = match name {
                GeneralName::URI(name) => ("URI", name),
                GeneralName::DNSName(name) => ("DNS", name),
                _ => continue,
            };
            let _ = write!(text, ";{key}=");
            percent_encode(&mut text, name);
        }
    }
    if text.len() > LONGEST {
        return Err(refused(
            "the client's certificate has more names than fit into a header of 4KiB",
        ));
    }
    let header = HeaderValue::try_from(text)
        .map_err(|_| refused("the client's certificate fits no header"))?;
    Ok(Identity { header, left })
}

fn refused(message: &'static str) -> Error {
    Error::new(
        Code::PermissionDenied,
        "client_certificate_refused",
        Side::Client,
        message,
    )
}

/// The subject as RFC 4514 writes it, which begins with its end.
fn subject(text: &mut String, name: &X509Name<'_>) {
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, part) in parts.into_iter().rev().enumerate() {
        if index > 0 {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            self::attribute(text, attribute);
        }
    }
}

fn attribute(text: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type().to_id_string();
    let name = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        other => other,
    };
    text.push_str(name);
    text.push('=');
    let value = match attribute.as_str() {
        Ok(value) => value.as_bytes(),
        // A kind of text that is not read: as it lies there.
        Err(_) => attribute.as_slice(),
    };
    for (index, byte) in value.iter().enumerate() {
        let edge = index == 0 || index == value.len() - 1;
        match byte {
            b' ' if !edge => text.push(' '),
            b'#' if index > 0 => text.push('#'),
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'=' | b'\\' | b'#' => escape(text, *byte),
            0x21..=0x7e => text.push(char::from(*byte)),
            _ => escape(text, *byte),
        }
    }
}

fn escape(text: &mut String, byte: u8) {
    let _ = write!(text, "\\{byte:02X}");
}

fn percent_encode(text: &mut String, name: &str) {
    for byte in name.bytes() {
        match byte {
            b'"' | b',' | b';' | b'\\' => {
                let _ = write!(text, "%{byte:02X}");
            }
            0x21..=0x7e => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
}
