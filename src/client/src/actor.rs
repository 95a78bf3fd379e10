//! Runs the task that owns the connection to the scheduler.
//!
//! Does not: wait for anything but its next event; blobs are hashed, read and written on other threads.
//!
//! Invariant: every followed task that is not over has exactly one thing in progress: a queued or sent
//! request, a thread that writes its blobs, or the scheduler's promise to send the outcome.

mod blobs;
mod incoming;
mod outgoing;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_process::{Backoff, doubled};
use lamagrid_protocol::message::Ping;
use lamagrid_transport::SocketError;
use lamagrid_transport::link::Link;

use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::options::ClientOptions;
use crate::pending_requests::{OwnedTask, PendingRequest, PendingRequests};
use crate::task::Prepared;
use crate::task_watch::{AfterAcceptance, FollowedTask, Phase, Stage, TaskWatch};

/// Pauses between attempts to connect; a restarting scheduler is back in less than a second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Limit on the first handshake, doubled after each failure; an idle scheduler answers in less than a millisecond.
const FIRST_HANDSHAKE: Duration = Duration::from_millis(200);

/// Number of finished tasks kept for callers that have not asked yet; older ones are requested from the scheduler again.
const FINISHED: usize = 256; // with 256 KiB each at most 64 MiB
/// Limit on callers' requests that are queued or unanswered; more are refused.
const ASKS: usize = 4_096;

/// A message from the callers' side to the actor.
#[derive(Debug)]
pub(crate) enum Command {
    /// Submits a task and follows it to its end.
    Submit {
        prepared: Prepared,
        after: AfterAcceptance,
        reply: oneshot::Sender<Result<watch::Receiver<Phase>, ClientError>>,
    },
    /// Follows a task, whether or not this client knows it.
    Follow { of: OwnedTask, reply: oneshot::Sender<Result<TaskWatch, ClientError>> },
    /// Sends any other request.
    PendingRequest(PendingRequest),
}

/// The state of the connection, for error texts.
#[derive(Debug, Clone)]
pub(crate) enum Connection {
    /// Not needed yet.
    Idle,
    /// The scheduler answers.
    Up,
    /// The scheduler does not answer.
    Down {
        /// The reason why the last attempt failed.
        reason: String,
    },
}

/// The report of a thread that wrote a task's inputs.
#[derive(Debug)]
struct Written {
    id: TaskId,
    round: u64,
    result: Result<(), Failure>,
}

/// Why the actor left its connection.
enum Lost {
    /// The connection broke or was silent too long.
    Link(String),
    /// The last handle of the client was dropped.
    Client,
}

#[derive(Debug)]
pub(crate) struct Actor {
    endpoint: Arc<Endpoint>,
    options: ClientOptions,
    commands: mpsc::Receiver<Command>,
    connection: watch::Sender<Connection>,
    tasks: HashMap<TaskId, FollowedTask>,
    finished: VecDeque<TaskId>,
    asks: PendingRequests,
    writers: JoinSet<Written>,
    /// Counts writes, so that the report of a write begun on an earlier connection is recognized.
    last_round: u64,
    /// The spool's directory, as the last Pong named it.
    spool: Arc<Path>,
    backoff: Backoff,
}

impl Actor {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        options: ClientOptions,
        commands: mpsc::Receiver<Command>,
        connection: watch::Sender<Connection>,
    ) -> Self {
        Self {
            endpoint,
            options,
            commands,
            connection,
            tasks: HashMap::new(),
            finished: VecDeque::new(),
            asks: PendingRequests::default(),
            writers: JoinSet::new(),
            last_round: 0,
            spool: Path::new("").into(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// Runs until the last handle of the client is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            while !self.has_work() {
                match self.commands.recv().await {
                    Some(command) => self.on_command(command),
                    None => return,
                }
            }
            let patience = self.handshake_limit();
            // A restarted scheduler may use another directory for its sockets.
            let address = self.endpoint.endpoints().client();
            // Checked first, because ZeroMQ retries a missing socket with longer pauses than ours.
            let lost = if is_absent(&address) {
                Lost::Link("no process listens there".to_owned())
            } else {
                let dial = async { Link::connect(&address, patience).await };
                match self.meanwhile(dial).await {
                    Some(Ok(link)) => self.serve(link).await,
                    Some(Err(error)) => Lost::Link(error.to_string()),
                    None => Lost::Client,
                }
            };
            let Lost::Link(reason) = lost else { return };
            let reason = self.endpoint.trouble().text().unwrap_or(reason);
            if let Some(refusal) = self.endpoint.refusal() {
                self.give_up(&refusal);
            }
            let was_up = matches!(
                self.connection.send_replace(Connection::Down { reason: reason.clone() }),
                Connection::Up | Connection::Idle
            );
            // Without pending work this is normal, for example when a launcher stops its scheduler.
            if was_up && self.has_work() {
                tracing::warn!(
                    address = self.endpoint.address(),
                    reason,
                    "the scheduler does not answer; trying again"
                );
            }
            self.prune();
            let pause = self.backoff.pause();
            if self.meanwhile(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// The limit on the next handshake. It grows, because a slow scheduler is not an absent one.
    fn handshake_limit(&self) -> Duration {
        doubled(FIRST_HANDSHAKE, self.backoff.failures()).min(self.options.silence.max(FIRST_HANDSHAKE))
    }

    fn has_work(&self) -> bool {
        self.asks.len() > 0 || self.tasks.values().any(|task| task.stage != Stage::Over)
    }

    /// Waits for `future` and handles callers' commands meanwhile; `None` when the last handle is dropped.
    async fn meanwhile<F: Future>(&mut self, future: F) -> Option<F::Output> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return Some(done),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return None,
                },
                Some(written) = self.writers.join_next() => self.on_written(written.ok()),
            }
        }
    }

    /// Serves one connection until it is lost.
    async fn serve(&mut self, mut link: Link) -> Lost {
        self.on_connected();
        let mut last_received = Instant::now();
        let period = self.options.ping.max(Duration::from_millis(10));
        let mut ping = tokio::time::interval_at(last_received + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Sent explicitly as the first message on every connection, because its answer names the spool; a
        // timer that is due at once could still lose against a command.
        if let Err(error) = self.ping(&link).await {
            return Lost::Link(error.to_string());
        }
        loop {
            let event = tokio::select! {
                biased; // a received frame counts before the silence timer
                frame = link.recv() => match frame {
                    Ok(frame) => { last_received = Instant::now(); self.on_frame(frame); Ok(()) }
                    Err(SocketError::Frame(error)) => { last_received = Instant::now(); self.on_bad_frame(&error); Ok(()) }
                    Err(error) => Err(error),
                },
                () = tokio::time::sleep_until(last_received + self.options.silence) => {
                    return Lost::Link(format!("silent for {} ms", last_received.elapsed().as_millis()));
                }
                _ = ping.tick() => self.ping(&link).await,
                Some(written) = self.writers.join_next() => { self.on_written(written.ok()); Ok(()) }
                command = self.commands.recv() => match command {
                    Some(command) => { self.on_command(command); Ok(()) }
                    None => return Lost::Client,
                },
            };
            let sent = match event {
                Ok(()) => self.flush(&link).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                return Lost::Link(error.to_string());
            }
        }
    }

    async fn ping(&mut self, link: &Link) -> Result<(), SocketError> {
        self.prune();
        let seq = self.asks.next_seq();
        self.send(link, Ping { seq }.into(), Vec::new()).await
    }

    fn on_connected(&mut self) {
        self.asks.reconnected();
        for (id, task) in &mut self.tasks {
            task.reconnected();
            if task.stage != Stage::Over && !task.writing {
                self.asks.push(PendingRequest::Task(*id));
            }
        }
    }

    /// Drops tasks and requests that no caller waits for.
    fn prune(&mut self) {
        self.asks.prune();
        let abandoned: Vec<TaskId> =
            self.tasks.iter().filter(|(_, task)| task.is_abandoned()).map(|(id, _)| *id).collect();
        for id in abandoned {
            let Some(task) = self.tasks.remove(&id) else { continue };
            self.asks.forget_task(id);
            if task.prepared.is_some() {
                self.asks.push(PendingRequest::orphan(OwnedTask { id, owner: task.owner }));
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        // A caller may have stopped waiting; its reply is dropped.
        match command {
            Command::Submit { prepared, after, reply } => drop(reply.send(self.submit(prepared, after))),
            Command::Follow { of, reply } => drop(reply.send(self.follow(of))),
            Command::PendingRequest(ask) if self.asks.len() >= ASKS => {
                let text = format!("this client has {ASKS} unanswered requests; wait for some of them");
                ask.fail(Failure::new(FailureKind::Overloaded, text).into());
            }
            Command::PendingRequest(ask) => {
                if let PendingRequest::Release { of, .. } = &ask
                    && self
                        .tasks
                        .get(&of.id)
                        .is_some_and(|task| task.stage == Stage::Over && task.owner == of.owner)
                {
                    self.tasks.remove(&of.id);
                    self.finished.retain(|other| *other != of.id);
                }
                self.asks.push(ask);
            }
        }
    }

    fn submit(
        &mut self,
        prepared: Prepared,
        after: AfterAcceptance,
    ) -> Result<watch::Receiver<Phase>, ClientError> {
        let id = prepared.spec.id;
        if let Some(task) = self.tasks.get(&id).filter(|task| task.stage != Stage::Over) {
            if task.digest == Some(prepared.digest) && task.owner == prepared.spec.owner {
                return Ok(task.phases());
            }
            let text = format!("task {id} was submitted before with other inputs; draw a new id");
            return Err(Failure::new(FailureKind::InvalidInput, text).into());
        }
        let bytes = self.tasks.values().filter_map(|task| task.prepared.as_ref());
        let bytes = bytes.fold(prepared.held(), |sum, other| sum.saturating_add(other.held()));
        if bytes > self.options.max_bytes {
            let max = self.options.max_bytes;
            let text = format!(
                "this client would keep {bytes} bytes of inputs, at most {max} are allowed; wait for a task to end"
            );
            return Err(Failure::new(FailureKind::Overloaded, text).into());
        }
        self.track(id, FollowedTask::submitted(Arc::new(prepared), after)).map(|task| task.phases())
    }

    fn follow(&mut self, of: OwnedTask) -> Result<TaskWatch, ClientError> {
        let OwnedTask { id, owner } = of;
        match self.tasks.get(&id) {
            Some(task) if task.owner != owner => Err(ClientError::Unknown { id, expired: false }),
            Some(task) if !task.may_be_asked_for_again() => Ok(task.follow()),
            _ => self.track(id, FollowedTask::watched(owner)).map(|task| task.follow()),
        }
    }

    fn track(&mut self, id: TaskId, mut task: FollowedTask) -> Result<&FollowedTask, ClientError> {
        let live = self.tasks.values().filter(|task| task.stage != Stage::Over).count();
        if live >= self.options.max_tasks {
            let text = format!("this client follows {live} tasks already; wait for one of them to end");
            return Err(Failure::new(FailureKind::Overloaded, text).into());
        }
        self.finished.retain(|other| *other != id);
        if self.tasks.get(&id).is_some_and(|earlier| earlier.writing) {
            task.writing = true; // the running write's report queues this task
        } else {
            self.asks.push(PendingRequest::Task(id));
        }
        Ok(self.tasks.entry(id).insert_entry(task).into_mut())
    }
}

/// True if an `ipc://` socket's file is missing.
pub(crate) fn is_absent(address: &str) -> bool {
    address.strip_prefix("ipc://").is_some_and(|path| !Path::new(path).exists())
}
