//! Retries after reported failures, and tasks that no node can run.

use lamagrid_domain::{FailureKind, TaskSpec};

use super::grid::*;
use crate::core::{Input, Now};

fn assigned() -> Grid {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid.check(accept("n", 1, 2), &["n: proceed #2"]);
    grid
}

const AGAIN: [&str; 2] = ["requeue T1, 0 crashes, 1 failures", "c: progress T1 queued 0/0"];

/// R7.4.
#[test]
fn later_waits_at_most_the_base_and_the_second_failure_is_the_last() {
    let mut grid = assigned();
    grid.check(failed("n", 1, 2, 2, FailureKind::Internal), &[AGAIN[0], AGAIN[1], "n: stored #2 true"]);
    // Full jitter: somewhere within the base of 500 ms, and never at once.
    grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    grid.pass(500);
    grid.check(
        Input::Tick,
        &["assign T1 #4 to n, attempt 2", "lane #1/0: assign T1 #4", "c: progress T1 processing 0/0"],
    );
    grid.check(
        failed("n", 1, 4, 3, FailureKind::Internal),
        &[
            "end T1 failed internal, dead",
            "c: outcome T1 failed internal",
            "finished T1",
            "n: stored #4 true",
        ],
    );
}

#[test]
fn never_ends_at_once() {
    let mut grid = assigned();
    let end =
        ["end T1 failed inference", "c: outcome T1 failed inference", "finished T1", "n: stored #2 true"];
    grid.check(failed("n", 1, 2, 2, FailureKind::Inference), &end);
}

#[test]
fn elsewhere_goes_to_another_node_and_never_back_while_there_is_one() {
    let mut grid = assigned();
    grid.join("m", "lama", 3, 1);
    grid.check(
        failed("n", 1, 2, 2, FailureKind::OutOfMemory),
        &[
            AGAIN[0],
            AGAIN[1],
            "assign T1 #4 to m, attempt 2",
            "lane #3/0: assign T1 #4",
            "c: progress T1 processing 0/0",
            "n: stored #2 true",
        ],
    );
    // The other one leaves before it begins: then the first may have it again.
    grid.check(
        goodbye("m", 3),
        &[
            "close #3",
            "requeue T1, 0 crashes, 1 failures",
            "c: progress T1 queued 0/0",
            "assign T1 #5 to n, attempt 3",
            "lane #1/0: assign T1 #5",
            "c: progress T1 processing 0/0",
            "m: farewell",
        ],
    );
}

#[test]
fn elsewhere_fails_where_there_is_no_other_node() {
    let mut grid = assigned();
    grid.join("m", "manga", 3, 1);
    let end = [
        "end T1 failed out_of_memory, dead",
        "c: outcome T1 failed out_of_memory",
        "finished T1",
        "n: stored #2 true",
    ];
    grid.check(failed("n", 1, 2, 2, FailureKind::OutOfMemory), &end);
}

#[test]
fn without_any_node_a_task_waits_and_then_fails() {
    let mut grid = Grid::new();
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    grid.check(Input::Tick, &[]);
    grid.pass(29_999);
    grid.check(Input::Tick, &[]);
    grid.pass(1);
    grid.check(Input::Tick, &["end T1 failed node_lost", "c: outcome T1 failed node_lost", "finished T1"]);
}

/// The model is there, and what is missing is a node for the queue.
#[test]
fn a_model_that_is_served_from_another_queue_fails_with_both_queues_named() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit_spec(TaskSpec { queue: "cpu".parse().unwrap(), ..spec(1) }), Input::Tick]);
    for _ in 0..10 {
        grid.pass(3_000);
        grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    }
    let ended = format!("{:?}", grid.handle(Input::Tick));
    assert!(ended.contains("no connected node serves queue cpu with model lama: waited 30 s"), "{ended}");
    assert!(ended.contains("serve that model in queue gpu: submit to that queue"), "{ended}");
}

/// Tasks of another queue have their own wait.
#[test]
fn a_queue_without_nodes_does_not_shorten_the_wait_of_another() {
    let mut grid = Grid::new();
    grid.pass_in([submit_spec(TaskSpec { queue: "cpu".parse().unwrap(), ..spec(1) }), Input::Tick]);
    grid.pass(25_000);
    grid.pass_in([submit(2), Input::Tick]);
    grid.pass(5_000);
    let first = ["end T1 failed node_lost", "c: outcome T1 failed node_lost", "finished T1"];
    grid.check(Input::Tick, &first);
    grid.pass(25_000);
    let second = ["end T2 failed node_lost", "c: outcome T2 failed node_lost", "finished T2"];
    grid.check(Input::Tick, &second);
}

#[test]
fn a_model_that_no_node_serves_fails_after_the_same_wait() {
    let mut grid = Grid::new();
    grid.join("n", "manga", 1, 1);
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    grid.check(Input::Tick, &[]);
    for _ in 0..10 {
        grid.pass(3_000);
        grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    }
    grid.check(
        Input::Tick,
        &["end T1 failed unknown_model", "c: outcome T1 failed unknown_model", "finished T1"],
    );
}

#[test]
fn a_deadline_ends_a_task_wherever_it_is() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let until = |n, ms| submit_spec(TaskSpec { deadline_wall_ms: Some(WALL_MS + ms), ..spec(n) });
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, until(1, 400));
    grid.check(accept("n", 1, 2), &["n: proceed #2"]);
    grid.check(until(2, 300), &["insert T2", "c: accepted T2 behind 0"]);
    grid.pass(399);
    let late = "deadline_exceeded";
    grid.check(
        Input::Tick,
        &[&format!("end T2 failed {late}"), &format!("c: outcome T2 failed {late}"), "finished T2"],
    );
    grid.pass(1);
    grid.check(
        Input::Tick,
        &[
            "lane #1/0: hint",
            &format!("end T1 failed {late}"),
            &format!("c: outcome T1 failed {late}"),
            "finished T1",
        ],
    );
    grid.check(done("n", 1, 2, 2), &["n: stored #2 false"]);
}
