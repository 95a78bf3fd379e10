//! Queued tasks: those that wait for a node, by queue and model, and those whose delay is not over.

use std::collections::{BTreeMap, BTreeSet};

use lamagrid_domain::{ModelName, Owner, QueueName, TaskId};

use super::fair_queue::FairQueue;
use super::model_queue::{Evictable, ModelQueue, Rank};
use super::task::Task;
use crate::core::policy::needs::Demand;

/// How often tasks that no node can do are looked for.
const LOOK_EVERY_MS: u64 = 1_000;

/// A model of a queue.
type Key = (QueueName, ModelName);

/// All queued tasks.
///
/// Invariant: each is listed once, as waiting or as delayed, and counted in its queue and for its owner.
#[derive(Debug)]
pub(crate) struct ReadyQueue {
    waiting: BTreeMap<Key, ModelQueue>,
    /// Those of them that nodes of other queues may take, too, by these queues.
    spilled: BTreeMap<QueueName, BTreeMap<Key, ModelQueue>>,
    /// By the instant at which they may run.
    delayed: BTreeSet<(u64, TaskId)>,
    /// Waiting and delayed tasks per queue.
    lengths: BTreeMap<QueueName, u64>,
    fair_queue: FairQueue,
    /// Since when no node serves a model for which tasks wait.
    unserved: BTreeMap<Key, u64>,
    /// Since when no node that serves their model can do these tasks.
    misfits: BTreeMap<TaskId, u64>,
    /// When they were looked for last.
    looked_ms: u64,
}

/// A list of waiting tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listed<'a> {
    /// All of a queue.
    Waiting,
    /// Those that nodes of this other queue may take.
    SpilledTo(&'a QueueName),
}

fn key(task: &Task) -> Key {
    (task.spec().queue.clone(), task.spec().model.clone())
}

impl ReadyQueue {
    /// Knows these queues from the start; those of recovered tasks are added.
    pub(crate) fn new<'a>(queues: impl Iterator<Item = &'a QueueName>) -> Self {
        Self {
            waiting: BTreeMap::new(),
            spilled: BTreeMap::new(),
            delayed: BTreeSet::new(),
            lengths: queues.map(|queue| (queue.clone(), 0)).collect(),
            fair_queue: FairQueue::default(),
            unserved: BTreeMap::new(),
            misfits: BTreeMap::new(),
            looked_ms: 0,
        }
    }

    /// A task was accepted: its tag orders it among the tasks of its owner.
    pub(crate) fn set_tag(&mut self, task: &mut Task) {
        task.set_tag(self.fair_queue.next_tag(task.spec()));
    }

    /// Lists a queued task, as waiting or as delayed.
    pub(crate) fn enter(&mut self, task: &mut Task, clock_ms: u64) {
        task.enter_queue(clock_ms);
        let not_before_ms = task.not_before_ms().expect("only queued tasks are listed");
        *self.lengths.entry(task.spec().queue.clone()).or_default() += 1;
        if not_before_ms > clock_ms {
            self.delayed.insert((not_before_ms, task.id()));
        } else {
            self.waiting.entry(key(task)).or_default().insert(task);
            self.fair_queue.task_waits(task.spec(), task.priority());
            self.list_spilled(task);
        }
    }

    /// Nodes of another queue may take a queued task, too.
    pub(crate) fn spill(&mut self, task: &mut Task, to: QueueName) {
        if task.not_before_ms().is_some_and(|at| !self.delayed.contains(&(at, task.id()))) {
            self.spilled.entry(to.clone()).or_default().entry(key(task)).or_default().insert(task);
        }
        task.add_spilled_to(to);
    }

    fn list_spilled(&mut self, task: &Task) {
        for to in task.spilled_to() {
            self.spilled.entry(to.clone()).or_default().entry(key(task)).or_default().insert(task);
        }
    }

    fn unlist_spilled(&mut self, task: &Task) {
        for to in task.spilled_to() {
            let Some(by_model) = self.spilled.get_mut(to) else { continue };
            let key = key(task);
            if let Some(spilled) = by_model.get_mut(&key) {
                spilled.remove(task);
                if spilled.is_empty() {
                    by_model.remove(&key);
                }
            }
            if by_model.is_empty() {
                self.spilled.remove(to);
            }
        }
    }

    /// Removes a queued task. False if it is not queued.
    pub(crate) fn leave(&mut self, task: &mut Task, clock_ms: u64) -> bool {
        let Some(not_before_ms) = task.not_before_ms() else { return false };
        task.leave_queue(clock_ms);
        self.unlist_spilled(task);
        let key = key(task);
        if let Some(waiting) = self.waiting.get_mut(&key) {
            if waiting.remove(task) {
                self.fair_queue.task_left(task.spec(), task.priority());
            }
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
        }
        self.delayed.remove(&(not_before_ms, task.id()));
        if let Some(length) = self.lengths.get_mut(&key.0) {
            *length -= 1;
        }
        true
    }

    /// Raises the priority of a queued task by one, which moves it among the others.
    pub(crate) fn raise(&mut self, task: &mut Task) {
        let waiting = self.waiting.get_mut(&key(task));
        let listed_in = waiting.and_then(|waiting| waiting.remove(task).then_some(waiting));
        if listed_in.is_none() {
            return task.raise_priority();
        }
        self.fair_queue.task_left(task.spec(), task.priority());
        self.unlist_spilled(task);
        task.raise_priority();
        self.waiting.entry(key(task)).or_default().insert(task);
        self.fair_queue.task_waits(task.spec(), task.priority());
        self.list_spilled(task);
    }

    /// A task is given to a node: the clock of its owner moves on.
    pub(crate) fn task_dispatched(&mut self, task: &Task) {
        self.fair_queue.task_dispatched(task.spec(), task.priority(), task.tag());
    }

    /// A task whose delay is over.
    pub(crate) fn due_delay(&self, clock_ms: u64) -> Option<TaskId> {
        self.delayed.first().filter(|(at, _)| *at <= clock_ms).map(|(_, id)| *id)
    }

    /// Waiting and delayed tasks of a queue; `None` if the queue is unknown.
    pub(crate) fn length(&self, queue: &QueueName) -> Option<u64> {
        self.lengths.get(queue).copied()
    }

    pub(crate) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.lengths.keys()
    }

    /// When a task is served among others, at this moment.
    pub(crate) fn rank(&self, task: &Task) -> Rank {
        let spec = task.spec();
        Rank::of(task, self.fair_queue.virtual_start(&spec.queue, task.priority(), &spec.owner))
    }

    /// A lower bound on the demands of a model's waiting tasks; `None` without any.
    pub(crate) fn smallest(&self, kind: Listed<'_>, queue: &QueueName, model: &ModelName) -> Option<&Demand> {
        self.listed(kind, queue, model)?.smallest()
    }

    /// An upper bound on them.
    pub(crate) fn largest(&self, kind: Listed<'_>, queue: &QueueName, model: &ModelName) -> Option<&Demand> {
        self.listed(kind, queue, model)?.largest()
    }

    fn listed(&self, kind: Listed<'_>, queue: &QueueName, model: &ModelName) -> Option<&ModelQueue> {
        let by_model = match kind {
            Listed::Waiting => &self.waiting,
            Listed::SpilledTo(to) => self.spilled.get(to)?,
        };
        by_model.get(&(queue.clone(), model.clone()))
    }

    /// The first task of a model that `may_have` accepts, of those that `can_run_now`.
    pub(crate) fn first(
        &self,
        kind: Listed<'_>,
        queue: &QueueName,
        model: &ModelName,
        can_run_now: impl Fn(TaskId) -> bool,
        may_have: impl Fn(TaskId) -> bool,
    ) -> Option<Rank> {
        let waiting = self.listed(kind, queue, model)?;
        let start_of = |priority, owner: &Owner| self.fair_queue.virtual_start(queue, priority, owner);
        waiting.first(start_of, can_run_now, may_have)
    }

    /// About how many tasks of the same queue are served before this one.
    pub(crate) fn position(&self, task: &Task) -> u64 {
        self.ahead_of(task).map(|(_, ahead)| ahead).sum()
    }

    /// The same by model.
    pub(crate) fn ahead_of(&self, task: &Task) -> impl Iterator<Item = (&ModelName, u64)> {
        let of_queue = self.waiting.iter().filter(|((queue, _), _)| *queue == task.spec().queue);
        of_queue.map(|((_, model), waiting)| (model, waiting.ahead_of(task)))
    }

    /// Whether tasks of a model wait in any queue.
    pub(crate) fn has_waiting(&self, model: &ModelName) -> bool {
        self.waiting.keys().any(|(_, each)| each == model)
    }

    /// The waiting tasks of each queue and model.
    pub(crate) fn by_model(&self) -> impl Iterator<Item = (&QueueName, &ModelName, &ModelQueue)> {
        self.waiting.iter().map(|((queue, model), waiting)| (queue, model, waiting))
    }

    /// Whether tasks that no node can do are looked for now: once a second, for queues may be long.
    pub(crate) fn begin_look(&mut self, clock_ms: u64) -> bool {
        let is_due = clock_ms.saturating_sub(self.looked_ms) >= LOOK_EVERY_MS;
        if is_due {
            self.looked_ms = clock_ms;
        }
        is_due
    }

    /// Replaces the tasks that no node can do, as they were found now. Returns since when each is one.
    pub(crate) fn set_misfits(&mut self, found: &[TaskId], clock_ms: u64) -> &BTreeMap<TaskId, u64> {
        let before = std::mem::take(&mut self.misfits);
        let since = |id: &TaskId| (*id, before.get(id).copied().unwrap_or(clock_ms));
        self.misfits = found.iter().map(since).collect();
        &self.misfits
    }

    /// Waiting tasks of a lower priority, of one queue and owner or of all: up to `most` of each model, in the order in
    /// which they are evicted.
    pub(crate) fn evictable(
        &self,
        priority: i8,
        queue: Option<&QueueName>,
        owner: Option<&Owner>,
        most: usize,
    ) -> Vec<Evictable> {
        let queues = self.waiting.iter().filter(|((each, _), _)| queue.is_none_or(|queue| queue == each));
        let mut lower: Vec<_> =
            queues.flat_map(|(_, waiting)| waiting.below(priority, owner).take(most)).collect();
        lower.sort_unstable_by_key(|task| (task.priority, std::cmp::Reverse(task.seq)));
        lower
    }

    /// Waiting tasks of each model that no node has served for `wait_ms`. Called on every tick.
    pub(crate) fn unserved_for(
        &mut self,
        wait_ms: u64,
        clock_ms: u64,
        is_served: impl Fn(&QueueName, &ModelName) -> bool,
    ) -> Vec<TaskId> {
        let mut unserved = BTreeMap::new();
        let mut over = Vec::new();
        for (key @ (queue, model), waiting) in &self.waiting {
            if is_served(queue, model) {
                continue;
            }
            let since = self.unserved.get(key).copied().unwrap_or(clock_ms);
            unserved.insert(key.clone(), since);
            if clock_ms.saturating_sub(since) >= wait_ms {
                over.extend(waiting.ids());
            }
        }
        self.unserved = unserved;
        over
    }

    /// Since when no node serves the model of a waiting task, as the last tick saw it.
    pub(crate) fn unserved_since(&self, task: &Task) -> Option<u64> {
        self.unserved.get(&key(task)).copied()
    }

    #[cfg(test)]
    pub(crate) fn is_delayed(&self, task: &Task) -> bool {
        task.not_before_ms().is_some_and(|at| self.delayed.contains(&(at, task.id())))
    }

    /// Every queued task of these is listed where it belongs, and nothing else is.
    #[cfg(test)]
    pub(crate) fn check<'a>(
        &self,
        tasks: impl Iterator<Item = &'a Task>,
        clock_ms: u64,
    ) -> Result<(), String> {
        let mut lengths: BTreeMap<_, u64> = self.lengths.keys().map(|queue| (queue, 0)).collect();
        let (mut waiting, mut delayed) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeSet::new());
        let mut spilled = BTreeSet::new();
        for task in tasks {
            let Some(at) = task.not_before_ms() else { continue };
            *lengths.entry(&task.spec().queue).or_default() += 1;
            if self.delayed.contains(&(at, task.id())) {
                delayed.insert((at, task.id()));
            } else {
                invariant!(task.is_ready(clock_ms), "task {} waits and is {:?}", task.id(), task.state());
                waiting.entry(key(task)).or_default().insert(task.id());
                spilled.extend(task.spilled_to().iter().map(|to| (to.clone(), task.id())));
            }
        }
        invariant!(self.delayed == delayed, "{:?} are listed as delayed of {delayed:?}", self.delayed);
        let listed: BTreeMap<_, BTreeSet<_>> =
            self.waiting.iter().map(|(key, model)| (key.clone(), model.ids().collect())).collect();
        invariant!(listed == waiting, "{listed:?} are listed as waiting of {waiting:?}");
        let counted: BTreeMap<_, u64> = self.lengths.iter().map(|(queue, length)| (queue, *length)).collect();
        invariant!(counted == lengths, "queues count {counted:?} tasks of {lengths:?}");
        let lists = self.spilled.values().flat_map(BTreeMap::values);
        self.waiting.values().chain(lists).try_for_each(ModelQueue::check)?;
        let by_queue =
            self.spilled.iter().flat_map(|(to, by_model)| by_model.values().map(move |of| (to, of)));
        let listed: BTreeSet<_> =
            by_queue.flat_map(|(to, of)| of.ids().map(move |id| (to.clone(), id))).collect();
        invariant!(listed == spilled, "{listed:?} are listed as spilled of {spilled:?}");
        let waiting: usize = waiting.values().map(BTreeSet::len).sum();
        let counted = self.fair_queue.waiting();
        invariant!(counted == waiting, "owners have {counted} waiting tasks of {waiting}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::TaskSpec;

    use super::*;
    use crate::core::tests::{spec, task};

    /// A queue, and tasks of these priorities that were accepted in this order.
    fn accepted(priorities: &[i8]) -> (ReadyQueue, Vec<Task>) {
        let mut ready = ReadyQueue::new([spec(0).queue].iter());
        let of = |(n, priority): (usize, &i8)| task(TaskSpec { priority: *priority, ..spec(n as u8) });
        let mut tasks: Vec<_> = priorities.iter().enumerate().map(of).collect();
        for task in &mut tasks {
            ready.set_tag(task);
            ready.enter(task, 0);
        }
        ready.check(tasks.iter(), 0).unwrap();
        (ready, tasks)
    }

    fn first(ready: &ReadyQueue) -> Option<TaskId> {
        let TaskSpec { queue, model, .. } = spec(0);
        ready.first(Listed::Waiting, &queue, &model, |_| true, |_| true).map(|rank| rank.task())
    }

    #[test]
    fn a_raised_task_overtakes_and_a_task_that_left_is_listed_nowhere() {
        let (mut ready, mut tasks) = accepted(&[-1, -1]);
        assert_eq!(first(&ready), Some(tasks[0].id()));
        ready.raise(&mut tasks[1]);
        ready.check(tasks.iter(), 0).unwrap();
        assert_eq!(first(&ready), Some(tasks[1].id()));
        assert!(ready.leave(&mut tasks[1], 5));
        ready.check(tasks[..1].iter(), 5).unwrap();
        assert_eq!((first(&ready), ready.length(&spec(0).queue)), (Some(tasks[0].id()), Some(1)));
    }

    #[test]
    fn a_delayed_task_counts_in_its_queue_and_is_not_served() {
        let (mut ready, mut tasks) = accepted(&[0]);
        let task = &mut tasks[0];
        assert!(ready.leave(task, 0));
        let token = lamagrid_domain::LeaseToken::from_bytes([1; 16]);
        task.restore(token, &"n".parse().unwrap(), crate::core::state::now::Now { mono_ms: 0, wall_ms: 0 });
        assert!(!ready.leave(task, 0), "assigned tasks are not queued");
        task.requeue(50, Vec::new());
        ready.enter(task, 10);
        assert_eq!((first(&ready), ready.due_delay(49), ready.due_delay(50)), (None, None, Some(task.id())));
        assert_eq!(ready.length(&spec(0).queue), Some(1));
        ready.check(tasks.iter(), 10).unwrap();
    }

    #[test]
    fn a_model_counts_as_unserved_from_the_first_look_without_a_node() {
        let (mut ready, tasks) = accepted(&[0]);
        assert_eq!(ready.unserved_for(10, 100, |_, _| false), []);
        assert_eq!(ready.unserved_for(10, 110, |_, _| false), [tasks[0].id()]);
        assert_eq!(ready.unserved_for(10, 120, |_, _| true), []);
        assert_eq!(ready.unserved_for(10, 130, |_, _| false), []);
    }
}
