//! The call over gRPC: `InvokeBindingAlpha1`, on a connection of HTTP/2 of its own.
//!
//! The payload goes out as messages, numbered from 0, as far as the server's windows allow. Of the answer, all that comes is
//! taken at once, for a connection closes when small frames pile up unread; but its credit goes back only when the output has
//! taken the bytes, so that no more than a window is ever held.

use std::{collections::VecDeque, pin::pin};

use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use thalweg_filters::ending::grpc_status;
use thalweg_proto::{
    Code,
    bindings::{
        Form, InitialRequest, InitialResponse, Message, framed_initial,
        reader::{Fault, Piece, Reader},
        writer::Writer,
    },
    deadline,
    method::is_grpc_content_type,
    status::{decode_message, reset_name},
};
use tokio::task::JoinSet;

use super::{
    Call, headers,
    input::{Input, MESSAGE},
    output::Output,
    progress::Progress,
    with_hint,
};
use crate::cli::{
    connect::{Connection, Overheard, Server, Speak},
    exit::{Class, Failure},
};

const PATH: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1";

/// The most of an answer that is held; the speed of a gigabit at 8 ms.
const WINDOW: u32 = 1 << 20;

/// Most bytes of the headers of an answer.
const HEADERS: u32 = 64 << 10;

/// Why an upload stopped.
enum Stop {
    Input(Failure),
    /// The server takes no more. The answer tells why.
    Refused,
}

/// Who is called, and what is known of the connection: what an error of it means.
#[derive(Clone, Copy)]
struct Peer<'a> {
    server: &'a Server,
    overheard: &'a Overheard,
}

/// Calls, and is ready when the answer is whole and written.
pub(super) async fn exchange(
    call: Call<'_>,
    connection: Connection,
    overheard: &Overheard,
    drivers: &mut JoinSet<Result<(), h2::Error>>,
) -> Result<(), Failure> {
    let Call {
        settings,
        metadata,
        input,
        mut output,
        progress,
    } = call;
    let peer = Peer {
        server: &settings.address,
        overheard,
    };
    let (sender, driver) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_header_list_size(HEADERS)
        .enable_push(false)
        .handshake(connection)
        .await
        .map_err(|error| peer.failure(&error))?;
    drivers.spawn(driver);
    let mut sender = sender.ready().await.map_err(|error| peer.failure(&error))?;
    let request = request(&settings.address, settings.timeout)?;
    let (response, sink) = sender
        .send_request(request, false)
        .map_err(|error| peer.failure(&error))?;
    let first = framed_initial(&InitialRequest {
        name: settings.binding.clone(),
        operation: settings.operation.clone(),
        metadata,
    });

    let answered = {
        let upload = upload(input, sink, first, &progress);
        let mut download = pin!(download(peer, response, &mut output, &progress));
        tokio::select! {
            // An answer that is whole is whole, whether or not it took all of the input.
            answered = &mut download => answered,
            uploaded = upload => match uploaded {
                Err(Stop::Input(failure)) => Err(failure),
                Ok(()) | Err(Stop::Refused) => download.await,
            },
        }
    };
    answered?;
    output.finish().await
}

fn request(server: &Server, timeout: Option<std::time::Duration>) -> Result<Request<()>, Failure> {
    let unfit = |_| Failure::new(Class::Usage, format!("{server} cannot be asked for"));
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme(server.scheme())
        .authority(server.authority.clone())
        .path_and_query(PATH)
        .build()
        .map_err(unfit)?;
    *request.headers_mut() = headers()?;
    let headers = request.headers_mut();
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let left =
        timeout.and_then(|limit| HeaderValue::from_str(deadline::format(limit).as_str()).ok());
    headers.extend(left.map(|left| (::http::HeaderName::from_static("grpc-timeout"), left)));
    Ok(request)
}

// === there ===

async fn upload(
    mut input: Input,
    mut sink: SendStream<Bytes>,
    first: Bytes,
    progress: &Progress,
) -> Result<(), Stop> {
    let mut writer = Writer::new(Form::Runtime, 0);
    send(&mut sink, first).await?;
    while let Some(piece) = input.next().await.map_err(Stop::Input)? {
        let mut message = BytesMut::with_capacity(MESSAGE + 64);
        writer.start(piece.len() as u64, &mut message);
        message.extend_from_slice(&piece);
        writer.end(&mut message);
        send(&mut sink, message.freeze()).await?;
        progress.sent(piece.len());
    }
    let ended = sink.send_data(Bytes::new(), true);
    ended.map_err(|_| Stop::Refused)
}

/// Hands bytes on as far as the server's windows reach, so that none gather here.
async fn send(sink: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), Stop> {
    while !bytes.is_empty() {
        sink.reserve_capacity(bytes.len());
        let granted = match sink.capacity() {
            0 => match std::future::poll_fn(|cx| sink.poll_capacity(cx)).await {
                Some(Ok(granted)) => granted,
                Some(Err(_)) | None => return Err(Stop::Refused),
            },
            granted => granted,
        };
        let part = bytes.split_to(granted.min(bytes.len()));
        sink.send_data(part, false).map_err(|_| Stop::Refused)?;
    }
    Ok(())
}

// === and back ===

async fn download(
    peer: Peer<'_>,
    response: ResponseFuture,
    output: &mut Output,
    progress: &Progress,
) -> Result<(), Failure> {
    let response = response.await.map_err(|error| peer.failure(&error))?;
    let (head, mut body) = response.into_parts();
    if let Some(code) = grpc_status(&head.headers) {
        return conclude(code, &head.headers, progress);
    }
    peer.check(&Response::from_parts(head, ()))?;
    let mut answer = Answer::new(progress);
    // What has come and is not written yet: never more than a window.
    let mut pieces = VecDeque::<Bytes>::new();
    let mut ended = false;
    while !ended || !pieces.is_empty() {
        let waits = !pieces.is_empty() || output.is_unflushed();
        tokio::select! {
            chunk = body.data(), if !ended => match chunk {
                Some(Ok(chunk)) => {
                    let before = chunk.len();
                    let payload = answer.take(&chunk, &mut pieces).map_err(|why| peer.misread(&why))?;
                    release(&mut body, before - payload);
                }
                Some(Err(error)) => return Err(peer.failure(&error)),
                None => ended = true,
            },
            written = write(output, pieces.front_mut()), if waits => {
                let written = written?;
                progress.received(written);
                release(&mut body, written);
                if pieces.front().is_some_and(Bytes::is_empty) {
                    pieces.pop_front();
                }
            }
        }
    }
    let trailers = body
        .trailers()
        .await
        .map_err(|error| peer.failure(&error))?;
    let code = trailers.as_ref().and_then(grpc_status);
    let (Some(trailers), Some(code)) = (trailers, code) else {
        let message = format!(
            "the answer of {} ended without a status: it was cut",
            peer.server
        );
        return Err(Failure::new(Class::Protocol, message));
    };
    if code == Code::Ok {
        answer
            .reader
            .finish()
            .map_err(|fault| peer.misread(&fault.to_string()))?;
    }
    conclude(code, &trailers, progress)
}

/// Writes some of a piece, or waits until what was written has arrived.
async fn write(output: &mut Output, piece: Option<&mut Bytes>) -> Result<usize, Failure> {
    match piece {
        Some(piece) => output.write(piece).await,
        None => output.flush().await.map(|()| 0),
    }
}

fn release(body: &mut RecvStream, bytes: usize) {
    // It fails for a stream that is over, which needs no credit.
    let _ = body.flow_control().release_capacity(bytes);
}

/// The end that the server gives to the call.
fn conclude(code: Code, headers: &HeaderMap, progress: &Progress) -> Result<(), Failure> {
    progress.told(&super::metadata(headers));
    if code == Code::Ok {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
    let message = decode_message(message.unwrap_or_default());
    let failure = Failure::new(Class::of_code(code), format!("{code}: {message}"));
    Err(with_hint(failure, headers))
}

/// What is in the messages of an answer.
struct Answer<'a> {
    reader: Reader,
    next: u64,
    progress: &'a Progress,
}

// === impl Answer ===

impl<'a> Answer<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self {
            reader: Reader::new(Form::Runtime),
            next: 0,
            progress,
        }
    }

    /// Takes the payload out of a chunk, and says how much it was.
    fn take(&mut self, chunk: &Bytes, pieces: &mut VecDeque<Bytes>) -> Result<usize, String> {
        let Self {
            reader,
            next,
            progress,
        } = self;
        let mut payload = 0;
        let mut wrong = None;
        let read = reader.read(chunk, |piece| match piece {
            Piece::Initial(content) => match InitialResponse::decode(content) {
                Ok(initial) => progress.told(&told(initial)),
                Err(error) => wrong = Some(error.to_string()),
            },
            Piece::Start(_) => {}
            Piece::Data { start, end } => {
                payload += end - start;
                pieces.push_back(chunk.slice(start..end));
            }
            Piece::End(got) => {
                let expected = std::mem::replace(next, got.wrapping_add(1));
                if got != expected && wrong.is_none() {
                    wrong = Some(Fault::Sequence { expected, got }.to_string());
                }
            }
        });
        match wrong {
            Some(wrong) => Err(wrong),
            None => read.map(|()| payload).map_err(|fault| fault.to_string()),
        }
    }
}

fn told(initial: InitialResponse) -> std::collections::BTreeMap<String, String> {
    let mut metadata = initial.metadata;
    if !initial.content_type.is_empty() {
        metadata
            .entry("contentType".into())
            .or_insert(initial.content_type);
    }
    metadata
}

// === impl Peer ===

impl Peer<'_> {
    /// What an error of the connection or of the stream means.
    fn failure(&self, error: &h2::Error) -> Failure {
        if let Some(failure) = self.overheard.explain(self.server, Speak::Http2) {
            return failure;
        }
        let server = self.server;
        match error.reason() {
            Some(reason) if error.is_remote() => {
                let name = reset_name(reason.into());
                let what = match error.is_go_away() {
                    true => "closed the connection",
                    false => "broke the stream off",
                };
                let class = match reason {
                    // It shuts down, and another may be there soon.
                    Reason::NO_ERROR if error.is_go_away() => Class::Unavailable,
                    _ => Class::of_reset(reason.into()),
                };
                Failure::new(class, format!("{server} {what}: {name}"))
            }
            _ if error.is_io() => {
                let message = format!("{server} broke off before its answer was whole");
                Failure::new(Class::Protocol, message)
            }
            _ => {
                let message = format!("the connection to {server} broke: {error}");
                Failure::new(Class::Protocol, message)
            }
        }
    }

    /// Whether an answer without a status is one of gRPC. A load balancer that has nobody behind it speaks plain HTTP.
    fn check(&self, head: &Response<()>) -> Result<(), Failure> {
        let (status, headers) = (head.status(), head.headers());
        let content_type = headers.get(header::CONTENT_TYPE);
        if status != StatusCode::OK {
            let message = format!("{} answered HTTP {status} and no gRPC", self.server);
            return Err(Failure::new(Class::of_status(status.as_u16()), message));
        }
        if !content_type.is_some_and(|value| is_grpc_content_type(value.as_bytes())) {
            return Err(self.misread(&format!("its content type is {content_type:?}")));
        }
        Ok(())
    }

    fn misread(&self, why: &str) -> Failure {
        let message = format!("{} does not answer as bindings do: {why}", self.server);
        Failure::new(Class::Protocol, message)
    }
}
