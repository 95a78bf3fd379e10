//! Why a scheduler does not start, or ends by itself.

use std::path::PathBuf;

use lamagrid_config::ConfigError;
use lamagrid_gate::{CredentialsError, GateError};
use lamagrid_transport::SocketError;

use crate::store::StoreError;

/// Why a scheduler does not start, or ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration names no usable place.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}; choose a writable one with --data-dir")]
    DataDir {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another scheduler owns the data directory.
    #[error(
        "another scheduler (pid {pid}) runs on the data directory {path}: use that one, stop it, or choose another \
         directory with --data-dir"
    )]
    SecondInstance {
        /// Which directory.
        path: PathBuf,
        /// Who owns it.
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
        /// Which file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The scheduler's certificate is of no use.
    #[error("{path}: {source}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: CredentialsError,
    },
    /// The gate does not open.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The operating system refused a thread, a signal handler or the like, or a thread died.
    #[error("the scheduler cannot run: {0}")]
    System(#[from] std::io::Error),
}
