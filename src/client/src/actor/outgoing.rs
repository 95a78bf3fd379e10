//! Sends the actor's requests.

use bytes::Bytes;

use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_protocol::message::{
    Attach, Cancel, ClientRequest, GetGridStatus, Message, Offer, Ping, Query, Release, Submit,
};
use lamagrid_transport::SocketError;
use lamagrid_transport::link::Link;

use super::Actor;
use crate::error::ClientError;
use crate::pending_requests::PendingRequest;
use crate::task_watch::{AfterAcceptance, FollowedTask, Phase, Stage};

impl Actor {
    pub(super) async fn send(
        &self,
        link: &Link,
        request: ClientRequest,
        blobs: Vec<bytes::Bytes>,
    ) -> Result<(), SocketError> {
        link.send(request.to_frame(blobs)?).await
    }

    /// Sends pending requests while the window has room.
    pub(super) async fn flush(&mut self, link: &Link) -> Result<(), SocketError> {
        while let Some(ask) = self.asks.next() {
            let seq = self.asks.next_seq();
            let (request, blobs): (ClientRequest, _) = match &ask {
                PendingRequest::Task(id) => {
                    match self.tasks.get(id).and_then(|task| request_of(*id, task, seq)) {
                        Some(said) => said,
                        None => continue,
                    }
                }
                PendingRequest::Cancel { of, .. } | PendingRequest::Orphan { of, .. } => {
                    (Cancel { seq, id: of.id, owner: of.owner.clone() }.into(), vec![])
                }
                PendingRequest::Query { of, .. } => {
                    (Query { seq, id: of.id, owner: of.owner.clone() }.into(), vec![])
                }
                PendingRequest::GetGridStatus { after, .. } => {
                    (GetGridStatus { seq, after: *after }.into(), vec![])
                }
                PendingRequest::Release { of, .. } => {
                    let release = Release { id: of.id, owner: of.owner.clone() };
                    self.send(link, release.into(), Vec::new()).await?;
                    (Ping { seq }.into(), vec![])
                }
            };
            match self.send(link, request, blobs).await {
                Ok(()) => self.asks.sent(seq, ask),
                // The message is too large; another connection would not change that.
                Err(SocketError::Frame(error)) => {
                    let error = ClientError::from(Failure::new(FailureKind::InvalidInput, error.to_string()));
                    match ask {
                        PendingRequest::Task(id) => self.end(id, Phase::Broken(error)),
                        other => other.fail(error),
                    }
                }
                Err(error) => {
                    self.asks.sent(seq, ask); // sent again on the next connection
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// The request for a task's current stage; `None` if the stage waits for something else.
fn request_of(id: TaskId, task: &FollowedTask, seq: u64) -> Option<(ClientRequest, Vec<Bytes>)> {
    let owner = &task.owner;
    match (task.stage, &task.prepared) {
        (Stage::Offer, Some(prepared)) => {
            let (spec, bytes) = (&prepared.spec, prepared.bytes());
            let offer = Offer {
                seq,
                id,
                owner: owner.clone(),
                queue: spec.queue.clone(),
                routed: spec.routed,
                model: Some(spec.model.clone()),
                picture: spec.picture,
                digest: prepared.digest,
                bytes,
                priority: spec.priority,
                client: spec.client.clone(),
            };
            Some((offer.into(), vec![]))
        }
        (Stage::Submit, Some(prepared)) => {
            let (inline, blobs) = match &prepared.inline {
                Some(blobs) => (prepared.inputs.iter().map(|input| input.role).collect(), blobs.clone()),
                None => (Vec::new(), Vec::new()),
            };
            let follow = task.after == AfterAcceptance::Follow;
            Some((Submit { seq, spec: prepared.spec.clone(), inline, follow }.into(), blobs))
        }
        (Stage::Attach, _) => {
            Some((Attach { seq, id, owner: owner.clone(), digest: task.digest }.into(), vec![]))
        }
        (Stage::Offer | Stage::Submit | Stage::Write | Stage::Follow | Stage::Over, _) => None,
    }
}
