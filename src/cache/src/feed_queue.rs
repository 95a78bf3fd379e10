//! Turns committed changes into the states to publish. Only the last state of each task is kept.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lamagrid_domain::{Advance, Counters, ModelName, Owner, QueueName, Stages, Status, TaskId};
use lamagrid_protocol::message::TaskInfo;

use crate::cache::Write;
use crate::state::{TaskState, Version};

/// Unfinished tasks whose state is known; of further ones only the end is published.
const MAX_KNOWN: usize = 100_000;
/// How long the copy of an unfinished task is kept without a change.
const LIVE_KEEP: Duration = Duration::from_secs(3_600);
/// Longest time for which the copy of a finished task is kept; after it, readers ask the scheduler.
const ENDED_KEEP: Duration = Duration::from_secs(86_400);
/// How long a removed task is hidden: longer than an answer about it can be under way.
const GONE_KEEP: Duration = Duration::from_secs(10);

/// A committed change of a task.
#[derive(Debug, Clone)]
pub enum Change {
    /// It was accepted into its queue.
    Accepted {
        /// The task.
        id: TaskId,
        /// Its owner.
        owner: Owner,
        /// Its model.
        model: ModelName,
        /// Its queue.
        queue: QueueName,
        /// Time of submission, in milliseconds since the Unix epoch.
        created_wall_ms: u64,
    },
    /// An attempt began.
    Assigned {
        /// The task.
        id: TaskId,
        /// The node that has it.
        node: String,
        /// With this attempt counted.
        counters: Counters,
    },
    /// An attempt ended without an outcome.
    Requeued {
        /// The task.
        id: TaskId,
        /// With the reason counted.
        counters: Counters,
    },
    /// It reached its terminal state.
    Ended {
        /// The state.
        state: Box<TaskState>,
        /// How long the scheduler keeps it.
        retention: Duration,
    },
    /// Its result was released.
    Released {
        /// The state without the result.
        state: Box<TaskState>,
        /// How long the scheduler keeps it.
        retention: Duration,
    },
    /// It was removed.
    Forgotten {
        /// The task.
        id: TaskId,
    },
    /// Its node reported progress. Not committed, and lost with the node.
    Advanced {
        /// The task.
        id: TaskId,
        /// The progress.
        advance: Advance,
    },
}

/// Changes that wait to be published.
///
/// Invariant: `known` holds unfinished tasks only, and each of them in its last committed state.
#[derive(Debug, Default)]
pub(crate) struct FeedQueue {
    known: HashMap<TaskId, TaskState>,
    /// Unfinished tasks to publish.
    changed: HashSet<TaskId>,
    /// Unfinished tasks of which only the progress is new: they can wait.
    advanced: HashSet<TaskId>,
    /// Finished and removed tasks to publish.
    over: HashMap<TaskId, Write>,
}

impl FeedQueue {
    /// Takes a change in.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Accepted { id, owner, model, queue, created_wall_ms } => {
                if self.known.len() >= MAX_KNOWN {
                    return;
                }
                let info = TaskInfo {
                    id,
                    model,
                    queue,
                    status: Status::Queued,
                    failure: None,
                    position: None,
                    wait_ms: None,
                    node: None,
                    counters: Counters::default(),
                    stages: Stages::default(),
                    created_wall_ms,
                    finished_wall_ms: None,
                };
                self.known.insert(id, TaskState::told(owner, info));
                self.changed.insert(id);
            }
            Change::Assigned { id, node, counters } => self.change(id, |state| {
                (state.info.status, state.info.counters) = (Status::Processing, counters);
                state.info.node = Some(node);
            }),
            Change::Requeued { id, counters } => self.change(id, |state| {
                (state.info.status, state.info.counters) = (Status::Queued, counters);
            }),
            Change::Ended { state, retention } => {
                let version = state.version();
                self.end(*state, version, retention);
            }
            Change::Released { state, retention } => self.end(*state, Version::RELEASED, retention),
            Change::Forgotten { id } => {
                self.drop_known(id);
                self.over.insert(id, Write { id, version: Version::GONE, state: None, keep: GONE_KEEP });
            }
            Change::Advanced { id, advance } => {
                let processing = self.known.get_mut(&id).filter(|s| s.info.status == Status::Processing);
                if let Some(state) = processing {
                    state.progress = Some(advance);
                    self.advanced.insert(id);
                }
            }
        }
    }

    fn change(&mut self, id: TaskId, change: impl FnOnce(&mut TaskState)) {
        let Some(state) = self.known.get_mut(&id) else { return };
        state.progress = None;
        change(state);
        self.changed.insert(id);
    }

    fn end(&mut self, state: TaskState, version: Version, retention: Duration) {
        let id = state.info.id;
        self.drop_known(id);
        let keep = retention.min(ENDED_KEEP);
        self.over.insert(id, Write { id, version, state: Some(state), keep });
    }

    fn drop_known(&mut self, id: TaskId) {
        self.known.remove(&id);
        self.changed.remove(&id);
        self.advanced.remove(&id);
    }

    /// True if something waits that should be published soon.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.changed.is_empty() || !self.over.is_empty()
    }

    /// Takes out all that waits, with the progress of tasks.
    pub(crate) fn take(&mut self) -> Vec<Write> {
        let mut writes: Vec<Write> = self.over.drain().map(|(_, write)| write).collect();
        self.changed.extend(self.advanced.drain());
        let changed = self.changed.drain().filter_map(|id| self.known.get(&id));
        writes.extend(changed.map(|state| Write {
            id: state.info.id,
            version: state.version(),
            state: Some(state.clone()),
            keep: LIVE_KEEP,
        }));
        writes
    }

    /// There is nothing to publish into: what waits is dropped, and unfinished tasks stay known.
    pub(crate) fn drop_waiting(&mut self) {
        self.changed.clear();
        self.advanced.clear();
        self.over.clear();
    }

    /// A new epoch begins: all unfinished tasks are published again.
    pub(crate) fn publish_again(&mut self) {
        self.changed.extend(self.known.keys());
    }

    /// Changes were lost: the known states may be wrong.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::state;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn accepted(id: u8) -> Change {
        let TaskState { owner, info, .. } = state(id, Status::Queued, 0);
        let TaskInfo { id, model, queue, created_wall_ms, .. } = info;
        Change::Accepted { id, owner, model, queue, created_wall_ms }
    }

    fn assigned(id: u8, attempts: u32) -> Change {
        let counters = Counters { attempts, ..Counters::default() };
        Change::Assigned { id: TaskId::from_bytes([id; 16]), node: "n".to_owned(), counters }
    }

    #[test]
    fn only_the_last_state_of_a_task_is_published() {
        let mut queue = FeedQueue::default();
        queue.apply(accepted(1));
        queue.apply(assigned(1, 1));
        assert!(queue.is_urgent());
        let writes = queue.take();
        assert_eq!(
            writes.iter().map(|w| w.version).collect::<Vec<_>>(),
            [Version::of(Status::Processing, 1)]
        );
        assert!(!queue.is_urgent() && queue.take().is_empty());
        let state = Box::new(state(1, Status::Completed, 1));
        queue.apply(Change::Ended { state: state.clone(), retention: HOUR });
        queue.apply(Change::Forgotten { id: state.info.id });
        let writes = queue.take();
        assert_eq!((writes.len(), writes[0].version), (1, Version::GONE));
        assert!(queue.known.is_empty());
    }

    #[test]
    fn progress_waits_and_ends_with_the_attempt() {
        let mut queue = FeedQueue::default();
        queue.apply(accepted(1));
        queue.apply(assigned(1, 1));
        queue.take();
        let advance = Advance { step: 3, of: 9, ..Advance::default() };
        queue.apply(Change::Advanced { id: TaskId::from_bytes([1; 16]), advance });
        assert!(!queue.is_urgent());
        assert_eq!(queue.take()[0].state.as_ref().unwrap().progress, Some(advance));
        let counters = Counters { attempts: 1, crashes: 1, ..Counters::default() };
        queue.apply(Change::Requeued { id: TaskId::from_bytes([1; 16]), counters });
        let write = queue.take().remove(0);
        assert_eq!((write.version, write.state.unwrap().progress), (Version::of(Status::Queued, 1), None));
    }

    #[test]
    fn a_new_epoch_gets_every_unfinished_task_again() {
        let mut queue = FeedQueue::default();
        queue.apply(accepted(1));
        queue.apply(accepted(2));
        queue.apply(Change::Ended { state: Box::new(state(2, Status::Failed, 0)), retention: HOUR });
        queue.drop_waiting();
        assert!(queue.take().is_empty());
        queue.publish_again();
        assert_eq!(queue.take().len(), 1);
        queue.forget();
        queue.publish_again();
        assert!(queue.take().is_empty());
        queue.apply(assigned(1, 1));
        assert!(!queue.is_urgent(), "a task that is not known");
    }
}
