//! The target `component`: a Dapr pluggable component, over a Unix socket or TCP.
//!
//! Streams go to `OutputBinding.InvokeStream`, translated message by message. A component that has no such method is used through
//! `Invoke`, with the request collected first. Whether it has is known from its reflection, or from what it answers to the first
//! stream, which is kept for that.
//!
//! | file | what it holds |
//! |---|---|
//! | [`control`] | the one connection of the process that looks after a component: what it can do, `Init`, `Ping` |
//! | [`discovery`] | a folder whose sockets become bindings |

use std::{rc::Rc, sync::Arc};

use ::http::{HeaderName, HeaderValue, Request, Response};
use thalweg_filters::{Body, Error, Side, ending::grpc_status, sequence::Numbered};
use thalweg_proto::{
    bindings::{
        ComponentInitialRequest, Form, InitialResponse, InvokeRequest, InvokeResponse, framed,
        framed_initial,
    },
    status::Code,
};

use super::{
    Invocation,
    buffered::{Buffer, booking},
    grpc_answer, grpc_request,
    translate::{Plan, Sender, Translate},
};
use crate::{config, forward, upstream::Cluster};

pub(crate) mod control;
pub(crate) mod discovery;

pub(crate) use control::Handle;
use control::{Ready, Streams};
pub(crate) use discovery::Components;

const INSTANCE: HeaderName = HeaderName::from_static("x-component-instance");
const INVOKE: &str = "/dapr.proto.components.v1.OutputBinding/Invoke";
const INVOKE_STREAM: &str = "/dapr.proto.components.v1.OutputBinding/InvokeStream";

/// A component, as one worker reaches it.
pub(super) struct Component {
    label: Arc<str>,
    cluster: Rc<Cluster>,
    handle: Handle,
    instance: HeaderValue,
    buffer: Buffer,
    timeouts: config::RouteTimeouts,
}

// === impl Component ===

impl Component {
    pub(super) fn new(
        binding: &config::Binding,
        settings: &config::Component,
        cluster: Rc<Cluster>,
        handle: Handle,
        buffer: Buffer,
    ) -> Self {
        Self {
            label: Arc::clone(&buffer.label),
            cluster,
            handle,
            instance: HeaderValue::from_str(&settings.instance)
                .expect("the configuration takes visible ASCII only"),
            buffer,
            timeouts: binding.timeouts,
        }
    }

    /// Whether a stream might still find that the component knows no streams. Of one that is not there, nothing is known.
    pub(super) fn is_unproven(&self) -> bool {
        self.handle
            .ready()
            .map_or(true, |ready| ready.streams() == Streams::Unproven)
    }

    pub(super) fn learn(&self, streams: Streams) {
        if let Ok(ready) = self.handle.ready() {
            ready.learn(streams);
        }
    }

    pub(super) async fn open(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let ready = self.handle.ready()?;
        self.check_operation(&ready, &invocation.operation)?;
        if invocation.unary || ready.streams() == Streams::No {
            self.invoke(invocation, request).await
        } else {
            self.invoke_stream(&ready, invocation, request).await
        }
    }

    async fn invoke_stream(
        &self,
        ready: &Ready,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let initial = framed_initial(&ComponentInitialRequest {
            metadata: invocation.metadata.clone(),
            operation: invocation.operation.to_string(),
        });
        let (parts, body) = request.into_parts();
        let plan = Plan {
            from: Form::Runtime,
            to: Form::Component,
            sender: Sender::Client,
        };
        // To a component, the initial message is number 0, and payload begins with 1.
        let body = Translate::new(body, plan, 1, Some(initial)).without_initial();
        let request = self.request(INVOKE_STREAM, &parts, body.into_body());
        let response = forward::send(&self.cluster, request, &self.timeouts).await?;
        if ready.streams() == Streams::Listed {
            match grpc_status(response.headers()) {
                None => ready.learn(Streams::Yes),
                // The next stream finds out what it can do.
                Some(Code::Unimplemented) => ready.learn(Streams::Unproven),
                Some(_) => {}
            }
        }
        let response = grpc_answer(&self.label, response)?;
        let plan = Plan {
            from: Form::Component,
            to: Form::Runtime,
            sender: Sender::Upstream(Arc::clone(&self.label)),
        };
        let mut response =
            response.map(|body| body.wrap(|body| Translate::new(body, plan, 0, None)));
        // The component's own numbers have been checked on the way, and these are new.
        response.extensions_mut().insert(Numbered);
        Ok(response)
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
        let message = framed(&InvokeRequest {
            data,
            metadata: invocation.metadata.clone(),
            operation: invocation.operation.to_string(),
        });
        let request = self.request(INVOKE, &parts, Body::full(message));
        let into = |answer: InvokeResponse| {
            let initial = InitialResponse {
                metadata: answer.metadata,
                content_type: answer.content_type,
            };
            (initial, answer.data)
        };
        self.buffer
            .call(&self.cluster, request, &self.timeouts, into)
            .await
    }

    fn request(
        &self,
        path: &'static str,
        from: &::http::request::Parts,
        body: Body,
    ) -> Request<Body> {
        let mut request = grpc_request(path, from, body);
        request
            .headers_mut()
            .insert(INSTANCE, self.instance.clone());
        request
    }

    fn check_operation(&self, ready: &Ready, operation: &str) -> Result<(), Error> {
        let Some(known) = &ready.operations else {
            return Ok(());
        };
        if known.iter().any(|known| known == operation) {
            return Ok(());
        }
        let message = format!(
            "{} does not support operation {operation}. supported operations: {}",
            self.label,
            known.join(" ")
        );
        Err(Error::new(
            Code::FailedPrecondition,
            "unsupported_operation",
            Side::Client,
            message,
        ))
    }
}
