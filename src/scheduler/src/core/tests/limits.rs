//! Limits on waiting and running, and nodes that are set aside.

use lamagrid_domain::{FailureKind, TaskSpec};

use super::grid::*;
use crate::core::{Fault, Input};

/// P3.3.
#[test]
fn a_task_waits_no_longer_than_it_may_over_all_its_waits() {
    let mut grid = Grid::new();
    grid.join("n", "manga", 1, 1); // with a node connected, `no_node_wait_ms` does not apply
    grid.pass_in([submit_spec(TaskSpec { wait_limit_ms: Some(900), ..spec(1) })]);
    grid.pass(899);
    grid.check(Input::Tick, &[]);
    grid.pass(1);
    grid.check(
        Input::Tick,
        &["end T1 failed waited_too_long", "c: outcome T1 failed waited_too_long", "finished T1"],
    );
}

/// P3.3: a time-out with automatic repetition.
#[test]
fn an_attempt_runs_no_longer_than_it_may_and_is_repeated() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit_spec(TaskSpec { run_limit_ms: Some(2_000), ..spec(1) })]);
    grid.pass(400);
    grid.pass_in([accept("n", 1, 2)]);
    for _ in 0..2 {
        grid.pass(999);
        grid.check(poll("n", 1, &[2], 0), &["n: commands []"]);
    }
    grid.check(Input::Tick, &[]);
    grid.pass(2);
    grid.check(
        Input::Tick,
        &["lane #1/0: hint", "requeue T1, 0 crashes, 1 failures", "c: progress T1 queued 0/0"],
    );
    // The result that it still delivers comes too late.
    grid.check(done("n", 1, 2, 2), &["n: stored #2 false"]);
}

/// A task cannot raise the configured limit.
#[test]
fn a_task_can_only_shorten_the_configured_limits() {
    for planted in [None, Some(Fault::OwnLimitCounts)] {
        let mut grid = Grid::new();
        grid.core.faults.plant(planted);
        grid.core.settings.scheduler.run_limit_ms = 1_000;
        grid.core.settings.scheduler.wait_limit_ms = 700;
        grid.join("n", "lama", 1, 1);
        let long = |n| TaskSpec { run_limit_ms: Some(60_000), wait_limit_ms: Some(60_000), ..spec(n) };
        grid.pass_in([submit_spec(long(1)), accept("n", 1, 2), submit_spec(long(2))]);
        grid.pass(1_001);
        let text = format!("{:?}", grid.handle(Input::Tick));
        assert!(text.contains("waited_too_long") || text.contains("WaitedTooLong"), "{text}");
        assert_eq!(text.contains("Requeue"), planted.is_none(), "{text}");
    }
}

/// P4.4, P6.2: set aside, probed, taken back.
#[test]
fn a_node_that_fails_task_after_task_is_set_aside_and_taken_back_when_it_works() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 100);
    grid.join("bad", "lama", 1, 1);
    let fail = |grid: &mut Grid, n, token, credit| {
        grid.pass_in([submit(n), accept("bad", 1, token)]);
        grid.pass_in([failed("bad", 1, token, credit, FailureKind::Inference)]);
    };
    (0..3).for_each(|i| fail(&mut grid, 1 + i, 2 + i, 2 + u64::from(i)));
    // It has credit, and gets nothing.
    grid.check(submit(4), &["insert T4", "c: accepted T4 behind 0"]);
    grid.check(submit(5), &["insert T5", "c: accepted T5 behind 1"]);
    for _ in 0..4 {
        grid.pass(1_249);
        grid.check(poll("bad", 1, &[], 0), &["bad: commands []"]);
    }
    grid.pass(4);
    // One task, to see whether it works.
    grid.check(
        poll("bad", 1, &[], 0),
        &[
            "assign T4 #5 to bad, attempt 1",
            "lane #1/0: assign T4 #5",
            "c: progress T4 processing 0/0",
            "bad: commands []",
        ],
    );
    grid.pass_in([accept("bad", 1, 5)]);
    grid.check(
        done("bad", 1, 5, 5),
        &[
            "end T4 completed",
            "c: outcome T4 completed with bytes",
            "finished T4",
            "bad: stored #5 true",
            "assign T5 #6 to bad, attempt 1",
            "lane #1/0: assign T5 #6",
            "c: progress T5 processing 0/0",
        ],
    );
}

/// P4.4: a node that has loaded a model by itself, whose file was put right, is not kept waiting.
#[test]
fn a_node_that_loads_a_model_while_it_is_set_aside_is_taken_back_at_once() {
    let mut grid = Grid::new();
    grid.core.settings.scheduler.set_aside_after = 1;
    grid.join("bad", "lama", 1, 1);
    grid.pass_in([submit(1), accept("bad", 1, 2)]);
    // Loaded for a task that fails all the same: says nothing.
    grid.pass_in([ready_with("bad", 1, 1, "lama"), failed("bad", 1, 2, 2, FailureKind::Inference)]);
    grid.check(submit(2), &["insert T2", "c: accepted T2 behind 0"]);
    grid.check(ready("bad", 1, 2), &[]);
    grid.check(
        ready_with("bad", 1, 2, "lama"),
        &["assign T2 #3 to bad, attempt 1", "lane #1/0: assign T2 #3", "c: progress T2 processing 0/0"],
    );
}

#[test]
fn a_probe_that_fails_is_not_held_against_a_task_that_another_node_can_do() {
    let mut grid = Grid::new();
    grid.core.settings.scheduler.set_aside_after = 1;
    grid.join("bad", "lama", 1, 1);
    grid.pass_in([submit(1), accept("bad", 1, 2), failed("bad", 1, 2, 2, FailureKind::Inference)]);
    grid.join("good", "lama", 3, 1);
    grid.pass(5_000);
    grid.pass_in([poll("good", 3, &[], 0), heartbeat(1), submit(2)]);
    // Both were idle equally long, and it is the bad one's turn. The task completes on either.
    grid.pass_in([accept("bad", 1, 4)]);
    let effects = grid.handle(failed("bad", 1, 4, 3, FailureKind::Inference));
    let text = format!("{effects:?}");
    assert!(!text.contains("End"), "{text}");
}
