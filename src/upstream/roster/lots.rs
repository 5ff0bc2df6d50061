//! Draws a number at random, each in proportion to its weight, in the same time however many there are.
//!
//! This is Vose's alias method. As many slots as numbers, all of one size; a light number leaves a part of its slot to a heavy
//! one. Whoever throws a dart at the slots hits each number in proportion to its weight, and has looked at one slot.

/// Numbers to be drawn, from 0.
#[derive(Debug)]
pub(super) struct Lots(Box<[Slot]>);

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The part of the slot that is its own number's.
    own: f64,
    /// Whose the rest is.
    other: u32,
}

// === impl Lots ===

impl Lots {
    pub(super) fn new(weights: &[u32]) -> Self {
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let mean = total / weights.len() as f64;
        let mut slots: Box<[Slot]> = (weights.iter().zip(0..))
            .map(|(weight, other)| Slot {
                own: f64::from(*weight) / mean,
                other,
            })
            .collect();
        let (mut light, mut heavy): (Vec<usize>, Vec<usize>) =
            (0..slots.len()).partition(|index| slots[*index].own < 1.0);
        while let (Some(small), Some(large)) = (light.pop(), heavy.last().copied()) {
            slots[small].other = u32::try_from(large).expect("the weights are counted by u32");
            slots[large].own -= 1.0 - slots[small].own;
            if slots[large].own < 1.0 {
                heavy.pop();
                light.push(large);
            }
        }
        Self(slots)
    }

    /// One of the numbers. There must be one.
    pub(super) fn draw(&self) -> usize {
        let dart = fastrand::u64(..);
        // The upper half of the bits chooses the slot, the lower one the place in it.
        let index = (((dart >> 32) * self.0.len() as u64) >> 32) as usize;
        let place = f64::from(dart as u32) / f64::from(u32::MAX);
        let slot = self.0[index];
        if place <= slot.own {
            index
        } else {
            slot.other as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each was drawn, in thousandths.
    fn drawn(weights: &[u32]) -> Vec<u32> {
        const DRAWS: u32 = 100_000;
        fastrand::seed(7);
        let lots = Lots::new(weights);
        let mut counts = vec![0; weights.len()];
        for _ in 0..DRAWS {
            counts[lots.draw()] += 1;
        }
        counts.iter().map(|count| count * 1000 / DRAWS).collect()
    }

    #[test]
    fn each_is_drawn_in_proportion_to_its_weight() {
        for weights in [
            &[1][..],
            &[1, 1, 1, 1],
            &[1, 2, 7],
            &[100, 1, 1],
            &[3, 3, 3, 1],
        ] {
            let total: u32 = weights.iter().sum();
            for (weight, thousandths) in weights.iter().zip(drawn(weights)) {
                let wanted = weight * 1000 / total;
                assert!(
                    thousandths.abs_diff(wanted) <= 5,
                    "{weights:?}: {thousandths} of {wanted}"
                );
            }
        }
    }
}
