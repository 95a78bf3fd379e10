//! Reasons why a scheduler does not start, or ends by itself.

use std::path::PathBuf;

use lamagrid_config::ConfigError;
use lamagrid_gate::{CredentialsError, GateError};
use lamagrid_transport::SocketError;

use crate::store::StoreError;

/// Reason why a scheduler does not start, or ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration names no usable directory.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}; choose a writable one with --data-dir")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another scheduler owns the data directory.
    #[error(
        "another scheduler (pid {pid}) runs on the data directory {path}: use that one, stop it, or choose another \
         directory with --data-dir"
    )]
    SecondInstance {
        /// The data directory.
        path: PathBuf,
        /// The other scheduler's process id, or "unknown".
        pid: String,
    },
    /// The store cannot be opened, or could not be written for too long.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The gate has no certificate.
    #[error(
        "gate.listen is set, but the scheduler has no certificate ({path}: {source}): run `lamagrid certs init`"
    )]
    NoCertificate {
        /// The missing file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The scheduler's certificate cannot be used.
    #[error("{path}: {source}")]
    Certificate {
        /// The certificate file.
        path: PathBuf,
        /// The reason.
        source: CredentialsError,
    },
    /// The gate cannot be opened.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The operating system refused a thread, a signal handler or the like, or a thread of the scheduler has
    /// died.
    #[error("the scheduler cannot run: {0}")]
    System(#[from] std::io::Error),
}
