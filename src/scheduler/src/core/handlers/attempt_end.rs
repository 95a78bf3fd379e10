//! Attempts that end without a result: failed, lost, stopped or given back.

use lamagrid_domain::{Failure, FailureKind, LeaseToken, Milestone, Retry, TaskId};
use lamagrid_protocol::message::Action;

use crate::core::policy::retry::{Loss, OtherNode, Verdict, back_off_ms};
use crate::core::state::circuit_breaker::BreakerPolicy;
use crate::core::state::leases::{Orphan, OrphanedBy};
use crate::core::state::task::{Lease, Task};
use crate::core::{Core, Effect, NodeId, StoreOp};

impl Core {
    /// An attempt reported a failure.
    pub(crate) fn attempt_failed(&mut self, id: TaskId, failure: Failure) {
        let (now, clock_ms) = (self.clock.now(), self.clock.elapsed_ms());
        let reason = format!("the node reported {}: {}", failure.kind, failure.message);
        let retry = failure.kind.retry();
        let is_of_probe = self.record_node_failure(id, &failure);
        if failure.kind == FailureKind::OutOfMemory {
            self.learn_limit(id);
        }
        let task = self.tasks.get_mut(id).expect("the caller holds an unfinished task");
        if retry == Retry::Elsewhere || is_of_probe {
            task.avoid_last_node();
        }
        let has_other_node = self.placement().has_other_node(&self.tasks[id]);
        let task = self.tasks.get_mut(id).expect("the caller holds an unfinished task");
        if is_of_probe && has_other_node {
            // A probe tests the node: its failure is not held against the task.
            task.record(now, Milestone::Failed { failure, retry_in_ms: Some(0) });
            return self.requeue(id, clock_ms, &reason);
        }
        let policy = self.settings.retry.of(failure.kind.family());
        let failures = task.count_failure();
        let other = if has_other_node { OtherNode::Connected } else { OtherNode::Missing };
        let verdict = Verdict::of(retry, failures, policy.failure_limit, other);
        let retry_in_ms = match verdict {
            Verdict::Elsewhere => Some(0),
            Verdict::AfterBackOff => {
                let random = self.random_bytes();
                let random = u64::from_le_bytes(random[..8].try_into().expect("8 of 16 bytes"));
                Some(back_off_ms(policy, failures, random))
            }
            Verdict::Fail | Verdict::DeadLetter => None,
        };
        let task = self.tasks.get_mut(id).expect("it was counted above");
        task.record(now, Milestone::Failed { failure: failure.clone(), retry_in_ms });
        match retry_in_ms {
            Some(wait_ms) => self.requeue(id, clock_ms + wait_ms, &reason),
            None if verdict == Verdict::Fail => self.fail(id, failure),
            None => self.dead_letter(id, failure),
        }
    }

    /// The device of a task's session has too little memory for it.
    fn learn_limit(&mut self, id: TaskId) {
        let task = &self.tasks[id];
        let session = task.lease().and_then(|lease| self.sessions.get(lease.session));
        let Some(memory_bytes) = session.map(|session| session.info().memory_bytes) else { return };
        let clock_ms = self.clock.elapsed_ms();
        self.learned.on_out_of_memory(&task.spec().model, task.demand(), memory_bytes, clock_ms);
    }

    /// Tells the circuit breaker about the failure of an attempt. True if the attempt was a probe and its node is to
    /// blame.
    fn record_node_failure(&mut self, id: TaskId, failure: &Failure) -> bool {
        let task = &self.tasks[id];
        let (Some(Lease { token, .. }), Some(node)) = (task.lease(), task.node()) else { return false };
        if !failure.kind.blames_node() {
            self.breaker.on_inconclusive(token);
            return false;
        }
        let is_probe = self.breaker.is_probe(node, token);
        let scheduler = &self.settings.scheduler;
        let policy = BreakerPolicy { after: scheduler.set_aside_after, rest_ms: scheduler.probe_after_ms };
        if self.breaker.on_failure(node, token, self.clock.elapsed_ms(), policy) {
            tracing::warn!(%node, failures = policy.after, last = %failure,
                "node fails task after task: it is set aside and tried again from time to time");
        }
        is_probe
    }

    /// Queues a task again whose attempt ended without a verdict, unless it crashed too many nodes.
    pub(crate) fn requeue_lost(&mut self, token: LeaseToken, loss: Loss) {
        let Some(id) = self.leases.task_of(token) else { return };
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.lease().is_none_or(|lease| lease.token != token) {
            return;
        }
        let counts = loss == Loss::Crash && task.is_accepted();
        let shared = loss == Loss::SharedCrash;
        let what = match loss {
            Loss::GivenBack => Milestone::GivenBack,
            Loss::Crash | Loss::SharedCrash | Loss::Innocent => Milestone::NodeLost { counts, shared },
        };
        task.record(self.clock.now(), what);
        if loss == Loss::GivenBack {
            task.count_wait_on_node(self.clock.elapsed_ms());
        }
        if counts {
            let crashes = task.count_crash();
            if crashes >= self.settings.scheduler.crash_limit {
                let node = task.node().map_or("?", |node| node.name.as_str());
                let text = format!(
                    "the task was given up: {} lost while working on it and on nothing else, the last one {node}; see that \
                     node's log",
                    if crashes == 1 { "1 node was".to_owned() } else { format!("{crashes} nodes were") }
                );
                return self.dead_letter(id, Failure::new(FailureKind::NodeLost, text));
            }
        }
        if shared {
            self.tasks.isolate(id);
        }
        self.requeue(id, self.clock.elapsed_ms(), loss.reason());
    }

    /// A node did not come back for these attempts.
    pub(crate) fn requeue_orphans(
        &mut self,
        node: &NodeId,
        orphans: Vec<Orphan>,
        cause: OrphanedBy,
        what: &str,
    ) {
        if orphans.is_empty() {
            return;
        }
        let losses = orphans.iter().map(|orphan| Loss::of_orphan(*orphan, cause));
        let charged = losses.clone().filter(|loss| *loss == Loss::Crash).count();
        let isolated = losses.filter(|loss| *loss == Loss::SharedCrash).count();
        tracing::warn!(%node, tasks = orphans.len(), charged, isolated, "{what}; its tasks wait again");
        for orphan in orphans {
            self.requeue_lost(orphan.token, self.loss_of(orphan, cause));
        }
    }

    fn loss_of(&self, orphan: Orphan, cause: OrphanedBy) -> Loss {
        let loss = Loss::of_orphan(orphan, cause);
        fault!(self, NeighbourCounted => return loss.distorted(self.faults));
        fault!(self, CrashUncounted => return loss.distorted(self.faults));
        loss
    }

    fn requeue(&mut self, id: TaskId, not_before_ms: u64, reason: &str) {
        let clock_ms = self.clock.elapsed_ms();
        let task = &self.tasks[id];
        tracing::info!(
            task.id = %id, attempt = task.counters().attempts, queue = %task.spec().queue,
            node = task.node().map_or("", |node| node.name.as_str()),
            crashes = task.counters().crashes, failures = task.counters().failures,
            wait_ms = not_before_ms.saturating_sub(clock_ms), reason, "task requeued"
        );
        if let Some(Lease { token, session }) = task.lease() {
            self.release_token(token);
            self.breaker.on_inconclusive(token);
            if let Some(session) = self.sessions.get_mut(session) {
                session.release(token);
            }
        }
        let task = self.tasks.get_mut(id).expect("logged above");
        let waited_ms = task.waited_for_spill_ms();
        let spills = self.settings.routes.spills(&task.spec().queue).iter();
        let spills = spills.take_while(|hop| hop.waited_ms <= waited_ms).map(|hop| hop.to.clone());
        task.requeue(not_before_ms, spills.collect());
        self.timers.stop_spill(task);
        self.timers.stop_run(task);
        let (counters, history) = (task.counters(), task.history().to_vec());
        self.emit(Effect::Store(StoreOp::Requeue { id, counters, history }));
        self.enqueue(id);
        self.tell_followers(id);
        if not_before_ms <= clock_ms {
            self.dispatch_task(id);
        }
    }

    fn release_token(&mut self, token: LeaseToken) {
        fault!(self, StaleAccepted => if self.keeps_stale(token) { return });
        self.leases.remove(token);
    }

    /// Tells the node of a running attempt to stop, and forgets that it holds it.
    pub(crate) fn stop_attempt(&mut self, id: TaskId) {
        let Some(Lease { token, session }) = self.tasks.get(id).and_then(Task::lease) else { return };
        if let Some(session) = self.sessions.get_mut(session) {
            session.release(token);
        }
        self.command(session, Action::Cancel { token });
        self.leases.forget_orphan(token);
    }
}
