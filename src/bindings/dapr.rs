//! The target `dapr`: another server of `InvokeBindingAlpha1`, or a stock daprd.
//!
//! Towards a server that streams, bytes pass as they are. A stock daprd has no such method; then the request is collected and goes to
//! `InvokeBinding`. What it is, is known from its answer to the first stream.

use std::{cell::Cell, rc::Rc, time::Duration};

use ::http::{Request, Response};
use thalweg_filters::{Body, Error, ending::grpc_status};
use thalweg_proto::{
    bindings::{InitialResponse, InvokeBindingRequest, InvokeBindingResponse, framed},
    status::Code,
};
use tokio::time::Instant;

use super::{
    Invocation,
    buffered::{Buffer, booking},
    component::control::Streams,
    grpc_answer, grpc_request, pass_token,
};
use crate::{config, forward, upstream::Cluster};

const INVOKE_BINDING: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBinding";

/// How long a server that knows no streams is taken for one.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What a stock daprd says to a method that it does not know: it takes it for one to be proxied to an app.
pub(super) const NOT_KNOWN_TO_DAPR: &str = "failed to proxy request";

/// Another runtime, as one worker reaches it.
pub(super) struct Dapr {
    cluster: Rc<Cluster>,
    streams: Cell<Streams>,
    /// When it was found to know no streams. It may have been exchanged for one that does.
    refused_at: Cell<Option<Instant>>,
    buffer: Buffer,
    timeouts: config::RouteTimeouts,
}

// === impl Dapr ===

impl Dapr {
    pub(super) fn new(binding: &config::Binding, cluster: Rc<Cluster>, buffer: Buffer) -> Self {
        Self {
            cluster,
            streams: Cell::new(Streams::Unproven),
            refused_at: Cell::new(None),
            buffer,
            timeouts: binding.timeouts,
        }
    }

    pub(super) fn is_unproven(&self) -> bool {
        if self
            .refused_at
            .get()
            .is_some_and(|at| at.elapsed() >= ASK_AGAIN)
        {
            self.learn(Streams::Unproven);
        }
        self.streams.get() == Streams::Unproven
    }

    pub(super) fn learn(&self, streams: Streams) {
        self.streams.set(streams);
        self.refused_at
            .set((streams == Streams::No).then(Instant::now));
    }

    pub(super) async fn open(
        &self,
        invocation: &Invocation,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if invocation.unary || self.streams.get() == Streams::No {
            return self.invoke(invocation, request).await;
        }
        // The answer is read on its way back, so it must not be compressed.
        request.headers_mut().remove("grpc-accept-encoding");
        let response = forward::send(&self.cluster, request, &self.timeouts).await?;
        if grpc_status(response.headers()) == Some(Code::Unimplemented) {
            // The next stream finds out what it can do now.
            self.learn(Streams::Unproven);
        }
        grpc_answer(&self.buffer.label, response)
    }

    async fn invoke(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        // Until the answer is there: it is sent for as long.
        let mut booked = booking(&parts);
        let data = self.buffer.collect(body, &mut booked).await?;
        let message = framed(&InvokeBindingRequest {
            name: invocation.name.clone(),
            data,
            metadata: invocation.metadata.clone(),
            operation: invocation.operation.to_string(),
        });
        let mut request = grpc_request(INVOKE_BINDING, &parts, Body::full(message));
        pass_token(&parts.headers, request.headers_mut());
        let into = |answer: InvokeBindingResponse| {
            let initial = InitialResponse {
                metadata: answer.metadata,
                content_type: String::new(),
            };
            (initial, answer.data)
        };
        self.buffer
            .call(&self.cluster, request, &self.timeouts, into)
            .await
    }
}
