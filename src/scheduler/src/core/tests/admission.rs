//! Bounds, eviction, fair shares and ageing.

use lamagrid_domain::TaskSpec;

use super::grid::*;
use crate::core::{Effect, Fault, Input, StoreOp};

fn with_priority(n: u8, priority: i8) -> Input {
    submit_spec(TaskSpec { priority, ..spec(n) })
}

fn of_client(n: u8, client: &str) -> TaskSpec {
    TaskSpec { client: Some(client.parse().unwrap()), ..spec(n) }
}

/// P6.3.
#[test]
fn a_full_queue_gives_up_the_last_of_the_least_important_in_one_transaction() {
    let mut grid = Grid::new();
    grid.pass_in([with_priority(1, -5), with_priority(2, -5), with_priority(3, 0)]);
    // Nothing is less important than the least important.
    grid.check(with_priority(4, -5), &["c: refused overloaded, 3 wait"]);
    grid.check(
        with_priority(5, 1),
        &[
            "end T2 failed overloaded + insert T5",
            "c: outcome T2 failed overloaded",
            "finished T2",
            "c: accepted T5 behind 0",
        ],
    );
    grid.check(query(2), &["c: status T2 failed"]);
}

#[test]
fn what_would_not_make_enough_room_is_not_given_up() {
    let mut grid = Grid::new();
    let with_bytes = |n, priority, len| {
        let mut spec = TaskSpec { priority, ..spec(n) };
        spec.blobs[0].len = len;
        submit_spec(spec)
    };
    const HALF: u64 = 1 << 19; // of the spool's bound; and four bytes a pixel are too much for an image
    grid.core.settings.limits.max_pixels = 1 << 20;
    grid.pass_in([with_bytes(1, -5, HALF), with_bytes(2, 0, HALF)]);
    grid.core.settings.limits.max_client_bytes = 1 << 30;
    grid.check(with_bytes(3, 5, 2 * HALF + 1), &["c: refused overloaded, 2 wait"]);
    let both = grid.handle(with_bytes(4, 5, 2 * HALF));
    let Effect::Store(StoreOp::Together(ops)) = &both[0] else { panic!("{both:?}") };
    assert!(
        matches!(ops.as_slice(), [StoreOp::End { .. }, StoreOp::End { .. }, StoreOp::Insert { .. }]),
        "{ops:?}"
    );
    grid.check(query(4), &["c: status T4 queued"]);
}

#[test]
fn one_client_cannot_take_all_places() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_client_tasks = 2;
    grid.pass_in([submit_spec(of_client(1, "a")), submit_spec(of_client(2, "a"))]);
    grid.check(submit_spec(of_client(3, "a")), &["c: refused overloaded, 2 wait"]);
    grid.check(submit_spec(of_client(4, "b")), &["insert T4", "c: accepted T4 behind 1", "alarm gpu 100"]);
    // A place is free again once a task has ended.
    grid.pass_in([cancel(1)]);
    grid.check(submit_spec(of_client(3, "a")), &["insert T3", "c: accepted T3 behind 2", "alarm gpu 100"]);
}

#[test]
fn one_client_cannot_take_all_bytes() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_client_bytes = 17; // each task has 9
    grid.pass_in([submit_spec(of_client(1, "a"))]);
    grid.check(submit_spec(of_client(2, "a")), &["c: refused overloaded, 1 wait"]);
    grid.check(submit_spec(of_client(3, "b")), &["insert T3", "c: accepted T3 behind 1"]);
}

/// X11.
#[test]
fn clients_take_turns_whatever_one_of_them_piles_up() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 100);
    grid.core.settings.scheduler.max_outstanding_per_peer = 100;
    (1..=6).for_each(|n| drop(grid.handle(submit_spec(of_client(n, "many")))));
    (7..=8).for_each(|n| drop(grid.handle(submit_spec(of_client(n, "few")))));
    grid.check(submit_spec(of_client(9, "late")), &["insert T9", "c: accepted T9 behind 2"]);
    grid.pass_in([hello("n", 1, "lama", 9, &[], &[]), lane_connected(1)]);
    let given: Vec<_> = grid
        .handle(ready("n", 1, 9))
        .iter()
        .filter_map(|e| {
            if let Effect::Store(StoreOp::Assign { id, .. }) = e { Some(id.as_bytes()[15]) } else { None }
        })
        .collect();
    assert_eq!(given, [1, 7, 9, 2, 8, 3, 4, 5, 6]);
}

/// X11: names that an owner makes up gain it nothing beside another owner.
#[test]
fn owners_take_turns_whatever_names_their_clients_have() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 100);
    grid.core.settings.scheduler.max_outstanding_per_peer = 100;
    let of = |n: u8, owner: &str, client: String| TaskSpec {
        owner: owner.parse().unwrap(),
        ..of_client(n, &client)
    };
    (1..=6).for_each(|n| drop(grid.handle(submit_spec(of(n, "mallory", format!("name-{n}"))))));
    (7..=9).for_each(|n| drop(grid.handle(submit_spec(of(n, "bob", "one".into())))));
    grid.pass_in([hello("n", 1, "lama", 9, &[], &[]), lane_connected(1)]);
    let given: Vec<_> = grid
        .handle(ready("n", 1, 9))
        .iter()
        .filter_map(|e| {
            if let Effect::Store(StoreOp::Assign { id, .. }) = e { Some(id.as_bytes()[15]) } else { None }
        })
        .collect();
    assert_eq!(given, [7, 1, 8, 2, 9, 3, 4, 5, 6]);
}

/// Made-up client names do not raise an owner's limit.
#[test]
fn an_owner_is_bounded_whatever_names_its_clients_have() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 100);
    grid.core.settings.limits.max_owner_tasks = 5;
    grid.core.settings.scheduler.max_outstanding_per_peer = 100;
    let accepted = |grid: &mut Grid| {
        (0..30).for_each(|n| drop(grid.handle(submit_spec(of_client(n, &format!("name-{n}"))))));
        grid.core.unfinished()
    };
    assert_eq!(accepted(&mut grid), 5);
    let bytes = |n, owner: &str| submit_spec(TaskSpec { owner: owner.parse().unwrap(), ..of_client(n, "x") });
    grid.core.settings.limits.max_owner_bytes = 17; // each task has 9
    grid.check(bytes(40, "bob"), &["insert T40", "c: accepted T40 behind 1"]);
    grid.check(bytes(41, "bob"), &["c: refused overloaded, 6 wait"]);
    // Seen, if it were not so.
    grid.core.faults.plant(Some(Fault::OwnerUnbounded));
    assert_eq!(accepted(&mut grid), 31);
}

/// A high priority evicts no other certificate's tasks.
#[test]
fn a_certificate_neither_jumps_the_queue_nor_evicts_others() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_remote_priority = 1;
    let of = |n, owner: &str, priority| {
        let spec = TaskSpec { owner: owner.parse().unwrap(), priority, ..spec(n) };
        lamagrid_protocol::message::Submit { seq: 1, spec, inline: Vec::new(), follow: true }
    };
    grid.pass_in([
        remote("a", of(1, "alice", -5)),
        remote("a", of(2, "alice", -5)),
        remote("b", of(3, "bob", 0)),
    ]);
    grid.check(remote("b", of(4, "bob", 127)), &["b: refused invalid_input, 3 wait"]);
    // Bob's are not less important than his own, and alice's are not his.
    grid.check(remote("b", of(4, "bob", 0)), &["b: refused overloaded, 3 wait"]);
    grid.check(
        remote("b", of(4, "bob", 1)),
        &[
            "end T3 failed overloaded + insert T4",
            "b: outcome T3 failed overloaded",
            "finished T3",
            "b: accepted T4 behind 0",
        ],
    );
    // An administrator's task evicts any owner's.
    grid.check(
        client("d", of(5, "dora", 127)),
        &[
            "end T2 failed overloaded + insert T5",
            "a: outcome T2 failed overloaded",
            "finished T2",
            "d: accepted T5 behind 0",
        ],
    );
}

#[test]
fn one_owner_from_another_host_leaves_places_for_others() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 100);
    grid.core.settings.limits.max_owner_tasks = 1_000;
    grid.core.settings.limits.max_client_tasks = 1_000;
    grid.core.settings.scheduler.max_outstanding_per_peer = 1_000;
    let fill = |grid: &mut Grid, first: u8, count: u8, owner: &str| {
        let before = grid.core.unfinished();
        for n in first..first + count {
            let spec = TaskSpec { owner: owner.parse().unwrap(), ..spec(n) };
            let submit =
                lamagrid_protocol::message::Submit { seq: 1, spec, inline: Vec::new(), follow: false };
            grid.handle(remote("r", submit));
        }
        grid.core.unfinished() - before
    };
    assert_eq!(fill(&mut grid, 0, 120, "alice"), 90);
    assert_eq!(fill(&mut grid, 120, 20, "bob"), 9);
    assert_eq!(fill(&mut grid, 140, 5, "carol"), 1);
}

/// X11: batch work comes later, but it comes.
#[test]
fn what_waits_long_enough_rises_to_the_priority_of_people() {
    let mut grid = Grid::new();
    grid.core.settings.scheduler.no_node_wait_ms = 1 << 40;
    grid.pass_in([with_priority(1, -2)]);
    grid.pass(10_000);
    grid.pass_in([Input::Tick]);
    grid.check(with_priority(2, 0), &["insert T2", "c: accepted T2 behind 0"]);
    grid.pass(10_000);
    grid.pass_in([Input::Tick]);
    // It is older than T2 now, and of its priority; it rises no further.
    grid.pass(20_000);
    grid.pass_in([Input::Tick]);
    grid.check(with_priority(3, 1), &["insert T3", "c: accepted T3 behind 0", "alarm gpu 100"]);
    grid.pass_in([hello("n", 1, "lama", 2, &[], &[]), lane_connected(1)]);
    let given = grid.handle(ready("n", 1, 2));
    let assigned = |n| {
        given.iter().any(|e| matches!(e, Effect::Store(StoreOp::Assign { id, .. }) if *id == self::id(n)))
    };
    assert!(assigned(3) && assigned(1) && !assigned(2), "{given:?}");
}

/// P6.3.
#[test]
fn alarms_rise_at_80_and_100_percent_and_end_below_70() {
    let mut grid = Grid::new();
    grid.core.settings.queues.values_mut().for_each(|max| *max = 10);
    grid.core.settings.scheduler.max_outstanding_per_peer = 100;
    let alarms = |effects: &[Effect]| -> Vec<u8> {
        effects.iter().filter_map(|e| if let Effect::Level(l) = e { Some(l.percent) } else { None }).collect()
    };
    let up: Vec<_> = (1..=10).map(|n| alarms(&grid.handle(submit_spec(TaskSpec { ..spec(n) })))).collect();
    assert_eq!(up.concat(), [80, 100]);
    assert_eq!((up[7].as_slice(), up[9].as_slice()), ([80].as_slice(), [100].as_slice()));
    let down: Vec<_> = (1..=10).map(|n| alarms(&grid.handle(cancel(n)))).collect();
    assert_eq!(down.concat(), [0]);
    assert_eq!(down[3], [0], "6 of 10");
}
