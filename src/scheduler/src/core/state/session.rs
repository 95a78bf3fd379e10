//! A session: the state of a node between its hello and its end.

use std::cell::Ref;
use std::collections::BTreeMap;

use lamagrid_domain::{
    BootId, Label, LeaseToken, LiveFigures, ModelName, ModelOffer, NodeInfo, QueueName, SessionId,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, ActionKind, Command, RefusedQueue};

use super::command_outbox::CommandOutbox;
use super::credit::Credit;
use super::dispatch_order::{AttemptState, DispatchOrder, Unbegun};
use super::leases::Orphan;
use super::taken_memory::{CachedMemory, TakenMemory};
use super::task::Task;
use crate::core::node_id::NodeId;
use crate::core::policy::lanes::LanePlan;

/// A registered node.
///
/// Invariant: its dispatch order lists exactly its attempts.
pub(crate) struct Session {
    id: SessionId,
    /// Only connections of this node may speak for the session.
    node: NodeId,
    /// The process of the node.
    boot: Option<BootId>,
    /// Orders sessions by their start. Clients may see it, unlike the id.
    number: u64,
    info: NodeInfo,
    /// The queues that it serves.
    queues: Vec<ServedQueue>,
    /// For each offer of its description, the queues that the model is served from.
    queues_of_offers: Vec<Vec<usize>>,
    /// Its other offers, which no queue has.
    unserved: Vec<ModelOffer>,
    /// The queues of its certificate; empty for all.
    allowed: Vec<QueueName>,
    /// The queues that it does not serve, with the reasons.
    refused: Vec<RefusedQueue>,
    figures: Option<LiveFigures>,
    credit: Credit,
    /// Lanes in the order of the welcome, and whether the node connected them.
    lanes: Vec<(QueueName, bool)>,
    /// Its `result` connection, once it spoke there.
    peer: Option<PeerId>,
    /// Attempts it works on, and how many polls in a row did not list them.
    tokens: BTreeMap<LeaseToken, u8>,
    /// The same and cancelled ones, in the order in which slots begin with them.
    order: DispatchOrder,
    /// Assignments that it has neither accepted nor delivered, by the lease clock at which that ends the session.
    /// A cancelled one stays: if it was lost on the lane, so was the credit that it used.
    unanswered: BTreeMap<LeaseToken, u64>,
    last_seen_ms: u64,
    last_assigned_ms: u64,
    draining: bool,
    /// The kinds of commands that it executes.
    actions: Vec<ActionKind>,
    outbox: CommandOutbox,
    /// Of the attempts in `tokens`.
    taken: CachedMemory,
    #[cfg(test)]
    is_replanned: bool,
}

/// A queue that a session serves. A queue that it began to serve after its welcome has no lane of its own.
#[derive(Debug)]
struct ServedQueue {
    name: QueueName,
    /// The lane that carries its tasks.
    lane: usize,
}

/// How a session serves a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    /// Which of its lanes carries the task.
    pub(crate) lane: usize,
    /// Memory of the model, by the node's own figure; 0 if unknown.
    pub(crate) model_bytes: u64,
}

/// A node's description of itself at its registration.
pub(crate) struct Registration {
    pub(crate) node: NodeId,
    /// Its process; absent before protocol version 1.5.
    pub(crate) boot: Option<BootId>,
    pub(crate) info: NodeInfo,
    pub(crate) plan: LanePlan,
    pub(crate) allowed: Vec<QueueName>,
    pub(crate) slots: u16,
    pub(crate) overlap: u16,
    pub(crate) actions: Vec<ActionKind>,
}

impl Session {
    /// `number` orders sessions by their start.
    pub(crate) fn open(id: SessionId, number: u64, registration: Registration, clock_ms: u64) -> Self {
        let Registration { node, boot, info, plan, allowed, slots, overlap, actions } = registration;
        let mut session = Self {
            id,
            node,
            boot,
            number,
            info,
            queues: Vec::new(),
            queues_of_offers: Vec::new(),
            unserved: Vec::new(),
            allowed,
            refused: Vec::new(),
            figures: None,
            credit: Credit::new(slots, overlap),
            lanes: plan.queues.iter().map(|queue| (queue.clone(), false)).collect(),
            peer: None,
            tokens: BTreeMap::new(),
            taken: CachedMemory::default(),
            order: DispatchOrder::default(),
            unanswered: BTreeMap::new(),
            last_seen_ms: clock_ms,
            last_assigned_ms: 0,
            draining: false,
            actions,
            outbox: CommandOutbox::default(),
            #[cfg(test)]
            is_replanned: false,
        };
        session.serve(plan);
        session
    }

    /// Serves the queues of a plan from now on. Its attempts go on, whatever their queues.
    fn serve(&mut self, plan: LanePlan) {
        let LanePlan { queues, of_offers, unserved, refused } = plan;
        let lane_of = |queue: &QueueName| self.lanes.iter().position(|(of, _)| of == queue).unwrap_or(0);
        self.queues = queues.into_iter().map(|name| ServedQueue { lane: lane_of(&name), name }).collect();
        (self.queues_of_offers, self.unserved, self.refused) = (of_offers, unserved, refused);
    }

    /// Its description as it would register with these labels.
    pub(crate) fn described_with(&self, labels: Vec<Label>) -> NodeInfo {
        let mut info = NodeInfo { labels, ..self.info.clone() };
        info.models.extend(self.unserved.iter().cloned());
        info
    }

    /// Takes over a description and the plan made from it. A session without lanes gets them by its next registration.
    pub(crate) fn replan(&mut self, info: NodeInfo, plan: LanePlan) {
        if !self.lanes.is_empty() {
            self.info = info;
            self.serve(plan);
            #[cfg(test)]
            {
                self.is_replanned = true;
            }
        }
    }

    /// Whether its attempts may be of queues that it does not serve any more.
    #[cfg(test)]
    pub(crate) fn is_replanned(&self) -> bool {
        self.is_replanned
    }

    /// The queues of its certificate; empty for all.
    pub(crate) fn allowed(&self) -> &[QueueName] {
        &self.allowed
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn info(&self) -> &NodeInfo {
        &self.info
    }

    pub(crate) fn slots(&self) -> u16 {
        self.credit.slots()
    }

    /// Tasks that it can prepare while its slots work.
    pub(crate) fn overlap(&self) -> u16 {
        self.credit.overlap()
    }

    /// The queues of its lanes, in the order of the welcome.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = &QueueName> {
        self.lanes.iter().map(|(queue, _)| queue)
    }

    /// The queues that it serves.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.iter().map(|queue| &queue.name)
    }

    /// Queues that it may not serve, with the reasons.
    pub(crate) fn refused(&self) -> &[RefusedQueue] {
        &self.refused
    }

    /// Whether a connection may speak for this session: it is its node's.
    pub(crate) fn belongs_to(&self, peer: &PeerId) -> bool {
        self.node.is_behind(peer)
    }

    /// Its `result` connection.
    pub(crate) fn peer(&self) -> Option<&PeerId> {
        self.peer.as_ref()
    }

    pub(crate) fn set_peer(&mut self, peer: &PeerId) {
        self.peer = Some(peer.clone());
    }

    /// Its attempts, in the order of their tokens.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = LeaseToken> {
        self.tokens.keys().copied()
    }

    /// The memory of its attempts together; `compute` is called if they or the learned needs have changed.
    pub(crate) fn taken_memory(
        &self,
        needs_version: u64,
        compute: impl FnOnce() -> TakenMemory,
    ) -> Ref<'_, TakenMemory> {
        self.taken.get(needs_version, compute)
    }

    pub(crate) fn holds(&self, token: LeaseToken) -> bool {
        self.tokens.contains_key(&token)
    }

    /// How many attempts it works on.
    pub(crate) fn running(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn last_assigned_ms(&self) -> u64 {
        self.last_assigned_ms
    }

    /// The node gave a sign of life.
    pub(crate) fn record_contact(&mut self, clock_ms: u64) {
        self.last_seen_ms = clock_ms;
    }

    pub(crate) fn silent_ms(&self, clock_ms: u64) -> u64 {
        clock_ms.saturating_sub(self.last_seen_ms)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// It gets no more tasks.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether its node executes commands of a kind; others are not sent to it.
    pub(crate) fn executes(&self, kind: ActionKind) -> bool {
        self.actions.contains(&kind)
    }

    pub(crate) fn connect_lane(&mut self, index: usize) {
        if let Some((_, is_connected)) = self.lanes.get_mut(index) {
            *is_connected = true;
        }
    }

    /// Whether this process opened the session. Processes of protocol versions before 1.5 do not say.
    pub(crate) fn is_same_process(&self, boot: Option<BootId>) -> bool {
        boot.is_some() && self.boot == boot
    }

    /// The process that opened it.
    pub(crate) fn boot(&self) -> Option<BootId> {
        self.boot
    }

    /// Whether it serves a model's tasks from a queue.
    pub(crate) fn offers(&self, queue: &QueueName, model: &ModelName) -> bool {
        self.service_from(queue, model).is_some()
    }

    fn service_from(&self, queue: &QueueName, model: &ModelName) -> Option<Service> {
        let offers = self.info.models.iter().zip(&self.queues_of_offers);
        offers.filter(|(offer, _)| offer.model == *model).find_map(|(offer, queues)| {
            let served = queues.iter().map(|at| &self.queues[*at]).find(|served| served.name == *queue)?;
            Some(Service { lane: served.lane, model_bytes: offer.memory_bytes })
        })
    }

    /// How it serves a task: from the task's queue, or from one that it spilled to.
    pub(crate) fn service_of(&self, task: &Task) -> Option<Service> {
        let spec = task.spec();
        let spilled = || task.spilled_to().iter().find_map(|queue| self.service_from(queue, &spec.model));
        self.service_from(&spec.queue, &spec.model).or_else(spilled)
    }

    /// Its models, each with a queue that it is served from.
    pub(crate) fn served(&self) -> impl Iterator<Item = (&ModelOffer, &QueueName)> {
        let offers = self.info.models.iter().zip(&self.queues_of_offers);
        offers.flat_map(move |(offer, queues)| queues.iter().map(move |at| (offer, &self.queues[*at].name)))
    }

    pub(crate) fn figures(&self) -> Option<LiveFigures> {
        self.figures
    }

    pub(crate) fn set_figures(&mut self, figures: LiveFigures) {
        self.figures = Some(figures);
    }

    /// Whether its device has this much memory; true if that is unknown.
    pub(crate) fn has_memory(&self, bytes: u64) -> bool {
        self.info.memory_bytes == 0 || bytes <= self.info.memory_bytes
    }

    /// Whether this much memory is free beside the models in memory; true if that is unknown.
    pub(crate) fn has_free_memory(&self, bytes: u64) -> bool {
        let loaded = || self.info.models.iter().filter(|offer| offer.loaded).map(|offer| offer.memory_bytes);
        let by_offers = || {
            Some(self.info.memory_bytes)
                .filter(|all| *all > 0)
                .map(|all| all.saturating_sub(loaded().fold(0, u64::saturating_add)))
        };
        let measured = self.figures.and_then(|figures| figures.free_memory_bytes);
        measured.or_else(by_offers).is_none_or(|free| bytes <= free)
    }

    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.info.models.iter().any(|o| o.model == *model && o.loaded)
    }

    /// Updates which models are in memory. True if one was added.
    pub(crate) fn set_loaded(&mut self, loaded: &[ModelName]) -> bool {
        let mut is_more = false;
        for offer in self.info.models.iter_mut().chain(&mut self.unserved) {
            is_more |= !offer.loaded && loaded.contains(&offer.model);
            offer.loaded = loaded.contains(&offer.model);
            offer.present |= offer.loaded;
        }
        is_more
    }

    pub(crate) fn serves(&self, queue: &QueueName) -> bool {
        self.queues().any(|each| each == queue)
    }

    pub(crate) fn lanes_connected(&self) -> bool {
        self.lanes.iter().all(|(_, connected)| *connected)
    }

    /// The node reported its credit: a task has left its slot, or was dropped before.
    pub(super) fn ready(&mut self, credit: u64) {
        let rise = self.credit.report(credit);
        self.order.freed(rise);
    }

    /// An attempt is over on the node; its credit comes with it, unless it came when its slot was left.
    pub(super) fn delivered(&mut self, token: LeaseToken, credit: u64) {
        self.answered(token);
        let rise = self.credit.report(credit);
        self.tokens.remove(&token);
        self.taken.forget();
        self.order.delivered(token);
        self.order.freed(rise.saturating_sub(1));
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.credit.free() > 0
    }

    /// Tasks that it could begin with at once.
    pub(crate) fn idle_slots(&self) -> u64 {
        self.credit.idle_slots()
    }

    /// See [`Credit::used`].
    pub(crate) fn used(&self) -> u64 {
        self.credit.used()
    }

    /// Whether it has no work at all: a task that it is given now runs alone.
    pub(crate) fn is_unused(&self) -> bool {
        self.tokens.is_empty() && self.used() == 0
    }

    /// Whether it has a single attempt, which is then held responsible for the loss of the node.
    fn has_one_attempt(&self) -> bool {
        self.tokens.len() == 1 && self.used() <= 1
    }

    /// Its attempts as they are kept for the node when this session ends, in the order of dispatch.
    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        let (unbegun, was_alone) = (self.on_overlap(), self.has_one_attempt());
        let waited = |token| unbegun.iter().any(|unbegun| unbegun.token == token);
        self.order.wanted().map(|token| Orphan { token, waited: waited(token), was_alone }).collect()
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        self.credit.check()?;
        let mut in_order = self.attempts_in_order();
        in_order.sort_unstable();
        invariant!(in_order.iter().eq(self.tokens.keys()), "{}: its order is {in_order:?}", self.node);
        self.order.check()
    }

    /// Attempts that no slot has begun with, by its credit.
    pub(crate) fn waiting(&self) -> u64 {
        self.credit.waiting()
    }

    /// The wanted ones among them, and whether they were recalled; oldest first.
    pub(crate) fn on_overlap(&self) -> Vec<Unbegun> {
        if self.credit.overlap() == 0 {
            Vec::new()
        } else if self.peer.is_none() {
            self.order.left_waiting().collect()
        } else {
            self.order.last(self.waiting()).collect()
        }
    }

    /// Its attempts in the order of dispatch.
    pub(crate) fn attempts_in_order(&self) -> Vec<LeaseToken> {
        self.order.wanted().collect()
    }

    pub(super) fn give(&mut self, token: LeaseToken, now_ms: u64, accept_by_ms: u64) {
        self.credit.spend();
        self.last_assigned_ms = now_ms;
        self.tokens.insert(token, 0);
        self.taken.forget();
        self.order.give(token);
        self.unanswered.insert(token, accept_by_ms);
    }

    /// Keeps an attempt of the node's last session, after those kept before.
    pub(crate) fn adopt(&mut self, token: LeaseToken, state: AttemptState) {
        self.tokens.insert(token, 0);
        self.taken.forget();
        self.order.adopt(token, state);
    }

    /// An attempt is not wanted any more.
    pub(crate) fn release(&mut self, token: LeaseToken) {
        self.taken.forget();
        if self.tokens.remove(&token).is_some() {
            self.order.unwanted(token);
        }
    }

    /// The node was told to drop an attempt, or has none of that token.
    pub(crate) fn dropped(&mut self, token: LeaseToken) {
        self.tokens.remove(&token);
        self.taken.forget();
        self.order.dropped(token);
    }

    /// The node answered an assignment, so its lane works.
    fn answered(&mut self, token: LeaseToken) {
        self.unanswered.remove(&token);
    }

    /// The node has an attempt and begins with it after those accepted before.
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

    /// Returns accepted attempts that `limit` polls in a row did not list.
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
    pub(crate) fn has_overdue_accept(&self, now_ms: u64) -> bool {
        self.unanswered.values().any(|at| *at <= now_ms)
    }

    /// Puts a command into the outbox. Returns its number.
    pub(crate) fn command(&mut self, action: Action) -> u64 {
        if let Action::Recall { token } = action {
            self.order.recalled(token);
        }
        self.outbox.push(action)
    }

    pub(crate) fn acknowledge(&mut self, seq: u64) {
        self.outbox.acknowledge(seq);
    }

    pub(crate) fn commands(&self) -> Vec<Command> {
        self.outbox.commands().to_vec()
    }

    /// Tells the node to stop an unwanted attempt, once.
    pub(crate) fn stop(&mut self, token: LeaseToken) {
        self.outbox.stop(token);
    }

    /// Forgets the stops of attempts that a poll does not list any more.
    pub(crate) fn forget_stopped(&mut self, listed: &[LeaseToken]) {
        self.outbox.forget_stopped(listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slots: u16, overlap: u16) -> Session {
        let info = crate::core::tests::info("n", 1, &[("gpu", "lama")]);
        let node = "n".parse().unwrap();
        let plan = LanePlan::as_offered(&info);
        let (allowed, actions) = (Vec::new(), Vec::new());
        let registration = Registration { node, boot: None, info, plan, allowed, slots, overlap, actions };
        Session::open(SessionId::from_bytes([1; 16]), 1, registration, 0)
    }

    fn token(n: usize) -> LeaseToken {
        LeaseToken::from_bytes((n as u128).to_be_bytes())
    }

    #[test]
    fn a_task_that_a_session_is_given_uses_its_credit_and_is_in_its_order() {
        let mut session = session(1, 1);
        session.ready(2);
        assert!(session.is_unused() && session.idle_slots() == 1);
        session.give(token(1), 0, 100);
        session.give(token(2), 0, 100);
        session.check().unwrap();
        assert!(!session.has_credit() && !session.is_unused() && session.waiting() == 1);
        assert_eq!(session.on_overlap(), [], "its result connection has not spoken");
        session.set_peer(&PeerId::from_text("n"));
        assert_eq!(session.on_overlap(), [Unbegun { token: token(2), recalled: false }]);
        session.command(Action::Recall { token: token(2) });
        assert_eq!(session.on_overlap(), [Unbegun { token: token(2), recalled: true }]);
        session.delivered(token(1), 3);
        session.check().unwrap();
        assert_eq!(session.on_overlap(), []);
    }

    #[test]
    fn an_accepted_attempt_is_missing_once_several_polls_do_not_list_it() {
        let mut session = session(1, 0);
        session.ready(1);
        session.give(token(1), 0, 100);
        assert_eq!(session.missing(&[], 1), [], "it is still on its way");
        assert!(!session.has_overdue_accept(99) && session.has_overdue_accept(100));
        session.accepted(token(1));
        assert_eq!(session.missing(&[], 2), []);
        assert_eq!(session.missing(&[token(1)], 2), []);
        assert_eq!(session.missing(&[], 2), []);
        assert_eq!(session.missing(&[], 2), [token(1)]);
    }
}
