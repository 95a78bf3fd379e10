//! Carries out the core's effects in order, and every message only after the writes before it are committed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{ClientReply, ControlReply, LaneMessage, Message, Rejected, TaskInfo};
use lamagrid_transport::LaneSender;
use lamagrid_transport::router::RouterSender;

use super::backlog::{Destination, HoldResult, Images, WINDOW_BYTES};
use super::committer::{Group, Report};
use super::{EventLoop, SchedulerError, refused};
use crate::core::{Bounded, CLOCK_GRACE_MS, ClockChange, Effect, Input, Level, StoreOp};
use crate::store::WriteFault;

/// Upper bound of blob reads in one group; each read is of one task, at most three times 256 KiB.
const MAX_READS: usize = 64;
/// How long the last commit may take when the process is asked to end.
const LAST_COMMIT: Duration = Duration::from_secs(5);

impl EventLoop {
    pub(super) fn on_report(&mut self, report: Report) -> Result<(), SchedulerError> {
        match report {
            Report::Failing { reason, fault } => {
                self.failing = Some(unwritable(&reason, fault));
                self.metrics.commit_failed(fault);
            }
            Report::Size(size) => self.metrics.size(&size),
            Report::GaveUp(error) => return Err(error.into()),
            Report::Committed(blobs) => {
                self.metrics.committed(self.clock.commit_ended().as_secs_f64());
                let was_failing = self.failing.take().is_some();
                let mut blobs = blobs.into_iter();
                for effect in self.waiting.take().unwrap_or_default() {
                    let attached = if effect.attachment().is_some() {
                        blobs.next().unwrap_or_default()
                    } else {
                        Vec::new()
                    };
                    self.carry_out(effect, attached);
                }
                self.resume();
                if was_failing {
                    tracing::info!(waited = self.held_back.len(), "the store can be written again");
                    for incoming in std::mem::take(&mut self.held_back) {
                        self.on_client(incoming);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends the messages that need no commit, and hands the next group to the committer.
    pub(super) fn pump(&mut self) {
        for effect in std::mem::take(&mut self.unbarred) {
            self.carry_out(effect, Vec::new());
        }
        for (session, reason) in std::mem::take(&mut self.failed_lanes) {
            self.handle(Input::LanesFailed { session, reason });
        }
        if self.waiting.is_some() {
            return;
        }
        while let Some(effect) = self.pending.pop_front() {
            if matches!(effect, Effect::Store(_)) || effect.attachment().is_some() {
                self.pending.push_front(effect);
                break;
            }
            self.carry_out(effect, Vec::new());
        }
        if self.pending.is_empty() {
            self.unsaved_bytes = 0;
            return;
        }
        let mut group = Group::default();
        let mut released = Vec::new();
        let mut promised = HashMap::new();
        while let Some(effect) = self.pending.pop_front() {
            let Some(effect) = self.hold_back(effect, &mut promised) else { continue };
            match effect {
                // A message earlier in this group carries the blob that this write deletes, so it goes into
                // the next group.
                Effect::Store(op) if op.deletes_blobs_of(&group.reads) => {
                    self.pending.push_front(Effect::Store(op));
                    break;
                }
                Effect::Store(op) => {
                    if let (Some(gatekeeper), StoreOp::Release { id, .. } | StoreOp::Forget { id, .. }) =
                        (&self.gatekeeper, &op)
                    {
                        gatekeeper.forgotten(*id);
                    }
                    group.ops.push(op);
                }
                effect => {
                    group.reads.extend(effect.attachment().cloned());
                    released.push(effect);
                }
            }
            if group.ops.len() >= self.group_max || group.reads.len() >= MAX_READS {
                break;
            }
        }
        if self.pending.is_empty() {
            self.unsaved_bytes = 0;
        }
        if group.ops.is_empty() && released.is_empty() {
            return self.resume();
        }
        self.waiting = Some(released);
        self.clock.commit_begins();
        self.committer.commit(group);
    }

    /// Holds a message with images back while its peer has too much unread, counting the images of the group
    /// in progress (`promised`). Returns the effect if it can be sent now.
    fn hold_back(&mut self, effect: Effect, promised: &mut HashMap<Destination, usize>) -> Option<Effect> {
        let Some(images) = Images::of(&effect) else { return Some(effect) };
        let promised = promised.entry(images.destination.clone()).or_default();
        let unread = *promised + self.unread_bytes(&images.destination);
        let window = if self.limits.is_much_unread() { 1 } else { WINDOW_BYTES };
        if unread < window && !self.backlog.holds(&images.destination) {
            *promised += images.bytes;
            return Some(effect);
        }
        let destination = images.destination.clone();
        if self.backlog.hold(images, effect) == HoldResult::TooMany
            && let Destination::Client(peer) = &destination
        {
            self.senders.clients.disconnect(peer);
        }
        None
    }

    fn unread_bytes(&self, destination: &Destination) -> usize {
        match destination {
            Destination::Client(peer) => self.senders.clients.waiting_bytes(peer),
            Destination::Lane(session, index) => self
                .lanes
                .get(session)
                .and_then(|lanes| lanes.get(*index))
                .map_or(0, LaneSender::waiting_bytes),
        }
    }

    /// Releases the messages held back for peers that have read by now. The sockets of the other peers report
    /// when they have read.
    fn resume(&mut self) {
        for destination in self.backlog.destinations() {
            let is_watched = match &destination {
                Destination::Client(peer) => self.senders.clients.watch(peer),
                Destination::Lane(session, index) => {
                    self.lanes.get(session).and_then(|lanes| lanes.get(*index)).is_some_and(LaneSender::watch)
                }
            };
            if !is_watched {
                self.drained(&destination);
            }
        }
    }

    /// Puts the messages held back for a peer in front of the other effects; called when it has read most of
    /// its data.
    pub(super) fn drained(&mut self, destination: &Destination) {
        for mut effect in self.backlog.release(destination).into_iter().rev() {
            if let Effect::Client { reply: ClientReply::Outcome(outcome), attach, .. } = &mut effect
                && !self.core.has_result(outcome.task.id)
            {
                // Its result was released or deleted meanwhile.
                (outcome.result, *attach) = (None, None);
            }
            self.pending.push_front(effect);
        }
    }

    fn send_to_client(&mut self, peer: PeerId, reply: ClientReply, blobs: Vec<Bytes>) {
        let reply = bounded(reply);
        if let Some(gatekeeper) = &self.gatekeeper {
            gatekeeper.answering(&peer, &reply);
        }
        if let ClientReply::Refused(refused) = &reply {
            self.metrics.refused(refused.failure.kind.as_str());
        }
        send(&self.senders.clients, &peer, &reply, blobs);
    }

    fn carry_out(&mut self, effect: Effect, blobs: Vec<Bytes>) {
        match effect {
            Effect::Store(_) => unreachable!("writes go to the committer"),
            Effect::OpenUpload { .. } | Effect::CloseUpload { .. } => unreachable!("carried out at once"),
            Effect::Client { peer, reply, .. } => self.send_to_client(peer, reply, blobs),
            Effect::Admin { peer, reply } => send(&self.senders.admin, &peer, &reply, blobs),
            Effect::Control { peer, reply } => {
                let reply = self.open_lanes(&peer, reply);
                send(&self.senders.control, &peer, &reply, blobs);
            }
            Effect::Result { peer, reply } => send(&self.senders.results, &peer, &reply, blobs),
            Effect::Lane { session, index, message, .. } => {
                if let (Some(gatekeeper), LaneMessage::Assign(assign)) = (&self.gatekeeper, &message) {
                    gatekeeper.assigned(session, assign.token, assign.spec.id);
                }
                let Some(lane) = self.lanes.get(&session).and_then(|lanes| lanes.get(index)) else { return };
                match message.to_frame(blobs) {
                    Ok(frame) => lane.send(frame),
                    Err(error) => tracing::error!(%error, "message does not fit"),
                }
            }
            Effect::CloseSession { session } => {
                let lanes = self.lanes.remove(&session).unwrap_or_default();
                self.backlog.forget_session(session);
                if let Some(gatekeeper) = &mut self.gatekeeper {
                    gatekeeper.closed(session, lanes.iter().map(|lane| lane.address().to_owned()));
                }
            }
            Effect::Finished(task) => {
                self.metrics.finished(&task);
                if let Some(gatekeeper) = &self.gatekeeper {
                    gatekeeper.ended(task.id);
                }
                log_finished(&task);
            }
            Effect::Level(level) => {
                self.metrics.level(&level);
                log_level(&level);
            }
            Effect::Clock(change) => log_clock(change),
        }
    }

    /// Binds the lanes that a welcome announces before it is sent, because the node connects to them at once.
    fn open_lanes(&mut self, peer: &PeerId, reply: ControlReply) -> ControlReply {
        let ControlReply::Welcome(welcome) = &reply else { return reply };
        let session = welcome.session;
        let mut lanes = Vec::with_capacity(welcome.lanes.len());
        for (index, lane) in welcome.lanes.iter().enumerate() {
            let connected = self.lane_connected.clone();
            let on_event = move |event| {
                // Fails only when the event loop, its receiver, has ended.
                let _ = connected.send((session, index, event));
            };
            match LaneSender::bind(&lane.address, &self.limits, on_event) {
                Ok(lane) => lanes.push(lane),
                Err(error) => {
                    self.failed_lanes.push((session, error.to_string()));
                    let text = format!("the scheduler cannot open a lane: {error}");
                    return Rejected {
                        failure: Failure::new(FailureKind::Disconnected, text),
                        removed: false,
                    }
                    .into();
                }
            }
        }
        self.lanes.insert(session, lanes);
        if let Some(gatekeeper) = &mut self.gatekeeper {
            gatekeeper.welcomed(peer, session, &welcome.lanes);
        }
        reply
    }

    /// Commits everything pending, so that a clean end leaves no work to recovery.
    pub(super) async fn finish(&mut self) {
        let flush = async {
            while self.waiting.is_some() || !self.pending.is_empty() {
                self.pump();
                if self.waiting.is_none() {
                    continue;
                }
                match self.committer.report().await {
                    Some(report @ Report::Committed(_)) => {
                        let _ = self.on_report(report);
                    }
                    Some(Report::Failing { .. } | Report::Size(_)) => {}
                    Some(Report::GaveUp(_)) | None => return,
                }
            }
        };
        if tokio::time::timeout(LAST_COMMIT, flush).await.is_err() {
            tracing::error!("the last group could not be committed in time");
            return;
        }
        self.committer.close().await;
    }
}

/// Replaces a reply that exceeds one message by a refusal, so that the caller gets an error instead of no
/// answer.
fn bounded(reply: ClientReply) -> ClientReply {
    let ClientReply::GridStatus(overview) = &reply else { return reply };
    match reply.to_frame(Vec::new()) {
        Ok(_) => reply,
        Err(error) => {
            let nodes = overview.nodes.len();
            let text = format!("the overview of {nodes} nodes is too long for one message: {error}");
            refused(overview.seq, FailureKind::Internal, text)
        }
    }
}

/// Refusal of new work while the store cannot be written.
fn unwritable(reason: &str, fault: WriteFault) -> Failure {
    let (kind, what, end) = match fault {
        WriteFault::Locked => (FailureKind::Overloaded, "its database", "is free"),
        WriteFault::Disk => (FailureKind::DiskFull, "its disk", "can be written"),
    };
    let text = format!(
        "the scheduler cannot write to {what}, so that it takes nothing new: {reason}; it goes on by itself once that {end}, \
         try again later"
    );
    Failure::new(kind, text)
}

fn send(sender: &RouterSender, peer: &PeerId, message: &impl Message, blobs: Vec<Bytes>) {
    match message.to_frame(blobs) {
        Ok(frame) => sender.send(peer, frame),
        Err(error) => tracing::error!(%error, "message does not fit"),
    }
}

fn log_level(level: &Level) {
    let Level { of: what, percent, used, limit } = level;
    match (what, percent) {
        (_, 0) => tracing::info!(%what, used, limit, "there is room again"),
        (Bounded::Disk, _) => tracing::error!(
            free = used,
            kept = limit,
            "the disk of the data directory is nearly full: new work is refused, accepted work goes on"
        ),
        (_, 100..) => tracing::error!(
            %what,
            used,
            limit,
            "full: new work is refused, or takes the place of less important work"
        ),
        _ => tracing::warn!(%what, used, limit, percent, "nearly full"),
    }
}

fn log_clock(change: ClockChange) {
    match change {
        ClockChange::Doubted { ahead_ms } => tracing::error!(
            ahead_ms,
            grace_s = CLOCK_GRACE_MS / 1_000,
            "the wall clock jumped: results are deleted and deadlines pass by the time before the jump, until the clock \
             comes back to it or has been steady for a while; check the host's clock (NTP)"
        ),
        ClockChange::Returned => tracing::info!("the wall clock is where it was before it jumped"),
        ClockChange::Believed { ahead_ms } => {
            tracing::warn!(ahead_ms, "the wall clock has been steady since it jumped: its time counts again");
        }
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
