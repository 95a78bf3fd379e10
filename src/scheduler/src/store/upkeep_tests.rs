//! Tests the size of the database's files beside other processes, and after many tasks are deleted.

use std::time::{Duration, Instant};

use super::tests::{alice, id, insert, open};
use super::upkeep::CHECKPOINT_PAGES;
use super::*;

const LARGE: usize = 256 << 10;

fn large(n: u8, inline: usize) -> StoreOp {
    let StoreOp::Insert { inherits, spec, digest, seq, created_wall_ms, .. } = insert(n) else {
        unreachable!("that is what it gives")
    };
    let inline = [Role::Image, Role::Mask, Role::Example][..inline].iter();
    let inline = inline.map(|role| (*role, Bytes::from(vec![n; LARGE]))).collect();
    StoreOp::Insert { inline, inherits, spec, digest, seq, created_wall_ms }
}

fn forget(n: u8) -> StoreOp {
    StoreOp::Forget { id: id(n), owner: alice(), until_wall_ms: 9 }
}

fn tend_until_done(store: &mut Store) {
    let began = Instant::now();
    while let Some(pause) = store.tend() {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", store.size());
        std::thread::sleep(pause);
    }
}

/// The space of deleted tasks is returned to the disk in small steps.
#[test]
fn a_database_shrinks_when_its_tasks_are_deleted() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    for n in 0..150 {
        store.commit(&[large(n, 1)]).unwrap();
    }
    tend_until_done(&mut store);
    let full = store.size().unwrap();
    assert!(
        full.database_bytes > 150 * LARGE as u64 && full.free_bytes < full.database_bytes / 4,
        "{full:?}"
    );
    store.commit(&(0..149).map(forget).collect::<Vec<_>>()).unwrap();
    let emptied = store.size().unwrap();
    assert!(emptied.free_bytes > 149 * LARGE as u64, "{emptied:?}");
    let began = Instant::now();
    store.tend().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "one step is small");
    tend_until_done(&mut store);
    let small = store.size().unwrap();
    assert!(small.database_bytes < 4 << 20, "{small:?}");
    let on_disk = std::fs::metadata(dir.path().join("tasks.db")).unwrap().len();
    assert_eq!((on_disk, small.log_bytes), (small.database_bytes, 0));
    assert_eq!(store.blob(id(149), Role::Image).unwrap().unwrap(), vec![149; LARGE]);
}

/// R8.4: a database of an older version cannot shrink until a start has rewritten it, which happens if it is
/// small.
#[test]
fn a_database_of_an_older_version_shrinks_after_the_next_start() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    store.commit(&[large(1, 3)]).unwrap();
    store.connection.execute_batch("PRAGMA auto_vacuum = NONE; VACUUM").unwrap();
    for n in 2..40 {
        store.commit(&[large(n, 1)]).unwrap();
    }
    store.commit(&(2..40).map(forget).collect::<Vec<_>>()).unwrap();
    tend_until_done(&mut store);
    let before = store.size().unwrap();
    assert!(before.free_bytes > 38 * LARGE as u64, "{before:?}");
    store.close().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().0.tasks.len(), 1);
    let after = store.size().unwrap();
    assert!(after.database_bytes < 4 * LARGE as u64 && after.free_bytes == 0, "{after:?}");
    assert_eq!(store.blob(id(1), Role::Example).unwrap().unwrap(), vec![1; LARGE]);
    assert_eq!(store.pragma("auto_vacuum").unwrap(), 2);
}

/// A long reader lets the log grow; after it has ended, the log is small again.
#[test]
fn the_log_is_small_again_after_a_long_reader() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    let reader = Connection::open(dir.path().join("tasks.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM tasks").unwrap();
    for n in 0..180 {
        store.commit(&[large(n, 3)]).unwrap();
    }
    let grown = store.size().unwrap();
    assert!(grown.log_bytes > 128 << 20, "{grown:?}");
    assert_eq!(store.upkeep.warned_bytes, grown.log_bytes, "it was warned of");
    // The log cannot be emptied while it reads.
    assert_eq!(store.tend(), Some(Duration::from_secs(1)));
    drop(reader);
    assert_eq!(store.tend(), None);
    assert_eq!(store.size().unwrap().log_bytes, 0);
    assert_eq!(store.upkeep.warned_bytes, 0);
    // Even if commits never pause.
    let reader = Connection::open(dir.path().join("tasks.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM tasks").unwrap();
    for n in 0..100 {
        store.commit(&[large(n, 3)]).unwrap();
    }
    drop(reader);
    for n in 0..3 {
        store.commit(&[insert(200 + n)]).unwrap();
    }
    assert!(store.size().unwrap().log_bytes <= LOG_KEPT);
    assert!(store.log_pages.get() < CHECKPOINT_PAGES);
}

/// R1.3: another process's lock is not treated as a fault of the disk: nothing is written, and the next try
/// succeeds.
#[test]
fn a_locked_database_is_written_later() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    store.connection.busy_timeout(Duration::from_millis(20)).unwrap();
    let other = Connection::open(dir.path().join("tasks.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.commit(&[insert(1)]).unwrap_err();
    assert!(error.is_locked() && error.to_string().contains("tasks.db"), "{error}");
    assert!(!store.doubtful);
    other.execute_batch("COMMIT").unwrap();
    store.commit(&[insert(1)]).unwrap();
    // Nor is another process's checkpoint during this one's.
    other.execute_batch("BEGIN; SELECT * FROM tasks").unwrap();
    for n in 2..60 {
        store.commit(&[large(n, 2)]).unwrap();
        other.execute_batch("PRAGMA wal_checkpoint").unwrap_or_default();
    }
    assert!(!store.doubtful);
}
