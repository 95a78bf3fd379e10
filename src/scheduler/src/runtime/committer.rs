//! Commits groups of writes on a thread of its own. A failed group is retried unchanged; after
//! `give_up_after` the thread gives up, unless the disk is full or another process has the database locked.
//! Between groups it maintains the store (checkpoints, free pages).

use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use lamagrid_domain::{Role, TaskId};

use crate::core::StoreOp;
use crate::store::{Store, StoreError, StoreSize, WriteFault};

/// Pause between two tries of one group.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Idle time after which the thread maintains the store.
const IDLE: Duration = Duration::from_millis(20);
/// Shortest interval between two reports of the store's size.
const SIZE_EVERY: Duration = Duration::from_secs(1);
/// How long closing the store may take when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Writes that become durable together, and blobs to read right after them.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) ops: Vec<StoreOp>,
    pub(crate) reads: Vec<(TaskId, Vec<Role>)>,
}

/// Report of the commit thread to the event loop.
#[derive(Debug)]
pub(crate) enum Report {
    /// The group is durable. Holds the blobs that it asked for, one list per read.
    Committed(Vec<Vec<Bytes>>),
    /// The group failed and is being retried.
    Failing {
        /// The error, as text.
        reason: String,
        fault: WriteFault,
    },
    /// The store's present size.
    Size(StoreSize),
    /// The group failed for too long, for a reason other than a full disk or a lock. The process must end; the
    /// next start recovers from disk.
    GaveUp(StoreError),
}

/// Hands groups to the commit thread. Dropping it ends the thread after the group in progress.
pub(crate) struct Committer {
    /// `None` after [`Self::close`].
    groups: Option<std_mpsc::SyncSender<Group>>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Committer {
    /// Starts the thread, which gives up a group that fails for `give_up_after`.
    pub(crate) fn start(store: Store, give_up_after: Duration) -> std::io::Result<Self> {
        // One group at a time: the event loop collects the next one meanwhile. Few reports are ever unread,
        // so their channel needs no bound.
        let (groups, groups_rx) = std_mpsc::sync_channel::<Group>(1);
        let (reports_tx, reports) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("store".into()).spawn(move || {
            let mut store = store;
            let mut sized = None;
            let mut pause = Some(IDLE);
            loop {
                let next = match pause {
                    Some(pause) => groups_rx.recv_timeout(pause),
                    None => groups_rx.recv().map_err(RecvTimeoutError::from),
                };
                match next {
                    Ok(group) => {
                        let report = commit(&mut store, &group, give_up_after, &reports_tx);
                        let _ = reports_tx.send(report);
                        pause = Some(IDLE);
                        if sized.is_some_and(|at: Instant| at.elapsed() < SIZE_EVERY) {
                            continue;
                        }
                        // Under constant load the thread is never idle, so maintain the store here once per
                        // size report.
                        store.tend();
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        pause = store.tend();
                        if pause.is_some_and(|pause| pause < SIZE_EVERY)
                            && sized.is_some_and(|at| at.elapsed() < SIZE_EVERY)
                        {
                            continue;
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if let Ok(size) = store.size() {
                    let _ = reports_tx.send(Report::Size(size));
                    sized = Some(Instant::now());
                }
            }
            if let Err(error) = store.close() {
                tracing::warn!(%error, "the store was not closed in order; the next start makes up for it");
            }
        })?;
        Ok(Self { groups: Some(groups), reports })
    }

    /// Hands over a group. The caller must wait for its report before it hands over the next one.
    pub(crate) fn commit(&self, group: Group) {
        // Cannot fail or block: the thread lives as long as this value, and the last group's report has
        // arrived.
        let _ = self.groups.as_ref().map(|groups| groups.send(group));
    }

    /// Ends the thread after the group in progress and waits until the store is closed, for at most
    /// [`CLOSE_PATIENCE`]. The next start repairs a store that was not closed.
    pub(crate) async fn close(&mut self) {
        self.groups = None;
        let closed = async { while self.reports.recv().await.is_some() {} };
        if tokio::time::timeout(CLOSE_PATIENCE, closed).await.is_err() {
            tracing::warn!("the store could not be closed in time; the next start makes up for it");
        }
    }

    /// Waits for the next report; `None` if the thread has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

fn commit(
    store: &mut Store,
    group: &Group,
    give_up_after: Duration,
    reports: &mpsc::UnboundedSender<Report>,
) -> Report {
    let mut failing_since = None;
    loop {
        let error = match store.commit(&group.ops).and_then(|()| read(store, group)) {
            Ok(blobs) => return Report::Committed(blobs),
            Err(error) => error,
        };
        let since = *failing_since.get_or_insert_with(|| {
            if error.is_locked() {
                tracing::warn!(%error, "the commit waits for it");
            } else {
                tracing::error!(%error, "commit failed, trying again");
            }
            let failing = Report::Failing { reason: error.to_string(), fault: error.write_fault() };
            let _ = reports.send(failing);
            Instant::now()
        });
        // Restarting would neither free disk space nor end the process that holds the lock, so never give up
        // for these: accepted work is still served meanwhile.
        if error.is_disk_full() || error.is_locked() {
            failing_since = Some(Instant::now());
        } else if since.elapsed() >= give_up_after {
            return Report::GaveUp(error);
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Reads the blobs that a group's messages carry. A damaged or missing blob is sent as empty bytes: its
/// reader finds that it does not match its announced hash, and the group's other messages are still sent.
fn read(store: &Store, group: &Group) -> Result<Vec<Vec<Bytes>>, StoreError> {
    let blob = |task: TaskId, role: Role| match store.blob(task, role) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            tracing::error!(task.id = %task, %role, "a blob is missing in the store");
            Ok(Bytes::new())
        }
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::error!(task.id = %task, %role, %error, "a blob cannot be read");
            Ok(Bytes::new())
        }
        Err(error) => Err(error),
    };
    let of_task = |(task, roles): &(TaskId, Vec<Role>)| roles.iter().map(|role| blob(*task, *role)).collect();
    if group.reads.is_empty() {
        return Ok(Vec::new());
    }
    store.at_once(|| group.reads.iter().map(of_task).collect())
}
