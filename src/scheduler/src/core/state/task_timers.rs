//! What has waited or run for too long, and what has waited long enough to go before others.

use std::collections::BTreeSet;

use lamagrid_domain::{Failure, FailureKind, TaskId};

use crate::core::Core;

/// Tasks that rise in one tick, so that it stays short.
const MAX_RISING_PER_TICK: usize = 4_096;
/// What ageing leads to: the priority of people who wait at a browser.
const RISEN: i8 = 0;

/// What is due, by the lease clock.
#[derive(Debug, Default)]
pub(crate) struct TaskTimers {
    waits: BTreeSet<(u64, TaskId)>,
    runs: BTreeSet<(u64, TaskId)>,
    rises: BTreeSet<(u64, TaskId)>,
}

/// The instants at which something of one task is due: its keys in [`TaskTimers`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TimerKeys {
    wait: Option<u64>,
    run: Option<u64>,
    rise: Option<u64>,
}

/// A task can only shorten the configured limit, of which 0 is none.
fn shorter(own_ms: Option<u64>, configured_ms: u64) -> Option<u64> {
    let configured_ms = Some(configured_ms).filter(|ms| *ms > 0);
    own_ms.into_iter().chain(configured_ms).min()
}

impl Core {
    /// A task has entered the queue: it may wait so long, and rises after a while.
    pub(crate) fn watch_wait(&mut self, id: TaskId) {
        let scheduler = &self.settings.scheduler;
        let task = self.tasks.get_mut(&id).expect("the caller holds a live task");
        let limit_ms = shorter(task.spec.wait_limit_ms, scheduler.wait_limit_ms);
        task.dues.wait =
            limit_ms.map(|ms| self.clock.elapsed_ms().saturating_add(ms.saturating_sub(task.queue_ms)));
        let rises = scheduler.ageing_ms > 0 && task.priority < RISEN;
        task.dues.rise = rises.then(|| self.clock.elapsed_ms() + scheduler.ageing_ms);
        self.timers.waits.extend(task.dues.wait.map(|at| (at, id)));
        self.timers.rises.extend(task.dues.rise.map(|at| (at, id)));
    }

    /// A task leaves the queue.
    pub(crate) fn forget_wait(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Some(at) = task.dues.wait.take() {
            self.timers.waits.remove(&(at, id));
        }
        if let Some(at) = task.dues.rise.take() {
            self.timers.rises.remove(&(at, id));
        }
    }

    /// A node has accepted a task: the attempt may take so long.
    pub(crate) fn watch_run(&mut self, id: TaskId) {
        self.forget_run(id);
        let limit_ms = self.run_limit_ms(id);
        let task = self.tasks.get_mut(&id).expect("the caller holds a live task");
        task.dues.run = limit_ms.map(|ms| self.clock.elapsed_ms().saturating_add(ms));
        self.timers.runs.extend(task.dues.run.map(|at| (at, id)));
    }

    fn run_limit_ms(&self, id: TaskId) -> Option<u64> {
        let own_ms = self.tasks[&id].spec.run_limit_ms;
        let limit_ms = shorter(own_ms, self.settings.scheduler.run_limit_ms);
        fault!(self, OwnLimitCounts => return own_ms.or(limit_ms));
        limit_ms
    }

    /// An attempt is over.
    pub(crate) fn forget_run(&mut self, id: TaskId) {
        if let Some(at) = self.tasks.get_mut(&id).and_then(|task| task.dues.run.take()) {
            self.timers.runs.remove(&(at, id));
        }
    }

    pub(crate) fn fail_long_waits(&mut self) {
        while let Some(&(_, id)) = self.timers.waits.first().filter(|(at, _)| *at <= self.clock.elapsed_ms())
        {
            let task = &self.tasks[&id];
            let waited_ms = task.queue_ms + (self.clock.elapsed_ms() - task.queued_at_ms);
            let mut text = format!(
                "no node took the task within its limit: it waited {} s in queue {}, where {} tasks wait",
                waited_ms.div_ceil(1_000),
                task.spec.queue,
                self.queue_len[&task.spec.queue]
            );
            text.extend(self.pause_text(&task.spec.queue).map(|paused| format!("; {paused}")));
            self.fail(id, Failure::new(FailureKind::WaitedTooLong, text));
        }
    }

    pub(crate) fn stop_long_runs(&mut self) {
        while let Some(&(_, id)) = self.timers.runs.first().filter(|(at, _)| *at <= self.clock.elapsed_ms()) {
            self.forget_run(id);
            let node = self.tasks[&id].node.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
            let text =
                format!("the attempt on node {node} took longer than it may (run_limit_ms) and was stopped");
            self.stop_attempt(id);
            self.attempt_failed(id, Failure::new(FailureKind::RanTooLong, text));
        }
    }

    /// Raises what has waited long enough by one.
    pub(crate) fn raise_old(&mut self) {
        let ageing_ms = self.settings.scheduler.ageing_ms;
        for _ in 0..MAX_RISING_PER_TICK {
            let Some(&(at, id)) = self.timers.rises.first().filter(|(at, _)| *at <= self.clock.elapsed_ms())
            else {
                break;
            };
            self.timers.rises.remove(&(at, id));
            self.raise(id);
            let task = self.tasks.get_mut(&id).expect("it was raised above");
            // The next step counts from this one.
            task.dues.rise = (task.priority < RISEN).then_some(at + ageing_ms);
            self.timers.rises.extend(task.dues.rise.map(|at| (at, id)));
        }
    }
}
