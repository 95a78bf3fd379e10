//! Gives each process its host-level tools: descriptors, memory, random numbers, back-off and stop signals.
//!
//! Does not: know tasks, messages or sockets.

pub mod descriptors;
pub mod wall_clock;

mod backoff;
mod memory;
mod parent_watch;
mod random;
mod stop_signals;

pub use backoff::{Backoff, doubled};
pub use memory::MemoryTrim;
pub use random::{new_task_id, random_bytes, random_id};
pub use stop_signals::{Parent, SAME_REQUEST, StopRequest, StopSignals, end_at_once, end_by_signal};
