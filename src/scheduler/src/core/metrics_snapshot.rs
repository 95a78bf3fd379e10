//! What the core would say about itself at this instant, for gauges.

use std::collections::BTreeMap;

use lamagrid_domain::QueueName;

use super::Core;

/// One queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueMetrics {
    pub(crate) waiting: u64,
    pub(crate) running: u64,
    pub(crate) limit: u64,
    pub(crate) paused: bool,
}

/// The whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct MetricsSnapshot {
    pub(crate) queues: BTreeMap<QueueName, QueueMetrics>,
    /// By the word that `lamagrid node list` has for a state.
    pub(crate) nodes: BTreeMap<&'static str, u64>,
    pub(crate) ended: u64,
    pub(crate) dead: u64,
    pub(crate) spool_bytes: u64,
    pub(crate) spool_limit_bytes: u64,
    /// Reserved for uploads, of the spool's bytes.
    pub(crate) reserved_bytes: u64,
    pub(crate) disk_free_bytes: Option<u64>,
    /// The wall clock jumped and is not believed yet.
    pub(crate) clock_doubted: bool,
}

impl Core {
    /// Tasks on nodes, by queue. Only what nodes have is looked at, however many wait.
    pub(super) fn running(&self) -> BTreeMap<&QueueName, u64> {
        let held = self.sessions.values().flat_map(|session| session.tokens());
        let orphaned = self.leases.orphans().map(|orphan| orphan.token);
        let mut running = BTreeMap::new();
        for task in held.chain(orphaned).filter_map(|token| self.tasks.get(self.leases.task_of(token)?)) {
            *running.entry(&task.spec().queue).or_default() += 1;
        }
        running
    }

    /// Asked once a second.
    pub(crate) fn metrics_snapshot(&self) -> MetricsSnapshot {
        let running = self.running();
        let queues = self
            .settings
            .queues
            .iter()
            .map(|(queue, limit)| {
                let (waiting, paused) = (self.ready.length(queue).unwrap_or(0), self.paused.contains(queue));
                let running = running.get(queue).copied().unwrap_or(0);
                (queue.clone(), QueueMetrics { waiting, running, limit: *limit, paused })
            })
            .collect();
        let mut nodes =
            BTreeMap::from(["ready", "busy", "suspect", "aside", "draining"].map(|state| (state, 0)));
        for session in self.sessions.values() {
            *nodes.entry(self.state_of(session)).or_default() += 1;
        }
        MetricsSnapshot {
            queues,
            nodes,
            ended: self.retention.len() as u64,
            dead: self.admission.dead_letters(),
            spool_bytes: self.admission.spool_bytes(),
            spool_limit_bytes: self.settings.limits.max_spool_bytes,
            reserved_bytes: self.admission.reserved_bytes(),
            disk_free_bytes: self.admission.free_bytes(),
            clock_doubted: self.clock.wall().is_doubted(),
        }
    }
}
