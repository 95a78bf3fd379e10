//! Defines the channels of a node: `control`, `result`, its lanes and `node-events`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    Activity, BlobMeta, BootId, Failure, Label, LeaseToken, LiveFigures, MemoryUse, ModelName, NodeInfo,
    QueueName, Role, SessionId, Stages, TaskSpec,
};

use super::{Message, ProtocolFault};
use crate::frame::{Frame, FrameError};

channel! {
    /// Requests on `control`, sent to the scheduler.
    ControlRequest {
        0x0301 Hello,
        0x0302 Poll,
        0x0303 Goodbye,
    }
}

channel! {
    /// Replies on `control`.
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
    /// Messages on `result`, sent to the scheduler.
    ResultRequest {
        0x0501 Ready,
        0x0502 Accept,
        0x0503 Delivery,
    }
}

channel! {
    /// Messages on `result`, sent to the node.
    ResultReply {
        0x0001 ProtocolFault,
        0x0404 SessionGone,
        0x0601 Proceed,
        0x0602 Abandon,
        0x0603 Stored,
    }
}

channel! {
    /// Messages on a lane, sent to the node.
    LaneMessage {
        0x0701 Assign,
        0x0702 Hint,
    }
}

channel! {
    /// Events on `node-events`, sent to the scheduler; they may be lost.
    NodeEvent {
        0x0801 Heartbeat,
        0x0802 Step,
    }
}

bodies! {
    /// Registers a node, for the first time or after a disconnect.
    Hello {
        /// The node's description.
        info: NodeInfo,
        /// Number of tasks that it can run at once.
        slots: u16,
        /// Number of further tasks that it can prepare while its slots are busy.
        #[serde(default)]
        overlap: u16,
        /// Running attempts, in the order in which they were assigned.
        running: Vec<LeaseToken>,
        /// Attempts whose result the node still holds.
        held: Vec<LeaseToken>,
        /// Identifies the node's process: a process may replace its own earlier session at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot: Option<BootId>,
        /// The kinds of [`Action`] that the node executes; no other kind is sent to it. Without this field they are
        /// those of protocol 1.5: [`Action::BASIC`].
        #[serde(default = "basic_actions")]
        actions: Vec<ActionKind>,
    }
    /// Asks for commands, and renews all leases of the session.
    Poll {
        /// The session's id.
        session: SessionId,
        /// Attempts that are running or whose result the node holds.
        running: Vec<LeaseToken>,
        /// Sequence number of the last command that was executed or refused.
        acknowledged: u64,
        /// Refused commands with their reasons.
        refused: Vec<RefusedCommand>,
    }
    /// Ends the session. Its tasks return to the queue without counting a crash.
    Goodbye {
        /// The session's id.
        session: SessionId,
    }
    /// The node is registered.
    Welcome {
        /// The new session's id.
        session: SessionId,
        /// The lanes that deliver its tasks, one per queue.
        lanes: Vec<LaneAddress>,
        /// Queues that the node may not serve.
        refused: Vec<RefusedQueue>,
        /// Duration of a lease without any message, in milliseconds.
        lease_ms: u64,
        /// Interval of polls, in milliseconds.
        poll_ms: u64,
        /// The spool's directory on the scheduler's host.
        spool: String,
        /// Attempts of the [`Hello`] that are no longer wanted: the node stops them and deletes their results.
        abandoned: Vec<LeaseToken>,
    }
    /// The registration was refused.
    Rejected {
        /// The reason, with the remedy.
        failure: Failure,
        /// True if an administrator removed the node: it ends, even if it was registered before.
        #[serde(default)]
        removed: bool,
    }
    /// Commands to execute now, oldest first.
    Commands {
        /// The commands; each is repeated until it is acknowledged.
        commands: Vec<Command>,
    }
    /// The session has ended. The node closes its sockets and registers again, keeping its running work.
    SessionGone {
        /// The session's id.
        session: SessionId,
    }
    /// The goodbye was received.
    Farewell {}
    /// Announces that the session's lanes are connected, and its credit, which rises when a task leaves its slot.
    Ready {
        /// The session's id.
        session: SessionId,
        /// Total number of tasks that may have been assigned to this session so far.
        credit: u64,
        /// Models in memory.
        loaded: Vec<ModelName>,
    }
    /// The node has received the task.
    Accept {
        /// The session's id.
        session: SessionId,
        /// The attempt's token.
        token: LeaseToken,
    }
    /// An attempt has ended. A result of at most 256 KiB is the message's only inline blob.
    Delivery {
        /// The session's id.
        session: SessionId,
        /// The attempt's token.
        token: LeaseToken,
        /// The outcome of the attempt.
        outcome: AttemptOutcome,
        /// See [`Ready::credit`]; higher by one if the node can take another task.
        credit: u64,
        /// Models in memory.
        loaded: Vec<ModelName>,
        /// The memory that the attempt used; `None` if it was not measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<MemoryUse>,
    }
    /// The accept was recorded: the node may start.
    Proceed {
        /// The attempt's token.
        token: LeaseToken,
    }
    /// The attempt is no longer wanted: the node stops it and delivers nothing.
    Abandon {
        /// The attempt's token.
        token: LeaseToken,
    }
    /// The delivery is recorded, now or earlier; the node deletes its copy.
    Stored {
        /// The attempt's token.
        token: LeaseToken,
        /// False if another attempt or a cancel was recorded first.
        accepted: bool,
    }
    /// Assigns a task.
    Assign {
        /// The fencing token of this attempt.
        token: LeaseToken,
        /// Number of the attempt, starting at 1; for display.
        attempt: u32,
        /// The task.
        spec: TaskSpec,
        /// Roles of the inline blobs, in order; the others are in the spool.
        inline: Vec<Role>,
    }
    /// Tells the node to poll now, because a command waits.
    Hint {}
    /// The node is alive.
    Heartbeat {
        /// The session's id.
        session: SessionId,
        /// Its live figures; `None` if it measures none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        figures: Option<LiveFigures>,
    }
    /// An attempt has made progress.
    Step {
        /// The session's id.
        session: SessionId,
        /// The attempt's token.
        token: LeaseToken,
        /// Steps done.
        step: u32,
        /// Total steps; 0 if unknown.
        of: u32,
        /// The activity that the steps belong to.
        #[serde(default, skip_serializing_if = "Activity::is_running")]
        activity: Activity,
    }
    /// The lane of one queue.
    LaneAddress {
        /// The queue's name.
        queue: QueueName,
        /// The address of this session's socket for the queue.
        address: String,
    }
    /// A queue that a session may not serve.
    RefusedQueue {
        /// The queue's name.
        queue: QueueName,
        /// The reason.
        reason: String,
    }
    /// One command to a node.
    Command {
        /// Sequence number; rises by one within a session.
        seq: u64,
        /// The action.
        action: Action,
    }
    /// A command that the node did not execute.
    RefusedCommand {
        /// The command's sequence number.
        seq: u64,
        /// The reason.
        reason: String,
    }
}

/// The action of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Stops an attempt.
    Cancel {
        /// The attempt's token.
        token: LeaseToken,
    },
    /// Returns an attempt to the scheduler if it has not entered its slot, because another node is idle. It
    /// then ends as [`AttemptOutcome::Cancelled`]; an attempt in its slot continues.
    Recall {
        /// The attempt's token.
        token: LeaseToken,
    },
    /// Finishes running tasks, takes no new ones and says goodbye.
    Drain,
    /// Takes back a drain that is not finished: the node takes tasks again.
    Undrain,
    /// Changes settings of the node. It executes all of them or refuses the command with the reason.
    Set {
        /// The settings.
        change: NodeChange,
    },
}

impl Action {
    /// The kinds that every node of protocol 1.5 executes.
    pub const BASIC: [ActionKind; 3] = [ActionKind::Cancel, ActionKind::Recall, ActionKind::Drain];

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ActionKind {
        match self {
            Self::Cancel { .. } => ActionKind::Cancel,
            Self::Recall { .. } => ActionKind::Recall,
            Self::Drain => ActionKind::Drain,
            Self::Undrain => ActionKind::Undrain,
            Self::Set { .. } => ActionKind::Set,
        }
    }
}

fn basic_actions() -> Vec<ActionKind> {
    Action::BASIC.to_vec()
}

/// The kind of an [`Action`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// [`Action::Cancel`].
    Cancel,
    /// [`Action::Recall`].
    Recall,
    /// [`Action::Drain`].
    Drain,
    /// [`Action::Undrain`].
    Undrain,
    /// [`Action::Set`].
    Set,
    /// A kind of a later protocol version.
    #[serde(other)]
    Unknown,
}

/// Settings of a node that change while it runs; `None` leaves a setting as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeChange {
    /// The models that it offers, of those that it was started with; at most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ModelName>>,
    /// Number of tasks that it runs at once; 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u16>,
    /// CPU threads of one inference; 0 leaves the number to libtorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The lowest severity that is logged: error, warn, info, debug or trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<Label>,
    /// Its labels; at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Label>>,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// A result, which is inline or in the spool under the attempt's token.
    Done {
        /// The result.
        result: BlobMeta,
        /// True if the result is this message's inline blob.
        inline: bool,
        /// The stage times measured on the node.
        stages: Stages,
    },
    /// A failure.
    Failed {
        /// The reason.
        failure: Failure,
    },
    /// The attempt was stopped on request.
    Cancelled,
}
