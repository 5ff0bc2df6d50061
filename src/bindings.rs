//! Bindings: named targets that a client invokes with a stream, and that answer with one.
//!
//! **Why.** A client knows a binding by its name and speaks one protocol to all of them. What stands behind a name may be a
//! component in another process, another runtime, a web service, or part of the proxy.
//!
//! **How.**
//! 1. [`api`] recognises the calls that clients make: streaming or unary, over gRPC or over plain HTTP. It reads the [`Invocation`]
//!    from the first message or from the request's head, and turns whatever came into one form: the messages of
//!    `InvokeBindingAlpha1`.
//! 2. [`Bindings`] looks up the name and sends the stream through the filters of that binding.
//! 3. [`handshake`] opens a stream to the target, under the binding's timeout, retries and breaker.
//! 4. A target is one file: [`object_store`], [`echo`], [`component`], [`dapr`], [`http`]. It takes and returns that one form, and [`translate`]
//!    turns it into what the far side speaks, while it passes. [`buffered`] is for far sides that cannot stream.
//! 5. The answer goes back the same way.
//!
//! [`list`] tells operators which bindings there are.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
};

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
};
use thalweg_filters::{
    Body, Error, Side, StreamContext,
    chain::{Chain, ChainFuture, Surroundings},
    metrics::Operation,
    stream::Protocol,
    timeouts::Timeouts,
};
use thalweg_proto::{
    bindings::{
        Form,
        metadata::{Bounds, Excess},
        reader::INITIAL_MAX,
    },
    method::is_grpc_content_type,
    status::Code,
};
use tower::{Service, service_fn};

use crate::{
    config::{self, BindingTarget},
    headers::HOPS,
    telemetry::Telemetry,
    tls::Upstreams,
    upstream::{Cluster, directory::Directories},
};

mod api;
mod buffered;
mod component;
mod dapr;
mod echo;
mod handshake;
mod http;
mod list;
mod object_store;
mod replay;
mod translate;

pub(crate) use api::{Api, Call, ForeignPage};
use api::{STREAM, first_message};
use buffered::Buffer;
pub(crate) use component::Components;
use component::control::Streams;
use handshake::Handshake;
pub(crate) use list::list;
pub(crate) use object_store::{Aborts, Stores};
use translate::{Plan, Sender, Translate};

/// What a client wants of a binding. It travels in the extensions of the request.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    pub(crate) name: String,
    pub(crate) operation: Arc<str>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// It came as one message and is answered with one.
    pub(crate) unary: bool,
}

/// What the workers share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) components: Arc<Components>,
    pub(crate) stores: Arc<Stores>,
}

/// One worker's bindings.
pub(crate) struct Bindings {
    configured: HashMap<String, Rc<Binding>>,
    /// Those that were found by their sockets, built when they are first wanted.
    found: RefCell<HashMap<String, Rc<Binding>>>,
    components: Arc<Components>,
    builder: Builder,
    /// The largest bounds of all, for a call that has not named its binding yet.
    largest: CallBounds,
}

/// A binding, as one worker has built it.
struct Binding {
    /// What it was built from.
    config: Arc<config::Binding>,
    chain: RefCell<Chain>,
}

/// What bindings are built with.
struct Builder {
    telemetry: Arc<Telemetry>,
    /// The clusters of the configuration, which bindings share with the routes.
    clusters: HashMap<String, Rc<Cluster>>,
    directories: Arc<Directories>,
    stores: Arc<Stores>,
    upstreams: Arc<Upstreams>,
    aborts: Rc<Aborts>,
    worker: usize,
}

/// How much of a call is kept whole, each way.
#[derive(Clone, Copy, Debug)]
struct CallBounds {
    /// Bytes of the payload of a unary call.
    bytes: usize,
    /// Entries of metadata.
    metadata: usize,
}

/// Where the streams of a binding end.
enum Target {
    ObjectStore(object_store::ObjectStore),
    Echo,
    Component(component::Component),
    Dapr(dapr::Dapr),
    Http(http::Http),
}

// === impl Bindings ===

impl Bindings {
    /// The bindings of a configuration, and of those before them each that is the same.
    pub(crate) fn new(
        config: &config::Config,
        telemetry: &Arc<Telemetry>,
        clusters: &HashMap<String, Rc<Cluster>>,
        shared: Shared,
        aborts: &Rc<Aborts>,
        worker: usize,
        before: Option<&Self>,
    ) -> Self {
        let Shared {
            upstreams,
            directories,
            components,
            stores,
        } = shared;
        let builder = Builder {
            telemetry: Arc::clone(telemetry),
            clusters: clusters.clone(),
            directories,
            stores,
            upstreams,
            aborts: Rc::clone(aborts),
            worker,
        };
        let configured: HashMap<_, _> = (config.bindings.iter())
            .map(|binding| {
                let known = before.and_then(|before| before.configured.get(&binding.name));
                let built = match known {
                    Some(known) if known.config == *binding => Rc::clone(known),
                    _ => Rc::new(builder.build(binding, &components)),
                };
                (binding.name.clone(), built)
            })
            .collect();
        // Each is held against what is found under its name when it is wanted.
        let mut found = before.map_or_else(HashMap::new, |before| before.found.borrow().clone());
        found.retain(|name, _| !configured.contains_key(name));
        Self {
            configured,
            found: RefCell::new(found),
            components,
            builder,
            largest: CallBounds::largest(&config.bindings),
        }
    }

    /// Whether there is any; without one, calls of bindings follow the routes.
    pub(crate) fn serve(&self) -> bool {
        self.components.may_appear() || !self.configured.is_empty()
    }

    /// Sends a stream in the one form to the binding that it names.
    fn invoke(
        &self,
        invocation: Invocation,
        mut request: Request<Body>,
    ) -> Result<ChainFuture, Error> {
        let binding = self.find(&invocation.name)?;
        if invocation.operation.is_empty() {
            return Err(bad_request("operation is required"));
        }
        if invocation.operation.len() > OPERATION_MAX {
            let message = format!("an operation's name has at most {OPERATION_MAX} bytes");
            return Err(bad_request(message));
        }
        let most = binding.config.max_metadata;
        if invocation.metadata.len() > most {
            let label = format!("binding {}", invocation.name);
            return Err(excess(&label, Excess::Entries, most, Side::Client));
        }
        let extensions = request.extensions_mut();
        extensions.insert(Operation(Arc::clone(&invocation.operation)));
        extensions.insert(Arc::new(invocation));
        Ok(binding.chain.borrow_mut().call(request))
    }

    /// Sends plain bytes to a binding, in the one form.
    fn invoke_raw(
        &self,
        invocation: Invocation,
        parts: &Parts,
        body: Body,
    ) -> Result<ChainFuture, Error> {
        let plan = Plan {
            from: Form::Raw,
            to: Form::Runtime,
            sender: Sender::Client,
        };
        let first = first_message(&invocation);
        let body = Translate::new(body, plan, 0, Some(first)).without_initial();
        let mut request = grpc_request(STREAM, parts, body.into_body());
        pass_token(&parts.headers, request.headers_mut());
        let extensions = request.extensions_mut();
        if let Some(stream) = extensions.remove::<StreamContext>() {
            extensions.insert(stream.speaking(Protocol::Grpc));
        }
        self.invoke(invocation, request)
    }

    /// How much a call of this binding may carry each way.
    fn bounds(&self, name: &str) -> Result<CallBounds, Error> {
        Ok(CallBounds::of(&self.find(name)?.config))
    }

    fn find(&self, name: &str) -> Result<Rc<Binding>, Error> {
        if name.is_empty() {
            return Err(bad_request("binding name is required"));
        }
        if let Some(known) = self.configured.get(name) {
            return Ok(Rc::clone(known));
        }
        let mut found = self.found.borrow_mut();
        let Some(config) = self.components.found(name) else {
            found.remove(name);
            return Err(Error::new(
                Code::NotFound,
                "no_binding",
                Side::Client,
                format!("couldn't find output binding {name:.100}"),
            ));
        };
        if let Some(known) = found.get(name)
            && known.config == config
        {
            return Ok(Rc::clone(known));
        }
        let built = Rc::new(self.builder.build(&config, &self.components));
        found.insert(name.to_owned(), Rc::clone(&built));
        Ok(built)
    }
}

impl Builder {
    fn build(&self, config: &Arc<config::Binding>, components: &Arc<Components>) -> Binding {
        let process = &self.telemetry.process;
        let own_cluster = |cluster: &Arc<config::Cluster>| {
            let tls = self.upstreams.of(&cluster.name);
            Rc::new(Cluster::new(self.directories.of(cluster), tls))
        };
        let label: Arc<str> = format!("binding {}", config.name).into();
        let buffer = Buffer {
            label: Arc::clone(&label),
            bounds: CallBounds::of(config),
            stats: process.binding(&config.name),
        };
        // A component says itself what it can do, as soon as it has been reached.
        let streams = self.telemetry.streams.binding(&config.name);
        let target = match &config.target {
            BindingTarget::ObjectStore(settings) => {
                streams.know(Some(&object_store::OPERATIONS));
                Target::ObjectStore(object_store::ObjectStore::new(
                    config,
                    settings,
                    &self.stores,
                    Rc::clone(&self.aborts),
                    process.binding(&config.name),
                ))
            }
            BindingTarget::Echo => {
                streams.know(Some(&echo::OPERATIONS));
                Target::Echo
            }
            BindingTarget::Component(component) => Target::Component(component::Component::new(
                config,
                component,
                own_cluster(&component.cluster),
                components.handle(&config.name),
                buffer,
            )),
            BindingTarget::Dapr { cluster } => {
                let shared = self.clusters.get(&cluster.name);
                let shared = shared.expect("the configuration resolved the names of clusters");
                streams.know(None::<&[&str]>);
                Target::Dapr(dapr::Dapr::new(config, Rc::clone(shared), buffer))
            }
            BindingTarget::Http(target) => {
                streams.know(Some(&http::OPERATIONS));
                Target::Http(http::Http::new(
                    config,
                    target,
                    own_cluster(&target.cluster),
                ))
            }
        };
        let route = format!("binding/{}", config.name);
        let surroundings = Surroundings {
            route: &route,
            target: &label,
            binding: Some(&config.name),
            worker: self.worker,
            metrics: &self.telemetry.streams,
            breakers: &self.telemetry.breakers,
        };
        let handshake = Rc::new(Handshake::new(config, target, &self.telemetry));
        let end = service_fn(move |request| Handshake::call(Rc::clone(&handshake), request));
        let end = Timeouts::new(end, config.timeouts.phases);
        Binding {
            chain: RefCell::new(Chain::build(&config.filters, surroundings, end)),
            config: Arc::clone(config),
        }
    }
}

// === impl CallBounds ===

impl CallBounds {
    fn of(binding: &config::Binding) -> Self {
        Self {
            bytes: binding.buffer_max_bytes,
            metadata: binding.max_metadata,
        }
    }

    /// The largest of all. Those that are found by their sockets have the defaults.
    fn largest(bindings: &[Arc<config::Binding>]) -> Self {
        let default = Self {
            bytes: config::Binding::BUFFER_MAX_BYTES,
            metadata: config::Binding::MAX_METADATA,
        };
        bindings.iter().fold(default, |largest, binding| Self {
            bytes: largest.bytes.max(binding.buffer_max_bytes),
            metadata: largest.metadata.max(binding.max_metadata),
        })
    }

    /// The bounds of metadata of which nothing has come yet.
    fn for_metadata(self) -> Bounds {
        Bounds {
            entries: self.metadata,
            bytes: METADATA_BYTES,
        }
    }
}

// === what the files below share ===

/// Headers that tell to which trace a stream belongs, and how far it has come.
const TRACE: [HeaderName; 4] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HOPS,
];

/// Most bytes of all metadata of a call. With its name and operation they make an initial message, which has a bound of its own.
const METADATA_BYTES: usize = INITIAL_MAX - 4096;

/// Most bytes of an operation's name.
const OPERATION_MAX: usize = 256;

/// Refuses metadata that exceed the bounds of their binding.
fn excess(label: &str, excess: Excess, most: usize, side: Side) -> Error {
    let message = match excess {
        Excess::Entries => {
            format!("{label}: there are more than {most} metadata (buffer.max_metadata)")
        }
        Excess::Bytes => format!("{label}: the metadata have more than {METADATA_BYTES} bytes"),
        Excess::Malformed(error) => {
            let code = match side {
                Side::Client => Code::InvalidArgument,
                _ => Code::Internal,
            };
            let message = format!("{label}: the metadata cannot be read: {error}");
            return Error::new(code, "malformed_message", side, message);
        }
    };
    Error::new(Code::ResourceExhausted, "too_much_metadata", side, message)
        .with_http_status(if side == Side::Client { 431 } else { 502 })
}

fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::InvalidArgument, "bad_request", Side::Client, message)
}

/// A response in the one form, to be followed by messages.
fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// A request of a gRPC method of an upstream, with those headers of the client's that concern its trace.
fn grpc_request(path: &'static str, from: &Parts, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = ::http::Method::POST;
    *request.version_mut() = Version::HTTP_2;
    // As gRPC libraries say it over sockets: there are servers that refuse a call without a host.
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .expect("the paths are constants");
    *request.extensions_mut() = from.extensions.clone();
    let headers = request.headers_mut();
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    for name in TRACE {
        if let Some(value) = from.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    request
}

/// What a client proves itself with to another runtime; no business of a component.
fn pass_token(from: &HeaderMap, to: &mut HeaderMap) {
    const TOKEN: HeaderName = HeaderName::from_static("dapr-api-token");

    if let Some(token) = from.get(&TOKEN) {
        to.insert(TOKEN, token.clone());
    }
}

/// The answer, if it is one of gRPC. What a load balancer says that has nobody behind it is no stream, but a failure.
fn grpc_answer(label: &str, response: Response<Body>) -> Result<Response<Body>, Error> {
    let (status, headers) = (response.status(), response.headers());
    let content_type = headers.get(header::CONTENT_TYPE);
    let speaks_grpc = content_type.is_none_or(|value| is_grpc_content_type(value.as_bytes()));
    let has_status = thalweg_filters::ending::grpc_status(headers).is_some();
    if has_status || status == StatusCode::OK && speaks_grpc {
        return Ok(response);
    }
    Err(Error::new(
        Code::from_http(status.as_u16()),
        "upstream_not_grpc",
        Side::Upstream,
        format!("{label}: the upstream answered HTTP {status} and no gRPC"),
    ))
}

/// The failure that an upstream has put into headers or trailers; `None` for success. A stream without a status has none to show.
fn failure(label: &str, headers: &HeaderMap) -> Option<Error> {
    let code = thalweg_filters::ending::grpc_status(headers)?;
    if code == Code::Ok {
        return None;
    }
    let message = headers.get("grpc-message").map_or_else(
        || code.name().to_owned(),
        |message| thalweg_proto::status::decode_message(message.as_bytes()).into_owned(),
    );
    let message = format!("error invoking output {label}: {message}");
    Some(Error::new(
        code,
        "invoke_output_binding",
        Side::Upstream,
        message,
    ))
}

/// The trailers of a stream that went well.
fn ok_status() -> HeaderMap {
    let ok = HeaderValue::from_static(Code::Ok.as_str());
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), ok)])
}

/// A gRPC stream that ends without a status was cut.
fn no_status(label: &str) -> Error {
    Error::new(
        Code::Internal,
        "upstream_no_status",
        Side::Upstream,
        format!("{label}: the answer ended without a status"),
    )
}

// === impl Target ===

impl Target {
    async fn open(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        match self {
            Self::ObjectStore(store) => store.open(invocation, request).await,
            Self::Echo => Ok(echo::open(invocation, request)),
            Self::Component(component) => component.open(invocation, request).await,
            Self::Dapr(dapr) => dapr.open(invocation, request).await,
            Self::Http(http) => http.open(invocation, request).await,
        }
    }

    /// Whether a stream might find that the target knows no streams.
    fn is_unproven(&self) -> bool {
        match self {
            Self::Component(component) => component.is_unproven(),
            Self::Dapr(dapr) => dapr.is_unproven(),
            Self::ObjectStore(_) | Self::Echo | Self::Http(_) => false,
        }
    }

    fn learn(&self, streams: Streams) {
        match self {
            Self::Component(component) => component.learn(streams),
            Self::Dapr(dapr) => dapr.learn(streams),
            Self::ObjectStore(_) | Self::Echo | Self::Http(_) => {}
        }
    }
}
