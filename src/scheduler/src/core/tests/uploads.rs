//! Offers: what is reserved, granted, counted and given back.

use lamagrid_domain::{Owner, TaskSpec};
use lamagrid_protocol::message::{Cancel, Offer};

use super::grid::*;
use crate::core::Input;

fn mallory() -> Owner {
    "mallory".parse().unwrap()
}

fn offer_of(n: u8, owner: &Owner, bytes: u64) -> Offer {
    let spec = spec(n);
    let digest = lamagrid_protocol::payload_digest(&spec);
    let (owner, queue) = (owner.clone(), spec.queue);
    Offer {
        seq: 7,
        id: id(n),
        owner,
        queue,
        digest,
        bytes,
        priority: 0,
        client: None,
        routed: false,
        model: None,
        picture: None,
    }
}

fn offer(n: u8, bytes: u64) -> Input {
    remote("c", offer_of(n, &owner(), bytes))
}

/// Two offers with one number are granted apart: each names its own id and size.
#[test]
fn two_offers_of_one_number_are_granted_each_as_it_was_made() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_pixels = 1 << 20;
    grid.check(offer(1, 10), &["upload T1 10 bytes by alice", "c: send"]);
    grid.check(offer(2, 1 << 18), &["upload T2 262144 bytes by alice", "c: send"]);
    grid.check(offer(3, 1_000_000_000_000_000_000), &["c: refused invalid_input, 0 wait"]);
}

#[test]
fn nothing_is_granted_for_an_id_that_is_taken() {
    let mut grid = Grid::new();
    let by_mallory = |n| remote("m", offer_of(n, &mallory(), 9));
    let refused: &[&str] = &["m: refused invalid_input, 0 wait"];
    grid.pass_in([submit(1), submit(2), cancel(2), cancel(3), offer(4, 9)]);
    grid.check_all([
        (by_mallory(1), refused), // it waits
        (by_mallory(2), refused), // it has ended
        (by_mallory(3), &["m: expired T3"]),
        (by_mallory(4), refused), // its owner brings it
        // Another owner's cancel or submission ends no upload.
        (remote("m", Cancel { seq: 1, id: id(4), owner: mallory() }), &["m: unknown T4"]),
        (submit_spec(TaskSpec { owner: mallory(), ..spec(4) }), &["c: refused invalid_input, 0 wait"]),
        (submit(4), &["insert T4", "c: accepted T4 behind 1"]),
    ]);
}

/// An announced upload counts until it is submitted, refused, cancelled or too old.
#[test]
fn room_is_reserved_and_given_back() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_pixels = 1_000;
    grid.core.settings.limits.max_spool_bytes = 100;
    grid.pass_in([offer(1, 40), offer(2, 40)]);
    grid.check(offer(3, 40), &["c: refused overloaded, 0 wait"]);
    grid.check(
        submit_spec(TaskSpec {
            blobs: {
                let mut b = spec(3).blobs;
                b[0].len = 21;
                b
            },
            ..spec(3)
        }),
        &["c: refused overloaded, 0 wait"],
    );
    // An offer is repeated after a reconnect, and counted once.
    grid.check(offer(2, 40), &["upload T2 40 bytes by alice", "c: send"]);
    assert_eq!(grid.core.admission.reserved_bytes(), 80);
    // A task that is smaller than announced has the room that it needs.
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0", "alarm spool 0"]);
    assert_eq!((grid.core.admission.reserved_bytes(), grid.core.admission.spool_bytes()), (40, 49));
    grid.check(cancel(2), &["remember T2", "c: unknown T2"]);
    assert_eq!(grid.core.admission.reserved_bytes(), 0);
    grid.check(offer(3, 40), &["upload T3 40 bytes by alice", "c: send"]);
    let text = format!("{:?}", grid.handle(Input::Abandoned { owner: owner(), id: id(3) }));
    assert!(text.contains("CloseUpload") && text.contains("inputs: Delete"), "{text}");
    assert_eq!(grid.core.admission.reserved_bytes(), 0);
}

#[test]
fn an_upload_that_takes_too_long_is_given_up() {
    let mut grid = Grid::new();
    grid.core.settings.scheduler.no_node_wait_ms = 1 << 40;
    grid.pass_in([offer(1, 40)]);
    grid.pass(599_999);
    grid.pass_in([Input::Tick]);
    assert_eq!(grid.core.admission.reserved_bytes(), 40);
    grid.pass(1);
    let text = format!("{:?}", grid.handle(Input::Tick));
    assert!(text.contains("CloseUpload") && text.contains("inputs: Delete"), "{text}");
    assert_eq!(grid.core.admission.reserved_bytes(), 0);
}

#[test]
fn uploads_count_as_tasks_of_their_client_and_owner() {
    let mut grid = Grid::new();
    grid.core.settings.limits.max_client_tasks = 2;
    grid.pass_in([offer(1, 1), offer(2, 1)]);
    grid.check(offer(3, 1), &["c: refused overloaded, 0 wait"]);
    grid.check(submit(3), &["c: refused overloaded, 0 wait"]);
}

#[test]
fn below_the_floor_of_free_space_new_work_is_refused_and_the_rest_goes_on() {
    let mut grid = Grid::new();
    grid.core.settings.limits.min_free_bytes = 1_000;
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    let free = |bytes| Input::DiskFree { bytes };
    grid.check(free(1_050), &[]);
    // Reserved bytes are not available to others.
    grid.check(offer(2, 40), &["upload T2 40 bytes by alice", "c: send"]);
    grid.check(offer(3, 40), &["c: refused disk_full, 0 wait"]);
    grid.check(free(999), &["alarm disk 100"]);
    grid.check(submit(4), &["c: refused disk_full, 0 wait"]);
    grid.check(
        done("n", 1, 2, 2),
        &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
    );
    grid.check(free(1_099), &[]);
    grid.check(free(1_100), &["alarm disk 0"]);
    grid.check(offer(3, 40), &["upload T3 40 bytes by alice", "c: send"]);
}
