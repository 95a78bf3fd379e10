//! Tells nodes to finish their attempts and leave.

use lamagrid_domain::BootId;
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, AdminReply, DrainNode, Draining};

use super::admin::{asked_by, refused};
use crate::core::state::drains::{Drain, Return};
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
            if !session.drain() {
                continue;
            }
            let (node, boot) = (session.node().clone(), session.boot());
            tracing::info!(%node, running, by, "node is drained: it finishes what it has begun, and leaves");
            let drain = Drain { boot, by: by.clone(), since_wall_ms: self.clock.now().wall_ms };
            self.emit(Effect::Store(StoreOp::Drain { node: node.clone(), drain: Some(drain.clone()) }));
            self.drains.insert(node, drain);
            self.command(*id, Action::Drain);
        }
        while let Some(node) = self.drains.excess() {
            self.forget_drain(&node);
        }
        if named.is_empty() {
            refused(format!("no node {name} is connected; see: lamagrid node list"))
        } else {
            let running = named.iter().map(|(_, running)| running).sum();
            Draining { node: name, running }.into()
        }
    }

    /// Whether a process that registers is to leave, because its node was told to before.
    pub(crate) fn is_still_drained(&mut self, node: &NodeId, boot: Option<BootId>) -> bool {
        let lease_ms = self.settings.scheduler.lease_ms;
        match self.drains.returned(node, boot, self.clock.elapsed_ms(), lease_ms) {
            Return::NotDrained => false,
            Return::StillDrained(Drain { by, since_wall_ms, .. }) => {
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

    /// The order of a node does not hold any more.
    pub(crate) fn forget_drain(&mut self, node: &NodeId) {
        if self.drains.remove(node) {
            self.emit(Effect::Store(StoreOp::Drain { node: node.clone(), drain: None }));
        }
    }
}
