//! One TLS session over a socket, on either side.
//!
//! **Why not `tokio-rustls`.** rustls reads some 4 KiB of the socket at a time. Here one read takes all that the socket has
//! into a lent buffer, and rustls is fed from that, so that many records are opened for one system call. And what is written
//! is sealed in one go, up to [`SEAL_AT_ONCE`], and leaves in one vectored write.
//!
//! **The end.** A peer that is done says so (`close_notify`), and only that reads as the end. A socket that just ends is an
//! error: who knows what was cut off. In the same way our own end is told by [`Session::poll_close`] alone, and a session
//! that is dropped says nothing, so that what broke off never looks complete.

use std::{
    io::{self, IoSlice, Read, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{lent::Lent, socket::Socket};

/// The most plaintext that is sealed before the socket has taken what was sealed already. It is what a stuck connection holds
/// beside its outbox.
const SEAL_AT_ONCE: usize = 128 * 1024;

/// One TLS session.
pub(super) struct Session {
    tls: Connection,
    /// Read from the socket, not yet opened.
    sealed: Lent,
    /// What broke it; it stays.
    broken: Option<rustls::Error>,
    /// An error that waits until the bytes from before it were handed on.
    held: Option<io::Error>,
    written: u64,
    closing: bool,
}

/// Which side of a session is ours, and what we bring along.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Server(Arc<ServerConfig>),
    /// The server must show a certificate for the name.
    Client(Arc<ClientConfig>, ServerName<'static>),
}

/// What the two sides have said to each other before the first byte.
#[derive(Debug)]
pub(crate) struct Greeting {
    /// The protocol that they agreed on, if they chose any.
    pub(crate) alpn: Option<Vec<u8>>,
    /// The peer's own certificate.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// They knew each other from before.
    pub(crate) resumed: bool,
}

// === impl Session ===

impl Session {
    /// `read` is what has come of the handshake.
    pub(super) fn new(role: Role, read: Lent) -> Result<Self, rustls::Error> {
        let mut tls = match role {
            Role::Server(config) => Connection::Server(ServerConnection::new(config)?),
            Role::Client(config, name) => Connection::Client(ClientConnection::new(config, name)?),
        };
        tls.set_buffer_limit(Some(SEAL_AT_ONCE));
        Ok(Self {
            tls,
            sealed: read,
            broken: None,
            held: None,
            written: 0,
            closing: false,
        })
    }

    pub(super) fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
    ) -> Poll<io::Result<Greeting>> {
        loop {
            ready!(self.poll_flush(cx, socket))?;
            if !self.tls.is_handshaking() {
                let certificates = self.tls.peer_certificates();
                let own = certificates.and_then(|chain| chain.first());
                return Poll::Ready(Ok(Greeting {
                    alpn: self.tls.alpn_protocol().map(<[u8]>::to_vec),
                    certificate: own.map(|certificate| certificate.clone().into_owned()),
                    resumed: self.tls.handshake_kind() == Some(HandshakeKind::Resumed),
                }));
            }
            if ready!(self.poll_feed(cx, socket))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// What broke it, if anything has.
    pub(super) fn broken(&self) -> Option<&rustls::Error> {
        self.broken.as_ref()
    }

    /// Bytes that the socket has taken.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Opens what has come. The socket is read until that yields something, and no further.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.held.take() {
            return Poll::Ready(Err(error));
        }
        let before = room.filled().len();
        loop {
            let ended = match self.tls.reader().read(room.initialize_unfilled()) {
                Ok(0) => true,
                Ok(count) => {
                    room.advance(count);
                    false
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) => {
                    self.held = Some(error);
                    true
                }
            };
            let opened = room.filled().len() > before;
            if ended || room.remaining() == 0 || (opened && self.sealed.is_empty()) {
                break;
            }
            match ready!(self.poll_feed(cx, socket)) {
                Ok(_) => {}
                Err(error) => {
                    self.held = Some(error);
                    break;
                }
            }
        }
        match self.held.take_if(|_| room.filled().len() == before) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Seals bytes and sends them as far as the socket takes them; the rest leaves with a flush.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx, socket))?;
        let count = self.tls.writer().write_vectored(slices)?;
        match self.poll_flush(cx, socket) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    /// Sends what was sealed.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
    ) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Sending { cx, socket }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => self.written += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => {
                    return Poll::Ready(Err(self.last_words(socket).unwrap_or(error)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What a peer has said that takes no more bytes: one that refuses us says why and closes, and the close is noticed first.
    fn last_words(&mut self, socket: &Socket) -> Option<io::Error> {
        while let Ok(1..) = self.take(|room| socket.read_now(room)) {}
        self.broken.clone().map(invalid)
    }

    /// Tells the peer that this was all.
    pub(super) fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
    ) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.closing, true) {
            self.tls.send_close_notify();
        }
        self.poll_flush(cx, socket)
    }

    /// Hands on to rustls what the socket has, a piece of it, and sends what it answers; 0 at the socket's end.
    fn poll_feed(&mut self, cx: &mut Context<'_>, socket: &mut Socket) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_take(cx, socket));
        // Not what was asked for, and so as far as it goes: an alert, or what belongs to a change of keys.
        let _ = self.poll_flush(cx, socket);
        Poll::Ready(taken)
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, socket: &mut Socket) -> Poll<io::Result<usize>> {
        let taken = self.take(|room| {
            let mut room = ReadBuf::new(room);
            match Pin::new(socket).poll_read(cx, &mut room) {
                Poll::Ready(read) => read.map(|()| room.filled().len()),
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match taken {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    }

    /// Opens what is there, and reads if nothing is.
    fn take(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.sealed.is_empty() {
            let (_, read) = self.sealed.fill_with(|room| match read(room) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            read?;
        }
        let taken = self.tls.read_tls(&mut self.sealed.filled())?;
        if taken == 0 {
            // The end. What stands behind it means nothing.
            self.sealed = Lent::default();
        }
        self.sealed.take(taken);
        match self.tls.process_new_packets() {
            Ok(_) => Ok(taken),
            Err(error) => {
                self.broken = Some(error.clone());
                Err(invalid(error))
            }
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A socket as rustls writes to it.
struct Sending<'a, 'b> {
    cx: &'a mut Context<'b>,
    socket: &'a mut Socket,
}

// === impl Sending ===

impl Write for Sending<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.socket).poll_write_vectored(self.cx, slices) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
