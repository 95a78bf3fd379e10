//! The scheduler: decides which node works on which task, remembers it, and moves the bytes.
//!
//! `core` decides, `store` remembers, `service` moves. Only `store` names `rusqlite`.

mod committer;
mod core;
mod instance;
mod service;
mod store;

pub use service::{Options, SchedulerError, run};
pub use store::StoreError;
