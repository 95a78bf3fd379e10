//! Chooses the queues of tasks, and gives tasks to nodes of other queues once they have waited.

use lamagrid_domain::{Failure, ModelName, Params, QueueName, TaskSpec};
use lamagrid_protocol::message::Offer;

use crate::core::Core;
use crate::core::policy::needs::{Demand, Need};
use crate::core::policy::queue_choice;

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

    /// Nodes of another queue may take tasks that waited long enough.
    pub(crate) fn spill_due(&mut self) {
        let mut spilled = Vec::new();
        while let Some(id) = self.timers.due_spill(self.clock.elapsed_ms()) {
            let task = self.tasks.get_mut(id).expect("timers are of unfinished tasks");
            self.timers.stop_spill(task);
            let hops = self.settings.routes.spills(&task.spec().queue);
            let mut left = hops.iter().skip(task.spilled_to().len());
            let Some(hop) = left.next() else { continue };
            tracing::info!(
                task.id = %id, queue = %task.spec().queue, to = %hop.to, waited_ms = hop.waited_ms,
                "task waited: nodes of another queue may take it"
            );
            fault!(self, SpillForgotten => continue);
            self.ready.spill(task, hop.to.clone());
            if let Some(next) = left.next() {
                self.timers.start_spill(task, next.waited_ms);
            }
            spilled.push(id);
        }
        // All of them first: the best one goes first.
        spilled.into_iter().for_each(|id| self.dispatch_task(id));
    }

    /// Gives waiting tasks to all nodes that can take some: less memory is needed than before.
    pub(crate) fn dispatch_to_all(&mut self) {
        let able = self.sessions.values().filter(|session| session.has_credit());
        let able: Vec<_> = able.map(|session| session.id()).collect();
        able.into_iter().for_each(|session| self.dispatch_to(session));
    }
}
