//! Changes of nodes' settings, from the request until another process of the node registers.
//!
//! The command is lost with a session that ends, so that a pending change is sent again in the next one. Does not:
//! store anything; a node that is started again has the settings of its flags and configuration.

use std::collections::BTreeMap;

use lamagrid_domain::{BootId, LineFeeds, printable};
use lamagrid_protocol::message::{ChangeState, NodeChange, RefusedCommand};

use crate::core::node_id::NodeId;

/// Changes that are remembered; above it the first node's is dropped.
const MAX_CHANGES: usize = 4_096;

/// The reason of a refused change is kept up to this length.
const MAX_REASON_CHARS: usize = 500;

/// The last change of each node.
#[derive(Debug, Default)]
pub(crate) struct NodeChanges(BTreeMap<NodeId, Entry>);

#[derive(Debug)]
struct Entry {
    /// The process that changes.
    boot: Option<BootId>,
    change: NodeChange,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// The node has not answered the command of this number.
    Pending {
        seq: u64,
    },
    Done,
    Refused(String),
}

impl NodeChanges {
    /// A node is told to change, by the command of this number.
    pub(crate) fn begin(&mut self, node: NodeId, boot: Option<BootId>, change: NodeChange, seq: u64) {
        self.0.insert(node, Entry { boot, change, progress: Progress::Pending { seq } });
        if self.0.len() > MAX_CHANGES {
            self.0.pop_first();
        }
    }

    /// The node's last change, as administrators see it.
    pub(crate) fn of_node(&self, node: &NodeId) -> Option<ChangeState> {
        let entry = self.0.get(node)?;
        let refusal =
            if let Progress::Refused(reason) = &entry.progress { Some(reason.clone()) } else { None };
        let done = !matches!(entry.progress, Progress::Pending { .. });
        Some(ChangeState { change: entry.change.clone(), done, refusal })
    }

    /// Whether the node has not answered yet.
    pub(crate) fn is_pending(&self, node: &NodeId) -> bool {
        self.0.get(node).is_some_and(|entry| matches!(entry.progress, Progress::Pending { .. }))
    }

    /// A poll acknowledges commands up to `acknowledged`, and lists the refused ones. Returns the change that the node
    /// executed meanwhile.
    pub(crate) fn answered(
        &mut self,
        node: &NodeId,
        acknowledged: u64,
        refused: &[RefusedCommand],
    ) -> Option<&NodeChange> {
        let entry = self.0.get_mut(node)?;
        let Progress::Pending { seq } = entry.progress else { return None };
        if seq > acknowledged {
            return None;
        }
        let refusal = refused.iter().find(|refused| refused.seq == seq);
        entry.progress = refusal.map_or(Progress::Done, |refused| {
            Progress::Refused(printable(&refused.reason, MAX_REASON_CHARS, LineFeeds::Replace).into_owned())
        });
        refusal.is_none().then_some(&entry.change)
    }

    /// A process registers as this node. Returns the change that it may not have heard of.
    pub(crate) fn returned(&mut self, node: &NodeId, boot: Option<BootId>) -> Option<NodeChange> {
        let entry = self.0.get(node)?;
        if boot.is_none() || entry.boot != boot {
            self.0.remove(node);
            return None;
        }
        matches!(entry.progress, Progress::Pending { .. }).then(|| entry.change.clone())
    }

    /// The node left, or was removed.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.0.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_pending_until_its_command_is_acknowledged_or_refused() {
        let (node, boot) = ("n".parse::<NodeId>().unwrap(), Some(BootId::from_bytes([1; 16])));
        let change = NodeChange { slots: Some(2), ..NodeChange::default() };
        let mut changes = NodeChanges::default();
        changes.begin(node.clone(), boot, change.clone(), 7);
        changes.answered(&node, 6, &[]);
        assert!(changes.is_pending(&node));
        // Its session ended: the next one begins its numbers anew.
        assert_eq!(changes.returned(&node, boot), Some(change.clone()));
        changes.begin(node.clone(), boot, change.clone(), 1);
        changes.answered(&node, 1, &[RefusedCommand { seq: 1, reason: "one only".into() }]);
        let told = changes.of_node(&node).unwrap();
        assert_eq!((told.done, told.refusal.as_deref()), (true, Some("one only")));
        assert_eq!(changes.returned(&node, boot), None);
        assert_eq!(changes.returned(&node, Some(BootId::from_bytes([2; 16]))), None);
        assert_eq!(changes.of_node(&node), None);
        changes.begin(node.clone(), boot, change, 1);
        changes.answered(&node, 1, &[]);
        assert_eq!(changes.of_node(&node).map(|told| (told.done, told.refusal)), Some((true, None)));
    }
}
