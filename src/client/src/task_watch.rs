//! Tracks one task that the client follows: the stage of its submission, and the callers that watch it.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use lamagrid_domain::{Advance, FailureKind, Hash, Owner, Status};

use crate::error::ClientError;
use crate::outcome::Ended;
use crate::task::Prepared;

/// Progress events kept for a slow follower: those of half a second of the fastest sampler.
const EVENTS: usize = 64;

/// The progress that waiting callers see.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Not acknowledged yet.
    Sending,
    /// Recorded by the scheduler.
    Accepted {
        /// Number of tasks before it in its queue when it was accepted.
        position: u64,
    },
    /// Ended with an outcome.
    Ended(Arc<Ended>),
    /// Can no longer be followed.
    Broken(ClientError),
}

impl Phase {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Broken(_))
    }
}

/// The next step of a task's submission, and thus the request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Offer it: ask whether its blobs may be stored.
    Offer,
    /// Wait for its blobs to be written.
    Write,
    /// Submit it.
    Submit,
    /// Attach to it by its id.
    Attach,
    /// Wait for its outcome.
    Follow,
    /// Finished: the outcome arrived or cannot arrive.
    Over,
}

/// The treatment of a submitted task once it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterAcceptance {
    /// It is followed to its end.
    Follow,
    /// It is dropped.
    Forget,
}

/// One followed task.
#[derive(Debug)]
pub(crate) struct FollowedTask {
    /// The submission, kept until the outcome; `None` for a task that is only watched.
    pub(crate) prepared: Option<Arc<Prepared>>,
    /// The owner on whose behalf it is followed.
    pub(crate) owner: Owner,
    pub(crate) after: AfterAcceptance,
    /// The payload's digest, if known.
    pub(crate) digest: Option<Hash>,
    pub(crate) stage: Stage,
    /// True while a thread writes its blobs; the next write starts only after that thread's report.
    pub(crate) writing: bool,
    /// Number of the current write; 0 if no write's report is valid.
    pub(crate) round: u64,
    phase: watch::Sender<Phase>,
    events: broadcast::Sender<TaskEvent>,
}

impl FollowedTask {
    /// Tracks a task to submit.
    pub(crate) fn submitted(prepared: Arc<Prepared>, after: AfterAcceptance) -> Self {
        let mut tracked = Self::watched(prepared.spec.owner.clone());
        (tracked.digest, tracked.after) = (Some(prepared.digest), after);
        tracked.prepared = Some(prepared);
        tracked.stage = tracked.first_stage();
        tracked
    }

    /// Tracks a task that was submitted before, perhaps by another client.
    pub(crate) fn watched(owner: Owner) -> Self {
        let (phase, _) = watch::channel(Phase::Sending);
        let (events, _) = broadcast::channel(EVENTS);
        Self {
            prepared: None,
            owner,
            after: AfterAcceptance::Follow,
            digest: None,
            stage: Stage::Attach,
            writing: false,
            round: 0,
            phase,
            events,
        }
    }

    /// The stage with which a submission starts.
    pub(crate) fn first_stage(&self) -> Stage {
        match &self.prepared {
            None => Stage::Attach,
            Some(prepared) if prepared.inline.is_some() => Stage::Submit,
            Some(_) => Stage::Offer,
        }
    }

    /// Chooses the stage to resume from on a new connection.
    ///
    /// A restarted scheduler deletes the blobs of unknown tasks, so blobs that were written but not accepted are written again.
    pub(crate) fn reconnected(&mut self) {
        self.round = 0;
        self.stage = match self.stage {
            Stage::Offer | Stage::Write | Stage::Submit => self.first_stage(),
            Stage::Attach | Stage::Follow => Stage::Attach,
            Stage::Over => Stage::Over,
        };
    }

    /// True if the task can be dropped: never accepted or only watched, and no caller holds it.
    pub(crate) fn is_abandoned(&self) -> bool {
        let kept = self.prepared.is_some() && !matches!(*self.phase.borrow(), Phase::Sending);
        self.stage != Stage::Over && !self.writing && !kept && self.phase.receiver_count() == 0
    }

    /// True if it was given up because the scheduler was unreachable, which may have changed.
    pub(crate) fn may_be_asked_for_again(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Broken(error) if error.kind() == FailureKind::Disconnected)
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn follow(&self) -> TaskWatch {
        TaskWatch { events: self.events.subscribe(), phases: self.phase.subscribe(), done: false }
    }

    /// Records that the scheduler knows the task.
    pub(crate) fn accepted(&mut self, position: u64) {
        self.stage = Stage::Follow;
        self.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Sending);
            if first {
                *phase = Phase::Accepted { position };
            }
            first
        });
    }

    /// Publishes the task's progress.
    pub(crate) fn moved(&self, status: Status, advance: Advance) {
        // The task may have no followers.
        let _ = self.events.send(TaskEvent { status, advance });
    }

    /// Publishes the end to all callers, and frees the inputs.
    pub(crate) fn end(&mut self, phase: Phase) {
        self.stage = Stage::Over;
        self.prepared = None;
        self.phase.send_replace(phase);
    }
}

/// A progress event of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskEvent {
    /// The task's status.
    pub status: Status,
    /// The progress of the work.
    pub advance: Advance,
}

/// Receives the events of one task, oldest first, until it has ended.
///
/// A slow reader loses the oldest events; only the last one matters to a progress bar.
#[derive(Debug)]
pub struct TaskWatch {
    pub(crate) events: broadcast::Receiver<TaskEvent>,
    pub(crate) phases: watch::Receiver<Phase>,
    pub(crate) done: bool,
}

impl TaskWatch {
    /// Waits for the next event. The one with a terminal status is the last; after it comes `None`.
    ///
    /// # Errors
    /// [`ClientError`] if the task can no longer be followed.
    ///
    /// # Cancel safety
    /// Safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<TaskEvent>, ClientError> {
        loop {
            if self.done {
                return Ok(None);
            }
            // Events received before the end are delivered before it.
            match self.events.try_recv() {
                Ok(event) => return Ok(Some(event)),
                Err(broadcast::error::TryRecvError::Lagged(_)) => continue,
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {}
            }
            match &*self.phases.borrow_and_update() {
                Phase::Sending | Phase::Accepted { .. } => {}
                Phase::Ended(ended) => {
                    self.done = true;
                    return Ok(Some(TaskEvent { status: ended.task.status, advance: Advance::default() }));
                }
                Phase::Broken(error) => {
                    self.done = true;
                    return Err(error.clone());
                }
            }
            let closed = tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => return Ok(Some(event)),
                    Err(broadcast::error::RecvError::Lagged(_)) => false,
                    Err(broadcast::error::RecvError::Closed) => true,
                },
                changed = self.phases.changed() => changed.is_err(),
            };
            if closed && !self.phases.borrow().is_over() {
                self.done = true;
                return Err(ClientError::Closed);
            }
        }
    }
}
