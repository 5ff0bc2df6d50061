//! The target `dapr`: another server of `InvokeBindingAlpha1`, or a stock daprd.
//!
//! Towards a server that streams, bytes pass as they are. A stock daprd has no such method; then the request is collected and goes to
//! `InvokeBinding`. What it is, is known from its answer to the first stream.

use std::{cell::Cell, rc::Rc, time::Duration};

use ::http::{Request, Response};
use thalweg_filters::{Body, Error};
use thalweg_proto::bindings::{
    InitialResponse, InvokeBindingRequest, InvokeBindingResponse, framed,
};

use super::{
    Invocation, buffered::Buffer, component::control::Streams, grpc_answer, grpc_request,
    pass_token,
};
use crate::{config, forward, upstream::Cluster};

const INVOKE_BINDING: &str = "/dapr.proto.runtime.v1.Dapr/InvokeBinding";

/// What a stock daprd says to a method that it does not know: it takes it for one to be proxied to an app.
pub(super) const NOT_KNOWN_TO_DAPR: &str = "failed to proxy request";

/// Another runtime, as one worker reaches it.
pub(super) struct Dapr {
    cluster: Rc<Cluster>,
    streams: Cell<Streams>,
    buffer: Buffer,
    stall: Duration,
}

// === impl Dapr ===

impl Dapr {
    pub(super) fn new(binding: &config::Binding, cluster: Rc<Cluster>, buffer: Buffer) -> Self {
        Self {
            cluster,
            streams: Cell::new(Streams::Unproven),
            buffer,
            stall: binding.timeouts.stall,
        }
    }

    pub(super) fn is_unproven(&self) -> bool {
        self.streams.get() == Streams::Unproven
    }

    pub(super) fn learn(&self, streams: Streams) {
        self.streams.set(streams);
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
        let response = forward::send(&self.cluster, request, self.stall).await?;
        grpc_answer(&self.buffer.label, response)
    }

    async fn invoke(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        let data = self.buffer.collect(body).await?;
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
            .call(&self.cluster, request, self.stall, into)
            .await
    }
}
