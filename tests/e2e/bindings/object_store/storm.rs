//! Many uploads at once, of which some are cut.

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use thalweg_proto::status::Code;

use super::{PART, Store, target};
use crate::support::{binding::payload, plain::Peer, within};

const UPLOADS: u64 = 200;

/// How a client speaks.
#[derive(Clone, Copy)]
enum Way {
    Http1,
    Http2,
    Grpc,
}

/// One client, and what it does.
struct Plan {
    key: String,
    way: Way,
    data: Bytes,
    /// Bytes after which it leaves.
    cut: Option<usize>,
}

/// Throws the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        // The generator of Knuth; its upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

impl Plan {
    fn new(number: u64, dice: &mut Dice) -> Self {
        let longest = [1, 100, PART as u64, 8 * PART as u64][dice.below(4) as usize];
        let length = dice.below(longest) as usize;
        let first = dice.below(256) as usize;
        Self {
            key: format!("{}/{number:03}", number % 7),
            way: [Way::Http1, Way::Http2, Way::Grpc][dice.below(3) as usize],
            data: (first..first + length)
                .map(|byte| (byte * 5 / 3) as u8)
                .collect(),
            cut: (dice.below(3) == 0).then(|| dice.below(length as u64 + 1) as usize),
        }
    }

    async fn run(&self, store: &Store) {
        let target = target("create", &[("key", &self.key)]);
        let sent = self.data.slice(..self.cut.unwrap_or(self.data.len()));
        match self.way {
            Way::Http1 => {
                let mut peer = Peer::connect(&store.proxy.address).await;
                let head = format!(
                    "POST {target} HTTP/1.1\r\nhost: e2e\r\ntransfer-encoding: chunked\r\n\r\n"
                );
                peer.write(head).await;
                for piece in sent.chunks(10_000) {
                    peer.write_chunk(piece).await;
                }
                if self.cut.is_none() {
                    peer.write("0\r\n\r\n").await;
                    assert_eq!(peer.head().await.line, "HTTP/1.1 200 OK");
                }
            }
            Way::Http2 => {
                let mut call = store.client.request("POST", &target, &[]).await;
                call.outgoing.data(sent).await;
                if self.cut.is_none() {
                    call.outgoing.end();
                    assert_eq!(call.answer().await.status, 200);
                } else {
                    call.outgoing.reset(Reason::CANCEL);
                }
            }
            Way::Grpc => {
                let mut call = store.client.invoke("it", &[("key", &self.key)]).await;
                for (number, piece) in sent.chunks(10_000).enumerate() {
                    call.outgoing.message(&payload(number as u64, piece)).await;
                }
                if self.cut.is_none() {
                    call.outgoing.end();
                    assert_eq!(call.answer().await.code(), Code::Ok);
                } else {
                    call.outgoing.reset(Reason::CANCEL);
                }
            }
        }
    }
}

#[tokio::test]
async fn storm_of_uploads_leaves_those_that_are_whole_and_nothing_else() {
    let store = Store::files().await;
    let mut dice = Dice(29);
    let plans: Vec<_> = (0..UPLOADS)
        .map(|number| Plan::new(number, &mut dice))
        .collect();

    join_all(plans.iter().map(|plan| plan.run(&store))).await;

    let whole = plans.iter().filter(|plan| plan.cut.is_none());
    let mut expected: Vec<_> = whole.clone().map(|plan| plan.key.clone()).collect();
    expected.sort();
    assert!(
        expected.len() > 100 && expected.len() < 160,
        "{}",
        expected.len()
    );
    within("only what is whole is left", async {
        while store.all() != expected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for plan in whole {
        let stored = std::fs::read(store.path(&plan.key)).unwrap();
        assert!(stored == plan.data, "{}", plan.key);
    }
}
