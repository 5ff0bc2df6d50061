//! Dialing a socket.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use crate::{config::Address, transport::Socket};

/// The kernel asks a silent peer for a sign of life after this long, and gives up on it after three more such waits.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects to an endpoint.
pub(crate) async fn connect(address: &Address) -> io::Result<Socket> {
    Ok(match address {
        Address::Tcp(address) => tcp(TcpStream::connect(address).await?)?,
        Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        Address::Host(host, port) => tcp(TcpStream::connect((host.as_str(), *port)).await?)?,
    })
}

fn tcp(socket: TcpStream) -> io::Result<Socket> {
    prepare(&socket)?;
    Ok(Socket::Tcp(socket))
}

/// Sets what every TCP connection of the proxy has, accepted or dialed.
pub(crate) fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}
