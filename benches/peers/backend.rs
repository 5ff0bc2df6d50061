//! The backend: answers every call of every proxy in the same way.
//!
//! **How.** It runs as a process of its own on one thread, prints the address that it listens on and that of its [`s3`], and ends
//! when its standard input does, so that it cannot outlive the run.

use std::future::poll_fn;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::Request;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::binding;
use crate::grpc::{self, Body, Failure};
use crate::s3;
use crate::tls;
use crate::transport::{self, Flusher, READ_MAX, Transport};
use crate::work::SMALL_MESSAGE;

/// Connections that may wait to be accepted: some proxies dial once a stream.
const BACKLOG: u32 = 4096;

/// Serves until standard input ends.
pub(crate) async fn run(pair: Option<&Path>) -> Result<(), Failure> {
    let tls = pair.map(tls::acceptor).transpose()?;
    let listener = listen()?;
    let store = listen()?;
    println!("{} {}", listener.local_addr()?, store.local_addr()?);
    let mut input = tokio::io::stdin();
    tokio::select! {
        result = accept(listener, tls) => result,
        result = s3::accept(store) => result,
        _ = input.read_u8() => Ok(()),
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>) -> Result<(), Failure> {
    loop {
        let (socket, _) = listener.accept().await?;
        let tls = tls.clone();
        tokio::spawn(async move {
            // A proxy may close a connection as it likes; what that breaks is seen by the load generator.
            let _ = serve(socket, tls).await;
        });
    }
}

async fn serve(socket: TcpStream, tls: Option<TlsAcceptor>) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    let (transport, flusher) = match tls {
        Some(tls) => {
            let socket = BufReader::with_capacity(READ_MAX, socket);
            transport::split(tls.accept(socket).await?)
        }
        None => transport::split(socket),
    };
    let mut connection = grpc::server_builder().handshake(transport).await?;
    while let Some((request, respond)) = next_stream(&mut connection, &flusher).await? {
        tokio::spawn(async {
            let _ = answer(request, respond).await;
        });
    }
    Ok(())
}

type Stream = (Request<RecvStream>, SendResponse<Bytes>);

/// Drives the connection until its next stream, writing out once a turn what the codec has left in the buffer.
async fn next_stream(
    connection: &mut Connection<Transport, Bytes>,
    flusher: &Flusher,
) -> Result<Option<Stream>, Failure> {
    poll_fn(|cx| {
        let state = connection.poll_accept(cx);
        if state.is_pending()
            && let Poll::Ready(Err(error)) = flusher.poll_flush(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        state.map(|stream| stream.transpose().map_err(Failure::from))
    })
    .await
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), Failure> {
    let (head, body) = request.into_parts();
    let mut body = Body::new(body);
    match head.uri.path() {
        "/bench.Bench/Unary" => {
            body.count().await?;
            let mut stream = respond.send_response(grpc::response(), false)?;
            stream.send_data(grpc::message(SMALL_MESSAGE, &[]), false)?;
            stream.send_trailers(grpc::trailers())?;
        }
        "/bench.Bench/Upload" => {
            let count = body.count().await?;
            let mut stream = respond.send_response(grpc::response(), false)?;
            stream.send_data(grpc::message(SMALL_MESSAGE, &[count]), false)?;
            stream.send_trailers(grpc::trailers())?;
        }
        "/bench.Bench/Download" => {
            let request = body.gather(grpc::HEAD_LENGTH + SMALL_MESSAGE).await?;
            let count = grpc::number(&request, 0).ok_or("no count")?;
            let length = grpc::number(&request, 1).ok_or("no length")?;
            let message = grpc::message(usize::try_from(length)?, &[]);
            let mut stream = respond.send_response(grpc::response(), false)?;
            for _ in 0..count {
                grpc::send(&mut stream, message.clone()).await?;
            }
            stream.send_trailers(grpc::trailers())?;
        }
        // Hold is a ping-pong whose client stays away.
        "/bench.Bench/PingPong" | "/bench.Bench/Hold" => {
            let echo = head.uri.path().ends_with("PingPong");
            let mut stream = respond.send_response(grpc::response(), false)?;
            while let Some(chunk) = body.chunk().await? {
                // The end of the stream comes as an empty chunk; Envoy drops a connection on empty frames in a row.
                if echo && !chunk.is_empty() {
                    // As small as the window is large: it need not be asked.
                    stream.send_data(chunk, false)?;
                }
            }
            stream.send_trailers(grpc::trailers())?;
        }
        path => {
            if !binding::answer(path, &mut body, &mut respond).await? {
                respond.send_response(grpc::unimplemented(), true)?;
            }
        }
    }
    Ok(())
}
