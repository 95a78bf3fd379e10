//! Requests on their way: what waits for the window, and what waits for its answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use lamagrid_domain::{SessionId, TaskId};
use lamagrid_protocol::message::{GridStatus, TaskInfo};

use crate::error::ClientError;

/// Unanswered requests on one connection; a scheduler's default bound for a peer is 64.
const WINDOW: usize = 32;
/// A cancel that nobody waits for is tried this long: after that a delayed submit cannot come any more.
const ORPHAN: Duration = Duration::from_secs(60);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// One request.
#[derive(Debug)]
pub(crate) enum PendingRequest {
    /// Whatever the task's stage says, when its turn comes.
    Task(TaskId),
    Cancel {
        id: TaskId,
        reply: Reply<TaskInfo>,
    },
    /// The task was given up before it was acknowledged: it shall not run for nobody.
    Orphan {
        id: TaskId,
        until: Instant,
    },
    Query {
        id: TaskId,
        reply: Reply<TaskInfo>,
    },
    GetGridStatus {
        after: Option<SessionId>,
        reply: Reply<GridStatus>,
    },
    /// Not answered: a ping behind it tells that it was heard.
    Release {
        id: TaskId,
        reply: Reply<()>,
    },
}

impl PendingRequest {
    pub(crate) fn orphan(id: TaskId) -> Self {
        Self::Orphan { id, until: Instant::now() + ORPHAN }
    }

    /// Whether somebody still waits for the answer.
    pub(crate) fn is_wanted(&self) -> bool {
        match self {
            Self::Task(_) => true,
            Self::Cancel { reply, .. } | Self::Query { reply, .. } => !reply.is_closed(),
            Self::GetGridStatus { reply, .. } => !reply.is_closed(),
            Self::Release { reply, .. } => !reply.is_closed(),
            Self::Orphan { until, .. } => Instant::now() < *until,
        }
    }

    /// Answers with an error.
    pub(crate) fn fail(self, error: ClientError) {
        // The caller may have left; then nobody misses the answer.
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

    /// A number that no request on this connection carries yet.
    pub(crate) fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// The next request to send, if the window has room.
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

    /// The request that an answer belongs to; `None` if it was answered before.
    pub(crate) fn answered(&mut self, seq: u64) -> Option<PendingRequest> {
        self.sent.remove(&seq)
    }

    /// Forgets the requests about a task, whose outcome answers them all.
    pub(crate) fn forget_task(&mut self, id: TaskId) {
        self.sent.retain(|_, ask| !matches!(ask, PendingRequest::Task(task) if *task == id));
        self.waiting.retain(|ask| !matches!(ask, PendingRequest::Task(task) if *task == id));
    }

    /// Forgets requests that nobody waits for any more.
    pub(crate) fn prune(&mut self) {
        self.waiting.retain(PendingRequest::is_wanted);
        self.sent.retain(|_, ask| ask.is_wanted());
    }

    /// The connection is gone: what was sent is sent again, except what each task's stage says anew.
    pub(crate) fn reconnected(&mut self) {
        for (_, ask) in std::mem::take(&mut self.sent).into_iter().rev() {
            self.waiting.push_front(ask);
        }
        self.waiting.retain(|ask| !matches!(ask, PendingRequest::Task(_)) && ask.is_wanted());
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingRequest> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_values().chain(std::mem::take(&mut self.waiting))
    }
}
