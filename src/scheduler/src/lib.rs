//! The scheduler: decides which node runs which task, persists tasks, and moves their images.
//!
//! `core` decides, `store` writes to disk, `runtime` connects both to the sockets, `metrics` holds the figures
//! that `/metrics` shows. Only `store` names `rusqlite`, only `metrics` names `prometheus-client`. `simulation` checks the core against a model of its own, through a
//! read-only view.
//!
//! Does not: handle signals, set limits or read standard input; its caller does that and ends it through
//! [`Shutdown`].

mod core;
mod metrics;
mod runtime;
#[cfg(test)]
mod simulation;
mod store;

pub use metrics::Metrics;
pub use runtime::{DataDir, Listeners, SchedulerError, Shutdown, run};
pub use store::StoreError;
