//! Admission, owners, cancels, retention.

use lamagrid_domain::{Hash, Owner, TaskId, TaskSpec};
use lamagrid_protocol::message::{Attach, Cancel, Offer, Query, Release, Submit};

use super::grid::*;
use crate::core::state::retention::Retention;
use crate::core::state::tombstones::Tombstones;
use crate::core::{Authority, Input, Now};

fn stranger() -> Owner {
    "mallory".parse().unwrap()
}

/// P3.1, X6.
#[test]
fn the_same_submission_again_is_the_same_task() {
    let mut grid = Grid::new();
    grid.check_all([
        (submit(1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (submit(1), &["c: status T1 queued"]),
        // More urgent, but the same work.
        (submit_spec(TaskSpec { priority: 9, ..spec(1) }), &["c: status T1 queued"]),
        (attach(1), &["c: status T1 queued"]),
    ]);
}

#[test]
fn an_id_that_is_in_use_is_refused_to_others_and_tells_nothing() {
    let mut grid = Grid::new();
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    let mut other = spec(1);
    other.blobs[0].hash = Hash::new([99; 32]);
    let wrong = Some(Hash::new([7; 32]));
    let (id, alice, mallory) = (id(1), "alice".parse::<Owner>().unwrap(), stranger());
    grid.check_all([
        (submit_spec(other), ["c: refused invalid_input, 0 wait"].as_slice()),
        (submit_spec(TaskSpec { owner: mallory.clone(), ..spec(1) }), &["c: refused invalid_input, 0 wait"]),
        (client("m", Attach { seq: 1, id, owner: mallory.clone(), digest: None }), &["m: unknown T1"]),
        (client("m", Query { seq: 1, id, owner: mallory.clone() }), &["m: unknown T1"]),
        (client("m", Cancel { seq: 1, id, owner: mallory.clone() }), &["m: unknown T1"]),
        (client("m", Release { id, owner: mallory }), &[]),
        (
            client("c", Attach { seq: 1, id, owner: alice, digest: wrong }),
            &["c: refused invalid_input, 0 wait"],
        ),
    ]);
}

#[test]
fn cancel_reaches_waiting_and_ended_tasks() {
    let mut grid = Grid::new();
    let cancelled = ["end T1 cancelled", "c: outcome T1 cancelled", "finished T1", "c: status T1 cancelled"];
    grid.check_all([
        (submit(1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (cancel(1), &cancelled),
        (cancel(1), &["c: status T1 cancelled"]),
        (submit(1), &["c: status T1 cancelled", "c: outcome T1 cancelled"]),
    ]);
}

#[test]
fn cancel_of_an_unknown_id_stops_a_submit_that_comes_later() {
    let mut grid = Grid::new();
    grid.check_all([
        (cancel(1), ["remember T1", "c: unknown T1"].as_slice()),
        (cancel(1), &["c: expired T1"]),
        (submit(1), &["c: expired T1"]),
        (query(1), &["c: expired T1"]),
    ]);
}

/// R1.5: full is an answer, with what a person needs to decide.
#[test]
fn a_full_queue_refuses_with_its_length() {
    let mut grid = Grid::new();
    for n in 1..=3 {
        let behind = format!("c: accepted T{n} behind {}", n - 1);
        let alarm = if n == 3 { &["alarm gpu 100"][..] } else { &[] };
        grid.check(submit(n), &[&[format!("insert T{n}").as_str(), &behind], alarm].concat());
    }
    let spec_4 = spec(4);
    let digest = lamagrid_protocol::payload_digest(&spec_4);
    let TaskSpec { id, owner, queue, .. } = spec_4;
    let offer = |bytes| Offer {
        seq: 1,
        id,
        owner: owner.clone(),
        queue: queue.clone(),
        digest,
        bytes,
        priority: 0,
        client: None,
        routed: false,
        model: None,
        picture: None,
    };
    grid.check(submit(4), &["c: refused overloaded, 3 wait"]);
    grid.check(client("c", offer(9)), &["c: refused overloaded, 3 wait"]);
    // Known ones are answered all the same, and a place that came free is given away.
    grid.check(submit(2), &["c: status T2 queued"]);
    grid.check(
        cancel(2),
        &[
            "end T2 cancelled",
            "c: outcome T2 cancelled",
            "finished T2",
            "c: status T2 cancelled",
            "alarm gpu 0",
        ],
    );
    grid.check(client("c", offer(9)), &["upload T4 9 bytes by alice", "c: send"]);
    grid.check(client("c", offer(1 << 40)), &["c: refused invalid_input, 2 wait"]);
    grid.check(submit(4), &["insert T4", "c: accepted T4 behind 2", "alarm gpu 100"]);
}

#[test]
fn one_connection_has_a_bound_of_its_own() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 9);
    for n in 1..=8 {
        grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(n));
    }
    grid.check(submit(9), &["c: refused overloaded, 0 wait"]);
    grid.check(Input::ClientGone { peer: peer("c") }, &[]);
    assert_eq!(grid.core.unfinished(), 8, "its tasks go on");
}

#[test]
fn what_cannot_be_right_is_refused() {
    let broken: [fn(&mut TaskSpec); 5] = [
        |s| s.queue = "tpu".parse().unwrap(),
        |s| s.blobs.clear(),
        |s| s.blobs.push(s.blobs[0].clone()),
        |s| s.blobs[0].role = lamagrid_domain::Role::Result,
        |s| s.blobs[0].len = u64::MAX,
    ];
    let mut grid = Grid::new();
    for damage in broken {
        let mut spec = spec(1);
        damage(&mut spec);
        grid.check(submit_spec(spec), &["c: refused invalid_input, 0 wait"]);
    }
    let inline = vec![lamagrid_domain::Role::Image];
    let request = Submit { seq: 1, spec: spec(1), inline, follow: true };
    let short = Input::Client {
        authority: Authority::Administrator,
        peer: peer("c"),
        request: request.into(),
        inline: vec![bytes::Bytes::from_static(b"x")],
    };
    grid.check(short, &["c: refused invalid_input, 0 wait"]);
}

#[test]
fn after_retention_the_id_is_remembered_and_after_that_it_is_free() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid.check(
        done("n", 1, 2, 2),
        &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
    );
    grid.jump(59_999);
    grid.check(Input::Tick, &[]);
    grid.check(attach(1), &["c: status T1 completed", "c: outcome T1 completed with bytes"]);
    grid.jump(1);
    grid.check(Input::Tick, &["forget T1"]);
    grid.check(submit(1), &["c: expired T1"]);
    grid.check(done("n", 1, 2, 2), &["n: stored #2 false"]);
    grid.jump(600_000);
    // It is older than what is remembered, so that it does not run again either.
    grid.check(Input::Tick, &["watermark alice 1000000", "unremember T1", "clock 1660000"]);
    grid.check(query(1), &["c: expired T1"]);
    grid.check(submit(1), &["c: refused invalid_input, 0 wait"]);
}

#[test]
fn a_released_result_is_gone_and_the_end_is_not() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid.core.handle(Now { mono_ms: 5_000, wall_ms: WALL_MS }, done("n", 1, 2, 1));
    grid.check_all([
        (release(1), ["release T1"].as_slice()),
        (release(1), &[]),
        (attach(1), &["c: status T1 completed", "c: outcome T1 completed"]),
    ]);
}

#[test]
fn the_owner_with_the_most_ended_tasks_loses_its_oldest() {
    let mut grid = Grid::new();
    grid.core.settings.max_ended = 3;
    grid.pass_in([submit(1), cancel(1)]);
    for n in 2..5 {
        grid.jump(10);
        let cancel = Cancel { seq: 1, id: id(n), owner: stranger() };
        grid.pass_in([submit_spec(TaskSpec { owner: stranger(), ..spec(n) }), client("m", cancel)]);
    }
    grid.check(Input::Tick, &["forget T2"]);
    grid.check(query(1), &["c: status T1 cancelled"]);
}

/// One owner's cancels shorten that owner's memory alone, on disk as well, and what was cancelled never runs.
#[test]
fn an_owner_drops_its_own_tombstones_only() {
    let mut grid = Grid::new();
    grid.core.retention = Retention::new(Tombstones::new(3, Vec::new()));
    let of = |n, owner: &Owner| client("c", Cancel { seq: 0, id: id(n), owner: owner.clone() });
    grid.pass_in([cancel(1)]);
    for n in 10..13 {
        let lines = [format!("remember T{n}"), format!("c: unknown T{n}")];
        grid.check(of(n, &stranger()), &lines.each_ref().map(String::as_str));
    }
    let pushed_out = ["watermark mallory 1000000", "unremember T10", "remember T13", "c: unknown T13"];
    grid.check(of(13, &stranger()), &pushed_out);
    let submit_as = |n, owner: Owner| submit_spec(TaskSpec { owner, ..spec(n) });
    grid.check_all([
        (submit(1), ["c: expired T1"].as_slice()),
        (submit_as(10, stranger()), &["c: refused invalid_input, 0 wait"]),
        (submit_as(14, stranger()), &["c: refused invalid_input, 0 wait"]),
        (submit(14), &["insert T14", "c: accepted T14 behind 0"]),
    ]);
}

#[test]
fn an_id_of_a_wrong_clock_is_refused_with_both_clocks() {
    let mut grid = Grid::new();
    let drawn_at = |wall_ms| TaskId::drawn_at(wall_ms, [1; 16]);
    let day_ms = 86_400_000;
    grid.handle(submit_spec(TaskSpec { id: drawn_at(WALL_MS + day_ms), ..spec(1) }));
    assert_eq!(grid.core.unfinished(), 1, "clocks differ");
    let effects = grid.handle(submit_spec(TaskSpec { id: drawn_at(WALL_MS + day_ms + 1_000), ..spec(1) }));
    let text = format!("{effects:?}");
    assert!(text.contains("86401 s in the future") && text.contains("NTP"), "{text}");
    assert!(text.contains(&format!("scheduler's clock it is {WALL_MS}")), "{text}");
    assert_eq!(grid.core.unfinished(), 1);
}
