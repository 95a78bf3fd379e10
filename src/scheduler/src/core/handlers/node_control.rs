//! The `control` channel of nodes: registration, polls and commands, goodbyes; and the end of sessions.

use std::collections::BTreeMap;

use lamagrid_domain::{Failure, FailureKind, LeaseToken, LineFeeds, QueueName, SessionId, printable};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Action, ActionKind, Commands, ControlReply, ControlRequest, Farewell, Goodbye, Hello, Hint, LaneAddress,
    Poll, RefusedQueue, Rejected, SessionGone, Welcome,
};

use crate::core::policy::lanes::LaneRules;
use crate::core::policy::node_change::{MAX_MODELS, MAX_SLOTS};
use crate::core::policy::retry::Loss;
use crate::core::state::dispatch_order::AttemptState;
use crate::core::state::leases::{Orphan, OrphanedBy};
use crate::core::state::session::{Registration, Session};
use crate::core::{Core, Effect, NodeId};

/// Polls in a row that may miss an accepted attempt before it is requeued; one can overlap its delivery.
const MAX_MISSED_POLLS: u8 = 3;
/// The reason of a refused command is logged up to this length.
const MAX_REASON_CHARS: usize = 200;

/// Whether the attempts of a session that ends are kept for its node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeepAttempts {
    /// The node left on purpose: its attempts wait again at once.
    No,
    /// Accepted attempts are kept for the node until this instant of the lease clock.
    Until(u64),
}

/// The attempts that a node lists in its hello.
struct Listed {
    running: Vec<LeaseToken>,
    /// It holds their results.
    held: Vec<LeaseToken>,
}

/// The fate of the orphans of a node that came back.
struct Adopted {
    kept: Vec<LeaseToken>,
    /// Attempts that the node does not have any more.
    lost: Vec<Orphan>,
}

impl Core {
    pub(crate) fn on_control(&mut self, peer: PeerId, request: ControlRequest, allowed: &[QueueName]) {
        let reply = match request {
            ControlRequest::Hello(hello) => self.on_hello(&peer, hello, allowed),
            ControlRequest::Poll(poll) => self.on_poll(&peer, poll),
            ControlRequest::Goodbye(goodbye) => self.on_goodbye(&peer, &goodbye),
        };
        // A reply that is a new session's welcome binds its lanes first.
        self.emit(Effect::Control { peer, reply });
    }

    fn on_goodbye(&mut self, peer: &PeerId, goodbye: &Goodbye) -> ControlReply {
        if let Some(session) = self.sessions.spoken_for(goodbye.session, peer) {
            let node = session.node().clone();
            self.end_session(goodbye.session, KeepAttempts::No, "the node said goodbye");
            self.node_left(&node);
        }
        Farewell {}.into()
    }

    /// `allowed` are the queues of the node's certificate; empty for all.
    fn on_hello(&mut self, peer: &PeerId, hello: Hello, allowed: &[QueueName]) -> ControlReply {
        let Hello { mut info, slots, overlap, running, held, boot, actions } = hello;
        let node = NodeId::new(peer, info.name.clone());
        if let Some(text) = self.removal_text(&node) {
            return self.reject_removed(&node, text);
        }
        // A node whose models cannot be used registers all the same, so that its reasons are seen.
        let offers_nothing = info.models.is_empty() && !info.withheld.is_empty();
        let models = if offers_nothing { 0..=0 } else { 1..=MAX_MODELS };
        if !models.contains(&info.models.len()) || !(1..=MAX_SLOTS).contains(&slots) {
            let text = format!("a node offers 1 to {MAX_MODELS} models and 1 to {MAX_SLOTS} slots");
            return self.reject(&node, FailureKind::InvalidInput, text);
        }
        let plan = self.lane_rules(allowed).plan(&mut info);
        if plan.queues.is_empty() && !offers_nothing {
            let mut text = no_queue(&node, &plan.refused, &self.settings.queues);
            if !allowed.is_empty() {
                text = format!(
                    "the certificate {} is for other queues than those of the node's models: issue it with --queue; {text}",
                    peer.holder()
                );
            }
            return self.reject(&node, FailureKind::InvalidInput, text);
        }
        for RefusedQueue { queue, reason } in &plan.refused {
            if self.settings.queues.contains_key(queue) {
                tracing::debug!(%node, %queue, reason, "node does not serve a queue");
            } else {
                tracing::warn!(%node, %queue, reason, "node serves a queue less than it offers");
            }
        }
        let mut is_takeover = false;
        if let Some(old) = self.sessions.of_node(&node) {
            is_takeover = !old.is_same_process(boot);
            if is_takeover && !self.placement().is_suspect(old) {
                let (session, pid) = (old.number(), old.info().pid);
                let text = format!(
                    "a node named {node} is connected already: give this one another name with --name"
                );
                tracing::debug!(%node, session, pid, "the other node of that name");
                // Not final: it may be this node's own predecessor, whose end is about to be noticed.
                return self.reject(&node, FailureKind::Disconnected, text);
            }
            let reason = if is_takeover {
                "another process of that name took its place, since it was silent"
            } else {
                "its node connected again"
            };
            self.end_session(old.id(), KeepAttempts::Until(self.clock.elapsed_ms()), reason);
        }
        let id = SessionId::from_bytes(self.random_bytes());
        let is_drained = self.is_still_drained(&node, boot);
        let allowed = allowed.to_vec();
        let node_id = node.clone();
        let registration = Registration { node: node_id, boot, info, plan, allowed, slots, overlap, actions };
        let number = self.sessions.next_number();
        let mut session = Session::open(id, number, registration, self.clock.elapsed_ms());
        if is_drained {
            session.drain();
            session.command(Action::Drain); // sent with its first poll
        } else if self.orders.was_taken_back(&node, boot) && session.executes(ActionKind::Undrain) {
            session.command(Action::Undrain);
        }
        if let Some(change) = self.changes.returned(&node, boot) {
            let seq = session.command(Action::Set { change: change.clone() });
            self.changes.begin(node.clone(), boot, change, seq);
        }
        let endpoints = &self.settings.endpoints;
        let lanes = session
            .lanes()
            .enumerate()
            .map(|(index, queue)| LaneAddress { queue: queue.clone(), address: endpoints.lane(id, index) });
        let lanes = lanes.collect();
        let orphans = self.leases.take_orphans(&node);
        let cause = orphans.as_ref().map_or(OrphanedBy::Restart, |orphans| orphans.cause);
        let attempts = orphans.map_or_else(Vec::new, |orphans| orphans.attempts);
        let listed = Listed { running, held };
        let Adopted { kept, lost } = self.adopt(&mut session, attempts, &listed, cause);
        let info = session.info();
        tracing::info!(
            %node, session = number, kind = info.kind.as_str(), pid = info.pid, slots, overlap,
            queues = ?session.lanes().map(QueueName::as_str).collect::<Vec<_>>(),
            models = info.models.len(), kept = kept.len(), lost = lost.len(), "session opened"
        );
        let refused = session.refused().to_vec();
        self.sessions.insert(session);
        // The other process may still be alive, so its end says nothing about its tasks.
        let cause = if is_takeover { OrphanedBy::Takeover } else { cause };
        self.requeue_orphans(&node, lost, cause, "node came back without tasks that it had");
        let abandoned = self.stale_attempts(&listed, &kept);
        Welcome {
            session: id,
            lanes,
            refused,
            lease_ms: self.settings.scheduler.lease_ms,
            poll_ms: self.settings.scheduler.poll_ms,
            spool: self.settings.spool.clone(),
            abandoned,
        }
        .into()
    }

    /// Attempts that the node still has continue under the new session.
    fn adopt(
        &mut self,
        session: &mut Session,
        attempts: Vec<Orphan>,
        listed: &Listed,
        cause: OrphanedBy,
    ) -> Adopted {
        let Listed { running, held } = listed;
        let (mut kept, lost): (Vec<_>, Vec<_>) =
            attempts.into_iter().partition(|o| running.contains(&o.token) || held.contains(&o.token));
        // Results come after running attempts. After a restart only the node knows the order of dispatch.
        let order_is_known = cause == OrphanedBy::LostSession;
        kept.sort_by_key(|orphan| {
            let place = running.iter().position(|token| *token == orphan.token);
            (place.is_none(), place.filter(|_| !order_is_known))
        });
        for Orphan { token, waited, .. } in &kept {
            let state = match (running.contains(token), waited) {
                (false, _) => AttemptState::Finished,
                (true, true) => AttemptState::Waited,
                (true, false) => AttemptState::Given,
            };
            session.adopt(*token, state);
            let id = self.leases.task_of(*token);
            id.and_then(|id| self.tasks.get_mut(id)).expect("orphans are unfinished").adopt(session.id());
        }
        Adopted { kept: kept.into_iter().map(|orphan| orphan.token).collect(), lost }
    }

    /// Attempts that a node lists and has no lease for, unless it only waits to hear that its result is recorded.
    fn stale_attempts(&self, listed: &Listed, leased: &[LeaseToken]) -> Vec<LeaseToken> {
        let is_recorded =
            |token: &LeaseToken| self.leases.task_of(*token).is_some_and(|id| self.retention.contains(id));
        let unrecorded = listed.held.iter().filter(|token| !is_recorded(token));
        let all = listed.running.iter().chain(unrecorded);
        let stale: Vec<_> = all.filter(|token| !leased.contains(token)).copied().collect();
        fault!(self, StaleAccepted => return stale.into_iter().filter(|token| !self.keeps_stale(*token)).collect());
        stale
    }

    fn on_poll(&mut self, peer: &PeerId, poll: Poll) -> ControlReply {
        let Some(session) = self.sessions.spoken_for(poll.session, peer) else {
            return SessionGone { session: poll.session }.into();
        };
        session.record_contact(self.clock.elapsed_ms());
        session.acknowledge(poll.acknowledged);
        let labels = self.changes.answered(session.node(), poll.acknowledged, &poll.refused);
        let labels = labels.and_then(|change| change.labels.clone());
        for refusal in &poll.refused {
            let reason = printable(&refusal.reason, MAX_REASON_CHARS, LineFeeds::Replace);
            tracing::warn!(node = %session.info().name, command = refusal.seq, %reason, "node refused a command");
        }
        let missing = session.missing(&poll.running, MAX_MISSED_POLLS);
        session.forget_stopped(&poll.running);
        for token in &poll.running {
            if self.leases.task_of(*token).is_none() {
                session.stop(*token);
            }
        }
        let commands = session.commands();
        for token in missing {
            if let Some(session) = self.sessions.get_mut(poll.session) {
                session.dropped(token);
            }
            self.requeue_lost(token, Loss::Innocent);
        }
        if let Some(labels) = labels {
            self.set_labels(poll.session, labels);
        }
        self.dispatch_to(poll.session);
        Commands { commands }.into()
    }

    /// The queues that a node may serve; `allowed` are those of its certificate, or empty for all.
    pub(super) fn lane_rules<'a>(&'a self, allowed: &'a [QueueName]) -> LaneRules<'a> {
        LaneRules { routes: &self.settings.routes, known: self.settings.queues.keys().collect(), allowed }
    }

    /// Puts a command into a session's outbox and hints down a lane, behind the assignment it may concern.
    /// Returns the command's number; `None` if there is no such session.
    pub(crate) fn command(&mut self, session: SessionId, action: Action) -> Option<u64> {
        let seq = self.sessions.get_mut(session)?.command(action);
        self.emit(Effect::Lane { session, index: 0, message: Hint {}.into(), attach: None });
        Some(seq)
    }

    pub(crate) fn on_lane_connected(&mut self, session: SessionId, index: usize) {
        let Some(target) = self.sessions.get_mut(session) else { return };
        target.connect_lane(index);
        self.dispatch_to(session);
    }

    pub(crate) fn on_lanes_failed(&mut self, session: SessionId, reason: &str) {
        let until_ms = self.clock.elapsed_ms() + self.settings.scheduler.lease_ms;
        let reason = format!("its lanes could not be bound: {reason}");
        self.end_session(session, KeepAttempts::Until(until_ms), &reason);
    }

    pub(crate) fn end_session(&mut self, id: SessionId, keep: KeepAttempts, reason: &str) {
        let Some(session) = self.sessions.remove(id) else { return };
        self.reserved.release_session(id);
        self.emit(Effect::CloseSession { session: id });
        let (node, number) = (session.node(), session.number());
        self.orders.away(node, self.clock.elapsed_ms());
        let in_order = session.attempts_in_order();
        let KeepAttempts::Until(until_ms) = keep else {
            tracing::info!(
                %node, session = number, reason, given_back = in_order.len(),
                "session ended: its tasks wait again, and none is held against it"
            );
            in_order.into_iter().for_each(|token| self.requeue_lost(token, Loss::GivenBack));
            return;
        };
        let is_accepted = |core: &Self, token: LeaseToken| {
            core.task_of(token).is_some_and(|id| core.tasks[id].is_accepted())
        };
        let kept = in_order.iter().filter(|token| is_accepted(self, **token)).count();
        let (given_back, kept_for_ms) = (in_order.len() - kept, until_ms - self.clock.elapsed_ms());
        tracing::warn!(
            %node, session = number, reason, kept, kept_for_ms, given_back,
            "session lost: its node may come back for the tasks that are kept, the others wait again"
        );
        for orphan in session.orphans() {
            if is_accepted(self, orphan.token) {
                self.leases.keep_orphan(node.clone(), orphan, until_ms);
            } else {
                self.requeue_lost(orphan.token, Loss::GivenBack);
            }
        }
    }

    fn reject(&mut self, node: &NodeId, kind: FailureKind, text: String) -> ControlReply {
        self.log_rejection(node, &text);
        Rejected { failure: Failure::new(kind, text), removed: false }.into()
    }

    fn reject_removed(&mut self, node: &NodeId, text: String) -> ControlReply {
        self.log_rejection(node, &text);
        Rejected { failure: Failure::new(FailureKind::InvalidInput, text), removed: true }.into()
    }

    fn log_rejection(&mut self, node: &NodeId, reason: &str) {
        if self.refusals.is_due(node, self.clock.elapsed_ms()) {
            tracing::warn!(%node, reason, "node refused");
        }
    }
}

/// Tells a node why it serves no queue.
fn no_queue(node: &NodeId, refused: &[RefusedQueue], known: &BTreeMap<QueueName, u64>) -> String {
    let joined = |names: Vec<&str>| names.join(", ");
    let unknown: Vec<_> =
        refused.iter().map(|each| &each.queue).filter(|q| !known.contains_key(*q)).collect();
    if !unknown.is_empty() {
        return format!(
            "no queue of node {node} is one of this scheduler's: its models are for {}, and the scheduler's configuration \
             has {}; add a section [queues.NAME] there, or name another queue in the node's [models.NAME] sections",
            joined(unknown.into_iter().map(QueueName::as_str).collect()),
            joined(known.keys().map(QueueName::as_str).collect())
        );
    }
    let reasons: Vec<_> = refused.iter().map(|each| format!("{}: {}", each.queue, each.reason)).collect();
    format!(
        "no queue of this scheduler is for node {node} ({}); change the requirement of a queue in the scheduler's \
         configuration, or give the node other models or labels",
        reasons.join("; ")
    )
}
