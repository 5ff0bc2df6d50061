//! The target `echo`: it answers with what it is sent. For trying out, and for tests of what lies in front of it.
//!
//! Requests and answers wrap their payload alike, so nothing is read but the first message, which becomes the first of the answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error};
use thalweg_proto::bindings::{Form, InitialResponse, framed_initial};

use super::{
    Invocation, ok_status, response,
    translate::{Plan, Sender, Translate},
};

/// It does the same whatever it is asked for; these are told apart in metrics.
pub(super) const OPERATIONS: [&str; 4] = ["create", "get", "delete", "list"];

struct Echoed(Body, Option<HeaderMap>);

pub(super) fn open(invocation: &Invocation, request: Request<Body>) -> Response<Body> {
    let initial = framed_initial(&InitialResponse {
        metadata: invocation.metadata.clone(),
        content_type: String::new(),
    });
    let plan = Plan {
        from: Form::Runtime,
        to: Form::Runtime,
        sender: Sender::Client,
    };
    let payload = Translate::new(request.into_body(), plan, 0, Some(initial)).without_initial();
    response(Body::new(Echoed(payload.into_body(), Some(ok_status()))))
}

impl http_body::Body for Echoed {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.or_else(|| self.1.take().map(|status| Ok(Frame::trailers(status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.1.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
