//! What goes into the core and what comes out of it.

use bytes::Bytes;

use lamagrid_domain::{
    Counters, Durability, Entry, Hash, LeaseToken, Owner, QueueName, Role, SessionId, TaskId, TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage,
    NodeEvent, ResultReply, ResultRequest, TaskInfo,
};

use super::node_id::NodeId;
use super::state::alarms::Level;
use super::state::drains::Drain;
use super::state::finished_task::FinishedTask;
use super::state::pauses::Pause;
use super::state::wall_clock::ClockChange;

/// Who a client is, apart from the owner of its tasks.
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

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A client asks. The blobs of a submit are inline here, or were found in the spool with their lengths.
    Client {
        /// Whose connection.
        peer: PeerId,
        /// What.
        request: ClientRequest,
        /// Inline frames.
        inline: Vec<Bytes>,
        /// What the peer may do beside working with its own tasks.
        authority: Authority,
    },
    /// A submission was refused before it reached the core: nothing of its inputs is kept.
    Abandoned {
        /// Whose task it would have been.
        owner: Owner,
        /// Which one.
        id: TaskId,
    },
    /// How much room the file system of the data directory has.
    DiskFree {
        /// For unprivileged users, in bytes.
        bytes: u64,
    },
    /// A client's connection closed.
    ClientGone {
        /// Whose.
        peer: PeerId,
    },
    /// An administrator asks.
    Admin {
        /// Whose connection.
        peer: PeerId,
        /// What.
        request: AdminRequest,
    },
    /// A node asks on `control`.
    Control {
        /// Whose connection.
        peer: PeerId,
        /// What.
        request: ControlRequest,
    },
    /// A node connected one of its lanes.
    LaneConnected {
        /// Whose.
        session: SessionId,
        /// Which of the session's lanes.
        index: usize,
    },
    /// The lanes of a session could not be bound.
    LanesFailed {
        /// Whose.
        session: SessionId,
        /// Why.
        reason: String,
    },
    /// A node reports on `result`. A delivery by reference was found in the spool with its length.
    Result {
        /// Whose connection.
        peer: PeerId,
        /// What.
        request: ResultRequest,
        /// The inline result.
        inline: Option<Bytes>,
    },
    /// A node's `result` connection closed.
    ResultGone {
        /// Whose.
        peer: PeerId,
        /// Where the node is.
        origin: Origin,
    },
    /// A node's event.
    Event(NodeEvent),
    /// Time passed; sockets were drained before.
    Tick,
}

/// What shall be done. Effects are carried out in order; messages wait for the writes before them.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Write this.
    Store(StoreOp),
    /// Answer a client; `attach` names the task and the blobs that go along inline.
    Client {
        /// To whom.
        peer: PeerId,
        /// What.
        reply: ClientReply,
        /// Blobs to read from the store.
        attach: Option<(TaskId, Vec<Role>)>,
    },
    /// Answer an administrator.
    Admin {
        /// To whom.
        peer: PeerId,
        /// What.
        reply: AdminReply,
    },
    /// Answer a node on `control`. Before a welcome goes out, its lanes are bound.
    Control {
        /// To whom.
        peer: PeerId,
        /// What.
        reply: ControlReply,
    },
    /// Answer a node on `result`.
    Result {
        /// To whom.
        peer: PeerId,
        /// What.
        reply: ResultReply,
    },
    /// Push down a lane.
    Lane {
        /// Whose.
        session: SessionId,
        /// Which of the session's lanes.
        index: usize,
        /// What.
        message: LaneMessage,
        /// Blobs to read from the store.
        attach: Option<(TaskId, Vec<Role>)>,
    },
    /// Close all lanes of a session.
    CloseSession {
        /// Whose.
        session: SessionId,
    },
    /// Write the one log line of a finished task.
    Finished(Box<TaskInfo>),
    /// A bound is nearly or fully reached, or is not any more: for logs and metrics.
    Level(Level),
    /// The wall clock is doubted from now on, or is believed again: for logs and metrics.
    Clock(ClockChange),
    /// Lets an owner bring the inputs of a task that it has announced. Carried out at once, as its end is.
    OpenUpload {
        /// Whose task it will be.
        owner: Owner,
        /// Which one.
        id: TaskId,
        /// Of all its inputs together.
        bytes: u64,
    },
    /// Nothing more of a task's inputs may come.
    CloseUpload {
        /// Whose task it was to be.
        owner: Owner,
        /// Which one.
        id: TaskId,
        /// The task was not accepted: what came of its inputs is deleted.
        delete: bool,
    },
}

impl Effect {
    /// The blobs that a message carries, to be read from the store.
    pub(crate) fn attachment(&self) -> Option<&(TaskId, Vec<Role>)> {
        match self {
            Self::Client { attach, .. } | Self::Lane { attach, .. } => attach.as_ref(),
            _ => None,
        }
    }

    /// Whether it goes ahead of the writes in hand: what it rests on was durable before it was asked for.
    ///
    /// A node begins only when it is told to proceed; with a slow disk it would idle meanwhile.
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
        /// The task.
        spec: Box<TaskSpec>,
        /// Its payload.
        digest: Hash,
        /// Order of acceptance.
        seq: u64,
        /// Wall clock, ms.
        created_wall_ms: u64,
        /// Inputs that are kept in the row.
        inline: Vec<(Role, Bytes)>,
        /// The dead letter whose inputs it has in place of its own.
        inherits: Option<TaskId>,
    },
    /// An attempt begins.
    Assign {
        /// The task.
        id: TaskId,
        /// The fence.
        token: LeaseToken,
        /// Whose.
        node: NodeId,
        /// With this attempt counted.
        counters: Counters,
    },
    /// An attempt ended without an outcome.
    Requeue {
        /// The task.
        id: TaskId,
        /// With its reason counted.
        counters: Counters,
        /// With its reason told.
        history: Vec<Entry>,
    },
    /// A task reached its terminal state; its inputs go, unless it is a dead letter.
    End {
        /// The task.
        id: TaskId,
        /// What is kept of it.
        ended: Box<FinishedTask>,
        /// The result, where there is one.
        place: Option<ResultPlace>,
        /// What the acknowledgement survives.
        durability: Durability,
    },
    /// The client has read the result, or a dead letter was replayed: its blobs go.
    Release {
        /// The task.
        id: TaskId,
        /// What is kept of it, now without them: a restart must not promise bytes that are gone.
        ended: Box<FinishedTask>,
    },
    /// Retention is over: the row and its blobs go, the id is remembered.
    Forget {
        /// The task.
        id: TaskId,
        /// Whose it was.
        owner: Owner,
        /// Wall clock, ms.
        until_wall_ms: u64,
    },
    /// An id shall be remembered although it has no row.
    Remember {
        /// The task.
        id: TaskId,
        /// Who cancelled it.
        owner: Owner,
        /// Wall clock, ms.
        until_wall_ms: u64,
    },
    /// Ids of an owner up to this time of drawing are over, as far as nothing else is known of them.
    Watermark {
        /// Whose.
        owner: Owner,
        /// Wall clock, ms.
        wall_ms: u64,
    },
    /// The time as it is believed.
    Clock {
        /// Wall clock, ms.
        wall_ms: u64,
    },
    /// The memory of an id ends.
    Unremember {
        /// The task.
        id: TaskId,
    },
    /// A queue stands still, or goes on.
    Pause {
        /// Which one.
        queue: QueueName,
        /// Since when and by whom it stands still; none if it goes on.
        pause: Option<Pause>,
    },
    /// A node is to leave, or has left.
    Drain {
        /// Which one.
        node: NodeId,
        /// The order; none if it does not hold any more.
        drain: Option<Drain>,
    },
    /// All of these or none.
    Together(Vec<StoreOp>),
}

impl StoreOp {
    /// Whether this deletes blobs of one of these tasks. What a message carries of them is read behind the commit of its
    /// group, so the two must not be in one.
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
        /// The task.
        spec: Box<TaskSpec>,
        /// Its payload.
        digest: Hash,
        /// Order of acceptance.
        seq: u64,
        /// Wall clock, ms.
        created_wall_ms: u64,
        /// How often it was tried.
        counters: Counters,
        /// What happened to it.
        history: Vec<Entry>,
        /// The attempt that ran when the last process ended.
        assigned: Option<(LeaseToken, NodeId)>,
        /// Inputs that are kept in the row.
        inline: Vec<Role>,
    },
    /// It has ended and is in retention.
    Ended {
        /// The task.
        id: TaskId,
        /// What is kept of it.
        ended: Box<FinishedTask>,
    },
}
