//! HTTP/2, frame by frame: for what no codec would send, and for what has to lie in one segment.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thalweg::config::Address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::within;

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// One frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Bytes,
}

/// A socket on which frames are written by hand.
pub(crate) struct Peer {
    socket: TcpStream,
    buffer: BytesMut,
}

/// A listener whose connections are written by hand.
pub(crate) struct RawUpstream {
    /// As the configuration wants it.
    pub(crate) address: String,
    listener: TcpListener,
}

// === frames ===

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame
}

/// SETTINGS with these values.
pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in values {
        payload.put_u16(*name);
        payload.put_u32(*value);
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// The acknowledgement of SETTINGS.
pub(crate) fn settings_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

/// The fields of a head that begins a call of gRPC.
pub(crate) fn grpc(path: &str) -> [(&str, &str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "e2e.test"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// HEADERS, every field literal and unknown to any table (RFC 7541, section 6.2.2).
pub(crate) fn headers(stream: u32, pairs: &[(&str, &str)], end_stream: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in pairs {
        block.put_u8(0);
        for text in [name, value] {
            // Lengths up to 126 fit in the first byte.
            assert!(text.len() < 127, "too long for this small an encoder");
            block.put_u8(u8::try_from(text.len()).unwrap());
            block.put_slice(text.as_bytes());
        }
    }
    let end = if end_stream { END_STREAM } else { 0 };
    frame(HEADERS, END_HEADERS | end, stream, &block)
}

/// DATA.
pub(crate) fn data(stream: u32, bytes: &[u8], end_stream: bool) -> Vec<u8> {
    let flags = if end_stream { END_STREAM } else { 0 };
    frame(DATA, flags, stream, bytes)
}

/// RST_STREAM.
pub(crate) fn rst_stream(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// GOAWAY: streams above `last` were not looked at.
pub(crate) fn goaway(last: u32, code: u32) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.put_u32(code);
    frame(GOAWAY, 0, 0, &payload)
}

/// WINDOW_UPDATE.
pub(crate) fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

impl Frame {
    /// The code of RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        assert_eq!(self.kind, RST_STREAM);
        (&self.payload[..]).get_u32()
    }

    /// Whether it is the last of its side of the stream.
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

// === impl RawUpstream ===

impl RawUpstream {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap().to_string(),
            listener,
        }
    }

    /// The next connection, before a byte of it was read.
    pub(crate) async fn accept(&self) -> Peer {
        let accepted = within("the proxy dials", self.listener.accept()).await;
        Peer::new(accepted.unwrap().0)
    }

    /// The next connection, with its preface read, and settings exchanged and acknowledged.
    pub(crate) async fn handshake(&self, values: &[(u16, u32)]) -> Peer {
        let mut peer = self.accept().await;
        assert_eq!(peer.bytes(PREFACE.len()).await, PREFACE);
        peer.write(&settings(values)).await;
        peer.until(|frame| frame.kind == SETTINGS && frame.flags == 0)
            .await;
        peer.write(&settings_ack()).await;
        peer
    }
}

// === impl Peer ===

impl Peer {
    fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            buffer: BytesMut::new(),
        }
    }

    /// A client that says nothing yet.
    pub(crate) async fn connect(address: &Address) -> Self {
        let Address::Tcp(address) = address else {
            panic!("frames are written by hand over TCP only")
        };
        let socket = within("the peer connects", TcpStream::connect(address)).await;
        Self::new(socket.unwrap())
    }

    /// A client that has said the preface, and exchanged and acknowledged settings.
    pub(crate) async fn client(address: &Address, values: &[(u16, u32)]) -> Self {
        let mut peer = Self::connect(address).await;
        peer.write(&[PREFACE, &settings(values)].concat()).await;
        peer.until(|frame| frame.kind == SETTINGS && frame.flags == 0)
            .await;
        peer.write(&settings_ack()).await;
        peer
    }

    /// Writes bytes at once, so that they come in one segment if they fit.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("the proxy takes the bytes", self.socket.write_all(bytes))
            .await
            .unwrap();
    }

    /// Writes bytes, unless the proxy has closed the connection.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("the proxy takes the bytes", self.socket.write_all(bytes)).await
    }

    /// The next so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Bytes {
        while self.buffer.len() < count {
            assert!(self.read().await, "the proxy closed the connection");
        }
        self.buffer.split_to(count).freeze()
    }

    /// The next frame, or `None` when the proxy has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let len = (&self.buffer[..]).get_uint(3) as usize;
                if self.buffer.len() >= 9 + len {
                    let mut head = self.buffer.split_to(9);
                    head.advance(3);
                    return Some(Frame {
                        kind: head.get_u8(),
                        flags: head.get_u8(),
                        stream: head.get_u32() & 0x7fff_ffff,
                        payload: self.buffer.split_to(len).freeze(),
                    });
                }
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next frame that is wanted; those before it are skipped. PINGs are answered on the way.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let Some(frame) = self.next().await else {
                panic!("the proxy closed the connection before the frame that was wanted")
            };
            if wanted(&frame) {
                return frame;
            }
            if frame.kind == PING && frame.flags & ACK == 0 {
                self.write(&self::frame(PING, ACK, 0, &frame.payload)).await;
            }
        }
    }

    /// Waits until the proxy has read all that was written, and tells what it had to say until then.
    pub(crate) async fn synchronize(&mut self) -> Vec<Frame> {
        self.write(&frame(PING, 0, 0, b"in order")).await;
        let mut before = Vec::new();
        loop {
            let next = self.next().await.expect("the proxy answers a PING");
            if next.kind == PING && next.flags & ACK != 0 {
                return before;
            }
            before.push(next);
        }
    }

    /// Waits until the proxy has closed the connection; frames before that are skipped.
    pub(crate) async fn closed(&mut self) {
        while self.read().await {}
    }

    async fn read(&mut self) -> bool {
        let read = within("the proxy writes", self.socket.read_buf(&mut self.buffer)).await;
        read.is_ok_and(|count| count > 0)
    }
}
