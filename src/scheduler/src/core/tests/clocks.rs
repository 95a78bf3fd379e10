//! The wall clock jumps: what it may not do to results and deadlines.

use lamagrid_domain::{FailureKind, TaskSpec};

use super::grid::*;
use crate::core::{Fault, Input};

const HOUR_MS: u64 = 3_600_000;

fn with_result() -> Grid {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2), done("n", 1, 2, 2)]);
    grid
}

/// A clock that is two hours ahead for two seconds deletes nothing.
#[test]
fn a_clock_that_is_wrong_for_a_moment_deletes_nothing() {
    let mut grid = with_result();
    grid.set_wall(WALL_MS + 2 * HOUR_MS);
    let doubted = format!("clock Doubted {{ ahead_ms: {} }}", 2 * HOUR_MS);
    grid.check(Input::Tick, &[&doubted]);
    let deadline_wall_ms = Some(WALL_MS + HOUR_MS);
    grid.check(
        submit_spec(TaskSpec { model: "manga".parse().unwrap(), deadline_wall_ms, ..spec(2) }),
        &["insert T2", "c: accepted T2 behind 0"],
    );
    grid.pass(2_000);
    grid.check(Input::Tick, &[]);
    grid.set_wall(WALL_MS + 2_000);
    grid.check(
        attach(1),
        &["clock Returned", "c: status T1 completed", "c: outcome T1 completed with bytes"],
    );
    grid.check(query(2), &["c: status T2 queued"]);
}

#[test]
fn a_clock_that_stays_where_it_jumped_to_is_believed_after_a_while() {
    let mut grid = with_result();
    grid.core.settings.scheduler.lease_ms = HOUR_MS;
    grid.core.settings.scheduler.result_retention_s = 3_600;
    grid.set_wall(WALL_MS + 2 * HOUR_MS);
    grid.pass_in([Input::Tick]);
    grid.jump(59_999);
    grid.check(Input::Tick, &[]);
    grid.jump(1);
    let believed = format!("clock Believed {{ ahead_ms: {} }}", 2 * HOUR_MS);
    let recorded = format!("clock {}", WALL_MS + 2 * HOUR_MS + 60_000);
    grid.check(Input::Tick, &[&believed, "forget T1", &recorded]);
}

/// A scheduler that starts with a clock that is days ahead must not delete at once.
#[test]
fn a_restart_with_a_wrong_clock_deletes_nothing() {
    let mut grid = Grid::started_at(WALL_MS + 48 * HOUR_MS, with_result());
    let doubted = format!("clock Doubted {{ ahead_ms: {} }}", 48 * HOUR_MS);
    grid.check(Input::Tick, &[&doubted]);
    grid.pass(30_000);
    grid.check(Input::Tick, &[]);
    grid.check(attach(1), &["c: status T1 completed", "c: outcome T1 completed with bytes"]);
    // New ids are of its own wrong time, or of the right one.
    grid.check(submit(3), &["insert T3", "c: accepted T3 behind 0"]);
    grid.set_wall(WALL_MS + 30_000);
    grid.check(Input::Tick, &["clock Returned"]);
}

#[test]
fn a_clock_that_is_always_believed_is_seen() {
    let mut grid = with_result();
    grid.core.faults.plant(Some(Fault::ClockBelieved));
    grid.set_wall(WALL_MS + 2 * HOUR_MS);
    let text = format!("{:?}", grid.handle(Input::Tick));
    assert!(text.contains("Forget"), "{text}");
}

/// Running, waiting and delayed tasks are timed by the monotonic clock, or by the believed wall clock.
#[test]
fn a_clock_that_jumps_ahead_ends_nothing_that_runs_or_waits() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let limited = |n| TaskSpec {
        deadline_wall_ms: Some(WALL_MS + HOUR_MS),
        wait_limit_ms: Some(HOUR_MS),
        run_limit_ms: Some(HOUR_MS),
        ..spec(n)
    };
    grid.pass_in([submit_spec(limited(1)), accept("n", 1, 2), submit_spec(limited(2))]);
    grid.set_wall(WALL_MS + 2 * HOUR_MS);
    let doubted = format!("clock Doubted {{ ahead_ms: {} }}", 2 * HOUR_MS);
    grid.check(Input::Tick, &[&doubted]);
    grid.pass(2_000);
    grid.check(poll("n", 1, &[2], 0), &["n: commands []"]);
    // A lease and a back-off end no sooner, either.
    grid.pass_in([failed("n", 1, 2, 2, FailureKind::Internal)]);
    grid.set_wall(WALL_MS + 4 * HOUR_MS);
    let text = format!("{:?}", grid.handle(Input::Tick));
    for effect in ["End", "Forget", "CloseSession"] {
        assert!(!text.contains(effect), "{effect}: {text}");
    }
    grid.set_wall(WALL_MS + 2_000);
    grid.check(Input::Tick, &["clock Returned"]);
    grid.check(query(2), &["c: status T2 processing"]);
    // The believed time goes on: at the deadline they end.
    grid.core.settings.scheduler.lease_ms = 2 * HOUR_MS;
    grid.jump(HOUR_MS);
    let text = format!("{:?}", grid.handle(Input::Tick));
    assert!(text.contains("DeadlineExceeded") || text.contains("deadline_exceeded"), "{text}");
}
