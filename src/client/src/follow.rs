//! What a followed task does, step by step.

use tokio::sync::{broadcast, watch};

use lamagrid_domain::{Advance, Status};

use crate::error::ClientError;
use crate::tracked::Phase;

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
pub struct Follow {
    pub(crate) events: broadcast::Receiver<TaskEvent>,
    pub(crate) phases: watch::Receiver<Phase>,
    pub(crate) done: bool,
}

impl Follow {
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
