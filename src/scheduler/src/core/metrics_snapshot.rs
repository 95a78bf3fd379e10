//! The state of the core at one moment, for metrics.

use std::collections::BTreeMap;

use lamagrid_domain::QueueName;

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
