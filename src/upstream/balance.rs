//! Which endpoint takes the next stream: the one with the fewest.
//!
//! An endpoint that could not be dialed has no streams and would attract every new one, so it is passed over for
//! [`PASS_OVER`] while others are left. Ties go round.

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use thalweg_filters::Error;
use tokio::time::Instant;

/// How long an endpoint is passed over after a dial has failed.
pub(crate) const PASS_OVER: Duration = Duration::from_secs(1);

/// The endpoints of a cluster.
#[derive(Debug)]
pub(crate) struct Balance<P> {
    endpoints: Vec<Rc<P>>,
    turn: Cell<usize>,
}

/// What a choice between endpoints looks at.
pub(crate) trait Load {
    /// Streams that are open or wait.
    fn streams(&self) -> usize;

    /// When a dial last failed, if none has succeeded since.
    fn failed_at(&self) -> Option<Instant>;
}

impl<P> Balance<P> {
    pub(crate) fn all(&self) -> &[Rc<P>] {
        &self.endpoints
    }
}

impl<P: Load> Balance<P> {
    /// Tries `open` on the best endpoint, and on the next best while it fails: nothing was sent yet, so nothing is lost.
    pub(crate) async fn open<T, F>(&self, open: impl Fn(Rc<P>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut failure = match self.endpoints.as_slice() {
            [only] => return open(Rc::clone(only)).await,
            _ => None,
        };
        let mut tried = vec![false; self.endpoints.len()];
        while let Some(best) = self.best(&tried) {
            tried[best] = true;
            match open(Rc::clone(&self.endpoints[best])).await {
                Ok(opened) => return Ok(opened),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("a cluster has an endpoint; the configuration refuses one without"))
    }

    fn best(&self, tried: &[bool]) -> Option<usize> {
        let count = self.endpoints.len();
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        (0..count)
            .map(|step| turn.wrapping_add(step) % count)
            .filter(|index| !tried[*index])
            .min_by_key(|index| {
                let endpoint = &self.endpoints[*index];
                (
                    endpoint
                        .failed_at()
                        .is_some_and(|at| at.elapsed() < PASS_OVER),
                    endpoint.streams(),
                )
            })
    }
}

impl<P> FromIterator<P> for Balance<P> {
    fn from_iter<I: IntoIterator<Item = P>>(endpoints: I) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Rc::new).collect(),
            turn: Cell::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use thalweg_filters::Side;
    use thalweg_proto::status::Code;

    use super::*;

    #[derive(Debug, Default)]
    struct Fake {
        name: char,
        streams: usize,
        failed_at: Option<Instant>,
    }

    impl Load for Fake {
        fn streams(&self) -> usize {
            self.streams
        }

        fn failed_at(&self) -> Option<Instant> {
            self.failed_at
        }
    }

    async fn name(endpoint: Rc<Fake>) -> Result<char, Error> {
        Ok(endpoint.name)
    }

    #[tokio::test]
    async fn fewest_streams_win_and_ties_go_round() {
        let balance: Balance<_> = [('a', 2), ('b', 1), ('c', 1)]
            .into_iter()
            .map(|(name, streams)| Fake {
                name,
                streams,
                failed_at: None,
            })
            .collect();

        let chosen = [
            balance.open(name).await.unwrap(),
            balance.open(name).await.unwrap(),
            balance.open(name).await.unwrap(),
        ];

        assert_eq!(chosen, ['b', 'b', 'c']);
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_that_cannot_be_dialed_is_passed_over_for_a_while() {
        let dead = Fake {
            name: 'd',
            streams: 0,
            failed_at: Some(Instant::now()),
        };
        let balance: Balance<_> = [
            dead,
            Fake {
                name: 'a',
                streams: 9,
                failed_at: None,
            },
        ]
        .into_iter()
        .collect();

        assert_eq!(balance.open(name).await.unwrap(), 'a');
        tokio::time::advance(PASS_OVER).await;
        assert_eq!(balance.open(name).await.unwrap(), 'd');
    }

    #[tokio::test]
    async fn next_endpoint_is_tried_when_one_fails() {
        let balance: Balance<_> = ['a', 'b']
            .into_iter()
            .map(|name| Fake {
                name,
                ..Fake::default()
            })
            .collect();
        let only_b = async |endpoint: Rc<Fake>| match endpoint.name {
            'b' => Ok('b'),
            _ => Err(Error::new(Code::Unavailable, "x", Side::Upstream, "down")),
        };

        assert_eq!(balance.open(only_b).await.unwrap(), 'b');
    }
}
