//! Connects a backend in any language to a scheduler, and converts between files and pixels around it.
//!
//! [`Session`] registers, takes credit and delivers on a thread of its own, so that liveness, cancels and
//! progress continue while a backend computes. [`Pipeline`] decodes a task's inputs before its slot is free,
//! and encodes results afterwards.
//!
//! Does not: know models or devices. Every call blocks and may be made from any thread.
//!
//! Invariant: a result is held from [`Job::finish`] until the scheduler has recorded it, across any number of connections.

mod attempt;
mod connection;
mod device_watch;
mod failure;
mod job;
mod pipeline;
mod runner;
mod session;
mod settings;
mod state;
mod stuck_attempt;

use std::path::Path;

use lamagrid_gate::{Bundle, BundleError, PeerRole};

pub use device_watch::DeviceWatch;
pub use failure::{panicked, stopped};
pub use job::{Job, Output, millis};
pub use pipeline::{Entered, Exit, Files, Inputs, Made, Next, Pictures, Pipeline};
pub use session::{NextJob, Session, SessionError, SessionOptions};
pub use settings::{Adjust, Adjustment, ChangeRefused};
pub use state::Offers;
pub use stuck_attempt::StuckAttempt;

/// Reads a node's bundle.
///
/// # Errors
/// [`BundleError`] if the file is not the bundle of a node.
pub fn read_node_bundle(path: &Path) -> Result<Bundle, BundleError> {
    Bundle::read(path, &[PeerRole::Node])
}
