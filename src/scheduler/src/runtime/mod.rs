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

use crate::core::{CLOCK_GRACE_MS, Core, Effect, Input, MAX_ENDED, MAX_TOMBSTONES, Settings};
use crate::http::Metrics;

pub use data_dir::DataDir;
pub use error::SchedulerError;
pub use listeners::Listeners;

/// Lanes that connected, or whose node read most of what waited for it.
type LaneEvents = mpsc::UnboundedReceiver<(SessionId, usize, LaneEvent)>;

/// How often timers are looked at; the shortest one that they serve is a second.
const TICK: Duration = Duration::from_millis(50);
/// Messages that are taken before a tick, per socket, so that a flood delays timers but never stops them.
const MAX_DRAINED: usize = 4_096;

/// Effects that wait for a commit before clients are not read any more: what they hold is kept in memory.
const MAX_PENDING: usize = 1_024;
/// Effects that wait for a commit before nodes are not read any more: their leases stand still meanwhile.
const MAX_PENDING_OF_NODES: usize = 4 * MAX_PENDING;
/// Inline images that wait for a commit before nothing more is read.
const MAX_UNSAVED_BYTES: usize = 64 << 20;
/// How often gauges are set anew; Prometheus asks every few seconds.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// What clients said while the store could not be written; more stays in their connections.
const MAX_HELD_BACK: usize = 1_024;

/// Whether the scheduler shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// No.
    No,
    /// After the writes in progress, for this reason.
    Finish(&'static str),
    /// At once: the next start finds what is on disk.
    Now,
}

/// Runs a scheduler until `shutdown` says otherwise.
///
/// Best on a runtime of one thread: that thread has the core and all its sockets, and passing each message to another one
/// would cost more than reading it.
///
/// # Errors
/// [`SchedulerError`], each with the remedy.
pub async fn run(
    config: &Config,
    data_dir: DataDir,
    listeners: Listeners,
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
        metrics: Arc::new(Metrics::new()),
        shown: None,
        socket_dir,
        looked_for_sockets: None,
        unreachable: None,
    };
    let _http = crate::http::serve(&config.http, &path, event_loop.metrics.clone());
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
    /// Messages whose peers are still reading what came before.
    backlog: Backlog,
    /// Unbounded because it carries one event per lane, and one for each time that a lane is watched.
    lane_connected: mpsc::UnboundedSender<(SessionId, usize, LaneEvent)>,
    /// Effects behind the group that is being committed.
    pending: VecDeque<Effect>,
    /// At least the bytes of inline images among those effects.
    unsaved_bytes: usize,
    /// Messages that the group in hand releases.
    waiting: Option<Vec<Effect>>,
    /// Why the group in hand failed: no new work is taken until it is durable.
    failing: Option<Failure>,
    /// What clients said meanwhile.
    held_back: Vec<Incoming>,
    /// Replies that rest on no write in hand, and wait for none.
    unbarred: Vec<Effect>,
    group_max: usize,
    failed_lanes: Vec<(SessionId, String)>,
    /// None where no other host may come in.
    gatekeeper: Option<Gatekeeper>,
    metrics: Arc<Metrics>,
    /// When the gauges were set last.
    shown: Option<Instant>,
    socket_dir: Arc<SocketDir>,
    /// When the sockets' files were looked at last.
    looked_for_sockets: Option<Instant>,
    /// When it was last said that they are gone and cannot be made anew.
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
                Some(heard) = sockets.clients.recv(), if self.hears_clients() => {
                    self.on_client(heard);
                }
                Some(heard) = sockets.admin.recv(), if self.failing.is_none() && self.pending.len() < MAX_PENDING => {
                    self.on_admin(heard);
                }
                Some(heard) = sockets.control.recv(), if self.hears_nodes() => self.on_control(heard),
                Some(heard) = sockets.results.recv(), if self.hears_nodes() => self.on_result(heard),
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

    fn hears_clients(&self) -> bool {
        self.pending.len() < MAX_PENDING
            && self.held_back.len() < MAX_HELD_BACK
            && self.unsaved_bytes < MAX_UNSAVED_BYTES
    }

    fn hears_nodes(&self) -> bool {
        self.pending.len() < MAX_PENDING_OF_NODES && self.unsaved_bytes < MAX_UNSAVED_BYTES
    }

    /// Takes what lies in the sockets' buffers, so that one commit holds it all, and no timer fires over a message that
    /// had arrived.
    fn drain(&mut self, sockets: &mut Sockets) {
        for _ in 0..MAX_DRAINED {
            if !self.hears_nodes() {
                return;
            }
            let Some(heard) = sockets.control.try_recv() else { break };
            self.on_control(heard);
        }
        for _ in 0..MAX_DRAINED {
            if !self.hears_nodes() {
                return;
            }
            let Some(heard) = sockets.results.try_recv() else { break };
            self.on_result(heard);
        }
        for _ in 0..MAX_DRAINED {
            if !self.hears_clients() {
                return;
            }
            let Some(heard) = sockets.clients.try_recv() else { return };
            self.on_client(heard);
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
                // Before anything else is heard of that id; no message rests on them but the ones behind them.
                Effect::OpenUpload { owner, id, bytes } => self.open_upload(&owner, id, bytes),
                Effect::CloseUpload { owner, id, delete } => self.close_upload(&owner, id, delete),
                effect if effect.is_unbarred() => self.unbarred.push(effect),
                effect => self.pending.push_back(effect),
            }
        }
    }
}

/// Resolves with the reason when the scheduler shall end. A caller that is gone asks for that, too.
async fn asked_to_end(shutdown: &mut watch::Receiver<Shutdown>) -> &'static str {
    match shutdown.wait_for(|asked| *asked != Shutdown::No).await.map(|asked| *asked) {
        Ok(Shutdown::Finish(reason)) => reason,
        Ok(Shutdown::No | Shutdown::Now) => "at once",
        Err(_) => "its caller is gone",
    }
}

/// Resolves when the scheduler shall not wait for its writes.
async fn asked_to_end_now(shutdown: &mut watch::Receiver<Shutdown>) {
    if shutdown.wait_for(|asked| *asked == Shutdown::Now).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn refused(seq: u64, kind: FailureKind, text: String) -> ClientReply {
    Refused { seq, failure: Failure::new(kind, text), queue_len: 0, wait_ms: None }.into()
}
