//! Reports of the core: to followers, in status replies and as metrics.

use std::collections::BTreeMap;

use lamagrid_domain::{Advance, ModelName, QueueName, Role, Stages, Status, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Outcome, Progress, TaskInfo};

use crate::core::metrics_snapshot::{MetricsSnapshot, QueueMetrics};
use crate::core::state::session::Session;
use crate::core::state::task::Task;
use crate::core::{Core, Effect, FinishedTask};

impl Core {
    pub(crate) fn info(&self, task: &Task) -> TaskInfo {
        let status = task.state().status();
        let position = (status == Status::Queued).then(|| self.ready.position(task));
        TaskInfo {
            id: task.id(),
            model: task.spec().model.clone(),
            queue: task.spec().queue.clone(),
            status,
            failure: None,
            position,
            wait_ms: position.and_then(|_| self.expected_wait_ms(task)),
            node: task.node().map(ToString::to_string),
            counters: task.counters(),
            stages: Stages { queue_ms: task.queue_ms() as f64, ..Default::default() },
            created_wall_ms: task.created_wall_ms(),
            finished_wall_ms: None,
        }
    }

    pub(crate) fn tell_followers(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id) else { return };
        let Advance { activity, step, of } = task.progress();
        let progress = Progress { id, status: task.state().status(), step, of, activity };
        for peer in task.followers().to_vec() {
            self.reply(&peer, progress.clone());
        }
    }

    /// The expected wait of a queued task: the usual run times of those ahead of it, over the slots that can run it now.
    /// `None` if its queue is paused, or without experience or slot.
    fn expected_wait_ms(&self, task: &Task) -> Option<u64> {
        let (placement, need) = (self.placement(), self.placement().need(task));
        let slots = self.working_slots(|session| placement.can_do(task, &need, session));
        let queue = &task.spec().queue;
        let mut work_ms = 0.0;
        for (model, ahead) in self.ready.ahead_of(task).filter(|(_, ahead)| *ahead > 0) {
            work_ms += self.run_times.usual_ms(queue, Some(model))? * ahead as f64;
        }
        // Without experience nothing is told, even if nothing is ahead.
        self.run_times.usual_ms(queue, Some(&task.spec().model))?;
        (slots > 0 && !self.paused.contains(queue)).then(|| (work_ms / slots as f64) as u64)
    }

    /// The expected wait of a new task behind all that wait in a queue.
    pub(crate) fn expected_wait_in(&self, queue: &QueueName, model: Option<&ModelName>) -> Option<u64> {
        let serves = |session: &Session| match model {
            Some(model) => session.offers(queue, model),
            None => session.serves(queue),
        };
        let waiting = self.ready.length(queue).unwrap_or(0);
        let work_ms = self.run_times.usual_ms(queue, None)? * waiting as f64;
        let slots = self.working_slots(serves);
        (slots > 0 && !self.paused.contains(queue)).then(|| (work_ms / slots as f64) as u64)
    }

    /// Slots of the nodes that get work.
    fn working_slots(&self, is_able: impl Fn(&Session) -> bool) -> u64 {
        let is_working = |session: &&Session| {
            !session.is_draining()
                && !self.placement().is_suspect(session)
                && !self.breaker.is_aside(session.node())
                && is_able(session)
        };
        self.sessions.values().filter(is_working).map(|session| u64::from(session.slots())).sum()
    }

    /// The state of a session, as it is shown to people.
    pub(crate) fn state_of(&self, session: &Session) -> &'static str {
        if session.is_draining() {
            "draining"
        } else if self.breaker.is_aside(session.node()) {
            "aside"
        } else if self.placement().is_suspect(session) {
            "suspect"
        } else if session.idle_slots() > 0 && session.lanes_connected() {
            "ready"
        } else {
            "busy"
        }
    }

    /// Running tasks by queue. Reads the attempts of nodes, which are few, and not the queues.
    pub(super) fn running(&self) -> BTreeMap<&QueueName, u64> {
        let held = self.sessions.values().flat_map(|session| session.tokens());
        let orphaned = self.leases.orphans().map(|orphan| orphan.token);
        let mut running = BTreeMap::new();
        for task in held.chain(orphaned).filter_map(|token| self.tasks.get(self.leases.task_of(token)?)) {
            *running.entry(&task.spec().queue).or_default() += 1;
        }
        running
    }

    /// Called once a second.
    pub(crate) fn metrics_snapshot(&self) -> MetricsSnapshot {
        let running = self.running();
        let queues = self
            .settings
            .queues
            .iter()
            .map(|(queue, limit)| {
                let (waiting, paused) = (self.ready.length(queue).unwrap_or(0), self.paused.contains(queue));
                let running = running.get(queue).copied().unwrap_or(0);
                (queue.clone(), QueueMetrics { waiting, running, limit: *limit, paused })
            })
            .collect();
        let mut nodes =
            BTreeMap::from(["ready", "busy", "suspect", "aside", "draining"].map(|state| (state, 0)));
        for session in self.sessions.values() {
            *nodes.entry(self.state_of(session)).or_default() += 1;
        }
        MetricsSnapshot {
            queues,
            nodes,
            ended: self.retention.len() as u64,
            dead: self.admission.dead_letters(),
            spool_bytes: self.admission.spool_bytes(),
            spool_limit_bytes: self.settings.limits.max_spool_bytes,
            reserved_bytes: self.admission.reserved_bytes(),
            disk_free_bytes: self.admission.free_bytes(),
            clock_doubted: self.clock.wall().is_doubted(),
        }
    }
}

/// Tells `peer` how a task ended, with its result inline if it is small.
pub(super) fn outcome(peer: &PeerId, id: TaskId, finished: &FinishedTask) -> Effect {
    let attach = (finished.inline && finished.result.is_some()).then(|| (id, vec![Role::Result]));
    let outcome = Outcome { task: finished.info(id), result: finished.result.clone() };
    Effect::Client { peer: peer.clone(), reply: outcome.into(), attach }
}
