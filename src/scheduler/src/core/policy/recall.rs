//! What is taken back from a busy node because another one has become idle.
//!
//! A task on overlap waits for a slot of its node. It was given there while no fitting slot was idle; once one is and
//! nothing else waits for it, the node is asked to give the task back. If no slot has begun with it, it comes back as
//! a cancelled attempt, keeps its place in the queue and goes to the idle node; else it goes on where it is.
//! Does not: take anything from a session that is suspect, which would not answer; its lease decides.

use std::collections::BTreeMap;

use lamagrid_domain::{LeaseToken, SessionId, TaskId};
use lamagrid_protocol::message::Action;

use crate::core::Core;
use crate::core::policy::retry::Loss;
use crate::core::state::model_queue::Rank;
use crate::core::state::task::Task;

/// A task that a node accepted and no slot has begun with.
pub(crate) struct Waits {
    /// Asked for already; its answer is awaited.
    pub(crate) recalled: bool,
    rank: Rank,
    pub(crate) task: TaskId,
    token: LeaseToken,
    /// None if its session ended and its node may come back for it.
    holder: Option<SessionId>,
}

impl Core {
    /// After every input: no idle slot is left without a task that waits for another node's.
    pub(crate) fn recall_for_idle(&mut self) {
        // What is taken at once may go to another slot than the one it was meant for, hence again.
        while let Some(orphan) = self.recall_once() {
            self.forget_orphan(orphan);
            self.requeue_lost(orphan, Loss::GivenBack);
        }
    }

    pub(crate) fn forget_orphan(&mut self, token: LeaseToken) {
        self.leases.forget_orphan(token);
    }

    /// Asks for what idle slots could begin with. Gives an attempt that can be taken without asking.
    fn recall_once(&mut self) -> Option<LeaseToken> {
        let can_take = self.sessions.values().filter(|s| s.idle_slots() > 0 && self.can_take(s));
        let mut idle: BTreeMap<_, _> = can_take.map(|s| (s.id(), s.idle_slots())).collect();
        if idle.is_empty() {
            return None;
        }
        let mut waiting = self.waiting_on_nodes();
        // Whatever was asked for has its slot; each other one takes a slot of its own.
        waiting.sort_unstable_by(|a, b| (!a.recalled, &a.rank).cmp(&(!b.recalled, &b.rank)));
        for waits in waiting {
            let Some(left) = self.best_of(&idle, &self.tasks[waits.task]).and_then(|s| idle.get_mut(&s))
            else {
                continue;
            };
            *left -= 1;
            idle.retain(|_, left| *left > 0);
            match waits.holder {
                None => return Some(waits.token),
                Some(holder) if !waits.recalled => self.recall(holder, waits.token),
                Some(_) => {}
            }
        }
        None
    }

    fn recall(&mut self, holder: SessionId, token: LeaseToken) {
        fault!(self, RecallUnsent => return self.note_recall(holder, token));
        self.command(holder, Action::Recall { token });
    }

    /// Tasks that wait for a slot of the node they were given to. Those that it has not accepted are on their way.
    pub(crate) fn waiting_on_nodes(&self) -> Vec<Waits> {
        let on_overlap =
            self.sessions.values().filter(|s| s.overlap() > 0 && !self.is_suspect(s)).flat_map(|s| {
                s.on_overlap().into_iter().map(|(token, recalled)| (Some(s.id()), token, recalled))
            });
        let left_behind = self.leases.orphans().filter(|o| o.waited);
        on_overlap
            .chain(left_behind.map(|o| (None, o.token, false)))
            .filter_map(|(holder, token, recalled)| {
                let task = self
                    .leases
                    .task_of(token)
                    .and_then(|id| self.tasks.get(id))
                    .filter(|t| t.is_accepted())?;
                Some(Waits { recalled, rank: self.ready.rank(task), task: task.id(), token, holder })
            })
            .collect()
    }

    /// The best of `idle` for a task, as placement sees it.
    fn best_of(&self, idle: &BTreeMap<SessionId, u64>, task: &Task) -> Option<SessionId> {
        let fitting =
            idle.keys().filter_map(|id| self.sessions.get(*id)).filter(|s| self.may_be_given(task, s));
        fitting
            .min_by_key(|s| (!s.has_loaded(&task.spec().model), s.last_assigned_ms(), s.id()))
            .map(|s| s.id())
    }
}
