//! Nodes that are kept free for tasks which need more of their memory than the others leave.

use std::collections::BTreeMap;

use lamagrid_domain::{SessionId, TaskId};

/// The waiting task for which each session is kept free.
///
/// Invariant: at most one session is kept for a task, and only while the task is queued.
#[derive(Debug, Default)]
pub(crate) struct Reservations(BTreeMap<SessionId, TaskId>);

impl Reservations {
    /// Keeps a session free for a task, and for no other one; the task's last session is free for all again.
    pub(crate) fn keep(&mut self, session: SessionId, task: TaskId) {
        self.release_task(task);
        self.0.insert(session, task);
    }

    pub(crate) fn of_session(&self, session: SessionId) -> Option<TaskId> {
        self.0.get(&session).copied()
    }

    pub(crate) fn of_task(&self, task: TaskId) -> Option<SessionId> {
        self.0.iter().find(|(_, of)| **of == task).map(|(session, _)| *session)
    }

    /// A task left its queue.
    pub(crate) fn release_task(&mut self, task: TaskId) {
        self.0.retain(|_, of| *of != task);
    }

    /// A session ended.
    pub(crate) fn release_session(&mut self, session: SessionId) {
        self.0.remove(&session);
    }

    #[cfg(test)]
    pub(crate) fn check(
        &self,
        is_queued: impl Fn(TaskId) -> bool,
        is_open: impl Fn(SessionId) -> bool,
    ) -> Result<(), String> {
        let mut kept: Vec<_> = self.0.values().collect();
        kept.sort_unstable();
        kept.dedup();
        invariant!(kept.len() == self.0.len(), "two sessions are kept for a task: {:?}", self.0);
        let wrong = self.0.iter().find(|(session, task)| !is_queued(**task) || !is_open(**session));
        invariant!(wrong.is_none(), "{wrong:?} is kept, and the task is not queued or the session over");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::spec;

    #[test]
    fn a_task_has_one_session_at_most_until_it_leaves_its_queue() {
        let [first, second] = [1, 2].map(|n| SessionId::from_bytes([n; 16]));
        let [task, other] = [1, 2].map(|n| spec(n).id);
        let mut reserved = Reservations::default();
        reserved.keep(first, task);
        reserved.keep(second, task);
        assert_eq!((reserved.of_session(first), reserved.of_task(task)), (None, Some(second)));
        reserved.keep(first, other);
        reserved.check(|_| true, |_| true).unwrap();
        reserved.release_task(task);
        reserved.release_session(first);
        assert_eq!((reserved.of_session(first), reserved.of_session(second)), (None, None));
    }
}
