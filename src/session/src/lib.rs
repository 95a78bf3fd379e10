//! A node's conversation with its scheduler, for any backend in any language, and the steps between files and pixels.
//!
//! [`Session`] registers, takes credit and delivers on a thread of its own, so that liveness, cancels and progress go on while a
//! backend computes. [`Pipeline`] turns the inputs of a task into pixels before its slot is free, and results into files after.
//!
//! Does not: know models or devices. Every call here blocks, and may be made from any thread.
//!
//! Invariant: a result is held from [`Job::finish`] until the scheduler has it on record, over any number of
//! connections.

pub mod hardware;

mod attempt;
mod connection;
mod failure;
mod job;
mod pipeline;
mod runner;
mod session;
mod state;
mod stuck_attempt;

use std::path::Path;

use lamagrid_gate::{Bundle, BundleError, PeerRole};

pub use failure::{panicked, stopped};
pub use job::{Job, Output, millis};
pub use pipeline::{Entered, Exit, Files, Inputs, Made, Next, Pictures, Pipeline};
pub use session::{NextJob, Session, SessionError, SessionOptions};
pub use stuck_attempt::StuckAttempt;

/// Reads the bundle of a node.
///
/// # Errors
/// [`BundleError`] if the file is not the bundle of a node.
pub fn read_node_bundle(path: &Path) -> Result<Bundle, BundleError> {
    Bundle::read(path, &[PeerRole::Node])
}
