//! Tracks one attempt on this node, and its outcome until the scheduler has recorded it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_domain::{LeaseToken, MemoryUse, Role, TaskId, TaskSpec};
use lamagrid_protocol::message::{Assign, AttemptOutcome};

/// One assignment that this node accepted.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) token: LeaseToken,
    pub(crate) number: u32,
    pub(crate) spec: TaskSpec,
    /// Inputs that arrived inside the message.
    pub(crate) inline: Vec<(Role, Bytes)>,
    cancelled: AtomicBool,
    abandoned: AtomicBool,
    stopped_at: OnceLock<Instant>,
    entered_at: OnceLock<Instant>,
    memory: OnceLock<MemoryUse>,
}

impl Attempt {
    pub(crate) fn new(assign: Assign, blobs: Vec<Bytes>) -> Self {
        Self {
            token: assign.token,
            number: assign.attempt,
            spec: assign.spec,
            inline: assign.inline.into_iter().zip(blobs).collect(),
            cancelled: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            stopped_at: OnceLock::new(),
            entered_at: OnceLock::new(),
            memory: OnceLock::new(),
        }
    }

    pub(crate) fn cancel(&self) {
        self.stopped_at.get_or_init(Instant::now);
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn abandon(&self) {
        self.stopped_at.get_or_init(Instant::now);
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// When the attempt was first cancelled or abandoned.
    pub(crate) fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at.get().copied()
    }

    /// Records that the attempt has entered its slot.
    pub(crate) fn enter(&self) {
        self.entered_at.get_or_init(Instant::now);
    }

    /// When the attempt entered its slot.
    pub(crate) fn entered_at(&self) -> Option<Instant> {
        self.entered_at.get().copied()
    }

    /// Records the memory that the attempt used.
    pub(crate) fn set_memory(&self, memory: MemoryUse) {
        self.memory.get_or_init(|| memory);
    }

    /// The memory that the attempt used, if it was measured.
    pub(crate) fn memory(&self) -> Option<MemoryUse> {
        self.memory.get().copied()
    }

    /// True if the work should stop, because the attempt was cancelled or abandoned.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.is_abandoned()
    }

    /// True if its outcome is no longer wanted.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// An outcome that is held until the scheduler has recorded it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) task: TaskId,
    pub(crate) outcome: AttemptOutcome,
    pub(crate) inline: Option<Bytes>,
    /// The memory that the attempt used, if it was measured.
    pub(crate) memory: Option<MemoryUse>,
    /// True if the attempt still uses credit; false if its slot was freed before the delivery.
    pub(crate) uses_credit: bool,
}

impl Held {
    /// The outcome of an attempt that was cancelled before it entered its slot.
    pub(crate) fn cancelled(task: TaskId) -> Self {
        Self { task, outcome: AttemptOutcome::Cancelled, inline: None, memory: None, uses_credit: true }
    }
}

/// Deletes the spool file of a result that will not be accepted.
pub(crate) fn discard(spool: Option<&Spool>, token: LeaseToken, held: Option<Held>) {
    let (Some(spool), Some(held)) = (spool, held) else { return };
    if matches!(held.outcome, AttemptOutcome::Done { inline: false, .. })
        && let Err(error) = spool.remove(held.task, BlobName::Attempt(token))
    {
        tracing::warn!(task.id = %held.task, %error, "an unwanted result stays in the spool");
    }
}
