//! Tests administrators' commands against a fake scheduler.

use lamagrid_client::{AdminReply, AdminRequest, Cursor, Page, TaskLine};
use lamagrid_domain::{Failure, FailureKind, Status, TaskId};
use lamagrid_protocol::message::{
    ChangeState, Draining, NodeDetail, NodeOrder, Paused, Purged, Refused, RefusedQueue, Retried, Statistics,
    StatisticsLine,
};

use super::golden;
use super::grid::{Fake, ID, history, node, task};

fn line(n: u8, status: Status) -> TaskLine {
    let failed = status == Status::Failed;
    TaskLine {
        id: TaskId::from_bytes([n; 16]),
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        client: (n > 1).then(|| "10.0.0.7".parse().unwrap()),
        status,
        failure: failed.then_some(FailureKind::NodeLost),
        node: (status != Status::Queued).then(|| "gpu-1".into()),
        attempts: u32::from(n),
        dead: failed,
        created_wall_ms: 1_785_500_000_123 + u64::from(n),
        finished_wall_ms: failed.then_some(1_785_500_061_421),
    }
}

/// Removes the ages, which depend on the present time.
fn without_ago(text: &str) -> String {
    text.lines()
        .map(|line| line.split(" (").next().unwrap_or(line).trim_end())
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn a_task_history_is_shown_as_table_and_json() {
    let failure = Failure::new(FailureKind::NodeLost, "3 nodes were lost while working on it");
    let fake = Fake::admin(move |request| {
        assert!(matches!(request, AdminRequest::GetTaskHistory(_)), "{request:?}");
        history(task(Status::Failed, Some(failure.clone()))).into()
    });
    let ran = fake.run(&["dead", "show", ID]);
    assert_eq!((ran.code, ran.err.as_str()), (69, ""));
    golden("history.txt", &without_ago(&ran.out));
    golden("history.json", &fake.run(&["task", "show", ID, "--output", "json"]).out);
}

#[test]
fn pages_are_fetched_up_to_the_limit() {
    let fake = Fake::admin(|request| {
        let AdminRequest::ListTasks(list) = request else { panic!("{request:?}") };
        assert_eq!((list.states.as_slice(), list.dead), ([Status::Failed, Status::Queued].as_slice(), false));
        assert_eq!(list.queue.as_ref().map(|queue| queue.as_str()), Some("gpu"));
        let first = list.after.is_none();
        let tasks = if first { vec![line(3, Status::Failed)] } else { vec![line(2, Status::Queued)] };
        let next = Cursor { created_wall_ms: 7, id: tasks[0].id };
        assert_eq!(list.limit, if first { 2 } else { 1 });
        Page { tasks, next: Some(next), total: 5, input_bytes: 0 }.into()
    });
    let words = ["task", "list", "--state", "failed", "--state", "queued", "--queue", "gpu", "--limit", "2"];
    let ran = fake.run(&words);
    assert_eq!((ran.code, ran.err.as_str()), (0, "3 more; see them with --limit 5\n"));
    golden("task_list.txt", &without_ago(&ran.out));
    golden("task_list.json", &fake.run(&[&words[..], &["--output", "json"]].concat()).out);
}

#[test]
fn empty_lists_say_so() {
    let fake = Fake::admin(|_| Page { tasks: Vec::new(), next: None, total: 0, input_bytes: 0 }.into());
    assert_eq!(fake.run(&["task", "list"]).out, "no tasks\n");
    assert_eq!(fake.run(&["dead", "list"]).out, "no dead letters\n");
    assert_eq!(fake.run(&["dead", "list", "--output", "json"]).out, "[]\n");
}

#[test]
fn changes_are_reported_as_a_sentence_and_as_json() {
    let answer = |request| -> AdminReply {
        match request {
            AdminRequest::RetryTask(retry) => {
                Retried { id: retry.id, runs_as: TaskId::from_bytes([8; 16]) }.into()
            }
            AdminRequest::PauseQueue(pause) => {
                Paused { queue: pause.queue, paused: pause.paused, waiting: 4 }.into()
            }
            AdminRequest::DrainNode(drain) => Draining { node: drain.node, running: 2 }.into(),
            other => panic!("{other:?}"),
        }
    };
    let fake = Fake::admin(answer);
    for (words, text, json) in [
        (
            &["dead", "replay", ID][..],
            "task 000102030405060708090a0b0c0d0e0f was submitted again as 08080808080808080808080808080808\n",
            "runs_as",
        ),
        (&["queue", "pause", "gpu"], "queue gpu is paused: its tasks wait (4 waiting)\n", "\"paused\": true"),
        (
            &["queue", "resume", "gpu"],
            "queue gpu is open: its tasks are given to nodes (4 waiting)\n",
            "\"paused\": false",
        ),
        (
            &["node", "drain", "gpu-1"],
            "node gpu-1 leaves once it has finished what it has begun (2 running)\n",
            "\"running\": 2",
        ),
    ] {
        let ran = fake.run(words);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, text, ""), "{words:?}");
        let out = fake.run(&[words, &["--output", "json"]].concat()).out;
        assert!(out.contains(json), "{out}");
    }
}

#[test]
fn purge_repeats_until_nothing_is_left() {
    let left = std::sync::Mutex::new(vec![0, 3, 10_000]);
    let fake = Fake::admin(move |request| {
        let AdminRequest::Purge(purge) = request else { panic!("{request:?}") };
        assert_eq!((purge.older_than_ms, purge.dead), (600_000, true));
        let tasks = left.lock().unwrap().pop().unwrap();
        Purged { tasks, bytes: tasks << 20 }.into()
    });
    let ran = fake.run(&["purge", "--older-than", "10m", "--dead", "--yes"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "10003 dead letters removed, with 9.8 GiB of pictures\n"));
    let ran = fake.run(&["purge", "--older-than", "10m"]);
    assert!(ran.code == 2 && ran.err.contains("--yes"), "{}", ran.err);
    let ran = fake.run(&["purge", "--older-than", "10", "--yes"]);
    assert!(ran.code == 2 && ran.err.contains("90s, 10m, 2h or 30d"), "{}", ran.err);
}

#[test]
fn a_refusal_names_the_remedy() {
    let fake = Fake::admin(|_| {
        let failure = Failure::new(FailureKind::InvalidInput, "there is no queue tpu; there are cpu, gpu");
        Refused { seq: 0, failure, queue_len: 0, wait_ms: None }.into()
    });
    let ran = fake.run(&["queue", "pause", "tpu"]);
    assert_eq!((ran.code, ran.err.as_str()), (65, "error: there is no queue tpu; there are cpu, gpu\n"));
}

fn detail(name: &str) -> NodeDetail {
    let name = name.parse().unwrap();
    NodeDetail {
        node: name,
        session: None,
        refused: Vec::new(),
        order: None,
        change: None,
        tasks: Vec::new(),
    }
}

fn change(done: bool, refusal: Option<&str>) -> Option<ChangeState> {
    let change = lamagrid_client::NodeChange { slots: Some(4), ..Default::default() };
    Some(ChangeState { change, done, refusal: refusal.map(str::to_owned) })
}

#[test]
fn a_node_is_shown_with_all_that_is_known() {
    let fake = Fake::admin(|request| {
        let AdminRequest::GetNode(get) = request else { panic!("{request:?}") };
        assert_eq!(get.node.as_str(), "gpu-1");
        let mut session = node("gpu-1", Some("NVIDIA H200"), 2);
        session.queues = vec!["gpu".parse().unwrap()];
        session.figures = Some(lamagrid_domain::LiveFigures {
            free_memory_bytes: Some(75_000_000_000),
            model_memory_bytes: 200 << 20,
            resident_bytes: 1_200 << 20,
            utilisation_percent: Some(40),
            temperature_c: Some(61),
            load_percent: 130,
        });
        let info = &mut session.info;
        (info.labels, info.device_id) = (vec!["a100".into(), "rack-2".into()], Some("GPU-1f".into()));
        (info.host_memory_bytes, info.cpu_features) = (64 << 30, vec!["avx2".into()]);
        (info.models[0].memory_bytes, info.models[0].pinned) = (200 << 20, true);
        let reason = "its file /srv/manga.pt is damaged: fetch it again".into();
        info.withheld = vec![lamagrid_domain::WithheldModel { model: "manga".parse().unwrap(), reason }];
        let reason = "it requires 16 GiB\u{1b}".into();
        NodeDetail {
            session: Some(session),
            refused: vec![RefusedQueue { queue: "big".parse().unwrap(), reason }],
            order: Some(NodeOrder { removed: false, by: "anna".into(), since_wall_ms: 1_785_500_000_123 }),
            change: change(true, Some("one slot only")),
            tasks: vec![line(3, Status::Processing)],
            ..detail("gpu-1")
        }
        .into()
    });
    let ran = fake.run(&["node", "show", "gpu-1"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let without_age = |line: &str| match line.rsplit_once(" (") {
        Some((before, age)) if age.ends_with(" ago)") => format!("{before}\n"),
        _ => format!("{line}\n"),
    };
    golden("node_show.txt", &ran.out.lines().map(without_age).collect::<String>());
    golden("node_show.json", &fake.run(&["node", "show", "gpu-1", "--output", "json"]).out);
}

#[test]
fn orders_about_nodes_are_reported_as_a_sentence_and_as_json() {
    let fake = Fake::admin(|request| match request {
        AdminRequest::UndrainNode(undrain) if undrain.node.as_str() == "here" => {
            NodeDetail { session: Some(node("here", None, 1)), ..detail("here") }.into()
        }
        AdminRequest::UndrainNode(_) => detail("away").into(),
        AdminRequest::RemoveNode(remove) => {
            let by = remove.by.unwrap();
            let order = Some(NodeOrder { removed: true, by, since_wall_ms: 1 });
            NodeDetail { order, ..detail("gpu-1") }.into()
        }
        AdminRequest::GetNode(_) => detail("away").into(),
        other => panic!("{other:?}"),
    });
    for (words, text, json) in [
        (["node", "undrain", "here"], "node here takes tasks\n", "\"connected\": true"),
        (
            ["node", "undrain", "away"],
            "node away may connect again; start it if it has ended\n",
            "\"removed\": false",
        ),
        (
            ["node", "remove", "gpu-1"],
            "node gpu-1 is removed and refused; lamagrid node undrain gpu-1 takes that back\n",
            "\"removed\": true",
        ),
    ] {
        let ran = fake.run(&words);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, text, ""), "{words:?}");
        let told = fake.run(&[&words[..], &["--output", "json"]].concat()).out;
        assert!(told.contains(json), "{told}");
    }
    let shown = fake.run(&["node", "show", "away"]).out;
    assert_eq!(shown, "node   away\nstate  not connected\n");
}

/// Answers `SetNode` with a pending change, and the n-th question about it with the n-th of these.
fn answering(answers: Vec<NodeDetail>) -> Fake {
    let answers = std::sync::Mutex::new(answers.into_iter());
    Fake::admin(move |request| match request {
        AdminRequest::SetNode(set) => {
            let change = &set.change;
            assert_eq!(
                (change.slots, change.labels.as_deref()),
                (Some(4), Some(&["a".into(), "b".into()][..]))
            );
            NodeDetail { change: self::change(false, None), ..detail("n") }.into()
        }
        AdminRequest::GetNode(_) => answers.lock().unwrap().next().expect("it asks once more").into(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn set_waits_for_the_answer_of_the_node() {
    let with = |change| NodeDetail { change, ..detail("n") };
    let words = ["node", "set", "n", "--slots", "4", "--labels", "a, b"];
    let ran = answering(vec![with(change(false, None)), with(change(true, None))]).run(&words);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "node n has changed\n", ""));
    let json =
        answering(vec![with(change(true, None))]).run(&[&words[..], &["--output", "json"]].concat()).out;
    assert!(json.contains("\"slots\": 4"), "{json}");
    let ran = answering(vec![with(change(true, Some("one slot only")))]).run(&words);
    let text = "error: node n refused the change, and nothing changed: one slot only\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (65, "", text));
    let ran = answering(vec![with(None)]).run(&words);
    assert_eq!(ran.code, 69, "{}", ran.err);
    let pending = || vec![with(change(false, None)); 100];
    let ran = answering(pending()).run(&[&words[..], &["--timeout", "1s"]].concat());
    assert_eq!(ran.code, 75, "{}", ran.err);
    assert!(ran.err.contains("the change is still pending: see lamagrid node show n"), "{}", ran.err);
    let ran = answering(pending()).run(&[&words[..], &["--timeout", "3s"]].concat());
    assert!(ran.err.starts_with("waiting for node n to answer\nerror: "), "{}", ran.err);
}

#[test]
fn statistics_of_all_pages_are_shown() {
    let fake = Fake::admin(|request| {
        let AdminRequest::GetStatistics(get) = request else { panic!("{request:?}") };
        let model = ["cv2", "lama"][get.skip as usize].parse().unwrap();
        let (queue, completed) = ("gpu".parse().unwrap(), u64::from(get.skip) * 4);
        let line = StatisticsLine {
            queue,
            model,
            completed,
            failed: 2,
            cancelled: 1,
            wait_ms: completed * 1_500,
            run_ms: completed * 80,
        };
        Statistics { lines: vec![line], more: get.skip == 0 }.into()
    });
    golden("stats.txt", &fake.run(&["stats"]).out);
    golden("stats.json", &fake.run(&["stats", "--output", "json"]).out);
    let fake = Fake::admin(|_| Statistics { lines: Vec::new(), more: false }.into());
    assert_eq!(fake.run(&["stats"]).out, "no task has ended yet\n");
}
