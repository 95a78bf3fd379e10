//! Defines the states of a task and the only table of transitions.

use crate::{Failure, LeaseToken, SessionId};

/// The stored state of a task. Progress is kept by the session only, and is lost with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The task waits in its queue.
    Queued {
        /// Earliest assignment, in milliseconds on the scheduler's monotonic clock; 0 means at once. Never stored.
        not_before_ms: u64,
    },
    /// One session holds the lease.
    Assigned {
        /// The fencing token: only a result that carries it is accepted.
        token: LeaseToken,
        /// The session that holds the lease.
        session: SessionId,
    },
    /// Ended with a result.
    Completed,
    /// Ended with a permanent failure.
    Failed(Failure),
    /// Ended by a cancellation.
    Cancelled,
}

/// The inputs of [`State::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The scheduler assigns the task to a session.
    Assign {
        /// A fresh random token.
        token: LeaseToken,
        /// The session that gets the lease.
        session: SessionId,
    },
    /// A newer session of the same node takes over the lease; the attempt is still running.
    Adopt {
        /// The newer session.
        session: SessionId,
    },
    /// The attempt ended without an outcome; the task waits again.
    Requeue {
        /// See [`State::Queued`].
        not_before_ms: u64,
    },
    /// The lease holder delivered a result.
    Complete,
    /// The task failed permanently.
    Fail(Failure),
    /// An authorized user cancelled the task.
    Cancel,
}

/// A node's current work on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Downloading the model's files or loading them into memory.
    Loading,
    /// Processing the picture.
    #[default]
    Running,
}

impl Activity {
    /// The name in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Running => "running",
        }
    }

    /// True for the default, the only activity that nodes with a minor protocol version below 4 report.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }
}

/// The progress of the work on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advance {
    /// The current activity.
    pub activity: Activity,
    /// Steps done; for a download, the percentage done.
    pub step: u32,
    /// Total steps; 0 if unknown.
    pub of: u32,
}

/// The status that users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for a node.
    Queued,
    /// A node is working on it.
    Processing,
    /// Ended with a result.
    Completed,
    /// Ended with a failure.
    Failed,
    /// Ended by a cancellation.
    Cancelled,
}

impl Status {
    /// The name in logs, tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// True if the status can no longer change.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error for an event that is not allowed in the current state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {from} task cannot take {event:?}")]
pub struct IllegalTransition {
    from: Status,
    event: Event,
}

impl State {
    /// The status that users see for this state.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Queued { .. } => Status::Queued,
            Self::Assigned { .. } => Status::Processing,
            Self::Completed => Status::Completed,
            Self::Failed(_) => Status::Failed,
            Self::Cancelled => Status::Cancelled,
        }
    }

    /// The state after `event`.
    ///
    /// | from \ event | assign | adopt | requeue | complete | fail | cancel |
    /// |---|---|---|---|---|---|---|
    /// | queued | assigned | - | queued | - | failed | cancelled |
    /// | assigned | - | assigned | queued | completed | failed | cancelled |
    /// | completed, failed, cancelled | - | - | - | - | - | - |
    ///
    /// # Errors
    /// [`IllegalTransition`] for every `-`.
    pub fn apply(&self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Queued { .. }, Event::Assign { token, session }) => Ok(Self::Assigned { token, session }),
            (Self::Assigned { token, .. }, Event::Adopt { session }) => {
                Ok(Self::Assigned { token: *token, session })
            }
            (Self::Queued { .. } | Self::Assigned { .. }, Event::Requeue { not_before_ms }) => {
                Ok(Self::Queued { not_before_ms })
            }
            (Self::Assigned { .. }, Event::Complete) => Ok(Self::Completed),
            (Self::Queued { .. } | Self::Assigned { .. }, Event::Fail(failure)) => Ok(Self::Failed(failure)),
            (Self::Queued { .. } | Self::Assigned { .. }, Event::Cancel) => Ok(Self::Cancelled),
            (
                state @ (Self::Queued { .. }
                | Self::Assigned { .. }
                | Self::Completed
                | Self::Failed(_)
                | Self::Cancelled),
                event @ (Event::Assign { .. }
                | Event::Adopt { .. }
                | Event::Requeue { .. }
                | Event::Complete
                | Event::Fail(_)
                | Event::Cancel),
            ) => Err(IllegalTransition { from: state.status(), event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FailureKind;

    #[test]
    fn transitions_match_the_table() {
        let token = LeaseToken::from_bytes([1; 16]);
        let session = SessionId::from_bytes([2; 16]);
        let failure = Failure::new(FailureKind::Inference, "x");
        let states = [
            State::Queued { not_before_ms: 0 },
            State::Assigned { token, session },
            State::Completed,
            State::Failed(failure.clone()),
            State::Cancelled,
        ];
        let events = [
            Event::Assign { token, session },
            Event::Adopt { session },
            Event::Requeue { not_before_ms: 7 },
            Event::Complete,
            Event::Fail(failure),
            Event::Cancel,
        ];
        let table: Vec<String> = states
            .iter()
            .map(|s| {
                let row: Vec<_> =
                    events.iter().map(|e| s.apply(e.clone()).map_or("-", |n| n.status().as_str())).collect();
                format!("{}: {}", s.status(), row.join(" "))
            })
            .collect();
        assert_eq!(
            table,
            [
                "queued: processing - queued - failed cancelled",
                "processing: - processing queued completed failed cancelled",
                "completed: - - - - - -",
                "failed: - - - - - -",
                "cancelled: - - - - - -",
            ]
        );
    }
}
