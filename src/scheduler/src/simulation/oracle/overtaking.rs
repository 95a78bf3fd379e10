//! Checks the order in which tasks are given to nodes, and that one which needs most of a node is not overtaken for ever.

use super::*;

/// The nodes that are kept free for waiting tasks.
pub(super) struct KeptFree {
    /// A task is overtaken for at most this long.
    held_up_ms: u64,
    /// When the last step ended.
    sessions: BTreeMap<SessionId, TaskId>,
}

impl KeptFree {
    pub(super) fn new(config: &SchedulerConfig) -> Self {
        Self { held_up_ms: config.warm_first_ms, sessions: BTreeMap::new() }
    }

    /// Whether a session other than this one is kept free for a task, or was before this step.
    fn has_other(&self, task: TaskId, session: SessionId, core: View<'_>) -> bool {
        let before = self.sessions.iter().filter(|(_, kept_for)| **kept_for == task).map(|(kept, _)| *kept);
        core.kept_free_for(task).into_iter().chain(before).any(|kept| kept != session)
    }
}

/// A task that is given to a session, and the other tasks there.
pub(super) struct Given<'a> {
    pub(super) id: TaskId,
    pub(super) session: SessionId,
    pub(super) node: &'a NodeId,
    pub(super) beside: &'a [&'a TaskSpec],
    pub(super) is_isolated: bool,
    /// The other queue whose lane carries it.
    pub(super) spilled_to: Option<&'a QueueName>,
    pub(super) was_unused: bool,
}

/// Whether one task of an owner is served before another one. Between owners their turns decide: see
/// `Core::check_choice`.
fn is_before(one: TaskId, other: TaskId, core: View<'_>) -> bool {
    let (Some(one), Some(other)) = (core.task(one), core.task(other)) else { return false };
    one.priority() > other.priority()
        || one.priority() == other.priority()
            && (&one.spec().queue, &one.spec().owner) == (&other.spec().queue, &other.spec().owner)
            && (one.tag(), one.seq()) < (other.tag(), other.seq())
}

impl Oracle {
    /// No better task of the same queue and model could have gone there; and those that only lack room there are not
    /// overtaken once they have waited for long, unless another node is kept free for them.
    pub(super) fn check_order(&self, given: &Given<'_>, core: View<'_>) -> Result<(), Violation> {
        let Given { id, session, node, beside, is_isolated, spilled_to, was_unused } = *given;
        let (Some(target), Some(task)) = (self.sessions.get(&session), self.live.get(&id)) else {
            return Ok(());
        };
        for (other, waits) in &self.live {
            let is_waiting = matches!(waits.state, State::Queued { .. }) && !waits.backs_off;
            let is_comparable = waits.model == task.model && waits.queue == task.queue;
            if !is_waiting || !is_comparable || !is_before(*other, id, core) {
                continue;
            }
            // A task may shun this node; the core alone knows.
            let Some(better) = core.task(*other).filter(|better| {
                core.is_unburdened(better)
                    && spilled_to.is_none_or(|to| better.spilled_to().contains(to))
                    && !better.avoids(node)
            }) else {
                continue;
            };
            if self.routing.fits(&waits.spec, beside, &target.info) {
                let waits_for_unused = waits.isolated && !was_unused;
                ensure!(waits_for_unused, Order, "task {id} was served before {other}, which is better");
                continue;
            }
            let is_overtaken = self.routing.fits(&waits.spec, &[], &target.info)
                && better.not_before_ms().is_some()
                && better.waited_ms(core.elapsed_ms()) >= self.kept_free.held_up_ms
                && !waits.isolated
                && !is_isolated;
            ensure!(
                !is_overtaken || self.kept_free.has_other(*other, session, core),
                Order,
                "task {id} was given to {node} before {other}, which needs more of it and waits for long"
            );
        }
        let kept_for = self.kept_free.sessions.get(&session).filter(|kept_for| **kept_for != id);
        if let Some(kept_for) = kept_for.filter(|kept_for| core.kept_free_for(**kept_for) == Some(session)) {
            let may_go = is_isolated || core.task(id).is_none() || is_before(id, *kept_for, core);
            ensure!(may_go, Order, "task {id} was given to {node}, which is kept free for {kept_for}");
        }
        Ok(())
    }

    /// A step ended.
    pub(super) fn remember_kept_free(&mut self, core: View<'_>) {
        let kept = self.live.keys().filter_map(|id| core.kept_free_for(*id).map(|session| (session, *id)));
        let kept: BTreeMap<_, _> = kept.collect();
        let is_new = kept.iter().any(|(session, id)| self.kept_free.sessions.get(session) != Some(id));
        self.kept_free.sessions = kept;
        if is_new {
            self.note("kept free");
        }
    }
}
