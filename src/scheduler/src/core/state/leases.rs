//! Tokens of attempts, and the attempts whose session ended and whose node may come back for them.

use std::collections::{BTreeMap, HashMap};

use lamagrid_domain::{LeaseToken, TaskId};

use crate::core::node_id::NodeId;

/// An attempt whose session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) token: LeaseToken,
    /// No slot had begun with it, by the credit that its session had given: an idle node may take it.
    pub(crate) waited: bool,
    /// Its node had nothing else: the loss of the node is held against it.
    pub(crate) was_alone: bool,
}

/// The orphans of one node.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// In the order of dispatch; after a restart, in that of acceptance.
    pub(crate) attempts: Vec<Orphan>,
    /// Lease clock; then the node is lost.
    pub(crate) until_ms: u64,
    /// Why its session ended.
    pub(crate) cause: OrphanedBy,
}

/// Why attempts have no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrphanedBy {
    /// The node went away: if it stays away, that counts as a crash.
    LostSession,
    /// The scheduler was restarted, which says nothing about the node.
    Restart,
    /// Another process of the node came in its place, while it may still be alive.
    Takeover,
}

/// The task of each token, and orphans by node.
///
/// Invariant: an orphan's token is known, and it is an orphan of one node only.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Tokens of running attempts, and of accepted results, so that a repeated delivery is recognised.
    tokens: HashMap<LeaseToken, TaskId>,
    orphans: BTreeMap<NodeId, Orphans>,
}

impl Leases {
    /// The task of a token, finished or not.
    pub(crate) fn task_of(&self, token: LeaseToken) -> Option<TaskId> {
        self.tokens.get(&token).copied()
    }

    pub(crate) fn insert(&mut self, token: LeaseToken, id: TaskId) {
        self.tokens.insert(token, id);
    }

    pub(crate) fn remove(&mut self, token: LeaseToken) {
        self.tokens.remove(&token);
    }

    /// Keeps an attempt for its node until `until_ms`.
    pub(crate) fn keep_orphan(&mut self, node: NodeId, orphan: Orphan, until_ms: u64) {
        let cause = OrphanedBy::LostSession;
        let orphans = self.orphans.entry(node).or_insert(Orphans { attempts: Vec::new(), until_ms, cause });
        orphans.until_ms = orphans.until_ms.max(until_ms);
        orphans.cause = cause;
        orphans.attempts.push(orphan);
    }

    /// Keeps an attempt that ran when the last process ended.
    pub(crate) fn restore(&mut self, token: LeaseToken, id: TaskId, node: NodeId, until_ms: u64) {
        self.insert(token, id);
        let cause = OrphanedBy::Restart;
        let orphans = self.orphans.entry(node).or_insert(Orphans { attempts: Vec::new(), until_ms, cause });
        orphans.attempts.push(Orphan { token, waited: false, was_alone: false });
    }

    /// Hands over the orphans of a node: it is back, or lost.
    pub(crate) fn take_orphans(&mut self, node: &NodeId) -> Option<Orphans> {
        self.orphans.remove(node)
    }

    /// An attempt is not kept any more.
    pub(crate) fn forget_orphan(&mut self, token: LeaseToken) {
        for orphans in self.orphans.values_mut() {
            orphans.attempts.retain(|orphan| orphan.token != token);
        }
    }

    pub(crate) fn orphans(&self) -> impl Iterator<Item = Orphan> {
        self.orphans.values().flat_map(|orphans| &orphans.attempts).copied()
    }

    /// Nodes that may come back for attempts.
    pub(crate) fn orphaned_nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.orphans.keys()
    }

    /// Nodes that did not come back in time.
    pub(crate) fn lost_nodes(&self, clock_ms: u64) -> Vec<NodeId> {
        let lost = self.orphans.iter().filter(|(_, orphans)| orphans.until_ms <= clock_ms);
        lost.map(|(node, _)| node.clone()).collect()
    }

    #[cfg(test)]
    pub(crate) fn has_orphans_of(&self, node: &NodeId) -> bool {
        self.orphans.contains_key(node)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = std::collections::BTreeSet::new();
        for Orphan { token, .. } in self.orphans() {
            invariant!(self.task_of(token).is_some(), "orphan {token} belongs to no task");
            invariant!(seen.insert(token), "token {token} is an orphan twice");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> LeaseToken {
        LeaseToken::from_bytes([n; 16])
    }

    #[test]
    fn orphans_are_kept_as_long_as_the_last_of_them_and_then_lost_together() {
        let (mut leases, node) = (Leases::default(), "n".parse::<NodeId>().unwrap());
        let orphan = |n| Orphan { token: token(n), waited: false, was_alone: true };
        leases.restore(token(1), TaskId::drawn_at(0, [1; 16]), node.clone(), 100);
        for (n, until_ms) in [(2, 50), (3, 150)] {
            leases.insert(token(n), TaskId::drawn_at(0, [n; 16]));
            leases.keep_orphan(node.clone(), orphan(n), until_ms);
        }
        leases.check().unwrap();
        leases.forget_orphan(token(2));
        assert_eq!((leases.lost_nodes(149), leases.lost_nodes(150)), (vec![], vec![node.clone()]));
        let lost = leases.take_orphans(&node).unwrap();
        assert_eq!(lost.attempts.iter().map(|o| o.token).collect::<Vec<_>>(), [token(1), token(3)]);
        assert_eq!(lost.cause, OrphanedBy::LostSession);
        assert!(leases.take_orphans(&node).is_none() && leases.orphans().next().is_none());
    }
}
