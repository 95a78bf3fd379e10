//! An independent model of what the core may do: it reads inputs, effects and commits, and believes no index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lamagrid_domain::{
    Event, Failure, FailureKind, Hash, LeaseToken, ModelName, NodeInfo, NodeName, Owner, QueueName, Retry, SessionId,
    State, Status, TaskId,
};
use lamagrid_wire::message::{
    AttemptOutcome, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage, Outcome, ResultReply,
    ResultRequest,
};
use lamagrid_wire::router::PeerId;

use super::check::ensure;
use super::disk::Disk;
use super::network::Said;
use crate::core::{Core, Effect, Ended, Now, StoreOp};

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A client was promised a task that is not on record.
    Lost,
    /// One task had two outcomes.
    TwoOutcomes,
    /// Somebody who waits was not told.
    Untold,
    /// A result was taken from somebody who does not hold the lease.
    StaleAccepted,
    /// A task moved as no task may.
    Illegal,
    /// The core's indexes contradict each other, or the model.
    Structure,
    /// Somebody was told what is not theirs.
    Leak,
    /// A worse task was served before a better one.
    Order,
    /// Without faults something did not end in time.
    Stuck,
}

/// A broken promise.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

/// A live task, as its effects tell.
struct Live {
    owner: Owner,
    digest: Hash,
    queue: QueueName,
    model: ModelName,
    rank: (i16, u64),
    deadline: Option<u64>,
    state: State,
    node: Option<NodeName>,
    /// Backs off, or did when the present step began.
    backs_off: bool,
    followers: BTreeSet<PeerId>,
}

/// An ended task, as its end told.
#[derive(Clone)]
struct Over {
    owner: Owner,
    digest: Hash,
    told: Told,
    token: Option<LeaseToken>,
    /// Wall clock; it is kept until then, by the clock at its end or at the last restart.
    due_ms: u64,
}

/// An outcome, as far as two tellings of it must agree.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    status: Status,
    failure: Option<Failure>,
    finished_wall_ms: Option<u64>,
    /// Absent after a release.
    result: Option<Hash>,
}

impl Told {
    fn of_ended(ended: &Ended) -> Self {
        Self {
            status: ended.status,
            failure: ended.failure.clone(),
            finished_wall_ms: Some(ended.finished_wall_ms),
            result: ended.result.as_ref().map(|r| r.hash),
        }
    }

    fn of_outcome(outcome: &Outcome) -> Self {
        Self {
            status: outcome.task.status,
            failure: outcome.task.failure.clone(),
            finished_wall_ms: outcome.task.finished_wall_ms,
            result: outcome.result.as_ref().map(|r| r.hash),
        }
    }

    fn agrees(&self, other: &Self) -> bool {
        let same_result = self.result.is_none() || other.result.is_none() || self.result == other.result;
        self.status == other.status
            && self.failure == other.failure
            && self.finished_wall_ms == other.finished_wall_ms
            && same_result
    }
}

struct Session {
    info: NodeInfo,
    granted: u64,
    given: u64,
}

/// What clients were promised, over all lives of the scheduler.
#[derive(Default)]
struct Promise {
    told: Option<Told>,
    ends: u32,
    accepted: bool,
    expired: bool,
}

pub(super) struct Oracle {
    live: BTreeMap<TaskId, Live>,
    over: HashMap<TaskId, Over>,
    tombstones: HashSet<TaskId>,
    sessions: BTreeMap<SessionId, Session>,
    tokens: HashSet<LeaseToken>,
    promises: HashMap<TaskId, Promise>,
    retention_ms: u64,
}

impl Oracle {
    pub(super) fn new(retention_ms: u64) -> Self {
        Self {
            live: BTreeMap::new(),
            over: HashMap::new(),
            tombstones: HashSet::new(),
            sessions: BTreeMap::new(),
            tokens: HashSet::new(),
            promises: HashMap::new(),
            retention_ms,
        }
    }

    /// The scheduler died and came back with what `disk` holds.
    pub(super) fn on_restart(&mut self, now: Now, disk: &Disk, core: &Core) -> Result<(), Violation> {
        self.live.clear();
        self.over.clear();
        self.sessions.clear();
        self.tombstones = disk.tombstones.keys().copied().collect();
        for (id, row) in &disk.rows {
            if let Some(ended) = &row.ended {
                self.over.insert(*id, over(ended, now, self.retention_ms));
                continue;
            }
            let state = row.assigned.as_ref().map_or(State::Queued { not_before_ms: 0 }, |(token, _)| {
                State::Assigned { token: *token, session: SessionId::from_bytes([0; 16]) }
            });
            let spec = &row.spec;
            let live = Live {
                owner: spec.owner.clone(),
                digest: row.digest,
                queue: spec.queue.clone(),
                model: spec.model.clone(),
                rank: (-i16::from(spec.priority), row.seq),
                deadline: spec.deadline_wall_ms,
                state,
                node: row.assigned.as_ref().map(|(_, node)| node.clone()),
                backs_off: false,
                followers: BTreeSet::new(),
            };
            self.live.insert(*id, live);
        }
        for (id, promise) in &self.promises {
            let there = self.live.contains_key(id) || self.over.contains_key(id) || promise.expired;
            ensure!(there || !promise.accepted, Lost, "task {id} was accepted and is gone after a restart");
        }
        self.compare(core)?;
        for id in self.over.keys() {
            ensure!(core.ended.contains_key(id), Lost, "ended task {id} was not recovered");
        }
        Ok(())
    }

    /// One step of the core: what it was told, and what it does about that.
    pub(super) fn on_step(&mut self, now: Now, said: &Said, effects: &[Effect], core: &Core) -> Result<(), Violation> {
        if let Said::Result(_, request, _) = said {
            self.hear_credit(request);
        }
        let held = if let Said::Result(_, ResultRequest::Delivery(d), _) = said {
            let holds = State::Assigned { token: d.token, session: d.session };
            self.live.values().any(|t| t.state == holds)
        } else {
            false
        };
        let mut told = Vec::new();
        let mut must_tell = self.followed_by(said);
        let mut assigning = None;
        for effect in effects {
            match effect {
                Effect::Store(op) => {
                    self.on_op(now, said, op, &mut assigning)?;
                    if let StoreOp::End { id, .. } = op {
                        must_tell.extend(self.live_followers_of_ended(*id));
                    }
                }
                Effect::Client { peer, reply, .. } => {
                    self.on_reply(said, peer, reply)?;
                    if let ClientReply::Outcome(outcome) = reply {
                        told.push((peer.clone(), outcome.task.id));
                    }
                }
                Effect::Control { reply, .. } => self.on_control(said, reply)?,
                Effect::Result { reply, .. } => self.on_result(said, reply, held)?,
                Effect::Lane { session, index, message: LaneMessage::Assign(assign), .. } => {
                    let Some((id, token, node)) = assigning.take() else {
                        return Err(Violation { kind: Kind::Illegal, what: "an assignment without its row".into() });
                    };
                    ensure!(assign.token == token && assign.spec.id == id, Illegal, "row and lane disagree about {id}");
                    self.on_assigned(id, token, *session, *index, &node, core)?;
                }
                Effect::CloseSession { session } => {
                    ensure!(self.sessions.remove(session).is_some(), Structure, "session {session} ended twice");
                }
                Effect::Lane { .. } | Effect::Finished(_) => {}
            }
        }
        ensure!(assigning.is_none(), Illegal, "a task was assigned and never sent");
        for (peer, id) in must_tell {
            ensure!(told.contains(&(peer, id)), Untold, "task {id} ended and one who waits was not told");
        }
        if let Said::ClientGone(peer) = said {
            self.live.values_mut().for_each(|t| {
                t.followers.remove(peer);
            });
        }
        self.compare(core)
    }

    fn hear_credit(&mut self, request: &ResultRequest) {
        let (id, credit) = match request {
            ResultRequest::Ready(ready) => (ready.session, ready.credit),
            ResultRequest::Delivery(delivery) => (delivery.session, delivery.credit),
            ResultRequest::Accept(_) => return,
        };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.granted = session.granted.max(credit);
        }
    }

    /// Who will have to be told at once, because they ask about a task that has ended.
    fn followed_by(&mut self, said: &Said) -> Vec<(PeerId, TaskId)> {
        let Said::Client(peer, request, _) = said else { return Vec::new() };
        let (id, owner, digest) = match request {
            ClientRequest::Submit(s) if s.follow => {
                (s.spec.id, &s.spec.owner, Some(lamagrid_wire::payload_digest(&s.spec)))
            }
            ClientRequest::Attach(a) => (a.id, &a.owner, a.digest),
            _ => return Vec::new(),
        };
        if let Some(task) = self.live.get_mut(&id)
            && task.owner == *owner
            && digest.is_none_or(|d| d == task.digest)
        {
            task.followers.insert(peer.clone());
        }
        match self.over.get(&id) {
            Some(over) if over.owner == *owner && digest.is_none_or(|d| d == over.digest) => vec![(peer.clone(), id)],
            _ => Vec::new(),
        }
    }

    fn live_followers_of_ended(&mut self, id: TaskId) -> Vec<(PeerId, TaskId)> {
        let followers = self.live.remove(&id).map(|t| t.followers).unwrap_or_default();
        followers.into_iter().map(|peer| (peer, id)).collect()
    }

    fn on_op(
        &mut self,
        now: Now,
        said: &Said,
        op: &StoreOp,
        assigning: &mut Option<(TaskId, LeaseToken, NodeName)>,
    ) -> Result<(), Violation> {
        match op {
            StoreOp::Insert { spec, digest, seq, .. } => {
                let id = spec.id;
                let Said::Client(peer, ClientRequest::Submit(submit), _) = said else {
                    return Err(Violation { kind: Kind::Illegal, what: format!("task {id} came from nowhere") });
                };
                let known = self.live.contains_key(&id) || self.over.contains_key(&id);
                ensure!(!known && submit.spec.id == id, Illegal, "task {id} was accepted twice");
                ensure!(!self.tombstones.contains(&id), Illegal, "task {id} runs although it is over");
                let followers = if submit.follow { BTreeSet::from([peer.clone()]) } else { BTreeSet::new() };
                let live = Live {
                    owner: spec.owner.clone(),
                    digest: *digest,
                    queue: spec.queue.clone(),
                    model: spec.model.clone(),
                    rank: (-i16::from(spec.priority), *seq),
                    deadline: spec.deadline_wall_ms,
                    state: State::Queued { not_before_ms: 0 },
                    node: None,
                    backs_off: false,
                    followers,
                };
                self.live.insert(id, live);
            }
            StoreOp::Assign { id, token, node, .. } => {
                ensure!(self.tokens.insert(*token), Illegal, "token {token} was used before");
                *assigning = Some((*id, *token, node.clone()));
            }
            StoreOp::Requeue { id, .. } => {
                self.must_hold_lease(said, *id)?;
                let later = matches!(said, Said::Result(_, ResultRequest::Delivery(d), _)
                    if match &d.outcome {
                        AttemptOutcome::Failed { failure } => failure.kind.retry() == Retry::Later,
                        AttemptOutcome::Done { .. } => true, // taken as an internal failure
                        AttemptOutcome::Cancelled => false,
                    });
                let task = self.task(*id, "requeued")?;
                ensure!(matches!(task.state, State::Assigned { .. }), Illegal, "waiting task {id} is requeued");
                task.state = legal(&task.state, Event::Requeue { not_before_ms: 0 }, *id)?;
                task.backs_off = later;
            }
            StoreOp::End { id, ended, .. } => {
                ensure!(!self.over.contains_key(id), TwoOutcomes, "task {id} ended again");
                self.must_hold_lease(said, *id)?;
                let event = match ended.status {
                    Status::Completed => Event::Complete,
                    Status::Cancelled => Event::Cancel,
                    _ => Event::Fail(ended.failure.clone().unwrap_or(Failure::new(FailureKind::Internal, ""))),
                };
                let task = self.task(*id, "ended")?;
                legal(&task.state, event, *id)?;
                let deadline = task.deadline;
                self.end_has_a_reason(now, said, *id, ended, deadline)?;
                self.over.insert(*id, over(ended, now, self.retention_ms));
            }
            StoreOp::Release { id, .. } => {
                let over = self.over.get_mut(id);
                ensure!(over.is_some(), Illegal, "task {id} is released and has not ended");
                over.into_iter().for_each(|o| o.told.result = None);
            }
            StoreOp::Forget { id, .. } => {
                let Some(over) = self.over.remove(id) else {
                    return Err(Violation { kind: Kind::Lost, what: format!("task {id} is forgotten and has not ended") });
                };
                ensure!(over.due_ms <= now.wall_ms, Lost, "task {id} is forgotten before its retention is over");
                self.tombstones.insert(*id);
            }
            StoreOp::Remember { id, .. } => {
                let known = self.live.contains_key(id) || self.over.contains_key(id);
                ensure!(!known, Lost, "task {id} has a row and becomes a tombstone");
                self.tombstones.insert(*id);
            }
            StoreOp::Unremember { id } => {
                ensure!(self.tombstones.remove(id), Structure, "no tombstone {id} to take away");
            }
        }
        Ok(())
    }

    fn task(&mut self, id: TaskId, what: &str) -> Result<&mut Live, Violation> {
        self.live.get_mut(&id).ok_or_else(|| Violation {
            kind: Kind::Lost,
            what: format!("task {id} is {what} and was never recorded"),
        })
    }

    /// What a delivery changes is its own task's, and its session holds that task's lease.
    fn must_hold_lease(&mut self, said: &Said, id: TaskId) -> Result<(), Violation> {
        let Said::Result(_, ResultRequest::Delivery(delivery), _) = said else { return Ok(()) };
        let holds = State::Assigned { token: delivery.token, session: delivery.session };
        let state = self.task(id, "delivered")?.state.clone();
        ensure!(state == holds, StaleAccepted, "task {id} is {state:?}, taken was a delivery of {holds:?}");
        Ok(())
    }

    fn end_has_a_reason(
        &self,
        now: Now,
        said: &Said,
        id: TaskId,
        ended: &Ended,
        deadline: Option<u64>,
    ) -> Result<(), Violation> {
        let failed = ended.failure.as_ref().map(|f| f.kind);
        match (ended.status, said) {
            (Status::Completed, Said::Result(_, ResultRequest::Delivery(delivery), _)) => {
                let AttemptOutcome::Done { result, .. } = &delivery.outcome else {
                    return Err(Violation { kind: Kind::Illegal, what: format!("task {id} completed by a failure") });
                };
                ensure!(ended.token == Some(delivery.token), StaleAccepted, "task {id} names another attempt");
                let same = ended.result.as_ref().map(|r| r.hash) == Some(result.hash);
                ensure!(same, TwoOutcomes, "task {id} keeps another result than was delivered");
            }
            (Status::Cancelled, Said::Client(_, ClientRequest::Cancel(cancel), _)) => {
                ensure!(cancel.id == id && cancel.owner == ended.owner, Leak, "a stranger cancelled task {id}");
            }
            (Status::Failed, Said::Client(..)) | (Status::Completed | Status::Cancelled, _) => {
                return Err(Violation { kind: Kind::Illegal, what: format!("task {id} ended as {} by itself", ended.status) });
            }
            (Status::Failed, Said::Tick) => {
                let early = failed == Some(FailureKind::DeadlineExceeded) && deadline.is_none_or(|d| d > now.wall_ms);
                ensure!(!early, Illegal, "task {id} failed before its deadline");
            }
            _ => {}
        }
        Ok(())
    }

    fn on_assigned(
        &mut self,
        id: TaskId,
        token: LeaseToken,
        session: SessionId,
        index: usize,
        node: &NodeName,
        core: &Core,
    ) -> Result<(), Violation> {
        let task = self.task(id, "assigned")?;
        task.state = legal(&task.state, Event::Assign { token, session }, id)?;
        task.node = Some(node.clone());
        task.backs_off = false;
        let (queue, model, rank) = (task.queue.clone(), task.model.clone(), task.rank);
        let Some(target) = self.sessions.get_mut(&session) else {
            return Err(Violation { kind: Kind::Structure, what: format!("task {id} went to a session that is over") });
        };
        target.given += 1;
        ensure!(target.given <= target.granted, Structure, "{node} was given more than its credit");
        ensure!(target.info.name == *node, Structure, "the row of {id} names another node than its lane");
        let offered = target.info.models.iter().any(|o| o.model == model && o.queue == queue);
        ensure!(offered, Structure, "{node} was given {model} of {queue}, which it lacks");
        ensure!(target.info.queues().get(index) == Some(&queue), Structure, "task {id} went down a wrong lane");
        for (other, waits) in &self.live {
            let better = waits.rank < rank && waits.model == model && waits.queue == queue;
            if better && matches!(waits.state, State::Queued { .. }) && !waits.backs_off {
                // A task may shun this node; the core alone knows.
                let shuns = core.tasks.get(other).is_none_or(|t| t.avoid.contains(node));
                ensure!(shuns, Order, "task {id} was served before {other}, which is better");
            }
        }
        Ok(())
    }

    fn on_control(&mut self, said: &Said, reply: &ControlReply) -> Result<(), Violation> {
        let (ControlReply::Welcome(welcome), Said::Control(_, ControlRequest::Hello(hello))) = (reply, said) else {
            return Ok(());
        };
        let mut info = hello.info.clone();
        info.models.retain(|o| !welcome.refused.iter().any(|r| r.queue == o.queue));
        let node = info.name.clone();
        self.sessions.insert(welcome.session, Session { info, granted: 0, given: 0 });
        for (id, task) in &mut self.live {
            let State::Assigned { token, .. } = task.state else { continue };
            if task.node.as_ref() != Some(&node) {
                continue;
            }
            let listed = hello.running.contains(&token) || hello.held.contains(&token);
            let kept = listed && !welcome.abandoned.contains(&token);
            ensure!(kept, Structure, "task {id} stays with {node}, which was told to drop it or never had it");
            task.state = legal(&task.state, Event::Adopt { session: welcome.session }, *id)?;
        }
        Ok(())
    }

    fn on_result(&self, said: &Said, reply: &ResultReply, held: bool) -> Result<(), Violation> {
        let Said::Result(_, request, _) = said else { return Ok(()) };
        match (reply, request) {
            (ResultReply::Proceed(proceed), ResultRequest::Accept(accept)) => {
                let holds = State::Assigned { token: accept.token, session: accept.session };
                let live = self.live.values().any(|t| t.state == holds);
                ensure!(live && proceed.token == accept.token, StaleAccepted, "a stale accept was answered: go on");
            }
            (ResultReply::Stored(stored), ResultRequest::Delivery(delivery)) => {
                let recorded = self.over.values().any(|o| o.token == Some(delivery.token));
                ensure!(stored.accepted == (held || recorded), StaleAccepted,
                    "a delivery was answered accepted {}, it held the lease: {held}, is on record: {recorded}",
                    stored.accepted);
            }
            (ResultReply::Abandon(_), ResultRequest::Accept(accept)) => {
                let holds = State::Assigned { token: accept.token, session: accept.session };
                let live = self.live.values().any(|t| t.state == holds);
                ensure!(!live, Structure, "the holder of a lease was told to stop");
            }
            _ => {}
        }
        Ok(())
    }

    /// An answer to a client: nobody hears about a stranger's task, and nobody hears that an own one is unknown.
    fn on_reply(&mut self, said: &Said, peer: &PeerId, reply: &ClientReply) -> Result<(), Violation> {
        if let ClientReply::Outcome(outcome) = reply {
            let id = outcome.task.id;
            let Some(over) = self.over.get(&id) else {
                return Err(Violation { kind: Kind::Illegal, what: format!("an outcome of {id}, which has not ended") });
            };
            let told = Told::of_outcome(outcome);
            ensure!(over.told.agrees(&told), TwoOutcomes, "task {id} ended as {:?}, told is {told:?}", over.told);
        }
        let Said::Client(asker, request, _) = said else { return Ok(()) };
        if asker != peer {
            return Ok(());
        }
        let (id, owner) = match request {
            ClientRequest::Submit(s) => (s.spec.id, &s.spec.owner),
            ClientRequest::Offer(o) => (o.id, &o.owner),
            ClientRequest::Attach(a) => (a.id, &a.owner),
            ClientRequest::Cancel(c) => (c.id, &c.owner),
            ClientRequest::Query(q) => (q.id, &q.owner),
            ClientRequest::Ping(_) | ClientRequest::Release(_) | ClientRequest::Survey(_) => return Ok(()),
        };
        let of = self.live.get(&id).map(|t| &t.owner).or_else(|| self.over.get(&id).map(|t| &t.owner));
        match reply {
            ClientReply::Told(_) | ClientReply::Outcome(_) => {
                ensure!(of == Some(owner), Leak, "{owner} was told about {id}");
            }
            ClientReply::Unknown(unknown) => {
                ensure!(of != Some(owner), Lost, "{owner} was told that its task {id} is unknown");
                let over = of.is_none() && self.tombstones.contains(&id);
                let fresh = matches!(request, ClientRequest::Cancel(_));
                ensure!(fresh || unknown.expired == over, Leak, "expired is {} for {id}", unknown.expired);
            }
            _ => {}
        }
        Ok(())
    }

    /// Model and core agree about every task.
    fn compare(&mut self, core: &Core) -> Result<(), Violation> {
        for (id, live) in &mut self.live {
            let Some(task) = core.tasks.get(id) else {
                return Err(Violation { kind: Kind::Lost, what: format!("task {id} is gone from the core") });
            };
            let same = match (&live.state, &task.state) {
                (State::Queued { .. }, State::Queued { not_before_ms }) => {
                    live.backs_off = *not_before_ms > core.clock_ms || core.delayed.contains(&(*not_before_ms, *id));
                    true
                }
                (State::Assigned { .. }, State::Assigned { .. }) => live.state == task.state,
                _ => false,
            };
            ensure!(same, Structure, "task {id}: by its effects {:?}, in the core {:?}", live.state, task.state);
        }
        ensure!(self.live.len() == core.tasks.len(), Lost, "the core holds {} tasks, {} are on record",
            core.tasks.len(), self.live.len());
        ensure!(self.over.len() == core.ended.len(), Structure, "the core remembers {} ended tasks, {} are on record",
            core.ended.len(), self.over.len());
        ensure!(self.sessions.len() == core.sessions.len(), Structure, "{} sessions, {} on record",
            core.sessions.len(), self.sessions.len());
        Ok(())
    }

    /// An operation became durable.
    pub(super) fn on_committed(&mut self, op: &StoreOp) -> Result<(), Violation> {
        match op {
            StoreOp::End { id, .. } => {
                let promise = self.promises.entry(*id).or_default();
                promise.ends += 1;
                ensure!(promise.ends == 1, TwoOutcomes, "task {id} has {} recorded outcomes", promise.ends);
            }
            StoreOp::Forget { id, .. } => self.promises.entry(*id).or_default().expired = true,
            StoreOp::Unremember { id } => {
                self.promises.remove(id);
            }
            _ => {}
        }
        Ok(())
    }

    /// A message left for a client.
    pub(super) fn on_sent(&mut self, reply: &ClientReply, disk: &Disk) -> Result<(), Violation> {
        match reply {
            ClientReply::Accepted(accepted) => {
                let id = accepted.id;
                ensure!(disk.rows.contains_key(&id), Lost, "task {id} is acknowledged and has no row");
                self.promises.entry(id).or_default().accepted = true;
            }
            ClientReply::Outcome(outcome) => {
                let id = outcome.task.id;
                let told = Told::of_outcome(outcome);
                let recorded = disk.rows.get(&id).is_none_or(|row| row.ended.is_some());
                ensure!(recorded, Lost, "an outcome of {id} left before it was recorded");
                let promise = self.promises.entry(id).or_default();
                if let Some(before) = &promise.told {
                    ensure!(before.agrees(&told), TwoOutcomes, "{id}: told {before:?}, then {told:?}");
                }
                promise.told = Some(told);
            }
            _ => {}
        }
        Ok(())
    }
}

fn over(ended: &Ended, now: Now, retention_ms: u64) -> Over {
    let due_ms = ended.finished_wall_ms.min(now.wall_ms) + retention_ms;
    Over { owner: ended.owner.clone(), digest: ended.digest, told: Told::of_ended(ended), token: ended.token, due_ms }
}

fn legal(state: &State, event: Event, id: TaskId) -> Result<State, Violation> {
    state.apply(event).map_err(|error| Violation { kind: Kind::Illegal, what: format!("task {id}: {error}") })
}
