//! The `client` channel: submit, attach, cancel, status, release.

use bytes::Bytes;

use lamagrid_domain::{Failure, FailureKind, Hash, Owner, QueueName, SessionId, TaskId};
use lamagrid_protocol::message::{
    Accepted, Attach, Cancel, ClientReply, ClientRequest, GetGridStatus, GridStatus, Pong, Query,
    QueueStatus, Refused, Submit, TaskStatus, Unknown,
};
use lamagrid_protocol::{PeerId, pack};

use super::status::outcome;
use crate::core::effect::Authority;
use crate::core::policy::admission::AdmissionRequest;
use crate::core::policy::inputs;
use crate::core::state::retention::Released;
use crate::core::state::task::{NewTask, Task};
use crate::core::{Core, Effect, StoreOp, UploadedInputs};

/// An id drawn further in the future is refused: the clock of its host is wrong, or the id carries no time.
const MAX_AHEAD_MS: u64 = 86_400_000;
/// Bytes of nodes in one overview: with the largest node and all queues it still fits into one header.
const PAGE_BYTES: usize = 24 * 1024;

/// A question about a task.
pub(super) struct Inquiry<'a> {
    /// The number of its request.
    pub(super) seq: u64,
    pub(super) id: TaskId,
    /// The owner on whose behalf it is asked.
    pub(super) owner: &'a Owner,
    /// The payload that the client believes the task has.
    pub(super) digest: Option<Hash>,
}

impl Core {
    pub(crate) fn on_client(
        &mut self,
        peer: PeerId,
        request: ClientRequest,
        inline: Vec<Bytes>,
        authority: Authority,
    ) {
        match request {
            ClientRequest::Ping(ping) => {
                let pong = self.pong(ping.seq);
                self.reply(&peer, pong);
            }
            ClientRequest::Offer(offer) => self.on_offer(&peer, &offer, authority),
            ClientRequest::Submit(submit) => self.on_submit(&peer, submit, inline, authority),
            ClientRequest::Attach(attach) => {
                let Attach { seq, id, owner, digest } = attach;
                if let Some(id) = self.tell_status(&peer, &Inquiry { seq, id, owner: &owner, digest }) {
                    self.follow(&peer, id);
                    self.tell_recorded_outcome(&peer, id);
                }
            }
            ClientRequest::Cancel(cancel) => self.on_cancel(&peer, &cancel),
            ClientRequest::Query(query) => {
                let Query { seq, id, owner } = query;
                self.tell_status(&peer, &Inquiry { seq, id, owner: &owner, digest: None });
            }
            ClientRequest::Release(release) => {
                let released = self.retention.release_result(release.id, &release.owner);
                if let Some(Released { bytes, row: ended }) = released {
                    self.admission.bytes_released(&ended.owner, bytes);
                    self.emit(Effect::Store(StoreOp::Release { id: release.id, ended }));
                }
            }
            ClientRequest::GetGridStatus(survey) => self.on_survey(&peer, &survey),
        }
    }

    /// Answers a ping, which depends on no state.
    #[must_use]
    pub(crate) fn pong(&self, seq: u64) -> ClientReply {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Pong { seq, spool: self.settings.spool.clone(), version }.into()
    }

    pub(crate) fn on_client_gone(&mut self, peer: &PeerId) {
        for id in self.followers.remove_peer(peer) {
            if let Some(task) = self.tasks.get_mut(id) {
                task.remove_follower(peer);
            }
        }
    }

    /// Tells `peer` the status of a task, if it may know. Returns the id then.
    ///
    /// A task of another owner and an unknown one get the same answer.
    fn tell_status(&mut self, peer: &PeerId, inquiry: &Inquiry<'_>) -> Option<TaskId> {
        let Inquiry { seq, id, owner, digest } = *inquiry;
        let found = match (self.tasks.get(id), self.retention.get(id)) {
            (Some(task), _) => Some((&task.spec().owner, task.digest(), self.info(task))),
            (None, Some(finished)) => Some((&finished.owner, finished.digest, finished.info(id))),
            (None, None) => None,
        };
        match found {
            Some((owned_by, payload, info)) if owned_by == owner => {
                if digest.is_some_and(|digest| digest != payload) {
                    self.refuse(peer, seq, id_in_use(id), None);
                    return None;
                }
                self.reply(peer, TaskStatus { seq, task: info });
                Some(id)
            }
            _ => {
                let expired = found.is_none() && self.retention.tombstones().covers(id, owner);
                self.reply(peer, Unknown { seq, id, expired });
                None
            }
        }
    }

    fn follow(&mut self, peer: &PeerId, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        self.followers.add(peer, task);
    }

    /// Tells a connection how a task ended, if it has.
    fn tell_recorded_outcome(&mut self, peer: &PeerId, id: TaskId) {
        if let Some(finished) = self.retention.get(id) {
            let outcome = outcome(peer, id, finished);
            self.emit(outcome);
        }
    }

    pub(crate) fn refuse(&mut self, peer: &PeerId, seq: u64, failure: Failure, queue: Option<&QueueName>) {
        let queue_len = queue.and_then(|q| self.ready.length(q)).unwrap_or(0);
        let wait_ms = queue.and_then(|queue| self.expected_wait_in(queue, None));
        self.reply(peer, Refused { seq, failure, queue_len, wait_ms });
    }

    /// Answers a submission or offer whose id cannot become a new task of this owner. False if it can.
    pub(super) fn answer_known_id(&mut self, peer: &PeerId, inquiry: &Inquiry<'_>) -> bool {
        let Inquiry { seq, id, owner, digest } = *inquiry;
        let is_same = |of: &Owner, payload: Hash| of == owner && digest == Some(payload);
        let is_known = match (self.tasks.get(id), self.retention.get(id)) {
            (Some(task), _) => is_same(&task.spec().owner, task.digest()),
            (None, Some(finished)) => is_same(&finished.owner, finished.digest),
            (None, None) if self.retention.tombstones().contains(id) => {
                self.reply(peer, Unknown { seq, id, expired: true });
                return true;
            }
            (None, None) if self.admission.uploads().is_of_another(id, owner) => false,
            (None, None) => match self.check_age(id, owner) {
                Ok(()) => return false,
                Err(failure) => {
                    self.refuse(peer, seq, failure, None);
                    return true;
                }
            },
        };
        if is_known {
            self.tell_status(peer, inquiry);
        } else {
            self.refuse(peer, seq, id_in_use(id), None);
        }
        true
    }

    /// Whether an unknown id can be a new one: drawn after the watermark, and not in the future.
    fn check_age(&self, id: TaskId, owner: &Owner) -> Result<(), Failure> {
        let (drawn_ms, now_ms) = (id.drawn_wall_ms(), self.clock.wall().later_ms());
        let times = || {
            format!(
                "by its first 12 digits {} ms since 1970, by the scheduler's clock it is {now_ms}",
                drawn_ms
            )
        };
        let text = if self.has_expired(id, owner) {
            format!(
                "task id {id} has expired: it was drawn {} s ago ({}), and of {owner} the scheduler remembers single ids of \
                 the last {} s only; if the task ran before, its result is past retention, else draw a new id, and \
                 compare the clocks of both hosts",
                now_ms.saturating_sub(drawn_ms) / 1_000,
                times(),
                now_ms.saturating_sub(self.retention.tombstones().watermark_ms(owner)) / 1_000
            )
        } else if drawn_ms > now_ms.saturating_add(MAX_AHEAD_MS) {
            format!(
                "task id {id} was drawn {} s in the future ({}): draw ids with the library, or begin own ones with the \
                 time; set the clock of the host that is wrong (NTP)",
                (drawn_ms - now_ms) / 1_000,
                times()
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(FailureKind::InvalidInput, text))
    }

    fn has_expired(&self, id: TaskId, owner: &Owner) -> bool {
        fault!(self, WatermarkIgnored => return false);
        self.retention.tombstones().covers(id, owner)
    }

    fn on_submit(&mut self, peer: &PeerId, submit: Submit, inline: Vec<Bytes>, authority: Authority) {
        let Submit { seq, mut spec, inline: inline_roles, follow } = submit;
        spec.replay_of = None;
        let id = spec.id;
        let digest = lamagrid_protocol::payload_digest(&spec);
        let inquiry = Inquiry { seq, id, owner: &spec.owner, digest: Some(digest) };
        if self.answer_known_id(peer, &inquiry) {
            let mine =
                self.tasks.get(id).is_some_and(|t| t.spec().owner == spec.owner && t.digest() == digest)
                    || self.retention.get(id).is_some_and(|e| e.owner == spec.owner && e.digest == digest);
            if follow && mine {
                self.follow(peer, id);
                self.tell_recorded_outcome(peer, id);
            }
            return self.abandon(&spec.owner, id);
        }
        // The reservation becomes the task's own usage, or is given back.
        let reserved = self.admission.unreserve(id).is_some();
        let max_pixels = self.settings.limits.max_pixels;
        let checked = inputs::check(max_pixels, &spec, &inline_roles, &inline)
            .and_then(|()| self.route(&mut spec))
            .and_then(|()| self.admit(peer, &AdmissionRequest::of(&spec, authority)));
        let inputs = if checked.is_ok() { UploadedInputs::Keep } else { UploadedInputs::Delete };
        if reserved || inputs == UploadedInputs::Delete {
            self.emit(Effect::CloseUpload { owner: spec.owner.clone(), id, inputs });
        }
        let evicted = match checked {
            Ok(evicted) => evicted,
            Err(failure) => return self.refuse(peer, seq, failure, Some(&spec.queue)),
        };
        let inline: Vec<_> = inline_roles.iter().copied().zip(inline).collect();
        let (seq_of_task, created_wall_ms) = (self.tasks.next_seq(), self.clock.now().wall_ms);
        let task =
            Task::new(NewTask { spec, digest, seq: seq_of_task, created_wall_ms, inline: inline_roles });
        self.make_room(evicted, |core| core.accept_task(task, inline, None));
        let position = self.ready.position(&self.tasks[id]);
        self.reply(peer, Accepted { seq, id, position });
        if follow {
            self.follow(peer, id);
        }
        self.dispatch_task(id);
    }

    fn on_cancel(&mut self, peer: &PeerId, cancel: &Cancel) {
        let id = cancel.id;
        if self.tasks.get(id).is_some_and(|task| task.spec().owner == cancel.owner) {
            self.cancel(id);
        }
        let is_free = !self.knows(id) && !self.admission.uploads().is_of_another(id, &cancel.owner);
        if is_free && !self.retention.tombstones().contains(id) && self.check_age(id, &cancel.owner).is_ok() {
            // A delayed submit of this id must not start.
            self.abandon(&cancel.owner, id);
            let until_wall_ms = self.tombstone_end(id);
            self.keep_tombstone(id, &cancel.owner, until_wall_ms);
            self.emit(Effect::Store(StoreOp::Remember { id, owner: cancel.owner.clone(), until_wall_ms }));
            self.reply(peer, Unknown { seq: cancel.seq, id, expired: false });
            return;
        }
        self.abandon(&cancel.owner, id);
        self.tell_status(peer, &Inquiry { seq: cancel.seq, id, owner: &cancel.owner, digest: None });
    }

    fn on_survey(&mut self, peer: &PeerId, survey: &GetGridStatus) {
        let after = survey.after.map_or(0, page_number);
        let mut listed: Vec<_> = self.sessions.values().filter(|session| session.number() > after).collect();
        listed.sort_unstable_by_key(|session| session.number());
        let (mut nodes, mut bytes, mut last, mut next) = (Vec::new(), 0, after, None);
        for session in listed {
            let status = self.node_status(session);
            // A status that cannot be packed is reported when the answer is sent.
            bytes += pack(&status).map_or(0, |packed| packed.len());
            if bytes > PAGE_BYTES && !nodes.is_empty() {
                next = Some(page_id(last));
                break;
            }
            nodes.push(status);
            last = session.number();
        }
        let running = self.running();
        let queues = self
            .settings
            .queues
            .iter()
            .map(|(queue, &max_tasks)| QueueStatus {
                queue: queue.clone(),
                waiting: self.ready.length(queue).unwrap_or(0),
                running: running.get(queue).copied().unwrap_or(0),
                max_tasks,
                paused: self.paused.contains(queue),
            })
            .collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.reply(peer, GridStatus { seq: survey.seq, version, nodes, queues, next });
    }
}

/// Writes the number of the last node on a page into a field that once was the id of a session.
fn page_id(number: u64) -> SessionId {
    SessionId::from_bytes(u128::from(number).to_be_bytes())
}

/// Reads [`page_id`].
fn page_number(id: SessionId) -> u64 {
    u64::try_from(u128::from_be_bytes(*id.as_bytes())).unwrap_or(u64::MAX)
}

fn id_in_use(id: TaskId) -> Failure {
    Failure::new(
        FailureKind::InvalidInput,
        format!("task id {id} is in use for something else; draw a new one"),
    )
}
