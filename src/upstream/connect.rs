//! Dialing a socket.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use crate::{config::Address, transport::Socket};

/// The kernel asks a silent peer for a sign of life after this long, and gives up on it after three more such waits.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects to an endpoint.
pub(crate) async fn connect(address: &Address) -> io::Result<Socket> {
    Ok(match address {
        Address::Tcp(address) => Socket::Tcp(prepare(TcpStream::connect(address).await?)?),
        Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        Address::Host(host, port) => {
            Socket::Tcp(prepare(TcpStream::connect((host.as_str(), *port)).await?)?)
        }
    })
}

/// Sets what every TCP connection of the proxy has, accepted or dialed.
pub(crate) fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(3);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}
