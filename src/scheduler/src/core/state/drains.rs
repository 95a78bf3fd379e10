//! Nodes that are to finish what they have begun and leave: the order belongs to the node, not to its session.
//!
//! It holds until the node says goodbye: over broken connections, restarts of the scheduler, and for the process that a
//! supervisor starts in place of one that died. A process that comes after a whole lease without one was started by a
//! person, and serves.

use std::collections::BTreeMap;

use lamagrid_domain::BootId;
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, AdminReply, DrainNode, Draining};

use crate::core::handlers::{asked_by, refused};
use crate::core::{Core, Effect, NodeId, StoreOp};

/// Orders of nodes that never came back are kept up to this many.
const MAX_DRAINS: usize = 1_000;

/// An order to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drain {
    /// The process that was told; absent for protocol versions before 1.5.
    pub(crate) boot: Option<BootId>,
    /// Who asked for it.
    pub(crate) by: String,
    /// When, wall clock, ms.
    pub(crate) since_wall_ms: u64,
}

/// The orders that hold.
#[derive(Debug, Default)]
pub(crate) struct Drains(BTreeMap<NodeId, Held>);

#[derive(Debug)]
struct Held {
    drain: Drain,
    /// Lease clock at the end of the node's last session, or of the last scheduler; `None` while it has one.
    away_since_ms: Option<u64>,
}

impl Drains {
    /// Those of the last scheduler, whose nodes have no session yet.
    pub(crate) fn recovered(drains: Vec<(NodeId, Drain)>) -> Self {
        let held = |(node, drain)| (node, Held { drain, away_since_ms: Some(0) });
        Self(drains.into_iter().map(held).collect())
    }

    pub(crate) fn away(&mut self, node: &NodeId, clock_ms: u64) {
        if let Some(held) = self.0.get_mut(node) {
            held.away_since_ms = Some(clock_ms);
        }
    }
}

impl Core {
    pub(crate) fn drain_node(&mut self, peer: &PeerId, request: DrainNode) -> AdminReply {
        let DrainNode { node: name, by } = request;
        let by = asked_by(peer, by);
        // Nodes of different certificates may have the same name.
        let named = self.sessions.values().filter(|s| s.info().name == name);
        let named: Vec<_> = named.map(|s| (s.id(), s.running() as u32)).collect();
        for (id, running) in &named {
            let session = self.sessions.get_mut(*id).expect("listed above");
            if !session.drain() {
                continue;
            }
            let (node, boot) = (session.node().clone(), session.boot());
            tracing::info!(%node, running, by, "node is drained: it finishes what it has begun, and leaves");
            let drain = Drain { boot, by: by.clone(), since_wall_ms: self.clock.now().wall_ms };
            self.emit(Effect::Store(StoreOp::Drain { node: node.clone(), drain: Some(drain.clone()) }));
            self.drains.0.insert(node, Held { drain, away_since_ms: None });
            self.command(*id, Action::Drain);
        }
        while self.drains.0.len() > MAX_DRAINS {
            let oldest = self.drains.0.iter().filter(|(_, held)| held.away_since_ms.is_some());
            let Some(node) =
                oldest.min_by_key(|(_, held)| held.drain.since_wall_ms).map(|(node, _)| node.clone())
            else {
                break;
            };
            self.forget_drain(&node);
        }
        if named.is_empty() {
            refused(format!("no node {name} is connected; see: lamagrid node list"))
        } else {
            let running = named.iter().map(|(_, running)| running).sum();
            Draining { node: name, running }.into()
        }
    }

    /// Whether a process that says hello is to leave, because its node was told to before.
    pub(crate) fn is_still_drained(&mut self, node: &NodeId, boot: Option<BootId>) -> bool {
        let lease_ms = self.settings.scheduler.lease_ms;
        let Some(held) = self.drains.0.get_mut(node) else { return false };
        let away_ms = held.away_since_ms.map_or(0, |since| self.clock.elapsed_ms().saturating_sub(since));
        let is_same_process = boot.is_some() && held.drain.boot == boot;
        if is_same_process || away_ms < lease_ms {
            held.away_since_ms = None;
            let Drain { by, since_wall_ms, .. } = &held.drain;
            let for_s = self.clock.now().wall_ms.saturating_sub(*since_wall_ms) / 1_000;
            tracing::info!(%node, by, for_s, "node is back and still drained: it finishes what it has begun, and leaves");
            return true;
        }
        tracing::info!(%node, away_ms, "node was started anew since it was drained: it serves");
        self.forget_drain(node);
        false
    }

    /// A node has left, as it was told.
    pub(crate) fn forget_drain(&mut self, node: &NodeId) {
        if self.drains.0.remove(node).is_some() {
            self.emit(Effect::Store(StoreOp::Drain { node: node.clone(), drain: None }));
        }
    }
}
