//! What is known about a node between its hello and its end, and about the work it may come back for.

use std::collections::{BTreeMap, BTreeSet};

use lamagrid_domain::{BootId, LeaseToken, ModelName, NodeInfo, QueueName, SessionId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, Command};

use crate::core::NodeId;
use crate::core::state::dispatch_order::{AttemptState, DispatchOrder};

/// Commands that wait for one session; beyond this the oldest is dropped. A poll's token list repairs a cancel; a
/// recall only saves time, so recalls go first.
const MAX_OUTBOX: usize = 256;

/// One registered stretch of a node's life.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Whose session it is: only that node's connections may speak for it.
    pub(crate) node: NodeId,
    /// Which process of the node.
    boot: Option<BootId>,
    /// Its place in an overview. Unlike the id it is told to clients.
    pub(crate) number: u64,
    pub(crate) info: NodeInfo,
    pub(crate) slots: u16,
    /// Tasks beyond those that it can prepare while its slots work.
    pub(crate) overlap: u16,
    /// What it counts as credit beyond `slots` and `overlap`, and does not get.
    excess: u64,
    /// Lanes in the order of the welcome, and whether the node connected them.
    pub(crate) lanes: Vec<(QueueName, bool)>,
    /// Its `result` connection, once it spoke there.
    pub(crate) peer: Option<PeerId>,
    /// Tasks that it said it can take, cumulative.
    pub(crate) granted: u64,
    /// Tasks that it was given, cumulative.
    pub(crate) given: u64,
    /// Attempts it works on, and how many polls in a row did not list them.
    pub(crate) tokens: BTreeMap<LeaseToken, u8>,
    /// The same and what was cancelled, in the order in which slots begin with them.
    order: DispatchOrder,
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
    pub(crate) fn new(
        id: SessionId,
        (node, boot): (NodeId, Option<BootId>),
        info: NodeInfo,
        (slots, overlap): (u16, u16),
        now_ms: u64,
    ) -> Self {
        let lanes = info.queues().into_iter().map(|q| (q, false)).collect();
        let allowed = overlap.min(slots); // more than one prepared task per slot saves no time
        Self {
            id,
            node,
            boot,
            number: 0,
            info,
            slots,
            overlap: allowed,
            excess: u64::from(overlap - allowed),
            lanes,
            peer: None,
            granted: 0,
            given: 0,
            tokens: BTreeMap::new(),
            order: DispatchOrder::default(),
            unanswered: BTreeMap::new(),
            last_seen_ms: now_ms,
            last_assigned_ms: 0,
            draining: false,
            outbox: Vec::new(),
            next_command: 1,
            stopped: BTreeSet::new(),
        }
    }

    /// Whether a process is the one that opened this session. Processes of protocol versions before 1.5 do not say.
    pub(crate) fn is_of(&self, boot: Option<BootId>) -> bool {
        boot.is_some() && self.boot == boot
    }

    /// Which process opened it.
    pub(crate) fn boot(&self) -> Option<BootId> {
        self.boot
    }

    pub(crate) fn offers(&self, queue: &QueueName, model: &ModelName) -> bool {
        self.info.models.iter().any(|o| o.model == *model && o.queue == *queue)
    }

    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.info.models.iter().any(|o| o.model == *model && o.loaded)
    }

    /// Says whether a model has come into memory.
    pub(crate) fn set_loaded(&mut self, loaded: &[ModelName]) -> bool {
        let mut is_more = false;
        for offer in &mut self.info.models {
            is_more |= !offer.loaded && loaded.contains(&offer.model);
            offer.loaded = loaded.contains(&offer.model);
            offer.present |= offer.loaded;
        }
        is_more
    }

    pub(crate) fn lane_of(&self, queue: &QueueName) -> Option<usize> {
        self.lanes.iter().position(|(q, _)| q == queue)
    }

    pub(crate) fn lanes_connected(&self) -> bool {
        self.lanes.iter().all(|(_, connected)| *connected)
    }

    /// Credit only rises: a repeated or late message takes nothing back. It never passes what slots and overlap
    /// allow. Gives how much it rose.
    fn grant(&mut self, credit: u64) -> u64 {
        let ceiling = self.given + u64::from(self.slots) + u64::from(self.overlap);
        let before = self.granted;
        self.granted = before.max(credit.saturating_sub(self.excess).min(ceiling));
        self.granted - before
    }

    /// It said how much credit it has: a task has left its slot, or was dropped before.
    pub(crate) fn ready(&mut self, credit: u64) {
        let rise = self.grant(credit);
        self.order.freed(rise);
    }

    /// An attempt is over on the node; its credit comes with it, unless it came when its slot was left.
    pub(crate) fn delivered(&mut self, token: LeaseToken, credit: u64) {
        self.answered(token);
        let rise = self.grant(credit);
        self.tokens.remove(&token);
        self.order.delivered(token);
        self.order.freed(rise.saturating_sub(1));
    }

    fn free(&self) -> u64 {
        self.granted - self.given
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.free() > 0
    }

    /// Tasks that it could begin with at once: its first credits.
    pub(crate) fn idle_slots(&self) -> u64 {
        self.free().saturating_sub(u64::from(self.overlap))
    }

    /// Credits that are used: by attempts that wait, run or were cancelled, and by what has not been heard of yet.
    pub(crate) fn used(&self) -> u64 {
        (u64::from(self.slots) + u64::from(self.overlap)).saturating_sub(self.free())
    }

    /// Whether it has nothing to do at all: a task that it is given now runs alone.
    pub(crate) fn is_unused(&self) -> bool {
        self.tokens.is_empty() && self.used() == 0
    }

    /// Whether one attempt is all that it has, so that its end is that attempt's doing.
    fn has_one_attempt(&self) -> bool {
        self.tokens.len() == 1 && self.used() <= 1
    }

    /// An attempt as it is kept for the node when this session ends.
    pub(crate) fn orphan(&self, token: LeaseToken, waited: bool) -> Orphan {
        Orphan { token, waited, was_alone: self.has_one_attempt() }
    }

    /// Attempts that no slot has begun with. A task uses its credit until it has left its slot, so whatever uses
    /// credit beyond the slots waits for one.
    ///
    /// A node that drains gives no credit back: its last attempts look as if they waited.
    pub(crate) fn waiting(&self) -> u64 {
        u64::from(self.overlap).saturating_sub(self.free())
    }

    /// Those of them that somebody waits for, and whether it was asked to give them back; oldest first.
    pub(crate) fn on_overlap(&self) -> Vec<(LeaseToken, bool)> {
        if self.overlap == 0 {
            Vec::new()
        } else if self.peer.is_none() {
            self.order.left_waiting().collect()
        } else {
            self.order.last(self.waiting()).collect()
        }
    }

    /// Its live attempts in the order in which they were given.
    pub(crate) fn attempts_in_order(&self) -> Vec<LeaseToken> {
        self.order.wanted().collect()
    }

    pub(crate) fn give(&mut self, token: LeaseToken, now_ms: u64, accept_by_ms: u64) {
        self.given += 1;
        self.last_assigned_ms = now_ms;
        self.tokens.insert(token, 0);
        self.order.give(token);
        self.unanswered.insert(token, accept_by_ms);
    }

    /// Keeps an attempt of the node's last session, behind those that were kept before.
    pub(crate) fn adopt(&mut self, token: LeaseToken, state: AttemptState) {
        self.tokens.insert(token, 0);
        self.order.adopt(token, state);
    }

    /// Nobody waits for an attempt any more.
    pub(crate) fn release(&mut self, token: LeaseToken) {
        if self.tokens.remove(&token).is_some() {
            self.order.unwanted(token);
        }
    }

    /// The node was told to drop an attempt, or has none of that token.
    pub(crate) fn dropped(&mut self, token: LeaseToken) {
        self.tokens.remove(&token);
        self.order.dropped(token);
    }

    /// It spoke of an assignment, so its lane works.
    fn answered(&mut self, token: LeaseToken) {
        self.unanswered.remove(&token);
    }

    /// It has an assignment and will begin with it after those that it accepted before.
    pub(crate) fn accepted(&mut self, token: LeaseToken) {
        self.answered(token);
        self.order.accepted(token);
    }

    /// A planted fault.
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) fn mark_recalled(&mut self, token: LeaseToken) {
        self.order.recalled(token);
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
        if self.outbox.len() >= MAX_OUTBOX {
            let recall = self.outbox.iter().position(|c| matches!(c.action, Action::Recall { .. }));
            if let Action::Cancel { token } = self.outbox.remove(recall.unwrap_or(0)).action {
                self.stopped.remove(&token);
            }
        }
        match action {
            Action::Cancel { token } => _ = self.stopped.insert(token),
            Action::Recall { token } => self.order.recalled(token),
            Action::Drain => {}
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

/// An attempt whose session ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orphan {
    pub(crate) token: LeaseToken,
    /// No slot had begun with it, by the credit that its session had given: an idle node may take it.
    pub(crate) waited: bool,
    /// Its node had nothing else: the node's end is its doing.
    pub(crate) was_alone: bool,
}

/// Attempts whose session ended and whose node may come back for them.
pub(crate) struct Orphans {
    /// In the order in which they were given; after a restart, in that of acceptance.
    pub(crate) attempts: Vec<Orphan>,
    /// Lease clock; after this the node is lost.
    pub(crate) until_ms: u64,
    /// Whether the loss counts as a crash of the task's node, which a restart of the scheduler does not.
    pub(crate) counts: bool,
}

impl Orphans {
    pub(crate) fn new(until_ms: u64) -> Self {
        Self { attempts: Vec::new(), until_ms, counts: true }
    }

    pub(crate) fn after_restart(until_ms: u64) -> Self {
        Self { attempts: Vec::new(), until_ms, counts: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_outbox_drops_a_recall_rather_than_a_cancel() {
        let info = crate::core::tests::info("n", 1, &[("gpu", "lama")]);
        let node = ("n".parse().unwrap(), None);
        let mut session = Session::new(SessionId::from_bytes([1; 16]), node, info, (1, 1), 0);
        let token = |n: usize| LeaseToken::from_bytes((n as u128).to_be_bytes());
        session.command(Action::Cancel { token: token(0) });
        session.command(Action::Recall { token: token(1) });
        (2..MAX_OUTBOX + 1).for_each(|n| session.command(Action::Cancel { token: token(n) }));
        let left = session.commands();
        assert_eq!(left.len(), MAX_OUTBOX);
        assert_eq!(left[0].action, Action::Cancel { token: token(0) });
        assert!(!left.iter().any(|c| matches!(c.action, Action::Recall { .. })));
        session.command(Action::Cancel { token: token(0) });
        assert_eq!(session.commands()[0].action, Action::Cancel { token: token(2) });
    }
}
