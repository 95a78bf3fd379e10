//! A scheduler for tests: it receives a client's requests and sends the replies that the test chooses.

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]

use std::time::Duration;

use bytes::Bytes;

use lamagrid_client::{Client, ClientOptions, Endpoints, Input, NewTask, TaskInfo};
use lamagrid_domain::{BlobForm, BlobMeta, Counters, Role, Stages, Status, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::{Accepted, ClientReply, ClientRequest, Message, Outcome, Pong};
use lamagrid_transport::ConnectionLimits;
use lamagrid_transport::router::{Incoming, Peers, Router};

/// Time limit, longer than any step of a test takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) endpoints: Endpoints,
    router: Option<Router>,
    /// The peer that sent the last request.
    pub(crate) peer: Option<PeerId>,
    /// True if pings are answered.
    pub(crate) alive: bool,
}

impl Fake {
    /// A scheduler that is not running yet.
    pub(crate) fn absent() -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::create_dir(dir.path().join("spool")).unwrap();
        let endpoints = Endpoints::new(dir.path());
        Self { dir, endpoints, router: None, peer: None, alive: true }
    }

    pub(crate) async fn start() -> Self {
        let mut fake = Self::absent();
        fake.bind().await;
        fake
    }

    pub(crate) async fn bind(&mut self) {
        self.router = Some(
            Router::bind(&self.endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap(),
        );
    }

    /// Closes all connections without a message.
    pub(crate) async fn kill(&mut self) {
        self.router = None;
        // Its tasks end, and remove its socket's file, some time later; a new one must not exist yet.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    pub(crate) fn client(&self) -> Client {
        let options = ClientOptions {
            ping: Duration::from_millis(50),
            silence: Duration::from_millis(400),
            data_dir: Some("/srv/grid".into()),
            ..ClientOptions::default()
        };
        Client::new(&self.endpoints, options)
    }

    pub(crate) fn spool(&self) -> std::path::PathBuf {
        self.dir.path().join("spool")
    }

    /// The next request that is not a ping, with its inline blobs.
    pub(crate) async fn receive(&mut self) -> (ClientRequest, Vec<Bytes>) {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let received = self.router.as_mut().unwrap().recv().await.unwrap();
                let Incoming::Frame { peer, frame } = received else { continue };
                let request = ClientRequest::from_frame(&frame).unwrap();
                let new = self.peer.replace(peer.clone()) != Some(peer);
                match request {
                    ClientRequest::Ping(ping) => {
                        if self.alive {
                            let spool = self.spool().display().to_string();
                            self.say(Pong { seq: ping.seq, spool, version: "test".into() }).await;
                        }
                    }
                    other => {
                        assert!(!new, "the first message on a connection is a ping, not {other:?}");
                        return (other, frame.blobs);
                    }
                }
            }
        })
        .await
        .expect("the client said nothing")
    }

    /// Asserts that only pings arrive for a while.
    pub(crate) async fn receives_nothing_more(&mut self) {
        if let Ok(more) = tokio::time::timeout(Duration::from_millis(250), self.receive()).await {
            panic!("unexpected: {more:?}");
        }
    }

    pub(crate) async fn say(&self, reply: impl Into<ClientReply>) {
        self.say_with(reply, vec![]).await;
    }

    pub(crate) async fn say_with(&self, reply: impl Into<ClientReply>, blobs: Vec<Bytes>) {
        let frame: Frame = reply.into().to_frame(blobs).unwrap();
        self.router.as_ref().unwrap().sender().send(self.peer.as_ref().unwrap(), frame);
    }

    /// Receives a submit with inline inputs and accepts it.
    pub(crate) async fn accept(&mut self) -> (TaskId, Vec<Bytes>) {
        let (request, blobs) = self.receive().await;
        let ClientRequest::Submit(submit) = request else { panic!("{request:?}") };
        let id = submit.spec.id;
        self.say(Accepted { seq: submit.seq, id, position: 3 }).await;
        (id, blobs)
    }

    /// Sends the outcome of a completed task, with these bytes inline.
    pub(crate) async fn complete(&self, id: TaskId, bytes: &'static [u8]) {
        let result = Some(meta(Role::Result, bytes));
        let outcome = Outcome { task: info(id, Status::Completed), result };
        self.say_with(outcome, vec![Bytes::from_static(bytes)]).await;
    }
}

pub(crate) fn meta(role: Role, bytes: &[u8]) -> BlobMeta {
    BlobMeta { role, len: bytes.len() as u64, hash: lamagrid_protocol::hash(bytes), form: BlobForm::Encoded }
}

pub(crate) fn info(id: TaskId, status: Status) -> TaskInfo {
    TaskInfo {
        id,
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        status,
        failure: None,
        position: Some(3),
        wait_ms: None,
        node: None,
        counters: Counters::default(),
        stages: Stages::default(),
        created_wall_ms: 1,
        finished_wall_ms: None,
    }
}

/// A task with an image and a mask of this many bytes each.
pub(crate) fn task(id: u8, bytes: usize) -> NewTask {
    let input =
        |role, fill| Input { role, form: BlobForm::Encoded, content: Bytes::from(vec![fill; bytes]).into() };
    let inputs = vec![input(Role::Image, 1), input(Role::Mask, 2)];
    NewTask::new(TaskId::from_bytes([id; 16]), "lama".parse().unwrap(), inputs)
}
