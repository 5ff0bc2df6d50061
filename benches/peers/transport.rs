//! The socket as the load generator and the backend see it: large reads, one write a turn.
//!
//! **Why.** On its own, h2 reads 8 KiB at a time and writes each DATA frame by itself. A load generator that does so
//! takes the processor from the proxy that it measures, and hands it small segments that no common gRPC peer sends.
//!
//! **How.** Reads fetch up to 256 KiB at once. Writes gather in a buffer, and `poll_flush` says "done" without writing;
//! whoever drives the connection calls [`Flusher::poll_flush`] once after each poll of the connection. The buffers are
//! lent by the thread for as long as they hold bytes, so thousands of idle connections own none.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What one read fetches at most.
const READ_MAX: usize = 256 * 1024;

/// What waits for a write before the socket is asked to take it.
const WRITE_MAX: usize = 128 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The half that h2 owns.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: Arc<TcpStream>,
    outgoing: Arc<Mutex<Pending>>,
    incoming: Pending,
}

/// The half that the connection's driver owns, to write what the codec has left behind.
#[derive(Debug)]
pub(crate) struct Flusher {
    socket: Arc<TcpStream>,
    outgoing: Arc<Mutex<Pending>>,
}

/// Bytes on their way, in a borrowed buffer. No buffer is held while there are none.
#[derive(Debug, Default)]
struct Pending {
    buffer: Vec<u8>,
    start: usize,
}

/// Splits a socket into what the codec reads and writes, and what its driver flushes.
pub(crate) fn split(socket: TcpStream) -> io::Result<(Transport, Flusher)> {
    socket.set_nodelay(true)?;
    let socket = Arc::new(socket);
    let outgoing = Arc::new(Mutex::new(Pending::default()));
    let flusher = Flusher {
        socket: Arc::clone(&socket),
        outgoing: Arc::clone(&outgoing),
    };
    Ok((
        Transport {
            socket,
            outgoing,
            incoming: Pending::default(),
        },
        flusher,
    ))
}

// === impl Flusher ===

impl Flusher {
    /// Writes all that waits, or asks to be woken when the socket takes more.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.poll_write_to(&self.socket, cx)
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
        if this.incoming.is_empty() {
            ready!(this.incoming.poll_read_from(&this.socket, cx))?;
        }
        let bytes = this.incoming.bytes();
        let count = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..count]);
        this.incoming.consume(count);
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
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        if outgoing.bytes().len() >= WRITE_MAX {
            ready!(outgoing.poll_write_to(&self.socket, cx))?;
        }
        outgoing.borrow_buffer();
        for slice in slices {
            outgoing.buffer.extend_from_slice(slice);
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
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.poll_write_to(&self.socket, cx)
    }
}

// === impl Pending ===

impl Pending {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    fn borrow_buffer(&mut self) {
        if self.buffer.capacity() == 0 {
            self.buffer = BUFFERS
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(READ_MAX));
        }
    }

    fn return_buffer(&mut self) {
        self.start = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() > 0 {
            buffer.clear();
            BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
        }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.return_buffer();
        }
    }

    /// Fills the buffer with one read. Leaves it empty at the end of the stream.
    fn poll_read_from(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(socket.poll_read_ready(cx))?;
            self.borrow_buffer();
            match socket.try_read_buf(&mut self.buffer) {
                Ok(0) => self.return_buffer(),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.return_buffer();
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn poll_write_to(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_write(self.bytes()) {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}
