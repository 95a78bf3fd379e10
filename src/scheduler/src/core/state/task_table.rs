//! All tasks that have not ended, and the order in which they were accepted.

use std::collections::hash_map::Values;
use std::collections::{BTreeSet, HashMap};

use lamagrid_domain::TaskId;

use super::task::Task;

/// Unfinished tasks by id.
///
/// Invariant: each lies under its own id and was accepted before the next one; only known tasks are isolated.
#[derive(Default)]
pub(crate) struct TaskTable {
    tasks: HashMap<TaskId, Task>,
    /// Tasks that shared a node with others when it was lost: until its end each runs only alone.
    isolated: BTreeSet<TaskId>,
    next_seq: u64,
}

impl TaskTable {
    pub(crate) fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(&id)
    }

    pub(crate) fn contains(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn values(&self) -> Values<'_, TaskId, Task> {
        self.tasks.values()
    }

    /// The place of the next task in the order of acceptance.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// A task of this place is known; the next one comes after it.
    pub(crate) fn advance_seq(&mut self, seq: u64) {
        self.next_seq = self.next_seq.max(seq + 1);
    }

    pub(crate) fn insert(&mut self, task: Task) {
        self.advance_seq(task.seq());
        self.tasks.insert(task.id(), task);
    }

    /// From now on a task runs only on a node that has nothing else.
    pub(crate) fn isolate(&mut self, id: TaskId) {
        if self.tasks.contains_key(&id) {
            self.isolated.insert(id);
        }
    }

    pub(crate) fn is_isolated(&self, id: TaskId) -> bool {
        self.isolated.contains(&id)
    }

    pub(crate) fn has_isolated(&self) -> bool {
        !self.isolated.is_empty()
    }

    pub(crate) fn isolated(&self) -> impl Iterator<Item = &Task> {
        self.isolated.iter().filter_map(|id| self.tasks.get(id))
    }

    pub(crate) fn remove(&mut self, id: TaskId) -> Option<Task> {
        self.isolated.remove(&id);
        self.tasks.remove(&id)
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        for (id, task) in &self.tasks {
            invariant!(*id == task.id(), "task {id} lies under another id");
            invariant!(task.seq() < self.next_seq, "task {id} was accepted after the next one");
            task.check()?;
        }
        let unknown = self.isolated.iter().find(|id| !self.tasks.contains_key(id));
        invariant!(unknown.is_none(), "{unknown:?} has ended and is still isolated");
        Ok(())
    }
}

impl std::ops::Index<TaskId> for TaskTable {
    type Output = Task;

    /// For ids that the caller took from an index of unfinished tasks.
    fn index(&self, id: TaskId) -> &Task {
        &self.tasks[&id]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{spec, task};

    #[test]
    fn the_order_of_acceptance_goes_on_after_every_known_task() {
        let mut table = TaskTable::default();
        table.advance_seq(4);
        assert_eq!(table.next_seq(), 5);
        table.insert(task(spec(1)));
        assert_eq!(table.next_seq(), 5);
        table.check().unwrap();
        assert_eq!(table.remove(spec(1).id).map(|task| task.id()), Some(spec(1).id));
        assert!(!table.contains(spec(1).id) && table.len() == 0);
    }
}
