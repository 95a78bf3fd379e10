//! The waiting tasks of one model in one queue, in the order in which they are served.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use lamagrid_domain::{Owner, TaskId};

use super::fair_queue::VirtualStart;
use super::task::Task;
use crate::core::policy::needs::Demand;

/// Tasks of one owner that a session may not have are skipped up to this many per look; others wait for the next look.
const MAX_SKIPPED: usize = 16;
/// Longer queues are not counted through to tell a task its position.
const MAX_COUNTED: usize = 1_000;

/// The order in which tasks are served: by priority, then by the virtual clock of their owner, then by the fair share
/// of their client, then by age. An owner's clock moves on with each dispatched task, so a rank holds only for the
/// moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: Reverse<i8>,
    start: VirtualStart,
    owner: Owner,
    place: Place,
}

impl Rank {
    pub(super) fn of(task: &Task, start: VirtualStart) -> Self {
        let (priority, owner) = (Reverse(task.priority()), task.spec().owner.clone());
        Self { priority, start, owner, place: Place::of(task) }
    }

    pub(crate) fn task(&self) -> TaskId {
        self.place.id
    }

    pub(crate) fn has_priority_of(&self, other: &Self) -> bool {
        self.priority == other.priority
    }
}

/// The order among the tasks of one owner and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    tag: u64,
    seq: u64,
    id: TaskId,
}

impl Place {
    fn of(task: &Task) -> Self {
        Self { tag: task.tag(), seq: task.seq(), id: task.id() }
    }
}

/// A task that can be evicted for a more important one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Evictable {
    pub(crate) priority: i8,
    pub(crate) seq: u64,
    pub(crate) id: TaskId,
}

/// Tasks of one priority, by their owners.
type Owners = BTreeMap<Owner, BTreeSet<Place>>;

/// The waiting tasks, by priority and owner.
///
/// Invariant: no set in it is empty.
#[derive(Debug, Default)]
pub(crate) struct ModelQueue {
    tasks: BTreeMap<Reverse<i8>, Owners>,
    /// At most and at least what each of the tasks needs. They grow apart until the queue becomes empty.
    bounds: Option<(Demand, Demand)>,
}

impl ModelQueue {
    pub(super) fn insert(&mut self, task: &Task) {
        let demand = task.demand();
        let (smallest, largest) = self.bounds.unwrap_or((*demand, *demand));
        self.bounds = Some((smallest.at_most(demand), largest.at_least(demand)));
        let owners = self.tasks.entry(Reverse(task.priority())).or_default();
        match owners.get_mut(&task.spec().owner) {
            Some(places) => _ = places.insert(Place::of(task)),
            None => _ = owners.insert(task.spec().owner.clone(), BTreeSet::from([Place::of(task)])),
        }
    }

    /// False if the task was not there.
    pub(super) fn remove(&mut self, task: &Task) -> bool {
        let Some(owners) = self.tasks.get_mut(&Reverse(task.priority())) else { return false };
        let Some(places) = owners.get_mut(&task.spec().owner) else { return false };
        let was_there = places.remove(&Place::of(task));
        if places.is_empty() {
            owners.remove(&task.spec().owner);
            if owners.is_empty() {
                self.tasks.remove(&Reverse(task.priority()));
            }
        }
        was_there
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// About how many are served before `task`: a long queue is not counted through, and of each other owner as many
    /// are counted as of its own.
    pub(super) fn ahead_of(&self, task: &Task) -> u64 {
        let mut ahead = 0;
        for (priority, owners) in self.tasks.range(..=Reverse(task.priority())) {
            let own = owners.get(&task.spec().owner).filter(|_| priority.0 == task.priority());
            let own_ahead = own.map(|places| {
                let place = Place::of(task);
                let is_last = places.last().is_none_or(|last| *last <= place);
                match places.len() {
                    all if is_last => all - usize::from(places.contains(&place)),
                    all if all > MAX_COUNTED => all,
                    _ => places.range(..place).count(),
                }
            });
            for (owner, places) in owners {
                ahead += match own_ahead {
                    Some(own_ahead) if *owner == task.spec().owner => own_ahead,
                    _ if priority.0 == task.priority() => places.len().min(own_ahead.unwrap_or(0) + 1),
                    _ => places.len(),
                } as u64;
            }
        }
        ahead
    }

    /// The first task that `may_have` accepts, of those that `can_run_now`.
    pub(super) fn first(
        &self,
        start_of: impl Fn(i8, &Owner) -> VirtualStart,
        can_run_now: impl Fn(TaskId) -> bool,
        may_have: impl Fn(TaskId) -> bool,
    ) -> Option<Rank> {
        for (priority, owners) in &self.tasks {
            let mut first: Option<(VirtualStart, &Owner, Place)> = None;
            for (owner, places) in owners {
                let start = start_of(priority.0, owner);
                if first.is_some_and(|(best, ..)| best < start) {
                    continue;
                }
                let runnable = places.iter().filter(|place| can_run_now(place.id));
                let place = runnable.take(MAX_SKIPPED).find(|place| may_have(place.id));
                // Owners come in the order of their names, which decides between two of the same start.
                if let Some(place) = place.filter(|_| first.is_none_or(|(best, ..)| start < best)) {
                    first = Some((start, owner, *place));
                }
            }
            if let Some((start, owner, place)) = first {
                return Some(Rank { priority: *priority, start, owner: owner.clone(), place });
            }
        }
        None
    }

    /// Tasks of a lower priority, of one owner or of all: the last of each owner first, lowest priority first.
    pub(super) fn below<'a>(
        &'a self,
        priority: i8,
        owner: Option<&'a Owner>,
    ) -> impl Iterator<Item = Evictable> + 'a {
        let lower = self.tasks.range((Bound::Excluded(Reverse(priority)), Bound::Unbounded)).rev();
        lower.flat_map(move |(priority, owners)| {
            let wanted = owners.iter().filter(move |(each, _)| owner.is_none_or(|owner| owner == *each));
            wanted.flat_map(|(_, places)| places.iter().rev()).map(|place| Evictable {
                priority: priority.0,
                seq: place.seq,
                id: place.id,
            })
        })
    }

    /// No task needs less.
    pub(crate) fn smallest(&self) -> Option<&Demand> {
        self.bounds.as_ref().map(|(smallest, _)| smallest)
    }

    /// No task needs more.
    pub(crate) fn largest(&self) -> Option<&Demand> {
        self.bounds.as_ref().map(|(_, largest)| largest)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.values().flat_map(BTreeMap::values).flatten().map(|place| place.id)
    }

    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), String> {
        let empty =
            self.tasks.values().any(|owners| owners.is_empty() || owners.values().any(BTreeSet::is_empty));
        invariant!(!empty && !self.tasks.is_empty(), "an empty set is kept: {:?}", self.tasks);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::TaskSpec;

    use super::*;
    use crate::core::tests::{spec, task};

    fn id(n: u8) -> TaskId {
        spec(n).id
    }

    /// Each task by its number, owner and priority.
    fn queue(tasks: &[(u8, &str, i8)]) -> (ModelQueue, Vec<Task>) {
        let mut queue = ModelQueue::default();
        let tasks = tasks.iter().map(|(n, owner, priority)| {
            let spec = TaskSpec { owner: owner.parse().unwrap(), priority: *priority, ..spec(*n) };
            let mut task = task(spec);
            task.set_tag(u64::from(*n));
            queue.insert(&task);
            task
        });
        let tasks = tasks.collect();
        queue.check().unwrap();
        (queue, tasks)
    }

    fn first(queue: &ModelQueue, may_have: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        queue.first(|_, _| VirtualStart::default(), |_| true, may_have).map(|rank| rank.task())
    }

    #[test]
    fn higher_priorities_are_served_first_then_owners_by_their_clock_then_the_smaller_tag() {
        let (queue, _) = queue(&[(1, "a", 0), (2, "a", 0), (3, "b", 0), (4, "b", -1)]);
        assert_eq!(first(&queue, |_| true), Some(id(1)));
        assert_eq!(first(&queue, |each| each != id(1)), Some(id(2)));
        assert_eq!(first(&queue, |each| each == id(4)), Some(id(4)));
        let busy_a = |_, owner: &Owner| VirtualStart::at(u64::from(owner.as_str() == "a"));
        assert_eq!(queue.first(busy_a, |_| true, |_| true).map(|rank| rank.task()), Some(id(3)));
    }

    #[test]
    fn a_position_counts_own_tasks_and_of_each_other_owner_as_many() {
        let (queue, tasks) = queue(&[(1, "a", 0), (2, "a", 0), (3, "b", 0), (4, "b", 0), (5, "b", 0)]);
        let ahead: Vec<_> = tasks.iter().map(|task| queue.ahead_of(task)).collect();
        assert_eq!(ahead, [1, 3, 1, 3, 4]);
    }

    #[test]
    fn the_last_of_the_lowest_priority_is_evicted_first() {
        let (mut queue, tasks) = queue(&[(1, "a", 0), (2, "a", -2), (3, "b", -1), (4, "b", -2)]);
        let below = |owner: Option<&Owner>| queue.below(0, owner).map(|each| each.id).collect::<Vec<_>>();
        assert_eq!(below(None), [id(2), id(4), id(3)]);
        assert_eq!(below(Some(&tasks[2].spec().owner)), [id(4), id(3)]);
        for task in &tasks {
            assert!(queue.remove(task) && !queue.remove(task));
        }
        assert!(queue.is_empty());
    }
}
