//! One session: its lanes, its result channel, its polls and its heartbeat, until one of them ends it.
//!
//! Invariant: nothing here outlives [`hold`]; all sockets are dropped with it.

use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use lamagrid_domain::{Failure, FailureKind, SessionId};
use lamagrid_gate::SchedulerRoute;
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::{
    Action, Command, ControlReply, ControlRequest, Goodbye, Heartbeat, LaneMessage, Message, NodeEvent, Poll,
    ResultReply, Welcome,
};
use lamagrid_transport::link::Link;
use lamagrid_transport::request::Requester;
use lamagrid_transport::{Endpoints, EventPublisher, LaneReceiver, SocketError};

use crate::state::Shared;

/// All sockets lie on this host: whoever does not take a connection in this time hangs.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Least time for the answer to a poll.
const POLL_PATIENCE: Duration = Duration::from_secs(1);
/// Polls that fail in a row before the session is given up.
const POLL_FAILURES: u32 = 3;
/// Half of what a closing caller waits.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Assignments on their way in; credit keeps them near the number of slots.
const LANE_QUEUE: usize = 64;

/// How a session ended.
pub(crate) enum Ended {
    /// Say hello again, with running work kept.
    Gone(String),
    /// The node's own wish.
    Leave,
    /// The two sides do not understand each other.
    Refused(Failure),
}

impl From<SocketError> for Ended {
    fn from(error: SocketError) -> Self {
        Self::Gone(error.to_string())
    }
}

/// Serves `welcome`'s session until it ends.
pub(crate) async fn hold(
    shared: &Shared,
    route: &SchedulerRoute,
    control: Requester,
    mut welcome: Welcome,
) -> Ended {
    let session = welcome.session;
    for refused in &welcome.refused {
        tracing::warn!(queue = %refused.queue, reason = refused.reason, "this node may not serve a queue");
    }
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
    // One task: every part is polled while the others wait, and none is cut off before the session's end.
    let ended = tokio::select! {
        ended = poll(shared, control, session, poll_every, &hint) => ended,
        ended = exchange(shared, &mut sockets.link) => ended,
        ended = listen(shared, &mut sockets.assignments, &hint) => ended,
        ended = beat(shared) => ended,
    };
    if matches!(ended, Ended::Leave) {
        // While the sockets are open: one that closes first looks like a death, which is held against what runs.
        goodbye(route.endpoints(), session).await;
    }
    ended
}

async fn goodbye(endpoints: &Endpoints, session: SessionId) {
    let Ok(frame) = ControlRequest::from(Goodbye { session }).to_frame(Vec::new()) else { return };
    match Requester::new(endpoints.control()).request(frame, GOODBYE_PATIENCE).await {
        Ok(_) => tracing::info!(session = %session, "left the scheduler"),
        Err(error) => tracing::debug!(%error, "the goodbye was not heard; the scheduler finds out by itself"),
    }
}

struct Sockets {
    link: Link,
    events: EventPublisher,
    assignments: mpsc::Receiver<Result<Frame, SocketError>>,
    /// Owns the lanes: dropping it drops their sockets.
    _lanes: JoinSet<()>,
}

impl Sockets {
    async fn connect(endpoints: &Endpoints, welcome: &Welcome) -> Result<Self, SocketError> {
        let (heard, assignments) = mpsc::channel(LANE_QUEUE);
        let mut lanes = JoinSet::new();
        for lane in &welcome.lanes {
            let mut receiver = LaneReceiver::connect(&lane.address, CONNECT_PATIENCE).await?;
            let heard = heard.clone();
            lanes.spawn(async move {
                loop {
                    let frame = receiver.recv().await;
                    let over = matches!(&frame, Err(error) if !matches!(error, SocketError::Frame(_)));
                    if heard.send(frame).await.is_err() || over {
                        return;
                    }
                }
            });
        }
        let link = Link::connect(&endpoints.result(), CONNECT_PATIENCE).await?;
        let events = EventPublisher::connect(&endpoints.node_events(), CONNECT_PATIENCE).await?;
        // The last lane's sender lives in its task; without lanes nothing is ever heard, and that is fine.
        if welcome.lanes.is_empty() {
            lanes.spawn(async move { heard.closed().await });
        }
        Ok(Self { link, events, assignments, _lanes: lanes })
    }
}

/// Takes assignments and hints.
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
            // Without an accept the scheduler takes the task back, with this session: nothing is lost.
            Err(error) => tracing::warn!(%error, "a message on a lane was not understood"),
        }
    }
}

/// Sends what waits for the result channel and hears the answers.
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
        let frame = tokio::select! {
            heard = link.recv() => match heard {
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
            Ok(ResultReply::Stored(stored)) => shared.stored(stored.token, stored.accepted),
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

/// Shows that the node lives, and carries out what it is told.
async fn poll(
    shared: &Shared,
    mut control: Requester,
    session: SessionId,
    every: Duration,
    hint: &Notify,
) -> Ended {
    let (mut acknowledged, mut failed) = (0, 0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = hint.notified() => {}
        }
        let running = shared.lock().leased();
        let request = Poll { session, running, acknowledged, refused: Vec::new() };
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
            Ok(ControlReply::Commands(told)) => {
                for command in told.commands {
                    if command.seq <= acknowledged {
                        continue;
                    }
                    acknowledged = command.seq;
                    carry_out(shared, &command);
                    // Polls again at once, so that the command leaves the scheduler's outbox.
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

fn carry_out(shared: &Shared, command: &Command) {
    match command.action {
        Action::Cancel { token } => {
            tracing::info!(seq = command.seq, "told to cancel an attempt");
            shared.cancel(token);
        }
        Action::Recall { token } => {
            tracing::debug!(seq = command.seq, "told to give an attempt back");
            shared.recall(token);
        }
        Action::Drain => {
            tracing::info!(seq = command.seq, "told to drain");
            shared.drain();
        }
    }
}

/// One event a second, for whoever watches; leases do not depend on it.
async fn beat(shared: &Shared) -> Ended {
    loop {
        shared.publish(|session| NodeEvent::from(Heartbeat { session }).to_frame(Vec::new()));
        tokio::time::sleep(HEARTBEAT).await;
    }
}
