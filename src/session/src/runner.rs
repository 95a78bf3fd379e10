//! Registers the node again and again, one connection after another, until the node leaves or is refused.

use std::time::{Duration, Instant};

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_gate::SchedulerRoute;
use lamagrid_hardware::Sampler;
use lamagrid_process::Backoff;
use lamagrid_protocol::frame::FrameError;
use lamagrid_protocol::message::{ControlReply, ControlRequest, Message, Rejected, Welcome};
use lamagrid_transport::SocketError;
use lamagrid_transport::request::Requester;

use crate::connection::{self, Ended};
use crate::state::Phase;
use crate::state::shared::Shared;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A session that lasted this long counts as a success, and resets the back-off.
const GOOD_LIFE: Duration = Duration::from_secs(5);
/// Limit on a registration: a scheduler that recovers its store answers later than an idle one.
const HELLO_PATIENCE: Duration = Duration::from_secs(2);
/// The lease before the scheduler has named one: the configuration's default.
const LEASE: Duration = Duration::from_secs(20);
/// Interval of log lines about a scheduler that cannot be reached.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Why a registration failed.
enum Refusal {
    /// For now: the node tries again.
    Again(String),
    /// Permanently, unless the node was registered before.
    Final(Failure),
    /// Permanently: an administrator removed the node.
    Removed(Failure),
}

/// Runs until the node leaves (`None`) or is refused permanently.
pub(crate) async fn run(
    shared: &Shared,
    route: &SchedulerRoute,
    sampler: Option<&Sampler>,
) -> Option<Failure> {
    let endpoints = route.endpoints();
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut last_logged: Option<Instant> = None;
    let mut was_welcomed = false;
    // Replaced by the duration that the scheduler's welcome names.
    let (mut lease, mut alone_since) = (LEASE, Instant::now());
    loop {
        if shared.may_leave() {
            return None;
        }
        let undelivered = shared.left_to_deliver();
        if undelivered > 0 && alone_since.elapsed() >= lease {
            let lease_ms = lease.as_millis();
            tracing::error!(
                undelivered,
                lease_ms,
                "leaving without the scheduler: it was away for a whole lease; it will give these tasks to other nodes"
            );
            return None;
        }
        let mut control = Requester::new(endpoints.control());
        let reason = tokio::select! {
            answer = hello(shared, &mut control) => match answer {
                Ok(welcome) => {
                    last_logged = None;
                    was_welcomed = true;
                    lease = Duration::from_millis(welcome.lease_ms);
                    let began = Instant::now();
                    let ended = connection::hold(shared, route, sampler, control, welcome).await;
                    shared.lose_connection();
                    alone_since = Instant::now();
                    if began.elapsed() >= GOOD_LIFE {
                        backoff.reset();
                    }
                    match ended {
                        Ended::Leave => return None,
                        Ended::Renew => continue,
                        Ended::Refused(failure) => return Some(failure),
                        Ended::Gone(reason) => reason,
                    }
                }
                // The scheduler's configuration has changed since the last welcome, and may be corrected again.
                Err(Refusal::Final(failure)) if was_welcomed && failure.kind == FailureKind::InvalidInput => {
                    failure.message
                }
                Err(Refusal::Final(failure) | Refusal::Removed(failure)) => return Some(failure),
                Err(Refusal::Again(reason)) => match route.refused() {
                    Some(failure) => return Some(failure),
                    None => reason,
                },
            },
            () = closing(shared) => return None,
        };
        if last_logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            let reason = route.trouble().text().unwrap_or(reason);
            tracing::warn!(
                reason,
                endpoint = endpoints.control(),
                hint = route.hint(),
                "no session with the scheduler, trying again"
            );
            last_logged = Some(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            () = closing(shared) => return None,
        }
    }
}

/// Returns when the node must leave at once.
async fn closing(shared: &Shared) {
    while shared.lock().phase() != Phase::Closing {
        shared.for_session.notified().await;
    }
}

async fn hello(shared: &Shared, control: &mut Requester) -> Result<Welcome, Refusal> {
    let again = |error: &dyn std::fmt::Display| Refusal::Again(error.to_string());
    let frame = ControlRequest::from(shared.hello()).to_frame(Vec::new()).map_err(|error| {
        // Only the list of models can exceed a header's limit.
        Refusal::Final(Failure::new(FailureKind::InvalidInput, format!("cannot introduce the node: {error}")))
    })?;
    let answer = match control.request(frame, HELLO_PATIENCE).await {
        Ok(answer) => answer,
        Err(SocketError::Frame(error @ FrameError::Version { .. })) => {
            return Err(Refusal::Final(Failure::new(FailureKind::Incompatible, error.to_string())));
        }
        Err(error) => return Err(again(&error)),
    };
    match ControlReply::from_frame(&answer).map_err(|error| again(&error))? {
        ControlReply::Welcome(welcome) => Ok(welcome),
        ControlReply::Rejected(Rejected { failure, removed: true }) => {
            Err(Refusal::Removed(failure.bounded()))
        }
        ControlReply::Rejected(rejected) => Err(refusal(rejected.failure)),
        ControlReply::ProtocolFault(fault) => Err(refusal(fault.failure)),
        ControlReply::Commands(_) | ControlReply::SessionGone(_) | ControlReply::Farewell(_) => {
            Err(Refusal::Again("the scheduler answered something else to a hello".into()))
        }
    }
}

fn refusal(failure: Failure) -> Refusal {
    match failure.kind {
        FailureKind::Incompatible | FailureKind::InvalidInput => Refusal::Final(failure.bounded()),
        FailureKind::NodeLost
        | FailureKind::Disconnected
        | FailureKind::DeadlineExceeded
        | FailureKind::WaitedTooLong
        | FailureKind::RanTooLong
        | FailureKind::OutOfMemory
        | FailureKind::DiskFull
        | FailureKind::Overloaded
        | FailureKind::UnknownModel
        | FailureKind::ModelLoad
        | FailureKind::Inference
        | FailureKind::Cancelled
        | FailureKind::Internal => Refusal::Again(failure.bounded().message),
    }
}
