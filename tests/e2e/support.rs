//! What the tests are told with: the proxy under test, and peers that do what they are told and nothing else.
//!
//! | file | what it holds |
//! |---|---|
//! | [`authority`] | certificates of every kind, and the files that they lie in |
//! | [`proxy`] | the proxy, in this process, from a few words of YAML |
//! | [`stream`] | the two halves of an HTTP/2 stream, for either peer |
//! | [`client`] | a client on the `h2` crate |
//! | [`flood`] | senders that never tire, and readers that give nothing back |
//! | [`child`] | the proxy as a process of its own |
//! | [`binding`] | the messages of bindings, and clients that say them |
//! | [`component`] | a pluggable component |
//! | [`operator`] | who asks the admin endpoints |
//! | [`tls`] | servers that shake hands |
//! | [`upstream`] | an upstream on the `h2` crate |
//! | [`raw`] | either side of HTTP/2, frame by frame and byte by byte |
//! | [`plain`] | either side of HTTP/1.1, line by line |
//! | [`hands`] | clients that shake hands |

use std::{future::Future, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;

pub(crate) mod authority;
pub(crate) mod binding;
pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod component;
pub(crate) mod flood;
pub(crate) mod hands;
pub(crate) mod operator;
pub(crate) mod plain;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod upstream;

/// The longest that anything may take. It is generous: only a test that has failed waits so long.
const CAP: Duration = Duration::from_secs(10);

/// Waits for what must happen.
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(CAP, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: not within {CAP:?}: {what}"),
        }
    }
}

/// A gRPC message with its head.
pub(crate) fn framed(payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + payload.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(payload.len()).unwrap());
    message.put_slice(payload);
    message.freeze()
}

/// Takes the first whole gRPC message, without its head.
pub(crate) fn take_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let head: [u8; 5] = buffer.get(..5)?.try_into().unwrap();
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    (buffer.len() >= 5 + len).then(|| buffer.split_to(5 + len).freeze().slice(5..))
}

/// Headers from words.
pub(crate) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            http::HeaderName::try_from(*name).unwrap(),
            http::HeaderValue::try_from(*value).unwrap(),
        );
    }
    headers
}

/// The values of a header, in their order.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}
