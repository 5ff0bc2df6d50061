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
    staged: Stage,
    end: Option<Result<Option<HeaderMap>, Error>>,
    sink: Option<Waker>,
    /// The sink has had its turn, and left what is there.
    left: bool,
}

/// The same body, read ahead.
pub(crate) fn eager(body: Body) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let queue = Rc::<RefCell<Queue>>::default();
    let size_hint = body.size_hint();
    let reading = spawn_local(read(body, Rc::clone(&queue)));
    Body::new(Eager {
        queue,
        reading,
        size_hint,
        taken: 0,
    })
}

async fn read(mut body: Body, queue: Rc<RefCell<Queue>>) {
    let mut ended = false;
    while !ended {
        let frame = std::future::poll_fn(|cx| {
            let frame = Pin::new(&mut body).poll_frame(cx);
            if frame.is_pending() {
                queue.borrow_mut().rest();
            }
            frame
        });
        let frame = frame.await;
        let mut queue = queue.borrow_mut();
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(chunk))) => queue.staged.push(chunk),
            Some(Ok(Err(trailers))) => queue.end = Some(Ok(trailers.into_trailers().ok())),
            Some(Err(error)) => queue.end = Some(Err(error)),
            None => queue.end = Some(Ok(None)),
        }
        ended = queue.end.is_some();
        if ended {
            queue.rest();
        }
        if let Some(sink) = queue.sink.take() {
            sink.wake();
        }
    }
}

impl Queue {
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
