//! Which task goes to which session: priorities, credit, affinity.
//!
//! Nothing is assigned without credit. A session's first credits stand for idle slots; the others, up to its overlap,
//! for tasks that it prepares meanwhile. An overlap credit is used only if no session that may have the task has a
//! first one: no task waits behind a busy node while another fitting one is idle. `recall`
//! corrects a choice that turns out wrong later.
//!
//! An isolated task shared a node with others when the node was lost. It goes only to a session that has nothing else,
//! and that session gets nothing else meanwhile. If all are busy, the one with the least work is kept free for it.

use lamagrid_domain::{SessionId, TaskId};

use super::routing;

#[cfg(any(test, feature = "sabotage"))]
use crate::core::fault::Faults;
use crate::core::state::circuit_breaker::CircuitBreaker;
use crate::core::state::leases::Leases;
use crate::core::state::model_queue::Rank;
use crate::core::state::pauses::Pauses;
use crate::core::state::ready_queue::ReadyQueue;
use crate::core::state::session::Session;
use crate::core::state::sessions::Sessions;
use crate::core::state::task::Task;
use crate::core::state::task_table::TaskTable;

/// The parts that placement reads, at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Placement<'a> {
    pub(crate) clock_ms: u64,
    /// A session that was silent for this long gets no new task.
    pub(crate) suspect_after_ms: u64,
    pub(crate) tasks: &'a TaskTable,
    pub(crate) ready: &'a ReadyQueue,
    pub(crate) paused: &'a Pauses,
    pub(crate) sessions: &'a Sessions,
    pub(crate) leases: &'a Leases,
    pub(crate) breaker: &'a CircuitBreaker,
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) faults: Faults,
}

impl<'a> Placement<'a> {
    /// The session that a waiting task goes to now.
    pub(crate) fn best_for(self, id: TaskId) -> Option<SessionId> {
        let task = self.tasks.get(id).filter(|task| task.not_before_ms().is_some())?;
        if self.paused.contains(&task.spec().queue) {
            return None;
        }
        let can_take = self.sessions.values().filter(|s| self.can_take(s) && self.may_be_given(task, s));
        // An idle slot beats everything else. Then a model in memory beats one that must be loaded; then fewer tasks
        // that wait for a slot there; then the session that was given nothing for longest.
        can_take
            .min_by_key(|s| {
                (
                    self.would_wait_on(s),
                    !s.has_loaded(&task.spec().model),
                    s.waiting(),
                    s.last_assigned_ms(),
                    s.id(),
                )
            })
            .map(Session::id)
    }

    /// The best of these sessions, which have idle slots.
    pub(crate) fn best_idle_for(
        self,
        task: &Task,
        idle: impl Iterator<Item = SessionId>,
    ) -> Option<SessionId> {
        let fitting = idle.filter_map(|id| self.sessions.get(id)).filter(|s| self.may_be_given(task, s));
        let best = fitting.min_by_key(|s| (!s.has_loaded(&task.spec().model), s.last_assigned_ms(), s.id()));
        best.map(Session::id)
    }

    /// The task that a session is given next.
    pub(crate) fn next_for(self, session: SessionId) -> Option<TaskId> {
        let session = self.sessions.get(session).filter(|s| self.can_take(s))?;
        let kept_free_for = self.kept_free_for(session);
        let offers = session.info().models.iter().filter(|offer| !self.paused.contains(&offer.queue));
        let first_of_each = offers.filter_map(|offer| {
            let can_run_now = |id| session.is_unused() || !self.runs_alone(id);
            let may_have = |id| self.may_have(&self.tasks[id], session);
            self.ready.first(&offer.queue, &offer.model, can_run_now, may_have)
        });
        let first = first_of_each.min().filter(|rank| {
            let isolated = kept_free_for.as_ref();
            isolated.is_none_or(|isolated| rank < isolated || self.tasks.is_isolated(rank.task()))
        });
        first.map(|rank| rank.task())
    }

    /// Whether a task that is given to this session waits for a slot.
    fn would_wait_on(self, session: &Session) -> bool {
        fault!(self, OverlapFirst => return session.idle_slots() > 0);
        session.idle_slots() == 0
    }

    /// Whether a session that can take a task may be given this one now.
    pub(crate) fn may_be_given(self, task: &Task, session: &Session) -> bool {
        self.fits(task, session)
            && if self.runs_alone(task.id()) {
                session.is_unused()
            } else {
                self.kept_free_for(session).is_none_or(|isolated| self.ready.rank(task) < isolated)
            }
    }

    fn runs_alone(self, id: TaskId) -> bool {
        fault!(self, SuspectInCompany => return false);
        self.tasks.is_isolated(id)
    }

    /// The rank of the first isolated task for which a session is kept free: tasks behind it go elsewhere.
    fn kept_free_for(self, session: &Session) -> Option<Rank> {
        let waiting = self.tasks.isolated().filter(|task| {
            task.is_ready(self.clock_ms)
                && !self.paused.contains(&task.spec().queue)
                && self.runs_alone(task.id())
                && self.fits(task, session)
        });
        waiting
            .filter(|task| self.soonest_unused(task).is_some_and(|s| s.id() == session.id()))
            .map(|task| self.ready.rank(task))
            .min()
    }

    /// The session with the least work of those that a task can run on.
    fn soonest_unused(self, task: &Task) -> Option<&'a Session> {
        let able = self.sessions.values().filter(|s| self.is_able(s) && self.fits(task, s));
        able.min_by_key(|s| (s.used(), s.id()))
    }

    /// Whether a session has an isolated task, and gets no other one meanwhile.
    fn is_isolating(self, session: &Session) -> bool {
        fault!(self, SuspectInCompany => return false);
        let is_isolated = |token| self.leases.task_of(token).is_some_and(|id| self.tasks.is_isolated(id));
        self.tasks.has_isolated() && session.tokens().any(is_isolated)
    }

    /// Whether a session serves a task and may have it.
    pub(crate) fn fits(self, task: &Task, session: &Session) -> bool {
        session.offers(&task.spec().queue, &task.spec().model) && self.may_have(task, session)
    }

    /// Whether a session may be given one more task now.
    pub(crate) fn can_take(self, session: &Session) -> bool {
        session.has_credit() && self.is_able(session) && !self.is_isolating(session)
    }

    /// Whether a session gets new tasks, apart from its credit.
    fn is_able(self, session: &Session) -> bool {
        session.lanes_connected()
            && !session.is_draining()
            && !self.is_suspect(session)
            && self.breaker.allows(session.node(), self.clock_ms)
    }

    /// Whether a session was silent for too long to get new tasks.
    pub(crate) fn is_suspect(self, session: &Session) -> bool {
        session.silent_ms(self.clock_ms) >= self.suspect_after_ms
    }

    /// A node that failed this task for its own reasons gets it again only if no other node can run it.
    fn may_have(self, task: &Task, session: &Session) -> bool {
        !task.avoids(session.node()) || !routing::has_other_node(self.sessions, self.breaker, task)
    }
}
