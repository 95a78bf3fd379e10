//! Serves HTTP on `http.listen`: the task API, metrics and health checks.
//!
//! The API is a client of the scheduler like any other program of this host and user: it submits on behalf of the owner
//! of each API key. Health is answered on the thread that accepts, the API on two threads of its own.
//!
//! Does not: decide anything about tasks, or read the scheduler's state; [`Health`] gives what it shows.
//!
//! Only this crate names `axum`, `hyper` and `utoipa`; its databases of keys and idempotency keys are SQLite's.

mod access;
mod body;
mod connection;
mod front;
mod health;
mod idempotency;
mod keys;
mod options;
mod places;
mod problem;
mod routes;
mod server;
mod state;
mod usage;
mod views;

pub use health::Health;
pub use keys::{ApiKey, CreatedKey, KeyError, KeyId, KeyLimits, KeyRole, KeyStore, NewKey, RoleError};
pub use server::{Server, serve};
