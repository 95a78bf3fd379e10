//! Defines the `admin` channel, on which an administrator lists and changes tasks of any owner, queues and nodes.
//!
//! The channel has a socket of its own; a gate relays it only for certificates of the role admin.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    ClientName, Entry, FailureKind, ModelName, NodeName, Owner, QueueName, Status, TaskId,
};

use super::{Message, NodeChange, NodeStatus, ProtocolFault, Refused, RefusedQueue, TaskInfo, Unknown};
use crate::frame::{Frame, FrameError};

/// Limit on the tasks of one [`Page`], so that it fits into a message's header.
pub const PAGE_TASKS: usize = 100;
/// Limit on the lines of one [`Statistics`], for the same reason.
pub const STATISTICS_LINES: usize = 200;

channel! {
    /// Requests on `admin`, sent to the scheduler with REQ.
    AdminRequest {
        0x0901 ListTasks,
        0x0902 GetTaskHistory,
        0x0903 CancelTask,
        0x0904 RetryTask,
        0x0905 PauseQueue,
        0x0906 DrainNode,
        0x0907 Purge,
        0x0908 GetNode,
        0x0909 UndrainNode,
        0x090a RemoveNode,
        0x090b SetNode,
        0x090c GetStatistics,
    }
}

channel! {
    /// Replies on `admin`: one for each request.
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
        0x0a07 NodeDetail,
        0x0a08 Statistics,
    }
}

bodies! {
    /// Lists tasks, newest first.
    ListTasks {
        /// Only tasks in one of these states; empty for all.
        states: Vec<Status>,
        /// True for dead letters only.
        dead: bool,
        /// Only tasks of this queue.
        queue: Option<QueueName>,
        /// Only tasks of this model.
        model: Option<ModelName>,
        /// Only tasks of this client.
        client: Option<ClientName>,
        /// Only tasks of this owner.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
        /// The end of the previous page; `None` for the first page.
        after: Option<Cursor>,
        /// Limit on the tasks of the page; the scheduler returns at most [`PAGE_TASKS`].
        limit: u32,
    }
    /// Asks for a task's history.
    GetTaskHistory {
        /// The task's id.
        id: TaskId,
    }
    /// Cancels a task. The reply is its [`TaskHistory`].
    CancelTask {
        /// The task's id.
        id: TaskId,
    }
    /// Retries a task now: a task that waits after a failure becomes due, a dead letter is submitted as a new task.
    RetryTask {
        /// The task's id.
        id: TaskId,
    }
    /// Pauses or resumes the assignment of a queue's tasks. Tasks are accepted in both states.
    PauseQueue {
        /// The queue's name.
        queue: QueueName,
        /// True to pause, false to resume.
        paused: bool,
        /// The administrator's name, for display; `None` if the program does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Drains a node: it finishes its running tasks, takes no new ones and leaves.
    DrainNode {
        /// The node's name.
        node: NodeName,
        /// The administrator's name, for display; `None` if the program does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Deletes ended tasks and their blobs before their retention ends: all but dead letters, or only dead letters.
    Purge {
        /// Minimum time since the task's end, in milliseconds.
        older_than_ms: u64,
        /// True to delete dead letters instead of all other ended tasks.
        dead: bool,
    }

    /// Asks for everything known about a node. The reply is its [`NodeDetail`].
    GetNode {
        /// The node's name.
        node: NodeName,
    }
    /// Takes back a drain or a removal. The reply is the node's [`NodeDetail`].
    UndrainNode {
        /// The node's name.
        node: NodeName,
        /// The administrator's name, for display; `None` if the program does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Ends a node's session, gives its tasks to other nodes and refuses the node until [`UndrainNode`]. The reply is
    /// its [`NodeDetail`].
    RemoveNode {
        /// The node's name.
        node: NodeName,
        /// The administrator's name, for display; `None` if the program does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Changes settings of a connected node. The reply is its [`NodeDetail`], whose `change` is pending; ask with
    /// [`GetNode`] until the node has executed or refused it.
    SetNode {
        /// The node's name.
        node: NodeName,
        /// The settings.
        change: NodeChange,
        /// The administrator's name, for display; `None` if the program does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// Asks for the figures of ended tasks, per queue and model.
    GetStatistics {
        /// Number of lines to leave out: those of earlier replies.
        skip: u32,
    }

    /// One page of a task list, newest first.
    Page {
        /// At most [`PAGE_TASKS`] tasks.
        tasks: Vec<TaskLine>,
        /// The start of the next page; `None` on the last page.
        next: Option<Cursor>,
        /// Number of tasks that match the request, on all pages.
        total: u64,
        /// Total size of the inputs of those of them that have not ended, in bytes.
        #[serde(default)]
        input_bytes: u64,
    }
    /// Everything recorded about one task.
    TaskHistory {
        /// The task's status.
        task: TaskInfo,
        /// The task's owner.
        owner: Owner,
        /// The end user on whose behalf it was submitted.
        client: Option<ClientName>,
        /// The submitted priority.
        priority: i8,
        /// Size of its kept inputs, in bytes.
        input_bytes: u64,
        /// True if the task is a dead letter and can be replayed.
        dead: bool,
        /// The dead letter that this task replays.
        replay_of: Option<TaskId>,
        /// Its events, oldest first; at most 64.
        history: Vec<Entry>,
    }
    /// The task was made due, or submitted again.
    Retried {
        /// The requested task.
        id: TaskId,
        /// The task that will run: the requested one or its replay.
        runs_as: TaskId,
    }
    /// The queue was paused or resumed.
    Paused {
        /// The queue's name.
        queue: QueueName,
        /// True if the queue is paused.
        paused: bool,
        /// Number of tasks that wait in the queue.
        waiting: u64,
    }
    /// The node was told to drain.
    Draining {
        /// The node's name.
        node: NodeName,
        /// Number of tasks that run on it.
        running: u32,
    }
    /// Ended tasks were deleted.
    Purged {
        /// Number of deleted tasks.
        tasks: u64,
        /// Total size of the deleted blobs, in bytes.
        bytes: u64,
    }

    /// Everything known about one node.
    NodeDetail {
        /// Its name.
        node: NodeName,
        /// Its session; `None` if it is not connected.
        session: Option<NodeStatus>,
        /// Queues that it may not serve, with the reason.
        refused: Vec<RefusedQueue>,
        /// Its drain or removal, with the administrator; `None` if it serves.
        order: Option<NodeOrder>,
        /// The last change of its settings; `None` before the first one of its process.
        change: Option<ChangeState>,
        /// Its tasks, in the order in which its slots begin with them; as many as fit into the message.
        #[serde(default)]
        tasks: Vec<TaskLine>,
    }
    /// Figures of ended tasks since the data directory was created.
    Statistics {
        /// One line per queue and model, in this order; at most [`STATISTICS_LINES`].
        lines: Vec<StatisticsLine>,
        /// True if there are more lines.
        more: bool,
    }
    /// A drain or a removal of a node.
    NodeOrder {
        /// True for a removal.
        removed: bool,
        /// The administrator's name, for display.
        by: String,
        /// When it was given, in milliseconds since the Unix epoch.
        since_wall_ms: u64,
    }
    /// The state of a change of a node's settings.
    ChangeState {
        /// The settings.
        change: NodeChange,
        /// False until the node has executed or refused it.
        done: bool,
        /// Why the node refused it; `None` if it did not.
        refusal: Option<String>,
    }
    /// The ended tasks of one model in one queue.
    StatisticsLine {
        /// The queue.
        queue: QueueName,
        /// The model.
        model: ModelName,
        /// Number of completed tasks.
        completed: u64,
        /// Number of failed tasks.
        failed: u64,
        /// Number of cancelled tasks.
        cancelled: u64,
        /// Total time that completed tasks waited, in milliseconds.
        wait_ms: u64,
        /// Total time that completed tasks ran, in milliseconds.
        run_ms: u64,
    }

    /// One task of a list.
    TaskLine {
        /// The task's id.
        id: TaskId,
        /// The task's model.
        model: ModelName,
        /// The task's queue.
        queue: QueueName,
        /// The end user on whose behalf it was submitted.
        client: Option<ClientName>,
        /// The task's status.
        status: Status,
        /// The failure kind of a failed task.
        failure: Option<FailureKind>,
        /// The node that works, or last worked, on the task.
        node: Option<String>,
        /// Number of assignments.
        attempts: u32,
        /// True if the task is a dead letter and can be replayed.
        dead: bool,
        /// Time of submission, in milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// Time of the end, in milliseconds since the Unix epoch; `None` before it.
        finished_wall_ms: Option<u64>,
    }
    /// The position after the last task of a page.
    Cursor {
        /// When the page's last task was created, in milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// The id of the page's last task.
        id: TaskId,
    }
}
