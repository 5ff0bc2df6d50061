//! The limit: copies bytes between two sockets and knows nothing of HTTP.
//!
//! **Why.** No proxy that reads and writes through the kernel can cost less, so it tells how much of a proxy's cost is
//! its own.
//!
//! **How.** One thread, one buffer for all connections; what a socket does not take at once is kept until it does.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::grpc::Failure;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 * 1024]);
}

/// Relays from `listen` to `upstream` until standard input ends.
pub(crate) async fn run(listen: SocketAddr, upstream: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).await?;
    let mut input = tokio::io::stdin();
    tokio::select! {
        result = accept(listener, upstream) => result,
        _ = input.read_u8() => Ok(()),
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr) -> Result<(), Failure> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let server = TcpStream::connect(upstream).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            // The end of either direction ends both: no peer here closes one half.
            tokio::select! {
                result = copy(&client, &server) => result,
                result = copy(&server, &client) => result,
            }
        });
    }
}

async fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        let step = BUFFER.with_borrow_mut(|buffer| {
            let count = from.try_read(buffer)?;
            let written = to
                .try_write(&buffer[..count])
                .or_else(would_block_is_none)?;
            io::Result::Ok((count, buffer[written..count].to_vec()))
        });
        let rest = match step {
            Ok((0, _)) => return Ok(()),
            Ok((_, rest)) => rest,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let mut rest = rest.as_slice();
        while !rest.is_empty() {
            to.writable().await?;
            let written = to.try_write(rest).or_else(would_block_is_none)?;
            rest = &rest[written..];
        }
    }
}

fn would_block_is_none(error: io::Error) -> io::Result<usize> {
    if error.kind() == ErrorKind::WouldBlock {
        Ok(0)
    } else {
        Err(error)
    }
}
