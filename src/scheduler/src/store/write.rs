//! Writes the core's operations into the rows of a transaction.
//!
//! Does not: commit, or touch the spool.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Transaction, params};

use lamagrid_domain::{Counters, ModelName, Owner, QueueName, Role, TaskId};
use lamagrid_protocol::message::StatisticsLine;

use crate::core::{FinishedTask, Order, OrderKind, Pause, ResultPlace, StoreOp};

/// Exceptions that a write must take into account.
pub(super) struct Rows<'a> {
    /// Tasks whose results vanished before their end was committed.
    pub(super) gone: HashSet<TaskId>,
    /// Tasks whose damaged rows must not change.
    pub(super) aside: &'a HashSet<TaskId>,
}

fn pack<T: serde::Serialize>(value: &T) -> Vec<u8> {
    lamagrid_protocol::pack(value).expect("rows have no maps with non-text keys")
}

/// Writes one operation of the core.
pub(super) fn write_op(transaction: &Transaction<'_>, op: &StoreOp, rows: &Rows<'_>) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql)?.execute(values).map(|_| ())
    };
    let put_blob = |task: &TaskId, role: Role, bytes: &[u8]| {
        run(
            "INSERT OR REPLACE INTO blobs (task, role, bytes) VALUES (?1, ?2, ?3)",
            &[task.as_bytes(), &role.as_str(), &bytes],
        )
    };
    match op {
        StoreOp::Insert { spec, digest, seq, created_wall_ms, inline, inherits } => {
            run(
                "INSERT OR REPLACE INTO tasks (id, seq, created, digest, spec, counters) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                &[
                    spec.id.as_bytes(),
                    &(*seq as i64),
                    &(*created_wall_ms as i64),
                    &digest.as_slice(),
                    &pack(spec.as_ref()),
                    &pack(&Counters::default()),
                ],
            )?;
            if let Some(dead) = inherits {
                let copy = "INSERT OR REPLACE INTO blobs (task, role, bytes) SELECT ?1, role, bytes FROM blobs WHERE task = ?2";
                run(copy, &[spec.id.as_bytes(), dead.as_bytes()])?;
            }
            inline.iter().try_for_each(|(role, bytes)| put_blob(&spec.id, *role, bytes))
        }
        StoreOp::Assign { id, token, node, counters } => run(
            "UPDATE tasks SET token = ?2, node = ?3, counters = ?4 WHERE id = ?1",
            &[id.as_bytes(), token.as_bytes(), &node.to_row(), &pack(counters)],
        ),
        StoreOp::Requeue { id, counters, history } => run(
            "UPDATE tasks SET token = NULL, node = NULL, counters = ?2, history = ?3 WHERE id = ?1",
            &[id.as_bytes(), &pack(counters), &pack(history)],
        ),
        StoreOp::End { id, ended, place, .. } => {
            let without =
                rows.gone.contains(id).then(|| FinishedTask { result: None, ..ended.as_ref().clone() });
            let ended = without.as_ref().unwrap_or(ended);
            run(
                "UPDATE tasks SET ended = ?2, spec = NULL, token = NULL, history = NULL WHERE id = ?1",
                &[id.as_bytes(), &pack(ended)],
            )?;
            if ended.dead.is_some() {
                return Ok(());
            }
            run("DELETE FROM blobs WHERE task = ?1", &[id.as_bytes()])?;
            match place {
                Some(ResultPlace::Inline(bytes)) => put_blob(id, Role::Result, bytes),
                Some(ResultPlace::Spool(_)) | None => Ok(()),
            }
        }
        StoreOp::Release { id, ended } => {
            run("UPDATE tasks SET ended = ?2 WHERE id = ?1", &[id.as_bytes(), &pack(ended.as_ref())])?;
            run("DELETE FROM blobs WHERE task = ?1", &[id.as_bytes()])
        }
        StoreOp::Forget { id, owner, until_wall_ms } if rows.aside.contains(id) => {
            remember(transaction, id, owner, *until_wall_ms)
        }
        StoreOp::Forget { id, owner, until_wall_ms } => {
            run("DELETE FROM tasks WHERE id = ?1", &[id.as_bytes()])?;
            run("DELETE FROM blobs WHERE task = ?1", &[id.as_bytes()])?;
            remember(transaction, id, owner, *until_wall_ms)
        }
        StoreOp::Remember { id, owner, until_wall_ms } => remember(transaction, id, owner, *until_wall_ms),
        StoreOp::Watermark { owner, wall_ms } => run(
            "INSERT OR REPLACE INTO watermarks (owner, wall) VALUES (?1, ?2)",
            &[&owner.as_str(), &(*wall_ms as i64)],
        ),
        StoreOp::Clock { wall_ms } => {
            run("INSERT OR REPLACE INTO clock (one, wall) VALUES (1, ?1)", &[&(*wall_ms as i64)])
        }
        StoreOp::Unremember { id } => run("DELETE FROM tombstones WHERE id = ?1", &[id.as_bytes()]),
        StoreOp::Pause { queue, pause: Some(Pause { by, since_wall_ms }) } => run(
            "INSERT OR REPLACE INTO paused (queue, since, who) VALUES (?1, ?2, ?3)",
            &[&queue.as_str(), &(*since_wall_ms as i64), by],
        ),
        StoreOp::Pause { queue, pause: None } => {
            run("DELETE FROM paused WHERE queue = ?1", &[&queue.as_str()])
        }
        StoreOp::NodeOrder { node, order: Some(Order { kind, boot, by, since_wall_ms }) } => run(
            "INSERT OR REPLACE INTO drained (node, boot, since, who, removed) VALUES (?1, ?2, ?3, ?4, ?5)",
            &[
                &node.to_row(),
                &boot.map(|boot| *boot.as_bytes()),
                &(*since_wall_ms as i64),
                by,
                &(*kind == OrderKind::Removal),
            ],
        ),
        StoreOp::NodeOrder { node, order: None } => {
            run("DELETE FROM drained WHERE node = ?1", &[&node.to_row()])
        }
        StoreOp::Together(ops) => ops.iter().try_for_each(|op| write_op(transaction, op, rows)),
    }
}

/// Writes the totals of the queues and models whose tasks end in this group, each once: the last totals include those
/// before.
pub(super) fn write_totals(transaction: &Transaction<'_>, ops: &[StoreOp]) -> rusqlite::Result<()> {
    let mut last = BTreeMap::new();
    collect_totals(ops, &mut last);
    for line in last.into_values() {
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO statistics (queue, model, completed, failed, cancelled, wait, run) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                line.queue.as_str(),
                line.model.as_str(),
                line.completed as i64,
                line.failed as i64,
                line.cancelled as i64,
                line.wait_ms as i64,
                line.run_ms as i64,
            ])?;
    }
    Ok(())
}

fn collect_totals<'a>(
    ops: &'a [StoreOp],
    last: &mut BTreeMap<(&'a QueueName, &'a ModelName), &'a StatisticsLine>,
) {
    for op in ops {
        match op {
            StoreOp::End { totals, .. } => _ = last.insert((&totals.queue, &totals.model), totals),
            StoreOp::Together(ops) => collect_totals(ops, last),
            _ => {}
        }
    }
}

fn remember(
    transaction: &Transaction<'_>,
    id: &TaskId,
    owner: &Owner,
    until_wall_ms: u64,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO tombstones (id, until, owner) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_bytes(), until_wall_ms as i64, owner.as_str()])
        .map(|_| ())
}
