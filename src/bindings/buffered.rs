//! Far sides that cannot stream: a request is collected, up to `buffer.max_bytes`, and its answer handed out in pieces.
//!
//! Collected bytes have been taken in, so their credit returns at once; the bound is what holds the client back. Nothing is sent
//! before the request is whole, so one that is too large has no effect. All that is collected is booked as the stream's, for as long as
//! it is there, and is refused where the process holds too much already.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ::http::{HeaderMap, Request, Response, request::Parts};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use thalweg_filters::{
    Body, Chunk, Error, Side, StreamContext, ending::grpc_status, stream::Booking,
};
use thalweg_proto::{
    bindings::{
        Form, InitialResponse, Message, framed_initial, metadata::Place, reader::INITIAL_MAX,
        writer::Writer,
    },
    status::Code,
};

use super::{
    CallBounds, excess, grpc_answer, no_status, ok_status, response,
    translate::{Plan, Sender, Translate},
};
use crate::{config, forward, telemetry::BindingStats, upstream::Cluster};

/// What bounds a collected request and its answer, and who counts it.
pub(super) struct Buffer {
    pub(super) label: Arc<str>,
    pub(super) bounds: CallBounds,
    pub(super) stats: Arc<BindingStats>,
}

/// The pieces in which a collected answer goes to the client.
const PIECE: usize = 32 * 1024;

// === impl Buffer ===

impl Buffer {
    /// The payload of a request, whole, in `booked`.
    pub(super) async fn collect(&self, body: Body, booked: &mut Booking) -> Result<Bytes, Error> {
        self.stats.buffered.increment();
        let plan = Plan {
            from: Form::Runtime,
            to: Form::Raw,
            sender: Sender::Client,
        };
        let mut payload = Translate::new(body, plan, 0, None).without_initial();
        let mut whole = BytesMut::new();
        while let Some(chunk) = payload.next().await? {
            if whole.len() + chunk.len() > self.bounds.bytes {
                self.stats.buffer_overflows.increment();
                return Err(too_large(
                    &self.label,
                    "request",
                    self.bounds.bytes,
                    Side::Client,
                ));
            }
            grow(booked, chunk.len(), &self.label)?;
            whole.put(chunk);
        }
        Ok(whole.freeze())
    }

    /// Calls a unary method and returns its answer in the one form, which `into` makes of the message. A failure of the upstream's
    /// own is passed on as it is.
    pub(super) async fn call<A: Message + Default>(
        &self,
        cluster: &Cluster,
        request: Request<Body>,
        timeouts: &config::RouteTimeouts,
        into: impl FnOnce(A) -> (InitialResponse, Bytes),
    ) -> Result<Response<Body>, Error> {
        let label = &self.label;
        let mut booked = request
            .extensions()
            .get()
            .map_or_else(Booking::default, book);
        let answer = grpc_answer(label, forward::send(cluster, request, timeouts).await?)?;
        let (parts, mut body) = answer.into_parts();
        let in_head = grpc_status(&parts.headers).map(|_| parts.headers);
        let (whole, trailers) = self.read(&mut body, &mut booked).await?;
        let status = trailers.or(in_head).ok_or_else(|| no_status(label))?;
        match grpc_status(&status) {
            None => return Err(no_status(label)),
            Some(Code::Ok) => {}
            Some(_) => {
                let mut refused = response(Body::empty());
                refused.headers_mut().extend(status);
                return Ok(refused);
            }
        }
        let malformed = |what: String| {
            let message = format!("{label}: {what}");
            Error::new(Code::Internal, "malformed_message", Side::Upstream, message)
        };
        if whole.len() < 5 || whole[0] != 0 {
            return Err(malformed(
                "the answer is no message, or a compressed one".into(),
            ));
        }
        let message = whole.slice(5..);
        let checked = (self.bounds.for_metadata()).check(&message, Place::UnaryResponse);
        checked.map_err(|why| excess(label, why, self.bounds.metadata, Side::Upstream))?;
        let answer = A::decode(message)
            .map_err(|error| malformed(format!("the answer cannot be read: {error}")))?;
        let (initial, data) = into(answer);
        Ok(answered_in(booked, &initial, data))
    }

    async fn read(
        &self,
        body: &mut Body,
        booked: &mut Booking,
    ) -> Result<(Bytes, Option<HeaderMap>), Error> {
        // The head of the message, and what stands beside the payload in it.
        let most = self.bounds.bytes + INITIAL_MAX;
        let mut whole = BytesMut::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            match frame?.into_data() {
                Ok(chunk) if whole.len() + chunk.len() > most => {
                    self.stats.buffer_overflows.increment();
                    return Err(too_large(
                        &self.label,
                        "answer",
                        self.bounds.bytes,
                        Side::Upstream,
                    ));
                }
                Ok(chunk) => {
                    grow(booked, chunk.len(), &self.label)?;
                    whole.put(chunk);
                }
                Err(frame) => return Ok((whole.freeze(), frame.into_trailers().ok())),
            }
        }
        Ok((whole.freeze(), None))
    }
}

/// An answer that is there as a whole, in the one form.
pub(super) fn answered(initial: &InitialResponse, data: Bytes) -> Response<Body> {
    answered_in(Booking::default(), initial, data)
}

fn answered_in(booked: Booking, initial: &InitialResponse, data: Bytes) -> Response<Body> {
    response(Body::new(Pieces {
        _booked: booked,
        initial: Some(framed_initial(initial)),
        data,
        writer: Writer::new(Form::Runtime, 0),
        status: Some(ok_status()),
    }))
}

/// The next chunk of a body without trailers.
pub(super) async fn next(body: &mut Body) -> Result<Option<Chunk>, Error> {
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(chunk) = frame?.into_data() {
                    return Ok(Some(chunk));
                }
            }
        }
    }
}

/// Where bytes are booked that are kept of a stream.
pub(super) fn booking(parts: &Parts) -> Booking {
    parts.extensions.get().map_or_else(Booking::default, book)
}

fn book(stream: &StreamContext) -> Booking {
    stream.book(0)
}

/// Books more of what has to be kept whole, or refuses it.
pub(super) fn grow(booked: &mut Booking, bytes: usize, label: &str) -> Result<(), Error> {
    if booked.try_grow(bytes) {
        return Ok(());
    }
    let message = format!(
        "{label}: this must be kept, and streams hold so much by now that no more is (max_held)"
    );
    Err(
        Error::new(Code::ResourceExhausted, "memory_full", Side::Proxy, message)
            .with_http_status(503),
    )
}

/// Refuses what exceeds `buffer.max_bytes`.
pub(super) fn too_large(label: &str, what: &str, most: usize, side: Side) -> Error {
    Error::new(
        Code::ResourceExhausted,
        "buffer_overflow",
        side,
        format!(
            "{label}: the {what} must be kept whole, and has more than {most} bytes (buffer.max_bytes)"
        ),
    )
    .with_http_status(if side == Side::Client { 413 } else { 502 })
}

/// A collected answer, handed out piece by piece.
struct Pieces {
    _booked: Booking,
    initial: Option<Bytes>,
    data: Bytes,
    writer: Writer,
    status: Option<HeaderMap>,
}

impl http_body::Body for Pieces {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        if let Some(initial) = this.initial.take() {
            return Poll::Ready(Some(Ok(Frame::data(initial.into()))));
        }
        if this.data.is_empty() {
            return Poll::Ready(this.status.take().map(|status| Ok(Frame::trailers(status))));
        }
        let piece = this.data.split_to(this.data.len().min(PIECE));
        let mut message = BytesMut::with_capacity(piece.len() + 32);
        this.writer.start(piece.len() as u64, &mut message);
        message.put_slice(&piece);
        this.writer.end(&mut message);
        Poll::Ready(Some(Ok(Frame::data(message.freeze().into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.status.is_none()
    }
}
