//! The `client` channel: submit, follow and cancel tasks, and ask for the status of the grid.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    Activity, BlobMeta, ClientName, Counters, Failure, Hash, ModelName, NodeInfo, Owner, QueueName, Role,
    SessionId, Stages, Status, TaskId, TaskSpec,
};

use super::{Message, ProtocolFault};
use crate::frame::{Frame, FrameError};

channel! {
    /// `client`, to the scheduler.
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
    /// `client`, from the scheduler: answers carry the request's `seq`; outcome and progress come by themselves.
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
    /// Are you there? The first message on every new connection.
    Ping {
        /// Echoed in the answer.
        seq: u64,
    }
    /// Header first: may I send this much?
    Offer {
        /// Echoed in the answer.
        seq: u64,
        /// The task that a [`Submit`] will carry.
        id: TaskId,
        /// Who asks.
        owner: Owner,
        /// Where it will wait.
        queue: QueueName,
        /// See [`crate::payload_digest`].
        digest: Hash,
        /// Bytes of all inputs.
        bytes: u64,
        /// Where it will stand in its queue.
        priority: i8,
        /// On whose behalf.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<ClientName>,
    }
    /// A task; blobs that are not inline lie in the spool already.
    Submit {
        /// Echoed in the answer.
        seq: u64,
        /// What to do.
        spec: TaskSpec,
        /// Roles of the inline frames, in their order.
        inline: Vec<Role>,
        /// Whether outcome and progress shall be sent on this connection.
        follow: bool,
    }
    /// Follow a task that was submitted before, perhaps on another connection.
    Attach {
        /// Echoed in the answer.
        seq: u64,
        /// Which task.
        id: TaskId,
        /// Who asks.
        owner: Owner,
        /// The payload's digest, where the client knows it.
        digest: Option<Hash>,
    }
    /// Stop working on a task.
    Cancel {
        /// Echoed in the answer.
        seq: u64,
        /// Which task.
        id: TaskId,
        /// Who asks.
        owner: Owner,
    }
    /// How is a task doing?
    Query {
        /// Echoed in the answer.
        seq: u64,
        /// Which task.
        id: TaskId,
        /// Who asks.
        owner: Owner,
    }
    /// The result was read and is not needed any more. Not answered; retention does the same later.
    Release {
        /// Which task.
        id: TaskId,
        /// Who asks.
        owner: Owner,
    }
    /// What is the grid made of?
    GetGridStatus {
        /// Echoed in the answer.
        seq: u64,
        /// Go on where the last answer's `next` says; none begins. It names a page, not a session: those are secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<SessionId>,
    }
    /// I am here.
    Pong {
        /// The request's.
        seq: u64,
        /// Where blobs go by reference: the spool's directory on this host.
        spool: String,
        /// The scheduler's version.
        version: String,
    }
    /// Put the blobs into the spool, then submit.
    UploadGranted {
        /// The request's.
        seq: u64,
    }
    /// The task is recorded and will reach a terminal state.
    Accepted {
        /// The request's.
        seq: u64,
        /// Which task.
        id: TaskId,
        /// Tasks before it in its queue.
        position: u64,
    }
    /// The request was not carried out.
    Refused {
        /// The request's.
        seq: u64,
        /// Why.
        failure: Failure,
        /// Tasks that wait in the queue.
        queue_len: u64,
        /// Expected wait in milliseconds, where it can be told.
        wait_ms: Option<u64>,
    }
    /// What is known about a task.
    TaskStatus {
        /// The request's.
        seq: u64,
        /// The task.
        task: TaskInfo,
    }
    /// No such task for this owner.
    Unknown {
        /// The request's.
        seq: u64,
        /// Which task.
        id: TaskId,
        /// It existed, and its result is past retention.
        expired: bool,
    }
    /// A followed task ended. A result up to 256 KiB is the message's only inline frame.
    Outcome {
        /// The task as it ended.
        task: TaskInfo,
        /// The result, where there is one and it was not released.
        result: Option<BlobMeta>,
    }
    /// A followed task moved.
    Progress {
        /// Which task.
        id: TaskId,
        /// Where it is.
        status: Status,
        /// Steps done.
        step: u32,
        /// Steps in all, 0 where unknown.
        of: u32,
        /// What the steps are of.
        #[serde(default, skip_serializing_if = "Activity::is_running")]
        activity: Activity,
    }
    /// What the grid is made of.
    GridStatus {
        /// The request's.
        seq: u64,
        /// The scheduler's version.
        version: String,
        /// Live sessions; see `next`.
        nodes: Vec<NodeStatus>,
        /// Configured queues.
        queues: Vec<QueueStatus>,
        /// There are more nodes than one message holds: ask again with this in `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<SessionId>,
    }
    /// A task as its owner may see it.
    TaskInfo {
        /// Which task.
        id: TaskId,
        /// Which model.
        model: ModelName,
        /// Which queue.
        queue: QueueName,
        /// Where it is.
        status: Status,
        /// Why it failed.
        failure: Option<Failure>,
        /// Tasks before it, while it waits.
        position: Option<u64>,
        /// How long it will wait, in milliseconds, where that can be told.
        #[serde(default)]
        wait_ms: Option<u64>,
        /// The node that worked or works on it.
        node: Option<String>,
        /// How often it was tried.
        counters: Counters,
        /// Where its time went; complete once it has ended.
        stages: Stages,
        /// Milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// Milliseconds since the Unix epoch, once it has ended.
        finished_wall_ms: Option<u64>,
    }
    /// One live session.
    NodeStatus {
        /// What the node registered with.
        info: NodeInfo,
        /// Tasks on it now.
        running: u32,
        /// Tasks it can take at once.
        slots: u32,
        /// `ready`, `busy`, `suspect`, `draining` or `aside`.
        state: String,
    }
    /// One queue.
    QueueStatus {
        /// Its name.
        queue: QueueName,
        /// Tasks that wait.
        waiting: u64,
        /// Tasks on nodes.
        running: u64,
        /// The bound on waiting tasks.
        max_tasks: u64,
        /// An administrator stopped it: tasks are accepted and wait.
        #[serde(default)]
        paused: bool,
    }
}
