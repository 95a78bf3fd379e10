//! Takes tasks back from busy nodes because another node has become idle.
//!
//! A task on overlap waits for a slot of its node. It was given there while no fitting slot was idle. Once one is, and
//! nothing else waits for it, the node is asked to give the task back. If no slot has begun with it, it comes back as
//! a cancelled attempt, keeps its rank and goes to the idle node; else it continues where it is.
//! Does not: recall from a suspect session, which would not answer; its lease decides.

use std::collections::BTreeMap;

use lamagrid_domain::{LeaseToken, SessionId, TaskId};

use super::placement::Placement;
use crate::core::state::dispatch_order::Unbegun;
use crate::core::state::model_queue::Rank;
use crate::core::state::session::Session;

/// A task that a node accepted and no slot has begun with.
pub(crate) struct WaitsForSlot {
    /// Its node was asked already; the answer is awaited.
    pub(crate) recalled: bool,
    rank: Rank,
    pub(crate) task: TaskId,
    token: LeaseToken,
    /// `None` if its session ended and its node may come back for it.
    holder: Option<SessionId>,
}

/// An attempt that its session is asked to give back.
pub(crate) struct Recall {
    pub(crate) session: SessionId,
    pub(crate) token: LeaseToken,
}

/// How idle slots are filled.
#[derive(Default)]
pub(crate) struct RecallPlan {
    pub(crate) recalls: Vec<Recall>,
    /// An orphan that is taken without asking. It may go to another slot than the one meant for it, so the plan has to
    /// be made again afterwards.
    pub(crate) orphan: Option<LeaseToken>,
}

/// Finds tasks that idle slots could begin with.
pub(crate) fn plan(placement: Placement<'_>) -> RecallPlan {
    let mut plan = RecallPlan::default();
    let sessions = placement.sessions.values();
    let able = sessions.filter(|session| session.idle_slots() > 0 && placement.can_take(session));
    let mut idle: BTreeMap<_, _> = able.map(|session| (session.id(), session.idle_slots())).collect();
    if idle.is_empty() {
        return plan;
    }
    let mut waiting = waiting_on_nodes(placement);
    // Recalled tasks have their slots already; each other one takes a slot of its own.
    waiting.sort_unstable_by(|a, b| (!a.recalled, &a.rank).cmp(&(!b.recalled, &b.rank)));
    for waits in waiting {
        let task = &placement.tasks[waits.task];
        let best = placement.best_idle_for(task, idle.keys().copied());
        let Some(left) = best.and_then(|session| idle.get_mut(&session)) else { continue };
        *left -= 1;
        idle.retain(|_, left| *left > 0);
        match waits.holder {
            None => {
                plan.orphan = Some(waits.token);
                return plan;
            }
            Some(session) if !waits.recalled => plan.recalls.push(Recall { session, token: waits.token }),
            Some(_) => {}
        }
    }
    plan
}

/// Tasks that wait for a slot of their node. Those that it has not accepted are still on their way.
pub(crate) fn waiting_on_nodes(placement: Placement<'_>) -> Vec<WaitsForSlot> {
    let asks = |session: &&Session| session.overlap() > 0 && !placement.is_suspect(session);
    let on_overlap =
        placement.sessions.values().filter(asks).flat_map(|session| {
            session.on_overlap().into_iter().map(|unbegun| (Some(session.id()), unbegun))
        });
    let left_behind = placement.leases.orphans().filter(|orphan| orphan.waited);
    let left_behind = left_behind.map(|orphan| (None, Unbegun { token: orphan.token, recalled: false }));
    on_overlap
        .chain(left_behind)
        .filter_map(|(holder, Unbegun { token, recalled })| {
            let id = placement.leases.task_of(token)?;
            let task = placement.tasks.get(id).filter(|task| task.is_accepted())?;
            Some(WaitsForSlot { recalled, rank: placement.ready.rank(task), task: id, token, holder })
        })
        .collect()
}
