//! The service moves bytes: sockets in, the core decides, the committer remembers, sockets out.
//!
//! Does not: decide anything about a task.
//!
//! Invariant (commit barrier): effects are carried out in the core's order, and a message leaves only after
//! every write before it is committed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;

use lamagrid_config::{Config, ConfigError};
use lamagrid_domain::{Failure, FailureKind, QueueName, SessionId, TaskId};
use lamagrid_wire::frame::{Frame, FrameError, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES};
use lamagrid_wire::message::{
    AttemptOutcome, ClientReply, ClientRequest, ControlReply, ControlRequest, Message, NodeEvent,
    ProtocolFault, Refused, Rejected, ResultRequest, TaskInfo,
};
use lamagrid_wire::router::{Incoming, PeerId, Peers, Router, RouterSender, fault};
use lamagrid_wire::spool::{BlobName, Spool};
use lamagrid_wire::{Endpoints, EventSubscriber, LaneSender, SocketError};

use crate::committer::{Committer, Group, Report};
use crate::core::{Core, Effect, Input, Now, Settings};
use crate::instance::InstanceLock;
use crate::store::{Store, StoreError};

/// How often timers are looked at; the shortest one that they serve is a second.
const TICK: Duration = Duration::from_millis(50);
/// Messages that are taken before a tick, per socket, so that a flood delays timers but never stops them.
const MAX_DRAINED: usize = 4_096;
/// How long the last group may take when the process is told to end.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Effects that wait for a commit before clients are not read any more: what they hold is kept in memory.
const MAX_PENDING: usize = 1_024;
/// Small blobs that are read behind one commit; each read is of one task, at most three times 256 KiB.
const MAX_READS: usize = 64;
/// A commit takes no longer than this on a disk that works, and leaves most of the accept timeout to the node.
const USUAL_COMMIT: Duration = Duration::from_millis(200);
/// What an assignment says beside what was submitted: its token and number.
const ASSIGN_BYTES: usize = 256;
/// After this, blobs that were announced are nobody's, unless their task was accepted: no disk writes that long.
const ANNOUNCED_MS: u64 = 600_000;
/// Announcements that are remembered; what is written for more than that, in vain, goes at the next start.
const MAX_ANNOUNCED: usize = 100_000;

/// Why a scheduler does not start, or ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration names no usable place.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}; choose a writable one with --data-dir")]
    DataDir {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another scheduler owns the data directory.
    #[error(
        "another scheduler (pid {pid}) runs on the data directory {path}: use that one, stop it, or choose another \
         directory with --data-dir"
    )]
    SecondInstance {
        /// Which directory.
        path: PathBuf,
        /// Who owns it.
        pid: String,
    },
    /// The store cannot be opened, or could not be written for too long.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operating system refused a thread, a signal handler or the like, or a thread died.
    #[error("the scheduler cannot run: {0}")]
    System(#[from] std::io::Error),
}

/// What one scheduler process runs with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The checked configuration.
    pub config: Config,
    /// End when standard input reaches its end: how children notice their parent's end.
    pub lifeline: bool,
}

/// Runs a scheduler until it is told to end by SIGTERM, SIGINT or its lifeline.
///
/// # Errors
/// [`SchedulerError`], each with what to do about it.
pub fn run(options: Options) -> Result<(), SchedulerError> {
    // Pictures and prompts are nobody else's business, whatever mode an older data directory has.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(serve(options));
    // Blocking tasks (the lifeline's read) may never return.
    runtime.shutdown_background();
    ended
}

async fn serve(options: Options) -> Result<(), SchedulerError> {
    let Options { config, lifeline } = options;
    let data_dir = config.data_dir()?;
    let _lock = InstanceLock::take(&data_dir)?;
    let endpoints = Endpoints::new(lamagrid_config::runtime_dir(&data_dir)?);
    endpoints.unlink_stale_lanes()?;
    let store = Store::open(&data_dir)?;
    let recovered = store.recover()?;
    let spool = store.spool().clone();
    let (tasks, swept) = (recovered.tasks.len(), recovered.swept);
    let clock = Clock::start();
    let settings = settings(&config, &endpoints, &spool);
    let core = Core::new(
        settings,
        Box::new(lamagrid_wire::random_id),
        clock.now(),
        recovered.tasks,
        recovered.tombstones,
    );
    let committer = Committer::start(store, Duration::from_millis(config.store.give_up_after_ms))?;

    let control = Router::bind(&endpoints.control(), Peers::Req).await?;
    let results = Router::bind(&endpoints.result(), Peers::Dealer).await?;
    let events = EventSubscriber::bind(&endpoints.node_events()).await?;
    // Last: a client that can connect finds everything else in place.
    let clients = Router::bind(&endpoints.client(), Peers::Dealer).await?;
    let unfinished = core.unfinished();
    tracing::info!(data_dir = %data_dir.display(), pid = std::process::id(), unfinished, remembered = tasks, swept,
        "scheduler ready");

    let (lane_connected, lane_events) = mpsc::unbounded_channel();
    let senders = Senders { clients: clients.sender(), control: control.sender(), results: results.sender() };
    let mut service = Service {
        core,
        clock,
        spool,
        committer,
        senders,
        lanes: HashMap::new(),
        lane_connected,
        pending: VecDeque::new(),
        waiting: None,
        failing: false,
        group_max: config.store.group_commit_max as usize,
        failed_lanes: Vec::new(),
        announced: VecDeque::new(),
    };
    let stop = stop_signal(lifeline)?;
    let reason = service.serve(Sockets { clients, control, results, events, lane_events }, stop).await?;
    tracing::info!(reason, "scheduler ended");
    Ok(())
}

fn settings(config: &Config, endpoints: &Endpoints, spool: &Spool) -> Settings {
    let queues: BTreeMap<QueueName, u64> = config
        .queues
        .iter()
        .filter_map(|(name, queue)| Some((name.parse().ok()?, u64::from(queue.max_tasks))))
        .collect();
    Settings {
        scheduler: config.scheduler.clone(),
        queues,
        max_pixels: config.limits.max_pixels,
        poll_ms: config.node.poll_ms,
        endpoints: endpoints.clone(),
        spool: spool.root().display().to_string(),
    }
}

/// Resolves with the reason once the process shall end.
fn stop_signal(lifeline: bool) -> Result<impl Future<Output = &'static str>, std::io::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let parent = lifeline.then(watch_parent).transpose()?;
    let parent_gone = async move {
        match parent {
            Some(mut parent) => parent.recv().await,
            None => std::future::pending().await,
        }
    };
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = parent_gone => "parent ended",
        }
    })
}

/// Hears when standard input ends. A plain thread: nothing may wait for its read when the process ends.
fn watch_parent() -> Result<mpsc::Receiver<()>, std::io::Error> {
    let (ended, parent) = mpsc::channel::<()>(1);
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.blocking_send(());
    })?;
    Ok(parent)
}

/// The core's clock. It stands still while a slow commit holds every message back: a node cannot accept in time what
/// has not left, and nobody is silent who was not answered.
struct Clock {
    start: Instant,
    /// Time that does not count.
    held_back: Duration,
    /// Since when a group is being committed.
    committing: Option<Instant>,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), held_back: Duration::ZERO, committing: None }
    }

    fn now(&self) -> Now {
        let now = Instant::now();
        let counted = now.duration_since(self.start).saturating_sub(self.held_back + self.stall(now));
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: counted.as_millis() as u64, wall_ms: wall.as_millis() as u64 }
    }

    /// How much longer than usual the commit in hand takes.
    fn stall(&self, now: Instant) -> Duration {
        self.committing.map_or(Duration::ZERO, |since| now.duration_since(since).saturating_sub(USUAL_COMMIT))
    }

    fn commit_begins(&mut self) {
        self.committing = Some(Instant::now());
    }

    fn commit_ended(&mut self) {
        self.held_back += self.stall(Instant::now());
        self.committing = None;
    }
}

struct Sockets {
    clients: Router,
    control: Router,
    results: Router,
    events: EventSubscriber,
    lane_events: mpsc::UnboundedReceiver<(SessionId, usize)>,
}

struct Senders {
    clients: RouterSender,
    control: RouterSender,
    results: RouterSender,
}

struct Service {
    core: Core,
    clock: Clock,
    spool: Spool,
    committer: Committer,
    senders: Senders,
    lanes: HashMap<SessionId, Vec<LaneSender>>,
    /// Unbounded because it carries exactly one event per lane.
    lane_connected: mpsc::UnboundedSender<(SessionId, usize)>,
    /// Effects behind the group that is being committed.
    pending: VecDeque<Effect>,
    /// Messages that the group in hand releases.
    waiting: Option<Vec<Effect>>,
    /// The group in hand failed: no new work is taken until it is durable.
    failing: bool,
    group_max: usize,
    failed_lanes: Vec<(SessionId, String)>,
    /// Ids whose blobs a client may write before it submits, by the instant at which they are nobody's.
    announced: VecDeque<(u64, TaskId)>,
}

impl Service {
    async fn serve(
        &mut self,
        mut sockets: Sockets,
        stop: impl Future<Output = &'static str>,
    ) -> Result<&'static str, SchedulerError> {
        tokio::pin!(stop);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                reason = &mut stop => {
                    self.finish().await;
                    return Ok(reason);
                }
                report = self.committer.report() => {
                    let died = || std::io::Error::other("the thread that writes the store died; see the log");
                    self.on_report(report.ok_or_else(died)?).await?;
                }
                Some(heard) = sockets.clients.recv(), if !self.failing && self.pending.len() < MAX_PENDING => {
                    self.on_client(heard);
                }
                Some(heard) = sockets.control.recv() => self.on_control(heard),
                Some(heard) = sockets.results.recv() => self.on_result(heard),
                Some(frame) = sockets.events.recv() => self.on_event(&frame),
                Some((session, index)) = sockets.lane_events.recv() => {
                    self.handle(Input::LaneConnected { session, index });
                }
                _ = tick.tick() => {
                    self.drain(&mut sockets);
                    self.handle(Input::Tick);
                    self.sweep_announced();
                }
            }
            self.pump().await;
        }
    }

    /// Takes what lies in the sockets' buffers, so that no timer fires over a message that had arrived.
    fn drain(&mut self, sockets: &mut Sockets) {
        for _ in 0..MAX_DRAINED {
            let Some(heard) = sockets.control.try_recv() else { break };
            self.on_control(heard);
        }
        for _ in 0..MAX_DRAINED {
            let Some(heard) = sockets.results.try_recv() else { break };
            self.on_result(heard);
        }
    }

    fn handle(&mut self, input: Input) {
        let effects = self.core.handle(self.clock.now(), input);
        self.pending.extend(effects);
    }

    fn on_client(&mut self, heard: Incoming) {
        let (peer, frame) = match heard {
            Incoming::Gone { peer } => return self.handle(Input::ClientGone { peer }),
            Incoming::Frame { peer, frame } => (peer, frame),
        };
        let request = match ClientRequest::from_frame(&frame) {
            Ok(request) => request,
            Err(error) => {
                self.pending.push_back(fault_effect(&error, peer, |failure, peer| Effect::Client {
                    peer,
                    reply: failure.into(),
                    attach: None,
                }));
                return;
            }
        };
        // Whoever cancels or is refused has written blobs, perhaps, which no task will ever name.
        let written = match &request {
            ClientRequest::Submit(submit) => Some(submit.spec.id),
            ClientRequest::Cancel(cancel) => Some(cancel.id),
            ClientRequest::Offer(offer) => {
                self.announce(offer.id);
                None
            }
            _ => None,
        };
        if let Some(refusal) = self.unassignable(&request, &frame).or_else(|| self.missing_blob(&request)) {
            self.pending.push_back(Effect::Client { peer, reply: refusal, attach: None });
        } else {
            self.handle(Input::Client { peer, request, inline: frame.blobs });
        }
        if let Some(id) = written {
            self.remove_unclaimed(id);
        }
    }

    fn announce(&mut self, id: TaskId) {
        if !self.core.knows(id) && self.announced.len() < MAX_ANNOUNCED {
            self.announced.push_back((self.clock.now().mono_ms + ANNOUNCED_MS, id));
        }
    }

    /// Deletes what clients wrote that died before they submitted.
    fn sweep_announced(&mut self) {
        let now_ms = self.clock.now().mono_ms;
        while let Some((_, id)) = self.announced.pop_front_if(|(at, _)| *at <= now_ms) {
            self.remove_unclaimed(id);
        }
    }

    /// Deletes the blobs of an id without a row. On this thread, so that the answer to a later offer of that id, and
    /// with it the writing, comes after it.
    fn remove_unclaimed(&self, id: TaskId) {
        if !self.core.knows(id)
            && let Err(error) = self.spool.remove_task(id)
        {
            tracing::warn!(task.id = %id, %error, "blobs that nobody claims stay until the next start");
        }
    }

    /// A submission that just fits into a message would make an assignment that does not: no node would ever hear of
    /// it, and each one that it is given to would seem deaf.
    fn unassignable(&self, request: &ClientRequest, frame: &Frame) -> Option<ClientReply> {
        let ClientRequest::Submit(submit) = request else { return None };
        let header = frame.header.len() + ASSIGN_BYTES;
        let message = header + frame.blobs.iter().map(Bytes::len).sum::<usize>();
        if (header <= MAX_HEADER_BYTES && message <= MAX_MESSAGE_BYTES) || self.core.knows(submit.spec.id) {
            return None;
        }
        let text = format!(
            "task {} has more parameters or inline bytes than one message to a node holds; shorten its texts",
            submit.spec.id
        );
        Some(refused(submit.seq, FailureKind::InvalidInput, text))
    }

    /// A submission by reference whose blobs do not lie in the spool as announced is refused before it is accepted.
    fn missing_blob(&self, request: &ClientRequest) -> Option<ClientReply> {
        let ClientRequest::Submit(submit) = request else { return None };
        let by_reference = submit.spec.blobs.iter().filter(|b| !submit.inline.contains(&b.role));
        let error = by_reference
            .filter_map(|b| self.spool.seal(submit.spec.id, BlobName::Role(b.role), b.len, false).err())
            .next()?;
        // A retry of a task that has ended finds its inputs gone, as they should be: the core knows it.
        if self.core.knows(submit.spec.id) {
            return None;
        }
        let text = format!("a blob of task {} is not in the spool: {error}", submit.spec.id);
        Some(refused(submit.seq, FailureKind::InvalidInput, text))
    }

    fn on_control(&mut self, heard: Incoming) {
        // A control connection says nothing about its node: the result connection does.
        let Incoming::Frame { peer, frame } = heard else { return };
        match ControlRequest::from_frame(&frame) {
            Ok(request) => self.handle(Input::Control { peer, request }),
            Err(error) => self.pending.push_back(fault_effect(&error, peer, |failure, peer| {
                Effect::Control { peer, reply: failure.into() }
            })),
        }
    }

    fn on_result(&mut self, heard: Incoming) {
        let (peer, mut frame) = match heard {
            Incoming::Gone { peer } => return self.handle(Input::ResultGone { peer }),
            Incoming::Frame { peer, frame } => (peer, frame),
        };
        match ResultRequest::from_frame(&frame) {
            Ok(mut request) => {
                self.check_delivery(&mut request);
                let inline = frame.blobs.pop();
                self.handle(Input::Result { peer, request, inline });
            }
            Err(error) => self.pending.push_back(fault_effect(&error, peer, |failure, peer| {
                Effect::Result { peer, reply: failure.into() }
            })),
        }
    }

    /// A delivery by reference that does not lie in the spool as announced becomes a failure of its attempt.
    fn check_delivery(&self, request: &mut ResultRequest) {
        let ResultRequest::Delivery(delivery) = request else { return };
        let AttemptOutcome::Done { result, inline: false, .. } = &delivery.outcome else { return };
        let Some(task) = self.core.task_of(delivery.token) else { return };
        if let Err(error) = self.spool.seal(task, BlobName::Attempt(delivery.token), result.len, false) {
            let kind = if error.is_disk_full() { FailureKind::DiskFull } else { FailureKind::Internal };
            let failure = Failure::new(kind, format!("the result could not be taken over: {error}"));
            delivery.outcome = AttemptOutcome::Failed { failure };
        }
    }

    fn on_event(&mut self, frame: &Frame) {
        match NodeEvent::from_frame(frame) {
            Ok(event) => self.handle(Input::Event(event)),
            Err(error) => tracing::debug!(%error, "bad event dropped"),
        }
    }

    async fn on_report(&mut self, report: Report) -> Result<(), SchedulerError> {
        match report {
            Report::Failing => self.failing = true,
            Report::GaveUp(error) => return Err(error.into()),
            Report::Committed(blobs) => {
                self.clock.commit_ended();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the store can be written again");
                }
                let mut blobs = blobs.into_iter();
                for effect in self.waiting.take().unwrap_or_default() {
                    let attached =
                        if has_attachment(&effect) { blobs.next().unwrap_or_default() } else { Vec::new() };
                    self.carry_out(effect, attached).await;
                }
            }
        }
        Ok(())
    }

    /// Carries out what waits for nothing, and hands the next group to the committer.
    async fn pump(&mut self) {
        for (session, reason) in std::mem::take(&mut self.failed_lanes) {
            self.handle(Input::LanesFailed { session, reason });
        }
        if self.waiting.is_some() {
            return;
        }
        while let Some(effect) = self.pending.pop_front() {
            if matches!(effect, Effect::Store(_)) || has_attachment(&effect) {
                self.pending.push_front(effect);
                break;
            }
            self.carry_out(effect, Vec::new()).await;
        }
        if self.pending.is_empty() {
            return;
        }
        let mut group = Group::default();
        let mut released = Vec::new();
        while let Some(effect) = self.pending.pop_front() {
            match effect {
                Effect::Store(op) => group.ops.push(op),
                Effect::Client { attach: Some(ref attach), .. }
                | Effect::Lane { attach: Some(ref attach), .. } => {
                    group.reads.push(attach.clone());
                    released.push(effect);
                }
                effect => released.push(effect),
            }
            if group.ops.len() >= self.group_max || group.reads.len() >= MAX_READS {
                break;
            }
        }
        self.waiting = Some(released);
        self.clock.commit_begins();
        self.committer.commit(group);
    }

    async fn carry_out(&mut self, effect: Effect, blobs: Vec<Bytes>) {
        match effect {
            Effect::Store(_) => unreachable!("writes go to the committer"),
            Effect::Client { peer, reply, .. } => {
                send(&self.senders.clients, peer, &bounded(reply), blobs).await;
            }
            Effect::Control { peer, reply } => {
                let reply = self.open_lanes(reply).await;
                send(&self.senders.control, peer, &reply, blobs).await;
            }
            Effect::Result { peer, reply } => send(&self.senders.results, peer, &reply, blobs).await,
            Effect::Lane { session, index, message, .. } => {
                let Some(lane) = self.lanes.get(&session).and_then(|lanes| lanes.get(index)) else { return };
                match message.to_frame(blobs) {
                    Ok(frame) => lane.send(frame),
                    Err(error) => tracing::error!(%error, "message does not fit"),
                }
            }
            Effect::CloseSession { session } => {
                self.lanes.remove(&session);
            }
            Effect::Finished(task) => log_finished(&task),
        }
    }

    /// Binds the lanes of a welcome before it goes out; the node connects them at once.
    async fn open_lanes(&mut self, reply: ControlReply) -> ControlReply {
        let ControlReply::Welcome(welcome) = &reply else { return reply };
        let session = welcome.session;
        let mut lanes = Vec::with_capacity(welcome.lanes.len());
        for (index, lane) in welcome.lanes.iter().enumerate() {
            let connected = self.lane_connected.clone();
            let on_connected = move || {
                let _ = connected.send((session, index));
            };
            match LaneSender::bind(&lane.address, on_connected).await {
                Ok(lane) => lanes.push(lane),
                Err(error) => {
                    self.failed_lanes.push((session, error.to_string()));
                    let text = format!("the scheduler cannot open a lane: {error}");
                    return Rejected { failure: Failure::new(FailureKind::Disconnected, text) }.into();
                }
            }
        }
        self.lanes.insert(session, lanes);
        reply
    }

    /// Makes durable what is pending, so that a clean end leaves nothing for recovery to guess.
    async fn finish(&mut self) {
        let flush = async {
            while self.waiting.is_some() || !self.pending.is_empty() {
                self.pump().await;
                if self.waiting.is_none() {
                    continue;
                }
                match self.committer.report().await {
                    Some(report @ Report::Committed(_)) => {
                        let _ = self.on_report(report).await;
                    }
                    Some(Report::Failing) => {}
                    Some(Report::GaveUp(_)) | None => return,
                }
            }
        };
        if tokio::time::timeout(LAST_COMMIT, flush).await.is_err() {
            tracing::error!("the last group could not be committed in time");
        }
    }
}

fn has_attachment(effect: &Effect) -> bool {
    matches!(effect, Effect::Client { attach: Some(_), .. } | Effect::Lane { attach: Some(_), .. })
}

fn refused(seq: u64, kind: FailureKind, text: String) -> ClientReply {
    Refused { seq, failure: Failure::new(kind, text), queue_len: 0, wait_ms: None }.into()
}

fn fault_effect(
    error: &FrameError,
    peer: PeerId,
    effect: impl FnOnce(ProtocolFault, PeerId) -> Effect,
) -> Effect {
    tracing::debug!(%peer, %error, "bad message");
    effect(fault(error), peer)
}

/// The reply itself, or the refusal in its place where it fits into no message: a caller who hears nothing would
/// look for a fault elsewhere.
fn bounded(reply: ClientReply) -> ClientReply {
    let ClientReply::Overview(overview) = &reply else { return reply };
    match reply.to_frame(Vec::new()) {
        Ok(_) => reply,
        Err(error) => {
            let nodes = overview.nodes.len();
            let text = format!("the overview of {nodes} nodes is too long for one message: {error}");
            refused(overview.seq, FailureKind::Internal, text)
        }
    }
}

async fn send(sender: &RouterSender, peer: PeerId, message: &impl Message, blobs: Vec<Bytes>) {
    match message.to_frame(blobs) {
        Ok(frame) => sender.send(peer, frame).await,
        Err(error) => tracing::error!(%error, "message does not fit"),
    }
}

fn log_finished(task: &TaskInfo) {
    let stages = &task.stages;
    let failure = task.failure.as_ref();
    tracing::info!(
        task.id = %task.id,
        model = %task.model,
        node = task.node.as_deref().unwrap_or(""),
        outcome = task.status.as_str(),
        failure = failure.map_or("", |f| f.kind.as_str()),
        error = failure.map_or("", |f| f.message.as_str()),
        attempts = task.counters.attempts,
        queue_ms = stages.queue_ms,
        transfer_ms = stages.transfer_ms,
        load_ms = stages.load_ms,
        infer_ms = stages.infer_ms,
        pixels_ms = stages.pixels_ms,
        store_ms = stages.store_ms,
        total_ms = stages.total_ms,
        "task finished"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_a_slow_commit_holds_everything_back() {
        let earlier =
            Instant::now().checked_sub(Duration::from_secs(60)).expect("the host runs for a minute");
        let mut clock = Clock { start: earlier, held_back: Duration::ZERO, committing: Some(earlier) };
        let usual_ms = USUAL_COMMIT.as_millis() as u64;
        assert_eq!(clock.now().mono_ms, usual_ms);
        clock.commit_ended();
        let after_ms = clock.now().mono_ms;
        assert!((usual_ms..10_000).contains(&after_ms), "{after_ms}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock.now().mono_ms >= after_ms + 20);
    }
}
