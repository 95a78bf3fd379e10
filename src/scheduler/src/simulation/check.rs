//! What must hold inside the core after every step.

use std::collections::BTreeMap;

use lamagrid_domain::{LeaseToken, SessionId, State, TaskId};

use super::oracle::{Kind, Violation};
use crate::core::{Core, Task};

macro_rules! ensure {
    ($holds:expr, $kind:ident, $($text:tt)+) => {
        if !$holds {
            return Err(Violation { kind: Kind::$kind, what: format!($($text)+) });
        }
    };
}
pub(super) use ensure;

impl Core {
    /// The structure: every task is in exactly one place, every index says what the tasks say.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        let mut assigned = 0;
        let mut with_deadline = 0;
        let mut follows = 0;
        let mut queue_len = BTreeMap::new();
        for (id, task) in &self.tasks {
            ensure!(*id == task.spec.id, Structure, "task {id} lies under another id");
            ensure!(!self.ended.contains_key(id), Structure, "task {id} lives and has ended");
            ensure!(!self.tombstones.contains(*id), Structure, "task {id} lives and has a tombstone");
            with_deadline += usize::from(task.spec.deadline_wall_ms.is_some());
            follows += task.followers.len();
            match task.state {
                State::Queued { .. } => *queue_len.entry(&task.spec.queue).or_insert(0) += 1,
                State::Assigned { token, .. } => {
                    assigned += 1;
                    self.check_assigned(task, token)?;
                }
                State::Completed | State::Failed(_) | State::Cancelled => {
                    ensure!(false, Structure, "task {id} is {} and still held as live", task.state.status());
                }
            }
        }
        let held: usize = self.sessions.values().map(|s| s.tokens.len()).sum::<usize>()
            + self.orphans.values().map(|o| o.attempts.len()).sum::<usize>();
        ensure!(held == assigned, Structure, "{held} tokens are held for {assigned} assigned tasks");
        ensure!(
            self.deadlines.len() == with_deadline,
            Structure,
            "deadlines has {} of {with_deadline}",
            self.deadlines.len()
        );
        for (queue, len) in &self.queue_len {
            let counted = queue_len.get(queue).copied().unwrap_or(0);
            ensure!(*len == counted, Structure, "queue {queue} says {len} and holds {counted}");
        }
        self.check_waiting(assigned)?;
        self.check_sessions()?;
        self.check_overlap()?;
        self.check_ended(assigned)?;
        let followed: usize = self.followed.values().map(std::collections::BTreeSet::len).sum();
        ensure!(followed == follows, Structure, "{follows} followers, {followed} followed");
        Ok(())
    }

    fn check_assigned(&self, task: &Task, token: LeaseToken) -> Result<(), Violation> {
        let id = task.spec.id;
        ensure!(self.tokens.get(&token) == Some(&id), Structure, "token {token} does not lead to task {id}");
        let State::Assigned { session, .. } = task.state else { return Ok(()) };
        let sessions = self.sessions.values().filter(|s| s.tokens.contains_key(&token));
        let orphaned = self.orphans.values().flat_map(|o| &o.attempts).filter(|o| o.token == token).count();
        let mut held_by = sessions.map(|s| s.id).collect::<Vec<_>>();
        ensure!(
            held_by.len() + orphaned == 1,
            Structure,
            "token {token} is in {} places",
            held_by.len() + orphaned
        );
        if let Some(holder) = held_by.pop() {
            ensure!(
                holder == session,
                Structure,
                "token {token} is held by {holder}, its task says {session}"
            );
            let holder = &self.sessions[&holder];
            ensure!(
                holder.offers(&task.spec.queue, &task.spec.model),
                Structure,
                "{} works on model {} of queue {} without offering it",
                holder.info.name,
                task.spec.model,
                task.spec.queue
            );
            ensure!(task.node.as_ref() == Some(&holder.node), Structure, "task {id} names another node");
            let timed = holder.is_unanswered(token);
            ensure!(
                timed != task.accepted,
                Structure,
                "task {id}: accepted {}, accept timer {timed}",
                task.accepted
            );
        } else {
            ensure!(task.accepted, Structure, "an orphan was never accepted: task {id}");
            ensure!(
                !self.sessions.contains_key(&session),
                Structure,
                "task {id} is an orphan of a live session"
            );
        }
        Ok(())
    }

    fn check_waiting(&self, assigned: usize) -> Result<(), Violation> {
        let mut waiting = 0;
        for ((queue, model), ids) in &self.waiting {
            waiting += ids.len();
            ensure!(ids.len() > 0, Structure, "an empty index is kept for {queue}/{model}");
            for id in ids.ids() {
                let Some(task) = self.tasks.get(&id) else {
                    return Err(Violation {
                        kind: Kind::Structure,
                        what: format!("{id} waits and is unknown"),
                    });
                };
                ensure!(
                    task.spec.queue == *queue && task.spec.model == *model,
                    Structure,
                    "task {id} waits elsewhere"
                );
                ensure!(
                    matches!(task.state, State::Queued { not_before_ms } if not_before_ms <= self.clock.elapsed_ms()),
                    Structure,
                    "task {id} waits and is {:?}",
                    task.state
                );
            }
        }
        for (at, id) in &self.delayed {
            let state = self.tasks.get(id).map(|t| &t.state);
            ensure!(
                state == Some(&State::Queued { not_before_ms: *at }),
                Structure,
                "task {id} is delayed and {state:?}"
            );
        }
        let sum = waiting + self.delayed.len() + assigned;
        ensure!(
            sum == self.tasks.len(),
            Structure,
            "{waiting} wait, {} are delayed, {assigned} assigned of {} tasks",
            self.delayed.len(),
            self.tasks.len()
        );
        Ok(())
    }

    fn check_sessions(&self) -> Result<(), Violation> {
        for (i, session) in self.sessions.values().enumerate() {
            ensure!(
                session.given <= session.granted,
                Structure,
                "{} was given {} of {} credits",
                session.info.name,
                session.given,
                session.granted
            );
            ensure!(
                session.granted <= session.given + u64::from(session.slots) + u64::from(session.overlap),
                Structure,
                "{} was granted more than its slots and overlap",
                session.info.name
            );
            let mut attempts_in_order = session.attempts_in_order();
            attempts_in_order.sort_unstable();
            ensure!(
                attempts_in_order.iter().eq(session.tokens.keys()),
                Structure,
                "{}: its line is {attempts_in_order:?}",
                session.info.name
            );
            let twin = self.sessions.values().skip(i + 1).find(|s| s.node == session.node);
            ensure!(twin.is_none(), Structure, "two live sessions are named {}", session.info.name);
            ensure!(
                !self.orphans.contains_key(&session.node),
                Structure,
                "{} is live and has orphans",
                session.info.name
            );
            for token in session.tokens.keys() {
                let live = self.tokens.get(token).is_some_and(|id| self.tasks.contains_key(id));
                ensure!(live, Structure, "{} holds token {token} of no live task", session.info.name);
            }
        }
        Ok(())
    }

    /// No task waits behind a busy node while a fitting slot of another is idle, unless it was asked for or that
    /// slot will be taken by one that was.
    fn check_overlap(&self) -> Result<(), Violation> {
        if let Some(what) = &self.wrong {
            return Err(Violation { kind: Kind::Waits, what: what.clone() });
        }
        let dead = self.isolated.iter().find(|id| !self.tasks.contains_key(*id));
        ensure!(dead.is_none(), Structure, "{dead:?} has ended and is still isolated");
        let waiting = self.waiting_on_nodes();
        for waits in waiting.iter().filter(|w| !w.recalled) {
            for idle in self.sessions.values().filter(|s| self.can_take(s) && s.idle_slots() > 0) {
                if !self.may_be_given(&self.tasks[&waits.task], idle) {
                    continue;
                }
                let promised = waiting.iter().filter(|w| w.recalled && self.fits(&self.tasks[&w.task], idle));
                ensure!(
                    promised.count() as u64 >= idle.idle_slots(),
                    Waits,
                    "task {} waits for a slot while {} is idle",
                    waits.task,
                    idle.info.name
                );
            }
        }
        Ok(())
    }

    /// Called with every assignment just before it: no better task waits for this session, and overlap is used where no
    /// fitting slot is idle.
    pub(crate) fn check_choice(&mut self, id: TaskId, chosen: SessionId) {
        let (task, session) = (&self.tasks[&id], &self.sessions[&chosen]);
        let rank = self.rank(task);
        let waits = |other: &&Task| {
            (&other.spec.queue, &other.spec.model) == (&task.spec.queue, &task.spec.model)
                && matches!(other.state, State::Queued { not_before_ms } if not_before_ms <= self.clock.elapsed_ms())
                && !self.delayed.iter().any(|(_, id)| *id == other.spec.id)
        };
        let is_better = |other: &&Task| {
            let waits_for_unused = self.isolated.contains(&other.spec.id) && !session.is_unused();
            self.rank(other) < rank && !other.avoid.contains(&session.node) && !waits_for_unused
        };
        if let Some(better) = self.tasks.values().filter(waits).find(is_better) {
            self.wrong
                .get_or_insert(format!("task {id} is served before {}, which is better", better.spec.id));
            return;
        }
        if session.granted - session.given > u64::from(session.overlap) {
            return;
        }
        let idle = self.sessions.values().find(|s| {
            let first = s.granted.checked_sub(s.given + u64::from(s.overlap)).is_some_and(|n| n > 0);
            first && self.can_take(s) && self.may_be_given(task, s)
        });
        if let Some(idle) = idle {
            let what =
                format!("task {id} was given to busy {} while {} is idle", session.info.name, idle.info.name);
            self.wrong.get_or_insert(what);
        }
    }

    fn check_ended(&self, assigned: usize) -> Result<(), Violation> {
        let expiries: usize = self.expiries.values().map(std::collections::BTreeSet::len).sum();
        ensure!(
            expiries == self.ended.len(),
            Structure,
            "{expiries} ends of retention for {} ended tasks",
            self.ended.len()
        );
        let dead = self.ended.values().filter(|ended| ended.dead.is_some()).count() as u64;
        let figures = self.metrics_snapshot();
        ensure!(
            figures.dead == dead,
            Structure,
            "{} dead letters are counted, {dead} are there",
            figures.dead
        );
        let running: u64 = figures.queues.values().map(|queue| queue.running).sum();
        ensure!(running == assigned as u64, Structure, "{running} tasks run, {assigned} are assigned");
        let mut tokens = assigned;
        for (id, ended) in &self.ended {
            ensure!(ended.status.is_terminal(), Structure, "task {id} ended as {}", ended.status);
            if let Some(token) = ended.token {
                tokens += 1;
                ensure!(
                    self.tokens.get(&token) == Some(id),
                    Structure,
                    "token {token} does not lead to {id}"
                );
            }
            ensure!(!self.tombstones.contains(*id), Structure, "task {id} has ended and has a tombstone");
        }
        ensure!(
            self.tokens.len() == tokens,
            Structure,
            "{} tokens are known, {tokens} are in use",
            self.tokens.len()
        );
        let (ids, in_order) = self.tombstones.len();
        ensure!(ids == in_order, Structure, "{ids} tombstones, {in_order} in order");
        self.check_usage()
    }

    /// What is counted of the bounds is what is there.
    fn check_usage(&self) -> Result<(), Violation> {
        let known = self.uploads.ids().find(|id| self.knows(**id) || self.tombstones.contains(**id));
        ensure!(known.is_none(), Structure, "{known:?} is known, and inputs are reserved for it");
        let (uploads, reserved) = (self.uploads.bytes(), self.usage.reserved_bytes());
        ensure!(reserved == uploads, Structure, "{reserved} bytes are reserved for uploads of {uploads}");
        let held = (self.tasks.len() + self.uploads.len()) as u64;
        ensure!(self.usage.held() == held, Structure, "{} tasks are counted of {held}", self.usage.held());
        let live = self.tasks.values().map(|task| task.spec.input_bytes()).sum::<u64>();
        let kept = self.ended.values().map(crate::core::FinishedTask::kept_bytes).sum::<u64>();
        let (counted, there) = (self.usage.spool_bytes(), live + kept + uploads);
        ensure!(counted == there, Structure, "{counted} bytes are counted in the spool, {there} are there");
        Ok(())
    }
}
