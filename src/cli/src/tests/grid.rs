//! Tests `lamagrid task`, `node` and `queue` against a fake scheduler, through real sockets.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use lamagrid_client::{AdminReply, AdminRequest, Endpoints, NodeStatus, QueueStatus, TaskHistory, TaskInfo};
use lamagrid_config::SocketDir;
use lamagrid_domain::{
    Counters, Entry, Failure, FailureKind, Milestone, ModelOffer, NodeInfo, NodeKind, QueueName, Stages,
    Status,
};
use lamagrid_protocol::message::{ClientReply, ClientRequest, GridStatus, Message, Pong, Refused, Unknown};
use lamagrid_transport::ConnectionLimits;
use lamagrid_transport::router::{Incoming, Peers, Router};

use super::{Ran, golden, run};

pub(super) const ID: &str = "000102030405060708090a0b0c0d0e0f";

/// A fake scheduler: answers every request by one function, on a thread of its own, until it is dropped.
pub(super) struct Fake {
    data: tempfile::TempDir,
    /// The socket directory, as a scheduler has it; removed with this value.
    _sockets: Option<SocketDir>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Fake {
    /// A data directory without a running scheduler.
    fn absent() -> Self {
        let data = tempfile::tempdir_in("/tmp").unwrap();
        Self { data, _sockets: None, thread: None, stop: None }
    }

    fn start(answer: impl Fn(ClientRequest) -> ClientReply + Send + 'static) -> Self {
        Self::start_both(answer, |request| panic!("{request:?}"))
    }

    /// Answers administrators' requests only.
    pub(super) fn admin(answer: impl Fn(AdminRequest) -> AdminReply + Send + 'static) -> Self {
        Self::start_both(|request| panic!("{request:?}"), answer)
    }

    fn start_both(
        answer: impl Fn(ClientRequest) -> ClientReply + Send + 'static,
        admin_answer: impl Fn(AdminRequest) -> AdminReply + Send + 'static,
    ) -> Self {
        let mut fake = Self::absent();
        let sockets = SocketDir::of_scheduler(fake.data.path()).unwrap();
        let endpoints = Endpoints::new(sockets.path());
        fake._sockets = Some(sockets);
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut router =
                    Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
                let mut admins =
                    Router::bind(&endpoints.admin(), Peers::Req, &ConnectionLimits::default()).unwrap();
                bound.send(()).unwrap();
                let administer = async {
                    while let Some(incoming) = admins.recv().await {
                        let Incoming::Frame { peer, frame } = incoming else { continue };
                        let reply = admin_answer(AdminRequest::from_frame(&frame).unwrap());
                        admins.sender().send(&peer, reply.to_frame(Vec::new()).unwrap());
                    }
                };
                let serve = async {
                    while let Some(incoming) = router.recv().await {
                        let Incoming::Frame { peer, frame } = incoming else { continue };
                        let reply = match ClientRequest::from_frame(&frame).unwrap() {
                            ClientRequest::Ping(ping) => {
                                Pong { seq: ping.seq, spool: "/tmp".into(), version: "test".into() }.into()
                            }
                            other => answer(other),
                        };
                        router.sender().send(&peer, reply.to_frame(Vec::new()).unwrap());
                    }
                };
                tokio::select! { () = serve => {}, () = administer => {}, _ = stopped => {} }
            });
        });
        is_bound.recv().unwrap();
        (fake.thread, fake.stop) = (Some(thread), Some(stop));
        fake
    }

    /// Knows only this task.
    fn with_task(task: TaskInfo) -> Self {
        Self::admin(move |request| match request {
            AdminRequest::GetTaskHistory(_) | AdminRequest::CancelTask(_) => history(task.clone()).into(),
            other => panic!("{other:?}"),
        })
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        let data = self.data.path().to_str().unwrap();
        run(&[args, &["--data-dir", data]].concat(), &[])
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.take();
        let thread = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            assert!(thread.is_none_or(|ended| ended.is_ok()), "the fake scheduler panicked");
        }
    }
}

/// A task that failed once and was completed by another node.
pub(super) fn history(task: TaskInfo) -> TaskHistory {
    let at = |ms: u64, attempt, what| Entry { at_wall_ms: task.created_wall_ms + ms, attempt, what };
    let failure = Failure::new(FailureKind::OutOfMemory, "no room on cuda:0; use a smaller picture");
    let node = |name: &str, spilled_to| Milestone::Assigned { node: name.parse().unwrap(), spilled_to };
    let history = vec![
        at(0, 0, Milestone::Accepted),
        at(4, 1, node("gpu-1", None)),
        at(1_250, 1, Milestone::Failed { failure, retry_in_ms: Some(640) }),
        at(1_900, 2, node("gpu-2", Some(QueueName::cpu()))),
        at(2_500, 2, Milestone::NodeLost { counts: true, shared: false }),
        at(61_298, 2, Milestone::Ended { status: task.status }),
    ];
    TaskHistory {
        owner: "local".parse().unwrap(),
        client: Some("10.0.0.7".parse().unwrap()),
        priority: -5,
        input_bytes: 4_096,
        dead: task.status == Status::Failed,
        replay_of: None,
        history,
        task,
    }
}

pub(super) fn task(status: Status, failure: Option<Failure>) -> TaskInfo {
    TaskInfo {
        id: ID.parse().unwrap(),
        model: "lama".parse().unwrap(),
        queue: QueueName::gpu(),
        status,
        failure,
        position: None,
        wait_ms: None,
        node: Some("gpu-1".into()),
        counters: Counters { attempts: 3, crashes: 1, failures: 2 },
        stages: Stages {
            queue_ms: 12.5,
            transfer_ms: 3.25,
            decode_ms: 20.0,
            load_ms: 0.0,
            infer_ms: 1_234.5,
            pixels_ms: 40.0,
            encode_ms: 30.0,
            store_ms: 8.0,
            total_ms: 61_298.25,
        },
        created_wall_ms: 1_785_500_000_123,
        finished_wall_ms: Some(1_785_500_061_421),
    }
}

fn queued() -> TaskInfo {
    TaskInfo {
        position: Some(4),
        wait_ms: Some(41_000),
        node: None,
        counters: Counters::default(),
        stages: Stages::default(),
        finished_wall_ms: None,
        ..task(Status::Queued, None)
    }
}

fn failed(kind: FailureKind) -> TaskInfo {
    task(Status::Failed, Some(Failure::new(kind, "the model said:\n\u{1b}[2Jno; free some memory")))
}

#[test]
fn the_json_of_a_task_is_a_contract() {
    for (name, info, code) in [
        ("task_queued.json", queued(), 0),
        ("task_completed.json", task(Status::Completed, None), 0),
        ("task_failed.json", failed(FailureKind::OutOfMemory), 73),
    ] {
        let ran = Fake::with_task(info).run(&["task", "show", ID, "--output", "json"]);
        assert_eq!((ran.code, ran.err.as_str()), (code, ""), "{name}");
        golden(name, &ran.out);
    }
}

#[test]
fn a_task_is_shown_as_a_table() {
    let ran = Fake::with_task(failed(FailureKind::OutOfMemory)).run(&["task", "show", ID]);
    assert!(ran.out.contains("state     failed\n"), "{}", ran.out);
    let text = "failure   out_of_memory: the model said:\\n\u{fffd}[2Jno; free some memory";
    assert!(ran.out.contains(text), "{}", ran.out);
    assert!(
        ran.out.contains("infer 1.2 s, pixels 40 ms, encode 30 ms, store 8.0 ms, total 1 min 1 s\n"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("attempts  3 (1 crashed, 2 failed)\n"), "{}", ran.out);
    let ran = Fake::with_task(queued()).run(&["task", "show", ID]);
    assert!(ran.out.contains("position  4 before it\nbegins    in about 41.0 s\n"), "{}", ran.out);
    assert!(!ran.out.contains("stages"), "{}", ran.out);
    assert!(ran.out.contains("created   2026-07-31 12:13:20 UTC"), "{}", ran.out);
}

#[test]
fn the_exit_code_depends_on_how_a_task_ended() {
    for (verb, info, code, remark) in [
        ("show", task(Status::Completed, None), 0, ""),
        ("show", task(Status::Cancelled, None), 0, ""),
        ("show", failed(FailureKind::NodeLost), 69, ""),
        ("show", failed(FailureKind::InvalidInput), 65, ""),
        ("cancel", task(Status::Cancelled, None), 0, ""),
        ("cancel", task(Status::Completed, None), 1, "completed before it could be cancelled"),
        ("cancel", failed(FailureKind::Inference), 70, "failed before it could be cancelled"),
    ] {
        let status = info.status;
        let ran = Fake::with_task(info).run(&["task", verb, ID]);
        assert_eq!(ran.code, code, "{verb} {status}");
        assert!(ran.out.contains(&format!("state     {status}\n")), "{verb} {status}: {}", ran.out);
        assert_eq!(ran.err.is_empty(), remark.is_empty(), "{verb} {status}: {}", ran.err);
        assert!(ran.err.contains(remark), "{verb} {status}: {}", ran.err);
    }
}

#[test]
fn unknown_and_expired_tasks_have_different_errors() {
    for (verb, expired, words) in [
        ("show", false, "knows no task 000102030405060708090a0b0c0d0e0f of this owner"),
        ("show", true, "past retention"),
        ("cancel", false, "check the id and the data directory"),
    ] {
        let fake = Fake::admin(move |request| {
            let id = match request {
                AdminRequest::GetTaskHistory(request) => request.id,
                AdminRequest::CancelTask(cancel) => cancel.id,
                other => panic!("{other:?}"),
            };
            Unknown { seq: 0, id, expired }.into()
        });
        let ran = fake.run(&["task", verb, ID, "--output", "json"]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{verb}");
        assert!(ran.err.starts_with("error: ") && ran.err.contains(words), "{verb}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{verb}: {}", ran.err);
    }
}

#[test]
fn a_refusal_has_its_own_exit_code() {
    let fake = Fake::start(|request| {
        let ClientRequest::GetGridStatus(survey) = request else { panic!("{request:?}") };
        let failure = Failure::new(FailureKind::Overloaded, "too many requests; try again in a second");
        Refused { seq: survey.seq, failure, queue_len: 0, wait_ms: None }.into()
    });
    let ran = fake.run(&["node", "list"]);
    assert_eq!((ran.code, ran.out.as_str()), (75, ""));
    assert_eq!(ran.err, "error: too many requests; try again in a second\n");
}

pub(super) fn node(name: &str, gpu: Option<&str>, models: usize) -> NodeStatus {
    let offer = |index| ModelOffer {
        model: if index == 0 { "lama".parse().unwrap() } else { format!("m{index}").parse().unwrap() },
        queue: QueueName::gpu(),
        loaded: index == 0,
        present: true,
        routed: false,
        memory_bytes: 0,
        pinned: false,
    };
    let info = NodeInfo {
        name: name.parse().unwrap(),
        kind: if gpu.is_some() { NodeKind::Torch } else { NodeKind::Python },
        version: "0.1.0".into(),
        device: if gpu.is_some() { "cuda:0".into() } else { "cpu".into() },
        gpu: gpu.map(Into::into),
        memory_bytes: if gpu.is_some() { 150_000_000_000 } else { 0 },
        cores: 16,
        models: (0..models).map(offer).collect(),
        pid: 4711,
        withheld: Vec::new(),
        labels: Vec::new(),
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    };
    NodeStatus { info, running: 1, slots: 2, state: "busy".into(), queues: Vec::new(), figures: None }
}

fn with_overview(nodes: Vec<NodeStatus>, queues: Vec<QueueStatus>) -> Fake {
    Fake::start(move |request| {
        let ClientRequest::GetGridStatus(survey) = request else { panic!("{request:?}") };
        let (nodes, queues) = (nodes.clone(), queues.clone());
        GridStatus { seq: survey.seq, version: "test".into(), nodes, queues, next: None }.into()
    })
}

#[test]
fn nodes_are_listed_as_table_and_json() {
    let fake = with_overview(vec![node("b", None, 8), node("a", Some("NVIDIA H200"), 2)], vec![]);
    let ran = fake.run(&["node", "list"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    golden("node_list.txt", &ran.out);
    let ran = fake.run(&["node", "list", "--output", "json"]);
    golden("node_list.json", &ran.out);
}

#[test]
fn queues_are_shown_as_table_and_json() {
    let queue = |queue: QueueName, waiting| QueueStatus {
        queue,
        waiting,
        running: 2,
        max_tasks: 1_000,
        paused: false,
    };
    let fake = with_overview(vec![], vec![queue(QueueName::gpu(), 12), queue(QueueName::cpu(), 0)]);
    let ran = fake.run(&["queue", "show"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    golden("queue_show.txt", &ran.out);
    let ran = fake.run(&["queue", "show", "--output", "json"]);
    golden("queue_show.json", &ran.out);
}

#[test]
fn empty_tables_have_a_remark() {
    let fake = with_overview(vec![], vec![]);
    let outputs = [["node", "list"], ["queue", "show"]].map(|args| {
        let [noun, verb] = args;
        (fake.run(&[noun, verb]).out, fake.run(&[noun, verb, "--output", "json"]).out)
    });
    let empty = "[]\n".to_owned();
    assert_eq!(
        outputs,
        [
            (
                "no node is connected; start one with `lamagrid-node` or `lamagrid pynode`\n".into(),
                empty.clone()
            ),
            ("no queue is configured; add one with [queues.NAME] in the configuration\n".into(), empty),
        ]
    );
}

#[test]
fn without_a_scheduler_the_start_command_is_shown_within_three_seconds() {
    let fake = Fake::absent();
    let data = fake.data.path().display();
    let began = Instant::now();
    let ran = fake.run(&["task", "show", ID]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!((ran.code, ran.out.as_str()), (69, ""));
    assert!(ran.err.starts_with("error: no scheduler answered at ipc://"), "{}", ran.err);
    assert!(
        ran.err.ends_with(&format!("start it with: lamagrid scheduler --data-dir {data}\n")),
        "{}",
        ran.err
    );
}
