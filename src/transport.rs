//! The socket as the HTTP codecs see it: large reads, and one write per turn.
//!
//! **Why.** The `h2` crate reads some 8 KiB at a time and flushes after every DATA frame. Left to itself it spends most of
//! a stream's cost in system calls.
//!
//! **How.** A read takes what the socket has, up to [`BUFFER`], and the codec is served from that. Writes gather in a buffer
//! of the same size, `poll_flush` is answered with *done* and does nothing, and the connection's driver calls
//! [`Transport::poll_drain`] once after each poll of the connection. Large payloads are not copied: they leave in one
//! vectored write together with what has gathered before them.
//!
//! The buffers belong to the worker and are lent for a turn: an idle connection owns none. One that is stuck keeps a
//! copy of just what is stuck.
//!
//! **Rule.** Every path that polls a codec over a batched transport must end in a drain, or bytes stay behind.

use std::{
    cell::{Ref, RefCell, RefMut},
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Size of a lent buffer: the most that one read takes, and the most that gathers before a write.
const BUFFER: usize = 256 * 1024;

/// How many buffers a worker keeps for the next turn. More than two are needed only while sockets are stuck.
const BUFFERS_KEPT: usize = 8;

/// What has gathered is written once it is this much, without waiting for the end of the turn.
const WRITE_AT: usize = 64 * 1024;

/// A write of this much is not copied into the buffer but goes out at once, behind what has gathered.
const BYPASS: usize = 32 * 1024;

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connected stream socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The codec's side of a socket; a clone is another handle to the same one.
#[derive(Clone)]
pub(crate) struct Transport(Rc<RefCell<Shared>>);

struct Shared {
    socket: Socket,
    /// Read from the socket, not yet taken by the codec.
    inbox: Lent,
    /// Written by the codec, not yet taken by the socket.
    outbox: Lent,
    batched: bool,
    /// Bytes that the socket has taken so far: what a watch for stalls looks at.
    written: u64,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
}

/// Bytes in a buffer that is borrowed from the worker while there are any.
#[derive(Default)]
struct Lent {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

thread_local! {
    /// The worker's buffers. Each is full length, so that lending one clears nothing.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

// === impl Transport ===

impl Transport {
    /// Over a socket that nothing was read from yet.
    pub(crate) fn new(socket: Socket) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            socket,
            inbox: Lent::default(),
            outbox: Lent::default(),
            batched: false,
            written: 0,
        })))
    }

    /// From now on a flush waits for [`Transport::poll_drain`].
    pub(crate) fn batch(&self) {
        self.shared().batched = true;
    }

    /// Looks at the first bytes without taking them: HTTP/2 by prior knowledge begins with its preface.
    pub(crate) fn poll_spoken(&self, cx: &mut Context<'_>) -> Poll<io::Result<Spoken>> {
        let shared = &mut *self.shared();
        loop {
            let seen = shared.inbox.filled();
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
        let shared = &mut *self.shared();
        let drained = shared.poll_write_out(cx, &[]);
        if drained.is_pending() {
            shared.outbox.shrink();
        }
        drained.map_ok(drop)
    }

    /// Bytes that the socket has taken so far, or `None` when nothing waits to be written.
    pub(crate) fn write_progress(&self) -> Option<u64> {
        let shared = self.look();
        (!shared.outbox.is_empty()).then_some(shared.written)
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
        self.inbox.make_room(1);
        let mut space = ReadBuf::new(&mut self.inbox.buffer[self.inbox.end..]);
        let result = Pin::new(&mut self.socket).poll_read(cx, &mut space);
        let read = space.filled().len();
        self.inbox.end += read;
        self.inbox.return_if_empty();
        ready!(result)?;
        Poll::Ready(Ok(read))
    }

    /// Writes the outbox and then `more`, as far as the socket takes them, in one call if it can. Returns how much of
    /// `more` went; pending only if the outbox could not be emptied and so nothing of `more` did.
    fn poll_write_out(
        &mut self,
        cx: &mut Context<'_>,
        more: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted: usize = more.iter().map(|slice| slice.len()).sum();
        while !self.outbox.is_empty() || wanted > 0 {
            let gathered = self.outbox.filled().len();
            let written = if more.is_empty() {
                ready!(Pin::new(&mut self.socket).poll_write(cx, self.outbox.filled()))?
            } else {
                let mut slices = [IoSlice::new(&[]); MOST_SLICES];
                let head = usize::from(gathered > 0);
                slices[0] = IoSlice::new(self.outbox.filled());
                let count = more.len().min(MOST_SLICES - head);
                slices[head..head + count].copy_from_slice(&more[..count]);
                ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..head + count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.outbox.take(written.min(gathered));
            if written > gathered {
                return Poll::Ready(Ok(written - gathered));
            }
        }
        Poll::Ready(Ok(0))
    }
}

/// The codec hands over a frame's head and payload, rarely more.
const MOST_SLICES: usize = 16;

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *self.shared();
        if shared.inbox.is_empty() {
            ready!(shared.poll_fill(cx))?;
        }
        let filled = shared.inbox.filled();
        let count = filled.len().min(wanted.remaining());
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
        let shared = &mut *self.shared();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if !shared.batched || total >= BYPASS || shared.outbox.filled().len() + total > WRITE_AT {
            // A socket that takes nothing holds the codec back, and with it everyone who writes to this connection.
            let taken = shared.poll_write_out(cx, slices);
            if taken.is_pending() {
                shared.outbox.shrink();
            }
            return taken;
        }
        for slice in slices {
            shared.outbox.push(slice);
        }
        Poll::Ready(Ok(total))
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
        Pin::new(&mut self.shared().socket).poll_shutdown(cx)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.look();
        write!(
            f,
            "Transport({:?}, {} bytes to write)",
            shared.socket,
            shared.outbox.filled().len()
        )
    }
}

// === impl Lent ===

impl Lent {
    fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn push(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Makes sure of room behind what is filled, which is always far less than a whole buffer.
    fn make_room(&mut self, wanted: usize) {
        if self.buffer.len() - self.end >= wanted {
            return;
        }
        let mut buffer = BUFFERS
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| vec![0; BUFFER]);
        let filled = self.filled().len();
        buffer[..filled].copy_from_slice(self.filled());
        give_back(std::mem::replace(&mut self.buffer, buffer));
        (self.start, self.end) = (0, filled);
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        self.return_if_empty();
    }

    fn return_if_empty(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            give_back(std::mem::take(&mut self.buffer));
        }
    }

    /// Keeps just what is filled, and lets the buffer go to others.
    fn shrink(&mut self) {
        if self.buffer.len() == BUFFER {
            let kept = self.filled().to_vec();
            (self.start, self.end) = (0, kept.len());
            give_back(std::mem::replace(&mut self.buffer, kept));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buffer));
    }
}

fn give_back(buffer: Vec<u8>) {
    if buffer.len() == BUFFER {
        // Fails only while the thread ends, when nobody borrows any more.
        let _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < BUFFERS_KEPT {
                buffers.push(buffer);
            }
        });
    }
}

// === impl Socket ===

impl Socket {
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

/// Drives a codec over a batched transport: each poll of `codec` is followed by one drain.
pub(crate) async fn driven<F: Future>(transport: Transport, codec: F) -> io::Result<F::Output> {
    let mut codec = std::pin::pin!(codec);
    std::future::poll_fn(|cx| {
        let output = codec.as_mut().poll(cx);
        match (transport.poll_drain(cx), output) {
            (Poll::Ready(Err(error)), _) => Poll::Ready(Err(error)),
            (_, Poll::Ready(output)) => Poll::Ready(Ok(output)),
            _ => Poll::Pending,
        }
    })
    .await
}
