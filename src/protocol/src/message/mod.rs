//! Every message, channel by channel. A kind never changes its meaning; a new field has a default.
//!
//! Does not: check who may say what; the scheduler's core does.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    Activity, BlobMeta, BootId, ClientName, Counters, Failure, Hash, LeaseToken, ModelName, NodeInfo, Owner,
    QueueName, Role, SessionId, Stages, Status, TaskId, TaskSpec,
};

use crate::frame::{Frame, FrameError};

/// A channel's messages in one direction.
pub trait Message: Sized {
    /// The message as a frame, with its inline `blobs`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] if a bound of the protocol is passed.
    fn to_frame(&self, blobs: Vec<Bytes>) -> Result<Frame, FrameError>;

    /// The message in a frame.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`] or [`FrameError::Header`].
    fn from_frame(frame: &Frame) -> Result<Self, FrameError>;
}

macro_rules! channel {
    ($(#[$doc:meta])* $name:ident { $($kind:literal $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each variant carries the struct of its name, which says it")]
        pub enum $name {
            $($variant($variant),)+
        }

        impl Message for $name {
            fn to_frame(&self, blobs: Vec<Bytes>) -> Result<Frame, FrameError> {
                match self {
                    $(Self::$variant(body) => Frame::encode($kind, body, blobs),)+
                }
            }

            fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
                match frame.kind {
                    $($kind => frame.decode().map(Self::$variant),)+
                    kind => Err(FrameError::UnknownKind { kind }),
                }
            }
        }

        $(impl From<$variant> for $name {
            fn from(body: $variant) -> Self {
                Self::$variant(body)
            }
        })+
    };
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })+) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        })+
    };
}

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
        0x0108 Survey,
    }
}

channel! {
    /// `client`, from the scheduler: answers carry the request's `seq`; outcome and progress come by themselves.
    ClientReply {
        0x0001 ProtocolFault,
        0x0201 Pong,
        0x0202 Send,
        0x0203 Accepted,
        0x0204 Refused,
        0x0205 Told,
        0x0206 Unknown,
        0x0207 Outcome,
        0x0208 Progress,
        0x0209 Overview,
    }
}

channel! {
    /// `control`, to the scheduler.
    ControlRequest {
        0x0301 Hello,
        0x0302 Poll,
        0x0303 Goodbye,
    }
}

channel! {
    /// `control`, from the scheduler.
    ControlReply {
        0x0001 ProtocolFault,
        0x0401 Welcome,
        0x0402 Rejected,
        0x0403 Commands,
        0x0404 SessionGone,
        0x0405 Farewell,
    }
}

channel! {
    /// `result`, to the scheduler.
    ResultRequest {
        0x0501 Ready,
        0x0502 Accept,
        0x0503 Delivery,
    }
}

channel! {
    /// `result`, from the scheduler.
    ResultReply {
        0x0001 ProtocolFault,
        0x0404 SessionGone,
        0x0601 Proceed,
        0x0602 Abandon,
        0x0603 Stored,
    }
}

mod admin;

pub use admin::*;

channel! {
    /// A lane, from the scheduler.
    LaneMessage {
        0x0701 Assign,
        0x0702 Hint,
    }
}

channel! {
    /// `node-events`, to the scheduler; loss is harmless.
    NodeEvent {
        0x0801 Heartbeat,
        0x0802 Step,
    }
}

bodies! {
    /// The last message could not be understood.
    ProtocolFault {
        /// Why.
        failure: Failure,
    }

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
    Survey {
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
    Send {
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
    Told {
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
    Overview {
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

    /// A node introduces itself, or comes back.
    Hello {
        /// What it can do.
        info: NodeInfo,
        /// Tasks it can work on at once.
        slots: u16,
        /// Tasks beyond those that it can prepare while its slots work.
        #[serde(default)]
        overlap: u16,
        /// Attempts that it still works on, in the order in which they were assigned.
        running: Vec<LeaseToken>,
        /// Attempts whose result it still holds.
        held: Vec<LeaseToken>,
        /// Which process of the node this is: the same one may replace its own session at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot: Option<BootId>,
    }
    /// I am alive; what shall I do? Renews all leases of the session.
    Poll {
        /// The session.
        session: SessionId,
        /// Attempts that the node works on or holds a result of.
        running: Vec<LeaseToken>,
        /// The last command that was carried out or refused.
        acknowledged: u64,
        /// Commands that were refused, with reasons.
        refused: Vec<RefusedCommand>,
    }
    /// The node leaves; its tasks go back into the queue without a crash being counted.
    Goodbye {
        /// The session.
        session: SessionId,
    }

    /// The node is registered.
    Welcome {
        /// Names this stretch of the node's life.
        session: SessionId,
        /// Where its tasks come from.
        lanes: Vec<LaneAddress>,
        /// Queues that it may not serve.
        refused: Vec<RefusedQueue>,
        /// A lease lasts this long without any message.
        lease_ms: u64,
        /// Poll this often.
        poll_ms: u64,
        /// The spool's directory on this host.
        spool: String,
        /// Attempts of the [`Hello`] that were given up meanwhile: stop, and drop their results.
        abandoned: Vec<LeaseToken>,
    }
    /// The node is not registered.
    Rejected {
        /// Why, and what to do.
        failure: Failure,
    }
    /// What to do now, oldest first.
    Commands {
        /// Repeated until acknowledged.
        commands: Vec<Command>,
    }
    /// This session ended: drop its sockets and say hello again, with running work kept.
    SessionGone {
        /// Which one.
        session: SessionId,
    }
    /// The goodbye was taken.
    Farewell {}

    /// A connection of a session: its lanes are connected and it can take `credit` tasks in total, which rises
    /// when a task leaves its slot.
    Ready {
        /// The session.
        session: SessionId,
        /// Cumulative: tasks that may have been assigned to this session so far.
        credit: u64,
        /// Models in memory.
        loaded: Vec<ModelName>,
    }
    /// The node has the task and starts.
    Accept {
        /// The session.
        session: SessionId,
        /// The attempt.
        token: LeaseToken,
    }
    /// An attempt ended. A result up to 256 KiB is the message's only inline frame.
    Delivery {
        /// The session.
        session: SessionId,
        /// The attempt.
        token: LeaseToken,
        /// How it ended.
        outcome: AttemptOutcome,
        /// See [`Ready::credit`]; one more than before, if the node can go on.
        credit: u64,
        /// Models in memory.
        loaded: Vec<ModelName>,
    }

    /// The accept holds: go on.
    Proceed {
        /// The attempt.
        token: LeaseToken,
    }
    /// The attempt is not wanted any more: stop, and deliver nothing.
    Abandon {
        /// The attempt.
        token: LeaseToken,
    }
    /// The delivery is on record, now or before; drop it.
    Stored {
        /// The attempt.
        token: LeaseToken,
        /// False where another attempt or a cancel was first.
        accepted: bool,
    }

    /// Work on this.
    Assign {
        /// The fence of this attempt.
        token: LeaseToken,
        /// For people: the first attempt is 1.
        attempt: u32,
        /// What to do.
        spec: TaskSpec,
        /// Roles of the inline frames, in their order; the others lie in the spool.
        inline: Vec<Role>,
    }
    /// Poll now: a command waits.
    Hint {}

    /// I am alive.
    Heartbeat {
        /// The session.
        session: SessionId,
    }
    /// An attempt moved.
    Step {
        /// The session.
        session: SessionId,
        /// The attempt.
        token: LeaseToken,
        /// Steps done.
        step: u32,
        /// Steps in all, 0 where unknown.
        of: u32,
        /// What the steps are of.
        #[serde(default, skip_serializing_if = "Activity::is_running")]
        activity: Activity,
    }

    /// Where the tasks of one queue come from.
    LaneAddress {
        /// The queue's public name.
        queue: QueueName,
        /// This session's own socket.
        address: String,
    }
    /// A queue that a session may not serve.
    RefusedQueue {
        /// Which one.
        queue: QueueName,
        /// Why.
        reason: String,
    }
    /// A command of the outbox.
    Command {
        /// Rises by one per session.
        seq: u64,
        /// What to do.
        action: Action,
    }
    /// A command that the node did not carry out.
    RefusedCommand {
        /// Which one.
        seq: u64,
        /// Why.
        reason: String,
    }
}

/// What a node is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Stop an attempt.
    Cancel {
        /// Which one.
        token: LeaseToken,
    },
    /// Give an attempt back if its slot has not begun with it: another node is idle. The attempt then ends as
    /// [`AttemptOutcome::Cancelled`]; one that has begun goes on.
    Recall {
        /// Which one.
        token: LeaseToken,
    },
    /// Finish what runs, take nothing more, say goodbye.
    Drain,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// With a result: inline, or in the spool under the attempt's token.
    Done {
        /// The result.
        result: BlobMeta,
        /// Whether it is this message's inline frame.
        inline: bool,
        /// The node's share of the times.
        stages: Stages,
    },
    /// With a failure.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Stopped as told.
    Cancelled,
}
