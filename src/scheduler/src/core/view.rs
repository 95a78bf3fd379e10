//! A read-only view of the core for the simulation.

use lamagrid_domain::{LeaseToken, NodeName, SessionId, TaskId};

use super::Core;
use super::state::session::Session;
use super::state::task::Task;

/// A read-only view of the core between two inputs.
#[derive(Clone, Copy)]
pub(crate) struct View<'a>(pub(super) &'a Core);

impl<'a> View<'a> {
    /// The lease clock.
    pub(crate) fn elapsed_ms(self) -> u64 {
        self.0.clock.elapsed_ms()
    }

    pub(crate) fn tasks(self) -> impl Iterator<Item = &'a Task> {
        self.0.tasks.values()
    }

    pub(crate) fn task(self, id: TaskId) -> Option<&'a Task> {
        self.0.tasks.get(id)
    }

    /// The unfinished task of this attempt.
    pub(crate) fn task_of(self, token: LeaseToken) -> Option<&'a Task> {
        self.0.task_of(token).and_then(|id| self.task(id))
    }

    /// Whether a task waits for its next attempt, or did when the last tick looked.
    pub(crate) fn is_delayed(self, task: &Task) -> bool {
        let Some(at) = task.not_before_ms() else { return false };
        at > self.elapsed_ms() || self.0.ready.is_delayed(task)
    }

    pub(crate) fn has_finished(self, id: TaskId) -> bool {
        self.0.retention.contains(id)
    }

    pub(crate) fn finished_tasks(self) -> usize {
        self.0.retention.len()
    }

    pub(crate) fn sessions(self) -> impl ExactSizeIterator<Item = &'a Session> {
        self.0.sessions.values()
    }

    pub(crate) fn session(self, id: SessionId) -> Option<&'a Session> {
        self.0.sessions.get(id)
    }

    /// Nodes that are drained or removed.
    pub(crate) fn ordered_nodes(self) -> impl Iterator<Item = &'a NodeName> {
        self.0.orders.names()
    }

    pub(crate) fn is_suspect(self, session: &Session) -> bool {
        self.0.placement().is_suspect(session)
    }

    /// Whether a queued task waits for a node, in a queue that is not paused, and may run beside others.
    pub(crate) fn waits_for_a_node(self, task: &Task) -> bool {
        task.not_before_ms().is_some()
            && !self.is_delayed(task)
            && !self.0.paused.contains(&task.spec().queue)
            && !self.0.tasks.has_isolated()
    }

    /// Whether no task as large ran out of memory.
    pub(crate) fn is_unburdened(self, task: &Task) -> bool {
        self.0.placement().need(task).outgrown_bytes == 0
    }

    /// The session that is kept free for a waiting task, and for no other one.
    pub(crate) fn kept_free_for(self, id: TaskId) -> Option<SessionId> {
        let (session, task) = (self.0.reserved.of_task(id)?, self.task(id)?);
        self.0.placement().has_reservation(task).then_some(session)
    }

    pub(crate) fn can_take(self, session: &Session) -> bool {
        self.0.placement().can_take(session)
    }

    pub(crate) fn may_be_given(self, task: &Task, session: &Session) -> bool {
        self.0.placement().may_be_given(task, session)
    }
}
