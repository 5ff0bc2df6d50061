//! The calls by which clients invoke bindings, and the way from each to the one form that bindings take.
//!
//! | call | |
//! |---|---|
//! | `dapr.proto.runtime.v1.Dapr/InvokeBindingAlpha1` | streaming over gRPC: the first message names the binding |
//! | `dapr.proto.runtime.v1.Dapr/InvokeBinding` | unary over gRPC |
//! | `POST` or `PUT` `/v1.0-alpha1/bindings/{name}/stream` | streaming over HTTP: the body is the payload |
//! | `POST` or `PUT` `/v1.0/bindings/{name}` | unary over HTTP: the body is JSON |
//!
//! All else follows the routes, other methods of the same gRPC service among it. The path alone says what a call is: one that
//! comes with another method or content type is refused. If it followed the routes, it would pass by the binding's filters to a
//! runtime that stands behind one, and such a runtime may well serve it.
//!
//! Web pages of other origins are refused: a browser sends a plain POST anywhere, and this is where one writes and deletes.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll},
};

use ::http::{HeaderValue, Method, Request, Response, header::ALLOW};
use thalweg_filters::{
    Body, Error, Side, StreamContext,
    chain::{Chain, ChainFuture},
    initial_message::{self, InitialMessageLayer},
    stream::{Protocol, not_grpc},
};
use thalweg_proto::status::Code;
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

/// A web page of another origin sends the request. In its extensions, where whoever knows the listener has put it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignPage;

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
    /// Which call of a binding a request is, if it is one; or why it is none, though it goes where they go.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Result<Self, Error>> {
        let grpc = (request.extensions().get::<StreamContext>())
            .is_some_and(|stream| stream.protocol() == Protocol::Grpc);
        let call = match request.uri().path() {
            STREAM => Self::GrpcStream,
            grpc::UNARY => Self::GrpcUnary,
            path => http::call(path)?,
        };
        let refused = match (&call, grpc) {
            (Self::GrpcStream | Self::GrpcUnary, false) => Some(not_grpc("a binding")),
            (Self::HttpStream { .. } | Self::HttpUnary { .. }, true) => Some(grpc_on_http()),
            (Self::HttpStream { .. } | Self::HttpUnary { .. }, false)
                if ![Method::POST, Method::PUT].contains(request.method()) =>
            {
                Some(wrong_method(request.method()))
            }
            _ => None,
        };
        Some(refused.map_or(Ok(call), Err))
    }
}

fn grpc_on_http() -> Error {
    Error::new(
        Code::Unimplemented,
        "not_http",
        Side::Client,
        "on this path a binding is called over plain HTTP, and this is a request of gRPC by its content-type",
    )
    .with_http_status(415)
}

fn wrong_method(method: &Method) -> Error {
    Error::new(
        Code::Unimplemented,
        "wrong_method",
        Side::Client,
        format!("a binding is called by POST or PUT, and not by {method}"),
    )
    .with_http_status(405)
    .with_header(ALLOW, HeaderValue::from_static("POST, PUT"))
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
        let extensions = request.extensions_mut();
        let call = extensions.remove::<Call>();
        if extensions.remove::<ForeignPage>().is_some() {
            return Box::pin(std::future::ready(Err(foreign_origin())));
        }
        match call.expect("the call was recognised before it came here") {
            Call::GrpcStream => match inflate::inflated(request, bindings.largest.bytes) {
                Ok(request) => self.first_message.borrow_mut().call(request),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            },
            Call::GrpcUnary => Box::pin(grpc::unary(bindings, request)),
            Call::HttpStream { name } => Box::pin(http::stream(bindings, name, request)),
            Call::HttpUnary { name } => Box::pin(http::unary(bindings, name, request)),
        }
    }
}

fn foreign_origin() -> Error {
    Error::new(
        Code::PermissionDenied,
        "foreign_origin",
        Side::Client,
        "a web page of another origin may not call bindings, unless allowed_origins of the listener names its origin",
    )
}
