//! Keeps a node's state across connections: attempts, held results, cancelled tokens and credit.
//!
//! Does not: use a socket. The backend's threads and the session's thread share only this state.
//!
//! Invariant: an attempt is in `running` from its assignment until it is finished, then in `held` until the
//! scheduler has recorded its outcome. Both use credit, except attempts whose slot was freed early. A backend
//! gets an attempt only after the scheduler has confirmed the accept: if the attempt then kills the node, the
//! crash counts against the task, however fast the node dies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use lamagrid_blobs::Spool;
use lamagrid_domain::{
    BootId, Failure, LeaseToken, ModelName, ModelOffer, NodeInfo, QueueName, SessionId, WithheldModel,
};
use lamagrid_gate::BlobClient;
use lamagrid_protocol::frame::{Frame, FrameError};
use lamagrid_protocol::message::{
    Accept, Action, ActionKind, Assign, AttemptOutcome, Delivery, Hello, Message, NodeChange, Ready,
    ResultRequest, Stored,
};
use lamagrid_transport::EventPublisher;

use crate::attempt::{Attempt, Held, discard};
use crate::settings::{Adjust, ChangeRefused, Registered};

/// How long a cancel is remembered, because it may arrive before its assignment; no lane is slower than this.
const CANCELLED_MEMORY: Duration = Duration::from_secs(60);
/// Interval at which an attempt that waits for a slot looks again.
const SLOT_WAIT: Duration = Duration::from_millis(20);
/// Limit on remembered cancels.
const CANCELLED_MAX: usize = 4_096;

/// A message that waits to be sent on the result channel of the current connection.
#[derive(Debug)]
enum Outgoing {
    Ready,
    /// Reports a slot that was freed without a delivery.
    Freed,
    Accept(LeaseToken),
    Deliver {
        token: LeaseToken,
        /// True if the delivery returns the credit, which no earlier message did.
        frees: bool,
    },
}

/// The progress of an attempt relative to its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The scheduler has not confirmed the accept; no backend has the attempt.
    Announced,
    /// Being prepared or waiting for its slot; it may be recalled.
    Before,
    /// In the slot.
    In,
    /// The slot was freed, and the scheduler is informed.
    After,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) attempt: Arc<Attempt>,
    pub(crate) stage: Stage,
    /// Position in the order of assignment, in which attempts enter slots.
    place: u64,
}

/// The phase of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Finishing running tasks before leaving.
    Draining(DrainedBy),
    /// Leaving now.
    Closing,
}

/// Who told a node to finish its tasks and leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainedBy {
    /// The node's own process, for example because of a signal.
    Owner,
    /// The scheduler, which may take it back.
    Scheduler,
}

/// The effect of a command on the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Executed {
    Done,
    /// The node must register again, because its description or its credit changed.
    Renew,
}

/// The current connection, as backends use it.
#[derive(Debug)]
struct Live {
    session: SessionId,
    events: EventPublisher,
}

#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    /// `Some` once the session's thread has ended; the inner `Option` has the failure unless the node left by itself.
    ended: Option<Option<Failure>>,
    waiting: VecDeque<Arc<Attempt>>,
    running: BTreeMap<LeaseToken, Running>,
    next_place: u64,
    held: BTreeMap<LeaseToken, Held>,
    outgoing: VecDeque<Outgoing>,
    cancelled: VecDeque<(LeaseToken, Instant)>,
    loaded: Vec<ModelName>,
    offers: Offers,
    /// Set when the offers have changed since the last hello.
    must_register: bool,
    /// Signed: right after a reconnect, more attempts may be in use than there are slots.
    credit: i64,
    live: Option<Live>,
    spool: Option<Spool>,
    /// The client for blobs, if the spool is on another host.
    blobs: Option<BlobClient>,
    registered: Registered,
    /// Threads of an inference that the backend has not taken over.
    threads: Option<u32>,
    /// Moving average of the time that a model's tasks spend in their slot, in seconds.
    slot_s: BTreeMap<ModelName, f64>,
}

impl State {
    pub(crate) fn running(&self) -> impl Iterator<Item = &Running> {
        self.running.values()
    }

    pub(crate) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn slot_time(&self, model: &ModelName) -> Option<Duration> {
        self.slot_s.get(model).map(|seconds| Duration::from_secs_f64(*seconds))
    }
}

/// The models of a node: those that it offers, and those that it could not verify.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    /// The models that it serves.
    pub models: Vec<ModelOffer>,
    /// Configured models that it does not serve, with the reasons.
    pub withheld: Vec<WithheldModel>,
}

/// The state, with the means by which its two sides wake each other.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Held for map operations only, never across a system call except an unlink.
    state: Mutex<State>,
    /// Signals that a backend can take an attempt or that the session ended.
    pub(crate) for_backends: Condvar,
    /// Signals that the session's thread has something to send or must end.
    pub(crate) for_session: Notify,
    info: NodeInfo,
    /// Slots and overlap at the start.
    slots: u16,
    overlap: u16,
    adjust: Option<Arc<dyn Adjust>>,
    /// Distinguishes this process from another one with the same node name.
    boot: BootId,
}

impl Shared {
    pub(crate) fn new(info: NodeInfo, slots: u16, overlap: u16, adjust: Option<Arc<dyn Adjust>>) -> Self {
        let loaded =
            info.models.iter().filter(|offer| offer.loaded).map(|offer| offer.model.clone()).collect();
        let state = State {
            phase: Phase::Serving,
            ended: None,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_place: 0,
            held: BTreeMap::new(),
            outgoing: VecDeque::new(),
            cancelled: VecDeque::new(),
            loaded,
            offers: Offers { models: info.models.clone(), withheld: info.withheld.clone() },
            must_register: false,
            credit: 0,
            live: None,
            spool: None,
            blobs: None,
            registered: Registered::new(slots),
            threads: None,
            slot_s: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            for_backends: Condvar::new(),
            for_session: Notify::new(),
            info,
            slots,
            overlap,
            adjust,
            boot: BootId::from_bytes(lamagrid_process::random_id()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn hello(&self) -> Hello {
        let mut state = self.lock();
        state.must_register = false;
        let Offers { models, withheld } = state.offers.clone();
        let mut info = NodeInfo { models, withheld, ..self.info.clone() };
        for offer in &mut info.models {
            offer.loaded = state.loaded.contains(&offer.model);
            offer.present |= offer.loaded;
        }
        state.registered.describe(&mut info);
        let held = state.held.keys().copied().collect();
        let mut actions = Action::BASIC.to_vec();
        actions.push(ActionKind::Undrain);
        actions.extend(self.adjust.as_ref().map(|_| ActionKind::Set));
        let slots = state.registered.slots();
        Hello {
            info,
            slots,
            overlap: self.overlap_of(slots),
            running: state.wanted(),
            held,
            boot: Some(self.boot),
            actions,
        }
    }

    /// The overlap in proportion to the slots, as at the start.
    fn overlap_of(&self, slots: u16) -> u16 {
        let overlap = u32::from(self.overlap) * u32::from(slots) / u32::from(self.slots.max(1));
        u16::try_from(overlap).unwrap_or(u16::MAX)
    }

    /// Executes a change of settings as a whole, or refuses it.
    pub(crate) fn set(&self, change: &NodeChange) -> Result<Executed, ChangeRefused> {
        let fixed = || ChangeRefused("its settings cannot change while it runs".to_owned());
        let adjust = self.adjust.as_ref().ok_or_else(fixed)?;
        let adjustment = {
            let state = self.lock();
            state.registered.check(change, &state.offers.models, &state.offers.withheld)?
        };
        adjust.adjust(adjustment)?;
        let mut state = self.lock();
        if change.threads.is_some() {
            state.threads = change.threads;
        }
        Ok(if state.registered.apply(change) { Executed::Renew } else { Executed::Done })
    }

    /// Takes tasks again after a drain of the scheduler.
    pub(crate) fn undrain(&self) -> Result<Executed, ChangeRefused> {
        let mut state = self.lock();
        match state.phase {
            Phase::Serving => Ok(Executed::Done),
            Phase::Draining(DrainedBy::Scheduler) => {
                state.phase = Phase::Serving;
                Ok(Executed::Renew)
            }
            Phase::Draining(DrainedBy::Owner) | Phase::Closing => {
                Err(ChangeRefused("it was told to end on its own host".to_owned()))
            }
        }
    }

    /// Memory of the models that are loaded now, in bytes, as far as it is known.
    pub(crate) fn model_memory_bytes(&self) -> u64 {
        let state = self.lock();
        let loaded = state.offers.models.iter().filter(|offer| state.loaded.contains(&offer.model));
        loaded.map(|offer| offer.memory_bytes).fold(0, u64::saturating_add)
    }

    /// Starts a session: discards queued messages, and sends the held results again.
    pub(crate) fn begin(&self, session: SessionId, events: EventPublisher) {
        let mut state = self.lock();
        state.live = Some(Live { session, events });
        // Abandoned attempts that still compute use their slot, too.
        let used = state.running.values().filter(|running| running.stage != Stage::After).count()
            + state.held.values().filter(|held| held.uses_credit).count();
        // The scheduler knows all attempts that the welcome did not abandon, even if its confirmations were lost.
        let announced =
            state.wanted().into_iter().filter(|token| state.running[token].stage == Stage::Announced);
        for token in announced.collect::<Vec<_>>() {
            state.proceed(token);
        }
        let slots = state.registered.slots();
        let capacity = i64::from(slots) + i64::from(self.overlap_of(slots));
        state.credit = capacity - i64::try_from(used).unwrap_or(i64::MAX);
        if state.phase != Phase::Serving {
            state.credit = 0;
        }
        state.outgoing.clear();
        state.outgoing.push_back(Outgoing::Ready);
        let State { held, outgoing, .. } = &mut *state;
        let delivered = |(token, held): (&LeaseToken, &Held)| Outgoing::Deliver {
            token: *token,
            frees: held.uses_credit,
        };
        outgoing.extend(held.iter().map(delivered));
        drop(state);
        self.for_session.notify_one();
        self.for_backends.notify_all();
    }

    /// Records that the connection is lost; the work continues.
    pub(crate) fn lose_connection(&self) {
        let mut state = self.lock();
        state.live = None;
        state.outgoing.clear();
    }

    pub(crate) fn set_refused_queues(&self, queues: Vec<QueueName>) {
        self.lock().registered.refused_queues = queues;
    }

    pub(crate) fn set_spool(&self, root: &str) {
        let mut state = self.lock();
        // A directory of another host is not usable here.
        state.spool = state.blobs.is_none().then(|| Spool::new(root));
    }

    pub(crate) fn set_blobs(&self, blobs: Option<BlobClient>) {
        self.lock().blobs = blobs;
    }

    pub(crate) fn blobs(&self) -> Option<BlobClient> {
        self.lock().blobs.clone()
    }

    pub(crate) fn spool(&self) -> Option<Spool> {
        self.lock().spool.clone()
    }

    pub(crate) fn set_loaded(&self, loaded: Vec<ModelName>) {
        let mut state = self.lock();
        if state.loaded != loaded {
            state.loaded = loaded;
            state.outgoing.push_back(Outgoing::Ready);
            drop(state);
            self.for_session.notify_one();
        }
    }

    /// Replaces the offered models; the node registers again if other models are offered or withheld.
    pub(crate) fn set_offers(&self, offers: Offers) {
        let models =
            |offers: &Offers| offers.models.iter().map(|offer| offer.model.clone()).collect::<Vec<_>>();
        let mut state = self.lock();
        let differ = models(&state.offers) != models(&offers) || state.offers.withheld != offers.withheld;
        state.offers = offers;
        state.must_register |= differ;
        drop(state);
        if differ {
            self.for_session.notify_one();
        }
    }

    /// True if the offered models have changed since the last hello.
    pub(crate) fn must_register(&self) -> bool {
        self.lock().must_register
    }

    /// Accepts an assignment; a repeated one is only confirmed again.
    pub(crate) fn assign(&self, assign: Assign, blobs: Vec<Bytes>) {
        let token = assign.token;
        let mut state = self.lock();
        if state.was_cancelled(token, Instant::now()) {
            state.hold(token, Held::cancelled(assign.spec.id));
        } else {
            if !state.running.contains_key(&token) && !state.held.contains_key(&token) {
                let attempt = Arc::new(Attempt::new(assign, blobs));
                let place = state.next_place;
                state.next_place += 1;
                state.running.insert(token, Running { attempt, stage: Stage::Announced, place });
            }
            state.outgoing.push_back(Outgoing::Accept(token));
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Makes an attempt available to backends, because the scheduler has confirmed its accept.
    pub(crate) fn proceed(&self, token: LeaseToken) {
        self.lock().proceed(token);
        self.for_backends.notify_one();
    }

    /// Stops an attempt, and remembers its token in case the assignment arrives after the cancel.
    pub(crate) fn cancel(&self, token: LeaseToken) {
        let mut state = self.lock();
        state.remember_cancelled(token, Instant::now());
        if !state.give_back(token)
            && let Some(Running { attempt, .. }) = state.running.get(&token)
        {
            attempt.cancel();
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Returns an attempt that has not entered its slot to the scheduler.
    pub(crate) fn recall(&self, token: LeaseToken) {
        self.lock().give_back(token);
        self.for_session.notify_one();
    }

    /// Marks an attempt as in its slot; returns false if it is no longer wanted. Waits for a free slot if there are
    /// fewer slots than backends.
    pub(crate) fn enter_slot(&self, attempt: &Attempt) -> bool {
        let mut state = self.lock();
        while state.ended.is_none() && state.is_full() && !attempt.is_stopped() {
            self.for_backends.wait_for(&mut state, SLOT_WAIT);
        }
        let Some(running) = state.running.get_mut(&attempt.token) else { return false };
        running.stage = Stage::In;
        attempt.enter();
        !attempt.is_stopped()
    }

    /// Frees the slot of an attempt whose remaining work needs no slot.
    pub(crate) fn leave_slot(&self, attempt: &Attempt, load: Duration) {
        let mut state = self.lock();
        if let Some(running) = state.running.get_mut(&attempt.token)
            && running.stage != Stage::After
        {
            running.stage = Stage::After;
            state.outgoing.push_back(Outgoing::Freed);
            if let Some(entered) = attempt.entered_at().filter(|_| !attempt.is_stopped()) {
                let seconds = entered.elapsed().saturating_sub(load).as_secs_f64();
                let average = state.slot_s.entry(attempt.spec.model.clone()).or_insert(seconds);
                *average += (seconds - *average) * 0.2; // about the last five tasks
            }
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Stops an attempt that is no longer wanted, and discards its result.
    pub(crate) fn abandon(&self, token: LeaseToken) {
        let mut state = self.lock();
        if state.take_back(token).is_some() {
            state.outgoing.push_back(Outgoing::Freed);
        } else if let Some(Running { attempt, .. }) = state.running.get(&token) {
            attempt.abandon();
        }
        let dropped = state.held.remove(&token);
        let spool = state.spool.clone();
        drop(state);
        discard(spool.as_ref(), token, dropped);
        self.for_session.notify_one();
    }

    /// Records that a backend has finished an attempt, and queues the delivery.
    pub(crate) fn finished(&self, attempt: &Attempt, outcome: AttemptOutcome, inline: Option<Bytes>) {
        let mut state = self.lock();
        let stage = state.running.remove(&attempt.token).map(|running| running.stage);
        let uses_credit = stage != Some(Stage::After);
        let held = Held { task: attempt.spec.id, outcome, inline, memory: attempt.memory(), uses_credit };
        let mut dropped = None;
        if attempt.is_abandoned() {
            // An attempt that was taken back has already returned its credit.
            if stage.is_some() && uses_credit {
                state.outgoing.push_back(Outgoing::Freed);
            }
            dropped = Some(held);
        } else {
            state.hold(attempt.token, held);
        }
        let spool = state.spool.clone();
        drop(state);
        discard(spool.as_ref(), attempt.token, dropped);
        self.for_session.notify_one();
    }

    /// Drops a held outcome that the scheduler has recorded; deletes its file if it was not accepted.
    pub(crate) fn stored(&self, Stored { token, accepted }: Stored) {
        let mut state = self.lock();
        let dropped = state.held.remove(&token);
        let spool = state.spool.clone();
        drop(state);
        if !accepted {
            discard(spool.as_ref(), token, dropped);
        }
    }

    /// Publishes an event, if there is a connection.
    pub(crate) fn publish(&self, event: impl FnOnce(SessionId) -> Result<Frame, FrameError>) {
        if let Some(live) = &self.lock().live
            && let Ok(frame) = event(live.session)
        {
            live.events.publish(frame);
        }
    }

    /// Stops taking work, and returns the attempts that have not entered their slot.
    pub(crate) fn drain(&self, by: DrainedBy) {
        let mut state = self.lock();
        state.phase = match state.phase {
            Phase::Serving => Phase::Draining(by),
            // The process ends, whatever the scheduler wants.
            Phase::Draining(_) if by == DrainedBy::Owner => Phase::Draining(by),
            same => same,
        };
        let tokens: Vec<_> = state.running.keys().copied().collect();
        for token in tokens {
            state.give_back(token);
        }
        drop(state);
        self.for_session.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().phase = Phase::Closing;
        self.for_session.notify_one();
    }

    /// True if the session was told to leave and has nothing left to do.
    pub(crate) fn may_leave(&self) -> bool {
        let state = self.lock();
        match state.phase {
            Phase::Serving => false,
            Phase::Draining(_) => state.running.is_empty() && state.held.is_empty(),
            Phase::Closing => true,
        }
    }

    /// Number of outcomes not yet recorded on a node that was told to leave and has finished its work; 0 otherwise.
    pub(crate) fn left_to_deliver(&self) -> usize {
        let state = self.lock();
        let done = state.phase != Phase::Serving && state.running.is_empty();
        if done { state.held.len() } else { 0 }
    }

    /// Ends the session. A node that was refused for good has no attempts any more: they are stopped.
    pub(crate) fn end(&self, failure: Option<Failure>) {
        let mut state = self.lock();
        if failure.is_some() {
            state.waiting.clear();
            state.running.values().for_each(|running| running.attempt.abandon());
        }
        state.ended = Some(failure);
        drop(state);
        self.for_backends.notify_all();
    }
}

impl State {
    fn proceed(&mut self, token: LeaseToken) {
        if let Some(running) = self.running.get_mut(&token)
            && running.stage == Stage::Announced
        {
            running.stage = Stage::Before;
            self.waiting.push_back(Arc::clone(&running.attempt));
        }
    }

    pub(crate) fn take_waiting(&mut self) -> Option<Arc<Attempt>> {
        self.waiting.pop_front()
    }

    pub(crate) fn ended(&self) -> Option<Option<Failure>> {
        self.ended.clone()
    }

    pub(crate) fn take_threads(&mut self) -> Option<u32> {
        self.threads.take()
    }

    /// Whether all slots are taken although a backend is free, because the slots were reduced.
    fn is_full(&self) -> bool {
        let in_slots = || self.running.values().filter(|running| running.stage == Stage::In).count();
        self.registered.is_reduced() && in_slots() >= usize::from(self.registered.slots())
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Tokens of the running attempts that are not abandoned, in the order of assignment.
    fn wanted(&self) -> Vec<LeaseToken> {
        let mut wanted: Vec<_> =
            self.running.values().filter(|running| !running.attempt.is_abandoned()).collect();
        wanted.sort_by_key(|running| running.place);
        wanted.into_iter().map(|running| running.attempt.token).collect()
    }

    /// The tokens that a poll lists: those of running attempts and held results.
    pub(crate) fn leased(&self) -> Vec<LeaseToken> {
        let mut tokens = self.wanted();
        tokens.extend(self.held.keys());
        tokens
    }

    fn hold(&mut self, token: LeaseToken, held: Held) {
        self.outgoing.push_back(Outgoing::Deliver { token, frees: held.uses_credit });
        self.held.insert(token, held);
    }

    /// Removes an attempt that has not entered its slot, marking it as abandoned for the thread that prepares it.
    fn take_back(&mut self, token: LeaseToken) -> Option<Arc<Attempt>> {
        self.running
            .get(&token)
            .filter(|running| matches!(running.stage, Stage::Announced | Stage::Before))?;
        self.waiting.retain(|attempt| attempt.token != token);
        let attempt = self.running.remove(&token)?.attempt;
        attempt.abandon();
        Some(attempt)
    }

    /// Takes an attempt back and tells the scheduler; returns false if it has entered its slot.
    fn give_back(&mut self, token: LeaseToken) -> bool {
        let Some(attempt) = self.take_back(token) else { return false };
        self.hold(token, Held::cancelled(attempt.spec.id));
        true
    }

    fn was_cancelled(&self, token: LeaseToken, now: Instant) -> bool {
        self.cancelled.iter().any(|(seen, at)| *seen == token && now.duration_since(*at) < CANCELLED_MEMORY)
    }

    fn remember_cancelled(&mut self, token: LeaseToken, now: Instant) {
        while self.cancelled.len() >= CANCELLED_MAX
            || self.cancelled.front().is_some_and(|(_, at)| now.duration_since(*at) >= CANCELLED_MEMORY)
        {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back((token, now));
    }

    /// The next frame for the result channel. Each delivery returns the credit that its attempt used.
    pub(crate) fn next_frame(&mut self) -> Option<Result<Frame, FrameError>> {
        loop {
            let session = self.live.as_ref()?.session;
            let next = self.outgoing.pop_front()?;
            if matches!(next, Outgoing::Freed | Outgoing::Deliver { frees: true, .. })
                && self.phase == Phase::Serving
            {
                self.credit = self.credit.saturating_add(1);
            }
            let credit = u64::try_from(self.credit).unwrap_or(0);
            let loaded = self.loaded.clone();
            let (message, blobs) = match next {
                Outgoing::Ready | Outgoing::Freed => {
                    (ResultRequest::from(Ready { session, credit, loaded }), Vec::new())
                }
                Outgoing::Accept(token) => (Accept { session, token }.into(), Vec::new()),
                Outgoing::Deliver { token, .. } => {
                    // Abandoned after it was queued; its credit is returned all the same.
                    let Some(held) = self.held.get(&token) else {
                        self.outgoing.push_front(Outgoing::Ready);
                        continue;
                    };
                    let (outcome, memory) = (held.outcome.clone(), held.memory);
                    let blobs = held.inline.iter().cloned().collect();
                    (Delivery { session, token, outcome, credit, loaded, memory }.into(), blobs)
                }
            };
            return Some(message.to_frame(blobs));
        }
    }
}
