//! Handles the messages that the actor receives.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use lamagrid_domain::{Advance, Failure, FailureKind, TaskId};
use lamagrid_protocol::frame::{Frame, FrameError};
use lamagrid_protocol::message::{ClientReply, Message, Outcome, Progress};

use super::{Actor, Connection, FINISHED};
use crate::error::ClientError;
use crate::outcome::{Ended, Place};
use crate::pending_requests::{PendingRequest, Reply};
use crate::task_watch::{AfterAcceptance, Phase, Stage};

impl Actor {
    pub(super) fn on_frame(&mut self, mut frame: Frame) {
        let blobs = std::mem::take(&mut frame.blobs);
        match ClientReply::from_frame(&frame) {
            Ok(ClientReply::Outcome(outcome)) => self.on_outcome(outcome, blobs),
            Ok(ClientReply::Progress(moved)) => {
                if let Some(task) = self.tasks.get(&moved.id) {
                    let Progress { status, step, of, activity, .. } = moved;
                    task.moved(status, Advance { activity, step, of });
                }
            }
            Ok(ClientReply::ProtocolFault(fault)) => self.on_fault(fault.failure.bounded()),
            Ok(reply) => self.on_reply(reply),
            Err(error) => self.on_bad_frame(&error),
        }
    }

    pub(super) fn on_reply(&mut self, reply: ClientReply) {
        let seq = match &reply {
            ClientReply::Pong(pong) => {
                self.on_pong(&pong.spool);
                pong.seq
            }
            ClientReply::UploadGranted(said) => said.seq,
            ClientReply::Accepted(said) => said.seq,
            ClientReply::Refused(said) => said.seq,
            ClientReply::TaskStatus(said) => said.seq,
            ClientReply::Unknown(said) => said.seq,
            ClientReply::GridStatus(said) => said.seq,
            // Not replies to a request: see `on_frame`.
            ClientReply::ProtocolFault(_) | ClientReply::Outcome(_) | ClientReply::Progress(_) => return,
        };
        match (self.asks.answered(seq), reply) {
            (None, _) | (Some(PendingRequest::Orphan { .. }), _) => {}
            (Some(PendingRequest::Task(id)), reply) => self.on_task_reply(id, reply),
            (
                Some(PendingRequest::Cancel { reply: to, .. } | PendingRequest::Query { reply: to, .. }),
                ClientReply::TaskStatus(status),
            ) => {
                answer(to, status.task);
            }
            (Some(PendingRequest::GetGridStatus { reply: to, .. }), ClientReply::GridStatus(overview)) => {
                answer(to, overview)
            }
            (Some(PendingRequest::Release { reply: to, .. }), ClientReply::Pong(_)) => answer(to, ()),
            (Some(ask), reply) => ask.fail(refusal(reply)),
        }
    }

    pub(super) fn on_pong(&mut self, spool: &str) {
        self.backoff.reset();
        if self.spool.to_str() != Some(spool) {
            self.spool = Path::new(spool).into();
        }
        if !matches!(*self.connection.borrow(), Connection::Up) {
            let before = self.connection.send_replace(Connection::Up);
            if matches!(before, Connection::Down { .. }) {
                tracing::info!(
                    address = self.endpoint.address(),
                    tasks = self.tasks.len(),
                    "the scheduler answers again"
                );
            }
        }
    }

    pub(super) fn on_task_reply(&mut self, id: TaskId, reply: ClientReply) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match (task.stage, reply) {
            (Stage::Offer, ClientReply::UploadGranted(_)) => self.write(id),
            (Stage::Submit, ClientReply::Accepted(said)) => {
                task.accepted(said.position);
                self.forget_accepted(id);
            }
            // An offer does not follow a known task: attach to it.
            (Stage::Offer, ClientReply::TaskStatus(_)) => {
                task.stage = Stage::Attach;
                self.asks.push(PendingRequest::Task(id));
            }
            (Stage::Submit | Stage::Attach, ClientReply::TaskStatus(said)) => {
                task.accepted(said.task.position.unwrap_or(0));
                task.moved(said.task.status, Advance::default());
                self.forget_accepted(id);
            }
            (Stage::Attach, ClientReply::Unknown(said)) if !said.expired && task.prepared.is_some() => {
                tracing::info!(task.id = %id, "the scheduler does not know the task; submitting it again");
                task.stage = task.first_stage();
                self.asks.push(PendingRequest::Task(id));
            }
            // Replies to an earlier stage.
            (Stage::Write | Stage::Follow | Stage::Over, _) => {}
            (_, reply) => self.end(id, Phase::Broken(refusal(reply))),
        }
    }

    /// Drops a task that was submitted without following it.
    fn forget_accepted(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|task| task.after == AfterAcceptance::Forget) {
            self.tasks.remove(&id);
        }
    }

    pub(super) fn on_outcome(&mut self, outcome: Outcome, blobs: Vec<Bytes>) {
        let Outcome { task, result } = outcome;
        let inline = blobs.into_iter().next();
        let id = task.id;
        self.asks.forget_task(id);
        if self.tasks.get(&id).is_some_and(|task| task.stage != Stage::Over) {
            let place = match (inline, self.endpoint.blobs()) {
                (Some(bytes), _) => Place::Inline(bytes),
                (None, None) => Place::Spool(Arc::clone(&self.spool)),
                (None, Some(blobs)) => Place::Far(blobs),
            };
            self.end(id, Phase::Ended(Arc::new(Ended { task, result, place })));
        }
    }

    pub(super) fn end(&mut self, id: TaskId, phase: Phase) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // A task that is only watched is not kept after an error, so that a later call asks the scheduler again.
        let keep = task.prepared.is_some() || matches!(phase, Phase::Ended(_));
        task.end(phase);
        if !keep {
            self.tasks.remove(&id);
            return;
        }
        self.finished.push_back(id);
        if self.finished.len() > FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.tasks.remove(&oldest);
        }
    }

    /// Fails everything pending, since one side cannot decode the other's messages.
    pub(super) fn on_fault(&mut self, failure: Failure) {
        tracing::warn!(%failure, "the scheduler did not understand a message");
        let error = ClientError::from(failure);
        if error.kind() == FailureKind::Incompatible {
            return self.give_up(&error);
        }
        for id in self.fail_asks(&error) {
            self.end(id, Phase::Broken(error.clone()));
        }
    }

    /// Fails every pending request and followed task.
    pub(super) fn give_up(&mut self, error: &ClientError) {
        self.fail_asks(error);
        let live = self.tasks.iter().filter(|(_, task)| task.stage != Stage::Over);
        for id in live.map(|(id, _)| *id).collect::<Vec<TaskId>>() {
            self.end(id, Phase::Broken(error.clone()));
        }
    }

    /// Fails all pending requests, and returns the ids of tasks among them.
    fn fail_asks(&mut self, error: &ClientError) -> Vec<TaskId> {
        let asks: Vec<PendingRequest> = self.asks.drain().collect();
        let mut tasks = Vec::new();
        for ask in asks {
            match ask {
                PendingRequest::Task(id) => tasks.push(id),
                other => other.fail(error.clone()),
            }
        }
        tasks
    }

    pub(super) fn on_bad_frame(&mut self, error: &FrameError) {
        match error {
            FrameError::Version { .. } => {
                self.on_fault(Failure::new(FailureKind::Incompatible, error.to_string()));
            }
            // A newer scheduler may send kinds that this client does not know.
            FrameError::UnknownKind { .. } => tracing::debug!(%error, "skipped a message"),
            FrameError::Malformed { .. } | FrameError::Header { .. } | FrameError::TooLarge { .. } => {
                tracing::warn!(%error, "skipped a message");
            }
        }
    }
}

fn answer<T>(to: Reply<T>, with: T) {
    // The caller may have stopped waiting.
    let _ = to.send(Ok(with));
}

/// Converts a reply that is not a success into an error.
fn refusal(reply: ClientReply) -> ClientError {
    match reply {
        ClientReply::Refused(said) => ClientError::Refused {
            failure: said.failure.bounded(),
            queue_len: said.queue_len,
            wait: said.wait_ms.map(Duration::from_millis),
        },
        ClientReply::Unknown(said) => ClientError::Unknown { id: said.id, expired: said.expired },
        _ => Failure::new(FailureKind::Incompatible, "the scheduler gave an answer to another question; install the same lamagrid version on both sides").into(),
    }
}
