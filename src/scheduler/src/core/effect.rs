//! Inputs and effects of the core, and the changes of the store.

use bytes::Bytes;

use lamagrid_domain::{
    Counters, Durability, Entry, Hash, LeaseToken, Owner, QueueName, Role, SessionId, TaskId, TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage,
    NodeEvent, ResultReply, ResultRequest, StatisticsLine, TaskInfo,
};

use super::node_id::NodeId;
use super::state::alarms::Level;
use super::state::finished_task::FinishedTask;
use super::state::node_orders::Order;
use super::state::pauses::Pause;
use super::state::wall_clock::ClockChange;

/// The role of a client, apart from the owner of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    /// The user of this host, or a certificate of the role admin: all priorities, also before other owners' tasks.
    Administrator,
    /// A certificate of the role client.
    Client,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A process of this host.
    Local,
    /// Another host, through the gate.
    Remote,
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A client asks. The blobs of a submit are inline here, or were found in the spool with their lengths.
    Client {
        peer: PeerId,
        request: ClientRequest,
        /// Inline frames.
        inline: Vec<Bytes>,
        /// Its rights beyond its own tasks.
        authority: Authority,
    },
    /// A submission was refused before it reached the core: its inputs are deleted.
    Abandoned { owner: Owner, id: TaskId },
    /// Free space on the file system of the data directory.
    DiskFree {
        /// For unprivileged users, in bytes.
        bytes: u64,
    },
    /// A client's connection closed.
    ClientGone { peer: PeerId },
    /// An administrator asks.
    Admin { peer: PeerId, request: AdminRequest },
    /// A node asks on `control`.
    Control {
        peer: PeerId,
        request: ControlRequest,
        /// The queues of its certificate; empty for all.
        queues: Vec<QueueName>,
    },
    /// A node connected one of its lanes.
    LaneConnected {
        session: SessionId,
        /// Which of the session's lanes.
        index: usize,
    },
    /// The lanes of a session could not be bound.
    LanesFailed { session: SessionId, reason: String },
    /// A node reports on `result`. A delivery by reference was found in the spool with its length.
    Result {
        peer: PeerId,
        request: ResultRequest,
        /// The inline result.
        inline: Option<Bytes>,
    },
    /// A node's `result` connection closed.
    ResultGone {
        peer: PeerId,
        /// Where the node is.
        origin: Origin,
    },
    /// A node's event.
    Event(NodeEvent),
    /// Time passed; sockets were drained before.
    Tick,
}

/// Something to do. Effects are carried out in order; messages wait for the writes before them.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Write this.
    Store(StoreOp),
    /// Answer a client; `attach` names the task and the blobs that go along inline.
    Client {
        peer: PeerId,
        reply: ClientReply,
        /// Blobs to read from the store.
        attach: Option<(TaskId, Vec<Role>)>,
    },
    /// Answer an administrator.
    Admin { peer: PeerId, reply: AdminReply },
    /// Answer a node on `control`. Before a welcome goes out, its lanes are bound.
    Control { peer: PeerId, reply: ControlReply },
    /// Answer a node on `result`.
    Result { peer: PeerId, reply: ResultReply },
    /// Push down a lane.
    Lane {
        session: SessionId,
        /// Which of the session's lanes.
        index: usize,
        message: LaneMessage,
        /// Blobs to read from the store.
        attach: Option<(TaskId, Vec<Role>)>,
    },
    /// Close all lanes of a session.
    CloseSession { session: SessionId },
    /// Write the one log line of a finished task.
    Finished(Box<TaskInfo>),
    /// A bound crossed one of its thresholds: for logs and metrics.
    Level(Level),
    /// The wall clock lost or regained trust: for logs and metrics.
    Clock(ClockChange),
    /// Lets an owner upload the inputs of an announced task. Carried out at once, like its end.
    OpenUpload {
        owner: Owner,
        id: TaskId,
        /// Of all its inputs together.
        bytes: u64,
    },
    /// Ends the upload of a task's inputs.
    CloseUpload { owner: Owner, id: TaskId, inputs: UploadedInputs },
}

/// The treatment of uploaded inputs when the upload of their task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UploadedInputs {
    /// The task was accepted: its inputs stay until it ends.
    Keep,
    /// The task was not accepted.
    Delete,
}

impl Effect {
    /// The blobs that a message carries, to be read from the store.
    pub(crate) fn attachment(&self) -> Option<&(TaskId, Vec<Role>)> {
        match self {
            Self::Client { attach, .. } | Self::Lane { attach, .. } => attach.as_ref(),
            _ => None,
        }
    }

    /// True if the effect may bypass the commit barrier because everything it depends on is already durable.
    ///
    /// A node begins only when it is told to proceed; on a slow disk it would idle meanwhile.
    pub(crate) fn is_unbarred(&self) -> bool {
        matches!(self, Self::Result { reply: ResultReply::Proceed(_), .. })
    }
}

/// Where an accepted result is.
#[derive(Debug, Clone)]
pub(crate) enum ResultPlace {
    /// It came inside the delivery and goes into the row.
    Inline(Bytes),
    /// It lies in the spool under the attempt's token.
    Spool(LeaseToken),
}

/// One change of the store.
#[derive(Debug, Clone)]
pub(crate) enum StoreOp {
    /// A task was accepted.
    Insert {
        spec: Box<TaskSpec>,
        /// Its payload.
        digest: Hash,
        /// Order of acceptance.
        seq: u64,
        created_wall_ms: u64,
        /// Inputs that are kept in the row.
        inline: Vec<(Role, Bytes)>,
        /// The dead letter whose inputs it has in place of its own.
        inherits: Option<TaskId>,
    },
    /// An attempt begins.
    Assign {
        id: TaskId,
        /// The fence.
        token: LeaseToken,
        node: NodeId,
        /// With this attempt counted.
        counters: Counters,
    },
    /// An attempt ended without an outcome.
    Requeue {
        id: TaskId,
        /// With its reason counted.
        counters: Counters,
        /// With its reason told.
        history: Vec<Entry>,
    },
    /// A task reached its terminal state; its inputs are deleted, unless it is a dead letter.
    End {
        id: TaskId,
        ended: Box<FinishedTask>,
        /// The result, where there is one.
        place: Option<ResultPlace>,
        /// Which failures the acknowledgement must survive.
        durability: Durability,
        /// The totals of its queue and model, with this task.
        totals: StatisticsLine,
    },
    /// The client has read the result, or a dead letter was replayed: its blobs are deleted.
    Release {
        id: TaskId,
        /// Its row without them: a restart must not promise bytes that are gone.
        ended: Box<FinishedTask>,
    },
    /// Retention is over: the row and its blobs are deleted, a tombstone remains.
    Forget { id: TaskId, owner: Owner, until_wall_ms: u64 },
    /// A tombstone of an id that has no row.
    Remember { id: TaskId, owner: Owner, until_wall_ms: u64 },
    /// Ids of an owner drawn up to this time have expired, unless they are known otherwise.
    Watermark { owner: Owner, wall_ms: u64 },
    /// The trusted wall time.
    Clock { wall_ms: u64 },
    /// A tombstone is dropped.
    Unremember { id: TaskId },
    /// A queue is paused or resumed.
    Pause {
        queue: QueueName,
        /// `None` if it is resumed.
        pause: Option<Pause>,
    },
    /// An administrator's order about a node.
    NodeOrder {
        node: NodeId,
        /// `None` if it does not hold any more.
        order: Option<Order>,
    },
    /// One transaction.
    Together(Vec<StoreOp>),
}

impl StoreOp {
    /// True if this deletes blobs of one of these tasks. A message reads its blobs after its group is committed, so the
    /// two must not be in one group.
    pub(crate) fn deletes_blobs_of(&self, reads: &[(TaskId, Vec<Role>)]) -> bool {
        match self {
            Self::End { id, .. } | Self::Release { id, .. } | Self::Forget { id, .. } => {
                reads.iter().any(|(task, _)| task == id)
            }
            Self::Together(ops) => ops.iter().any(|op| op.deletes_blobs_of(reads)),
            _ => false,
        }
    }
}

/// A task as the store gives it back at start.
#[derive(Debug, Clone)]
pub(crate) enum StoredTask {
    /// It has not ended.
    Live {
        spec: Box<TaskSpec>,
        /// Its payload.
        digest: Hash,
        /// Order of acceptance.
        seq: u64,
        created_wall_ms: u64,
        /// How often it was tried.
        counters: Counters,
        history: Vec<Entry>,
        /// The attempt that ran when the last process ended.
        assigned: Option<(LeaseToken, NodeId)>,
        /// Inputs that are kept in the row.
        inline: Vec<Role>,
    },
    /// It has ended and is in retention.
    Ended { id: TaskId, ended: Box<FinishedTask> },
}
