//! The core decides: queues, priorities, leases, placement, retries, admission, recovery.
//!
//! [`Core::handle`] takes an input with its time and returns effects in order. The service carries them out in that
//! order and holds every message back until all writes before it are committed (the commit barrier).
//!
//! `state` remembers, in parts that keep their own invariants; `policy` decides and changes nothing; `handlers` take
//! the inputs and call both. Does not: open a socket, read a clock, touch a disk.
//!
//! Invariant: a task is in exactly one place: waiting in an index, delayed, assigned under a live token, or
//! ended. `Core::check` tests it.

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
mod settings;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod view;

use lamagrid_domain::{LeaseToken, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::ClientReply;

pub(crate) use effect::{Authority, Effect, Input, Origin, ResultPlace, StoreOp, StoredTask, UploadedInputs};
#[cfg(any(test, feature = "sabotage"))]
pub(crate) use fault::Fault;
pub(crate) use metrics_snapshot::MetricsSnapshot;
pub(crate) use node_id::NodeId;
pub(crate) use policy::route_table::RouteTable;
#[cfg(test)]
pub(crate) use policy::route_table::{Requirement, Spill};
pub(crate) use settings::{CLOCK_GRACE_MS, Entropy, MAX_ENDED, MAX_TOMBSTONES, Recovered, Settings};
pub(crate) use state::alarms::{Bounded, Level};
pub(crate) use state::finished_task::FinishedTask;
pub(crate) use state::node_orders::{Order, OrderKind};
pub(crate) use state::now::Now;
pub(crate) use state::pauses::Pause;
pub(crate) use state::statistics::Statistics;
pub(crate) use state::tombstones::{Tombstone, Watermark};
pub(crate) use state::wall_clock::ClockChange;

#[cfg(test)]
pub(crate) use state::session::Session;
#[cfg(test)]
pub(crate) use state::task::Task;
#[cfg(test)]
pub(crate) use view::View;

use effect_buffer::EffectBuffer;
#[cfg(any(test, feature = "sabotage"))]
use fault::Faults;
use policy::placement::Placement;
use state::admission::Admission;
use state::alarms::Alarms;
use state::circuit_breaker::CircuitBreaker;
use state::clock::Clock;
use state::followers::Followers;
use state::learned_needs::LearnedNeeds;
use state::leases::Leases;
use state::node_changes::NodeChanges;
use state::node_orders::NodeOrders;
use state::pauses::Pauses;
use state::ready_queue::ReadyQueue;
use state::refusal_log::RefusalLog;
use state::reservations::Reservations;
use state::retention::Retention;
use state::run_times::RunTimes;
use state::sessions::Sessions;
use state::task::Lease;
use state::task_table::TaskTable;
use state::task_timers::TaskTimers;
use state::tombstones::Tombstones;

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
    /// Nodes that are to leave, or to stay away.
    orders: NodeOrders,
    /// Changes of nodes' settings.
    changes: NodeChanges,
    statistics: Statistics,
    refusals: RefusalLog,
    admission: Admission,
    alarms: Alarms,
    breaker: CircuitBreaker,
    /// Limits on waiting and running, and ageing.
    timers: TaskTimers,
    followers: Followers,
    run_times: RunTimes,
    /// The memory of models, as nodes reported it.
    learned: LearnedNeeds,
    sessions: Sessions,
    /// Nodes that are kept free for waiting tasks.
    reserved: Reservations,
    effects: EffectBuffer,
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) faults: Faults,
    /// The first assignment that was wrong when it was made.
    #[cfg(test)]
    wrong_choice: Option<String>,
}

impl Core {
    /// Starts with the recovered state.
    ///
    /// Queued tasks wait again; assigned ones are kept for their node until a fresh lease ends.
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
            orders: NodeOrders::recovered(recovered.orders),
            changes: NodeChanges::default(),
            statistics: recovered.statistics,
            refusals: RefusalLog::default(),
            admission: Admission::default(),
            alarms: Alarms::default(),
            breaker: CircuitBreaker::default(),
            timers: TaskTimers::default(),
            followers: Followers::default(),
            run_times: RunTimes::default(),
            learned: LearnedNeeds::default(),
            sessions: Sessions::default(),
            reserved: Reservations::default(),
            effects: EffectBuffer::default(),
            #[cfg(any(test, feature = "sabotage"))]
            faults: Faults::default(),
            #[cfg(test)]
            wrong_choice: None,
        };
        let change = core.clock.wall().initial_change();
        change.into_iter().for_each(|change| core.emit(Effect::Clock(change)));
        core.forget_unknown_pauses();
        for Tombstone { id, owner, until_wall_ms } in recovered.tombstones {
            core.keep_tombstone(id, &owner, until_wall_ms);
        }
        for stored in recovered.tasks {
            core.recover(stored);
        }
        core
    }

    /// Handles one input and returns its effects in order.
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
            Input::Control { peer, request, queues } => self.on_control(peer, request, &queues),
            Input::LaneConnected { session, index } => self.on_lane_connected(session, index),
            Input::LanesFailed { session, reason } => self.on_lanes_failed(session, &reason),
            Input::Result { peer, request, inline } => self.on_result(peer, request, inline),
            Input::ResultGone { peer, origin } => self.on_result_gone(&peer, origin),
            Input::Event(event) => self.on_event(event),
            Input::Tick => self.on_tick(),
        }
        self.recall_for_idle();
        self.raise_alarms();
        self.effects.take()
    }

    /// Fails if the parts contradict themselves or each other.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        check::structure(self)
    }

    /// Fails if a task waits beside an idle slot, or if an assignment since the start was wrong.
    #[cfg(test)]
    pub(crate) fn check_waits(&self) -> Result<(), String> {
        check::no_task_waits_beside_an_idle_slot(self)
    }

    #[cfg(test)]
    pub(crate) fn view(&self) -> View<'_> {
        View(self)
    }

    /// The parts that placement reads.
    pub(crate) fn placement(&self) -> Placement<'_> {
        Placement {
            clock_ms: self.clock.elapsed_ms(),
            suspect_after_ms: self.settings.scheduler.suspect_after_ms,
            warm_first_ms: self.settings.scheduler.warm_first_ms,
            routes: &self.settings.routes,
            learned: &self.learned,
            tasks: &self.tasks,
            ready: &self.ready,
            paused: &self.paused,
            sessions: &self.sessions,
            leases: &self.leases,
            breaker: &self.breaker,
            reserved: &self.reserved,
            #[cfg(any(test, feature = "sabotage"))]
            faults: self.faults,
        }
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

    /// Whether an id has a row in the store.
    #[must_use]
    pub(crate) fn knows(&self, id: TaskId) -> bool {
        self.tasks.contains(id) || self.retention.contains(id)
    }

    /// The unfinished task of this attempt.
    #[must_use]
    pub(crate) fn task_of(&self, token: LeaseToken) -> Option<TaskId> {
        self.leases.task_of(token).filter(|id| self.tasks.contains(*id))
    }

    /// The unfinished task of this attempt, if the attempt is held by the node of this connection.
    #[must_use]
    pub(crate) fn task_held_by(&self, peer: &PeerId, token: LeaseToken) -> Option<TaskId> {
        let id = self.task_of(token)?;
        let Lease { session, .. } = self.tasks[id].lease()?;
        self.sessions.get(session).filter(|session| session.belongs_to(peer)).map(|_| id)
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn reply(&mut self, peer: &PeerId, reply: impl Into<ClientReply>) {
        self.emit(Effect::Client { peer: peer.clone(), reply: reply.into(), attach: None });
    }

    pub(crate) fn random_bytes(&mut self) -> [u8; 16] {
        (self.entropy)()
    }
}
