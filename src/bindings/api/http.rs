//! Calls over plain HTTP.
//!
//! | what | from |
//! |---|---|
//! | operation | the header `dapr-operation`, or `operation` in the query |
//! | metadata in | headers `metadata-KEY` and `x-dapr-metadata-KEY`, whose names have no case, and `metadata.KEY` in the query, which keeps its case and wins |
//! | metadata out | headers `metadata.KEY` and `x-dapr-metadata-KEY` |
//! | bounds of metadata | `buffer.max_metadata`, judged entry by entry as they are read |
//! | content type | the component's, or `application/octet-stream` |
//!
//! The head of the answer is sent with the first message of the binding; a failure before it is a status, and one after it a visible
//! break.

use std::{collections::BTreeMap, fmt, rc::Rc, sync::Arc};

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts,
};
use bytes::{BufMut, Bytes, BytesMut};
use percent_encoding::percent_decode_str;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use thalweg_filters::{Body, Error, Side, ending::grpc_status, stream::Booking};
use thalweg_proto::{
    bindings::{
        Form, InitialResponse, Message,
        metadata::{Bounds, Excess, Place},
    },
    status::Code,
};

use super::{
    super::{
        Bindings, CallBounds, Invocation, bad_request, buffered, excess, failure,
        http::Refusal,
        translate::{Plan, Sender, Translate},
    },
    Call,
};

const OPERATION: &str = "dapr-operation";
const METADATA_IN: [&str; 2] = ["metadata-", "x-dapr-metadata-"];
const METADATA_OUT: [&str; 2] = ["metadata.", "x-dapr-metadata-"];

/// The body of a unary call. What is of no concern here stays as it was written: read, JSON takes a hundred times its size.
#[derive(Deserialize)]
struct Json<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(default)]
    operation: String,
}

/// Metadata as they are found, as long as they keep within their bounds.
struct Metadata {
    found: BTreeMap<String, String>,
    left: Bounds,
    excess: Option<Excess>,
}

/// The call that a path is, if it is one.
pub(super) fn call(path: &str) -> Option<Call> {
    let name = |text: &str| {
        let name = percent_decode_str(text).decode_utf8().ok()?;
        (!name.is_empty() && !text.contains('/')).then(|| name.into_owned())
    };
    if let Some(rest) = path.strip_prefix("/v1.0-alpha1/bindings/") {
        let name = name(rest.strip_suffix("/stream")?)?;
        return Some(Call::HttpStream { name });
    }
    let name = name(path.strip_prefix("/v1.0/bindings/")?)?;
    Some(Call::HttpUnary { name })
}

/// A streaming call.
pub(super) async fn stream(
    bindings: Rc<Bindings>,
    name: String,
    request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let label = format!("binding {name}");
    let bounds = bindings.bounds(&name)?;
    let invocation = invocation(name, &parts, bounds, &label)?;
    let answer = bindings.invoke_raw(invocation, &parts, body)?.await?;
    let Answer {
        initial,
        trailer,
        payload,
    } = Answer::read(answer, &label, bounds).await?;
    let mut response = Response::new(payload.into_body());
    *response.headers_mut() = headers(&initial, "application/octet-stream");
    if let Some(trailer) = trailer {
        response.headers_mut().insert(header::TRAILER, trailer);
    }
    Ok(response)
}

/// A unary call: JSON there, and whatever the binding answers back, each kept whole.
pub(super) async fn unary(
    bindings: Rc<Bindings>,
    name: String,
    request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let bounds = bindings.bounds(&name)?;
    let most = bounds.bytes;
    let label = format!("binding {name}");
    let (parts, mut body) = request.into_parts();
    let mut booked = buffered::booking(&parts);
    let mut whole = BytesMut::new();
    while let Some(chunk) = buffered::next(&mut body).await? {
        if whole.len() + chunk.len() > most {
            let error = buffered::too_large(&label, "request", most, Side::Client);
            return Err(error.with_http_status(413));
        }
        buffered::grow(&mut booked, chunk.len(), &label)?;
        whole.put(chunk);
    }
    let malformed = |why: &dyn fmt::Display| {
        // It may quote all of the body.
        let why = why.to_string();
        let message = format!("failed deserializing HTTP body: {why:.300}");
        Error::new(
            Code::InvalidArgument,
            "malformed_request",
            Side::Client,
            message,
        )
    };
    if whole.trim_ascii_start().first() == Some(&b'[') {
        return Err(malformed(&"expected an object, found a list"));
    }
    let whole = whole.freeze();
    let json: Json<'_> = serde_json::from_slice(&whole).map_err(|error| malformed(&error))?;
    let data = json
        .data
        .map_or_else(Bytes::new, |data| whole.slice_ref(data.get().as_bytes()));
    let mut metadata = Metadata::new(bounds);
    if let Some(text) = json.metadata {
        let mut text = serde_json::Deserializer::from_str(text.get());
        let read = text.deserialize_map(&mut metadata);
        metadata.check(bounds, &label)?;
        read.map_err(|error| malformed(&error))?;
    }
    let invocation = Invocation {
        name,
        operation: json.operation.into(),
        metadata: metadata.found,
        unary: true,
    };
    let answer = bindings
        .invoke_raw(invocation, &parts, Body::full(data))?
        .await?;
    let mut answer = Answer::read(answer, &label, bounds).await?;
    let data = answer.collect(most, &label, &mut booked).await?;
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers(&answer.initial, "application/json");
    if data.is_empty() {
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(response);
    }
    Ok(response.map(|_| Body::full(data)))
}

/// The answer of a binding, with its first message read.
pub(super) struct Answer {
    pub(super) initial: InitialResponse,
    /// The names of the trailers to come, without which HTTP/1.1 sends none.
    trailer: Option<HeaderValue>,
    payload: Translate,
}

// === impl Answer ===

impl Answer {
    pub(super) async fn read(
        response: Response<Body>,
        label: &str,
        bounds: CallBounds,
    ) -> Result<Self, Error> {
        let (parts, body) = response.into_parts();
        if let Some(error) = failure(label, &parts.headers) {
            let refusal = parts.extensions.get::<Refusal>();
            return Err(match refusal {
                Some(Refusal(status)) => error.with_http_status(status.as_u16()),
                None => error,
            });
        }
        let whole = grpc_status(&parts.headers).is_some();
        let plan = Plan {
            // A status in the head says that there are no messages.
            from: if whole { Form::Raw } else { Form::Runtime },
            to: Form::Raw,
            sender: if whole {
                Sender::Client
            } else {
                Sender::Upstream(Arc::from(label))
            },
        };
        let mut payload = Translate::new(body, plan, 0, None).without_initial();
        let initial = std::future::poll_fn(|cx| payload.poll_initial(cx)).await?;
        let initial = initial.unwrap_or_default();
        let checked = (bounds.for_metadata()).check(&initial, Place::InitialResponse);
        checked.map_err(|why| excess(label, why, bounds.metadata, Side::Upstream))?;
        let initial = InitialResponse::decode(initial).map_err(|error| {
            let message = format!("{label}: initial_response cannot be read: {error}");
            Error::new(Code::Internal, "malformed_message", Side::Upstream, message)
        })?;
        // Of what else it may announce nothing is passed on.
        let trailer = parts.headers.get(header::TRAILER);
        let trailer = trailer.filter(|names| names.as_bytes().starts_with(b"metadata."));
        Ok(Self {
            initial,
            trailer: trailer.cloned(),
            payload,
        })
    }

    /// All of the payload, up to `most` bytes, which are added to what is booked.
    pub(super) async fn collect(
        &mut self,
        most: usize,
        label: &str,
        booked: &mut Booking,
    ) -> Result<Bytes, Error> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.payload.next().await? {
            if whole.len() + chunk.len() > most {
                return Err(buffered::too_large(label, "answer", most, Side::Upstream));
            }
            buffered::grow(booked, chunk.len(), label)?;
            whole.put(chunk);
        }
        Ok(whole.freeze())
    }
}

// === impl Metadata ===

impl Metadata {
    fn new(bounds: CallBounds) -> Self {
        Self {
            found: BTreeMap::new(),
            left: bounds.for_metadata(),
            excess: None,
        }
    }

    /// Whether there is room for one more entry; if not, `check` says so.
    fn has_room(&mut self, key: &str, value: &str) -> bool {
        let taken = self.left.take(key.len() + value.len());
        self.excess = self.excess.or_else(|| taken.err());
        self.excess.is_none()
    }

    fn check(&self, bounds: CallBounds, label: &str) -> Result<(), Error> {
        match self.excess {
            None => Ok(()),
            Some(why) => Err(excess(label, why, bounds.metadata, Side::Client)),
        }
    }
}

/// Reads a JSON object of texts.
impl<'de> Visitor<'de> for &mut Metadata {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata: an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !self.has_room(&key, &value) {
                return Err(de::Error::custom("too much"));
            }
            self.found.insert(key, value);
        }
        Ok(())
    }
}

fn invocation(
    name: String,
    parts: &Parts,
    bounds: CallBounds,
    label: &str,
) -> Result<Invocation, Error> {
    let mut operation = None;
    let mut metadata = Metadata::new(bounds);
    for (name, value) in &parts.headers {
        let text = || {
            let text = std::str::from_utf8(value.as_bytes());
            text.map_err(|_| bad_request(format!("header {name} is not UTF-8")))
        };
        if name == OPERATION {
            operation = Some(text()?.to_owned());
        } else if let Some(key) = METADATA_IN.iter().find_map(|prefix| name.as_str().strip_prefix(prefix))
            && !key.is_empty()
            // The first of several headers counts, as with Dapr.
            && !metadata.found.contains_key(key)
        {
            let text = text()?;
            if metadata.has_room(key, text) {
                metadata.found.insert(key.to_owned(), text.to_owned());
            }
        }
    }
    let query = parts.uri.query().unwrap_or_default();
    for (key, value) in query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let (key, value) = (decoded(key)?, decoded(value)?);
        if key == "operation" {
            operation.get_or_insert(value);
        } else if let Some(key) = key.strip_prefix("metadata.").filter(|key| !key.is_empty())
            && metadata.has_room(key, &value)
        {
            let found = &mut metadata.found;
            found.retain(|known, _| !known.eq_ignore_ascii_case(key));
            found.insert(key.to_owned(), value);
        }
    }
    metadata.check(bounds, label)?;
    match operation.filter(|operation| !operation.is_empty()) {
        Some(operation) => Ok(Invocation {
            name,
            operation: operation.into(),
            metadata: metadata.found,
            unary: false,
        }),
        None => Err(bad_request(
            "operation is required: write ?operation=NAME, or the header dapr-operation",
        )),
    }
}

/// A name or a value of a query. What is not UTF-8 must not become something else: two keys would be one.
fn decoded(text: &str) -> Result<String, Error> {
    let plain = text.replace('+', " ");
    match percent_decode_str(&plain).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(bad_request(format!("{text:?} in the query is not UTF-8"))),
    }
}

fn headers(initial: &InitialResponse, content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let own = HeaderValue::try_from(&initial.content_type)
        .ok()
        .filter(|own| !own.is_empty());
    let content_type = own.unwrap_or_else(|| HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_TYPE, content_type);
    for (key, value) in &initial.metadata {
        // What a header cannot carry is left out: a name with a blank, a value with a line break.
        let Ok(value) = HeaderValue::try_from(value) else {
            continue;
        };
        for prefix in METADATA_OUT {
            if let Ok(name) = HeaderName::try_from(format!("{prefix}{key}")) {
                let _ = headers.try_insert(name, value.clone()); // There is room for ten thousand of each.
            }
        }
    }
    headers
}
