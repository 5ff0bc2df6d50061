//! Turns every error into what the client understands. Nothing else in the tree writes a status.
//!
//! | client | before the first byte | after it |
//! |---|---|---|
//! | gRPC | headers alone, with `grpc-status`, `grpc-message` and `thalweg-reason` | the same as trailers |
//! | HTTP | a status with a JSON error and the header `thalweg-reason` | a visible break: a reset, or a chunked body without its end |
//!
//! It is also where an abort or a dismissal from outside the stream takes effect.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use thalweg_filters::{Body, Chunk, Error, stream::Protocol};
use thalweg_proto::status::encode_message;

use crate::{dismissal::Exit, telemetry::Process};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const THALWEG_REASON: HeaderName = HeaderName::from_static("thalweg-reason");

/// The answer to a stream, whatever becomes of it. `answer` is an error when the stream was refused at once; `details` says whether
/// the client is told what strangers are not.
pub(crate) fn respond<F>(exit: Exit, answer: Result<F, Error>, details: bool) -> Responding<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    let (answer, refused) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error)),
    };
    Responding {
        answer,
        refused,
        exit: Some(exit),
        details,
    }
}

pin_project! {
    /// A response in the making, which cannot fail.
    pub(crate) struct Responding<F> {
        #[pin]
        answer: Option<F>,
        refused: Option<Error>,
        // It moves into the response's body.
        exit: Option<Exit>,
        details: bool,
    }
}

impl<F> Future for Responding<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let this = self.project();
        let details = *this.details;
        let answer = match this.answer.as_pin_mut() {
            Some(answer) => answer.poll(cx),
            None => this
                .refused
                .take()
                .map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        };
        let exit = this.exit.as_mut();
        let exit = exit.expect("a future is not polled again when it was ready");
        let answer = match answer {
            Poll::Pending => ready!(exit.poll(cx).map(Err)),
            Poll::Ready(answer) => answer,
        };
        Poll::Ready(match answer {
            Ok(response) => {
                let exit = this.exit.take();
                response.map(|body| {
                    body.wrap(|inner| Rescued {
                        inner: Some(inner),
                        exit: exit.expect("it was just there"),
                        details,
                    })
                })
            }
            Err(error) => {
                note(exit.process(), &error);
                refusal(exit.protocol(), &error, details)
            }
        })
    }
}

/// A whole answer that says `error`.
fn refusal(protocol: Protocol, error: &Error, details: bool) -> Response<Body> {
    let mut response = match protocol {
        Protocol::Grpc => {
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = grpc_status(error, details);
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            return response;
        }
        Protocol::Http => {
            let code = format!("ERR_{}", error.reason().to_ascii_uppercase());
            let json = serde_json::json!({ "errorCode": code, "message": told(error, details) })
                .to_string();
            let mut response = Response::new(Body::full(json));
            *response.status_mut() = StatusCode::from_u16(error.http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = response.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            headers.insert(THALWEG_REASON, HeaderValue::from_static(error.reason()));
            response
        }
    };
    if let Some((name, value)) = error.header() {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

/// What the client hears of what happened.
fn told(error: &Error, details: bool) -> Cow<'_, str> {
    if details {
        error.full_message()
    } else {
        error.message().into()
    }
}

fn grpc_status(error: &Error, details: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(GRPC_STATUS, HeaderValue::from_static(error.code().as_str()));
    if let Ok(message) = HeaderValue::from_str(&encode_message(&told(error, details))) {
        headers.insert(GRPC_MESSAGE, message);
    }
    headers.insert(THALWEG_REASON, HeaderValue::from_static(error.reason()));
    if let Some((name, value)) = error.header() {
        headers.insert(name, value.clone());
    }
    headers
}

fn note(process: &Process, error: &Error) {
    process.ended(error);
    tracing::debug!(code = error.code().name(), reason = error.reason(), side = ?error.side(), %error, "stream ended");
}

/// A response body whose errors become trailers where the client reads trailers.
struct Rescued {
    /// `None` once an error has ended it.
    inner: Option<Body>,
    exit: Exit,
    details: bool,
}

impl http_body::Body for Rescued {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let error = loop {
            if this.exit.has_cut() {
                break ready!(this.exit.poll(cx));
            }
            match Pin::new(&mut *inner).poll_frame(cx) {
                Poll::Ready(Some(Err(error))) => break error,
                Poll::Pending => break ready!(this.exit.poll(cx)),
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                    let passes = frame
                        .into_data()
                        .ok()
                        .and_then(|chunk| this.exit.pass(chunk));
                    // One who always has something to say ends too.
                    if this.exit.is_dismissed()
                        && let Poll::Ready(error) = this.exit.poll(cx)
                    {
                        break error;
                    }
                    if let Some(chunk) = passes {
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                }
                Poll::Ready(end) => return Poll::Ready(end),
            }
        };
        this.inner = None;
        note(this.exit.process(), &error);
        Poll::Ready(Some(match this.exit.protocol() {
            Protocol::Grpc => Ok(Frame::trailers(grpc_status(&error, this.details))),
            Protocol::Http => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        let ends = |inner: &Body| inner.is_end_stream() && !self.exit.has_cut();
        self.inner.as_ref().is_none_or(ends)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(SizeHint::default, |inner| inner.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::Side;
    use thalweg_proto::status::Code;

    use super::*;

    #[test]
    fn refusal_tells_the_header_of_its_error_in_both_protocols() {
        let error = Error::new(Code::Unavailable, "rejecting", Side::Proxy, "later")
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("7"));

        for protocol in [Protocol::Grpc, Protocol::Http] {
            let answer = refusal(protocol, &error, false);
            assert_eq!(answer.headers()[header::RETRY_AFTER], "7", "{protocol:?}");
        }
    }
}
