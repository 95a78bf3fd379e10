//! Handles a tick: limits, leases, deadlines, retention. The sockets were drained before.

use std::collections::BTreeMap;

use lamagrid_domain::{Failure, FailureKind, ModelName, QueueName, TaskId};

use super::node_control::KeepAttempts;
use crate::core::policy::routing::Served;
use crate::core::state::tombstones::Watermark;
use crate::core::{ClockChange, Core, Effect, StoreOp};

/// Finished tasks removed in one tick, so that it stays short.
const MAX_FORGOTTEN_PER_TICK: usize = 256;
/// Tasks raised in one tick, for the same reason.
const MAX_RAISED_PER_TICK: usize = 4_096;

impl Core {
    pub(crate) fn on_tick(&mut self) {
        self.raise_aged();
        // Before any other tasks are given to nodes: those that may spill now are compared with them.
        self.spill_due();
        self.end_expired_uploads();
        self.end_sessions_that_do_not_accept();
        self.end_silent_sessions();
        self.give_up_orphans();
        self.wake_delayed();
        if self.learned.forget_lessons(self.clock.elapsed_ms()) {
            self.dispatch_to_all();
        }
        self.fail_past_deadlines();
        self.fail_long_waits();
        self.stop_long_runs();
        self.fail_unserved();
        self.fail_misfits();
        self.forget_expired();
        if let Some(wall_ms) = self.clock.record() {
            self.emit(Effect::Store(StoreOp::Clock { wall_ms }));
        }
    }

    fn end_sessions_that_do_not_accept(&mut self) {
        let deaf: Vec<_> = self
            .sessions
            .values()
            .filter(|s| s.has_overdue_accept(self.clock.elapsed_ms()))
            .map(|s| s.id())
            .collect();
        for id in deaf {
            let reason = "it did not accept an assignment in time";
            let until_ms = self.clock.elapsed_ms() + self.settings.scheduler.lease_ms;
            self.end_session(id, KeepAttempts::Until(until_ms), reason);
        }
    }

    fn end_silent_sessions(&mut self) {
        let lease_ms = self.settings.scheduler.lease_ms;
        let silent: Vec<_> = self
            .sessions
            .values()
            .filter(|s| s.silent_ms(self.clock.elapsed_ms()) >= lease_ms)
            .map(|s| s.id())
            .collect();
        for id in silent {
            let reason = format!("its node was silent for a whole lease of {lease_ms} ms");
            // No grace: the lease is over. `give_up_orphans` runs right after.
            self.end_session(id, KeepAttempts::Until(self.clock.elapsed_ms()), &reason);
        }
    }

    fn give_up_orphans(&mut self) {
        for node in self.leases.lost_nodes(self.clock.elapsed_ms()) {
            let orphans = self.leases.take_orphans(&node).expect("listed above");
            let reason = "node lost: it did not come back";
            self.requeue_orphans(&node, orphans.attempts, orphans.cause, reason);
        }
    }

    fn wake_delayed(&mut self) {
        while let Some(id) = self.ready.due_delay(self.clock.elapsed_ms()) {
            self.unqueue(id);
            self.enqueue(id);
            self.dispatch_task(id);
        }
    }

    fn fail_past_deadlines(&mut self) {
        while let Some(id) = self.timers.due_deadline(self.clock.wall().believed_ms()) {
            self.past_deadline(id);
        }
    }

    fn fail_long_waits(&mut self) {
        let clock_ms = self.clock.elapsed_ms();
        while let Some(id) = self.timers.due_wait(clock_ms) {
            let task = &self.tasks[id];
            let queue = &task.spec().queue;
            let waited_ms = task.queue_ms() + task.queued_for_ms(clock_ms);
            let mut text = format!(
                "no node took the task within its limit: it waited {} s in queue {queue}, where {} tasks wait",
                waited_ms.div_ceil(1_000),
                self.ready.length(queue).unwrap_or(0)
            );
            text.extend(self.pause_text(queue).map(|paused| format!("; {paused}")));
            self.fail(id, Failure::new(FailureKind::WaitedTooLong, text));
        }
    }

    fn stop_long_runs(&mut self) {
        while let Some(id) = self.timers.due_run(self.clock.elapsed_ms()) {
            let task = self.tasks.get_mut(id).expect("timers are of unfinished tasks");
            self.timers.stop_run(task);
            let node = task.node().map_or_else(|| "?".to_owned(), ToString::to_string);
            let text =
                format!("the attempt on node {node} took longer than it may (run_limit_ms) and was stopped");
            self.stop_attempt(id);
            self.attempt_failed(id, Failure::new(FailureKind::RanTooLong, text));
        }
    }

    /// Raises the priority of tasks that have waited for another ageing period.
    fn raise_aged(&mut self) {
        let ageing_ms = self.settings.scheduler.ageing_ms;
        for _ in 0..MAX_RAISED_PER_TICK {
            let Some(id) = self.timers.due_rise(self.clock.elapsed_ms()) else { break };
            let task = self.tasks.get_mut(id).expect("timers are of unfinished tasks");
            self.ready.raise(task);
            self.timers.restart_rise(task, ageing_ms);
        }
    }

    /// Fails tasks whose model no live node has served for long enough: a restart of a node takes less.
    fn fail_unserved(&mut self) {
        let clock_ms = self.clock.elapsed_ms();
        let wait_ms = self.settings.scheduler.no_node_wait_ms;
        // The tasks of a paused queue wait for a person, and perhaps for nodes that are being replaced.
        let (served, paused) = (self.served(), &self.paused);
        let mut is_served: BTreeMap<_, _> = BTreeMap::new();
        for (queue, model, _) in self.ready.by_model() {
            let serves = served.is_served(queue, model) || paused.contains(queue);
            is_served.insert((queue.clone(), model.clone()), serves);
        }
        let is_served = |queue: &QueueName, model: &ModelName| {
            is_served.get(&(queue.clone(), model.clone())).copied().unwrap_or(true)
        };
        let mut over = self.ready.unserved_for(wait_ms, clock_ms, is_served);
        over.retain(|id| {
            let task = &self.tasks[*id];
            task.spec().no_node_wait_ms.is_none() && task.queued_for_ms(clock_ms) >= wait_ms
        });
        while let Some(id) = self.timers.due_no_node(clock_ms) {
            let task = self.tasks.get_mut(id).expect("timers are of unfinished tasks");
            let own_ms = task.spec().no_node_wait_ms.unwrap_or(wait_ms);
            match self.ready.unserved_since(task).filter(|_| task.is_ready(clock_ms)) {
                Some(since_ms) if clock_ms.saturating_sub(since_ms) >= own_ms => {
                    self.timers.stop_wait(task);
                    over.push(id);
                }
                since_ms => {
                    // At least a tick later, so that the loop ends.
                    let next_ms = since_ms.unwrap_or(clock_ms).saturating_add(own_ms).max(clock_ms + 1);
                    self.timers.start_no_node(task, next_ms);
                }
            }
        }
        for id in over {
            let spec = self.tasks[id].spec();
            let waited_s = self.tasks[id].queued_for_ms(clock_ms) / 1_000;
            let failure = self.served().unserved(waited_s, spec);
            self.fail(id, failure);
        }
    }

    fn served(&self) -> Served<'_> {
        Served { sessions: &self.sessions, routes: &self.settings.routes }
    }

    /// Fails tasks that no node which serves their model can do, after as long. Models are looked through only if their
    /// largest task may be one.
    fn fail_misfits(&mut self) {
        let clock_ms = self.clock.elapsed_ms();
        if !self.ready.begin_look(clock_ms) {
            return;
        }
        let (mut misfits, served) = (Vec::new(), self.served());
        for (queue, model, waiting) in self.ready.by_model() {
            let Some(largest) = waiting.largest().filter(|_| !self.paused.contains(queue)) else { continue };
            let most = self.learned.need(model, largest);
            let memory_bytes = served.most_memory(queue, model, most.device);
            let is_enough = memory_bytes.is_some_and(|bytes| most.memory_bytes <= bytes);
            if is_enough || !served.is_served(queue, model) {
                continue;
            }
            let is_misfit = |id: &TaskId| {
                let need = self.placement().need(&self.tasks[*id]);
                memory_bytes.is_none_or(|bytes| need.memory_bytes > bytes)
            };
            misfits.extend(waiting.ids().filter(is_misfit));
        }
        let since = self.ready.set_misfits(&misfits, clock_ms);
        let wait_ms = self.settings.scheduler.no_node_wait_ms;
        let is_over = |id: &TaskId| {
            let limit_ms = self.tasks[*id].spec().no_node_wait_ms.unwrap_or(wait_ms);
            clock_ms.saturating_sub(since.get(id).copied().unwrap_or(clock_ms)) >= limit_ms
        };
        misfits.retain(is_over);
        for id in misfits {
            let task = &self.tasks[id];
            let need = self.placement().need(task);
            let failure = self.served().misfit(task.queued_for_ms(clock_ms) / 1_000, task.spec(), &need);
            self.fail(id, failure);
        }
    }

    fn forget_expired(&mut self) {
        let now_ms = self.clock.wall().believed_ms();
        for _ in 0..MAX_FORGOTTEN_PER_TICK {
            let Some(id) = self.retention.next_expired(now_ms, self.settings.max_ended) else { break };
            self.forget(id);
        }
        while let Some(dropped) = self.retention.expire_tombstone(now_ms) {
            self.drop_tombstone(dropped);
        }
    }

    /// Compares the wall clock with the monotonic one. If it was set back for good, watermarks are lowered with it: new
    /// ids would count as expired until the clock reaches them again.
    pub(crate) fn observe_wall(&mut self) {
        fault!(self, ClockBelieved => return self.clock.trust_wall());
        let Some(change) = self.clock.observe_wall() else { return };
        self.emit(Effect::Clock(change));
        if matches!(change, ClockChange::Believed { ahead_ms } if ahead_ms < 0) {
            for Watermark { owner, wall_ms } in self.retention.lower_watermarks(self.clock.now().wall_ms) {
                self.emit(Effect::Store(StoreOp::Watermark { owner, wall_ms }));
            }
        }
    }

    /// Emits every bound that crossed a threshold.
    pub(crate) fn raise_alarms(&mut self) {
        let limits = &self.settings.limits;
        for (queue, limit) in &self.settings.queues {
            let level = self.alarms.observe_queue(queue, self.ready.length(queue).unwrap_or(0), *limit);
            level.into_iter().for_each(|level| self.effects.push(Effect::Level(level)));
        }
        let spool = self.alarms.observe_spool(self.admission.spool_bytes(), limits.max_spool_bytes);
        let free = self.admission.free_bytes();
        let disk = free.and_then(|free| self.alarms.observe_disk(free, limits.min_free_bytes));
        spool.into_iter().chain(disk).for_each(|level| self.effects.push(Effect::Level(level)));
    }
}
