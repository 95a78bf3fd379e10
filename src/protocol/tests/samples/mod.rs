//! Provides one message of every kind, with every field set to a value other than its default.

#![expect(clippy::unwrap_used, reason = "an invalid sample panics at its line")]

use std::collections::BTreeMap;

use bytes::Bytes;

use lamagrid_domain::{
    Activity, BlobForm, BlobMeta, BootId, Counters, Durability, Entry, Failure, FailureKind, Hash,
    LeaseToken, LiveFigures, MemoryUse, Milestone, ModelOffer, NodeInfo, NodeKind, Params, PictureSize, Role,
    Scalar, SessionId, Stages, Status, TaskId, TaskSpec, WithheldModel,
};
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::*;

pub(crate) struct Sample {
    pub(crate) channel: &'static str,
    pub(crate) kind: u16,
    pub(crate) parts: Vec<Bytes>,
    /// Panics if a frame does not decode to this message.
    pub(crate) reads_back: Box<dyn Fn(&Frame)>,
}

impl Sample {
    pub(crate) fn file(&self) -> String {
        format!("{}-{:04x}.bin", self.channel, self.kind)
    }
}

fn sample<M: Message + PartialEq + std::fmt::Debug + 'static>(channel: &'static str, message: M) -> Sample {
    let blobs = vec![Bytes::from_static(b"first"), Bytes::from_static(b"")];
    let frame = message.to_frame(blobs).unwrap();
    let (kind, blobs) = (frame.kind, frame.blobs.clone());
    let reads_back = move |frame: &Frame| {
        assert_eq!(M::from_frame(frame).unwrap(), message);
        assert_eq!(frame.blobs, blobs);
    };
    Sample { channel, kind, parts: frame.into_parts(), reads_back: Box::new(reads_back) }
}

fn id() -> TaskId {
    TaskId::from_bytes(*b"task-0123456789a")
}

fn token() -> LeaseToken {
    LeaseToken::from_bytes(*b"lease-123456789a")
}

fn session() -> SessionId {
    SessionId::from_bytes(*b"session-3456789a")
}

fn failure() -> Failure {
    Failure::new(FailureKind::OutOfMemory, "no room on cuda:0, é")
}

fn blob(role: Role) -> BlobMeta {
    let form = BlobForm::Raw { height: 2, width: 3, channels: 3 };
    BlobMeta { role, len: 18, hash: Hash::new([7; 32]), form }
}

fn spec() -> TaskSpec {
    let params = BTreeMap::from([
        ("hd_strategy".to_owned(), Scalar::Text("Crop".into())),
        ("sd_seed".to_owned(), Scalar::Int(-1)),
        ("sd_strength".to_owned(), Scalar::Float(0.75)),
        ("sd_scale".to_owned(), Scalar::Null),
        ("sd_match_histograms".to_owned(), Scalar::Bool(true)),
    ]);
    let encoded = BlobMeta { form: BlobForm::Encoded, ..blob(Role::Image) };
    TaskSpec {
        id: id(),
        owner: "alice@example".parse().unwrap(),
        client: Some("10.0.0.7".parse().unwrap()),
        model: "sd1.5".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        routed: true,
        params: Params::try_from(params).unwrap(),
        priority: -7,
        durability: Durability::Process,
        deadline_wall_ms: Some(1_700_000_000_123),
        wait_limit_ms: Some(60_000),
        no_node_wait_ms: Some(86_400_000),
        run_limit_ms: Some(120_000),
        replay_of: Some(TaskId::from_bytes([9; 16])),
        output: lamagrid_domain::OutputForm::Encoded {
            format: lamagrid_domain::PictureFormat::Webp,
            quality: 95,
        },
        picture: Some(PictureSize { height: 2, width: 3 }),
        blobs: vec![encoded, blob(Role::Mask), blob(Role::Example)],
    }
}

fn stages() -> Stages {
    Stages {
        queue_ms: 1.0,
        transfer_ms: 2.5,
        decode_ms: 1.25,
        load_ms: 3.0,
        infer_ms: 4.25,
        pixels_ms: 5.0,
        encode_ms: 2.25,
        store_ms: 6.0,
        total_ms: 21.75,
    }
}

fn task() -> TaskInfo {
    TaskInfo {
        id: id(),
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        status: Status::Failed,
        failure: Some(failure()),
        position: Some(3),
        wait_ms: Some(4_500),
        node: Some("host:0".into()),
        counters: Counters { attempts: 3, crashes: 2, failures: 1 },
        stages: stages(),
        created_wall_ms: 1_700_000_000_000,
        finished_wall_ms: Some(1_700_000_000_022),
    }
}

fn node() -> NodeInfo {
    NodeInfo {
        name: "host:0".parse().unwrap(),
        kind: NodeKind::Torch,
        version: "0.1.0".into(),
        device: "cuda:0".into(),
        gpu: Some("H200".into()),
        memory_bytes: 1 << 37,
        cores: 16,
        models: vec![ModelOffer {
            model: "lama".parse().unwrap(),
            queue: "gpu".parse().unwrap(),
            routed: true,
            loaded: true,
            present: true,
            memory_bytes: 1 << 28,
            pinned: true,
        }],
        pid: 4_242,
        withheld: vec![WithheldModel { model: "mine".parse().unwrap(), reason: "no such file".into() }],
        labels: vec!["a100".into()],
        device_id: Some("GPU-1".into()),
        host_memory_bytes: 1 << 38,
        cpu_features: vec!["avx2".into()],
    }
}

fn figures() -> LiveFigures {
    LiveFigures {
        free_memory_bytes: Some(1 << 36),
        model_memory_bytes: 1 << 28,
        resident_bytes: 1 << 30,
        utilisation_percent: Some(87),
        temperature_c: Some(-3),
        load_percent: 120,
    }
}

fn status() -> NodeStatus {
    NodeStatus {
        info: node(),
        running: 1,
        slots: 2,
        state: "ready".into(),
        queues: vec!["gpu".parse().unwrap()],
        figures: Some(figures()),
    }
}

fn change() -> NodeChange {
    NodeChange {
        models: Some(vec!["lama".parse().unwrap()]),
        slots: Some(2),
        threads: Some(4),
        log_level: Some("debug".into()),
        labels: Some(vec!["a100".into()]),
    }
}

/// One sample of every kind of every channel.
pub(crate) fn samples() -> Vec<Sample> {
    [client_requests(), client_replies(), admin(), control(), results(), lane_and_events()]
        .into_iter()
        .flatten()
        .collect()
}

fn client_requests() -> Vec<Sample> {
    let (owner, queue) = (spec().owner, spec().queue);
    let digest = Hash::new([9; 32]);
    let of = |message: ClientRequest| sample("client-request", message);
    vec![
        of(Ping { seq: 1 }.into()),
        of(Offer {
            seq: 2,
            id: id(),
            owner: owner.clone(),
            queue,
            routed: true,
            model: Some(spec().model),
            picture: spec().picture,
            digest,
            bytes: 1 << 33,
            priority: 5,
            client: Some("10.0.0.7".parse().unwrap()),
        }
        .into()),
        of(Submit { seq: 3, spec: spec(), inline: vec![Role::Image, Role::Mask], follow: true }.into()),
        of(Attach { seq: 4, id: id(), owner: owner.clone(), digest: Some(digest) }.into()),
        of(Cancel { seq: 5, id: id(), owner: owner.clone() }.into()),
        of(Query { seq: 6, id: id(), owner: owner.clone() }.into()),
        of(Release { id: id(), owner }.into()),
        of(GetGridStatus { seq: u64::MAX, after: Some(session()) }.into()),
    ]
}

fn client_replies() -> Vec<Sample> {
    let of = |message: ClientReply| sample("client-reply", message);
    let queues = vec![QueueStatus {
        queue: "gpu".parse().unwrap(),
        waiting: 1,
        running: 2,
        max_tasks: 3,
        paused: true,
    }];
    let nodes = vec![status()];
    vec![
        of(ProtocolFault { failure: failure() }.into()),
        of(Pong { seq: 1, spool: "/data/spool".into(), version: "0.1.0".into() }.into()),
        of(UploadGranted { seq: 2 }.into()),
        of(Accepted { seq: 3, id: id(), position: 12 }.into()),
        of(Refused { seq: 4, failure: failure(), queue_len: 1_000, wait_ms: Some(70_000) }.into()),
        of(TaskStatus { seq: 5, task: task() }.into()),
        of(Unknown { seq: 6, id: id(), expired: true }.into()),
        of(Outcome { task: task(), result: Some(blob(Role::Result)) }.into()),
        of(Progress { id: id(), status: Status::Processing, step: 3, of: 50, activity: Activity::Running }
            .into()),
        of(GridStatus { seq: 7, version: "0.1.0".into(), nodes, queues, next: Some(session()) }.into()),
    ]
}

fn admin() -> Vec<Sample> {
    let request = |message: AdminRequest| sample("admin-request", message);
    let reply = |message: AdminReply| sample("admin-reply", message);
    let cursor = Cursor { created_wall_ms: 1_700_000_000_000, id: id() };
    let spec = spec();
    let list = ListTasks {
        states: vec![Status::Queued, Status::Failed],
        dead: true,
        queue: Some(spec.queue.clone()),
        model: Some(spec.model.clone()),
        client: spec.client.clone(),
        owner: Some(spec.owner.clone()),
        after: Some(cursor.clone()),
        limit: 50,
    };
    let line = TaskLine {
        id: id(),
        model: spec.model,
        queue: spec.queue.clone(),
        client: spec.client.clone(),
        status: Status::Failed,
        failure: Some(FailureKind::RanTooLong),
        node: Some("host:0".into()),
        attempts: 3,
        dead: true,
        created_wall_ms: 1_700_000_000_000,
        finished_wall_ms: Some(1_700_000_000_022),
    };
    let node = || "host:0".parse().unwrap();
    let milestones = [
        Milestone::Accepted,
        Milestone::Replays { task: id() },
        Milestone::Assigned { node: node(), spilled_to: None },
        Milestone::Failed { failure: failure(), retry_in_ms: Some(500) },
        Milestone::NodeLost { counts: true, shared: false },
        Milestone::GivenBack,
        Milestone::Ended { status: Status::Failed },
        Milestone::ReplayedAs { task: id() },
        Milestone::Skipped { entries: 7 },
    ];
    let history = milestones.map(|what| Entry { at_wall_ms: 1_700_000_000_001, attempt: 2, what }).to_vec();
    let history = TaskHistory {
        task: task(),
        owner: spec.owner,
        client: spec.client,
        priority: -7,
        input_bytes: 18,
        dead: true,
        replay_of: spec.replay_of,
        history,
    };
    let queue = || spec.queue.clone();
    let detail = NodeDetail {
        node: node(),
        session: Some(status()),
        refused: vec![RefusedQueue { queue: queue(), reason: "it requires a GPU".into() }],
        order: Some(NodeOrder { removed: true, by: "ann".into(), since_wall_ms: 1_700_000_000_000 }),
        change: Some(ChangeState { change: change(), done: true, refusal: Some("one slot only".into()) }),
        tasks: vec![line.clone()],
    };
    let statistics = StatisticsLine {
        queue: queue(),
        model: "lama".parse().unwrap(),
        completed: 5,
        failed: 4,
        cancelled: 3,
        wait_ms: 2_000,
        run_ms: 1_000,
    };
    vec![
        request(list.into()),
        request(GetTaskHistory { id: id() }.into()),
        request(CancelTask { id: id() }.into()),
        request(RetryTask { id: id() }.into()),
        request(PauseQueue { queue: queue(), paused: true, by: None }.into()),
        request(DrainNode { node: node(), by: None }.into()),
        request(Purge { older_than_ms: 60_000, dead: true }.into()),
        request(GetNode { node: node() }.into()),
        request(UndrainNode { node: node(), by: Some("ann".into()) }.into()),
        request(RemoveNode { node: node(), by: Some("ann".into()) }.into()),
        request(SetNode { node: node(), change: change(), by: Some("ann".into()) }.into()),
        request(GetStatistics { skip: 200 }.into()),
        reply(ProtocolFault { failure: failure() }.into()),
        reply(Refused { seq: 0, failure: failure(), queue_len: 1, wait_ms: Some(2) }.into()),
        reply(Unknown { seq: 0, id: id(), expired: true }.into()),
        reply(Page { tasks: vec![line], next: Some(cursor), total: 12, input_bytes: 9_000 }.into()),
        reply(history.into()),
        reply(Retried { id: id(), runs_as: TaskId::from_bytes([8; 16]) }.into()),
        reply(Paused { queue: queue(), paused: true, waiting: 4 }.into()),
        reply(Draining { node: node(), running: 2 }.into()),
        reply(Purged { tasks: 3, bytes: 4_096 }.into()),
        reply(detail.into()),
        reply(Statistics { lines: vec![statistics], more: true }.into()),
    ]
}

fn control() -> Vec<Sample> {
    let request = |message: ControlRequest| sample("control-request", message);
    let reply = |message: ControlReply| sample("control-reply", message);
    let refused = vec![RefusedCommand { seq: 2, reason: "it has ended".into() }];
    let welcome = Welcome {
        session: session(),
        lanes: vec![LaneAddress { queue: "gpu".parse().unwrap(), address: "ipc:///run/lane-0.sock".into() }],
        refused: vec![RefusedQueue { queue: "tpu".parse().unwrap(), reason: "no such queue".into() }],
        lease_ms: 20_000,
        poll_ms: 1_000,
        spool: "/data/spool".into(),
        abandoned: vec![token()],
    };
    let commands = vec![
        Command { seq: 1, action: Action::Cancel { token: token() } },
        Command { seq: 2, action: Action::Drain },
    ];
    vec![
        request(
            Hello {
                info: node(),
                slots: 2,
                overlap: 1,
                running: vec![token()],
                held: vec![token(), token()],
                boot: Some(BootId::from_bytes([9; 16])),
                actions: vec![ActionKind::Drain, ActionKind::Set],
            }
            .into(),
        ),
        request(Poll { session: session(), running: vec![token()], acknowledged: 300, refused }.into()),
        request(Goodbye { session: session() }.into()),
        reply(ProtocolFault { failure: failure() }.into()),
        reply(welcome.into()),
        reply(Rejected { failure: failure(), removed: true }.into()),
        reply(Commands { commands }.into()),
        reply(SessionGone { session: session() }.into()),
        reply(Farewell {}.into()),
    ]
}

fn results() -> Vec<Sample> {
    let request = |message: ResultRequest| sample("result-request", message);
    let reply = |message: ResultReply| sample("result-reply", message);
    let loaded = vec!["lama".parse().unwrap()];
    let memory = Some(MemoryUse { model_bytes: 1 << 28, peak_bytes: 1 << 29, pixels: 1 << 18 });
    let outcome = AttemptOutcome::Done { result: blob(Role::Result), inline: true, stages: stages() };
    vec![
        request(Ready { session: session(), credit: 9, loaded: loaded.clone() }.into()),
        request(Accept { session: session(), token: token() }.into()),
        request(Delivery { session: session(), token: token(), outcome, credit: 10, loaded, memory }.into()),
        reply(ProtocolFault { failure: failure() }.into()),
        reply(SessionGone { session: session() }.into()),
        reply(Proceed { token: token() }.into()),
        reply(Abandon { token: token() }.into()),
        reply(Stored { token: token(), accepted: true }.into()),
    ]
}

fn lane_and_events() -> Vec<Sample> {
    let lane = |message: LaneMessage| sample("lane", message);
    let event = |message: NodeEvent| sample("node-event", message);
    vec![
        lane(Assign { token: token(), attempt: 2, spec: spec(), inline: vec![Role::Image] }.into()),
        lane(Hint {}.into()),
        event(Heartbeat { session: session(), figures: Some(figures()) }.into()),
        event(
            Step { session: session(), token: token(), step: 1, of: 0, activity: Activity::Loading }.into(),
        ),
    ]
}
