//! Looks after one component for the whole process, on a connection of its own.
//!
//! **Why.** A component is told its settings once, by `Init`, and forgets them when it restarts. Somebody has to notice that, tell it
//! anew before it is used, and say meanwhile that it is not there.
//!
//! **How.** The connection is held open, so that its end is the end of the component's process. On each new one: ask reflection which
//! methods there are, call `Init` and `ListOperations`, and only then let streams through. From then on `Ping` is called every so often.
//! When the connection is lost or `Ping` fails, the component is not ready, and the dialing begins again.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use ::http::{HeaderValue, Method, Request, Uri, Version, header};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use thalweg_filters::{Error, Side, ending::grpc_status, metrics};
use thalweg_proto::{
    bindings::{
        Empty, InitRequest, ListOperationsResponse, Message, Properties, framed,
        reflection::{self, FileDescriptor, ReflectionRequest, ReflectionResponse},
    },
    status::{Code, decode_message},
};
use tokio::time::{sleep, timeout};

use super::INSTANCE;
use crate::{
    config,
    telemetry::{BindingStats, Telemetry},
    upstream::connect::connect,
};

const SERVICE: &str = "dapr.proto.components.v1.OutputBinding";
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The longest wait for a method that should answer at once.
const PROMPT: Duration = Duration::from_secs(5);

/// The longest wait for `Init`, in which components connect to what they stand for.
const INIT: Duration = Duration::from_secs(60);

/// Waits between dials: quick at first, since a component that restarts is back in a moment.
const DIAL_FIRST: Duration = Duration::from_millis(50);
const DIAL_MAX: Duration = Duration::from_secs(1);

/// The largest answer that is taken.
const ANSWER_MAX: usize = 4 << 20;

/// What is known of a component now. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    label: String,
    state: Mutex<State>,
    was_ready: AtomicBool,
    stats: Arc<BindingStats>,
    /// What is counted of its streams, which wants to know its operations.
    streams: Arc<metrics::BindingStats>,
}

#[derive(Debug)]
enum State {
    /// And this is what is in the way.
    Waiting(String),
    Ready(Arc<Ready>),
}

/// A component that can be used.
#[derive(Debug)]
pub(crate) struct Ready {
    /// What it can do; unknown if it does not tell.
    pub(in crate::bindings) operations: Option<Vec<String>>,
    streams: AtomicU8,
}

/// Whether a far side has a streaming method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Streams {
    /// It may have one; the first stream will tell, and is kept for that.
    Unproven,
    /// It says that it has one. So it has, unless it answers UNIMPLEMENTED before it has ever streamed: some list what they do not
    /// serve.
    Listed,
    /// It has streamed.
    Yes,
    No,
}

/// Why a call of the component failed.
struct Refusal {
    code: Code,
    message: String,
}

// === impl Handle ===

impl Handle {
    pub(super) fn new(binding: &str, telemetry: &Telemetry) -> Self {
        Self(Arc::new(Shared {
            label: format!("binding {binding}"),
            state: Mutex::new(State::Waiting("it was not reached yet".into())),
            was_ready: AtomicBool::new(false),
            stats: telemetry.process.binding(binding),
            streams: telemetry.streams.binding(binding),
        }))
    }

    /// Whether the component has been reached since it was found.
    pub(super) fn was_ready(&self) -> bool {
        self.0.was_ready.load(Relaxed)
    }

    /// The component will not be looked after any more.
    pub(super) fn gone(&self, why: &str) {
        self.0.was_ready.store(false, Relaxed);
        let why = State::Waiting(why.into());
        if let State::Ready(_) = std::mem::replace(&mut *self.state(), why) {
            self.0.stats.ready.decrement();
        }
    }

    /// The component, if it can be used.
    pub(in crate::bindings) fn ready(&self) -> Result<Arc<Ready>, Error> {
        match &*self.state() {
            State::Ready(ready) => Ok(Arc::clone(ready)),
            State::Waiting(why) => Err(Error::new(
                Code::Unavailable,
                "component_unavailable",
                Side::Upstream,
                format!("{}: the component is not ready", self.0.label),
            )
            .with_detail(why)),
        }
    }

    /// Looks after the component for as long as it is polled.
    pub(super) async fn supervise(self, settings: config::Component) {
        let mut wait = DIAL_FIRST;
        loop {
            let Err(why) = self.session(&settings).await;
            let was_ready = {
                let mut state = self.state();
                let was_ready = matches!(*state, State::Ready(_));
                if let State::Waiting(before) = &*state
                    && *before != why
                {
                    tracing::info!("{}: waiting: {why}", self.0.label);
                }
                *state = State::Waiting(why.clone());
                was_ready
            };
            if was_ready {
                self.0.stats.ready.decrement();
                tracing::warn!(
                    "{}: the component is not ready any more: {why}",
                    self.0.label
                );
                wait = DIAL_FIRST;
            }
            sleep(wait).await;
            wait = (wait * 2).min(DIAL_MAX);
        }
    }

    /// One connection, from its dialing to its end.
    async fn session(
        &self,
        settings: &config::Component,
    ) -> Result<std::convert::Infallible, String> {
        let address = &settings.cluster.endpoints.listed()[0].address;
        let limit = settings.cluster.connect_timeout;
        let socket = timeout(limit, connect(address))
            .await
            .map_err(|_| format!("cannot connect to {address} within {limit:?}"))?
            .map_err(|error| format!("cannot connect to {address}: {error}"))?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_header_list_size(settings.cluster.http2.max_header_list_size)
            .enable_push(false)
            .handshake(socket);
        let (sender, mut connection) = timeout(limit, handshake)
            .await
            .map_err(|_| format!("no HTTP/2 from {address} within {limit:?}"))?
            .map_err(|error| format!("no HTTP/2 from {address}: {error}"))?;
        let component = Remote {
            sender,
            instance: HeaderValue::from_str(&settings.instance)
                .expect("the configuration takes visible ASCII only"),
        };
        tokio::select! {
            ended = &mut connection => Err(match ended {
                Ok(()) => "the component has closed its connection".into(),
                Err(error) => format!("the connection was lost: {error}"),
            }),
            failed = self.look_after(&component, settings) => failed,
        }
    }

    async fn look_after(
        &self,
        component: &Remote,
        settings: &config::Component,
    ) -> Result<std::convert::Infallible, String> {
        let streams = component.has_streams().await?;
        let init = InitRequest {
            metadata: Some(Properties {
                properties: settings.metadata.clone(),
            }),
        };
        let _: Empty = component
            .call("/dapr.proto.components.v1.OutputBinding/Init", &init, INIT)
            .await
            .map_err(|refusal| format!("Init: {refusal}"))?;
        self.0.stats.inits.increment();
        let listed: Result<ListOperationsResponse, Refusal> = component
            .call(
                "/dapr.proto.components.v1.OutputBinding/ListOperations",
                &Empty {},
                PROMPT,
            )
            .await;
        let operations = match listed {
            Ok(listed) => Some(listed.operations),
            Err(refusal) if refusal.code == Code::Unimplemented => None,
            Err(refusal) => return Err(format!("ListOperations: {refusal}")),
        };
        tracing::info!(
            ?operations,
            ?streams,
            "{}: the component is ready",
            self.0.label
        );
        self.0.streams.know(operations.as_deref());
        *self.state() = State::Ready(Arc::new(Ready {
            operations,
            streams: AtomicU8::new(streams as u8),
        }));
        self.0.stats.ready.increment();
        self.0.was_ready.store(true, Relaxed);
        loop {
            sleep(settings.ping).await;
            let ping: Result<Empty, Refusal> = component
                .call(
                    "/dapr.proto.components.v1.OutputBinding/Ping",
                    &Empty {},
                    PROMPT,
                )
                .await;
            match ping {
                Err(refusal) if refusal.code != Code::Unimplemented => {
                    self.0.stats.ping_failures.increment();
                    return Err(format!("Ping: {refusal}"));
                }
                _ => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Ready ===

impl Ready {
    pub(super) fn streams(&self) -> Streams {
        let all = [
            Streams::Unproven,
            Streams::Listed,
            Streams::Yes,
            Streams::No,
        ];
        all[usize::from(self.streams.load(Relaxed))]
    }

    pub(super) fn learn(&self, streams: Streams) {
        self.streams.store(streams as u8, Relaxed);
    }
}

/// A component at the other end of a connection.
struct Remote {
    sender: SendRequest<Bytes>,
    instance: HeaderValue,
}

// === impl Remote ===

impl Remote {
    /// Whether it has `InvokeStream`, as far as reflection tells. A component without reflection is asked by the first stream.
    async fn has_streams(&self) -> Result<Streams, String> {
        let ask = ReflectionRequest {
            file_containing_symbol: SERVICE.into(),
        };
        for path in REFLECTION {
            let answer: Result<ReflectionResponse, Refusal> = self.call(path, &ask, PROMPT).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(refusal) if refusal.code == Code::Unimplemented => continue,
                Err(refusal) => return Err(format!("reflection: {refusal}")),
            };
            if let Some(error) = answer.error_response {
                return Err(format!(
                    "it does not serve {SERVICE}: {}",
                    error.error_message
                ));
            }
            let files = answer.file_descriptor_response.unwrap_or_default();
            let files = files.file_descriptor_proto.iter();
            let methods = files
                .filter_map(|file| FileDescriptor::decode(file.clone()).ok())
                .find_map(|file| reflection::methods(&file, SERVICE));
            return match methods {
                Some(methods) if methods.iter().any(|method| method == "InvokeStream") => {
                    Ok(Streams::Listed)
                }
                Some(_) => Ok(Streams::No),
                None => Ok(Streams::Unproven),
            };
        }
        Ok(Streams::Unproven)
    }

    async fn call<A: Message + Default>(
        &self,
        path: &'static str,
        message: &impl Message,
        limit: Duration,
    ) -> Result<A, Refusal> {
        timeout(limit, self.call_unbounded(path, message))
            .await
            .unwrap_or_else(|_| {
                Err(Refusal::new(
                    Code::DeadlineExceeded,
                    format!("no answer within {limit:?}"),
                ))
            })
    }

    async fn call_unbounded<A: Message + Default>(
        &self,
        path: &'static str,
        message: &impl Message,
    ) -> Result<A, Refusal> {
        let lost = |error: h2::Error| Refusal::new(Code::Unavailable, error.to_string());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::builder()
            .scheme("http")
            .authority("localhost")
            .path_and_query(path)
            .build()
            .expect("the paths are constants");
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(INSTANCE, self.instance.clone());
        let mut sender = self.sender.clone().ready().await.map_err(lost)?;
        let (response, mut sink) = sender.send_request(request, false).map_err(lost)?;
        // What is sent here fits any window; what does not would be sent as it opens.
        sink.send_data(framed(message), true).map_err(lost)?;
        let (head, mut body) = response.await.map_err(lost)?.into_parts();
        let mut whole = BytesMut::new();
        while let Some(bytes) = body.data().await {
            let bytes = bytes.map_err(lost)?;
            let _ = body.flow_control().release_capacity(bytes.len());
            if whole.len() + bytes.len() > ANSWER_MAX {
                return Err(Refusal::new(
                    Code::ResourceExhausted,
                    "an answer that has no end".into(),
                ));
            }
            whole.extend_from_slice(&bytes);
        }
        let trailers = body.trailers().await.map_err(lost)?.unwrap_or(head.headers);
        match grpc_status(&trailers) {
            Some(Code::Ok) => {}
            Some(code) => {
                let message = trailers
                    .get("grpc-message")
                    .map(|message| decode_message(message.as_bytes()).into_owned());
                return Err(Refusal::new(code, message.unwrap_or_default()));
            }
            None => {
                return Err(Refusal::new(
                    Code::Unknown,
                    format!("no gRPC, but HTTP {}", head.status),
                ));
            }
        }
        let unreadable = || Refusal::new(Code::Internal, "an answer that cannot be read".into());
        if whole.len() < 5 || whole[0] != 0 {
            return Err(unreadable());
        }
        A::decode(whole.freeze().slice(5..)).map_err(|_| unreadable())
    }
}

// === impl Refusal ===

impl Refusal {
    fn new(code: Code, message: String) -> Self {
        Self { code, message }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.name(), self.message)
    }
}
