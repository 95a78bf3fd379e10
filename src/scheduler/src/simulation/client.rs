//! A simulated client: it submits, follows, cancels, asks for tasks of others, vanishes and comes back.

use bytes::Bytes;

use lamagrid_domain::{
    BlobForm, BlobMeta, Durability, FailureKind, Hash, ModelName, Owner, QueueName, Role, TaskId, TaskSpec,
};
use lamagrid_protocol::message::{
    Attach, Cancel, ClientReply, ClientRequest, GetGridStatus, Offer, Ping, Query, Release, Submit,
};

use super::network::{Conn, Dialler, Event, Message, Network};
use super::routing::Routing;

/// How far a task is, as this client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not acknowledged yet.
    Wanted,
    /// Acknowledged, its outcome is not known.
    Accepted,
    /// Ended, expired or refused for good.
    Done,
}

struct Mine {
    spec: TaskSpec,
    phase: Phase,
    asked_ms: u64,
    /// Of its last submission.
    seq: u64,
}

pub(super) struct Client {
    index: usize,
    owner: Owner,
    pub(super) conn: Option<Conn>,
    /// Away until then.
    away_until_ms: u64,
    mine: Vec<Mine>,
    seq: u64,
    /// It asks for a model or queue that no node serves this often, per thousand.
    strange: u64,
    /// How often it lets the scheduler choose the queue, per thousand.
    routed: u64,
    /// How often it names the queue of the largest nodes, per thousand.
    big: u64,
}

const MODELS: [(&str, &str); 4] = [("gpu", "lama"), ("gpu", "manga"), ("cpu", "cv2"), ("cpu", "lama")];
/// Ids that are remembered to be asked about again.
const MAX_MINE: usize = 48;

impl Client {
    pub(super) fn new(index: usize, is_strict: bool) -> Self {
        let (routed, big) = if is_strict { (700, 200) } else { (300, 0) };
        let owner = format!("owner-{}", index % 3).parse().expect("a plain name");
        Self {
            index,
            owner,
            conn: None,
            away_until_ms: 0,
            mine: Vec::new(),
            seq: 0,
            strange: 30,
            routed,
            big,
        }
    }

    pub(super) fn waits(&self) -> Option<TaskId> {
        self.mine.iter().find(|m| m.phase != Phase::Done).map(|m| m.spec.id)
    }

    pub(super) fn vanish(&mut self, net: &mut Network, ms: u64) {
        self.close(net);
        self.away_until_ms = net.now.mono_ms + ms;
    }

    fn close(&mut self, net: &mut Network) {
        if let Some(conn) = self.conn.take() {
            let peer = net.peer(conn);
            net.send(conn, Message::ClientGone(peer));
        }
    }

    fn say(&mut self, net: &mut Network, request: impl Into<ClientRequest>, inline: Vec<Bytes>) {
        if self.conn.is_none() {
            self.conn = Some(net.dial(Dialler::Client(self.index)));
        }
        let Some(conn) = self.conn else { return };
        let peer = net.peer(conn);
        net.send(conn, Message::Client(peer, request.into(), inline));
    }

    /// Peers number their requests as they like.
    fn next_seq(&mut self, net: &mut Network) -> u64 {
        self.seq += u64::from(!net.random.chance(20));
        self.seq
    }

    /// One turn, with or without faults.
    pub(super) fn turn(&mut self, net: &mut Network, ids: &[TaskId]) {
        let ms = if net.faults_off {
            net.random.between(80, 160)
        } else {
            net.random.between(10, net.rates.rest_ms)
        };
        net.after(ms, Event::ClientTurn { client: self.index });
        if net.now.mono_ms < self.away_until_ms {
            return;
        }
        if self.conn.is_none() {
            let seq = self.next_seq(net);
            self.say(net, Ping { seq }, Vec::new());
            for at in 0..self.mine.len() {
                if self.mine[at].phase == Phase::Accepted {
                    self.attach(net, at);
                }
            }
        }
        if net.faults_off { self.ask_for_the_rest(net) } else { self.act(net, ids) }
    }

    /// Submits nothing new, and gives up submissions that were never acknowledged.
    pub(super) fn give_up_open_requests(&mut self) {
        self.away_until_ms = 0;
        self.mine.retain(|m| m.phase == Phase::Accepted);
    }

    fn ask_for_the_rest(&mut self, net: &mut Network) {
        for at in 0..self.mine.len() {
            let mine = &self.mine[at];
            if mine.phase != Phase::Done && net.now.mono_ms >= mine.asked_ms + 2_000 {
                self.attach(net, at);
            }
        }
    }

    fn act(&mut self, net: &mut Network, ids: &[TaskId]) {
        let weights = [330, 80, 60, 50, 60, 20, 40, 20, 30, 30, 10, 20, 15, 3, 15, 15];
        let own = (!self.mine.is_empty()).then(|| net.random.below(self.mine.len().max(1) as u64) as usize);
        let (seq, owner) = (self.next_seq(net), self.owner.clone());
        match (net.random.weighted(&weights), own) {
            (0, _) => {
                let at = self.invent(net);
                self.submit(net, at);
            }
            (1, Some(at)) => self.submit(net, at),
            (2, Some(at)) => self.attach(net, at),
            (3, Some(at)) => self.say(net, Query { seq, id: self.mine[at].spec.id, owner }, Vec::new()),
            (4, Some(at)) => self.say(net, Cancel { seq, id: self.mine[at].spec.id, owner }, Vec::new()),
            (5, _) => {
                // The cancel overtakes its submit.
                let at = self.invent(net);
                self.say(net, Cancel { seq, id: self.mine[at].spec.id, owner }, Vec::new());
                self.submit(net, at);
            }
            (6, Some(at)) if self.mine[at].phase == Phase::Done => {
                self.say(net, Release { id: self.mine[at].spec.id, owner }, Vec::new());
            }
            (7, Some(at)) => {
                // The same id for something else.
                let mut spec = self.mine[at].spec.clone();
                spec.blobs[0].hash = Hash::new([9; 32]);
                self.say(net, Submit { seq, spec, inline: Vec::new(), follow: true }, Vec::new());
            }
            (8, _) if !ids.is_empty() => self.pry(net, *net.random.clone().pick(ids)),
            (9, Some(at)) => {
                let (spec, bytes) = (self.mine[at].spec.clone(), self.mine[at].spec.input_bytes());
                self.offer(net, spec, bytes);
            }
            (14, _) => {
                // Announced and, perhaps, never submitted.
                let at = self.invent(net);
                let (spec, bytes) = (self.mine[at].spec.clone(), net.random.between(1, 40));
                self.offer(net, spec, bytes);
            }
            (15, _) => {
                // An id that nothing is known of, and that is never used.
                let id = self.draw(net);
                self.say(net, Cancel { seq, id, owner }, Vec::new());
            }
            (10, _) => self.say(net, GetGridStatus { seq, after: None }, Vec::new()),
            (11, _) => self.close(net),
            (13, _) => {
                let ms = net.random.between(500, 20_000);
                self.vanish(net, ms);
            }
            _ => self.say(net, Ping { seq }, Vec::new()),
        }
    }

    /// Asks for a task that may be of another owner.
    fn pry(&mut self, net: &mut Network, id: TaskId) {
        let (seq, owner) = (self.next_seq(net), self.owner.clone());
        match net.random.below(5) {
            4 => {
                let at = self.invent(net);
                let spec = TaskSpec { id, ..self.mine[at].spec.clone() };
                self.offer(net, spec, 9);
            }
            0 => self.say(net, Query { seq, id, owner }, Vec::new()),
            1 => self.say(net, Attach { seq, id, owner, digest: None }, Vec::new()),
            2 => self.say(net, Cancel { seq, id, owner }, Vec::new()),
            _ => self.say(net, Release { id, owner }, Vec::new()),
        }
    }

    fn offer(&mut self, net: &mut Network, spec: TaskSpec, bytes: u64) {
        let digest = lamagrid_protocol::payload_digest(&spec);
        let TaskSpec { id, owner, queue, priority, client, routed, model, picture, .. } = spec;
        let seq = self.next_seq(net);
        self.say(
            net,
            Offer {
                seq,
                id,
                owner,
                queue,
                digest,
                bytes,
                priority,
                client,
                routed,
                model: Some(model),
                picture,
            },
            Vec::new(),
        );
    }

    /// Clocks of clients differ a little, now and then by more.
    fn draw(&mut self, net: &mut Network) -> TaskId {
        let late_ms = if net.random.chance(50) { net.random.below(20_000) } else { 0 };
        TaskId::drawn_at(net.now.wall_ms - late_ms, net.random.bytes())
    }

    fn invent(&mut self, net: &mut Network) -> usize {
        let (mut queue, mut model) = *net.random.pick(&MODELS);
        if net.random.chance(self.strange) {
            (queue, model) = *net.random.pick(&[("gpu", "nobody-has-this"), ("no-queue", "lama")]);
        } else if net.random.chance(self.big) {
            (queue, model) = ("big", "lama");
        }
        let queue: QueueName = queue.parse().expect("a plain name");
        let model: ModelName = model.parse().expect("a plain name");
        let form = BlobForm::Raw { height: 1, width: 1, channels: 3 };
        let image = BlobMeta { role: Role::Image, len: 3, hash: Hash::new([1; 32]), form };
        let deadline = net.random.chance(80).then(|| net.now.wall_ms + net.random.between(0, 5_000));
        let id = self.draw(net);
        let (picture, params) = Routing::picture(&mut net.random);
        let spec = TaskSpec {
            id,
            owner: self.owner.clone(),
            client: (net.random.chance(300))
                .then(|| format!("name-{}", net.random.below(1_000)).parse().expect("a plain name")),
            model,
            queue,
            params,
            priority: [0, 0, 0, -5, 5][net.random.below(5) as usize],
            durability: if net.random.chance(500) { Durability::Full } else { Durability::Process },
            deadline_wall_ms: deadline,
            wait_limit_ms: net.random.chance(50).then(|| net.random.between(1, 4_000)),
            no_node_wait_ms: net.random.chance(50).then(|| net.random.between(1, 9_000)),
            run_limit_ms: net.random.chance(50).then(|| net.random.between(1, 1_500)),
            replay_of: None,
            output: lamagrid_domain::OutputForm::Raw,
            blobs: vec![image],
            routed: net.random.chance(self.routed),
            picture,
        };
        let mine = Mine { spec, phase: Phase::Wanted, asked_ms: net.now.mono_ms, seq: 0 };
        if self.mine.len() < MAX_MINE {
            self.mine.push(mine);
            return self.mine.len() - 1;
        }
        // Finished tasks are forgotten first; without any, an open one is abandoned.
        let at = self.mine.iter().position(|m| m.phase == Phase::Done);
        let at = at.unwrap_or_else(|| net.random.below(MAX_MINE as u64) as usize);
        self.mine[at] = mine;
        at
    }

    fn submit(&mut self, net: &mut Network, at: usize) {
        self.mine[at].asked_ms = net.now.mono_ms;
        let (seq, spec) = (self.next_seq(net), self.mine[at].spec.clone());
        self.mine[at].seq = seq;
        let inline = net.random.chance(500);
        let (roles, blobs) = if inline {
            (vec![Role::Image], vec![Bytes::from_static(b"rgb")])
        } else {
            (Vec::new(), Vec::new())
        };
        let follow = net.faults_off || net.random.chance(800);
        self.say(net, Submit { seq, spec, inline: roles, follow }, blobs);
    }

    fn attach(&mut self, net: &mut Network, at: usize) {
        self.mine[at].asked_ms = net.now.mono_ms;
        let (seq, id, owner) = (self.next_seq(net), self.mine[at].spec.id, self.owner.clone());
        let digest = net.random.chance(500).then(|| lamagrid_protocol::payload_digest(&self.mine[at].spec));
        self.say(net, Attach { seq, id, owner, digest }, Vec::new());
    }

    pub(super) fn on_reply(&mut self, reply: &ClientReply) {
        let (id, phase) = match reply {
            ClientReply::Accepted(accepted) => (accepted.id, Phase::Accepted),
            ClientReply::Outcome(outcome) => (outcome.task.id, Phase::Done),
            ClientReply::TaskStatus(told) if told.task.status.is_terminal() => (told.task.id, Phase::Done),
            ClientReply::TaskStatus(told) => (told.task.id, Phase::Accepted),
            // Past retention, and perhaps past the tombstone's: the oracle judges whether that is true.
            ClientReply::Unknown(unknown) => (unknown.id, Phase::Done),
            ClientReply::Refused(refused) if refused.failure.kind == FailureKind::InvalidInput => {
                // A queue that does not exist, or an id that is too old; the id is not in the answer.
                self.mine.iter_mut().filter(|m| m.seq == refused.seq).for_each(|m| m.phase = Phase::Done);
                return;
            }
            _ => return,
        };
        for mine in self.mine.iter_mut().filter(|m| m.spec.id == id && m.phase != Phase::Done) {
            mine.phase = phase;
        }
    }
}
