//! The core decides: queues, priorities, leases, placement, retries, admission, recovery.
//!
//! Does not: open a socket, read a clock, touch a disk. [`Core::handle`] takes what happened and when, and
//! gives back what shall be done, in order. The shell carries effects out in that order and holds every
//! message back until all writes before it are committed (the commit barrier).
//!
//! Invariant: a task is in exactly one place: waiting in an index, delayed, assigned under a live token, or
//! ended. [`Core::check`] says so in tests.

#[cfg(any(test, feature = "sabotage"))]
#[macro_use]
mod fault;
/// Faults are planted only by tests: here every use of the macro expands to nothing.
#[cfg(not(any(test, feature = "sabotage")))]
macro_rules! fault {
    ($($planted:tt)*) => {};
}

/// Fails a check of an invariant with this text.
#[cfg(test)]
macro_rules! invariant {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

#[cfg(test)]
mod check;
mod effect;
mod effect_buffer;
mod handlers;
mod metrics_snapshot;
mod node_id;
mod policy;
#[cfg(test)]
#[path = "../simulation/mod.rs"]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod view;

use std::collections::BTreeMap;

use lamagrid_config::{LimitsConfig, RetryConfig, SchedulerConfig};
use lamagrid_domain::{Advance, Event, Failure, LeaseToken, Owner, QueueName, Status, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{ClientReply, Progress, TaskInfo};
use lamagrid_transport::Endpoints;

pub(crate) use effect::{Authority, Effect, Input, ResultPlace, StoreOp, StoredTask};
#[cfg(any(test, feature = "sabotage"))]
pub(crate) use fault::Fault;
pub(crate) use metrics_snapshot::MetricsSnapshot;
pub(crate) use node_id::NodeId;
pub(crate) use state::alarms::{Bounded, Level};
pub(crate) use state::drains::Drain;
pub(crate) use state::finished_task::FinishedTask;
pub(crate) use state::pauses::Pause;
pub(crate) use state::wall_clock::ClockChange;

#[cfg(test)]
pub(crate) use view::View;

use effect_buffer::EffectBuffer;
#[cfg(any(test, feature = "sabotage"))]
use fault::Faults;
use policy::retry;
use state::admission::Admission;
use state::alarms::Alarms;
use state::circuit_breaker::CircuitBreaker;
use state::clock::Clock;
use state::drains::Drains;
use state::finished_task::{self, DeliveredResult};
use state::followers::Followers;
use state::leases::Leases;
use state::pauses::Pauses;
use state::ready_queue::ReadyQueue;
use state::refusal_log::RefusalLog;
use state::retention::Retention;
use state::run_times::RunTimes;
use state::sessions::Sessions;
use state::task::{Lease, NewTask, Task};
use state::task_table::TaskTable;
use state::task_timers::TaskTimers;
use state::tombstones::{self, Tombstones};

/// The instant at which something happened, on both clocks, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Monotonic: leases, time-outs, back-off. Never stored.
    pub(crate) mono_ms: u64,
    /// Since the Unix epoch: deadlines and retention. Stored, clamped on load.
    pub(crate) wall_ms: u64,
}

/// This many tombstones of one owner are remembered at most, oldest dropped first.
pub(crate) const MAX_TOMBSTONES: usize = 50_000;
/// For how long the wall clock has to be steady after a jump before deletion and deadlines go by it.
pub(crate) const CLOCK_GRACE_MS: u64 = 300_000;
/// This many ended tasks are kept at most, however long their retention: about half a kilobyte of memory each. Above it
/// the oldest ones of the owner with the most go.
pub(crate) const MAX_ENDED: usize = 200_000;

/// What the core is told once, at its start.
pub(crate) struct Settings {
    /// Leases, retries and retention.
    pub(crate) scheduler: SchedulerConfig,
    /// What happens after a failure, by its family.
    pub(crate) retry: RetryConfig,
    /// The largest picture, and what all tasks and those of one client may use.
    pub(crate) limits: LimitsConfig,
    /// The bound on waiting tasks, per queue.
    pub(crate) queues: BTreeMap<QueueName, u64>,
    /// See [`MAX_TOMBSTONES`].
    pub(crate) max_tombstones: usize,
    /// See [`MAX_ENDED`].
    pub(crate) max_ended: usize,
    /// See [`CLOCK_GRACE_MS`].
    pub(crate) clock_grace_ms: u64,
    /// Where lanes are bound.
    pub(crate) endpoints: Endpoints,
    /// The spool's directory, told to peers on this host.
    pub(crate) spool: String,
}

/// What a store remembers at start.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) tasks: Vec<StoredTask>,
    /// Id, whose it was, and end of its memory by the wall clock, ms.
    pub(crate) tombstones: Vec<(TaskId, Owner, u64)>,
    /// Up to which time of drawing the ids of an owner are over.
    pub(crate) watermarks: Vec<(Owner, u64)>,
    /// The last time that was believed, wall clock, ms.
    pub(crate) wall_ms: Option<u64>,
    pub(crate) paused: Vec<(QueueName, Pause)>,
    pub(crate) drains: Vec<(NodeId, Drain)>,
}

/// Draws 16 random bytes: from the operating system, or from a seed in tests.
pub(crate) type Entropy = Box<dyn FnMut() -> [u8; 16] + Send>;

/// The whole state of a scheduler.
pub(crate) struct Core {
    settings: Settings,
    entropy: Entropy,
    clock: Clock,
    tasks: TaskTable,
    ready: ReadyQueue,
    leases: Leases,
    retention: Retention,
    /// Queues whose tasks are given to no node.
    paused: Pauses,
    /// Nodes that are to leave.
    drains: Drains,
    refusals: RefusalLog,
    admission: Admission,
    alarms: Alarms,
    breaker: CircuitBreaker,
    /// Limits on waiting and running, and ageing.
    timers: TaskTimers,
    followers: Followers,
    run_times: RunTimes,
    sessions: Sessions,
    effects: EffectBuffer,
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) faults: Faults,
    /// The first assignment that was wrong when it was made.
    #[cfg(test)]
    wrong_choice: Option<String>,
}

impl Core {
    /// A core that remembers what was recovered.
    ///
    /// Waiting tasks wait again; assigned ones are kept for their node until a fresh lease ends.
    #[must_use]
    pub(crate) fn new(settings: Settings, entropy: Entropy, now: Now, recovered: Recovered) -> Self {
        let mut core = Self {
            ready: ReadyQueue::new(settings.queues.keys()),
            retention: Retention::new(Tombstones::new(settings.max_tombstones, recovered.watermarks)),
            clock: Clock::start(now, recovered.wall_ms, settings.clock_grace_ms),
            settings,
            entropy,
            tasks: TaskTable::default(),
            leases: Leases::default(),
            paused: Pauses::recovered(recovered.paused),
            drains: Drains::recovered(recovered.drains),
            refusals: RefusalLog::default(),
            admission: Admission::default(),
            alarms: Alarms::default(),
            breaker: CircuitBreaker::default(),
            timers: TaskTimers::default(),
            followers: Followers::default(),
            run_times: RunTimes::default(),
            sessions: Sessions::default(),
            effects: EffectBuffer::default(),
            #[cfg(any(test, feature = "sabotage"))]
            faults: Faults::default(),
            #[cfg(test)]
            wrong_choice: None,
        };
        let change = core.clock.wall().initial_change();
        change.into_iter().for_each(|change| core.emit(Effect::Clock(change)));
        core.forget_unknown_pauses();
        for (id, owner, until) in recovered.tombstones {
            core.remember(id, &owner, until);
        }
        for stored in recovered.tasks {
            core.recover(stored);
        }
        core
    }

    /// Takes what happened and gives what shall be done, in order.
    pub(crate) fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        self.clock.advance(now);
        self.observe_wall();
        match input {
            Input::Client { peer, request, inline, authority } => {
                self.on_client(peer, request, inline, authority);
            }
            Input::Abandoned { owner, id } => self.abandon(&owner, id),
            Input::DiskFree { bytes } => self.admission.set_free_bytes(bytes),
            Input::ClientGone { peer } => self.on_client_gone(&peer),
            Input::Admin { peer, request } => self.on_admin(peer, request),
            Input::Control { peer, request } => self.on_control(peer, request),
            Input::LaneConnected { session, index } => self.on_lane_connected(session, index),
            Input::LanesFailed { session, reason } => self.on_lanes_failed(session, &reason),
            Input::Result { peer, request, inline } => self.on_result(peer, request, inline),
            Input::ResultGone { peer, far } => self.on_result_gone(&peer, far),
            Input::Event(event) => self.on_event(event),
            Input::Tick => self.on_tick(),
        }
        self.recall_for_idle();
        self.raise_alarms();
        self.effects.take()
    }

    /// Emits every bound that crossed a threshold.
    fn raise_alarms(&mut self) {
        let limits = &self.settings.limits;
        for (queue, limit) in &self.settings.queues {
            let level = self.alarms.observe_queue(queue, self.ready.length(queue).unwrap_or(0), *limit);
            level.into_iter().for_each(|level| self.effects.push(Effect::Level(level)));
        }
        let spool = self.alarms.observe_spool(self.admission.spool_bytes(), limits.max_spool_bytes);
        let free = self.admission.free_bytes();
        let disk = free.and_then(|free| self.alarms.observe_disk(free, limits.min_free_bytes));
        spool.into_iter().chain(disk).for_each(|level| self.effects.push(Effect::Level(level)));
    }

    /// Keeps the believed time. A clock that was set back takes the watermarks with it: else nothing would be new until
    /// it has come as far again.
    fn observe_wall(&mut self) {
        fault!(self, ClockBelieved => return self.clock.trust_wall());
        let Some(change) = self.clock.observe_wall() else { return };
        self.emit(Effect::Clock(change));
        if matches!(change, ClockChange::Believed { ahead_ms } if ahead_ms < 0) {
            for (owner, wall_ms) in self.retention.lower_watermarks(self.clock.now().wall_ms) {
                self.emit(Effect::Store(StoreOp::Watermark { owner, wall_ms }));
            }
        }
    }

    /// Fails if the parts contradict themselves or each other.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        check::structure(self)
    }

    /// Fails if a task waits that should not, or if an assignment since the start was wrong.
    #[cfg(test)]
    pub(crate) fn check_waits(&self) -> Result<(), String> {
        check::no_task_waits_beside_an_idle_slot(self)
    }

    #[cfg(test)]
    pub(crate) fn view(&self) -> View<'_> {
        View(self)
    }

    /// Tasks that have not ended.
    #[must_use]
    pub(crate) fn unfinished(&self) -> usize {
        self.tasks.len()
    }

    /// Whether the result of an ended task can be sent.
    #[must_use]
    pub(crate) fn has_result(&self, id: TaskId) -> bool {
        self.retention.get(id).is_some_and(|ended| ended.result.is_some())
    }

    /// Whether an id has a row.
    #[must_use]
    pub(crate) fn knows(&self, id: TaskId) -> bool {
        self.tasks.contains(id) || self.retention.contains(id)
    }

    /// The unfinished task whose attempt `token` fences.
    #[must_use]
    pub(crate) fn task_of(&self, token: LeaseToken) -> Option<TaskId> {
        self.leases.task_of(token).filter(|id| self.tasks.contains(*id))
    }

    /// The unfinished task whose attempt `token` fences, if the node of this connection has that attempt.
    #[must_use]
    pub(crate) fn task_held_by(&self, peer: &PeerId, token: LeaseToken) -> Option<TaskId> {
        let id = self.task_of(token)?;
        let Lease { session, .. } = self.tasks[id].lease()?;
        self.sessions.get(session).filter(|session| session.belongs_to(peer)).map(|_| id)
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn reply(&mut self, peer: &PeerId, reply: impl Into<ClientReply>) {
        self.emit(Effect::Client { peer: peer.clone(), reply: reply.into(), attach: None });
    }

    fn random_bytes(&mut self) -> [u8; 16] {
        (self.entropy)()
    }

    fn recover(&mut self, stored: StoredTask) {
        match stored {
            StoredTask::Ended { id, ended } => {
                // Clamped: a clock that was set back must not keep results for years.
                let expiry =
                    ended.finished_wall_ms.min(self.clock.wall().later_ms()) + self.retention_ms(&ended);
                self.keep_ended(id, *ended, expiry);
            }
            StoredTask::Live { spec, digest, seq, created_wall_ms, counters, history, assigned, inline } => {
                let id = spec.id;
                let is_isolated = retry::has_shared_a_loss(&history);
                let created_wall_ms = created_wall_ms.min(self.clock.now().wall_ms);
                let new = NewTask { spec: *spec, digest, seq, created_wall_ms, inline };
                self.insert(Task::recovered(new, counters, history));
                if is_isolated {
                    self.tasks.isolate(id);
                }
                if let Some((token, node)) = assigned {
                    self.unqueue(id);
                    let until_ms = self.clock.elapsed_ms() + self.settings.scheduler.lease_ms;
                    self.leases.restore(token, id, node.clone(), until_ms);
                    let task = self.tasks.get_mut(id).expect("inserted above");
                    task.restore(token, &node, self.clock.now());
                    self.start_run_timer(id);
                }
            }
        }
    }

    /// Takes a queued task in and makes it findable.
    fn insert(&mut self, mut task: Task) {
        let id = task.id();
        self.ready.set_tag(&mut task);
        self.admission.task_accepted(task.spec());
        self.timers.start_deadline(&task);
        self.tasks.insert(task);
        self.enqueue(id);
    }

    fn remember(&mut self, id: TaskId, owner: &Owner, until_wall_ms: u64) {
        if let Some(dropped) = self.retention.remember(id, owner, until_wall_ms) {
            self.unremember(dropped);
        }
    }

    /// The memory of an id ends; the watermark covers it before that.
    fn unremember(&mut self, dropped: tombstones::Dropped) {
        if let Some((owner, wall_ms)) = dropped.raised {
            self.emit(Effect::Store(StoreOp::Watermark { owner, wall_ms }));
        }
        self.emit(Effect::Store(StoreOp::Unremember { id: dropped.id }));
    }

    /// Until when an id is remembered that ends now.
    fn tombstone_end(&self, id: TaskId) -> u64 {
        self.clock.wall().later_ms().max(id.drawn_wall_ms())
            + self.settings.scheduler.tombstone_retention_s * 1_000
    }

    fn info(&self, task: &Task) -> TaskInfo {
        let status = task.state().status();
        let position = (status == Status::Queued).then(|| self.ready.position(task));
        TaskInfo {
            id: task.id(),
            model: task.spec().model.clone(),
            queue: task.spec().queue.clone(),
            status,
            failure: None,
            position,
            wait_ms: position.and_then(|ahead| self.expected_wait_ms(&task.spec().queue, ahead)),
            node: task.node().map(ToString::to_string),
            counters: task.counters(),
            stages: lamagrid_domain::Stages { queue_ms: task.queue_ms() as f64, ..Default::default() },
            created_wall_ms: task.created_wall_ms(),
            finished_wall_ms: None,
        }
    }

    fn tell_followers(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id) else { return };
        let Advance { activity, step, of } = task.progress();
        let progress = Progress { id, status: task.state().status(), step, of, activity };
        for peer in task.followers().to_vec() {
            self.reply(&peer, progress.clone());
        }
    }

    /// Moves a task into its terminal state, writes that, and tells everybody who waits.
    fn end(&mut self, id: TaskId, event: Event, delivered: Option<DeliveredResult>) {
        let task = self.take_out(id);
        let state = task.ended_by(event);
        let (ended, place) = FinishedTask::of(&task, &state, self.clock.now().wall_ms, delivered);
        self.record_end(&task, ended, place);
    }

    /// Ends a task that was tried and is given up. It is kept with its inputs, so that it can be replayed.
    fn dead_letter(&mut self, id: TaskId, failure: Failure) {
        let task = self.take_out(id);
        let state = task.ended_by(Event::Fail(failure));
        let (mut ended, place) = FinishedTask::of(&task, &state, self.clock.now().wall_ms, None);
        ended.dead = Some(Box::new(finished_task::DeadLetter {
            spec: task.spec().clone(),
            inline: task.inline().to_vec(),
        }));
        self.record_end(&task, ended, place);
    }

    /// Takes a live task out of every index.
    fn take_out(&mut self, id: TaskId) -> Task {
        self.unqueue(id);
        let mut task = self.tasks.remove(id).expect("the caller holds a live task");
        self.timers.stop_run(&mut task);
        if let Some(Lease { token, .. }) = task.lease() {
            self.leases.remove(token);
            self.breaker.undecided(token);
        }
        self.followers.remove_task(&task);
        self.timers.stop_deadline(&task);
        self.admission.task_ended(task.spec());
        task
    }

    fn record_end(&mut self, task: &Task, ended: FinishedTask, place: Option<ResultPlace>) {
        let id = task.id();
        self.emit(Effect::Store(StoreOp::End {
            id,
            ended: Box::new(ended.clone()),
            place,
            durability: task.spec().durability,
        }));
        self.tell_outcome_to_followers(task, &ended);
        self.emit(Effect::Finished(Box::new(ended.info(id))));
        let expiry = self.clock.wall().later_ms() + self.retention_ms(&ended);
        self.keep_ended(id, ended, expiry);
    }

    fn tell_outcome_to_followers(&mut self, task: &Task, ended: &FinishedTask) {
        let id = task.id();
        fault!(self, OutcomeDropped(id) => return);
        for peer in task.followers() {
            self.emit(ended.outcome(id, peer));
        }
    }

    fn retention_ms(&self, ended: &FinishedTask) -> u64 {
        let scheduler = &self.settings.scheduler;
        1_000 * if ended.dead.is_some() { scheduler.dead_retention_s } else { scheduler.result_retention_s }
    }

    fn keep_ended(&mut self, id: TaskId, ended: FinishedTask, expiry_wall_ms: u64) {
        if let Some(token) = ended.token {
            self.leases.insert(token, id);
        }
        self.admission.task_kept(&ended);
        self.retention.keep(id, ended, expiry_wall_ms);
    }

    fn fail(&mut self, id: TaskId, failure: Failure) {
        self.end(id, Event::Fail(failure), None);
    }
}
