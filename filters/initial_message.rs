//! Waits for the first message of a gRPC stream before anything behind it hears of the stream.
//!
//! **Why.** A client that opens a call and says nothing holds a slot on both sides, and a service that chooses its work by
//! the first message can do nothing until it has come. So the wait has an end, and whoever needs to know what the message
//! says, such as a tenant's name, is told it in a header and needs no schema.
//!
//! **How.**
//!
//! 1. Chunks of the request are held until the first message is whole. Its size is judged by the length that its head
//!    declares, before any of it is held. At most `max_bytes` and one chunk are held, and those small chunks of which
//!    thousands might come are put together.
//! 2. While more is waited for, what is held is copied out of the buffers that it was read into, each of which may be far larger;
//!    and the sender is paid back for it. It may have filled its window with a message that is larger than the window, and would then wait for the proxy as the proxy waits for it.
//! 3. There is one deadline, which bytes that trickle in do not move. The body is polled first and the clock second; the
//!    clock is looked at again after a frame that settled nothing.
//! 4. If there are fields to read, the message is read where it lies, or decompressed within `max_bytes`.
//! 5. The inner service is called. Its request begins with the chunks that were held, untouched; then the rest of the body
//!    follows.
//!
//! Where fields are read, for `headers` or `required`, a request that is not gRPC is refused: its content type is the client's
//! word, and many a server takes for gRPC whatever comes on the path of a method. Where none are, it passes at once.
//!
//! **What fields mean here.** Without a schema, a field is what stands at its path, and the last one counts. A field that
//! stands there with two wire types is refused, since the service would read only one of them. That two fields belong to
//! one `oneof` is not known here: a client can send both, and the service takes the later one.
//!
//! ```yaml
//! filters:
//!   - initial_message:
//!       timeout: 5s
//!       max_bytes: 64KiB
//!       headers: {x-tenant: "1.2"}
//!       required: ["1.1"]
//! ```

mod fields;

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thalweg_proto::{
    frame::{Event, FrameInspector, Head},
    status::Code,
};
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::{
    Body, Chunk, Error, Side, StreamContext,
    gzip::{InflateError, inflate},
    pieces::Pieces,
    stream::{Booking, Protocol, not_grpc},
    units::{Duration, Size, Unit},
};

pub use fields::{Headers, Required};

/// Waits for the first message of a gRPC stream, and tells fields of it in headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Longest wait for the whole first message, from the request's headers on. Default `5s`: a client that opens a
    /// stream knows what it wants to say. Streams whose client first listens do not go with this filter.
    #[schemars(extend("minimum" = 1))]
    pub timeout: Duration,

    /// Most bytes of the first message, as it comes and also decompressed. Default `64KiB`, ample for a message that
    /// says what is wanted; each waiting stream may hold as much.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_bytes: Size,

    /// Request headers to set from fields of the first message, by the path of field numbers: `{x-tenant: "1.2"}` is
    /// field 2 of the message in field 1. What the client sent under such a name is always removed. Text is taken as it
    /// is, whole numbers in decimal; a field that is absent or empty sets no header. Default: none.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: Headers,

    /// Fields that must be there and not be empty, by path: `["1.1"]`. Others are refused with INVALID_ARGUMENT. Default:
    /// none. A number that is there is not empty, though most languages do not send a zero.
    #[schemars(with = "Vec<String>")]
    pub required: Required,
}

/// The payload of a stream's first message, in the extensions of the request. Kept in one piece, and not compressed.
///
/// It often shares memory with the body's first chunk, so whoever keeps it for long keeps that, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMessage(pub Bytes);

/// Adds [`InitialMessageService`] to a route.
#[derive(Clone, Debug)]
pub struct InitialMessageLayer {
    rules: Rc<Rules>,
}

/// Calls its inner service once the first message is there; see the [module docs](self).
#[derive(Debug)]
pub struct InitialMessageService<S> {
    // The call comes later, from inside the future, when this service may be at its next stream already. A chain cannot be
    // cloned, and all of it stays on one thread, so the futures share it; none holds it for longer than a call takes.
    inner: Rc<RefCell<S>>,
    rules: Rc<Rules>,
}

/// A response in the making, which begins with the wait.
pub type InitialMessageFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>>>>;

#[derive(Clone, Debug)]
struct Rules {
    config: Config,
    /// The message goes into the extensions.
    hand_over: bool,
}

/// What has come of a stream whose first message is not yet whole.
#[derive(Default)]
struct Opening {
    frames: FrameInspector,
    head: Option<Head>,
    /// What came first and has been paid back, and is booked instead.
    waited: Pieces,
    booked: Booking,
    /// None of them is empty.
    chunks: VecDeque<Chunk>,
}

/// The chunks that were held, and then the rest of the body.
struct Rejoined {
    chunks: VecDeque<Chunk>,
    booked: Booking,
    rest: Body,
}

/// The flag and the length that stand before every message.
const HEAD_SIZE: usize = 5;

/// Chunks are put together up to this size. Each costs some hundred bytes beside what is in it, and keeps the buffer alive
/// that it was read into; copying this much costs less.
const SMALL: usize = 256;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const READABLE_ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip");

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            timeout: Duration(5000),
            max_bytes: Size(64 << 10),
            headers: Headers::default(),
            required: Required::default(),
        }
    }
}

impl Config {
    /// Whether the message is not only waited for.
    pub(crate) fn reads(&self) -> bool {
        !self.headers.is_empty() || !self.required.is_empty()
    }
}

// === impl InitialMessageLayer ===

impl InitialMessageLayer {
    /// Waits as `config` says.
    pub fn new(config: &Config) -> Self {
        let config = config.clone();
        Self {
            rules: Rc::new(Rules {
                config,
                hand_over: false,
            }),
        }
    }

    /// Puts the [`InitialMessage`] of each gRPC stream into the extensions of its request, too.
    #[must_use]
    pub fn with_message(mut self) -> Self {
        Rc::make_mut(&mut self.rules).hand_over = true;
        self
    }
}

impl<S> Layer<S> for InitialMessageLayer {
    type Service = InitialMessageService<S>;

    fn layer(&self, inner: S) -> InitialMessageService<S> {
        InitialMessageService {
            inner: Rc::new(RefCell::new(inner)),
            rules: Rc::clone(&self.rules),
        }
    }
}

// === impl InitialMessageService ===

impl<S> Service<Request<Body>> for InitialMessageService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error> + 'static,
    S::Future: 'static,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = InitialMessageFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.borrow_mut().poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> InitialMessageFuture {
        let config = &self.rules.config;
        // From every stream, so that whoever reads them may trust them.
        config.headers.clear(request.headers_mut());
        let context = request.extensions().get::<StreamContext>();
        if context.is_some_and(|context| context.protocol() == Protocol::Http) {
            if config.reads() {
                let error = not_grpc("the filter `initial_message`");
                return Box::pin(std::future::ready(Err(error)));
            }
            return Box::pin(self.inner.borrow_mut().call(request));
        }
        let started_at = context.map_or_else(Instant::now, StreamContext::started_at);
        let deadline = started_at + config.timeout.into();
        let (inner, rules) = (Rc::clone(&self.inner), Rc::clone(&self.rules));
        Box::pin(async move {
            let request = rules.open(request, deadline).await?;
            // Others may have called it since this service was ready.
            poll_fn(|cx| inner.borrow_mut().poll_ready(cx)).await?;
            let answer = inner.borrow_mut().call(request);
            // A stream that lasts need not keep the service or the settings.
            drop((inner, rules));
            answer.await
        })
    }
}

// === impl Rules ===

impl Rules {
    /// The request as it goes on, once its first message is there.
    async fn open(
        &self,
        request: Request<Body>,
        deadline: Instant,
    ) -> Result<Request<Body>, Error> {
        let (mut parts, mut body) = request.into_parts();
        let stream = parts.extensions.get::<StreamContext>();
        let booked = stream.map_or_else(Booking::default, |stream| stream.book(0));
        // It polls the body first and the clock second.
        let waited = timeout_at(deadline, self.first_message(&mut body, booked, deadline)).await;
        let (mut opening, head) = waited.unwrap_or_else(|_| Err(self.late()))?;

        if self.hand_over || self.config.reads() {
            let Config {
                headers, required, ..
            } = &self.config;
            let message = self.plain(opening.payload(head), head, &parts.headers)?;
            required.demand(&message)?;
            headers.set(&message, &mut parts.headers)?;
            if self.hand_over {
                parts.extensions.insert(InitialMessage(message));
            }
        }

        let body = Body::new(Rejoined {
            chunks: mem::take(opening.chunks()),
            booked: opening.booked,
            rest: body,
        });
        Ok(Request::from_parts(parts, body))
    }

    async fn first_message(
        &self,
        body: &mut Body,
        booked: Booking,
        deadline: Instant,
    ) -> Result<(Opening, Head), Error> {
        let mut opening = Opening {
            booked,
            ..Opening::default()
        };
        loop {
            let frame = poll_fn(|cx| {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                if frame.is_pending() {
                    opening.pay_back();
                }
                frame
            })
            .await;
            // Trailers end a body, too.
            let Some(Ok(chunk)) = frame.transpose()?.map(Frame::into_data) else {
                return Err(opening.broken_off());
            };
            if let Some(head) = opening.take(chunk, self.config.max_bytes)? {
                return Ok((opening, head));
            }
            // A body that always has something to say would not let the timer have its turn.
            if Instant::now() >= deadline {
                return Err(self.late());
            }
        }
    }

    /// The message without its compression.
    fn plain(&self, payload: Bytes, head: Head, headers: &HeaderMap) -> Result<Bytes, Error> {
        if !head.compressed {
            return Ok(payload);
        }
        let encoding = headers
            .get(GRPC_ENCODING)
            .map_or(&b"identity"[..], HeaderValue::as_bytes);
        if encoding.eq_ignore_ascii_case(b"identity") {
            return Err(malformed(
                "the first message is compressed, and grpc-encoding does not say how",
            ));
        }
        if !encoding.eq_ignore_ascii_case(b"gzip") {
            return Err(Error::new(
                Code::Unimplemented,
                "unsupported_encoding",
                Side::Client,
                "the filter initial_message reads the first message, and reads no other grpc-encoding than gzip",
            )
            .with_http_status(415)
            .with_header(GRPC_ACCEPT_ENCODING, READABLE_ENCODINGS));
        }
        let most = self.config.max_bytes;
        inflate(&payload, most.usize()).map_err(|error| match error {
            InflateError::TooLarge => too_large("decompressed, the first message has more", most),
            InflateError::Malformed => malformed("the first message is not sound gzip"),
        })
    }

    fn late(&self) -> Error {
        Error::new(
            Code::DeadlineExceeded,
            "initial_message_timeout",
            Side::Client,
            format!(
                "the first message did not come whole within {} (timeout of the filter initial_message)",
                Unit::Duration.show(self.config.timeout.0)
            ),
        )
        .with_http_status(408)
    }
}

// === impl Opening ===

impl Opening {
    /// Holds the next chunk, and tells the head of the first message once that is whole.
    fn take(&mut self, chunk: Chunk, most: Size) -> Result<Option<Head>, Error> {
        let mut whole = false;
        for event in self.frames.inspect(chunk.as_slice()) {
            match event.map_err(|error| malformed(error.to_string()))? {
                Event::Start(head) if u64::from(head.length) > most.0 => {
                    let found = format!("the first message has {} bytes, more", head.length);
                    return Err(too_large(&found, most));
                }
                Event::Start(head) => self.head = Some(head),
                Event::Payload { .. } => {}
                // What follows it is not our business.
                Event::End => {
                    whole = true;
                    break;
                }
            }
        }
        self.hold(chunk);
        Ok(self.head.filter(|_| whole))
    }

    fn hold(&mut self, chunk: Chunk) {
        if chunk.is_empty() {
            return;
        }
        match self.chunks.back_mut() {
            Some(last) if last.len() + chunk.len() <= SMALL => {
                let (bytes, mut credit) = mem::take(last).into_parts();
                let (more, its_credit) = chunk.into_parts();
                credit.absorb(its_credit);
                *last = Chunk::from_parts([bytes, more].concat().into(), credit);
            }
            _ => self.chunks.push_back(chunk),
        }
    }

    /// Copies what is held, and returns its credit; unless the process holds so much that nobody may send more than he has.
    fn pay_back(&mut self) {
        let held = self.chunks.iter().map(Chunk::len).sum();
        if held == 0 || !self.booked.try_grow(held) {
            return;
        }
        for chunk in mem::take(&mut self.chunks) {
            self.waited.push(chunk.as_slice());
        }
    }

    /// All that is held, in its order.
    fn chunks(&mut self) -> &mut VecDeque<Chunk> {
        for piece in self.waited.take().into_iter().rev() {
            self.chunks.push_front(piece.into());
        }
        &mut self.chunks
    }

    /// The payload of the first message, which is whole: copied only if it lies in several chunks.
    fn payload(&mut self, head: Head) -> Bytes {
        let length = head.length as usize;
        let mut copied = Vec::new();
        let mut skipped = HEAD_SIZE;
        for chunk in self.chunks() {
            let start = skipped.min(chunk.len());
            skipped -= start;
            let end = chunk.len().min(start + length - copied.len());
            if end - start == length {
                let (bytes, credit) = mem::take(chunk).into_parts();
                let payload = bytes.slice(start..end);
                *chunk = Chunk::from_parts(bytes, credit);
                return payload;
            }
            if copied.is_empty() {
                copied.reserve_exact(length);
            }
            copied.extend_from_slice(&chunk.as_slice()[start..end]);
        }
        copied.into()
    }

    fn broken_off(&self) -> Error {
        let message = if self.waited.is_empty() && self.chunks.is_empty() {
            "the stream ended without a message"
        } else {
            "the stream ended within its first message"
        };
        Error::new(
            Code::InvalidArgument,
            "no_initial_message",
            Side::Client,
            message,
        )
    }
}

// === impl Rejoined ===

impl http_body::Body for Rejoined {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let Some(chunk) = self.chunks.pop_front() else {
            return Pin::new(&mut self.rest).poll_frame(cx);
        };
        if self.chunks.is_empty() {
            // The stream may last long, and the list was only for its beginning.
            self.chunks = VecDeque::new();
            self.booked = Booking::default();
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(held)) {
            hint.set_upper(upper);
        }
        hint
    }
}

// === errors ===

fn malformed(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(
        Code::InvalidArgument,
        "malformed_message",
        Side::Client,
        message,
    )
}

/// `found` ends in "more".
fn too_large(found: &str, most: Size) -> Error {
    let most = Unit::Size.show(most.0);
    Error::new(
        Code::ResourceExhausted,
        "initial_message_too_large",
        Side::Client,
        format!("{found} than {most} (max_bytes of the filter initial_message)"),
    )
    .with_http_status(413)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time};

    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;
    use crate::{
        body::Ledger,
        chain::{Chain, Filter},
        gzip::tests::deflate,
    };

    type Item = Result<Frame<Chunk>, Error>;

    fn config(settings: Value) -> Config {
        serde_json::from_value(settings).unwrap()
    }

    /// A service that answers with the headers, the extensions and the body that it was given.
    fn echo(layer: &InitialMessageLayer) -> Chain {
        Chain::new(layer.layer(service_fn(async |request: Request<Body>| {
            let (parts, body) = request.into_parts();
            let mut response = Response::new(body);
            *response.headers_mut() = parts.headers;
            *response.extensions_mut() = parts.extensions;
            Ok(response)
        })))
    }

    async fn send(settings: Value, request: Request<Body>) -> Result<Response<Body>, Error> {
        echo(&InitialMessageLayer::new(&config(settings)))
            .call(request)
            .await
    }

    /// What a stream with this body is told when it is refused.
    async fn refusal(settings: Value, body: Body) -> Error {
        send(settings, Request::new(body)).await.unwrap_err()
    }

    fn message(flag: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], payload].concat()
    }

    fn data(bytes: &[u8]) -> Item {
        Ok(Frame::data(Bytes::copy_from_slice(bytes).into()))
    }

    /// These frames, all there at once, and then the end.
    fn ready(frames: Vec<Item>) -> Body {
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    /// These frames, and then silence.
    fn silent_after(frames: Vec<Item>) -> Body {
        Body::new(StreamBody::new(
            stream::iter(frames).chain(stream::pending()),
        ))
    }

    /// A byte a second.
    fn trickle(bytes: Vec<u8>) -> Body {
        Body::new(StreamBody::new(stream::iter(bytes).then(async |byte| {
            tokio::time::sleep(time::Duration::from_secs(1)).await;
            data(&[byte])
        })))
    }

    fn begun(body: Body, protocol: Protocol, ago: u64) -> Request<Body> {
        let mut request = Request::new(body);
        let started_at = Instant::now() - time::Duration::from_secs(ago);
        let context = StreamContext::new(protocol, started_at, None);
        request.extensions_mut().insert(context);
        request
    }

    async fn whole(response: Response<Body>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_is_cut_off() {
        for frames in [vec![], vec![data(&[0, 0])]] {
            let started = Instant::now();

            let error = refusal(json!({}), silent_after(frames)).await;

            assert_eq!(started.elapsed().as_secs(), 5);
            assert_eq!(
                (error.code(), error.reason(), error.http_status()),
                (Code::DeadlineExceeded, "initial_message_timeout", 408)
            );
            assert!(error.message().contains("within 5s (timeout of"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_trickle_does_not_reset_the_clock() {
        let started = Instant::now();

        let error = refusal(
            json!({"timeout": "3500ms"}),
            trickle(message(0, b"a long story")),
        )
        .await;

        assert_eq!(error.reason(), "initial_message_timeout");
        assert_eq!(started.elapsed().as_millis(), 3500);
    }

    #[tokio::test(start_paused = true)]
    async fn chatter_without_a_message_has_its_clock_too() {
        // Always ready, and never a message: the timer alone would not have its turn.
        let empty = stream::iter(0..10_000).then(async |_| {
            tokio::time::advance(time::Duration::from_millis(1)).await;
            data(b"")
        });
        let started = Instant::now();

        let error = refusal(json!({}), Body::new(StreamBody::new(Box::pin(empty)))).await;

        assert_eq!(error.reason(), "initial_message_timeout");
        assert!(started.elapsed().as_millis() < 5100);
        // A frame that settles nothing is the time to look.
        let late = begun(ready(vec![data(&[0]), data(&[0; 4])]), Protocol::Grpc, 5);
        assert_eq!(
            send(json!({}), late).await.unwrap_err().reason(),
            "initial_message_timeout"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn message_already_here_is_never_late() {
        let request = begun(ready(vec![data(&message(0, b"x"))]), Protocol::Grpc, 60);

        assert!(send(json!({}), request).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn clock_runs_from_the_start_of_the_stream() {
        let now = Instant::now();
        let request = begun(silent_after(vec![]), Protocol::Grpc, 2);

        assert!(send(json!({}), request).await.is_err());

        assert_eq!(now.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn longest_timeout_does_not_overflow() {
        let layer = InitialMessageLayer::new(&Config {
            timeout: Duration(u64::MAX),
            ..Config::default()
        });
        let request = Request::new(ready(vec![data(&message(0, b""))]));

        assert!(echo(&layer).call(request).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn declared_length_is_judged_at_once() {
        let started = Instant::now();

        let error = refusal(
            json!({}),
            silent_after(vec![data(&[0, 0xff]), data(&[0xff; 3])]),
        )
        .await;

        assert_eq!(started.elapsed().as_millis(), 0);
        assert_eq!(
            (error.code(), error.reason()),
            (Code::ResourceExhausted, "initial_message_too_large")
        );
        let told = "the first message has 4294967295 bytes, more than 64KiB (max_bytes of";
        assert!(error.message().starts_with(told), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn bound_is_exact() {
        let sized = |size: usize| ready(vec![data(&message(0, &vec![7; size]))]);
        let settings = json!({"max_bytes": 1000});

        assert!(
            send(settings.clone(), Request::new(sized(1000)))
                .await
                .is_ok()
        );

        let error = refusal(settings, sized(1001)).await;
        assert_eq!(error.reason(), "initial_message_too_large");
    }

    #[tokio::test(start_paused = true)]
    async fn half_close_before_a_message_is_told_from_one_within() {
        let trailers = || Ok(Frame::trailers(HeaderMap::new()));
        for (body, told) in [
            (Body::empty(), "ended without a message"),
            (ready(vec![data(b"")]), "ended without a message"),
            (ready(vec![trailers()]), "ended without a message"),
            (ready(vec![data(&[0])]), "ended within its first message"),
            (
                ready(vec![data(&[0, 0, 0, 0, 2, b'x']), trailers()]),
                "ended within its first message",
            ),
        ] {
            let error = refusal(json!({}), body).await;

            assert_eq!(
                (error.code(), error.reason()),
                (Code::InvalidArgument, "no_initial_message")
            );
            assert!(error.message().contains(told), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_is_refused_at_its_first_byte() {
        let error = refusal(json!({}), silent_after(vec![data(b"G")])).await;

        assert_eq!(
            (error.code(), error.reason()),
            (Code::InvalidArgument, "malformed_message")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn error_of_the_client_is_passed_on() {
        let gone = Error::new(Code::Cancelled, "client_cancelled", Side::Client, "gone");

        let error = refusal(json!({}), ready(vec![data(&[0]), Err(gone)])).await;

        assert_eq!(error.reason(), "client_cancelled");
    }

    #[tokio::test(start_paused = true)]
    async fn every_split_arrives_as_it_came() {
        let layer = InitialMessageLayer::new(&Config::default()).with_message();
        let sent = [message(0, b"first"), message(0, b"second"), vec![0, 0]].concat();
        for at in 0..=sent.len() {
            let ledger = Ledger::window(1000);
            let (head, tail) = sent.split_at(at);
            let chunk = |bytes: &[u8]| Ok(Frame::data(ledger.take(Bytes::copy_from_slice(bytes))));
            let body = ready(vec![chunk(head), chunk(tail)]);

            let response = echo(&layer).call(Request::new(body)).await.unwrap();

            let InitialMessage(first) = response.extensions().get().unwrap();
            assert_eq!(first, "first");
            assert_eq!(ledger.held(), sent.len(), "split at {at}");
            assert_eq!(whole(response).await, sent, "split at {at}");
            assert_eq!(ledger.held(), 0, "split at {at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn message_in_single_bytes_arrives_as_it_came() {
        let layer = InitialMessageLayer::new(&Config::default()).with_message();
        let ledger = Ledger::window(10_000);
        let payload: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let sent = [message(0, &payload), message(0, b"second")].concat();
        let frames = (sent.iter())
            .map(|byte| Ok(Frame::data(ledger.take(Bytes::copy_from_slice(&[*byte])))))
            .collect();

        let response = echo(&layer)
            .call(Request::new(ready(frames)))
            .await
            .unwrap();

        let InitialMessage(first) = response.extensions().get().unwrap();
        assert_eq!(*first, payload);
        assert_eq!(whole(response).await, sent);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn what_waits_lets_go_of_the_buffers_it_was_read_into() {
        let buffers = [0; 20].map(|_| Bytes::from(vec![7; 16 * 1024]));
        let ledger = Ledger::window(1 << 20);
        let mut opening = Opening::default();

        for turn in buffers.chunks(4) {
            for buffer in turn {
                opening.hold(ledger.take(buffer.slice(5..5 + 300)));
            }
            opening.pay_back();
        }

        assert!(buffers.iter().all(Bytes::is_unique));
        assert_eq!(ledger.held(), 0);
        let held: usize = opening.chunks().iter().map(Chunk::len).sum();
        assert_eq!(held, 20 * 300);
    }

    #[test]
    fn small_chunks_are_put_together_and_large_ones_are_not_copied() {
        let mut opening = Opening::default();
        let large = Bytes::from(vec![7; SMALL + 1]);
        let most = Size(1 << 20);

        opening
            .take(Bytes::from_static(&[0, 0, 1, 0, 0]).into(), most)
            .unwrap();
        opening.take(large.clone().into(), most).unwrap();
        for _ in 0..10 * SMALL {
            opening.take(Bytes::from_static(b"x").into(), most).unwrap();
        }

        assert_eq!(opening.chunks.len(), 12);
        assert_eq!(opening.chunks[1].as_slice().as_ptr(), large.as_ptr());
    }

    #[tokio::test(start_paused = true)]
    async fn message_in_one_chunk_is_not_copied() {
        let layer = InitialMessageLayer::new(&Config::default()).with_message();
        let sent = Bytes::from([message(0, b"first"), message(0, b"second")].concat());

        let request = Request::new(ready(vec![Ok(Frame::data(sent.clone().into()))]));
        let mut response = echo(&layer).call(request).await.unwrap();

        let InitialMessage(first) = response.extensions().get().unwrap();
        assert_eq!(first.as_ptr(), sent[5..].as_ptr());
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        let chunk = frame.into_data().unwrap();
        assert_eq!(
            (chunk.as_slice().as_ptr(), chunk.len()),
            (sent.as_ptr(), sent.len())
        );
    }

    /// Reads ten bytes at a time, and only while its window is open.
    struct Windowed {
        ledger: Arc<Ledger>,
        left: Bytes,
    }

    impl http_body::Body for Windowed {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
            std::task::ready!(self.ledger.poll_open(cx));
            let next = self.left.len().min(10);
            let bytes = self.left.split_to(next);
            Poll::Ready((next > 0).then(|| Ok(Frame::data(self.ledger.take(bytes)))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn message_larger_than_the_window_is_no_deadlock() {
        let sent = message(0, &[7; 700]);
        let ledger = Ledger::window(100);
        let body = Body::new(Windowed {
            ledger: Arc::clone(&ledger),
            left: sent.clone().into(),
        });

        let response = send(json!({}), Request::new(body)).await.unwrap();

        assert_eq!(whole(response).await, sent);
        assert_eq!(ledger.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_the_message_follows_in_order() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("1"));
        let body = ready(vec![
            data(&message(0, b"x")),
            data(b"more"),
            Ok(Frame::trailers(trailers)),
        ]);
        let mut body = send(json!({}), Request::new(body))
            .await
            .unwrap()
            .into_body();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(body.frame().await.unwrap().unwrap().is_data());
        let last = body.frame().await.unwrap().unwrap();
        assert_eq!(last.trailers_ref().unwrap()["x-end"], "1");
        assert!(body.frame().await.is_none());

        let lost = Error::new(Code::Cancelled, "client_cancelled", Side::Client, "gone");
        let body = ready(vec![data(&message(0, b"x")), Err(lost)]);
        let mut body = send(json!({}), Request::new(body))
            .await
            .unwrap()
            .into_body();
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn end_and_size_stay_truthful() {
        let sent = message(0, b"hello");
        let body = Body::full(sent.clone());

        let mut body = send(json!({}), Request::new(body))
            .await
            .unwrap()
            .into_body();

        assert_eq!(body.size_hint().exact(), Some(10));
        assert!(!body.is_end_stream());
        body.frame().await.unwrap().unwrap();
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());

        let open = silent_after(vec![data(&sent)]);
        let body = send(json!({}), Request::new(open))
            .await
            .unwrap()
            .into_body();
        assert_eq!(
            (body.size_hint().lower(), body.size_hint().upper()),
            (10, None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn empty_message_is_a_message() {
        let layer = InitialMessageLayer::new(&Config::default()).with_message();
        let request = Request::new(silent_after(vec![data(&message(0, b""))]));

        let response = echo(&layer).call(request).await.unwrap();

        let InitialMessage(first) = response.extensions().get().unwrap();
        assert_eq!(first, "");
    }

    #[tokio::test(start_paused = true)]
    async fn message_is_handed_over_only_to_whom_asked() {
        for settings in [json!({}), json!({"headers": {"x": "1"}})] {
            let request = Request::new(ready(vec![data(&message(0, b""))]));

            let response = send(settings, request).await.unwrap();

            assert!(response.extensions().get::<InitialMessage>().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn plain_http_passes_at_once_where_no_field_is_read() {
        let request = || begun(silent_after(vec![]), Protocol::Http, 0);

        assert!(send(json!({}), request()).await.is_ok());

        for reading in [
            json!({"headers": {"x-tenant": "1"}}),
            json!({"required": ["1"]}),
        ] {
            let error = send(reading, request()).await.unwrap_err();
            assert_eq!((error.reason(), error.http_status()), ("not_grpc", 415));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn header_comes_from_the_message_and_never_from_the_client() {
        let settings = json!({"headers": {"X-Tenant": "1.2"}});
        let request = |payload: &[u8]| {
            let mut request = Request::new(ready(vec![data(&message(0, payload))]));
            for spoofed in ["root", "admin"] {
                let headers = request.headers_mut();
                headers.append("x-tenant", HeaderValue::from_static(spoofed));
            }
            request
        };

        let set = request(b"\x0a\x06\x12\x04acme");
        let response = send(settings.clone(), set).await.unwrap();
        let values: Vec<_> = response.headers().get_all("x-tenant").iter().collect();
        assert_eq!(values, ["acme"]);

        let absent = send(settings.clone(), request(b"")).await.unwrap();
        assert!(!absent.headers().contains_key("x-tenant"));

        let error = send(settings, request(b"\x0a\x03\x12\x01\n"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.code(), error.reason()),
            (Code::InvalidArgument, "bad_field")
        );
        assert!(error.message().contains("x-tenant"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn message_without_a_required_field_is_refused() {
        let settings = json!({"required": ["1.1"]});
        let sent = |payload| ready(vec![data(&message(0, payload))]);

        assert!(
            send(settings.clone(), Request::new(sent(b"\x0a\x03\x0a\x01n")))
                .await
                .is_ok()
        );
        let error = refusal(settings, sent(b"\x0a\x00")).await;
        assert_eq!(error.reason(), "missing_field");
    }

    #[tokio::test(start_paused = true)]
    async fn protobuf_is_looked_at_only_where_fields_are_asked_for() {
        let sent = || ready(vec![data(&message(0, b"\xff"))]);

        assert!(send(json!({}), Request::new(sent())).await.is_ok());
        for settings in [json!({"headers": {"x": "1"}}), json!({"required": ["1"]})] {
            let error = refusal(settings, sent()).await;
            assert_eq!(error.reason(), "malformed_message");
        }
    }

    fn compressed(encoding: Option<&'static str>, payload: &[u8]) -> Request<Body> {
        let mut request = Request::new(ready(vec![data(&message(1, payload))]));
        if let Some(encoding) = encoding {
            let value = HeaderValue::from_static(encoding);
            request.headers_mut().insert("grpc-encoding", value);
        }
        request
    }

    #[tokio::test(start_paused = true)]
    async fn gzip_is_read_and_passed_on_as_it_came() {
        let layer = InitialMessageLayer::new(&config(json!({"headers": {"x": "1"}})));
        let gzip = deflate(b"\x0a\x04acme");

        let request = compressed(Some("gzip"), &gzip);
        let response = echo(&layer.with_message()).call(request).await.unwrap();

        let InitialMessage(first) = response.extensions().get().unwrap();
        assert_eq!(first, &b"\x0a\x04acme"[..]);
        assert_eq!(response.headers()["x"], "acme");
        assert_eq!(response.headers()["grpc-encoding"], "gzip");
        assert_eq!(whole(response).await, message(1, &gzip));
    }

    #[tokio::test(start_paused = true)]
    async fn other_encodings_are_refused_where_the_message_is_read() {
        let reading = json!({"required": ["1"]});

        let error = send(reading.clone(), compressed(Some("zstd"), b"?"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Unimplemented, "unsupported_encoding")
        );
        let (name, value) = error.header().unwrap();
        assert_eq!(
            (name.as_str(), value),
            ("grpc-accept-encoding", &READABLE_ENCODINGS)
        );

        for unsaid in [None, Some("identity")] {
            let request = compressed(unsaid, b"?");
            let error = send(reading.clone(), request).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert_eq!(error.reason(), "malformed_message");
            assert!(error.message().contains("does not say how"), "{error}");
        }

        for any in [None, Some("identity"), Some("zstd"), Some("gzip")] {
            assert!(send(json!({}), compressed(any, b"?")).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bomb_is_refused() {
        let reading = json!({"required": ["1"]});
        let bomb = deflate(&vec![0; 8 << 20]);
        assert!(bomb.len() < 64 << 10);

        let error = send(reading.clone(), compressed(Some("gzip"), &bomb))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "initial_message_too_large");
        assert!(error.message().starts_with("decompressed, "), "{error}");

        let error = send(reading, compressed(Some("gzip"), b"?"))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "malformed_message");
    }

    #[tokio::test(start_paused = true)]
    async fn streams_wait_side_by_side() {
        let mut service = echo(&InitialMessageLayer::new(&config(json!({"timeout": "1m"}))));

        let slow = service.call(Request::new(trickle(message(0, b""))));
        let mut slow = tokio_test::task::spawn(slow);
        tokio_test::assert_pending!(slow.poll());
        let quick = Request::new(ready(vec![data(&message(0, b""))]));
        assert!(service.call(quick).await.is_ok());

        assert_eq!(whole(slow.await.unwrap()).await, message(0, b""));
    }

    #[test]
    fn settings_read_as_the_manual_says() {
        let filter = |settings: Value| serde_json::from_value::<Filter>(settings);

        let all = json!({
            "timeout": "5s",
            "max_bytes": "64KiB",
            "headers": {"x-tenant": "1.2"},
            "required": ["1.1"],
        });
        let read = config(all.clone());
        assert_eq!(serde_json::to_value(&read).unwrap(), all);
        assert_eq!(
            filter(json!({"initial_message": all})).unwrap(),
            Filter::InitialMessage(read)
        );
        assert_eq!(
            filter(json!({"initial_message": {}})).unwrap(),
            Filter::InitialMessage(Config::default())
        );
        assert!(filter(json!({"initial_message": {"time_out": "5s"}})).is_err());

        let fault = |settings| serde_json::from_value::<Config>(settings).unwrap_err();
        let told = fault(json!({"required": ["a"]})).to_string();
        assert!(
            told.contains("`a` in `required`: a field path is numbers"),
            "{told}"
        );
        let told = fault(json!({"headers": {"host": "1"}})).to_string();
        assert!(told.contains("`host` belongs to the protocol"), "{told}");
    }

    #[test]
    fn schema_describes_the_settings() {
        let schema = schemars::schema_for!(Config).to_value();
        let properties = &schema["properties"];

        assert_eq!(properties["timeout"]["minimum"], 1);
        assert_eq!(properties["max_bytes"]["maximum"], 16 << 20);
        assert_eq!(
            properties["headers"]["additionalProperties"]["type"],
            "string"
        );
        assert_eq!(properties["required"]["items"]["type"], "string");
        assert_eq!(schema["additionalProperties"], false);
    }
}
