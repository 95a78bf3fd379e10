//! A core whose effects are checked as lines, and the inputs of scenarios.

use std::collections::BTreeMap;

use bytes::Bytes;

use lamagrid_config::{LimitsConfig, RetryConfig, RetryPolicy, SchedulerConfig};
use lamagrid_domain::{
    BlobForm, BlobMeta, BootId, Counters, Durability, Failure, FailureKind, Hash, LeaseToken, ModelName,
    ModelOffer, NodeInfo, NodeKind, Owner, Params, QueueName, Role, SessionId, Stages, Status, TaskId,
    TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    Accept, Action, ActionKind, Attach, AttemptOutcome, Cancel, ClientRequest, ControlRequest, Delivery,
    Goodbye, Heartbeat, Hello, NodeEvent, Poll, Query, Ready, RefusedCommand, Release, ResultRequest, Submit,
};
use lamagrid_transport::Endpoints;

use super::lines::line;
use crate::core::state::task::{NewTask, Task};
use crate::core::{
    Authority, Core, Effect, FinishedTask, Input, NodeId, Now, Order, Origin, Pause, Recovered, RouteTable,
    Settings, StoredTask,
};

/// The wall clock at the start, in milliseconds.
pub(super) const WALL_MS: u64 = 1_000_000;

/// A core under test.
pub(super) struct Grid {
    pub(super) core: Core,
    now: Now,
}

const RETRY: RetryPolicy = RetryPolicy { failure_limit: 2, base_ms: 500, cap_ms: 10_000 };

pub(in crate::core) fn config() -> SchedulerConfig {
    SchedulerConfig {
        lease_ms: 20_000,
        suspect_after_ms: 3_000,
        poll_ms: 1_000,
        accept_timeout_ms: 1_000,
        closed_grace_ms: 1_500,
        no_node_wait_ms: 30_000,
        crash_limit: 3,
        wait_limit_ms: 0,
        run_limit_ms: 0,
        ageing_ms: 10_000,
        set_aside_after: 3,
        probe_after_ms: 5_000,
        result_retention_s: 60,
        dead_retention_s: 120,
        tombstone_retention_s: 600,
        max_outstanding_per_peer: 8,
        warm_first_ms: 2_000,
    }
}

fn settings() -> Settings {
    Settings {
        scheduler: config(),
        queues: [("gpu", 3), ("cpu", 3)].map(|(q, max)| (q.parse().unwrap(), max)).into(),
        routes: RouteTable::default(),
        retry: RetryConfig { network: RETRY, resource: RETRY, model: RETRY, other: RETRY },
        limits: LimitsConfig {
            max_pixels: 1_000,
            max_spool_bytes: 1 << 20,
            min_free_bytes: 0,
            max_client_tasks: 100,
            max_client_bytes: 1 << 20,
            max_owner_tasks: 100,
            max_owner_bytes: 1 << 30,
            max_remote_priority: 0,
        },
        max_tombstones: 1_000,
        max_ended: 1_000,
        clock_grace_ms: 60_000,
        endpoints: Endpoints::new("/grid"),
        spool: "/spool".into(),
    }
}

impl Grid {
    pub(super) fn new() -> Self {
        Self::recovered(Vec::new())
    }

    /// A scheduler that finds this in its store. The n-th random number that it draws is all n.
    pub(super) fn recovered(tasks: Vec<StoredTask>) -> Self {
        Self::recovered_with(RouteTable::default(), tasks)
    }

    /// The same with configured queues.
    pub(super) fn recovered_with(routes: RouteTable, tasks: Vec<StoredTask>) -> Self {
        let now = Now { mono_ms: 5_000, wall_ms: WALL_MS };
        let mut drawn = 0;
        let entropy = move || {
            drawn += 1;
            [drawn; 16]
        };
        let recovered = Recovered { tasks, wall_ms: Some(WALL_MS), ..Recovered::default() };
        let settings = Settings { routes, ..settings() };
        Self { core: Core::new(settings, Box::new(entropy), now, recovered), now }
    }

    /// A scheduler whose store knows nodes that are to leave, or to stay away.
    pub(super) fn with_node_orders(orders: BTreeMap<NodeId, Order>) -> Self {
        Self::with_orders(Recovered { orders, ..Recovered::default() })
    }

    /// A scheduler whose store knows paused queues.
    pub(super) fn with_paused(paused: BTreeMap<QueueName, Pause>) -> Self {
        Self::with_orders(Recovered { paused, ..Recovered::default() })
    }

    fn with_orders(orders: Recovered) -> Self {
        let mut grid = Self::new();
        let entropy = std::mem::replace(&mut grid.core.entropy, Box::new(|| [0; 16]));
        let recovered = Recovered { wall_ms: Some(WALL_MS), ..orders };
        Self { core: Core::new(settings(), entropy, grid.now, recovered), now: grid.now }
    }

    /// A scheduler that starts at this time on the wall clock, with the ended tasks of another one in its store.
    pub(super) fn started_at(wall_ms: u64, before: Self) -> Self {
        let stored = |(id, ended)| StoredTask::Ended { id, ended: Box::new(ended) };
        let finished = before.core.retention.iter().map(|(id, finished)| (*id, finished.clone()));
        let tasks = finished.map(stored).collect();
        let now = Now { mono_ms: 0, wall_ms };
        let recovered = Recovered { tasks, wall_ms: Some(before.now.wall_ms), ..Recovered::default() };
        Self { core: Core::new(settings(), Box::new(|| [7; 16]), now, recovered), now }
    }

    /// The one check: this input has exactly these effects, in this order.
    #[track_caller]
    pub(super) fn check(&mut self, input: Input, effects: &[&str]) {
        let all = self.core.handle(self.now, input);
        // Nothing is sent or written by the end of an upload.
        let shown = all.iter().filter(|effect| !matches!(effect, Effect::CloseUpload { .. }));
        let got: Vec<_> = shown.map(line).collect();
        assert_eq!(got, effects);
        self.core.check().unwrap();
        self.core.check_waits().unwrap();
    }

    /// A list of inputs, each with its effects.
    #[track_caller]
    pub(super) fn check_all<'a>(&mut self, table: impl IntoIterator<Item = (Input, &'a [&'a str])>) {
        for (input, effects) in table {
            self.check(input, effects);
        }
    }

    /// Lets `ms` pass in steps that the lease clock follows, without an input.
    pub(super) fn pass(&mut self, ms: u64) {
        let mut left = ms;
        while left > 0 {
            let step = left.min(500);
            self.now.mono_ms += step;
            self.now.wall_ms += step;
            left -= step;
            if left > 0 {
                // Moves the clock and nothing else.
                let effects = self.core.handle(self.now, ping("clock"));
                assert_eq!(effects.len(), 1);
            }
        }
    }

    /// Lets time pass on both clocks, without a step between.
    pub(super) fn jump(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
    }

    /// Sets the wall clock.
    pub(super) fn set_wall(&mut self, wall_ms: u64) {
        self.now.wall_ms = wall_ms;
    }

    /// Registers a ready node of one model of `gpu`, whose session is the next number that is drawn.
    #[track_caller]
    pub(super) fn join(&mut self, name: &str, model: &str, session: u8, slots: u16) {
        self.join_with_overlap(name, model, session, (slots, 0), &[]);
    }

    /// The same with `(slots, overlap)`; its first credit has these effects.
    #[track_caller]
    pub(super) fn join_with_overlap(
        &mut self,
        name: &str,
        model: &str,
        session: u8,
        (slots, overlap): (u16, u16),
        effects: &[&str],
    ) {
        let welcome = format!("{name}: welcome #{session} lanes [gpu] abandoned []");
        let info = info(name, 1, &[("gpu", model)]);
        self.check(hello_with_overlap(info, (slots, overlap), &[], &[]), &[&welcome]);
        self.check(lane_connected(session), &[]);
        self.check(ready(name, session, u64::from(slots + overlap)), effects);
    }

    /// One input with the effects as they are.
    pub(super) fn handle(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.core.handle(self.now, input);
        self.core.check().unwrap();
        self.core.check_waits().unwrap();
        effects
    }

    /// Inputs whose effects are checked elsewhere.
    pub(super) fn pass_in(&mut self, inputs: impl IntoIterator<Item = Input>) {
        for input in inputs {
            self.handle(input);
        }
    }
}

pub(super) fn id(n: u8) -> TaskId {
    TaskId::drawn_at(WALL_MS, [n; 16])
}

pub(super) fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes([n; 16])
}

/// A finished task whose result has four bytes.
pub(in crate::core) fn finished(owner: Owner) -> FinishedTask {
    let result = BlobMeta { role: Role::Result, len: 4, hash: Hash::new([1; 32]), form: BlobForm::Encoded };
    FinishedTask {
        owner,
        digest: Hash::new([0; 32]),
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        status: Status::Completed,
        failure: None,
        token: Some(token(1)),
        result: Some(result),
        inline: true,
        counters: Counters::default(),
        stages: Stages::default(),
        node: None,
        created_wall_ms: WALL_MS,
        finished_wall_ms: WALL_MS,
        client: None,
        priority: 0,
        replay_of: None,
        dead: None,
        history: Vec::new(),
        expiry_wall_ms: 0,
    }
}

fn session(n: u8) -> SessionId {
    SessionId::from_bytes([n; 16])
}

pub(super) fn peer(name: &str) -> PeerId {
    PeerId::from_text(name)
}

pub(super) fn owner() -> Owner {
    "alice".parse().unwrap()
}

pub(in crate::core) fn spec(n: u8) -> TaskSpec {
    let image = BlobMeta { role: Role::Image, len: 9, hash: Hash::new([n; 32]), form: BlobForm::Encoded };
    TaskSpec {
        id: id(n),
        owner: owner(),
        client: None,
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        params: Params::default(),
        priority: 0,
        durability: Durability::Full,
        deadline_wall_ms: None,
        wait_limit_ms: None,
        run_limit_ms: None,
        replay_of: None,
        output: lamagrid_domain::OutputForm::Raw,
        blobs: vec![image],
        routed: false,
        picture: None,
        no_node_wait_ms: None,
    }
}

/// The same as a task that was just accepted.
pub(in crate::core) fn task(spec: TaskSpec) -> Task {
    let digest = lamagrid_protocol::payload_digest(&spec);
    Task::new(NewTask { spec, digest, seq: 0, created_wall_ms: WALL_MS, inline: Vec::new() })
}

pub(super) fn client(name: &str, request: impl Into<ClientRequest>) -> Input {
    let authority = Authority::Administrator;
    Input::Client { peer: peer(name), request: request.into(), inline: Vec::new(), authority }
}

/// The same from another host, by a certificate of the role client.
pub(super) fn remote(name: &str, request: impl Into<ClientRequest>) -> Input {
    let authority = Authority::Client;
    Input::Client { peer: peer(name), request: request.into(), inline: Vec::new(), authority }
}

pub(super) fn ping(name: &str) -> Input {
    client(name, lamagrid_protocol::message::Ping { seq: 0 })
}

pub(super) fn submit(n: u8) -> Input {
    submit_spec(spec(n))
}

pub(super) fn submit_spec(spec: TaskSpec) -> Input {
    client("c", Submit { seq: 1, spec, inline: Vec::new(), follow: true })
}

pub(super) fn attach(n: u8) -> Input {
    client("c", Attach { seq: 2, id: id(n), owner: owner(), digest: None })
}

pub(super) fn query(n: u8) -> Input {
    client("c", Query { seq: 3, id: id(n), owner: owner() })
}

pub(super) fn cancel(n: u8) -> Input {
    client("c", Cancel { seq: 4, id: id(n), owner: owner() })
}

pub(super) fn release(n: u8) -> Input {
    client("c", Release { id: id(n), owner: owner() })
}

pub(in crate::core) fn info(name: &str, pid: u32, models: &[(&str, &str)]) -> NodeInfo {
    let offer = |(queue, model): &(&str, &str)| ModelOffer {
        model: model.parse().unwrap(),
        queue: queue.parse().unwrap(),
        loaded: false,
        present: true,
        routed: false,
        memory_bytes: 0,
        pinned: false,
    };
    NodeInfo {
        name: name.parse().unwrap(),
        kind: NodeKind::Echo,
        version: "0".into(),
        device: "cpu".into(),
        gpu: None,
        memory_bytes: 0,
        cores: 1,
        models: models.iter().map(offer).collect(),
        pid,
        withheld: Vec::new(),
        labels: Vec::new(),
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    }
}

fn control(name: &str, request: impl Into<ControlRequest>) -> Input {
    Input::Control { peer: peer(name), request: request.into(), queues: Vec::new() }
}

pub(super) fn hello_of(info: NodeInfo, slots: u16, running: &[u8], held: &[u8]) -> Input {
    hello_with_overlap(info, (slots, 0), running, held)
}

pub(super) fn hello_with_overlap(
    info: NodeInfo,
    (slots, overlap): (u16, u16),
    running: &[u8],
    held: &[u8],
) -> Input {
    let name = info.name.to_string();
    let tokens = |list: &[u8]| list.iter().copied().map(token).collect();
    let boot = Some(BootId::from_bytes(u128::from(info.pid).to_be_bytes()));
    control(
        &name,
        Hello {
            info,
            slots,
            overlap,
            running: tokens(running),
            held: tokens(held),
            boot,
            actions: Action::BASIC.to_vec(),
        },
    )
}

/// The same hello from a node that executes all commands.
pub(super) fn with_all_actions(hello: Input) -> Input {
    let Input::Control { peer, request: ControlRequest::Hello(hello), queues } = hello else {
        panic!("no hello")
    };
    let actions = [&Action::BASIC[..], &[ActionKind::Undrain, ActionKind::Set]].concat();
    Input::Control { peer, request: Hello { actions, ..hello }.into(), queues }
}

/// As nodes of protocol versions before 1.5 say it.
pub(super) fn hello_without_boot(info: NodeInfo) -> Input {
    let Input::Control { peer, request: ControlRequest::Hello(hello), queues } = hello_of(info, 1, &[], &[])
    else {
        panic!("no hello")
    };
    Input::Control { peer, request: Hello { boot: None, ..hello }.into(), queues }
}

/// The same input, from a connection of this certificate.
pub(super) fn from_certificate(name: &str, input: Input) -> Input {
    let peer = PeerId::from_text(&format!("{name}/{}", "\0".repeat(33)));
    match input {
        Input::Control { request, queues, .. } => Input::Control { peer, request, queues },
        Input::Result { request, inline, .. } => Input::Result { peer, request, inline },
        other => panic!("{other:?} is not message by nodes"),
    }
}

pub(super) fn hello(name: &str, pid: u32, model: &str, slots: u16, running: &[u8], held: &[u8]) -> Input {
    hello_of(info(name, pid, &[("gpu", model)]), slots, running, held)
}

pub(super) fn poll(name: &str, s: u8, running: &[u8], acknowledged: u64) -> Input {
    let running = running.iter().copied().map(token).collect();
    control(name, Poll { session: session(s), running, acknowledged, refused: Vec::new() })
}

/// A poll that acknowledges a command and refuses it.
pub(super) fn poll_refusing(name: &str, s: u8, seq: u64, reason: &str) -> Input {
    let refused = vec![RefusedCommand { seq, reason: reason.to_owned() }];
    control(name, Poll { session: session(s), running: Vec::new(), acknowledged: seq, refused })
}

pub(super) fn goodbye(name: &str, s: u8) -> Input {
    control(name, Goodbye { session: session(s) })
}

pub(super) fn lane_connected(s: u8) -> Input {
    Input::LaneConnected { session: session(s), index: 0 }
}

pub(super) fn heartbeat(s: u8) -> Input {
    Input::Event(NodeEvent::from(Heartbeat { session: session(s), figures: None }))
}

pub(super) fn result(name: &str, request: impl Into<ResultRequest>) -> Input {
    Input::Result { peer: peer(name), request: request.into(), inline: None }
}

pub(super) fn ready(name: &str, s: u8, credit: u64) -> Input {
    result(name, Ready { session: session(s), credit, loaded: Vec::new() })
}

/// Free credit, and which model is in memory.
pub(super) fn ready_with(name: &str, s: u8, credit: u64, loaded: &str) -> Input {
    result(name, Ready { session: session(s), credit, loaded: vec![loaded.parse().unwrap()] })
}

pub(super) fn accept(name: &str, s: u8, t: u8) -> Input {
    result(name, Accept { session: session(s), token: token(t) })
}

fn deliver(name: &str, s: u8, t: u8, credit: u64, outcome: AttemptOutcome, inline: Option<Bytes>) -> Input {
    let delivery =
        Delivery { session: session(s), token: token(t), outcome, credit, loaded: Vec::new(), memory: None };
    Input::Result { peer: peer(name), request: delivery.into(), inline }
}

pub(super) fn done(name: &str, s: u8, t: u8, credit: u64) -> Input {
    let result = BlobMeta { role: Role::Result, len: 4, hash: Hash::new([t; 32]), form: BlobForm::Encoded };
    let outcome = AttemptOutcome::Done { result, inline: true, stages: Stages::default() };
    deliver(name, s, t, credit, outcome, Some(Bytes::from_static(b"made")))
}

pub(super) fn failed(name: &str, s: u8, t: u8, credit: u64, kind: FailureKind) -> Input {
    deliver(name, s, t, credit, AttemptOutcome::Failed { failure: Failure::new(kind, "it broke") }, None)
}

pub(super) fn stopped(name: &str, s: u8, t: u8, credit: u64) -> Input {
    deliver(name, s, t, credit, AttemptOutcome::Cancelled, None)
}

pub(super) fn closed(name: &str) -> Input {
    Input::ResultGone { peer: peer(name), origin: Origin::Local }
}

pub(super) fn with_model(n: u8, model: &str) -> TaskSpec {
    TaskSpec { model: model.parse::<ModelName>().unwrap(), ..spec(n) }
}
