//! Opens the database so that nothing depends on an earlier fsync that failed.
//!
//! After a failed fsync the kernel marks the pages that it could not write as clean, and the next fsync
//! succeeds without them. Each opening therefore rewrites the write-ahead log, byte for byte, before anything
//! builds on it; a failed write closes and opens the database again.
//!
//! Other processes, for example a backup tool, may lock the file. Nothing is written then, and the write is
//! tried again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, TransactionBehavior};

use super::{APPLICATION_ID, LOG_KEPT, MIGRATIONS, SCHEMA, SCHEMA_VERSION, StoreError, lineage};

/// How long SQLite waits for another process's lock. Clients get no answer meanwhile, not even to a ping, so
/// it must be less than `client.silence_ms`.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Interval between log lines of a start that waits for another process.
const LOG_WAIT_EVERY: Duration = Duration::from_secs(30);
const WAIT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of the log that are rewritten at a time.
const REWRITE_BYTES: usize = 1 << 20;

/// Number of pages in the log after the last commit.
#[derive(Debug, Clone, Default)]
pub(super) struct LogPages(Arc<AtomicI32>);

impl LogPages {
    pub(super) fn get(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, pages: i32) {
        self.0.store(pages, Ordering::Relaxed);
    }
}

/// Opens the database, creates or migrates it, and makes the contents of its log durable.
pub(super) fn connect(path: &Path) -> Result<(Connection, LogPages), StoreError> {
    let failed = |action| move |source| StoreError::of(action, path.to_path_buf(), source);
    let log = log(path);
    match lineage::belongs(path, &log) {
        Ok(true) => {}
        Ok(false) => return Err(StoreError::StrayLog { path: path.to_path_buf(), log }),
        Err(source) => return Err(StoreError::File { action: "read", path: log, source }),
    }
    let mut connection = Connection::open(path).map_err(failed("open"))?;
    connection.busy_timeout(LOCK_PATIENCE).map_err(failed("open"))?;
    let pages = LogPages::default();
    let count = pages.clone();
    // Replaces SQLite's automatic checkpoint, which ignores a failed fsync.
    let hook = move |_: &mut Wal, pages: i32| {
        count.set(pages);
        Ok(())
    };
    connection.wal_hook(Some(hook)).map_err(failed("open"))?;
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let found = pragma("user_version").map_err(failed("read"))?;
    let application = pragma("application_id").map_err(failed("read"))?;
    let is_empty = connection
        .query_row("SELECT count(*) = 0 FROM sqlite_master", [], |row| row.get(0))
        .map_err(failed("read"))?;
    match (is_empty && application == 0, application == APPLICATION_ID, found) {
        (true, _, 0) => {
            connection
                .execute_batch(&format!(
                    "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {SCHEMA} \
                     PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))
                .map_err(failed("create"))?;
        }
        (_, false, _) => return Err(StoreError::Foreign { path: path.to_path_buf() }),
        (_, true, SCHEMA_VERSION) => {
            connection.execute_batch("PRAGMA journal_mode = WAL").map_err(failed("open"))?;
        }
        (_, true, found @ 1..SCHEMA_VERSION) => {
            let steps = MIGRATIONS[found as usize - 1..].concat();
            connection
                .execute_batch(&format!(
                    "PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))
                .map_err(failed("migrate"))?;
            tracing::info!(path = %path.display(), from = found, to = SCHEMA_VERSION, "store migrated");
        }
        (_, true, found) => return Err(StoreError::Newer { path: path.to_path_buf(), found }),
    }
    connection
        .execute_batch(&format!("PRAGMA journal_size_limit = {LOG_KEPT}; {}", lineage::TABLE))
        .map_err(failed("open"))?;
    connection.set_prepared_statement_cache_capacity(32);
    // The write lock keeps other processes from appending to the log or restarting it.
    let lock =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed("lock"))?;
    rewrite(&log).map_err(|source| StoreError::File { action: "rewrite", path: log, source })?;
    lock.commit().map_err(failed("lock"))?;
    // SQLite also syncs the directory entry of a new log, but ignores a failure.
    if let Some(dir) = path.parent() {
        let forced = File::open(dir).and_then(|dir| dir.sync_all());
        forced.map_err(|source| StoreError::File { action: "sync", path: dir.to_path_buf(), source })?;
    }
    Ok((connection, pages))
}

/// Closes a connection that failed, without a checkpoint. [`connect`] makes the log durable before anything
/// builds on it.
pub(super) fn disconnect(connection: Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.close().map_err(|(_, error)| error)
}

/// Repeats a step of the start until no other process has the database locked.
pub(super) fn patiently<T>(mut step: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut last_logged: Option<Instant> = None;
    loop {
        match step() {
            Err(error) if error.is_locked() => {
                if last_logged.is_none_or(|at| at.elapsed() >= LOG_WAIT_EVERY) {
                    tracing::warn!(%error, "the start waits for it");
                    last_logged = Some(Instant::now());
                }
                std::thread::sleep(WAIT_PAUSE);
            }
            done => return done,
        }
    }
}

/// Writes a file's bytes over themselves and syncs them. A missing file is no error. A crash in between
/// changes nothing, because the bytes are the same.
fn rewrite(path: &Path) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut piece = vec![0; REWRITE_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            break;
        }
        file.write_all_at(&piece[..read], at)?;
        at += read as u64;
    }
    if at > 0 { file.sync_all() } else { Ok(()) }
}

/// Path of a database's write-ahead log.
pub(super) fn log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
