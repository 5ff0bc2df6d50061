//! Chooses an endpoint for a stream, in about the same time however many there are.
//!
//! - *least_streams* draws two at random by their weights, and takes the one with fewer streams for its weight. To look at all
//!   would not only take longer: all who choose at the same time would choose the same one.
//! - *round_robin* gives each its turn.
//! - *ring_hash* looks up the stream's key on a ring. A stream without a key goes by *least_streams*.
//!
//! Whatever the policy, an endpoint that is not available is passed over, and one that is warming up now and then. When none is
//! available, the proxy knows nothing better than to try any: what it has heard of them may be wrong, and it cannot make
//! anything worse.

use std::sync::Arc;

use super::{endpoint::Endpoint, roster::Roster};
use crate::config::Balance;
use turns::Turns;

mod turns;

/// Draws that meet no endpoint of use before all are looked at. With half of them down, one choice in 256 gets there.
const DRAWS: usize = 8;

/// Chooses among the endpoints of a roster, for one worker.
#[derive(Debug)]
pub struct Chooser {
    roster: Arc<Roster>,
    /// Of *round_robin*.
    turns: Option<Turns>,
}

// === impl Chooser ===

impl Chooser {
    /// Among these.
    pub fn new(roster: Arc<Roster>, policy: &Balance) -> Self {
        let turns = (*policy == Balance::RoundRobin).then(|| {
            let endpoints = roster.endpoints().iter();
            Turns::new(endpoints.map(|endpoint| endpoint.weight()))
        });
        Self { roster, turns }
    }

    /// The endpoints that it chooses among.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// The place in the roster of an endpoint that is available and not tried yet.
    pub fn choose(&mut self, key: Option<u64>, is_tried: impl Fn(usize) -> bool) -> Option<usize> {
        let endpoints = self.roster.endpoints();
        if endpoints.is_empty() {
            return None;
        }
        if let Some(turns) = &mut self.turns {
            // One that is warming up may let all its turns of one round pass, and is then the only one left.
            let turns = (0..2 * endpoints.len()).map(|round| (turns.next(), round));
            return turns
                .map(|(index, round)| (index, round >= endpoints.len()))
                .find(|(index, late)| {
                    let endpoint = &endpoints[*index];
                    !is_tried(*index) && (takes_one(endpoint) || *late && endpoint.is_available())
                })
                .map(|(index, _)| index);
        }
        if let Some(round) = key.and_then(|key| self.roster.ring(key)) {
            let mut round = round.filter(|index| !is_tried(*index));
            return round.find(|index| endpoints[*index].is_available());
        }
        let one = self.draw(|index| !is_tried(index))?;
        let other = self.draw(|index| index != one && !is_tried(index));
        Some(match other {
            Some(other) if endpoints[other].load() < endpoints[one].load() => other,
            _ => one,
        })
    }

    /// An endpoint, available or not, if there is one at all.
    pub fn any(&self, key: Option<u64>) -> Option<usize> {
        let owner = key.and_then(|key| self.roster.ring(key)?.next());
        owner.or_else(|| (!self.roster.endpoints().is_empty()).then(|| self.roster.draw()))
    }

    /// One that is available, and as often as its weight and its warmth want it.
    fn draw(&self, is_wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let endpoints = self.roster.endpoints();
        let takes = |index: &usize| is_wanted(*index) && takes_one(&endpoints[*index]);
        let drawn = (0..DRAWS).map(|_| self.roster.draw()).find(takes);
        drawn.or_else(|| {
            let start = fastrand::usize(..endpoints.len());
            (start..endpoints.len())
                .chain(0..start)
                .find(|index| is_wanted(*index) && endpoints[*index].is_available())
        })
    }
}

/// Whether an endpoint takes the stream that has come to it: in the course of a slow start it takes only a part of them.
fn takes_one(endpoint: &Endpoint) -> bool {
    let share = endpoint.share();
    endpoint.is_available() && (share >= 1.0 || fastrand::f64() < share)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header;

    use super::*;
    use crate::upstream::{endpoint::Live, roster::hash};

    const CHOICES: usize = 10_000;

    fn roster(weights: &[u32], policy: &Balance) -> Arc<Roster> {
        fastrand::seed(7);
        let endpoints = weights.iter().zip(1..).map(|(weight, port)| {
            let address = format!("10.0.0.1:{port}").parse().unwrap();
            Arc::new(Endpoint::new(address, *weight, Duration::from_secs(10)))
        });
        Arc::new(Roster::new(endpoints, policy))
    }

    fn ring_hash() -> Balance {
        Balance::RingHash {
            header: header::HOST,
        }
    }

    fn none_tried(_: usize) -> bool {
        false
    }

    /// How many of the choices each gets when no stream lasts, in hundredths.
    fn shares(roster: &Arc<Roster>, policy: &Balance) -> Vec<usize> {
        let mut chooser = Chooser::new(Arc::clone(roster), policy);
        let mut counts = vec![0; roster.endpoints().len()];
        for choice in 0..CHOICES {
            let key = hash(&choice.to_be_bytes());
            counts[chooser.choose(Some(key), none_tried).unwrap()] += 1;
        }
        let hundredths = counts.iter().map(|count| count * 100 / CHOICES);
        hundredths.collect()
    }

    /// How many streams each has after so many have come to stay.
    fn loads(roster: &Arc<Roster>, policy: &Balance, streams: usize) -> (Vec<usize>, Vec<Live>) {
        let mut chooser = Chooser::new(Arc::clone(roster), policy);
        let live = (0..streams).map(|_| {
            let chosen = chooser.choose(None, none_tried).unwrap();
            roster.endpoints()[chosen].live()
        });
        let live = live.collect();
        let loads = roster.endpoints().iter().map(|it| it.streams());
        (loads.collect(), live)
    }

    fn assert_near(found: &[usize], wanted: &[usize], most: usize) {
        let near = |(found, wanted): (&usize, &usize)| found.abs_diff(*wanted) <= most;
        assert!(
            found.iter().zip(wanted).all(near),
            "{found:?} and not {wanted:?}"
        );
    }

    #[test]
    fn short_streams_follow_the_weights() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin] {
            let roster = roster(&[1, 2, 7], &policy);
            assert_near(&shares(&roster, &policy), &[10, 20, 70], 2);
        }
    }

    #[test]
    fn long_streams_follow_the_weights_closely() {
        let policy = Balance::LeastStreams;
        let (found, _live) = loads(&roster(&[1, 2, 7], &policy), &policy, 1000);
        assert_near(&found, &[100, 200, 700], 10);
    }

    #[test]
    fn many_endpoints_carry_nearly_the_same() {
        let policy = Balance::LeastStreams;
        let (found, _live) = loads(&roster(&[1; 100], &policy), &policy, 10_000);
        assert_near(&found, &[100; 100], 5);
    }

    #[test]
    fn endpoints_that_are_not_available_get_nothing() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin, ring_hash()] {
            let roster = roster(&[1; 10], &policy);
            for endpoint in &roster.endpoints()[1..] {
                endpoint.set_healthy(false);
            }
            assert_eq!(shares(&roster, &policy)[0], 100, "{policy:?}");
        }
    }

    #[test]
    fn endpoint_that_was_tried_is_not_chosen_again() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin, ring_hash()] {
            let mut chooser = Chooser::new(roster(&[1; 5], &policy), &policy);
            let mut tried = Vec::new();
            while let Some(chosen) = chooser.choose(Some(1), |index| tried.contains(&index)) {
                tried.push(chosen);
            }
            tried.sort_unstable();
            assert_eq!(tried, [0, 1, 2, 3, 4], "{policy:?}");
        }
    }

    #[test]
    fn when_none_is_available_there_is_still_any() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin, ring_hash()] {
            let roster = roster(&[1; 3], &policy);
            for endpoint in roster.endpoints() {
                endpoint.set_healthy(false);
            }
            let mut chooser = Chooser::new(Arc::clone(&roster), &policy);
            assert_eq!(chooser.choose(Some(1), none_tried), None);
            assert!(chooser.any(Some(1)).is_some());
            let nobody = Chooser::new(Arc::new(Roster::new([], &policy)), &policy);
            assert_eq!(nobody.any(Some(1)), None);
        }
    }

    #[test]
    fn key_stays_where_it_is_and_comes_back() {
        let policy = ring_hash();
        let roster = roster(&[1; 5], &policy);
        let mut chooser = Chooser::new(Arc::clone(&roster), &policy);
        let owner = chooser.choose(Some(7), none_tried).unwrap();

        roster.endpoints()[owner].set_healthy(false);
        let neighbour = chooser.choose(Some(7), none_tried).unwrap();
        assert_ne!(neighbour, owner);
        assert_eq!(chooser.choose(Some(7), none_tried), Some(neighbour));
        roster.endpoints()[owner].set_healthy(true);

        assert_eq!(chooser.choose(Some(7), none_tried), Some(owner));
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_that_warms_up_gets_a_share_that_grows() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin] {
            let roster = roster(&[1; 4], &policy);
            roster.endpoints()[3].warm_up();
            let mut before = 0;
            for (seconds, most) in [(0, 4), (5, 16), (5, 27)] {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                let share = shares(&roster, &policy)[3];
                assert!(before < share && share <= most, "{policy:?}: {share}");
                before = share;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_warm_up_share_all_there_is() {
        for policy in [Balance::LeastStreams, Balance::RoundRobin] {
            let roster = roster(&[1; 4], &policy);
            for endpoint in roster.endpoints() {
                endpoint.warm_up();
            }
            assert_near(&shares(&roster, &policy), &[25; 4], 2);
        }
    }
}
