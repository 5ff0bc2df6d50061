//! Streams of bindings, as API-013 numbers them: what the load generator sends and what the backend answers.
//!
//! **Why.** A binding costs what its stream costs on top of a plain one. So the same messages go three [`Way`]s through one
//! proxy, between the same load generator and the same backend, and only the way differs.
//!
//! **How.** Both ends write and check every number, with the writer and the reader of `thalweg-proto`; payload is zeros. The
//! operation says what the backend does: `echo` sends each payload back as it comes, `count` says at the end how many
//! messages and bytes there were.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{SendStream, server::SendResponse};
use thalweg_proto::bindings::{
    ComponentInitialRequest, Empty, FirstRequest, Form, InitialRequest, InitialResponse, Message,
    framed, framed_initial,
    reader::{Piece, Reader},
    writer::Writer,
};

use crate::grpc::{self, Body, Failure};

const PLAIN: &str = "/bench.Bench/InvokeBinding";
const RUNTIME: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1";
const COMPONENT: &str = "/dapr.proto.components.v1.OutputBinding/InvokeStream";

/// The way that a stream takes through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Along a route, whose only filter is `metrics`.
    Plain,
    /// Through a binding with all filters, whose target takes it verbatim.
    Dapr,
    /// Through such a binding, whose target wants it translated.
    Component,
}

/// What the backend does with payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Echo,
    Count,
}

/// What the backend has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// The messages of one stream of a client.
#[derive(Debug)]
pub(crate) struct Messages {
    writer: Writer,
    payload: Bytes,
}

// === impl Way ===

impl Way {
    /// The method that a client calls.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Plain => PLAIN,
            Self::Dapr | Self::Component => RUNTIME,
        }
    }

    /// The binding that a client names; a plain route does not ask.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain | Self::Dapr => "dapr",
            Self::Component => "component",
        }
    }
}

// === impl Operation ===

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Count => "count",
        }
    }

    fn parse(name: &str) -> Result<Self, Failure> {
        [Self::Echo, Self::Count]
            .into_iter()
            .find(|operation| operation.name() == name)
            .ok_or_else(|| format!("no such operation: {name}").into())
    }
}

// === impl Messages ===

impl Messages {
    /// Messages of `length` bytes of payload each.
    pub(crate) fn new(length: usize) -> Self {
        Self {
            writer: Writer::new(Form::Runtime, 0),
            payload: Bytes::from(vec![0; length]),
        }
    }

    /// The message that opens a stream.
    pub(crate) fn first(way: Way, operation: Operation) -> Bytes {
        framed(&FirstRequest {
            initial_request: Some(InitialRequest {
                name: way.name().into(),
                operation: operation.name().into(),
                ..Default::default()
            }),
        })
    }

    /// The next message with payload. It is put together in one piece, since that is how libraries send one.
    pub(crate) fn next(&mut self) -> Bytes {
        let mut message = BytesMut::with_capacity(self.payload.len() + 32);
        self.writer.start(self.payload.len() as u64, &mut message);
        message.put_slice(&self.payload);
        self.writer.end(&mut message);
        message.freeze()
    }
}

/// The message that opens each answer.
pub(crate) fn first_of_answer() -> Bytes {
    framed_initial(&InitialResponse::default())
}

/// Reads an answer to `count` to its end.
pub(crate) async fn read_count(body: &mut Body) -> Result<Count, Failure> {
    let mut reader = Reader::new(Form::Runtime);
    let mut content = BytesMut::new();
    while let Some(chunk) = body.chunk().await? {
        reader.read(&chunk, |piece| {
            if let Piece::Data { start, end } = piece {
                content.extend_from_slice(&chunk[start..end]);
            }
        })?;
    }
    reader.finish()?;
    Count::from_bytes(&content)
}

// === impl Count ===

impl Count {
    /// What it is in an answer.
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        (&mut bytes[..8]).put_u64(self.messages);
        (&mut bytes[8..]).put_u64(self.bytes);
        bytes
    }

    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Result<Self, Failure> {
        if bytes.len() != 16 {
            return Err(format!("{} bytes are no count", bytes.len()).into());
        }
        Ok(Self {
            messages: bytes.get_u64(),
            bytes: bytes.get_u64(),
        })
    }
}

// === the backend ===

/// Answers a call as a component or another runtime does; false if it has no such method.
pub(crate) async fn answer(
    path: &str,
    body: &mut Body,
    respond: &mut SendResponse<Bytes>,
) -> Result<bool, Failure> {
    match path {
        PLAIN | RUNTIME => stream(Form::Runtime, body, respond).await?,
        COMPONENT => stream(Form::Component, body, respond).await?,
        "/dapr.proto.components.v1.OutputBinding/Init"
        | "/dapr.proto.components.v1.OutputBinding/Ping" => {
            body.count().await?;
            let mut answer = respond.send_response(grpc::response(), false)?;
            answer.send_data(framed(&Empty {}), false)?;
            answer.send_trailers(grpc::trailers())?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

async fn stream(
    form: Form,
    body: &mut Body,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Failure> {
    let mut answer = respond.send_response(grpc::response(), false)?;
    // To a component, the initial message is number 0.
    let mut due = u64::from(form == Form::Component);
    let mut reader = Reader::new(form);
    let mut writer = Writer::new(form, 0);
    let mut out = BytesMut::new();
    let mut operation = None;
    let mut count = Count::default();
    while let Some(chunk) = body.chunk().await? {
        let mut opened = None;
        let mut misnumbered = false;
        reader.read(&chunk, |piece| match piece {
            Piece::Initial(content) => opened = Some(content),
            Piece::Start(length) => {
                count.bytes += length;
                writer.start(length, &mut out);
            }
            Piece::Data { start, end } if operation == Some(Operation::Echo) => {
                out.extend_from_slice(&chunk[start..end]);
            }
            Piece::Data { .. } => {}
            Piece::End(number) => {
                misnumbered |= number != due;
                due += 1;
                count.messages += 1;
                writer.end(&mut out);
            }
        })?;
        if misnumbered {
            return Err("a message has a wrong number".into());
        }
        if let Some(content) = opened {
            operation = Some(operation_of(form, content)?);
            answer.send_data(first_of_answer(), false)?;
        }
        if operation == Some(Operation::Echo) {
            send(&mut answer, &mut out)?;
        }
        out.clear();
    }
    reader.finish()?;
    if operation == Some(Operation::Count) {
        let mut writer = Writer::new(form, 0);
        let content = count.to_bytes();
        writer.start(content.len() as u64, &mut out);
        out.put_slice(&content);
        writer.end(&mut out);
        send(&mut answer, &mut out)?;
    }
    answer.send_trailers(grpc::trailers())?;
    Ok(())
}

/// Sends what is there; it is small, so the window need not be asked.
fn send(answer: &mut SendStream<Bytes>, out: &mut BytesMut) -> Result<(), Failure> {
    if !out.is_empty() {
        answer.send_data(out.split().freeze(), false)?;
    }
    Ok(())
}

fn operation_of(form: Form, content: Bytes) -> Result<Operation, Failure> {
    let name = match form {
        Form::Component => ComponentInitialRequest::decode(content)?.operation,
        Form::Runtime | Form::Raw => InitialRequest::decode(content)?.operation,
    };
    Operation::parse(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_survives_the_wire() {
        let count = Count {
            messages: 3,
            bytes: 1 << 40,
        };

        assert_eq!(Count::from_bytes(&count.to_bytes()).unwrap(), count);
        assert!(Count::from_bytes(b"").is_err());
    }

    #[test]
    fn messages_are_numbered() {
        let mut messages = Messages::new(2);

        assert_eq!(
            messages.next()[..],
            *b"\0\0\0\0\x08\x12\x06\x0a\x02\0\0\x10\x00"
        );
        assert_eq!(
            messages.next()[..],
            *b"\0\0\0\0\x08\x12\x06\x0a\x02\0\0\x10\x01"
        );
    }
}
