//! Counts the tasks of batches from their ends alone, and compares that with what the core writes.

use lamagrid_domain::BatchId;

use super::*;
use crate::core::BatchRow;

/// Ended tasks of a batch: completed, failed, cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl Totals {
    fn of(row: &BatchRow) -> Self {
        Self { completed: row.completed, failed: row.failed, cancelled: row.cancelled }
    }

    fn add(&mut self, status: Status) {
        match status {
            Status::Completed => self.completed += 1,
            Status::Failed => self.failed += 1,
            Status::Cancelled => self.cancelled += 1,
            Status::Queued | Status::Processing => {}
        }
    }
}

/// The batches, as ends of tasks tell.
#[derive(Default)]
pub(super) struct Batches {
    /// The batch of each task, as its submission said.
    of_task: HashMap<TaskId, BatchId>,
    totals: BTreeMap<BatchId, Totals>,
    /// Those of the ends that are durable.
    durable: BTreeMap<BatchId, Totals>,
    /// Batches of which a task ended, until their totals are written.
    unwritten: BTreeSet<BatchId>,
}

impl Batches {
    pub(super) fn inserted(&mut self, spec: &TaskSpec) {
        self.of_task.extend(spec.batch.map(|batch| (spec.id, batch)));
    }

    pub(super) fn ended(&mut self, id: TaskId, status: Status) {
        let Some(batch) = self.of_task.get(&id) else { return };
        self.totals.entry(*batch).or_default().add(status);
        self.unwritten.insert(*batch);
    }

    pub(super) fn end_is_durable(&mut self, id: TaskId, status: Status) {
        let Some(batch) = self.of_task.get(&id) else { return };
        self.durable.entry(*batch).or_default().add(status);
    }

    pub(super) fn written(&mut self, row: &BatchRow) -> Result<(), Violation> {
        let counted = self.totals.get(&row.id).copied().unwrap_or_default();
        let written = Totals::of(row);
        ensure!(
            written == counted,
            Miscounted,
            "batch {}: {written:?} is written, {counted:?} ended",
            row.id
        );
        self.unwritten.remove(&row.id);
        Ok(())
    }

    pub(super) fn dropped(&mut self, id: BatchId) {
        self.totals.remove(&id);
    }

    pub(super) fn drop_is_durable(&mut self, id: BatchId) {
        self.durable.remove(&id);
    }

    /// After each step: no end is missing in the totals.
    pub(super) fn all_are_written(&self) -> Result<(), Violation> {
        let missing = self.unwritten.first();
        ensure!(missing.is_none(), Miscounted, "a task of batch {missing:?} ended and was not counted");
        Ok(())
    }

    /// A scheduler starts with what the disk holds.
    pub(super) fn restart(&mut self, disk: &Disk) -> Result<(), Violation> {
        self.unwritten.clear();
        self.totals = self.durable.clone();
        for row in disk.batches.values() {
            self.written(row)?;
        }
        let lost = self.durable.keys().find(|id| !disk.batches.contains_key(id));
        ensure!(lost.is_none(), Miscounted, "batch {lost:?} is gone after a restart");
        Ok(())
    }
}
