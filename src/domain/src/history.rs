//! Records the events of a task, for people: stored with the task and shown by `lamagrid task show`.

use serde::{Deserialize, Serialize};

use crate::{Failure, NodeName, QueueName, Status, TaskId};

/// One recorded event of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the event, in milliseconds since the Unix epoch.
    pub at_wall_ms: u64,
    /// The number of the attempt that the event belongs to; 0 before the first.
    pub attempt: u32,
    /// The event.
    pub what: Milestone,
}

/// The recorded kinds of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// The task was accepted into its queue.
    Accepted,
    /// The task was accepted as the replay of a dead letter.
    Replays {
        /// The replayed dead letter.
        task: TaskId,
    },
    /// The task was assigned to a node.
    Assigned {
        /// The node.
        node: NodeName,
        /// The other queue that it had spilled to; `None` if it had not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spilled_to: Option<QueueName>,
    },
    /// The node reported a failure.
    Failed {
        /// The failure.
        failure: Failure,
        /// Delay before the next attempt, in milliseconds; `None` if there is no next attempt.
        retry_in_ms: Option<u64>,
    },
    /// The node that held the task was lost.
    NodeLost {
        /// True if the loss counts as a crash of this task, because it was alone on the node.
        counts: bool,
        /// True if the node held several tasks. The loss then counts against none of them; each is retried alone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        shared: bool,
    },
    /// The attempt ended without an outcome: its node drained, said goodbye, or returned the task for an idle node.
    GivenBack,
    /// The task reached a terminal state.
    Ended {
        /// The terminal status.
        status: Status,
    },
    /// The task, a dead letter, was submitted again.
    ReplayedAs {
        /// The new task.
        task: TaskId,
    },
    /// Events are missing here: only the first and the last ones are kept.
    Skipped {
        /// The number of missing events.
        entries: u32,
    },
}
