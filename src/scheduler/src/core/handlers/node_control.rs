//! The `control` and `result` channels: registration, polls, accepts, deliveries, goodbyes.

use bytes::Bytes;

use lamagrid_domain::{
    Advance, Event, Failure, FailureKind, LeaseToken, QueueName, Role, SessionId, TaskId, printable,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Abandon, Accept, Action, AttemptOutcome, Commands, ControlReply, ControlRequest, Delivery, Farewell,
    Hello, Hint, LaneAddress, NodeEvent, Poll, Proceed, Ready, RefusedQueue, Rejected, ResultReply,
    ResultRequest, SessionGone, Stored, Welcome,
};

use crate::core::policy::retry::Loss;
use crate::core::state::dispatch_order::AttemptState;
use crate::core::state::finished_task::DeliveredResult;
use crate::core::state::sessions::{Orphan, Orphans, Session};
use crate::core::state::task::Lease;
use crate::core::state::task_timers::shorter_limit_ms;
use crate::core::{Core, Effect, NodeId};

/// Most models one node may offer.
const MAX_MODELS: usize = 256;
/// Most tasks one node may work on at once.
const MAX_SLOTS: u16 = 64;
/// Polls in a row that may miss an accepted attempt before it is requeued; one can overlap its delivery.
const MAX_MISSED_POLLS: u8 = 3;
/// Of a refused command's reason, what is logged.
const MAX_REASON_CHARS: usize = 200;
/// How often the refusal of one node is logged, and of how many nodes that is remembered.
const REFUSED_EVERY_MS: u64 = 10_000;
const MAX_REFUSED_NODES: usize = 1_000;

impl Core {
    pub(crate) fn on_control(&mut self, peer: PeerId, request: ControlRequest) {
        let reply = match request {
            ControlRequest::Hello(hello) => self.on_hello(&peer, hello),
            ControlRequest::Poll(poll) => self.on_poll(&peer, poll),
            ControlRequest::Goodbye(goodbye) => {
                let session = self.sessions.get(&goodbye.session);
                if let Some(node) = session.filter(|s| s.node.is_behind(&peer)).map(|s| s.node.clone()) {
                    self.end_session(goodbye.session, None, "the node message goodbye");
                    self.forget_drain(&node);
                }
                Farewell {}.into()
            }
        };
        // A reply that is a new session's welcome binds its lanes first.
        self.emit(Effect::Control { peer, reply });
    }

    fn on_hello(&mut self, peer: &PeerId, hello: Hello) -> ControlReply {
        let Hello { mut info, slots, overlap, running, held, boot } = hello;
        let node = NodeId::new(peer, info.name.clone());
        if info.models.is_empty() || info.models.len() > MAX_MODELS || !(1..=MAX_SLOTS).contains(&slots) {
            let text = format!("a node offers 1 to {MAX_MODELS} models and 1 to {MAX_SLOTS} slots");
            return self.reject(&node, FailureKind::InvalidInput, text);
        }
        let mut refused = Vec::new();
        for queue in info.queues() {
            if !self.settings.queues.contains_key(&queue) {
                info.models.retain(|o| o.queue != queue);
                let reason = "the scheduler's configuration has no such queue".to_owned();
                refused.push(RefusedQueue { queue, reason });
            }
        }
        if info.models.is_empty() {
            let text = no_queue(&node, &refused, self.settings.queues.keys());
            return self.reject(&node, FailureKind::InvalidInput, text);
        }
        for RefusedQueue { queue, reason } in &refused {
            tracing::warn!(%node, %queue, reason, "node serves a queue less than it offers");
        }
        let mut is_takeover = false;
        if let Some(old) = self.sessions.values().find(|s| s.node == node) {
            is_takeover = !old.is_of(boot);
            if is_takeover && !self.is_suspect(old) {
                let (session, pid) = (old.number, old.info.pid);
                let text = format!(
                    "a node named {node} is connected already: give this one another name with --name"
                );
                tracing::debug!(%node, session, pid, "the other node of that name");
                // Not for ever: it may be this node's own predecessor, whose end is about to be noticed.
                return self.reject(&node, FailureKind::Disconnected, text);
            }
            let (old, until) = (old.id, self.clock.elapsed_ms());
            let reason = if is_takeover {
                "another process of that name took its place, since it was silent"
            } else {
                "its node connected again"
            };
            self.end_session(old, Some(until), reason);
        }
        let session = SessionId::from_bytes(self.random_bytes());
        let drained = self.is_still_drained(&node, boot);
        let mut fresh =
            Session::new(session, (node.clone(), boot), info, (slots, overlap), self.clock.elapsed_ms());
        self.sessions_opened += 1;
        fresh.number = self.sessions_opened;
        if drained {
            fresh.draining = true;
            fresh.command(Action::Drain); // heard with its first poll
        }
        let lanes = fresh
            .lanes
            .iter()
            .enumerate()
            .map(|(i, (queue, _))| LaneAddress {
                queue: queue.clone(),
                address: self.settings.endpoints.lane(session, i),
            })
            .collect();
        // What the node still has goes on under the new session; what it lost is started again at once.
        let Orphans { attempts, counts, .. } =
            self.orphans.remove(&node).unwrap_or_else(|| Orphans::after_restart(self.clock.elapsed_ms()));
        let (mut kept, lost): (Vec<_>, Vec<_>) =
            attempts.into_iter().partition(|o| running.contains(&o.token) || held.contains(&o.token));
        // Results behind what runs. After a restart only the node knows in which order it was given its attempts.
        kept.sort_by_key(|o| {
            let place = running.iter().position(|t| *t == o.token);
            (place.is_none(), place.filter(|_| !counts))
        });
        for orphan in &kept {
            let state = match (running.contains(&orphan.token), orphan.waited) {
                (false, _) => AttemptState::Finished,
                (true, true) => AttemptState::Waited,
                (true, false) => AttemptState::Given,
            };
            fresh.adopt(orphan.token, state);
            let id = self.tokens.get(&orphan.token);
            let task = id.and_then(|id| self.tasks.get_mut(*id)).expect("orphans are live");
            task.adopt(session);
        }
        tracing::info!(
            %node, session = fresh.number, kind = fresh.info.kind.as_str(), pid = fresh.info.pid, slots, overlap,
            queues = ?fresh.info.queues().iter().map(QueueName::as_str).collect::<Vec<_>>(),
            models = fresh.info.models.len(), kept = kept.len(), lost = lost.len(), "session opened"
        );
        self.sessions.insert(session, fresh);
        // Another process took the place of one that may still be alive: that says nothing about its tasks.
        let reason = "node came back without tasks that it had";
        self.requeue_orphans(&node, lost, counts && !is_takeover, reason);
        let kept: Vec<_> = kept.into_iter().map(|orphan| orphan.token).collect();
        let abandoned = self.stale_attempts(&running, &held, &kept);
        Welcome {
            session,
            lanes,
            refused,
            lease_ms: self.settings.scheduler.lease_ms,
            poll_ms: self.settings.scheduler.poll_ms,
            spool: self.settings.spool.clone(),
            abandoned,
        }
        .into()
    }

    fn on_poll(&mut self, peer: &PeerId, poll: Poll) -> ControlReply {
        let Some(session) = self.sessions.get_mut(&poll.session).filter(|s| s.node.is_behind(peer)) else {
            return SessionGone { session: poll.session }.into();
        };
        session.last_seen_ms = self.clock.elapsed_ms();
        session.acknowledge(poll.acknowledged);
        for refusal in &poll.refused {
            let reason = printable(&refusal.reason, MAX_REASON_CHARS, false);
            tracing::warn!(node = %session.info.name, command = refusal.seq, %reason, "node refused a command");
        }
        let missing = session.missing(&poll.running, MAX_MISSED_POLLS);
        session.forget_stopped(&poll.running);
        for token in &poll.running {
            if !self.tokens.contains_key(token) {
                session.stop(*token);
            }
        }
        let commands = session.commands();
        for token in missing {
            if let Some(session) = self.sessions.get_mut(&poll.session) {
                session.dropped(token);
            }
            self.requeue_lost(token, Loss::Innocent);
        }
        self.dispatch_to(poll.session);
        Commands { commands }.into()
    }

    /// Puts a command into a session's outbox and hints down a lane, behind the assignment it may concern.
    pub(crate) fn command(&mut self, session: SessionId, action: Action) {
        let Some(target) = self.sessions.get_mut(&session) else { return };
        target.command(action);
        self.emit(Effect::Lane { session, index: 0, message: Hint {}.into(), attach: None });
    }

    pub(crate) fn on_lane_connected(&mut self, session: SessionId, index: usize) {
        let Some(target) = self.sessions.get_mut(&session) else { return };
        if let Some((_, connected)) = target.lanes.get_mut(index) {
            *connected = true;
        }
        self.dispatch_to(session);
    }

    pub(crate) fn on_lanes_failed(&mut self, session: SessionId, reason: &str) {
        let reason = format!("its lanes could not be bound: {reason}");
        self.end_session(session, Some(self.clock.elapsed_ms() + self.settings.scheduler.lease_ms), &reason);
    }

    pub(crate) fn on_result(&mut self, peer: PeerId, request: ResultRequest, inline: Option<Bytes>) {
        let id = match &request {
            ResultRequest::Ready(Ready { session, .. })
            | ResultRequest::Accept(Accept { session, .. })
            | ResultRequest::Delivery(Delivery { session, .. }) => *session,
        };
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.node.is_behind(&peer)) else {
            self.answer(peer, SessionGone { session: id });
            return;
        };
        session.last_seen_ms = self.clock.elapsed_ms();
        session.peer = Some(peer.clone());
        match request {
            ResultRequest::Ready(ready) => {
                session.ready(ready.credit);
                // Without a task to do it for: a model that could not be loaded was put right.
                if session.set_loaded(&ready.loaded) && session.tokens.is_empty() {
                    self.node_worked(id);
                }
            }
            ResultRequest::Accept(accept) => {
                session.accepted(accept.token);
                self.on_accept(peer, id, accept.token);
            }
            ResultRequest::Delivery(delivery) => {
                session.delivered(delivery.token, delivery.credit);
                session.set_loaded(&delivery.loaded);
                self.on_delivery(peer, id, delivery, inline);
            }
        }
        self.dispatch_to(id);
    }

    fn answer(&mut self, peer: PeerId, reply: impl Into<ResultReply>) {
        self.emit(Effect::Result { peer, reply: reply.into() });
    }

    fn on_accept(&mut self, peer: PeerId, session: SessionId, token: LeaseToken) {
        let Some(id) = self.leased_task(session, token) else {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.dropped(token);
            }
            self.answer(peer, Abandon { token });
            return;
        };
        let task = self.tasks.get_mut(id).expect("leased tasks are unfinished");
        if task.accept() {
            self.start_run_timer(id);
        }
        self.answer(peer, Proceed { token });
    }

    /// The task whose lease a session holds under this token.
    fn leased_task(&self, session: SessionId, token: LeaseToken) -> Option<TaskId> {
        let id = self.task_of(token)?;
        (self.tasks[id].lease() == Some(Lease { token, session })).then_some(id)
    }

    /// The task that a session may deliver under this token.
    fn delivered_task(&self, session: SessionId, token: LeaseToken) -> Option<TaskId> {
        let id = self.leased_task(session, token);
        fault!(self, StaleAccepted => return id.or_else(|| self.stale_task(token)));
        id
    }

    /// Attempts that a node lists and has no lease for, unless it only waits to hear that its result is recorded.
    fn stale_attempts(
        &self,
        running: &[LeaseToken],
        held: &[LeaseToken],
        leased: &[LeaseToken],
    ) -> Vec<LeaseToken> {
        let is_recorded =
            |token: &LeaseToken| self.tokens.get(token).is_some_and(|id| self.retention.contains(*id));
        let unrecorded = held.iter().filter(|token| !is_recorded(token));
        let stale: Vec<_> =
            running.iter().chain(unrecorded).filter(|token| !leased.contains(token)).copied().collect();
        fault!(self, StaleAccepted => return stale.into_iter().filter(|token| !self.keeps_stale(*token)).collect());
        stale
    }

    /// The node accepted the attempt: its time begins.
    pub(crate) fn start_run_timer(&mut self, id: TaskId) {
        let limit_ms = self.run_limit_ms(id);
        let task = self.tasks.get_mut(id).expect("the caller holds a live task");
        self.timers.start_run(task, limit_ms, self.clock.elapsed_ms());
    }

    fn run_limit_ms(&self, id: TaskId) -> Option<u64> {
        let own_ms = self.tasks[id].spec().run_limit_ms;
        let limit_ms = shorter_limit_ms(own_ms, self.settings.scheduler.run_limit_ms);
        fault!(self, OwnLimitCounts => return own_ms.or(limit_ms));
        limit_ms
    }

    fn node_worked(&mut self, session: SessionId) {
        let Some(node) = self.sessions.get(&session).map(|s| s.node.clone()) else { return };
        if self.breaker.worked(&node) {
            tracing::info!(%node, "node works again and is taken back");
        }
    }

    fn on_delivery(&mut self, peer: PeerId, session: SessionId, delivery: Delivery, inline: Option<Bytes>) {
        let token = delivery.token;
        let Some(id) = self.delivered_task(session, token) else {
            // Recorded already, or another attempt or a cancel was first: in each case the node may drop it.
            let finished = self.tokens.get(&token).and_then(|id| self.retention.get(*id));
            let accepted = finished.is_some_and(|finished| finished.token == Some(token));
            fault!(self, DoubleAccept => self.accept_again(&delivery));
            self.answer(peer, Stored { token, accepted });
            return;
        };
        fault!(self, StaleAccepted => if self.keeps_stale(token) { self.stop_attempt(id) });
        match delivery.outcome {
            AttemptOutcome::Done { result, inline: is_inline, stages } => {
                let fits = result.role == Role::Result
                    && match &inline {
                        Some(bytes) => is_inline && bytes.len() as u64 == result.len,
                        None => !is_inline,
                    };
                if fits {
                    self.learn_run_time(id, stages.infer_ms + stages.pixels_ms);
                    self.node_worked(session);
                    let delivered = DeliveredResult { token, meta: result, inline, stages };
                    self.end(id, Event::Complete, Some(delivered));
                } else {
                    let text = "the node delivered a result that is not what it announced";
                    self.attempt_failed(id, Failure::new(FailureKind::Internal, text));
                }
            }
            AttemptOutcome::Failed { failure } => self.attempt_failed(id, failure.bounded()),
            AttemptOutcome::Cancelled => self.requeue_lost(token, Loss::GivenBack),
        }
        self.answer(peer, Stored { token, accepted: true });
    }

    fn learn_run_time(&mut self, id: TaskId, ms: f64) {
        let Some(task) = self.tasks.get(id) else { return };
        if ms.is_finite() && ms >= 0.0 {
            let average = self.run_ms.entry(task.spec().queue.clone()).or_insert(ms);
            *average += (ms - *average) * 0.1; // about the last ten tasks
        }
    }

    pub(crate) fn on_event(&mut self, event: NodeEvent) {
        // A SUB socket does not say who published an event: the session's id, which only its node knows, is the proof.
        match event {
            NodeEvent::Heartbeat(heartbeat) => {
                if let Some(session) = self.sessions.get_mut(&heartbeat.session) {
                    session.last_seen_ms = self.clock.elapsed_ms();
                }
                // It may have been suspect: what waits goes before what comes next.
                self.dispatch_to(heartbeat.session);
            }
            NodeEvent::Step(step) => {
                let Some(session) = self.sessions.get_mut(&step.session) else { return };
                session.last_seen_ms = self.clock.elapsed_ms();
                let id = session.tokens.get(&step.token).and_then(|_| self.tokens.get(&step.token).copied());
                if let Some((id, task)) = id.and_then(|id| Some((id, self.tasks.get_mut(id)?))) {
                    task.set_progress(Advance { activity: step.activity, step: step.step, of: step.of });
                    self.tell_followers(id);
                }
                self.dispatch_to(step.session);
            }
        }
    }

    pub(crate) fn on_result_gone(&mut self, peer: &PeerId, far: bool) {
        let session = self.sessions.values().find(|s| s.peer.as_ref() == Some(peer)).map(|s| s.id);
        if let Some(session) = session {
            let settings = &self.settings.scheduler;
            let grace_ms = if far { settings.lease_ms } else { settings.closed_grace_ms };
            self.end_session(session, Some(self.clock.elapsed_ms() + grace_ms), "its connection was closed");
        }
    }

    /// Ends a session. Its accepted attempts are kept for the node until `keep_until_ms`; without that the
    /// node left in peace and they wait again at once.
    pub(crate) fn end_session(&mut self, id: SessionId, keep_until_ms: Option<u64>, reason: &str) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.emit(Effect::CloseSession { session: id });
        self.drains.away(&session.node, self.clock.elapsed_ms());
        let is_accepted = |core: &Self, token: &LeaseToken| {
            core.tokens.get(token).and_then(|id| core.tasks.get(*id)).is_some_and(|task| task.is_accepted())
        };
        let waiting: Vec<_> = session.on_overlap().into_iter().map(|(token, _)| token).collect();
        let attempts_in_order = session.attempts_in_order();
        let (node, number) = (&session.node, session.number);
        match keep_until_ms {
            Some(until_ms) => {
                let kept = attempts_in_order.iter().filter(|token| is_accepted(self, token)).count();
                let (given_back, kept_for_ms) =
                    (attempts_in_order.len() - kept, until_ms - self.clock.elapsed_ms());
                tracing::warn!(
                    %node, session = number, reason, kept, kept_for_ms, given_back,
                    "session lost: its node may come back for the tasks that are kept, the others wait again"
                );
            }
            None => tracing::info!(
                %node, session = number, reason, given_back = attempts_in_order.len(),
                "session ended: its tasks wait again, and none is held against it"
            ),
        }
        for token in attempts_in_order {
            match keep_until_ms {
                Some(until_ms) if is_accepted(self, &token) => {
                    let orphan = session.orphan(token, waiting.contains(&token));
                    self.keep_for(session.node.clone(), orphan, until_ms);
                }
                _ => self.requeue_lost(token, Loss::GivenBack),
            }
        }
    }

    fn reject(&mut self, node: &NodeId, kind: FailureKind, text: String) -> ControlReply {
        let failure = Failure::new(kind, text);
        self.note_refused_node(node, &failure);
        Rejected { failure }.into()
    }

    /// Logs that a node is refused, which tries again and again: now and then.
    fn note_refused_node(&mut self, node: &NodeId, failure: &Failure) {
        let last = self.refused_nodes.get(node).copied();
        if last.is_some_and(|at| self.clock.elapsed_ms().saturating_sub(at) < REFUSED_EVERY_MS) {
            return;
        }
        if self.refused_nodes.len() >= MAX_REFUSED_NODES {
            self.refused_nodes.clear();
        }
        self.refused_nodes.insert(node.clone(), self.clock.elapsed_ms());
        tracing::warn!(%node, reason = failure.message, "node refused");
    }

    fn keep_for(&mut self, node: NodeId, orphan: Orphan, until_ms: u64) {
        let orphans = self.orphans.entry(node).or_insert(Orphans::new(until_ms));
        orphans.until_ms = orphans.until_ms.max(until_ms);
        orphans.counts = true;
        orphans.attempts.push(orphan);
    }
}

/// What a node is told none of whose queues is known.
fn no_queue<'a>(
    node: &NodeId,
    refused: &[RefusedQueue],
    known: impl Iterator<Item = &'a QueueName>,
) -> String {
    let listed = |names: Vec<&str>| names.join(", ");
    format!(
        "no queue of node {node} is one of this scheduler's: its models are for {}, and the scheduler's configuration has {}; \
         add a section [queues.NAME] there, or name another queue in the node's [models.NAME] sections",
        listed(refused.iter().map(|each| each.queue.as_str()).collect()),
        listed(known.map(QueueName::as_str).collect())
    )
}
