//! Defects that are planted on purpose: whoever checks the scheduler must see them.
//!
//! Compiled for tests, and with the feature `sabotage` for `make chaos SABOTAGE=...`; in nothing that is shipped.

#[cfg(feature = "sabotage")]
use lamagrid_domain::{Durability, LeaseToken, TaskId};
use lamagrid_protocol::message::{AttemptOutcome, Delivery};

use super::{Core, Effect, StoreOp};

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Followers are not told how their task ended.
    OutcomeDropped,
    /// A second delivery of an ended task is taken as well.
    DoubleAccept,
    /// An accepted task is not written.
    RowForgotten,
    /// A delivery is taken from somebody who does not hold the lease.
    StaleAccepted,
    /// Busy nodes are given tasks to prepare while others are idle.
    #[cfg(test)]
    OverlapFirst,
    /// What waits on a busy node is not asked for, though the core believes so.
    #[cfg(test)]
    RecallUnsent,
    /// The end of a node is held against each of the tasks that it had.
    #[cfg(test)]
    NeighbourCounted,
    /// A task that shared a node with others when it was lost is given to a node that has others again.
    #[cfg(test)]
    SuspectInCompany,
    /// The end of a node is held against none.
    #[cfg(test)]
    CrashUncounted,
    /// Another owner may bring inputs under an id that is taken.
    #[cfg(test)]
    UploadOfKnown,
    /// An upload counts against no bound.
    #[cfg(test)]
    UploadUncounted,
    /// Only clients have bounds, and no owner has.
    #[cfg(test)]
    OwnerUnbounded,
    /// A task's own run limit counts even where it is the longer one.
    #[cfg(test)]
    OwnLimitCounts,
    /// An id that is older than what is remembered counts as new.
    #[cfg(test)]
    WatermarkIgnored,
    /// The wall clock is believed whatever it shows.
    #[cfg(test)]
    ClockBelieved,
}

impl Fault {
    /// The fault that `make chaos` calls so.
    #[cfg(feature = "sabotage")]
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        match word {
            "drop-outcome" => Some(Self::OutcomeDropped),
            "double-accept" => Some(Self::DoubleAccept),
            "forget-row" => Some(Self::RowForgotten),
            "stale-accept" => Some(Self::StaleAccepted),
            _ => None,
        }
    }
}

impl Core {
    /// Whether a defect shows at this task. The simulation has it everywhere; under real load what leaves somebody
    /// waiting is at one in sixteen, or nothing would be left to see it by.
    pub(super) fn is_planted(&self, fault: Fault, id: TaskId) -> bool {
        let is_rare = !cfg!(test) && fault != Fault::DoubleAccept;
        self.fault == Some(fault) && (!is_rare || id.as_bytes()[0] < 16)
    }

    /// The same, by an attempt that the task had at some time.
    #[cfg(feature = "sabotage")]
    pub(super) fn is_planted_at(&self, fault: Fault, token: LeaseToken) -> bool {
        self.task_of(token).is_some_and(|id| self.is_planted(fault, id))
    }

    /// [`Fault::DoubleAccept`]: a second delivery of an ended task is taken as well.
    pub(super) fn accept_twice(&mut self, known: Option<TaskId>, delivery: &Delivery) {
        if !known.is_some_and(|id| self.is_planted(Fault::DoubleAccept, id)) {
            return;
        }
        let Some((id, ended)) = known.and_then(|id| Some((id, self.ended.get_mut(&id)?))) else { return };
        let AttemptOutcome::Done { result, .. } = &delivery.outcome else { return };
        ended.result = Some(result.clone());
        ended.finished_wall_ms += 1;
        let (ended, durability) = (Box::new(ended.clone()), Durability::Full);
        let info = Box::new(ended.info(id));
        self.emit(Effect::Store(StoreOp::End { id, ended, place: None, durability }));
        self.emit(Effect::Finished(info));
    }
}
