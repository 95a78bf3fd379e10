//! Tests `lamagrid batch` against a fake scheduler.

use std::cell::Cell;

use lamagrid_client::{ActOnBatch, AdminReply, AdminRequest, BatchAct, BatchChanged, BatchInfo, Batches};
use lamagrid_domain::BatchId;

use super::grid::{Fake, ID};

fn batch(n: u8, done_wall_ms: Option<u64>) -> BatchInfo {
    BatchInfo {
        id: BatchId::from_bytes([n; 16]),
        owner: "local".parse().unwrap(),
        name: "clean".into(),
        queued: 1,
        processing: 2,
        completed: 3,
        failed: 4,
        cancelled: 5,
        closed: true,
        created_wall_ms: 1_785_500_000_000 + u64::from(n),
        done_wall_ms,
    }
}

#[test]
fn batches_are_listed_page_after_page_the_newest_first() {
    let fake = Fake::admin(|request| match request {
        AdminRequest::ListBatches(list) if list.after.is_none() => {
            Batches { batches: vec![batch(1, None)], next: Some(batch(1, None).id), total: 2 }.into()
        }
        AdminRequest::ListBatches(_) => {
            Batches { batches: vec![batch(2, Some(9))], next: None, total: 2 }.into()
        }
        other => panic!("{other:?}"),
    });
    let ran = fake.run(&["batch", "list"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<_> = ran.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0][..4], ["BATCH", "NAME", "STATE", "WAITING"]);
    assert_eq!(lines[1][1..8], ["clean", "done", "1", "2", "3", "4", "5"]);
    assert_eq!((lines[2][0], lines[2][2]), ("01010101010101010101010101010101", "closed"));
    let ran = fake.run(&["batch", "list", "--output", "json"]);
    assert!(ran.out.contains("\"done\": \"1970-01-01T00:00:00.009Z\""), "{}", ran.out);
}

#[test]
fn an_order_is_repeated_while_tasks_may_be_left() {
    let left = Cell::new(2_003_u64);
    let fake = Fake::admin(move |request| {
        let AdminRequest::ActOnBatch(ActOnBatch { act: BatchAct::Cancel, id }) = request else {
            panic!("{request:?}")
        };
        assert_eq!(id.to_string(), ID);
        let tasks = left.get().min(2_000);
        left.set(left.get() - tasks);
        AdminReply::from(BatchChanged { batch: batch(1, None), tasks })
    });
    let ran = fake.run(&["batch", "cancel", ID]);
    assert_eq!((ran.code, ran.out), (0, format!("2003 tasks of batch {ID} were cancelled\n")));
}
