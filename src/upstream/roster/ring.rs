//! A ring of endpoints: the same key finds the same endpoint, and when endpoints come or go, few keys move.
//!
//! Each endpoint lies on the ring at [`POINTS`] places, more or fewer by its weight, at the hashes of its address. A key
//! belongs to the first place at or after its own hash. An endpoint that comes takes over what lies before its own places, one
//! in so many of all keys, and nothing else moves.
//!
//! The hash is written out here, for it must be the same in every worker, in every process and in every version: a client that
//! comes back through another proxy finds the same endpoint.

use std::sync::Arc;

use crate::upstream::endpoint::Endpoint;

/// Places of an endpoint of average weight. Their shares then differ by about a tenth.
const POINTS: f64 = 100.0;

/// Places on the ring, and whose they are.
#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

// === impl Ring ===

impl Ring {
    pub(super) fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let total: f64 = endpoints.iter().map(|it| f64::from(it.weight())).sum();
        let mean = total / endpoints.len() as f64;
        let mut places = Vec::new();
        for (endpoint, index) in endpoints.iter().zip(0..) {
            let address = hash(endpoint.address().to_string().as_bytes());
            let points = (POINTS * f64::from(endpoint.weight()) / mean).round();
            let points = (points as u64).max(1);
            places.extend((0..points).map(|point| (mix(address ^ mix(point)), index)));
        }
        places.sort_unstable();
        Self(places.into_boxed_slice())
    }

    /// The endpoints from a key's place on, once round the ring; some more than once.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = self.0.partition_point(|(place, _)| *place < key);
        let (before, after) = self.0.split_at(start);
        let round = after.iter().chain(before);
        round.map(|(_, index)| *index as usize)
    }
}

/// The place of a text on a ring.
pub fn hash(text: &[u8]) -> u64 {
    // FNV-1a, whose upper bits are mixed too little, and then the last step of MurmurHash3.
    let fnv = text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let addresses = weights.iter().zip(1..);
        addresses
            .map(|(weight, port)| {
                let address = format!("10.0.0.1:{port}").parse().unwrap();
                Arc::new(Endpoint::new(address, *weight, Duration::ZERO))
            })
            .collect()
    }

    /// Who gets each of ten thousand users.
    fn owners(weights: &[u32]) -> Vec<usize> {
        let ring = Ring::new(&endpoints(weights));
        (0..10_000)
            .map(|user| {
                ring.from(hash(format!("user-{user}").as_bytes()))
                    .next()
                    .unwrap()
            })
            .collect()
    }

    #[test]
    fn only_what_the_new_endpoint_takes_over_moves() {
        let (before, after) = (owners(&[1; 9]), owners(&[1; 10]));

        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after);
        let moved: Vec<_> = moved.collect();
        assert!(moved.iter().all(|(_, after)| **after == 9));
        let share = moved.len();
        assert!((700..1300).contains(&share), "{share} of 10000 moved");
    }

    #[test]
    fn shares_follow_the_weights() {
        let owners = owners(&[1, 1, 2]);
        let third = owners.iter().filter(|owner| **owner == 2).count();
        assert!((4300..5700).contains(&third), "{third} of 10000");
    }

    #[test]
    fn round_trip_meets_every_endpoint() {
        let ring = Ring::new(&endpoints(&[1; 20]));
        let mut met: Vec<usize> = ring.from(u64::MAX).collect();
        met.sort_unstable();
        met.dedup();
        assert_eq!(met, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn hash_is_the_same_for_ever() {
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash(b"user-1"), hash(b"user-1"));
    }
}
