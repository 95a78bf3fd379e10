//! Tests administrators' commands against a fake scheduler.

use lamagrid_client::{AdminReply, AdminRequest, Cursor, Page, TaskLine};
use lamagrid_domain::{Failure, FailureKind, Status, TaskId};
use lamagrid_protocol::message::{Draining, Paused, Purged, Refused, Retried};

use super::golden;
use super::grid::{Fake, ID, history, task};

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
        Page { tasks, next: Some(next), total: 5 }.into()
    });
    let words = ["task", "list", "--state", "failed", "--state", "queued", "--queue", "gpu", "--limit", "2"];
    let ran = fake.run(&words);
    assert_eq!((ran.code, ran.err.as_str()), (0, "3 more; see them with --limit 5\n"));
    golden("task_list.txt", &without_ago(&ran.out));
    golden("task_list.json", &fake.run(&[&words[..], &["--output", "json"]].concat()).out);
}

#[test]
fn empty_lists_say_so() {
    let fake = Fake::admin(|_| Page { tasks: Vec::new(), next: None, total: 0 }.into());
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
