//! Uploads: an owner announces inputs before it submits their task.
//!
//! An admitted offer reserves room. It counts against all bounds as a task of that size does, until it is submitted,
//! cancelled, refused or expired. Only reserved bytes may be uploaded.

use lamagrid_domain::{Failure, FailureKind, Owner, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Offer, UploadGranted};

use super::client::Inquiry;
use crate::core::effect::Authority;
use crate::core::policy::admission::AdmissionRequest;
use crate::core::policy::inputs;
use crate::core::state::uploads::Upload;
use crate::core::{Core, Effect, UploadedInputs};

/// An upload that takes longer is given up: no usable disk or network is that slow.
const UPLOAD_MS: u64 = 600_000;

impl Core {
    pub(crate) fn on_offer(&mut self, peer: &PeerId, offer: &Offer, authority: Authority) {
        let Offer { seq, id, owner, digest, bytes, priority, client, .. } = offer;
        let queue = &self.queue_of_offer(offer);
        let inquiry = Inquiry { seq: *seq, id: *id, owner, digest: Some(*digest) };
        if self.answer_known_id(peer, &inquiry) {
            fault!(self, UploadOfKnown => self.emit(Effect::OpenUpload { owner: owner.clone(), id: *id, bytes: *bytes }));
            return;
        }
        // A repeated offer, perhaps on another connection, replaces the first one.
        let before = self.admission.unreserve(*id);
        // Bytes that the first one admitted may still be there.
        let most = before.as_ref().map_or(0, |upload| upload.bytes).max(*bytes);
        let max_bytes = 3 * inputs::max_bytes(self.settings.limits.max_pixels);
        let wanted = AdmissionRequest {
            queue,
            owner,
            client: client.as_ref(),
            bytes: most,
            priority: *priority,
            authority,
        };
        let admitted = if *bytes <= max_bytes {
            self.admit(peer, &wanted)
        } else {
            let text = format!("{bytes} bytes of input are more than the {max_bytes} that max_pixels allows");
            Err(Failure::new(FailureKind::InvalidInput, text))
        };
        let evicted = match admitted {
            Ok(evicted) => evicted,
            Err(failure) => {
                self.emit(Effect::CloseUpload {
                    owner: owner.clone(),
                    id: *id,
                    inputs: UploadedInputs::Delete,
                });
                return self.refuse(peer, *seq, failure, Some(queue));
            }
        };
        // The bytes need their room before they arrive; the place in the queue is taken on submission.
        let fits = self.admission.spool_bytes().saturating_add(most) <= self.settings.limits.max_spool_bytes;
        if !fits {
            self.make_room(evicted, |_| {});
        }
        let upload = Upload {
            owner: owner.clone(),
            client: client.clone(),
            bytes: most,
            until_ms: self.clock.elapsed_ms() + UPLOAD_MS,
        };
        self.reserve(*id, upload);
        self.emit(Effect::OpenUpload { owner: owner.clone(), id: *id, bytes: most });
        self.reply(peer, UploadGranted { seq: *seq });
    }

    fn reserve(&mut self, id: TaskId, upload: Upload) {
        fault!(self, UploadUncounted => return);
        self.admission.reserve(id, upload);
    }

    /// Deletes the uploaded inputs of a task that was not accepted and will not be.
    pub(crate) fn abandon(&mut self, owner: &Owner, id: TaskId) {
        let is_free = !self.knows(id) && !self.admission.uploads().is_of_another(id, owner);
        if is_free {
            self.admission.unreserve(id);
            self.emit(Effect::CloseUpload { owner: owner.clone(), id, inputs: UploadedInputs::Delete });
        }
    }

    /// Gives up uploads whose task was not submitted in time.
    pub(crate) fn end_expired_uploads(&mut self) {
        while let Some(id) = self.admission.uploads().expired(self.clock.elapsed_ms()) {
            let Some(upload) = self.admission.unreserve(id) else { break };
            tracing::info!(task.id = %id, owner = %upload.owner, bytes = upload.bytes,
                "inputs were announced and their task was never submitted: they are deleted");
            self.emit(Effect::CloseUpload { owner: upload.owner, id, inputs: UploadedInputs::Delete });
        }
    }
}
