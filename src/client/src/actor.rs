//! The one task that owns the connection.
//!
//! Does not: wait for anything but its next event; hashing, reading and writing of blobs happen elsewhere.
//!
//! Invariant: every followed task that is not over has exactly one thing under way: a request that waits or
//! was sent, a thread that writes its blobs, or the scheduler's promise of an outcome.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use lamagrid_domain::{Failure, FailureKind, TaskId};
use lamagrid_wire::SocketError;
use lamagrid_wire::frame::{Frame, FrameError};
use lamagrid_wire::link::Link;
use lamagrid_wire::message::{
    Attach, Cancel, ClientReply, ClientRequest, Message, Offer, Outcome, Ping, Query, Release, Submit, Survey,
};
use lamagrid_wire::spool::{BlobName, Spool, SpoolError};

use crate::asks::{Ask, Asks, Reply};
use crate::backoff::Backoff;
use crate::error::ClientError;
use crate::follow::Follow;
use crate::options::ClientOptions;
use crate::outcome::Ended;
use crate::task::Prepared;
use crate::tracked::{Phase, Stage, Tracked};

/// Finished tasks kept for a caller that has not asked yet; older ones are asked for again at the scheduler.
const FINISHED: usize = 256; // with 256 KiB each at most 64 MiB
/// Requests of callers that have not been sent or answered; more are refused.
const ASKS: usize = 4_096;

/// What the callers' side says.
#[derive(Debug)]
pub(crate) enum Command {
    /// Submit, and follow to the end.
    Submit { prepared: Prepared, reply: oneshot::Sender<Result<watch::Receiver<Phase>, ClientError>> },
    /// Follow a task, known here or not.
    Follow { id: TaskId, reply: oneshot::Sender<Result<Follow, ClientError>> },
    /// Any other request.
    Ask(Ask),
}

/// How the connection is doing, for texts.
#[derive(Debug, Clone)]
pub(crate) enum Connection {
    /// Nothing was wanted yet.
    Idle,
    /// The scheduler answers.
    Up,
    /// It does not.
    Down {
        /// How the last attempt ended.
        reason: String,
    },
}

/// The inputs of a task were written, or not.
#[derive(Debug)]
struct Written {
    id: TaskId,
    round: u64,
    result: Result<(), SpoolError>,
}

/// Why the actor's loop goes on without its connection.
enum Lost {
    /// It broke or fell silent.
    Link(String),
    /// Nobody holds the client any more.
    Client,
}

#[derive(Debug)]
pub(crate) struct Actor {
    address: String,
    options: ClientOptions,
    commands: mpsc::Receiver<Command>,
    connection: watch::Sender<Connection>,
    tasks: HashMap<TaskId, Tracked>,
    finished: VecDeque<TaskId>,
    asks: Asks,
    writers: JoinSet<Written>,
    /// Counts writes, so that a report which a newer connection has overtaken is known as such.
    last_round: u64,
    /// Where blobs go, as the last Pong said.
    spool: Arc<Path>,
    backoff: Backoff,
}

impl Actor {
    pub(crate) fn new(
        address: String,
        options: ClientOptions,
        commands: mpsc::Receiver<Command>,
        connection: watch::Sender<Connection>,
    ) -> Self {
        Self {
            address,
            options,
            commands,
            connection,
            tasks: HashMap::new(),
            finished: VecDeque::new(),
            asks: Asks::default(),
            writers: JoinSet::new(),
            last_round: 0,
            spool: Path::new("").into(),
            backoff: Backoff::new(),
        }
    }

    /// Runs until nobody holds the client any more.
    pub(crate) async fn run(mut self) {
        loop {
            while !self.has_work() {
                match self.commands.recv().await {
                    Some(command) => self.on_command(command),
                    None => return,
                }
            }
            let patience = self.backoff.patience(self.options.silence);
            let address = self.address.clone();
            // ZeroMQ itself would wait for an absent socket, with pauses longer than ours.
            let lost = if is_absent(&address) {
                Lost::Link("nobody listens there".to_owned())
            } else {
                let dial = async { Link::connect(&address, patience).await };
                match self.meanwhile(dial).await {
                    Some(Ok(link)) => self.serve(link).await,
                    Some(Err(error)) => Lost::Link(error.to_string()),
                    None => Lost::Client,
                }
            };
            let Lost::Link(reason) = lost else { return };
            let was_up = matches!(
                self.connection.send_replace(Connection::Down { reason: reason.clone() }),
                Connection::Up | Connection::Idle
            );
            if was_up {
                tracing::warn!(address = %self.address, reason, "the scheduler does not answer; trying again");
            }
            self.prune();
            let pause = self.backoff.pause();
            if self.meanwhile(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        self.asks.len() > 0 || self.tasks.values().any(|task| task.stage != Stage::Over)
    }

    /// Waits for `future` and hears the callers meanwhile; `None` when nobody holds the client any more.
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

    /// Talks on one connection until it is lost.
    async fn serve(&mut self, mut link: Link) -> Lost {
        self.on_connected();
        let mut heard = Instant::now();
        let mut ping = tokio::time::interval(self.options.ping.max(Duration::from_millis(10)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased; // what was heard counts before the silence
                frame = link.recv() => match frame {
                    Ok(frame) => { heard = Instant::now(); self.on_frame(frame); Ok(()) }
                    Err(SocketError::Frame(error)) => { heard = Instant::now(); self.on_bad_frame(&error); Ok(()) }
                    Err(error) => Err(error),
                },
                () = tokio::time::sleep_until(heard + self.options.silence) => {
                    return Lost::Link(format!("silent for {} ms", heard.elapsed().as_millis()));
                }
                _ = ping.tick() => { // at once the first time: the first message on every connection
                    self.prune();
                    let seq = self.asks.next_seq();
                    self.send(&link, Ping { seq }.into(), Vec::new()).await
                }
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

    fn on_connected(&mut self) {
        self.asks.reconnected();
        for (id, task) in &mut self.tasks {
            task.reconnected();
            if task.stage != Stage::Over && !task.writing {
                self.asks.push(Ask::Task(*id));
            }
        }
    }

    /// Forgets what nobody waits for.
    fn prune(&mut self) {
        self.asks.prune();
        let abandoned: Vec<TaskId> =
            self.tasks.iter().filter(|(_, task)| task.is_abandoned()).map(|(id, _)| *id).collect();
        for id in abandoned {
            let watched_only = self.tasks.remove(&id).is_some_and(|task| task.prepared.is_none());
            self.asks.forget_task(id);
            if !watched_only {
                self.asks.push(Ask::orphan(id));
            }
        }
    }

    // ---- what callers say

    fn on_command(&mut self, command: Command) {
        // A caller that left misses nothing.
        match command {
            Command::Submit { prepared, reply } => drop(reply.send(self.submit(prepared))),
            Command::Follow { id, reply } => drop(reply.send(self.follow(id))),
            Command::Ask(ask) if self.asks.len() >= ASKS => {
                let text = format!("this client has {ASKS} unanswered requests; wait for some of them");
                ask.fail(Failure::new(FailureKind::Overloaded, text).into());
            }
            Command::Ask(ask) => {
                if let Ask::Release { id, .. } = &ask
                    && self.tasks.get(id).is_some_and(|task| task.stage == Stage::Over)
                {
                    self.tasks.remove(id);
                    self.finished.retain(|other| other != id);
                }
                self.asks.push(ask);
            }
        }
    }

    fn submit(&mut self, prepared: Prepared) -> Result<watch::Receiver<Phase>, ClientError> {
        let id = prepared.spec.id;
        if let Some(task) = self.tasks.get(&id).filter(|task| task.stage != Stage::Over) {
            if task.digest == Some(prepared.digest) {
                return Ok(task.phases());
            }
            let text = format!("task {id} was submitted before with other inputs; draw a new id");
            return Err(Failure::new(FailureKind::InvalidInput, text).into());
        }
        let bytes = self.tasks.values().filter_map(|task| task.prepared.as_ref());
        let bytes = bytes.fold(prepared.bytes(), |sum, other| sum.saturating_add(other.bytes()));
        if bytes > self.options.max_bytes {
            let max = self.options.max_bytes;
            let text = format!(
                "this client would keep {bytes} bytes of inputs, at most {max} are allowed; wait for a task to end"
            );
            return Err(Failure::new(FailureKind::Overloaded, text).into());
        }
        self.track(id, Tracked::submitted(Arc::new(prepared))).map(|task| task.phases())
    }

    fn follow(&mut self, id: TaskId) -> Result<Follow, ClientError> {
        match self.tasks.get(&id) {
            Some(task) => Ok(task.follow()),
            None => self.track(id, Tracked::watched()).map(|task| task.follow()),
        }
    }

    fn track(&mut self, id: TaskId, mut task: Tracked) -> Result<&Tracked, ClientError> {
        let live = self.tasks.values().filter(|task| task.stage != Stage::Over).count();
        if live >= self.options.max_tasks {
            let text = format!("this client follows {live} tasks already; wait for one of them to end");
            return Err(Failure::new(FailureKind::Overloaded, text).into());
        }
        self.finished.retain(|other| *other != id);
        if self.tasks.get(&id).is_some_and(|earlier| earlier.writing) {
            task.writing = true; // its report starts this one
        } else {
            self.asks.push(Ask::Task(id));
        }
        Ok(self.tasks.entry(id).insert_entry(task).into_mut())
    }

    // ---- what goes out

    async fn send(
        &self,
        link: &Link,
        request: ClientRequest,
        blobs: Vec<bytes::Bytes>,
    ) -> Result<(), SocketError> {
        link.send(request.to_frame(blobs)?).await
    }

    /// Sends what the window admits.
    async fn flush(&mut self, link: &Link) -> Result<(), SocketError> {
        while let Some(ask) = self.asks.next() {
            let seq = self.asks.next_seq();
            let owner = self.options.owner.clone();
            let (request, blobs): (ClientRequest, _) = match &ask {
                Ask::Task(id) => match self.tasks.get(id).and_then(|task| request_of(*id, task, seq, &owner))
                {
                    Some(said) => said,
                    None => continue,
                },
                Ask::Cancel { id, .. } | Ask::Orphan { id, .. } => {
                    (Cancel { seq, id: *id, owner }.into(), vec![])
                }
                Ask::Query { id, .. } => (Query { seq, id: *id, owner }.into(), vec![]),
                Ask::Survey { .. } => (Survey { seq }.into(), vec![]),
                Ask::Release { id, .. } => {
                    let release = Release { id: *id, owner };
                    self.send(link, release.into(), Vec::new()).await?;
                    (Ping { seq }.into(), vec![])
                }
            };
            match self.send(link, request, blobs).await {
                Ok(()) => self.asks.sent(seq, ask),
                // Our own message is too large, which another connection would not change.
                Err(SocketError::Frame(error)) => {
                    let error = ClientError::from(Failure::new(FailureKind::InvalidInput, error.to_string()));
                    match ask {
                        Ask::Task(id) => self.end(id, Phase::Broken(error)),
                        other => other.fail(error),
                    }
                }
                Err(error) => {
                    self.asks.sent(seq, ask); // it is asked again on the next connection
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    // ---- what comes in

    fn on_frame(&mut self, mut frame: Frame) {
        let blobs = std::mem::take(&mut frame.blobs);
        match ClientReply::from_frame(&frame) {
            Ok(ClientReply::Outcome(outcome)) => self.on_outcome(outcome, blobs),
            Ok(ClientReply::Progress(moved)) => {
                if let Some(task) = self.tasks.get(&moved.id) {
                    task.moved(moved.status, moved.step, moved.of);
                }
            }
            Ok(ClientReply::ProtocolFault(fault)) => self.on_fault(fault.failure.bounded()),
            Ok(reply) => self.on_reply(reply),
            Err(error) => self.on_bad_frame(&error),
        }
    }

    fn on_reply(&mut self, reply: ClientReply) {
        let seq = match &reply {
            ClientReply::Pong(pong) => {
                self.on_pong(&pong.spool);
                pong.seq
            }
            ClientReply::Send(said) => said.seq,
            ClientReply::Accepted(said) => said.seq,
            ClientReply::Refused(said) => said.seq,
            ClientReply::Told(said) => said.seq,
            ClientReply::Unknown(said) => said.seq,
            ClientReply::Overview(said) => said.seq,
            // They are no answers: see `on_frame`.
            ClientReply::ProtocolFault(_) | ClientReply::Outcome(_) | ClientReply::Progress(_) => return,
        };
        match (self.asks.answered(seq), reply) {
            (None, _) | (Some(Ask::Orphan { .. }), _) => {}
            (Some(Ask::Task(id)), reply) => self.on_task_reply(id, reply),
            (Some(Ask::Cancel { reply: to, .. } | Ask::Query { reply: to, .. }), ClientReply::Told(told)) => {
                answer(to, told.task);
            }
            (Some(Ask::Survey { reply: to }), ClientReply::Overview(overview)) => answer(to, overview),
            (Some(Ask::Release { reply: to, .. }), ClientReply::Pong(_)) => answer(to, ()),
            (Some(ask), reply) => ask.fail(refusal(reply)),
        }
    }

    fn on_pong(&mut self, spool: &str) {
        self.backoff.reset();
        if self.spool.to_str() != Some(spool) {
            self.spool = Path::new(spool).into();
        }
        if !matches!(*self.connection.borrow(), Connection::Up) {
            let before = self.connection.send_replace(Connection::Up);
            if matches!(before, Connection::Down { .. }) {
                tracing::info!(address = %self.address, tasks = self.tasks.len(), "the scheduler answers again");
            }
        }
    }

    fn on_task_reply(&mut self, id: TaskId, reply: ClientReply) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match (task.stage, reply) {
            (Stage::Offer, ClientReply::Send(_)) => self.write(id),
            (Stage::Submit, ClientReply::Accepted(said)) => task.accepted(said.position),
            // An offer is not followed: ask for the task itself.
            (Stage::Offer, ClientReply::Told(_)) => {
                task.stage = Stage::Attach;
                self.asks.push(Ask::Task(id));
            }
            (Stage::Submit | Stage::Attach, ClientReply::Told(said)) => {
                task.accepted(said.task.position.unwrap_or(0));
                task.moved(said.task.status, 0, 0);
            }
            (Stage::Attach, ClientReply::Unknown(said)) if !said.expired && task.prepared.is_some() => {
                tracing::info!(task.id = %id, "the scheduler does not know the task; submitting it again");
                task.stage = task.first_stage();
                self.asks.push(Ask::Task(id));
            }
            // Answers that a new stage has overtaken.
            (Stage::Write | Stage::Follow | Stage::Over, _) => {}
            (_, reply) => self.end(id, Phase::Broken(refusal(reply))),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, blobs: Vec<bytes::Bytes>) {
        let Outcome { task, result } = outcome;
        let inline = blobs.into_iter().next();
        let id = task.id;
        self.asks.forget_task(id);
        if self.tasks.get(&id).is_some_and(|task| task.stage != Stage::Over) {
            let spool = Arc::clone(&self.spool);
            self.end(id, Phase::Ended(Arc::new(Ended { task, result, inline, spool })));
        }
    }

    fn end(&mut self, id: TaskId, phase: Phase) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // Whoever asks again for a task of somebody else wants to know how it is then.
        let keep = task.prepared.is_some() || matches!(phase, Phase::Ended(_));
        task.end(phase);
        if !keep {
            self.tasks.remove(&id);
            return;
        }
        self.finished.push_back(id);
        if self.finished.len() > FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.tasks.remove(&oldest);
        }
    }

    /// One side does not understand the other: nothing that waits can be answered.
    fn on_fault(&mut self, failure: Failure) {
        tracing::warn!(%failure, "the scheduler did not understand a message");
        let error = ClientError::from(failure);
        let incompatible = error.kind() == FailureKind::Incompatible;
        let asks: Vec<Ask> = self.asks.drain().collect();
        let mut lost: Vec<TaskId> = Vec::new();
        for ask in asks {
            match ask {
                Ask::Task(id) => lost.push(id),
                other => other.fail(error.clone()),
            }
        }
        if incompatible {
            lost.extend(self.tasks.iter().filter(|(_, t)| t.stage != Stage::Over).map(|(id, _)| *id));
            lost.sort_unstable();
            lost.dedup();
        }
        for id in lost {
            self.end(id, Phase::Broken(error.clone()));
        }
    }

    fn on_bad_frame(&mut self, error: &FrameError) {
        match error {
            FrameError::Version { .. } => {
                self.on_fault(Failure::new(FailureKind::Incompatible, error.to_string()));
            }
            // A newer scheduler may say more than this client knows.
            FrameError::UnknownKind { .. } => tracing::debug!(%error, "skipped a message"),
            FrameError::Malformed { .. } | FrameError::Header { .. } | FrameError::TooLarge { .. } => {
                tracing::warn!(%error, "skipped a message");
            }
        }
    }

    // ---- blobs by reference

    /// Writes the task's inputs into the spool, on another thread.
    fn write(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(prepared) = task.prepared.clone() else { return };
        self.last_round += 1;
        let round = self.last_round;
        task.stage = Stage::Write;
        task.writing = true;
        task.round = round;
        let spool = Spool::new(self.spool.to_path_buf());
        self.writers.spawn_blocking(move || {
            let put = |input: &crate::task::Input| spool.put(id, BlobName::Role(input.role), &input.bytes);
            Written { id, round, result: prepared.inputs.iter().try_for_each(put) }
        });
    }

    fn on_written(&mut self, written: Option<Written>) {
        let Some(Written { id, round, result }) = written else {
            // Only a panic in a write loses its report; its task then ends with its callers' patience.
            tracing::error!("a thread that wrote blobs panicked");
            return;
        };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.writing = false;
        if task.stage == Stage::Over {
            return;
        }
        if round != task.round {
            task.stage = task.first_stage();
            self.asks.push(Ask::Task(id));
            return;
        }
        match result {
            Ok(()) => {
                task.stage = Stage::Submit;
                self.asks.push(Ask::Task(id));
            }
            Err(error) => {
                let kind = if error.is_disk_full() { FailureKind::DiskFull } else { FailureKind::Internal };
                self.end(id, Phase::Broken(Failure::new(kind, error.to_string()).into()));
            }
        }
    }
}

/// Whether a Unix socket's file is missing.
fn is_absent(address: &str) -> bool {
    address.strip_prefix("ipc://").is_some_and(|path| !Path::new(path).exists())
}

/// What a task's stage says to the scheduler.
fn request_of(
    id: TaskId,
    task: &Tracked,
    seq: u64,
    owner: &lamagrid_domain::Owner,
) -> Option<(ClientRequest, Vec<bytes::Bytes>)> {
    match (task.stage, &task.prepared) {
        (Stage::Offer, Some(prepared)) => {
            let (spec, bytes) = (&prepared.spec, prepared.bytes());
            let (queue, priority) = (spec.queue.clone(), spec.priority);
            let owner = owner.clone();
            Some((Offer { seq, id, owner, queue, digest: prepared.digest, bytes, priority }.into(), vec![]))
        }
        (Stage::Submit, Some(prepared)) => {
            let inputs = if prepared.inline { prepared.inputs.as_slice() } else { &[] };
            let inline = inputs.iter().map(|input| input.role).collect();
            let blobs = inputs.iter().map(|input| input.bytes.clone()).collect();
            Some((Submit { seq, spec: prepared.spec.clone(), inline, follow: true }.into(), blobs))
        }
        (Stage::Attach, _) => {
            Some((Attach { seq, id, owner: owner.clone(), digest: task.digest }.into(), vec![]))
        }
        (Stage::Offer | Stage::Submit | Stage::Write | Stage::Follow | Stage::Over, _) => None,
    }
}

fn answer<T>(to: Reply<T>, with: T) {
    // The caller may have left; then nobody misses the answer.
    let _ = to.send(Ok(with));
}

/// What an answer that is no success says.
fn refusal(reply: ClientReply) -> ClientError {
    match reply {
        ClientReply::Refused(said) => ClientError::Refused {
            failure: said.failure.bounded(),
            queue_len: said.queue_len,
            wait: said.wait_ms.map(Duration::from_millis),
        },
        ClientReply::Unknown(said) => ClientError::Unknown { id: said.id, expired: said.expired },
        _ => Failure::new(FailureKind::Incompatible, "the scheduler gave an answer to another question; install the same lamagrid version on both sides").into(),
    }
}
