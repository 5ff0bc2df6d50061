//! A body made of what an HTTP/2 peer sends.
//!
//! Chunks are handed on as they come and carry their credit with them; nothing is released here. Data that was received
//! before a reset is delivered before the error, and a complete answer that is followed by `RST_STREAM(NO_ERROR)` is a
//! complete answer.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{FlowControl, Reason, RecvStream};
use http_body::{Frame, SizeHint};
use thalweg_filters::{
    Chunk, Error, Side, StreamContext,
    body::{Body, Ledger},
};
use thalweg_proto::status::{Code, reset_name};

use crate::dismissal::{Progress, Upload};

/// Who sends; it decides how an error of the stream reads.
#[derive(Clone, Debug)]
pub(crate) enum Sender {
    Client,
    Upstream {
        /// What messages call its cluster.
        label: Arc<str>,
        silence: Silence,
    },
}

/// How long the peer of a connection has left a PING without an answer, once it was given up for that.
pub(crate) type Silence = Rc<Cell<Option<Duration>>>;

struct Received {
    /// There until it is dropped.
    stream: Option<RecvStream>,
    ledger: Arc<Ledger>,
    sender: Sender,
    data_ended: bool,
    /// Where the stream goes when the body is dropped.
    unread: Option<Rc<Rest>>,
}

/// What a client still sends when nobody reads its body any more. It keeps the stream from being reset at once.
pub(crate) struct Unread {
    _stream: FlowControl,
    rest: Rc<Rest>,
}

#[derive(Default)]
struct Rest {
    /// The sender has sent all.
    whole: Cell<bool>,
    stream: RefCell<Option<RecvStream>>,
}

/// The body that `sender` sends on `stream`, whose bytes `context` holds.
pub(crate) fn body(stream: RecvStream, sender: Sender, context: Option<&StreamContext>) -> Body {
    received(stream, sender, context, None).map_or_else(Body::empty, Body::new)
}

/// The messages that a client sends on `stream`, and how far they have come; none of either, if it has ended already.
pub(crate) fn messages(
    stream: RecvStream,
    context: &StreamContext,
) -> (Body, Option<Rc<Progress>>) {
    let Some(received) = received(stream, Sender::Client, Some(context), None) else {
        return (Body::empty(), None);
    };
    let ledger = Arc::clone(&received.ledger);
    let upload = Upload::new(received, ledger, context.clone());
    let progress = upload.progress();
    (Body::new(upload), Some(progress))
}

/// The body that a client sends on `stream`, and a hold on the stream.
pub(crate) fn held_body(mut stream: RecvStream, context: &StreamContext) -> (Body, Unread) {
    let rest = Rc::<Rest>::default();
    rest.whole.set(stream.is_end_stream());
    let unread = Unread {
        _stream: stream.flow_control().clone(),
        rest: Rc::clone(&rest),
    };
    let received = received(stream, Sender::Client, Some(context), Some(rest));
    let body = received.map_or_else(Body::empty, Body::new);
    (body, unread)
}

fn received(
    mut stream: RecvStream,
    sender: Sender,
    context: Option<&StreamContext>,
    unread: Option<Rc<Rest>>,
) -> Option<Received> {
    if stream.is_end_stream() {
        return None;
    }
    let ledger = Ledger::http2(stream.flow_control().clone()).of(context);
    Some(Received {
        stream: Some(stream),
        ledger,
        sender,
        data_ended: false,
        unread,
    })
}

impl http_body::Body for Received {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        let Some(stream) = &mut this.stream else {
            return Poll::Ready(None);
        };
        while !this.data_ended {
            match ready!(stream.poll_data(cx)) {
                // An empty frame only carries the end of the stream.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    if let Some(unread) = &this.unread {
                        unread.whole.set(stream.is_end_stream());
                    }
                    return Poll::Ready(Some(Ok(Frame::data(this.ledger.take(bytes)))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(this.sender.error(error)))),
                None => {
                    this.data_ended = true;
                    if let Some(unread) = &this.unread {
                        unread.whole.set(true);
                    }
                }
            }
        }
        Poll::Ready(match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(this.sender.error(error))),
        })
    }

    /// As it was when it began, for every question is a lock: one that has nothing is [`Body::empty`].
    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(unread) = &self.unread {
            *unread.stream.borrow_mut() = self.stream.take();
        }
    }
}

impl Unread {
    /// Whether the sender has not sent all.
    pub(crate) fn is_partial(&self) -> bool {
        !self.rest.whole.get()
    }

    /// Lets go of up to `most` bytes that still come, once nobody else reads them; ready at their end, or behind so many.
    pub(crate) fn poll_discard(&self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        let mut stream = self.rest.stream.borrow_mut();
        let Some(stream) = &mut *stream else {
            return Poll::Pending;
        };
        while let Some(Ok(bytes)) = ready!(stream.poll_data(cx)) {
            // Fails only for more than was received.
            let _ = stream.flow_control().release_capacity(bytes.len());
            *most = most.saturating_sub(bytes.len());
            if *most == 0 {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl Sender {
    /// What an error of this sender's stream means to the other side; `docs/status.md` has the table.
    pub(crate) fn error(&self, error: h2::Error) -> Error {
        let reset = error.is_reset().then(|| error.reason()).flatten();
        match self {
            Self::Client => {
                let message = match reset {
                    Some(reason) => format!("the client reset the stream: {}", name(reason)),
                    None => "the client's connection was lost".to_owned(),
                };
                Error::new(Code::Cancelled, "client_cancelled", Side::Client, message)
            }
            Self::Upstream { label, silence } => match reset {
                Some(reason) => Error::new(
                    Code::from_reset(reason.into()),
                    "upstream_reset",
                    Side::Upstream,
                    format!("{label}: the upstream reset the stream: {}", name(reason)),
                )
                .with_http_status(502),
                None if error.is_go_away() => Error::new(
                    Code::Unavailable,
                    "upstream_goaway",
                    Side::Upstream,
                    format!(
                        "{label}: the upstream went away: {}",
                        name(error.reason().unwrap_or(Reason::NO_ERROR))
                    ),
                )
                .with_http_status(502),
                None => match silence.get() {
                    Some(limit) => Error::new(
                        Code::Unavailable,
                        "upstream_keepalive_timeout",
                        Side::Upstream,
                        format!("{label}: the upstream left a PING without an answer for {limit:?} (http2.keepalive.timeout)"),
                    ),
                    None => Error::new(
                        Code::Unavailable,
                        "upstream_lost",
                        Side::Upstream,
                        format!("{label}: the connection to the upstream was lost"),
                    ),
                }
                .with_http_status(502),
            },
        }
        .with_source(error)
    }
}

fn name(reason: Reason) -> &'static str {
    reset_name(reason.into())
}
