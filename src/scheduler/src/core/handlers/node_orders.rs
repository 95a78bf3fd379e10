//! Orders of administrators about nodes: to leave, to stay away, to serve again.

use std::collections::BTreeSet;

use lamagrid_domain::{BootId, NodeName};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Action, ActionKind, AdminReply, DrainNode, Draining, RemoveNode, UndrainNode,
};

use super::admin::{asked_by, refused};
use super::node_control::KeepAttempts;
use crate::core::policy::retry::Loss;
use crate::core::state::node_orders::{Order, OrderKind, Return};
use crate::core::{Core, Effect, NodeId, StoreOp};

impl Core {
    pub(crate) fn drain_node(&mut self, peer: &PeerId, request: DrainNode) -> AdminReply {
        let DrainNode { node: name, by } = request;
        let by = asked_by(peer, by);
        // Nodes of different certificates may have the same name.
        let named = self.sessions.values().filter(|session| session.info().name == name);
        let named: Vec<_> = named.map(|session| (session.id(), session.running() as u32)).collect();
        for (id, running) in &named {
            let session = self.sessions.get_mut(*id).expect("listed above");
            if self.orders.of_node(session.node()).is_some() {
                continue;
            }
            session.drain();
            let (node, boot) = (session.node().clone(), session.boot());
            tracing::info!(%node, running, by, "node is drained: it finishes what it has begun, and leaves");
            self.give_order(node, Order { boot, ..self.order(OrderKind::Drain, &by) });
            self.command(*id, Action::Drain);
        }
        while let Some(node) = self.orders.excess_drain() {
            self.forget_drain(&node);
        }
        if named.is_empty() {
            refused(self.unknown_node(&name))
        } else {
            let running = named.iter().map(|(_, running)| running).sum();
            Draining { node: name, running }.into()
        }
    }

    /// Ends the sessions of a node, gives its tasks to others, and refuses the node from then on.
    pub(crate) fn remove_node(&mut self, peer: &PeerId, request: RemoveNode) -> AdminReply {
        let RemoveNode { node: name, by } = request;
        let by = asked_by(peer, by);
        let nodes = self.nodes_of(&name);
        if nodes.is_empty() {
            return refused(self.unknown_node(&name));
        }
        for node in nodes {
            if self.orders.removal_of(&node).is_some() {
                continue;
            }
            if self.orders.is_full() {
                return refused(
                    "too many nodes are removed; take some back with lamagrid node undrain".to_owned(),
                );
            }
            let session = self.sessions.of_node(&node).map(|session| (session.id(), session.boot()));
            let boot = session.and_then(|(_, boot)| boot);
            tracing::info!(%node, by, "node is removed: its tasks go to other nodes, and it is refused from now on");
            self.give_order(node.clone(), Order { boot, ..self.order(OrderKind::Removal, &by) });
            self.changes.forget(&node);
            if let Some((id, _)) = session {
                self.end_session(id, KeepAttempts::No, "an administrator removed the node");
            }
            let orphans = self.leases.take_orphans(&node).map_or_else(Vec::new, |orphans| orphans.attempts);
            orphans.into_iter().for_each(|orphan| self.requeue_lost(orphan.token, Loss::GivenBack));
        }
        self.node_detail(&name)
    }

    /// Takes back the drains and removals of a node.
    pub(crate) fn undrain_node(&mut self, peer: &PeerId, request: UndrainNode) -> AdminReply {
        let UndrainNode { node: name, by } = request;
        let by = asked_by(peer, by);
        let ordered: Vec<_> = self.orders.of_name(&name).map(|(node, _)| node.clone()).collect();
        for node in &ordered {
            if let Some(session) = self.sessions.of_node(node)
                && !session.executes(ActionKind::Undrain)
            {
                return refused(format!(
                    "node {name} runs lamagrid {}, which cannot take back a drain: it leaves once it has finished what it \
                     has begun; then start it again",
                    session.info().version
                ));
            }
        }
        for node in &ordered {
            self.take_back_order(node, &by);
        }
        // A removed node is away, so that nothing is known about it any more.
        ordered.first().map_or_else(|| self.node_detail(&name), |node| self.detail_of(node).into())
    }

    fn take_back_order(&mut self, node: &NodeId, by: &str) {
        let Some(order) = self.orders.take_back(node) else { return };
        let given_by = &order.by;
        tracing::info!(%node, by, given_by, "node may serve again: its drain or removal is taken back");
        self.emit(Effect::Store(StoreOp::NodeOrder { node: node.clone(), order: None }));
        // Its session stays draining until the node registers anew, which resets its credit.
        if let Some(session) = self.sessions.of_node(node).map(|session| session.id()) {
            self.command(session, Action::Undrain);
        }
    }

    fn order(&self, kind: OrderKind, by: &str) -> Order {
        Order { kind, boot: None, by: by.to_owned(), since_wall_ms: self.clock.now().wall_ms }
    }

    fn give_order(&mut self, node: NodeId, order: Order) {
        self.emit(Effect::Store(StoreOp::NodeOrder { node: node.clone(), order: Some(order.clone()) }));
        self.orders.give(node, order);
    }

    /// All nodes of a name that have a session, an order, or attempts that are kept for them.
    pub(super) fn nodes_of(&self, name: &NodeName) -> BTreeSet<NodeId> {
        let connected = self.sessions.values().map(|session| session.node());
        let ordered = self.orders.of_name(name).map(|(node, _)| node);
        let nodes = connected.chain(ordered).chain(self.leases.orphaned_nodes());
        nodes.filter(|node| node.name == *name).cloned().collect()
    }

    /// Says that there is no node of this name, and which one may be meant.
    pub(super) fn unknown_node(&self, name: &NodeName) -> String {
        let connected = self.sessions.values().map(|session| &session.info().name);
        let known = connected.chain(self.orders.names()).map(NodeName::as_str);
        match lamagrid_config::most_similar(name.as_str(), known) {
            Some(similar) => {
                format!("no node {name} is connected; did you mean {similar}? See: lamagrid node list")
            }
            None => format!("no node {name} is connected; see: lamagrid node list"),
        }
    }

    /// Tells a node why it is refused; `None` if it is not removed.
    pub(super) fn removal_text(&self, node: &NodeId) -> Option<String> {
        let Order { by, since_wall_ms, .. } = self.orders.removal_of(node)?;
        let ago_s = self.clock.now().wall_ms.saturating_sub(*since_wall_ms) / 1_000;
        Some(format!(
            "node {node} was removed from the grid {ago_s} s ago by {by}; `lamagrid node undrain {node}` takes that back"
        ))
    }

    /// Whether a process that registers is to leave, because its node was told to before.
    pub(crate) fn is_still_drained(&mut self, node: &NodeId, boot: Option<BootId>) -> bool {
        let lease_ms = self.settings.scheduler.lease_ms;
        match self.orders.returned(node, boot, self.clock.elapsed_ms(), lease_ms) {
            Return::NotDrained => false,
            Return::StillDrained(Order { by, since_wall_ms, .. }) => {
                let for_s = self.clock.now().wall_ms.saturating_sub(*since_wall_ms) / 1_000;
                tracing::info!(%node, by, for_s, "node is back and still drained: it finishes what it has begun, and leaves");
                true
            }
            Return::StartedAnew { away_ms } => {
                tracing::info!(%node, away_ms, "node was started anew since it was drained: it serves");
                self.forget_drain(node);
                false
            }
        }
    }

    /// The node said goodbye.
    pub(crate) fn node_left(&mut self, node: &NodeId) {
        self.changes.forget(node);
        if self.orders.left(node) {
            self.emit(Effect::Store(StoreOp::NodeOrder { node: node.clone(), order: None }));
        }
    }

    fn forget_drain(&mut self, node: &NodeId) {
        if self.orders.forget_drain(node) {
            self.emit(Effect::Store(StoreOp::NodeOrder { node: node.clone(), order: None }));
        }
    }
}
