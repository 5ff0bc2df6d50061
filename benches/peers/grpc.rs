//! As much of gRPC over h2 as the measurement needs: settings, heads, and bodies in both directions.
//!
//! **Why.** A complete gRPC library on either side would cost more than the proxies do, and would decide on windows and
//! frame sizes by itself. Here they are written down, once, for both sides.
//!
//! **How.** Bodies are read without pause (h2 closes a connection on which small frames pile up unread) and credit goes
//! back in batches. Large messages are sent as the windows open.

use std::error::Error;
use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response, header};

/// Any failure of a run; it ends up as a sentence in the table.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Length of the head before each message: one flag and four bytes of length.
pub(crate) const HEAD_LENGTH: usize = 5;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME_MAX: u32 = 16 * 1024;
const HEADER_LIST_MAX: u32 = 64 * 1024;
const SEND_BUFFER_MAX: usize = 1 << 20;
const STREAMS_MAX: u32 = 1000;

/// Credit goes back when this much has been read: one WINDOW_UPDATE instead of many. A fraction of the stream's window.
const RELEASE_BATCH: usize = 128 * 1024;

/// The load generator's side of a connection.
pub(crate) fn client_builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(100)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX);
    builder
}

/// The backend's side of a connection.
pub(crate) fn server_builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX);
    builder
}

/// The head of a call to the method at `path`.
pub(crate) fn request(path: &str) -> Result<Request<()>, http::Error> {
    Request::post(format!("http://bench.test{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())
}

/// The head of every answer.
pub(crate) fn response() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// The whole answer to a call of a method that there is not.
pub(crate) fn unimplemented() -> Response<()> {
    let mut response = response();
    let status = HeaderValue::from_static("12");
    response.headers_mut().insert("grpc-status", status);
    response
}

/// The trailers of a call that went well.
pub(crate) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// One message with its head: `numbers` first, zeros up to `length`.
pub(crate) fn message(length: usize, numbers: &[u64]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_LENGTH + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("messages here are small"));
    for number in numbers {
        bytes.put_u64(*number);
    }
    bytes.resize(HEAD_LENGTH + length, 0);
    bytes.freeze()
}

/// The number at `index` in a message made by [`message`].
pub(crate) fn number(message: &[u8], index: usize) -> Option<u64> {
    let start = HEAD_LENGTH + index * size_of::<u64>();
    let bytes = message.get(start..start + size_of::<u64>())?;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Sends `data` as the windows open.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Failure> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        if room == 0 {
            room = poll_fn(|cx| stream.poll_capacity(cx))
                .await
                .ok_or("the stream was closed under the sender")??;
        }
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, false)?;
    }
    Ok(())
}

/// A body being read: takes every chunk at once, gives credit back in batches.
#[derive(Debug)]
pub(crate) struct Body {
    stream: RecvStream,
    unreleased: usize,
}

// === impl Body ===

impl Body {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            unreleased: 0,
        }
    }

    /// The next bytes, or `None` at the end of the data.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(chunk) = self.stream.data().await.transpose()? else {
            return Ok(None);
        };
        self.unreleased += chunk.len();
        if self.unreleased >= RELEASE_BATCH {
            self.stream
                .flow_control()
                .release_capacity(self.unreleased)?;
            self.unreleased = 0;
        }
        Ok(Some(chunk))
    }

    /// Reads on until `length` bytes have been gathered, which is for small messages only.
    pub(crate) async fn gather(&mut self, length: usize) -> Result<Bytes, Failure> {
        let mut gathered = BytesMut::new();
        while gathered.len() < length {
            let chunk = self
                .chunk()
                .await?
                .ok_or("the body ended inside a message")?;
            if gathered.is_empty() && chunk.len() >= length {
                return Ok(chunk);
            }
            gathered.extend_from_slice(&chunk);
        }
        Ok(gathered.freeze())
    }

    /// Reads to the end and says how many bytes there were.
    pub(crate) async fn count(&mut self) -> Result<u64, Failure> {
        let mut count = 0;
        while let Some(chunk) = self.chunk().await? {
            count += chunk.len() as u64;
        }
        Ok(count)
    }

    /// Reads the trailers and insists on `grpc-status: 0`.
    pub(crate) async fn finish(&mut self) -> Result<(), Failure> {
        let trailers = self
            .stream
            .trailers()
            .await?
            .ok_or("the answer has no trailers")?;
        match trailers.get("grpc-status") {
            Some(status) if status == "0" => Ok(()),
            status => Err(format!("grpc-status is {status:?}").into()),
        }
    }
}
