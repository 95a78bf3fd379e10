//! Queues requests until the window has room, and keeps sent ones until they are answered.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use lamagrid_domain::{Owner, SessionId, TaskId};
use lamagrid_protocol::message::{GridStatus, TaskInfo};

use crate::error::ClientError;

/// Limit on unanswered requests of one connection; a scheduler's default limit for a peer is 64.
const WINDOW: usize = 32;
/// How long an abandoned task's cancel is retried; after that a delayed submit can no longer arrive.
const ORPHAN: Duration = Duration::from_secs(60);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// A task, and the owner on whose behalf it is asked about.
#[derive(Debug, Clone)]
pub(crate) struct OwnedTask {
    pub(crate) id: TaskId,
    pub(crate) owner: Owner,
}

/// One request that is queued or sent.
#[derive(Debug)]
pub(crate) enum PendingRequest {
    /// The request of the task's stage, chosen when it is sent.
    Task(TaskId),
    Cancel {
        of: OwnedTask,
        reply: Reply<TaskInfo>,
    },
    /// Cancels a task whose caller stopped waiting before it was acknowledged, so that it does not run needlessly.
    Orphan {
        of: OwnedTask,
        until: Instant,
    },
    Query {
        of: OwnedTask,
        reply: Reply<TaskInfo>,
    },
    GetGridStatus {
        after: Option<SessionId>,
        reply: Reply<GridStatus>,
    },
    /// Deletes a task's result. Has no reply itself: the reply to a ping sent after it shows that it was received.
    Release {
        of: OwnedTask,
        reply: Reply<()>,
    },
}

impl PendingRequest {
    pub(crate) fn orphan(of: OwnedTask) -> Self {
        Self::Orphan { of, until: Instant::now() + ORPHAN }
    }

    /// True while the reply is still awaited.
    pub(crate) fn is_wanted(&self) -> bool {
        match self {
            Self::Task(_) => true,
            Self::Cancel { reply, .. } | Self::Query { reply, .. } => !reply.is_closed(),
            Self::GetGridStatus { reply, .. } => !reply.is_closed(),
            Self::Release { reply, .. } => !reply.is_closed(),
            Self::Orphan { until, .. } => Instant::now() < *until,
        }
    }

    /// Replies with an error.
    pub(crate) fn fail(self, error: ClientError) {
        // The caller may have stopped waiting.
        match self {
            Self::Task(_) | Self::Orphan { .. } => {}
            Self::Cancel { reply, .. } | Self::Query { reply, .. } => drop(reply.send(Err(error))),
            Self::GetGridStatus { reply, .. } => drop(reply.send(Err(error))),
            Self::Release { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// All requests of a client, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    waiting: VecDeque<PendingRequest>,
    sent: BTreeMap<u64, PendingRequest>,
    last_seq: u64,
}

impl PendingRequests {
    pub(crate) fn push(&mut self, ask: PendingRequest) {
        self.waiting.push_back(ask);
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }

    /// Draws a sequence number that is unused on this connection.
    pub(crate) fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Takes the next request to send; `None` if the window is full or no request is queued.
    pub(crate) fn next(&mut self) -> Option<PendingRequest> {
        while self.sent.len() < WINDOW {
            let ask = self.waiting.pop_front()?;
            if ask.is_wanted() {
                return Some(ask);
            }
        }
        None
    }

    pub(crate) fn sent(&mut self, seq: u64, ask: PendingRequest) {
        self.sent.insert(seq, ask);
    }

    /// Takes the request that a reply answers; `None` if it was answered before.
    pub(crate) fn answered(&mut self, seq: u64) -> Option<PendingRequest> {
        self.sent.remove(&seq)
    }

    /// Drops the requests about a task; its outcome answers them.
    pub(crate) fn forget_task(&mut self, id: TaskId) {
        self.sent.retain(|_, ask| !matches!(ask, PendingRequest::Task(task) if *task == id));
        self.waiting.retain(|ask| !matches!(ask, PendingRequest::Task(task) if *task == id));
    }

    /// Drops the requests whose callers stopped waiting.
    pub(crate) fn prune(&mut self) {
        self.waiting.retain(PendingRequest::is_wanted);
        self.sent.retain(|_, ask| ask.is_wanted());
    }

    /// Queues sent requests again after a reconnect, except those for tasks: the actor queues these by their stage.
    pub(crate) fn reconnected(&mut self) {
        for (_, ask) in std::mem::take(&mut self.sent).into_iter().rev() {
            self.waiting.push_front(ask);
        }
        self.waiting.retain(|ask| !matches!(ask, PendingRequest::Task(_)) && ask.is_wanted());
    }

    /// Takes all requests.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingRequest> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_values().chain(std::mem::take(&mut self.waiting))
    }
}
