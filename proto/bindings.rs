//! The messages of output bindings, as Dapr's runtime and its pluggable components speak them.
//!
//! **Why.** A binding call names its binding in its first message, and payload follows in messages that each side wraps and
//! numbers in its own way. To route, judge and translate such streams the proxy has to know these messages, and no others.
//!
//! **How.** Messages that are small by nature are structs here. Payload is never decoded into one: [`Form`] says where
//! it lies in a message, and [`reader`] and [`writer`] move it from one form into another as it passes.
//!
//! | message | service |
//! |---|---|
//! | `InvokeBindingStreamRequest`, `InvokeBindingStreamResponse` | `dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1` |
//! | [`InvokeBindingRequest`], [`InvokeBindingResponse`] | `dapr.proto.runtime.v1.Dapr/InvokeBinding` |
//! | `InvokeStreamRequest`, `InvokeStreamResponse` | `dapr.proto.components.v1.OutputBinding/InvokeStream` |
//! | [`InvokeRequest`], [`InvokeResponse`], [`InitRequest`], [`ListOperationsResponse`] | the other methods of that service |
//!
//! `schema/` has them as `.proto` files; `tests/bindings.rs` holds the two against each other.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
pub use prost::Message;

pub mod metadata;
pub mod reader;
pub mod reflection;
pub mod writer;

/// How payload and initial messages are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a client and the runtime exchange them: `initial` = 1, `payload` = 2 with `data` = 1 and `seq` = 2.
    Runtime,
    /// As the runtime and a component exchange them: `initial` = 1, `data` = 2, `seq` = 3.
    Component,
    /// Bytes without any messages, as plain HTTP carries them.
    Raw,
}

/// What opens a stream of a client: which binding is meant, and for what.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InitialRequest {
    /// The binding.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it shall do.
    #[prost(string, tag = "2")]
    pub operation: String,
    /// Settings for the operation.
    #[prost(btree_map = "string, string", tag = "3")]
    pub metadata: BTreeMap<String, String>,
}

/// What opens a stream to a component. The binding is known from the header `x-component-instance`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ComponentInitialRequest {
    /// Settings for the operation.
    #[prost(btree_map = "string, string", tag = "1")]
    pub metadata: BTreeMap<String, String>,
    /// What the component shall do.
    #[prost(string, tag = "2")]
    pub operation: String,
}

/// What opens an answer. Components say the content type too; towards clients it travels as a field that they may not know.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InitialResponse {
    /// What the binding says of its answer.
    #[prost(btree_map = "string, string", tag = "1")]
    pub metadata: BTreeMap<String, String>,
    /// The media type of the payload.
    #[prost(string, tag = "2")]
    pub content_type: String,
}

/// The first message of a client, read as a whole.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FirstRequest {
    /// Absent when the message is no first one.
    #[prost(message, optional, tag = "1")]
    pub initial_request: Option<InitialRequest>,
}

/// A unary call of a binding.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InvokeBindingRequest {
    /// The binding.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The payload.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// Settings for the operation.
    #[prost(btree_map = "string, string", tag = "3")]
    pub metadata: BTreeMap<String, String>,
    /// What the binding shall do.
    #[prost(string, tag = "4")]
    pub operation: String,
}

/// The answer to a unary call of a binding.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InvokeBindingResponse {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// What the binding says of its answer.
    #[prost(btree_map = "string, string", tag = "2")]
    pub metadata: BTreeMap<String, String>,
}

/// A unary call of a component.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InvokeRequest {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Settings for the operation.
    #[prost(btree_map = "string, string", tag = "2")]
    pub metadata: BTreeMap<String, String>,
    /// What the component shall do.
    #[prost(string, tag = "3")]
    pub operation: String,
}

/// The answer to a unary call of a component.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InvokeResponse {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// What the component says of its answer.
    #[prost(btree_map = "string, string", tag = "2")]
    pub metadata: BTreeMap<String, String>,
    /// The media type of the payload.
    #[prost(string, tag = "3")]
    pub content_type: String,
}

/// What a component is told once, before anything else.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InitRequest {
    /// Its settings.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Properties>,
}

/// The settings of a component.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Properties {
    /// By name.
    #[prost(btree_map = "string, string", tag = "1")]
    pub properties: BTreeMap<String, String>,
}

/// A message without fields.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// What a component can do.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListOperationsResponse {
    /// The names of its operations.
    #[prost(string, repeated, tag = "1")]
    pub operations: Vec<String>,
}

/// A gRPC message: its head, and what was encoded.
pub fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.encoded_len());
    put_head(&mut framed, message.encoded_len() as u64);
    message
        .encode(&mut framed)
        .expect("a growing buffer has room");
    framed.freeze()
}

/// A gRPC message with an initial message in its field 1, as all streams of bindings begin.
pub fn framed_initial(initial: &impl Message) -> Bytes {
    let content = initial.encode_to_vec();
    let mut framed = BytesMut::with_capacity(16 + content.len());
    put_initial(&mut framed, &content);
    framed.freeze()
}

/// Writes a gRPC message with an encoded initial message in its field 1.
fn put_initial(buffer: &mut BytesMut, content: &[u8]) {
    let length = content.len() as u64;
    put_head(buffer, 1 + varint_len(length) + length);
    buffer.put_u8(0x0a);
    put_varint(buffer, length);
    buffer.put_slice(content);
}

/// Writes the five bytes before a message. Nothing that is written here comes near 4 GiB: payload has that bound itself.
fn put_head(buffer: &mut impl BufMut, length: u64) {
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn put_varint(buffer: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80); // the lowest seven bits
        value >>= 7;
    }
    buffer.put_u8(value as u8); // below 0x80
}

const fn varint_len(value: u64) -> u64 {
    let bits = 64 - (value | 1).leading_zeros() as u64;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_has_the_length_that_was_foretold() {
        let around_every_bit = (0..64)
            .map(|bit| 1u64 << bit)
            .flat_map(|value| [value - 1, value, value + 1]);
        for value in around_every_bit.chain([u64::MAX - 1, u64::MAX]) {
            let mut buffer = BytesMut::new();
            put_varint(&mut buffer, value);

            assert_eq!(buffer.len() as u64, varint_len(value), "{value}");
            let read = prost::encoding::decode_varint(&mut buffer);
            assert_eq!(read, Ok(value));
        }
    }

    #[test]
    fn message_is_framed() {
        let request = ListOperationsResponse {
            operations: vec!["get".into()],
        };

        assert_eq!(framed(&request)[..], b"\0\0\0\0\x05\x0a\x03get"[..]);
        assert_eq!(framed(&Empty {})[..], [0; 5]);
    }

    #[test]
    fn initial_message_is_framed_in_its_field() {
        let initial = InitialRequest {
            name: "store".into(),
            ..Default::default()
        };
        let expected = b"\0\0\0\0\x09\x0a\x07\x0a\x05store";
        assert_eq!(framed_initial(&initial)[..], expected[..]);

        let first = FirstRequest {
            initial_request: Some(initial),
        };
        assert_eq!(framed(&first)[..], expected[..]);
    }

    #[test]
    fn initial_message_of_any_length_is_framed() {
        for length in [0, 1, 127, 128, 16_383, 16_384] {
            let mut buffer = BytesMut::new();
            put_initial(&mut buffer, &vec![b'x'; length]);

            let declared = u32::from_be_bytes(buffer[1..5].try_into().unwrap());
            assert_eq!(declared as usize, buffer.len() - 5, "{length}");
            assert!(buffer.ends_with(&vec![b'x'; length]));
        }
    }
}
