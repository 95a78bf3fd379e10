//! Tests databases that were replaced beside their logs, and those that only seem so after a crash.

use std::path::PathBuf;

use lamagrid_blobs::BlobName;
use lamagrid_domain::{Counters, Status};

use super::tests::{alice, id, insert, live, open, spec};
use super::*;
use crate::core::StoredTask;

/// A task large enough that a few of them make a checkpoint due.
fn large(n: u8) -> StoreOp {
    let StoreOp::Insert { mut inline, inherits, spec, digest, seq, created_wall_ms } = insert(n) else {
        unreachable!("that is what it gives")
    };
    inline[0].1 = Bytes::from(vec![n; 256 << 10]);
    StoreOp::Insert { inline, inherits, spec, digest, seq, created_wall_ms }
}

struct Files {
    database: PathBuf,
    log: PathBuf,
}

impl Files {
    fn of(dir: &tempfile::TempDir) -> Self {
        let database = dir.path().join("tasks.db");
        Self { log: connection::log(&database), database }
    }

    fn belong(&self) -> bool {
        lineage::belongs(&self.database, &self.log).unwrap()
    }
}

/// Leaves the files as a killed process does.
fn killed(store: Store) {
    connection::disconnect(store.connection).unwrap();
}

fn copy_to(store: &Store, to: &Path) {
    store.connection.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

/// R1.3: after a kill at any moment the next start succeeds, even after checkpoints that a reader cut short,
/// and after those of another process.
#[test]
fn a_databases_own_log_is_never_refused() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    let files = Files::of(&dir);
    let other = Connection::open(&files.database).unwrap();
    let mut copied_between = 0;
    for n in 1..=200 {
        match n {
            40 | 140 => other.execute_batch("BEGIN; SELECT * FROM tasks LIMIT 1").unwrap(),
            100 | 180 => other.execute_batch("COMMIT").unwrap(),
            20 | 30 | 110 => other.execute_batch("PRAGMA wal_checkpoint").unwrap(),
            120 => other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap(),
            130 | 160 => store.settle().unwrap(),
            170 => drop(store.tend()),
            _ => {}
        }
        assert!(files.belong(), "before commit {n}");
        let before = store.log_pages.get();
        store.commit(&[large(n), insert(n)]).unwrap();
        copied_between += i32::from(store.log_pages.get() < before);
        assert!(files.belong(), "after commit {n}");
    }
    assert!(copied_between >= 3, "checkpoints are what this is about: {copied_between}");
    drop(other);
    killed(store);
    assert!(files.belong());
    let mut store = Store::open(dir.path()).unwrap();
    assert!(files.belong());
    assert_eq!(store.recover().unwrap().0.tasks.len(), 200);
    assert!(files.belong());
    store.close().unwrap();
    assert!(!files.log.exists());
}

/// R1.3: a database restored from a copy of any age is noticed beside the remaining log, and the two are not
/// mixed.
#[test]
fn another_database_beside_the_log_is_refused() {
    let (dir, store) = open();
    let (files, copies) = (Files::of(&dir), tempfile::tempdir().unwrap());
    let copy = |name: &str| copies.path().join(name);
    // Replaced while the scheduler was stopped.
    store.close().unwrap();
    std::fs::copy(&files.database, copy("stopped")).unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.recover().unwrap();
    store.commit(&[insert(1), insert(2)]).unwrap();
    // Replaced while it ran, with commits before and after the copy in the same log.
    copy_to(&store, &copy("running"));
    std::fs::copy(&files.log, copy("old-log")).unwrap();
    store.commit(&[insert(3)]).unwrap();
    store.commit(&[insert(4)]).unwrap();
    killed(store);
    let (own, own_log) = (std::fs::read(&files.database).unwrap(), std::fs::read(&files.log).unwrap());
    let (other_dir, mut other) = open();
    other.recover().unwrap();
    other.commit(&[insert(7)]).unwrap();
    other.close().unwrap();
    std::fs::copy(other_dir.path().join("tasks.db"), copy("another")).unwrap();
    std::fs::write(copy("empty"), "").unwrap();
    let later = {
        let mut store = Store::open(dir.path()).unwrap();
        store.recover().unwrap();
        store.close().unwrap();
        std::fs::read(&files.database).unwrap()
    };
    std::fs::write(copy("later"), later).unwrap();
    for (name, log) in [
        ("stopped", &own_log),
        ("running", &own_log),
        ("another", &own_log),
        ("empty", &own_log),
        ("later", &own_log),
        ("later", &std::fs::read(copy("old-log")).unwrap()),
    ] {
        std::fs::copy(copy(name), &files.database).unwrap();
        std::fs::write(&files.log, log).unwrap();
        let error = Store::open(dir.path()).err().unwrap();
        assert!(matches!(error, StoreError::StrayLog { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(
            [&files.database, &files.log].iter().all(|path| text.contains(path.to_str().unwrap())),
            "{text}"
        );
        assert_eq!(std::fs::read(&files.database).unwrap(), std::fs::read(copy(name)).unwrap(), "{name}");
        assert_eq!(std::fs::read(&files.log).unwrap(), *log, "{name}");
    }
    std::fs::remove_file(&files.database).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::StrayLog { .. })));
    // Follows the remedy in the error text.
    std::fs::write(&files.database, &own).unwrap();
    std::fs::write(&files.log, &own_log).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().recover().unwrap().0.tasks.len(), 4);
    std::fs::copy(copy("running"), &files.database).unwrap();
    let _ = std::fs::remove_file(&files.log);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().0.tasks.len(), 2);
    store.commit(&[insert(5)]).unwrap();
}

/// A power cut may tear the log anywhere: only commits that SQLite would replay count.
#[test]
fn a_torn_end_of_the_log_is_ignored() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    for n in 1..=3 {
        store.commit(&[insert(n)]).unwrap();
    }
    killed(store);
    let files = Files::of(&dir);
    let whole = std::fs::read(&files.log).unwrap();
    for len in (0..whole.len()).step_by(509) {
        std::fs::write(&files.log, &whole[..len]).unwrap();
        assert!(files.belong(), "{len}");
        let mut torn = whole.clone();
        torn[len..].fill(0x5a);
        std::fs::write(&files.log, torn).unwrap();
        assert!(files.belong(), "{len}");
    }
}

/// R1.3: a task whose inputs are missing ends at the start with that reason, and no node is charged for it.
#[test]
fn a_task_without_its_inputs_ends_at_the_start() {
    let (dir, mut store) = open();
    let there = |n: u8| StoreOp::Insert {
        inherits: None,
        spec: Box::new(spec(n, Durability::Full)),
        digest: lamagrid_domain::Hash::new([n; 32]),
        seq: u64::from(n),
        created_wall_ms: 5,
        inline: Vec::new(),
    };
    for n in [1, 2] {
        for role in [Role::Image, Role::Mask] {
            store.spool().put(id(n), BlobName::Role(role), role.as_str().as_bytes()).unwrap();
        }
        store.commit(&[there(n)]).unwrap();
    }
    store.commit(&[insert(3)]).unwrap();
    store.spool().remove(id(1), BlobName::Role(Role::Mask)).unwrap();
    drop(store);
    for _ in ["ended", "as it is then"] {
        let mut store = Store::open(dir.path()).unwrap();
        let tasks = store.recover().unwrap().0.tasks;
        let failures: Vec<_> = tasks
            .iter()
            .filter_map(|task| match task {
                StoredTask::Ended { id, ended } => Some((*id, ended.status, ended.failure.clone()?)),
                StoredTask::Live { .. } => None,
            })
            .collect();
        let [(of, Status::Failed, failure)] = failures.as_slice() else { panic!("{failures:?}") };
        assert_eq!((*of, failure.kind), (id(1), lamagrid_domain::FailureKind::InvalidInput));
        assert!(failure.message.contains("the mask of task"), "{failure}");
        assert!(!failure.kind.blames_node());
        assert!(tasks.iter().any(|task| format!("{task:?}") == live(3, Counters::default(), None)));
    }
}

/// R1.3: blobs newer than the database are moved aside; leftovers of a crash are deleted.
#[test]
fn newer_blobs_are_moved_aside_and_leftovers_deleted() {
    let (dir, mut store) = open();
    store.recover().unwrap();
    let left =
        |store: &Store, n: u8| store.spool().put(id(n), BlobName::Role(Role::Image), b"image").unwrap();
    let aside = |dir: &tempfile::TempDir| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().contains("spool.aside-")).collect()
    };
    let copy = dir.path().join("copy");
    store.commit(&[insert(1)]).unwrap();
    copy_to(&store, &copy);
    store.commit(&[insert(2)]).unwrap();
    // Killed again and again, even while it starts.
    left(&store, 44);
    killed(store);
    let store = Store::open(dir.path()).unwrap();
    killed(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().1, 1);
    left(&store, 45);
    killed(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().1, 1);
    store.commit(&[insert(3), StoreOp::Forget { id: id(3), owner: alice(), until_wall_ms: 9 }]).unwrap();
    left(&store, 46);
    store.close().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!((store.recover().unwrap().1, aside(&dir)), (1, Vec::new()));
    // Restores the copy while the spool stays.
    left(&store, 47);
    store.close().unwrap();
    std::fs::copy(&copy, dir.path().join("tasks.db")).unwrap();
    // A start that is killed early changes nothing.
    killed(Store::open(dir.path()).unwrap());
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().1, 0);
    let [moved] = &aside(&dir)[..] else { panic!("one directory: {:?}", aside(&dir)) };
    assert!(!Spool::new(moved).lacks(id(47), BlobName::Role(Role::Image)));
    // From then on, database and spool belong together again.
    left(&store, 48);
    killed(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!((store.recover().unwrap().1, aside(&dir).len()), (1, 1));
}
