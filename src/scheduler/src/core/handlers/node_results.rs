//! The `result` channel of nodes: credit, accepts, deliveries; and their heartbeats and progress.

use bytes::Bytes;

use lamagrid_domain::{Advance, Event, Failure, FailureKind, LeaseToken, MemoryUse, Role, SessionId, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Abandon, Accept, AttemptOutcome, Delivery, NodeEvent, Proceed, Ready, ResultReply, ResultRequest,
    SessionGone, Stored,
};

use super::node_control::KeepAttempts;
use crate::core::effect::Origin;
use crate::core::policy::retry::Loss;
use crate::core::state::finished_task::DeliveredResult;
use crate::core::state::task::Lease;
use crate::core::state::task_timers::shorter_limit_ms;
use crate::core::{Core, Effect};

impl Core {
    pub(crate) fn on_result(&mut self, peer: PeerId, request: ResultRequest, inline: Option<Bytes>) {
        let id = match &request {
            ResultRequest::Ready(Ready { session, .. })
            | ResultRequest::Accept(Accept { session, .. })
            | ResultRequest::Delivery(Delivery { session, .. }) => *session,
        };
        let Some(session) = self.sessions.spoken_for(id, &peer) else {
            self.answer(peer, SessionGone { session: id });
            return;
        };
        session.record_contact(self.clock.elapsed_ms());
        session.set_peer(&peer);
        match request {
            ResultRequest::Ready(ready) => {
                // It loaded a model without having a task for it: whatever kept it from loading was put right.
                let is_right = session.set_loaded(&ready.loaded) && session.running() == 0;
                self.sessions.ready(id, ready.credit);
                if is_right {
                    self.node_worked(id);
                }
            }
            ResultRequest::Accept(accept) => {
                session.accepted(accept.token);
                self.on_accept(peer, id, accept.token);
            }
            ResultRequest::Delivery(delivery) => {
                session.set_loaded(&delivery.loaded);
                self.sessions.delivered(id, delivery.token, delivery.credit);
                self.on_delivery(peer, delivery, inline);
            }
        }
        self.dispatch_to(id);
    }

    fn answer(&mut self, peer: PeerId, reply: impl Into<ResultReply>) {
        self.emit(Effect::Result { peer, reply: reply.into() });
    }

    fn on_accept(&mut self, peer: PeerId, session: SessionId, token: LeaseToken) {
        let Some(id) = self.leased_task(session, token) else {
            if let Some(session) = self.sessions.get_mut(session) {
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

    /// The node accepted the attempt: its time begins.
    pub(crate) fn start_run_timer(&mut self, id: TaskId) {
        let limit_ms = self.run_limit_ms(id);
        let task = self.tasks.get_mut(id).expect("the caller holds an unfinished task");
        self.timers.start_run(task, limit_ms, self.clock.elapsed_ms());
    }

    fn run_limit_ms(&self, id: TaskId) -> Option<u64> {
        let own_ms = self.tasks[id].spec().run_limit_ms;
        let limit_ms = shorter_limit_ms(own_ms, self.settings.scheduler.run_limit_ms);
        fault!(self, OwnLimitCounts => return own_ms.or(limit_ms));
        limit_ms
    }

    fn node_worked(&mut self, session: SessionId) {
        let Some(node) = self.sessions.get(session).map(|session| session.node()) else { return };
        if self.breaker.on_success(node) {
            tracing::info!(%node, "node works again and is taken back");
        }
    }

    fn on_delivery(&mut self, peer: PeerId, delivery: Delivery, inline: Option<Bytes>) {
        let (session, token) = (delivery.session, delivery.token);
        let Some(id) = self.delivered_task(session, token) else {
            // Recorded already, or another attempt or a cancel was first: in each case the node may drop it.
            let finished = self.leases.task_of(token).and_then(|id| self.retention.get(id));
            let accepted = finished.is_some_and(|finished| finished.token == Some(token));
            fault!(self, DoubleAccept => self.accept_again(&delivery));
            self.answer(peer, Stored { token, accepted });
            return;
        };
        fault!(self, StaleAccepted => if self.keeps_stale(token) { self.stop_attempt(id) });
        match delivery.outcome {
            AttemptOutcome::Done { result, inline: is_inline, stages } => {
                let is_as_announced = result.role == Role::Result
                    && match &inline {
                        Some(bytes) => is_inline && bytes.len() as u64 == result.len,
                        None => !is_inline,
                    };
                if is_as_announced {
                    let spec = self.tasks[id].spec();
                    self.run_times.observe(&spec.queue, &spec.model, stages.infer_ms + stages.pixels_ms);
                    self.node_worked(session);
                    let needs_less = self.learn_use(id, session, delivery.memory);
                    let delivered = DeliveredResult { token, meta: result, inline, stages };
                    self.end(id, Event::Complete, Some(delivered));
                    if needs_less {
                        self.dispatch_to_all();
                    }
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

    /// A task succeeded with this use of memory. True if waiting tasks of its model may need less now.
    fn learn_use(&mut self, id: TaskId, session: SessionId, used: Option<MemoryUse>) -> bool {
        let Some(session) = self.sessions.get(session) else { return false };
        let (task, memory_bytes) = (&self.tasks[id], session.info().memory_bytes);
        let model = &task.spec().model;
        self.learned.on_success(model, task.demand(), used, memory_bytes) && self.ready.has_waiting(model)
    }

    pub(crate) fn on_event(&mut self, event: NodeEvent) {
        // A SUB socket does not say who published an event. The session's id is the proof: only its node knows it.
        match event {
            NodeEvent::Heartbeat(heartbeat) => {
                if let Some(session) = self.sessions.get_mut(heartbeat.session) {
                    session.record_contact(self.clock.elapsed_ms());
                    heartbeat.figures.into_iter().for_each(|figures| session.set_figures(figures));
                }
                // It may have been suspect: tasks that wait already are served before new ones.
                self.dispatch_to(heartbeat.session);
            }
            NodeEvent::Step(step) => {
                let Some(session) = self.sessions.get_mut(step.session) else { return };
                session.record_contact(self.clock.elapsed_ms());
                let id = self.leases.task_of(step.token).filter(|_| session.holds(step.token));
                if let Some((id, task)) = id.and_then(|id| Some((id, self.tasks.get_mut(id)?))) {
                    task.set_progress(Advance { activity: step.activity, step: step.step, of: step.of });
                    self.tell_followers(id);
                }
                self.dispatch_to(step.session);
            }
        }
    }

    pub(crate) fn on_result_gone(&mut self, peer: &PeerId, origin: Origin) {
        let Some(session) = self.sessions.of_peer(peer).map(|session| session.id()) else { return };
        let scheduler = &self.settings.scheduler;
        let grace_ms = match origin {
            Origin::Local => scheduler.closed_grace_ms,
            // A network that fails closes connections as well, and the node still works.
            Origin::Remote => scheduler.lease_ms,
        };
        let until_ms = self.clock.elapsed_ms() + grace_ms;
        self.end_session(session, KeepAttempts::Until(until_ms), "its connection was closed");
    }
}
