//! Effects of planted faults. Only `fault!` calls these methods.

use lamagrid_domain::{Durability, LeaseToken, SessionId, TaskId};
use lamagrid_protocol::message::{AttemptOutcome, Delivery};

use crate::core::fault::Fault;
use crate::core::{Core, Effect, StoreOp};

impl Core {
    /// [`Fault::StaleAccepted`]: the task that any session may deliver under this token.
    pub(crate) fn stale_task(&self, token: LeaseToken) -> Option<TaskId> {
        let id = self.task_of(token).filter(|id| self.faults.is_planted_at(Fault::StaleAccepted, *id))?;
        self.tasks[id].lease().map(|_| id)
    }

    /// [`Fault::StaleAccepted`] under real load, where a lost attempt has to survive to be delivered late.
    pub(crate) fn keeps_stale(&self, token: LeaseToken) -> bool {
        let id = self.task_of(token).filter(|_| cfg!(feature = "sabotage"));
        id.is_some_and(|id| self.faults.is_planted_at(Fault::StaleAccepted, id))
    }

    /// [`Fault::DoubleAccept`]: a second delivery of a finished task is recorded as well.
    pub(crate) fn accept_again(&mut self, delivery: &Delivery) {
        let Some(id) = self.leases.task_of(delivery.token) else { return };
        let AttemptOutcome::Done { result, .. } = &delivery.outcome else { return };
        let Some(ended) = self.retention.overwrite_result(id, result) else { return };
        let (info, durability) = (Box::new(ended.info(id)), Durability::Full);
        let totals = self.statistics.count(&ended);
        self.emit(Effect::Store(StoreOp::End { id, ended, place: None, durability, totals }));
        self.emit(Effect::Finished(info));
    }

    /// [`Fault::RecallUnsent`]: the recall is noted, and the node is not asked.
    pub(crate) fn note_recall(&mut self, holder: SessionId, token: LeaseToken) {
        if let Some(session) = self.sessions.get_mut(holder) {
            session.mark_recalled(token);
        }
    }
}
