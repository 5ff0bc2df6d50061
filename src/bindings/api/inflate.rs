//! Takes the compression off the messages of a call, so that they can be read.
//!
//! A compressed message has no length before it is whole, so each is collected, up to a bound, and handed on as a message
//! without compression. Only clients that compress pay for it.
//!
//! A window's worth of compressed bytes can be a thousand windows' worth in the end. So they wait as they came, and are inflated as the
//! far side takes what came of those before: a stream holds [`WINDOW`] and a message or two.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ::http::{HeaderName, HeaderValue, Request};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use thalweg_filters::{
    Body, Chunk, Error, Side,
    body::Ledger,
    gzip::{self, InflateError},
};
use thalweg_proto::{
    frame::{Event, FrameInspector, Head},
    status::Code,
};

use crate::stage::Stage;

/// What may wait for the far side after it was inflated.
const WINDOW: usize = 256 * 1024;

/// What is inflated in one go; a thousand times as much may come of it.
const PIECE: usize = 4 * 1024;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The request with its messages as they are, each of at most `most` bytes where it was compressed.
pub(super) fn inflated(mut request: Request<Body>, most: usize) -> Result<Request<Body>, Error> {
    match request.headers_mut().remove(ENCODING) {
        None => Ok(request),
        Some(encoding) if encoding == "identity" => Ok(request),
        Some(encoding) if encoding == "gzip" => {
            let inflated = Ledger::window(WINDOW).of(request.extensions().get());
            Ok(request.map(|body| {
                body.wrap(|inner| Inflate {
                    inner,
                    waiting: Stage::default(),
                    ended: false,
                    inflated,
                    frames: FrameInspector::new(),
                    head: None,
                    collected: BytesMut::new(),
                    most,
                })
            }))
        }
        Some(encoding) => Err(Error::new(
            Code::Unimplemented,
            "unsupported_encoding",
            Side::Client,
            format!(
                "grpc-encoding: {} is not known here; known are identity and gzip",
                String::from_utf8_lossy(encoding.as_bytes())
            ),
        )
        .with_header(
            HeaderName::from_static("grpc-accept-encoding"),
            HeaderValue::from_static("identity,gzip"),
        )),
    }
}

struct Inflate {
    inner: Body,
    /// What has come and is not inflated yet; the client's window bounds it.
    waiting: Stage,
    ended: bool,
    inflated: Arc<Ledger>,
    frames: FrameInspector,
    head: Option<Head>,
    /// What has come of a compressed message.
    collected: BytesMut,
    most: usize,
}

// === impl Inflate ===

impl Inflate {
    fn take(&mut self, chunk: Chunk) -> Result<Option<Chunk>, Error> {
        let (bytes, _) = chunk.into_parts();
        let mut out = BytesMut::with_capacity(bytes.len());
        for event in self.frames.inspect(&bytes) {
            let event = event.map_err(|fault| malformed(fault.to_string()))?;
            match (event, self.head) {
                (Event::Start(head), _) => {
                    if head.compressed && head.length as usize > self.most {
                        return Err(too_large(self.most));
                    }
                    if !head.compressed {
                        out.put_u8(0);
                        out.put_u32(head.length);
                    }
                    self.head = Some(head);
                }
                (
                    Event::Payload { start, end },
                    Some(Head {
                        compressed: true, ..
                    }),
                ) => {
                    self.collected.put_slice(&bytes[start..end]);
                }
                (Event::Payload { start, end }, _) => out.put_slice(&bytes[start..end]),
                (
                    Event::End,
                    Some(Head {
                        compressed: true, ..
                    }),
                ) => {
                    let compressed = std::mem::take(&mut self.collected);
                    let message = inflate(&compressed, self.most)?;
                    out.put_u8(0);
                    out.put_u32(u32::try_from(message.len()).map_err(|_| too_large(self.most))?);
                    out.put_slice(&message);
                }
                (Event::End, _) => {}
            }
        }
        Ok((!out.is_empty()).then(|| self.inflated.take(out.freeze())))
    }
}

impl http_body::Body for Inflate {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        // Whatever comes is read, also while the far side takes nothing: see `pump`. A request's trailers mean nothing to a binding.
        while !this.ended {
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) => this.waiting.push(chunk),
                    Err(_) => this.ended = true,
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => this.ended = true,
            }
        }
        if this.inflated.poll_open(cx).is_pending() {
            this.waiting.wait();
            return Poll::Pending;
        }
        while !this.waiting.is_empty() {
            let piece = this.waiting.pop(PIECE);
            if let Some(chunk) = this.take(piece)? {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
        }
        if !this.ended {
            // Asked again when more comes, or when what waits is taken.
            return Poll::Pending;
        }
        Poll::Ready(if this.frames.is_at_boundary() {
            None
        } else {
            Some(Err(malformed("the request ended within a message".into())))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_empty()
            && (self.ended || self.inner.is_end_stream())
            && self.frames.is_at_boundary()
    }
}

fn inflate(compressed: &[u8], most: usize) -> Result<Bytes, Error> {
    gzip::inflate(compressed, most).map_err(|error| match error {
        InflateError::TooLarge => too_large(most),
        InflateError::Malformed => malformed(format!("a compressed message: {error}")),
    })
}

fn too_large(most: usize) -> Error {
    Error::new(
        Code::ResourceExhausted,
        "buffer_overflow",
        Side::Client,
        format!("a compressed message has more than {most} bytes (buffer.max_bytes)"),
    )
}

fn malformed(message: String) -> Error {
    Error::new(
        Code::InvalidArgument,
        "malformed_message",
        Side::Client,
        message,
    )
}
