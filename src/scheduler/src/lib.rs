//! The scheduler: decides which node works on which task, remembers it, and moves the bytes.
//!
//! `core` decides, `store` remembers, `service` moves, `http` shows. Only `store` names `rusqlite`.

pub mod certs;
mod committer;
mod core;
mod http;
mod instance;
mod service;
mod store;

pub use service::{Options, SchedulerError, run};
pub use store::StoreError;
