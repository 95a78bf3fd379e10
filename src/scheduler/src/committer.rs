//! The thread that commits: it takes groups of writes, retries a failed one as it is, and gives up in time, but never
//! because the disk is full.

use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use lamagrid_domain::{Role, TaskId};

use crate::core::StoreOp;
use crate::store::{Store, StoreError};

/// Pause between two tries of one group.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

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
    Failing(String),
    /// The group failed for too long, and not because the disk is full: the process ends, and the next one finds what
    /// is on disk.
    GaveUp(StoreError),
}

/// Hands groups to the thread. Dropping it ends the thread after the group in hand.
pub(crate) struct Committer {
    groups: std_mpsc::SyncSender<Group>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Committer {
    /// Starts the thread.
    pub(crate) fn start(store: Store, give_up_after: Duration) -> std::io::Result<Self> {
        // One group at a time: the shell collects the next one meanwhile. At most two reports are unread.
        let (groups, groups_rx) = std_mpsc::sync_channel::<Group>(1);
        let (reports_tx, reports) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("store".into()).spawn(move || {
            let mut store = store;
            while let Ok(group) = groups_rx.recv() {
                let report = commit(&mut store, &group, give_up_after, &reports_tx);
                if reports_tx.send(report).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { groups, reports })
    }

    /// Hands over a group; the caller waits for its report before the next one.
    pub(crate) fn commit(&self, group: Group) {
        // The thread lives as long as this value, and its channel is empty: the last report came.
        let _ = self.groups.send(group);
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
            tracing::error!(%error, "commit failed, trying again");
            let _ = reports.send(Report::Failing(error.to_string()));
            Instant::now()
        });
        // A full disk keeps what it has, and a restart makes no room: accepted work goes on being served.
        if error.is_disk_full() {
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
