//! Tasks that are prepared while a slot works: who gets them, who gives them back, and what is held against them.

use lamagrid_domain::TaskSpec;

use super::grid::*;
use super::lines::line;
use super::lost::stored;
use crate::core::Input;

/// A grid with one node, `n`, of `slots` slots. It works on T1, T2, ... under the tokens 2, 3, ..., prepares as many more
/// tasks, and has accepted all of them.
fn preparing(slots: u16) -> Grid {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (slots, slots), &[]);
    for n in 1..=2 * slots as u8 {
        grid.pass_in([submit(n), accept("n", 1, n + 1)]);
    }
    grid
}

const HINT: &str = "lane #1/0: hint";
/// Both tasks of a node wait again, and the node's end is held against neither.
const BOTH: [&str; 4] = [
    "requeue T1, 0 crashes, 0 failures",
    "c: progress T1 queued 0/0",
    "requeue T2, 0 crashes, 0 failures",
    "c: progress T2 queued 0/0",
];
const DONE: [&str; 4] =
    ["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"];

/// X5.
#[test]
fn overlap_is_used_where_no_fitting_slot_is_idle() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (1, 1), &[]);
    grid.join("m", "lama", 2, 1);
    grid.join("o", "manga", 3, 1);
    let assigned = |t: u8, token: u8, to: &str, session: u8| {
        [
            format!("insert T{t}"),
            format!("c: accepted T{t} behind 0"),
            format!("assign T{t} #{token} to {to}, attempt 1"),
            format!("lane #{session}/0: assign T{t} #{token}"),
            format!("c: progress T{t} processing 0/0"),
        ]
    };
    for (t, token, to, session) in [(1, 4, "n", 1), (2, 5, "m", 2), (3, 6, "n", 1)] {
        let lines = assigned(t, token, to, session);
        grid.check(submit(t), &lines.each_ref().map(String::as_str));
    }
    // No credit is left, though a node of another model is idle.
    grid.check(submit(4), &["insert T4", "c: accepted T4 behind 0"]);
    let overview = "c: overview n busy, m busy, o ready";
    grid.check(client("c", lamagrid_protocol::message::GetGridStatus { seq: 0, after: None }), &[overview]);
}

#[test]
fn an_idle_node_that_must_load_beats_a_busy_one_that_need_not() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (1, 1), &[]);
    grid.join("m", "lama", 2, 1);
    grid.pass_in([ready_with("n", 1, 2, "lama"), submit(1)]);
    grid.check(
        submit(2),
        &[
            "insert T2",
            "c: accepted T2 behind 0",
            "assign T2 #4 to m, attempt 1",
            "lane #2/0: assign T2 #4",
            "c: progress T2 processing 0/0",
        ],
    );
}

#[test]
fn among_busy_nodes_the_model_in_memory_wins_then_whoever_was_given_nothing_for_longest() {
    let mut grid = Grid::new();
    for (session, name) in [(1, "n"), (2, "m"), (3, "o")] {
        grid.join_with_overlap(name, "lama", session, (1, 1), &[]);
    }
    for n in 1..=3 {
        grid.pass_in([submit(n)]);
        grid.pass(1);
    }
    grid.pass_in([ready_with("m", 2, 2, "lama")]);
    let mut given = Vec::new();
    for n in 4..=6 {
        for effect in grid.handle(submit(n)) {
            given.extend(line(&effect).strip_prefix("lane ").map(str::to_owned));
        }
        grid.pass(1);
    }
    assert_eq!(given, ["#2/0: assign T4 #7", "#1/0: assign T5 #8", "#3/0: assign T6 #9"]);
}

#[test]
fn credit_comes_back_when_a_slot_is_left_and_not_again_with_the_delivery() {
    let mut grid = preparing(1);
    grid.pass_in([submit(3), submit(4)]);
    grid.check_all([
        (
            ready("n", 1, 3),
            ["assign T3 #4 to n, attempt 1", "lane #1/0: assign T3 #4", "c: progress T3 processing 0/0"]
                .as_slice(),
        ),
        (done("n", 1, 2, 3), &DONE),
        (accept("n", 1, 4), &["n: proceed #4"]),
    ]);
}

#[test]
fn more_overlap_than_slots_is_not_used() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (1, 3), &[]);
    grid.pass_in([submit(1), submit(2), accept("n", 1, 2), accept("n", 1, 3)]);
    grid.check(submit(3), &["insert T3", "c: accepted T3 behind 0"]);
    let third = ["assign T3 #4 to n, attempt 1", "lane #1/0: assign T3 #4", "c: progress T3 processing 0/0"];
    // The node counts from four, and is busy all the same.
    grid.check(ready("n", 1, 5), &third);
    grid.pass_in([accept("n", 1, 4)]);
    grid.join_with_overlap("m", "lama", 5, (1, 0), &[HINT]);
    grid.check(poll("n", 1, &[2, 3, 4], 0), &["n: commands [1 recall #4]"]);
}

#[test]
fn an_idle_node_gets_what_waits_for_a_busy_ones_slot() {
    let mut grid = preparing(1);
    grid.join_with_overlap("m", "lama", 4, (1, 1), &[HINT]);
    grid.check_all([
        (poll("n", 1, &[2, 3], 0), ["n: commands [1 recall #3]"].as_slice()),
        // Once.
        (poll("n", 1, &[2, 3], 1), &["n: commands []"]),
        (ready("m", 4, 2), &[]),
        (
            stopped("n", 1, 3, 3),
            &[
                "requeue T2, 0 crashes, 0 failures",
                "c: progress T2 queued 0/0",
                "assign T2 #5 to m, attempt 2",
                "lane #4/0: assign T2 #5",
                "c: progress T2 processing 0/0",
                "n: stored #3 true",
            ],
        ),
    ]);
}

#[test]
fn what_began_before_its_recall_goes_on() {
    let mut grid = preparing(1);
    grid.join_with_overlap("m", "lama", 4, (1, 0), &[HINT]);
    grid.check_all([
        (ready("n", 1, 3), [].as_slice()),
        (done("n", 1, 2, 3), &DONE),
        // The next one waits there, and the idle slot is free for it.
        (
            done("n", 1, 3, 4),
            &["end T2 completed", "c: outcome T2 completed with bytes", "finished T2", "n: stored #3 true"],
        ),
    ]);
}

#[test]
fn one_idle_slot_asks_for_one_task_and_the_best_one() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (2, 2), &[]);
    let urgent = submit_spec(TaskSpec { priority: 5, ..spec(4) });
    grid.pass_in([submit(1), submit(2), submit(3), urgent]);
    grid.pass_in((2..=5).map(|token| accept("n", 1, token)));
    grid.join_with_overlap("m", "lama", 6, (1, 1), &[HINT]);
    grid.check(poll("n", 1, &[2, 3, 4, 5], 0), &["n: commands [1 recall #5]"]);
    // A second idle slot asks for the other one.
    grid.join_with_overlap("o", "lama", 7, (1, 0), &[HINT]);
    grid.check(poll("n", 1, &[2, 3, 4, 5], 1), &["n: commands [2 recall #4]"]);
}

#[test]
fn a_task_is_asked_for_once_its_node_has_it() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (1, 1), &[]);
    grid.pass_in([submit(1), submit(2), accept("n", 1, 2)]);
    grid.join("m", "lama", 4, 1);
    grid.check(accept("n", 1, 3), &["n: proceed #3", HINT]);
}

/// Two lanes are two connections: what is sent first may arrive last.
#[test]
fn the_order_of_arrival_says_who_waits() {
    let mut grid = Grid::new();
    grid.join_with_overlap("n", "lama", 1, (1, 1), &[]);
    grid.pass_in([submit(1), submit(2), accept("n", 1, 3), accept("n", 1, 2)]);
    grid.join_with_overlap("m", "lama", 4, (1, 0), &[HINT]);
    grid.check(poll("n", 1, &[2, 3], 0), &["n: commands [1 recall #2]"]);
}

#[test]
fn what_runs_is_not_taken_for_what_waited_and_was_cancelled() {
    let mut grid = preparing(1);
    grid.pass_in([cancel(2)]);
    grid.join_with_overlap("m", "lama", 4, (1, 0), &[]);
    grid.check(stopped("n", 1, 3, 3), &["n: stored #3 false"]);
    grid.check(poll("n", 1, &[2], 1), &["n: commands []"]);
}

#[test]
fn a_dropped_attempt_gives_its_credit_back_without_a_name() {
    let mut grid = preparing(2);
    grid.pass_in([cancel(4)]);
    grid.check(accept("n", 1, 5), &["n: abandon #5"]);
    grid.check(ready("n", 1, 5), &[]);
    // Two slots work, T3 waits.
    grid.join_with_overlap("m", "lama", 6, (1, 0), &[HINT]);
    grid.check(poll("n", 1, &[2, 3, 4], 1), &["n: commands [2 recall #4]"]);
}

#[test]
fn what_is_encoded_waits_for_nothing() {
    let mut grid = preparing(1);
    grid.pass_in([ready("n", 1, 3), submit(3), accept("n", 1, 4)]);
    // T1 has left its slot, T2 is in it, T3 waits.
    grid.join_with_overlap("m", "lama", 5, (2, 0), &[HINT]);
    grid.check(poll("n", 1, &[2, 3, 4], 0), &["n: commands [1 recall #4]"]);
}

#[test]
fn what_comes_back_stands_behind_better_tasks() {
    let mut grid = preparing(1);
    grid.join_with_overlap("m", "lama", 4, (1, 0), &[HINT]);
    // Another node is faster.
    grid.pass_in([submit(3), submit_spec(TaskSpec { priority: 5, ..spec(4) })]);
    grid.check(
        stopped("n", 1, 3, 3),
        &[
            "requeue T2, 0 crashes, 0 failures",
            "c: progress T2 queued 0/0",
            "assign T4 #6 to n, attempt 1",
            "lane #1/0: assign T4 #6",
            "c: progress T4 processing 0/0",
            "n: stored #3 true",
        ],
    );
}

#[test]
fn a_suspect_is_not_asked() {
    let mut grid = preparing(1);
    grid.pass(3_000);
    grid.join("m", "lama", 4, 1);
    grid.check(heartbeat(1), &[HINT]);
}

/// Any of them may have been its end: the one in the slot, or a picture whose decoder takes the node down.
#[test]
fn a_lost_node_is_held_against_neither_what_ran_nor_what_waited() {
    let mut grid = preparing(1);
    grid.check(closed("n"), &["close #1"]);
    grid.pass(1_500);
    grid.check(Input::Tick, &BOTH);
}

#[test]
fn a_node_that_comes_back_without_its_work_is_held_against_none_of_several() {
    let mut grid = preparing(1);
    grid.check(closed("n"), &["close #1"]);
    let again = hello_with_overlap(info("n", 2, &[("gpu", "lama")]), (1, 1), &[], &[]);
    grid.check(again, &[BOTH.as_slice(), &["n: welcome #4 lanes [gpu] abandoned []"]].concat());
}

/// Each shows by itself whether it is a node's end.
#[test]
fn what_shared_a_lost_node_runs_alone_and_counts_then() {
    let mut grid = preparing(1);
    grid.pass_in([closed("n")]);
    grid.pass(1_500);
    grid.pass_in([Input::Tick]);
    let first = ["assign T1 #5 to n, attempt 2", "lane #4/0: assign T1 #5", "c: progress T1 processing 0/0"];
    grid.join_with_overlap("n", "lama", 4, (1, 1), &first);
    // Nothing is prepared beside it.
    grid.check_all([
        (accept("n", 4, 5), ["n: proceed #5"].as_slice()),
        (submit(3), &["insert T3", "c: accepted T3 behind 1"]),
        (ready("n", 4, 3), &[]),
        (
            done("n", 4, 5, 3),
            &[
                "end T1 completed",
                "c: outcome T1 completed with bytes",
                "finished T1",
                "n: stored #5 true",
                "assign T2 #6 to n, attempt 2",
                "lane #4/0: assign T2 #6",
                "c: progress T2 processing 0/0",
            ],
        ),
        (accept("n", 4, 6), &["n: proceed #6"]),
        (closed("n"), &["close #4"]),
    ]);
    grid.pass(1_500);
    grid.check(Input::Tick, &["requeue T2, 1 crashes, 0 failures", "c: progress T2 queued 0/0"]);
}

#[test]
fn an_idle_node_takes_what_waited_on_a_node_that_is_gone_without_asking() {
    let mut grid = preparing(1);
    grid.check(closed("n"), &["close #1"]);
    grid.pass(1_000);
    let taken = [
        "requeue T2, 0 crashes, 0 failures",
        "c: progress T2 queued 0/0",
        "assign T2 #5 to m, attempt 2",
        "lane #4/0: assign T2 #5",
        "c: progress T2 processing 0/0",
    ];
    grid.join_with_overlap("m", "lama", 4, (1, 0), &taken);
    // Its node comes back in time, and keeps what ran.
    grid.check(
        hello_with_overlap(info("n", 1, &[("gpu", "lama")]), (1, 1), &[2, 3], &[]),
        &["n: welcome #6 lanes [gpu] abandoned [#3]"],
    );
}

#[test]
fn a_node_that_comes_back_goes_on_in_its_order() {
    let mut grid = preparing(2);
    grid.check(closed("n"), &["close #1"]);
    grid.check_all([
        (
            // It lists them in any order, and holds the result of T2.
            hello_with_overlap(info("n", 1, &[("gpu", "lama")]), (2, 2), &[5, 2, 4], &[3]),
            ["n: welcome #6 lanes [gpu] abandoned []"].as_slice(),
        ),
        (lane_connected(6), &[]),
        (ready("n", 6, 0), &[]),
        (
            done("n", 6, 3, 1),
            &["end T2 completed", "c: outcome T2 completed with bytes", "finished T2", "n: stored #3 true"],
        ),
    ]);
    // T1 and T3 are in the slots now, T4 waits.
    grid.join_with_overlap("m", "lama", 7, (2, 0), &["lane #6/0: hint"]);
    grid.check(poll("n", 6, &[2, 4, 5], 0), &["n: commands [1 recall #5]"]);
}

/// A result uses credit until it is delivered, which is not to be taken for an attempt that waits.
#[test]
fn what_began_while_its_node_was_away_is_not_asked_for() {
    let mut grid = preparing(1);
    grid.pass_in([closed("n")]);
    grid.check_all([
        (
            hello_with_overlap(info("n", 1, &[("gpu", "lama")]), (1, 1), &[3], &[2]),
            ["n: welcome #4 lanes [gpu] abandoned []"].as_slice(),
        ),
        (lane_connected(4), &[]),
        (ready("n", 4, 0), &[]),
    ]);
    grid.join_with_overlap("m", "lama", 5, (1, 0), &[]);
    grid.check(done("n", 4, 2, 1), &DONE);
}

/// Before it says how much credit it has, nothing says that it has one task only.
#[test]
fn a_node_that_comes_back_and_dies_at_once_is_held_against_none_of_several() {
    let mut grid = preparing(1);
    let again = hello_with_overlap(info("n", 1, &[("gpu", "lama")]), (1, 1), &[2, 3], &[]);
    grid.check(closed("n"), &["close #1"]);
    grid.check(again, &["n: welcome #4 lanes [gpu] abandoned []"]);
    grid.pass(20_000);
    grid.check(Input::Tick, &[["close #4"].as_slice(), &BOTH].concat());
}

#[test]
fn after_a_restart_the_nodes_own_order_counts() {
    let mut grid = Grid::recovered(vec![stored(1, Some(101)), stored(2, Some(102))]);
    let hello = hello_with_overlap(info("n", 1, &[("gpu", "lama")]), (1, 1), &[102, 101], &[]);
    grid.check_all([
        (hello, ["n: welcome #1 lanes [gpu] abandoned []"].as_slice()),
        (lane_connected(1), &[]),
        (ready("n", 1, 0), &[]),
    ]);
    grid.join_with_overlap("m", "lama", 2, (1, 0), &[HINT]);
    grid.check(poll("n", 1, &[102, 101], 0), &["n: commands [1 recall #101]"]);
}
