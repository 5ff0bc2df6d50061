//! `Expect: 100-continue`: a client that sends its body when it has heard that somebody wants it (RFC 9110, section 10.1.1).
//!
//! **Why.** A client that hears nothing waits, some for a second and some for ever. One that hears a whole refusal need not send anything.
//!
//! **How.** Wanted is a body that somebody reads, and also one that somebody still holds when the head of the answer is there: he will
//! read it later, and behind that head nothing could be said any more. Who refuses a request lets go of its body.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use http::Version;
use http::request::Parts;
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error};

use crate::headers::{self, Seen};

/// What is known of a body that its client has not begun to send.
pub(super) struct Expected(Rc<RefCell<Waiting>>);

struct Waiting {
    /// There until whoever reads it lets go.
    body: Option<Body>,
    /// What came when it was asked for in place of its reader.
    first: Option<Option<Result<Frame<Chunk>, Error>>>,
    is_read: bool,
    /// Of the task that tells the client.
    teller: Option<Waker>,
}

/// The body in the hands of whoever reads it.
struct Held(Rc<RefCell<Waiting>>);

/// The same body, and what becomes of it, if its client waits until it is wanted.
pub(super) fn expected(head: &Parts, seen: &Seen, body: Body) -> (Body, Option<Expected>) {
    if !seen.expects
        || head.version < Version::HTTP_11
        || body.is_end_stream()
        || !headers::expects_continue(&head.headers)
    {
        return (body, None);
    }
    let waiting = Rc::new(RefCell::new(Waiting {
        body: Some(body),
        first: None,
        is_read: false,
        teller: None,
    }));
    let held = Held(Rc::clone(&waiting));
    (Body::new(held), Some(Expected(waiting)))
}

// === impl Expected ===

impl Expected {
    /// Ready once somebody reads it.
    pub(super) fn poll_read(&self, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.0.borrow_mut();
        if waiting.is_read {
            return Poll::Ready(());
        }
        waiting.teller = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether somebody may still read it.
    pub(super) fn is_held(&self) -> bool {
        self.0.borrow().body.is_some()
    }

    /// Asks for a body that is held, and waits until its connection has been polled with that.
    pub(super) async fn ask(self) {
        let mut asked = false;
        std::future::poll_fn(|cx| {
            if asked || !self.is_held() {
                return Poll::Ready(());
            }
            asked = true;
            self.0.borrow_mut().poll_first(cx);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

// === impl Waiting ===

impl Waiting {
    /// Reads in place of the reader, unless he has begun.
    fn poll_first(&mut self, cx: &mut Context<'_>) {
        if let Some(body) = self.body.as_mut().filter(|_| !self.is_read)
            && let Poll::Ready(first) = Pin::new(body).poll_frame(cx)
        {
            self.first = Some(first);
        }
    }
}

// === impl Held ===

impl http_body::Body for Held {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let waiting = &mut *self.0.borrow_mut();
        waiting.is_read = true;
        if let Some(teller) = waiting.teller.take() {
            teller.wake();
        }
        match (waiting.first.take(), &mut waiting.body) {
            (Some(first), _) => Poll::Ready(first),
            (None, Some(body)) => Pin::new(body).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let waiting = self.0.borrow();
        let ended = waiting.body.as_ref().is_none_or(Body::is_end_stream);
        waiting.first.is_none() && ended
    }

    fn size_hint(&self) -> SizeHint {
        let waiting = self.0.borrow();
        match &waiting.body {
            Some(body) if waiting.first.is_none() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let body = self.0.borrow_mut().body.take();
        drop(body);
    }
}
