//! As much of S3 as one object needs that is sent in parts and read back.
//!
//! **Why.** A server that keeps what it is sent would be measured along with the disk under it. This one counts: objects are zeros, so
//! their sizes are all there is to know of them.
//!
//! **How.** A part is read to its end and its size remembered; completing the upload makes the object as large as all of its
//! parts. Whoever sends a part, or completes, twice is counted once. Nobody is asked who he is.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::grpc::Failure;

/// What is sent at once.
const PIECE: &[u8] = &[0; 64 * 1024];

const ETAG: &str = "\"zeros\"";

/// What is stored.
#[derive(Debug, Default)]
struct Stored {
    /// Sizes, by path.
    objects: HashMap<String, u64>,
    /// Sizes of parts by their numbers, by path.
    uploads: HashMap<String, BTreeMap<u32, u64>>,
}

/// A text, or so many zeros.
#[derive(Debug)]
struct Answer {
    text: Bytes,
    zeros: u64,
}

/// Serves all who come.
pub(crate) async fn accept(listener: TcpListener) -> Result<(), Failure> {
    let stored = Arc::new(Mutex::new(Stored::default()));
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let stored = Arc::clone(&stored);
        let service = service_fn(move |request| {
            let stored = Arc::clone(&stored);
            async move { Ok::<_, Infallible>(answer(&stored, request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
        // What breaks is seen by the load generator.
        tokio::spawn(async { drop(connection.await) });
    }
}

async fn answer(stored: &Mutex<Stored>, request: Request<Incoming>) -> Response<Answer> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query: HashMap<_, _> =
        form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return respond(StatusCode::BAD_REQUEST, Answer::text(""));
        };
        size += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
    }
    // Each change is one step, so what is there is whole.
    let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
    let part = query
        .get("partNumber")
        .and_then(|number| number.parse().ok());
    let answer = match (head.method, part) {
        (Method::PUT, Some(number)) => {
            stored.uploads.entry(path).or_default().insert(number, size);
            Answer::text("")
        }
        (Method::PUT, None) => {
            stored.objects.insert(path, size);
            Answer::text("")
        }
        (Method::POST, _) if query.contains_key("uploads") => {
            stored.uploads.insert(path, BTreeMap::new());
            Answer::text(
                "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>",
            )
        }
        (Method::POST, _) => {
            if let Some(parts) = stored.uploads.remove(&path) {
                stored.objects.insert(path, parts.values().sum());
            }
            Answer::text(
                "<CompleteMultipartUploadResult><ETag>zeros</ETag></CompleteMultipartUploadResult>",
            )
        }
        (Method::GET, _) => match stored.objects.get(&path) {
            Some(&zeros) => Answer {
                text: Bytes::new(),
                zeros,
            },
            None => return respond(StatusCode::NOT_FOUND, Answer::text("")),
        },
        _ => return respond(StatusCode::METHOD_NOT_ALLOWED, Answer::text("")),
    };
    respond(StatusCode::OK, answer)
}

fn respond(status: StatusCode, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_static(ETAG));
    let modified = HeaderValue::from_static("Sun, 01 Nov 2026 00:00:00 GMT");
    headers.insert(header::LAST_MODIFIED, modified);
    response
}

// === impl Answer ===

impl Answer {
    fn text(text: &'static str) -> Self {
        Self {
            text: Bytes::from_static(text.as_bytes()),
            zeros: 0,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = if self.zeros > 0 {
            let count = self.zeros.min(PIECE.len() as u64);
            self.zeros -= count;
            Bytes::from_static(PIECE).slice(..count as usize)
        } else {
            std::mem::take(&mut self.text)
        };
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len() as u64 + self.zeros)
    }
}
