//! Time and the network: messages under way, when they arrive, and faults on the way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;

use lamagrid_domain::{LeaseToken, SessionId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage, NodeEvent,
    ResultReply, ResultRequest,
};

use super::random::Random;
use crate::core::{Authority, Input, Now, Origin};

/// One connection, of whatever kind.
pub(super) type Conn = u32;

/// An input of the core.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Client(PeerId, ClientRequest, Vec<Bytes>),
    ClientGone(PeerId),
    Control(PeerId, ControlRequest),
    LaneConnected(SessionId, usize),
    LanesFailed(SessionId),
    Result(PeerId, ResultRequest, Option<Bytes>),
    ResultGone(PeerId),
    Event(NodeEvent),
    DiskFree(u64),
    Admin(PeerId, AdminRequest),
    Tick,
}

/// The owner whose requests count as an administrator's.
pub(super) const ADMINISTRATOR: &str = "owner-0";

fn authority(request: &ClientRequest) -> Authority {
    let owner = match request {
        ClientRequest::Submit(submit) => &submit.spec.owner,
        ClientRequest::Offer(offer) => &offer.owner,
        _ => return Authority::Client,
    };
    if owner.as_str() == ADMINISTRATOR { Authority::Administrator } else { Authority::Client }
}

impl From<Message> for Input {
    fn from(message: Message) -> Self {
        match message {
            Message::Client(peer, request, inline) => {
                let authority = authority(&request);
                Self::Client { peer, request, inline, authority }
            }
            Message::DiskFree(bytes) => Self::DiskFree { bytes },
            Message::ClientGone(peer) => Self::ClientGone { peer },
            Message::Control(peer, request) => Self::Control { peer, request, queues: Vec::new() },
            Message::LaneConnected(session, index) => Self::LaneConnected { session, index },
            Message::LanesFailed(session) => Self::LanesFailed { session, reason: "simulated".into() },
            Message::Result(peer, request, inline) => Self::Result { peer, request, inline },
            Message::ResultGone(peer) => Self::ResultGone { peer, origin: Origin::Local },
            Message::Event(event) => Self::Event(event),
            Message::Admin(peer, request) => Self::Admin { peer, request },
            Message::Tick => Self::Tick,
        }
    }
}

/// A timer of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeTimer {
    /// Start, or say hello (again).
    Hello,
    Poll(u32),
    /// The request of this number was not answered.
    Silence(u32),
    /// The inputs of an attempt are decoded.
    Prepared(LeaseToken),
    /// The device is done with an attempt.
    LeaveSlot(LeaseToken),
    Finish(LeaseToken),
    Heartbeat(u32),
}

/// The next event of the world.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// To the scheduler, if that process (`epoch`) still runs.
    Core {
        epoch: u32,
        message: Message,
    },
    Client {
        client: usize,
        conn: Conn,
        reply: ClientReply,
    },
    NodeControl {
        node: usize,
        life: u32,
        request: u32,
        reply: ControlReply,
    },
    NodeResult {
        node: usize,
        conn: Conn,
        reply: ResultReply,
    },
    NodeLane {
        node: usize,
        session: SessionId,
        message: LaneMessage,
    },
    /// A node's PULL socket reaches a lane.
    LaneConnect {
        node: usize,
        session: SessionId,
        index: usize,
    },
    NodeTimer {
        node: usize,
        life: u32,
        timer: NodeTimer,
    },
    ClientTurn {
        client: usize,
    },
    /// The other side of a connection notices that it closed.
    Closed {
        conn: Conn,
    },
    /// A connection that lost a message breaks.
    Break {
        conn: Conn,
    },
    Tick {
        epoch: u32,
    },
    Commit {
        epoch: u32,
    },
    InjectFault,
    /// The wall clock is set forward or back.
    SetClock {
        ms: i64,
    },
    SchedulerStart,
}

/// The side that dialled a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialler {
    Client(usize),
    /// A node's `result` link.
    Link(usize),
    /// A node's request of this number on `control`.
    Control(usize, u32, u32),
    /// A lane of a node.
    Lane,
}

/// How often faults occur in an episode, per thousand messages or commits.
#[derive(Debug, Clone)]
pub(super) struct FaultRates {
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) late: u64,
    pub(super) commit_fails: u64,
    pub(super) commit_ms: u64,
    pub(super) fault_every_ms: u64,
    /// Attempts that take seconds.
    pub(super) long: u64,
    /// The longest pause of a client between two turns.
    pub(super) rest_ms: u64,
}

impl FaultRates {
    /// Whether messages arrive once and in order while a connection lasts.
    pub(super) fn is_fair(&self) -> bool {
        (self.lost, self.repeated, self.late) == (0, 0, 0)
    }
}

struct Entry {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub(super) struct Network {
    pub(super) random: Random,
    pub(super) now: Now,
    pub(super) rates: FaultRates,
    /// Messages arrive once and in order from now on.
    pub(super) faults_off: bool,
    pub(super) epoch: u32,
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    dialled: Vec<(Dialler, PeerId)>,
    peers: BTreeMap<PeerId, Conn>,
    /// Arrival of the last message per connection and direction.
    last: BTreeMap<(Conn, bool), u64>,
    /// Connections that lost a message and have not broken yet.
    pub(super) half_open: BTreeSet<Conn>,
}

impl Network {
    pub(super) fn new(random: Random, rates: FaultRates) -> Self {
        Self {
            random,
            now: Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000 },
            rates,
            faults_off: false,
            epoch: 0,
            heap: BinaryHeap::new(),
            order: 0,
            dialled: Vec::new(),
            peers: BTreeMap::new(),
            last: BTreeMap::new(),
            half_open: BTreeSet::new(),
        }
    }

    /// A fresh connection to the scheduler.
    pub(super) fn dial(&mut self, dialler: Dialler) -> Conn {
        let conn = self.dialled.len() as Conn;
        let peer = PeerId::from_text(&format!("{conn:08}"));
        self.peers.insert(peer.clone(), conn);
        self.dialled.push((dialler, peer));
        conn
    }

    pub(super) fn dialler(&self, conn: Conn) -> Dialler {
        self.dialled[conn as usize].0
    }

    pub(super) fn peer(&self, conn: Conn) -> PeerId {
        self.dialled[conn as usize].1.clone()
    }

    pub(super) fn conn(&self, peer: &PeerId) -> Conn {
        self.peers[peer]
    }

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.push(self.now.mono_ms + ms, event);
    }

    /// After `ms`, a bit more or less.
    pub(super) fn about(&mut self, ms: u64, event: Event) {
        let ms = ms - ms / 8 + self.random.below(ms / 4 + 1);
        self.after(ms, event);
    }

    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at, order: self.order, event }));
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let Reverse(entry) = self.heap.pop()?;
        self.advance_to(entry.at);
        Some(entry.event)
    }

    pub(super) fn advance_to(&mut self, mono_ms: u64) {
        let step = mono_ms.saturating_sub(self.now.mono_ms);
        self.now.mono_ms += step;
        self.now.wall_ms += step;
    }

    pub(super) fn set_clock(&mut self, ms: i64) {
        self.now.wall_ms = self.now.wall_ms.saturating_add_signed(ms);
    }

    /// Sends to the scheduler.
    pub(super) fn send(&mut self, conn: Conn, message: Message) {
        let event = Event::Core { epoch: self.epoch, message };
        self.carry(conn, true, event);
    }

    /// Carries a message over a connection: once and in order, or with faults at these rates.
    pub(super) fn carry(&mut self, conn: Conn, up: bool, event: Event) {
        let last = self.last.get(&(conn, up)).copied().unwrap_or(0);
        let at = last.max(self.now.mono_ms + self.random.between(0, 4));
        self.last.insert((conn, up), at);
        if self.faults_off {
            self.push(at, event);
            return;
        }
        if self.random.chance(self.rates.lost) {
            self.half_open.insert(conn);
            if self.random.chance(700) {
                let ms = self.random.between(0, 3_000);
                self.after(ms, Event::Break { conn });
            }
            return;
        }
        if self.random.chance(self.rates.repeated) {
            let again = at + self.random.between(0, 3_000);
            self.push(again, event.clone());
        }
        let at = if self.random.chance(self.rates.late) { at + self.random.between(1, 2_500) } else { at };
        self.push(at, event);
    }
}
