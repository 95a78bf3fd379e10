//! How a task ended, and its result.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use lamagrid_blobs::{BlobName, Spool, SpoolError};
use lamagrid_domain::{BlobMeta, Failure, FailureKind, Role, Status, TaskId};
use lamagrid_gate::{BlobClient, BlobError};
use lamagrid_protocol::message::TaskInfo;

use crate::error::ClientError;

/// What a node made. The bytes may still lie in the spool, of this host or another, and are checked against their
/// length and hash when they are read.
#[derive(Debug, Clone)]
pub struct TaskResult {
    /// Length, hash and form.
    pub meta: BlobMeta,
    id: TaskId,
    place: Place,
}

/// Where the bytes of a result are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// They came along.
    Inline(Bytes),
    /// In the spool of this host.
    Spool(Arc<Path>),
    /// In that of another.
    Far(BlobClient),
}

impl TaskResult {
    /// The bytes. Blocks while it reads a file, or fetches one.
    ///
    /// # Errors
    /// [`ClientError::Result`], [`ClientError::Fetch`].
    pub fn read(&self) -> Result<Bytes, ClientError> {
        let name = BlobName::Role(Role::Result);
        match &self.place {
            Place::Inline(bytes) => self.check(bytes).map(|()| bytes.clone()),
            Place::Spool(spool) => {
                Spool::new(spool.to_path_buf()).get(self.id, name, &self.meta).map(Bytes::from)
            }
            Place::Far(blobs) => {
                let bytes = blobs.fetch(self.id, self.meta.len).map_err(|source| self.unfetched(source))?;
                self.check(&bytes).map(|()| bytes.into())
            }
        }
        .map_err(|source| self.unreadable(source))
    }

    /// Writes the bytes to memory of the caller's, which is of the length that [`TaskResult::meta`] says. Blocks
    /// while it reads a file, or fetches one.
    ///
    /// # Errors
    /// [`ClientError::Result`], [`ClientError::Fetch`]; then `out` holds anything.
    pub fn read_into(&self, out: &mut [u8]) -> Result<(), ClientError> {
        let name = BlobName::Role(Role::Result);
        match &self.place {
            Place::Inline(bytes) => self.check(bytes).and_then(|()| {
                if out.len() != bytes.len() {
                    return Err(mismatch("its length differs"));
                }
                out.copy_from_slice(bytes);
                Ok(())
            }),
            Place::Spool(spool) => Spool::new(spool.to_path_buf()).get_into(self.id, name, &self.meta, out),
            Place::Far(blobs) => {
                blobs.fetch_into(self.id, out).map_err(|source| self.unfetched(source))?;
                self.check(out)
            }
        }
        .map_err(|source| self.unreadable(source))
    }

    fn unfetched(&self, source: BlobError) -> ClientError {
        ClientError::Fetch { id: self.id, source }
    }

    fn check(&self, bytes: &[u8]) -> Result<(), SpoolError> {
        if bytes.len() as u64 != self.meta.len {
            return Err(mismatch("its length differs"));
        }
        if lamagrid_protocol::hash(bytes) != self.meta.hash {
            return Err(mismatch("its hash differs"));
        }
        Ok(())
    }

    fn unreadable(&self, source: SpoolError) -> ClientError {
        ClientError::Result { id: self.id, source: Arc::new(source) }
    }
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
    pub(crate) place: Place,
}

impl Ended {
    pub(crate) fn outcome(&self) -> Outcome {
        let result =
            self.result.clone().map(|meta| TaskResult { meta, id: self.task.id, place: self.place.clone() });
        Outcome { task: self.task.clone(), result }
    }
}

fn mismatch(what: &'static str) -> SpoolError {
    SpoolError::Mismatch { path: "that came".into(), what }
}
