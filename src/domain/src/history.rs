//! What happened to a task, for people: kept with it and shown by `lamagrid task show`.

use serde::{Deserialize, Serialize};

use crate::{Failure, NodeName, Status, TaskId};

/// One thing that happened to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the Unix epoch.
    pub at_wall_ms: u64,
    /// The attempt that it is about; 0 before the first.
    pub attempt: u32,
    /// What it was.
    pub what: Milestone,
}

/// The things that can happen to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// It was accepted into its queue.
    Accepted,
    /// It was accepted as the replay of a dead letter.
    Replays {
        /// The dead letter.
        task: TaskId,
    },
    /// It was given to a node.
    Assigned {
        /// Which one.
        node: NodeName,
    },
    /// The node reported a failure.
    Failed {
        /// Why.
        failure: Failure,
        /// How long it waits before it is tried again, in milliseconds; absent if it is not.
        retry_in_ms: Option<u64>,
    },
    /// The node was lost.
    NodeLost {
        /// The task was alone on the node, so that the loss counts as a crash.
        counts: bool,
        /// The node had several tasks, so that the loss is held against none of them: each is tried again alone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        shared: bool,
    },
    /// The attempt ended without a verdict: its node drained, said goodbye, or gave it back to an idle one.
    GivenBack,
    /// It reached its terminal state.
    Ended {
        /// Which one.
        status: Status,
    },
    /// It was submitted again from the dead letters.
    ReplayedAs {
        /// The new task.
        task: TaskId,
    },
    /// Entries were left out here: only the first and the last ones are kept.
    Skipped {
        /// How many.
        entries: u32,
    },
}
