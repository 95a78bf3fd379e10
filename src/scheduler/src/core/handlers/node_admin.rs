//! Shows everything known about one node, and changes its settings.

use lamagrid_domain::{Label, NodeName, QueueName, SessionId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::MAX_HEADER_BYTES;
use lamagrid_protocol::message::{
    Action, ActionKind, AdminReply, NodeDetail, NodeOrder, NodeStatus, SetNode, TaskLine,
};
use lamagrid_protocol::pack;

use super::admin::{asked_by, refusal, refused, unfinished_line};
use crate::core::policy::node_change;
use crate::core::state::node_orders::{Order, OrderKind};
use crate::core::state::session::Session;
use crate::core::{Core, NodeId};

impl Core {
    /// Everything known about a node; a refusal if nothing is.
    pub(super) fn node_detail(&self, name: &NodeName) -> AdminReply {
        match self.nodes_of(name).first() {
            Some(node) => self.detail_of(node).into(),
            None => refused(self.unknown_node(name)),
        }
    }

    pub(super) fn detail_of(&self, node: &NodeId) -> NodeDetail {
        let session = self.sessions.of_node(node);
        let order = self.orders.of_node(node).map(|Order { kind, by, since_wall_ms, .. }| NodeOrder {
            removed: *kind == OrderKind::Removal,
            by: by.clone(),
            since_wall_ms: *since_wall_ms,
        });
        let mut detail = NodeDetail {
            node: node.name.clone(),
            session: session.map(|session| self.node_status(session)),
            refused: session.map_or_else(Vec::new, |session| session.refused().to_vec()),
            order,
            change: self.changes.of_node(node),
            tasks: session.map_or_else(Vec::new, |session| self.tasks_of(session)),
        };
        // The node's own description may take most of a message.
        while pack(&detail).is_ok_and(|packed| packed.len() > MAX_HEADER_BYTES) && !detail.tasks.is_empty() {
            detail.tasks.truncate(detail.tasks.len() / 2);
        }
        detail
    }

    pub(crate) fn node_status(&self, session: &Session) -> NodeStatus {
        NodeStatus {
            info: session.info().clone(),
            running: session.running() as u32,
            slots: u32::from(session.slots()),
            state: self.state_of(session).to_owned(),
            queues: session.queues().cloned().collect(),
            figures: session.figures(),
        }
    }

    /// The tasks that a node has, in the order in which its slots begin with them.
    fn tasks_of(&self, session: &Session) -> Vec<TaskLine> {
        let tokens = session.attempts_in_order().into_iter();
        tokens.filter_map(|token| self.tasks.get(self.leases.task_of(token)?)).map(unfinished_line).collect()
    }

    /// Sends a change of settings to a node.
    pub(crate) fn set_node(&mut self, peer: &PeerId, request: SetNode) -> AdminReply {
        let SetNode { node: name, change, by } = request;
        if let Err(failure) = node_change::check(&change) {
            return refusal(failure);
        }
        let named: Vec<_> = self.sessions.values().filter(|session| session.info().name == name).collect();
        let session = match named.as_slice() {
            [] => return refused(self.unknown_node(&name)),
            [session] => *session,
            _ => {
                return refused(format!(
                    "nodes of {} certificates are named {name}; start them with different names (--name)",
                    named.len()
                ));
            }
        };
        if !session.executes(ActionKind::Set) {
            return refused(format!(
                "node {name} runs lamagrid {}, which cannot change its settings while it runs; start it again with other \
                 flags, or upgrade it",
                session.info().version
            ));
        }
        if self.changes.is_pending(session.node()) {
            return refused(format!(
                "node {name} has not answered its last change yet; try again in a second"
            ));
        }
        if let Some(text) = change.labels.clone().and_then(|labels| self.unserving(session, labels)) {
            return refused(text);
        }
        let (id, node, boot) = (session.id(), session.node().clone(), session.boot());
        let by = asked_by(peer, by);
        tracing::info!(%node, by, ?change, "node is told to change its settings");
        if let Some(seq) = self.command(id, Action::Set { change: change.clone() }) {
            self.changes.begin(node, boot, change, seq);
        }
        self.node_detail(&name)
    }

    /// Why a node would serve no queue with other labels; `None` if it would.
    fn unserving(&self, session: &Session, labels: Vec<Label>) -> Option<String> {
        let mut info = session.described_with(labels);
        let plan = self.lane_rules(session.allowed()).plan(&mut info);
        if !plan.queues.is_empty() || session.queues().next().is_none() {
            return None;
        }
        let reasons = plan.refused.iter().map(|refused| format!("{}: {}", refused.queue, refused.reason));
        Some(format!(
            "with these labels node {} would serve no queue ({}); to give it no tasks, drain it: lamagrid node drain",
            info.name,
            reasons.collect::<Vec<_>>().join("; ")
        ))
    }

    /// A node has other labels: it serves the queues that they allow at once.
    pub(super) fn set_labels(&mut self, id: SessionId, labels: Vec<Label>) {
        let Some(session) = self.sessions.get(id) else { return };
        let mut info = session.described_with(labels);
        let plan = self.lane_rules(session.allowed()).plan(&mut info);
        tracing::info!(
            node = %session.node(), labels = ?info.labels,
            queues = ?plan.queues.iter().map(QueueName::as_str).collect::<Vec<_>>(),
            "node has other labels"
        );
        if let Some(session) = self.sessions.get_mut(id) {
            session.replan(info, plan);
        }
    }
}
