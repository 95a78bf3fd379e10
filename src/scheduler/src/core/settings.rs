//! The inputs of a new core: its settings, and the recovered store.

use std::collections::BTreeMap;

use lamagrid_config::{LimitsConfig, RetryConfig, SchedulerConfig};
use lamagrid_domain::QueueName;
use lamagrid_transport::Endpoints;

use super::effect::StoredTask;
use super::node_id::NodeId;
use super::policy::route_table::RouteTable;
use super::state::node_orders::Order;
use super::state::pauses::Pause;
use super::state::statistics::Statistics;
use super::state::tombstones::{Tombstone, Watermark};

/// Tombstones kept of one owner; the oldest are dropped first.
pub(crate) const MAX_TOMBSTONES: usize = 50_000;
/// After a jump the wall clock has to be steady for this long before deletion and deadlines follow it.
pub(crate) const CLOCK_GRACE_MS: u64 = 300_000;
/// Finished tasks kept, at about half a kilobyte of memory each. Above it the oldest ones of the owner with the most
/// are removed before their retention ends.
pub(crate) const MAX_ENDED: usize = 200_000;

/// The configuration, and where things are.
pub(crate) struct Settings {
    /// Leases, retries and retention.
    pub(crate) scheduler: SchedulerConfig,
    /// How failures are retried, by their family.
    pub(crate) retry: RetryConfig,
    /// Bounds on pictures, and on what all tasks, those of one owner and those of one client use.
    pub(crate) limits: LimitsConfig,
    /// The bound on waiting tasks, per queue.
    pub(crate) queues: BTreeMap<QueueName, u64>,
    /// Requirements and spill of queues, queues and needs of models.
    pub(crate) routes: RouteTable,
    /// See [`MAX_TOMBSTONES`].
    pub(crate) max_tombstones: usize,
    /// See [`MAX_ENDED`].
    pub(crate) max_ended: usize,
    /// See [`CLOCK_GRACE_MS`].
    pub(crate) clock_grace_ms: u64,
    /// Where lanes are bound.
    pub(crate) endpoints: Endpoints,
    /// The spool's directory, told to peers on this host.
    pub(crate) spool: String,
}

/// The contents of the store at the start.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) tasks: Vec<StoredTask>,
    /// In the order of their expiry.
    pub(crate) tombstones: Vec<Tombstone>,
    pub(crate) watermarks: Vec<Watermark>,
    /// The last trusted time, wall clock, ms.
    pub(crate) wall_ms: Option<u64>,
    pub(crate) paused: BTreeMap<QueueName, Pause>,
    pub(crate) orders: BTreeMap<NodeId, Order>,
    pub(crate) statistics: Statistics,
}

/// Draws 16 random bytes: from the operating system, or from a seed in tests.
pub(crate) type Entropy = Box<dyn FnMut() -> [u8; 16] + Send>;
