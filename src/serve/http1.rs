//! An HTTP/1.1 connection from a client, on hyper.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thalweg_filters::{Body, Chunk, Error, Side, body::Ledger};
use thalweg_proto::status::Code;

use crate::{
    eager::eager,
    headers,
    serve::{Front, answer, drained, stream_context},
    transport::Transport,
    worker::Worker,
};

/// Serves the connection until it ends.
pub(super) async fn serve(transport: Transport, front: Arc<Front>, worker: Rc<Worker>) {
    let settings = &front.settings;
    let drain = drained(Rc::clone(&worker));
    let window = settings.http2.http2.stream_window as usize;
    let most_headers = settings.http1.max_headers;
    let service = service_fn(|request: Request<Incoming>| {
        let context = stream_context(&request);
        let request = request.map(|incoming| receive(incoming, window));
        let answer = answer(request, context, Rc::clone(&worker), most_headers);
        let worker = Rc::clone(&worker);
        async move {
            let _live = worker.live();
            Ok::<_, Infallible>(finish(answer.await))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.timeouts.first_headers)
            .max_headers(most_headers)
            .max_buf_size(settings.http1.max_header_bytes)
            .serve_connection(TokioIo::new(transport), service)
    );
    let mut drain = pin!(drain);
    let mut drains = false;
    let result = std::future::poll_fn(|cx| {
        if !drains && drain.as_mut().poll(cx).is_ready() {
            drains = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = result {
        if error.is_timeout() {
            front.stats.first_headers_timeouts.increment();
        } else {
            front.stats.errors.increment();
        }
        tracing::debug!(listener = front.settings.name, %error, "connection ended");
    }
}

fn finish(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    Response::from_parts(parts, eager(body))
}

/// The request's body. It is read no further than a window while nobody takes the bytes.
fn receive(incoming: Incoming, window: usize) -> Body {
    Body::new(Received {
        incoming,
        ledger: Ledger::window(window),
    })
}

struct Received {
    incoming: Incoming,
    ledger: Arc<Ledger>,
}

impl http_body::Body for Received {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        ready!(this.ledger.poll_open(cx));
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            match frame {
                Ok(frame) => Ok(frame.map_data(|bytes| this.ledger.take(bytes))),
                Err(error) => Err(Error::new(
                    Code::Cancelled,
                    "client_cancelled",
                    Side::Client,
                    "the client's connection was lost before the request was whole",
                )
                .with_source(error)),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
