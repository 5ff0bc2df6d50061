//! What a worker does when the process holds too much.
//!
//! **Why.** Windows bound one stream and one connection; their number times their size can still be more than the memory. A
//! reader who takes a few bytes now and then holds a window for as long as he likes, and is no stall.
//!
//! **How.** From seven eighths of `max_held` on, new streams are refused, and each worker looks at its streams every
//! [`LOOK`]. Those that stand still are ended, the ones that hold the most first, until no more than three quarters are
//! held: to refuse what is new and end nobody would let those who stand still shut everybody out. A stream stands still when
//! between two looks it has let go of less than a small part of what it holds; so whoever reads on, however much he holds,
//! is left alone.

use std::{cmp::Reverse, rc::Rc, sync::Arc, time::Duration};

use thalweg_filters::{
    Error, Side, StreamContext,
    held::{Share, Total},
};
use thalweg_proto::status::Code;
use tokio::time::sleep;

use crate::dismissal::Group;

/// The time from one look to the next.
const LOOK: Duration = Duration::from_millis(250);

/// A stream stands still that has let go of less than this part of what it holds, from one look to the next: of half a
/// megabyte, 8 KiB a second.
const STILL: u64 = 256;

/// Watches what a worker's streams hold, for as long as it runs.
pub(super) async fn watch(streams: Rc<Group>, share: Arc<Share>) {
    let total = share.total();
    loop {
        total.nears().await;
        // What has moved until now says nothing of what moves now.
        Look::at(&streams);
        sleep(LOOK).await;
        while total.is_near() {
            Look::at(&streams).reclaim(total);
            sleep(LOOK).await;
        }
    }
}

/// What a stream hears that comes when nothing new is taken.
pub(super) fn full(total: &Total) -> Error {
    let message = format!(
        "streams hold {} bytes by now, and from {} on no new ones are taken (max_held)",
        total.held(),
        total.brink()
    );
    Error::new(Code::ResourceExhausted, "memory_full", Side::Proxy, message).with_http_status(503)
}

/// What a worker's streams hold.
#[derive(Default)]
struct Look {
    all: usize,
    /// Of those that are being ended.
    leaving: usize,
    still: Vec<(usize, StreamContext)>,
}

impl Look {
    fn at(streams: &Group) -> Self {
        let mut look = Self::default();
        streams.for_each(|stream| {
            let held = stream.held();
            look.all += held;
            if stream.aborted().is_some() {
                look.leaving += held;
            } else if stream.moved_since().saturating_mul(STILL) < held as u64 {
                look.still.push((held, stream.clone()));
            }
        });
        look
    }

    /// Ends streams that stand still, until the worker's part of what is too much is gone.
    fn reclaim(mut self, total: &Total) {
        let held = total.held();
        let part = (total.too_much() as f64 * self.all as f64 / held.max(1) as f64) as usize;
        let mut left = part.saturating_sub(self.leaving);
        self.still.sort_unstable_by_key(|(held, _)| Reverse(*held));
        for (bytes, stream) in self.still {
            if left == 0 {
                return;
            }
            left = left.saturating_sub(bytes);
            stream.abort(reclaimed(bytes, held, total.limit()));
        }
    }
}

fn reclaimed(bytes: usize, all: usize, limit: usize) -> Error {
    let message = format!(
        "the stream stood still and held {bytes} bytes, when all streams together held {all} of at most {limit} (max_held)"
    );
    let code = Code::ResourceExhausted;
    Error::new(code, "memory_reclaimed", Side::Proxy, message).with_http_status(503)
}

#[cfg(test)]
mod tests {
    use thalweg_filters::stream::{Booking, Protocol};
    use tokio::{
        task::{LocalSet, spawn_local},
        time::Instant,
    };

    use super::*;

    const MIB: usize = 1 << 20;

    /// A worker's streams, of which each holds some MiB.
    struct Streams {
        group: Rc<Group>,
        share: Arc<Share>,
        all: Vec<(StreamContext, Vec<Booking>, crate::dismissal::Member)>,
    }

    impl Streams {
        fn holding(limit: usize, held: &[usize]) -> Self {
            let mut streams = Self {
                group: Rc::default(),
                share: Share::new(Total::new(limit)),
                all: Vec::new(),
            };
            for held in held {
                let share = Some(Arc::clone(&streams.share));
                let stream = StreamContext::held_in(share, Protocol::Grpc, Instant::now(), None);
                let booked = (0..*held).map(|_| stream.book(MIB)).collect();
                let member = streams.group.join(&stream);
                streams.all.push((stream, booked, member));
            }
            streams
        }

        /// Which of them have been ended, some looks later; `busy` lets go of a MiB between two looks, and takes another.
        async fn ended(mut self, busy: Option<usize>) -> Vec<usize> {
            let local = LocalSet::new();
            let watch = watch(Rc::clone(&self.group), Arc::clone(&self.share));
            local
                .run_until(async {
                    let watching = spawn_local(watch);
                    for _ in 0..8 {
                        if let Some(busy) = busy {
                            let (stream, booked, _) = &mut self.all[busy];
                            booked[0] = stream.book(MIB);
                        }
                        sleep(LOOK).await;
                    }
                    watching.abort();
                })
                .await;
            let ended = |(index, (stream, ..)): (usize, &(StreamContext, _, _))| {
                stream.aborted().map(|_| index)
            };
            self.all.iter().enumerate().filter_map(ended).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_below_the_limit_may_stand_still_for_ever() {
        let streams = Streams::holding(24 * MIB, &[5, 5, 9]);

        assert_eq!(streams.ended(None).await, [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_hold_the_most_end_first_and_no_more_than_needed() {
        let streams = Streams::holding(16 * MIB, &[1, 9, 1, 6, 1]);

        // 18 MiB are held, and 12 are three quarters of the limit.
        assert_eq!(streams.ended(None).await, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_moves_stays_however_much_it_holds() {
        let streams = Streams::holding(16 * MIB, &[2, 12, 3]);

        assert_eq!(streams.ended(Some(1)).await, [0, 2]);
    }
}
