//! Keeps the database's files small: checkpoints of its log, and pages of deleted tasks that go back to the disk.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, TransactionBehavior};

use super::connection::{LOCK_PATIENCE, disconnect, log, patiently};
use super::lineage::{self, Link};
use super::{Store, StoreError};

/// The write-ahead log is copied into the database when it has this many pages, of 4 KiB. SQLite's own 1,000 copy pages
/// that change again within the second, four times as often; more would make the next start read more.
pub(super) const CHECKPOINT_PAGES: i32 = 4_000;
/// A log that had to grow, because another process was reading the database, is cut back to this.
pub(super) const LOG_KEPT: u64 = 64 << 20;
/// A log that is larger is warned of, and again each time it has doubled.
const LOG_WARNED: u64 = 2 * LOG_KEPT;

/// Pages without content that are kept: new tasks take them again. More than a quarter of the file goes back to the disk.
const FREE_PAGES_KEPT: i64 = 1_024;
/// Pages that go back in one step, some milliseconds of work.
const STEP_PAGES: u32 = 256;
/// Between two steps, and before the next try where another process is in the way.
const STEP_PAUSE: Duration = Duration::from_millis(10);
const AGAIN: Duration = Duration::from_secs(1);

/// A database of an older version is rewritten once, at a start, so that pages can go back: if it has no more content.
const REWRITTEN_BYTES: i64 = 32 << 20;

/// How large the database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreSize {
    pub(crate) database_bytes: u64,
    /// Of those, in pages without content.
    pub(crate) free_bytes: u64,
    pub(crate) log_bytes: u64,
}

/// The upkeep's state.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// When the database file itself was changed last, as far as this process did it.
    changed: Option<(i64, i64)>,
    is_vacuuming: bool,
    /// Pages went back since the last checkpoint.
    has_vacuumed: bool,
    /// How large the log was when it was warned of.
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

    /// Whether the log is long enough to be copied into the database.
    pub(super) fn is_checkpoint_due(&self) -> bool {
        self.log_pages.get() >= CHECKPOINT_PAGES
    }

    /// Whether another process has copied from the log into the database since this was asked last.
    pub(super) fn was_changed_by_others(&mut self) -> bool {
        let changed = self.changed();
        std::mem::replace(&mut self.upkeep.changed, changed) != changed
    }

    /// Copies what it can from the log into the database, after a commit that says so: see [`Link::mark`]. Another
    /// process or a full disk may be in the way; then the log waits, and the commits in it hold.
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

    /// Commits nothing but a link that allows a checkpoint.
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

    /// Runs `step` without waiting for other processes.
    fn at_once_or_never<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.busy_timeout(Duration::ZERO).map_err(self.failed("set up"))?;
        let done = step(self);
        self.connection.busy_timeout(LOCK_PATIENCE).map_err(self.failed("set up"))?;
        done
    }

    /// At a start, once everything was read: the database gets an id that no copy of it has, and its log is emptied.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        match patiently(|| self.mark()) {
            // Accepted work goes on on a full disk, too, and every checkpoint waits.
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

    /// Rewrites a database whose pages cannot go back one by one. Without room for that it stays as it is.
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

    /// How large the files are; a log that grows is warned of.
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

    /// One small step of upkeep, for when there is nothing to commit. Gives the pause before the next one, None where
    /// nothing is left to do.
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

    /// Takes so many free pages out of the database; what lies at its end moves into others.
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

    /// Closes the database, and leaves nothing in its log where no other process is in the way.
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
