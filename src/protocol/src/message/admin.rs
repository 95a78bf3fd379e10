//! The `admin` channel: what an administrator of this host may see and do, whoever owns a task.
//!
//! Does not: leave the host. It has a socket of its own, so that no gate can relay it by mistake.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    ClientName, Entry, FailureKind, ModelName, NodeName, Owner, QueueName, Status, TaskId,
};

use super::{Message, ProtocolFault, Refused, TaskInfo, Unknown};
use crate::frame::{Frame, FrameError};

/// Tasks in one [`Page`] at most, so that it fits into a message's header.
pub const PAGE_TASKS: usize = 100;

channel! {
    /// `admin`, to the scheduler: REQ.
    AdminRequest {
        0x0901 ListTasks,
        0x0902 GetTaskHistory,
        0x0903 CancelTask,
        0x0904 RetryTask,
        0x0905 PauseQueue,
        0x0906 DrainNode,
        0x0907 Purge,
    }
}

channel! {
    /// `admin`, from the scheduler: one answer to each request.
    AdminReply {
        0x0001 ProtocolFault,
        0x0204 Refused,
        0x0206 Unknown,
        0x0a01 Page,
        0x0a02 TaskHistory,
        0x0a03 Retried,
        0x0a04 Paused,
        0x0a05 Draining,
        0x0a06 Purged,
    }
}

bodies! {
    /// Which tasks are there? Newest first.
    ListTasks {
        /// Only those in one of these states; empty for all.
        states: Vec<Status>,
        /// Only dead letters.
        dead: bool,
        /// Only of this queue.
        queue: Option<QueueName>,
        /// Only of this model.
        model: Option<ModelName>,
        /// Only those of this client.
        client: Option<ClientName>,
        /// Where the last page ended.
        after: Option<Cursor>,
        /// At most this many; the scheduler gives no more than [`PAGE_TASKS`].
        limit: u32,
    }
    /// What happened to a task?
    GetTaskHistory {
        /// Which one.
        id: TaskId,
    }
    /// Cancel a task. Answered with its [`TaskHistory`].
    CancelTask {
        /// Which one.
        id: TaskId,
    }
    /// Try a task again now: one that waits after a failure is due at once, a dead letter becomes a new task.
    RetryTask {
        /// Which one.
        id: TaskId,
    }
    /// Stop or start giving a queue's tasks to nodes. Tasks are accepted all the while.
    PauseQueue {
        /// Which one.
        queue: QueueName,
        /// Stop, or start.
        paused: bool,
        /// Who asks, for people; absent where the program does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Let a node finish what it has begun, and leave.
    DrainNode {
        /// Which one.
        node: NodeName,
        /// Who asks, for people; absent where the program does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Remove ended tasks with their blobs before their retention ends. Dead letters only where asked for.
    Purge {
        /// Ended at least this long ago, in milliseconds.
        older_than_ms: u64,
        /// Dead letters instead of all others.
        dead: bool,
    }

    /// Tasks, newest first.
    Page {
        /// At most [`PAGE_TASKS`].
        tasks: Vec<TaskLine>,
        /// Where the next page begins; absent on the last.
        next: Option<Cursor>,
        /// Tasks that fit the request, on all pages.
        total: u64,
    }
    /// All about one task.
    TaskHistory {
        /// How it is doing.
        task: TaskInfo,
        /// Whose it is.
        owner: Owner,
        /// On whose behalf it was submitted.
        client: Option<ClientName>,
        /// Its priority, as submitted.
        priority: i8,
        /// Bytes of its inputs that are kept.
        input_bytes: u64,
        /// It can be replayed.
        dead: bool,
        /// The dead letter that it repeats.
        replay_of: Option<TaskId>,
        /// What happened, oldest first; at most 64 entries.
        history: Vec<Entry>,
    }
    /// The task is due now, or was submitted again.
    Retried {
        /// The one that was asked for.
        id: TaskId,
        /// The one that runs: the same, or the new one.
        runs_as: TaskId,
    }
    /// The queue does as asked.
    Paused {
        /// Which one.
        queue: QueueName,
        /// It is stopped.
        paused: bool,
        /// Tasks that wait in it.
        waiting: u64,
    }
    /// The node was told to leave.
    Draining {
        /// Which one.
        node: NodeName,
        /// Tasks that it works on.
        running: u32,
    }
    /// Ended tasks were removed.
    Purged {
        /// How many.
        tasks: u64,
        /// Bytes of the blobs that went with them.
        bytes: u64,
    }

    /// One task of a list.
    TaskLine {
        /// Which one.
        id: TaskId,
        /// Which model.
        model: ModelName,
        /// Which queue.
        queue: QueueName,
        /// On whose behalf.
        client: Option<ClientName>,
        /// Where it is.
        status: Status,
        /// Why it failed.
        failure: Option<FailureKind>,
        /// The node that worked or works on it.
        node: Option<String>,
        /// How often it was given to a node.
        attempts: u32,
        /// It can be replayed.
        dead: bool,
        /// Milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// Milliseconds since the Unix epoch, once it has ended.
        finished_wall_ms: Option<u64>,
    }
    /// Where a page ends.
    Cursor {
        /// Of its last task.
        created_wall_ms: u64,
        /// Its last task.
        id: TaskId,
    }
}
