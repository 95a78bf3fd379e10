//! Room for inputs that an owner has announced and not submitted yet.
//!
//! An offer that is admitted reserves room: it counts against all bounds as a task of that size does, until it is
//! submitted, cancelled, refused or too old. Bytes may come only for what is reserved, and no more of them.

use std::collections::{BTreeSet, HashMap};

use lamagrid_domain::{ClientName, Failure, FailureKind, Owner, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Offer, UploadGranted};

use crate::core::effect::Authority;
use crate::core::state::admission::AdmissionRequest;
use crate::core::{Core, Effect};

/// An upload that takes longer is given up: no disk or network that is of use takes so long.
const UPLOAD_MS: u64 = 600_000;

/// What is reserved for one task.
#[derive(Debug)]
pub(crate) struct Upload {
    owner: Owner,
    client: Option<ClientName>,
    bytes: u64,
    /// By the lease clock.
    until_ms: u64,
}

/// All reservations.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    by_id: HashMap<TaskId, Upload>,
    ends: BTreeSet<(u64, TaskId)>,
}

impl Uploads {
    fn insert(&mut self, id: TaskId, upload: Upload) {
        self.ends.insert((upload.until_ms, id));
        self.by_id.insert(id, upload);
    }

    fn remove(&mut self, id: TaskId) -> Option<Upload> {
        let upload = self.by_id.remove(&id)?;
        self.ends.remove(&(upload.until_ms, id));
        Some(upload)
    }

    /// Whether another owner brings inputs under this id.
    pub(crate) fn is_of_another(&self, id: TaskId, owner: &Owner) -> bool {
        self.by_id.get(&id).is_some_and(|upload| upload.owner != *owner)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.by_id.values().map(|upload| upload.bytes).sum()
    }

    #[cfg(test)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.by_id.keys()
    }
}

impl Core {
    pub(crate) fn on_offer(&mut self, peer: &PeerId, offer: &Offer, authority: Authority) {
        let Offer { seq, id, owner, queue, digest, bytes, priority, client } = offer;
        if self.on_known(peer, *seq, *id, owner, *digest) {
            fault!(self, UploadOfKnown => self.emit(Effect::OpenUpload { owner: owner.clone(), id: *id, bytes: *bytes }));
            return;
        }
        // The same offer again, on another connection perhaps, takes the place of the first one.
        let before = self.unreserve(*id);
        // What the first one let in may be there still.
        let most = before.as_ref().map_or(0, |upload| upload.bytes).max(*bytes);
        let max_bytes = 3 * self.max_blob_bytes();
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
                self.emit(Effect::CloseUpload { owner: owner.clone(), id: *id, delete: true });
                return self.refuse(peer, *seq, failure, Some(queue));
            }
        };
        // Its bytes need their room before they come; its place in the queue is taken when it is submitted.
        let fits = self.usage.spool_bytes().saturating_add(most) <= self.settings.limits.max_spool_bytes;
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
        self.usage.reserve(&upload.owner, upload.client.as_ref(), upload.bytes);
        self.uploads.insert(id, upload);
    }

    /// Gives a reservation back.
    pub(crate) fn unreserve(&mut self, id: TaskId) -> Option<Upload> {
        let upload = self.uploads.remove(id)?;
        self.usage.unreserve(&upload.owner, upload.client.as_ref(), upload.bytes);
        Some(upload)
    }

    /// An owner does without a task that was not accepted: what came of its inputs goes.
    pub(crate) fn abandon(&mut self, owner: &Owner, id: TaskId) {
        let is_free = !self.knows(id) && !self.uploads.is_of_another(id, owner);
        if is_free {
            self.unreserve(id);
            self.emit(Effect::CloseUpload { owner: owner.clone(), id, delete: true });
        }
    }

    /// Gives up what was announced and never submitted.
    pub(crate) fn end_old_uploads(&mut self) {
        while let Some(&(_, id)) = self.uploads.ends.first().filter(|(at, _)| *at <= self.clock.elapsed_ms())
        {
            if let Some(upload) = self.unreserve(id) {
                tracing::info!(task.id = %id, owner = %upload.owner, bytes = upload.bytes,
                    "inputs were announced and their task was never submitted: they are deleted");
                self.emit(Effect::CloseUpload { owner: upload.owner, id, delete: true });
            }
        }
    }
}
