//! What is kept of a task after its end, until retention is over.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    BlobMeta, Counters, Failure, Hash, LeaseToken, ModelName, Owner, QueueName, Role, Stages, State, Status,
    TaskId,
};
use lamagrid_wire::message::{Outcome, TaskInfo};
use lamagrid_wire::router::PeerId;

use super::{Effect, ResultPlace, Task};

/// A result as it was delivered.
pub(crate) struct Delivered {
    pub(crate) token: LeaseToken,
    pub(crate) meta: BlobMeta,
    pub(crate) inline: Option<Bytes>,
    pub(crate) stages: Stages,
}

/// A task that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Who may see it.
    pub(crate) owner: Owner,
    /// What was asked.
    pub(crate) digest: Hash,
    /// Which model.
    pub(crate) model: ModelName,
    /// Which queue.
    pub(crate) queue: QueueName,
    /// How it ended.
    pub(crate) status: Status,
    /// Why it failed.
    pub(crate) failure: Option<Failure>,
    /// The accepted attempt.
    pub(crate) token: Option<LeaseToken>,
    /// The result, until it is released.
    pub(crate) result: Option<BlobMeta>,
    /// The result is in the row, not in the spool.
    pub(crate) inline: bool,
    /// How often it was tried.
    pub(crate) counters: Counters,
    /// Where its time went.
    pub(crate) stages: Stages,
    /// The node of the last attempt.
    pub(crate) node: Option<String>,
    /// Wall clock, ms.
    pub(crate) created_wall_ms: u64,
    /// Wall clock, ms.
    pub(crate) finished_wall_ms: u64,
}

impl Ended {
    pub(crate) fn of(
        task: &Task,
        state: &State,
        now_wall_ms: u64,
        delivered: Option<Delivered>,
    ) -> (Self, Option<ResultPlace>) {
        let failure = if let State::Failed(failure) = state { Some(failure.clone()) } else { None };
        let finished_wall_ms = now_wall_ms.max(task.created_wall_ms);
        let mut stages = delivered.as_ref().map_or_else(Stages::default, |d| d.stages);
        stages.queue_ms = task.queue_ms as f64;
        stages.total_ms = (finished_wall_ms - task.created_wall_ms) as f64;
        let token = delivered.as_ref().map(|d| d.token);
        let inline = delivered.as_ref().is_some_and(|d| d.inline.is_some());
        let result = delivered.as_ref().map(|d| d.meta.clone());
        let place = delivered.map(|d| match d.inline {
            Some(bytes) => ResultPlace::Inline(bytes),
            None => ResultPlace::Spool(d.token),
        });
        let ended = Self {
            owner: task.spec.owner.clone(),
            digest: task.digest,
            model: task.spec.model.clone(),
            queue: task.spec.queue.clone(),
            status: state.status(),
            failure,
            token,
            result,
            inline,
            counters: task.counters,
            stages,
            node: task.node.as_ref().map(ToString::to_string),
            created_wall_ms: task.created_wall_ms,
            finished_wall_ms,
        };
        (ended, place)
    }

    pub(crate) fn info(&self, id: TaskId) -> TaskInfo {
        TaskInfo {
            id,
            model: self.model.clone(),
            queue: self.queue.clone(),
            status: self.status,
            failure: self.failure.clone(),
            position: None,
            node: self.node.clone(),
            counters: self.counters,
            stages: self.stages,
            created_wall_ms: self.created_wall_ms,
            finished_wall_ms: Some(self.finished_wall_ms),
        }
    }

    /// The message that tells `peer` how the task ended, with its result inline where it is small.
    pub(crate) fn outcome(&self, id: TaskId, peer: &PeerId) -> Effect {
        let attach = (self.inline && self.result.is_some()).then(|| (id, vec![Role::Result]));
        let outcome = Outcome { task: self.info(id), result: self.result.clone() };
        Effect::Client { peer: peer.clone(), reply: outcome.into(), attach }
    }
}
