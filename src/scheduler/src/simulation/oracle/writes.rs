//! Checks writes and their reasons.

use std::ops::RangeInclusive;

use super::*;
use crate::simulation::network::ADMINISTRATOR;

impl Oracle {
    pub(super) fn on_op(
        &mut self,
        now: Now,
        message: &Message,
        op: &StoreOp,
        assigning: &mut Option<(TaskId, LeaseToken, NodeId)>,
    ) -> Result<(), Violation> {
        match op {
            StoreOp::Insert { spec, digest, .. } => {
                let id = spec.id;
                let Message::Client(peer, ClientRequest::Submit(submit), _) = message else {
                    return Err(Violation {
                        kind: Kind::Illegal,
                        what: format!("task {id} came from nowhere"),
                    });
                };
                let known = self.live.contains_key(&id) || self.over.contains_key(&id);
                ensure!(!known && submit.spec.id == id, Illegal, "task {id} was accepted twice");
                let over = self.tombstones.contains(&id) || self.spent.contains(&id);
                ensure!(!over, Illegal, "task {id} runs although it is over");
                ensure!(
                    self.uploads.get(&id).is_none_or(|(owner, _)| *owner == spec.owner),
                    Granted,
                    "task {id} of {} has the inputs of another owner",
                    spec.owner
                );
                let followers = if submit.follow { BTreeSet::from([peer.clone()]) } else { BTreeSet::new() };
                let live = Live {
                    owner: spec.owner.clone(),
                    digest: *digest,
                    queue: spec.queue.clone(),
                    model: spec.model.clone(),
                    spec: TaskSpec::clone(spec),
                    deadline: spec.deadline_wall_ms,
                    bytes: spec.input_bytes(),
                    has_run_limit: self.has_run_limit || spec.run_limit_ms.is_some(),
                    state: State::Queued { not_before_ms: 0 },
                    node: None,
                    backs_off: false,
                    isolated: false,
                    counters: Counters::default(),
                    followers,
                };
                self.live.insert(id, live);
                // The reservation has become the task.
                self.uploads.remove(&id);
                self.check_bounds(&spec.owner)?;
            }
            StoreOp::Watermark { owner, wall_ms } => {
                self.watermarks.insert(owner.clone(), *wall_ms);
                self.note("watermark");
            }
            StoreOp::Clock { .. } => {}
            StoreOp::Assign { id, token, node, counters } => {
                self.count(message, *id, *counters, 1, 0..=0)?;
                ensure!(self.tokens.insert(*token), Illegal, "token {token} was used before");
                *assigning = Some((*id, *token, node.clone()));
            }
            StoreOp::Requeue { id, counters, history } => {
                // A task that waited on a lost node is taken from it as soon as another node is idle.
                let ran_too_long =
                    matches!(message, Message::Tick) && history.last().is_some_and(is_run_limit);
                let is_taken = !ran_too_long && self.is_left_behind(*id);
                if ran_too_long {
                    ensure!(
                        self.live.get(id).is_some_and(|t| t.has_run_limit),
                        Illegal,
                        "{id} has no run limit"
                    );
                    // A failed probe is not held against the task.
                    let least = u32::from(!self.has_probes);
                    self.count(message, *id, *counters, 0, least..=1)?;
                    self.note("ran too long");
                } else if is_taken {
                    let due = self.is_crash_due(message, *id);
                    let task = self.task(*id, "requeued")?;
                    let (before, state) = (task.counters, task.state.clone());
                    let is_taken_over =
                        matches!(state, State::Assigned { token, .. } if self.taken_over.contains(&token));
                    ensure!(
                        !is_taken_over || counters.crashes == before.crashes,
                        Illegal,
                        "another process took the place of the node of task {id}, and a crash was counted"
                    );
                    self.count(message, *id, *counters, 0, 0..=0)?;
                    let was_alone =
                        matches!(state, State::Assigned { token, .. } if self.alone.contains(&token));
                    ensure!(
                        !due || !was_alone || counters.crashes == before.crashes + 1,
                        Illegal,
                        "the node of task {id} died while it worked on it alone, and no crash was counted"
                    );
                    ensure!(
                        !due || was_alone || history.last().is_some_and(is_shared_loss),
                        Illegal,
                        "the node of task {id} died while it worked on it and others, and it is not isolated"
                    );
                    if history.last().is_some_and(is_shared_loss) {
                        self.task(*id, "isolated")?.isolated = true;
                        self.note("isolated");
                    }
                    if !matches!(message, Message::Tick | Message::Control(..)) {
                        self.note("taken without asking");
                    }
                } else {
                    self.must_hold_lease(message, *id)?;
                    let failures = u32::from(is_failure(message));
                    // A failed probe is not held against the task.
                    let least = if self.has_probes { 0 } else { failures };
                    self.count(message, *id, *counters, 0, least..=failures)?;
                }
                let later = ran_too_long
                    || matches!(message, Message::Result(_, ResultRequest::Delivery(d), _)
                    if !is_taken && match &d.outcome {
                        AttemptOutcome::Failed { failure } => failure.kind.retry() == Retry::Later,
                        AttemptOutcome::Done { .. } => true, // taken as an internal failure
                        AttemptOutcome::Cancelled => false,
                    });
                self.note(if counters.crashes > 0 { "requeued after a crash" } else { "requeued" });
                let task = self.task(*id, "requeued")?;
                ensure!(
                    matches!(task.state, State::Assigned { .. }),
                    Illegal,
                    "waiting task {id} is requeued"
                );
                task.state = legal(&task.state, Event::Requeue { not_before_ms: 0 }, *id)?;
                task.backs_off = later;
            }
            StoreOp::End { id, ended, .. } => {
                ensure!(!self.over.contains_key(id), TwoOutcomes, "task {id} ended again");
                self.must_hold_lease(message, *id)?;
                let ran_too_long = ended.failure.as_ref().is_some_and(|f| f.kind == FailureKind::RanTooLong);
                let failed = ended.status == Status::Failed && (is_failure(message) || ran_too_long);
                self.count(message, *id, ended.counters, 0, u32::from(failed)..=u32::from(failed))?;
                let event = match ended.status {
                    Status::Completed => Event::Complete,
                    Status::Cancelled => Event::Cancel,
                    _ => {
                        Event::Fail(ended.failure.clone().unwrap_or(Failure::new(FailureKind::Internal, "")))
                    }
                };
                let task = self.task(*id, "ended")?;
                legal(&task.state, event, *id)?;
                let deadline = task.deadline;
                self.end_has_a_reason(now, message, *id, ended, deadline)?;
                self.over.insert(*id, self.over(ended, now, self.clock.later_ms(now)));
                self.note(ended.failure.as_ref().map_or(ended.status.as_str(), |f| f.kind.as_str()));
            }
            StoreOp::Release { id, .. } => {
                let over = self.over.get_mut(id);
                ensure!(over.is_some(), Illegal, "task {id} is released and has not ended");
                over.into_iter().for_each(|o| o.told.result = None);
            }
            StoreOp::Forget { id, .. } => {
                let Some(over) = self.over.remove(id) else {
                    return Err(Violation {
                        kind: Kind::Lost,
                        what: format!("task {id} is forgotten and has not ended"),
                    });
                };
                ensure!(
                    over.due_ms <= self.clock.believed_ms(now),
                    Lost,
                    "task {id} is forgotten before its retention is over"
                );
                self.tombstones.insert(*id);
                self.note("forgotten");
            }
            StoreOp::Remember { id, .. } => {
                let known = self.live.contains_key(id) || self.over.contains_key(id);
                ensure!(!known, Lost, "task {id} has a row and becomes a tombstone");
                self.tombstones.insert(*id);
            }
            StoreOp::Unremember { id } => {
                ensure!(self.tombstones.remove(id), Structure, "no tombstone {id} to take away");
            }
            StoreOp::Pause { .. } => {}
            StoreOp::NodeOrder { node, order } => self.on_node_order(node, order.as_ref())?,
            StoreOp::Together(_) => {
                return Err(Violation { kind: Kind::Illegal, what: "a transaction in a transaction".into() });
            }
        }
        Ok(())
    }

    fn on_node_order(&mut self, node: &NodeId, order: Option<&Order>) -> Result<(), Violation> {
        match order.map(|order| order.kind) {
            Some(OrderKind::Removal) => {
                self.note("removed");
                self.removed.insert(node.clone());
            }
            Some(OrderKind::Drain) => {
                self.note("drained by order");
                ensure!(!self.removed.contains(node), Illegal, "{node} is removed, and was drained");
            }
            None if self.removed.remove(node) => self.note("removal taken back"),
            None => self.note("drain over"),
        }
        Ok(())
    }

    pub(super) fn task(&mut self, id: TaskId, what: &str) -> Result<&mut Live, Violation> {
        self.live.get_mut(&id).ok_or_else(|| Violation {
            kind: Kind::Lost,
            what: format!("task {id} is {what} and was never recorded"),
        })
    }

    /// Each counter moves for its own reason only: by these attempts and failures, and at most one crash.
    pub(super) fn count(
        &mut self,
        message: &Message,
        id: TaskId,
        counters: Counters,
        attempts: u32,
        failures: RangeInclusive<u32>,
    ) -> Result<(), Violation> {
        let Some(task) = self.live.get_mut(&id) else { return self.task(id, "counted").map(drop) };
        let before = std::mem::replace(&mut task.counters, counters);
        let is_guilty = |token| self.alone.contains(&token) && !self.innocent.contains(&token);
        let guilty = matches!(task.state, State::Assigned { token, .. } if is_guilty(token));
        let may_crash = may_tell_a_loss(message) && !task.was_lost_with_its_scheduler() && guilty;
        let crashes = counters.crashes - before.crashes;
        ensure!(
            crashes <= u32::from(may_crash && attempts == 0 && *failures.end() == 0),
            Illegal,
            "task {id}: a crash was counted for no reason"
        );
        ensure!(
            counters.attempts == before.attempts + attempts,
            Illegal,
            "task {id}: {before:?}, then {counters:?}"
        );
        ensure!(
            failures.contains(&(counters.failures - before.failures)),
            Illegal,
            "task {id}: {before:?}, then {counters:?}"
        );
        Ok(())
    }

    /// Whether a task's node died while it worked on it, and this is when the scheduler finds out.
    fn is_crash_due(&self, message: &Message, id: TaskId) -> bool {
        let task = self.live.get(&id).filter(|task| !task.was_lost_with_its_scheduler());
        let was_begun = |task: &Live| {
            matches!(task.state, State::Assigned { token, .. }
            if self.begun_at_death.contains(&token) && !self.taken_over.contains(&token))
        };
        may_tell_a_loss(message) && task.is_some_and(was_begun)
    }

    /// Whether a task's session is over, and the node's next one is not there yet.
    fn is_left_behind(&self, id: TaskId) -> bool {
        self.live.get(&id).is_some_and(
            |t| matches!(t.state, State::Assigned { session, .. } if !self.sessions.contains_key(&session)),
        )
    }

    /// A delivery changes only its own task, and its session holds the lease.
    pub(super) fn must_hold_lease(&mut self, message: &Message, id: TaskId) -> Result<(), Violation> {
        let Message::Result(_, ResultRequest::Delivery(delivery), _) = message else { return Ok(()) };
        let holds = State::Assigned { token: delivery.token, session: delivery.session };
        let state = self.task(id, "delivered")?.state.clone();
        ensure!(state == holds, StaleAccepted, "task {id} is {state:?}, taken was a delivery of {holds:?}");
        Ok(())
    }

    pub(super) fn end_has_a_reason(
        &self,
        now: Now,
        message: &Message,
        id: TaskId,
        ended: &FinishedTask,
        deadline: Option<u64>,
    ) -> Result<(), Violation> {
        let failed = ended.failure.as_ref().map(|f| f.kind);
        match (ended.status, message) {
            (Status::Completed, Message::Result(_, ResultRequest::Delivery(delivery), _)) => {
                let AttemptOutcome::Done { result, .. } = &delivery.outcome else {
                    return Err(Violation {
                        kind: Kind::Illegal,
                        what: format!("task {id} completed by a failure"),
                    });
                };
                ensure!(
                    ended.token == Some(delivery.token),
                    StaleAccepted,
                    "task {id} names another attempt"
                );
                let same = ended.result.as_ref().map(|r| r.hash) == Some(result.hash);
                ensure!(same, TwoOutcomes, "task {id} keeps another result than was delivered");
            }
            (Status::Cancelled, Message::Client(_, ClientRequest::Cancel(cancel), _)) => {
                ensure!(
                    cancel.id == id && cancel.owner == ended.owner,
                    Leak,
                    "a stranger cancelled task {id}"
                );
            }
            (Status::Failed, Message::Client(_, ClientRequest::Submit(submit), _)) => {
                ensure!(failed == Some(FailureKind::Overloaded), Illegal, "task {id} failed by a submission");
                ensure!(
                    ended.owner == submit.spec.owner || submit.spec.owner.as_str() == ADMINISTRATOR,
                    Illegal,
                    "task {id} of {} was evicted by one of {}",
                    ended.owner,
                    submit.spec.owner
                );
                ensure!(
                    ended.priority < submit.spec.priority,
                    Illegal,
                    "task {id} of priority {} was evicted by one of {}",
                    ended.priority,
                    submit.spec.priority
                );
            }
            // Room for the announced inputs.
            (Status::Failed, Message::Client(_, ClientRequest::Offer(offer), _))
                if failed == Some(FailureKind::Overloaded) && ended.priority < offer.priority => {}
            (Status::Failed, Message::Client(..)) | (Status::Completed | Status::Cancelled, _) => {
                return Err(Violation {
                    kind: Kind::Illegal,
                    what: format!("task {id} ended as {} by itself", ended.status),
                });
            }
            (Status::Failed, Message::Tick) => {
                let early = failed == Some(FailureKind::DeadlineExceeded)
                    && deadline.is_none_or(|d| d > self.clock.believed_ms(now));
                ensure!(!early, Illegal, "task {id} failed before its deadline");
            }
            _ => {}
        }
        Ok(())
    }
}

impl Live {
    fn was_lost_with_its_scheduler(&self) -> bool {
        matches!(self.state, State::Assigned { session, .. } if *session.as_bytes() == [0; 16])
    }
}

/// A node that is lost shows by its silence, or by its next process.
fn may_tell_a_loss(message: &Message) -> bool {
    matches!(message, Message::Tick | Message::Control(_, ControlRequest::Hello(_)))
}
