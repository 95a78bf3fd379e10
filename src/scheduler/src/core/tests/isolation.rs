//! Whose doing a lost node is: tasks that shared it are tried again one at a time.

use lamagrid_domain::{Milestone, TaskSpec};

use super::grid::*;
use crate::core::{Input, StoredTask};

/// A grid with room for more tasks than the others'.
fn wide() -> Grid {
    let mut grid = Grid::new();
    grid.core.settings.queues.insert("gpu".parse().unwrap(), 100);
    grid
}

/// A grid whose node `n` of four slots was lost with T1 to T4.
fn lost_with_four() -> Grid {
    let mut grid = wide();
    grid.join("n", "lama", 1, 4);
    for n in 1..=4 {
        grid.pass_in([submit(n), accept("n", 1, n + 1)]);
    }
    grid.check(closed("n"), &["close #1"]);
    grid.pass(1_500);
    let uncounted =
        |n| [format!("requeue T{n}, 0 crashes, 0 failures"), format!("c: progress T{n} queued 0/0")];
    let lines: Vec<_> = (1..=4).flat_map(uncounted).collect();
    grid.check(Input::Tick, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    grid
}

fn given(t: u8, token: u8, session: u8, attempt: u8) -> [String; 3] {
    [
        format!("assign T{t} #{token} to n, attempt {attempt}"),
        format!("lane #{session}/0: assign T{t} #{token}"),
        format!("c: progress T{t} processing 0/0"),
    ]
}

fn lines(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

fn ended_with(t: u8, token: u8, next: &[String]) -> Vec<String> {
    let end = [
        format!("end T{t} completed"),
        format!("c: outcome T{t} completed with bytes"),
        format!("finished T{t}"),
        format!("n: stored #{token} true"),
    ];
    end.iter().chain(next).cloned().collect()
}

/// One task that kills every node that it runs on takes no other one into the dead letters.
#[test]
fn of_four_tasks_of_a_lost_node_only_the_one_that_kills_it_alone_is_given_up() {
    let mut grid = lost_with_four();
    let mut session = 6;
    // T1 kills its node three times.
    for attempt in 2..=4 {
        let token = session + 1;
        grid.join_with_overlap("n", "lama", session, (4, 0), &lines(&given(1, token, session, attempt)));
        grid.pass_in([accept("n", session, token), closed("n")]);
        grid.pass(1_500);
        let lost = format!("requeue T1, {} crashes, 0 failures", attempt - 1);
        if attempt < 4 {
            grid.check(Input::Tick, &[&lost, "c: progress T1 queued 0/0"]);
        }
        session += 2;
    }
    let end = ["end T1 failed node_lost, dead", "c: outcome T1 failed node_lost", "finished T1"];
    grid.check(Input::Tick, &end);
    // The others are done, one after the other, although there are four slots.
    grid.join_with_overlap("n", "lama", session, (4, 0), &lines(&given(2, session + 1, session, 2)));
    grid.pass_in([accept("n", session, session + 1)]);
    let (second, third) = (given(3, session + 2, session, 2), given(4, session + 3, session, 2));
    grid.check(done("n", session, session + 1, 5), &lines(&ended_with(2, session + 1, &second)));
    grid.pass_in([accept("n", session, session + 2)]);
    grid.check(done("n", session, session + 2, 6), &lines(&ended_with(3, session + 2, &third)));
}

#[test]
fn the_node_with_the_least_work_is_kept_free_for_what_runs_alone() {
    let mut grid = wide();
    grid.join("n", "lama", 1, 2);
    grid.pass_in([submit(1), submit(2), accept("n", 1, 2), accept("n", 1, 3)]);
    grid.join("a", "lama", 4, 2);
    grid.join("b", "lama", 5, 2);
    // T3 and T4 on a, T5 on b.
    grid.pass_in([submit(3), submit(4), submit(5), accept("a", 4, 6), accept("a", 4, 7), accept("b", 5, 8)]);
    grid.pass_in([closed("n")]);
    grid.pass(1_500);
    grid.pass_in([Input::Tick]);
    let urgent = TaskSpec { priority: 5, ..spec(6) };
    let ended = |t: u8, node: &str, token: u8| {
        [
            format!("end T{t} completed"),
            format!("c: outcome T{t} completed with bytes"),
            format!("finished T{t}"),
            format!("{node}: stored #{token} true"),
        ]
    };
    let given = |t: u8, node: &str, session: u8, token: u8, attempt: u8| {
        [
            format!("assign T{t} #{token} to {node}, attempt {attempt}"),
            format!("lane #{session}/0: assign T{t} #{token}"),
            format!("c: progress T{t} processing 0/0"),
        ]
    };
    // Tasks before them go to b, tasks behind them do not.
    grid.check_all([
        (
            submit_spec(urgent),
            [
                "insert T6",
                "c: accepted T6 behind 0",
                "assign T6 #9 to b, attempt 1",
                "lane #5/0: assign T6 #9",
                "c: progress T6 processing 0/0",
            ]
            .as_slice(),
        ),
        (submit(7), &["insert T7", "c: accepted T7 behind 2"]),
        (accept("b", 5, 9), &["b: proceed #9"]),
    ]);
    let mut check = |input, parts: &[&[String]]| {
        let all = parts.concat();
        grid.check(input, &lines(&all));
    };
    check(done("b", 5, 8, 3), &[&ended(5, "b", 8)]);
    check(done("b", 5, 9, 4), &[&ended(6, "b", 9), &given(1, "b", 5, 10, 2)]);
    // Now a is kept free for the other one.
    check(done("a", 4, 6, 3), &[&ended(3, "a", 6)]);
    check(done("a", 4, 7, 4), &[&ended(4, "a", 7), &given(2, "a", 4, 11, 2)]);
    check(done("b", 5, 10, 5), &[&ended(1, "b", 10), &given(7, "b", 5, 12, 1)]);
}

#[test]
fn a_restart_of_the_scheduler_remembers_what_runs_alone() {
    let shared = Milestone::NodeLost { counts: false, shared: true };
    let entry = lamagrid_domain::Entry { at_wall_ms: WALL_MS, attempt: 1, what: shared };
    let StoredTask::Live { spec, digest, seq, created_wall_ms, counters, inline, .. } =
        super::lost::stored(1, None)
    else {
        panic!("it lives")
    };
    let history = vec![entry];
    let again =
        StoredTask::Live { spec, digest, seq, created_wall_ms, counters, inline, history, assigned: None };
    let mut grid = Grid::recovered(vec![again, super::lost::stored(2, None)]);
    grid.join_with_overlap(
        "n",
        "lama",
        1,
        (4, 0),
        &["assign T1 #2 to n, attempt 2", "lane #1/0: assign T1 #2"],
    );
    grid.check(
        done("n", 1, 2, 5),
        &[
            "end T1 completed",
            "finished T1",
            "n: stored #2 true",
            "assign T2 #3 to n, attempt 2",
            "lane #1/0: assign T2 #3",
        ],
    );
}

/// It may be that one which kills the node, unseen.
#[test]
fn a_cancelled_task_that_still_runs_is_company() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 2);
    grid.pass_in([submit(1), accept("n", 1, 2), submit(2), accept("n", 1, 3), cancel(1), closed("n")]);
    grid.pass(1_500);
    grid.check(Input::Tick, &["requeue T2, 0 crashes, 0 failures", "c: progress T2 queued 0/0"]);
    assert!(grid.core.tasks.is_isolated(id(2)));
}
