//! Feeds the cache of states with what was committed.
//!
//! Does not: wait for the cache, or keep anything back from clients because of it.

use std::time::Duration;

use lamagrid_cache::{Change, Feed, TaskState};
use lamagrid_config::SchedulerConfig;
use lamagrid_domain::TaskId;

use crate::core::{FinishedTask, StoreOp, StoredTask};

/// The commit thread's entrance to the feed.
#[derive(Debug)]
pub(crate) struct StateFeed {
    feed: Feed,
    retention: Duration,
    dead_retention: Duration,
}

impl StateFeed {
    pub(crate) fn new(feed: Feed, config: &SchedulerConfig) -> Self {
        Self {
            feed,
            retention: Duration::from_secs(config.result_retention_s),
            dead_retention: Duration::from_secs(config.dead_retention_s),
        }
    }

    /// Passes on the unfinished tasks with which the scheduler starts. Of finished ones readers ask.
    pub(crate) fn recovered(&self, tasks: &[StoredTask]) {
        self.feed.send(tasks.iter().flat_map(started).collect());
    }

    /// Passes on writes that are durable now.
    pub(crate) fn committed(&self, ops: Vec<StoreOp>) {
        let mut changes = Vec::with_capacity(ops.len());
        ops.into_iter().for_each(|op| self.add(op, &mut changes));
        self.feed.send(changes);
    }

    fn add(&self, op: StoreOp, changes: &mut Vec<Change>) {
        changes.push(match op {
            StoreOp::Insert { spec, created_wall_ms, .. } => Change::Accepted {
                id: spec.id,
                owner: spec.owner,
                model: spec.model,
                queue: spec.queue,
                created_wall_ms,
            },
            StoreOp::Assign { id, node, counters, .. } => {
                Change::Assigned { id, node: node.to_string(), counters }
            }
            StoreOp::Requeue { id, counters, .. } => Change::Requeued { id, counters },
            StoreOp::End { id, ended, .. } => {
                let retention = self.retention_of(&ended);
                Change::Ended { state: state_of(id, *ended), retention }
            }
            StoreOp::Release { id, ended } => {
                let retention = self.retention_of(&ended);
                Change::Released { state: state_of(id, *ended), retention }
            }
            StoreOp::Forget { id, .. } => Change::Forgotten { id },
            StoreOp::Together(ops) => return ops.into_iter().for_each(|op| self.add(op, changes)),
            _ => return,
        });
    }

    fn retention_of(&self, ended: &FinishedTask) -> Duration {
        if ended.dead.is_some() { self.dead_retention } else { self.retention }
    }
}

fn state_of(id: TaskId, ended: FinishedTask) -> Box<TaskState> {
    let mut state = TaskState::told(ended.owner.clone(), ended.info(id));
    state.result_bytes = ended.result.map(|result| result.len);
    Box::new(state)
}

fn started(task: &StoredTask) -> Vec<Change> {
    let StoredTask::Live { spec, created_wall_ms, counters, assigned, .. } = task else { return Vec::new() };
    let id = spec.id;
    let mut changes = vec![Change::Accepted {
        id,
        owner: spec.owner.clone(),
        model: spec.model.clone(),
        queue: spec.queue.clone(),
        created_wall_ms: *created_wall_ms,
    }];
    if let Some((_, node)) = assigned {
        changes.push(Change::Assigned { id, node: node.to_string(), counters: *counters });
    } else if counters.attempts > 0 {
        changes.push(Change::Requeued { id, counters: *counters });
    }
    changes
}
