//! The endpoints of a cluster as they are at one time, and what is built from them once so that choosing is quick.
//!
//! | file | what it holds |
//! |---|---|
//! | `lots` | drawing an endpoint by its weight |
//! | `ring` | finding the endpoint of a key |

use std::sync::Arc;

use super::endpoint::Endpoint;
use crate::config::Balance;
use lots::Lots;
use ring::Ring;
pub use ring::hash;

mod lots;
mod ring;

/// The endpoints of a cluster as they are at one time.
#[derive(Debug)]
pub struct Roster {
    endpoints: Box<[Arc<Endpoint>]>,
    lots: Lots,
    /// Only where there are keys.
    ring: Option<Ring>,
}

// === impl Roster ===

impl Roster {
    /// Of these endpoints, with the weights that they have now.
    pub fn new(endpoints: impl IntoIterator<Item = Arc<Endpoint>>, policy: &Balance) -> Self {
        let endpoints: Box<[_]> = endpoints.into_iter().collect();
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight()).collect();
        Self {
            lots: Lots::new(&weights),
            ring: matches!(policy, Balance::RingHash { .. }).then(|| Ring::new(&endpoints)),
            endpoints,
        }
    }

    /// All of them.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// How many may get new streams.
    pub(crate) fn available(&self) -> usize {
        let endpoints = self.endpoints.iter();
        endpoints.filter(|endpoint| endpoint.is_available()).count()
    }

    /// Those that a key leads to, the owner first, some more than once; `None` where keys do not matter.
    pub(crate) fn ring(&self, key: u64) -> Option<impl Iterator<Item = usize>> {
        self.ring.as_ref().map(|ring| ring.from(key))
    }

    /// One of them at random, each in proportion to its weight. There must be one.
    pub(crate) fn draw(&self) -> usize {
        self.lots.draw()
    }
}
