//! Turns incoming frames into inputs of the core, and answers those that are invalid.

use bytes::Bytes;

use lamagrid_blobs::BlobName;
use lamagrid_domain::{Durability, Failure, FailureKind, Owner, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::{Frame, FrameError, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES};
use lamagrid_protocol::message::{
    AdminRequest, AttemptOutcome, ClientReply, ClientRequest, ControlRequest, Message, NodeEvent,
    ProtocolFault, Rejected, ResultRequest,
};
use lamagrid_transport::router::{Incoming, fault};

use super::backlog::Destination;
use super::{EventLoop, refused};
use crate::core::{Authority, Effect, Input, Origin, UploadedInputs};

/// Bytes that an assignment adds to a submission: the attempt's token and number.
const ASSIGN_BYTES: usize = 256;

impl EventLoop {
    pub(super) fn on_client(&mut self, incoming: Incoming) {
        if let Some(incoming) = self.answer_unbarred(incoming) {
            self.take_client(incoming);
        }
    }

    /// Handles a client's message while the store cannot be written: refuses new work, answers pings and
    /// holds everything else back. Returns the message if the store can be written.
    fn answer_unbarred(&mut self, incoming: Incoming) -> Option<Incoming> {
        let Some(failure) = &self.failing else { return Some(incoming) };
        if let Incoming::Frame { peer, frame } = &incoming {
            let refusal = |seq| refused(seq, failure.kind, failure.message.clone());
            let (reply, written) = match ClientRequest::from_frame(frame) {
                Ok(ClientRequest::Submit(submit)) if !self.core.knows(submit.spec.id) => {
                    (Some(refusal(submit.seq)), Some((submit.spec.owner, submit.spec.id)))
                }
                Ok(ClientRequest::Offer(offer)) if !self.core.knows(offer.id) => {
                    (Some(refusal(offer.seq)), None)
                }
                Ok(ClientRequest::Ping(ping)) => (Some(self.core.pong(ping.seq)), None),
                _ => (None, None),
            };
            if let Some((owner, id)) = written.filter(|(owner, _)| self.may_speak_for(peer, owner)) {
                self.handle(Input::Abandoned { owner, id });
            }
            if let Some(reply) = reply {
                self.unbarred.push(Effect::Client { peer: peer.clone(), reply, attach: None });
                return None;
            }
        }
        self.held_back.push(incoming);
        None
    }

    fn take_client(&mut self, incoming: Incoming) {
        let (peer, frame) = match incoming {
            Incoming::Gone { peer } => {
                self.backlog.release(&Destination::Client(peer.clone()));
                return self.handle(Input::ClientGone { peer });
            }
            Incoming::Drained { peer } => return self.drained(&Destination::Client(peer)),
            Incoming::Frame { peer, frame } => (peer, frame),
        };
        self.unsaved_bytes += inline_bytes(&frame);
        let request = match ClientRequest::from_frame(&frame) {
            Ok(request) => request,
            Err(error) => {
                self.pending.push_back(fault_effect(&error, peer, |failure, peer| Effect::Client {
                    peer,
                    reply: failure.into(),
                    attach: None,
                }));
                return;
            }
        };
        let authority = match self.gatekeeper.as_ref().map(|gatekeeper| gatekeeper.authorize(&peer, &request))
        {
            None => Authority::Administrator,
            Some(Ok(authority)) => authority,
            Some(Err(refusal)) => {
                let refusal = refusal.map(|(seq, text)| refused(seq, FailureKind::InvalidInput, text));
                let reply = |reply| Effect::Client { peer, reply, attach: None };
                return self.pending.extend(refusal.map(reply));
            }
        };
        if let ClientRequest::Offer(_) = &request {
            self.look_at_disk();
        }
        if let Some(refusal) = self.unassignable(&request, &frame).or_else(|| self.missing_blob(&request)) {
            if let ClientRequest::Submit(submit) = request {
                self.handle(Input::Abandoned { owner: submit.spec.owner, id: submit.spec.id });
            }
            self.pending.push_back(Effect::Client { peer, reply: refusal, attach: None });
        } else {
            self.handle(Input::Client { peer, request, inline: frame.blobs, authority });
        }
    }

    /// True if a peer's requests may name this owner.
    fn may_speak_for(&self, peer: &PeerId, owner: &Owner) -> bool {
        self.gatekeeper.as_ref().is_none_or(|gatekeeper| gatekeeper.may_speak_for(peer, owner))
    }

    /// Reads the free disk space: once a second, and before an upload is accepted.
    pub(super) fn look_at_disk(&mut self) {
        match rustix::fs::statvfs(self.spool.root()) {
            Ok(found) => {
                let bytes = found.f_bavail.saturating_mul(found.f_frsize);
                self.handle(Input::DiskFree { bytes });
            }
            Err(error) => tracing::warn!(%error, "the free space of the data directory cannot be read"),
        }
    }

    pub(super) fn open_upload(&self, owner: &Owner, id: TaskId, bytes: u64) {
        if let Some(gatekeeper) = &self.gatekeeper {
            gatekeeper.upload_opens(owner, id, bytes);
        }
    }

    /// Deletes on this thread, so that the deletion precedes the answer to a later offer of the same task,
    /// and its new upload.
    pub(super) fn close_upload(&self, owner: &Owner, id: TaskId, inputs: UploadedInputs) {
        if let Some(gatekeeper) = &self.gatekeeper {
            gatekeeper.upload_closes(owner, id);
        }
        if inputs == UploadedInputs::Delete
            && let Err(error) = self.spool.remove_task(id)
        {
            tracing::warn!(task.id = %id, %error, "the blobs of a task that was not accepted stay until the next start");
        }
    }

    /// Refuses a submission whose assignment would exceed one message. No node could receive it, and each
    /// node that it is given to would seem unresponsive.
    fn unassignable(&self, request: &ClientRequest, frame: &Frame) -> Option<ClientReply> {
        let ClientRequest::Submit(submit) = request else { return None };
        let header = frame.header.len() + ASSIGN_BYTES;
        let message = header + inline_bytes(frame);
        if (header <= MAX_HEADER_BYTES && message <= MAX_MESSAGE_BYTES) || self.core.knows(submit.spec.id) {
            return None;
        }
        let text = format!(
            "task {} has more parameters or inline bytes than one message to a node holds; shorten its texts",
            submit.spec.id
        );
        Some(refused(submit.seq, FailureKind::InvalidInput, text))
    }

    /// Refuses a submission by reference if its blobs in the spool do not match their announcement.
    fn missing_blob(&self, request: &ClientRequest) -> Option<ClientReply> {
        let ClientRequest::Submit(submit) = request else { return None };
        let by_reference = submit.spec.blobs.iter().filter(|b| !submit.inline.contains(&b.role));
        let error = by_reference
            .filter_map(|b| {
                self.spool.seal(submit.spec.id, BlobName::Role(b.role), b.len, Durability::Process).err()
            })
            .next()?;
        // The core knows a finished task, whose inputs are deleted: accept the client's retry.
        if self.core.knows(submit.spec.id) {
            return None;
        }
        let text = format!("a blob of task {} is not in the spool: {error}", submit.spec.id);
        Some(refused(submit.seq, FailureKind::InvalidInput, text))
    }

    pub(super) fn on_admin(&mut self, incoming: Incoming) {
        let Incoming::Frame { peer, frame } = incoming else { return };
        match AdminRequest::from_frame(&frame) {
            Ok(request) => self.handle(Input::Admin { peer, request }),
            Err(error) => self.pending.push_back(fault_effect(&error, peer, |failure, peer| Effect::Admin {
                peer,
                reply: failure.into(),
            })),
        }
    }

    pub(super) fn on_control(&mut self, incoming: Incoming) {
        // A closed control connection is ignored: only a closed result connection means that the node is gone.
        let Incoming::Frame { peer, frame } = incoming else { return };
        match ControlRequest::from_frame(&frame) {
            Ok(mut request) => {
                let mut queues = Vec::new();
                if let (Some(gatekeeper), ControlRequest::Hello(hello)) = (&self.gatekeeper, &mut request) {
                    match gatekeeper.check(&peer, hello) {
                        Ok(allowed) => queues = allowed,
                        Err(failure) => {
                            let reply = Rejected { failure, removed: false }.into();
                            self.pending.push_back(Effect::Control { peer, reply });
                            return;
                        }
                    }
                }
                let claimed = match &request {
                    ControlRequest::Hello(hello) => [hello.running.as_slice(), &hello.held].concat(),
                    ControlRequest::Poll(_) | ControlRequest::Goodbye(_) => Vec::new(),
                };
                self.handle(Input::Control { peer: peer.clone(), request, queues });
                // Repeated after a restart of this process, which forgets its grants.
                for token in claimed {
                    if let (Some(gatekeeper), Some(task)) =
                        (&self.gatekeeper, self.core.task_held_by(&peer, token))
                    {
                        gatekeeper.adopted(&peer, token, task);
                    }
                }
            }
            Err(error) => self.pending.push_back(fault_effect(&error, peer, |failure, peer| {
                Effect::Control { peer, reply: failure.into() }
            })),
        }
    }

    pub(super) fn on_result(&mut self, incoming: Incoming) {
        let (peer, mut frame) = match incoming {
            Incoming::Gone { peer } => {
                let far = self.gatekeeper.as_ref().is_some_and(|gatekeeper| gatekeeper.is_far(&peer));
                let origin = if far { Origin::Remote } else { Origin::Local };
                return self.handle(Input::ResultGone { peer, origin });
            }
            Incoming::Drained { .. } => return,
            Incoming::Frame { peer, frame } => (peer, frame),
        };
        self.unsaved_bytes += inline_bytes(&frame);
        match ResultRequest::from_frame(&frame) {
            Ok(mut request) => {
                self.check_delivery(&mut request);
                let inline = frame.blobs.pop();
                self.handle(Input::Result { peer, request, inline });
            }
            Err(error) => self.pending.push_back(fault_effect(&error, peer, |failure, peer| {
                Effect::Result { peer, reply: failure.into() }
            })),
        }
    }

    /// Turns a delivery by reference into a failed attempt if the result in the spool does not match its
    /// announcement.
    fn check_delivery(&self, request: &mut ResultRequest) {
        let ResultRequest::Delivery(delivery) = request else { return };
        let AttemptOutcome::Done { result, inline: false, .. } = &delivery.outcome else { return };
        let Some(task) = self.core.task_of(delivery.token) else { return };
        if let Err(error) =
            self.spool.seal(task, BlobName::Attempt(delivery.token), result.len, Durability::Process)
        {
            let failure = Failure::new(error.kind(), format!("the result could not be taken over: {error}"));
            delivery.outcome = AttemptOutcome::Failed { failure };
        }
    }

    pub(super) fn on_event(&mut self, frame: &Frame) {
        match NodeEvent::from_frame(frame) {
            Ok(event) => self.handle(Input::Event(event)),
            Err(error) => tracing::debug!(%error, "bad event dropped"),
        }
    }
}

fn inline_bytes(frame: &Frame) -> usize {
    frame.blobs.iter().map(Bytes::len).sum()
}

fn fault_effect(
    error: &FrameError,
    peer: PeerId,
    effect: impl FnOnce(ProtocolFault, PeerId) -> Effect,
) -> Effect {
    tracing::debug!(%peer, %error, "bad message");
    effect(fault(error), peer)
}
