//! The durable store as rows in memory, which committed operations change by the rules of the real one.

use std::collections::BTreeMap;

use lamagrid_domain::{
    Counters, Entry, Hash, LeaseToken, ModelName, Owner, QueueName, Role, TaskId, TaskSpec,
};
use lamagrid_protocol::message::StatisticsLine;

use crate::core::{
    FinishedTask, NodeId, Order, Pause, Recovered, Statistics, StoreOp, StoredTask, Tombstone, Watermark,
};

pub(super) struct Row {
    pub(super) spec: TaskSpec,
    pub(super) digest: Hash,
    pub(super) seq: u64,
    created_wall_ms: u64,
    pub(super) counters: Counters,
    pub(super) history: Vec<Entry>,
    pub(super) assigned: Option<(LeaseToken, NodeId)>,
    inline: Vec<Role>,
    pub(super) ended: Option<FinishedTask>,
}

#[derive(Default)]
pub(super) struct Disk {
    pub(super) rows: BTreeMap<TaskId, Row>,
    pub(super) tombstones: BTreeMap<TaskId, (Owner, u64)>,
    pub(super) watermarks: BTreeMap<Owner, u64>,
    pub(super) wall_ms: Option<u64>,
    paused: BTreeMap<QueueName, Pause>,
    pub(super) orders: BTreeMap<NodeId, Order>,
    statistics: BTreeMap<(QueueName, ModelName), StatisticsLine>,
}

impl Disk {
    /// Carries one operation out. Updates of rows that are not there change nothing, as in SQL.
    pub(super) fn apply(&mut self, op: &StoreOp) {
        match op {
            StoreOp::Insert { spec, digest, seq, created_wall_ms, inline, inherits } => {
                let inherited = inherits.and_then(|dead| self.rows.get(&dead)).map(|row| row.inline.clone());
                let row = Row {
                    spec: spec.as_ref().clone(),
                    digest: *digest,
                    seq: *seq,
                    created_wall_ms: *created_wall_ms,
                    counters: Counters::default(),
                    history: Vec::new(),
                    assigned: None,
                    inline: inherited.unwrap_or_else(|| inline.iter().map(|(role, _)| *role).collect()),
                    ended: None,
                };
                self.rows.insert(spec.id, row);
            }
            StoreOp::Assign { id, token, node, counters } => {
                self.update(*id, |row| {
                    row.assigned = Some((*token, node.clone()));
                    row.counters = *counters;
                });
            }
            StoreOp::Requeue { id, counters, history } => self.update(*id, |row| {
                row.assigned = None;
                row.history.clone_from(history);
                row.counters = *counters;
            }),
            StoreOp::End { id, ended, totals, .. } => {
                self.update(*id, |row| {
                    row.ended = Some(ended.as_ref().clone());
                    row.assigned = None;
                });
                self.statistics.insert((totals.queue.clone(), totals.model.clone()), totals.clone());
            }
            StoreOp::Release { id, ended } => {
                self.update(*id, |row| row.ended = Some(ended.as_ref().clone()))
            }
            StoreOp::Forget { id, owner, until_wall_ms } => {
                self.rows.remove(id);
                self.tombstones.insert(*id, (owner.clone(), *until_wall_ms));
            }
            StoreOp::Remember { id, owner, until_wall_ms } => {
                self.tombstones.insert(*id, (owner.clone(), *until_wall_ms));
            }
            StoreOp::Watermark { owner, wall_ms } => {
                self.watermarks.insert(owner.clone(), *wall_ms);
            }
            StoreOp::Clock { wall_ms } => self.wall_ms = Some(*wall_ms),
            StoreOp::Unremember { id } => {
                self.tombstones.remove(id);
            }
            StoreOp::Pause { queue, pause: Some(pause) } => {
                _ = self.paused.insert(queue.clone(), pause.clone())
            }
            StoreOp::Pause { queue, pause: None } => _ = self.paused.remove(queue),
            StoreOp::NodeOrder { node, order: Some(order) } => {
                _ = self.orders.insert(node.clone(), order.clone())
            }
            StoreOp::NodeOrder { node, order: None } => _ = self.orders.remove(node),
            StoreOp::Together(ops) => ops.iter().for_each(|op| self.apply(op)),
        }
    }

    fn update(&mut self, id: TaskId, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.rows.get_mut(&id) {
            change(row);
        }
    }

    /// The contents that the next process starts with.
    pub(super) fn recover(&self) -> Recovered {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| row.seq);
        let stored = |(id, row): (&TaskId, &Row)| match &row.ended {
            Some(ended) => StoredTask::Ended { id: *id, ended: Box::new(ended.clone()) },
            None => StoredTask::Live {
                spec: Box::new(row.spec.clone()),
                digest: row.digest,
                seq: row.seq,
                created_wall_ms: row.created_wall_ms,
                counters: row.counters,
                history: row.history.clone(),
                assigned: row.assigned.clone(),
                inline: row.inline.clone(),
            },
        };
        let tombstone = |(id, (owner, until)): (&TaskId, &(Owner, u64))| Tombstone {
            id: *id,
            owner: owner.clone(),
            until_wall_ms: *until,
        };
        let mut tombstones: Vec<_> = self.tombstones.iter().map(tombstone).collect();
        tombstones.sort_by_key(|tombstone| tombstone.until_wall_ms);
        let tasks = rows.into_iter().map(stored).collect();
        let watermark = |(owner, wall): (&Owner, &u64)| Watermark { owner: owner.clone(), wall_ms: *wall };
        Recovered {
            tasks,
            tombstones,
            watermarks: self.watermarks.iter().map(watermark).collect(),
            wall_ms: self.wall_ms,
            paused: self.paused.clone(),
            orders: self.orders.clone(),
            statistics: Statistics::recovered(self.statistics.values().cloned().collect()),
        }
    }
}
