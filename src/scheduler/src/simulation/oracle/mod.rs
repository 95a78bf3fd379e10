//! An independent model of the core: it follows inputs, effects and commits, and trusts no index of the core.

macro_rules! ensure {
    ($holds:expr, $kind:ident, $($text:tt)+) => {
        if !$holds {
            return Err(Violation { kind: Kind::$kind, what: format!($($text)+) });
        }
    };
}

mod bounds;
mod messages;
mod overtaking;
mod writes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lamagrid_config::{LimitsConfig, SchedulerConfig};
use lamagrid_domain::{
    BootId, Counters, Entry, Event, Failure, FailureKind, Hash, LeaseToken, Milestone, ModelName, NodeInfo,
    Owner, QueueName, Retry, Role, SessionId, State, Status, TaskId, TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    ActionKind, AttemptOutcome, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage,
    Outcome, ResultReply, ResultRequest,
};

use crate::core::{ClockChange, Core, Effect, FinishedTask, NodeId, Now, Order, OrderKind, StoreOp, View};
use crate::simulation::disk::Disk;
use crate::simulation::network::Message;
use crate::simulation::routing::Routing;

/// The kind of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A client was promised a task that is not on record.
    Lost,
    /// One task had two outcomes.
    TwoOutcomes,
    /// A follower was not told the outcome.
    Untold,
    /// A result was accepted from a session that does not hold the lease.
    StaleAccepted,
    /// A task moved as no task may.
    Illegal,
    /// The core's indexes contradict each other, or the model.
    Structure,
    /// A client was told about a task of another owner.
    Leak,
    /// A worse task was served before a better one.
    Order,
    /// Inputs may be brought without an offer, or under an id that is taken.
    Granted,
    /// More came in than the bounds allow.
    Unbounded,
    /// A task waits behind a busy node while another one, which may have it, is idle.
    Waits,
    /// A node got a lane or a task that is not for its device.
    Misplaced,
    /// Without faults something did not end in time.
    Stuck,
}

/// A broken promise.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

impl Violation {
    /// The core's own checks.
    pub(crate) fn of_core(core: &Core) -> Result<(), Self> {
        core.check().map_err(|what| Self { kind: Kind::Structure, what })?;
        core.check_waits().map_err(|what| Self { kind: Kind::Waits, what })
    }
}

/// A live task, as its effects tell.
struct Live {
    owner: Owner,
    digest: Hash,
    queue: QueueName,
    model: ModelName,
    spec: TaskSpec,
    deadline: Option<u64>,
    bytes: u64,
    has_run_limit: bool,
    state: State,
    node: Option<NodeId>,
    /// Backs off, or did when the present step began.
    backs_off: bool,
    /// It shared a node with others when the node was lost, and runs alone from then on.
    isolated: bool,
    counters: Counters,
    followers: BTreeSet<PeerId>,
}

/// An ended task, as its end told.
#[derive(Clone)]
struct Over {
    owner: Owner,
    digest: Hash,
    told: TaskStatus,
    token: Option<LeaseToken>,
    /// Wall clock; it is kept until then, by the clock at its end or at the last restart.
    due_ms: u64,
}

/// An outcome, as far as two tellings of it must agree.
#[derive(Debug, Clone, PartialEq)]
struct TaskStatus {
    status: Status,
    failure: Option<Failure>,
    finished_wall_ms: Option<u64>,
    /// Absent after a release.
    result: Option<Hash>,
}

impl TaskStatus {
    fn of_ended(ended: &FinishedTask) -> Self {
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
    lanes: Vec<QueueName>,
    boot: Option<BootId>,
    slots: u64,
    overlap: u64,
    /// Credit that it counts and does not get, because it offers more overlap than slots.
    excess: u64,
    granted: u64,
    given: u64,
    /// Assignments of this session, numbered from 1 as they were accepted.
    numbers: BTreeMap<LeaseToken, Option<u64>>,
    accepted: u64,
    actions: Vec<ActionKind>,
}

impl Session {
    fn used(&self) -> u64 {
        (self.slots + self.overlap).saturating_sub(self.granted - self.given)
    }

    /// Attempts that no slot can have begun with, by their numbers alone: enough were accepted after each that it
    /// waits, even if the later ones are over.
    fn certainly_waiting(&self) -> impl Iterator<Item = LeaseToken> {
        let waits = |number: &Option<u64>| number.is_some_and(|n| n + self.overlap > self.granted);
        self.numbers.iter().filter(move |(_, number)| waits(number)).map(|(token, _)| *token)
    }
}

/// The promises that a client got about a task, across restarts of the scheduler.
#[derive(Default)]
struct Promise {
    told: Option<TaskStatus>,
    ends: u32,
    accepted: bool,
    expired: bool,
}

pub(in crate::simulation) struct Oracle {
    live: BTreeMap<TaskId, Live>,
    over: HashMap<TaskId, Over>,
    tombstones: HashSet<TaskId>,
    watermarks: HashMap<Owner, u64>,
    /// Ids that were over at some time, on disk: they never run again.
    spent: HashSet<TaskId>,
    uploads: HashMap<TaskId, (Owner, u64)>,
    disk_free: Option<u64>,
    clock: bounds::Clock,
    limits: LimitsConfig,
    routing: Routing,
    sessions: BTreeMap<SessionId, Session>,
    /// Nodes that an administrator removed.
    removed: BTreeSet<NodeId>,
    tokens: HashSet<LeaseToken>,
    /// Attempts that no slot had begun with when their session ended.
    innocent: HashSet<LeaseToken>,
    /// Attempts that were all that their session had when it ended.
    alone: HashSet<LeaseToken>,
    /// Attempts with which a node died.
    begun_at_death: HashSet<LeaseToken>,
    /// Attempts whose node's next process came before its end was found.
    taken_over: HashSet<LeaseToken>,
    promises: HashMap<TaskId, Promise>,
    retention_ms: u64,
    dead_retention_ms: u64,
    has_run_limit: bool,
    has_probes: bool,
    kept_free: overtaking::KeptFree,
    /// How often each event happened: a run without an event proves nothing about it.
    pub(in crate::simulation) tally: BTreeMap<String, u64>,
}

impl Oracle {
    pub(in crate::simulation) fn new(
        config: &SchedulerConfig,
        limits: &LimitsConfig,
        routing: &Routing,
        clock_grace_ms: u64,
    ) -> Self {
        Self {
            live: BTreeMap::new(),
            over: HashMap::new(),
            tombstones: HashSet::new(),
            watermarks: HashMap::new(),
            spent: HashSet::new(),
            uploads: HashMap::new(),
            disk_free: None,
            clock: bounds::Clock::new(clock_grace_ms),
            limits: limits.clone(),
            routing: routing.clone(),
            sessions: BTreeMap::new(),
            removed: BTreeSet::new(),
            tokens: HashSet::new(),
            innocent: HashSet::new(),
            alone: HashSet::new(),
            begun_at_death: HashSet::new(),
            taken_over: HashSet::new(),
            promises: HashMap::new(),
            retention_ms: config.result_retention_s * 1_000,
            dead_retention_ms: config.dead_retention_s * 1_000,
            has_run_limit: config.run_limit_ms > 0,
            has_probes: config.set_aside_after > 0,
            kept_free: overtaking::KeptFree::new(config),
            tally: BTreeMap::new(),
        }
    }

    /// The scheduler died and came back with what `disk` holds.
    pub(in crate::simulation) fn on_restart(
        &mut self,
        now: Now,
        disk: &Disk,
        core: View<'_>,
    ) -> Result<(), Violation> {
        self.live.clear();
        self.over.clear();
        self.sessions.clear();
        let removed = disk.orders.iter().filter(|(_, order)| order.kind == OrderKind::Removal);
        self.removed = removed.map(|(node, _)| node.clone()).collect();
        self.uploads.clear();
        self.disk_free = None;
        self.clock.restart(now, disk.wall_ms);
        self.tombstones = disk.tombstones.keys().copied().collect();
        self.watermarks = disk.watermarks.clone().into_iter().collect();
        for (id, row) in &disk.rows {
            if let Some(ended) = &row.ended {
                self.over.insert(*id, self.over(ended, now, 0));
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
                spec: TaskSpec::clone(spec),
                deadline: spec.deadline_wall_ms,
                bytes: spec.input_bytes(),
                has_run_limit: self.has_run_limit || spec.run_limit_ms.is_some(),
                state,
                node: row.assigned.as_ref().map(|(_, node)| node.clone()),
                backs_off: false,
                isolated: row.history.iter().any(is_shared_loss),
                counters: row.counters,
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
            ensure!(core.has_finished(*id), Lost, "ended task {id} was not recovered");
        }
        Ok(())
    }

    fn over(&self, ended: &FinishedTask, now: Now, from_ms: u64) -> Over {
        let retention_ms = if ended.dead.is_some() { self.dead_retention_ms } else { self.retention_ms };
        Over {
            owner: ended.owner.clone(),
            digest: ended.digest,
            told: TaskStatus::of_ended(ended),
            token: ended.token,
            due_ms: ended.finished_wall_ms.min(self.clock.later_ms(now)).max(from_ms) + retention_ms,
        }
    }

    /// A node died while it worked on these.
    pub(in crate::simulation) fn on_death(&mut self, begun: impl Iterator<Item = LeaseToken>) {
        self.begun_at_death.extend(begun);
    }

    /// Another process of a node took the place of one that the scheduler had not found dead: no crash is counted.
    fn on_takeover(&mut self, ended: SessionId) {
        let tokens = self.live.values().filter_map(|task| match task.state {
            State::Assigned { token, session } if session == ended => Some(token),
            _ => None,
        });
        self.taken_over.extend(tokens);
        self.note("taken over");
    }

    /// One step of the core: an input and its effects.
    pub(in crate::simulation) fn on_step(
        &mut self,
        now: Now,
        message: &Message,
        effects: &[Effect],
        core: View<'_>,
    ) -> Result<(), Violation> {
        if self.clock.observe(now) > 0 {
            // Ids of the time that never was are forgotten.
            self.spent.retain(|id| id.drawn_wall_ms() <= now.wall_ms);
        }
        if let Message::DiskFree(bytes) = message {
            self.disk_free = Some(*bytes);
        }
        if let Message::Result(_, request, _) = message {
            self.hear_credit(request);
        }
        let held = if let Message::Result(_, ResultRequest::Delivery(d), _) = message {
            let holds = State::Assigned { token: d.token, session: d.session };
            self.live.values().any(|t| t.state == holds)
        } else {
            false
        };
        let mut told = Vec::new();
        let mut must_tell = self.followed_by(message);
        let mut assigning = None;
        for effect in effects {
            match effect {
                Effect::Store(op) => {
                    for op in each(op) {
                        self.on_op(now, message, op, &mut assigning)?;
                        if let StoreOp::End { id, .. } = op {
                            must_tell.extend(self.live_followers_of_ended(*id));
                        }
                    }
                }
                Effect::Client { peer, reply, .. } => {
                    self.on_reply(message, peer, reply)?;
                    if let ClientReply::Outcome(outcome) = reply {
                        told.push((peer.clone(), outcome.task.id));
                    }
                }
                Effect::Control { reply, .. } => self.on_control(message, reply)?,
                Effect::Result { reply, .. } => self.on_result(message, reply, held)?,
                Effect::Lane { session, index, message: LaneMessage::Assign(assign), .. } => {
                    let Some((id, token, node)) = assigning.take() else {
                        return Err(Violation {
                            kind: Kind::Illegal,
                            what: "an assignment without its row".into(),
                        });
                    };
                    ensure!(
                        assign.token == token && assign.spec.id == id,
                        Illegal,
                        "row and lane disagree about {id}"
                    );
                    let (session, index) = (*session, *index);
                    let assigned = messages::Assigned { id, token, session, index, node: &node };
                    self.on_assigned(assigned, core)?;
                }
                Effect::CloseSession { session: id } => {
                    let Some(session) = self.sessions.remove(id) else {
                        return Err(Violation {
                            kind: Kind::Structure,
                            what: format!("session {id} ended twice"),
                        });
                    };
                    self.innocent.extend(session.certainly_waiting());
                    let had = self.live.values().filter_map(|task| match task.state {
                        State::Assigned { token, session } if session == *id => Some(token),
                        _ => None,
                    });
                    let had: Vec<_> = had.collect();
                    if let ([only], 0 | 1) = (had.as_slice(), session.used()) {
                        self.alone.insert(*only);
                    }
                    if let Message::Control(_, ControlRequest::Hello(hello)) = message
                        && (hello.boot.is_none() || hello.boot != session.boot)
                    {
                        self.on_takeover(*id);
                    }
                }
                Effect::Lane { .. } | Effect::Finished(_) | Effect::Admin { .. } => {}
                Effect::OpenUpload { owner, id, bytes } => {
                    self.on_upload_opened(message, owner, *id, *bytes)?
                }
                Effect::CloseUpload { owner, id, inputs } => self.on_upload_closed(owner, *id, *inputs)?,
                Effect::Clock(change) => self.note(match change {
                    ClockChange::Doubted { .. } => "clock doubted",
                    ClockChange::Returned => "clock returned",
                    ClockChange::Believed { .. } => "clock believed",
                }),
                Effect::Level(level) => self.note(&format!("alarm {}", level.percent)),
            }
        }
        ensure!(assigning.is_none(), Illegal, "a task was assigned and never sent");
        for (peer, id) in must_tell {
            ensure!(told.contains(&(peer, id)), Untold, "task {id} ended and one who waits was not told");
        }
        for effect in effects {
            match effect {
                Effect::Client { reply: ClientReply::Refused(r), .. } => {
                    self.note(&format!("refused: {}", r.failure.kind))
                }
                Effect::Client { reply: ClientReply::Unknown(u), .. } if u.expired => self.note("expired"),
                Effect::Control { reply: ControlReply::Rejected(_), .. } => self.note("rejected"),
                Effect::Control { reply: ControlReply::Farewell(_), .. } => self.note("farewell"),
                Effect::Result { reply: ResultReply::Abandon(_), .. } => self.note("abandon"),
                Effect::Result { reply: ResultReply::SessionGone(_), .. } => self.note("session gone"),
                Effect::Result { reply: ResultReply::Stored(s), .. } if !s.accepted => {
                    self.note("stored elsewhere")
                }
                _ => {}
            }
        }
        if let Message::ClientGone(peer) = message {
            self.live.values_mut().for_each(|t| {
                t.followers.remove(peer);
            });
        }
        self.compare(core)
    }

    pub(in crate::simulation) fn note(&mut self, what: &str) {
        match self.tally.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.tally.insert(what.to_owned(), 1)),
        }
    }

    /// Model and core agree about every task.
    fn compare(&mut self, core: View<'_>) -> Result<(), Violation> {
        self.remember_kept_free(core);
        for (id, live) in &mut self.live {
            let Some(task) = core.task(*id) else {
                return Err(Violation { kind: Kind::Lost, what: format!("task {id} is gone from the core") });
            };
            let same = match (&live.state, task.state()) {
                (State::Queued { .. }, State::Queued { .. }) => {
                    live.backs_off = core.is_delayed(task);
                    true
                }
                (State::Assigned { .. }, State::Assigned { .. }) => live.state == *task.state(),
                _ => false,
            };
            ensure!(
                same,
                Structure,
                "task {id}: by its effects {:?}, in the core {:?}",
                live.state,
                task.state()
            );
        }
        ensure!(
            self.live.len() == core.tasks().count(),
            Lost,
            "the core holds {} tasks, {} are on record",
            core.tasks().count(),
            self.live.len()
        );
        ensure!(
            self.over.len() == core.finished_tasks(),
            Structure,
            "the core remembers {} ended tasks, {} are on record",
            core.finished_tasks(),
            self.over.len()
        );
        ensure!(
            self.sessions.len() == core.sessions().len(),
            Structure,
            "{} sessions, {} on record",
            core.sessions().len(),
            self.sessions.len()
        );
        Ok(())
    }

    /// An operation became durable.
    pub(in crate::simulation) fn on_committed(&mut self, op: &StoreOp) -> Result<(), Violation> {
        each(op).try_for_each(|op| self.on_one_committed(op))
    }

    fn on_one_committed(&mut self, op: &StoreOp) -> Result<(), Violation> {
        match op {
            StoreOp::End { id, .. } => {
                let promise = self.promises.entry(*id).or_default();
                promise.ends += 1;
                ensure!(promise.ends == 1, TwoOutcomes, "task {id} has {} recorded outcomes", promise.ends);
                self.spent.insert(*id);
            }
            StoreOp::Remember { id, .. } => _ = self.spent.insert(*id),
            StoreOp::Forget { id, .. } => self.promises.entry(*id).or_default().expired = true,
            StoreOp::Unremember { id } => {
                self.promises.remove(id);
            }
            _ => {}
        }
        Ok(())
    }

    /// A message left for a client.
    pub(in crate::simulation) fn on_sent(
        &mut self,
        reply: &ClientReply,
        attach: Option<&(TaskId, Vec<Role>)>,
        disk: &Disk,
    ) -> Result<(), Violation> {
        if let Some((id, _)) = attach {
            let ended = disk.rows.get(id).and_then(|row| row.ended.as_ref());
            let is_there = ended.is_some_and(|ended| ended.inline && ended.result.is_some());
            ensure!(is_there, Lost, "an outcome of {id} carries a result that is gone");
        }
        match reply {
            ClientReply::Accepted(accepted) => {
                let id = accepted.id;
                ensure!(disk.rows.contains_key(&id), Lost, "task {id} is acknowledged and has no row");
                self.promises.entry(id).or_default().accepted = true;
            }
            ClientReply::Outcome(outcome) => {
                let id = outcome.task.id;
                let told = TaskStatus::of_outcome(outcome);
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

/// Whether a node was lost that had other tasks, too.
fn is_shared_loss(entry: &Entry) -> bool {
    matches!(entry.what, Milestone::NodeLost { shared: true, .. })
}

/// Whether an attempt was stopped because it ran too long.
fn is_run_limit(entry: &Entry) -> bool {
    matches!(&entry.what, Milestone::Failed { failure, .. } if failure.kind == FailureKind::RanTooLong)
}

/// The operations of one transaction.
fn each(op: &StoreOp) -> impl Iterator<Item = &StoreOp> {
    if let StoreOp::Together(ops) = op { ops.iter() } else { std::slice::from_ref(op).iter() }
}

/// Whether a node reported a failed attempt, or delivered another result than it announced.
fn is_failure(message: &Message) -> bool {
    let Message::Result(_, ResultRequest::Delivery(delivery), _) = message else { return false };
    matches!(delivery.outcome, AttemptOutcome::Failed { .. } | AttemptOutcome::Done { .. })
}

fn legal(state: &State, event: Event, id: TaskId) -> Result<State, Violation> {
    state.apply(event).map_err(|error| Violation { kind: Kind::Illegal, what: format!("task {id}: {error}") })
}
