//! Why a client's call gave nothing, in words for the person who made it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_wire::spool::SpoolError;

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
    #[error("gave up waiting for {what} after {:.1} s; the scheduler is running", waited.as_secs_f64())]
    Timeout {
        /// For what.
        what: String,
        /// The caller's limit.
        waited: Duration,
    },
    /// Nobody answered at the scheduler's address in all the time that the caller gave.
    #[error(
        "no scheduler answered at {address} within {:.1} s ({reason}); is the scheduler running? start it with: {}",
        waited.as_secs_f64(), start_command(data_dir.as_deref())
    )]
    NoScheduler {
        /// Where it was looked for.
        address: String,
        /// The last attempt's end.
        reason: String,
        /// The caller's limit.
        waited: Duration,
        /// The data directory that the scheduler would have.
        data_dir: Option<PathBuf>,
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
            Self::NoScheduler { .. } => FailureKind::Disconnected,
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

fn start_command(data_dir: Option<&Path>) -> String {
    match data_dir {
        Some(dir) => format!("lamagrid scheduler --data-dir {}", dir.display()),
        None => "lamagrid scheduler".to_owned(),
    }
}

fn unknown(id: TaskId, expired: bool) -> String {
    if expired {
        format!("task {id} ended, and its result is past retention; submit it again with a new id")
    } else {
        format!("the scheduler knows no task {id} of this owner; check the id and the data directory")
    }
}
