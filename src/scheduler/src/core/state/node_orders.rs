//! Orders of administrators about nodes: to leave (a drain), or to stay away (a removal). An order belongs to the node,
//! not to its session, and holds over broken connections and restarts of the scheduler.
//!
//! A drain holds until the node says goodbye or a person takes it back, also for the process that a supervisor starts
//! in place of one that died. A process that registers after a whole lease without a session was started by a person,
//! and serves. A removal holds until a person takes it back, whatever process registers.

use std::collections::BTreeMap;

use lamagrid_domain::{BootId, NodeName};

use crate::core::node_id::NodeId;

/// Drains of nodes that never came back are kept up to this many; the oldest is dropped first.
const MAX_DRAINS: usize = 1_000;
/// Removals are never dropped, so further ones are refused.
const MAX_REMOVALS: usize = 1_000;

/// The kind of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderKind {
    /// The node finishes its attempts and leaves.
    Drain,
    /// The node is refused.
    Removal,
}

/// An order of an administrator about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) kind: OrderKind,
    /// The process that was connected; absent for protocol versions before 1.5, and without a session.
    pub(crate) boot: Option<BootId>,
    /// The administrator who gave the order.
    pub(crate) by: String,
    /// When, wall clock, ms.
    pub(crate) since_wall_ms: u64,
}

/// The orders that hold, one per node at most.
///
/// Invariant: at most [`MAX_REMOVALS`] of them are removals.
#[derive(Debug, Default)]
pub(crate) struct NodeOrders {
    entries: BTreeMap<NodeId, Entry>,
    /// Processes whose drain was taken back: they are told so in each session until they leave, because the command
    /// is lost with a session that ends.
    taken_back: BTreeMap<NodeId, BootId>,
}

#[derive(Debug)]
struct Entry {
    order: Order,
    /// Lease clock at the end of the node's last session, or of the last scheduler; `None` while it has one.
    away_since_ms: Option<u64>,
}

/// The effect of a drain on a process that registers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Return<'a> {
    /// There is no drain of this node.
    NotDrained,
    /// The drain still holds.
    StillDrained(&'a Order),
    /// The node was started again after this long without a session: the drain does not hold any more.
    StartedAnew { away_ms: u64 },
}

impl NodeOrders {
    /// The orders of the last scheduler, whose nodes have no session yet.
    pub(crate) fn recovered(orders: BTreeMap<NodeId, Order>) -> Self {
        let entry = |(node, order)| (node, Entry { order, away_since_ms: Some(0) });
        Self { entries: orders.into_iter().map(entry).collect(), taken_back: BTreeMap::new() }
    }

    pub(crate) fn of_node(&self, node: &NodeId) -> Option<&Order> {
        self.entries.get(node).map(|entry| &entry.order)
    }

    /// Nodes of this name with an order; nodes of different certificates may have the same name.
    pub(crate) fn of_name<'a>(&'a self, name: &'a NodeName) -> impl Iterator<Item = (&'a NodeId, &'a Order)> {
        let named = self.entries.iter().filter(move |(node, _)| node.name == *name);
        named.map(|(node, entry)| (node, &entry.order))
    }

    /// The names of all nodes with an order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.entries.keys().map(|node| &node.name)
    }

    /// The removal of a node, which refuses it.
    pub(crate) fn removal_of(&self, node: &NodeId) -> Option<&Order> {
        self.of_node(node).filter(|order| order.kind == OrderKind::Removal)
    }

    /// The session of a node ended.
    pub(crate) fn away(&mut self, node: &NodeId, clock_ms: u64) {
        if let Some(entry) = self.entries.get_mut(node) {
            entry.away_since_ms = Some(clock_ms);
        }
    }

    /// Gives an order to a node, in place of its earlier one. A node without a session is away from the start.
    pub(crate) fn give(&mut self, node: NodeId, order: Order) {
        self.taken_back.remove(&node);
        self.entries.insert(node, Entry { order, away_since_ms: None });
    }

    /// The node said goodbye: its drain does not hold any more. False if it had no drain.
    pub(crate) fn left(&mut self, node: &NodeId) -> bool {
        self.taken_back.remove(node);
        self.forget_drain(node)
    }

    /// Forgets the drain of a node. False if it had no drain.
    pub(crate) fn forget_drain(&mut self, node: &NodeId) -> bool {
        let is_drained = self.of_node(node).is_some_and(|order| order.kind == OrderKind::Drain);
        is_drained && self.entries.remove(node).is_some()
    }

    /// Takes an order back. Returns it, if there was one.
    pub(crate) fn take_back(&mut self, node: &NodeId) -> Option<Order> {
        let order = self.entries.remove(node)?.order;
        if let (OrderKind::Drain, Some(boot)) = (order.kind, order.boot) {
            self.taken_back.insert(node.clone(), boot);
            if self.taken_back.len() > MAX_DRAINS {
                self.taken_back.pop_first();
            }
        }
        Some(order)
    }

    /// Whether a process that registers may not have heard yet that its drain was taken back.
    pub(crate) fn was_taken_back(&mut self, node: &NodeId, boot: Option<BootId>) -> bool {
        let is_same = self.taken_back.get(node).is_some_and(|told| Some(*told) == boot);
        if !is_same {
            self.taken_back.remove(node);
        }
        is_same
    }

    /// Of too many drains, the oldest one of a node that is away.
    pub(crate) fn excess_drain(&self) -> Option<NodeId> {
        let drains = || self.entries.iter().filter(|(_, entry)| entry.order.kind == OrderKind::Drain);
        if drains().count() <= MAX_DRAINS {
            return None;
        }
        let away = drains().filter(|(_, entry)| entry.away_since_ms.is_some());
        away.min_by_key(|(_, entry)| entry.order.since_wall_ms).map(|(node, _)| node.clone())
    }

    /// Whether no further node can be removed.
    pub(crate) fn is_full(&self) -> bool {
        let removals = self.entries.values().filter(|entry| entry.order.kind == OrderKind::Removal);
        removals.count() >= MAX_REMOVALS
    }

    /// A process registers as this node, which is not removed.
    pub(crate) fn returned(
        &mut self,
        node: &NodeId,
        boot: Option<BootId>,
        clock_ms: u64,
        lease_ms: u64,
    ) -> Return<'_> {
        let Some(entry) = self.entries.get_mut(node) else { return Return::NotDrained };
        let away_ms = entry.away_since_ms.map_or(0, |since| clock_ms.saturating_sub(since));
        let is_same_process = boot.is_some() && entry.order.boot == boot;
        if is_same_process || away_ms < lease_ms {
            entry.away_since_ms = None;
            return Return::StillDrained(&entry.order);
        }
        Return::StartedAnew { away_ms }
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let removals = self.entries.values().filter(|entry| entry.order.kind == OrderKind::Removal).count();
        invariant!(removals <= MAX_REMOVALS, "{removals} nodes are removed");
        let both = self.taken_back.keys().find(|node| self.entries.contains_key(node));
        invariant!(both.is_none(), "{both:?} has an order that was taken back");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(kind: OrderKind, since_wall_ms: u64) -> Order {
        Order { kind, boot: Some(BootId::from_bytes([1; 16])), by: "ann".into(), since_wall_ms }
    }

    fn drain(since_wall_ms: u64) -> Order {
        order(OrderKind::Drain, since_wall_ms)
    }

    fn node(n: u64) -> NodeId {
        format!("n{n}").parse().unwrap()
    }

    #[test]
    fn a_drain_holds_for_the_same_process_and_for_one_that_comes_within_a_lease() {
        let node = node(0);
        let mut orders = NodeOrders::recovered([(node.clone(), drain(5))].into());
        let (same, other) = (drain(0).boot, Some(BootId::from_bytes([2; 16])));
        assert_eq!(orders.returned(&node, other, 100, 100), Return::StartedAnew { away_ms: 100 });
        assert_eq!(orders.returned(&node, same, 100, 100), Return::StillDrained(&drain(5)));
        orders.away(&node, 200);
        assert_eq!(orders.returned(&node, other, 299, 100), Return::StillDrained(&drain(5)));
        assert!(orders.left(&node) && !orders.left(&node));
        assert_eq!(orders.returned(&node, same, 300, 100), Return::NotDrained);
    }

    #[test]
    fn a_process_is_told_that_its_drain_was_taken_back_until_it_leaves() {
        let node = node(0);
        let mut orders = NodeOrders::recovered([(node.clone(), drain(5))].into());
        let (same, other) = (drain(0).boot, Some(BootId::from_bytes([2; 16])));
        assert_eq!(orders.take_back(&node), Some(drain(5)));
        assert_eq!(orders.take_back(&node), None);
        assert!(orders.was_taken_back(&node, same) && orders.was_taken_back(&node, same));
        assert!(!orders.was_taken_back(&node, other) && !orders.was_taken_back(&node, same));
        orders.check().unwrap();
    }

    #[test]
    fn a_removal_outlives_goodbyes_and_bounds_refuse_further_ones() {
        let removals = (1..=999).map(|n| (node(n), order(OrderKind::Removal, n))).collect();
        let mut orders = NodeOrders::recovered(removals);
        assert!(!orders.left(&node(1)) && orders.removal_of(&node(1)).is_some());
        assert!(!orders.is_full());
        orders.give(node(0), order(OrderKind::Removal, 0));
        assert!(orders.is_full() && orders.excess_drain().is_none());
        orders.check().unwrap();
        assert_eq!(orders.take_back(&node(0)).map(|order| order.kind), Some(OrderKind::Removal));
        assert!(!orders.is_full() && !orders.was_taken_back(&node(0), drain(0).boot));
    }

    #[test]
    fn of_too_many_drains_the_oldest_of_an_absent_node_goes() {
        let absent = (1..1_000).map(|n| (node(n), drain(n))).collect();
        let mut orders = NodeOrders::recovered(absent);
        orders.give(node(0), drain(0));
        assert_eq!(orders.excess_drain(), None);
        orders.give(node(1_000), drain(1_000));
        assert_eq!(orders.excess_drain(), Some(node(1)));
    }
}
