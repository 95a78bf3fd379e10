//! Stores a task's inputs that are too large for a message: in the spool, or at the scheduler's host.

use bytes::Bytes;

use lamagrid_blobs::{BlobName, Spool, StagedFile};
use lamagrid_domain::{Failure, FailureKind, TaskId};

use super::{Actor, Written};
use crate::pending_requests::PendingRequest;
use crate::task::{Content, Input};
use crate::task_watch::{Phase, Stage};

fn read(file: &StagedFile) -> Result<Bytes, Failure> {
    let read = std::fs::read(file.path());
    read.map(Bytes::from)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("cannot read an upload: {error}")))
}

impl Actor {
    /// Writes or uploads the task's inputs on another thread.
    pub(super) fn write(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(prepared) = task.prepared.clone() else { return };
        self.last_round += 1;
        let round = self.last_round;
        task.stage = Stage::Write;
        task.writing = true;
        task.round = round;
        let (spool, far) = (Spool::new(self.spool.to_path_buf()), self.endpoint.blobs());
        self.writers.spawn_blocking(move || {
            let put = |input: &Input| match &far {
                None => {
                    let name = BlobName::Role(input.role);
                    let stored = match &input.content {
                        Content::Bytes(bytes) => spool.put(id, name, bytes),
                        Content::File(file) => spool.link(id, name, file.path()),
                    };
                    stored.map_err(|error| Failure::new(error.kind(), error.to_string()))
                }
                Some(blobs) => {
                    let bytes = match &input.content {
                        Content::Bytes(bytes) => bytes.clone(),
                        Content::File(file) => read(file)?,
                    };
                    blobs
                        .bring(id, input.role, &bytes)
                        .map_err(|error| Failure::new(error.kind(), error.to_string()))
                }
            };
            Written { id, round, result: prepared.inputs.iter().try_for_each(put) }
        });
    }

    pub(super) fn on_written(&mut self, written: Option<Written>) {
        let Some(Written { id, round, result }) = written else {
            // Only a panic in a write loses its report; the task's callers then time out.
            tracing::error!("a thread that wrote blobs panicked");
            return;
        };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.writing = false;
        if task.stage == Stage::Over {
            return;
        }
        if round != task.round {
            task.stage = task.first_stage();
            self.asks.push(PendingRequest::Task(id));
            return;
        }
        match result {
            Ok(()) => {
                task.stage = Stage::Submit;
                self.asks.push(PendingRequest::Task(id));
            }
            // Retried until the callers' time limit ends it.
            Err(failure) if failure.kind == FailureKind::Disconnected => {
                tracing::warn!(task.id = %id, reason = failure.message, "inputs did not reach the scheduler; trying again");
                task.stage = task.first_stage();
                self.asks.push(PendingRequest::Task(id));
            }
            Err(failure) => self.end(id, Phase::Broken(failure.into())),
        }
    }
}
