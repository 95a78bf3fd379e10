//! Tests what the store keeps over a restart, what it refuses to open, and what a failed commit leaves
//! behind.

use lamagrid_blobs::BlobName;
use lamagrid_domain::{
    BlobForm, BlobMeta, BootId, Counters, Durability, Failure, FailureKind, Hash, LeaseToken, Owner, Params,
    QueueName, Scalar, Stages, Status, TaskSpec,
};

use super::*;
use crate::core::{
    FinishedTask, NodeId, Order, OrderKind, Pause, ResultPlace, Statistics, StoredTask, Tombstone, Watermark,
};

pub(super) fn id(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

pub(super) fn alice() -> Owner {
    "alice".parse().unwrap()
}

fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes([n; 16])
}

fn meta(role: Role, bytes: &[u8]) -> BlobMeta {
    BlobMeta { role, len: bytes.len() as u64, hash: lamagrid_protocol::hash(bytes), form: BlobForm::Encoded }
}

pub(super) fn spec(n: u8, durability: Durability) -> TaskSpec {
    let params =
        [("prompt", Scalar::Text("a cat".into())), ("hd", Scalar::Null), ("scale", Scalar::Float(0.5))];
    TaskSpec {
        id: id(n),
        owner: "alice".parse().unwrap(),
        client: None,
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        params: Params::try_from(std::collections::BTreeMap::from(params.map(|(k, v)| (k.to_owned(), v))))
            .unwrap(),
        priority: -3,
        durability,
        deadline_wall_ms: Some(77),
        wait_limit_ms: None,
        no_node_wait_ms: None,
        run_limit_ms: None,
        replay_of: None,
        output: lamagrid_domain::OutputForm::Raw,
        blobs: vec![meta(Role::Image, b"image"), meta(Role::Mask, b"mask")],
        routed: false,
        picture: None,
    }
}

fn insert_as(n: u8, durability: Durability, inline: &[(Role, &'static [u8])]) -> StoreOp {
    let inline = inline.iter().map(|(role, bytes)| (*role, Bytes::from_static(bytes))).collect();
    let digest = Hash::new([n; 32]);
    StoreOp::Insert {
        inherits: None,
        spec: Box::new(spec(n, durability)),
        digest,
        seq: u64::from(n),
        created_wall_ms: 5,
        inline,
    }
}

pub(super) fn insert(n: u8) -> StoreOp {
    insert_as(n, Durability::Process, &[(Role::Image, b"image"), (Role::Mask, b"mask")])
}

fn ended(status: Status, result: Option<&[u8]>, inline: bool) -> FinishedTask {
    let failed = status == Status::Failed;
    FinishedTask {
        client: None,
        priority: 0,
        replay_of: None,
        dead: None,
        history: Vec::new(),
        expiry_wall_ms: 0,
        owner: "alice".parse().unwrap(),
        digest: Hash::new([1; 32]),
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        status,
        failure: failed.then(|| Failure::new(FailureKind::OutOfMemory, "no room")),
        token: result.map(|_| token(9)),
        result: result.map(|bytes| meta(Role::Result, bytes)),
        inline,
        counters: Counters { attempts: 2, crashes: 1, failures: 0 },
        stages: Stages { infer_ms: 1.5, ..Stages::default() },
        node: Some("n".into()),
        created_wall_ms: 5,
        finished_wall_ms: 6,
    }
}

fn end(n: u8, ended: FinishedTask, place: Option<ResultPlace>) -> StoreOp {
    let totals = Statistics::default().count(&ended);
    StoreOp::End { id: id(n), ended: Box::new(ended), place, durability: Durability::Process, totals }
}

fn counters(attempts: u32) -> Counters {
    Counters { attempts, crashes: 1, failures: 2 }
}

fn assign(n: u8) -> StoreOp {
    let node = "host:0".parse::<NodeId>().unwrap();
    StoreOp::Assign { id: id(n), token: token(n), node, counters: counters(1) }
}

fn tombstone(n: u8, owner: Owner, until_wall_ms: u64) -> Tombstone {
    Tombstone { id: id(n), owner, until_wall_ms }
}

pub(super) fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Contents after a reopening, as text, because stored tasks cannot be compared.
fn reopened(dir: &tempfile::TempDir, store: Store) -> (Store, Vec<String>, Vec<Tombstone>) {
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    let (recovered, _) = store.recover().unwrap();
    let tasks = recovered.tasks.iter().map(|t| format!("{t:?}")).collect();
    (store, tasks, recovered.tombstones)
}

pub(super) fn live(n: u8, counters: Counters, assigned: Option<(LeaseToken, NodeId)>) -> String {
    let task = StoredTask::Live {
        history: Vec::new(),
        spec: Box::new(spec(n, Durability::Process)),
        digest: Hash::new([n; 32]),
        seq: u64::from(n),
        created_wall_ms: 5,
        counters,
        assigned,
        inline: vec![Role::Image, Role::Mask],
    };
    format!("{task:?}")
}

fn over(n: u8, ended: FinishedTask) -> String {
    format!("{:?}", StoredTask::Ended { id: id(n), ended: Box::new(ended) })
}

/// R1.3, P3.1: accepted tasks are on disk and are recovered.
#[test]
fn every_operation_survives_a_restart() {
    let (dir, mut store) = open();
    let done = ended(Status::Completed, Some(b"made"), true);
    let failed = ended(Status::Failed, None, false);
    let requeue = StoreOp::Requeue { id: id(3), counters: counters(4), history: Vec::new() };
    let until_wall_ms = 99;
    store
        .commit(&[
            insert(1),
            insert(2),
            assign(2),
            insert(3),
            assign(3),
            requeue,
            insert(4),
            assign(4),
            end(4, done.clone(), Some(ResultPlace::Inline(Bytes::from_static(b"made")))),
            insert(5),
            end(5, failed.clone(), None),
            insert(6),
            end(6, done.clone(), Some(ResultPlace::Inline(Bytes::from_static(b"made")))),
            StoreOp::Release { id: id(6), ended: Box::new(FinishedTask { result: None, ..done.clone() }) },
            insert(7),
            end(7, failed.clone(), None),
            StoreOp::Forget { id: id(7), owner: alice(), until_wall_ms },
            StoreOp::Remember { id: id(8), owner: alice(), until_wall_ms: 98 },
            StoreOp::Remember { id: id(9), owner: alice(), until_wall_ms },
            StoreOp::Unremember { id: id(9) },
        ])
        .unwrap();
    let (store, tasks, tombstones) = reopened(&dir, store);
    let expected = [
        live(1, Counters::default(), None),
        live(2, counters(1), Some((token(2), "host:0".parse().unwrap()))),
        live(3, counters(4), None),
        over(4, done.clone()),
        over(5, failed),
        over(6, FinishedTask { result: None, ..done }),
    ];
    assert_eq!(tasks, expected);
    assert_eq!(tombstones, [tombstone(8, alice(), 98), tombstone(7, alice(), until_wall_ms)]);
    assert_eq!(store.blob(id(1), Role::Mask).unwrap().unwrap(), "mask");
    assert_eq!(store.blob(id(4), Role::Result).unwrap().unwrap(), "made");
    // An end deletes the inputs, a release the result.
    assert_eq!(store.blob(id(4), Role::Image).unwrap(), None);
    assert_eq!(store.blob(id(6), Role::Result).unwrap(), None);
    assert_eq!(store.blob(id(7), Role::Image).unwrap(), None);
}

#[test]
fn watermarks_and_the_trusted_time_survive_a_restart() {
    let (dir, mut store) = open();
    let watermark = |owner: &str, wall_ms| StoreOp::Watermark { owner: owner.parse().unwrap(), wall_ms };
    let ops = [watermark("a", 5), watermark("b", 6), watermark("a", 7), StoreOp::Clock { wall_ms: 8 }];
    assert_eq!(store.recover().unwrap().0.wall_ms, None);
    store.commit(&ops).unwrap();
    store.commit(&[StoreOp::Clock { wall_ms: 9 }]).unwrap();
    drop(store);
    let recovered = Store::open(dir.path()).unwrap().recover().unwrap().0;
    let watermark = |owner: &str, wall_ms| Watermark { owner: owner.parse().unwrap(), wall_ms };
    assert_eq!(recovered.watermarks, [watermark("a", 7), watermark("b", 6)]);
    assert_eq!(recovered.wall_ms, Some(9));
}

#[test]
fn pauses_drains_and_removals_survive_restarts_until_they_end() {
    let (dir, mut store) = open();
    let (queue, node): (QueueName, NodeId) = ("gpu".parse().unwrap(), "cert/n".parse().unwrap());
    let pause = Pause { by: "anna".into(), since_wall_ms: 5 };
    let boot = Some(BootId::from_bytes([7; 16]));
    let drain = Order { kind: OrderKind::Drain, boot, by: "bert".into(), since_wall_ms: 6 };
    let old =
        ("old".parse::<NodeId>().unwrap(), Order { kind: OrderKind::Removal, boot: None, ..drain.clone() });
    store
        .commit(&[
            StoreOp::Pause { queue: queue.clone(), pause: Some(pause.clone()) },
            StoreOp::NodeOrder { node: node.clone(), order: Some(drain.clone()) },
            StoreOp::NodeOrder { node: old.0.clone(), order: Some(old.1.clone()) },
        ])
        .unwrap();
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    let (recovered, _) = store.recover().unwrap();
    assert_eq!(recovered.paused, [(queue.clone(), pause)].into());
    assert_eq!(recovered.orders, [(node.clone(), drain), old.clone()].into());
    let ended = [
        StoreOp::Pause { queue, pause: None },
        StoreOp::NodeOrder { node, order: None },
        StoreOp::NodeOrder { node: old.0, order: None },
    ];
    store.commit(&ended).unwrap();
    drop(store);
    let (recovered, _) = Store::open(dir.path()).unwrap().recover().unwrap();
    assert!(recovered.paused.is_empty() && recovered.orders.is_empty());
}

#[test]
fn committing_a_group_twice_changes_nothing() {
    let (dir, mut store) = open();
    let made = || Some(ResultPlace::Inline(Bytes::from_static(b"made")));
    let group =
        [insert(1), assign(1), insert(2), end(2, ended(Status::Completed, Some(b"made"), true), made())];
    store.commit(&group).unwrap();
    let (mut store, once, _) = reopened(&dir, store);
    store.commit(&group).unwrap();
    let (store, twice, _) = reopened(&dir, store);
    assert_eq!(once, twice);
    assert_eq!(store.blob(id(2), Role::Result).unwrap().unwrap(), "made");
}

/// Runs SQL on the closed database.
fn tamper(dir: &tempfile::TempDir, sql: &str) {
    Connection::open(dir.path().join("tasks.db")).unwrap().execute_batch(sql).unwrap();
}

fn bytes(dir: &tempfile::TempDir) -> Vec<u8> {
    std::fs::read(dir.path().join("tasks.db")).unwrap()
}

#[test]
fn a_newer_schema_is_refused_and_stays_untouched() {
    let (dir, mut store) = open();
    store.commit(&[insert(1)]).unwrap();
    drop(store);
    tamper(&dir, "PRAGMA user_version = 99");
    let before = bytes(&dir);
    let error = Store::open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("upgrade lamagrid"), "{error}");
    assert_eq!(bytes(&dir), before);
}

#[test]
fn another_programs_database_is_refused_and_stays_untouched() {
    for sql in
        ["CREATE TABLE songs (title TEXT)", "PRAGMA application_id = 7; CREATE TABLE songs (title TEXT)"]
    {
        let dir = tempfile::tempdir().unwrap();
        tamper(&dir, sql);
        let before = bytes(&dir);
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Foreign { .. })), "{sql}");
        assert_eq!(bytes(&dir), before);
    }
}

#[test]
fn a_file_that_is_no_valid_database_is_refused_and_stays_untouched() {
    let (dir, mut store) = open();
    let many: Vec<_> = (1..=200).map(insert).collect();
    store.commit(&many).unwrap();
    drop(store);
    let whole = bytes(&dir);
    let mut holed = whole.clone();
    // Keeps the page with the schema and damages those with the tables.
    holed[4_096..].fill(0x5a);
    let mut beheaded = whole.clone();
    beheaded[..100].fill(0x5a);
    let texts: [&[u8]; 4] =
        [b"dear diary, this is not a database, and it is a long text", &holed, &beheaded, &whole[..9_000]];
    for damaged in texts {
        std::fs::write(dir.path().join("tasks.db"), damaged).unwrap();
        let refused = Store::open(dir.path()).and_then(|mut store| store.recover());
        let error = refused.err().unwrap();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("tasks.db"), "{error}");
        assert_eq!(bytes(&dir), damaged, "{error}");
    }
}

#[test]
fn a_row_that_does_not_decode_is_set_aside_and_stays() {
    for sql in [
        "UPDATE tasks SET spec = x'c1' WHERE seq = 171",
        "UPDATE tasks SET spec = NULL WHERE seq = 171",
        "UPDATE tasks SET digest = x'00' WHERE seq = 171",
        "UPDATE tasks SET counters = x'c1' WHERE seq = 171",
        "UPDATE tasks SET counters = 'text' WHERE seq = 171",
        "UPDATE tasks SET token = x'00', node = 'n' WHERE seq = 171",
        "UPDATE tasks SET token = zeroblob(16), node = 'not a name' WHERE seq = 171",
        "UPDATE tasks SET ended = x'c1' WHERE seq = 171",
    ] {
        let (dir, mut store) = open();
        store.commit(&[insert(0xab), insert(2)]).unwrap();
        store.spool().put(id(0xab), BlobName::Role(Role::Image), b"image").unwrap();
        drop(store);
        tamper(&dir, sql);
        let row = |store: &Store| -> String {
            let columns =
                "hex(id) || quote(spec) || quote(digest) || quote(counters) || quote(token) || quote(ended)";
            let sql = format!("SELECT {columns} FROM tasks WHERE seq = 171");
            store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        let mut store = Store::open(dir.path()).unwrap();
        let before = row(&store);
        let (recovered, swept) = store.recover().unwrap();
        assert_eq!((recovered.tasks.len(), swept), (2, 0), "{sql}");
        let failed = recovered.tasks.iter().find_map(|task| match task {
            StoredTask::Ended { id: of, ended } if *of == id(0xab) => ended.failure.clone(),
            _ => None,
        });
        let failure = failed.unwrap();
        assert_eq!(failure.kind, FailureKind::Internal, "{sql}");
        assert!(failure.message.contains("submit it again"), "{failure}");
        // Not even the end of its retention deletes it.
        store.commit(&[StoreOp::Forget { id: id(0xab), owner: alice(), until_wall_ms: 9 }]).unwrap();
        assert_eq!(row(&store), before, "{sql}");
        store.spool().seal(id(0xab), BlobName::Role(Role::Image), 5, Durability::Process).unwrap();
    }
}

/// R1.3: rows that version 1 of the schema wrote: a waiting, a running, a completed and a failed task, and a
/// tombstone.
#[test]
fn a_store_of_version_1_is_migrated_and_recovered() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tasks.db"), include_bytes!("../../tests/golden/v1/tasks.db")).unwrap();
    for _ in ["migrated", "as it is then"] {
        let mut store = Store::open(dir.path()).unwrap();
        let (recovered, _) = store.recover().unwrap();
        let tasks: Vec<_> = recovered.tasks.iter().map(|t| format!("{t:?}")).collect();
        let expected = [
            live(1, Counters::default(), None),
            live(2, counters(1), Some((token(2), "host:0".parse().unwrap()))),
            over(3, ended(Status::Completed, Some(b"made"), true)),
            over(4, ended(Status::Failed, None, false)),
        ];
        assert_eq!(tasks, expected);
        assert_eq!(recovered.tombstones, [tombstone(8, Owner::local(), 98)]);
        assert_eq!(store.blob(id(1), Role::Mask).unwrap().unwrap(), "mask");
        assert_eq!(store.blob(id(3), Role::Result).unwrap().unwrap(), "made");
        assert!(recovered.orders.is_empty() && recovered.statistics.page(0).lines.is_empty());
    }
    // The tables and columns of later versions are there.
    let mut store = Store::open(dir.path()).unwrap();
    let removal = Order { kind: OrderKind::Removal, boot: None, by: "anna".into(), since_wall_ms: 6 };
    let node: NodeId = "n".parse().unwrap();
    store
        .commit(&[
            StoreOp::NodeOrder { node: node.clone(), order: Some(removal.clone()) },
            end(1, ended(Status::Failed, None, false), None),
        ])
        .unwrap();
    drop(store);
    let (recovered, _) = Store::open(dir.path()).unwrap().recover().unwrap();
    assert_eq!(recovered.orders, [(node, removal)].into());
    assert_eq!(recovered.statistics.page(0).lines[0].failed, 1);
}

/// Totals are written with the ends: a group that is committed again counts nothing twice, one transaction neither.
#[test]
fn statistics_are_in_the_commit_of_the_ends_that_they_count() {
    let (dir, mut store) = open();
    let mut statistics = Statistics::default();
    let mut next = |n, status| {
        let ended = ended(status, None, false);
        let totals = statistics.count(&ended);
        StoreOp::End {
            id: id(n),
            ended: Box::new(ended),
            place: None,
            durability: Durability::Process,
            totals,
        }
    };
    let group = [
        insert(1),
        insert(2),
        insert(3),
        next(1, Status::Failed),
        StoreOp::Together(vec![next(2, Status::Cancelled), next(3, Status::Failed)]),
    ];
    store.commit(&group).unwrap();
    store.commit(&group).unwrap();
    drop(store);
    let (recovered, _) = Store::open(dir.path()).unwrap().recover().unwrap();
    let lines = recovered.statistics.page(0).lines;
    assert_eq!((lines.len(), lines[0].failed, lines[0].cancelled, lines[0].completed), (1, 2, 1, 0));
}

/// A commit whose fsync failed is retried: the database is opened again, and its blobs are rewritten.
#[test]
fn after_a_failed_write_the_database_is_reopened_and_blobs_are_rewritten() {
    use std::os::unix::fs::MetadataExt;
    let (dir, mut store) = open();
    let image = dir.path().join(format!("spool/01/{}/image", id(1)));
    for role in [Role::Image, Role::Mask] {
        store.spool().put(id(1), BlobName::Role(role), role.as_str().as_bytes()).unwrap();
    }
    let first = std::fs::metadata(&image).unwrap().ino();
    store.commit(&[insert(2)]).unwrap();
    store.doubtful = true;
    store.commit(&[insert_as(1, Durability::Full, &[])]).unwrap();
    assert!(!store.doubtful);
    assert_ne!(std::fs::metadata(&image).unwrap().ino(), first);
    let (_store, tasks, _) = reopened(&dir, store);
    assert_eq!(tasks.len(), 2);
}

#[test]
fn a_log_that_cannot_be_synced_fails_the_next_commit_and_is_rewritten() {
    let (dir, mut store) = open();
    // Syncing this file fails.
    store.writeback = Writeback::start(std::path::Path::new("/dev/null")).unwrap();
    store.commit(&[insert(1)]).unwrap();
    store.writeback.wrote(1_000);
    let (mut n, began) = (2, std::time::Instant::now());
    let error = loop {
        if let Err(error) = store.commit(&[insert(n)]) {
            break error.to_string();
        }
        assert!(began.elapsed().as_secs() < 10, "the commit waits for it");
        n = 2 + n % 100;
    };
    assert!(error.starts_with("cannot sync /") && error.contains("tasks.db-wal: "), "{error}");
    assert!(store.doubtful);
    store.commit(&[insert(200)]).unwrap();
    assert!(!store.doubtful);
    let (_store, tasks, _) = reopened(&dir, store);
    assert!(
        [live(1, Counters::default(), None), live(200, Counters::default(), None)]
            .iter()
            .all(|t| tasks.contains(t))
    );
}

#[test]
fn a_blob_that_cannot_be_rewritten_affects_only_its_task() {
    let (_dir, mut store) = open();
    for bytes in [b"image", b"imagE"] {
        store.spool().put(id(1), BlobName::Role(Role::Image), bytes).unwrap();
    }
    store.doubtful = true;
    store.commit(&[insert_as(1, Durability::Full, &[])]).unwrap();
}

const FAIL: &str =
    "CREATE TRIGGER full BEFORE INSERT ON tombstones BEGIN SELECT RAISE(ABORT, 'disk full'); END";

#[test]
fn a_commit_is_atomic_and_can_be_retried() {
    let (dir, mut store) = open();
    store.commit(&[insert_as(1, Durability::Process, &[]), insert(2)]).unwrap();
    for role in [Role::Image, Role::Mask] {
        store.spool().put(id(1), BlobName::Role(role), role.as_str().as_bytes()).unwrap();
    }
    store.connection.execute_batch(FAIL).unwrap();
    let group = [
        insert(3),
        end(1, ended(Status::Cancelled, None, false), None),
        StoreOp::Remember { id: id(9), owner: alice(), until_wall_ms: 9 },
        assign(2),
    ];
    let error = store.commit(&group).unwrap_err();
    assert!(error.to_string().contains("cannot write the store"), "{error}");
    // The inputs of a task whose end was not committed are still needed.
    store.spool().seal(id(1), BlobName::Role(Role::Image), 5, Durability::Process).unwrap();
    let (mut store, tasks, tombstones) = reopened(&dir, store);
    assert_eq!(tasks.len(), 2, "{tasks:?}");
    assert!(tasks.iter().all(|t| t.starts_with("Live") && t.contains("assigned: None")), "{tasks:?}");
    assert_eq!(tombstones, []);
    store.connection.execute_batch("DROP TRIGGER full").unwrap();
    store.commit(&group).unwrap();
    assert!(store.spool().seal(id(1), BlobName::Role(Role::Image), 5, Durability::Process).is_err());
    let (_store, tasks, tombstones) = reopened(&dir, store);
    assert_eq!((tasks.len(), tombstones.len()), (3, 1));
}

#[test]
fn a_group_is_fsynced_if_a_task_in_it_is_full() {
    let (_dir, mut store) = open();
    let synchronous = |store: &Store| -> i64 {
        store.connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap()
    };
    let end_full = |n| {
        let ended = ended(Status::Cancelled, None, false);
        let totals = Statistics::default().count(&ended);
        StoreOp::End { id: id(n), ended: Box::new(ended), place: None, durability: Durability::Full, totals }
    };
    let (normal, full) = (1, 2);
    let table: [(Vec<StoreOp>, i64); 5] = [
        (vec![insert(1)], normal),
        (
            vec![
                insert(2),
                insert_as(3, Durability::Full, &[(Role::Image, b"image"), (Role::Mask, b"mask")]),
            ],
            full,
        ),
        (vec![assign(3)], normal),
        (vec![assign(1), end_full(3)], full),
        (vec![StoreOp::Remember { id: id(9), owner: alice(), until_wall_ms: 1 }], normal),
    ];
    for (group, wanted) in table {
        store.commit(&group).unwrap();
        assert_eq!(synchronous(&store), wanted, "{group:?}");
    }
}

#[test]
fn files_exist_before_their_rows_and_are_deleted_after_them() {
    let (dir, mut store) = open();
    let there =
        |store: &Store, n, name, len| store.spool().seal(id(n), name, len, Durability::Process).is_ok();
    let attempt = BlobName::Attempt(token(9));
    for n in 1..=3 {
        store.spool().put(id(n), BlobName::Role(Role::Image), b"image").unwrap();
        store.spool().put(id(n), BlobName::Role(Role::Mask), b"mask").unwrap();
        store.commit(&[insert_as(n, Durability::Full, &[]), assign(n)]).unwrap();
    }
    store.spool().put(id(1), attempt, b"made").unwrap();
    let done = ended(Status::Completed, Some(b"made"), false);
    let place = Some(ResultPlace::Spool(token(9)));
    store.commit(&[end(1, done.clone(), place), end(2, ended(Status::Failed, None, false), None)]).unwrap();
    let result = BlobName::Role(Role::Result);
    assert!(there(&store, 1, result, 4));
    assert!(!there(&store, 1, attempt, 4) && !there(&store, 1, BlobName::Role(Role::Image), 5));
    assert!(!there(&store, 2, BlobName::Role(Role::Image), 5));
    // A blob whose task was never accepted: the next start deletes it, and nothing else.
    store.spool().put(id(44), BlobName::Role(Role::Image), b"image").unwrap();
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recover().unwrap().1, 1);
    assert!(there(&store, 1, result, 4) && there(&store, 3, BlobName::Role(Role::Mask), 4));
    assert!(!there(&store, 44, BlobName::Role(Role::Image), 5));
    store
        .commit(&[StoreOp::Release { id: id(1), ended: Box::new(FinishedTask { result: None, ..done }) }])
        .unwrap();
    assert!(!there(&store, 1, result, 4));
}

#[test]
fn a_vanished_result_does_not_stop_the_store() {
    let (dir, mut store) = open();
    let done = ended(Status::Completed, Some(b"made"), false);
    store.commit(&[insert(1), end(1, done.clone(), Some(ResultPlace::Spool(token(9))))]).unwrap();
    let (_store, tasks, _) = reopened(&dir, store);
    assert_eq!(tasks, [over(1, FinishedTask { result: None, ..done })]);
}
