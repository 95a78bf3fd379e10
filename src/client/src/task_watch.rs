//! One task that the client follows: the stage of its submission, and the callers that watch it.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use lamagrid_domain::{Advance, FailureKind, Hash, Status};

use crate::error::ClientError;
use crate::outcome::Ended;
use crate::task::Prepared;

/// Progress events kept for a follower that reads slowly: half a second of the fastest sampler.
const EVENTS: usize = 64;

/// What callers wait for.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Not acknowledged yet.
    Sending,
    /// On the scheduler's record.
    Accepted {
        /// Tasks before it in its queue, at that moment.
        position: u64,
    },
    /// Has an outcome.
    Ended(Arc<Ended>),
    /// Cannot be followed any more.
    Broken(ClientError),
}

impl Phase {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Broken(_))
    }
}

/// What has to be said next about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// PendingRequest whether its blobs may be written.
    Offer,
    /// Nothing: its blobs are being written.
    Write,
    /// Submit it.
    Submit,
    /// PendingRequest for it by its id.
    Attach,
    /// Nothing: its outcome will come.
    Follow,
    /// Nothing: its outcome came, or cannot come.
    Over,
}

/// One followed task.
#[derive(Debug)]
pub(crate) struct FollowedTask {
    /// What was submitted here, kept until the outcome; `None` for a task that is only watched.
    pub(crate) prepared: Option<Arc<Prepared>>,
    /// The payload's digest, where it is known.
    pub(crate) digest: Option<Hash>,
    pub(crate) stage: Stage,
    /// Whether a thread writes its blobs: two at a time would share a temporary file.
    pub(crate) writing: bool,
    /// Which write is the valid one; 0 for none.
    pub(crate) round: u64,
    phase: watch::Sender<Phase>,
    events: broadcast::Sender<TaskEvent>,
}

impl FollowedTask {
    /// A task to submit.
    pub(crate) fn submitted(prepared: Arc<Prepared>) -> Self {
        let digest = Some(prepared.digest);
        let mut tracked = Self::new(Some(prepared), digest);
        tracked.stage = tracked.first_stage();
        tracked
    }

    /// A task that somebody submitted before, perhaps elsewhere.
    pub(crate) fn watched() -> Self {
        Self::new(None, None)
    }

    fn new(prepared: Option<Arc<Prepared>>, digest: Option<Hash>) -> Self {
        let (phase, _) = watch::channel(Phase::Sending);
        let (events, _) = broadcast::channel(EVENTS);
        Self { prepared, digest, stage: Stage::Attach, writing: false, round: 0, phase, events }
    }

    /// Where a submission begins.
    pub(crate) fn first_stage(&self) -> Stage {
        match &self.prepared {
            None => Stage::Attach,
            Some(prepared) if prepared.inline => Stage::Submit,
            Some(_) => Stage::Offer,
        }
    }

    /// Where it goes on after a new connection.
    ///
    /// A restarted scheduler deletes the blobs of ids that it does not know, so that what was written and not
    /// yet accepted is written again.
    pub(crate) fn reconnected(&mut self) {
        self.round = 0;
        self.stage = match self.stage {
            Stage::Offer | Stage::Write | Stage::Submit => self.first_stage(),
            Stage::Attach | Stage::Follow => Stage::Attach,
            Stage::Over => Stage::Over,
        };
    }

    /// Whether nobody would miss it: never accepted, or only watched, and no caller holds it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        let kept = self.prepared.is_some() && !matches!(*self.phase.borrow(), Phase::Sending);
        self.stage != Stage::Over && !self.writing && !kept && self.phase.receiver_count() == 0
    }

    /// Whether it is followed no longer because the scheduler was out of reach: it may be in reach now.
    pub(crate) fn may_be_asked_for_again(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Broken(error) if error.kind() == FailureKind::Disconnected)
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn follow(&self) -> TaskWatch {
        TaskWatch { events: self.events.subscribe(), phases: self.phase.subscribe(), done: false }
    }

    /// The scheduler knows the task.
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

    /// The task moved.
    pub(crate) fn moved(&self, status: Status, advance: Advance) {
        // Nobody follows it: then nobody misses it.
        let _ = self.events.send(TaskEvent { status, advance });
    }

    /// Tells everybody the end; inputs are not needed any more.
    pub(crate) fn end(&mut self, phase: Phase) {
        self.stage = Stage::Over;
        self.prepared = None;
        self.phase.send_replace(phase);
    }
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskEvent {
    /// What people are told.
    pub status: Status,
    /// How far the work is.
    pub advance: Advance,
}

/// The events of one task, oldest first, until it has ended.
///
/// Events are dropped, oldest first, for whoever reads too slowly: only the last one matters to a progress bar.
#[derive(Debug)]
pub struct TaskWatch {
    pub(crate) events: broadcast::Receiver<TaskEvent>,
    pub(crate) phases: watch::Receiver<Phase>,
    pub(crate) done: bool,
}

impl TaskWatch {
    /// The next event; the one with a terminal status is the last, then comes `None`.
    ///
    /// # Errors
    /// [`ClientError`] if the task cannot be followed any more.
    ///
    /// # Cancel safety
    /// Safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<TaskEvent>, ClientError> {
        loop {
            if self.done {
                return Ok(None);
            }
            // What was heard before the end comes before the end.
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
