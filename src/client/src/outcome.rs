//! Represents a task's outcome and reads its result.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use lamagrid_blobs::{BlobName, Spool, SpoolError};
use lamagrid_domain::{BlobMeta, Failure, FailureKind, Role, Status, TaskId};
use lamagrid_gate::{BlobClient, BlobError};
use lamagrid_protocol::message::TaskInfo;

use crate::error::ClientError;

/// The result of a task. The bytes may still be in the spool of this or another host; length and hash are
/// checked when they are read.
#[derive(Debug, Clone)]
pub struct TaskResult {
    /// Length, hash and form of the result.
    pub meta: BlobMeta,
    id: TaskId,
    place: Place,
}

/// Reads a result in pieces.
pub type ResultReader = Box<dyn io::Read + Send>;

/// The place of a result's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the message that carried the outcome.
    Inline(Bytes),
    /// In the spool of this host.
    Spool(Arc<Path>),
    /// In the spool of another host.
    Far(BlobClient),
}

impl TaskResult {
    /// Returns the bytes. Blocks while it reads or fetches a file.
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

    /// Opens the bytes for reading in pieces. The length is checked; the reader checks the hash.
    ///
    /// # Errors
    /// [`ClientError::Result`], [`ClientError::Fetch`].
    pub fn open(&self) -> Result<ResultReader, ClientError> {
        match &self.place {
            Place::Spool(spool) => {
                let spool = Spool::new(spool.to_path_buf());
                let (file, len) = spool
                    .reader(self.id, BlobName::Role(Role::Result))
                    .map_err(|source| self.unreadable(source))?;
                if len != self.meta.len {
                    return Err(self.unreadable(mismatch("its length differs")));
                }
                Ok(Box::new(file))
            }
            Place::Inline(_) | Place::Far(_) => {
                self.read().map(|bytes| Box::new(io::Cursor::new(bytes)) as _)
            }
        }
    }

    /// Reads the bytes into `out`, whose length must be that of [`TaskResult::meta`]. Blocks while it reads or fetches a file.
    ///
    /// # Errors
    /// [`ClientError::Result`], [`ClientError::Fetch`]; the content of `out` is undefined then.
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

/// A task that has ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The task's final status.
    pub task: TaskInfo,
    /// The result; `Some` only if the task completed and its result was not released.
    pub result: Option<TaskResult>,
}

impl Outcome {
    /// Returns the result, or the reason why it is missing.
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

/// An outcome as received: the result's bytes may still be in the spool.
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
