//! The four ways in which a stream ends.
//!
//! A stream is judged by how it really ended and not by how it began, so whoever counts or judges wraps the response
//! body and asks [`Ending::of_frame`] about each frame. A body that is dropped before any of them has ended too.

use http::HeaderMap;
use http_body::Frame;
use thalweg_proto::status::Code;

use crate::{Chunk, Error, Side};

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With trailers, and the status in them if there was one.
    Trailers(Option<Code>),
    /// With its last byte.
    Clean,
    /// With an error in the middle: a reset, a lost connection, a refusal of the proxy.
    Error(Code),
    /// The client let go of it first.
    Dropped,
}

impl Ending {
    /// Every kind, as the metrics' label says it.
    pub const NAMES: [&'static str; 4] = ["trailers", "clean", "error", "dropped"];

    /// The place of this kind in [`Ending::NAMES`].
    pub fn index(self) -> usize {
        match self {
            Self::Trailers(_) => 0,
            Self::Clean => 1,
            Self::Error(_) => 2,
            Self::Dropped => 3,
        }
    }

    /// How a stream ends that ends with `error`. A client that has cancelled is one that has let go, whether it is noticed in
    /// what it sent or in its absence.
    pub fn of_error(error: &Error) -> Self {
        match (error.side(), error.code()) {
            (Side::Client, Code::Cancelled) => Self::Dropped,
            (_, code) => Self::Error(code),
        }
    }

    /// What a polled frame says of the stream's end; `None` while it goes on.
    pub fn of_frame(frame: Option<&Result<Frame<Chunk>, Error>>) -> Option<Self> {
        match frame {
            None => Some(Self::Clean),
            Some(Err(error)) => Some(Self::of_error(error)),
            Some(Ok(frame)) => frame
                .trailers_ref()
                .map(|trailers| Self::Trailers(grpc_status(trailers))),
        }
    }
}

/// The status that trailers, or the headers of an answer without a body, carry.
pub fn grpc_status(headers: &HeaderMap) -> Option<Code> {
    headers
        .get("grpc-status")
        .map(|value| Code::from_header(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_that_cancels_has_let_go() {
        let cancelled = |side| Error::new(Code::Cancelled, "x", side, "x");

        assert_eq!(Ending::of_error(&cancelled(Side::Client)), Ending::Dropped);
        assert_eq!(
            Ending::of_error(&cancelled(Side::Upstream)),
            Ending::Error(Code::Cancelled)
        );
    }
}
