//! Whose turn it is: each as often as its weight says, and evenly spread.
//!
//! Each endpoint is due at a time of its own, and after its turn it is due later by a step, which is the shorter the heavier it
//! is. The first who is due is next. The times are no clock's; each starts at random within its first step, so that workers do
//! not all begin with the same one.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The step of an endpoint of weight 1. At the largest weight, a thousand, it still is a thousand.
const STEP: u64 = 1 << 20;

/// Those who take turns, by when they are due.
#[derive(Debug)]
pub(super) struct Turns(BinaryHeap<Reverse<Turn>>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    due: u64,
    index: usize,
    step: u64,
}

// === impl Turns ===

impl Turns {
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let turns = weights.enumerate().map(|(index, weight)| {
            let step = STEP / u64::from(weight);
            let due = fastrand::u64(..step);
            Reverse(Turn { due, index, step })
        });
        Self(turns.collect())
    }

    /// Who is next. There must be one.
    pub(super) fn next(&mut self) -> usize {
        let mut first = self.0.peek_mut().expect("somebody takes turns");
        first.0.due += first.0.step;
        first.0.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_turn_in_a_round() {
        let mut turns = Turns::new([1; 5].into_iter());
        for _ in 0..100 {
            let mut round: Vec<usize> = (0..5).map(|_| turns.next()).collect();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn turns_follow_the_weights_and_are_spread() {
        let mut turns = Turns::new([5, 1, 2].into_iter());
        let turns: Vec<usize> = (0..8000).map(|_| turns.next()).collect();
        let count = |index| turns.iter().filter(|turn| **turn == index).count();
        for (index, wanted) in [(0, 5000), (1, 1000), (2, 2000_usize)] {
            assert!(
                count(index).abs_diff(wanted) <= 1,
                "{index}: {}",
                count(index)
            );
        }
        let longest = turns
            .chunk_by(|one, other| one == other)
            .map(<[_]>::len)
            .max();
        assert!(longest <= Some(3), "{longest:?} in a row");
    }
}
