//! Objects: what the load generator asks of a store, through a binding.
//!
//! **Why.** What it costs to store a stream is told by the same stream on a plain route, to a backend that counts it.
//!
//! **How.** An upload is told how many bytes were stored, a download is counted. One name is used for all, so that no more than
//! two objects of 10 GiB are ever there.

use bytes::Bytes;
use thalweg_proto::bindings::{
    FirstRequest, Form, InitialRequest, InitialResponse, Message, framed,
    reader::{Piece, Reader},
};

use crate::grpc::{Body, Failure};

/// A place for objects, by the name of its binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Files,
    S3,
}

/// What becomes of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Get,
}

/// The name of the object.
pub(crate) const KEY: &str = "object";

// === impl Store ===

impl Store {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::S3 => "s3",
        }
    }

    /// The message that opens a stream.
    pub(crate) fn first(self, operation: Operation) -> Bytes {
        framed(&FirstRequest {
            initial_request: Some(InitialRequest {
                name: self.name().into(),
                operation: operation.name().into(),
                metadata: [("key".to_owned(), KEY.to_owned())].into(),
            }),
        })
    }
}

// === impl Operation ===

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
        }
    }
}

/// Reads an answer to its end: the size that it tells of, and the bytes of payload that came.
pub(crate) async fn read_answer(body: &mut Body) -> Result<(u64, u64), Failure> {
    let mut reader = Reader::new(Form::Runtime);
    let mut told = None;
    let mut bytes = 0;
    while let Some(chunk) = body.chunk().await? {
        reader.read(&chunk, |piece| match piece {
            Piece::Initial(content) => told = Some(content),
            Piece::Data { start, end } => bytes += (end - start) as u64,
            Piece::Start(_) | Piece::End(_) => {}
        })?;
    }
    reader.finish()?;
    let told = InitialResponse::decode(told.ok_or("the answer has no beginning")?)?;
    let size = told.metadata.get("size").ok_or("the answer has no size")?;
    Ok((size.parse()?, bytes))
}
