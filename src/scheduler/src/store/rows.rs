//! Reads every row at start, and sets those aside that do not decode.
//!
//! An accepted task's row that does not decode is logged and never overwritten. The task counts as failed;
//! the row's bytes stay for inspection.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use rusqlite::OptionalExtension;
use serde::Deserialize;

use lamagrid_blobs::BlobName;
use lamagrid_domain::{
    BootId, Counters, Durability, Entry, Failure, FailureKind, Hash, LeaseToken, ModelName, Owner, QueueName,
    Role, Stages, Status, TaskId, TaskSpec,
};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::message::StatisticsLine;

use super::lineage::SpoolMark;
use super::{Store, StoreError, connection};
use crate::core::{
    FinishedTask, Order, OrderKind, Pause, Recovered, Statistics, StoreOp, StoredTask, Tombstone, Watermark,
};

/// Unknown entries of the spool that each start logs by name.
const MAX_FOREIGN_LOGGED: usize = 16;

/// The state of the database compared with the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DatabaseAge {
    Current,
    /// It was restored to an older state, or replaced.
    OlderThanSpool,
}

impl Store {
    /// Reads everything that the database holds and deletes, or moves aside, blobs without a row. Also
    /// returns the number of tasks whose blobs were deleted.
    pub(crate) fn recover(&mut self) -> Result<(Recovered, usize), StoreError> {
        let mut recovered = Recovered::default();
        let mut known = HashSet::new();
        let mut inline = self.inline_roles()?;
        let mut aside = HashSet::new();
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare(
                "SELECT id, seq, created, digest, spec, counters, token, node, ended, history FROM tasks ORDER BY seq",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id = row.get_ref(0)?.as_bytes().unwrap_or_default().to_vec();
                let decoded =
                    TaskRow::read(row).map_err(RowError::from).and_then(|row| row.decode(&mut inline));
                let task = match decoded {
                    Ok(task) => task,
                    Err(error) => {
                        let reason = error.to_string();
                        let name: String = id.iter().map(|b| format!("{b:02x}")).collect();
                        tracing::error!(task.id = name, reason, path = %self.path.display(),
                            "a row does not decode: it is left as it is and its task counts as failed; submit the \
                             task again, and report this with a copy of the file");
                        let Ok(id) = <[u8; 16]>::try_from(id.as_slice()) else { continue };
                        let id = TaskId::from_bytes(id);
                        aside.insert(id);
                        StoredTask::Ended { id, ended: Box::new(salvaged(row, id, &reason)) }
                    }
                };
                known.insert(match &task {
                    StoredTask::Live { spec, .. } => spec.id,
                    StoredTask::Ended { id, .. } => *id,
                });
                recovered.tasks.push(task);
            }
            Ok(())
        };
        read().map_err(self.failed("read"))?;
        self.aside = aside;
        let tombstones = || -> rusqlite::Result<Vec<(Vec<u8>, String, i64)>> {
            let mut statement =
                self.connection.prepare("SELECT id, owner, until FROM tombstones ORDER BY until")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        for (id, owner, until) in tombstones().map_err(self.failed("read"))? {
            if let (Ok(id), Ok(owner)) = (<[u8; 16]>::try_from(id.as_slice()), owner.parse()) {
                let (id, until_wall_ms) = (TaskId::from_bytes(id), until.max(0) as u64);
                recovered.tombstones.push(Tombstone { id, owner, until_wall_ms });
            }
        }
        let watermarks = || -> rusqlite::Result<Vec<(String, i64)>> {
            let mut statement = self.connection.prepare("SELECT owner, wall FROM watermarks")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let watermarks = watermarks().map_err(self.failed("read"))?.into_iter();
        let watermark = |(owner, wall): (String, i64)| {
            Some(Watermark { owner: owner.parse().ok()?, wall_ms: wall.max(0) as u64 })
        };
        recovered.watermarks = watermarks.filter_map(watermark).collect();
        let clock = self.connection.query_row("SELECT wall FROM clock", [], |row| row.get::<_, i64>(0));
        recovered.wall_ms = clock.optional().map_err(self.failed("read"))?.map(|wall| wall.max(0) as u64);
        self.read_orders(&mut recovered).map_err(self.failed("read"))?;
        recovered.statistics = self.read_statistics().map_err(self.failed("read"))?;
        // Before the first commit, which overwrites the ids in the spool.
        let is_older = self.spool_mark.contradicts(self.link);
        let age = if is_older { DatabaseAge::OlderThanSpool } else { DatabaseAge::Current };
        let ends = self.end_lost(&mut recovered, age);
        // Their remaining blobs are swept like those without a row: moved aside if the database is older than
        // the spool.
        for op in &ends {
            if let StoreOp::End { id, .. } = op {
                known.remove(id);
            }
        }
        let swept = self.sweep(&known, age)?;
        connection::patiently(|| self.commit(&ends))?;
        self.settle()?;
        Ok((recovered, swept))
    }

    /// Ends tasks whose inputs are missing, for example after the database was restored to an older state. A
    /// task that a node may be working on is left alone, unless the database is older than the spool: no node
    /// works for such a database.
    fn end_lost(&self, recovered: &mut Recovered, age: DatabaseAge) -> Vec<StoreOp> {
        let mut ends = Vec::new();
        for task in &mut recovered.tasks {
            let missing = match task {
                StoredTask::Live { spec, inline, assigned, .. }
                    if age == DatabaseAge::OlderThanSpool || assigned.is_none() =>
                {
                    spec.blobs.iter().map(|blob| blob.role).find(|role| {
                        !inline.contains(role) && self.spool.lacks(spec.id, BlobName::Role(*role))
                    })
                }
                StoredTask::Live { .. } => None,
                StoredTask::Ended { id, ended } => {
                    let result = ended.result.as_ref().filter(|_| !ended.inline);
                    if result.is_some() && self.spool.lacks(*id, BlobName::Role(Role::Result)) {
                        tracing::warn!(task.id = %id, "the result of a task is gone from the spool");
                        ended.result = None;
                    }
                    None
                }
            };
            let Some(role) = missing else { continue };
            if let Some((id, ended)) = lost(task, role) {
                tracing::error!(task.id = %id, %role, "an input is gone from the spool: the task has failed");
                ends.push(StoreOp::End {
                    id,
                    ended: Box::new(ended.clone()),
                    place: None,
                    durability: Durability::Full,
                    totals: recovered.statistics.count(&ended),
                });
                *task = StoredTask::Ended { id, ended: Box::new(ended) };
            }
        }
        ends
    }

    /// Deletes blobs without a row, left by incomplete submissions or a crash, and returns the number of
    /// their tasks. If the database is older than the spool, another restore may bring their
    /// tasks back, so they are moved aside instead.
    fn sweep(&self, known: &HashSet<TaskId>, age: DatabaseAge) -> Result<usize, StoreError> {
        let aside = (age == DatabaseAge::OlderThanSpool).then(|| {
            let mut name = self.spool.root().as_os_str().to_owned();
            name.push(format!(".aside-{}", wall_ms() / 1_000));
            PathBuf::from(name)
        });
        let swept = self.spool.sweep(known, aside.as_deref(), &[SpoolMark::NAME])?;
        if let (Some(aside), 1..) = (&aside, swept.moved) {
            tracing::warn!(
                tasks = swept.moved,
                path = %aside.display(),
                "the spool has blobs of tasks that the database does not know, which was replaced or put back to an older \
                 state: they were moved aside; delete that directory if they are not needed"
            );
        }
        for path in swept.foreign.iter().take(MAX_FOREIGN_LOGGED) {
            tracing::warn!(path = %path.display(), "this is not lamagrid's, or cannot be read or deleted: it is left alone");
        }
        if let more @ 1.. = swept.foreign.len().saturating_sub(MAX_FOREIGN_LOGGED) {
            tracing::warn!(more, "there are more such entries in the spool");
        }
        Ok(swept.deleted)
    }

    fn read_statistics(&self) -> rusqlite::Result<Statistics> {
        let mut statement = self
            .connection
            .prepare("SELECT queue, model, completed, failed, cancelled, wait, run FROM statistics")?;
        let count = |row: &rusqlite::Row<'_>, column| row.get(column).map(|n: i64| n.max(0) as u64);
        let lines = statement.query_map([], |row| {
            let (queue, model) =
                (row.get::<_, String>(0)?.parse().ok(), row.get::<_, String>(1)?.parse().ok());
            let (completed, failed, cancelled) = (count(row, 2)?, count(row, 3)?, count(row, 4)?);
            let (wait_ms, run_ms) = (count(row, 5)?, count(row, 6)?);
            let line = |(queue, model)| StatisticsLine {
                queue,
                model,
                completed,
                failed,
                cancelled,
                wait_ms,
                run_ms,
            };
            Ok(queue.zip(model).map(line))
        })?;
        Ok(Statistics::recovered(
            lines.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect(),
        ))
    }

    /// Reads the orders of administrators: paused queues, drained and removed nodes.
    fn read_orders(&self, recovered: &mut Recovered) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare("SELECT queue, since, who FROM paused")?;
        let paused = statement.query_map([], |row| {
            let (queue, since, by) = (row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get(2)?);
            Ok((queue, Pause { by, since_wall_ms: since.max(0) as u64 }))
        })?;
        let paused = paused.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut statement = self.connection.prepare("SELECT node, boot, since, who, removed FROM drained")?;
        let drained = statement.query_map([], |row| {
            let (node, boot) = (row.get::<_, String>(0)?, row.get::<_, Option<[u8; 16]>>(1)?);
            let (since, by) = (row.get::<_, i64>(2)?, row.get(3)?);
            let boot = boot.map(BootId::from_bytes);
            let kind = if row.get(4)? { OrderKind::Removal } else { OrderKind::Drain };
            Ok((node, Order { kind, boot, by, since_wall_ms: since.max(0) as u64 }))
        })?;
        let drained = drained.collect::<rusqlite::Result<Vec<_>>>()?;
        let queue = |(queue, pause): (String, Pause)| Some((queue.parse().ok()?, pause));
        let node = |(node, order): (String, Order)| Some((node.parse().ok()?, order));
        recovered.paused = paused.into_iter().filter_map(queue).collect();
        recovered.orders = drained.into_iter().filter_map(node).collect();
        Ok(())
    }

    fn inline_roles(&self) -> Result<HashMap<Vec<u8>, Vec<Role>>, StoreError> {
        let read = || -> rusqlite::Result<Vec<(Vec<u8>, String)>> {
            let mut statement = self.connection.prepare("SELECT task, role FROM blobs")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let mut roles = HashMap::<_, Vec<Role>>::new();
        for (task, role) in read().map_err(self.failed("read"))? {
            let known = [Role::Image, Role::Mask, Role::Example].into_iter().find(|r| r.as_str() == role);
            roles.entry(task).or_default().extend(known);
        }
        Ok(roles)
    }
}

/// Builds the failure of a task whose input is missing.
fn lost(task: &StoredTask, role: Role) -> Option<(TaskId, FinishedTask)> {
    let StoredTask::Live { spec, digest, created_wall_ms, counters, history, .. } = task else { return None };
    let text = format!(
        "the {role} of task {} is gone from the scheduler's disk: its files were deleted, or an older copy of the \
         scheduler's database was put back; submit the task again with a new id",
        spec.id
    );
    let ended = FinishedTask {
        owner: spec.owner.clone(),
        digest: *digest,
        model: spec.model.clone(),
        queue: spec.queue.clone(),
        status: Status::Failed,
        failure: Some(Failure::new(FailureKind::InvalidInput, text)),
        token: None,
        result: None,
        inline: false,
        counters: *counters,
        stages: Stages::default(),
        node: None,
        created_wall_ms: *created_wall_ms,
        finished_wall_ms: wall_ms().max(*created_wall_ms),
        client: spec.client.clone(),
        priority: spec.priority,
        replay_of: spec.replay_of,
        dead: None,
        history: history.clone(),
        expiry_wall_ms: 0,
    };
    Some((spec.id, ended))
}

/// Owner, model and queue of a damaged record, where they can be read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Salvage {
    owner: Option<Owner>,
    model: Option<ModelName>,
    queue: Option<QueueName>,
}

/// Builds the failure of a task whose row does not decode. The task was accepted, so its id must stay known.
fn salvaged(row: &rusqlite::Row<'_>, id: TaskId, reason: &str) -> FinishedTask {
    let bytes = |column| row.get_ref(column).ok().and_then(|value| value.as_bytes().ok());
    let salvage: Salvage = [4, 8]
        .into_iter()
        .filter_map(bytes)
        .find_map(|bytes| rmp_serde::from_slice(bytes).ok())
        .unwrap_or_default();
    let now_ms = wall_ms();
    let text = format!(
        "task {id} was accepted, but its record on the scheduler's disk is damaged ({reason}), so that it cannot run; \
         submit it again with a new id"
    );
    FinishedTask {
        owner: salvage.owner.unwrap_or_else(|| "local".parse().expect("five letters are an owner")),
        digest: bytes(3)
            .and_then(|digest| <[u8; 32]>::try_from(digest).ok())
            .map_or(Hash::new([0; 32]), Hash::new),
        model: salvage.model.unwrap_or_else(|| "unknown".parse().expect("seven letters are a model")),
        queue: salvage.queue.unwrap_or_else(QueueName::gpu),
        status: Status::Failed,
        failure: Some(Failure::new(FailureKind::Internal, text).bounded()),
        token: None,
        result: None,
        inline: false,
        counters: Counters::default(),
        stages: Stages::default(),
        node: None,
        created_wall_ms: row.get::<_, i64>(2).map_or(now_ms, |created| created.max(0) as u64),
        finished_wall_ms: now_ms,
        client: None,
        priority: 0,
        replay_of: None,
        dead: None,
        history: Vec::new(),
        expiry_wall_ms: 0,
    }
}

struct TaskRow {
    id: Vec<u8>,
    seq: i64,
    created: i64,
    digest: Vec<u8>,
    spec: Option<Vec<u8>>,
    counters: Vec<u8>,
    token: Option<Vec<u8>>,
    node: Option<String>,
    ended: Option<Vec<u8>>,
    history: Option<Vec<u8>>,
}

/// Why a row does not decode.
#[derive(Debug, thiserror::Error)]
enum RowError {
    #[error(transparent)]
    Column(#[from] rusqlite::Error),
    #[error(transparent)]
    Pack(#[from] rmp_serde::decode::Error),
    #[error(transparent)]
    Node(#[from] lamagrid_domain::NameError),
    #[error("its id is not 16 bytes")]
    Id,
    #[error("it has neither a spec nor an end")]
    NoSpec,
    #[error("its digest is not 32 bytes")]
    Digest,
    #[error("its token is not 16 bytes")]
    Token,
}

impl TaskRow {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            seq: row.get(1)?,
            created: row.get(2)?,
            digest: row.get(3)?,
            spec: row.get(4)?,
            counters: row.get(5)?,
            token: row.get(6)?,
            node: row.get(7)?,
            ended: row.get(8)?,
            history: row.get(9)?,
        })
    }

    fn decode(&self, inline: &mut HashMap<Vec<u8>, Vec<Role>>) -> Result<StoredTask, RowError> {
        fn unpack<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, RowError> {
            Ok(rmp_serde::from_slice(bytes)?)
        }
        let id = <[u8; 16]>::try_from(self.id.as_slice()).map_err(|_| RowError::Id)?;
        if let Some(ended) = &self.ended {
            return Ok(StoredTask::Ended {
                id: TaskId::from_bytes(id),
                ended: Box::new(unpack::<FinishedTask>(ended)?),
            });
        }
        let spec: TaskSpec = unpack(self.spec.as_deref().ok_or(RowError::NoSpec)?)?;
        let digest = <[u8; 32]>::try_from(self.digest.as_slice()).map_err(|_| RowError::Digest)?;
        let assigned = match (&self.token, &self.node) {
            (Some(token), Some(node)) => {
                let token = <[u8; 16]>::try_from(token.as_slice()).map_err(|_| RowError::Token)?;
                Some((LeaseToken::from_bytes(token), node.parse()?))
            }
            _ => None,
        };
        Ok(StoredTask::Live {
            digest: Hash::new(digest),
            seq: self.seq.max(0) as u64,
            created_wall_ms: self.created.max(0) as u64,
            counters: unpack(&self.counters)?,
            history: self.history.as_deref().map_or_else(|| Ok(Vec::new()), unpack::<Vec<Entry>>)?,
            assigned,
            inline: inline.remove(&self.id).unwrap_or_default(),
            spec: Box::new(spec),
        })
    }
}
