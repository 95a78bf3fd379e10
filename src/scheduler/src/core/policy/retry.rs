//! What becomes of a task whose attempt ended without a result.

use lamagrid_config::RetryPolicy;
use lamagrid_domain::{Entry, Failure, FailureKind, LeaseToken, Milestone, Retry, TaskId};

use crate::core::state::circuit_breaker::Policy;
use crate::core::state::leases::{Orphan, OrphanedBy};
use crate::core::state::task::Lease;
use crate::core::{Core, Effect, NodeId, StoreOp};

/// How an attempt ended without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its node was lost and had no other task: held against the task.
    Crash,
    /// Its node was lost and had other tasks, too: each of them is tried again alone, which shows whose doing it was.
    SharedCrash,
    /// Its node was lost, and that says nothing about the task.
    Innocent,
    /// Its node does without it: it drains, said goodbye, or gave it back to an idle one.
    GivenBack,
}

impl Loss {
    /// The loss of an attempt whose node did not come back for it.
    ///
    /// If the attempt was all that the node had, it is held responsible. Of several attempts any may have been the cause:
    /// one that ran, or one whose inputs were too much for the node.
    fn of_orphan(orphan: Orphan, cause: OrphanedBy) -> Self {
        match (cause, orphan.was_alone) {
            (OrphanedBy::LostSession, true) => Self::Crash,
            (OrphanedBy::LostSession, false) => Self::SharedCrash,
            (OrphanedBy::Restart | OrphanedBy::Takeover, _) => Self::Innocent,
        }
    }

    /// A planted fault.
    #[cfg(any(test, feature = "sabotage"))]
    fn held_against_all(self) -> Self {
        if self == Self::SharedCrash { Self::Crash } else { self }
    }

    /// A planted fault.
    #[cfg(any(test, feature = "sabotage"))]
    fn held_against_none(self) -> Self {
        if self == Self::Crash { Self::Innocent } else { self }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Crash => "its node was lost while it had this task alone",
            Self::SharedCrash => "its node was lost while it had several tasks: each is tried again alone",
            Self::Innocent => "its node was lost, or did not have it any more; that is not held against it",
            Self::GivenBack => "its node gave it back",
        }
    }
}

impl Core {
    /// An attempt reported a failure.
    pub(crate) fn attempt_failed(&mut self, id: TaskId, failure: Failure) {
        let task = &self.tasks[id];
        let policy = self.settings.retry.of(failure.kind.family());
        let reason = format!("the node reported {}: {}", failure.kind, failure.message);
        let retry = failure.kind.retry();
        let mut free_of_charge = false;
        if let (Some(Lease { token, .. }), Some(node)) = (task.lease(), task.node()) {
            // A probe says something about the node; where the task can go elsewhere, it is not held against it.
            free_of_charge = failure.kind.blames_node() && self.breaker.is_probe(node, token);
            self.judge(&node.clone(), token, &failure);
        }
        let task = self.tasks.get_mut(id).expect("the caller holds a live task");
        if retry == Retry::Elsewhere || free_of_charge {
            task.avoid_last_node();
        }
        let elsewhere = self.has_other_node(&self.tasks[id]);
        let task = self.tasks.get_mut(id).expect("the caller holds a live task");
        if free_of_charge && elsewhere {
            task.record(self.clock.now(), Milestone::Failed { failure, retry_in_ms: Some(0) });
            return self.requeue(id, self.clock.elapsed_ms(), &reason);
        }
        let spent = task.count_failure() >= policy.failure_limit;
        let wait_ms = match retry {
            Retry::Later if !spent => Some(self.back_off_ms(id, policy)),
            Retry::Elsewhere if !spent && elsewhere => Some(0),
            Retry::Never | Retry::Later | Retry::Elsewhere => None,
        };
        let task = self.tasks.get_mut(id).expect("the caller holds a live task");
        task.record(self.clock.now(), Milestone::Failed { failure: failure.clone(), retry_in_ms: wait_ms });
        match wait_ms {
            Some(wait_ms) => self.requeue(id, self.clock.elapsed_ms() + wait_ms, &reason),
            None if retry == Retry::Never => self.fail(id, failure),
            None => self.dead_letter(id, failure),
        }
    }

    /// Takes a failure as a sign of its node's health.
    fn judge(&mut self, node: &NodeId, token: LeaseToken, failure: &Failure) {
        if !failure.kind.blames_node() {
            return self.breaker.undecided(token);
        }
        let scheduler = &self.settings.scheduler;
        let policy = Policy { after: scheduler.set_aside_after, rest_ms: scheduler.probe_after_ms };
        if self.breaker.failed(node, token, self.clock.elapsed_ms(), policy) {
            tracing::warn!(%node, failures = policy.after, last = %failure,
                "node fails task after task: it is set aside and tried again from time to time");
        }
    }

    /// An attempt ended without a verdict.
    pub(crate) fn requeue_lost(&mut self, token: LeaseToken, loss: Loss) {
        let Some(id) = self.leases.task_of(token) else { return };
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.lease().is_none_or(|lease| lease.token != token) {
            return;
        }
        let counts = loss == Loss::Crash && task.is_accepted();
        let shared = loss == Loss::SharedCrash;
        let gave_back = loss == Loss::GivenBack;
        task.record(
            self.clock.now(),
            if gave_back { Milestone::GivenBack } else { Milestone::NodeLost { counts, shared } },
        );
        if shared {
            self.tasks.isolate(id);
        }
        let task = self.tasks.get_mut(id).expect("looked up above");
        if counts {
            let crashes = task.count_crash();
            if crashes >= self.settings.scheduler.crash_limit {
                let node = task.node().map_or("?", |n| n.name.as_str());
                let text = format!(
                    "the task was given up: {} lost while working on it and on nothing else, the last one {node}; see that \
                     node's log",
                    if crashes == 1 { "1 node was".to_owned() } else { format!("{crashes} nodes were") }
                );
                self.dead_letter(id, Failure::new(FailureKind::NodeLost, text));
                return;
            }
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
        let tasks = orphans.len();
        let losses = orphans.iter().map(|orphan| Loss::of_orphan(*orphan, cause));
        let charged = losses.clone().filter(|loss| *loss == Loss::Crash).count();
        let isolated = losses.filter(|loss| *loss == Loss::SharedCrash).count();
        tracing::warn!(%node, tasks, charged, isolated, "{what}; its tasks wait again");
        for orphan in orphans {
            self.requeue_lost(orphan.token, self.loss_of(orphan, cause));
        }
    }

    fn loss_of(&self, orphan: Orphan, cause: OrphanedBy) -> Loss {
        let loss = Loss::of_orphan(orphan, cause);
        fault!(self, NeighbourCounted => return loss.held_against_all());
        fault!(self, CrashUncounted => return loss.held_against_none());
        loss
    }

    fn requeue(&mut self, id: TaskId, not_before_ms: u64, reason: &str) {
        let task = &self.tasks[id];
        tracing::info!(
            task.id = %id, attempt = task.counters().attempts, queue = %task.spec().queue,
            node = task.node().map_or("", |node| node.name.as_str()),
            crashes = task.counters().crashes, failures = task.counters().failures,
            wait_ms = not_before_ms.saturating_sub(self.clock.elapsed_ms()), reason, "task requeued"
        );
        if let Some(Lease { token, session }) = task.lease() {
            self.release_token(token);
            self.breaker.undecided(token);
            if let Some(session) = self.sessions.get_mut(session) {
                session.release(token);
            }
        }
        let task = self.tasks.get_mut(id).expect("logged above");
        task.requeue(not_before_ms);
        self.timers.stop_run(task);
        let (counters, history) = (task.counters(), task.history().to_vec());
        self.emit(Effect::Store(StoreOp::Requeue { id, counters, history }));
        self.enqueue(id);
        self.tell_followers(id);
        if not_before_ms <= self.clock.elapsed_ms() {
            self.dispatch_task(id);
        }
    }

    fn release_token(&mut self, token: LeaseToken) {
        fault!(self, StaleAccepted => if self.keeps_stale(token) { return });
        self.leases.remove(token);
    }

    /// Exponential with full jitter, so that tasks which failed together do not come back together.
    fn back_off_ms(&mut self, id: TaskId, policy: RetryPolicy) -> u64 {
        let exponent = self.tasks[id].counters().failures.saturating_sub(1).min(20);
        let ceiling = policy.base_ms.saturating_mul(1 << exponent).min(policy.cap_ms).max(1);
        let random = u64::from_le_bytes(self.random_bytes()[..8].try_into().expect("8 of 16 bytes"));
        random % ceiling + 1
    }

    /// The task's own limit has passed.
    pub(crate) fn past_deadline(&mut self, id: TaskId) {
        self.stop_attempt(id);
        let state = self.tasks.get(id).map(|task| task.state().status());
        let text = match state {
            Some(status) => format!("the task's deadline passed while it was {status}"),
            None => return,
        };
        self.fail(id, Failure::new(FailureKind::DeadlineExceeded, text));
    }
}

/// Whether a task shared a node with others when the node was lost, by its history.
pub(crate) fn has_shared_a_loss(history: &[Entry]) -> bool {
    history.iter().any(|entry| matches!(entry.what, Milestone::NodeLost { shared: true, .. }))
}
