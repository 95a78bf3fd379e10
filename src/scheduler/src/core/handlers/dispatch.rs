//! Puts tasks into the queue, and gives them to nodes as placement decides.

use lamagrid_domain::{LeaseToken, SessionId, TaskId};
use lamagrid_protocol::message::{Action, Assign};

use crate::core::policy::recall::{self, Recall, RecallPlan};
use crate::core::policy::retry::Loss;
use crate::core::state::task::Lease;
use crate::core::{Core, Effect, StoreOp};

impl Core {
    /// Queues a task, now or once its delay is over.
    pub(crate) fn enqueue(&mut self, id: TaskId) {
        let clock_ms = self.clock.elapsed_ms();
        let task = self.tasks.get_mut(id).expect("the caller holds an unfinished task");
        self.ready.enter(task, clock_ms);
        self.admission.task_queued(task.spec());
        self.timers.start_wait(task, &self.settings.scheduler, clock_ms);
        if let Some(next) = self.settings.routes.spills(&task.spec().queue).get(task.spilled_to().len()) {
            let left_ms = next.waited_ms.saturating_sub(task.waited_for_spill_ms());
            self.timers.start_spill(task, task.queued_at_ms().saturating_add(left_ms));
        }
    }

    /// Takes a task out of the queue, if it is there. It no longer waits.
    pub(crate) fn unqueue(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            self.timers.stop_spill(task);
        }
        self.leave_queue(id);
    }

    /// Takes a task out of the queue, if it is there. On its node it may wait on.
    fn leave_queue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        self.timers.stop_wait(task);
        self.reserved.release_task(id);
        if self.ready.leave(task, self.clock.elapsed_ms()) {
            self.admission.task_unqueued(task.spec());
        }
    }

    /// Gives a waiting task to the best session that can take it, after any task that is served before it.
    pub(crate) fn dispatch_task(&mut self, id: TaskId) {
        while self.placement().best_for(id).is_some() {
            self.assign_in_order(id);
        }
    }

    /// Gives a session tasks while it has credit and tasks wait for it.
    pub(crate) fn dispatch_to(&mut self, session: SessionId) {
        while let Some(id) = self.placement().next_for(session) {
            self.assign_in_order(id);
        }
    }

    /// Assigns a task that some session can take, or another one that the same session takes first, or keeps that session
    /// free for one that has no room there yet.
    fn assign_in_order(&mut self, mut id: TaskId) {
        // One step may lead to a task of lower rank, whose model is in memory; the others lead to higher ranks.
        let mut has_warm_step = true;
        loop {
            let placement = self.placement();
            let session = placement.best_for(id).expect("some session can take it");
            let rank = self.ready.rank(&self.tasks[id]);
            let next = placement.next_for(session).filter(|next| *next != id).filter(|next| {
                let is_better = self.ready.rank(&self.tasks[*next]) < rank;
                is_better || std::mem::take(&mut has_warm_step)
            });
            match next.filter(|next| placement.best_for(*next).is_some()) {
                Some(better) => id = better,
                None => {
                    if let Some(crowded_out) =
                        self.sessions.get(session).and_then(|session| placement.crowded_out(id, session))
                    {
                        return self.keep_free(session, crowded_out);
                    }
                    #[cfg(test)]
                    if self.wrong_choice.is_none() {
                        self.wrong_choice = crate::core::check::wrong_choice(self, id, session);
                    }
                    return self.assign(id, session);
                }
            }
        }
    }

    /// Keeps a session free for a waiting task, which smaller ones would overtake there for ever.
    fn keep_free(&mut self, session: SessionId, id: TaskId) {
        if let Some(session) = self.sessions.get(session) {
            let waited_ms = self.tasks[id].waited_ms(self.clock.elapsed_ms());
            tracing::debug!(
                task.id = %id, node = %session.node(), waited_ms,
                "node is kept free for a task that has no room beside the others there"
            );
        }
        self.reserved.keep(session, id);
    }

    /// After every input: fills idle slots with tasks that wait for a slot of another node.
    pub(crate) fn recall_for_idle(&mut self) {
        loop {
            let RecallPlan { recalls, orphan } = recall::plan(self.placement());
            recalls.into_iter().for_each(|recall| self.recall(recall));
            let Some(orphan) = orphan else { return };
            self.leases.forget_orphan(orphan);
            self.requeue_lost(orphan, Loss::GivenBack);
        }
    }

    fn recall(&mut self, recall: Recall) {
        fault!(self, RecallUnsent => return self.note_recall(recall.session, recall.token));
        self.command(recall.session, Action::Recall { token: recall.token });
    }

    fn assign(&mut self, id: TaskId, session: SessionId) {
        self.leave_queue(id);
        let token = LeaseToken::from_bytes(self.random_bytes());
        let accept_by = self.clock.elapsed_ms() + self.settings.scheduler.accept_timeout_ms;
        let task = self.tasks.get_mut(id).expect("waiting tasks are live");
        let target = self.sessions.get(session).expect("the caller chose a live session");
        let node = target.node().clone();
        task.assign(Lease { token, session }, &node, self.clock.now());
        tracing::info!(
            task.id = %id, attempt = task.counters().attempts, %node, session = target.number(),
            queue = %task.spec().queue, "task assigned"
        );
        self.ready.task_dispatched(task);
        self.breaker.on_dispatched(&node, token);
        let index = target.service_of(task).expect("the session serves the task").lane;
        self.sessions.give(session, token, self.clock.elapsed_ms(), accept_by);
        self.leases.insert(token, id);
        let inline = task.inline().to_vec();
        let assign = Assign {
            token,
            attempt: task.counters().attempts,
            spec: task.spec().clone(),
            inline: inline.clone(),
        };
        let counters = task.counters();
        self.emit(Effect::Store(StoreOp::Assign { id, token, node, counters }));
        let attach = (!inline.is_empty()).then_some((id, inline));
        self.emit(Effect::Lane { session, index, message: assign.into(), attach });
        self.tell_followers(id);
    }
}
