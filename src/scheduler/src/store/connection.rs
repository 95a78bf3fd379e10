//! The database's connection: opened so that nothing rests on an fsync that failed before.
//!
//! After a failed fsync the kernel calls the pages clean that it could not write, and the next fsync succeeds without
//! them. So whatever the write-ahead log holds is written once more, byte for byte, before anything builds on it: at
//! each opening, which is also what follows a failed write.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;

use super::{APPLICATION_ID, MIGRATIONS, SCHEMA, SCHEMA_VERSION, StoreError};

/// The write-ahead log is copied into the database when it has this many pages, of 4 KiB. SQLite's own 1,000 copy pages
/// that change again within the second, four times as often; more would make the next start read more.
const CHECKPOINT_PAGES: i32 = 4_000;

/// Opens the database, creates or migrates it, and makes durable what its log holds.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let failed = |action| move |source| StoreError::unreadable(action, path.to_path_buf(), source);
    let mut connection = Connection::open(path).map_err(failed("open"))?;
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
                    "PRAGMA journal_mode = WAL; BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; \
                     PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
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
                    "PRAGMA journal_mode = WAL; BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))
                .map_err(failed("migrate"))?;
            tracing::info!(path = %path.display(), from = found, to = SCHEMA_VERSION, "store migrated");
        }
        (_, true, found) => return Err(StoreError::Newer { path: path.to_path_buf(), found }),
    }
    connection.set_prepared_statement_cache_capacity(32);
    let log = log(path);
    rewrite(&log).map_err(|source| StoreError::File { action: "rewrite", path: log, source })?;
    connection.wal_checkpoint_v2(Some("main"), CheckpointMode::TRUNCATE).map_err(failed("checkpoint"))?;
    // SQLite forces the new log's name to disk as well, but says nothing when that fails.
    if let Some(dir) = path.parent() {
        let forced = File::open(dir).and_then(|dir| dir.sync_all());
        forced.map_err(|source| StoreError::File { action: "sync", path: dir.to_path_buf(), source })?;
    }
    // In place of SQLite's own automatic checkpoint, which is silent about an fsync that failed.
    connection.wal_hook(Some(checkpoint)).map_err(failed("open"))?;
    Ok(connection)
}

/// Closes a connection that failed, and leaves the log as it is: [`connect`] copies it after it is durable.
pub(super) fn disconnect(connection: Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.close().map_err(|(_, error)| error)
}

fn checkpoint(log: &mut Wal, pages: i32) -> rusqlite::Result<()> {
    if pages >= CHECKPOINT_PAGES {
        log.checkpoint_v2(CheckpointMode::PASSIVE)?;
    }
    Ok(())
}

/// Writes a file's bytes over themselves and forces them to disk; absent is fine. Torn anywhere, it changes nothing.
fn rewrite(path: &Path) -> io::Result<()> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes?,
    };
    if bytes.is_empty() {
        return Ok(());
    }
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

/// Where SQLite keeps the write-ahead log of a database.
pub(super) fn log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
