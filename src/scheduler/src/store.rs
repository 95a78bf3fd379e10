//! Stores tasks durably: rows and small blobs in SQLite, large blobs in the spool.
//!
//! Does not: decide anything. One thread uses it, to commit the core's writes in groups.
//!
//! Invariant: a blob's file exists before the row that names it is committed, and is deleted only after the
//! commit that removes that row.

mod connection;
mod files;
mod lineage;
mod rows;
mod upkeep;
mod write;
mod writeback;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use connection::LogPages;
use lineage::{Id, Link, SpoolMark};
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use upkeep::{LOG_KEPT, Upkeep};
use write::{Rows, write_op, write_totals};
use writeback::Writeback;

use lamagrid_blobs::{Spool, SpoolError};
use lamagrid_domain::{Durability, Role, TaskId};

use crate::core::StoreOp;

pub(crate) use upkeep::StoreSize;

/// Marks a database file as one of this scheduler ("LGrd").
const APPLICATION_ID: i64 = 0x4c47_7264;
/// The schema version that this program writes and reads.
const SCHEMA_VERSION: i64 = 7;

/// `tasks` is ordered by arrival, not by id: tasks that are live at the same time share pages, so that a
/// commit writes few of them. `blobs` is ordered by task id, which is nearly the order of arrival.
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
    who TEXT NOT NULL,      -- who gave the order
    removed INTEGER NOT NULL DEFAULT 0 -- 1 if the node is refused, too
) WITHOUT ROWID;
CREATE TABLE statistics (
    queue     TEXT NOT NULL,
    model     TEXT NOT NULL,
    completed INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    wait      INTEGER NOT NULL, -- of completed tasks, ms
    run       INTEGER NOT NULL, -- of completed tasks, ms
    PRIMARY KEY (queue, model)
) WITHOUT ROWID;
";

/// SQL that migrates each schema version to the next, starting with version 1.
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
    "ALTER TABLE drained ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
     CREATE TABLE statistics (
         queue TEXT NOT NULL, model TEXT NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL,
         cancelled INTEGER NOT NULL, wait INTEGER NOT NULL, run INTEGER NOT NULL, PRIMARY KEY (queue, model)
     ) WITHOUT ROWID;",
];

/// Reason why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite returned an error.
    #[error("cannot {action} the store {path}: {source}")]
    Database {
        /// The failed action, as a verb.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The file is another program's database.
    #[error(
        "{path} is not a lamagrid store; nothing was changed: choose another data_dir or move the file away"
    )]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// The file is corrupt, or not a database.
    #[error(
        "the store {path} is damaged, or no database at all ({source}); nothing was changed: move the file away to \
         start with an empty store, or put a backup in its place"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Another process has locked the database.
    #[error(
        "another process keeps the database {path} locked: nothing was written, and nothing is lost; `fuser` or `lsof` on the \
         file shows which one (a backup tool, an open sqlite3 shell?)"
    )]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// The write-ahead log belongs to another database.
    #[error(
        "{log} does not belong to {path}: the database was replaced, for example by a backup, and its log was left; nothing \
         was changed. To use {path} as it is, move {log} out of the directory. To go on as before, put the replaced \
         database back"
    )]
    StrayLog {
        /// The database file.
        path: PathBuf,
        /// The write-ahead log.
        log: PathBuf,
    },
    /// A newer version wrote the database.
    #[error(
        "the store {path} was written by a newer lamagrid (schema {found}, this one knows {SCHEMA_VERSION}); \
         nothing was changed: upgrade lamagrid on this host or choose another data_dir"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
    },
    /// A file operation beside SQLite failed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// The failed action, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The spool returned an error.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl StoreError {
    /// True if the disk is full, so that nothing was written; false if a write failed in another way.
    pub(crate) fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Database { source, .. } => match source {
                // SQLite's error if the log's index cannot grow; it has no code of its own for that.
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

    /// True if another process has the database locked, so that nothing was written and the disk has no
    /// fault.
    pub(crate) const fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    pub(crate) const fn write_fault(&self) -> WriteFault {
        if self.is_locked() { WriteFault::Locked } else { WriteFault::Disk }
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

/// Why the store cannot be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteFault {
    /// The disk is full or failing.
    Disk,
    /// Another process has the database locked; the disk itself has no fault.
    Locked,
}

/// The open store.
pub(crate) struct Store {
    path: PathBuf,
    connection: Connection,
    log_pages: LogPages,
    writeback: Writeback,
    /// Link of the last commit.
    link: Option<Link>,
    upkeep: Upkeep,
    spool: Spool,
    spool_mark: SpoolMark,
    /// When this store was opened. Fsyncs of older files may have failed in an earlier process.
    opened: SystemTime,
    /// True after a failed write, whose fsync may have failed, too. The log and blobs are then rewritten
    /// before anything builds on them.
    doubtful: bool,
    /// Whether this connection's commits end with an fsync; `None` before its first commit.
    syncs: Option<bool>,
    /// Tasks whose rows do not decode; those rows are left unchanged.
    aside: HashSet<TaskId>,
}

/// The database, its last commit, and the thread that forces its log to disk.
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
    /// Opens or creates `<dir>/tasks.db` and `<dir>/spool`. Waits while another process has the database
    /// locked.
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

    /// Commits `ops` atomically. The commit ends with an fsync if one of them belongs to a task of durability
    /// `full`.
    ///
    /// After an error, the caller must pass the same group again.
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
                // The rows are gone, so the next start's sweep deletes the file.
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
            self.doubtful = true; // even on a full disk: the kernel had accepted these bytes
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
                // SQLite ignores this pragma inside a transaction, so set it before.
                let level = if full { "FULL" } else { "NORMAL" };
                connection.execute_batch(&format!("PRAGMA synchronous = {level}"))?;
                *syncs = Some(full);
            }
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.prepare_cached(lineage::PUT)?.execute([link.to_bytes()])?;
            ops.iter().try_for_each(|op| write_op(&transaction, op, &rows))?;
            write_totals(&transaction, ops)?;
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

    /// Id of the last commit; zeros before the first one.
    fn last_link(&self) -> Id {
        self.link.map(|link| link.id).unwrap_or_default()
    }

    /// Closes a connection that failed and opens the database again, which makes its log durable.
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

    /// Runs all reads of `read` in one transaction; each statement alone would lock and unlock the log's
    /// index.
    pub(crate) fn at_once<T>(&self, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let transaction = self.connection.unchecked_transaction().map_err(self.failed("read"))?;
        let found = read()?;
        transaction.commit().map_err(self.failed("read"))?;
        Ok(found)
    }

    /// Reads a blob that is stored in the database; `None` if there is no such blob.
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

/// True if an operation must survive power loss.
fn is_full(op: &StoreOp) -> bool {
    match op {
        StoreOp::Insert { spec, .. } => spec.durability == Durability::Full,
        StoreOp::End { durability, .. } => *durability == Durability::Full,
        StoreOp::Together(ops) => ops.iter().any(is_full),
        _ => false,
    }
}

#[cfg(test)]
mod lineage_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;
