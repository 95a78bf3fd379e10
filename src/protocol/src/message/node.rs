//! The channels of a node: `control`, `result`, its lanes, and `node-events`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    Activity, BlobMeta, BootId, Failure, LeaseToken, ModelName, NodeInfo, QueueName, Role, SessionId, Stages,
    TaskSpec,
};

use super::{Message, ProtocolFault};
use crate::frame::{Frame, FrameError};

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
