//! The order in which the attempts of one session get their slots.
//!
//! A node begins what it is given in the order in which it arrives, and accepts it in that order, too; two lanes may
//! bring it in another order than it was sent. How many attempts no slot has begun with follows from the node's
//! credit; which ones they are follows from here: the last ones. Does not: know slots or credit.

use std::collections::VecDeque;

use lamagrid_domain::LeaseToken;

/// Attempts that nobody waits for are kept up to this many, the oldest is forgotten first; there are about as many
/// as the node was told to stop since it last gave credit.
const MAX_UNWANTED: usize = 256;

/// What is known about an attempt beside its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was given to this session, or had begun when the node's last one ended.
    Given,
    /// No slot had begun with it when the node's last session ended.
    Waited,
    /// The node holds its result: it uses credit until it is delivered, and no slot.
    Finished,
    /// Nobody waits for it. It uses credit until the node says how it ended.
    Unwanted,
    /// The same, but the node was told to drop it: nothing comes of it but its credit.
    Dropped,
}

impl Standing {
    fn is_wanted(self) -> bool {
        !matches!(self, Self::Unwanted | Self::Dropped)
    }
}

#[derive(Debug)]
struct Entry {
    token: LeaseToken,
    standing: Standing,
    /// The node has it: it stands where it arrived.
    accepted: bool,
    /// The node was asked to give it back.
    recalled: bool,
}

/// Attempts that were given and not delivered, oldest first.
///
/// Invariant: the first one is wanted. What nobody waits for is kept only because it may stand behind another.
#[derive(Debug, Default)]
pub(super) struct Line(VecDeque<Entry>);

impl Line {
    /// An attempt is sent to the node.
    pub(super) fn give(&mut self, token: LeaseToken) {
        self.0.push_back(Entry { token, standing: Standing::Given, accepted: false, recalled: false });
        if self.0.iter().filter(|e| !e.standing.is_wanted()).count() > MAX_UNWANTED {
            self.remove_first(|e| !e.standing.is_wanted());
        }
    }

    /// An attempt is kept from the node's last session.
    pub(super) fn adopt(&mut self, token: LeaseToken, standing: Standing) {
        self.0.push_back(Entry { token, standing, accepted: true, recalled: false });
    }

    /// An attempt has arrived, before all that have not.
    pub(super) fn accepted(&mut self, token: LeaseToken) {
        let Some(at) = self.0.iter().position(|e| e.token == token && !e.accepted) else { return };
        let Some(entry) = self.0.remove(at) else { return };
        let behind = self.0.iter().rposition(|e| e.accepted).map_or(0, |last| last + 1);
        self.0.insert(behind, Entry { accepted: true, ..entry });
        self.tidy();
    }

    /// An attempt was delivered, so that it uses neither slot nor credit.
    pub(super) fn delivered(&mut self, token: LeaseToken) {
        self.remove_first(|e| e.token == token);
        self.tidy();
    }

    /// Nobody waits for an attempt any more; it keeps its place until its credit is back.
    pub(super) fn unwanted(&mut self, token: LeaseToken) {
        self.mark(token, Standing::Unwanted);
    }

    /// The node was told to drop an attempt, or has none of that token.
    pub(super) fn dropped(&mut self, token: LeaseToken) {
        self.mark(token, Standing::Dropped);
    }

    /// So many credits came back without a name: dropped attempts do it like that, and those that left their slot
    /// and stay in line until they are delivered.
    ///
    /// Where both are possible this takes the dropped one. If that is wrong, an attempt that has just begun looks
    /// for a moment as if it had not.
    pub(super) fn freed(&mut self, credits: u64) {
        for _ in 0..credits {
            if !self.remove_first(|e| e.standing == Standing::Dropped) {
                break;
            }
        }
        self.tidy();
    }

    /// The node is asked to give an attempt back.
    pub(super) fn recalled(&mut self, token: LeaseToken) {
        self.0.iter_mut().filter(|e| e.token == token).for_each(|e| e.recalled = true);
    }

    /// Wanted attempts in their order.
    pub(super) fn wanted(&self) -> impl Iterator<Item = LeaseToken> {
        self.0.iter().filter(|e| e.standing.is_wanted()).map(|e| e.token)
    }

    /// Of the last `waiting` attempts those that are wanted, and whether they were recalled; oldest first.
    pub(super) fn last(&self, waiting: u64) -> impl Iterator<Item = (LeaseToken, bool)> {
        let begun = self.0.len().saturating_sub(usize::try_from(waiting).unwrap_or(usize::MAX));
        let waits = |e: &&Entry| matches!(e.standing, Standing::Given | Standing::Waited);
        self.0.iter().skip(begun).filter(waits).map(|e| (e.token, e.recalled))
    }

    /// The same by what the node's last session left behind: it has not yet said how much credit it has.
    pub(super) fn left_waiting(&self) -> impl Iterator<Item = (LeaseToken, bool)> {
        self.0.iter().filter(|e| e.standing == Standing::Waited).map(|e| (e.token, e.recalled))
    }

    fn mark(&mut self, token: LeaseToken, standing: Standing) {
        self.0.iter_mut().filter(|e| e.token == token).for_each(|e| e.standing = standing);
        self.tidy();
    }

    fn remove_first(&mut self, which: impl Fn(&Entry) -> bool) -> bool {
        self.0.iter().position(which).and_then(|at| self.0.remove(at)).is_some()
    }

    /// What stands first stands behind nobody: where nobody waits for it, its place says nothing.
    fn tidy(&mut self) {
        while self.0.front().is_some_and(|e| !e.standing.is_wanted()) {
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

    fn line(of: &[u8]) -> Line {
        let mut line = Line::default();
        of.iter().for_each(|n| line.give(token(*n)));
        line
    }

    #[track_caller]
    fn check(line: &Line, waiting: u64, expected: &[u8]) {
        let last: Vec<_> = line.last(waiting).map(|(token, _)| token.as_bytes()[0]).collect();
        assert_eq!(last, expected);
    }

    #[test]
    fn the_last_ones_wait() {
        let mut line = line(&[1, 2, 3]);
        check(&line, 0, &[]);
        check(&line, 2, &[2, 3]);
        check(&line, 9, &[1, 2, 3]);
        line.delivered(token(2));
        check(&line, 1, &[3]);
        line.delivered(token(2));
        check(&line, 2, &[1, 3]);
    }

    #[test]
    fn what_arrives_first_begins_first() {
        let mut line = line(&[1, 2, 3]);
        line.accepted(token(2));
        check(&line, 2, &[1, 3]);
        line.accepted(token(3));
        check(&line, 2, &[3, 1]);
        // A repeated accept moves nothing.
        line.accepted(token(2));
        check(&line, 2, &[3, 1]);
    }

    /// One slot: 1 is in it, 3 was cancelled before it began.
    #[test]
    fn what_nobody_waits_for_keeps_its_place_until_its_credit_is_back() {
        let mut line = line(&[1, 2, 3]);
        line.unwanted(token(3));
        check(&line, 2, &[2]);
        line.delivered(token(3));
        check(&line, 1, &[2]);
    }

    #[test]
    fn what_was_dropped_gives_its_credit_back_without_a_name() {
        let mut line = line(&[1, 2, 3]);
        line.dropped(token(3));
        check(&line, 2, &[2]);
        line.freed(1);
        check(&line, 1, &[2]);
        // The next one is of the attempt that left its slot.
        line.freed(1);
        check(&line, 0, &[]);
        assert_eq!(line.wanted().count(), 2);
    }

    #[test]
    fn a_result_that_is_held_waits_for_no_slot() {
        let mut line = line(&[1]);
        line.adopt(token(2), Standing::Waited);
        line.adopt(token(3), Standing::Finished);
        check(&line, 1, &[]);
        check(&line, 2, &[2]);
        assert_eq!(line.left_waiting().collect::<Vec<_>>(), [(token(2), false)]);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten_at_the_front_and_bounded_behind_it() {
        let mut line = line(&[1, 2]);
        line.unwanted(token(1));
        assert_eq!(line.0.len(), 1);
        for _ in 0..2 * MAX_UNWANTED {
            line.give(token(3));
            line.unwanted(token(3));
        }
        assert_eq!(line.0.len(), 2 + MAX_UNWANTED);
        line.delivered(token(2));
        assert_eq!(line.0.len(), 0);
    }
}
