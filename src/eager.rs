//! Reads a body ahead of a sink that reads when it pleases.
//!
//! hyper asks for the next chunk of a body when it has room to write, and leaves an HTTP/2 stream unread until then. But a
//! stream that is left unread is one whose small frames pile up until the connection closes itself. So a task of its own
//! reads all that comes into a [`Stage`], which the stream's window bounds, and the sink reads from there. While the sink asks for
//! nothing, what has come waits.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use thalweg_filters::{Body, Chunk, Error, Side};
use thalweg_proto::status::Code;
use tokio::task::{JoinHandle, spawn_local};

use crate::stage::Stage;

/// The most that is handed to the sink at once.
const PIECE: usize = 64 * 1024;

struct Eager {
    queue: Rc<RefCell<Queue>>,
    reading: JoinHandle<()>,
    size_hint: SizeHint,
    taken: u64,
}

#[derive(Default)]
struct Queue {
    /// There until it has ended, or until the sink wants no more of it.
    source: Option<Body>,
    staged: Stage,
    end: Option<Result<Option<HeaderMap>, Error>>,
    sink: Option<Waker>,
    /// The sink has had its turn, and left what is there.
    left: bool,
}

/// How far a body has come that was handed to a sink.
pub(crate) struct Handed(Option<Rc<RefCell<Queue>>>);

/// The same body, read ahead.
pub(crate) fn eager(body: Body) -> Body {
    handed(body).0
}

/// The same body, read ahead, and how far it has come.
pub(crate) fn handed(body: Body) -> (Body, Handed) {
    if body.is_end_stream() {
        return (body, Handed(None));
    }
    let size_hint = body.size_hint();
    let queue = Rc::new(RefCell::new(Queue {
        source: Some(body),
        ..Queue::default()
    }));
    let handed = Handed(Some(Rc::clone(&queue)));
    let read = Rc::clone(&queue);
    let body = Body::new(Eager {
        queue,
        reading: spawn_local(std::future::poll_fn(move |cx| {
            read.borrow_mut().poll_read(cx)
        })),
        size_hint,
        taken: 0,
    });
    (body, handed)
}

impl Handed {
    /// Whether nothing more has to come from the source: all of it was read, or the sink has had enough.
    pub(crate) fn is_whole(&self) -> bool {
        let Some(queue) = &self.0 else {
            return true;
        };
        queue.borrow().source.is_none()
    }
}

impl Queue {
    /// Reads until the source has ended, or is not there any more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Taken out while it is polled, so that a panic drops it at once.
        while let Some(mut source) = self.source.take() {
            let Poll::Ready(frame) = Pin::new(&mut source).poll_frame(cx) else {
                self.source = Some(source);
                self.rest();
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(chunk))) => self.staged.push(chunk),
                Some(Ok(Err(trailers))) => self.end = Some(Ok(trailers.into_trailers().ok())),
                Some(Err(error)) => self.end = Some(Err(error)),
                None => self.end = Some(Ok(None)),
            }
            if self.end.is_none() {
                self.source = Some(source);
            } else {
                self.rest();
            }
            if let Some(sink) = self.sink.take() {
                sink.wake();
            }
        }
        Poll::Ready(())
    }

    /// Nothing more comes for now. A sink that has found nothing takes what is there in its next turn; any other has to be waited for.
    fn rest(&mut self) {
        if self.left {
            self.staged.wait();
        }
        self.left |= !self.staged.is_empty();
    }
}

impl http_body::Body for Eager {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        let mut queue = this.queue.borrow_mut();
        if !queue.staged.is_empty() {
            let piece = queue.staged.pop(PIECE);
            this.taken += piece.len() as u64;
            queue.left = true;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match queue.end.replace(Ok(None)) {
            Some(Ok(trailers)) => {
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                queue.end = None;
                queue.left = false;
                queue.sink = Some(cx.waker().clone());
                drop(queue);
                // It ends without a word only in a panic.
                Pin::new(&mut this.reading).poll(cx).map(|_| {
                    this.queue.borrow_mut().end = Some(Ok(None));
                    Some(Err(Error::new(
                        Code::Internal,
                        "panic",
                        Side::Proxy,
                        "a fault of the proxy",
                    )))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let queue = self.queue.borrow();
        queue.staged.is_empty() && matches!(queue.end, Some(Ok(None)))
    }

    fn size_hint(&self) -> SizeHint {
        match self.size_hint.exact() {
            Some(size) => SizeHint::with_exact(size.saturating_sub(self.taken)),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        self.reading.abort();
        // At once, and not when the task is next looked at: whoever reads the source next must be its only reader.
        let source = self.queue.borrow_mut().source.take();
        drop(source);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::task::LocalSet;

    use super::*;

    struct Panics;

    impl http_body::Body for Panics {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            panic!("on purpose")
        }
    }

    /// A body that says what it is told.
    struct Told(tokio::sync::mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Told {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            let chunk = std::task::ready!(self.0.poll_recv(cx));
            Poll::Ready(chunk.map(|bytes| Ok(Frame::data(bytes.into()))))
        }
    }

    #[tokio::test]
    async fn what_the_sink_leaves_lets_go_of_the_buffers_it_was_read_into() {
        let buffers = [0; 4].map(|_| Bytes::from(vec![0; 64 * 1024]));
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let local = LocalSet::new();
        local
            .run_until(async {
                let mut body = eager(Body::new(Told(receiver)));
                let said = async |at: usize| {
                    sender.send(buffers[at].slice(7..2000)).unwrap();
                    tokio::task::yield_now().await;
                };
                said(0).await;
                assert!(!buffers[0].is_unique(), "it is taken in a moment");
                let mut next =
                    async || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                drop(next().await);

                for at in 1..4 {
                    said(at).await;
                }
                assert!(buffers.iter().all(Bytes::is_unique));

                let rest = next().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(rest.len(), 3 * 1993);
            })
            .await;
    }

    #[tokio::test]
    async fn panic_of_a_body_is_an_error_and_then_the_end() {
        let local = LocalSet::new();
        let read = local.run_until(async {
            let mut body = eager(Body::new(Panics));
            let mut next =
                async || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            (next().await, next().await.is_none())
        });

        let (first, ended) = read.await;
        assert_eq!(first.unwrap().unwrap_err().reason(), "panic");
        assert!(ended);
    }
}
