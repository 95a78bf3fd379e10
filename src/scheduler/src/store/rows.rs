//! What is read at start: every row, and those that do not decode set aside.
//!
//! A row that was accepted and cannot be read is never overwritten, and never passed over in silence: its task counts as
//! failed, its bytes stay for a person to look at.

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::OptionalExtension;
use serde::Deserialize;

use lamagrid_domain::{
    Counters, Entry, Failure, FailureKind, Hash, LeaseToken, ModelName, Owner, QueueName, Role, Stages,
    Status, TaskId, TaskSpec,
};

use crate::core::{Ended, Recovered, StoredTask};

use super::{Store, StoreError};

impl Store {
    /// Everything that is remembered. Blobs of ids without a row are deleted: of so many tasks.
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
                let decoded = TaskRow::read(row)
                    .map_err(|error| error.to_string())
                    .and_then(|row| row.decode(&mut inline));
                let task = match decoded {
                    Ok(task) => task,
                    Err(reason) => {
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
                recovered.tombstones.push((TaskId::from_bytes(id), owner, until.max(0) as u64));
            }
        }
        let watermarks = || -> rusqlite::Result<Vec<(String, i64)>> {
            let mut statement = self.connection.prepare("SELECT owner, wall FROM watermarks")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let watermarks = watermarks().map_err(self.failed("read"))?.into_iter();
        recovered.watermarks =
            watermarks.filter_map(|(owner, wall)| Some((owner.parse().ok()?, wall.max(0) as u64))).collect();
        let clock = self.connection.query_row("SELECT wall FROM clock", [], |row| row.get::<_, i64>(0));
        recovered.wall_ms = clock.optional().map_err(self.failed("read"))?.map(|wall| wall.max(0) as u64);
        let paused = || -> rusqlite::Result<Vec<String>> {
            self.connection.prepare("SELECT queue FROM paused")?.query_map([], |row| row.get(0))?.collect()
        };
        let paused = paused().map_err(self.failed("read"))?;
        recovered.paused = paused.iter().filter_map(|queue| queue.parse().ok()).collect();
        let swept = self.spool.sweep(&known)?;
        Ok((recovered, swept))
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

/// Whom a damaged record belonged to, where that much can be read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Salvage {
    owner: Option<Owner>,
    model: Option<ModelName>,
    queue: Option<QueueName>,
}

/// The end of a task whose row does not decode: it was accepted, so its id must not be unknown.
fn salvaged(row: &rusqlite::Row<'_>, id: TaskId, reason: &str) -> Ended {
    let bytes = |column| row.get_ref(column).ok().and_then(|value| value.as_bytes().ok());
    let salvage: Salvage = [4, 8]
        .into_iter()
        .filter_map(bytes)
        .find_map(|bytes| rmp_serde::from_slice(bytes).ok())
        .unwrap_or_default();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let text = format!(
        "task {id} was accepted, but its record on the scheduler's disk is damaged ({reason}), so that it cannot run; \
         submit it again with a new id"
    );
    Ended {
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

    fn decode(&self, inline: &mut HashMap<Vec<u8>, Vec<Role>>) -> Result<StoredTask, String> {
        fn unpack<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
            rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
        }
        let id = <[u8; 16]>::try_from(self.id.as_slice()).map_err(|_| "its id is not 16 bytes".to_owned())?;
        if let Some(ended) = &self.ended {
            return Ok(StoredTask::Ended {
                id: TaskId::from_bytes(id),
                ended: Box::new(unpack::<Ended>(ended)?),
            });
        }
        let spec: TaskSpec = unpack(self.spec.as_deref().ok_or("it has neither a spec nor an end")?)?;
        let digest =
            <[u8; 32]>::try_from(self.digest.as_slice()).map_err(|_| "its digest is not 32 bytes")?;
        let assigned = match (&self.token, &self.node) {
            (Some(token), Some(node)) => {
                let token =
                    <[u8; 16]>::try_from(token.as_slice()).map_err(|_| "its token is not 16 bytes")?;
                Some((
                    LeaseToken::from_bytes(token),
                    node.parse().map_err(|e: lamagrid_domain::NameError| e.to_string())?,
                ))
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
