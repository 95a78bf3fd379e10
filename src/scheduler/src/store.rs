//! The store remembers: SQLite for rows and small blobs, the spool for large ones.
//!
//! Does not: decide anything. It is used by one thread, which commits what the core wrote in groups.
//!
//! Invariant: a blob's file is there before the row that names it, and goes only after the commit that
//! removes that row.

mod connection;
mod files;
mod lineage;
mod rows;
mod upkeep;
mod writeback;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use connection::LogPages;
use lineage::{Id, Link, SpoolMark};
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use upkeep::{LOG_KEPT, Upkeep};
use writeback::Writeback;

use lamagrid_blobs::{Spool, SpoolError};
use lamagrid_domain::{Counters, Durability, Owner, Role, TaskId};

use crate::core::{Drain, FinishedTask, Pause, ResultPlace, StoreOp};

pub(crate) use upkeep::StoreSize;

/// Marks a database file as ours ("LGrd").
const APPLICATION_ID: i64 = 0x4c47_7264;
/// The schema that this version writes and reads.
const SCHEMA_VERSION: i64 = 6;

/// Tasks lie in the order of their arrival, whatever their ids: those that live at the same time share pages, and a
/// commit writes few of them. Blobs lie in the order of their tasks' ids, which is nearly the same.
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
);
CREATE TABLE blobs (
    task  BLOB NOT NULL,
    role  TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (task, role)
) WITHOUT ROWID;
CREATE TABLE tombstones (
    id    BLOB PRIMARY KEY,
    until INTEGER NOT NULL,     -- wall clock, ms
    owner TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE watermarks (
    owner TEXT PRIMARY KEY,
    wall  INTEGER NOT NULL      -- ids drawn up to here are over
) WITHOUT ROWID;
CREATE TABLE clock (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    wall  INTEGER NOT NULL      -- the last time that was believed, ms
);
CREATE TABLE paused (
    queue TEXT PRIMARY KEY,
    since INTEGER NOT NULL, -- ms; 0 is unknown
    who TEXT NOT NULL       -- who gave the order
) WITHOUT ROWID;
CREATE TABLE drained (
    node TEXT PRIMARY KEY,  -- as in tasks
    boot BLOB,              -- the process that was told to leave
    since INTEGER NOT NULL, -- ms
    who TEXT NOT NULL       -- who gave the order
) WITHOUT ROWID;
";

/// What makes the next version's schema of each version's, from version 1 on.
const MIGRATIONS: &[&str] = &[
    "ALTER TABLE tasks ADD COLUMN history BLOB; CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID;",
    "ALTER TABLE tasks RENAME TO by_id;
     CREATE TABLE tasks (
         id BLOB PRIMARY KEY, seq INTEGER NOT NULL, created INTEGER NOT NULL, digest BLOB NOT NULL, spec BLOB,
         counters BLOB NOT NULL, token BLOB, node TEXT, ended BLOB, history BLOB
     );
     INSERT INTO tasks SELECT id, seq, created, digest, spec, counters, token, node, ended, history FROM by_id ORDER BY seq;
     DROP TABLE by_id;",
    "ALTER TABLE blobs RENAME TO by_arrival;
     CREATE TABLE blobs (
         task BLOB NOT NULL, role TEXT NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (task, role)
     ) WITHOUT ROWID;
     INSERT INTO blobs SELECT task, role, bytes FROM by_arrival;
     DROP TABLE by_arrival;",
    "ALTER TABLE tombstones ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
     CREATE TABLE watermarks (owner TEXT PRIMARY KEY, wall INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), wall INTEGER NOT NULL);",
    "ALTER TABLE paused ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE paused ADD COLUMN who TEXT NOT NULL DEFAULT 'an administrator';
     CREATE TABLE drained (
         node TEXT PRIMARY KEY, boot BLOB, since INTEGER NOT NULL, who TEXT NOT NULL
     ) WITHOUT ROWID;",
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
    /// Another process has a lock on it.
    #[error(
        "another process keeps the database {path} locked: nothing was written, and nothing is lost; `fuser` or `lsof` on the \
         file shows which one (a backup tool, an open sqlite3 shell?)"
    )]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// The log is not the database's.
    #[error(
        "{log} does not belong to {path}: the database was replaced, for example by a backup, and its log was left; nothing \
         was changed. To use {path} as it is, move {log} out of the directory. To go on as before, put the replaced \
         database back"
    )]
    StrayLog {
        /// The database.
        path: PathBuf,
        /// The log.
        log: PathBuf,
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
    /// A file or directory of the database refused.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The spool refused.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl StoreError {
    /// Whether there is no room, so that nothing was written, rather than a write that failed.
    pub(crate) fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Database { source, .. } => match source {
                // The log's index cannot grow: SQLite has no word of its own for that.
                rusqlite::Error::SqliteFailure(error, _) => {
                    error.code == rusqlite::ErrorCode::DiskFull
                        || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
                }
                _ => false,
            },
            Self::File { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            Self::Spool(error) => error.is_disk_full(),
            Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::Locked { .. }
            | Self::StrayLog { .. }
            | Self::Newer { .. } => false,
        }
    }

    /// Whether another process is in the way, so that nothing was written, and the disk has no fault.
    pub(crate) const fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    fn of(action: &'static str, path: PathBuf, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            DatabaseBusy, DatabaseCorrupt, DatabaseLocked, FileLockingProtocolFailed, NotADatabase,
        };
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged { path, source },
            Some(DatabaseBusy | DatabaseLocked | FileLockingProtocolFailed) => Self::Locked { path },
            _ => Self::Database { action, path, source },
        }
    }
}

/// The open store.
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    log_pages: LogPages,
    writeback: Writeback,
    /// Of the last commit.
    link: Option<Link>,
    upkeep: Upkeep,
    spool: Spool,
    spool_mark: SpoolMark,
    /// What is older may have been forced to disk in vain by the process before.
    opened: SystemTime,
    /// The last try failed, and an fsync of it may have: what it covered is written anew before it counts.
    doubtful: bool,
    /// Whether this connection's commits end with an fsync; `None` before its first.
    syncs: Option<bool>,
    /// Tasks whose rows do not decode, and stay as they are.
    aside: HashSet<TaskId>,
}

fn pack<T: serde::Serialize>(value: &T) -> Vec<u8> {
    lamagrid_protocol::pack(value).expect("rows have no maps with non-text keys")
}

/// The database, its last commit, and the thread that forces its log.
struct Opened {
    connection: Connection,
    log_pages: LogPages,
    link: Option<Link>,
    writeback: Writeback,
}

fn connect(path: &Path) -> Result<Opened, StoreError> {
    let (connection, log_pages) = connection::connect(path)?;
    let link =
        lineage::read(&connection).map_err(|source| StoreError::of("read", path.to_path_buf(), source))?;
    let log = connection::log(path);
    match Writeback::start(&log) {
        Ok(writeback) => Ok(Opened { connection, log_pages, link, writeback }),
        Err(source) => Err(StoreError::File { action: "open", path: log, source }),
    }
}

impl Store {
    /// Opens or creates `<dir>/tasks.db` and `<dir>/spool`. Waits while another process has the database locked.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("tasks.db");
        let Opened { connection, log_pages, link, writeback } = connection::patiently(|| connect(&path))?;
        let spool = Spool::create(dir.join("spool"))?;
        let spool_mark = SpoolMark::open(spool.root());
        Ok(Self {
            path,
            connection,
            log_pages,
            writeback,
            link,
            upkeep: Upkeep::default(),
            spool,
            spool_mark,
            opened: SystemTime::now(),
            doubtful: false,
            syncs: None,
            aside: HashSet::new(),
        })
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        let path = self.path.clone();
        move |source| StoreError::of(action, path, source)
    }

    /// Makes `ops` durable, all or none; fsynced if one of them belongs to a task of durability `full`.
    ///
    /// After an error the same group is to be given again.
    pub(crate) fn commit(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        let written = self.write(ops);
        if let Err(error) = &written {
            self.doubtful |= !error.is_disk_full() && !error.is_locked();
            return written;
        }
        self.doubtful = false;
        self.writeback.wrote(ops.len());
        for op in ops {
            if let Err(error) = self.remove_files(op) {
                // The rows are gone, so the next start's sweep deletes what is left here.
                tracing::warn!(%error, "blob was not deleted");
            }
        }
        Ok(())
    }

    fn write(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        if self.doubtful {
            self.reopen()?;
        }
        if let Some(source) = self.writeback.failure() {
            self.doubtful = true; // also of a full disk: these bytes were accepted before
            return Err(StoreError::File { action: "sync", path: connection::log(&self.path), source });
        }
        let mut gone = HashSet::new();
        for op in ops {
            self.place_files(op, &mut gone)?;
        }
        if ops.is_empty() {
            return Ok(());
        }
        let full = ops.iter().any(is_full);
        let is_due = self.is_checkpoint_due();
        let link = Link::after(self.last_link(), is_due | self.was_changed_by_others());
        self.spool_mark.put(link);
        let rows = Rows { gone, aside: &self.aside };
        let write = |connection: &mut Connection, syncs: &mut Option<bool>| -> rusqlite::Result<()> {
            if *syncs != Some(full) {
                // A no-op inside a transaction, so it comes before.
                let level = if full { "FULL" } else { "NORMAL" };
                connection.execute_batch(&format!("PRAGMA synchronous = {level}"))?;
                *syncs = Some(full);
            }
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.prepare_cached(lineage::PUT)?.execute([link.to_bytes()])?;
            ops.iter().try_for_each(|op| write_op(&transaction, op, &rows))?;
            transaction.commit()
        };
        let written = write(&mut self.connection, &mut self.syncs);
        written.map_err(self.failed("write"))?;
        self.link = Some(link);
        if is_due {
            self.checkpoint(CheckpointMode::PASSIVE)?;
        }
        Ok(())
    }

    /// The commit that the next one comes after.
    fn last_link(&self) -> Id {
        self.link.map(|link| link.id).unwrap_or_default()
    }

    /// A closed database in place of one that failed, then what the file and its log hold.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let closed = Connection::open_in_memory().map_err(self.failed("close"))?;
        let failed = std::mem::replace(&mut self.connection, closed);
        connection::disconnect(failed).map_err(self.failed("close"))?;
        let opened = connect(&self.path)?;
        (self.connection, self.writeback) = (opened.connection, opened.writeback);
        (self.log_pages, self.link) = (opened.log_pages, opened.link);
        self.syncs = None;
        Ok(())
    }

    /// Reads in one transaction: each statement alone takes and gives back the locks of the log's index.
    pub(crate) fn at_once<T>(&self, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let transaction = self.connection.unchecked_transaction().map_err(self.failed("read"))?;
        let found = read()?;
        transaction.commit().map_err(self.failed("read"))?;
        Ok(found)
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

/// What a write must know of the files and rows that it meets.
struct Rows<'a> {
    /// Tasks whose results vanished before they were on record.
    gone: HashSet<TaskId>,
    /// Tasks whose rows are not touched.
    aside: &'a HashSet<TaskId>,
}

fn write_op(transaction: &Transaction<'_>, op: &StoreOp, rows: &Rows<'_>) -> rusqlite::Result<()> {
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
        StoreOp::Drain { node, drain: Some(Drain { boot, by, since_wall_ms }) } => run(
            "INSERT OR REPLACE INTO drained (node, boot, since, who) VALUES (?1, ?2, ?3, ?4)",
            &[&node.to_row(), &boot.map(|boot| *boot.as_bytes()), &(*since_wall_ms as i64), by],
        ),
        StoreOp::Drain { node, drain: None } => run("DELETE FROM drained WHERE node = ?1", &[&node.to_row()]),
        StoreOp::Together(ops) => ops.iter().try_for_each(|op| write_op(transaction, op, rows)),
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

#[cfg(test)]
mod lineage_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;
