//! As much of HTTP/1.1 as a file needs: one chunked request, and an answer that is read meanwhile.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::grpc::Failure;

/// Posts so many chunks of zeros, each of `size` bytes, and returns the payload of the answer, which is small.
pub(crate) async fn post(
    address: SocketAddr,
    path: &str,
    operation: &str,
    size: usize,
    chunks: u64,
) -> Result<Vec<u8>, Failure> {
    let (mut input, mut output) = TcpStream::connect(address).await?.into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: bench.test\r\ndapr-operation: {operation}\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let mut chunk = BytesMut::from(format!("{size:x}\r\n").as_bytes());
    chunk.put_bytes(0, size);
    chunk.put_slice(b"\r\n");
    let send = async {
        output.write_all(head.as_bytes()).await?;
        for _ in 0..chunks {
            output.write_all(&chunk).await?;
        }
        output.write_all(b"0\r\n\r\n").await
    };
    let mut answer = Vec::new();
    let (sent, read) = tokio::join!(send, input.read_to_end(&mut answer));
    read?;
    // What came back says more about a failure than that no more could be sent.
    let payload = payload(&answer)?;
    sent?;
    Ok(payload)
}

/// The payload of a chunked answer with status 200 that has come whole.
fn payload(answer: &[u8]) -> Result<Vec<u8>, Failure> {
    let broken = "the answer is cut or is not chunked";
    let text = String::from_utf8_lossy(answer);
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("not a success: {}", text.lines().next().unwrap_or_default()).into());
    }
    let mut rest = after(answer, b"\r\n\r\n").ok_or(broken)?.1;
    let mut payload = Vec::new();
    loop {
        let (size, chunk) = after(rest, b"\r\n").ok_or(broken)?;
        let size = usize::from_str_radix(std::str::from_utf8(size)?, 16)?;
        if size == 0 {
            return Ok(payload);
        }
        payload.extend_from_slice(chunk.get(..size).ok_or(broken)?);
        rest = chunk.get(size + 2..).ok_or(broken)?;
    }
}

/// What stands before `mark`, and what stands after it.
fn after<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes
        .windows(mark.len())
        .position(|window| window == mark)?;
    Some((&bytes[..at], &bytes[at + mark.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_must_be_whole() {
        let answer = b"HTTP/1.1 200 OK\r\na: b\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n";

        assert_eq!(payload(answer).unwrap(), b"hi!");
        assert!(payload(&answer[..answer.len() - 6]).is_err());
        assert!(payload(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
    }
}
