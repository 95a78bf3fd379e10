//! Finished tasks until their retention ends, and the tombstones that remain of them.

use std::collections::hash_map::Iter;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use lamagrid_domain::{Entry, Milestone, Owner, TaskId};

use super::finished_task::FinishedTask;
use super::history;
use super::tombstones::{Dropped, Tombstones, Watermark};

/// Everything that is over.
///
/// Invariant: each finished task has one entry among the ends of retention, and no tombstone.
#[derive(Debug)]
pub(crate) struct Retention {
    finished: HashMap<TaskId, FinishedTask>,
    /// Ends of retention by the wall clock, by owner.
    expiries: BTreeMap<Owner, BTreeSet<(u64, TaskId)>>,
    tombstones: Tombstones,
}

/// A result that its client does not need any more.
pub(crate) struct Released {
    pub(crate) bytes: u64,
    /// The row without its result.
    pub(crate) row: Box<FinishedTask>,
}

impl Retention {
    pub(crate) fn new(tombstones: Tombstones) -> Self {
        Self { finished: HashMap::new(), expiries: BTreeMap::new(), tombstones }
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&FinishedTask> {
        self.finished.get(&id)
    }

    pub(crate) fn contains(&self, id: TaskId) -> bool {
        self.finished.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.finished.len()
    }

    pub(crate) fn iter(&self) -> Iter<'_, TaskId, FinishedTask> {
        self.finished.iter()
    }

    pub(crate) fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    /// Keeps a finished task until `expiry_wall_ms`.
    pub(crate) fn keep(&mut self, id: TaskId, mut finished: FinishedTask, expiry_wall_ms: u64) {
        finished.expiry_wall_ms = expiry_wall_ms;
        self.expiries.entry(finished.owner.clone()).or_default().insert((expiry_wall_ms, id));
        self.finished.insert(id, finished);
    }

    /// Gives a result up, once.
    pub(crate) fn release_result(&mut self, id: TaskId, owner: &Owner) -> Option<Released> {
        let finished = self.finished.get_mut(&id).filter(|finished| finished.owner == *owner)?;
        let result = finished.result.take()?;
        Some(Released { bytes: result.len, row: Box::new(finished.clone()) })
    }

    /// A dead letter is replayed as the task `new`, which takes over its inputs. Returns the changed row.
    pub(crate) fn mark_replayed(
        &mut self,
        id: TaskId,
        new: TaskId,
        wall_ms: u64,
    ) -> Option<Box<FinishedTask>> {
        let finished = self.finished.get_mut(&id)?;
        finished.dead = None;
        let attempt = finished.counters.attempts;
        let what = Milestone::ReplayedAs { task: new };
        history::record(&mut finished.history, Entry { at_wall_ms: wall_ms, attempt, what });
        Some(Box::new(finished.clone()))
    }

    /// Removes a finished task.
    pub(crate) fn remove(&mut self, id: TaskId) -> Option<FinishedTask> {
        let finished = self.finished.remove(&id)?;
        if let Some(of_owner) = self.expiries.get_mut(&finished.owner) {
            of_owner.remove(&(finished.expiry_wall_ms, id));
            if of_owner.is_empty() {
                self.expiries.remove(&finished.owner);
            }
        }
        Some(finished)
    }

    /// A task whose retention is over, or, of more than `max_finished`, the oldest of the owner with the most.
    pub(crate) fn next_expired(&self, now_wall_ms: u64, max_finished: usize) -> Option<TaskId> {
        let expired = self.expiries.values().filter_map(BTreeSet::first).find(|(at, _)| *at <= now_wall_ms);
        let is_full = self.finished.len() > max_finished;
        let largest = || self.expiries.values().max_by_key(|of_owner| of_owner.len()).filter(|_| is_full);
        expired.or_else(|| largest()?.first()).map(|(_, id)| *id)
    }

    /// Keeps a tombstone. Returns the one that had to go for it.
    pub(crate) fn remember(&mut self, id: TaskId, owner: &Owner, until_wall_ms: u64) -> Option<Dropped> {
        self.tombstones.remember(id, owner, until_wall_ms)
    }

    /// Drops a tombstone whose time is over.
    pub(crate) fn expire_tombstone(&mut self, now_wall_ms: u64) -> Option<Dropped> {
        self.tombstones.expire(now_wall_ms)
    }

    /// See [`Tombstones::lower_to`].
    pub(crate) fn lower_watermarks(&mut self, wall_ms: u64) -> Vec<Watermark> {
        self.tombstones.lower_to(wall_ms)
    }

    /// A planted fault: replaces the result of a finished task. Returns the changed row.
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) fn overwrite_result(
        &mut self,
        id: TaskId,
        result: &lamagrid_domain::BlobMeta,
    ) -> Option<Box<FinishedTask>> {
        let finished = self.finished.get_mut(&id)?;
        finished.result = Some(result.clone());
        finished.finished_wall_ms += 1;
        Some(Box::new(finished.clone()))
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let expiries: usize = self.expiries.values().map(BTreeSet::len).sum();
        invariant!(expiries == self.finished.len(), "{expiries} ends of retention for {} tasks", self.len());
        for (id, finished) in &self.finished {
            let of_owner = self.expiries.get(&finished.owner);
            let listed = of_owner.is_some_and(|ends| ends.contains(&(finished.expiry_wall_ms, *id)));
            invariant!(listed, "finished task {id} has no end of retention");
            invariant!(finished.status.is_terminal(), "finished task {id} is {}", finished.status);
            invariant!(!self.tombstones.contains(*id), "finished task {id} has a tombstone");
        }
        self.tombstones.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::finished;

    fn owner(name: &str) -> Owner {
        name.parse().unwrap()
    }

    fn id(n: u8) -> TaskId {
        TaskId::drawn_at(0, [n; 16])
    }

    /// Each task by its number, owner and end of retention.
    fn retention(tasks: &[(u8, &str, u64)]) -> Retention {
        let mut retention = Retention::new(Tombstones::new(9, Vec::new()));
        for (n, name, expiry_wall_ms) in tasks {
            retention.keep(id(*n), finished(owner(name)), *expiry_wall_ms);
        }
        retention.check().unwrap();
        retention
    }

    #[test]
    fn the_first_to_expire_goes_first_and_of_too_many_the_oldest_of_the_largest_owner() {
        let mut retention = retention(&[(1, "a", 50), (2, "b", 10), (3, "b", 20), (4, "b", 30)]);
        assert_eq!(retention.next_expired(9, 4), None);
        assert_eq!(retention.next_expired(10, 4), Some(id(2)));
        assert_eq!(retention.next_expired(60, 4), Some(id(1)));
        assert_eq!(retention.next_expired(9, 3), Some(id(2)));
        retention.remove(id(2)).unwrap();
        assert!(retention.remove(id(2)).is_none());
        assert_eq!(retention.next_expired(9, 3), None);
        retention.check().unwrap();
    }

    #[test]
    fn a_result_is_released_once_and_by_its_owner_only() {
        let mut retention = retention(&[(1, "a", 50)]);
        assert!(retention.release_result(id(1), &owner("b")).is_none());
        let released = retention.release_result(id(1), &owner("a")).unwrap();
        assert_eq!((released.bytes, released.row.result), (4, None));
        assert!(retention.release_result(id(1), &owner("a")).is_none());
        retention.check().unwrap();
    }
}
