//! Chooses the queues of tasks, and gives tasks to nodes of other queues once they have waited.

use lamagrid_domain::{Failure, ModelName, Params, QueueName, TaskId, TaskSpec};
use lamagrid_protocol::message::Offer;

use crate::core::Core;
use crate::core::policy::needs::{Demand, Need};
use crate::core::policy::queue_choice;
use crate::core::state::task::Task;

impl Core {
    /// Sets the queue of a new task, or checks the one that its submitter named.
    ///
    /// # Errors
    /// `InvalidInput` if the named queue cannot serve the task.
    pub(crate) fn route(&self, spec: &mut TaskSpec) -> Result<(), Failure> {
        let demand = Demand::of(spec, &self.settings.routes.needs);
        let need = self.learned.need(&spec.model, &demand);
        if spec.routed {
            spec.queue = self.choose_queue(&spec.model, &need);
            return Ok(());
        }
        queue_choice::check_named(&self.settings.routes, &spec.queue, &spec.model, &need)
    }

    /// The queue against whose bound an upload counts. Its task's parameters are not known yet.
    pub(crate) fn queue_of_offer(&self, offer: &Offer) -> QueueName {
        match &offer.model {
            Some(model) if offer.routed => {
                let table = &self.settings.routes.needs;
                let demand = Demand::of_model(model, &Params::default(), offer.picture, table);
                self.choose_queue(model, &self.learned.need(model, &demand))
            }
            Some(_) | None => offer.queue.clone(),
        }
    }

    fn choose_queue(&self, model: &ModelName, need: &Need) -> QueueName {
        let wait_ms = |queue: &QueueName| self.expected_wait_in(queue, Some(model));
        queue_choice::choose(&self.settings.routes, model, need, wait_ms)
    }

    /// Nodes of another queue may take tasks that waited long enough, also those that wait for a slot of a busy node:
    /// an idle node of that queue takes them from there.
    pub(crate) fn spill_due(&mut self) {
        let mut spilled = Vec::new();
        while let Some(id) = self.timers.due_spill(self.clock.elapsed_ms()) {
            let is_running = self.is_running(id);
            let task = self.tasks.get_mut(id).expect("timers are of unfinished tasks");
            let due_ms = self.timers.stop_spill(task).unwrap_or_default();
            let hops = self.settings.routes.spills(&task.spec().queue);
            let mut left = hops.iter().skip(task.spilled_to().len());
            let Some(hop) = left.next().filter(|_| !is_running) else { continue };
            tracing::info!(
                task.id = %id, queue = %task.spec().queue, to = %hop.to, waited_ms = hop.waited_ms,
                "task waited: nodes of another queue may take it"
            );
            fault!(self, SpillForgotten => continue);
            self.ready.spill(task, hop.to.clone());
            if let Some(next) = left.next() {
                self.timers.start_spill(task, due_ms.saturating_add(next.waited_ms - hop.waited_ms));
            }
            spilled.push(id);
        }
        // All of them first: the best one goes first.
        spilled.into_iter().for_each(|id| self.dispatch_task(id));
    }

    /// Whether a slot has begun with a task, as far as is known.
    fn is_running(&self, id: TaskId) -> bool {
        let Some(lease) = self.tasks.get(id).and_then(Task::lease) else { return false };
        let holder = self.sessions.get(lease.session);
        holder.is_some_and(|session| session.on_overlap().iter().all(|unbegun| unbegun.token != lease.token))
    }

    /// Gives waiting tasks to all nodes that can take some: less memory is needed than before.
    pub(crate) fn dispatch_to_all(&mut self) {
        let able = self.sessions.values().filter(|session| session.has_credit());
        let able: Vec<_> = able.map(|session| session.id()).collect();
        able.into_iter().for_each(|session| self.dispatch_to(session));
    }
}
