//! One line per effect, as scenarios list them.

use std::fmt::Write;

use lamagrid_domain::{LeaseToken, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, AdminReply, ClientReply, ControlReply, LaneMessage, ResultReply};

use crate::core::{Effect, OrderKind, StoreOp};

fn task_name(of: &TaskId) -> String {
    format!("T{}", of.as_bytes()[15])
}

fn tokens(list: &[LeaseToken]) -> String {
    list.iter().map(|t| format!("#{}", t.as_bytes()[0])).collect::<Vec<_>>().join(" ")
}

/// The peer's name, which its display spells in hexadecimal.
fn name(peer: &PeerId) -> String {
    let hex = peer.to_string();
    let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap());
    String::from_utf8(bytes.collect()).unwrap().trim_end_matches('\0').to_owned()
}

/// One effect as a line.
pub(super) fn line(effect: &Effect) -> String {
    match effect {
        Effect::Store(op) => store_line(op),
        Effect::Client { peer, reply, attach } => {
            let mut line = format!("{}: {}", name(peer), client_line(reply));
            if attach.is_some() {
                write!(line, " with bytes").unwrap();
            }
            line
        }
        Effect::Control { peer, reply } => format!("{}: {}", name(peer), control_line(reply)),
        Effect::Result { peer, reply } => {
            let text = match reply {
                ResultReply::Proceed(m) => format!("proceed {}", tokens(&[m.token])),
                ResultReply::Abandon(m) => format!("abandon {}", tokens(&[m.token])),
                ResultReply::Stored(m) => format!("stored {} {}", tokens(&[m.token]), m.accepted),
                ResultReply::SessionGone(m) => format!("gone #{}", m.session.as_bytes()[0]),
                ResultReply::ProtocolFault(m) => format!("fault {}", m.failure.kind),
            };
            format!("{}: {text}", name(peer))
        }
        Effect::Lane { session, index, message, .. } => {
            let sent = match message {
                LaneMessage::Assign(m) => format!("assign {} {}", task_name(&m.spec.id), tokens(&[m.token])),
                LaneMessage::Hint(_) => "hint".to_owned(),
            };
            format!("lane #{}/{index}: {sent}", session.as_bytes()[0])
        }
        Effect::CloseSession { session } => format!("close #{}", session.as_bytes()[0]),
        Effect::Finished(info) => format!("finished {}", task_name(&info.id)),
        Effect::Admin { peer, reply } => format!("{}: {}", name(peer), admin_line(reply)),
        Effect::Level(level) => {
            let what = level.of.to_string();
            format!("alarm {} {}", what.trim_start_matches("queue/"), level.percent)
        }
        Effect::Clock(change) => format!("clock {change:?}"),
        Effect::OpenUpload { owner, id, bytes } => {
            format!("upload {} {bytes} bytes by {owner}", task_name(id))
        }
        Effect::CloseUpload { id, inputs, .. } => format!("close {} {inputs:?}", task_name(id)),
    }
}

fn admin_line(reply: &AdminReply) -> String {
    match reply {
        AdminReply::ProtocolFault(m) => format!("fault {}", m.failure.kind),
        AdminReply::Refused(m) => format!("refused {}", m.failure.message),
        AdminReply::Unknown(m) => {
            format!("{} {}", if m.expired { "expired" } else { "unknown" }, task_name(&m.id))
        }
        AdminReply::Page(m) => {
            let ids: Vec<_> = m.tasks.iter().map(|line| task_name(&line.id)).collect();
            format!("page {} of {}{}", ids.join(" "), m.total, if m.next.is_some() { ", more" } else { "" })
        }
        AdminReply::TaskHistory(m) => {
            let dead = if m.dead { ", dead" } else { "" };
            format!("history {} {}{dead}, {} entries", task_name(&m.task.id), m.task.status, m.history.len())
        }
        AdminReply::Retried(m) => format!("retried {} as {}", task_name(&m.id), task_name(&m.runs_as)),
        AdminReply::Paused(m) => format!("queue {} paused {}, {} wait", m.queue, m.paused, m.waiting),
        AdminReply::Draining(m) => format!("draining {} with {}", m.node, m.running),
        AdminReply::Purged(m) => format!("purged {} tasks, {} bytes", m.tasks, m.bytes),
        AdminReply::NodeDetail(m) => {
            let state = m.session.as_ref().map_or("away", |session| &session.state);
            let order =
                m.order.as_ref().map_or("none", |order| if order.removed { "removed" } else { "drain" });
            format!("node {} {state}, order {order}", m.node)
        }
        AdminReply::Statistics(m) => format!("statistics of {} lines", m.lines.len()),
    }
}

fn store_line(op: &StoreOp) -> String {
    match op {
        StoreOp::Insert { spec, .. } => format!("insert {}", task_name(&spec.id)),
        StoreOp::Assign { id, token, node, counters } => {
            format!("assign {} {} to {node}, attempt {}", task_name(id), tokens(&[*token]), counters.attempts)
        }
        StoreOp::Requeue { id, counters, .. } => {
            format!("requeue {}, {} crashes, {} failures", task_name(id), counters.crashes, counters.failures)
        }
        StoreOp::End { id, ended, .. } => {
            let why = ended.failure.as_ref().map_or(String::new(), |f| format!(" {}", f.kind));
            let dead = if ended.dead.is_some() { ", dead" } else { "" };
            format!("end {} {}{why}{dead}", task_name(id), ended.status)
        }
        StoreOp::Release { id, .. } => format!("release {}", task_name(id)),
        StoreOp::Forget { id, .. } => format!("forget {}", task_name(id)),
        StoreOp::Remember { id, .. } => format!("remember {}", task_name(id)),
        StoreOp::Unremember { id } => format!("unremember {}", task_name(id)),
        StoreOp::Watermark { owner, wall_ms } => format!("watermark {owner} {wall_ms}"),
        StoreOp::Clock { wall_ms } => format!("clock {wall_ms}"),
        StoreOp::Pause { queue, pause } => format!("pause {queue} {}", pause.is_some()),
        StoreOp::NodeOrder { node, order } => match order {
            Some(order) if order.kind == OrderKind::Removal => format!("remove {node}"),
            order => format!("drain {node} {}", order.is_some()),
        },
        StoreOp::Together(ops) => ops.iter().map(store_line).collect::<Vec<_>>().join(" + "),
    }
}

fn client_line(reply: &ClientReply) -> String {
    match reply {
        ClientReply::ProtocolFault(m) => format!("fault {}", m.failure.kind),
        ClientReply::Pong(_) => "pong".into(),
        ClientReply::UploadGranted(_) => "send".into(),
        ClientReply::Accepted(m) => format!("accepted {} behind {}", task_name(&m.id), m.position),
        ClientReply::Refused(m) => format!("refused {}, {} wait", m.failure.kind, m.queue_len),
        ClientReply::TaskStatus(m) => format!("status {} {}", task_name(&m.task.id), m.task.status),
        ClientReply::Unknown(m) => {
            format!("{} {}", if m.expired { "expired" } else { "unknown" }, task_name(&m.id))
        }
        ClientReply::Outcome(m) => {
            let why = m.task.failure.as_ref().map_or(String::new(), |f| format!(" {}", f.kind));
            format!("outcome {} {}{why}", task_name(&m.task.id), m.task.status)
        }
        ClientReply::Progress(m) => format!("progress {} {} {}/{}", task_name(&m.id), m.status, m.step, m.of),
        ClientReply::GridStatus(m) => {
            let states: Vec<_> = m.nodes.iter().map(|n| format!("{} {}", n.info.name, n.state)).collect();
            format!("overview {}", states.join(", "))
        }
    }
}

fn control_line(reply: &ControlReply) -> String {
    match reply {
        ControlReply::ProtocolFault(m) => format!("fault {}", m.failure.kind),
        ControlReply::Welcome(m) => {
            let lanes: Vec<_> = m.lanes.iter().map(|l| l.queue.as_str()).collect();
            let mut line = format!(
                "welcome #{} lanes [{}] abandoned [{}]",
                m.session.as_bytes()[0],
                lanes.join(" "),
                tokens(&m.abandoned)
            );
            for refused in &m.refused {
                write!(line, " without {}", refused.queue).unwrap();
            }
            line
        }
        ControlReply::Rejected(m) => format!("rejected {}", m.failure.kind),
        ControlReply::Commands(m) => {
            let command = |c: &lamagrid_protocol::message::Command| match &c.action {
                Action::Cancel { token } => format!("{} cancel {}", c.seq, tokens(&[*token])),
                Action::Recall { token } => format!("{} recall {}", c.seq, tokens(&[*token])),
                Action::Drain => format!("{} drain", c.seq),
                Action::Undrain => format!("{} undrain", c.seq),
                Action::Set { change } => format!("{} set {change:?}", c.seq),
            };
            format!("commands [{}]", m.commands.iter().map(command).collect::<Vec<_>>().join(", "))
        }
        ControlReply::SessionGone(m) => format!("gone #{}", m.session.as_bytes()[0]),
        ControlReply::Farewell(_) => "farewell".into(),
    }
}
