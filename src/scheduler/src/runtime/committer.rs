//! The thread that commits: it takes groups of writes, retries a failed one as it is, and gives up in time, but never
//! because the disk is full or another process keeps the database locked. In between it keeps the store small.

use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use lamagrid_domain::{Role, TaskId};

use crate::core::StoreOp;
use crate::store::{Store, StoreError, StoreSize};

/// Pause between two tries of one group.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// With nothing to commit for this long, the store is tended.
const IDLE: Duration = Duration::from_millis(20);
/// How often the store's size is told while it changes.
const SIZE_EVERY: Duration = Duration::from_secs(1);
/// How long closing the store may take when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Writes that become durable together, and blobs to read right after.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) ops: Vec<StoreOp>,
    pub(crate) reads: Vec<(TaskId, Vec<Role>)>,
}

/// What the thread reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// The group is durable; its blobs, one list per read.
    Committed(Vec<Vec<Bytes>>),
    /// The group failed, for this reason, and is tried again.
    Failing {
        /// Why.
        reason: String,
        /// Another process is in the way, and the disk has no fault.
        is_locked: bool,
    },
    /// How large the store is now.
    Size(StoreSize),
    /// The group failed for too long, and not because the disk is full: the process ends, and the next one finds what
    /// is on disk.
    GaveUp(StoreError),
}

/// Hands groups to the thread. Dropping it ends the thread after the group in hand.
pub(crate) struct Committer {
    /// None once it is closed.
    groups: Option<std_mpsc::SyncSender<Group>>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Committer {
    /// Starts the thread.
    pub(crate) fn start(store: Store, give_up_after: Duration) -> std::io::Result<Self> {
        // One group at a time: the shell collects the next one meanwhile. Few reports are unread.
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
                        // Under load that never pauses one step now and then.
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

    /// Hands over a group; the caller waits for its report before the next one.
    pub(crate) fn commit(&self, group: Group) {
        // The thread lives as long as this value, and its channel is empty: the last report came.
        let _ = self.groups.as_ref().map(|groups| groups.send(group));
    }

    /// Ends the thread after the group in hand, and waits until the store is closed, but not for long: the next start makes
    /// up for it.
    pub(crate) async fn close(&mut self) {
        self.groups = None;
        let closed = async { while self.reports.recv().await.is_some() {} };
        if tokio::time::timeout(CLOSE_PATIENCE, closed).await.is_err() {
            tracing::warn!("the store could not be closed in time; the next start makes up for it");
        }
    }

    /// The next report.
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
            let failing = Report::Failing { reason: error.to_string(), is_locked: error.is_locked() };
            let _ = reports.send(failing);
            Instant::now()
        });
        // A full disk keeps what it has, and a restart makes no room: accepted work goes on being served. Nor does a
        // restart end another process that has the database locked.
        if error.is_disk_full() || error.is_locked() {
            failing_since = Some(Instant::now());
        } else if since.elapsed() >= give_up_after {
            return Report::GaveUp(error);
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// The blobs that a group's messages carry. One that is damaged or gone is empty in its message: whoever reads it sees
/// that it is not what was announced, and the others go on.
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
