//! Batches: counts their tasks, and answers the requests about them.

use lamagrid_domain::{BatchId, Failure, FailureKind, Owner, State, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    ActOnBatch, AdminReply, BATCHES_PER_PAGE, BatchAct, BatchChanged, BatchInfo, BatchStatus, Batches,
    ChangeBatch, ListBatches, TASKS_PER_ORDER,
};

use super::admin::{refusal, refused};
use crate::core::effect::Authority;
use crate::core::state::batch_table::{BatchChange, BatchRow};
use crate::core::state::task::Task;
use crate::core::{Core, Effect, FinishedTask, StoreOp};

/// Who gives an order about a batch.
struct Asker<'a> {
    peer: &'a PeerId,
    /// The rights with which dead letters are submitted again.
    authority: Authority,
}

impl Core {
    /// A client changes or asks for a batch of its own.
    pub(super) fn on_batch(&mut self, peer: &PeerId, request: ChangeBatch, authority: Authority) {
        let ChangeBatch { seq, id, owner, act } = request;
        let opened = self.open_own_batch(id, &owner, &act);
        match opened.map(|()| self.act_on_batch(&Asker { peer, authority }, id, act)) {
            Ok(tasks) => match self.batch_info(id) {
                Some(batch) => self.reply(peer, BatchStatus { seq, batch, tasks }),
                None => self.refuse(peer, seq, unknown(id), None),
            },
            Err(failure) => self.refuse(peer, seq, failure, None),
        }
    }

    /// Checks that a batch is the owner's, and creates the one that is to be opened.
    fn open_own_batch(&mut self, id: BatchId, owner: &Owner, act: &BatchAct) -> Result<(), Failure> {
        let is_known = self.batches.row(id).is_some_and(|row| row.owner == *owner);
        if !matches!(act, BatchAct::Open { .. }) {
            // Those of other owners are unknown, too.
            return if is_known { Ok(()) } else { Err(unknown(id)) };
        }
        self.batches.admit(id, owner)?;
        let now_ms = self.clock.now().wall_ms;
        let changes = self.batches.open(id, owner, now_ms);
        self.together(|core| core.write_batches(changes));
        Ok(())
    }

    /// An administrator changes or asks for a batch of any owner.
    pub(super) fn admin_batch(&mut self, peer: &PeerId, request: ActOnBatch) -> AdminReply {
        let ActOnBatch { id, act } = request;
        if self.batches.row(id).is_none() {
            return refusal(unknown(id));
        }
        let tasks = self.act_on_batch(&Asker { peer, authority: Authority::Administrator }, id, act);
        match self.batch_info(id) {
            Some(batch) => BatchChanged { batch, tasks }.into(),
            None => refused(format!("batch {id} is gone")),
        }
    }

    pub(super) fn list_batches(&self, request: &ListBatches) -> AdminReply {
        let limit = (request.limit as usize).clamp(1, BATCHES_PER_PAGE);
        let mut rest = self.batches.after(request.after);
        let batches: Vec<_> = rest.by_ref().take(limit).map(|row| self.info_of(row)).collect();
        let next = batches.last().map(|last| last.id).filter(|_| rest.next().is_some());
        Batches { batches, next, total: self.batches.len() as u64 }.into()
    }

    /// Carries out an order. Returns the number of tasks that it changed.
    fn act_on_batch(&mut self, asker: &Asker<'_>, id: BatchId, act: BatchAct) -> u64 {
        match act {
            BatchAct::Show => 0,
            BatchAct::Open { name } => {
                let changed = self.batches.name(id, name);
                changed.into_iter().for_each(|row| self.write_batch(row));
                0
            }
            BatchAct::Close => {
                self.together(|core| {
                    let changed = core.batches.close(id);
                    changed.into_iter().for_each(|row| core.write_batch(row));
                    core.finish_batch(id);
                });
                0
            }
            BatchAct::Cancel => {
                let ids: Vec<TaskId> = self.batches.unfinished(id).take(TASKS_PER_ORDER).collect();
                tracing::info!(batch = %id, tasks = ids.len(), "a batch is cancelled");
                ids.iter().for_each(|id| self.cancel(*id));
                ids.len() as u64
            }
            BatchAct::Retry => self.retry_batch(asker, id),
        }
    }

    /// Submits the dead letters of a batch again, until the grid is full.
    fn retry_batch(&mut self, asker: &Asker<'_>, id: BatchId) -> u64 {
        let is_dead = |ended: &FinishedTask| ended.dead.is_some() && ended.batch == Some(id);
        let dead = self.retention.iter().filter(|(_, ended)| is_dead(ended)).map(|(id, _)| *id);
        let mut ids: Vec<TaskId> = dead.take(TASKS_PER_ORDER).collect();
        // Oldest first, whatever the order of the map.
        ids.sort_unstable();
        let mut retried = 0;
        for id in ids {
            if !matches!(self.retry_now(asker.peer, id, asker.authority), AdminReply::Retried(_)) {
                break;
            }
            retried += 1;
        }
        retried
    }

    /// Lists a task in its batch.
    pub(crate) fn enter_batch(&mut self, task: &Task) {
        let now_ms = self.clock.now().wall_ms;
        let changes = self.batches.enter(task.spec(), now_ms);
        self.write_batches(changes);
    }

    /// Counts a task that ended.
    pub(crate) fn leave_batch(&mut self, task: &Task, ended: &FinishedTask) {
        fault!(self, BatchUncounted(task.id()) => return self.leave_uncounted(task));
        if let Some(row) = self.batches.leave(task.spec(), ended.status) {
            let id = row.id;
            self.write_batch(row);
            self.finish_batch(id);
        }
    }

    /// A dead letter of a batch is replayed.
    pub(crate) fn replay_in_batch(&mut self, id: Option<BatchId>) {
        let row = id.and_then(|id| self.batches.replay(id));
        row.into_iter().for_each(|row| self.write_batch(row));
    }

    /// At the start: batches whose last task ended while no scheduler ran.
    pub(crate) fn finish_batches(&mut self) {
        let ids: Vec<BatchId> = self.batches.after(None).map(|row| row.id).collect();
        ids.into_iter().for_each(|id| self.finish_batch(id));
    }

    fn finish_batch(&mut self, id: BatchId) {
        let now_ms = self.clock.now().wall_ms;
        let Some(row) = self.batches.finish(id, now_ms) else { return };
        self.write_batch(row);
        if let Some(info) = self.batch_info(id) {
            self.emit(Effect::BatchDone(Box::new(info)));
        }
    }

    fn write_batches(&mut self, changes: Vec<BatchChange>) {
        for change in changes {
            match change {
                BatchChange::Written(row) => self.write_batch(row),
                BatchChange::Dropped(id) => self.emit(Effect::Store(StoreOp::DropBatch { id })),
            }
        }
    }

    fn write_batch(&mut self, row: BatchRow) {
        self.emit(Effect::Store(StoreOp::Batch(Box::new(row))));
    }

    fn batch_info(&self, id: BatchId) -> Option<BatchInfo> {
        self.batches.row(id).map(|row| self.info_of(row))
    }

    fn info_of(&self, row: &BatchRow) -> BatchInfo {
        let (mut queued, mut processing) = (0, 0);
        for task in self.batches.unfinished(row.id).filter_map(|id| self.tasks.get(id)) {
            let count =
                if matches!(task.state(), State::Queued { .. }) { &mut queued } else { &mut processing };
            *count += 1;
        }
        BatchInfo {
            id: row.id,
            owner: row.owner.clone(),
            name: row.name.clone(),
            queued,
            processing,
            completed: row.completed,
            failed: row.failed,
            cancelled: row.cancelled,
            closed: row.is_closed,
            created_wall_ms: row.created_wall_ms,
            done_wall_ms: row.done_wall_ms,
        }
    }
}

fn unknown(id: BatchId) -> Failure {
    let text = format!("the scheduler knows no batch {id} of this owner; lamagrid batch list shows all");
    Failure::new(FailureKind::InvalidInput, text)
}
