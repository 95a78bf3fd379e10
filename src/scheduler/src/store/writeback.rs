//! Syncs the database's log to disk in the background, while commits go on.
//!
//! At durability `process`, only a checkpoint would sync the log, and commits would wait for it: sixteen
//! megabytes at once take as long as hundreds of commits. A thread therefore syncs small pieces, so that a
//! checkpoint finds little left to do.
//! Does not: guarantee durability. A commit of durability `full` syncs the log itself.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

/// Operations between two syncs: about half a megabyte for small tasks.
const PIECE: usize = 128;

/// The thread, and the number of operations since it was last woken.
pub(super) struct Writeback {
    wake: Option<SyncSender<()>>,
    /// Ends with the first failed fsync.
    thread: Option<JoinHandle<io::Result<()>>>,
    written: usize,
}

impl Writeback {
    /// Starts the thread for an existing log.
    pub(super) fn start(log: &Path) -> io::Result<Self> {
        let log = File::open(log)?;
        let (wake, woken) = mpsc::sync_channel(1);
        let force = move || woken.iter().try_for_each(|()| log.sync_data());
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(force)?;
        Ok(Self { wake: Some(wake), thread: Some(thread), written: 0 })
    }

    /// Counts committed operations, and wakes the thread after each [`PIECE`] of them.
    pub(super) fn wrote(&mut self, operations: usize) {
        self.written += operations;
        if self.written >= PIECE {
            self.written = 0;
            // If the thread has not yet taken the last wake-up, its sync covers these too. A failed thread
            // reports by `failure`.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }

    /// Returns the error of a failed fsync, once. The kernel then marks unwritten pages as clean, so the log
    /// must be rewritten before anything builds on it.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        let failed = self.thread.take_if(|thread| thread.is_finished())?;
        failed.join().ok()?.err()
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.wake = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
