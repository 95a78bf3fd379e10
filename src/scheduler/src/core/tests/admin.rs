//! The requests of administrators.

use lamagrid_domain::{Entry, Failure, FailureKind, Milestone, Status, TaskId};
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, AttemptOutcome, CancelTask, ClientReply, DrainNode, GetTaskHistory, ListTasks,
    Message, PauseQueue, Purge, ResultRequest, RetryTask,
};

use super::grid::*;
use crate::core::{Effect, Input, Pause, StoreOp};

pub(super) fn admin(request: impl Into<AdminRequest>) -> Input {
    Input::Admin { peer: peer("a"), request: request.into() }
}

fn list(limit: u32) -> ListTasks {
    ListTasks {
        states: Vec::new(),
        dead: false,
        queue: None,
        model: None,
        client: None,
        owner: None,
        after: None,
        limit,
    }
}

fn retry(n: u8) -> Input {
    admin(RetryTask { id: id(n) })
}

fn history_of(grid: &mut Grid, id: TaskId) -> lamagrid_protocol::message::TaskHistory {
    match grid.handle(admin(GetTaskHistory { id })).remove(0) {
        Effect::Admin { reply: AdminReply::TaskHistory(history), .. } => history,
        other => panic!("{other:?}"),
    }
}

/// A task that two nodes have failed: a dead letter.
fn with_dead_letter() -> Grid {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2), failed("n", 1, 2, 2, FailureKind::Internal)]);
    grid.pass(500);
    grid.pass_in([Input::Tick]); // token 4, after a random number for the back-off
    grid.pass_in([accept("n", 1, 4), failed("n", 1, 4, 3, FailureKind::Internal)]);
    grid
}

#[test]
fn pages_go_from_the_newest_to_the_oldest_and_filters_hold() {
    let mut grid = with_dead_letter();
    grid.pass(10);
    grid.pass_in([submit(2)]);
    grid.pass(10);
    grid.pass_in([submit(3)]);
    grid.check(admin(list(9)), &["a: page T3 T2 T1 of 3"]);
    grid.check(admin(list(2)), &["a: page T3 T2 of 3, more"]);
    let Effect::Admin { reply: AdminReply::Page(first), .. } = grid.handle(admin(list(2))).remove(0) else {
        unreachable!("a list is answered with a page")
    };
    grid.check(admin(ListTasks { after: first.next, ..list(2) }), &["a: page T1 of 3"]);
    grid.check(admin(ListTasks { dead: true, ..list(9) }), &["a: page T1 of 1"]);
    grid.check(admin(ListTasks { states: vec![Status::Queued], ..list(9) }), &["a: page T3 of 1"]);
    grid.check(admin(ListTasks { owner: Some("other".parse().unwrap()), ..list(9) }), &["a: page  of 0"]);
    let owner = Some(owner());
    let Effect::Admin { reply: AdminReply::Page(own), .. } =
        grid.handle(admin(ListTasks { owner, ..list(1) })).remove(0)
    else {
        panic!("a list is answered by a page");
    };
    // T1 has ended; T2 and T3 have an image of 9 bytes each.
    assert_eq!((own.total, own.input_bytes), (3, 18));
    grid.check(admin(ListTasks { model: Some("manga".parse().unwrap()), ..list(9) }), &["a: page  of 0"]);
}

/// X7.
#[test]
fn a_dead_letter_tells_every_attempt_and_is_replayed_once() {
    let mut grid = with_dead_letter();
    let task = history_of(&mut grid, id(1));
    assert!(task.dead && task.input_bytes == 9);
    let failed = task.history.iter().filter(|e| matches!(e.what, Milestone::Failed { .. })).count();
    let assigned = task.history.iter().filter(|e| matches!(e.what, Milestone::Assigned { .. })).count();
    assert_eq!((failed, assigned, task.history.len()), (2, 2, 6), "{:?}", task.history);
    // Its inputs go over to the new task in one transaction.
    grid.check(
        retry(1),
        &[
            "insert T5 + release T1",
            "assign T5 #6 to n, attempt 1",
            "lane #1/0: assign T5 #6",
            "a: retried T1 as T5",
        ],
    );
    // Its id is drawn now.
    let replay = TaskId::drawn_at(WALL_MS + 500, [5; 16]);
    let new = history_of(&mut grid, replay);
    assert_eq!((new.replay_of, &new.history[0].what), (Some(id(1)), &Milestone::Replays { task: id(1) }));
    let task = history_of(&mut grid, id(1));
    assert!(!task.dead);
    assert_eq!(task.history.last().unwrap().what, Milestone::ReplayedAs { task: replay });
    let refused = grid.handle(retry(1));
    let text = format!("{refused:?}");
    assert!(text.contains(&format!("was replayed already, as {replay}")), "{text}");
}

#[test]
fn retry_makes_what_backs_off_due_at_once() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2), failed("n", 1, 2, 2, FailureKind::Internal)]);
    grid.check(
        retry(1),
        &[
            "assign T1 #4 to n, attempt 2",
            "lane #1/0: assign T1 #4",
            "c: progress T1 processing 0/0",
            "a: retried T1 as T1",
        ],
    );
    let refused = grid.handle(retry(1));
    assert!(format!("{refused:?}").contains("on a node now"), "{refused:?}");
    grid.check(retry(9), &["a: unknown T9"]);
}

#[test]
fn a_paused_queue_takes_tasks_and_gives_none() {
    let mut grid = Grid::new();
    let pause = |paused| admin(PauseQueue { queue: "gpu".parse().unwrap(), paused, by: None });
    grid.check(pause(true), &["pause gpu true", "a: queue gpu paused true, 0 wait"]);
    grid.check(pause(true), &["a: queue gpu paused true, 0 wait"]);
    grid.join("n", "lama", 1, 1);
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    grid.check(
        pause(false),
        &[
            "pause gpu false",
            "assign T1 #2 to n, attempt 1",
            "lane #1/0: assign T1 #2",
            "c: progress T1 processing 0/0",
            "a: queue gpu paused false, 1 wait",
        ],
    );
    let refused = grid.handle(admin(PauseQueue { queue: "tpu".parse().unwrap(), paused: true, by: None }));
    assert!(format!("{refused:?}").contains("there are cpu, gpu"), "{refused:?}");
}

#[test]
fn a_drained_node_is_told_once_and_gets_nothing_more() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 2);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    let drain = || admin(DrainNode { node: "n".parse().unwrap(), by: None });
    grid.check(drain(), &["drain n true", "lane #1/0: hint", "a: draining n with 1"]);
    grid.check(drain(), &["a: draining n with 1"]);
    grid.check(submit(2), &["insert T2", "c: accepted T2 behind 0"]);
    let commands = grid.handle(poll("n", 1, &[2], 0));
    assert!(format!("{commands:?}").contains("Drain"), "{commands:?}");
}

/// R4.4: an order of an administrator belongs to the node, not to its connection.
#[test]
fn a_drain_outlives_the_session_and_the_scheduler_and_ends_with_the_goodbye() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 2);
    let drain = DrainNode { node: "n".parse().unwrap(), by: Some("anna".into()) };
    let mut order = None;
    for effect in grid.handle(admin(drain)) {
        if let Effect::Store(StoreOp::NodeOrder { node, order: Some(given) }) = effect {
            order = Some((node, given));
        }
    }
    let order = order.unwrap();
    // It never heard of that: its connection broke before its poll.
    grid.check(closed("n"), &["close #1"]);
    let again = |session| format!("n: welcome #{session} lanes [gpu] abandoned []");
    grid.check(hello("n", 1, "lama", 2, &[], &[]), &[&again(2)]);
    grid.check(poll("n", 2, &[], 0), &["n: commands [1 drain]"]);
    grid.pass_in([lane_connected(2), ready("n", 2, 2)]);
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    // Its supervisor replaces the process, the scheduler starts anew.
    let mut grid = Grid::with_node_orders([order.clone()].into());
    grid.pass(19_000);
    grid.check(hello("n", 2, "lama", 2, &[], &[]), &[&again(1)]);
    grid.check(poll("n", 1, &[], 0), &["n: commands [1 drain]"]);
    grid.check(goodbye("n", 1), &["close #1", "drain n false", "n: farewell"]);
    grid.check(hello("n", 3, "lama", 2, &[], &[]), &[&again(2)]);
    grid.check(poll("n", 2, &[], 0), &["n: commands []"]);
    // The same process is drained whenever it comes back; another one after a lease was started by a person.
    for (pid, commands, effects) in [(1, "1 drain", Vec::new()), (2, "", vec!["drain n false".to_owned()])] {
        let mut grid = Grid::with_node_orders([order.clone()].into());
        grid.pass(20_000);
        let effects = [effects, vec![again(1)]].concat();
        let effects: Vec<_> = effects.iter().map(String::as_str).collect();
        grid.check(hello("n", pid, "lama", 2, &[], &[]), &effects);
        grid.check(poll("n", 1, &[], 0), &[&format!("n: commands [{commands}]")]);
    }
}

/// Tasks of a paused queue wait until a person resumes it.
#[test]
fn a_paused_queue_promises_no_time_and_its_refusals_say_who_paused_it() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    let Input::Result { peer, request: ResultRequest::Delivery(mut delivery), inline } = done("n", 1, 2, 2)
    else {
        unreachable!("done is a delivery")
    };
    if let AttemptOutcome::Done { stages, .. } = &mut delivery.outcome {
        stages.infer_ms = 4_000.0;
    }
    grid.pass_in([Input::Result { peer, request: delivery.into(), inline }]);
    grid.pass_in([submit(2), submit(3)]);
    let wait_ms = |grid: &mut Grid| match grid.handle(query(3)).remove(0) {
        Effect::Client { reply: ClientReply::TaskStatus(status), .. } => status.task.wait_ms,
        other => panic!("{other:?}"),
    };
    assert!(wait_ms(&mut grid).is_some());
    let by = Some("anna\u{1b}, pid 7".to_owned());
    grid.pass_in([admin(PauseQueue { queue: "gpu".parse().unwrap(), paused: true, by })]);
    assert_eq!(wait_ms(&mut grid), None);
    grid.pass_in([submit(4), submit(5)]);
    grid.pass(7_000);
    let refused = grid.handle(submit(6)).into_iter().find_map(|effect| match effect {
        Effect::Client { reply: ClientReply::Refused(refused), .. } => Some(refused),
        _ => None,
    });
    let refused = refused.expect("the queue is full");
    assert_eq!(refused.wait_ms, None);
    let text = refused.failure.message;
    let expected = "queue gpu has been paused for 7 s by anna\u{fffd}, pid 7: its tasks wait until lamagrid queue resume gpu";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn tasks_of_a_paused_queue_do_not_fail_because_its_nodes_are_away() {
    let mut grid = Grid::new();
    let pause = |paused| admin(PauseQueue { queue: "gpu".parse().unwrap(), paused, by: None });
    grid.pass_in([pause(true), submit(1)]);
    grid.pass(60_000);
    grid.check(Input::Tick, &[]);
    grid.pass_in([pause(false), Input::Tick]);
    grid.pass(30_000);
    let end = ["end T1 failed node_lost", "c: outcome T1 failed node_lost", "finished T1"];
    grid.check(Input::Tick, &end);
}

#[test]
fn the_pause_of_a_queue_that_the_configuration_lost_is_forgotten_at_the_start() {
    let pause = Pause { by: "anna".into(), since_wall_ms: 5 };
    let paused = ["tpu", "gpu"].map(|queue| (queue.parse().unwrap(), pause.clone())).into();
    let mut grid = Grid::with_paused(paused);
    grid.check(ping("c"), &["pause tpu false", "c: pong"]);
    grid.join("n", "lama", 1, 1);
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
}

#[test]
fn purge_removes_what_ended_long_enough_ago_and_dead_letters_only_when_asked() {
    let mut grid = with_dead_letter();
    grid.pass_in([submit(2), cancel(2)]);
    grid.pass(5_000);
    grid.pass_in([submit(3), cancel(3)]);
    let purge = |older_than_ms, dead| admin(Purge { older_than_ms, dead });
    grid.check(purge(5_000, false), &["forget T2", "a: purged 1 tasks, 0 bytes"]);
    grid.check(purge(0, true), &["forget T1", "a: purged 1 tasks, 9 bytes"]);
    grid.check(query(1), &["c: expired T1"]);
}

#[test]
fn an_administrator_cancels_whatever_its_owner() {
    let mut grid = Grid::new();
    grid.pass_in([submit(1)]);
    grid.check(
        admin(CancelTask { id: id(1) }),
        &["end T1 cancelled", "c: outcome T1 cancelled", "finished T1", "a: history T1 cancelled, 2 entries"],
    );
    grid.check(admin(CancelTask { id: id(1) }), &["a: history T1 cancelled, 2 entries"]);
}

/// A node that fails one task again and again with long messages: the task's history still fits into a message.
#[test]
fn a_history_of_long_failures_fits_into_one_message() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1)]);
    let history = grid.core.tasks.get_mut(id(1)).unwrap().history_mut();
    let failure = Failure::new(FailureKind::Inference, "\u{1f5bc}".repeat(10_000));
    for _ in 0..64 {
        let what = Milestone::Failed { failure: failure.clone(), retry_in_ms: Some(1) };
        history.push(Entry { at_wall_ms: WALL_MS, attempt: 1, what });
    }
    let long = history_of(&mut grid, id(1));
    assert_eq!(long.history.len(), 66);
    assert!(AdminReply::from(long).to_frame(Vec::new()).is_ok());
    // A few failures are shown whole.
    grid.core.tasks.get_mut(id(1)).unwrap().history_mut().truncate(3);
    let short = history_of(&mut grid, id(1));
    assert!(
        short
            .history
            .iter()
            .any(|entry| entry.what == Milestone::Failed { failure: failure.clone(), retry_in_ms: Some(1) })
    );
}
