//! A simulated node: hello, lanes, credit, accepts, slots, deliveries that are held until they are on record, polls.
//!
//! Some nodes free a slot before they deliver, and prepare the next attempt meanwhile; the others give the credit back
//! with the delivery.

mod slots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use lamagrid_domain::{
    Activity, BlobForm, BlobMeta, BootId, Failure, FailureKind, Hash, LeaseToken, MemoryUse, ModelOffer,
    NodeInfo, NodeKind, Role, SessionId, Stages,
};
use lamagrid_protocol::message::{
    Accept, Action, ActionKind, AttemptOutcome, ControlReply, ControlRequest, Delivery, Goodbye, Heartbeat,
    Hello, LaneMessage, NodeEvent, Poll, Ready, ResultReply, ResultRequest, Step, Welcome,
};

use self::slots::{Attempt, Held, Stage};
use super::network::{Conn, Dialler, Event, Message, Network, NodeTimer};
use super::routing::Routing;

pub(super) use self::slots::outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    /// Said goodbye, or will with the next word.
    Leaving,
}

pub(super) struct Node {
    index: usize,
    pub(super) name: String,
    pid: u32,
    /// Rises with every process, so that timers of the last one are void.
    pub(super) life: u32,
    pub(super) alive: bool,
    pub(super) frozen_until_ms: u64,
    offers: Vec<ModelOffer>,
    slots: u16,
    overlap: u16,
    /// Whether it frees a slot before it delivers.
    frees_early: bool,
    device: Device,
    /// The memory that each attempt uses.
    used: BTreeMap<LeaseToken, MemoryUse>,
    phase: Phase,
    pub(super) session: Option<SessionId>,
    pub(super) link: Option<Conn>,
    poll_ms: u64,
    /// The request that is unanswered, and on which connection.
    request: u32,
    asked: Option<Conn>,
    /// A hint came while a request was unanswered.
    hinted: bool,
    /// Only the newest timers count.
    poll_number: u32,
    session_number: u32,
    failed_polls: u32,
    acknowledged: u64,
    running: BTreeMap<LeaseToken, Attempt>,
    /// Running attempts, in the order of assignment.
    order: VecDeque<LeaseToken>,
    held: BTreeMap<LeaseToken, Held>,
    cancelled: BTreeSet<LeaseToken>,
    seen: BTreeSet<LeaseToken>,
    credit: i64,
    /// Polls that were sent since the last one on time; a node that is driven round in circles shows here.
    pub(super) hurried_polls: u32,
    /// Events for the tally.
    pub(super) notes: Vec<&'static str>,
}

/// How much a node can do at once.
pub(super) struct Capacity {
    pub(super) slots: u16,
    pub(super) overlap: u16,
    pub(super) frees_early: bool,
}

/// The device that runs a node's models.
pub(super) struct Device {
    pub(super) device: &'static str,
    pub(super) memory_bytes: u64,
    /// Whether a model leaves memory when another one is loaded.
    pub(super) holds_one: bool,
    /// Knows what tasks use.
    pub(super) routing: Routing,
}

impl Node {
    pub(super) fn new(index: usize, offers: Vec<ModelOffer>, capacity: Capacity, device: Device) -> Self {
        let Capacity { slots, overlap, frees_early } = capacity;
        Self {
            index,
            name: format!("node-{index}"),
            pid: 100 * index as u32,
            life: 0,
            alive: true,
            frozen_until_ms: 0,
            offers,
            slots,
            overlap,
            frees_early,
            device,
            used: BTreeMap::new(),
            phase: Phase::Serving,
            session: None,
            link: None,
            poll_ms: 1_000,
            request: 0,
            asked: None,
            hinted: false,
            poll_number: 0,
            session_number: 0,
            failed_polls: 0,
            acknowledged: 0,
            running: BTreeMap::new(),
            order: VecDeque::new(),
            held: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            seen: BTreeSet::new(),
            credit: 0,
            hurried_polls: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn has(&self, token: LeaseToken) -> bool {
        self.running.contains_key(&token) || self.held.contains_key(&token)
    }

    /// Whether its credit says all about its slots: it gives none back once it leaves.
    pub(super) fn is_serving(&self) -> bool {
        self.alive && self.phase == Phase::Serving
    }

    fn timer(&self, timer: NodeTimer) -> Event {
        Event::NodeTimer { node: self.index, life: self.life, timer }
    }

    /// The process ends. `loud` when the kernel closes its sockets, else the host is gone with it.
    pub(super) fn die(&mut self, net: &mut Network, loud: bool) {
        self.life += 1;
        self.alive = false;
        self.session = None;
        if let Some(conn) = self.link.take().filter(|_| loud) {
            let peer = net.peer(conn);
            net.send(conn, Message::ResultGone(peer));
        }
        self.running.clear();
        self.order.clear();
        self.held.clear();
        self.cancelled.clear();
        self.asked = None;
        self.phase = Phase::Serving;
        let ms = if net.faults_off { 50 } else { net.random.between(10, 8_000) };
        net.after(ms, self.timer(NodeTimer::Hello));
    }

    /// A new process under a new name takes this one's place; the old name never comes back.
    pub(super) fn die_and_change_name(&mut self, net: &mut Network) {
        let loud = net.random.chance(500);
        self.die(net, loud);
        self.name = format!("node-{}-{}", self.index, self.life);
    }

    /// Takes no more work, and gives back attempts that no slot has begun with.
    pub(super) fn drain(&mut self, net: &mut Network) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
        }
        for token in self.order.clone() {
            if self.give_back(net, token) {
                self.notes.push("given back by a drain");
            }
        }
    }

    /// Takes work again, in a new session with its whole credit.
    fn undrain(&mut self, net: &mut Network) {
        if self.phase == Phase::Draining {
            self.phase = Phase::Serving;
            self.notes.push("undrained");
            self.lose_session(net);
        }
    }

    pub(super) fn leave(&mut self, net: &mut Network) {
        self.phase = Phase::Leaving;
        if let Some(session) = self.session {
            self.ask(net, Goodbye { session }.into());
        }
    }

    /// The link broke, or the scheduler says that the session is over: work goes on, hello comes soon.
    pub(super) fn lose_session(&mut self, net: &mut Network) {
        if self.session.take().is_none() {
            return;
        }
        if let Some(conn) = self.link.take() {
            // Its sockets are dropped, which the scheduler may notice.
            let peer = net.peer(conn);
            net.send(conn, Message::ResultGone(peer));
        }
        self.asked = None;
        let ms = net.random.between(20, 300);
        net.after(ms, self.timer(NodeTimer::Hello));
    }

    fn ask(&mut self, net: &mut Network, request: ControlRequest) {
        self.request += 1;
        let conn = net.dial(Dialler::Control(self.index, self.life, self.request));
        self.asked = Some(conn);
        let peer = net.peer(conn);
        net.send(conn, Message::Control(peer, request));
        net.after(1_000, self.timer(NodeTimer::Silence(self.request)));
    }

    fn say(&mut self, net: &mut Network, request: ResultRequest, inline: Option<Bytes>) {
        let Some(conn) = self.link else { return };
        let peer = net.peer(conn);
        net.send(conn, Message::Result(peer, request, inline));
    }

    fn wanted(&self) -> Vec<LeaseToken> {
        self.order.iter().filter(|t| !self.running[t].abandoned).copied().collect()
    }

    pub(super) fn on_timer(&mut self, net: &mut Network, timer: NodeTimer) {
        match timer {
            NodeTimer::Hello => self.hello(net),
            NodeTimer::Poll(number) if number != self.poll_number => {}
            NodeTimer::Heartbeat(number) if number != self.session_number => {}
            NodeTimer::Poll(_) => {
                self.hurried_polls = 0;
                self.poll(net);
            }
            NodeTimer::Silence(request) if self.asked.is_some() && request == self.request => {
                self.on_silence(net)
            }
            NodeTimer::Silence(_) => {}
            NodeTimer::Prepared(token) => {
                if let Some(Attempt { stage: Stage::Before { prepared }, .. }) = self.running.get_mut(&token)
                {
                    *prepared = true;
                }
                self.fill_slots(net);
            }
            NodeTimer::LeaveSlot(token) => self.leave_slot(net, token),
            NodeTimer::Finish(token) => self.finish(net, token),
            NodeTimer::Heartbeat(number) => {
                if let Some(session) = self.session {
                    let step = self.running.keys().next().map(|t| Step {
                        session,
                        token: *t,
                        step: 1,
                        of: 2,
                        activity: Activity::Running,
                    });
                    let event: NodeEvent =
                        step.map_or_else(|| Heartbeat { session, figures: None }.into(), Into::into);
                    let conn = self.link.unwrap_or(0);
                    net.send(conn, Message::Event(event));
                    net.about(900, self.timer(NodeTimer::Heartbeat(number)));
                }
            }
        }
    }

    fn hello(&mut self, net: &mut Network) {
        if !self.alive {
            self.alive = true;
            self.pid += 1;
        }
        if self.session.is_some() || self.asked.is_some() {
            return;
        }
        if self.phase == Phase::Leaving {
            return self.die(net, true);
        }
        let info = NodeInfo {
            name: self.name.parse().expect("a plain name"),
            kind: NodeKind::Echo,
            version: "0".into(),
            device: self.device.device.into(),
            gpu: None,
            memory_bytes: self.device.memory_bytes,
            cores: 1,
            models: self.offers.clone(),
            pid: self.pid,
            withheld: Vec::new(),
            labels: Vec::new(),
            device_id: None,
            host_memory_bytes: 0,
            cpu_features: Vec::new(),
        };
        let held = self.held.keys().copied().collect();
        let (slots, overlap) = (self.slots, self.overlap);
        let boot = Some(BootId::from_bytes(u128::from(self.pid).to_be_bytes()));
        let mut actions = Action::BASIC.to_vec();
        actions.extend((!self.index.is_multiple_of(3)).then_some(ActionKind::Undrain));
        let hello = Hello { info, slots, overlap, running: self.wanted(), held, boot, actions };
        self.ask(net, hello.into());
    }

    fn poll(&mut self, net: &mut Network) {
        let Some(session) = self.session else { return };
        if self.asked.is_some() {
            self.hinted = true;
            return;
        }
        self.hinted = false;
        self.poll_number += 1;
        if self.phase == Phase::Draining && self.running.is_empty() && self.held.is_empty() {
            self.phase = Phase::Leaving;
        }
        if self.phase == Phase::Leaving {
            return self.ask(net, Goodbye { session }.into());
        }
        let mut running = self.wanted();
        running.extend(self.held.keys());
        let poll = Poll { session, running, acknowledged: self.acknowledged, refused: Vec::new() };
        self.ask(net, poll.into());
    }

    fn on_silence(&mut self, net: &mut Network) {
        self.asked = None;
        if self.session.is_none() {
            let ms = net.random.between(50, 500);
            return net.after(ms, self.timer(NodeTimer::Hello));
        }
        self.failed_polls += 1;
        if self.failed_polls >= 3 {
            self.failed_polls = 0;
            self.lose_session(net);
        } else {
            self.poll(net);
        }
    }

    pub(super) fn on_control(&mut self, net: &mut Network, request: u32, reply: ControlReply) {
        if self.asked.is_none() || request != self.request {
            return;
        }
        self.asked = None;
        self.failed_polls = 0;
        match reply {
            ControlReply::Welcome(welcome) => self.begin(net, welcome),
            ControlReply::Rejected(_) => {
                let ms = net.random.between(50, 500);
                net.after(ms, self.timer(NodeTimer::Hello));
            }
            ControlReply::Commands(told) => {
                let fresh: Vec<_> = told.commands.into_iter().filter(|c| c.seq > self.acknowledged).collect();
                for command in &fresh {
                    self.acknowledged = command.seq;
                    match command.action {
                        Action::Cancel { token } => {
                            self.cancelled.insert(token);
                            if !self.give_back(net, token)
                                && let Some(attempt) = self.running.get_mut(&token)
                            {
                                attempt.cancelled = true;
                            }
                        }
                        Action::Recall { token } => {
                            let given_back = self.give_back(net, token);
                            self.notes.push(if given_back { "recalled" } else { "recalled too late" });
                        }
                        Action::Drain => self.drain(net),
                        Action::Undrain => self.undrain(net),
                        // Not in this node's list of actions.
                        Action::Set { .. } => unreachable!("it is sent only to nodes that know it"),
                    }
                }
                if fresh.is_empty() && !self.hinted {
                    net.about(self.poll_ms, self.timer(NodeTimer::Poll(self.poll_number)));
                } else {
                    self.hurried_polls += 1;
                    self.poll(net);
                }
            }
            ControlReply::SessionGone(_) => self.lose_session(net),
            ControlReply::Farewell(_) => self.die(net, true),
            ControlReply::ProtocolFault(_) => unreachable!("the simulation sends well-formed requests"),
        }
    }

    fn begin(&mut self, net: &mut Network, welcome: Welcome) {
        let session = welcome.session;
        self.poll_ms = welcome.poll_ms;
        self.session = Some(session);
        self.acknowledged = 0;
        for token in welcome.abandoned {
            self.abandon(net, token);
        }
        for token in self.wanted() {
            self.proceed(net, token);
        }
        for index in 0..welcome.lanes.len() {
            let ms = net.random.between(1, 10);
            net.after(ms, Event::LaneConnect { node: self.index, session, index });
        }
        self.link = Some(net.dial(Dialler::Link(self.index)));
        let used = self.running.values().filter(|a| a.uses_credit()).count()
            + self.held.values().filter(|h| h.uses_credit).count();
        let capacity = i64::from(self.slots) + i64::from(self.overlap);
        self.credit = if self.phase == Phase::Serving { capacity - used as i64 } else { 0 };
        self.ready(net);
        for token in self.held.keys().copied().collect::<Vec<_>>() {
            self.deliver(net, token);
        }
        net.about(self.poll_ms, self.timer(NodeTimer::Poll(self.poll_number)));
        self.session_number += 1;
        net.about(900, self.timer(NodeTimer::Heartbeat(self.session_number)));
    }

    fn credit(&self) -> u64 {
        u64::try_from(self.credit).unwrap_or(0)
    }

    fn ready(&mut self, net: &mut Network) {
        let Some(session) = self.session else { return };
        let loaded = self.offers.iter().filter(|o| o.loaded).map(|o| o.model.clone()).collect();
        self.say(net, Ready { session, credit: self.credit(), loaded }.into(), None);
    }

    fn leave_if_drained(&mut self, net: &mut Network) {
        if self.phase == Phase::Draining && self.running.is_empty() && self.held.is_empty() {
            self.leave(net);
        }
    }

    pub(super) fn on_result(&mut self, net: &mut Network, reply: ResultReply) {
        match reply {
            ResultReply::Proceed(proceed) => self.proceed(net, proceed.token),
            ResultReply::Abandon(abandon) => self.abandon(net, abandon.token),
            ResultReply::Stored(stored) => {
                self.held.remove(&stored.token);
            }
            ResultReply::SessionGone(gone) => {
                if self.session == Some(gone.session) {
                    self.lose_session(net);
                }
            }
            ResultReply::ProtocolFault(_) => unreachable!("the simulation sends well-formed requests"),
        }
        self.leave_if_drained(net);
    }
}
