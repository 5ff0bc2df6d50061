//! A connected stream socket, whatever it is connected over.

use std::{
    io::{self, IoSlice, Read as _},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

// === impl Socket ===

impl Socket {
    /// The address at the other end, if it has one.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(socket) => Some(socket.peer_addr().ok()?.ip()),
            Self::Unix(_) => None,
        }
    }

    /// Reads what the kernel has, also where the runtime has not heard of it yet.
    pub(super) fn read_now(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => (&*SockRef::from(socket)).read(room),
            Self::Unix(socket) => (&*SockRef::from(socket)).read(room),
        }
    }

    fn poll_with(self: Pin<&mut Self>) -> Pin<&mut (dyn Duplex + Unpin)> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket),
            Self::Unix(socket) => Pin::new(socket),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Duplex for T {}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_with().poll_read(cx, space)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with().poll_shutdown(cx)
    }
}
