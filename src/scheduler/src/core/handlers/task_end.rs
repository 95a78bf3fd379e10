//! Ends tasks, keeps their results, and leaves tombstones.

use lamagrid_domain::{Event, Failure, FailureKind, Owner, TaskId};

use super::status::outcome;
use crate::core::state::finished_task::{DeadLetter, DeliveredResult};
use crate::core::state::task::{Lease, Task};
use crate::core::state::tombstones::{Dropped, Watermark};
use crate::core::{Core, Effect, FinishedTask, ResultPlace, StoreOp};

impl Core {
    /// Moves a task into its terminal state, writes it, and tells its followers.
    pub(crate) fn end(&mut self, id: TaskId, event: Event, delivered: Option<DeliveredResult>) {
        let task = self.remove_from_parts(id);
        let state = task.ended_by(event);
        let ended = FinishedTask::of(&task, &state, self.clock.now().wall_ms, delivered.as_ref());
        let place = delivered.map(|delivered| match delivered.inline {
            Some(bytes) => ResultPlace::Inline(bytes),
            None => ResultPlace::Spool(delivered.token),
        });
        self.record_end(&task, ended, place);
    }

    /// Gives up a task that was tried. It is kept with its inputs as a dead letter, so that it can be replayed.
    pub(crate) fn dead_letter(&mut self, id: TaskId, failure: Failure) {
        let task = self.remove_from_parts(id);
        let state = task.ended_by(Event::Fail(failure));
        let mut ended = FinishedTask::of(&task, &state, self.clock.now().wall_ms, None);
        ended.dead = Some(Box::new(DeadLetter { spec: task.spec().clone(), inline: task.inline().to_vec() }));
        self.record_end(&task, ended, None);
    }

    /// Takes an unfinished task out of every part.
    fn remove_from_parts(&mut self, id: TaskId) -> Task {
        self.unqueue(id);
        let mut task = self.tasks.remove(id).expect("the caller holds a live task");
        self.timers.stop_run(&mut task);
        if let Some(Lease { token, .. }) = task.lease() {
            self.leases.remove(token);
            self.breaker.on_inconclusive(token);
        }
        self.followers.remove_task(&task);
        self.timers.stop_deadline(&task);
        self.admission.task_ended(task.spec());
        task
    }

    fn record_end(&mut self, task: &Task, ended: FinishedTask, place: Option<ResultPlace>) {
        let id = task.id();
        let totals = self.statistics.count(&ended);
        self.emit(Effect::Store(StoreOp::End {
            id,
            ended: Box::new(ended.clone()),
            place,
            durability: task.spec().durability,
            totals,
        }));
        self.tell_outcome_to_followers(task, &ended);
        self.emit(Effect::Finished(Box::new(ended.info(id))));
        let expiry = self.clock.wall().later_ms() + self.retention_ms(&ended);
        self.keep_finished(id, ended, expiry);
    }

    fn tell_outcome_to_followers(&mut self, task: &Task, ended: &FinishedTask) {
        let id = task.id();
        fault!(self, OutcomeDropped(id) => return);
        for peer in task.followers() {
            self.emit(outcome(peer, id, ended));
        }
    }

    pub(crate) fn retention_ms(&self, ended: &FinishedTask) -> u64 {
        let scheduler = &self.settings.scheduler;
        1_000 * if ended.dead.is_some() { scheduler.dead_retention_s } else { scheduler.result_retention_s }
    }

    pub(crate) fn keep_finished(&mut self, id: TaskId, ended: FinishedTask, expiry_wall_ms: u64) {
        if let Some(token) = ended.token {
            self.leases.insert(token, id);
        }
        self.admission.task_kept(&ended);
        self.retention.keep(id, ended, expiry_wall_ms);
    }

    pub(crate) fn fail(&mut self, id: TaskId, failure: Failure) {
        self.end(id, Event::Fail(failure), None);
    }

    /// The deadline of a task has passed.
    pub(crate) fn past_deadline(&mut self, id: TaskId) {
        self.stop_attempt(id);
        let state = self.tasks.get(id).map(|task| task.state().status());
        let text = match state {
            Some(status) => format!("the task's deadline passed while it was {status}"),
            None => return,
        };
        self.fail(id, Failure::new(FailureKind::DeadlineExceeded, text));
    }

    /// Removes a finished task before or at the end of its retention.
    pub(crate) fn forget(&mut self, id: TaskId) {
        let Some(ended) = self.retention.remove(id) else { return };
        self.admission.task_removed(&ended);
        if let Some(token) = ended.token {
            self.leases.remove(token);
        }
        let until_wall_ms = self.tombstone_end(id);
        self.keep_tombstone(id, &ended.owner, until_wall_ms);
        self.emit(Effect::Store(StoreOp::Forget { id, owner: ended.owner, until_wall_ms }));
    }

    pub(crate) fn keep_tombstone(&mut self, id: TaskId, owner: &Owner, until_wall_ms: u64) {
        if let Some(dropped) = self.retention.remember(id, owner, until_wall_ms) {
            self.drop_tombstone(dropped);
        }
    }

    /// A tombstone is dropped; the watermark is raised before, so that the id stays expired.
    pub(crate) fn drop_tombstone(&mut self, dropped: Dropped) {
        if let Some(Watermark { owner, wall_ms }) = dropped.raised {
            self.emit(Effect::Store(StoreOp::Watermark { owner, wall_ms }));
        }
        self.emit(Effect::Store(StoreOp::Unremember { id: dropped.id }));
    }

    /// When the tombstone of an id that ends now expires.
    pub(crate) fn tombstone_end(&self, id: TaskId) -> u64 {
        self.clock.wall().later_ms().max(id.drawn_wall_ms())
            + self.settings.scheduler.tombstone_retention_s * 1_000
    }
}
