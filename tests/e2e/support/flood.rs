//! Senders that never tire, readers that give nothing back, and what has passed between them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    client::Client,
    stream::{Incoming, Outgoing},
    upstream::{self, Call, Served, Upstream},
    within,
};

/// How many calls must come and go before something that has not moved since counts as at rest.
const CALLS_AT_REST: usize = 8;

/// Bytes that have passed a point.
#[derive(Clone, Default)]
pub(crate) struct Passed(Arc<AtomicUsize>);

/// Sends the same message for as long as the other side takes it. It counts the bytes for which there was room.
pub(crate) struct Flood {
    pub(crate) sent: Passed,
    task: JoinHandle<Option<Reason>>,
}

/// Takes what comes out of the codec, so that nothing piles up in there, and gives back none of the window.
pub(crate) struct Hoard {
    pub(crate) held: Passed,
    task: JoinHandle<()>,
}

/// An upstream that answers by path:
///
/// | path | what happens |
/// |---|---|
/// | [`ECHO`] | each message comes back |
/// | [`STUCK`] | of the request nothing is read |
/// | [`FLOOD`] | the response is a flood of the message that was given, while there is room |
/// | [`SINK`] | the request is read, and the answer is a message with the number of its bytes |
/// | [`SPRING`] | so many bytes come as the request says in a message |
pub(crate) struct Backend {
    pub(crate) upstream: Served,
    /// Each call to [`STUCK`], with what it has received.
    stuck: mpsc::UnboundedReceiver<Hoard>,
    /// Each call to [`FLOOD`], with what it could send.
    floods: mpsc::UnboundedReceiver<Flood>,
}

pub(crate) const ECHO: &str = "/e2e.Bounds/Echo";
pub(crate) const STUCK: &str = "/e2e.Bounds/Stuck";
pub(crate) const FLOOD: &str = "/e2e.Bounds/Flood";
pub(crate) const SINK: &str = "/e2e.Bounds/Sink";
pub(crate) const SPRING: &str = "/e2e.Bounds/Spring";

// === impl Passed ===

impl Passed {
    pub(crate) fn get(&self) -> usize {
        self.0.load(SeqCst)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, SeqCst);
    }

    /// Waits for at least so many bytes.
    pub(crate) async fn reach(&self, bytes: usize) {
        within(&format!("{bytes} bytes pass"), async {
            while self.get() < bytes {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

// === impl Flood ===

impl Flood {
    /// Sends on `outgoing` until it breaks or this is dropped.
    pub(crate) fn start(mut outgoing: Outgoing, message: Bytes) -> Self {
        let sent = Passed::default();
        let passed = sent.clone();
        let task = tokio::spawn(async move {
            loop {
                let mut left = message.clone();
                while !left.is_empty() {
                    match outgoing.try_some(&mut left).await {
                        Ok(count) => passed.add(count),
                        Err(reason) => return reason,
                    }
                }
            }
        });
        Self { sent, task }
    }

    /// The code with which the other side breaks the stream off.
    pub(crate) async fn broken(mut self) -> Option<Reason> {
        within("the flood is broken off", &mut self.task)
            .await
            .unwrap()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Hoard ===

impl Hoard {
    pub(crate) fn start(mut incoming: Incoming) -> Self {
        let held = Passed::default();
        let passed = held.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(bytes)) = incoming.raw().data().await {
                passed.add(bytes.len());
            }
            // The end is no reason to give anything back.
            std::future::pending::<()>().await;
        });
        Self { held, task }
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Backend ===

impl Backend {
    /// `message` is what floods are made of.
    pub(crate) async fn start(builder: &h2::server::Builder, message: Bytes) -> Self {
        let (hoards, stuck) = mpsc::unbounded_channel();
        let (senders, floods) = mpsc::unbounded_channel();
        let upstream = Upstream::start_with(builder).await.serve(move |mut call| {
            let (hoards, senders, message) = (hoards.clone(), senders.clone(), message.clone());
            async move {
                match call.path() {
                    STUCK => {
                        let _ = hoards.send(Hoard::start(call.incoming));
                        // Holds the other half, or the stream would be reset.
                        let _reset = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
                    }
                    FLOOD => {
                        let flood = Flood::start(call.respond(), message);
                        let _ = senders.send(flood);
                    }
                    SINK => sink(call).await,
                    SPRING => spring(call).await,
                    _ => upstream::echo(call).await,
                }
            }
        });
        Self {
            upstream,
            stuck,
            floods,
        }
    }

    /// The next call that is not read.
    pub(crate) async fn stuck(&mut self) -> Hoard {
        within("a call comes to be stuck", self.stuck.recv())
            .await
            .unwrap()
    }

    /// The next call that is flooded.
    pub(crate) async fn flood(&mut self) -> Flood {
        within("a call comes to be flooded", self.floods.recv())
            .await
            .unwrap()
    }
}

/// The answer to [`SINK`].
async fn sink(mut call: Call) {
    let mut outgoing = call.respond();
    let mut count = 0;
    while let Some(Ok(bytes)) = call.incoming.chunk().await {
        count += bytes.len();
    }
    outgoing.message(count.to_string().as_bytes()).await;
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// The answer to [`SPRING`].
async fn spring(mut call: Call) {
    let mut outgoing = call.respond();
    let wanted = call.incoming.message().await.unwrap();
    let mut left: usize = std::str::from_utf8(&wanted).unwrap().parse().unwrap();
    let piece = BytesMut::zeroed(64 * 1024).freeze();
    while left > 0 {
        let piece = piece.slice(..left.min(piece.len()));
        left -= piece.len();
        if outgoing.try_data(piece).await.is_err() {
            return;
        }
    }
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// What `count` says once it is at rest: several calls in a row have gone all the way there and back, over the same
/// connections, and it has not moved.
pub(crate) async fn at_rest(client: &Client, count: impl Fn() -> usize) -> usize {
    within("the bytes come to rest", async {
        let mut seen = count();
        let mut calls = 0;
        while calls < CALLS_AT_REST {
            let answer = client.unary(ECHO, b"are you there?").await;
            assert_eq!(answer.messages(), ["are you there?"]);
            calls = if count() == seen { calls + 1 } else { 0 };
            seen = count();
        }
        seen
    })
    .await
}
