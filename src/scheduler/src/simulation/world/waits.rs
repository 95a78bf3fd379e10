//! Compares which attempts wait for a slot, as the nodes know it, with what the core believes.
//!
//! Only in episodes without lost, late or repeated messages: otherwise the core cannot know. Even then it hears of
//! everything a moment later, so a difference counts only once it has lasted.

use lamagrid_domain::QueueName;

use super::*;
use crate::core::{Session, Task};

/// Since when each difference has lasted, by the lease clock.
#[derive(Default)]
pub(super) struct Watch {
    /// Attempts that wait for a slot which another one has, and sessions with an idle slot that may be given them.
    waits: BTreeMap<(LeaseToken, SessionId), u64>,
    /// Tasks that wait in a queue, and sessions that could begin with them.
    queued: BTreeMap<(TaskId, SessionId), u64>,
    /// Sessions of which the core believes otherwise about who waits.
    differs: BTreeMap<SessionId, u64>,
}

/// Keeps entries that still hold and adds new ones.
fn lasting<K: Ord + Copy>(since: &mut BTreeMap<K, u64>, holds: impl IntoIterator<Item = K>, now_ms: u64) {
    let before = std::mem::take(since);
    *since = holds.into_iter().map(|key| (key, before.get(&key).copied().unwrap_or(now_ms))).collect();
}

/// A difference that lasts longer is a violation: a lane without hints costs a poll, everything else a round trip.
const BOUND_MS: u64 = 2_000;

impl World {
    /// Queued tasks and idle sessions that could run them, by the simulation's own account of queues and memory.
    fn could_run(&self, idle: &[SessionId]) -> Vec<(TaskId, SessionId)> {
        let Some(core) = self.core.as_ref().map(Core::view) else { return Vec::new() };
        let sessions: Vec<_> = idle.iter().filter_map(|id| core.session(*id)).collect();
        let clock_ms = core.elapsed_ms();
        let mut found = Vec::new();
        for task in core.tasks().filter(|task| core.waits_for_a_node(task) && core.is_unburdened(task)) {
            let waited_ms = task.waited_for_spill_ms() + task.queued_for_ms(clock_ms);
            let could_run = sessions.iter().filter(|session| self.could_begin(task, session, waited_ms));
            found.extend(could_run.map(|session| (task.id(), session.id())));
        }
        found
    }

    /// Whether a session with an idle slot could run a task that has waited for `waited_ms`.
    fn could_begin(&self, task: &Task, session: &Session, waited_ms: u64) -> bool {
        let spec = task.spec();
        let may_use =
            |lane: &QueueName| *lane == spec.queue || self.routing.may_spill(&spec.queue, lane, waited_ms);
        session.queues().any(|lane| may_use(lane) && session.offers(lane, &spec.model))
            && self.routing.fits(spec, &[], session.info())
            && (session.slots() == 1 || session.is_unused())
            && !task.avoids(session.node())
    }

    pub(super) fn watch_waits(&mut self) -> Result<(), Violation> {
        let now_ms = self.net.now.mono_ms;
        let is_fair = now_ms >= self.settled_ms || self.net.rates.is_fair();
        let Some(core) = self.core.as_ref().filter(|_| is_fair).map(Core::view) else { return Ok(()) };
        let mut compared = 0;
        let (mut waits, mut idle, mut differs) = (Vec::new(), Vec::new(), Vec::new());
        for node in self.nodes.iter().filter(|n| n.is_serving() && n.frozen_until_ms <= now_ms) {
            let session = node.session.and_then(|id| core.session(id));
            // A silent node's lease decides.
            let Some(session) = session.filter(|s| !core.is_suspect(s)) else { continue };
            let mut truth = node.waiting();
            truth.retain(|token| session.holds(*token));
            let believed = session.on_overlap().into_iter().map(|unbegun| unbegun.token).collect::<Vec<_>>();
            compared += u64::from(!truth.is_empty() && truth == believed);
            if truth != believed {
                differs.push(session.id());
            }
            if session.idle_slots() > 0 && core.can_take(session) {
                idle.push(session.id());
            }
            waits.extend(truth.into_iter().map(|token| (token, session.id())));
        }
        let clock_ms = core.elapsed_ms();
        let queued = self.could_run(&idle);
        let may_be_given = |token: LeaseToken, idle: SessionId| {
            let session = core.session(idle);
            core.task_of(token).zip(session).is_some_and(|(task, session)| {
                let waited_ms = task.waited_for_spill_ms() + task.on_node_for_ms(clock_ms);
                let could_begin = core.is_unburdened(task) && self.could_begin(task, session, waited_ms);
                could_begin || core.may_be_given(task, session)
            })
        };
        let pairs = waits.iter().flat_map(|(token, _)| idle.iter().map(|idle| (*token, *idle)));
        let beside_idle: Vec<_> = pairs.filter(|(token, idle)| may_be_given(*token, *idle)).collect();
        lasting(&mut self.watch.queued, queued, clock_ms);
        lasting(&mut self.watch.waits, beside_idle, clock_ms);
        lasting(&mut self.watch.differs, differs, clock_ms);
        if compared > 0 {
            self.oracle.note("waiting known");
        }
        let long_ago = clock_ms.saturating_sub(BOUND_MS);
        let lasts = |since: &u64| *since < long_ago;
        let node_of = |id: &SessionId| core.session(*id).map_or("?", |session| session.info().name.as_str());
        if let Some((id, _)) = self.watch.differs.iter().find(|(_, since)| lasts(since)) {
            let node = self.nodes.iter().find(|n| n.session == Some(*id)).map(Node::waiting);
            let what = format!(
                "{}: {:?} are taken to wait, {:?} do",
                node_of(id),
                core.session(*id).map(|session| session.on_overlap()),
                node.unwrap_or_default()
            );
            return Err(Violation { kind: Kind::Structure, what });
        }
        if let Some(((task, idle), _)) = self.watch.queued.iter().find(|(_, since)| lasts(since)) {
            let what = format!("task {task} waits in its queue while {} could begin with it", node_of(idle));
            return Err(Violation { kind: Kind::Waits, what });
        }
        if let Some(((token, idle), _)) = self.watch.waits.iter().find(|(_, since)| lasts(since)) {
            let task = core.task_of(*token).map(|task| task.id());
            let holder = waits.iter().find(|(each, _)| each == token).map_or("?", |(_, id)| node_of(id));
            let what = format!("task {task:?} waits on {holder} while {} is idle", node_of(idle));
            return Err(Violation { kind: Kind::Waits, what });
        }
        Ok(())
    }
}
