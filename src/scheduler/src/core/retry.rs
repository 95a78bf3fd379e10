//! What becomes of a task whose attempt ended without a result.

use lamagrid_domain::{Event, Failure, FailureKind, LeaseToken, Retry, State, TaskId};

use super::sessions::Orphan;
use super::{Core, Effect, Now, StoreOp};

impl Core {
    /// An attempt reported a failure.
    pub(super) fn attempt_failed(&mut self, now: Now, id: TaskId, failure: Failure) {
        let task = self.tasks.get_mut(&id).expect("the caller holds a live task");
        task.counters.failures += 1;
        let spent = task.counters.failures >= self.settings.scheduler.failure_limit;
        let node = task.node.clone();
        let retry = failure.kind.retry();
        if retry == Retry::Elsewhere {
            task.avoid.extend(node);
        }
        let task = &self.tasks[&id];
        match retry {
            Retry::Later if !spent => {
                let not_before_ms = self.clock_ms + self.back_off_ms(id);
                self.requeue(id, not_before_ms);
            }
            Retry::Elsewhere if !spent && self.has_other_node(task) => self.requeue(id, self.clock_ms),
            Retry::Never | Retry::Later | Retry::Elsewhere => self.fail(now, id, failure),
        }
    }

    /// An attempt is lost with its node or its session. `counts` says whether that is held against the task.
    pub(super) fn lose(&mut self, now: Now, token: LeaseToken, counts: bool) {
        let Some(id) = self.tokens.get(&token).copied() else { return };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !matches!(task.state, State::Assigned { token: t, .. } if t == token) {
            return;
        }
        if counts && task.accepted {
            task.counters.crashes += 1;
            if task.counters.crashes >= self.settings.scheduler.crash_limit {
                let node = task.node.as_ref().map_or("?", |n| n.as_str());
                let text = format!(
                    "the task was given up: {} nodes were lost while working on it, the last one {node}; \
                     see that node's log",
                    task.counters.crashes
                );
                self.fail(now, id, Failure::new(FailureKind::NodeLost, text));
                return;
            }
        }
        self.requeue(id, self.clock_ms);
    }

    /// A node did not come back for an attempt.
    ///
    /// What ran there may have been its end, which counts. What only waited is innocent, unless its inputs were more
    /// than the node could bear: it is never prepared beside another task again, so that the next loss says more.
    pub(super) fn lose_orphan(&mut self, now: Now, orphan: Orphan, counts: bool) {
        if counts && orphan.waited {
            self.unprepared.extend(self.task_of(orphan.token));
        }
        self.lose(now, orphan.token, counts && !orphan.waited);
    }

    fn requeue(&mut self, id: TaskId, not_before_ms: u64) {
        let task = self.tasks.get_mut(&id).expect("the caller holds a live task");
        if let State::Assigned { token, session } = task.state {
            self.tokens.remove(&token);
            if let Some(session) = self.sessions.get_mut(&session) {
                session.release(token);
            }
        }
        task.state =
            task.state.apply(Event::Requeue { not_before_ms }).expect("assigned tasks can be requeued");
        task.accepted = false;
        let counters = task.counters;
        self.emit(Effect::Store(StoreOp::Requeue { id, counters }));
        self.enqueue(id);
        self.tell_followers(id);
        if not_before_ms <= self.clock_ms {
            self.place(id);
        }
    }

    /// Exponential with full jitter, so that tasks which failed together do not come back together.
    fn back_off_ms(&mut self, id: TaskId) -> u64 {
        let scheduler = &self.settings.scheduler;
        let exponent = self.tasks[&id].counters.failures.saturating_sub(1).min(20);
        let ceiling =
            scheduler.retry_base_ms.saturating_mul(1 << exponent).min(scheduler.retry_cap_ms).max(1);
        let random = u64::from_le_bytes(self.draw()[..8].try_into().expect("8 of 16 bytes"));
        random % ceiling + 1
    }

    /// The task's own limit has passed.
    pub(super) fn past_deadline(&mut self, now: Now, id: TaskId) {
        self.stop_attempt(id);
        let state = self.tasks.get(&id).map(|t| t.state.status());
        let text = match state {
            Some(status) => format!("the task's deadline passed while it was {status}"),
            None => return,
        };
        self.fail(now, id, Failure::new(FailureKind::DeadlineExceeded, text));
    }
}
