//! Forces the database's log to disk while commits go on.
//!
//! At durability `process` nothing but a checkpoint does, and commits wait for it: sixteen megabytes at once take as
//! long as hundreds of them. A thread forces small pieces, so that a checkpoint finds little left to do.
//! Does not: promise anything. A commit of durability `full` forces its own.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

/// Writes between two pieces: about half a megabyte of small tasks.
const PIECE: usize = 128;

/// The thread, and what has been written since it was last woken.
pub(super) struct Writeback {
    wake: Option<SyncSender<()>>,
    /// Ends with the first fsync that fails.
    thread: Option<JoinHandle<io::Result<()>>>,
    written: usize,
}

impl Writeback {
    /// Starts the thread for a log that is there.
    pub(super) fn start(log: &Path) -> io::Result<Self> {
        let log = File::open(log)?;
        let (wake, woken) = mpsc::sync_channel(1);
        let force = move || woken.iter().try_for_each(|()| log.sync_data());
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(force)?;
        Ok(Self { wake: Some(wake), thread: Some(thread), written: 0 })
    }

    /// So many operations were committed.
    pub(super) fn wrote(&mut self, operations: usize) {
        self.written += operations;
        if self.written >= PIECE {
            self.written = 0;
            // A piece that waits already takes these along; a thread that failed tells by `failure`.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }

    /// Why an fsync failed, once. The kernel calls the pages clean that it could not write, so nothing may build on the
    /// log before it is written anew.
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
