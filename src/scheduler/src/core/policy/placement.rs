//! Which task goes to which session: priorities, credit, affinity.
//!
//! Nothing is assigned without credit. A session's first credits stand for idle slots; the others, up to its overlap,
//! for tasks that it prepares meanwhile. An overlap credit is used only if no session that may have the task has a
//! first one: no task waits behind a busy node while another fitting one is idle. `recall`
//! corrects a choice that turns out wrong later.
//!
//! A task fits a session that serves its model, whose device is of the class and has the memory that it needs. Of idle
//! slots, one with the model in memory is best, then one with room to load it beside the others.
//!
//! An isolated task shared a node with others when the node was lost. It goes only to a session that has nothing else,
//! and that session gets nothing else meanwhile. If all are busy, the one with the least work is kept free for it.
//!
//! A task that fits a session with several slots, and not beside the attempts there, is overtaken by smaller ones for as
//! long as any task may be held up. Then the session where it would be overtaken next is kept free for it: only tasks of a
//! higher priority, or in front of it among those of its owner, go there until it fits.

use std::cell::Ref;

use lamagrid_domain::{ModelOffer, QueueName, SessionId, TaskId};

use super::needs::Need;
use super::route_table::RouteTable;
#[cfg(any(test, feature = "sabotage"))]
use crate::core::fault::Faults;
use crate::core::state::circuit_breaker::CircuitBreaker;
use crate::core::state::learned_needs::LearnedNeeds;
use crate::core::state::leases::Leases;
use crate::core::state::model_queue::Rank;
use crate::core::state::pauses::Pauses;
use crate::core::state::ready_queue::{Listed, ReadyQueue};
use crate::core::state::reservations::Reservations;
use crate::core::state::session::Session;
use crate::core::state::sessions::Sessions;
use crate::core::state::taken_memory::TakenMemory;
use crate::core::state::task::Task;
use crate::core::state::task_table::TaskTable;

/// The parts that placement reads, at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Placement<'a> {
    pub(crate) clock_ms: u64,
    /// A session that was silent for this long gets no new task.
    pub(crate) suspect_after_ms: u64,
    /// Tasks of models that are not in memory, and those that have no room, are held up for at most this long by others.
    pub(crate) warm_first_ms: u64,
    pub(crate) routes: &'a RouteTable,
    pub(crate) learned: &'a LearnedNeeds,
    pub(crate) tasks: &'a TaskTable,
    pub(crate) ready: &'a ReadyQueue,
    pub(crate) paused: &'a Pauses,
    pub(crate) sessions: &'a Sessions,
    pub(crate) leases: &'a Leases,
    pub(crate) breaker: &'a CircuitBreaker,
    pub(crate) reserved: &'a Reservations,
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) faults: Faults,
}

/// The drawbacks of a session that could take a task, the most important one first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct NodeCost {
    would_wait: bool,
    /// See [`load_cost`].
    load: u8,
    /// Tasks that wait for a slot there.
    waiting: u64,
}

impl<'a> Placement<'a> {
    /// The session that a waiting task goes to now.
    pub(crate) fn best_for(self, id: TaskId) -> Option<SessionId> {
        let task = self.tasks.get(id).filter(|task| task.not_before_ms().is_some())?;
        if self.paused.contains(&task.spec().queue) {
            return None;
        }
        let need = self.need(task);
        let with_credit = self.sessions.with_credit();
        let able = with_credit.filter(|s| self.can_take(s) && self.may_be_given_now(task, &need, s));
        let mut best: Option<(NodeCost, SessionId)> = None;
        for session in able {
            let cost = NodeCost {
                would_wait: self.would_wait_on(session),
                load: load_cost(task, &need, session),
                waiting: session.waiting(),
            };
            // Of equal ones the first one counts: it was given nothing for longest.
            if best.is_none_or(|(lowest, _)| cost < lowest) {
                best = Some((cost, session.id()));
                if cost == NodeCost::default() {
                    break;
                }
            }
        }
        best.map(|(_, session)| session)
    }

    /// The best of these sessions, which have idle slots.
    pub(crate) fn best_idle_for(
        self,
        task: &Task,
        idle: impl Iterator<Item = SessionId>,
    ) -> Option<SessionId> {
        let need = self.need(task);
        let fitting =
            idle.filter_map(|id| self.sessions.get(id)).filter(|s| self.may_be_given_now(task, &need, s));
        let best = fitting.min_by_key(|s| (load_cost(task, &need, s), s.last_assigned_ms(), s.id()));
        best.map(Session::id)
    }

    /// The task that a session is given next.
    pub(crate) fn next_for(self, session: SessionId) -> Option<TaskId> {
        let session = self.sessions.get(session).filter(|s| self.can_take(s))?;
        let kept_free_for = self.kept_free_for(session);
        let reserved_for = self.reserved_for(session);
        // Tasks that do not fit are passed over, however many there are: a smaller one behind them must not wait.
        let can_run_now = |id| {
            let task = &self.tasks[id];
            let need = self.need(task);
            (session.is_unused() || !self.runs_alone(id))
                && reserved_for.is_none_or(|reserved| may_use_reserved(task, reserved))
                && self.can_do(task, &need, session)
                && (!is_outgrown(&need, session) || !self.has_other_node(task))
                && self.has_room_beside_others(task, session)
        };
        let first = |Source { listed, queue, offer }| {
            let least = self.ready.smallest(listed, queue, &offer.model)?;
            let could_do = self.is_enough(&self.learned.need(&offer.model, least), 0, session);
            let may_have = |id| self.does_not_avoid(id, session);
            could_do.then(|| self.ready.first(listed, queue, &offer.model, can_run_now, may_have)).flatten()
        };
        let is_allowed = |rank: &Rank| {
            let isolated = kept_free_for.as_ref();
            isolated.is_none_or(|isolated| rank < isolated || self.tasks.is_isolated(rank.task()))
        };
        let firsts = self.sources(session).filter_map(|source| Some((first(source)?, source.offer.loaded)));
        let firsts: Vec<_> = firsts.filter(|(rank, _)| is_allowed(rank)).collect();
        let (best, _) = firsts.iter().min()?;
        let warm = firsts.iter().filter(|(rank, is_loaded)| *is_loaded && rank.has_priority_of(best));
        let warm = warm.map(|(rank, _)| rank).min();
        let may_go_first = |warm: &&Rank| {
            let mut passed = firsts.iter().map(|(rank, _)| rank).filter(|rank| rank < warm);
            passed.all(|rank| self.may_be_held_up(rank.task()))
        };
        Some(warm.filter(may_go_first).unwrap_or(best).task())
    }

    /// The waiting tasks that a session may be given, by queue and model.
    fn sources(self, session: &'a Session) -> impl Iterator<Item = Source<'a>> {
        let is_open = move |queue: &&QueueName| !self.paused.contains(queue);
        let own = session.served().filter(move |(_, queue)| is_open(queue));
        let own = own.map(|(offer, queue)| Source { listed: Listed::Waiting, queue, offer });
        let spilled = session.served().flat_map(move |(offer, queue)| {
            let from = self.routes.spilling_into(queue).filter(is_open);
            from.map(move |from| Source { listed: Listed::SpilledTo(queue), queue: from, offer })
        });
        own.chain(spilled)
    }

    /// Whether a task may go to the node of a session, since it has not failed there or there is no other node.
    fn does_not_avoid(self, id: TaskId, session: &Session) -> bool {
        let task = &self.tasks[id];
        !task.avoids(session.node()) || !self.has_other_node(task)
    }

    /// Whether tasks of models in memory may be served before this one: it waits only for its turn, and not for long.
    fn may_be_held_up(self, id: TaskId) -> bool {
        fault!(self, WarmForever => return !self.tasks.is_isolated(id));
        !self.tasks.is_isolated(id) && self.tasks[id].waited_ms(self.clock_ms) < self.warm_first_ms
    }

    /// Whether a task that is given to this session waits for a slot.
    fn would_wait_on(self, session: &Session) -> bool {
        fault!(self, OverlapFirst => return session.idle_slots() > 0);
        session.idle_slots() == 0
    }

    /// Whether a session that can take a task may be given this one now.
    #[cfg(test)]
    pub(crate) fn may_be_given(self, task: &Task, session: &Session) -> bool {
        self.may_be_given_now(task, &self.need(task), session)
    }

    fn may_be_given_now(self, task: &Task, need: &Need, session: &Session) -> bool {
        self.fits_need(task, need, session)
            && self.has_room_beside_others(task, session)
            && self.reserved_for(session).is_none_or(|reserved| may_use_reserved(task, reserved))
            && if self.runs_alone(task.id()) {
                session.is_unused()
            } else {
                self.kept_free_for(session).is_none_or(|isolated| self.ready.rank(task) < isolated)
            }
    }

    /// The need of a task, corrected by what nodes reported about its model.
    pub(crate) fn need(self, task: &Task) -> Need {
        self.learned.need(&task.spec().model, task.demand())
    }

    /// Whether the device of a session with several slots has room for a task beside those that are there: a model
    /// cannot leave memory while it is in use.
    fn has_room_beside_others(self, task: &Task, session: &Session) -> bool {
        if !has_shared_memory(session) {
            return true;
        }
        let need = self.need(task);
        session.running() == 0
            || session.has_memory(self.taken_on(session).bytes_with(task, need.memory_bytes))
    }

    /// The memory that the attempts of a session take together.
    fn taken_on(self, session: &Session) -> Ref<'_, TakenMemory> {
        session.taken_memory(self.learned.version(), || self.sum_of_attempts(session))
    }

    fn sum_of_attempts(self, session: &Session) -> TakenMemory {
        let mut taken = TakenMemory::default();
        for task in session.tokens().filter_map(|token| self.tasks.get(self.leases.task_of(token)?)) {
            taken.add(task, self.need(task).memory_bytes);
        }
        taken
    }

    /// The cached figure equals a new sum.
    #[cfg(test)]
    pub(crate) fn check_taken(self, session: &Session) -> Result<(), String> {
        let (cached, sum) = (self.taken_on(session), self.sum_of_attempts(session));
        invariant!(*cached == sum, "{} is taken to have {:?}, and has {sum:?}", session.node(), *cached);
        Ok(())
    }

    /// The task for which a session has to be kept free, and is not yet, before `next` goes there. It is the first one of
    /// those that `next` would overtake because they have no room, and that have been held up for long.
    pub(crate) fn crowded_out(self, next: TaskId, session: &'a Session) -> Option<TaskId> {
        fault!(self, CrowdedOut => return None);
        if !has_shared_memory(session) || session.is_unused() {
            return None;
        }
        let taken = self.taken_on(session).bytes();
        let is_held_up = |id| {
            let task = &self.tasks[id];
            let need = self.need(task);
            task.waited_ms(self.clock_ms) >= self.warm_first_ms
                && !self.runs_alone(id)
                && self.fits_need(task, &need, session)
                && !self.has_room_beside_others(task, session)
                && !self.has_reservation(task)
        };
        let first = |Source { listed, queue, offer }| {
            let most = self.learned.need(&offer.model, self.ready.largest(listed, queue, &offer.model)?);
            let may_lack_room = !session.has_memory(taken.saturating_add(most.memory_bytes));
            may_lack_room
                .then(|| self.ready.first(listed, queue, &offer.model, is_held_up, |_| true))
                .flatten()
        };
        // A better one takes the place of the task for which the session is kept free.
        let of_reserved = self.reserved_for(session).map(|reserved| self.ready.rank(reserved));
        let rank = self.ready.rank(&self.tasks[next]);
        let before = of_reserved.into_iter().fold(rank, Rank::min);
        self.sources(session)
            .filter_map(first)
            .filter(|held_up| *held_up < before)
            .min()
            .map(|first| first.task())
    }

    /// The waiting task for which a session is kept free until it fits there.
    pub(crate) fn reserved_for(self, session: &Session) -> Option<&'a Task> {
        let task = self.tasks.get(self.reserved.of_session(session.id())?)?;
        let waits = task.is_ready(self.clock_ms) && !self.paused.contains(&task.spec().queue);
        (waits && self.fits(task, session)).then_some(task)
    }

    /// Whether a session that can take tasks is kept free for this one.
    pub(crate) fn has_reservation(self, task: &Task) -> bool {
        let session = self.reserved.of_task(task.id()).and_then(|session| self.sessions.get(session));
        session.is_some_and(|session| self.is_able(session) && self.reserved_for(session).is_some())
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

    /// Whether a session can do a task and may have it.
    pub(crate) fn fits(self, task: &Task, session: &Session) -> bool {
        self.fits_need(task, &self.need(task), session)
    }

    fn fits_need(self, task: &Task, need: &Need, session: &Session) -> bool {
        self.can_do(task, need, session) && self.may_have(task, need, session)
    }

    /// Whether a session serves a task and its device is enough for it.
    pub(crate) fn can_do(self, task: &Task, need: &Need, session: &Session) -> bool {
        session.service_of(task).is_some_and(|service| self.is_enough(need, service.model_bytes, session))
    }

    /// Whether the device of a session is enough for a need and for a model of this size.
    fn is_enough(self, need: &Need, model_bytes: u64, session: &Session) -> bool {
        fault!(self, FitIgnored => return true);
        need.device.is_none_or(|device| device == session.info().device_class())
            && session.has_memory(need.memory_bytes.max(model_bytes))
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

    /// A node that failed this task for its own reasons, or has no more memory than tasks as large ran out of, gets it
    /// only if no other node can run it.
    fn may_have(self, task: &Task, need: &Need, session: &Session) -> bool {
        !is_avoided(task, need, session) || !self.has_other_node(task)
    }

    /// Whether a healthy node that the task does not avoid can run it.
    pub(crate) fn has_other_node(self, task: &Task) -> bool {
        let need = self.need(task);
        self.sessions.values().any(|session| {
            !session.is_draining()
                && self.can_do(task, &need, session)
                && !is_avoided(task, &need, session)
                && !self.breaker.is_aside(session.node())
        })
    }
}

/// Tasks of one queue and model that a session serves.
#[derive(Clone, Copy)]
struct Source<'a> {
    listed: Listed<'a>,
    queue: &'a QueueName,
    offer: &'a ModelOffer,
}

/// Whether several attempts share the memory of a session's device.
fn has_shared_memory(session: &Session) -> bool {
    session.slots() > 1 && session.info().memory_bytes > 0
}

/// Whether a task may go to a session that is kept free for another one: it is more important, or its owner's and in front
/// of it.
fn may_use_reserved(task: &Task, reserved: &Task) -> bool {
    let (spec, of) = (task.spec(), reserved.spec());
    let is_in_front = task.priority() == reserved.priority()
        && (&spec.queue, &spec.owner) == (&of.queue, &of.owner)
        && (task.tag(), task.seq()) < (reserved.tag(), reserved.seq());
    task.id() == reserved.id() || task.priority() > reserved.priority() || is_in_front
}

fn is_avoided(task: &Task, need: &Need, session: &Session) -> bool {
    is_outgrown(need, session) || task.avoids(session.node())
}

/// Whether a task as large ran out of as much memory.
fn is_outgrown(need: &Need, session: &Session) -> bool {
    need.outgrown_bytes > 0 && !session.has_memory(need.outgrown_bytes.saturating_add(1))
}

/// The cost of having the model in memory: nothing, a load, or a load for which another model leaves.
fn load_cost(task: &Task, need: &Need, session: &Session) -> u8 {
    if session.has_loaded(&task.spec().model) {
        0
    } else if session.has_free_memory(need.memory_bytes) {
        1
    } else {
        2
    }
}
