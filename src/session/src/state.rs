//! Keeps a node's state across connections: attempts, held results, cancelled tokens and credit.
//!
//! Does not: use a socket. The backend's threads and the session's thread share only this state.
//!
//! Invariant: an attempt is in `running` from its assignment until it is finished, then in `held` until the
//! scheduler has recorded its outcome. Both use credit, except attempts whose slot was freed early. A backend
//! gets an attempt only after the scheduler has confirmed the accept: if the attempt then kills the node, the
//! crash counts against the task, however fast the node dies.

pub(crate) mod shared;

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

/// The models of a node: those that it offers, and those that it could not verify.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    /// The models that it serves.
    pub models: Vec<ModelOffer>,
    /// Configured models that it does not serve, with the reasons.
    pub withheld: Vec<WithheldModel>,
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
