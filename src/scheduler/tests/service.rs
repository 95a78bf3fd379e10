//! Tests the whole scheduler in this process, through its real sockets: its files on disk and its refusals.

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_config::{Config, find_sockets};
use lamagrid_domain::{
    BlobForm, BlobMeta, Durability, FailureKind, LeaseToken, Params, QueueName, Role, Scalar, TaskId,
    TaskSpec,
};
use lamagrid_process::{new_task_id, random_id};
use lamagrid_protocol::hash;
use lamagrid_protocol::message::{
    Assign, Cancel, ClientReply, ClientRequest, LaneMessage, Message, Ping, Submit,
};
use lamagrid_scheduler::{DataDir, Listeners, Shutdown};
use lamagrid_transport::Endpoints;
use lamagrid_transport::link::Link;

const PATIENCE: Duration = Duration::from_secs(20);

struct Grid {
    data: Option<tempfile::TempDir>,
    link: Link,
    seq: u64,
    ask: watch::Sender<Shutdown>,
    scheduler: Option<JoinHandle<()>>,
}

impl Grid {
    /// Starts a scheduler whose `cpu` queue holds one task. It ends when this value is dropped.
    async fn start(before: impl FnOnce(&Endpoints)) -> Self {
        Self::start_on(tempfile::tempdir_in("/tmp").unwrap(), before).await
    }

    async fn start_on(data: tempfile::TempDir, before: impl FnOnce(&Endpoints)) -> Self {
        let endpoints = Endpoints::new(find_sockets(data.path()).unwrap());
        before(&endpoints);
        let flags = [
            ("data_dir".to_owned(), data.path().to_str().unwrap().to_owned()),
            ("queues.cpu.max_tasks".to_owned(), "1".to_owned()),
        ];
        let config = Config::load(None, std::env::vars(), &flags).unwrap().config;
        let (ask, shutdown) = watch::channel(Shutdown::No);
        let scheduler = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let data_dir = DataDir::open(&config).unwrap();
                let listeners = Listeners::bind(&data_dir).unwrap();
                lamagrid_scheduler::run(&config, data_dir, listeners, Arc::default(), shutdown)
                    .await
                    .unwrap();
            });
        });
        let link = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Ok(link) = Link::connect(&endpoints.client(), PATIENCE).await {
                    return link;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let link = link.await.unwrap();
        Self { link, data: Some(data), seq: 0, ask, scheduler: Some(scheduler) }
    }

    /// Ends the scheduler and returns its data directory.
    fn stop(mut self) -> tempfile::TempDir {
        self.data.take().unwrap()
    }

    fn data_dir(&self) -> &Path {
        self.data.as_ref().unwrap().path()
    }

    fn spool(&self) -> Spool {
        Spool::new(self.data_dir().join("spool"))
    }

    /// Directory of a task's blobs.
    fn blobs(&self, id: TaskId) -> PathBuf {
        let id = id.to_string();
        self.spool().root().join(&id[..2]).join(id)
    }

    async fn ask(&mut self, request: impl Into<ClientRequest>, blobs: Vec<Bytes>) -> ClientReply {
        self.link.send(request.into().to_frame(blobs).unwrap()).await.unwrap();
        loop {
            let received = tokio::time::timeout(PATIENCE, self.link.recv()).await.unwrap().unwrap();
            match ClientReply::from_frame(&received).unwrap() {
                ClientReply::Progress(_) | ClientReply::Outcome(_) | ClientReply::Pong(_) => {}
                reply => return reply,
            }
        }
    }

    /// Submits an image whose bytes are already in the spool.
    async fn submit_by_reference(&mut self, id: TaskId) -> ClientReply {
        let bytes = vec![7; 300];
        self.spool().put(id, BlobName::Role(Role::Image), &bytes).unwrap();
        self.seq += 1;
        let submit = Submit { seq: self.seq, spec: spec(id, &bytes), inline: vec![], follow: false };
        self.ask(submit, vec![]).await
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        self.ask.send_replace(Shutdown::Finish("the test is over"));
        let ended = self.scheduler.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn id() -> TaskId {
    new_task_id()
}

fn spec(id: TaskId, image: &[u8]) -> TaskSpec {
    let form = BlobForm::Raw { height: 10, width: 10, channels: 3 };
    TaskSpec {
        id,
        owner: "local".parse().unwrap(),
        client: None,
        model: "cv2".parse().unwrap(),
        queue: QueueName::cpu(),
        params: Params::default(),
        priority: 0,
        durability: Durability::Process,
        deadline_wall_ms: None,
        wait_limit_ms: None,
        no_node_wait_ms: None,
        run_limit_ms: None,
        replay_of: None,
        output: lamagrid_domain::OutputForm::Raw,
        blobs: vec![BlobMeta { role: Role::Image, len: image.len() as u64, hash: hash(image), form }],
        routed: false,
        picture: None,
    }
}

#[tokio::test]
async fn blobs_of_a_refused_task_are_deleted() {
    let mut grid = Grid::start(|_| {}).await;
    let accepted = id();
    assert!(matches!(grid.submit_by_reference(accepted).await, ClientReply::Accepted(_)));
    let refused = id();
    let reply = grid.submit_by_reference(refused).await;
    assert!(
        matches!(&reply, ClientReply::Refused(r) if r.failure.kind == FailureKind::Overloaded),
        "{reply:?}"
    );
    assert!(!grid.blobs(refused).exists());
    assert!(grid.blobs(accepted).join("image").exists());
    // Refused because the id exists with other inputs; that must not delete the accepted task's inputs.
    let other = Submit { seq: 90, spec: spec(accepted, &[8; 300]), inline: vec![], follow: false };
    assert!(matches!(grid.ask(other, vec![]).await, ClientReply::Refused(_)));
    assert!(grid.blobs(accepted).join("image").exists());
}

#[tokio::test]
async fn blobs_of_a_cancelled_unknown_task_are_deleted() {
    let mut grid = Grid::start(|_| {}).await;
    let given_up = id();
    grid.spool().put(given_up, BlobName::Role(Role::Image), b"pixels").unwrap();
    let cancel = Cancel { seq: 1, id: given_up, owner: "local".parse().unwrap() };
    assert!(matches!(grid.ask(cancel, vec![]).await, ClientReply::Unknown(_)));
    assert!(!grid.blobs(given_up).exists());
}

#[tokio::test]
async fn a_task_too_large_for_an_assignment_is_refused() {
    let mut grid = Grid::start(|_| {}).await;
    let image = vec![7; 300];
    // The longest parameters with which the submission itself still fits into one message.
    let of = |len: usize| {
        let mut spec = spec(id(), &image);
        let mut left = len;
        let mut params = BTreeMap::new();
        for at in 0..9 {
            let part = left.min(8_000);
            left -= part;
            params.insert(format!("p{at}"), Scalar::Text("x".repeat(part)));
        }
        spec.params = Params::try_from(params).unwrap();
        Submit { seq: 1, spec, inline: vec![Role::Image], follow: false }
    };
    let fits = |submit: &Submit| ClientRequest::from(submit.clone()).to_frame(vec![]).is_ok();
    let longest = (60_000..66_000).rev().map(of).find(fits).unwrap();
    let token = LeaseToken::from_bytes(random_id());
    let assign = Assign { token, attempt: 1, spec: longest.spec.clone(), inline: vec![Role::Image] };
    assert!(LaneMessage::from(assign).to_frame(vec![]).is_err());
    let reply = grid.ask(longest, vec![image.clone().into()]).await;
    assert!(
        matches!(&reply, ClientReply::Refused(r) if r.failure.kind == FailureKind::InvalidInput),
        "{reply:?}"
    );
    assert!(matches!(grid.ask(of(60_000), vec![image.clone().into()]).await, ClientReply::Accepted(_)));
}

#[tokio::test]
async fn lanes_of_a_killed_scheduler_are_removed() {
    let mut stale = PathBuf::new();
    let _grid = Grid::start(|endpoints| {
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700).recursive(true).create(endpoints.dir()).unwrap();
        stale = endpoints.dir().join("lane-0011223344556677-0.sock");
        std::fs::write(&stale, b"").unwrap();
    })
    .await;
    assert!(!stale.exists());
}

/// A logout empties the runtime directory: open connections go on, and new ones succeed again within seconds.
#[tokio::test]
async fn removed_sockets_are_recreated_and_open_connections_survive() {
    let mut grid = Grid::start(|_| {}).await;
    for remove in [
        (|dir| std::fs::remove_dir_all(dir)) as fn(&Path) -> std::io::Result<()>,
        |dir| std::fs::remove_file(dir.join("client.sock")),
        |dir| std::fs::rename(dir.join("control.sock"), dir.join("client.sock")),
    ] {
        remove(&find_sockets(grid.data_dir()).unwrap()).unwrap();
        let cancel = Cancel { seq: 1, id: id(), owner: "local".parse().unwrap() };
        assert!(matches!(grid.ask(cancel, vec![]).await, ClientReply::Unknown(_)));
        let endpoints = Endpoints::new(find_sockets(grid.data_dir()).unwrap());
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Ok(link) = Link::connect(&endpoints.client(), Duration::from_millis(500)).await
                    && link.send(ClientRequest::from(Ping { seq: 2 }).to_frame(vec![]).unwrap()).await.is_ok()
                {
                    let mut link = link;
                    let received = tokio::time::timeout(Duration::from_secs(1), link.recv()).await;
                    if received.is_ok_and(|received| {
                        received.is_ok_and(|received| {
                            matches!(ClientReply::from_frame(&received), Ok(ClientReply::Pong(_)))
                        })
                    }) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap();
        for name in ["admin", "control", "result", "node-events"] {
            assert!(endpoints.dir().join(format!("{name}.sock")).exists(), "{name}");
        }
    }
}

/// R7.1: while writes to the disk fail, a new task is refused at once with the reason, pings are answered,
/// everything else waits; afterwards the scheduler goes on by itself.
#[tokio::test]
async fn new_tasks_are_refused_while_the_store_cannot_be_written() {
    let mut grid = Grid::start(|_| {}).await;
    let database = rusqlite::Connection::open(grid.data_dir().join("tasks.db")).unwrap();
    database
        .execute_batch(
            "CREATE TRIGGER broken BEFORE INSERT ON tombstones BEGIN SELECT RAISE(ABORT, 'broken'); END",
        )
        .unwrap();
    let cancel = Cancel { seq: 1, id: id(), owner: "local".parse().unwrap() };
    grid.link.send(ClientRequest::from(cancel).to_frame(vec![]).unwrap()).await.unwrap();
    // Pings sent before the scheduler notices the failure wait for the write; the first pong shows that it
    // has noticed.
    let mut received = None;
    for seq in 50..450 {
        grid.link.send(ClientRequest::from(Ping { seq }).to_frame(vec![]).unwrap()).await.unwrap();
        received = tokio::time::timeout(Duration::from_millis(50), grid.link.recv()).await.ok();
        if received.is_some() {
            break;
        }
    }
    let pong = ClientReply::from_frame(&received.unwrap().unwrap()).unwrap();
    assert!(matches!(pong, ClientReply::Pong(_)), "{pong:?}");
    let task = id();
    let reply = grid.submit_by_reference(task).await;
    let ClientReply::Refused(refused) = reply else { panic!("{reply:?}") };
    assert_eq!(refused.failure.kind, FailureKind::DiskFull);
    let text = refused.failure.message;
    assert!(text.contains("tasks.db") && text.contains("broken") && text.contains("try again"), "{text}");
    assert!(!grid.blobs(task).exists());
    database.execute_batch("DROP TRIGGER broken").unwrap();
    let answer = loop {
        let received = tokio::time::timeout(PATIENCE, grid.link.recv()).await.unwrap().unwrap();
        match ClientReply::from_frame(&received).unwrap() {
            ClientReply::Pong(_) => {}
            reply => break reply,
        }
    };
    assert!(matches!(&answer, ClientReply::Unknown(u) if u.seq == 1), "{answer:?}");
    let accepted = grid.submit_by_reference(id()).await;
    assert!(matches!(accepted, ClientReply::Accepted(_)), "{accepted:?}");
}

#[tokio::test]
async fn a_scheduler_stops_on_request_and_its_successor_has_its_tasks() {
    let mut grid = Grid::start(|_| {}).await;
    let task = id();
    assert!(matches!(grid.submit_by_reference(task).await, ClientReply::Accepted(_)));
    let mut grid = Grid::start_on(grid.stop(), |_| {}).await;
    let cancel = Cancel { seq: 1, id: task, owner: "local".parse().unwrap() };
    assert!(matches!(grid.ask(cancel, vec![]).await, ClientReply::TaskStatus(_)));
}
