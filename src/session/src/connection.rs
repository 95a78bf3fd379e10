//! Serves one session: its lanes, result channel, polls and heartbeats, until one of them ends it.
//!
//! Invariant: all sockets are owned by [`hold`] and closed when it returns.

use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use lamagrid_domain::{Failure, FailureKind, SessionId};
use lamagrid_gate::SchedulerRoute;
use lamagrid_hardware::Sampler;
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::{
    Action, Command, ControlReply, ControlRequest, Goodbye, Heartbeat, LaneMessage, Message, NodeEvent, Poll,
    RefusedCommand, ResultReply, Welcome,
};
use lamagrid_transport::link::Link;
use lamagrid_transport::request::Requester;
use lamagrid_transport::{Endpoints, EventPublisher, LaneReceiver, SocketError};

use crate::settings::ChangeRefused;
use crate::state::shared::Shared;
use crate::state::{DrainedBy, Executed};

/// Limit on connecting to a socket: all are on this host, so that a peer that takes longer hangs.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Minimum time limit for the answer to a poll.
const POLL_PATIENCE: Duration = Duration::from_secs(1);
/// Number of consecutive failed polls after which the session is given up.
const POLL_FAILURES: u32 = 3;
/// Limit on the goodbye: half of the time that a closing caller waits.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Capacity for incoming assignments; credit keeps their number near that of the slots.
const LANE_QUEUE: usize = 64;

/// Why a session ended.
pub(crate) enum Ended {
    /// The session was lost: register again and keep the running work.
    Gone(String),
    /// The node's description has changed: register again at once, and keep the running work.
    Renew,
    /// The node leaves.
    Leave,
    /// The two sides are incompatible.
    Refused(Failure),
}

impl From<SocketError> for Ended {
    fn from(error: SocketError) -> Self {
        Self::Gone(error.to_string())
    }
}

/// Serves the session of `welcome` until it ends.
pub(crate) async fn hold(
    shared: &Shared,
    route: &SchedulerRoute,
    sampler: Option<&Sampler>,
    control: Requester,
    mut welcome: Welcome,
) -> Ended {
    let session = welcome.session;
    for refused in &welcome.refused {
        tracing::info!(queue = %refused.queue, reason = refused.reason, "this node does not serve a queue");
    }
    shared.set_refused_queues(welcome.refused.iter().map(|refused| refused.queue.clone()).collect());
    shared.set_spool(&welcome.spool);
    for token in &welcome.abandoned {
        shared.abandon(*token);
    }
    let _lanes = match route.lanes(&mut welcome) {
        Ok(lanes) => lanes,
        Err(error) => return Ended::Gone(error.to_string()),
    };
    let mut sockets = match Sockets::connect(route.endpoints(), &welcome).await {
        Ok(sockets) => sockets,
        Err(error) => return error.into(),
    };
    tracing::info!(session = %session, lanes = welcome.lanes.len(), "registered with the scheduler");
    shared.begin(session, sockets.events);

    let hint = Notify::new();
    let poll_every = Duration::from_millis(welcome.poll_ms.max(1));
    // All parts run in this one task, so that none outlives the session.
    let ended = tokio::select! {
        ended = poll(shared, control, session, poll_every, &hint) => ended,
        ended = exchange(shared, &mut sockets.link) => ended,
        ended = listen(shared, &mut sockets.assignments, &hint) => ended,
        ended = beat(shared, sampler) => ended,
    };
    if matches!(ended, Ended::Leave) {
        // Sent while the sockets are open: a socket that closes before the goodbye looks like a crash, which
        // counts against the running tasks.
        goodbye(route.endpoints(), session).await;
    }
    ended
}

async fn goodbye(endpoints: &Endpoints, session: SessionId) {
    let Ok(frame) = ControlRequest::from(Goodbye { session }).to_frame(Vec::new()) else { return };
    match Requester::new(endpoints.control()).request(frame, GOODBYE_PATIENCE).await {
        Ok(_) => tracing::info!(session = %session, "left the scheduler"),
        Err(error) => {
            tracing::debug!(%error, "the goodbye did not arrive; the scheduler ends the session when its lease ends")
        }
    }
}

struct Sockets {
    link: Link,
    events: EventPublisher,
    assignments: mpsc::Receiver<Result<Frame, SocketError>>,
    /// Owns the lanes: dropping it closes their sockets.
    _lanes: JoinSet<()>,
}

impl Sockets {
    async fn connect(endpoints: &Endpoints, welcome: &Welcome) -> Result<Self, SocketError> {
        let (received, assignments) = mpsc::channel(LANE_QUEUE);
        let mut lanes = JoinSet::new();
        for lane in &welcome.lanes {
            let mut receiver = LaneReceiver::connect(&lane.address, CONNECT_PATIENCE).await?;
            let received = received.clone();
            lanes.spawn(async move {
                loop {
                    let frame = receiver.recv().await;
                    let over = matches!(&frame, Err(error) if !matches!(error, SocketError::Frame(_)));
                    if received.send(frame).await.is_err() || over {
                        return;
                    }
                }
            });
        }
        let link = Link::connect(&endpoints.result(), CONNECT_PATIENCE).await?;
        let events = EventPublisher::connect(&endpoints.node_events(), CONNECT_PATIENCE).await?;
        // Each lane's task owns a sender. Without lanes this task keeps one, so that the channel stays open and silent.
        if welcome.lanes.is_empty() {
            lanes.spawn(async move { received.closed().await });
        }
        Ok(Self { link, events, assignments, _lanes: lanes })
    }
}

/// Receives assignments and hints.
async fn listen(
    shared: &Shared,
    assignments: &mut mpsc::Receiver<Result<Frame, SocketError>>,
    hint: &Notify,
) -> Ended {
    loop {
        let frame = match assignments.recv().await {
            Some(Ok(frame)) => frame,
            Some(Err(SocketError::Frame(error))) => {
                tracing::warn!(%error, "a bad message on a lane was dropped");
                continue;
            }
            Some(Err(error)) => return error.into(),
            None => return Ended::Gone("all lanes closed".into()),
        };
        match LaneMessage::from_frame(&frame) {
            Ok(LaneMessage::Assign(assign)) => {
                tracing::debug!(task.id = %assign.spec.id, attempt = assign.attempt, "assigned");
                shared.assign(assign, frame.blobs);
            }
            Ok(LaneMessage::Hint(_)) => hint.notify_one(),
            // Without an accept the scheduler requeues the task and ends this session, so that the task is not lost.
            Err(error) => tracing::warn!(%error, "a message on a lane was not understood"),
        }
    }
}

/// Sends queued messages on the result channel and handles the answers.
async fn exchange(shared: &Shared, link: &mut Link) -> Ended {
    loop {
        loop {
            let next = shared.lock().next_frame();
            match next {
                Some(Ok(frame)) => {
                    if let Err(error) = link.send(frame).await {
                        return error.into();
                    }
                }
                Some(Err(error)) => tracing::error!(%error, "a message could not be encoded"),
                None => break,
            }
        }
        if shared.may_leave() {
            return Ended::Leave;
        }
        if shared.must_register() {
            return Ended::Renew;
        }
        let frame = tokio::select! {
            received = link.recv() => match received {
                Ok(frame) => frame,
                Err(SocketError::Frame(error)) => {
                    tracing::warn!(%error, "a bad message on the result channel was dropped");
                    continue;
                }
                Err(error) => return error.into(),
            },
            () = shared.for_session.notified() => continue,
        };
        match ResultReply::from_frame(&frame) {
            Ok(ResultReply::Proceed(proceed)) => shared.proceed(proceed.token),
            Ok(ResultReply::Abandon(abandon)) => shared.abandon(abandon.token),
            Ok(ResultReply::Stored(stored)) => shared.stored(stored),
            Ok(ResultReply::SessionGone(_)) => return Ended::Gone("the scheduler ended the session".into()),
            Ok(ResultReply::ProtocolFault(fault)) => return faulted(fault.failure),
            Err(error) => tracing::warn!(%error, "a message on the result channel was not understood"),
        }
    }
}

fn faulted(failure: Failure) -> Ended {
    if failure.kind == FailureKind::Incompatible {
        Ended::Refused(failure.bounded())
    } else {
        Ended::Gone(failure.bounded().message)
    }
}

/// Polls the scheduler, which renews the leases, and executes the commands that it returns.
async fn poll(
    shared: &Shared,
    mut control: Requester,
    session: SessionId,
    every: Duration,
    hint: &Notify,
) -> Ended {
    let (mut acknowledged, mut failed) = (0, 0);
    let (mut refused, mut must_renew) = (Vec::new(), false);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = hint.notified() => {}
        }
        let running = shared.lock().leased();
        let request = Poll { session, running, acknowledged, refused: refused.clone() };
        let frame = match ControlRequest::from(request).to_frame(Vec::new()) {
            Ok(frame) => frame,
            Err(error) => return Ended::Gone(error.to_string()),
        };
        let answer = match control.request(frame, every.max(POLL_PATIENCE)).await {
            Ok(answer) => answer,
            Err(error) => {
                failed += 1;
                if failed >= POLL_FAILURES {
                    return error.into();
                }
                tracing::debug!(%error, failed, "a poll failed");
                continue;
            }
        };
        failed = 0;
        match ControlReply::from_frame(&answer) {
            Ok(ControlReply::Commands(reply)) => {
                // The scheduler has the answers to all commands before this poll.
                refused.clear();
                let fresh: Vec<_> = reply.commands.into_iter().filter(|c| c.seq > acknowledged).collect();
                if must_renew && fresh.is_empty() {
                    return Ended::Renew;
                }
                for command in fresh {
                    acknowledged = command.seq;
                    match carry_out(shared, &command) {
                        Ok(executed) => must_renew |= executed == Executed::Renew,
                        Err(ChangeRefused(reason)) => {
                            tracing::warn!(seq = command.seq, reason, "a command was refused");
                            refused.push(RefusedCommand { seq: command.seq, reason });
                        }
                    }
                    // Polls again at once, so that the acknowledged command leaves the scheduler's outbox.
                    hint.notify_one();
                }
            }
            Ok(ControlReply::SessionGone(_)) => return Ended::Gone("the scheduler ended the session".into()),
            Ok(ControlReply::Rejected(rejected)) => return faulted(rejected.failure),
            Ok(ControlReply::ProtocolFault(fault)) => return faulted(fault.failure),
            Ok(ControlReply::Welcome(_) | ControlReply::Farewell(_)) => {
                return Ended::Gone("the scheduler answered something else to a poll".into());
            }
            Err(error) => return Ended::Gone(error.to_string()),
        }
    }
}

fn carry_out(shared: &Shared, command: &Command) -> Result<Executed, ChangeRefused> {
    match &command.action {
        Action::Cancel { token } => {
            tracing::info!(seq = command.seq, "the scheduler cancelled an attempt");
            shared.cancel(*token);
        }
        Action::Recall { token } => {
            tracing::debug!(seq = command.seq, "the scheduler recalled an attempt");
            shared.recall(*token);
        }
        Action::Drain => {
            tracing::info!(seq = command.seq, "the scheduler drains this node");
            shared.drain(DrainedBy::Scheduler);
        }
        Action::Undrain => {
            tracing::info!(seq = command.seq, "the scheduler takes back its drain");
            return shared.undrain();
        }
        Action::Set { change } => {
            tracing::info!(seq = command.seq, ?change, "the scheduler changes settings of this node");
            return shared.set(change);
        }
    }
    Ok(Executed::Done)
}

/// Publishes one event per second for monitoring; leases do not depend on it.
async fn beat(shared: &Shared, sampler: Option<&Sampler>) -> Ended {
    loop {
        let figures = sampler.and_then(|sampler| sampler.figures(shared.model_memory_bytes()));
        shared.publish(|session| NodeEvent::from(Heartbeat { session, figures }).to_frame(Vec::new()));
        tokio::time::sleep(HEARTBEAT).await;
    }
}
