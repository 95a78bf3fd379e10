//! Why a client's call gave nothing, in words for the person who made it.

use std::sync::Arc;
use std::time::Duration;

use lamagrid_blobs::SpoolError;
use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_gate::BlobError;

/// Why a call of a [`crate::Client`] gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// A recorded or an own failure.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The scheduler did not take the request.
    #[error("{failure}{}", waiting(*queue_len, *wait))]
    Refused {
        /// Why.
        failure: Failure,
        /// Tasks that wait in the queue.
        queue_len: u64,
        /// Expected wait, where it can be told.
        wait: Option<Duration>,
    },
    /// The scheduler is there, and what was waited for did not happen in time.
    #[error(
        "gave up waiting for {what} after {:.1} s; {}", waited.as_secs_f64(),
        trouble.as_deref().unwrap_or("the scheduler is running")
    )]
    Timeout {
        /// For what.
        what: String,
        /// The caller's limit.
        waited: Duration,
        /// What kept bytes from getting through, where that is known.
        trouble: Option<String>,
    },
    /// Nobody answered at the scheduler's address in all the time that the caller gave.
    #[error(
        "no scheduler answered at {address} within {:.1} s ({reason}); {hint}",
        waited.as_secs_f64()
    )]
    NoScheduler {
        /// Where it was looked for.
        address: String,
        /// The last attempt's end.
        reason: String,
        /// The caller's limit.
        waited: Duration,
        /// What to do about it.
        hint: String,
    },
    /// The scheduler's gate does not let this host in.
    #[error("the scheduler at {address} does not let this host in: {reason}")]
    NotAdmitted {
        /// `host:port`
        address: String,
        /// What it said.
        reason: String,
    },
    /// The scheduler has no such task for this owner.
    #[error("{}", unknown(*id, *expired))]
    Unknown {
        /// Which task.
        id: TaskId,
        /// It existed, and its result is past retention.
        expired: bool,
    },
    /// The outcome came, and its result could not be read.
    #[error("the result of task {id} cannot be read: {source}")]
    Result {
        /// Which task.
        id: TaskId,
        /// What the spool said.
        source: Arc<SpoolError>,
    },
    /// The outcome came, and its result did not from the scheduler's host.
    #[error("the result of task {id} cannot be fetched: {source}")]
    Fetch {
        /// Which task.
        id: TaskId,
        /// Why.
        source: BlobError,
    },
    /// The client's own task is gone: its runtime was shut down.
    #[error("this client was shut down; make a new one")]
    Closed,
}

impl ClientError {
    /// The kind that decides exit code, HTTP status and Python class.
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
