//! Tests that batches and their totals survive restarts, in new stores and in those of version 1.

use lamagrid_domain::{BatchId, TaskSpec};

use super::tests::{alice, insert, open};
use super::*;
use crate::core::{BatchRow, StoredTask};

fn row(n: u8, done_wall_ms: Option<u64>) -> BatchRow {
    BatchRow {
        id: BatchId::from_bytes([n; 16]),
        owner: alice(),
        name: "photos".into(),
        created_wall_ms: 5,
        is_closed: true,
        completed: 1,
        failed: 2,
        cancelled: 3,
        done_wall_ms,
    }
}

fn write(row: &BatchRow) -> StoreOp {
    StoreOp::Batch(Box::new(row.clone()))
}

#[test]
fn batches_survive_restarts_until_they_are_dropped() {
    let migrated = tempfile::tempdir().unwrap();
    let old = include_bytes!("../../tests/golden/v1/tasks.db");
    std::fs::write(migrated.path().join("tasks.db"), old).unwrap();
    for dir in [open().0, migrated] {
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.recover().unwrap().0.batches, []);
        let (first, second) = (row(1, None), row(2, Some(9)));
        store.commit(&[write(&first), write(&second)]).unwrap();
        store.commit(&[write(&BatchRow { failed: 7, ..first.clone() })]).unwrap();
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        let recovered = store.recover().unwrap().0;
        assert_eq!(recovered.batches, [BatchRow { failed: 7, ..first.clone() }, second.clone()]);
        store.commit(&[StoreOp::DropBatch { id: first.id }]).unwrap();
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().recover().unwrap().0.batches, [second]);
    }
}

#[test]
fn a_task_whose_inputs_are_gone_fails_in_its_batch() {
    let (dir, mut store) = open();
    let StoreOp::Insert { spec, digest, seq, created_wall_ms, .. } = insert(1) else {
        unreachable!("that is what it gives")
    };
    let spec = Box::new(TaskSpec { batch: Some(row(1, None).id), ..*spec });
    let without = StoreOp::Insert { spec, digest, seq, created_wall_ms, inline: Vec::new(), inherits: None };
    store.commit(&[without, write(&row(1, None))]).unwrap();
    drop(store);
    for _ in ["when it is found", "once"] {
        let mut store = Store::open(dir.path()).unwrap();
        let recovered = store.recover().unwrap().0;
        assert!(matches!(recovered.tasks[0], StoredTask::Ended { .. }), "{:?}", recovered.tasks);
        assert_eq!(recovered.batches, [BatchRow { failed: 3, ..row(1, None) }]);
    }
}
