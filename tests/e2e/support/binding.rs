//! The messages of bindings, and clients that say them.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, request};
use thalweg_proto::bindings::{
    FirstRequest, InitialRequest, InitialResponse, Message, framed_initial,
};

use super::{
    client::{Call, Client},
    proxy::TestProxy,
    stream::Answer,
};

/// The streaming method.
pub(crate) const STREAM: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1";
/// The unary method.
pub(crate) const UNARY: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBinding";

/// What a message says: of a client, of a runtime or of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The content of an initial message.
    Initial(Bytes),
    /// Payload and its number.
    Payload(u64, Bytes),
}

// === words ===

/// A map of metadata.
pub(crate) fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// What opens a client's stream.
pub(crate) fn initial(name: &str, operation: &str, pairs: &[(&str, &str)]) -> Vec<u8> {
    let initial_request = Some(InitialRequest {
        name: name.into(),
        operation: operation.into(),
        metadata: metadata(pairs),
    });
    FirstRequest { initial_request }.encode_to_vec()
}

/// What opens an answer, of a runtime or of a component.
pub(crate) fn initial_response(content_type: &str, pairs: &[(&str, &str)]) -> Bytes {
    let initial = InitialResponse {
        metadata: metadata(pairs),
        content_type: content_type.into(),
    };
    framed_initial(&initial).slice(5..)
}

/// Payload as a client and a runtime number it.
pub(crate) fn payload(number: u64, data: &[u8]) -> Vec<u8> {
    let mut content = vec![];
    put_bytes(&mut content, 1, data);
    put_number(&mut content, 2, number);
    let mut message = vec![];
    put_bytes(&mut message, 2, &content);
    message
}

/// Payload as a component and a runtime number it.
pub(crate) fn component_data(number: u64, data: &[u8]) -> Vec<u8> {
    let mut message = vec![];
    put_bytes(&mut message, 2, data);
    put_number(&mut message, 3, number);
    message
}

/// Reads a message of a client or of a runtime.
pub(crate) fn runtime(message: &[u8]) -> Told {
    match &fields(message)[..] {
        [(1, content)] => Told::Initial(content.clone()),
        [(2, content)] => payload_of(fields(content), 1, 2),
        other => panic!("neither initial nor payload: {other:?}"),
    }
}

/// Reads a message of a component, or one to it.
pub(crate) fn component(message: &[u8]) -> Told {
    match &fields(message)[..] {
        [(1, content)] => Told::Initial(content.clone()),
        _ => payload_of(fields(message), 2, 3),
    }
}

fn payload_of(fields: Vec<(u64, Bytes)>, data: u64, number: u64) -> Told {
    let mut told = (0, Bytes::new());
    for (field, mut content) in fields {
        match field {
            _ if field == data => told.1 = content,
            _ if field == number => told.0 = varint(&mut content),
            _ => panic!("a field that should not be there: {field}"),
        }
    }
    Told::Payload(told.0, told.1)
}

/// Fields in their order; a number as it is encoded.
fn fields(message: &[u8]) -> Vec<(u64, Bytes)> {
    let mut rest = Bytes::copy_from_slice(message);
    let mut fields = vec![];
    while rest.has_remaining() {
        let tag = varint(&mut rest);
        let content = match tag & 7 {
            0 => {
                let mut content = vec![];
                put_varint(&mut content, varint(&mut rest));
                content.into()
            }
            2 => {
                let length = usize::try_from(varint(&mut rest)).unwrap();
                rest.split_to(length)
            }
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, content));
    }
    fields
}

fn varint(bytes: &mut Bytes) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value.to_le_bytes()[0]);
}

/// A field of bytes.
pub(crate) fn put_bytes(buffer: &mut Vec<u8>, field: u64, data: &[u8]) {
    put_varint(buffer, field << 3 | 2);
    put_varint(buffer, data.len() as u64);
    buffer.put_slice(data);
}

/// A field of a number.
pub(crate) fn put_number(buffer: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(buffer, field << 3);
    put_varint(buffer, number);
}

impl Told {
    /// The content of an initial response.
    pub(crate) fn response(&self) -> InitialResponse {
        match self {
            Self::Initial(content) => InitialResponse::decode(content.clone()).unwrap(),
            Self::Payload(..) => panic!("no initial message: {self:?}"),
        }
    }
}

/// Payload with a number.
pub(crate) fn told(number: u64, data: &'static str) -> Told {
    Told::Payload(number, Bytes::from_static(data.as_bytes()))
}

// === proxies ===

/// A proxy with bindings alone, each a line of YAML without its indentation.
pub(crate) async fn proxy(bindings: &[&str]) -> TestProxy {
    TestProxy::start(&yaml(bindings)).await
}

/// The same, as YAML.
pub(crate) fn yaml(bindings: &[&str]) -> String {
    format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\nbindings:\n  {}\n",
        bindings.join("\n  ")
    )
}

// === clients ===

impl Client {
    /// Opens a stream to a binding.
    pub(crate) async fn invoke(&self, name: &str, pairs: &[(&str, &str)]) -> Call {
        let mut call = self.call(STREAM, &[]).await;
        call.outgoing.message(&initial(name, "create", pairs)).await;
        call
    }

    /// A whole stream with these payloads, and all that comes back.
    pub(crate) async fn stream(&self, name: &str, payloads: &[&[u8]]) -> Answer {
        let mut call = self.invoke(name, &[]).await;
        for (number, data) in payloads.iter().enumerate() {
            call.outgoing.message(&payload(number as u64, data)).await;
        }
        call.outgoing.end();
        call.answer().await
    }

    /// Opens a request of plain HTTP.
    pub(crate) async fn request(&self, method: &str, target: &str, pairs: &[(&str, &str)]) -> Call {
        let mut request = http_request(method, target);
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        self.open(request, false).await
    }

    /// A whole request of plain HTTP, and all that comes back.
    pub(crate) async fn post(&self, target: &str, body: &[u8]) -> Answer {
        let mut call = self.request("POST", target, &[]).await;
        // Who is refused early need not take all of it.
        let _ = call.outgoing.try_data(Bytes::copy_from_slice(body)).await;
        call.outgoing.try_end();
        call.answer().await
    }
}

fn http_request(method: &str, target: &str) -> request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://e2e.test{target}"))
}

impl Answer {
    /// What the messages say.
    pub(crate) fn told(&self) -> Vec<Told> {
        let messages = self.messages();
        messages.iter().map(|message| runtime(message)).collect()
    }

    /// All payload, whose numbers must be in sequence.
    pub(crate) fn payload(&self) -> Bytes {
        let mut whole = BytesMut::new();
        let mut next = 0;
        for told in self.told() {
            if let Told::Payload(number, data) = told {
                assert_eq!(number, next);
                next += 1;
                whole.put(data);
            }
        }
        whole.freeze()
    }

    /// The JSON error of plain HTTP: its code and its message.
    pub(crate) fn error(&self) -> (String, String) {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let text = |key: &str| json[key].as_str().unwrap().to_owned();
        assert_eq!(self.headers["content-type"], "application/json");
        (text("errorCode"), text("message"))
    }
}
