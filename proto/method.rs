//! Which gRPC method a request calls, and whether it is gRPC at all.
//!
//! **Why.** Routes, metrics and logs speak of services and methods. A path that is no method must be
//! refused at the edge: it can match no service, and it must not become a metric label.
//!
//! **How.** A gRPC path is `/package.Service/Method`. Nothing is decoded or copied.
//!
//! ```
//! use thalweg_proto::method::Method;
//!
//! let method = Method::parse("/helloworld.Greeter/SayHello")?;
//! assert_eq!((method.service, method.method), ("helloworld.Greeter", "SayHello"));
//! # Ok::<(), thalweg_proto::method::MethodError>(())
//! ```

use std::fmt;

/// The service and the method that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method<'a> {
    /// The full name of the service, with its package.
    pub service: &'a str,
    /// The name of the method within the service.
    pub method: &'a str,
}

/// Why a path names no method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodError {
    /// The path does not begin with a slash.
    NoLeadingSlash,
    /// Nothing stands before the second slash.
    NoService,
    /// Nothing stands after the service.
    NoMethod,
    /// A slash follows the method.
    TooManySegments,
}

/// Whether a request or an answer with this `content-type` is gRPC.
///
/// gRPC-Web is not: its frames differ, and so does the place of its trailers.
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";

    let Some((kind, rest)) = value.split_at_checked(GRPC.len()) else {
        return false;
    };
    // What may follow: nothing, the encoding of the messages (`+proto`), parameters.
    kind.eq_ignore_ascii_case(GRPC)
        && (rest.starts_with(b"+") || matches!(rest.trim_ascii_start(), [] | [b';', ..]))
}

// === impl Method ===

impl<'a> Method<'a> {
    /// Reads the path of a request, without query.
    pub fn parse(path: &'a str) -> Result<Self, MethodError> {
        let path = path.strip_prefix('/').ok_or(MethodError::NoLeadingSlash)?;
        let (service, method) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() {
            return Err(MethodError::NoService);
        }
        if method.is_empty() {
            return Err(MethodError::NoMethod);
        }
        if method.contains('/') {
            return Err(MethodError::TooManySegments);
        }
        Ok(Self { service, method })
    }
}

// === impl MethodError ===

impl fmt::Display for MethodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLeadingSlash => "the path does not begin with a slash",
            Self::NoService => "the path names no service",
            Self::NoMethod => "the path names no method",
            Self::TooManySegments => "the path has more than two segments",
        })
    }
}

impl std::error::Error for MethodError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_a_service_and_a_method() {
        let method = Method::parse("/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1").unwrap();

        assert_eq!(method.service, "dapr.proto.runtime.v1.Dapr");
        assert_eq!(method.method, "InvokeBindingAlpha1");
    }

    #[test]
    fn each_fault_is_named() {
        use MethodError::{NoLeadingSlash, NoMethod, NoService, TooManySegments};

        for (path, fault) in [
            ("", NoLeadingSlash),
            ("*", NoLeadingSlash),
            ("a.B/C", NoLeadingSlash),
            ("/", NoService),
            ("//C", NoService),
            ("/a.B", NoMethod),
            ("/a.B/", NoMethod),
            ("/a.B//", TooManySegments),
            ("/a.B/C/", TooManySegments),
            ("/a.B/C/D", TooManySegments),
        ] {
            assert_eq!(Method::parse(path), Err(fault), "{path:?}");
        }
    }

    #[test]
    fn grpc_content_types_are_known_by_their_beginning() {
        for value in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+json",
            "application/grpc;charset=utf-8",
            "application/grpc ; charset=utf-8",
            "Application/GRPC",
        ] {
            assert!(is_grpc_content_type(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn grpc_web_is_not_grpc() {
        for value in [
            "",
            "application/grp",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcweb",
            "application/grpc web",
            "application/json",
        ] {
            assert!(!is_grpc_content_type(value.as_bytes()), "{value}");
        }
    }
}
