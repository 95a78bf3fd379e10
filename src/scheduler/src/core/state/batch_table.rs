//! Batches: tasks that their owner follows, cancels and retries together.
//!
//! Totals of ended tasks, not increments, are written with each end: a commit that is repeated after an error counts
//! nothing twice. Unfinished tasks are counted from the tasks themselves, after a restart, too.

use std::collections::{BTreeMap, BTreeSet};

use lamagrid_domain::{BatchId, Failure, FailureKind, Label, Owner, Status, TaskId, TaskSpec};

/// Batches of one owner. Above it, the oldest one without unfinished tasks is dropped.
pub(crate) const MAX_BATCHES: usize = 1_000;

/// A batch as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchRow {
    pub(crate) id: BatchId,
    pub(crate) owner: Owner,
    pub(crate) name: Label,
    pub(crate) created_wall_ms: u64,
    /// Its owner submits no more tasks.
    pub(crate) is_closed: bool,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    /// When it was closed and its last task had ended.
    pub(crate) done_wall_ms: Option<u64>,
}

/// A batch with its unfinished tasks.
#[derive(Debug)]
struct Batch {
    row: BatchRow,
    unfinished: BTreeSet<TaskId>,
}

/// A change that the store has to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BatchChange {
    Written(BatchRow),
    Dropped(BatchId),
}

/// All batches.
///
/// Invariant: a batch is listed under its owner; an owner has at most `max` batches; a batch that is done has no
/// unfinished tasks.
#[derive(Debug)]
pub(crate) struct BatchTable {
    batches: BTreeMap<BatchId, Batch>,
    /// By the time of their creation.
    by_owner: BTreeMap<Owner, BTreeSet<(u64, BatchId)>>,
    max: usize,
}

impl Default for BatchTable {
    fn default() -> Self {
        Self { batches: BTreeMap::new(), by_owner: BTreeMap::new(), max: MAX_BATCHES }
    }
}

impl BatchTable {
    /// The batches of the last scheduler, without their unfinished tasks.
    pub(crate) fn recovered(rows: Vec<BatchRow>) -> Self {
        let mut table = Self::default();
        rows.into_iter().for_each(|row| table.insert(row));
        table
    }

    fn insert(&mut self, row: BatchRow) {
        self.by_owner.entry(row.owner.clone()).or_default().insert((row.created_wall_ms, row.id));
        self.batches.insert(row.id, Batch { row, unfinished: BTreeSet::new() });
    }

    /// Whether a task of this owner may belong to this batch, which need not exist.
    pub(crate) fn admit(&self, id: BatchId, owner: &Owner) -> Result<(), Failure> {
        match self.batches.get(&id) {
            Some(batch) if batch.row.owner == *owner => Ok(()),
            Some(_) => {
                let text = format!("batch {id} belongs to another owner; draw a new id");
                Err(Failure::new(FailureKind::InvalidInput, text))
            }
            None if self.count(owner) < self.max || self.oldest_idle(owner).is_some() => Ok(()),
            None => {
                let text =
                    format!("{owner} has {} batches with unfinished tasks; wait for one to end", self.max);
                Err(Failure::new(FailureKind::Overloaded, text))
            }
        }
    }

    fn count(&self, owner: &Owner) -> usize {
        self.by_owner.get(owner).map_or(0, BTreeSet::len)
    }

    fn oldest_idle(&self, owner: &Owner) -> Option<BatchId> {
        let mut ids = self.by_owner.get(owner)?.iter().map(|(_, id)| *id);
        ids.find(|id| self.batches.get(id).is_some_and(|batch| batch.unfinished.is_empty()))
    }

    /// Creates a batch if it does not exist. The caller has asked [`Self::admit`].
    pub(crate) fn open(&mut self, id: BatchId, owner: &Owner, now_wall_ms: u64) -> Vec<BatchChange> {
        if self.batches.contains_key(&id) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        if self.count(owner) >= self.max
            && let Some(oldest) = self.oldest_idle(owner)
        {
            self.remove(oldest);
            changes.push(BatchChange::Dropped(oldest));
        }
        let row = BatchRow {
            id,
            owner: owner.clone(),
            name: Label::default(),
            created_wall_ms: now_wall_ms,
            is_closed: false,
            completed: 0,
            failed: 0,
            cancelled: 0,
            done_wall_ms: None,
        };
        self.insert(row.clone());
        changes.push(BatchChange::Written(row));
        changes
    }

    fn remove(&mut self, id: BatchId) {
        let Some(batch) = self.batches.remove(&id) else { return };
        if let Some(of_owner) = self.by_owner.get_mut(&batch.row.owner) {
            of_owner.remove(&(batch.row.created_wall_ms, id));
            if of_owner.is_empty() {
                self.by_owner.remove(&batch.row.owner);
            }
        }
    }

    /// Counts an accepted task. Returns what changed: the batch is new, or was done.
    pub(crate) fn enter(&mut self, spec: &TaskSpec, now_wall_ms: u64) -> Vec<BatchChange> {
        let Some(id) = spec.batch else { return Vec::new() };
        let mut changes = self.open(id, &spec.owner, now_wall_ms);
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.unfinished.insert(spec.id);
            if batch.row.done_wall_ms.take().is_some() {
                changes.push(BatchChange::Written(batch.row.clone()));
            }
        }
        changes
    }

    /// Counts a task that ended in `status`. Returns the new totals.
    pub(crate) fn leave(&mut self, spec: &TaskSpec, status: Status) -> Option<BatchRow> {
        let batch = self.batches.get_mut(&spec.batch?)?;
        batch.unfinished.remove(&spec.id);
        match status {
            Status::Completed => batch.row.completed += 1,
            Status::Failed => batch.row.failed += 1,
            Status::Cancelled => batch.row.cancelled += 1,
            Status::Queued | Status::Processing => {}
        }
        Some(batch.row.clone())
    }

    /// A task that failed runs again. Returns the new totals.
    pub(crate) fn replay(&mut self, id: BatchId) -> Option<BatchRow> {
        let batch = self.batches.get_mut(&id)?;
        batch.row.failed = batch.row.failed.saturating_sub(1);
        Some(batch.row.clone())
    }

    /// Names a batch. Returns it if that changed it.
    pub(crate) fn name(&mut self, id: BatchId, name: Label) -> Option<BatchRow> {
        let batch = self.batches.get_mut(&id).filter(|batch| batch.row.name != name)?;
        batch.row.name = name;
        Some(batch.row.clone())
    }

    /// Closes a batch. Returns it if that changed it.
    pub(crate) fn close(&mut self, id: BatchId) -> Option<BatchRow> {
        let batch = self.batches.get_mut(&id).filter(|batch| !batch.row.is_closed)?;
        batch.row.is_closed = true;
        Some(batch.row.clone())
    }

    /// Marks a batch as done if it is closed and has no unfinished tasks. Returns it the first time.
    pub(crate) fn finish(&mut self, id: BatchId, now_wall_ms: u64) -> Option<BatchRow> {
        let batch = self.batches.get_mut(&id)?;
        let is_done = batch.row.is_closed && batch.unfinished.is_empty() && batch.row.done_wall_ms.is_none();
        is_done.then(|| {
            batch.row.done_wall_ms = Some(now_wall_ms);
            batch.row.clone()
        })
    }

    pub(crate) fn row(&self, id: BatchId) -> Option<&BatchRow> {
        self.batches.get(&id).map(|batch| &batch.row)
    }

    /// Unfinished tasks of a batch.
    pub(crate) fn unfinished(&self, id: BatchId) -> impl Iterator<Item = TaskId> {
        self.batches.get(&id).into_iter().flat_map(|batch| batch.unfinished.iter().copied())
    }

    /// Batches after one, by their ids.
    pub(crate) fn after(&self, id: Option<BatchId>) -> impl Iterator<Item = &BatchRow> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = id.map_or(Unbounded, Excluded);
        self.batches.range((from, Unbounded)).map(|(_, batch)| &batch.row)
    }

    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    #[cfg(test)]
    pub(crate) fn check<'a>(
        &self,
        tasks: impl Iterator<Item = (TaskId, &'a TaskSpec)>,
    ) -> Result<(), String> {
        let listed: usize = self.by_owner.values().map(BTreeSet::len).sum();
        invariant!(listed == self.batches.len(), "{listed} batches are listed of {}", self.batches.len());
        for (id, Batch { row, unfinished }) in &self.batches {
            let key = (row.created_wall_ms, *id);
            let is_listed = self.by_owner.get(&row.owner).is_some_and(|ids| ids.contains(&key));
            invariant!(is_listed, "batch {id} is not listed under {}", row.owner);
            let is_done = row.done_wall_ms.is_some();
            invariant!(!is_done || unfinished.is_empty(), "batch {id} is done and has unfinished tasks");
        }
        let most = self.by_owner.values().map(BTreeSet::len).max().unwrap_or(0);
        invariant!(most <= self.max, "an owner has {most} batches");
        let mut counted = 0;
        for (id, spec) in tasks {
            let Some(batch) = spec.batch else { continue };
            counted += 1;
            let is_there = self.batches.get(&batch).is_some_and(|batch| batch.unfinished.contains(&id));
            invariant!(is_there, "task {id} is missing in batch {batch}");
        }
        let held: usize = self.batches.values().map(|batch| batch.unfinished.len()).sum();
        invariant!(held == counted, "{held} unfinished tasks are in batches, {counted} say so");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{owner, spec};

    fn batch(n: u8) -> BatchId {
        BatchId::from_bytes([n; 16])
    }

    fn of(n: u8, batch: BatchId) -> TaskSpec {
        TaskSpec { batch: Some(batch), ..spec(n) }
    }

    #[test]
    fn tasks_are_counted_by_how_they_end_and_a_closed_batch_is_done_once() {
        let mut table = BatchTable::default();
        assert_eq!(table.enter(&of(1, batch(1)), 7).len(), 1, "it is new");
        assert_eq!(table.enter(&of(2, batch(1)), 8), []);
        assert_eq!(table.leave(&of(1, batch(1)), Status::Completed).unwrap().completed, 1);
        assert_eq!(table.finish(batch(1), 9), None, "it is open");
        assert!(table.close(batch(1)).is_some() && table.close(batch(1)).is_none());
        assert_eq!(table.finish(batch(1), 9), None, "a task is unfinished");
        table.check([of(2, batch(1))].iter().map(|spec| (spec.id, spec))).unwrap();
        assert_eq!(table.leave(&of(2, batch(1)), Status::Failed).unwrap().failed, 1);
        assert_eq!(table.finish(batch(1), 9).unwrap().done_wall_ms, Some(9));
        assert_eq!(table.finish(batch(1), 10), None, "it was done before");
        // A replay makes it undone, and done again.
        assert_eq!(table.replay(batch(1)).unwrap().failed, 0);
        assert_eq!(table.enter(&of(3, batch(1)), 11).len(), 1);
        assert_eq!(table.row(batch(1)).unwrap().done_wall_ms, None);
        table.leave(&of(3, batch(1)), Status::Completed);
        assert_eq!(table.finish(batch(1), 12).unwrap().completed, 2);
        table.check(std::iter::empty()).unwrap();
    }

    #[test]
    fn totals_survive_a_restart() {
        let mut table = BatchTable::default();
        table.enter(&of(1, batch(1)), 7);
        table.enter(&of(2, batch(1)), 7);
        let row = table.leave(&of(1, batch(1)), Status::Cancelled).unwrap();
        let mut again = BatchTable::recovered(vec![row]);
        assert_eq!(again.enter(&of(2, batch(1)), 99), []);
        assert_eq!(again.unfinished(batch(1)).collect::<Vec<_>>(), [spec(2).id]);
        assert_eq!(again.row(batch(1)).unwrap().cancelled, 1);
    }

    #[test]
    fn an_owner_has_a_bounded_number_and_no_batch_of_another() {
        let mut table = BatchTable { max: 2, ..BatchTable::default() };
        table.enter(&of(1, batch(1)), 1);
        table.enter(&of(2, batch(2)), 2);
        let stranger: Owner = "bob".parse().unwrap();
        assert_eq!(table.admit(batch(1), &stranger).unwrap_err().kind, FailureKind::InvalidInput);
        assert_eq!(table.admit(batch(3), &owner()).unwrap_err().kind, FailureKind::Overloaded);
        assert!(table.admit(batch(3), &stranger).is_ok());
        table.leave(&of(1, batch(1)), Status::Completed);
        assert!(table.admit(batch(3), &owner()).is_ok());
        let changes = table.open(batch(3), &owner(), 3);
        assert_eq!(changes[0], BatchChange::Dropped(batch(1)));
        assert_eq!(table.after(Some(batch(2))).map(|row| row.id).collect::<Vec<_>>(), [batch(3)]);
        table.check([of(2, batch(2))].iter().map(|spec| (spec.id, spec))).unwrap();
    }
}
