//! Gives a backend one attempt to work on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use lamagrid_blobs::{BlobName, SpoolError};
use lamagrid_domain::{
    Activity, BlobForm, BlobMeta, Failure, FailureKind, LeaseToken, MemoryUse, Role, Stages, TaskSpec,
};
use lamagrid_gate::BlobError;
use lamagrid_protocol::frame::MAX_INLINE_BYTES;
use lamagrid_protocol::message::{AttemptOutcome, Message, NodeEvent, Step};

use crate::attempt::Attempt;
use crate::state::shared::Shared;

/// Minimum interval of progress events; a person could not see more.
const STEP_INTERVAL: Duration = Duration::from_millis(50);

/// The result of a backend for one task.
#[derive(Debug)]
pub struct Output {
    /// The result's bytes.
    pub bytes: Bytes,
    /// The encoding of the bytes.
    pub form: BlobForm,
    /// The times measured by the backend; the [`Job`] adds those for reading and storing.
    pub stages: Stages,
}

/// A task to work on. Dropping it unfinished reports an internal failure.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    attempt: Arc<Attempt>,
    settled: bool,
    /// Time spent reading inputs, and the last published progress. A mutex, because backends may use several threads.
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    transfer: Duration,
    published: Option<(Instant, Activity)>,
}

/// Converts a duration to milliseconds, the unit of stage times.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

impl Job {
    pub(crate) fn new(shared: Arc<Shared>, attempt: Arc<Attempt>) -> Self {
        Self { shared, attempt, settled: false, notes: Mutex::default() }
    }

    /// The task.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.attempt.spec
    }

    /// Number of the attempt, starting at 1; for display.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// The fencing token of this attempt.
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.attempt.token
    }

    /// The description of an input; `None` if the task does not have it.
    #[must_use]
    pub fn meta(&self, role: Role) -> Option<&BlobMeta> {
        self.spec().blobs.iter().find(|blob| blob.role == role)
    }

    /// Reads an input and checks its length and hash.
    ///
    /// # Errors
    /// [`FailureKind::InvalidInput`] if the task has no such input or its bytes were deleted: another node
    /// would not find them either. [`FailureKind::Internal`] if the bytes cannot be read or differ from the
    /// description.
    pub fn input(&self, role: Role) -> Result<Bytes, Failure> {
        let began = Instant::now();
        let meta = self
            .meta(role)
            .ok_or_else(|| Failure::new(FailureKind::InvalidInput, format!("the task has no {role}")))?;
        let internal = |text: String| Failure::new(FailureKind::Internal, text);
        let inline = self.attempt.inline.iter().find(|(of, _)| *of == role);
        let bytes = if let Some((_, bytes)) = inline {
            if bytes.is_empty() && meta.len > 0 {
                return Err(gone(role, "the scheduler's database has it no more"));
            }
            if bytes.len() as u64 != meta.len || lamagrid_protocol::hash(bytes) != meta.hash {
                return Err(internal(format!("the {role} that came is not the one that was announced")));
            }
            bytes.clone()
        } else if let Some(blobs) = self.shared.blobs() {
            let bytes = blobs.get(self.token(), role, meta.len).map_err(blob_failure)?;
            if lamagrid_protocol::hash(&bytes) != meta.hash {
                return Err(internal(format!("the {role} that came is not the one that was announced")));
            }
            bytes.into()
        } else {
            let spool = self.shared.spool().ok_or_else(|| internal("the spool is not known yet".into()))?;
            let blob = spool.get(self.spec().id, BlobName::Role(role), meta);
            let failed = |error: SpoolError| {
                let text = error.to_string();
                if error.is_missing() {
                    gone(role, &text)
                } else {
                    internal(format!("cannot read the {role} of the task: {text}"))
                }
            };
            blob.map_err(failed)?.into()
        };
        self.notes.lock().transfer += began.elapsed();
        Ok(bytes)
    }

    /// Marks the attempt as in its slot; called before the work itself. Returns false if the task was
    /// cancelled or given back meanwhile; the caller must drop it then.
    #[must_use]
    pub fn enter_slot(&self) -> bool {
        self.shared.enter_slot(&self.attempt)
    }

    /// Frees the slot for another task, before this one is finished. `load` is the part of its time there
    /// that was spent loading the model.
    pub fn leave_slot(&self, load: Duration) {
        self.shared.leave_slot(&self.attempt, load);
    }

    /// Records the memory that the attempt used, which is sent with its result.
    pub fn set_memory(&self, memory: MemoryUse) {
        self.attempt.set_memory(memory);
    }

    /// True if the work should stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.attempt.is_stopped()
    }

    /// Publishes the progress of the work; `of` is 0 if the total is unknown.
    ///
    /// Returns `Break` if the task was cancelled or its lease is lost; a result is not delivered then.
    pub fn step(&self, step: u32, of: u32) -> ControlFlow<()> {
        self.publish_step(Activity::Running, step, of)
    }

    /// Publishes the progress of loading the model; for a download, in percent.
    pub fn loading(&self, step: u32, of: u32) -> ControlFlow<()> {
        self.publish_step(Activity::Loading, step, of)
    }

    fn publish_step(&self, activity: Activity, step: u32, of: u32) -> ControlFlow<()> {
        if self.is_cancelled() {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        let mut notes = self.notes.lock();
        let due = notes
            .published
            .is_none_or(|(at, before)| before != activity || now.duration_since(at) >= STEP_INTERVAL);
        if due || step == of {
            notes.published = Some((now, activity));
            drop(notes);
            let token = self.token();
            self.shared.publish(|session| {
                NodeEvent::from(Step { session, token, step, of, activity }).to_frame(Vec::new())
            });
        }
        ControlFlow::Continue(())
    }

    /// Ends the attempt. Stores a result on the caller's thread and holds it until the scheduler has recorded it.
    ///
    /// Returns the stage times measured on the node, for the log line.
    pub fn finish(mut self, result: Result<Output, Failure>) -> Stages {
        self.settle(result)
    }

    fn settle(&mut self, result: Result<Output, Failure>) -> Stages {
        self.settled = true;
        let (outcome, inline) = if self.is_cancelled() {
            (AttemptOutcome::Cancelled, None)
        } else {
            match result.and_then(|output| self.store(output)) {
                Ok(stored) => stored,
                Err(failure) => (AttemptOutcome::Failed { failure: failure.bounded() }, None),
            }
        };
        let stages =
            if let AttemptOutcome::Done { stages, .. } = &outcome { *stages } else { Stages::default() };
        self.shared.finished(&self.attempt, outcome, inline);
        stages
    }

    fn store(&self, output: Output) -> Result<(AttemptOutcome, Option<Bytes>), Failure> {
        let began = Instant::now();
        let Output { bytes, form, mut stages } = output;
        let hash = lamagrid_protocol::hash(&bytes);
        let result = BlobMeta { role: Role::Result, len: bytes.len() as u64, hash, form };
        let inline = if bytes.len() <= MAX_INLINE_BYTES {
            Some(bytes)
        } else if let Some(blobs) = self.shared.blobs() {
            blobs.put(self.token(), &bytes).map_err(blob_failure)?;
            None
        } else {
            let spool = self
                .shared
                .spool()
                .ok_or_else(|| Failure::new(FailureKind::Internal, "the spool is not known yet"))?;
            spool
                .put(self.spec().id, BlobName::Attempt(self.token()), &bytes)
                .map_err(|error| put_failure(&error))?;
            None
        };
        stages.transfer_ms = millis(self.notes.lock().transfer);
        stages.store_ms = millis(began.elapsed());
        Ok((AttemptOutcome::Done { result, inline: inline.is_some(), stages }, inline))
    }
}

fn gone(role: Role, why: &str) -> Failure {
    let text = format!(
        "the {role} of the task is gone from the scheduler's disk ({why}): its files were deleted, or an older copy of the \
         scheduler's database was put back; submit the task again with a new id"
    );
    Failure::new(FailureKind::InvalidInput, text)
}

fn blob_failure(error: BlobError) -> Failure {
    Failure::new(error.kind(), error.to_string())
}

fn put_failure(error: &SpoolError) -> Failure {
    Failure::new(error.kind(), format!("cannot store the result: {error}"))
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Err(Failure::new(FailureKind::Internal, "the node gave the task up unfinished")));
        }
    }
}
