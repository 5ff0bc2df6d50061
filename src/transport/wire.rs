//! A socket as bytes cross it: in the clear, or under TLS.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    lent::Lent,
    session::{Greeting, Role, Session},
    socket::Socket,
};

/// A socket, and what seals the bytes on it.
pub(super) struct Wire {
    socket: Socket,
    /// On the heap: most connections have none, and where there is one, it is large.
    session: Option<Box<Session>>,
}

// === impl Wire ===

impl Wire {
    /// In the clear.
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            session: None,
        }
    }

    /// From now on under TLS. `read` was read from the socket already and belongs to the handshake.
    pub(super) fn secure(&mut self, role: Role, read: Lent) -> Result<(), rustls::Error> {
        self.session = Some(Box::new(Session::new(role, read)?));
        Ok(())
    }

    /// Ready when the handshake is done. One that fails tells the peer why, and leaves the socket in the clear, for what
    /// is left to be read and thrown away.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Greeting>> {
        let Some(session) = &mut self.session else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let greeting = ready!(session.poll_handshake(cx, &mut self.socket));
        if greeting.is_err() {
            self.session = None;
        }
        Poll::Ready(greeting)
    }

    /// Bytes that the socket has taken of those that were sealed; in the clear there are none.
    pub(super) fn sealed_written(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.written())
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.session {
            Some(session) => session.poll_read(cx, &mut self.socket, room),
            None => Pin::new(&mut self.socket).poll_read(cx, room),
        }
    }

    /// Takes bytes. Under TLS, what was taken may need a flush to leave.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.session {
            Some(session) => session.poll_write(cx, &mut self.socket, slices),
            None => Pin::new(&mut self.socket).poll_write_vectored(cx, slices),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.session {
            Some(session) => session.poll_flush(cx, &mut self.socket),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Says that nothing more comes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(session) = &mut self.session {
            ready!(session.poll_close(cx, &mut self.socket))?;
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// What has broken the session, if anything has.
    pub(super) fn broken(&self) -> Option<&rustls::Error> {
        self.session.as_ref()?.broken()
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}
