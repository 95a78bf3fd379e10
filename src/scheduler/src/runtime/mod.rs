//! The event loop: reads requests from the sockets, passes them to the core, and carries its effects out.
//!
//! Does not: decide anything about a task.
//!
//! Invariant (commit barrier): effects are carried out in the core's order, and a message leaves only after
//! every write before it is committed. Only effects that depend on no write in progress bypass the barrier.

mod backlog;
mod clock;
mod committer;
mod data_dir;
mod effects;
mod error;
mod gatekeeper;
mod instance_lock;
mod listeners;
mod requests;
mod socket_files;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backlog::{Backlog, Destination};
use clock::Clock;
use committer::Committer;
use gatekeeper::Gatekeeper;
use listeners::Sockets;
use tokio::sync::{mpsc, watch};

use lamagrid_blobs::Spool;
use lamagrid_config::{Config, SocketDir};
use lamagrid_domain::{Failure, FailureKind, QueueName, SessionId};
use lamagrid_protocol::message::{ClientReply, Refused};
use lamagrid_transport::router::{Incoming, RouterSender};
use lamagrid_transport::{ConnectionLimits, Endpoints, LaneEvent, LaneSender};

use crate::core::{CLOCK_GRACE_MS, Core, Effect, Input, MAX_ENDED, MAX_TOMBSTONES, RouteTable, Settings};
use crate::metrics::Metrics;

pub use data_dir::DataDir;
pub use error::SchedulerError;
pub use listeners::Listeners;

/// Events of lanes: connected, or the node has read most of the waiting data.
type LaneEvents = mpsc::UnboundedReceiver<(SessionId, usize, LaneEvent)>;

/// Interval between checks of timers; the shortest timer is a second.
const TICK: Duration = Duration::from_millis(50);
/// Upper bound of messages taken from one socket before a tick, so that a flood delays timers but never stops
/// them.
const MAX_DRAINED: usize = 4_096;

/// Limit of effects waiting for a commit. At the limit, clients are not read, to bound memory.
const MAX_PENDING: usize = 1_024;
/// Limit of effects waiting for a commit. At the limit, nodes are not read either; their leases do not expire
/// meanwhile.
const MAX_PENDING_OF_NODES: usize = 4 * MAX_PENDING;
/// Limit of inline images waiting for a commit, in bytes. At the limit, neither clients nor nodes are read.
const MAX_UNSAVED_BYTES: usize = 64 << 20;
/// Interval between updates of the gauges; Prometheus scrapes every few seconds.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// Upper bound of client messages held back while the store cannot be written; further ones stay in their
/// connections.
const MAX_HELD_BACK: usize = 1_024;

/// Whether, and how, the scheduler is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Keep running.
    No,
    /// End after the writes in progress. Holds the reason, for the log.
    Finish(&'static str),
    /// End at once; the next start recovers from disk.
    Now,
}

/// Runs a scheduler until `shutdown` asks it to end.
///
/// Use a runtime of one thread: it then runs the core and all sockets, and passing each message to another
/// thread would cost more than reading it.
///
/// # Errors
/// [`SchedulerError`], each with the remedy.
pub async fn run(
    config: &Config,
    data_dir: DataDir,
    listeners: Listeners,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<Shutdown>,
) -> Result<(), SchedulerError> {
    let DataDir { path, store, recovered, swept, _lock } = data_dir;
    let Listeners { sockets, socket_dir, limits } = listeners;
    let endpoints = listeners::endpoints(&socket_dir);
    let spool = store.spool().clone();
    let tasks = recovered.tasks.len();
    let owned = gatekeeper::results_elsewhere(&recovered.tasks);
    let clock = Clock::start();
    let settings = settings(config, &endpoints, &spool);
    let core = Core::new(settings, Box::new(lamagrid_process::random_id), clock.now(), recovered);
    #[cfg(feature = "sabotage")]
    let core = {
        let mut core = core;
        let word = std::env::var("LAMAGRID_SABOTAGE").unwrap_or_default();
        let fault = crate::core::Fault::of_word(&word);
        core.faults.plant(fault);
        tracing::error!(?fault, "this scheduler breaks a promise on purpose");
        core
    };
    let committer = Committer::start(store, Duration::from_millis(config.store.give_up_after_ms))?;
    let gatekeeper = Gatekeeper::open(config, &path, &endpoints, &spool, owned).await?;
    let unfinished = core.unfinished();
    tracing::info!(data_dir = %path.display(), pid = std::process::id(), unfinished, remembered = tasks, swept,
        "scheduler ready");

    let (lane_connected, lane_events) = mpsc::unbounded_channel();
    let senders = Senders {
        clients: sockets.clients.sender(),
        admin: sockets.admin.sender(),
        control: sockets.control.sender(),
        results: sockets.results.sender(),
    };
    let mut event_loop = EventLoop {
        core,
        clock,
        spool,
        committer,
        senders,
        limits,
        lanes: HashMap::new(),
        backlog: Backlog::default(),
        lane_connected,
        pending: VecDeque::new(),
        unsaved_bytes: 0,
        waiting: None,
        failing: None,
        held_back: Vec::new(),
        unbarred: Vec::new(),
        group_max: config.store.group_commit_max as usize,
        failed_lanes: Vec::new(),
        gatekeeper,
        metrics,
        shown: None,
        socket_dir,
        looked_for_sockets: None,
        unreachable: None,
    };
    let reason = event_loop.serve(sockets, lane_events, &mut shutdown).await?;
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
        routes: RouteTable::of(config),
        retry: config.retry.clone(),
        limits: config.limits.clone(),
        max_tombstones: MAX_TOMBSTONES,
        max_ended: MAX_ENDED,
        clock_grace_ms: CLOCK_GRACE_MS,
        endpoints: endpoints.clone(),
        spool: spool.root().display().to_string(),
    }
}

struct Senders {
    clients: RouterSender,
    admin: RouterSender,
    control: RouterSender,
    results: RouterSender,
}

struct EventLoop {
    core: Core,
    clock: Clock,
    spool: Spool,
    committer: Committer,
    senders: Senders,
    limits: ConnectionLimits,
    lanes: HashMap<SessionId, Vec<LaneSender>>,
    /// Messages whose peers are still reading earlier ones.
    backlog: Backlog,
    /// Unbounded, because each lane sends one event, and one more each time that it is watched.
    lane_connected: mpsc::UnboundedSender<(SessionId, usize, LaneEvent)>,
    /// Effects behind the group that is being committed.
    pending: VecDeque<Effect>,
    /// At least the bytes of inline images among the pending effects.
    unsaved_bytes: usize,
    /// Messages to send when the group in progress is committed.
    waiting: Option<Vec<Effect>>,
    /// Why the group in progress failed; no new work is accepted until it is durable.
    failing: Option<Failure>,
    /// Client messages that arrived while the store could not be written.
    held_back: Vec<Incoming>,
    /// Replies that depend on no uncommitted write and bypass the commit barrier.
    unbarred: Vec<Effect>,
    group_max: usize,
    failed_lanes: Vec<(SessionId, String)>,
    /// `None` if no other host may connect.
    gatekeeper: Option<Gatekeeper>,
    metrics: Arc<Metrics>,
    /// When the gauges were last updated.
    shown: Option<Instant>,
    socket_dir: Arc<SocketDir>,
    /// When the sockets' files were last checked.
    looked_for_sockets: Option<Instant>,
    /// When it was last logged that the sockets are gone and cannot be recreated.
    unreachable: Option<Instant>,
}

impl EventLoop {
    async fn serve(
        &mut self,
        mut sockets: Sockets,
        mut lane_events: LaneEvents,
        shutdown: &mut watch::Receiver<Shutdown>,
    ) -> Result<&'static str, SchedulerError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                reason = asked_to_end(shutdown) => {
                    tracing::info!(reason, "scheduler is ending: what is under way is written first");
                    tokio::select! {
                        () = self.finish() => {}
                        () = asked_to_end_now(shutdown) => {
                            tracing::warn!("told to end again: ending at once, the next start finds what is on disk");
                        }
                    }
                    return Ok(reason);
                }
                report = self.committer.report() => {
                    let died = || std::io::Error::other("the thread that writes the store died; see the log");
                    self.on_report(report.ok_or_else(died)?)?;
                }
                Some(incoming) = sockets.clients.recv(), if self.accepts_client_requests() => {
                    self.on_client(incoming);
                }
                Some(incoming) = sockets.admin.recv(), if self.failing.is_none() && self.pending.len() < MAX_PENDING => {
                    self.on_admin(incoming);
                }
                Some(incoming) = sockets.control.recv(), if self.accepts_node_requests() => self.on_control(incoming),
                Some(incoming) = sockets.results.recv(), if self.accepts_node_requests() => self.on_result(incoming),
                Some(frame) = sockets.events.recv() => self.on_event(&frame),
                Some((session, index, event)) = lane_events.recv() => match event {
                    LaneEvent::Connected => self.handle(Input::LaneConnected { session, index }),
                    LaneEvent::Drained => self.drained(&Destination::Lane(session, index)),
                },
                _ = tick.tick() => {
                    self.drain(&mut sockets);
                    self.handle(Input::Tick);
                    if let Some(gatekeeper) = &mut self.gatekeeper {
                        gatekeeper.on_tick();
                    }
                    self.keep_reachable(&mut sockets);
                    self.show();
                }
            }
            self.drain(&mut sockets);
            self.pump();
        }
    }

    fn accepts_client_requests(&self) -> bool {
        self.pending.len() < MAX_PENDING
            && self.held_back.len() < MAX_HELD_BACK
            && self.unsaved_bytes < MAX_UNSAVED_BYTES
    }

    fn accepts_node_requests(&self) -> bool {
        self.pending.len() < MAX_PENDING_OF_NODES && self.unsaved_bytes < MAX_UNSAVED_BYTES
    }

    /// Takes all messages in the sockets' buffers, so that one commit covers them, and no timer fires
    /// although its message has already arrived.
    fn drain(&mut self, sockets: &mut Sockets) {
        for _ in 0..MAX_DRAINED {
            if !self.accepts_node_requests() {
                return;
            }
            let Some(incoming) = sockets.control.try_recv() else { break };
            self.on_control(incoming);
        }
        for _ in 0..MAX_DRAINED {
            if !self.accepts_node_requests() {
                return;
            }
            let Some(incoming) = sockets.results.try_recv() else { break };
            self.on_result(incoming);
        }
        for _ in 0..MAX_DRAINED {
            if !self.accepts_client_requests() {
                return;
            }
            let Some(incoming) = sockets.clients.try_recv() else { return };
            self.on_client(incoming);
        }
    }

    fn show(&mut self) {
        self.metrics.turned();
        if self.shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY) {
            self.look_at_disk();
            self.metrics.show(&self.core.metrics_snapshot());
            if let Some(gatekeeper) = &self.gatekeeper {
                self.metrics.certificates(gatekeeper.ends(), gatekeeper.has_ledger());
            }
            self.shown = Some(Instant::now());
        }
    }

    fn handle(&mut self, input: Input) {
        for effect in self.core.handle(self.clock.now(), input) {
            match effect {
                // Carried out at once, before any other message about this task; only later messages depend
                // on them.
                Effect::OpenUpload { owner, id, bytes } => self.open_upload(&owner, id, bytes),
                Effect::CloseUpload { owner, id, inputs } => self.close_upload(&owner, id, inputs),
                effect if effect.is_unbarred() => self.unbarred.push(effect),
                effect => self.pending.push_back(effect),
            }
        }
    }
}

/// Resolves with the reason when the scheduler is to end. A dropped sender counts as a request to end.
async fn asked_to_end(shutdown: &mut watch::Receiver<Shutdown>) -> &'static str {
    match shutdown.wait_for(|asked| *asked != Shutdown::No).await.map(|asked| *asked) {
        Ok(Shutdown::Finish(reason)) => reason,
        Ok(Shutdown::No | Shutdown::Now) => "at once",
        Err(_) => "its caller is gone",
    }
}

/// Resolves when the scheduler is to end without waiting for its writes.
async fn asked_to_end_now(shutdown: &mut watch::Receiver<Shutdown>) {
    if shutdown.wait_for(|asked| *asked == Shutdown::Now).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn refused(seq: u64, kind: FailureKind, text: String) -> ClientReply {
    Refused { seq, failure: Failure::new(kind, text), queue_len: 0, wait_ms: None }.into()
}
