//! The socket as the HTTP codecs see it: large reads, and one write per turn.
//!
//! **Why.** The `h2` crate reads some 8 KiB at a time and flushes after every DATA frame. Left to itself it spends most of
//! a stream's cost in system calls.
//!
//! **How.** A read takes all that the socket has, and the codec is served from that. Writes gather, `poll_flush` is answered
//! with *done* and does nothing, and the connection's driver calls [`Transport::poll_drain`] once after each poll of the
//! connection. Large payloads are kept and not copied.
//!
//! | file | what it holds |
//! |---|---|
//! | [`lent`] | the large buffers, which belong to the worker and are lent for a turn |
//! | [`outbox`] | what has gathered to be written |
//! | [`wire`] | the socket, and what seals the bytes on it |
//! | [`session`] | one TLS session |
//! | [`blocks`] | header blocks that an HTTP/2 peer has begun and not ended |
//! | [`socket`] | TCP or Unix |
//!
//! **Rule.** Every path that polls a codec over a batched transport must end in a drain, or bytes stay behind.

use std::{
    cell::{Ref, RefCell, RefMut},
    fmt,
    future::Future,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use thalweg_proto::proxy;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{blocks::Blocks, lent::Lent, outbox::Outbox, wire::Wire};

mod blocks;
mod lent;
mod outbox;
mod session;
mod socket;
mod wire;

pub(crate) use self::{
    outbox::Payload,
    session::{Greeting, Role},
    socket::Socket,
};

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of a TLS connection: the record that begins it is a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The most that a codec is given in one turn for small frames. What it has read waits for the streams' tasks, and it closes
/// the connection when too many small frames wait; so the streams get their turn before that.
const TURN: usize = 64 * 1024;

/// A codec that asks for more than this is in the middle of a large frame.
const SMALL_READ: usize = 8 * 1024;

/// The codec's side of a socket; a clone is another handle to the same one.
#[derive(Clone)]
pub(crate) struct Transport(Rc<RefCell<Shared>>);

struct Shared {
    wire: Wire,
    /// Read from the wire, not yet taken by the codec.
    inbox: Lent,
    /// Written by the codec, not yet taken by the wire.
    outbox: Outbox,
    batched: bool,
    /// Bytes that the codec has taken since the last drain.
    turn: usize,
    /// Bytes that have come from the wire.
    read: u64,
    /// Of a connection whose header blocks are followed.
    blocks: Option<Blocks>,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    Tls,
}

// === impl Transport ===

impl Transport {
    /// Over a socket that nothing was read from yet.
    pub(crate) fn new(socket: Socket) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            wire: Wire::new(socket),
            inbox: Lent::default(),
            outbox: Outbox::default(),
            batched: false,
            turn: 0,
            read: 0,
            blocks: None,
        })))
    }

    /// From now on a flush waits for [`Transport::poll_drain`].
    pub(crate) fn batch(&self) {
        self.shared().batched = true;
    }

    /// From now on [`Transport::header_block`] tells. The HTTP/2 preface is the first that the codec will read.
    pub(crate) fn follow_header_blocks(&self) {
        self.shared().blocks = Some(Blocks::behind(PREFACE.len()));
    }

    /// The number of the header block that the peer has begun and not ended, if there is one.
    pub(crate) fn header_block(&self) -> Option<u64> {
        self.look().blocks.as_ref()?.open()
    }

    /// From now on all bytes cross the socket under TLS; ready when the two sides agree on how. The bytes that were looked at
    /// before are the beginning of the handshake.
    pub(crate) async fn secure(&self, role: Role) -> io::Result<Greeting> {
        {
            let Shared { wire, inbox, .. } = &mut *self.shared();
            wire.secure(role, std::mem::take(inbox))
                .map_err(io::Error::other)?;
        }
        std::future::poll_fn(|cx| self.shared().wire.poll_handshake(cx)).await
    }

    /// What has broken TLS on it, if anything has.
    pub(crate) fn broken(&self) -> Option<rustls::Error> {
        self.look().wire.broken().cloned()
    }

    /// Who is at the other end of the socket; a Unix socket's peer has no address.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.look().wire.socket().peer()
    }

    /// Takes the PROXY header off the beginning; ready with the source that it tells.
    pub(crate) fn poll_proxied(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<SocketAddr>>> {
        let shared = &mut *self.shared();
        loop {
            match proxy::parse(shared.inbox.filled()).map_err(invalid)? {
                Some(header) => {
                    shared.inbox.take(header.len);
                    return Poll::Ready(Ok(header.source));
                }
                None if ready!(shared.poll_fill(cx))? > 0 => {}
                None if shared.inbox.is_empty() => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                None => return Poll::Ready(Err(invalid("the PROXY header breaks off"))),
            }
        }
    }

    /// Looks at the first bytes without taking them: TLS by its first, HTTP/2 by prior knowledge by its preface.
    pub(crate) fn poll_spoken(&self, cx: &mut Context<'_>) -> Poll<io::Result<Spoken>> {
        let shared = &mut *self.shared();
        loop {
            let seen = shared.inbox.filled();
            if seen.first() == Some(&TLS_HANDSHAKE) {
                return Poll::Ready(Ok(Spoken::Tls));
            }
            let compared = seen.len().min(PREFACE.len());
            if seen[..compared] != PREFACE[..compared] {
                return Poll::Ready(Ok(Spoken::Http1));
            }
            if compared == PREFACE.len() {
                return Poll::Ready(Ok(Spoken::Http2));
            }
            if ready!(shared.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Writes what has gathered; pending while the socket takes no more.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Shared {
            wire, outbox, turn, ..
        } = &mut *self.shared();
        *turn = 0;
        outbox.poll_drain(cx, wire)
    }

    /// A number that grows with every byte that the socket takes, or `None` while it is not seen stuck.
    pub(crate) fn write_progress(&self) -> Option<u64> {
        let shared = self.look();
        let progress = shared.outbox.progress();
        progress.map(|written| written + shared.wire.sealed_written())
    }

    /// A number that grows with every byte that comes.
    pub(crate) fn read_progress(&self) -> u64 {
        self.look().read
    }

    fn shared(&self) -> RefMut<'_, Shared> {
        self.0.borrow_mut()
    }

    fn look(&self) -> Ref<'_, Shared> {
        self.0.borrow()
    }
}

impl Shared {
    /// Reads once into the inbox.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { wire, inbox, .. } = self;
        let (count, result) = inbox.fill_with(|room| {
            let mut room = ReadBuf::new(room);
            let result = wire.poll_read(cx, &mut room);
            (room.filled().len(), result)
        });
        self.read += count as u64;
        result.map_ok(|()| count)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *self.shared();
        if shared.batched && shared.turn >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if shared.inbox.is_empty() {
            ready!(shared.poll_fill(cx))?;
        }
        let filled = shared.inbox.filled();
        let count = filled.len().min(wanted.remaining());
        if wanted.remaining() <= SMALL_READ {
            shared.turn += count;
        }
        if let Some(blocks) = &mut shared.blocks {
            blocks.follow(&filled[..count]);
        }
        wanted.put_slice(&filled[..count]);
        shared.inbox.take(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Shared {
            wire,
            outbox,
            batched,
            ..
        } = &mut *self.shared();
        if *batched {
            return outbox.poll_push(cx, wire, slices);
        }
        outbox.poll_pass(cx, wire, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.look().batched {
            Poll::Ready(Ok(()))
        } else {
            self.poll_drain(cx)
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        self.shared().wire.poll_shutdown(cx)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.look();
        write!(
            f,
            "Transport({:?}, {} bytes to write)",
            shared.wire.socket(),
            shared.outbox.len()
        )
    }
}

pin_project! {
    /// Drives a codec over a batched transport: each poll of it is followed by one drain.
    pub(crate) struct Driven<F> {
        transport: Transport,
        #[pin]
        codec: F,
    }
}

/// Drives `codec` to its end.
pub(crate) fn driven<F: Future>(transport: Transport, codec: F) -> Driven<F> {
    Driven { transport, codec }
}

impl<F: Future> Future for Driven<F> {
    type Output = io::Result<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let output = this.codec.poll(cx);
        match (this.transport.poll_drain(cx), output) {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Err(error)),
            (_, Poll::Ready(output)) => Poll::Ready(Ok(output)),
            _ => Poll::Pending,
        }
    }
}
