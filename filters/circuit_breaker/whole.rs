//! Since when an upstream has had a whole request.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::{Body, Chunk, Error};

/// Since when there is nothing more to come of a request. Until then an upstream that is silent may be waiting for the client.
#[derive(Debug, Default)]
pub struct Whole(Rc<Since>);

type Since = Cell<Option<Instant>>;

/// A request that says when it is whole.
struct WholeBody {
    inner: Body,
    since: Rc<Since>,
}

// === impl Whole ===

impl Whole {
    /// Looks at a request as it is read.
    pub fn watch(body: Body) -> (Body, Self) {
        let whole = Self::default();
        if body.is_end_stream() {
            note(&whole.0);
            return (body, whole);
        }
        let since = Rc::clone(&whole.0);
        (body.wrap(|inner| WholeBody { inner, since }), whole)
    }

    /// Whether the request has been whole for `least`.
    pub(super) fn lasts(&self, least: Duration) -> bool {
        self.0.get().is_some_and(|since| since.elapsed() >= least)
    }
}

fn note(since: &Since) {
    if since.get().is_none() {
        since.set(Some(Instant::now()));
    }
}

// === impl WholeBody ===

impl http_body::Body for WholeBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => note(&self.since),
            Some(Ok(frame)) if frame.is_trailers() => note(&self.since),
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.inner.is_end_stream();
        if ended {
            // Who has asked need not read on.
            note(&self.since);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
