//! Which task goes to which session: priorities, credit, affinity.
//!
//! Nothing is assigned without credit. A session's first credits stand for idle slots; the others, up to its overlap,
//! for tasks that it prepares meanwhile. A task is given on such an overlap credit only where no session that may have
//! it has a first one: no task waits behind a busy node while another fitting one is idle. What changes afterwards is
//! put right by `recall`.
//!
//! An isolated task, which shared a node with others when it was lost, goes only to a session that has nothing else,
//! and that session gets nothing else meanwhile. Where all are busy, the one with the least work is kept free for it.

use lamagrid_domain::{SessionId, TaskId};

use crate::core::Core;
use crate::core::state::model_queue::Rank;
use crate::core::state::session::Session;
use crate::core::state::task::Task;

impl Core {
    /// The session that a waiting task goes to now.
    pub(crate) fn best_for(&self, id: TaskId) -> Option<SessionId> {
        let task = self.tasks.get(id).filter(|task| task.not_before_ms().is_some())?;
        if self.paused.contains(&task.spec().queue) {
            return None;
        }
        let can_take = self.sessions.values().filter(|s| self.can_take(s) && self.may_be_given(task, s));
        // An idle slot beats all else. Then a model in memory beats one that must be loaded; then fewer tasks that
        // wait for a slot there; then whoever was given nothing for longest.
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
            .map(|s| s.id())
    }

    /// Whether a task that is given to this session waits for a slot.
    fn would_wait_on(&self, session: &Session) -> bool {
        fault!(self, OverlapFirst => return session.idle_slots() > 0);
        session.idle_slots() == 0
    }

    /// Whether a session that can take a task may be given this one now.
    pub(crate) fn may_be_given(&self, task: &Task, session: &Session) -> bool {
        self.fits(task, session)
            && if self.runs_alone(task) {
                session.is_unused()
            } else {
                self.kept_free_for(session).is_none_or(|isolated| self.ready.rank(task) < isolated)
            }
    }

    fn runs_alone(&self, task: &Task) -> bool {
        fault!(self, SuspectInCompany => return false);
        self.tasks.is_isolated(task.id())
    }

    /// Where the first isolated task stands for which a session is kept free: what stands behind it goes elsewhere.
    fn kept_free_for(&self, session: &Session) -> Option<Rank> {
        let waiting = self.tasks.isolated().filter(|task| {
            task.is_ready(self.clock.elapsed_ms())
                && !self.paused.contains(&task.spec().queue)
                && self.runs_alone(task)
                && self.fits(task, session)
        });
        waiting
            .filter(|task| self.soonest_unused(task).is_some_and(|s| s.id() == session.id()))
            .map(|task| self.ready.rank(task))
            .min()
    }

    /// The session with the least work of those that a task can run on.
    fn soonest_unused(&self, task: &Task) -> Option<&Session> {
        let works = |s: &&Session| {
            s.lanes_connected()
                && !s.is_draining()
                && !self.is_suspect(s)
                && self.breaker.may_work(s.node(), self.clock.elapsed_ms())
                && self.fits(task, s)
        };
        self.sessions.values().filter(works).min_by_key(|s| (s.used(), s.id()))
    }

    /// Whether a session has an isolated task, and gets no other one meanwhile.
    fn is_isolating(&self, session: &Session) -> bool {
        fault!(self, SuspectInCompany => return false);
        let is_isolated = |token| self.leases.task_of(token).is_some_and(|id| self.tasks.is_isolated(id));
        self.tasks.has_isolated() && session.tokens().any(is_isolated)
    }

    /// Whether a session serves a task and may have it.
    pub(crate) fn fits(&self, task: &Task, session: &Session) -> bool {
        session.offers(&task.spec().queue, &task.spec().model) && self.may_have(task, session)
    }

    /// The task that a session is given next.
    pub(crate) fn next_for(&self, session: SessionId) -> Option<TaskId> {
        let session = self.sessions.get(session).filter(|s| self.can_take(s))?;
        let kept_free_for = self.kept_free_for(session);
        let models = session.info().models.iter();
        models
            .filter(|offer| !self.paused.contains(&offer.queue))
            .filter_map(|offer| {
                let can_run_now = |id| session.is_unused() || !self.runs_alone(&self.tasks[id]);
                let may_have = |id| self.may_have(&self.tasks[id], session);
                self.ready.first(&offer.queue, &offer.model, can_run_now, may_have)
            })
            .min()
            .filter(|rank| {
                let isolated = kept_free_for.as_ref();
                isolated.is_none_or(|isolated| rank < isolated || self.tasks.is_isolated(rank.task()))
            })
            .map(|rank| rank.task())
    }

    /// Whether a session may be given one more task now.
    pub(crate) fn can_take(&self, session: &Session) -> bool {
        session.has_credit()
            && session.lanes_connected()
            && !session.is_draining()
            && !self.is_suspect(session)
            && self.breaker.may_work(session.node(), self.clock.elapsed_ms())
            && !self.is_isolating(session)
    }

    /// Whether nothing was heard of a session for so long that it gets no new work.
    pub(crate) fn is_suspect(&self, session: &Session) -> bool {
        session.silent_ms(self.clock.elapsed_ms()) >= self.settings.scheduler.suspect_after_ms
    }

    /// A node that failed this task for its own reasons gets it again only where nobody else can.
    fn may_have(&self, task: &Task, session: &Session) -> bool {
        !task.avoids(session.node()) || !self.has_other_node(task)
    }

    /// Whether a live node that the task does not avoid serves its model.
    pub(crate) fn has_other_node(&self, task: &Task) -> bool {
        self.sessions.values().any(|s| {
            !s.is_draining()
                && s.offers(&task.spec().queue, &task.spec().model)
                && !task.avoids(s.node())
                && !self.breaker.is_aside(s.node())
        })
    }
}
