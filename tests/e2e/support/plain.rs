//! HTTP/1.1, line by line, from either side.

use bytes::{Bytes, BytesMut};
use thalweg::config::Address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::within;

/// The buffer of a narrow socket.
pub(crate) const NARROW: u32 = 8 * 1024;

/// A socket on which HTTP/1.1 is written by hand.
pub(crate) struct Peer {
    socket: TcpStream,
    buffer: BytesMut,
}

/// A listener whose connections are written by hand.
pub(crate) struct PlainUpstream {
    /// As the configuration wants it.
    pub(crate) address: String,
    listener: TcpListener,
}

/// The head of a request or of a response.
#[derive(Debug)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) line: String,
    /// The fields in their order, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
}

// === impl PlainUpstream ===

impl PlainUpstream {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap().to_string(),
            listener,
        }
    }

    /// With sockets that take few bytes before they are read.
    pub(crate) async fn bind_narrow() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        Self {
            address: listener.local_addr().unwrap().to_string(),
            listener,
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Peer {
        let accepted = within("the proxy dials", self.listener.accept()).await;
        Peer::new(accepted.unwrap().0)
    }
}

// === impl Head ===

impl Head {
    /// The values of a field, in their order.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(known, _)| known == name);
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.values(name).is_empty()
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

    /// A client.
    pub(crate) async fn connect(address: &Address) -> Self {
        let Address::Tcp(address) = address else {
            panic!("HTTP/1.1 is written by hand over TCP only")
        };
        let socket = within("the client connects", TcpStream::connect(address)).await;
        Self::new(socket.unwrap())
    }

    /// A client whose socket takes few bytes before they are read.
    pub(crate) async fn connect_narrow(address: &Address) -> Self {
        let Address::Tcp(address) = address else {
            panic!("HTTP/1.1 is written by hand over TCP only")
        };
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW).unwrap();
        let socket = within("the client connects", socket.connect(*address)).await;
        Self::new(socket.unwrap())
    }

    /// The socket itself, for those who write for ever.
    pub(crate) fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Writes bytes.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(
            "the other side takes the bytes",
            self.socket.write_all(bytes.as_ref()),
        )
        .await
        .unwrap();
    }

    /// Writes one chunk of a chunked body.
    pub(crate) async fn write_chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk).await;
    }

    /// The next head.
    pub(crate) async fn head(&mut self) -> Head {
        let line = self.line().await;
        let mut fields = Vec::new();
        loop {
            let field = self.line().await;
            if field.is_empty() {
                return Head { line, fields };
            }
            let (name, value) = field.split_once(':').unwrap();
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(at + 2);
                return String::from_utf8(line[..at].to_vec()).unwrap();
            }
            assert!(
                self.read().await,
                "the connection ended within a line: {:?}",
                self.buffer
            );
        }
    }

    /// The next so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Bytes {
        while self.buffer.len() < count {
            assert!(
                self.read().await,
                "the connection ended before its bytes: {:?}",
                self.buffer
            );
        }
        self.buffer.split_to(count).freeze()
    }

    /// The next chunk of a chunked body; the last is empty, and what follows it is the trailer section.
    pub(crate) async fn chunk(&mut self) -> Bytes {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        let bytes = self.bytes(size).await;
        if size > 0 {
            assert_eq!(self.line().await, "");
        }
        bytes
    }

    /// A chunked body up to its last chunk, and its trailer section.
    pub(crate) async fn chunked(&mut self) -> (Bytes, Vec<String>) {
        let mut body = BytesMut::new();
        loop {
            let chunk = self.chunk().await;
            if chunk.is_empty() {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return (body.freeze(), trailers);
            }
            trailers.push(line);
        }
    }

    /// All bytes up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Bytes {
        while self.read().await {}
        self.buffer.split().freeze()
    }

    async fn read(&mut self) -> bool {
        let read = within(
            "the other side writes",
            self.socket.read_buf(&mut self.buffer),
        )
        .await;
        read.is_ok_and(|count| count > 0)
    }
}
