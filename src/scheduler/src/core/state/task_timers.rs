//! When something of a task is due: its limits on waiting and running, its deadline, its next rise in priority, and its spill.

use std::collections::BTreeSet;

use lamagrid_config::SchedulerConfig;
use lamagrid_domain::TaskId;

use super::task::Task;

/// Ageing raises a task up to this priority: that of people who wait at a browser.
const RISEN: i8 = 0;

/// Due times of all unfinished tasks, by the lease clock; deadlines by the wall clock.
///
/// Invariant: each entry is a key that its task holds, or its deadline.
#[derive(Debug, Default)]
pub(crate) struct TaskTimers {
    waits: BTreeSet<(u64, TaskId)>,
    runs: BTreeSet<(u64, TaskId)>,
    rises: BTreeSet<(u64, TaskId)>,
    spills: BTreeSet<(u64, TaskId)>,
    no_nodes: BTreeSet<(u64, TaskId)>,
    deadlines: BTreeSet<(u64, TaskId)>,
}

/// The shorter of a task's own limit and the configured one, where 0 is no limit.
pub(crate) fn shorter_limit_ms(own_ms: Option<u64>, configured_ms: u64) -> Option<u64> {
    let configured_ms = Some(configured_ms).filter(|ms| *ms > 0);
    own_ms.into_iter().chain(configured_ms).min()
}

fn first_due(timers: &BTreeSet<(u64, TaskId)>, now_ms: u64) -> Option<TaskId> {
    timers.first().filter(|(at, _)| *at <= now_ms).map(|(_, id)| *id)
}

impl TaskTimers {
    /// A task was accepted.
    pub(crate) fn start_deadline(&mut self, task: &Task) {
        self.deadlines.extend(task.spec().deadline_wall_ms.map(|at| (at, task.id())));
    }

    /// A task ended.
    pub(crate) fn stop_deadline(&mut self, task: &Task) {
        if let Some(at) = task.spec().deadline_wall_ms {
            self.deadlines.remove(&(at, task.id()));
        }
    }

    /// A task entered its queue.
    pub(crate) fn start_wait(&mut self, task: &mut Task, scheduler: &SchedulerConfig, clock_ms: u64) {
        let limit_ms = shorter_limit_ms(task.spec().wait_limit_ms, scheduler.wait_limit_ms);
        let left_ms = limit_ms.map(|ms| ms.saturating_sub(task.queue_ms()));
        let wait = left_ms.map(|ms| clock_ms.saturating_add(ms));
        let rises = scheduler.ageing_ms > 0 && task.priority() < RISEN;
        let rise = rises.then(|| clock_ms + scheduler.ageing_ms);
        self.waits.extend(wait.map(|at| (at, task.id())));
        self.rises.extend(rise.map(|at| (at, task.id())));
        let keys = task.timers_mut();
        (keys.wait, keys.rise) = (wait, rise);
        if let Some(wait_ms) = task.spec().no_node_wait_ms {
            self.start_no_node(task, clock_ms.saturating_add(wait_ms));
        }
    }

    /// A task with an own limit on the time without a node is looked at then.
    pub(crate) fn start_no_node(&mut self, task: &mut Task, at_ms: u64) {
        self.stop_no_node(task);
        self.no_nodes.insert((at_ms, task.id()));
        task.timers_mut().no_node = Some(at_ms);
    }

    fn stop_no_node(&mut self, task: &mut Task) {
        let id = task.id();
        if let Some(at) = task.timers_mut().no_node.take() {
            self.no_nodes.remove(&(at, id));
        }
    }

    /// Nodes of another queue may take a task at this time of the lease clock, unless a slot begins with it before.
    pub(crate) fn start_spill(&mut self, task: &mut Task, at_ms: u64) {
        self.spills.insert((at_ms, task.id()));
        task.timers_mut().spill = Some(at_ms);
    }

    /// A task spilled, or its attempt is over. Returns when its spill was due.
    pub(crate) fn stop_spill(&mut self, task: &mut Task) -> Option<u64> {
        let id = task.id();
        let at = task.timers_mut().spill.take();
        if let Some(at) = at {
            self.spills.remove(&(at, id));
        }
        at
    }

    /// A task left its queue. It may still spill: it may wait on its node, too.
    pub(crate) fn stop_wait(&mut self, task: &mut Task) {
        let id = task.id();
        let keys = task.timers_mut();
        if let Some(at) = keys.wait.take() {
            self.waits.remove(&(at, id));
        }
        if let Some(at) = keys.rise.take() {
            self.rises.remove(&(at, id));
        }
        self.stop_no_node(task);
    }

    /// A node accepted a task.
    pub(crate) fn start_run(&mut self, task: &mut Task, limit_ms: Option<u64>, clock_ms: u64) {
        self.stop_run(task);
        let run = limit_ms.map(|ms| clock_ms.saturating_add(ms));
        self.runs.extend(run.map(|at| (at, task.id())));
        task.timers_mut().run = run;
    }

    /// An attempt is over.
    pub(crate) fn stop_run(&mut self, task: &mut Task) {
        let id = task.id();
        if let Some(at) = task.timers_mut().run.take() {
            self.runs.remove(&(at, id));
        }
    }

    /// A task was raised. The next rise counts from when this one was due.
    pub(crate) fn restart_rise(&mut self, task: &mut Task, ageing_ms: u64) {
        let (id, is_risen) = (task.id(), task.priority() >= RISEN);
        let Some(at) = task.timers_mut().rise.take() else { return };
        self.rises.remove(&(at, id));
        if !is_risen {
            self.rises.insert((at + ageing_ms, id));
            task.timers_mut().rise = Some(at + ageing_ms);
        }
    }

    /// A task that has waited too long.
    pub(crate) fn due_wait(&self, clock_ms: u64) -> Option<TaskId> {
        first_due(&self.waits, clock_ms)
    }

    /// A task whose attempt has run too long.
    pub(crate) fn due_run(&self, clock_ms: u64) -> Option<TaskId> {
        first_due(&self.runs, clock_ms)
    }

    /// A task whose priority rises.
    pub(crate) fn due_rise(&self, clock_ms: u64) -> Option<TaskId> {
        first_due(&self.rises, clock_ms)
    }

    /// A task that may spill.
    pub(crate) fn due_spill(&self, clock_ms: u64) -> Option<TaskId> {
        first_due(&self.spills, clock_ms)
    }

    /// A task whose own limit on the time without a node is due.
    pub(crate) fn due_no_node(&self, clock_ms: u64) -> Option<TaskId> {
        first_due(&self.no_nodes, clock_ms)
    }

    /// A task whose deadline has passed.
    pub(crate) fn due_deadline(&self, wall_ms: u64) -> Option<TaskId> {
        first_due(&self.deadlines, wall_ms)
    }

    /// Every key of these tasks is listed, and nothing else.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tasks: impl Iterator<Item = &'a Task>) -> Result<(), String> {
        let mut expected = Self::default();
        for task in tasks {
            let keys = task.timers();
            expected.waits.extend(keys.wait.map(|at| (at, task.id())));
            expected.runs.extend(keys.run.map(|at| (at, task.id())));
            expected.rises.extend(keys.rise.map(|at| (at, task.id())));
            expected.spills.extend(keys.spill.map(|at| (at, task.id())));
            expected.no_nodes.extend(keys.no_node.map(|at| (at, task.id())));
            expected.start_deadline(task);
        }
        invariant!(self.waits == expected.waits, "wait limits are {:?}", self.waits);
        invariant!(self.runs == expected.runs, "run limits are {:?}", self.runs);
        invariant!(self.rises == expected.rises, "rises are {:?}", self.rises);
        invariant!(self.spills == expected.spills, "spills are {:?}", self.spills);
        invariant!(self.no_nodes == expected.no_nodes, "looks for a node are {:?}", self.no_nodes);
        invariant!(self.deadlines == expected.deadlines, "deadlines are {:?}", self.deadlines);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::TaskSpec;

    use super::*;
    use crate::core::tests::{config, spec, task};

    fn check(timers: &TaskTimers, task: &Task) {
        timers.check(std::iter::once(task)).unwrap();
    }

    #[test]
    fn time_in_earlier_waits_counts_against_the_limit() {
        let (mut timers, config) = (TaskTimers::default(), SchedulerConfig { ageing_ms: 0, ..config() });
        let mut task = task(TaskSpec { wait_limit_ms: Some(100), ..spec(1) });
        task.enter_queue(0);
        timers.start_wait(&mut task, &config, 0);
        check(&timers, &task);
        assert_eq!((timers.due_wait(99), timers.due_wait(100)), (None, Some(task.id())));
        timers.stop_wait(&mut task);
        task.leave_queue(70);
        task.enter_queue(200);
        timers.start_wait(&mut task, &config, 200);
        assert_eq!((timers.due_wait(229), timers.due_wait(230)), (None, Some(task.id())));
        check(&timers, &task);
    }

    #[test]
    fn a_task_rises_step_by_step_until_it_is_as_urgent_as_a_browsers() {
        let (mut timers, config) = (TaskTimers::default(), SchedulerConfig { ageing_ms: 10, ..config() });
        let mut task = task(TaskSpec { priority: -2, ..spec(1) });
        timers.start_wait(&mut task, &config, 0);
        for due_ms in [10, 20] {
            assert_eq!((timers.due_rise(due_ms - 1), timers.due_rise(due_ms)), (None, Some(task.id())));
            task.raise_priority();
            timers.restart_rise(&mut task, config.ageing_ms);
            check(&timers, &task);
        }
        assert_eq!(timers.due_rise(u64::MAX), None);
    }

    #[test]
    fn a_run_limit_and_a_deadline_end_with_what_they_bound() {
        let mut timers = TaskTimers::default();
        let mut task = task(TaskSpec { deadline_wall_ms: Some(50), ..spec(1) });
        timers.start_deadline(&task);
        timers.start_run(&mut task, Some(10), 0);
        timers.start_run(&mut task, Some(20), 0);
        check(&timers, &task);
        assert_eq!((timers.due_run(10), timers.due_run(20)), (None, Some(task.id())));
        assert_eq!((timers.due_deadline(49), timers.due_deadline(50)), (None, Some(task.id())));
        timers.stop_run(&mut task);
        timers.stop_deadline(&task);
        assert_eq!((timers.due_run(u64::MAX), timers.due_deadline(u64::MAX)), (None, None));
    }

    #[test]
    fn a_task_only_shortens_the_configured_limit() {
        assert_eq!(shorter_limit_ms(None, 0), None);
        assert_eq!(shorter_limit_ms(Some(9), 0), Some(9));
        assert_eq!(shorter_limit_ms(Some(9), 5), Some(5));
        assert_eq!(shorter_limit_ms(Some(3), 5), Some(3));
    }
}
