//! The exchange with an HTTP/1.1 upstream: plain HTTP, streaming both ways.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, header, response::Parts};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use thalweg_filters::{
    Body, Chunk, Error, Side, StreamContext, body::Ledger, ending::Ending, stream::Protocol,
};
use thalweg_proto::status::Code;

use crate::{
    config::RouteTimeouts,
    eager::{Handed, handed},
    forward::{connected, judge},
    headers,
    upstream::{
        Cluster,
        balance::Balance,
        http1::{self, Failed, Lease},
        outlier::Trial,
    },
};

/// Sends the request on a connection of its own, and waits for the response's head.
pub(crate) async fn exchange(
    cluster: &Cluster,
    endpoints: &Balance<http1::Pool>,
    request: Request<Body>,
    timeouts: &RouteTimeouts,
) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    let stream = parts.extensions.remove::<StreamContext>();
    let speaks_grpc = |stream: &StreamContext| stream.protocol() == Protocol::Grpc;
    if stream.as_ref().is_some_and(speaks_grpc) {
        let message = format!(
            "{}: it speaks HTTP/1.1, which cannot carry gRPC (protocol: http2)",
            cluster.label
        );
        return Err(Error::new(
            Code::Unimplemented,
            "cluster_speaks_http1",
            Side::Proxy,
            message,
        ));
    }
    headers::for_http1(&mut parts)?;
    headers::frame_body(&mut parts, &body);
    // Read from now on, also while there is no connection yet.
    let (body, handed) = handed(body);
    let best = endpoints.best(&parts.headers, None)?;
    let opening = endpoints.open(best, &parts.headers, None, http1::Pool::lease);
    let mut lease = connected(cluster, timeouts, opening).await?;
    let mut trial = lease.trial();
    let mut request = Request::from_parts(parts, body);
    let response = loop {
        match lease.send(request).await {
            Ok(response) => break response,
            Err(Failed::Unsent(unsent)) => {
                connected(cluster, timeouts, lease.redial()).await?;
                request = *unsent;
            }
            Err(Failed::Lost(error)) => {
                if let Some(trial) = trial {
                    trial.fails(&error);
                }
                return Err(error);
            }
        }
    };
    let (mut parts, incoming) = response.into_parts();
    if let Some(fault) = fault(&parts) {
        let error = Error::new(
            Code::Unavailable,
            "upstream_bad_answer",
            Side::Upstream,
            format!("{}: {fault}", cluster.label),
        )
        .with_http_status(502);
        if let Some(trial) = trial {
            trial.fails(&error);
        }
        return Err(error);
    }
    if parts.headers.contains_key(header::TRANSFER_ENCODING)
        && parts.headers.remove(header::CONTENT_LENGTH).is_some()
    {
        // The chunks say where it ends, and another length must not reach anyone (RFC 9112, 6.3).
        lease.make_last();
    }
    if let Some(trial) = &mut trial {
        trial.answered(parts.status);
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    if incoming.is_end_stream() {
        if let Some(trial) = trial {
            trial.ends(Ending::Clean);
        }
        lease.answered(&handed);
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    let body = Body::new(Download {
        incoming,
        ledger: Ledger::window(lease.window()).of(stream.as_ref()),
        trial,
        lease: Some(lease),
        handed,
    });
    Ok(Response::from_parts(parts, body))
}

/// Why an answer cannot be passed on.
fn fault(head: &Parts) -> Option<&'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Some("the upstream switched protocols, which nobody has asked it for");
    }
    if !headers::is_plainly_framed(&head.headers) {
        return Some(
            "the answer's transfer-encoding is another than chunked, which alone is undone here",
        );
    }
    None
}

/// The response's body. It is read no further than its window while nobody takes the bytes.
struct Download {
    incoming: Incoming,
    ledger: Arc<Ledger>,
    trial: Option<Trial>,
    /// There until the answer is whole.
    lease: Option<Lease>,
    handed: Handed,
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let Some(lease) = &self.lease else {
            return Poll::Ready(None);
        };
        ready!(self.ledger.poll_open(cx));
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let frame = frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.map_data(|bytes| self.ledger.take(bytes))),
            Err(error) => Err(lease.lost(error)),
        });
        Poll::Ready(frame)
    }
}

impl http_body::Body for Download {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        let frame = ready!(this.poll(cx));
        judge(&mut this.trial, frame.as_ref());
        let whole = match &frame {
            Some(Ok(frame)) => frame.is_trailers() || this.incoming.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if let Some(lease) = this.lease.take_if(|_| whole) {
            lease.answered(&this.handed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
