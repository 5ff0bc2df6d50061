//! A body made of what an HTTP/2 peer sends.
//!
//! Chunks are handed on as they come and carry their credit with them; nothing is released here. Data that was received
//! before a reset is delivered before the error, and a complete answer that is followed by `RST_STREAM(NO_ERROR)` is a
//! complete answer.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use h2::{FlowControl, Reason, RecvStream};
use http_body::{Frame, SizeHint};
use thalweg_filters::{
    Chunk, Error, Side,
    body::{Body, Ledger},
};
use thalweg_proto::status::{Code, reset_name};

/// Who sends; it decides how an error of the stream reads.
#[derive(Clone, Debug)]
pub(crate) enum Sender {
    Client,
    /// An endpoint of the cluster with this label.
    Upstream(Arc<str>),
}

struct Received {
    stream: RecvStream,
    ledger: Arc<Ledger>,
    sender: Sender,
    data_ended: bool,
    /// Set when the sender has sent all.
    whole: Option<Rc<Cell<bool>>>,
}

/// Keeps a stream whose sender has not sent all from being reset as soon as nobody reads it any more.
pub(crate) struct Unread {
    _stream: FlowControl,
    whole: Rc<Cell<bool>>,
}

/// The body that `sender` sends on `stream`.
pub(crate) fn body(stream: RecvStream, sender: Sender) -> Body {
    received(stream, sender, None)
}

/// The body that a client sends on `stream`, and a hold on the stream.
pub(crate) fn held_body(mut stream: RecvStream) -> (Body, Unread) {
    let unread = Unread {
        _stream: stream.flow_control().clone(),
        whole: Rc::new(Cell::new(stream.is_end_stream())),
    };
    let whole = Rc::clone(&unread.whole);
    (received(stream, Sender::Client, Some(whole)), unread)
}

fn received(mut stream: RecvStream, sender: Sender, whole: Option<Rc<Cell<bool>>>) -> Body {
    if stream.is_end_stream() {
        return Body::empty();
    }
    let ledger = Ledger::http2(stream.flow_control().clone());
    Body::new(Received {
        stream,
        ledger,
        sender,
        data_ended: false,
        whole,
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
        while !this.data_ended {
            match ready!(this.stream.poll_data(cx)) {
                // An empty frame only carries the end of the stream.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    if let Some(whole) = &this.whole {
                        whole.set(this.stream.is_end_stream());
                    }
                    return Poll::Ready(Some(Ok(Frame::data(this.ledger.take(bytes)))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(this.sender.error(error)))),
                None => {
                    this.data_ended = true;
                    if let Some(whole) = &this.whole {
                        whole.set(true);
                    }
                }
            }
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(this.sender.error(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Unread {
    /// Whether the sender has not sent all.
    pub(crate) fn is_partial(&self) -> bool {
        !self.whole.get()
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
            Self::Upstream(label) => match reset {
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
                None => Error::new(
                    Code::Unavailable,
                    "upstream_lost",
                    Side::Upstream,
                    format!("{label}: the connection to the upstream was lost"),
                )
                .with_http_status(502),
            },
        }
        .with_source(error)
    }
}

fn name(reason: Reason) -> &'static str {
    reset_name(reason.into())
}
