//! Keeps the database's files small: checkpoints its log and returns free pages to the disk.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, TransactionBehavior};

use super::connection::{LOCK_PATIENCE, disconnect, log, patiently};
use super::lineage::{self, Link};
use super::{Store, StoreError};

/// Length of the write-ahead log, in pages of 4 KiB, at which it is copied into the database. SQLite's default
/// of 1,000 would copy pages that change again within the second, four times as often; a higher value would make the
/// next start read more.
pub(super) const CHECKPOINT_PAGES: i32 = 4_000;
/// Size to which the log is truncated after it had to grow because another process was reading the database.
pub(super) const LOG_KEPT: u64 = 64 << 20;
/// Size of the log at which a warning is logged, and again each time it has doubled.
const LOG_WARNED: u64 = 2 * LOG_KEPT;

/// Free pages that are kept for new tasks. Pages are returned to the disk if more are free and they exceed a
/// quarter of the file.
const FREE_PAGES_KEPT: i64 = 1_024;
/// Pages returned in one step, which takes some milliseconds.
const STEP_PAGES: u32 = 256;
/// Pause between two steps, and before the next try if another process has a lock.
const STEP_PAUSE: Duration = Duration::from_millis(10);
const AGAIN: Duration = Duration::from_secs(1);

/// Largest content of a database of an older version that a start rewrites, once, so that its pages can be
/// returned.
const REWRITTEN_BYTES: i64 = 32 << 20;

/// Sizes of the database's files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreSize {
    pub(crate) database_bytes: u64,
    /// Bytes of the database in free pages.
    pub(crate) free_bytes: u64,
    pub(crate) log_bytes: u64,
}

/// State of the maintenance.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Modification time of the database file after this process's last change.
    changed: Option<(i64, i64)>,
    is_vacuuming: bool,
    /// Pages were returned since the last checkpoint.
    has_vacuumed: bool,
    /// Size of the log at the last warning; 0 before the first.
    pub(super) warned_bytes: u64,
}

impl Store {
    pub(super) fn pragma(&self, name: &str) -> Result<i64, StoreError> {
        let read = self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
        read.map_err(self.failed("read"))
    }

    fn changed(&self) -> Option<(i64, i64)> {
        let file = std::fs::metadata(&self.path).ok()?;
        Some((file.mtime(), file.mtime_nsec()))
    }

    /// True if the log is long enough for a checkpoint.
    pub(super) fn is_checkpoint_due(&self) -> bool {
        self.log_pages.get() >= CHECKPOINT_PAGES
    }

    /// True if another process has changed the database file, by a checkpoint, since the last call.
    pub(super) fn was_changed_by_others(&mut self) -> bool {
        let changed = self.changed();
        std::mem::replace(&mut self.upkeep.changed, changed) != changed
    }

    /// Copies as much of the log into the database as possible. The last commit must have allowed it: see
    /// [`Link::mark`]. If another process or a full disk prevents it, the log stays, and its commits remain
    /// valid. True if everything was copied.
    pub(super) fn checkpoint(&mut self, mode: CheckpointMode) -> Result<bool, StoreError> {
        let copied = self.connection.wal_checkpoint_v2(Some("main"), mode).map_err(self.failed("checkpoint"));
        self.upkeep.changed = self.changed();
        match copied {
            Ok((pages, copied)) if pages == copied => {
                self.log_pages.set(0);
                self.upkeep.has_vacuumed = false;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.is_locked() || error.is_disk_full() => {
                tracing::debug!(%error, "the log is not copied into the database");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Commits only a link that allows a checkpoint.
    fn mark(&mut self) -> Result<(), StoreError> {
        let link = Link::after(self.last_link(), true);
        self.spool_mark.put(link);
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.prepare_cached(lineage::PUT)?.execute([link.to_bytes()])?;
            transaction.commit()
        };
        write(&mut self.connection).map_err(self.failed("write"))?;
        self.link = Some(link);
        Ok(())
    }

    /// Runs `step` without waiting for locks of other processes.
    fn at_once_or_never<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.busy_timeout(Duration::ZERO).map_err(self.failed("set up"))?;
        let done = step(self);
        self.connection.busy_timeout(LOCK_PATIENCE).map_err(self.failed("set up"))?;
        done
    }

    /// Completes a start: gives the database a commit id that no copy of it has, and empties its log.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        match patiently(|| self.mark()) {
            // Accepted work goes on even on a full disk; the checkpoint waits.
            Err(error) if error.is_disk_full() => {
                tracing::warn!(%error, "the disk is full");
                return Ok(());
            }
            marked => marked?,
        }
        self.make_shrinkable();
        if !self.at_once_or_never(|store| store.checkpoint(CheckpointMode::TRUNCATE))? {
            tracing::warn!(
                path = %self.path.display(),
                "another process has the database open and is reading it: its log is kept until that process ends; \
                 `fuser` or `lsof` on the file shows which"
            );
        }
        Ok(())
    }

    /// Rewrites a database whose pages cannot be returned one by one, if it is small and the disk has room.
    fn make_shrinkable(&mut self) {
        let rewrite = |store: &Self| -> Result<(), StoreError> {
            if store.pragma("auto_vacuum")? != 0 {
                return Ok(());
            }
            let pages = store.pragma("page_count")? - store.pragma("freelist_count")?;
            let bytes = pages * store.pragma("page_size")?;
            let free = rustix::fs::statvfs(&store.path).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
            // Once as a temporary file, once in the log, once in the database.
            if bytes > REWRITTEN_BYTES || free < 3 * bytes.unsigned_abs() {
                return Ok(());
            }
            let vacuum = store.connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM");
            vacuum.map_err(store.failed("rewrite"))?;
            tracing::info!(path = %store.path.display(), bytes, "store rewritten, so that it can shrink");
            Ok(())
        };
        if let Err(error) = rewrite(self) {
            tracing::warn!(%error, "the store cannot be rewritten: it keeps the space of deleted tasks for new ones");
        }
    }

    /// Measures the files, and logs a warning if the log has grown large.
    pub(crate) fn size(&mut self) -> Result<StoreSize, StoreError> {
        let page_bytes = self.pragma("page_size")?.unsigned_abs();
        let size = StoreSize {
            database_bytes: self.pragma("page_count")?.unsigned_abs() * page_bytes,
            free_bytes: self.pragma("freelist_count")?.unsigned_abs() * page_bytes,
            log_bytes: std::fs::metadata(log(&self.path)).map_or(0, |log| log.len()),
        };
        let warned = &mut self.upkeep.warned_bytes;
        if size.log_bytes >= LOG_WARNED.max(2 * *warned) {
            *warned = size.log_bytes;
            tracing::warn!(
                path = %log(&self.path).display(),
                bytes = size.log_bytes,
                "the database's log grows, because another process reads the database for long: it can be emptied only \
                 when that process ends; `fuser` or `lsof` on the database shows which"
            );
        } else if *warned > 0 && size.log_bytes <= LOG_KEPT {
            *warned = 0;
            tracing::info!(path = %log(&self.path).display(), bytes = size.log_bytes, "the database's log is small again");
        }
        Ok(size)
    }

    /// Runs one short step of maintenance. Returns the pause before the next step; `None` if nothing is left
    /// to do.
    pub(crate) fn tend(&mut self) -> Option<Duration> {
        if self.doubtful {
            return None;
        }
        match self.at_once_or_never(Self::step) {
            Ok(pause) => pause,
            Err(error) if error.is_locked() || error.is_disk_full() => Some(AGAIN),
            Err(error) => {
                tracing::warn!(%error, "upkeep of the store failed; the next commit opens it anew");
                self.doubtful = true;
                None
            }
        }
    }

    fn step(&mut self) -> Result<Option<Duration>, StoreError> {
        let (pages, free) = (self.pragma("page_count")?, self.pragma("freelist_count")?);
        let upkeep = &mut self.upkeep;
        upkeep.is_vacuuming &= free > FREE_PAGES_KEPT / 2;
        upkeep.is_vacuuming |= free > FREE_PAGES_KEPT && free > pages / 4;
        if upkeep.is_vacuuming && self.pragma("auto_vacuum")? == 2 {
            self.give_back(STEP_PAGES)?;
            if self.is_checkpoint_due() {
                self.mark()?;
                self.checkpoint(CheckpointMode::PASSIVE)?;
            }
            return Ok(Some(STEP_PAUSE));
        }
        let log_bytes = std::fs::metadata(log(&self.path)).map_or(0, |log| log.len());
        if !self.upkeep.has_vacuumed && log_bytes <= LOG_KEPT {
            return Ok(None);
        }
        self.mark()?;
        Ok(if self.checkpoint(CheckpointMode::TRUNCATE)? { None } else { Some(AGAIN) })
    }

    /// Removes up to `pages` free pages from the database; SQLite moves pages from its end into other free
    /// ones.
    fn give_back(&mut self, pages: u32) -> Result<(), StoreError> {
        self.upkeep.has_vacuumed = true;
        let step = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        };
        step().map_err(self.failed("shrink"))
    }

    /// Closes the database. Its log is emptied first, unless another process prevents it.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        if !self.doubtful {
            self.at_once_or_never(|store| {
                store.mark()?;
                store.checkpoint(CheckpointMode::TRUNCATE)
            })?;
        }
        let Self { path, connection, doubtful, .. } = self;
        let closed =
            if doubtful { disconnect(connection) } else { connection.close().map_err(|(_, error)| error) };
        closed.map_err(|source| StoreError::of("close", path, source))
    }
}
