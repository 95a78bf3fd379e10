//! Batches: counts, orders, the one event at the end.

use lamagrid_domain::{BatchId, FailureKind, Owner, TaskSpec};
use lamagrid_protocol::message::{ActOnBatch, BatchAct, ChangeBatch, ListBatches};

use super::admin::admin;
use super::grid::*;
use crate::core::{Effect, Input, StoreOp};

fn batch() -> BatchId {
    BatchId::from_bytes([1; 16])
}

fn submit_in_batch(n: u8) -> Input {
    submit_spec(TaskSpec { batch: Some(batch()), ..spec(n) })
}

fn change(act: BatchAct) -> Input {
    client("c", ChangeBatch { seq: 1, id: batch(), owner: owner(), act })
}

/// X9.
#[test]
fn a_batch_is_created_with_its_first_task_and_is_done_once() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.check(
        submit_in_batch(1),
        &[
            "insert T1 + batch (0, 0, 0) closed false done false",
            "c: accepted T1 behind 0",
            "assign T1 #2 to n, attempt 1",
            "lane #1/0: assign T1 #2",
            "c: progress T1 processing 0/0",
        ],
    );
    grid.check(submit_in_batch(2), &["insert T2", "c: accepted T2 behind 0"]);
    grid.check(change(BatchAct::Show), &["c: batch 1 1 0 0 0, 0 changed"]);
    grid.check(
        change(BatchAct::Close),
        &["batch (0, 0, 0) closed true done false", "c: batch 1 1 0 0 0, 0 changed"],
    );
    grid.check(
        cancel(2),
        &[
            "end T2 cancelled + batch (0, 0, 1) closed true done false",
            "c: outcome T2 cancelled",
            "finished T2",
            "c: told T2 cancelled",
        ],
    );
    grid.pass_in([accept("n", 1, 2)]);
    grid.check(
        done("n", 1, 2, 2),
        &[
            "end T1 completed + batch (1, 0, 1) closed true done false + batch (1, 0, 1) closed true done true",
            "batch 0 0 1 0 1, 0 changed",
            "c: outcome T1 completed with bytes",
            "finished T1",
            "n: stored #2 true",
        ],
    );
    // Again, and nothing is told twice.
    grid.check(change(BatchAct::Close), &["c: batch 0 0 1 0 1, 0 changed"]);
    grid.check(admin(ListBatches { after: None, limit: 9 }), &["a: batches 1 of 1"]);
}

#[test]
fn orders_reach_all_tasks_and_dead_letters_run_again() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit_in_batch(1), accept("n", 1, 2), failed("n", 1, 2, 2, FailureKind::Internal)]);
    grid.pass(500);
    grid.pass_in([Input::Tick]);
    grid.pass_in([accept("n", 1, 4), failed("n", 1, 4, 3, FailureKind::Internal)]);
    grid.check(admin(ActOnBatch { id: batch(), act: BatchAct::Show }), &["a: batch 0 0 0 1 0, 0 changed"]);
    let effects = grid.handle(admin(ActOnBatch { id: batch(), act: BatchAct::Retry }));
    let Some(Effect::Store(StoreOp::Together(ops))) = effects.first() else { panic!("{effects:?}") };
    assert!(ops.iter().any(|op| matches!(op, StoreOp::Batch(row) if row.failed == 0)), "{ops:?}");
    grid.check(admin(ActOnBatch { id: batch(), act: BatchAct::Retry }), &["a: batch 0 1 0 0 0, 0 changed"]);
    grid.pass_in([submit_in_batch(2)]);
    let effects = grid.handle(admin(ActOnBatch { id: batch(), act: BatchAct::Cancel }));
    let ended = effects.iter().filter(|effect| matches!(effect, Effect::Finished(_))).count();
    assert_eq!(ended, 2, "{effects:?}");
    grid.check(change(BatchAct::Cancel), &["c: batch 0 0 0 0 2, 0 changed"]);
}

#[test]
fn batches_of_other_owners_are_unknown() {
    let mut grid = Grid::new();
    grid.pass_in([submit_in_batch(1)]);
    let stranger: Owner = "mallory".parse().unwrap();
    for act in [BatchAct::Show, BatchAct::Close, BatchAct::Cancel, BatchAct::Retry] {
        let asked = client("m", ChangeBatch { seq: 1, id: batch(), owner: stranger.clone(), act });
        grid.check(asked, &["m: refused invalid_input, 0 wait"]);
    }
    let open = ChangeBatch {
        seq: 1,
        id: batch(),
        owner: stranger.clone(),
        act: BatchAct::Open { name: "x".into() },
    };
    grid.check(client("m", open), &["m: refused invalid_input, 0 wait"]);
    let spec = TaskSpec { batch: Some(batch()), owner: stranger, ..spec(2) };
    grid.check(submit_spec(spec), &["c: refused invalid_input, 1 wait"]);
    grid.check(
        admin(ActOnBatch { id: BatchId::from_bytes([9; 16]), act: BatchAct::Show }),
        &["a: refused the scheduler knows no batch 09090909090909090909090909090909 of this owner; \
         lamagrid batch list shows all"],
    );
}

#[test]
fn an_open_batch_has_a_name() {
    let mut grid = Grid::new();
    grid.check(
        change(BatchAct::Open { name: "photos".into() }),
        &[
            "batch (0, 0, 0) closed false done false",
            "batch (0, 0, 0) closed false done false",
            "c: batch 0 0 0 0 0, 0 changed",
        ],
    );
    grid.check(change(BatchAct::Open { name: "photos".into() }), &["c: batch 0 0 0 0 0, 0 changed"]);
    grid.check(
        change(BatchAct::Close),
        &[
            "batch (0, 0, 0) closed true done false + batch (0, 0, 0) closed true done true",
            "batch 0 0 0 0 0, 0 changed",
            "c: batch 0 0 0 0 0, 0 changed",
        ],
    );
}
