//! The row of a finished task, kept until its retention ends.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::{
    BlobMeta, ClientName, Counters, Entry, Failure, Hash, LeaseToken, Milestone, ModelName, Owner, QueueName,
    Role, Stages, State, Status, TaskId, TaskSpec,
};
use lamagrid_protocol::message::TaskInfo;

use super::task::Task;

/// A result as it was delivered.
pub(crate) struct DeliveredResult {
    pub(crate) token: LeaseToken,
    pub(crate) meta: BlobMeta,
    pub(crate) inline: Option<Bytes>,
    pub(crate) stages: Stages,
}

/// The submission of a dead letter, for a replay. Its inputs are kept as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    /// As it was submitted.
    pub(crate) spec: TaskSpec,
    /// Inputs that are in the row; the others lie in the spool.
    pub(crate) inline: Vec<Role>,
}

/// A task that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FinishedTask {
    pub(crate) owner: Owner,
    /// Of the payload.
    pub(crate) digest: Hash,
    pub(crate) model: ModelName,
    pub(crate) queue: QueueName,
    pub(crate) status: Status,
    pub(crate) failure: Option<Failure>,
    /// The accepted attempt.
    pub(crate) token: Option<LeaseToken>,
    /// The result, until it is released.
    pub(crate) result: Option<BlobMeta>,
    /// The result is in the row, not in the spool.
    pub(crate) inline: bool,
    pub(crate) counters: Counters,
    /// Where its time went.
    pub(crate) stages: Stages,
    /// The node of the last attempt.
    pub(crate) node: Option<String>,
    pub(crate) created_wall_ms: u64,
    pub(crate) finished_wall_ms: u64,
    /// On whose behalf it was submitted.
    #[serde(default)]
    pub(crate) client: Option<ClientName>,
    /// As it was submitted.
    #[serde(default)]
    pub(crate) priority: i8,
    /// The dead letter that it repeated.
    #[serde(default)]
    pub(crate) replay_of: Option<TaskId>,
    /// It is a dead letter.
    #[serde(default)]
    pub(crate) dead: Option<Box<DeadLetter>>,
    /// Since its acceptance.
    #[serde(default)]
    pub(crate) history: Vec<Entry>,
    /// End of retention by the wall clock, ms.
    #[serde(skip)]
    pub(crate) expiry_wall_ms: u64,
}

impl FinishedTask {
    pub(crate) fn of(
        task: &Task,
        state: &State,
        now_wall_ms: u64,
        delivered: Option<&DeliveredResult>,
    ) -> Self {
        let failure = if let State::Failed(failure) = state { Some(failure.clone()) } else { None };
        let finished_wall_ms = now_wall_ms.max(task.created_wall_ms());
        let mut stages = delivered.map_or_else(Stages::default, |d| d.stages);
        stages.queue_ms = task.queue_ms() as f64;
        stages.total_ms = (finished_wall_ms - task.created_wall_ms()) as f64;
        let mut history = task.history().to_vec();
        let what = Milestone::Ended { status: state.status() };
        super::history::record(
            &mut history,
            Entry { at_wall_ms: finished_wall_ms, attempt: task.counters().attempts, what },
        );
        let token = delivered.map(|d| d.token);
        let inline = delivered.is_some_and(|d| d.inline.is_some());
        let result = delivered.map(|d| d.meta.clone());
        Self {
            owner: task.spec().owner.clone(),
            digest: task.digest(),
            model: task.spec().model.clone(),
            queue: task.spec().queue.clone(),
            status: state.status(),
            failure,
            token,
            result,
            inline,
            counters: task.counters(),
            stages,
            node: task.node().map(ToString::to_string),
            created_wall_ms: task.created_wall_ms(),
            finished_wall_ms,
            client: task.spec().client.clone(),
            priority: task.spec().priority,
            replay_of: task.spec().replay_of,
            dead: None,
            history,
            expiry_wall_ms: 0,
        }
    }

    /// Bytes of its blobs that are still there.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let inputs = self.dead.as_ref().map_or(0, |dead| dead.spec.input_bytes());
        self.result.as_ref().map_or(0, |result| result.len).saturating_add(inputs)
    }

    pub(crate) fn info(&self, id: TaskId) -> TaskInfo {
        TaskInfo {
            id,
            model: self.model.clone(),
            queue: self.queue.clone(),
            status: self.status,
            failure: self.failure.clone(),
            position: None,
            wait_ms: None,
            node: self.node.clone(),
            counters: self.counters,
            stages: self.stages,
            created_wall_ms: self.created_wall_ms,
            finished_wall_ms: Some(self.finished_wall_ms),
        }
    }
}
