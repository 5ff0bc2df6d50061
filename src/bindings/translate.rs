//! A stream of binding messages in another form, as it passes.
//!
//! **Why.** Clients, components and plain HTTP wrap the same payload in different ways, and number it differently.
//!
//! **How.** A [`Reader`] finds the payload, a [`Writer`] writes what stands around it on the other side. Large payload goes over as
//! it lies, in slices of the chunk that it came in; small payload is copied next to its wrapping, so that a chunk with a
//! thousand small messages becomes one chunk and not three thousand. What comes of a chunk is handed on before the next one is
//! read, so nothing is held that was not in it.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error, Side, body::Credit, ending::grpc_status};
use thalweg_proto::{
    bindings::{
        Form,
        reader::{Fault, Piece, Reader},
        writer::Writer,
    },
    status::Code,
};

use super::{failure, no_status, ok_status};

/// Payload up to this size is copied; larger is cheaper to hand on as it is.
const SMALL: usize = 1024;

/// The most payload that plain bytes are cut into for one message.
const RAW_MESSAGE_MAX: usize = 64 * 1024;

/// A body in another form; see the [module docs](self).
pub(super) struct Translate {
    inner: Body,
    reader: Reader,
    writer: Writer,
    plan: Plan,
    out: Out,
    /// What came after the last chunk, until all of that is handed on.
    end: Option<Option<HeaderMap>>,
    initial: Initial,
}

/// Who sends what is translated, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) from: Form,
    pub(super) to: Form,
    pub(super) sender: Sender,
}

/// Who sends; a fault in the stream is its own.
#[derive(Clone, Debug)]
pub(super) enum Sender {
    Client,
    /// The upstream of the binding with this label.
    Upstream(Arc<str>),
}

/// What becomes of an initial message.
#[derive(Debug)]
enum Initial {
    /// It is written on the other side; payload that comes without one gets an empty one.
    Pass { passed: bool },
    /// It has been read by somebody else, or is asked for by [`Translate::poll_initial`].
    Take(Option<Bytes>),
}

/// What has been written and not yet handed on.
#[derive(Default)]
struct Out {
    chunks: VecDeque<Chunk>,
    small: BytesMut,
    /// Of the payload in `small`.
    small_credit: Credit,
}

// === impl Translate ===

impl Translate {
    /// Translates `inner`, whose initial messages go over as well. `prelude` is sent before all else.
    pub(super) fn new(inner: Body, plan: Plan, first: u64, prelude: Option<Bytes>) -> Self {
        let mut out = Out::default();
        out.chunks.extend(prelude.map(Chunk::from));
        Self {
            inner,
            reader: Reader::new(plan.from),
            writer: Writer::new(plan.to, first),
            plan,
            out,
            end: None,
            initial: Initial::Pass { passed: false },
        }
    }

    /// Keeps initial messages from going over.
    pub(super) fn without_initial(mut self) -> Self {
        self.initial = Initial::Take(None);
        self
    }

    pub(super) fn into_body(self) -> Body {
        Body::new(self)
    }

    /// The content of the initial message, or `None` if the stream begins with payload or has nothing at all; ready as soon as that
    /// is known. Only for a stream whose initial message is kept from going over.
    pub(super) fn poll_initial(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            if let Initial::Take(initial @ Some(_)) = &mut self.initial {
                return Poll::Ready(Ok(initial.take()));
            }
            if self.reader.has_begun() || self.end.is_some() {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    /// The next chunk of a body without trailers.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        loop {
            match std::future::poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(chunk) = frame?.into_data() {
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }

    /// Reads and translates the next chunk, or learns of the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => self.take(chunk).map_err(|fault| self.plan.error(fault))?,
                Err(frame) => self.finish(frame.into_trailers().ok())?,
            },
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => self.finish(None)?,
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, mut chunk: Chunk) -> Result<(), Fault> {
        if self.plan.from == Form::Raw {
            // A message a piece: peers bound the size of messages.
            while chunk.len() > RAW_MESSAGE_MAX {
                self.translate(chunk.split_to(RAW_MESSAGE_MAX))?;
            }
        }
        self.translate(chunk)?;
        self.out.flush();
        Ok(())
    }

    fn translate(&mut self, mut chunk: Chunk) -> Result<(), Fault> {
        let Self {
            reader,
            writer,
            out,
            initial,
            plan,
            ..
        } = self;
        let (bytes, mut taken) = (chunk.bytes(), 0);
        let mut misnumbered = None;
        reader.read(&bytes, |piece| match piece {
            Piece::Initial(content) => match initial {
                Initial::Pass { passed } => {
                    writer.initial(&content, &mut out.small);
                    *passed = true;
                }
                Initial::Take(kept) => *kept = Some(content),
            },
            Piece::Start(length) => {
                if let Initial::Pass {
                    passed: passed @ false,
                } = initial
                {
                    writer.initial(&[], &mut out.small);
                    *passed = true;
                }
                writer.start(length, &mut out.small);
            }
            Piece::Data { start, end } => {
                // With the credit of what it was wrapped in, so that all returns when the payload has been handed on.
                let (_, credit) = chunk.split_to(end - taken).into_parts();
                taken = end;
                out.payload(bytes.slice(start..end), credit);
            }
            Piece::End(number) => {
                if plan.from == Form::Component && number != writer.next() {
                    misnumbered.get_or_insert_with(|| (writer.next(), number));
                }
                writer.end(&mut out.small);
            }
        })?;
        match misnumbered {
            Some((expected, got)) => Err(Fault::Sequence { expected, got }),
            None => Ok(()),
        }
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        let status = trailers.as_ref().and_then(grpc_status);
        // Who says himself that he has failed need not end well. In a request it would make a part look like the whole.
        let failed = matches!(self.plan.sender, Sender::Upstream(_))
            && status.is_some_and(|code| code != Code::Ok);
        if !failed {
            self.reader
                .finish()
                .map_err(|fault| self.plan.error(fault))?;
            if let Initial::Pass {
                passed: passed @ false,
            } = &mut self.initial
            {
                self.writer.initial(&[], &mut self.out.small);
                *passed = true;
                self.out.flush();
            }
        }
        self.end = Some(self.plan.end(trailers)?);
        Ok(())
    }
}

impl http_body::Body for Translate {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.out.chunks.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            match &mut this.end {
                Some(trailers) => {
                    return Poll::Ready(
                        trailers
                            .take()
                            .map(|trailers| Ok(Frame::trailers(trailers))),
                    );
                }
                None => {
                    if let Err(error) = ready!(this.poll_read(cx)) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    /// Whoever forwards a request takes this for its end without asking for more; so it holds only when nothing is left to be
    /// judged or written.
    fn is_end_stream(&self) -> bool {
        self.out.chunks.is_empty()
            && match (&self.end, &self.plan.sender) {
                (Some(trailers), _) => trailers.is_none(),
                (None, Sender::Client) => {
                    self.inner.is_end_stream() && self.reader.finish().is_ok()
                }
                (None, Sender::Upstream(_)) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl fmt::Debug for Translate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translate")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

// === impl Out ===

impl Out {
    fn payload(&mut self, payload: Bytes, credit: Credit) {
        if payload.len() <= SMALL {
            self.small.extend_from_slice(&payload);
            self.small_credit.absorb(credit);
            return;
        }
        self.flush();
        self.chunks.push_back(Chunk::from_parts(payload, credit));
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            let credit = std::mem::take(&mut self.small_credit);
            let small = self.small.split().freeze();
            self.chunks.push_back(Chunk::from_parts(small, credit));
        }
    }
}

// === impl Plan ===

impl Plan {
    /// What ends the stream on the other side. A status has its place in gRPC alone.
    fn end(&self, trailers: Option<HeaderMap>) -> Result<Option<HeaderMap>, Error> {
        let Sender::Upstream(label) = &self.sender else {
            return Ok(None);
        };
        match (self.from, self.to) {
            (Form::Raw, _) => {
                let mut status = ok_status();
                status.extend(trailers.map(metadata).unwrap_or_default());
                Ok(Some(status))
            }
            (_, Form::Raw) => {
                let trailers = trailers.ok_or_else(|| no_status(label))?;
                match failure(label, &trailers) {
                    Some(error) => Err(error),
                    None => Ok(Some(metadata(trailers)).filter(|metadata| !metadata.is_empty())),
                }
            }
            _ => Ok(trailers),
        }
    }

    fn error(&self, fault: Fault) -> Error {
        let reason = match fault {
            Fault::Sequence { .. } => "bad_sequence",
            Fault::Compressed => "compressed_message",
            _ => "malformed_message",
        };
        match &self.sender {
            Sender::Client => {
                let code = match fault {
                    Fault::Compressed => Code::Unimplemented,
                    _ => Code::InvalidArgument,
                };
                Error::new(code, reason, Side::Client, fault.to_string())
            }
            Sender::Upstream(label) => Error::new(
                Code::Internal,
                reason,
                Side::Upstream,
                format!("{label}: {fault}"),
            ),
        }
    }
}

/// Those trailers that a binding adds to its answer when it knows all of it.
fn metadata(mut trailers: HeaderMap) -> HeaderMap {
    let others: Vec<_> = (trailers.keys())
        .filter(|name| !name.as_str().starts_with("metadata."))
        .cloned()
        .collect();
    for name in others {
        trailers.remove(name);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use thalweg_filters::body::Ledger;
    use thalweg_proto::bindings::{
        ComponentInitialRequest, InitialRequest, InitialResponse, Message, framed_initial,
    };

    use super::*;

    /// A body that says what it is told, and then ends.
    struct Script(VecDeque<Frame<Chunk>>);

    impl http_body::Body for Script {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn script(chunks: impl IntoIterator<Item = Chunk>) -> Body {
        Body::new(Script(chunks.into_iter().map(Frame::data).collect()))
    }

    fn plan(from: Form, to: Form) -> Plan {
        Plan {
            from,
            to,
            sender: Sender::Client,
        }
    }

    fn upstream(from: Form, to: Form) -> Plan {
        Plan {
            sender: Sender::Upstream("binding orders".into()),
            ..plan(from, to)
        }
    }

    /// A stream in this form: an initial message if there is one, and payloads from `first` on.
    fn stream(form: Form, initial: Option<&[u8]>, payloads: &[&[u8]], first: u64) -> Bytes {
        let (mut writer, mut bytes) = (Writer::new(form, first), BytesMut::new());
        if let Some(initial) = initial {
            writer.initial(initial, &mut bytes);
        }
        for payload in payloads {
            writer.start(payload.len() as u64, &mut bytes);
            bytes.extend_from_slice(payload);
            writer.end(&mut bytes);
        }
        bytes.freeze()
    }

    async fn all(mut body: Body) -> (Vec<u8>, Option<HeaderMap>) {
        let mut whole = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            match frame.unwrap().into_data() {
                Ok(chunk) => whole.extend_from_slice(chunk.as_slice()),
                Err(trailers) => return (whole, trailers.into_trailers().ok()),
            }
        }
        (whole, None)
    }

    async fn fault(mut body: Body) -> Error {
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            if let Err(error) = frame.expect("a fault comes before the end") {
                return error;
            }
        }
    }

    #[tokio::test]
    async fn request_is_renumbered_for_a_component_however_it_is_cut() {
        let initial = InitialRequest::default().encode_to_vec();
        let (small, large) = ([7; 100], vec![8; 5000]);
        let sent = stream(Form::Runtime, Some(&initial), &[&small, &large, &[]], 0);
        let prelude = framed_initial(&ComponentInitialRequest::default());
        let expected = [
            &prelude[..],
            &stream(Form::Component, None, &[&small, &large, &[]], 1),
        ]
        .concat();

        for size in [1, 3, 64, 4096, sent.len()] {
            let chunks = sent
                .chunks(size)
                .map(|part| Chunk::from(Bytes::copy_from_slice(part)));
            let plan = plan(Form::Runtime, Form::Component);
            let body = Translate::new(script(chunks), plan, 1, Some(prelude.clone()));

            let (received, trailers) = all(body.without_initial().into_body()).await;

            assert_eq!(
                (received, trailers),
                (expected.clone(), None),
                "cut by {size}"
            );
        }
    }

    #[tokio::test]
    async fn large_payload_is_not_copied_and_its_credit_returns_when_it_is_handed_on() {
        let sent = stream(Form::Runtime, None, &[&vec![9; 100_000]], 0);
        let ledger = Ledger::window(1 << 20);
        let chunk = ledger.take(sent.clone());
        let payload = sent.as_ptr() as usize..sent.as_ptr() as usize + sent.len();
        let plan = plan(Form::Runtime, Form::Component);
        let mut body = Translate::new(script([chunk]), plan, 1, None).without_initial();

        let mut chunks = Vec::new();
        while let Some(chunk) = body.next().await.unwrap() {
            chunks.push(chunk);
        }

        let large = chunks.iter().find(|chunk| chunk.len() == 100_000).unwrap();
        assert!(payload.contains(&(large.as_slice().as_ptr() as usize)));
        assert!(ledger.held() >= 100_000, "{ledger:?}");
        drop(chunks);
        assert_eq!(ledger.held(), 0);
    }

    /// Else nobody would stop a sender whose bytes are wrapped and unwrapped on their way.
    #[tokio::test]
    async fn credit_stays_with_its_payload_through_two_translations() {
        for size in [100, 5000, 200_000] {
            let ledger = Ledger::window(1 << 20);
            let raw = ledger.take(Bytes::from(vec![9; size]));
            let wrapped = Translate::new(script([raw]), plan(Form::Raw, Form::Runtime), 0, None);
            let wrapped = wrapped.without_initial().into_body();
            let mut body =
                Translate::new(wrapped, plan(Form::Runtime, Form::Raw), 0, None).without_initial();

            let mut chunks = Vec::new();
            while let Some(chunk) = body.next().await.unwrap() {
                chunks.push(chunk);
            }

            assert_eq!(ledger.held(), size);
            drop(chunks);
            assert_eq!(ledger.held(), 0);
        }
    }

    #[tokio::test]
    async fn thousand_small_messages_stay_one_chunk() {
        let payloads = vec![&b"a word"[..]; 1000];
        let sent = stream(Form::Runtime, None, &payloads, 0);
        let plan = plan(Form::Runtime, Form::Component);
        let mut body = Translate::new(script([sent.into()]), plan, 1, None).without_initial();

        let whole = body.next().await.unwrap().unwrap();

        assert_eq!(
            whole.as_slice(),
            stream(Form::Component, None, &payloads, 1)
        );
        assert!(body.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn answer_without_an_initial_message_gets_one() {
        let sent = stream(Form::Component, None, &[b"x"], 0);
        let plan = upstream(Form::Component, Form::Runtime);

        let (received, _) =
            all(Translate::new(script([sent.into()]), plan, 0, None).into_body()).await;

        assert_eq!(received, stream(Form::Runtime, Some(&[]), &[b"x"], 0));
    }

    #[tokio::test]
    async fn component_that_miscounts_is_named_and_its_message_held_back() {
        let good = stream(Form::Component, Some(&[]), &[b"a"], 0);
        let bad = stream(Form::Component, None, &[b"b"], 2);
        let plan = upstream(Form::Component, Form::Runtime);
        let body = Translate::new(script([good.into(), bad.into()]), plan, 0, None);
        let mut body = body.into_body();

        let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let error = fault(body).await;

        let first = first.unwrap().unwrap().into_data().unwrap();
        assert_eq!(
            first.as_slice(),
            stream(Form::Runtime, Some(&[]), &[b"a"], 0)
        );
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Internal, "bad_sequence")
        );
        assert_eq!(
            error.message(),
            "binding orders: invalid sequence number: got 2, expected 1"
        );
    }

    #[tokio::test]
    async fn stream_that_ends_within_a_message_is_a_fault_and_never_an_end() {
        let whole = stream(Form::Runtime, None, &[b"abc"], 0);
        let cut = whole.slice(..whole.len() - 1);
        let body = Translate::new(
            script([cut.into()]),
            plan(Form::Runtime, Form::Raw),
            0,
            None,
        );
        let mut body = body.without_initial();

        assert_eq!(body.next().await.unwrap().unwrap().as_slice(), b"abc");
        assert!(!http_body::Body::is_end_stream(&body));
        let error = body.next().await.unwrap_err();

        assert_eq!(
            (error.code(), error.side()),
            (Code::InvalidArgument, Side::Client)
        );
    }

    #[tokio::test]
    async fn status_in_a_request_makes_no_whole_of_a_part() {
        let sent = stream(Form::Runtime, Some(&[]), &[b"payload"], 0);
        let cut = Frame::data(sent.slice(..sent.len() - 1).into());
        let failed = http::HeaderValue::from_static(Code::Cancelled.as_str());
        let status = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), failed)]);
        let body = Body::new(Script([cut, Frame::trailers(status)].into()));
        let plan = plan(Form::Runtime, Form::Raw);

        let body = Translate::new(body, plan, 0, None).without_initial();

        let error = fault(body.into_body()).await;
        assert_eq!(
            (error.reason(), error.side()),
            ("malformed_message", Side::Client)
        );
    }

    #[tokio::test]
    async fn initial_message_is_known_before_any_payload() {
        let initial = InitialResponse {
            content_type: "text/plain".into(),
            ..InitialResponse::default()
        };
        let sent = stream(Form::Runtime, Some(&initial.encode_to_vec()), &[], 0);
        let plan = upstream(Form::Runtime, Form::Raw);
        let mut body = Translate::new(script([sent.into()]), plan, 0, None).without_initial();

        let read = std::future::poll_fn(|cx| body.poll_initial(cx))
            .await
            .unwrap();

        assert_eq!(InitialResponse::decode(read.unwrap()).unwrap(), initial);
    }

    #[tokio::test]
    async fn answer_that_ends_without_a_status_is_no_answer_over_http() {
        let sent = stream(Form::Runtime, Some(&[]), &[b"x"], 0);
        let plan = upstream(Form::Runtime, Form::Raw);

        let body = Translate::new(script([sent.into()]), plan, 0, None).without_initial();

        assert_eq!(fault(body.into_body()).await.reason(), "upstream_no_status");
    }

    #[tokio::test]
    async fn plain_bytes_become_messages_that_peers_take_and_end_well() {
        let bytes = Bytes::from(vec![3; 150_000]);
        let plan = upstream(Form::Raw, Form::Runtime);
        let body = Translate::new(script([bytes.clone().into()]), plan, 0, None).without_initial();

        let (received, trailers) = all(body.into_body()).await;

        let parts: Vec<&[u8]> = bytes.chunks(RAW_MESSAGE_MAX).collect();
        assert_eq!(received, stream(Form::Runtime, None, &parts, 0));
        assert_eq!(grpc_status(&trailers.unwrap()), Some(Code::Ok));
    }
}
