//! A pluggable component. What a runtime asks of it before and beside its streams it answers by itself; the streams are the test's.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::HeaderMap;
use thalweg_proto::bindings::{
    Empty, InitRequest, ListOperationsResponse, Message,
    reflection::{
        ErrorResponse, FileDescriptor, FileDescriptorResponse, Named, ReflectionResponse, Service,
    },
};
use tokio::sync::mpsc;

use super::{
    binding::{Told, component},
    proxy::TestProxy,
    stream::{Incoming, Outgoing},
    upstream::{Call, Life, Upstream, builder},
    within,
};

pub(crate) const INVOKE: &str = "/dapr.proto.components.v1.OutputBinding/Invoke";
pub(crate) const INVOKE_STREAM: &str = "/dapr.proto.components.v1.OutputBinding/InvokeStream";
const INIT: &str = "/dapr.proto.components.v1.OutputBinding/Init";
const LIST: &str = "/dapr.proto.components.v1.OutputBinding/ListOperations";
const PING: &str = "/dapr.proto.components.v1.OutputBinding/Ping";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// How a component is.
#[derive(Clone)]
pub(crate) struct Traits {
    /// The path of its reflection, if it has one.
    reflection: Option<&'static str>,
    /// The service that reflection knows, and its methods.
    service: &'static str,
    methods: &'static [&'static str],
    operations: Option<&'static [&'static str]>,
    hold_init: bool,
}

/// A running component.
pub(crate) struct Component {
    /// As the configuration wants it.
    pub(crate) address: String,
    streams: mpsc::UnboundedReceiver<Call>,
    inits: mpsc::UnboundedReceiver<(HeaderMap, InitRequest)>,
    held: mpsc::UnboundedReceiver<Call>,
    ill: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    life: Life,
}

// === impl Traits ===

impl Traits {
    /// It streams, and its reflection says so.
    pub(crate) fn streaming() -> Self {
        Self {
            reflection: Some(REFLECTION),
            service: "OutputBinding",
            methods: &["Init", "Invoke", "ListOperations", "Ping", "InvokeStream"],
            operations: Some(&["create", "get"]),
            hold_init: false,
        }
    }

    /// It was built before streams were invented, and its reflection says so.
    pub(crate) fn unary() -> Self {
        Self {
            methods: &["Init", "Invoke", "ListOperations", "Ping"],
            ..Self::streaming()
        }
    }

    /// With the older reflection only.
    pub(crate) fn reflection_alpha(self) -> Self {
        Self {
            reflection: Some(REFLECTION_ALPHA),
            ..self
        }
    }

    /// Without reflection.
    pub(crate) fn no_reflection(self) -> Self {
        Self {
            reflection: None,
            ..self
        }
    }

    /// Without `ListOperations`.
    pub(crate) fn no_operations(self) -> Self {
        Self {
            operations: None,
            ..self
        }
    }

    /// No binding at all, but a component of another kind.
    pub(crate) fn state_store() -> Self {
        Self {
            service: "StateStore",
            ..Self::streaming()
        }
    }

    /// `Init` is the test's to answer.
    pub(crate) fn hold_init(self) -> Self {
        Self {
            hold_init: true,
            ..self
        }
    }

    /// Starts it, on a port of its own.
    pub(crate) async fn start(self) -> Component {
        Component::new(self, Upstream::start().await)
    }

    /// Starts it with settings of HTTP/2.
    pub(crate) async fn start_with(self, builder: &h2::server::Builder) -> Component {
        Component::new(self, Upstream::start_with(builder).await)
    }

    /// Starts it where another was.
    pub(crate) async fn start_at(self, address: &str) -> Component {
        let listener = within("the address is free", async {
            loop {
                match tokio::net::TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        Component::new(self, Upstream::listen(listener, builder()))
    }

    /// Starts it on a socket.
    pub(crate) fn start_on(self, path: &Path) -> Component {
        Component::new(self, Upstream::start_on(path))
    }
}

// === impl Component ===

impl Component {
    /// One that streams.
    pub(crate) async fn start() -> Self {
        Traits::streaming().start().await
    }

    fn new(traits: Traits, mut upstream: Upstream) -> Self {
        let (streams_in, streams) = mpsc::unbounded_channel();
        let (inits_in, inits) = mpsc::unbounded_channel();
        let (held_in, held) = mpsc::unbounded_channel();
        let this = Self {
            address: upstream.address.clone(),
            streams,
            inits,
            held,
            ill: Arc::default(),
            asked: Arc::default(),
            life: upstream.life(),
        };
        let (ill, asked) = (Arc::clone(&this.ill), Arc::clone(&this.asked));
        tokio::spawn(async move {
            while let Some(mut call) = upstream.next().await {
                asked.lock().unwrap().push(call.path().to_owned());
                match call.path() {
                    INVOKE | INVOKE_STREAM => {
                        let _ = streams_in.send(call);
                    }
                    INIT => {
                        let message = call.incoming.message().await.unwrap();
                        let init = InitRequest::decode(message).unwrap();
                        let _ = inits_in.send((call.headers().clone(), init));
                        if traits.hold_init {
                            let _ = held_in.send(call);
                        } else {
                            reply(call, &Empty {}).await;
                        }
                    }
                    LIST if traits.operations.is_some() => {
                        let known = traits.operations.unwrap_or_default();
                        let operations = known.iter().map(|name| (*name).to_owned()).collect();
                        reply(call, &ListOperationsResponse { operations }).await;
                    }
                    PING if ill.load(SeqCst) => refuse(&mut call, "14", "ill"),
                    PING => reply(call, &Empty {}).await,
                    path if Some(path) == traits.reflection => {
                        reply(call, &traits.reflect()).await;
                    }
                    _ => refuse(&mut call, "12", "unknown method"),
                }
            }
        });
        this
    }

    /// The next call of `Invoke` or `InvokeStream`.
    pub(crate) async fn call(&mut self) -> Call {
        within("a call reaches the component", self.streams.recv())
            .await
            .unwrap()
    }

    /// The next stream, whose first message says `create`, opened for an answer.
    pub(crate) async fn stream(&mut self) -> (Call, Outgoing) {
        let mut call = self.call().await;
        assert_eq!(call.path(), INVOKE_STREAM);
        assert!(matches!(call.told().await, Some(Told::Initial(_))));
        let outgoing = call.respond();
        (call, outgoing)
    }

    /// Whether a call of `Invoke` or `InvokeStream` has come already.
    pub(crate) fn has_call(&self) -> bool {
        !self.streams.is_empty()
    }

    /// The next call of `Init`: its headers, and what it says.
    pub(crate) async fn init(&mut self) -> (HeaderMap, InitRequest) {
        within("Init is called", self.inits.recv()).await.unwrap()
    }

    /// The next call of `Init` that waits for an answer.
    pub(crate) async fn held_init(&mut self) -> Call {
        within("Init is called", self.held.recv()).await.unwrap()
    }

    /// From now on, `Ping` fails, or does not.
    pub(crate) fn be_ill(&self, ill: bool) {
        self.ill.store(ill, SeqCst);
    }

    /// The methods that were called so far, without their service.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let method = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        asked.iter().map(method).collect()
    }

    /// As when its process is killed.
    pub(crate) fn kill(self) {
        self.life.end();
    }

    /// Gives every stream to `script`, each on a task of its own.
    pub(crate) fn serve<F, S>(mut self, script: S)
    where
        S: Fn(Call) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(async move {
            while let Some(call) = self.streams.recv().await {
                tokio::spawn(script(call));
            }
        });
    }
}

impl Traits {
    fn reflect(&self) -> ReflectionResponse {
        if self.service != "OutputBinding" {
            return ReflectionResponse {
                file_descriptor_response: None,
                error_response: Some(ErrorResponse {
                    error_code: 5,
                    error_message: "symbol not found".into(),
                }),
            };
        }
        let method = |name: &&str| Named {
            name: (*name).to_owned(),
        };
        let file = FileDescriptor {
            package: "dapr.proto.components.v1".into(),
            service: vec![Service {
                name: self.service.into(),
                method: self.methods.iter().map(method).collect(),
            }],
        };
        ReflectionResponse {
            file_descriptor_response: Some(FileDescriptorResponse {
                file_descriptor_proto: vec![Bytes::from(file.encode_to_vec())],
            }),
            error_response: None,
        }
    }
}

/// Answers with one message and OK.
pub(crate) async fn reply(mut call: Call, message: &impl Message) {
    let mut outgoing = call.respond();
    outgoing.message(&message.encode_to_vec()).await;
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// Answers with a status alone.
pub(crate) fn refuse(call: &mut Call, status: &str, message: &str) {
    call.finish_with(
        200,
        &[
            ("content-type", "application/grpc"),
            ("grpc-status", status),
            ("grpc-message", message),
        ],
    );
}

/// Waits until the component of a binding can be used.
pub(crate) async fn ready(proxy: &TestProxy, binding: &str) {
    let line = format!("thalweg_binding_component_ready{{binding=\"{binding}\"}}");
    proxy.metric_is(&line, 1).await;
}

// === impl Call ===

impl Call {
    /// What the next message to a component says.
    pub(crate) async fn told(&mut self) -> Option<Told> {
        let message = self.incoming.message().await?;
        Some(component(&message))
    }
}

impl Incoming {
    /// All payload that still comes to a component, whose numbers must go on from `next`.
    pub(crate) async fn data(&mut self, mut next: u64) -> Vec<u8> {
        let mut whole = vec![];
        while let Some(message) = self.message().await {
            let Told::Payload(number, data) = component(&message) else {
                panic!("a second initial message");
            };
            assert_eq!(number, next);
            next += 1;
            whole.extend_from_slice(&data);
        }
        whole
    }
}
