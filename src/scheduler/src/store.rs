//! The store remembers: SQLite for rows and small blobs, the spool for large ones.
//!
//! Does not: decide anything. It is used by one thread, which commits what the core wrote in groups.
//!
//! Invariant: a blob's file is there before the row that names it, and goes only after the commit that
//! removes that row.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use lamagrid_domain::{Counters, Durability, Entry, Hash, LeaseToken, Role, TaskId, TaskSpec};
use lamagrid_wire::spool::{BlobName, Spool, SpoolError};

use crate::core::{Ended, Recovered, ResultPlace, StoreOp, StoredTask};

/// Marks a database file as ours ("LGrd").
const APPLICATION_ID: i64 = 0x4c47_7264;
/// The schema that this version writes and reads.
const SCHEMA_VERSION: i64 = 2;

/// The write-ahead log is copied into the database when it has this many pages, of 4 KiB. SQLite's own 1,000 copy pages
/// that change again within the second, four times as often; more would make the next start read more.
const CHECKPOINT_PAGES: u32 = 4_000;

const SCHEMA: &str = "
CREATE TABLE tasks (
    id       BLOB PRIMARY KEY,
    seq      INTEGER NOT NULL,
    created  INTEGER NOT NULL,  -- wall clock, ms
    digest   BLOB NOT NULL,
    spec     BLOB,              -- MessagePack TaskSpec, until the task has ended
    counters BLOB NOT NULL,     -- MessagePack Counters
    token    BLOB,              -- the running attempt
    node     TEXT,
    ended    BLOB,              -- MessagePack Ended, once the task has ended
    history  BLOB               -- MessagePack list of Entry, once an attempt has failed
) WITHOUT ROWID;
CREATE TABLE blobs (
    task  BLOB NOT NULL,
    role  TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (task, role)
);
CREATE TABLE tombstones (
    id    BLOB PRIMARY KEY,
    until INTEGER NOT NULL      -- wall clock, ms
) WITHOUT ROWID;
CREATE TABLE paused (
    queue TEXT PRIMARY KEY
) WITHOUT ROWID;
";

/// What makes the next version's schema of each version's, from version 1 on.
const MIGRATIONS: &[&str] = &[
    "ALTER TABLE tasks ADD COLUMN history BLOB; CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID;",
];

/// Why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("cannot {action} the store {path}: {source}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file belongs to something else.
    #[error(
        "{path} is not a lamagrid store; nothing was changed: choose another data_dir or move the file away"
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// SQLite cannot make sense of the file.
    #[error(
        "the store {path} is damaged, or no database at all ({source}); nothing was changed: move the file away to \
         start with an empty store, or put a backup in its place"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A newer version wrote it.
    #[error(
        "the store {path} was written by a newer lamagrid (schema {found}, this one knows {SCHEMA_VERSION}); \
         nothing was changed: upgrade lamagrid on this host or choose another data_dir"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// A row does not decode.
    #[error("the store {path} holds a row that does not decode (task {task}): {reason}")]
    Row {
        /// Which file.
        path: PathBuf,
        /// Which task.
        task: String,
        /// Why.
        reason: String,
    },
    /// The spool refused.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl StoreError {
    fn unreadable(action: &'static str, path: PathBuf, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged { path, source },
            _ => Self::Database { action, path, source },
        }
    }
}

/// The open store.
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    spool: Spool,
}

fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"))
}

fn pack<T: serde::Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("rows have no maps with non-text keys")
}

impl Store {
    /// Opens or creates `<dir>/tasks.db` and `<dir>/spool`.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("tasks.db");
        let failed = |action| {
            let path = path.clone();
            move |source| StoreError::unreadable(action, path, source)
        };
        let connection = Connection::open(&path).map_err(failed("open"))?;
        let pragma =
            |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        let found = pragma("user_version").map_err(failed("read"))?;
        let application = pragma("application_id").map_err(failed("read"))?;
        let is_empty = connection
            .query_row("SELECT count(*) = 0 FROM sqlite_master", [], |row| row.get(0))
            .map_err(failed("read"))?;
        match (is_empty && application == 0, application == APPLICATION_ID, found) {
            (true, _, 0) => {
                connection
                    .execute_batch(&format!(
                        "PRAGMA journal_mode = WAL; BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; \
                         PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                    ))
                    .map_err(failed("create"))?;
            }
            (_, false, _) => return Err(StoreError::Foreign { path }),
            (_, true, SCHEMA_VERSION) => {
                connection.execute_batch("PRAGMA journal_mode = WAL").map_err(failed("open"))?;
            }
            (_, true, found @ 1..SCHEMA_VERSION) => {
                let steps = MIGRATIONS[found as usize - 1..].concat();
                connection
                    .execute_batch(&format!(
                        "PRAGMA journal_mode = WAL; BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                    ))
                    .map_err(failed("migrate"))?;
                tracing::info!(path = %path.display(), from = found, to = SCHEMA_VERSION, "store migrated");
            }
            (_, true, found) => return Err(StoreError::Newer { path, found }),
        }
        tune(&connection).map_err(failed("open"))?;
        let spool = Spool::create(dir.join("spool"))?;
        Ok(Self { path, connection, spool })
    }

    /// Begins anew after a failed commit: what the kernel could not write it may forget, so nothing is built on what this
    /// connection believes to be in the files.
    ///
    /// # Errors
    /// If the disk is not back.
    pub(crate) fn reopen(&mut self) -> Result<(), StoreError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(&self.path)?;
            tune(&connection)?;
            // Reads the log back and copies what is whole of it into the database.
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            Ok(connection)
        };
        let opened = open();
        self.connection = opened.map_err(self.failed("reopen"))?;
        Ok(())
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        let path = self.path.clone();
        move |source| StoreError::unreadable(action, path, source)
    }

    /// Everything that is remembered. Blobs of ids without a row are deleted: of so many tasks.
    pub(crate) fn recover(&self) -> Result<(Recovered, usize), StoreError> {
        let mut recovered = Recovered::default();
        let mut known = HashSet::new();
        let rows = || -> rusqlite::Result<Vec<TaskRow>> {
            let mut statement = self.connection.prepare(
                "SELECT id, seq, created, digest, spec, counters, token, node, ended, history FROM tasks ORDER BY seq",
            )?;
            statement.query_map([], TaskRow::read)?.collect()
        };
        let mut inline = self.inline_roles()?;
        for row in rows().map_err(self.failed("read"))? {
            let task = row.decode(&mut inline).map_err(|reason| StoreError::Row {
                path: self.path.clone(),
                task: row.id.iter().map(|b| format!("{b:02x}")).collect(),
                reason,
            })?;
            known.insert(match &task {
                StoredTask::Live { spec, .. } => spec.id,
                StoredTask::Ended { id, .. } => *id,
            });
            recovered.tasks.push(task);
        }
        let tombstones = || -> rusqlite::Result<Vec<(Vec<u8>, i64)>> {
            let mut statement = self.connection.prepare("SELECT id, until FROM tombstones ORDER BY until")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        for (id, until) in tombstones().map_err(self.failed("read"))? {
            if let Ok(id) = <[u8; 16]>::try_from(id.as_slice()) {
                recovered.tombstones.push((TaskId::from_bytes(id), until.max(0) as u64));
            }
        }
        let paused = || -> rusqlite::Result<Vec<String>> {
            self.connection.prepare("SELECT queue FROM paused")?.query_map([], |row| row.get(0))?.collect()
        };
        let paused = paused().map_err(self.failed("read"))?;
        recovered.paused = paused.iter().filter_map(|queue| queue.parse().ok()).collect();
        let swept = self.spool.sweep(&known)?;
        Ok((recovered, swept))
    }

    fn inline_roles(&self) -> Result<std::collections::HashMap<Vec<u8>, Vec<Role>>, StoreError> {
        let read = || -> rusqlite::Result<Vec<(Vec<u8>, String)>> {
            let mut statement = self.connection.prepare("SELECT task, role FROM blobs")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let mut roles = std::collections::HashMap::<_, Vec<Role>>::new();
        for (task, role) in read().map_err(self.failed("read"))? {
            let known = [Role::Image, Role::Mask, Role::Example].into_iter().find(|r| r.as_str() == role);
            roles.entry(task).or_default().extend(known);
        }
        Ok(roles)
    }

    /// Makes `ops` durable, all or none; fsynced if one of them belongs to a task of durability `full`.
    pub(crate) fn commit(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        let full = ops.iter().any(is_full);
        for op in ops {
            self.place_files(op)?;
        }
        let write = |connection: &mut Connection| -> rusqlite::Result<()> {
            // The pragma is a no-op inside a transaction, so it comes before.
            connection.execute_batch(if full {
                "PRAGMA synchronous = FULL"
            } else {
                "PRAGMA synchronous = NORMAL"
            })?;
            let transaction = connection.transaction()?;
            ops.iter().try_for_each(|op| write_op(&transaction, op))?;
            transaction.commit()
        };
        let written = write(&mut self.connection);
        written.map_err(self.failed("write"))?;
        for op in ops {
            if let Err(error) = self.remove_files(op) {
                // The rows are gone, so the next start's sweep deletes what is left here.
                tracing::warn!(%error, "blob was not deleted");
            }
        }
        Ok(())
    }

    /// Brings the files that an operation names to where their row will look for them.
    fn place_files(&self, op: &StoreOp) -> Result<(), StoreError> {
        let placed = match op {
            StoreOp::Together(ops) => return ops.iter().try_for_each(|op| self.place_files(op)),
            StoreOp::Insert { spec, inherits: Some(dead), .. } => self.spool.inherit(*dead, spec),
            StoreOp::Insert { spec, inline, .. } if spec.durability == Durability::Full => spec
                .blobs
                .iter()
                .filter(|blob| !inline.iter().any(|(role, _)| *role == blob.role))
                .try_for_each(|blob| self.spool.seal(spec.id, BlobName::Role(blob.role), blob.len, true)),
            StoreOp::End { id, ended, place: Some(ResultPlace::Spool(token)), durability } => {
                let len = ended.result.as_ref().map_or(0, |r| r.len);
                // A group that is tried again may find the attempt's name gone and its result in place.
                match self.spool.promote(*id, *token) {
                    Err(SpoolError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                        Ok(())
                    }
                    promoted => promoted,
                }
                // After the new name exists, so that its directory entry is forced to disk as well.
                .and_then(|()| {
                    self.spool.seal(*id, BlobName::Role(Role::Result), len, *durability == Durability::Full)
                })
            }
            _ => Ok(()),
        };
        match placed {
            // Its owner took the file away after it was announced: the task's trouble, not the store's.
            Err(SpoolError::Mismatch { path, what }) => {
                tracing::error!(path = %path.display(), what, "blob vanished before its row was written");
                Ok(())
            }
            Err(SpoolError::Io { path, source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), "blob vanished before its row was written");
                Ok(())
            }
            placed => Ok(placed?),
        }
    }

    fn remove_files(&self, op: &StoreOp) -> Result<(), SpoolError> {
        match op {
            StoreOp::Together(ops) => ops.iter().try_for_each(|op| self.remove_files(op)),
            StoreOp::End { ended, .. } if ended.dead.is_some() => Ok(()),
            StoreOp::End { id, place: Some(place), .. } => {
                for role in [Role::Image, Role::Mask, Role::Example] {
                    self.spool.remove(*id, BlobName::Role(role))?;
                }
                match place {
                    ResultPlace::Spool(token) => self.spool.remove(*id, BlobName::Attempt(*token)),
                    ResultPlace::Inline(_) => self.spool.remove_task(*id),
                }
            }
            StoreOp::End { id, place: None, .. }
            | StoreOp::Release { id, .. }
            | StoreOp::Forget { id, .. } => self.spool.remove_task(*id),
            StoreOp::Insert { .. }
            | StoreOp::Assign { .. }
            | StoreOp::Requeue { .. }
            | StoreOp::Remember { .. }
            | StoreOp::Unremember { .. }
            | StoreOp::Pause { .. } => Ok(()),
        }
    }

    /// One blob that is kept beside its row.
    pub(crate) fn blob(&self, task: TaskId, role: Role) -> Result<Option<Bytes>, StoreError> {
        let read = || -> rusqlite::Result<Option<Vec<u8>>> {
            self.connection
                .prepare_cached("SELECT bytes FROM blobs WHERE task = ?1 AND role = ?2")?
                .query_row(params![task.as_bytes(), role.as_str()], |row| row.get(0))
                .optional()
        };
        Ok(read().map_err(self.failed("read"))?.map(Bytes::from))
    }
}

/// Whether an operation must survive power loss.
fn is_full(op: &StoreOp) -> bool {
    match op {
        StoreOp::Insert { spec, .. } => spec.durability == Durability::Full,
        StoreOp::End { durability, .. } => *durability == Durability::Full,
        StoreOp::Together(ops) => ops.iter().any(is_full),
        _ => false,
    }
}

fn write_op(transaction: &Transaction<'_>, op: &StoreOp) -> rusqlite::Result<()> {
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
                let copy =
                    "INSERT INTO blobs (task, role, bytes) SELECT ?1, role, bytes FROM blobs WHERE task = ?2";
                run(copy, &[spec.id.as_bytes(), dead.as_bytes()])?;
            }
            inline.iter().try_for_each(|(role, bytes)| put_blob(&spec.id, *role, bytes))
        }
        StoreOp::Assign { id, token, node, counters } => run(
            "UPDATE tasks SET token = ?2, node = ?3, counters = ?4 WHERE id = ?1",
            &[id.as_bytes(), token.as_bytes(), &node.as_str(), &pack(counters)],
        ),
        StoreOp::Requeue { id, counters, history } => run(
            "UPDATE tasks SET token = NULL, node = NULL, counters = ?2, history = ?3 WHERE id = ?1",
            &[id.as_bytes(), &pack(counters), &pack(history)],
        ),
        StoreOp::End { id, ended, place, .. } => {
            run(
                "UPDATE tasks SET ended = ?2, spec = NULL, token = NULL, history = NULL WHERE id = ?1",
                &[id.as_bytes(), &pack(ended.as_ref())],
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
        StoreOp::Forget { id, until_wall_ms } => {
            run("DELETE FROM tasks WHERE id = ?1", &[id.as_bytes()])?;
            run("DELETE FROM blobs WHERE task = ?1", &[id.as_bytes()])?;
            remember(transaction, id, *until_wall_ms)
        }
        StoreOp::Remember { id, until_wall_ms } => remember(transaction, id, *until_wall_ms),
        StoreOp::Unremember { id } => run("DELETE FROM tombstones WHERE id = ?1", &[id.as_bytes()]),
        StoreOp::Pause { queue, paused: true } => {
            run("INSERT OR IGNORE INTO paused (queue) VALUES (?1)", &[&queue.as_str()])
        }
        StoreOp::Pause { queue, paused: false } => {
            run("DELETE FROM paused WHERE queue = ?1", &[&queue.as_str()])
        }
        StoreOp::Together(ops) => ops.iter().try_for_each(|op| write_op(transaction, op)),
    }
}

fn remember(transaction: &Transaction<'_>, id: &TaskId, until_wall_ms: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO tombstones (id, until) VALUES (?1, ?2)")?
        .execute(params![id.as_bytes(), until_wall_ms as i64])
        .map(|_| ())
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

    fn decode(
        &self,
        inline: &mut std::collections::HashMap<Vec<u8>, Vec<Role>>,
    ) -> Result<StoredTask, String> {
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

#[cfg(test)]
mod tests;
