//! A fake scheduler for tests: it answers polls and goodbyes by itself, and does everything else only when a test asks.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::allow_attributes,
    reason = "what is unused differs from file to file, so `expect` cannot hold"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_domain::{
    BlobForm, BlobMeta, Durability, Failure, LeaseToken, ModelName, ModelOffer, NodeInfo, NodeKind, Params,
    QueueName, Role, Scalar, SessionId, TaskId, TaskSpec,
};
use lamagrid_process::random_id;
use lamagrid_protocol::message::{
    Accept, Action, Assign, Command, Commands, ControlReply, ControlRequest, Delivery, Farewell, Hello, Hint,
    LaneAddress, LaneMessage, Message, NodeEvent, Poll, Proceed, Ready, Rejected, ResultReply, ResultRequest,
    SessionGone, Welcome,
};
use lamagrid_protocol::{PeerId, hash};
use lamagrid_transport::router::{Incoming, Peers, Router};
use lamagrid_transport::{ConnectionLimits, Endpoints, EventSubscriber, LaneSender};

const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const POLL_MS: u64 = 100;

/// A message from a node.
#[derive(Debug)]
pub(crate) enum Received {
    Hello(PeerId, Hello),
    Poll(Poll),
    Goodbye,
    Ready(Ready),
    Accept(Accept),
    Delivery(Delivery, Vec<Bytes>),
    Event(NodeEvent),
}

/// The reply to a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polls {
    Commands,
    SessionGone,
}

pub(crate) struct Fake {
    pub(crate) endpoints: Endpoints,
    pub(crate) spool: Spool,
    pub(crate) commands: Vec<Command>,
    pub(crate) polls: Polls,
    control: Router,
    result: Router,
    events: EventSubscriber,
    lane: Option<LaneSender>,
    result_peer: Option<PeerId>,
}

impl Fake {
    /// Starts a scheduler with its sockets in `dir`.
    pub(crate) async fn start(dir: &std::path::Path) -> Self {
        let endpoints = Endpoints::new(dir);
        Self {
            spool: Spool::create(dir.join("spool")).unwrap(),
            commands: Vec::new(),
            polls: Polls::Commands,
            control: Router::bind(&endpoints.control(), Peers::Req, &ConnectionLimits::default()).unwrap(),
            result: Router::bind(&endpoints.result(), Peers::Dealer, &ConnectionLimits::default()).unwrap(),
            events: EventSubscriber::bind(&endpoints.node_events(), &ConnectionLimits::default()).unwrap(),
            lane: None,
            result_peer: None,
            endpoints,
        }
    }

    async fn answer(&self, peer: PeerId, reply: ControlReply) {
        self.control.sender().send(&peer, reply.to_frame(Vec::new()).unwrap());
    }

    /// Receives the next message from a node; answers polls and goodbyes.
    async fn next(&mut self) -> Received {
        loop {
            tokio::select! {
                Some(incoming) = self.control.recv() => {
                    let Incoming::Frame { peer, frame } = incoming else { continue };
                    match ControlRequest::from_frame(&frame).unwrap() {
                        ControlRequest::Hello(hello) => return Received::Hello(peer, hello),
                        ControlRequest::Poll(poll) => {
                            self.commands.retain(|command| command.seq > poll.acknowledged);
                            let reply = match self.polls {
                                Polls::Commands => Commands { commands: self.commands.clone() }.into(),
                                Polls::SessionGone => SessionGone { session: poll.session }.into(),
                            };
                            self.answer(peer, reply).await;
                            return Received::Poll(poll);
                        }
                        ControlRequest::Goodbye(_) => {
                            self.answer(peer, Farewell {}.into()).await;
                            return Received::Goodbye;
                        }
                    }
                }
                Some(incoming) = self.result.recv() => {
                    let Incoming::Frame { peer, frame } = incoming else { continue };
                    self.result_peer = Some(peer);
                    return match ResultRequest::from_frame(&frame).unwrap() {
                        ResultRequest::Ready(ready) => Received::Ready(ready),
                        ResultRequest::Accept(accept) => Received::Accept(accept),
                        ResultRequest::Delivery(delivery) => Received::Delivery(delivery, frame.blobs),
                    };
                }
                Some(frame) = self.events.recv() => return Received::Event(NodeEvent::from_frame(&frame).unwrap()),
            }
        }
    }

    /// Waits for the first message for which `pick` returns a value, and skips those before it.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(Received) -> Option<T>) -> T {
        let found = async {
            loop {
                let received = self.next().await;
                let text = format!("{received:?}");
                if let Some(found) = pick(received) {
                    return found;
                }
                if !text.starts_with("Poll") && !text.starts_with("Event") {
                    eprintln!("passed over: {}", text.chars().take(200).collect::<String>());
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the node did not say what the test waits for")
    }

    /// Welcomes the next node that says hello, and waits until it is ready.
    pub(crate) async fn welcome(&mut self, abandoned: Vec<LeaseToken>) -> (SessionId, Hello, Ready) {
        let (peer, hello) = self.hello().await;
        let session = SessionId::from_bytes(random_id());
        let address = self.endpoints.lane(session, 0);
        let connected = Arc::new(Notify::new());
        let notify = Arc::clone(&connected);
        self.lane = Some(
            LaneSender::bind(&address, &ConnectionLimits::default(), move |_| notify.notify_one()).unwrap(),
        );
        let welcome = Welcome {
            session,
            lanes: vec![LaneAddress { queue: QueueName::gpu(), address }],
            refused: Vec::new(),
            lease_ms: 20_000,
            poll_ms: POLL_MS,
            spool: self.spool.root().display().to_string(),
            abandoned,
        };
        self.answer(peer, welcome.into()).await;
        let ready = self.ready().await;
        assert_eq!(ready.session, session);
        tokio::time::timeout(PATIENCE, connected.notified()).await.expect("the lane is connected");
        (session, hello, ready)
    }

    pub(crate) async fn hello(&mut self) -> (PeerId, Hello) {
        self.until(
            |received| if let Received::Hello(peer, hello) = received { Some((peer, hello)) } else { None },
        )
        .await
    }

    pub(crate) async fn reject(&mut self, failure: Failure) {
        let (peer, _) = self.hello().await;
        self.answer(peer, Rejected { failure, removed: false }.into()).await;
    }

    /// Rejects the next hello because the node was removed.
    pub(crate) async fn reject_removed(&mut self, failure: Failure) {
        let (peer, _) = self.hello().await;
        self.answer(peer, Rejected { failure, removed: true }.into()).await;
    }

    /// Adds a command, and hints that there is one.
    pub(crate) fn command(&mut self, seq: u64, action: Action) {
        self.commands.push(Command { seq, action });
        self.push(Hint {}.into(), Vec::new());
    }

    pub(crate) async fn ready(&mut self) -> Ready {
        self.until(|received| if let Received::Ready(ready) = received { Some(ready) } else { None }).await
    }

    /// Waits until a task is in its slot, which its first progress shows.
    pub(crate) async fn begun(&mut self, token: LeaseToken) {
        self.until(|received| match received {
            Received::Event(NodeEvent::Step(step)) if step.token == token && step.step > 0 => Some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) async fn poll(&mut self) -> Poll {
        self.until(|received| if let Received::Poll(poll) = received { Some(poll) } else { None }).await
    }

    pub(crate) async fn delivery(&mut self) -> (Delivery, Vec<Bytes>) {
        self.until(
            |received| if let Received::Delivery(d, blobs) = received { Some((d, blobs)) } else { None },
        )
        .await
    }

    pub(crate) fn push(&self, message: LaneMessage, blobs: Vec<Bytes>) {
        self.lane.as_ref().unwrap().send(message.to_frame(blobs).unwrap());
    }

    pub(crate) async fn reply(&self, reply: ResultReply) {
        let peer = self.result_peer.clone().unwrap();
        self.result.sender().send(&peer, reply.to_frame(Vec::new()).unwrap());
    }

    /// Assigns a task whose blobs are in the spool.
    pub(crate) async fn assign(&mut self, spec: &TaskSpec, token: LeaseToken) {
        self.give(Assign { token, attempt: 1, spec: spec.clone(), inline: Vec::new() }, Vec::new()).await;
    }

    /// Assigns a task and lets the node begin it.
    pub(crate) async fn give(&mut self, assign: Assign, blobs: Vec<Bytes>) {
        let token = assign.token;
        self.push(assign.into(), blobs);
        self.accept(token).await;
        self.reply(Proceed { token }.into()).await;
    }

    pub(crate) async fn accept(&mut self, token: LeaseToken) {
        let accepted = self
            .until(|received| if let Received::Accept(a) = received { Some(a.token) } else { None })
            .await;
        assert_eq!(accepted, token);
    }

    /// Creates a task on a picture of `height` x `width`, with its blobs in the spool.
    pub(crate) fn task(&self, height: u32, width: u32, params: &[(&str, i64)]) -> (TaskSpec, LeaseToken) {
        let id = TaskId::from_bytes(random_id());
        let image = pattern(height, width);
        let mask = vec![255; (height * width) as usize];
        let meta = |role, bytes: &[u8], channels| BlobMeta {
            role,
            len: bytes.len() as u64,
            hash: hash(bytes),
            form: BlobForm::Raw { height, width, channels },
        };
        let blobs = vec![meta(Role::Image, &image, 3), meta(Role::Mask, &mask, 1)];
        self.spool.put(id, BlobName::Role(Role::Image), &image).unwrap();
        self.spool.put(id, BlobName::Role(Role::Mask), &mask).unwrap();
        let params = params.iter().map(|(key, value)| ((*key).to_owned(), Scalar::Int(*value)));
        let spec = TaskSpec {
            id,
            owner: "test".parse().unwrap(),
            client: None,
            model: "lama".parse().unwrap(),
            queue: QueueName::gpu(),
            params: Params::try_from(params.collect::<std::collections::BTreeMap<_, _>>()).unwrap(),
            priority: 0,
            durability: Durability::Process,
            deadline_wall_ms: None,
            wait_limit_ms: None,
            no_node_wait_ms: None,
            run_limit_ms: None,
            replay_of: None,
            output: lamagrid_domain::OutputForm::Raw,
            blobs,
            routed: false,
            picture: None,
        };
        (spec, LeaseToken::from_bytes(random_id()))
    }
}

/// Creates an RGB picture whose channels differ.
pub(crate) fn pattern(height: u32, width: u32) -> Vec<u8> {
    (0..height * width * 3).map(|i| (i * 7 % 251) as u8).collect()
}

pub(crate) fn rgb_to_bgr(rgb: &[u8]) -> Vec<u8> {
    rgb.chunks_exact(3).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect()
}

pub(crate) fn offer(model: &str) -> ModelOffer {
    ModelOffer {
        model: model.parse::<ModelName>().unwrap(),
        queue: QueueName::gpu(),
        loaded: false,
        present: true,
        routed: false,
        memory_bytes: 0,
        pinned: false,
    }
}

pub(crate) fn info(name: &str) -> NodeInfo {
    NodeInfo {
        name: name.parse().unwrap(),
        kind: NodeKind::Echo,
        version: "0".into(),
        device: "cpu".into(),
        gpu: None,
        memory_bytes: 0,
        cores: 1,
        models: vec![offer("lama")],
        pid: std::process::id(),
        withheld: Vec::new(),
        labels: Vec::new(),
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    }
}

/// Creates a directory whose path is short enough for the paths of Unix sockets in it.
pub(crate) fn short_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("lgn").tempdir_in("/tmp").unwrap()
}
