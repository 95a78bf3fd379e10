//! The order in which the attempts of one session get their slots.
//!
//! A node begins attempts in the order in which they arrive, and accepts them in that order; over two lanes they can
//! arrive in another order than they were sent. The node's credit says how many attempts no slot has begun with, this
//! order says which: the last ones. Does not: know slots or credit.

use std::collections::VecDeque;

use lamagrid_domain::LeaseToken;

/// Unwanted attempts kept; the oldest is forgotten first. There are about as many as the node was told to stop since it
/// last gave credit.
const MAX_UNWANTED: usize = 256;

/// The state of an attempt, apart from its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptState {
    /// It was given to this session, or had begun when the node's last one ended.
    Given,
    /// No slot had begun with it when the node's last session ended.
    Waited,
    /// The node holds its result: it uses credit until it is delivered, and no slot.
    Finished,
    /// It is cancelled or lost. It uses credit until the node says how it ended.
    Unwanted,
    /// The same, but the node was told to drop it: only its credit comes back.
    Dropped,
}

impl AttemptState {
    fn is_wanted(self) -> bool {
        !matches!(self, Self::Unwanted | Self::Dropped)
    }
}

/// An attempt that no slot has begun with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unbegun {
    pub(crate) token: LeaseToken,
    /// The node was asked to give it back.
    pub(crate) recalled: bool,
}

impl Unbegun {
    fn of(entry: &Entry) -> Self {
        Self { token: entry.token, recalled: entry.recalled }
    }
}

#[derive(Debug)]
struct Entry {
    token: LeaseToken,
    state: AttemptState,
    /// The node has it: its place is that of its arrival.
    accepted: bool,
    /// The node was asked to give it back.
    recalled: bool,
}

/// Attempts that were given and not delivered, oldest first.
///
/// Invariant: the first one is wanted. An unwanted attempt is kept only while a wanted one is ahead of it.
#[derive(Debug, Default)]
pub(crate) struct DispatchOrder(VecDeque<Entry>);

impl DispatchOrder {
    /// An attempt is sent to the node.
    pub(crate) fn give(&mut self, token: LeaseToken) {
        self.0.push_back(Entry { token, state: AttemptState::Given, accepted: false, recalled: false });
        if self.0.iter().filter(|e| !e.state.is_wanted()).count() > MAX_UNWANTED {
            self.remove_first(|e| !e.state.is_wanted());
        }
    }

    /// An attempt is kept from the node's last session.
    pub(crate) fn adopt(&mut self, token: LeaseToken, state: AttemptState) {
        self.0.push_back(Entry { token, state, accepted: true, recalled: false });
    }

    /// An attempt has arrived, before all that have not.
    pub(crate) fn accepted(&mut self, token: LeaseToken) {
        let Some(at) = self.0.iter().position(|e| e.token == token && !e.accepted) else { return };
        let Some(entry) = self.0.remove(at) else { return };
        let behind = self.0.iter().rposition(|e| e.accepted).map_or(0, |last| last + 1);
        self.0.insert(behind, Entry { accepted: true, ..entry });
        self.tidy();
    }

    /// An attempt was delivered, so that it uses neither slot nor credit.
    pub(crate) fn delivered(&mut self, token: LeaseToken) {
        self.remove_first(|e| e.token == token);
        self.tidy();
    }

    /// An attempt is not wanted any more; it keeps its place until its credit is back.
    pub(crate) fn unwanted(&mut self, token: LeaseToken) {
        self.mark(token, AttemptState::Unwanted);
    }

    /// The node was told to drop an attempt, or has none of that token.
    pub(crate) fn dropped(&mut self, token: LeaseToken) {
        self.mark(token, AttemptState::Dropped);
    }

    /// Credits came back without a token: of dropped attempts, or of attempts that left their slot and are not
    /// delivered yet.
    ///
    /// If both are possible, this assumes the dropped one. If that is wrong, an attempt that has just begun looks for a
    /// moment as if it had not.
    pub(crate) fn freed(&mut self, credits: u64) {
        for _ in 0..credits {
            if !self.remove_first(|e| e.state == AttemptState::Dropped) {
                break;
            }
        }
        self.tidy();
    }

    /// The node is asked to give an attempt back.
    pub(crate) fn recalled(&mut self, token: LeaseToken) {
        self.0.iter_mut().filter(|e| e.token == token).for_each(|e| e.recalled = true);
    }

    /// Wanted attempts in their order.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = LeaseToken> {
        self.0.iter().filter(|e| e.state.is_wanted()).map(|e| e.token)
    }

    /// Of the last `waiting` attempts those that are wanted, and whether they were recalled; oldest first.
    pub(crate) fn last(&self, waiting: u64) -> impl Iterator<Item = Unbegun> {
        let begun = self.0.len().saturating_sub(usize::try_from(waiting).unwrap_or(usize::MAX));
        let waits = |e: &&Entry| matches!(e.state, AttemptState::Given | AttemptState::Waited);
        self.0.iter().skip(begun).filter(waits).map(Unbegun::of)
    }

    /// The same from the state at the end of the node's last session: it has not reported its credit yet.
    pub(crate) fn left_waiting(&self) -> impl Iterator<Item = Unbegun> {
        self.0.iter().filter(|e| e.state == AttemptState::Waited).map(Unbegun::of)
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        invariant!(
            self.0.front().is_none_or(|e| e.state.is_wanted()),
            "the first of {:?} is unwanted",
            self.0
        );
        Ok(())
    }

    fn mark(&mut self, token: LeaseToken, state: AttemptState) {
        self.0.iter_mut().filter(|e| e.token == token).for_each(|e| e.state = state);
        self.tidy();
    }

    fn remove_first(&mut self, which: impl Fn(&Entry) -> bool) -> bool {
        self.0.iter().position(which).and_then(|at| self.0.remove(at)).is_some()
    }

    /// Drops unwanted entries from the front; they no longer affect the order.
    fn tidy(&mut self) {
        while self.0.front().is_some_and(|e| !e.state.is_wanted()) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> LeaseToken {
        LeaseToken::from_bytes([n; 16])
    }

    fn order(of: &[u8]) -> DispatchOrder {
        let mut order = DispatchOrder::default();
        of.iter().for_each(|n| order.give(token(*n)));
        order
    }

    #[track_caller]
    fn check(order: &DispatchOrder, waiting: u64, expected: &[u8]) {
        let last: Vec<_> = order.last(waiting).map(|unbegun| unbegun.token.as_bytes()[0]).collect();
        assert_eq!(last, expected);
    }

    #[test]
    fn the_last_ones_wait() {
        let mut order = order(&[1, 2, 3]);
        check(&order, 0, &[]);
        check(&order, 2, &[2, 3]);
        check(&order, 9, &[1, 2, 3]);
        order.delivered(token(2));
        check(&order, 1, &[3]);
        order.delivered(token(2));
        check(&order, 2, &[1, 3]);
    }

    #[test]
    fn what_arrives_first_begins_first() {
        let mut order = order(&[1, 2, 3]);
        order.accepted(token(2));
        check(&order, 2, &[1, 3]);
        order.accepted(token(3));
        check(&order, 2, &[3, 1]);
        // A repeated accept moves nothing.
        order.accepted(token(2));
        check(&order, 2, &[3, 1]);
    }

    /// One slot: 1 is in it, 3 was cancelled before it began.
    #[test]
    fn what_nobody_waits_for_keeps_its_place_until_its_credit_is_back() {
        let mut order = order(&[1, 2, 3]);
        order.unwanted(token(3));
        check(&order, 2, &[2]);
        order.delivered(token(3));
        check(&order, 1, &[2]);
    }

    #[test]
    fn what_was_dropped_gives_its_credit_back_without_a_name() {
        let mut order = order(&[1, 2, 3]);
        order.dropped(token(3));
        check(&order, 2, &[2]);
        order.freed(1);
        check(&order, 1, &[2]);
        // The next one is of the attempt that left its slot.
        order.freed(1);
        check(&order, 0, &[]);
        assert_eq!(order.wanted().count(), 2);
    }

    #[test]
    fn a_result_that_is_held_waits_for_no_slot() {
        let mut order = order(&[1]);
        order.adopt(token(2), AttemptState::Waited);
        order.adopt(token(3), AttemptState::Finished);
        check(&order, 1, &[]);
        check(&order, 2, &[2]);
        assert_eq!(order.left_waiting().collect::<Vec<_>>(), [Unbegun { token: token(2), recalled: false }]);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten_at_the_front_and_bounded_behind_it() {
        let mut order = order(&[1, 2]);
        order.unwanted(token(1));
        assert_eq!(order.0.len(), 1);
        for _ in 0..2 * MAX_UNWANTED {
            order.give(token(3));
            order.unwanted(token(3));
        }
        assert_eq!(order.0.len(), 2 + MAX_UNWANTED);
        order.delivered(token(2));
        assert_eq!(order.0.len(), 0);
    }
}
