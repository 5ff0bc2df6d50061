//! The exchange with an HTTP/1.1 upstream: plain HTTP, streaming both ways.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use thalweg_filters::{
    Body, Chunk, Error, Side, StreamContext, body::Ledger, ending::Ending, stream::Protocol,
};
use thalweg_proto::status::Code;

use crate::{
    config::RouteTimeouts,
    eager::eager,
    forward::{connected, judge},
    headers,
    upstream::{Cluster, balance::Balance, http1, outlier::Trial},
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
    // Read from now on, also while there is no connection yet.
    let body = eager(body);
    let opening = endpoints.open(&parts.headers, None, http1::Pool::lease);
    let mut lease = connected(cluster, timeouts, opening).await?;
    let mut trial = lease.trial();
    let response = match lease.send(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(error) => {
            if let Some(trial) = trial {
                trial.fails(&error);
            }
            return Err(error);
        }
    };
    let (mut parts, incoming) = response.into_parts();
    if let Some(trial) = &mut trial {
        trial.answered(parts.status);
    }
    if incoming.is_end_stream()
        && let Some(trial) = trial.take()
    {
        trial.ends(Ending::Clean);
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    let body = Body::new(Download {
        incoming,
        ledger: Ledger::window(lease.window()).of(stream.as_ref()),
        trial,
        lease,
    });
    Ok(Response::from_parts(parts, body))
}

/// The response's body. It is read no further than its window while nobody takes the bytes.
struct Download {
    incoming: Incoming,
    ledger: Arc<Ledger>,
    trial: Option<Trial>,
    lease: http1::Lease,
}

impl http_body::Body for Download {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        ready!(this.ledger.poll_open(cx));
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        let frame = frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.map_data(|bytes| this.ledger.take(bytes))),
            Err(error) => Err(this.lease.lost(error)),
        });
        judge(&mut this.trial, frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
