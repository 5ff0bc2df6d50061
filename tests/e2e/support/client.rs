//! A client on the `h2` crate.

use bytes::Bytes;
use h2::{
    Reason,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{Request, Response, StatusCode, request};
use thalweg::config::Address;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};

use super::{
    proxy::TestProxy,
    stream::{Answer, Incoming, Outgoing},
    within,
};

/// One connection to the proxy.
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A call, as its client holds it.
pub(crate) struct Call {
    pub(crate) outgoing: Outgoing,
    pub(crate) response: ResponseFuture,
}

// === impl Client ===

impl Client {
    /// A client with the codec's own settings.
    pub(crate) async fn connect(proxy: &TestProxy) -> Self {
        Self::connect_with(&proxy.address, &Builder::new()).await
    }

    /// A client with settings of its own.
    pub(crate) async fn connect_with(address: &Address, builder: &Builder) -> Self {
        match address {
            Address::Tcp(address) => {
                let socket = within("the client connects", TcpStream::connect(address)).await;
                let socket = socket.unwrap();
                socket.set_nodelay(true).unwrap();
                Self::over(socket, builder).await
            }
            Address::Unix(path) => {
                let socket = within("the client connects", UnixStream::connect(path)).await;
                Self::over(socket.unwrap(), builder).await
            }
            Address::Host(..) => panic!("{address} is not where a proxy listens"),
        }
    }

    /// A client over a socket that is connected already.
    pub(crate) async fn over<S>(socket: S, builder: &Builder) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shaken = within("the client begins", builder.handshake(socket)).await;
        let (sender, connection) = shaken.unwrap();
        Self {
            sender,
            connection: tokio::spawn(connection),
        }
    }

    /// Opens a gRPC call.
    pub(crate) async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Call {
        let mut request = grpc(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.open(request, false).await
    }

    /// Opens a stream.
    pub(crate) async fn open(&self, request: request::Builder, end: bool) -> Call {
        let mut sender = within("there is room for a stream", self.sender.clone().ready())
            .await
            .unwrap();
        let request = request.body(()).unwrap();
        let (response, outgoing) = sender.send_request(request, end).unwrap();
        Call {
            outgoing: Outgoing::new(outgoing),
            response,
        }
    }

    /// One message there, and all that comes back.
    pub(crate) async fn unary(&self, path: &str, payload: &[u8]) -> Answer {
        let mut call = self.call(path, &[]).await;
        call.outgoing.message(payload).await;
        call.outgoing.end();
        call.answer().await
    }

    /// Leaves without a word.
    pub(crate) async fn vanish(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

/// The head of a gRPC call.
pub(crate) fn grpc(path: &str) -> request::Builder {
    Request::post(format!("http://e2e.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

// === impl Call ===

impl Call {
    /// The head of the response, and what follows it.
    pub(crate) async fn head(&mut self) -> (Response<()>, Incoming) {
        let head = self.try_head().await;
        head.unwrap_or_else(|error| panic!("instead of a response: {error}"))
    }

    /// The head of the response, or the break.
    pub(crate) async fn try_head(&mut self) -> Result<(Response<()>, Incoming), h2::Error> {
        let response = within("the head of the response comes", &mut self.response).await?;
        let (parts, body) = response.into_parts();
        Ok((Response::from_parts(parts, ()), Incoming::new(body)))
    }

    /// All that comes back; a break before the head is one too.
    pub(crate) async fn answer(&mut self) -> Answer {
        match self.try_head().await {
            Ok((head, mut incoming)) => answer(head, &mut incoming).await,
            Err(error) => Answer {
                status: StatusCode::IM_A_TEAPOT,
                headers: http::HeaderMap::new(),
                body: Bytes::new(),
                trailers: http::HeaderMap::new(),
                reset: Some(code(&error)),
            },
        }
    }
}

/// All that comes back, after the head.
pub(crate) async fn answer(head: Response<()>, incoming: &mut Incoming) -> Answer {
    let (body, end) = incoming.rest().await;
    let (trailers, reset) = match end {
        Ok(trailers) => (trailers, None),
        Err(error) => (http::HeaderMap::new(), Some(code(&error))),
    };
    Answer {
        status: head.status(),
        headers: head.headers().clone(),
        body,
        trailers,
        reset,
    }
}

fn code(error: &h2::Error) -> Reason {
    let code = error.reason();
    code.unwrap_or_else(|| panic!("the proxy's connection was lost: {error}"))
}
