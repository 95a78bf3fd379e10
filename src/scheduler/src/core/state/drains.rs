//! Nodes that were told to finish their attempts and leave. The order belongs to the node, not to its session.
//!
//! It holds until the node says goodbye: over broken connections, restarts of the scheduler, and for the process that a
//! supervisor starts in place of one that died. A process that registers after a whole lease without a session was
//! started by a person, and serves.

use std::collections::BTreeMap;

use lamagrid_domain::BootId;

use crate::core::node_id::NodeId;

/// Orders of nodes that never came back are kept up to this many.
const MAX_DRAINS: usize = 1_000;

/// An order to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drain {
    /// The process that was told; absent for protocol versions before 1.5.
    pub(crate) boot: Option<BootId>,
    /// Who gave the order.
    pub(crate) by: String,
    /// When, wall clock, ms.
    pub(crate) since_wall_ms: u64,
}

/// The orders that hold.
#[derive(Debug, Default)]
pub(crate) struct Drains(BTreeMap<NodeId, Entry>);

#[derive(Debug)]
struct Entry {
    drain: Drain,
    /// Lease clock at the end of the node's last session, or of the last scheduler; `None` while it has one.
    away_since_ms: Option<u64>,
}

/// How a node registers, as far as drains are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Return<'a> {
    /// There is no order for it.
    NotDrained,
    /// The order still holds.
    StillDrained(&'a Drain),
    /// It was started again after this long without a session: the order does not hold any more.
    StartedAnew { away_ms: u64 },
}

impl Drains {
    /// The orders of the last scheduler, whose nodes have no session yet.
    pub(crate) fn recovered(drains: BTreeMap<NodeId, Drain>) -> Self {
        let entry = |(node, drain)| (node, Entry { drain, away_since_ms: Some(0) });
        Self(drains.into_iter().map(entry).collect())
    }

    /// The session of a node ended.
    pub(crate) fn away(&mut self, node: &NodeId, clock_ms: u64) {
        if let Some(entry) = self.0.get_mut(node) {
            entry.away_since_ms = Some(clock_ms);
        }
    }

    /// A connected node is told to leave.
    pub(crate) fn insert(&mut self, node: NodeId, drain: Drain) {
        self.0.insert(node, Entry { drain, away_since_ms: None });
    }

    /// False if there was no order.
    pub(crate) fn remove(&mut self, node: &NodeId) -> bool {
        self.0.remove(node).is_some()
    }

    /// Of too many orders, the oldest one of a node that is away.
    pub(crate) fn excess(&self) -> Option<NodeId> {
        let away = self.0.iter().filter(|(_, entry)| entry.away_since_ms.is_some());
        let oldest = away.min_by_key(|(_, entry)| entry.drain.since_wall_ms);
        oldest.filter(|_| self.0.len() > MAX_DRAINS).map(|(node, _)| node.clone())
    }

    /// A process registers as this node.
    pub(crate) fn returned(
        &mut self,
        node: &NodeId,
        boot: Option<BootId>,
        clock_ms: u64,
        lease_ms: u64,
    ) -> Return<'_> {
        let Some(entry) = self.0.get_mut(node) else { return Return::NotDrained };
        let away_ms = entry.away_since_ms.map_or(0, |since| clock_ms.saturating_sub(since));
        let is_same_process = boot.is_some() && entry.drain.boot == boot;
        if is_same_process || away_ms < lease_ms {
            entry.away_since_ms = None;
            return Return::StillDrained(&entry.drain);
        }
        Return::StartedAnew { away_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(since_wall_ms: u64) -> Drain {
        Drain { boot: Some(BootId::from_bytes([1; 16])), by: "ann".into(), since_wall_ms }
    }

    #[test]
    fn an_order_holds_for_the_same_process_and_for_one_that_comes_within_a_lease() {
        let node = "n".parse::<NodeId>().unwrap();
        let mut drains = Drains::recovered([(node.clone(), drain(5))].into());
        let (same, other) = (drain(0).boot, Some(BootId::from_bytes([2; 16])));
        assert_eq!(drains.returned(&node, other, 100, 100), Return::StartedAnew { away_ms: 100 });
        assert_eq!(drains.returned(&node, same, 100, 100), Return::StillDrained(&drain(5)));
        drains.away(&node, 200);
        assert_eq!(drains.returned(&node, other, 299, 100), Return::StillDrained(&drain(5)));
        assert!(drains.remove(&node) && !drains.remove(&node));
        assert_eq!(drains.returned(&node, same, 300, 100), Return::NotDrained);
    }

    #[test]
    fn of_too_many_orders_the_oldest_of_an_absent_node_goes() {
        let node = |n: u64| format!("n{n}").parse::<NodeId>().unwrap();
        let absent = (1..1_000).map(|n| (node(n), drain(n))).collect();
        let mut drains = Drains::recovered(absent);
        drains.insert(node(0), drain(0));
        assert_eq!(drains.excess(), None);
        drains.insert(node(1_000), drain(1_000));
        assert_eq!(drains.excess(), Some(node(1)));
    }
}
