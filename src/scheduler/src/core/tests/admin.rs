//! What an administrator sees and does.

use lamagrid_domain::{Entry, Failure, FailureKind, Milestone, Status, TaskId};
use lamagrid_wire::message::{
    AdminReply, AdminRequest, CancelTask, DrainNode, ListTasks, Message, PauseQueue, Purge, RetryTask,
    TellStory,
};

use super::grid::*;
use crate::core::{Effect, Input};

fn admin(request: impl Into<AdminRequest>) -> Input {
    Input::Admin { peer: peer("a"), request: request.into() }
}

fn list(limit: u32) -> ListTasks {
    ListTasks { states: Vec::new(), dead: false, queue: None, model: None, client: None, after: None, limit }
}

fn retry(n: u8) -> Input {
    admin(RetryTask { id: id(n) })
}

fn story(grid: &mut Grid, id: TaskId) -> lamagrid_wire::message::Story {
    match grid.handle(admin(TellStory { id })).remove(0) {
        Effect::Admin { reply: AdminReply::Story(story), .. } => story,
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
    grid.check(admin(ListTasks { model: Some("manga".parse().unwrap()), ..list(9) }), &["a: page  of 0"]);
}

/// X7.
#[test]
fn a_dead_letter_tells_every_attempt_and_is_replayed_once() {
    let mut grid = with_dead_letter();
    let told = story(&mut grid, id(1));
    assert!(told.dead && told.input_bytes == 9);
    let failed = told.history.iter().filter(|e| matches!(e.what, Milestone::Failed { .. })).count();
    let assigned = told.history.iter().filter(|e| matches!(e.what, Milestone::Assigned { .. })).count();
    assert_eq!((failed, assigned, told.history.len()), (2, 2, 6), "{:?}", told.history);
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
    let new = story(&mut grid, replay);
    assert_eq!((new.replay_of, &new.history[0].what), (Some(id(1)), &Milestone::Replays { task: id(1) }));
    let told = story(&mut grid, id(1));
    assert!(!told.dead);
    assert_eq!(told.history.last().unwrap().what, Milestone::ReplayedAs { task: replay });
    let refused = grid.handle(retry(1));
    assert!(format!("{refused:?}").contains("inputs of task"), "{refused:?}");
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
    let pause = |paused| admin(PauseQueue { queue: "gpu".parse().unwrap(), paused });
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
    let refused = grid.handle(admin(PauseQueue { queue: "tpu".parse().unwrap(), paused: true }));
    assert!(format!("{refused:?}").contains("there are cpu, gpu"), "{refused:?}");
}

#[test]
fn a_drained_node_is_told_once_and_gets_nothing_more() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 2);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    let drain = || admin(DrainNode { node: "n".parse().unwrap() });
    grid.check(drain(), &["lane #1/0: hint", "a: draining n with 1"]);
    grid.check(drain(), &["a: draining n with 1"]);
    grid.check(submit(2), &["insert T2", "c: accepted T2 behind 0"]);
    let commands = grid.handle(poll("n", 1, &[2], 0));
    assert!(format!("{commands:?}").contains("Drain"), "{commands:?}");
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
        &["end T1 cancelled", "c: outcome T1 cancelled", "finished T1", "a: story T1 cancelled, 2 entries"],
    );
    grid.check(admin(CancelTask { id: id(1) }), &["a: story T1 cancelled, 2 entries"]);
}

/// A node that fails one task again and again with long messages: the task's history still fits into a message.
#[test]
fn a_history_of_long_failures_fits_into_one_message() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1)]);
    let mut task = grid.core.tasks.remove(&id(1)).unwrap();
    let failure = Failure::new(FailureKind::Inference, "\u{1f5bc}".repeat(10_000));
    for _ in 0..64 {
        let what = Milestone::Failed { failure: failure.clone(), retry_in_ms: Some(1) };
        task.history.push(Entry { at_wall_ms: WALL_MS, attempt: 1, what });
    }
    grid.core.tasks.insert(id(1), task);
    let long = story(&mut grid, id(1));
    assert_eq!(long.history.len(), 66);
    assert!(AdminReply::from(long).to_frame(Vec::new()).is_ok());
    // A few failures are told whole.
    let mut task = grid.core.tasks.remove(&id(1)).unwrap();
    task.history.truncate(3);
    grid.core.tasks.insert(id(1), task);
    let short = story(&mut grid, id(1));
    assert!(
        short
            .history
            .iter()
            .any(|entry| entry.what == Milestone::Failed { failure: failure.clone(), retry_in_ms: Some(1) })
    );
}
