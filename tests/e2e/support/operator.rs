//! The admin endpoints, as an operator sees them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::within;

/// Asks the admin endpoints at an address.
#[derive(Clone, Copy)]
pub(crate) struct Operator(pub(crate) SocketAddr);

/// What an endpoint answers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// All lines of the head, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

// === impl Operator ===

impl Operator {
    pub(crate) async fn get(self, path: &str) -> Reply {
        self.ask("GET", path, "").await
    }

    /// `/metrics` for one who reads this kind of text.
    pub(crate) async fn metrics_as(self, accept: &str) -> Reply {
        let field = format!("accept: {accept}\r\n");
        self.ask("GET", "/metrics", &field).await
    }

    /// `fields` are whole lines, each with its end.
    pub(crate) async fn ask(self, method: &str, path: &str, fields: &str) -> Reply {
        self.say(&format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n{fields}\r\n"
        ))
        .await
    }

    /// The answer to a head of which every byte is the test's own, and which ends the connection.
    pub(crate) async fn say(self, request: &str) -> Reply {
        within("the admin endpoint answers", async {
            let mut socket = TcpStream::connect(self.0).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            Reply {
                status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                head: head.to_ascii_lowercase(),
                body: body.to_owned(),
            }
        })
        .await
    }

    /// The number in a line of `/metrics`; 0 when there is none.
    pub(crate) async fn metric(self, line: &str) -> u64 {
        let reply = self.get("/metrics").await;
        let mut lines = reply.body.lines();
        let found = lines.find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |number| number.parse().unwrap())
    }

    /// Waits until a line of `/metrics` has a number: counters follow what they count, and not at once.
    pub(crate) async fn metric_is(self, line: &str, wanted: u64) {
        let mut last = None;
        let reached = tokio::time::timeout(super::CAP, async {
            while last != Some(wanted) {
                last = Some(self.metric(line).await);
            }
        });
        if reached.await.is_err() {
            panic!("{line} is {last:?} and should be {wanted}");
        }
    }
}
