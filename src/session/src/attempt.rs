//! One attempt on this node, and its outcome until that is on record.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_domain::{LeaseToken, Role, TaskId, TaskSpec};
use lamagrid_protocol::message::{Assign, AttemptOutcome};

/// One assignment that this node took.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) token: LeaseToken,
    pub(crate) number: u32,
    pub(crate) spec: TaskSpec,
    /// Inputs that came inside the message.
    pub(crate) inline: Vec<(Role, Bytes)>,
    cancelled: AtomicBool,
    abandoned: AtomicBool,
    stopped_at: OnceLock<Instant>,
    entered_at: OnceLock<Instant>,
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

    /// When it was stopped first.
    pub(crate) fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at.get().copied()
    }

    /// It is in its slot from now on.
    pub(crate) fn enter(&self) {
        self.entered_at.get_or_init(Instant::now);
    }

    /// When it came into its slot.
    pub(crate) fn entered_at(&self) -> Option<Instant> {
        self.entered_at.get().copied()
    }

    /// Whether the work shall stop, for whatever reason.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.is_abandoned()
    }

    /// Whether nobody wants to hear its outcome.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// An outcome on its way to the record.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) task: TaskId,
    pub(crate) outcome: AttemptOutcome,
    pub(crate) inline: Option<Bytes>,
    /// Whether it still counts against the credit; false once its slot was freed before its delivery.
    pub(crate) uses_credit: bool,
}

impl Held {
    /// The outcome of an attempt that no slot began with.
    pub(crate) fn cancelled(task: TaskId) -> Self {
        Self { task, outcome: AttemptOutcome::Cancelled, inline: None, uses_credit: true }
    }
}

/// Deletes the spool file of a result that nobody will take.
pub(crate) fn discard(spool: Option<&Spool>, token: LeaseToken, held: Option<Held>) {
    let (Some(spool), Some(held)) = (spool, held) else { return };
    if matches!(held.outcome, AttemptOutcome::Done { inline: false, .. })
        && let Err(error) = spool.remove(held.task, BlobName::Attempt(token))
    {
        tracing::warn!(task.id = %held.task, %error, "an unwanted result stays in the spool");
    }
}
