//! Limits how often the refusal of a node is logged: a refused node keeps trying.

use std::collections::BTreeMap;

use crate::core::node_id::NodeId;

/// The refusal of one node is logged this often.
const EVERY_MS: u64 = 10_000;
/// Nodes that are remembered; then all are forgotten, and each is logged once more.
const MAX_NODES: usize = 1_000;

/// When the refusal of a node was logged last, by the lease clock.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog(BTreeMap<NodeId, u64>);

impl RefusalLog {
    /// Whether this refusal is logged.
    pub(crate) fn is_due(&mut self, node: &NodeId, clock_ms: u64) -> bool {
        if self.0.get(node).is_some_and(|at| clock_ms.saturating_sub(*at) < EVERY_MS) {
            return false;
        }
        if self.0.len() >= MAX_NODES {
            self.0.clear();
        }
        self.0.insert(node.clone(), clock_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_is_logged_once_in_ten_seconds() {
        let (mut log, node) = (RefusalLog::default(), "n".parse::<NodeId>().unwrap());
        let due = [0, 9_999, 10_000].map(|clock_ms| log.is_due(&node, clock_ms));
        assert_eq!(due, [true, false, true]);
        assert!(log.is_due(&"other".parse().unwrap(), 10_000));
    }
}
