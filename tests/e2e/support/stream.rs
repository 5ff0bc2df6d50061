//! The two halves of an HTTP/2 stream.

use std::fmt;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, StatusCode};
use thalweg_proto::status::{Code, decode_message};

use super::{framed, headers, take_message, within};

/// What the other side sends. Its window is given back as the bytes are read.
pub(crate) struct Incoming {
    stream: RecvStream,
    buffer: BytesMut,
}

/// What goes to the other side.
pub(crate) struct Outgoing(SendStream<Bytes>);

/// All that came of a stream, up to its end or to its break.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
    /// The code with which the stream was broken off.
    pub(crate) reset: Option<Reason>,
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next bytes, or `None` at their end.
    pub(crate) async fn chunk(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let chunk = within("the next chunk comes", self.stream.data()).await?;
        Some(chunk.inspect(|bytes| {
            let _ = self.stream.flow_control().release_capacity(bytes.len());
        }))
    }

    /// The next gRPC message, or `None` at the end of the bytes.
    pub(crate) async fn message(&mut self) -> Option<Bytes> {
        let message = self.try_message().await;
        message.unwrap_or_else(|error| panic!("instead of a message: {error}"))
    }

    /// The next gRPC message, `None` at the end of the bytes, or the break.
    pub(crate) async fn try_message(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                return Ok(Some(message));
            }
            match self.chunk().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None => {
                    assert!(self.buffer.is_empty(), "the stream ended within a message");
                    return Ok(None);
                }
            }
        }
    }

    /// All that still comes: the bytes that came, and the trailers or the break.
    pub(crate) async fn rest(&mut self) -> (Bytes, Result<HeaderMap, h2::Error>) {
        while let Some(chunk) = self.chunk().await {
            match chunk {
                Ok(bytes) => self.buffer.extend_from_slice(&bytes),
                Err(error) => return (self.buffer.split().freeze(), Err(error)),
            }
        }
        let trailers = within("the trailers or the end come", self.stream.trailers()).await;
        (
            self.buffer.split().freeze(),
            trailers.map(Option::unwrap_or_default),
        )
    }

    /// The code with which the other side breaks the stream off; whatever comes before is skipped.
    pub(crate) async fn broken(&mut self) -> Reason {
        let (_, end) = self.rest().await;
        let error = end.expect_err("the stream ended in peace and should have been broken off");
        error
            .reason()
            .unwrap_or_else(|| panic!("a break without a code: {error}"))
    }

    /// The stream itself, for those who give nothing back.
    pub(crate) fn raw(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}

// === impl Outgoing ===

impl Outgoing {
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self(stream)
    }

    /// Sends a gRPC message, as fast as the other side takes it.
    pub(crate) async fn message(&mut self, payload: &[u8]) {
        self.data(framed(payload)).await;
    }

    /// Sends bytes, as fast as the other side takes them.
    pub(crate) async fn data(&mut self, bytes: impl Into<Bytes>) {
        let sent = within(
            "the other side takes the bytes",
            self.try_data(bytes.into()),
        )
        .await;
        sent.unwrap_or_else(|reason| panic!("the other side broke the stream off: {reason:?}"));
    }

    /// Sends bytes, unless the other side breaks the stream off; then its code is known, unless its connection is gone.
    pub(crate) async fn try_data(&mut self, mut bytes: Bytes) -> Result<(), Option<Reason>> {
        while !bytes.is_empty() {
            self.try_some(&mut bytes).await?;
        }
        Ok(())
    }

    /// Sends as many bytes as there is room for, at least one, and says how many.
    pub(crate) async fn try_some(&mut self, bytes: &mut Bytes) -> Result<usize, Option<Reason>> {
        self.0.reserve_capacity(bytes.len());
        let granted = match self.0.capacity() {
            0 => std::future::poll_fn(|cx| self.0.poll_capacity(cx)).await,
            granted => Some(Ok(granted)),
        };
        let sent = match granted {
            Some(Ok(granted)) => {
                let piece = bytes.split_to(granted.min(bytes.len()));
                let count = piece.len();
                self.0.send_data(piece, false).map(|()| count)
            }
            Some(Err(error)) => Err(error),
            None => return Err(Some(self.reset_by_peer().await)),
        };
        sent.map_err(|error| error.reason())
    }

    /// Sends bytes in one frame without asking; they wait in the codec for as long as the other side takes none.
    pub(crate) fn data_now(&mut self, bytes: impl Into<Bytes>) {
        self.0.send_data(bytes.into(), false).unwrap();
    }

    /// Ends this half.
    pub(crate) fn end(&mut self) {
        self.0.send_data(Bytes::new(), true).unwrap();
    }

    /// Ends this half, unless the stream is over.
    pub(crate) fn try_end(&mut self) {
        let _ = self.0.send_data(Bytes::new(), true);
    }

    /// Ends this half with trailers.
    pub(crate) fn trailers(&mut self, pairs: &[(&str, &str)]) {
        self.0.send_trailers(headers(pairs)).unwrap();
    }

    /// Breaks the stream off, both halves of it.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.0.send_reset(reason);
    }

    /// The code with which the other side breaks the stream off.
    pub(crate) async fn reset_by_peer(&mut self) -> Reason {
        let reset = std::future::poll_fn(|cx| self.0.poll_reset(cx));
        within("the other side breaks the stream off", reset)
            .await
            .unwrap()
    }
}

// === impl Answer ===

impl Answer {
    /// What gRPC heard, be it in the headers or in the trailers.
    pub(crate) fn code(&self) -> Code {
        match self.ending("grpc-status") {
            Some(status) => Code::from_header(status.as_bytes()),
            None => panic!("no grpc-status: {self:?}"),
        }
    }

    /// What gRPC makes of the answer, be there a status or not.
    pub(crate) fn code_or_unknown(&self) -> Code {
        match self.ending("grpc-status") {
            Some(status) => Code::from_header(status.as_bytes()),
            None if self.status == 200 => Code::Unknown,
            None => Code::from_http(self.status.as_u16()),
        }
    }

    /// What the proxy says was the reason, if it ended the stream.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.ending("thalweg-reason")
    }

    /// The text with the status.
    pub(crate) fn text(&self) -> String {
        let text = self.ending("grpc-message").unwrap_or_default();
        decode_message(text.as_bytes()).into_owned()
    }

    /// The messages, all whole.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        let mut buffer = BytesMut::from(self.body.as_ref());
        let messages = std::iter::from_fn(|| take_message(&mut buffer)).collect();
        assert!(buffer.is_empty(), "the stream ended within a message");
        messages
    }

    fn ending(&self, name: &str) -> Option<&str> {
        let value = self.trailers.get(name).or_else(|| self.headers.get(name));
        value.map(|value| value.to_str().unwrap())
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body", &self.body.len())
            .field("trailers", &self.trailers)
            .field("reset", &self.reset)
            .finish()
    }
}
