//! How a task ended, and its result's bytes.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use lamagrid_domain::{BlobMeta, Failure, FailureKind, Role, Status};
use lamagrid_wire::message::TaskInfo;
use lamagrid_wire::spool::{BlobName, Spool, SpoolError};

use crate::error::ClientError;

/// The bytes that a node made, checked against their length and hash.
#[derive(Debug, Clone)]
pub struct TaskResult {
    /// Length, hash and form.
    pub meta: BlobMeta,
    /// The bytes.
    pub bytes: Bytes,
}

/// A task that ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The task as it ended.
    pub task: TaskInfo,
    /// What came of it: a result only where the task completed and was not released before.
    pub result: Option<TaskResult>,
}

impl Outcome {
    /// The result, or why there is none.
    ///
    /// # Errors
    /// The task's failure; `Cancelled` if it was cancelled; `InvalidInput` if its result was released.
    pub fn into_result(self) -> Result<TaskResult, Failure> {
        let id = self.task.id;
        match (self.task.status, self.task.failure, self.result) {
            (Status::Completed, _, Some(result)) => Ok(result),
            (Status::Completed, _, None) => Err(Failure::new(
                FailureKind::InvalidInput,
                format!("task {id} completed, but its result was released; submit it again with a new id"),
            )),
            (_, Some(failure), _) => Err(failure),
            (Status::Cancelled, None, _) => {
                Err(Failure::new(FailureKind::Cancelled, format!("task {id} was cancelled")))
            }
            (status, None, _) => {
                let text = format!("task {id} ended as {status} without a reason; please report this");
                Err(Failure::new(FailureKind::Internal, text))
            }
        }
    }
}

/// An outcome as it came: the bytes may still lie in the spool.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) task: TaskInfo,
    pub(crate) result: Option<BlobMeta>,
    pub(crate) inline: Option<Bytes>,
    pub(crate) spool: Arc<Path>,
}

impl Ended {
    /// Reads and checks the result.
    ///
    /// # Errors
    /// [`ClientError::Result`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed, and the next call reads again.
    pub(crate) async fn read(&self) -> Result<Outcome, ClientError> {
        let id = self.task.id;
        let Some(meta) = self.result.clone() else {
            return Ok(Outcome { task: self.task.clone(), result: None });
        };
        let wanted = meta.clone();
        let inline = self.inline.clone();
        let spool = Spool::new(self.spool.to_path_buf());
        let read = move || match inline {
            Some(bytes) if bytes.len() as u64 != wanted.len => Err(mismatch("its length differs")),
            Some(bytes) if lamagrid_wire::hash(&bytes) != wanted.hash => Err(mismatch("its hash differs")),
            Some(bytes) => Ok(bytes),
            None => spool.get(id, BlobName::Role(Role::Result), &wanted).map(Bytes::from),
        };
        let bytes = if self.inline.is_some() {
            read() // at most 256 KiB
        } else {
            tokio::task::spawn_blocking(read).await.map_err(|_| ClientError::Closed)?
        };
        let bytes = bytes.map_err(|source| ClientError::Result { id, source: Arc::new(source) })?;
        Ok(Outcome { task: self.task.clone(), result: Some(TaskResult { meta, bytes }) })
    }
}

fn mismatch(what: &'static str) -> SpoolError {
    SpoolError::Mismatch { path: "in the message".into(), what }
}
