//! The state of the scheduler in parts. Each has private fields, keeps an invariant that its `check` states, and has
//! tests of its own.

pub(crate) mod admission;
pub(crate) mod alarms;
pub(crate) mod circuit_breaker;
pub(crate) mod clock;
pub(crate) mod command_outbox;
pub(crate) mod credit;
pub(crate) mod dispatch_order;
pub(crate) mod fair_queue;
pub(crate) mod finished_task;
pub(crate) mod followers;
pub(crate) mod history;
pub(crate) mod learned_needs;
pub(crate) mod leases;
pub(crate) mod model_queue;
pub(crate) mod node_changes;
pub(crate) mod node_orders;
pub(crate) mod now;
pub(crate) mod pauses;
pub(crate) mod ready_queue;
pub(crate) mod refusal_log;
pub(crate) mod reservations;
pub(crate) mod retention;
pub(crate) mod run_times;
pub(crate) mod session;
pub(crate) mod sessions;
pub(crate) mod statistics;
pub(crate) mod taken_memory;
pub(crate) mod task;
pub(crate) mod task_table;
pub(crate) mod task_timers;
pub(crate) mod timer_keys;
pub(crate) mod tombstones;
pub(crate) mod uploads;
pub(crate) mod wall_clock;
