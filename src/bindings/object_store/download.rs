//! An object that becomes a stream, as fast as the client reads.
//!
//! Whoever moves a body takes all that it has, and relies on its source to stop. So what is read is booked on a [`Ledger`], and no more is
//! read while a window of it is held.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::http::{HeaderMap, HeaderName, HeaderValue};
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::Frame;
use object_store::{GetResult, path::Path};
use thalweg_filters::{Body, Chunk, Error, Side, StreamContext, body::Ledger};
use thalweg_proto::status::Code;

use super::{store, wanted::hex};

/// What is read of a store's bytes before the client has taken them, beside the piece that was read last.
pub(super) const WINDOW: usize = 256 * 1024;

/// Tells the sum when all was read.
pub(super) const SHA256: &str = "metadata.sha256";

struct Download {
    pieces: BoxStream<'static, object_store::Result<Bytes>>,
    ledger: Arc<Ledger>,
    /// Bytes that are still to come.
    left: u64,
    sum: Option<digest::Context>,
    key: String,
    label: Arc<str>,
}

/// The bytes that were found, held by `stream`; with `hashed`, their SHA-256 as a trailer.
pub(super) fn body(
    found: GetResult,
    key: &Path,
    label: Arc<str>,
    hashed: bool,
    stream: Option<&StreamContext>,
) -> Body {
    Body::new(Download {
        ledger: Ledger::window(WINDOW).of(stream),
        left: found.range.end - found.range.start,
        pieces: found.into_stream(),
        sum: hashed.then(|| digest::Context::new(&digest::SHA256)),
        key: key.to_string(),
        label,
    })
}

impl http_body::Body for Download {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        ready!(this.ledger.poll_open(cx));
        match ready!(this.pieces.as_mut().poll_next(cx)) {
            Some(Ok(piece)) => {
                this.left = this.left.saturating_sub(piece.len() as u64);
                if let Some(sum) = &mut this.sum {
                    sum.update(&piece);
                }
                Poll::Ready(Some(Ok(Frame::data(this.ledger.take(piece)))))
            }
            Some(Err(error)) => {
                let error = store::failure(&this.label, &this.key, error);
                Poll::Ready(Some(Err(error)))
            }
            None if this.left > 0 => Poll::Ready(Some(Err(Error::new(
                Code::DataLoss,
                "object_cut",
                Side::Upstream,
                format!(
                    "{}: the object {} ended {} bytes too early",
                    this.label, this.key, this.left
                ),
            )))),
            None => Poll::Ready(this.sum.take().and_then(|sum| {
                let sum = HeaderValue::try_from(hex(sum.finish().as_ref())).ok()?;
                Some(Ok(Frame::trailers(HeaderMap::from_iter([(
                    HeaderName::from_static(SHA256),
                    sum,
                )]))))
            })),
        }
    }
}
