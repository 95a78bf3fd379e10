//! A node's work after its session ended, for each way in which it can end.

use super::grid::*;
use crate::core::{Input, Now, Origin, StoredTask};

/// A grid with one node, `n`, that works on T1 under token 2.
fn working() -> Grid {
    let mut grid = assigned();
    grid.check(accept("n", 1, 2), &["n: proceed #2"]);
    grid
}

/// The same before the accept.
fn assigned() -> Grid {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid
}

const REQUEUED: [&str; 2] = ["requeue T1, 0 crashes, 0 failures", "c: progress T1 queued 0/0"];
const CRASHED: [&str; 2] = ["requeue T1, 1 crashes, 0 failures", "c: progress T1 queued 0/0"];

#[test]
fn an_assignment_that_is_not_accepted_ends_its_session() {
    let mut grid = assigned();
    grid.pass(500);
    grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    grid.pass(499);
    grid.check(Input::Tick, &[]);
    grid.pass(1);
    grid.check(Input::Tick, &["close #1", REQUEUED[0], REQUEUED[1]]);
    grid.check(poll("n", 1, &[], 0), &["n: gone #1"]);
}

#[test]
fn a_lost_assignment_that_was_cancelled_still_ends_the_session_whose_credit_it_took() {
    let mut grid = assigned();
    grid.check(
        cancel(1),
        &[
            "lane #1/0: hint",
            "end T1 cancelled",
            "c: outcome T1 cancelled",
            "finished T1",
            "c: status T1 cancelled",
        ],
    );
    grid.pass(1_000);
    grid.check(Input::Tick, &["close #1"]);
}

#[test]
fn a_cancelled_assignment_that_is_answered_keeps_its_session() {
    let mut grid = assigned();
    grid.check(
        cancel(1),
        &[
            "lane #1/0: hint",
            "end T1 cancelled",
            "c: outcome T1 cancelled",
            "finished T1",
            "c: status T1 cancelled",
        ],
    );
    grid.check(accept("n", 1, 2), &["n: abandon #2"]);
    grid.pass(1_000);
    grid.check(Input::Tick, &[]);
}

#[test]
fn a_closed_connection_keeps_its_work_for_the_grace_and_counts_a_crash_after_it() {
    // X8: of another host it has a lease; the network may have closed it.
    for (origin, grace_ms) in [(Origin::Local, 1_500), (Origin::Remote, 20_000)] {
        let mut grid = working();
        grid.check(Input::ResultGone { peer: peer("n"), origin }, &["close #1"]);
        for _ in 0..(grace_ms - 1) / 499 {
            grid.pass(499);
            grid.check(Input::Tick, &[]);
        }
        grid.pass((grace_ms - 1) % 499);
        grid.check(Input::Tick, &[]);
        grid.pass(1);
        grid.check(Input::Tick, &CRASHED);
    }
}

/// R7.3.
#[test]
fn a_node_that_comes_back_within_the_grace_goes_on() {
    let mut grid = working();
    grid.check(closed("n"), &["close #1"]);
    grid.pass(1_000);
    grid.check_all([
        (hello("n", 1, "lama", 1, &[2], &[]), ["n: welcome #3 lanes [gpu] abandoned []"].as_slice()),
        (lane_connected(3), &[]),
        (ready("n", 3, 0), &[]),
        (done("n", 1, 2, 1), &["n: gone #1"]),
        (
            done("n", 3, 2, 1),
            &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
        ),
    ]);
}

#[test]
fn a_node_that_comes_back_without_its_work_lost_it() {
    let mut grid = working();
    grid.check(closed("n"), &["close #1"]);
    grid.check(
        hello("n", 2, "lama", 1, &[], &[]),
        &[CRASHED[0], CRASHED[1], "n: welcome #3 lanes [gpu] abandoned []"],
    );
}

/// R2.5: marked offline by silence, its tasks wait again.
#[test]
fn silence_for_a_whole_lease_loses_the_node() {
    let mut grid = working();
    grid.pass(19_999);
    grid.check(Input::Tick, &[]);
    grid.pass(1);
    grid.check(Input::Tick, &["close #1", CRASHED[0], CRASHED[1]]);
    // It was only frozen: what it made is not wanted any more.
    grid.check_all([
        (done("n", 1, 2, 2), ["n: gone #1"].as_slice()),
        (hello("n", 1, "lama", 1, &[], &[2]), &["n: welcome #3 lanes [gpu] abandoned [#2]"]),
    ]);
}

#[test]
fn a_scheduler_that_was_stopped_does_not_expire_leases() {
    let mut grid = working();
    grid.core.handle(Now { mono_ms: 5_000_000, wall_ms: WALL_MS }, Input::Tick);
    assert_eq!(grid.core.unfinished(), 1);
    grid.core.handle(Now { mono_ms: 5_000_050, wall_ms: WALL_MS }, done("n", 1, 2, 2));
    assert_eq!(grid.core.unfinished(), 0);
}

#[test]
fn the_third_lost_node_ends_the_task() {
    let mut grid = working();
    grid.check(closed("n"), &["close #1"]);
    let mut session = 3_u8;
    for crashes in ["requeue T1, 1 crashes, 0 failures", "requeue T1, 2 crashes, 0 failures"] {
        let welcome = format!("n: welcome #{session} lanes [gpu] abandoned []");
        let assign = format!("assign T1 #{} to n, attempt {}", session + 1, session.div_ceil(2));
        let lane = format!("lane #{session}/0: assign T1 #{}", session + 1);
        grid.check(hello("n", 2, "lama", 1, &[], &[]), &[crashes, "c: progress T1 queued 0/0", &welcome]);
        grid.check(lane_connected(session), &[]);
        grid.check(ready("n", session, 1), &[&assign, &lane, "c: progress T1 processing 0/0"]);
        grid.check(accept("n", session, session + 1), &[&format!("n: proceed #{}", session + 1)]);
        grid.check(closed("n"), &[&format!("close #{session}")]);
        session += 2;
    }
    grid.pass(1_500);
    grid.check(
        Input::Tick,
        &["end T1 failed node_lost, dead", "c: outcome T1 failed node_lost", "finished T1"],
    );
}

#[test]
fn goodbye_counts_no_crash() {
    let mut grid = working();
    grid.check(goodbye("n", 1), &["close #1", REQUEUED[0], REQUEUED[1], "n: farewell"]);
    grid.check(goodbye("n", 1), &["n: farewell"]);
}

/// R4.4.
#[test]
fn a_node_that_drains_finishes_and_leaves() {
    let mut grid = working();
    grid.check_all([
        (submit(2), ["insert T2", "c: accepted T2 behind 0"].as_slice()),
        // It gives no further credit.
        (
            done("n", 1, 2, 1),
            &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
        ),
        (goodbye("n", 1), &["close #1", "n: farewell"]),
        (query(2), &["c: status T2 queued"]),
    ]);
}

#[test]
fn lanes_that_cannot_be_bound_end_the_session() {
    let mut grid = working();
    let session = lamagrid_domain::SessionId::from_bytes([1; 16]);
    grid.check(Input::LanesFailed { session, reason: "no room".into() }, &["close #1"]);
    grid.check(Input::LanesFailed { session, reason: "no room".into() }, &[]);
}

pub(super) fn stored(n: u8, assigned: Option<u8>) -> StoredTask {
    let spec = spec(n);
    StoredTask::Live {
        history: Vec::new(),
        digest: lamagrid_protocol::payload_digest(&spec),
        spec: Box::new(spec),
        seq: u64::from(n),
        created_wall_ms: WALL_MS - 5,
        counters: lamagrid_domain::Counters { attempts: 1, crashes: 0, failures: 0 },
        assigned: assigned.map(|t| (token(t), "n".parse().unwrap())),
        inline: Vec::new(),
    }
}

#[test]
fn after_a_restart_listed_work_is_adopted_and_the_rest_waits_again_uncounted() {
    let mut grid = Grid::recovered(vec![stored(1, Some(101)), stored(2, Some(102)), stored(3, Some(103))]);
    grid.check(submit(1), &["c: status T1 processing"]);
    grid.check(
        hello("n", 1, "lama", 2, &[101], &[102]),
        &["requeue T3, 0 crashes, 0 failures", "n: welcome #1 lanes [gpu] abandoned []"],
    );
    grid.check_all([
        (
            done("n", 1, 101, 0),
            ["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #101 true"]
                .as_slice(),
        ),
        (done("n", 1, 102, 0), &["end T2 completed", "finished T2", "n: stored #102 true"]),
        (lane_connected(1), &[]),
        (ready("n", 1, 1), &["assign T3 #2 to n, attempt 2", "lane #1/0: assign T3 #2"]),
    ]);
}

#[test]
fn after_a_restart_a_node_that_stays_away_loses_its_work_uncounted_after_a_lease() {
    let mut grid = Grid::recovered(vec![stored(1, Some(101))]);
    grid.pass(19_999);
    grid.check(Input::Tick, &[]);
    grid.pass(1);
    grid.check(Input::Tick, &["requeue T1, 0 crashes, 0 failures"]);
}

#[test]
fn a_held_result_that_is_on_record_is_taken_off_the_nodes_hands_after_a_restart() {
    let mut grid = working();
    let mut kept = None;
    for effect in grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, done("n", 1, 2, 2)) {
        if let crate::core::Effect::Store(crate::core::StoreOp::End { id, ended, .. }) = effect {
            kept = Some(StoredTask::Ended { id, ended });
        }
    }
    let mut grid = Grid::recovered(kept.into_iter().collect());
    grid.check_all([
        // Not abandoned: the node delivers it and hears that it is there.
        (hello("n", 1, "lama", 1, &[], &[2]), ["n: welcome #1 lanes [gpu] abandoned []"].as_slice()),
        (done("n", 1, 2, 1), &["n: stored #2 true"]),
        (attach(1), &["c: status T1 completed", "c: outcome T1 completed with bytes"]),
    ]);
}
