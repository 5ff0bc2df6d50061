//! Calls over gRPC.

use std::rc::Rc;

use ::http::{HeaderName, HeaderValue, Request, Response};
use bytes::Bytes;
use thalweg_filters::{
    Body, Error, Side, ending::grpc_status, initial_message::InitialMessage, stream::Booking,
};
use thalweg_proto::{
    bindings::{
        FirstRequest, InitialRequest, InvokeBindingRequest, InvokeBindingResponse, Message, framed,
        metadata::Place, reader::INITIAL_MAX,
    },
    status::Code,
};

use super::{
    super::{Bindings, Invocation, bad_request, buffered, excess, ok_status, response},
    http::Answer,
    inflate,
};

pub(in super::super) const STREAM: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1";
pub(super) const UNARY: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBinding";

/// A streaming call whose first message has been read.
pub(super) async fn named(
    bindings: Rc<Bindings>,
    mut request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let first = request.extensions_mut().remove::<InitialMessage>();
    let InitialMessage(first) = first.expect("the first message was read before");
    let most = bindings.largest;
    let checked = most.for_metadata().check(&first, Place::FirstRequest);
    checked.map_err(|why| excess("the first message", why, most.metadata, Side::Client))?;
    let first = FirstRequest::decode(first).map_err(malformed)?;
    let Some(initial) = first.initial_request else {
        return Err(bad_request(
            "the first message must contain initial_request",
        ));
    };
    let invocation = Invocation {
        name: initial.name,
        operation: initial.operation.into(),
        metadata: initial.metadata,
        unary: false,
    };
    bindings.invoke(invocation, request)?.await
}

/// A unary call: one message there and one back, each kept whole.
pub(super) async fn unary(
    bindings: Rc<Bindings>,
    request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let most = bindings.largest;
    let (parts, mut body) = inflate::inflated(request, most.bytes)?.into_parts();
    let mut booked = buffered::booking(&parts);
    let message = one_message(&mut body, most.bytes, &mut booked).await?;
    let checked = most.for_metadata().check(&message, Place::UnaryRequest);
    checked.map_err(|why| excess("InvokeBinding", why, most.metadata, Side::Client))?;
    let call = InvokeBindingRequest::decode(message).map_err(malformed)?;
    let bounds = bindings.bounds(&call.name)?;
    let most = bounds.bytes;
    let label = format!("binding {}", call.name);
    if call.data.len() > most {
        return Err(buffered::too_large(&label, "request", most, Side::Client));
    }
    let invocation = Invocation {
        name: call.name,
        operation: call.operation.into(),
        metadata: call.metadata,
        unary: true,
    };
    let answer = bindings
        .invoke_raw(invocation, &parts, Body::full(call.data))?
        .await?;
    if grpc_status(answer.headers()).is_some_and(|code| code != Code::Ok) {
        return Ok(answer);
    }
    let mut answer = Answer::read(answer, &label, bounds).await?;
    let data = answer.collect(most, &label, &mut booked).await?;
    let mut response = response(Body::empty());
    for (key, value) in &answer.initial.metadata {
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(format!("metadata.{key}")),
            HeaderValue::try_from(value),
        ) {
            // The message says it as well.
            let _ = response.headers_mut().try_insert(name, value);
        }
    }
    let message = framed(&InvokeBindingResponse {
        data,
        metadata: answer.initial.metadata,
    });
    Ok(response.map(|_| Body::with_trailers(message, ok_status())))
}

/// The first message of a stream in the one form.
pub(in super::super) fn first_message(invocation: &Invocation) -> Bytes {
    framed(&FirstRequest {
        initial_request: Some(InitialRequest {
            name: invocation.name.clone(),
            operation: invocation.operation.to_string(),
            metadata: invocation.metadata.clone(),
        }),
    })
}

/// The payload of the only message of a request.
async fn one_message(body: &mut Body, most: usize, booked: &mut Booking) -> Result<Bytes, Error> {
    // With what stands beside the payload: names and metadata.
    let all = most + INITIAL_MAX;
    let mut whole = bytes::BytesMut::new();
    while let Some(chunk) = buffered::next(body).await? {
        if whole.len() + chunk.len() > all {
            return Err(buffered::too_large(
                "InvokeBinding",
                "request",
                most,
                Side::Client,
            ));
        }
        buffered::grow(booked, chunk.len(), "InvokeBinding")?;
        whole.extend_from_slice(chunk.as_slice());
    }
    let whole = whole.freeze();
    let Some((&[flag, ref length @ ..], message)) = whole.split_first_chunk::<5>() else {
        return Err(bad_request("the request ended before its message"));
    };
    if flag != 0 {
        return Err(bad_request(
            "the message is compressed, and grpc-encoding does not say how",
        ));
    }
    if u32::from_be_bytes(*length) as usize != message.len() {
        return Err(bad_request("a unary request has one whole message"));
    }
    Ok(whole.slice(5..))
}

fn malformed(error: impl std::fmt::Display) -> Error {
    Error::new(
        Code::InvalidArgument,
        "malformed_message",
        Side::Client,
        format!("the first message cannot be read: {error}"),
    )
}
