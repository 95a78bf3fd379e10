//! Admission, owners, cancels, retention.

use lamagrid_domain::{Hash, Owner, TaskSpec};
use lamagrid_wire::message::{Attach, Cancel, Offer, Query, Release, Submit};

use super::grid::*;
use crate::core::{Input, Now};

fn stranger() -> Owner {
    "mallory".parse().unwrap()
}

/// P3.1, X6.
#[test]
fn the_same_submission_again_is_the_same_task() {
    let mut grid = Grid::new();
    grid.check_all([
        (submit(1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (submit(1), &["c: told T1 queued"]),
        // More urgent, but the same work.
        (submit_spec(TaskSpec { priority: 9, ..spec(1) }), &["c: told T1 queued"]),
        (attach(1), &["c: told T1 queued"]),
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
    let cancelled = ["end T1 cancelled", "c: outcome T1 cancelled", "finished T1", "c: told T1 cancelled"];
    grid.check_all([
        (submit(1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (cancel(1), &cancelled),
        (cancel(1), &["c: told T1 cancelled"]),
        (submit(1), &["c: told T1 cancelled", "c: outcome T1 cancelled"]),
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
    let digest = lamagrid_wire::payload_digest(&spec_4);
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
    };
    grid.check(submit(4), &["c: refused overloaded, 3 wait"]);
    grid.check(client("c", offer(9)), &["c: refused overloaded, 3 wait"]);
    // Known ones are answered all the same, and a place that came free is given away.
    grid.check(submit(2), &["c: told T2 queued"]);
    grid.check(
        cancel(2),
        &[
            "end T2 cancelled",
            "c: outcome T2 cancelled",
            "finished T2",
            "c: told T2 cancelled",
            "alarm gpu 0",
        ],
    );
    grid.check(client("c", offer(9)), &["c: send"]);
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
    grid.set_wall(WALL_MS + 59_999);
    grid.check(Input::Tick, &[]);
    grid.check(attach(1), &["c: told T1 completed", "c: outcome T1 completed with bytes"]);
    grid.set_wall(WALL_MS + 60_000);
    grid.check(Input::Tick, &["forget T1"]);
    grid.check(submit(1), &["c: expired T1"]);
    grid.check(done("n", 1, 2, 2), &["n: stored #2 false"]);
    grid.set_wall(WALL_MS + 660_000);
    grid.check(Input::Tick, &["unremember T1"]);
    grid.check(query(1), &["c: unknown T1"]);
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
        (attach(1), &["c: told T1 completed", "c: outcome T1 completed"]),
    ]);
}

#[test]
fn tombstones_are_bounded_on_disk_as_well() {
    let mut grid = Grid::new();
    let now = Now { mono_ms: 5_000, wall_ms: WALL_MS };
    let cancel = |n: u32| {
        let mut bytes = [1; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let id = lamagrid_domain::TaskId::from_bytes(bytes);
        client("c", Cancel { seq: 0, id, owner: stranger() })
    };
    for n in 0..super::super::MAX_TOMBSTONES as u32 {
        assert_eq!(grid.core.handle(now, cancel(n)).len(), 2);
    }
    let lines: Vec<_> = grid.core.handle(now, cancel(u32::MAX)).iter().map(line).collect();
    assert_eq!(lines, ["unremember T0", "remember T255", "c: unknown T255"]);
}
