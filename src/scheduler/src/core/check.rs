//! The invariants of the core after every input: those of each part, and those between parts.

use std::collections::BTreeMap;

use lamagrid_domain::{SessionId, TaskId};

use super::policy::recall;
use super::state::task::{Lease, Task};
use super::{Core, FinishedTask};

/// The structure: each part keeps its invariant, and every task is in exactly one place.
pub(super) fn structure(core: &Core) -> Result<(), String> {
    core.tasks.check()?;
    core.timers.check(core.tasks.values())?;
    core.ready.check(core.tasks.values(), core.clock.elapsed_ms())?;
    core.followers.check(core.tasks.values())?;
    core.leases.check()?;
    core.sessions.check()?;
    let is_queued = |id| core.tasks.get(id).is_some_and(|task| task.not_before_ms().is_some());
    core.reserved.check(is_queued, |session| core.sessions.get(session).is_some())?;
    core.sessions.values().try_for_each(|session| core.placement().check_taken(session))?;
    core.retention.check()?;
    core.admission.check()?;
    core.orders.check()?;
    core.statistics.check()?;
    removed_nodes_have_nothing(core)?;
    core.learned.check()?;
    tasks_are_in_one_place(core)?;
    assigned_tasks_are_held(core)?;
    sessions_hold_live_attempts(core)?;
    tokens_lead_to_their_tasks(core)?;
    bounds_count_what_is_there(core)
}

fn tasks_are_in_one_place(core: &Core) -> Result<(), String> {
    for task in core.tasks.values() {
        let id = task.id();
        invariant!(!core.retention.contains(id), "task {id} lives and has ended");
        invariant!(!core.retention.tombstones().contains(id), "task {id} lives and has a tombstone");
    }
    Ok(())
}

fn removed_nodes_have_nothing(core: &Core) -> Result<(), String> {
    let connected = core.sessions.values().map(|session| session.node());
    let removed =
        connected.chain(core.leases.orphaned_nodes()).find(|node| core.orders.removal_of(node).is_some());
    invariant!(removed.is_none(), "{removed:?} is removed, and has a session or tasks");
    Ok(())
}

fn assigned(core: &Core) -> impl Iterator<Item = (&Task, Lease)> {
    core.tasks.values().filter_map(|task| Some((task, task.lease()?)))
}

fn assigned_tasks_are_held(core: &Core) -> Result<(), String> {
    for (task, Lease { token, session }) in assigned(core) {
        let id = task.id();
        invariant!(core.leases.task_of(token) == Some(id), "token {token} does not lead to task {id}");
        let holders: Vec<_> = core.sessions.values().filter(|s| s.holds(token)).collect();
        let orphaned = core.leases.orphans().filter(|o| o.token == token).count();
        let places = holders.len() + orphaned;
        invariant!(places == 1, "token {token} is in {places} places");
        let Some(holder) = holders.first() else {
            invariant!(task.is_accepted(), "an orphan was never accepted: task {id}");
            let is_live = core.sessions.get(session).is_some();
            invariant!(!is_live, "task {id} is an orphan of a live session");
            continue;
        };
        let name = &holder.info().name;
        invariant!(holder.id() == session, "token {token} is held by {name}, its task says {session}");
        let (queue, model) = (&task.spec().queue, &task.spec().model);
        invariant!(
            holder.service_of(task).is_some() || holder.is_replanned(),
            "{name} works on {model} of {queue} without offering it"
        );
        invariant!(task.node() == Some(holder.node()), "task {id} names another node");
        let timed = holder.is_unanswered(token);
        invariant!(
            timed != task.is_accepted(),
            "task {id}: accepted {}, accept timer {timed}",
            task.is_accepted()
        );
    }
    Ok(())
}

fn sessions_hold_live_attempts(core: &Core) -> Result<(), String> {
    for session in core.sessions.values() {
        let node = session.node();
        invariant!(!core.leases.has_orphans_of(node), "{node} is live and has orphans");
        let stale = session.tokens().find(|token| core.task_of(*token).is_none());
        invariant!(stale.is_none(), "{node} holds token {stale:?} of no live task");
    }
    Ok(())
}

fn tokens_lead_to_their_tasks(core: &Core) -> Result<(), String> {
    let assigned = assigned(core).count();
    let held: usize =
        core.sessions.values().map(|s| s.running()).sum::<usize>() + core.leases.orphans().count();
    invariant!(held == assigned, "{held} tokens are held for {assigned} assigned tasks");
    let mut in_use = assigned;
    for (id, finished) in core.retention.iter() {
        let Some(token) = finished.token else { continue };
        in_use += 1;
        invariant!(core.leases.task_of(token) == Some(*id), "token {token} does not lead to {id}");
    }
    let known = core.leases.len();
    invariant!(known == in_use, "{known} tokens are known, {in_use} are in use");
    let running: u64 = core.metrics_snapshot().queues.values().map(|queue| queue.running).sum();
    invariant!(running == assigned as u64, "{running} tasks run, {assigned} are assigned");
    Ok(())
}

fn bounds_count_what_is_there(core: &Core) -> Result<(), String> {
    let finished = || core.retention.iter().map(|(_, finished)| finished);
    let (dead, counted) = (finished().filter(|f| f.dead.is_some()).count(), core.admission.dead_letters());
    invariant!(counted == dead as u64, "{counted} dead letters are counted, {dead} are there");
    let is_known = |id: &TaskId| core.knows(*id) || core.retention.tombstones().contains(*id);
    let known = core.admission.uploads().ids().find(|id| is_known(id));
    invariant!(known.is_none(), "{known:?} is known, and inputs are reserved for it");
    let held = (core.tasks.len() + core.admission.uploads().len()) as u64;
    invariant!(
        core.admission.unfinished() == held,
        "{} tasks are counted of {held}",
        core.admission.unfinished()
    );
    let live = core.tasks.values().map(|task| task.spec().input_bytes()).sum::<u64>();
    let kept = finished().map(FinishedTask::kept_bytes).sum::<u64>();
    let (counted, there) = (core.admission.spool_bytes(), live + kept + core.admission.uploads().bytes());
    invariant!(counted == there, "{counted} bytes are counted in the spool, {there} are there");
    Ok(())
}

/// No task waits behind a busy node while a fitting slot of another is idle, unless the task was recalled, or recalled
/// tasks will take that slot.
pub(super) fn no_task_waits_beside_an_idle_slot(core: &Core) -> Result<(), String> {
    if let Some(what) = &core.wrong_choice {
        return Err(what.clone());
    }
    let waiting = recall::waiting_on_nodes(core.placement());
    for waits in waiting.iter().filter(|waits| !waits.recalled) {
        for idle in core.sessions.values().filter(|s| core.placement().can_take(s) && s.idle_slots() > 0) {
            if !core.placement().may_be_given(&core.tasks[waits.task], idle) {
                continue;
            }
            let promised =
                waiting.iter().filter(|w| w.recalled && core.placement().fits(&core.tasks[w.task], idle));
            let is_promised = promised.count() as u64 >= idle.idle_slots();
            invariant!(is_promised, "task {} waits for a slot while {} is idle", waits.task, idle.node());
        }
    }
    Ok(())
}

/// Looks at an assignment just before it is made: no better task waits for this session, unless its model has to be
/// loaded and it has not waited for long, and an overlap credit is used
/// only if no fitting slot is idle. Returns the first violation.
pub(super) fn wrong_choice(core: &Core, id: TaskId, chosen: SessionId) -> Option<String> {
    let (task, session) = (&core.tasks[id], core.sessions.get(chosen)?);
    let rank = core.ready.rank(task);
    let placement = core.placement();
    let could_go = |other: &&Task| {
        core.ready.rank(other) < rank
            && other.is_ready(core.clock.elapsed_ms())
            && !core.ready.is_delayed(other)
            && !core.paused.contains(&other.spec().queue)
            && placement.may_be_given(other, session)
    };
    let key = |of: &Task| (of.spec().queue.clone(), of.spec().model.clone());
    // The first of each queue and model.
    let mut firsts: BTreeMap<_, &Task> = BTreeMap::new();
    for better in core.tasks.values().filter(could_go) {
        let first = firsts.entry(key(better)).or_insert(better);
        if core.ready.rank(better) < core.ready.rank(first) {
            *first = better;
        }
    }
    // Only a model in memory goes before others, for a while.
    let may_wait = |other: &Task| {
        key(other) != key(task)
            && session.has_loaded(&task.spec().model)
            && !session.has_loaded(&other.spec().model)
            && other.priority() == task.priority()
            && !core.tasks.is_isolated(other.id())
            && other.waited_ms(core.clock.elapsed_ms()) < core.settings.scheduler.warm_first_ms
    };
    if let Some(better) = firsts.values().find(|other| !may_wait(other)) {
        return Some(format!("task {id} is served before {}, which is better", better.id()));
    }
    if session.idle_slots() > 0 {
        return None;
    }
    let idle = core
        .sessions
        .values()
        .find(|s| s.idle_slots() > 0 && placement.can_take(s) && placement.may_be_given(task, s))?;
    Some(format!("task {id} was given to busy {} while {} is idle", session.node(), idle.node()))
}
