//! Defines the `client` channel, on which clients submit, follow and cancel tasks and ask for the grid's status.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    Activity, BlobMeta, ClientName, Counters, Failure, Hash, LiveFigures, ModelName, NodeInfo, Owner,
    PictureSize, QueueName, Role, SessionId, Stages, Status, TaskId, TaskSpec,
};

use super::{Message, ProtocolFault};
use crate::frame::{Frame, FrameError};

channel! {
    /// Requests on `client`, sent to the scheduler.
    ClientRequest {
        0x0101 Ping,
        0x0102 Offer,
        0x0103 Submit,
        0x0104 Attach,
        0x0105 Cancel,
        0x0106 Query,
        0x0107 Release,
        0x0108 GetGridStatus,
    }
}

channel! {
    /// Messages from the scheduler on `client`. Replies carry the request's `seq`; outcome and progress are unsolicited.
    ClientReply {
        0x0001 ProtocolFault,
        0x0201 Pong,
        0x0202 UploadGranted,
        0x0203 Accepted,
        0x0204 Refused,
        0x0205 TaskStatus,
        0x0206 Unknown,
        0x0207 Outcome,
        0x0208 Progress,
        0x0209 GridStatus,
    }
}

bodies! {
    /// Asks whether the scheduler is alive. The first message on every new connection.
    Ping {
        /// Sequence number, repeated in the reply.
        seq: u64,
    }
    /// Asks for permission to store a task's blobs, before they are sent.
    Offer {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The id of the task that a [`Submit`] will carry.
        id: TaskId,
        /// The owner who submits.
        owner: Owner,
        /// The queue of the task. With `routed` it counts only for schedulers before protocol 1.6.
        queue: QueueName,
        /// True if the scheduler chooses the queue.
        #[serde(default)]
        routed: bool,
        /// The model of the task, for the choice of the queue; `None` before protocol 1.6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelName>,
        /// See [`TaskSpec::picture`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        picture: Option<PictureSize>,
        /// The payload's digest; see [`crate::payload_digest`].
        digest: Hash,
        /// Total size of the inputs, in bytes.
        bytes: u64,
        /// The priority of the task.
        priority: i8,
        /// The end user on whose behalf it will be submitted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<ClientName>,
    }
    /// Submits a task. Blobs that are not inline must be in the spool already.
    Submit {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The task.
        spec: TaskSpec,
        /// Roles of the inline blobs, in order.
        inline: Vec<Role>,
        /// True to receive outcome and progress on this connection.
        follow: bool,
    }
    /// Follows a task that was submitted before, perhaps on another connection.
    Attach {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The task's id.
        id: TaskId,
        /// The owner who asks.
        owner: Owner,
        /// The payload's digest, if the client knows it.
        digest: Option<Hash>,
    }
    /// Cancels a task.
    Cancel {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The task's id.
        id: TaskId,
        /// The owner who asks.
        owner: Owner,
    }
    /// Asks for a task's status.
    Query {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The task's id.
        id: TaskId,
        /// The owner who asks.
        owner: Owner,
    }
    /// Allows the scheduler to delete a task's result before its retention ends. There is no reply.
    Release {
        /// The task's id.
        id: TaskId,
        /// The owner who asks.
        owner: Owner,
    }
    /// Asks for the status of the grid.
    GetGridStatus {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The `next` of the previous reply; `None` for the first page. A page key, not a session's id, which is secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<SessionId>,
    }
    /// The scheduler is alive.
    Pong {
        /// The request's sequence number.
        seq: u64,
        /// The spool's directory on the scheduler's host, for blobs passed by reference.
        spool: String,
        /// The scheduler's version.
        version: String,
    }
    /// The blobs may be stored in the spool, and the task submitted after that.
    UploadGranted {
        /// The request's sequence number.
        seq: u64,
    }
    /// The task is recorded and will reach a terminal state.
    Accepted {
        /// The request's sequence number.
        seq: u64,
        /// The task's id.
        id: TaskId,
        /// Number of tasks before it in its queue.
        position: u64,
    }
    /// The request was refused.
    Refused {
        /// The request's sequence number.
        seq: u64,
        /// The reason.
        failure: Failure,
        /// Number of tasks that wait in the queue.
        queue_len: u64,
        /// Expected wait in milliseconds; `None` if it cannot be estimated.
        wait_ms: Option<u64>,
    }
    /// A task's status.
    TaskStatus {
        /// The request's sequence number.
        seq: u64,
        /// The task.
        task: TaskInfo,
    }
    /// The owner has no such task.
    Unknown {
        /// The request's sequence number.
        seq: u64,
        /// The task's id.
        id: TaskId,
        /// True if the task existed and its result is past retention.
        expired: bool,
    }
    /// A followed task has ended. A result of at most 256 KiB is the message's only inline blob.
    Outcome {
        /// The task's final status.
        task: TaskInfo,
        /// The result; `None` if the task has none or it was released.
        result: Option<BlobMeta>,
    }
    /// A followed task has made progress.
    Progress {
        /// The task's id.
        id: TaskId,
        /// The task's status.
        status: Status,
        /// Steps done.
        step: u32,
        /// Total steps; 0 if unknown.
        of: u32,
        /// The activity that the steps belong to.
        #[serde(default, skip_serializing_if = "Activity::is_running")]
        activity: Activity,
    }
    /// The status of the grid.
    GridStatus {
        /// The request's sequence number.
        seq: u64,
        /// The scheduler's version.
        version: String,
        /// Live sessions; incomplete if `next` is set.
        nodes: Vec<NodeStatus>,
        /// The configured queues.
        queues: Vec<QueueStatus>,
        /// The value for `after` that requests the remaining nodes; `None` if the message has all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<SessionId>,
    }
    /// A task's status as its owner may see it.
    TaskInfo {
        /// The task's id.
        id: TaskId,
        /// The task's model.
        model: ModelName,
        /// The task's queue.
        queue: QueueName,
        /// The task's status.
        status: Status,
        /// The failure of a failed task.
        failure: Option<Failure>,
        /// Number of tasks before it, while it waits.
        position: Option<u64>,
        /// Expected wait in milliseconds; `None` if it cannot be estimated.
        #[serde(default)]
        wait_ms: Option<u64>,
        /// The node that works, or last worked, on the task.
        node: Option<String>,
        /// Its numbers of attempts, crashes and failures.
        counters: Counters,
        /// The time spent in each stage; complete once the task has ended.
        stages: Stages,
        /// Time of submission, in milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// Time of the end, in milliseconds since the Unix epoch; `None` before it.
        finished_wall_ms: Option<u64>,
    }
    /// The status of one live session.
    NodeStatus {
        /// The description with which the node registered.
        info: NodeInfo,
        /// Number of tasks that run on it.
        running: u32,
        /// Number of tasks that it runs at once.
        slots: u32,
        /// The state: `ready`, `busy`, `suspect`, `draining` or `aside`.
        state: String,
        /// The queues that it serves; empty before protocol 1.6.
        #[serde(default)]
        queues: Vec<QueueName>,
        /// Its last live figures; `None` before the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        figures: Option<LiveFigures>,
    }
    /// The status of one queue.
    QueueStatus {
        /// The queue's name.
        queue: QueueName,
        /// Number of waiting tasks.
        waiting: u64,
        /// Number of tasks on nodes.
        running: u64,
        /// Limit on the number of waiting tasks.
        max_tasks: u64,
        /// True if an administrator paused it: tasks are accepted and wait.
        #[serde(default)]
        paused: bool,
    }
}
