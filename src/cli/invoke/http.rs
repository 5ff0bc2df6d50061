//! The call over HTTP/1.1: the body is the payload, with its length if it is a file, and the answer's body is the answer.

use std::rc::Rc;

use ::http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{self, CONTENT_LENGTH, CONTENT_TYPE},
    uri::PathAndQuery,
};
use bytes::{Buf, Bytes};
use futures_util::stream;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Call, headers, input::Input, output::Output, progress::Progress, with_hint};
use crate::cli::{
    connect::{Connection, Overheard, Server, Speak},
    exit::{Class, Failure},
};

/// The most that is read of an answer that tells of a failure.
const ERROR_MAX: usize = 64 << 10;

/// What a proxy or a runtime says of a failure.
#[derive(Deserialize)]
struct Refusal {
    message: String,
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
) -> Result<(), Failure> {
    let peer = Peer {
        server: &call.settings.address,
        overheard,
    };
    let head = head(&call)?;
    let Call {
        input,
        mut output,
        progress,
        ..
    } = call;
    let request = Request::from_parts(head, payload(input, Rc::clone(&progress)));
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|error| peer.failure(&error))?;
    let answered = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| peer.failure(&error))?;
        peer.download(response, &mut output, &progress).await
    };
    tokio::select! {
        answered = answered => answered?,
        // What it fails with is told to those who wait for the answer.
        () = async { let _ = driver.await; std::future::pending().await } => {}
    }
    output.finish().await
}

fn head(call: &Call<'_>) -> Result<::http::request::Parts, Failure> {
    let settings = call.settings;
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("operation", &settings.operation);
    for (key, value) in &call.metadata {
        query.append_pair(&format!("metadata.{key}"), value);
    }
    let name = utf8_percent_encode(&settings.binding, NON_ALPHANUMERIC);
    let target = format!("/v1.0-alpha1/bindings/{name}/stream?{}", query.finish());
    let target = PathAndQuery::try_from(target).map_err(|_| {
        let message = "the metadata are too long to be sent over HTTP";
        Failure::new(Class::Usage, message).hint("leave out --http")
    })?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = headers()?;
    let headers = request.headers_mut();
    let host = HeaderValue::try_from(settings.address.authority.as_str());
    headers.extend(host.ok().map(|host| (header::HOST, host)));
    let bytes = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, bytes);
    if let Some(size) = call.input.size() {
        headers.insert(CONTENT_LENGTH, size.into());
    }
    Ok(request.into_parts().0)
}

/// The input, as far as the server takes it.
fn payload(input: Input, progress: Rc<Progress>) -> impl Body<Data = Bytes, Error = Failure> {
    let pieces = stream::try_unfold((input, progress), |(mut input, progress)| async move {
        let Some(piece) = input.next().await? else {
            return Ok(None);
        };
        progress.sent(piece.len());
        Ok(Some((Frame::data(piece), (input, progress))))
    });
    StreamBody::new(Box::pin(pieces))
}

// === impl Peer ===

impl Peer<'_> {
    async fn download(
        &self,
        response: Response<Incoming>,
        output: &mut Output,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let (head, mut body) = response.into_parts();
        if head.status.is_client_error() || head.status.is_server_error() {
            return Err(with_hint(refused(head.status, body).await, &head.headers));
        }
        if !head.status.is_success() {
            let message = format!("{} answered {}", self.server, head.status);
            return Err(Failure::new(Class::Protocol, message));
        }
        let mut metadata = super::metadata(&head.headers);
        // As names of headers are written.
        for (name, key) in [(CONTENT_TYPE, "contenttype"), (CONTENT_LENGTH, "size")] {
            if let Some(value) = head.headers.get(name).and_then(|value| value.to_str().ok()) {
                metadata
                    .entry(key.into())
                    .or_insert_with(|| value.to_owned());
            }
        }
        progress.told(&metadata);
        while let Some(frame) = body.frame().await {
            match frame.map_err(|error| self.failure(&error))?.into_data() {
                Ok(mut bytes) => {
                    while bytes.has_remaining() {
                        progress.received(output.write(&mut bytes).await?);
                    }
                    output.flush().await?;
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    progress.told(&super::metadata(&trailers));
                }
            }
        }
        Ok(())
    }

    /// What an error of the connection means.
    fn failure(&self, error: &hyper::Error) -> Failure {
        if let Some(failure) = input_failure(error) {
            return failure.clone();
        }
        let explained = self.overheard.explain(self.server, Speak::Http1);
        explained.unwrap_or_else(|| {
            let message = match error.is_parse() {
                true => format!("{} does not answer in HTTP/1.1: {error}", self.server),
                false => format!("{} broke the connection off: {error}", self.server),
            };
            Failure::new(Class::Protocol, message)
        })
    }
}

/// The failure of the input behind an error of the connection, if it was that.
fn input_failure<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Failure> {
    match error.downcast_ref() {
        None => input_failure(error.source()?),
        found => found,
    }
}

/// What an answer says that tells of a failure.
async fn refused(status: StatusCode, body: Incoming) -> Failure {
    let said = match Limited::new(body, ERROR_MAX).collect().await {
        Ok(said) => said.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let text = match serde_json::from_slice::<Refusal>(&said) {
        Ok(refusal) => refusal.message,
        Err(_) => {
            let text = String::from_utf8_lossy(&said);
            text.lines().next().unwrap_or_default().to_owned()
        }
    };
    Failure::new(
        Class::of_status(status.as_u16()),
        format!("{status}: {text}"),
    )
}
