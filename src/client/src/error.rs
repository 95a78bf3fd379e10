//! Defines why a client's call failed, with texts for the user.

use std::sync::Arc;
use std::time::Duration;

use lamagrid_blobs::SpoolError;
use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_gate::BlobError;

/// Why a call of a [`crate::Client`] failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The task failed, or this client refused the request.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The scheduler refused the request.
    #[error("{failure}{}", waiting(*queue_len, *wait))]
    Refused {
        /// The reason.
        failure: Failure,
        /// Number of tasks waiting in the queue.
        queue_len: u64,
        /// Expected wait; `None` if it cannot be estimated.
        wait: Option<Duration>,
    },
    /// The scheduler answers, but the awaited event did not happen within the time limit.
    #[error(
        "gave up waiting for {what} after {:.1} s; {}", waited.as_secs_f64(),
        trouble.as_deref().unwrap_or("the scheduler is running")
    )]
    Timeout {
        /// The awaited event.
        what: String,
        /// The caller's time limit.
        waited: Duration,
        /// The fault of the connection, if known.
        trouble: Option<String>,
    },
    /// No scheduler answered at the address within the time limit.
    #[error(
        "no scheduler answered at {address} within {:.1} s ({reason}); {hint}",
        waited.as_secs_f64()
    )]
    NoScheduler {
        /// The address that was tried.
        address: String,
        /// The error of the last attempt.
        reason: String,
        /// The caller's time limit.
        waited: Duration,
        /// The remedy.
        hint: String,
    },
    /// The scheduler's gate rejected this host's certificate.
    #[error("the scheduler at {address} does not let this host in: {reason}")]
    NotAdmitted {
        /// The gate's address, `host:port`.
        address: String,
        /// The gate's reason.
        reason: String,
    },
    /// The scheduler has no such task of this owner.
    #[error("{}", unknown(*id, *expired))]
    Unknown {
        /// The task's id.
        id: TaskId,
        /// True if the task existed and its result is past retention.
        expired: bool,
    },
    /// The task's result could not be read from the spool.
    #[error("the result of task {id} cannot be read: {source}")]
    Result {
        /// The task's id.
        id: TaskId,
        /// The spool's error.
        source: Arc<SpoolError>,
    },
    /// The task's result could not be fetched from the scheduler's host.
    #[error("the result of task {id} cannot be fetched: {source}")]
    Fetch {
        /// The task's id.
        id: TaskId,
        /// The transfer's error.
        source: BlobError,
    },
    /// The client's actor has ended, because its runtime was shut down.
    #[error("this client was shut down; make a new one")]
    Closed,
}

impl ClientError {
    /// The failure kind, which decides exit code, HTTP status and Python class.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Failed(failure) | Self::Refused { failure, .. } => failure.kind,
            Self::Timeout { .. } => FailureKind::DeadlineExceeded,
            Self::NoScheduler { .. } | Self::NotAdmitted { .. } => FailureKind::Disconnected,
            Self::Fetch { source, .. } => source.kind(),
            Self::Unknown { .. } => FailureKind::InvalidInput,
            Self::Result { source, .. } if source.is_disk_full() => FailureKind::DiskFull,
            Self::Result { .. } | Self::Closed => FailureKind::Internal,
        }
    }
}

fn waiting(queue_len: u64, wait: Option<Duration>) -> String {
    match (queue_len, wait) {
        (0, None) => String::new(),
        (len, None) => format!(" ({len} tasks wait)"),
        (len, Some(wait)) => format!(" ({len} tasks wait; expected wait {:.0} s)", wait.as_secs_f64().ceil()),
    }
}

fn unknown(id: TaskId, expired: bool) -> String {
    if expired {
        format!("task {id} ended, and its result is past retention; submit it again with a new id")
    } else {
        format!("the scheduler knows no task {id} of this owner; check the id and the data directory")
    }
}
