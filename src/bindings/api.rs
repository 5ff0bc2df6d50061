//! The calls by which clients invoke bindings, and the way from each to the one form that bindings take.
//!
//! | call | |
//! |---|---|
//! | `dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1` | streaming over gRPC: the first message names the binding |
//! | `dapr.proto.runtime.v1.Dapr/InvokeBinding` | unary over gRPC |
//! | `POST` or `PUT` `/v1.0-alpha1/bindings/{name}/stream` | streaming over HTTP: the body is the payload |
//! | `POST` or `PUT` `/v1.0/bindings/{name}` | unary over HTTP: the body is JSON |
//!
//! All else follows the routes, other methods of the same gRPC service among it.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
};

use ::http::{Method, Request, Response};
use thalweg_filters::{
    Body, Error, StreamContext,
    chain::{Chain, ChainFuture},
    initial_message::{self, InitialMessageLayer},
    stream::Protocol,
};
use tower::{Layer, Service, service_fn};

use super::Bindings;

mod grpc;
mod http;
mod inflate;

pub(super) use grpc::{STREAM, first_message};

/// A call of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    GrpcStream,
    GrpcUnary,
    HttpStream { name: String },
    HttpUnary { name: String },
}

/// Takes the calls of bindings. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    bindings: Rc<Bindings>,
    /// Reads the first message of a streaming gRPC call, and goes on from there.
    first_message: Rc<RefCell<Chain>>,
}

// === impl Api ===

impl Api {
    /// `None` if there are no bindings and none may appear; then their calls follow the routes as all else does.
    pub(crate) fn new(bindings: Rc<Bindings>, front: &initial_message::Config) -> Option<Self> {
        if !bindings.serve() {
            return None;
        }
        let shared = Rc::clone(&bindings);
        let named = service_fn(move |request| grpc::named(Rc::clone(&shared), request));
        let first_message = InitialMessageLayer::new(front).with_message().layer(named);
        Some(Self {
            bindings,
            first_message: Rc::new(RefCell::new(Chain::new(first_message))),
        })
    }
}

// === impl Call ===

impl Call {
    /// Which call of a binding a request is, if it is one.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        let grpc = (request.extensions().get::<StreamContext>())
            .is_some_and(|stream| stream.protocol() == Protocol::Grpc);
        match request.uri().path() {
            STREAM if grpc => Some(Self::GrpcStream),
            grpc::UNARY if grpc => Some(Self::GrpcUnary),
            path if !grpc && [Method::POST, Method::PUT].contains(request.method()) => {
                http::call(path)
            }
            _ => None,
        }
    }
}

/// The call is found in the extensions, where whoever recognised it has put it.
impl Service<Request<Body>> for Api {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ChainFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> ChainFuture {
        let bindings = Rc::clone(&self.bindings);
        let call = request.extensions_mut().remove::<Call>();
        match call.expect("the call was recognised before it came here") {
            Call::GrpcStream => match inflate::inflated(request, bindings.largest_buffer()) {
                Ok(request) => self.first_message.borrow_mut().call(request),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            },
            Call::GrpcUnary => Box::pin(grpc::unary(bindings, request)),
            Call::HttpStream { name } => Box::pin(http::stream(bindings, name, request)),
            Call::HttpUnary { name } => Box::pin(http::unary(bindings, name, request)),
        }
    }
}
