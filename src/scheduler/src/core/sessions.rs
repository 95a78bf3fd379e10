//! What is known about a node between its hello and its end, and about the work it may come back for.

use std::collections::{BTreeMap, BTreeSet};

use lamagrid_domain::{LeaseToken, ModelName, NodeInfo, QueueName, SessionId};
use lamagrid_wire::message::{Action, Command};
use lamagrid_wire::router::PeerId;

/// Commands that wait for one session; the oldest is dropped beyond this, a poll's token list repairs it.
const MAX_OUTBOX: usize = 256;

/// One registered stretch of a node's life.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) info: NodeInfo,
    pub(crate) slots: u16,
    /// Lanes in the order of the welcome, and whether the node connected them.
    pub(crate) lanes: Vec<(QueueName, bool)>,
    /// Its `result` connection, once it spoke there.
    pub(crate) peer: Option<PeerId>,
    /// Tasks that it said it can take, cumulative.
    pub(super) granted: u64,
    /// Tasks that it was given, cumulative.
    pub(super) given: u64,
    /// Attempts it works on, and how many polls in a row did not list them.
    pub(crate) tokens: BTreeMap<LeaseToken, u8>,
    /// Assignments that it has neither accepted nor delivered, by the lease clock at which that ends the session.
    /// A cancelled one stays: if it got lost on the lane, so did the credit that it used.
    unanswered: BTreeMap<LeaseToken, u64>,
    pub(crate) last_seen_ms: u64,
    pub(crate) last_assigned_ms: u64,
    pub(crate) draining: bool,
    outbox: Vec<Command>,
    next_command: u64,
    /// Attempts that it was told to stop and may still list: told once, or each poll would bring the next one
    /// at once.
    stopped: BTreeSet<LeaseToken>,
}

impl Session {
    pub(crate) fn new(id: SessionId, info: NodeInfo, slots: u16, now_ms: u64) -> Self {
        let lanes = info.queues().into_iter().map(|q| (q, false)).collect();
        Self {
            id,
            info,
            slots,
            lanes,
            peer: None,
            granted: 0,
            given: 0,
            tokens: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            last_seen_ms: now_ms,
            last_assigned_ms: 0,
            draining: false,
            outbox: Vec::new(),
            next_command: 1,
            stopped: BTreeSet::new(),
        }
    }

    pub(crate) fn offers(&self, queue: &QueueName, model: &ModelName) -> bool {
        self.info.models.iter().any(|o| o.model == *model && o.queue == *queue)
    }

    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.info.models.iter().any(|o| o.model == *model && o.loaded)
    }

    pub(crate) fn set_loaded(&mut self, loaded: &[ModelName]) {
        for offer in &mut self.info.models {
            offer.loaded = loaded.contains(&offer.model);
        }
    }

    pub(crate) fn lane_of(&self, queue: &QueueName) -> Option<usize> {
        self.lanes.iter().position(|(q, _)| q == queue)
    }

    pub(crate) fn lanes_connected(&self) -> bool {
        self.lanes.iter().all(|(_, connected)| *connected)
    }

    /// Credit only rises: a repeated or late message takes nothing back. It never passes what the slots allow.
    pub(crate) fn grant(&mut self, credit: u64) {
        let ceiling = self.given + u64::from(self.slots);
        self.granted = self.granted.max(credit.min(ceiling));
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.granted > self.given
    }

    pub(crate) fn give(&mut self, token: LeaseToken, now_ms: u64, accept_by_ms: u64) {
        self.given += 1;
        self.last_assigned_ms = now_ms;
        self.tokens.insert(token, 0);
        self.unanswered.insert(token, accept_by_ms);
    }

    /// It spoke of an assignment, so its lane works.
    pub(crate) fn answered(&mut self, token: LeaseToken) {
        self.unanswered.remove(&token);
    }

    #[cfg(test)]
    pub(crate) fn is_unanswered(&self, token: LeaseToken) -> bool {
        self.unanswered.contains_key(&token)
    }

    /// Takes a poll's list, and gives the accepted attempts that `limit` polls in a row did not list.
    ///
    /// An assignment that is still on its way down the lane is not missing: the accept timeout watches it.
    pub(crate) fn missing(&mut self, listed: &[LeaseToken], limit: u8) -> Vec<LeaseToken> {
        let mut missing = Vec::new();
        for (token, missed) in &mut self.tokens {
            let expected = !listed.contains(token) && !self.unanswered.contains_key(token);
            *missed = if expected { *missed + 1 } else { 0 };
            if *missed >= limit {
                missing.push(*token);
            }
        }
        missing
    }

    /// Whether an assignment was not accepted in time.
    pub(crate) fn is_deaf(&self, now_ms: u64) -> bool {
        self.unanswered.values().any(|at| *at <= now_ms)
    }

    pub(crate) fn command(&mut self, action: Action) {
        if self.outbox.len() >= MAX_OUTBOX
            && let Action::Cancel { token } = self.outbox.remove(0).action
        {
            self.stopped.remove(&token);
        }
        if let Action::Cancel { token } = &action {
            self.stopped.insert(*token);
        }
        self.outbox.push(Command { seq: self.next_command, action });
        self.next_command += 1;
    }

    pub(crate) fn acknowledge(&mut self, seq: u64) {
        self.outbox.retain(|c| c.seq > seq);
    }

    pub(crate) fn commands(&self) -> Vec<Command> {
        self.outbox.clone()
    }

    /// Stops an attempt that nobody waits for, unless the node was told so already.
    pub(crate) fn stop(&mut self, token: LeaseToken) {
        if !self.stopped.contains(&token) {
            self.command(Action::Cancel { token });
        }
    }

    /// Forgets what was told about attempts that a poll does not list (any more).
    pub(crate) fn forget_stopped(&mut self, listed: &[LeaseToken]) {
        let pending = |t: &LeaseToken| self.outbox.iter().any(|c| c.action == Action::Cancel { token: *t });
        self.stopped.retain(|t| listed.contains(t) || pending(t));
    }
}

/// Attempts whose session ended and whose node may come back for them.
pub(crate) struct Orphans {
    pub(crate) tokens: Vec<LeaseToken>,
    /// Lease clock; after this the node is lost.
    pub(crate) until_ms: u64,
    /// Whether the loss counts as a crash of the task's node, which a restart of the scheduler does not.
    pub(crate) counts: bool,
}

impl Orphans {
    pub(crate) fn after_restart(until_ms: u64) -> Self {
        Self { tokens: Vec::new(), until_ms, counts: false }
    }
}
