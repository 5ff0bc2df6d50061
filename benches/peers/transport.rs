//! The socket as the load generator and the backend see it: large reads, one write a turn.
//!
//! **Why.** On its own, h2 reads 8 KiB at a time and writes each DATA frame by itself. A load generator that does so
//! takes the processor from the proxy that it measures, and hands it small segments that no common gRPC peer sends.
//!
//! **How.** Reads fetch up to 256 KiB at once. Writes gather in a buffer, and `poll_flush` says "done" without writing;
//! whoever drives the connection calls [`Flusher::poll_flush`] once after each poll of the connection. The buffers are
//! lent by the thread for as long as they hold bytes, so thousands of idle connections own none. Under TLS it is the same, above
//! TLS; and below it the socket is read in large pieces too.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one read fetches at most.
pub(crate) const READ_MAX: usize = 256 * 1024;

/// What waits for a write before the socket is asked to take it.
const WRITE_MAX: usize = 128 * 1024;

thread_local! {
    /// Buffers for reading. Each is full length, so that lending one clears nothing.
    static READ: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Buffers for writing. Each is empty.
    static WRITE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A connected socket, in the clear or under TLS.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Socket for S {}

/// The half that h2 owns.
pub(crate) struct Transport {
    shared: Arc<Mutex<Shared>>,
    /// Read and not yet taken: the bytes from `start` to `end`. No buffer is held while there are none.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
}

/// The half that the connection's driver owns, to write what the codec has left behind.
pub(crate) struct Flusher(Arc<Mutex<Shared>>);

struct Shared {
    socket: Box<dyn Socket>,
    /// Written by the codec; the socket has taken the bytes up to `written`. No buffer is held while there are none.
    outgoing: Vec<u8>,
    written: usize,
}

/// Splits a socket into what the codec reads and writes, and what its driver flushes.
pub(crate) fn split(socket: impl Socket) -> (Transport, Flusher) {
    let shared = Arc::new(Mutex::new(Shared {
        socket: Box::new(socket),
        outgoing: Vec::new(),
        written: 0,
    }));
    let flusher = Flusher(Arc::clone(&shared));
    let transport = Transport {
        shared,
        incoming: Vec::new(),
        start: 0,
        end: 0,
    };
    (transport, flusher)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Flusher ===

impl Flusher {
    /// Writes all that waits, or asks to be woken when the socket takes more.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_drain(cx)
    }
}

// === impl Shared ===

impl Shared {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let left = &self.outgoing[self.written..];
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, left))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        if self.written > 0 {
            self.written = 0;
            let mut buffer = std::mem::take(&mut self.outgoing);
            buffer.clear();
            WRITE.with_borrow_mut(|buffers| buffers.push(buffer));
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }
}

// === impl Transport ===

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            let mut buffer = READ
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; READ_MAX]);
            let mut room = ReadBuf::new(&mut buffer);
            let read = Pin::new(&mut lock(&this.shared).socket).poll_read(cx, &mut room);
            (this.start, this.end) = (0, room.filled().len());
            if this.end == 0 {
                READ.with_borrow_mut(|buffers| buffers.push(buffer));
                return read;
            }
            this.incoming = buffer;
        }
        let bytes = &this.incoming[this.start..this.end];
        let count = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..count]);
        this.start += count;
        if this.start == this.end {
            let buffer = std::mem::take(&mut this.incoming);
            READ.with_borrow_mut(|buffers| buffers.push(buffer));
        }
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
        let mut shared = lock(&self.shared);
        if shared.outgoing.len() - shared.written >= WRITE_MAX {
            ready!(shared.poll_drain(cx))?;
        }
        if shared.outgoing.capacity() == 0 {
            shared.outgoing = WRITE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        for slice in slices {
            shared.outgoing.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.socket).poll_shutdown(cx)
    }
}
