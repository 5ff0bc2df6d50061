//! Refuses streams whose messages are not numbered 0, 1, 2 and so on.
//!
//! **Why.** Who sends a file in numbered messages wants to know when one was lost, sent twice or put in another's place.
//! A backend that finds out has already stored half of it, and one that does not has stored rubbish.
//!
//! **How.** Both bodies are watched where they pass. Nothing is collected, and no chunk is split or held back:
//!
//! 1. Each chunk is looked at while it is in hand: where messages begin and end, and in them the few fields that matter.
//! 2. If all is sound so far, the chunk goes on as it came. A message is judged when its last byte is seen, and the chunk
//!    with that byte has then not been passed on. So no complete bad message ever reaches the other side.
//! 3. Otherwise the chunk is dropped and the stream ends: a fault of the client's with INVALID_ARGUMENT, one of the
//!    upstream's with INTERNAL. A stream that ends within a message is such a fault, and not a clean end.
//!
//! What protobuf allows is allowed: fields in any order, fields nobody knows, a number that is absent and therefore 0.
//! A message that has the payload or the initial field more than once, or both, or neither, is refused, since decoders
//! disagree about it. A stream without any message passes: what to make of it is the upstream's affair. So does an answer that
//! is not gRPC, or one that the proxy has numbered itself. Messages must not be compressed.
//!
//! A request that is not gRPC is refused. Its content type is the client's word, and many a server takes for gRPC whatever comes
//! on the path of a method; so a route that carries plain HTTP as well has another list of filters for it.
//!
//! **Memory.** A few hundred bytes for each direction of a stream, whatever the length of its messages.
//!
//! **Order.** Within whatever decompresses, and without whatever translates messages.
//!
//! ```yaml
//! filters:
//!   - sequence        # streaming bindings as Dapr numbers them, in both directions
//! ```
//!
//! ```yaml
//! filters:
//!   - sequence:
//!       request: {number: "2.2", payload: "2", initial: "1", first: 0}
//!       response: none
//! ```

mod judge;
mod settings;

use std::{
    fmt,
    future::{Future, Ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::Either;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use thalweg_proto::{method::is_grpc_content_type, status::Code};
use tower::{Layer, Service};

use crate::{
    Body, Chunk, Error, Side, StreamContext,
    ending::grpc_status,
    stream::{Protocol, not_grpc},
};

pub use settings::{Config, Fields};

use judge::{Begin, Fault, Judge, Kind, Rules};

/// Adds [`Sequence`] to a route.
#[derive(Clone, Debug)]
pub struct SequenceLayer {
    checks: Checks,
}

/// Lets only messages in sequence pass; see the [module docs](self).
#[derive(Clone, Debug)]
pub struct Sequence<S> {
    inner: S,
    checks: Checks,
}

/// In the extensions of a response: the proxy has numbered its messages itself, one after another. There is nothing to check
/// in them then.
#[derive(Clone, Copy, Debug)]
pub struct Numbered;

pin_project! {
    /// Waits for the response's head, to watch its body.
    #[derive(Debug)]
    pub struct SequenceFuture<F> {
        #[pin]
        inner: F,
        check: Option<Check>,
    }
}

/// What is checked on a route.
#[derive(Clone, Debug)]
struct Checks {
    request: Option<Check>,
    response: Option<Check>,
}

/// What is checked in one direction.
#[derive(Clone, Debug)]
struct Check {
    sender: Sender,
    rules: Arc<Rules>,
}

/// Whose messages are checked, and so whose fault it is.
#[derive(Clone, Debug)]
enum Sender {
    Client,
    /// The upstream of the route of this name.
    Upstream(Arc<str>),
}

/// Passes on what is in sequence.
struct CheckedBody {
    inner: Body,
    sender: Sender,
    judge: Judge,
    /// Why nothing more passes.
    refused: Option<Error>,
}

// === impl SequenceLayer ===

impl SequenceLayer {
    /// Checks what `config` says; `route` is what messages call the route.
    pub fn new(config: &Config, route: &str) -> Self {
        let request = config.request.as_ref().map(|fields| Check {
            sender: Sender::Client,
            rules: Rules::new(fields, Begin::WithInitial),
        });
        let response = config.response.as_ref().map(|fields| Check {
            sender: Sender::Upstream(route.into()),
            rules: Rules::new(fields, Begin::Either),
        });
        Self {
            checks: Checks { request, response },
        }
    }
}

impl<S> Layer<S> for SequenceLayer {
    type Service = Sequence<S>;

    fn layer(&self, inner: S) -> Sequence<S> {
        Sequence {
            inner,
            checks: self.checks.clone(),
        }
    }
}

// === impl Sequence ===

impl<S> Service<Request<Body>> for Sequence<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = Either<Ready<Result<Response<Body>, Error>>, SequenceFuture<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let context = request.extensions().get::<StreamContext>();
        if context.is_none_or(|context| context.protocol() != Protocol::Grpc) {
            let error = not_grpc("the filter `sequence`");
            return Either::Left(std::future::ready(Err(error)));
        }
        let request = match &self.checks.request {
            Some(check) => request.map(|body| check.watch(body)),
            None => request,
        };
        Either::Right(SequenceFuture {
            inner: self.inner.call(request),
            check: self.checks.response.clone(),
        })
    }
}

// === impl SequenceFuture ===

impl<F> Future for SequenceFuture<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(match this.check {
            Some(check) if is_grpc(&response) && !is_numbered(&response) => {
                response.map(|body| check.watch(body))
            }
            _ => response,
        }))
    }
}

/// Whether a client may find messages in the answer; an HTTP error of the upstream has none.
fn is_grpc(response: &Response<Body>) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE);
    response.status() == StatusCode::OK
        && content_type.is_none_or(|value| is_grpc_content_type(value.as_bytes()))
}

fn is_numbered(response: &Response<Body>) -> bool {
    response.extensions().get::<Numbered>().is_some()
}

// === impl Check ===

impl Check {
    fn watch(&self, body: Body) -> Body {
        body.wrap(|inner| CheckedBody {
            inner,
            sender: self.sender.clone(),
            judge: Judge::new(Arc::clone(&self.rules)),
            refused: None,
        })
    }
}

// === impl CheckedBody ===

impl CheckedBody {
    /// Judges what has come, or that nothing more comes.
    fn judge(&mut self, frame: Option<&Result<Frame<Chunk>, Error>>) -> Result<(), Fault> {
        match frame {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(chunk), _) => {
                    self.judge.inspect(chunk.as_slice())?;
                    // Whoever sees that this was the last chunk need not ask for another. Between messages the stream may
                    // end in any case, and to know whether it has costs a lock.
                    if !self.judge.is_at_boundary() && self.inner.is_end_stream() {
                        self.judge.finish()?;
                    }
                    Ok(())
                }
                // A status that tells of a failure may come at any time. A request has none.
                (_, Some(trailers))
                    if matches!(self.sender, Sender::Upstream(_))
                        && grpc_status(trailers).is_some_and(|code| code != Code::Ok) =>
                {
                    Ok(())
                }
                _ => self.judge.finish(),
            },
            Some(Err(_)) => Ok(()),
            None => self.judge.finish(),
        }
    }
}

impl http_body::Body for CheckedBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        if let Some(error) = &self.refused {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let Err(fault) = self.judge(frame.as_ref()) else {
            return Poll::Ready(frame);
        };
        let error = self.sender.error(fault);
        self.refused = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        // An end within a message has still to be told as an error.
        self.inner.is_end_stream() && self.judge.is_at_boundary() && self.refused.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Sender ===

impl Sender {
    fn error(&self, Fault { message, kind }: Fault) -> Error {
        let text = match kind {
            Kind::Truncated => format!("{self} ended within a message"),
            kind => format!("message {message} of {self} {kind}"),
        };
        let reason = match kind {
            Kind::BadNumber { .. } => "bad_sequence",
            Kind::Compressed => "compressed_message",
            _ => "malformed_message",
        };
        let (code, side) = match (self, kind) {
            (Self::Client, Kind::Compressed) => (Code::Unimplemented, Side::Client),
            (Self::Client, _) => (Code::InvalidArgument, Side::Client),
            (Self::Upstream(_), _) => (Code::Internal, Side::Upstream),
        };
        Error::new(code, reason, side, text)
    }
}

/// What it sends.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("the request"),
            Self::Upstream(route) => write!(f, "the upstream's answer on route `{route}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use http::HeaderMap;
    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;
    use crate::body::Ledger;
    use judge::tests::{initial, payload};

    /// Frames in a row, then the end, which shows with the last frame if `ends_early`.
    struct Script {
        frames: VecDeque<Result<Frame<Chunk>, Error>>,
        ends_early: bool,
    }

    impl http_body::Body for Script {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            Poll::Ready(self.frames.pop_front())
        }

        fn is_end_stream(&self) -> bool {
            self.ends_early && self.frames.is_empty()
        }
    }

    type Frames = Vec<Result<Frame<Chunk>, Error>>;

    fn body(frames: Frames) -> Body {
        Body::new(Script {
            frames: frames.into(),
            ends_early: false,
        })
    }

    fn data(parts: &[&[u8]]) -> Result<Frame<Chunk>, Error> {
        Ok(Frame::data(Chunk::from(Bytes::from(parts.concat()))))
    }

    fn trailers(status: &'static str) -> Result<Frame<Chunk>, Error> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
        Ok(Frame::trailers(trailers))
    }

    /// The sizes of the chunks that pass, and how it ends.
    async fn read(mut body: Body) -> (Vec<usize>, Result<Option<Code>, Error>) {
        let mut sizes = Vec::new();
        loop {
            match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => return (sizes, Ok(None)),
                Some(Err(error)) => return (sizes, Err(error)),
                Some(Ok(frame)) => match frame.data_ref() {
                    Some(chunk) => sizes.push(chunk.len()),
                    None => return (sizes, Ok(grpc_status(frame.trailers_ref().unwrap()))),
                },
            }
        }
    }

    fn request(protocol: Protocol, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        let context = StreamContext::new(protocol, Instant::now(), None);
        request.extensions_mut().insert(context);
        request
    }

    fn layer() -> SequenceLayer {
        SequenceLayer::new(&Config::default(), "files")
    }

    /// What the upstream gets of a request.
    async fn upload_as(
        protocol: Protocol,
        sent: Body,
    ) -> (Vec<usize>, Result<Option<Code>, Error>) {
        let arrived = Arc::new(std::sync::Mutex::new(None));
        let mut service = layer().layer(service_fn(|request: Request<Body>| {
            let arrived = Arc::clone(&arrived);
            async move {
                let read = read(request.into_body()).await;
                *arrived.lock().unwrap() = Some(read);
                Ok(Response::new(Body::empty()))
            }
        }));
        service.call(request(protocol, sent)).await.unwrap();
        let arrived = arrived.lock().unwrap().take();
        arrived.unwrap()
    }

    async fn upload(frames: Frames) -> (Vec<usize>, Result<Option<Code>, Error>) {
        upload_as(Protocol::Grpc, body(frames)).await
    }

    /// What the client gets of an answer.
    async fn download(answer: Response<Body>) -> (Vec<usize>, Result<Option<Code>, Error>) {
        let mut answer = Some(answer);
        let mut service = layer().layer(service_fn(move |_| {
            let answer = answer.take().unwrap();
            async move { Ok(answer) }
        }));
        let response = service.call(request(Protocol::Grpc, Body::empty())).await;
        read(response.unwrap().into_body()).await
    }

    #[track_caller]
    fn assert_error(error: &Error, code: Code, reason: &str, side: Side, message: &str) {
        assert_eq!(
            (error.code(), error.reason(), error.side(), error.message()),
            (code, reason, side, message)
        );
    }

    // === requests ===

    #[tokio::test]
    async fn chunks_pass_as_they_came_with_their_credit() {
        let ledger = Ledger::window(1 << 20);
        let stream = [initial(), payload(0), payload(1)].concat();
        let frames = stream.chunks(7).map(|chunk| {
            let chunk = ledger.take(Bytes::copy_from_slice(chunk));
            Ok(Frame::data(chunk))
        });
        let sent: Frames = frames.collect();
        let sizes: Vec<usize> = stream.chunks(7).map(<[u8]>::len).collect();
        assert_eq!(ledger.held(), stream.len());

        let (passed, outcome) = upload(sent).await;

        assert_eq!((passed, outcome.unwrap()), (sizes, None));
        assert_eq!(ledger.held(), 0);
    }

    #[tokio::test]
    async fn gap_is_told_with_both_numbers() {
        let stream = vec![
            data(&[&initial()]),
            data(&[&payload(0)]),
            data(&[&payload(2)]),
        ];

        let (passed, outcome) = upload(stream).await;

        assert_eq!(passed, [initial().len(), payload(0).len()]);
        assert_error(
            &outcome.unwrap_err(),
            Code::InvalidArgument,
            "bad_sequence",
            Side::Client,
            "message 3 of the request has a bad sequence number: got 2, expected 1",
        );
    }

    #[tokio::test]
    async fn nothing_passes_of_a_chunk_in_which_a_bad_message_ends() {
        let (good, bad) = (payload(0), payload(0));
        let (head, tail) = bad.split_at(bad.len() - 1);

        let (passed, outcome) = upload(vec![data(&[&initial()]), data(&[&good, &bad])]).await;
        assert_eq!(passed, [initial().len()]);
        assert_eq!(outcome.unwrap_err().reason(), "bad_sequence");

        let (passed, outcome) = upload(vec![data(&[&initial(), &good, head]), data(&[tail])]).await;
        assert_eq!(passed, [initial().len() + good.len() + head.len()]);
        assert_eq!(outcome.unwrap_err().reason(), "bad_sequence");
    }

    #[tokio::test]
    async fn refused_chunk_gives_its_credit_back() {
        let ledger = Ledger::window(1 << 20);
        let chunk = ledger.take(payload(0).into());

        let (_, outcome) = upload(vec![Ok(Frame::data(chunk))]).await;

        assert_error(
            &outcome.unwrap_err(),
            Code::InvalidArgument,
            "malformed_message",
            Side::Client,
            "message 1 of the request has no field 1: the first message must be the initial one",
        );
        assert_eq!(ledger.held(), 0);
    }

    #[tokio::test]
    async fn refused_body_stays_refused() {
        let frames: Frames = vec![data(&[&payload(0)])];
        let check = layer().checks.request.unwrap();
        let mut body = check.watch(Body::new(Script {
            frames: frames.into(),
            ends_early: true,
        }));
        let mut next = async || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;

        assert!(next().await.unwrap().is_err());
        assert!(next().await.unwrap().is_err());
        assert!(!body.is_end_stream());
    }

    #[tokio::test]
    async fn request_that_ends_within_a_message_has_no_clean_end() {
        let part = &payload(0)[..9];
        let ends: [(Frames, bool); 4] = [
            (vec![data(&[&initial(), part])], false),
            (vec![data(&[&initial(), part])], true),
            (
                vec![
                    data(&[&initial(), part]),
                    Ok(Frame::trailers(HeaderMap::new())),
                ],
                false,
            ),
            // A status in them is a client's way to end early, and no excuse.
            (vec![data(&[&initial(), part]), trailers("1")], false),
        ];
        for (frames, ends_early) in ends {
            let frames = frames.into();
            let (passed, outcome) =
                upload_as(Protocol::Grpc, Body::new(Script { frames, ends_early })).await;

            // Where the end shows with the last chunk, that chunk does not pass either.
            assert_eq!(passed.is_empty(), ends_early);
            assert_error(
                &outcome.unwrap_err(),
                Code::InvalidArgument,
                "malformed_message",
                Side::Client,
                "the request ended within a message",
            );
        }
    }

    #[tokio::test]
    async fn end_that_shows_later_is_not_shown_within_a_message() {
        let mut body = CheckedBody {
            inner: body(vec![data(&[&initial(), &payload(0)[..9]])]),
            sender: Sender::Client,
            judge: Judge::new(layer().checks.request.unwrap().rules),
            refused: None,
        };
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let passed = Pin::new(&mut body).poll_frame(&mut cx);
        assert!(matches!(passed, Poll::Ready(Some(Ok(_)))));

        body.inner = Body::empty();

        assert!(!body.is_end_stream());
        let refused = Pin::new(&mut body).poll_frame(&mut cx);
        assert!(matches!(refused, Poll::Ready(Some(Err(_)))));
    }

    #[tokio::test]
    async fn sound_body_shows_its_end() {
        let check = layer().checks.request.unwrap();
        let mut body = check.watch(Body::full(initial()));
        assert_eq!(body.size_hint().exact(), Some(initial().len() as u64));
        assert!(!body.is_end_stream());

        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(matches!(
            Pin::new(&mut body).poll_frame(&mut cx),
            Poll::Ready(Some(Ok(_)))
        ));

        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn client_that_compresses_is_told_not_to() {
        let (passed, outcome) =
            upload(vec![data(&[&initial()]), data(&[&[1, 0, 0, 0, 3], b"abc"])]).await;

        assert_eq!(passed, [initial().len()]);
        assert_error(
            &outcome.unwrap_err(),
            Code::Unimplemented,
            "compressed_message",
            Side::Client,
            "message 2 of the request is compressed, and the filter `sequence` reads only what is sent uncompressed",
        );
    }

    #[tokio::test]
    async fn each_malformed_message_is_told_by_its_fault() {
        let late = initial();
        let both = judge::tests::framed(&[0x0a, 0, 0x12, 0]);
        let twice = judge::tests::framed(&[0x12, 0, 0x12, 0]);
        let neither = judge::tests::framed(&[]);
        let text = judge::tests::framed(&[0x12, 3, 0x12, 1, b'0']);
        let garbage = judge::tests::framed(&[0x00]);
        for (message, fault) in [
            (
                late,
                "has field 1: only the first message may be the initial one",
            ),
            (both, "has both field 1 and field 2"),
            (twice, "has field 2 more than once"),
            (neither, "has neither field 1 nor field 2"),
            (text, "has a field 2.2 of the wrong type"),
            (
                garbage,
                "is malformed: a field number is not from 1 to 536870911",
            ),
            (
                b"GET /".to_vec(),
                "is malformed: a gRPC message begins with flag 71, expected 0 or 1",
            ),
        ] {
            let (_, outcome) = upload(vec![data(&[&initial(), &message])]).await;

            assert_error(
                &outcome.unwrap_err(),
                Code::InvalidArgument,
                "malformed_message",
                Side::Client,
                &format!("message 2 of the request {fault}"),
            );
        }
    }

    #[tokio::test]
    async fn error_of_the_client_passes_as_it_is() {
        let gone = Error::new(Code::Cancelled, "client_cancelled", Side::Client, "gone");

        let (_, outcome) = upload(vec![data(&[&initial()[..3]]), Err(gone)]).await;

        assert_eq!(outcome.unwrap_err().reason(), "client_cancelled");
    }

    #[tokio::test]
    async fn what_does_not_say_that_it_is_grpc_never_reaches_the_upstream() {
        let mut service = layer().layer(service_fn(async |_| -> Result<Response<Body>, Error> {
            panic!("it was forwarded")
        }));

        let sent = request(Protocol::Http, Body::full(initial()));
        let error = service.call(sent).await.unwrap_err();

        assert_eq!(error.http_status(), 415);
        assert_error(
            &error,
            Code::Unimplemented,
            "not_grpc",
            Side::Client,
            "the filter `sequence` reads messages of gRPC, and this is no request of gRPC: it takes HTTP/2 and the content-type application/grpc",
        );
    }

    // === responses ===

    #[tokio::test]
    async fn answer_in_sequence_passes_with_its_trailers() {
        for first in [vec![], initial()] {
            let frames = vec![
                data(&[&first, &payload(0)]),
                data(&[&payload(1)]),
                trailers("0"),
            ];

            let (passed, outcome) = download(Response::new(body(frames))).await;

            assert_eq!(passed, [first.len() + payload(0).len(), payload(1).len()]);
            assert_eq!(outcome.unwrap(), Some(Code::Ok));
        }
    }

    #[tokio::test]
    async fn repeat_in_the_answer_is_the_fault_of_the_upstream() {
        let frames = vec![data(&[&payload(0)]), data(&[&payload(0)]), trailers("0")];

        let (passed, outcome) = download(Response::new(body(frames))).await;

        assert_eq!(passed, [payload(0).len()]);
        assert_error(
            &outcome.unwrap_err(),
            Code::Internal,
            "bad_sequence",
            Side::Upstream,
            "message 2 of the upstream's answer on route `files` has a bad sequence number: got 0, expected 1",
        );
    }

    #[tokio::test]
    async fn answer_that_the_proxy_has_numbered_is_not_read() {
        let frames = vec![data(&[&payload(7)]), trailers("0")];
        let mut answer = Response::new(body(frames));
        answer.extensions_mut().insert(Numbered);

        let (passed, outcome) = download(answer).await;

        assert_eq!(passed, [payload(7).len()]);
        assert_eq!(outcome.unwrap(), Some(Code::Ok));
    }

    #[tokio::test]
    async fn compressed_answer_is_the_fault_of_the_upstream() {
        let (passed, outcome) =
            download(Response::new(body(vec![data(&[&[1, 0, 0, 0, 0]])]))).await;

        let error = outcome.unwrap_err();
        assert!(passed.is_empty());
        assert_eq!(
            (error.code(), error.reason(), error.side()),
            (Code::Internal, "compressed_message", Side::Upstream)
        );
    }

    #[tokio::test]
    async fn answer_that_ends_within_a_message_never_looks_complete() {
        let part = || data(&[&payload(0)[..9]]);
        for frames in [vec![part()], vec![part(), trailers("0")]] {
            let (_, outcome) = download(Response::new(body(frames))).await;

            assert_error(
                &outcome.unwrap_err(),
                Code::Internal,
                "malformed_message",
                Side::Upstream,
                "the upstream's answer on route `files` ended within a message",
            );
        }
    }

    #[tokio::test]
    async fn failure_of_the_upstream_passes_also_within_a_message() {
        let part = || data(&[&payload(0)[..9]]);
        let gone = Error::new(Code::Unavailable, "upstream_reset", Side::Upstream, "gone");

        let (_, status) = download(Response::new(body(vec![part(), trailers("14")]))).await;
        let (_, error) = download(Response::new(body(vec![part(), Err(gone)]))).await;

        assert_eq!(status.unwrap(), Some(Code::Unavailable));
        assert_eq!(error.unwrap_err().reason(), "upstream_reset");
    }

    #[tokio::test]
    async fn answer_that_is_not_grpc_passes_untouched() {
        let mut failed = Response::new(Body::full("Bad Gateway"));
        *failed.status_mut() = StatusCode::BAD_GATEWAY;
        let mut page = Response::new(Body::full("hello"));
        page.headers_mut()
            .insert(CONTENT_TYPE, http::HeaderValue::from_static("text/html"));

        assert!(download(failed).await.1.is_ok());
        assert!(download(page).await.1.is_ok());
    }

    #[tokio::test]
    async fn direction_that_is_none_passes_untouched() {
        let config = Config {
            request: None,
            ..Config::default()
        };
        let mut service = SequenceLayer::new(&config, "files").layer(service_fn(
            async |request: Request<Body>| Ok(Response::new(request.into_body())),
        ));

        let sent = body(vec![data(&[&payload(7)])]);
        let response = service.call(request(Protocol::Grpc, sent)).await.unwrap();

        // The check of the answer is what finds it, so the one of the request has let it pass.
        let (_, outcome) = read(response.into_body()).await;
        assert_eq!(outcome.unwrap_err().side(), Side::Upstream);
    }
}
