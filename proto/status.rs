//! gRPC statuses, and how they read from and into HTTP.
//!
//! **Why.** Every stream ends with one of seventeen codes, but failures also arrive as an HTTP
//! status or as an HTTP/2 reset. All three must come to the same code at every place that counts,
//! logs or answers.
//!
//! **How.** The tables are those of the gRPC documentation: `http-grpc-status-mapping.md` for
//! [`Code::from_http`], `PROTOCOL-HTTP2.md` (section *Errors*) for [`Code::from_reset`] and for the
//! percent-encoding of `grpc-message`, and `google/rpc/code.proto` for [`Code::to_http`].

use std::{borrow::Cow, fmt};

/// How a gRPC call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The call succeeded.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// Nothing better is known.
    Unknown = 2,
    /// The request is wrong whatever the state of the system.
    InvalidArgument = 3,
    /// Time ran out before the call was done.
    DeadlineExceeded = 4,
    /// What was asked for does not exist.
    NotFound = 5,
    /// What was to be made exists.
    AlreadyExists = 6,
    /// The caller is known and may not do this.
    PermissionDenied = 7,
    /// A quota or a resource is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call lost to a concurrent one.
    Aborted = 10,
    /// The request went past the valid range.
    OutOfRange = 11,
    /// The server has no such method.
    Unimplemented = 12,
    /// Something is broken.
    Internal = 13,
    /// The service cannot be reached now; trying again may help.
    Unavailable = 14,
    /// Data is lost or damaged beyond repair.
    DataLoss = 15,
    /// The caller has not said, or not proved, who it is.
    Unauthenticated = 16,
}

// === impl Code ===

impl Code {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code with this number; a number that gRPC does not define is [`Unknown`](Self::Unknown).
    pub fn from_number(number: u32) -> Self {
        Self::ALL
            .get(number as usize)
            .copied()
            .unwrap_or(Self::Unknown)
    }

    /// The number of this code.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Reads the header `grpc-status`; what is no code is [`Unknown`](Self::Unknown).
    pub fn from_header(value: &[u8]) -> Self {
        match *value {
            [ones @ b'0'..=b'9'] => Self::from_number(u32::from(ones - b'0')),
            [b'1', ones @ b'0'..=b'9'] => Self::from_number(u32::from(ones - b'0') + 10),
            _ => Self::Unknown,
        }
    }

    /// The value of the header `grpc-status`.
    pub const fn as_str(self) -> &'static str {
        const NUMBERS: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16",
        ];
        NUMBERS[self as usize]
    }

    /// The name in gRPC's own spelling, such as `DEADLINE_EXCEEDED`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// What an HTTP status means to a gRPC client when the answer carries no `grpc-status`.
    ///
    /// There is no status for success here: without `grpc-status`, even 200 is a failure.
    pub const fn from_http(status: u16) -> Self {
        match status {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }

    /// The HTTP status for clients that do not speak gRPC.
    pub const fn to_http(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            // nginx's own "client closed request"; nobody is left to read it.
            Self::Cancelled => 499,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// What an HTTP/2 error code (RFC 9113, section 7) in RST_STREAM means to a gRPC client.
    pub const fn from_reset(reason: u32) -> Self {
        match reason {
            7 => Self::Unavailable, // REFUSED_STREAM: nothing was done, so it is safe to try again
            8 => Self::Cancelled,
            11 => Self::ResourceExhausted,
            12 => Self::PermissionDenied,
            0..=13 => Self::Internal,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

// === resets ===

/// The name of an HTTP/2 error code (RFC 9113, section 7), such as `REFUSED_STREAM`.
pub const fn reset_name(reason: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    if (reason as usize) < NAMES.len() {
        NAMES[reason as usize]
    } else {
        "UNKNOWN"
    }
}

// === grpc-message ===

/// Encodes text for the header `grpc-message`; borrows when the text is fit as it is.
///
/// Besides what gRPC demands (bytes outside of printable ASCII, and `%`), a space at either edge
/// is encoded: HTTP/2 forbids it there, and strict peers reset the stream (RFC 9113, section 8.2.1).
pub fn encode_message(message: &str) -> Cow<'_, str> {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";

    let bytes = message.as_bytes();
    let is_plain = |(at, byte): (usize, u8)| match byte {
        b'%' => false,
        b' ' => at > 0 && at + 1 < bytes.len(),
        _ => byte.is_ascii_graphic(),
    };
    if bytes.iter().copied().enumerate().all(is_plain) {
        return Cow::Borrowed(message);
    }

    let mut encoded = String::with_capacity(message.len() + 16);
    for (at, byte) in bytes.iter().copied().enumerate() {
        if is_plain((at, byte)) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 0xf)]));
        }
    }
    Cow::Owned(encoded)
}

/// Decodes the header `grpc-message`; borrows when nothing is encoded.
///
/// It never fails, because a damaged message still helps whoever reads it: escapes that are none
/// stay as they stand, and what is not UTF-8 is replaced by U+FFFD.
pub fn decode_message(value: &[u8]) -> Cow<'_, str> {
    if !value.contains(&b'%') {
        return String::from_utf8_lossy(value);
    }

    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        if let [b'%', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(byte);
            rest = after;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

/// The value of one hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    // A digit is below sixteen, so it fits.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips_for_every_code() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.number() as usize, number);
            assert_eq!(code.as_str(), number.to_string());
            assert_eq!(Code::from_header(code.as_str().as_bytes()), code);
        }
    }

    #[test]
    fn what_is_no_code_is_unknown() {
        for value in ["", "-1", "+1", "00", "17", "20", "100", "OK", " 0"] {
            assert_eq!(
                Code::from_header(value.as_bytes()),
                Code::Unknown,
                "{value:?}"
            );
        }
        assert_eq!(Code::from_number(u32::MAX), Code::Unknown);
    }

    #[test]
    fn name_is_spelled_as_in_grpc() {
        for code in Code::ALL {
            let camel: String = code
                .name()
                .split('_')
                .map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase())
                .collect();
            assert_eq!(camel, format!("{code:?}"));
        }
        assert_eq!(Code::DeadlineExceeded.to_string(), "DEADLINE_EXCEEDED");
    }

    #[test]
    fn http_without_grpc_status_is_never_ok() {
        assert!((0..=u16::MAX).all(|status| Code::from_http(status) != Code::Ok));
        assert_eq!(Code::from_http(200), Code::Unknown);
        assert_eq!(Code::from_http(404), Code::Unimplemented);
        assert_eq!(Code::from_http(503), Code::Unavailable);
    }

    #[test]
    fn only_ok_is_an_http_success() {
        for code in Code::ALL {
            assert_eq!(code.to_http() < 400, code == Code::Ok, "{code}");
        }
    }

    #[test]
    fn resets_map_as_grpc_says() {
        use Code::{Cancelled, Internal, PermissionDenied, ResourceExhausted, Unavailable};

        let codes: Vec<Code> = (0..14).map(Code::from_reset).collect();

        assert_eq!(codes[..7], [Internal; 7]);
        assert_eq!(codes[7..11], [Unavailable, Cancelled, Internal, Internal]);
        assert_eq!(codes[11..], [ResourceExhausted, PermissionDenied, Internal]);
        assert_eq!(Code::from_reset(14), Code::Unknown);
    }

    #[test]
    fn resets_have_the_names_of_the_rfc() {
        assert_eq!(reset_name(0), "NO_ERROR");
        assert_eq!(reset_name(8), "CANCEL");
        assert_eq!(reset_name(13), "HTTP_1_1_REQUIRED");
        assert_eq!(reset_name(u32::MAX), "UNKNOWN");
    }

    #[test]
    fn plain_message_is_borrowed_both_ways() {
        let plain = "no such binding: \"orders\" ~";

        assert!(matches!(encode_message(plain), Cow::Borrowed(text) if text == plain));
        assert!(matches!(decode_message(plain.as_bytes()), Cow::Borrowed(text) if text == plain));
        assert!(matches!(encode_message(""), Cow::Borrowed("")));
    }

    #[test]
    fn message_is_encoded_byte_by_byte() {
        assert_eq!(encode_message("100% à\r\n"), "100%25 %C3%A0%0D%0A");
        assert_eq!(encode_message("\u{7f}"), "%7F");
    }

    #[test]
    fn space_at_an_edge_is_encoded() {
        assert_eq!(encode_message(" a b "), "%20a b%20");
        assert_eq!(encode_message(" "), "%20");
    }

    #[test]
    fn escapes_are_read_in_either_case() {
        assert_eq!(decode_message(b"%c3%A0"), "à");
    }

    #[test]
    fn bad_escapes_stay_literal() {
        for value in ["%", "%4", "%4x", "%x4", "100% sure", "%%", "%+1"] {
            assert_eq!(decode_message(value.as_bytes()), value);
        }
        assert_eq!(decode_message(b"%%41"), "%A");
    }

    #[test]
    fn broken_utf8_is_replaced() {
        assert_eq!(decode_message(b"%FFa"), "\u{fffd}a");
        assert_eq!(decode_message(b"\xffa"), "\u{fffd}a");
    }
}
