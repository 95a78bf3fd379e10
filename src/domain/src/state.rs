//! The states of a task and the one table of transitions.

use crate::{Failure, LeaseToken, SessionId};

/// Where a task is. Running and progress are not here: they are memory of a session, never of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Waits in its queue, not before the given instant of the scheduler's monotonic clock (milliseconds).
    Queued {
        /// Milliseconds on the scheduler's monotonic clock; 0 means at once. Never stored.
        not_before_ms: u64,
    },
    /// One session holds the lease.
    Assigned {
        /// The fence: only a result that carries it is accepted.
        token: LeaseToken,
        /// Who holds it.
        session: SessionId,
    },
    /// Finished with a result.
    Completed,
    /// Finished without one, for good.
    Failed(Failure),
    /// Finished because somebody asked for that.
    Cancelled,
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The scheduler gives it to a session.
    Assign {
        /// A fresh random token.
        token: LeaseToken,
        /// The session that shall work on it.
        session: SessionId,
    },
    /// Its session was adopted by a newer one of the same node, with the attempt still running.
    Adopt {
        /// The newer session.
        session: SessionId,
    },
    /// The attempt ended without an outcome.
    Requeue {
        /// See [`State::Queued`].
        not_before_ms: u64,
    },
    /// The holder of the lease delivered a result.
    Complete,
    /// The task failed for good.
    Fail(Failure),
    /// Somebody who may do so cancelled it.
    Cancel,
}

/// What a node does with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It fetches the model's files or brings them into memory.
    Loading,
    /// It works on the picture.
    #[default]
    Running,
}

impl Activity {
    /// The word in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Running => "running",
        }
    }

    /// Whether this is what every node of the protocol's minor versions before 4 does.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }
}

/// How far the work on a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advance {
    /// What is done.
    pub activity: Activity,
    /// Steps done; of a fetch, hundredths of it.
    pub step: u32,
    /// Steps in all, 0 where unknown.
    pub of: u32,
}

/// What people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a node.
    Queued,
    /// A node works on it.
    Processing,
    /// Has a result.
    Completed,
    /// Has a failure.
    Failed,
    /// Was cancelled.
    Cancelled,
}

impl Status {
    /// The word in logs, tables and JSON.
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

    /// Whether nothing can change any more.
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

/// An event that this state does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {from} task cannot take {event:?}")]
pub struct IllegalTransition {
    from: Status,
    event: Event,
}

impl State {
    /// What people are told.
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

    /// The next state.
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
    fn the_table_holds() {
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
