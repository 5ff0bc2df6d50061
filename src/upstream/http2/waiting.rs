//! Streams that wait for a place on a connection, in the order in which they came.
//!
//! A stream that is given up takes itself out, at once and wherever it stands. So whoever is in here can be served, and nobody
//! has to look for those who have left. All are held to the same limit, and so one clock counts rounds for all of them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

/// The queue. An answer is a `T`.
pub(super) struct Waiting<T> {
    slots: RefCell<BTreeMap<u64, Slot<T>>>,
    /// Of the next one who comes.
    number: Cell<u64>,
    round: Cell<u64>,
}

struct Slot<T> {
    answer: oneshot::Sender<T>,
    /// In which it came.
    round: u64,
}

/// One who waits, until the answer is there or this is dropped.
pub(super) struct Place<'a, T> {
    queue: &'a Waiting<T>,
    number: u64,
    answer: oneshot::Receiver<T>,
}

// === impl Waiting ===

impl<T> Waiting<T> {
    /// Comes last.
    pub(super) fn join(&self) -> Place<'_, T> {
        let (sender, answer) = oneshot::channel();
        let number = self.number.replace(self.number.get() + 1);
        let slot = Slot {
            answer: sender,
            round: self.round.get(),
        };
        self.slots.borrow_mut().insert(number, slot);
        Place {
            queue: self,
            number,
            answer,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    /// Answers who came first; an answer that nobody takes comes back.
    pub(super) fn answer_first(&self, answer: T) -> Result<(), T> {
        // Not within the borrow: whoever hears the answer may do anything.
        let first = self.slots.borrow_mut().pop_first();
        match first {
            Some((_, slot)) => slot.answer.send(answer),
            None => Err(answer),
        }
    }

    /// Answers all.
    pub(super) fn answer_all(&self, answer: impl Fn() -> T) {
        while self.answer_first(answer()).is_ok() {}
    }

    /// Ends a round, and answers all who have waited for as many whole ones.
    pub(super) fn end_round(&self, rounds: u32, answer: impl Fn() -> T) {
        let round = self.round.get() + 1;
        self.round.set(round);
        let is_late = |slot: &Slot<T>| slot.round + u64::from(rounds) < round;
        let late = || {
            self.slots
                .borrow()
                .first_key_value()
                .is_some_and(|(_, slot)| is_late(slot))
        };
        while late() {
            let _ = self.answer_first(answer());
        }
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            slots: RefCell::default(),
            number: Cell::new(0),
            round: Cell::new(0),
        }
    }
}

// === impl Place ===

impl<T> Future for Place<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let answer = Pin::new(&mut self.answer).poll(cx);
        answer.map(|answer| answer.expect("a slot is answered before it leaves the queue"))
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let _slot = self.queue.slots.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_eq, task::spawn};

    use super::*;

    #[test]
    fn who_came_first_is_answered_first_and_who_has_left_is_not() {
        let queue = Waiting::default();
        let mut places: Vec<_> = (0..4).map(|_| spawn(queue.join())).collect();

        drop(places.remove(0));
        drop(places.remove(1));
        assert_eq!(queue.len(), 2);
        queue.answer_first('a').unwrap();

        assert_ready_eq!(places[0].poll(), 'a');
        assert_pending!(places[1].poll());
        queue.answer_first('b').unwrap();
        assert_ready_eq!(places[1].poll(), 'b');
        assert_eq!(queue.answer_first('c'), Err('c'));
    }

    #[test]
    fn who_has_waited_for_so_many_whole_rounds_is_late() {
        let queue = Waiting::default();
        let mut early = spawn(queue.join());
        queue.end_round(2, || 'x');
        let mut later = spawn(queue.join());

        queue.end_round(2, || 'x');
        assert_pending!(early.poll());
        queue.end_round(2, || 'x');

        assert_ready_eq!(early.poll(), 'x');
        assert_pending!(later.poll());
        queue.end_round(2, || 'x');
        assert_ready_eq!(later.poll(), 'x');
    }
}
