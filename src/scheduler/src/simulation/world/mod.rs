//! The world around the core: a shell with its commit barrier, nodes, clients, and everything that goes wrong.

mod fault_injection;
mod shell;
mod waits;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};

use lamagrid_config::{LimitsConfig, RetryConfig, RetryPolicy, SchedulerConfig};
use lamagrid_domain::{LeaseToken, ModelOffer, SessionId, State, TaskId, TaskSpec};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Accept, ControlReply, Delivery, DrainNode, Rejected, RemoveNode, UndrainNode,
};
use lamagrid_transport::Endpoints;

use crate::core::Fault;
use crate::core::{Core, Effect, Settings, StoreOp};
use crate::simulation::client::Client;
use crate::simulation::disk::Disk;
use crate::simulation::network::{Conn, Dialler, Event, FaultRates, Message, Network};
use crate::simulation::node::{Capacity, Device, Node};
use crate::simulation::oracle::{Kind, Oracle, Violation};
use crate::simulation::random::Random;
use crate::simulation::routing::Routing;

/// Steps of one episode before its faults stop.
const FAULTY_STEPS: u64 = 2_500;
/// Events that a report shows.
const REMEMBERED: usize = 40;
const TICK_MS: u64 = 100;
/// Shorter than the faulty part of an episode.
const CLOCK_GRACE_MS: u64 = 3_000;

struct Group {
    ops: Vec<StoreOp>,
    released: Vec<Effect>,
}

/// The scheduler's end of a lane.
struct Lane {
    /// The node's connection, once it connected.
    conn: Option<(usize, u32, Conn)>,
    /// A connection that carries nothing and does not know it.
    dead: bool,
}

pub(in crate::simulation) struct World {
    net: Network,
    core: Option<Core>,
    disk: Disk,
    pending: VecDeque<Effect>,
    group: Option<Group>,
    failing: bool,
    /// Clients' messages that are not read while a commit fails.
    unread: VecDeque<Message>,
    lanes: BTreeMap<SessionId, Vec<Lane>>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    ids: Vec<TaskId>,
    oracle: Oracle,
    watch: waits::Watch,
    /// When nothing is left of the last fault.
    settled_ms: u64,
    fault: Option<Fault>,
    config: SchedulerConfig,
    routing: Routing,
    limits: LimitsConfig,
    max_tasks: u64,
    max_tombstones: usize,
    pub(in crate::simulation) steps: u64,
    /// The last events, if they are logged.
    log: Option<VecDeque<String>>,
    trace: DefaultHasher,
}

fn config(random: &mut Random) -> SchedulerConfig {
    let swift = random.chance(700);
    SchedulerConfig {
        lease_ms: if swift { 4_000 } else { 20_000 },
        suspect_after_ms: if swift { 1_200 } else { 3_000 },
        poll_ms: if swift { 400 } else { 1_000 },
        accept_timeout_ms: if swift { 600 } else { 1_000 },
        closed_grace_ms: if swift { 700 } else { 1_500 },
        no_node_wait_ms: if swift { 5_000 } else { 30_000 },
        crash_limit: 3,
        wait_limit_ms: *random.pick(&[0, 0, 6_000]),
        run_limit_ms: *random.pick(&[0, 0, 2_500]),
        ageing_ms: *random.pick(&[0, 700]),
        set_aside_after: *random.pick(&[0, 2, 4]),
        probe_after_ms: 400,
        result_retention_s: random.between(3, 30),
        dead_retention_s: random.between(10, 60),
        tombstone_retention_s: random.between(5, 60),
        max_outstanding_per_peer: if random.chance(200) { 4 } else { 64 },
        warm_first_ms: *random.pick(&[0, 300, 2_000]),
    }
}

const RETRY: RetryPolicy = RetryPolicy { failure_limit: 2, base_ms: 200, cap_ms: 2_000 };

fn limits(random: &mut Random) -> LimitsConfig {
    LimitsConfig {
        max_pixels: 100,
        // A picture has three bytes.
        max_spool_bytes: *random.pick(&[60, 1 << 20]),
        min_free_bytes: *random.pick(&[0, 0, 0, 100]),
        max_client_tasks: *random.pick(&[6, 100]),
        max_client_bytes: *random.pick(&[30, 1 << 20]),
        max_owner_tasks: *random.pick(&[8, 200, 200, 200]),
        max_owner_bytes: *random.pick(&[40, 1 << 20, 1 << 20, 1 << 20]),
        max_remote_priority: *random.pick(&[0, 5]),
    }
}

impl World {
    pub(in crate::simulation) fn new(seed: u64, fault: Option<Fault>, log: bool) -> Self {
        let mut random = Random::new(seed);
        // Some episodes lose no message: there the nodes' own view must agree with the core's.
        let rough = if random.chance(200) { [0; 4] } else { [0, 3, 10, 40] };
        let rates = FaultRates {
            lost: *random.pick(&rough),
            repeated: *random.pick(&rough),
            late: *random.pick(&rough),
            commit_fails: *random.pick(&[0, 0, 20, 100]),
            commit_ms: *random.pick(&[1, 5, 40]),
            fault_every_ms: *random.pick(&[150, 400, 1_500]),
            long: *random.pick(&[100, 100, 600]),
            rest_ms: *random.pick(&[260, 260, 1_000]),
        };
        let config = config(&mut random);
        let limits = limits(&mut random);
        let routing = Routing::new(&mut random);
        let max_tasks = *random.pick(&[4, 12, 40]);
        let max_tombstones = *random.pick(&[6, 1_000, 1_000]);
        let nodes =
            (0..random.between(1, 5) as usize).map(|i| node(i, &routing, &mut random)).collect::<Vec<_>>();
        let clients =
            (0..random.between(1, 4) as usize).map(|i| Client::new(i, routing.is_strict)).collect::<Vec<_>>();
        let mut net = Network::new(random, rates);
        for node in &nodes {
            let ms = net.random.between(0, 3_000);
            let timer = crate::simulation::network::NodeTimer::Hello;
            net.after(ms, Event::NodeTimer { node: node.index(), life: 0, timer });
        }
        for client in 0..clients.len() {
            net.after(1, Event::ClientTurn { client });
        }
        net.after(500, Event::InjectFault);
        net.after(0, Event::SchedulerStart);
        let oracle = Oracle::new(&config, &limits, &routing, CLOCK_GRACE_MS);
        Self {
            net,
            core: None,
            disk: Disk::default(),
            pending: VecDeque::new(),
            group: None,
            failing: false,
            unread: VecDeque::new(),
            lanes: BTreeMap::new(),
            nodes,
            clients,
            ids: Vec::new(),
            oracle,
            watch: waits::Watch::default(),
            settled_ms: u64::MAX,
            fault,
            config,
            routing,
            limits,
            max_tasks,
            max_tombstones,
            steps: 0,
            log: log.then(VecDeque::new),
            trace: DefaultHasher::new(),
        }
    }

    /// The last events, oldest first.
    pub(in crate::simulation) fn last_events(&self) -> impl Iterator<Item = &String> {
        self.log.iter().flatten()
    }

    /// A hash over every event so far; only where the log is kept.
    pub(in crate::simulation) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// How often each event happened.
    pub(in crate::simulation) fn tally(&self) -> &BTreeMap<String, u64> {
        &self.oracle.tally
    }

    /// Steps with faults, then steps without, in which every task must end.
    pub(in crate::simulation) fn run(&mut self) -> Result<(), Violation> {
        while self.steps < FAULTY_STEPS {
            self.step()?;
        }
        self.stop_faults();
        let limit = self.time_limit_ms();
        let until = self.net.now.mono_ms + limit;
        while !self.is_over() {
            if self.net.now.mono_ms > until {
                return Err(Violation { kind: Kind::Stuck, what: self.what_is_left(limit) });
            }
            self.step()?;
        }
        Ok(())
    }

    /// Generous, but bounded: every lease, every repetition and every wait once more, one after the other.
    fn time_limit_ms(&self) -> u64 {
        let c = &self.config;
        let rounds = u64::from(c.crash_limit + RETRY.failure_limit);
        let rest_ms = 32 * c.probe_after_ms;
        let frozen_ms = 2 * c.lease_ms;
        frozen_ms
            + rounds * (c.lease_ms + RETRY.cap_ms + rest_ms + c.accept_timeout_ms)
            + c.no_node_wait_ms
            + 30_000
    }

    fn stop_faults(&mut self) {
        self.note(|| "--- no more faults ---".into());
        self.net.faults_off = true;
        // Frozen nodes continue when they would have; messages that reach them meanwhile wait until then.
        let thawed_ms = self.nodes.iter().map(|n| n.frozen_until_ms).max().unwrap_or(0);
        // Three requests without an answer, and the next hello.
        self.settled_ms = self.net.now.mono_ms.max(thawed_ms) + 3_500;
        self.watch = waits::Watch::default();
        for conn in std::mem::take(&mut self.net.half_open) {
            self.net.after(0, Event::Break { conn });
        }
        self.clients.iter_mut().for_each(Client::give_up_open_requests);
    }

    fn is_over(&self) -> bool {
        let Some(core) = self.core.as_ref().map(Core::view) else { return false };
        core.tasks().next().is_none()
            && self.clients.iter().all(|c| c.waits().is_none())
            && core.sessions().len() == self.nodes.len()
            && core.sessions().all(|s| s.idle_slots() == u64::from(s.slots()) && s.running() == 0)
    }

    fn what_is_left(&self, limit: u64) -> String {
        let Some(core) = self.core.as_ref().map(Core::view) else {
            return format!("no scheduler after {limit} ms");
        };
        let tasks = core.tasks().map(|t| (t.id(), t.state(), t.node(), t.is_accepted())).collect::<Vec<_>>();
        let waits = self.clients.iter().filter_map(Client::waits).collect::<Vec<_>>();
        let sessions = core
            .sessions()
            .map(|s| {
                let (name, slots, overlap) = (&s.info().name, s.slots(), s.overlap());
                format!("{name}: {} credits used of {slots} + {overlap} slots", s.used())
            })
            .collect::<Vec<_>>();
        format!(
            "after {limit} ms without faults: tasks {tasks:?}, clients wait for {waits:?}, sessions {sessions:?}"
        )
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let text = format!("{:>8} ms  {}", self.net.now.mono_ms, text());
            self.trace.write(text.as_bytes());
            if log.len() == REMEMBERED {
                log.pop_front();
            }
            log.push_back(text);
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        let event = self.net.pop().expect("ticks never end");
        if let Some(node) = self.frozen(&event) {
            let until = self.nodes[node].frozen_until_ms;
            let ms = until - self.net.now.mono_ms;
            self.net.after(ms, event);
            return Ok(());
        }
        if self.log.is_some() && !matches!(event, Event::Core { .. } | Event::Tick { .. }) {
            let text = format!("{event:?}");
            self.note(|| text);
        }
        match event {
            Event::Core { epoch, message } if epoch == self.net.epoch => return self.deliver(message),
            Event::Tick { epoch } if epoch == self.net.epoch && self.core.is_some() => {
                self.net.after(TICK_MS, Event::Tick { epoch });
                self.take_back_orders()?;
                return self.deliver(Message::Tick);
            }
            Event::Commit { epoch } if epoch == self.net.epoch => return self.commit(),
            Event::Core { .. } | Event::Tick { .. } | Event::Commit { .. } => {}
            Event::Client { client, conn, reply } => {
                if self.clients[client].conn == Some(conn) {
                    self.clients[client].on_reply(&reply);
                }
            }
            Event::NodeControl { node, life, request, reply } => {
                if self.nodes[node].life == life && self.nodes[node].alive {
                    self.nodes[node].on_control(&mut self.net, request, reply);
                    self.check_pace(node)?;
                    for note in std::mem::take(&mut self.nodes[node].notes) {
                        self.oracle.note(note);
                    }
                }
            }
            Event::NodeResult { node, conn, reply } => {
                if self.nodes[node].link == Some(conn) {
                    self.nodes[node].on_result(&mut self.net, reply);
                }
            }
            Event::NodeLane { node, session, message } => {
                if self.nodes[node].session == Some(session) {
                    self.nodes[node].on_lane(&mut self.net, message);
                    self.check_room(node)?;
                }
            }
            Event::LaneConnect { node, session, index } => self.connect_lane(node, session, index),
            Event::NodeTimer { node, life, timer } => {
                if self.nodes[node].life == life {
                    self.nodes[node].on_timer(&mut self.net, timer);
                }
            }
            Event::ClientTurn { client } => self.clients[client].turn(&mut self.net, &self.ids),
            Event::Closed { conn } => self.far_end_closed(conn),
            Event::Break { conn } => self.break_connection(conn),
            Event::InjectFault => self.fault_injection(),
            Event::SetClock { ms } => self.net.set_clock(ms),
            Event::SchedulerStart => return self.start_scheduler(),
        }
        Ok(())
    }

    /// The frozen node that an event would reach.
    fn frozen(&self, event: &Event) -> Option<usize> {
        let node = match event {
            Event::NodeControl { node, .. }
            | Event::NodeResult { node, .. }
            | Event::NodeLane { node, .. }
            | Event::LaneConnect { node, .. }
            | Event::NodeTimer { node, .. } => *node,
            Event::Closed { conn } => match self.net.dialler(*conn) {
                Dialler::Link(node) => node,
                _ => return None,
            },
            _ => return None,
        };
        (self.nodes[node].frozen_until_ms > self.net.now.mono_ms).then_some(node)
    }

    /// A node that is told something new at every poll polls without a pause: that must come to an end.
    fn check_pace(&self, node: usize) -> Result<(), Violation> {
        let polls = self.nodes[node].hurried_polls;
        if polls > 50 {
            let what = format!("{} was driven through {polls} polls in a row", self.nodes[node].name);
            return Err(Violation { kind: Kind::Stuck, what });
        }
        Ok(())
    }

    /// A node never holds more than it said it can.
    fn check_room(&self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].is_overfull() {
            let what = format!("{} was given more than it can hold", self.nodes[node].name);
            return Err(Violation { kind: Kind::Structure, what });
        }
        Ok(())
    }

    fn connect_lane(&mut self, node: usize, session: SessionId, index: usize) {
        if self.nodes[node].session != Some(session) {
            return;
        }
        let Some(lane) = self.lanes.get_mut(&session).and_then(|lanes| lanes.get_mut(index)) else { return };
        let conn = self.net.dial(Dialler::Lane);
        lane.conn = Some((node, self.nodes[node].life, conn));
        self.net
            .after(1, Event::Core { epoch: self.net.epoch, message: Message::LaneConnected(session, index) });
    }
}

fn node(index: usize, routing: &Routing, random: &mut Random) -> Node {
    let all = [("gpu", "lama"), ("gpu", "manga"), ("cpu", "cv2"), ("cpu", "lama")];
    let routed = random.chance(600);
    let offer = |queue: &str, model: &str, loaded| ModelOffer {
        queue: queue.parse().expect("a plain name"),
        model: model.parse().expect("a plain name"),
        loaded,
        present: true,
        routed,
        memory_bytes: 0,
        pinned: false,
    };
    let chosen = all.iter().filter(|_| random.chance(600));
    let mut offers: Vec<_> = chosen.map(|(queue, model)| offer(queue, model, false)).collect();
    if routed {
        // Only nodes that name queues offer a model twice.
        offers.dedup_by_key(|offer| offer.model.clone());
        let first = offers.first().map(|offer| offer.model.clone());
        let mut at = 0;
        offers.retain(|offer| {
            at += 1;
            at == 1 || Some(&offer.model) != first.as_ref()
        });
    }
    if offers.is_empty() {
        offers.push(offer("gpu", "lama", true));
    }
    let (device, memory_bytes) = Routing::device(random);
    if routing.is_strict && !routed {
        // A node without any queue would be refused for ever.
        offers.push(offer(if device == "cpu" { "cpu" } else { "gpu" }, "lama", false));
    }
    if !routed && random.chance(50) {
        offers.push(offer("unknown-queue", "lama", false));
    }
    let overlap = random.between(0, 2) as u16;
    let frees_early = overlap > 0 || random.chance(300);
    let capacity = Capacity { slots: random.between(1, 3) as u16, overlap, frees_early };
    let device = Device { device, memory_bytes, holds_one: random.chance(500), routing: routing.clone() };
    Node::new(index, offers, capacity, device)
}
