//! The scheduler: decides which node works on which task, remembers it, and moves the bytes.
//!
//! `core` decides, `store` writes to disk, `runtime` connects both to the sockets, `http` serves metrics and health. Only `store` names
//! `rusqlite`.
//!
//! Does not: handle signals, set limits or read standard input; its caller does, and asks for the end by [`Shutdown`].

mod core;
mod http;
mod runtime;
mod store;

pub use runtime::{DataDir, Listeners, SchedulerError, Shutdown, run};
pub use store::StoreError;
