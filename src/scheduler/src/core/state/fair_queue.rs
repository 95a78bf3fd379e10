//! Fair shares: between owners first, then between the clients of an owner.
//!
//! Start-time fair queueing on two levels. Each client has a virtual clock, within its owner, that each of its tasks
//! moves on by the task's size; a task's tag is its client's clock when it came. Each owner has one, too, which moves
//! on when a task of the owner is given to a node. The owner with the least clock goes first, and of its tasks the one
//! with the least tag. So owners with waiting tasks are served by turns, in proportion to bytes, however many tasks one
//! of them submits, and whatever names it gives to its clients. Decision 0009.
//!
//! Does not: weigh running tasks; slots are shared among the waiting ones.

use std::collections::{BTreeMap, HashMap};

use lamagrid_domain::{ClientName, Owner, QueueName, TaskSpec};

/// A task counts as at least this many bytes: the cost of smaller ones is not in their pixels.
const LEAST_SIZE: u64 = 64 * 1024;
/// Clocks kept, of owners and of the clients of one owner. Above it clocks that lag are forgotten: they would start at
/// the present anyway.
const MAX_CLOCKS: usize = 4_096;

fn size(spec: &TaskSpec) -> u64 {
    spec.input_bytes().max(LEAST_SIZE)
}

/// When an owner is served among those of one queue and priority: the least goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VirtualStart {
    /// The owner's clock, or the present.
    start: u64,
    /// When it was served last. Of two owners with the same clock, the other one is next.
    served: u64,
}

impl VirtualStart {
    #[cfg(test)]
    pub(crate) fn at(start: u64) -> Self {
        Self { start, served: 0 }
    }
}

/// The clocks of one owner in one queue and priority.
#[derive(Debug, Default)]
struct OwnerClocks {
    clock: u64,
    served: u64,
    /// The highest tag that was dispatched.
    present: u64,
    clients: HashMap<Option<ClientName>, u64>,
    /// Tasks of the owner that wait.
    waiting: usize,
}

impl OwnerClocks {
    fn next_tag(&mut self, spec: &TaskSpec) -> u64 {
        let present = self.present;
        if self.clients.len() >= MAX_CLOCKS {
            self.clients.retain(|_, clock| *clock > present);
        }
        let clock = self.clients.entry(spec.client.clone()).or_default();
        let tag = (*clock).max(present);
        *clock = tag.saturating_add(size(spec));
        tag
    }
}

/// The virtual clocks.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    /// The latest start of an owner that was served.
    present: u64,
    /// Dispatched tasks.
    dispatched: u64,
    owners: BTreeMap<QueueName, BTreeMap<i8, HashMap<Owner, OwnerClocks>>>,
}

impl FairQueue {
    fn owner(&mut self, spec: &TaskSpec, priority: i8) -> &mut OwnerClocks {
        if !self.owners.contains_key(&spec.queue) {
            self.owners.insert(spec.queue.clone(), BTreeMap::new());
        }
        let owners = self.owners.get_mut(&spec.queue).expect("inserted above").entry(priority).or_default();
        if !owners.contains_key(&spec.owner) {
            if owners.len() >= MAX_CLOCKS {
                let present = self.present;
                owners.retain(|_, clocks| clocks.waiting > 0 || clocks.clock > present);
            }
            owners.insert(spec.owner.clone(), OwnerClocks::default());
        }
        owners.get_mut(&spec.owner).expect("inserted above")
    }

    /// The tag of a task that is accepted now. It orders the tasks of its owner.
    pub(crate) fn next_tag(&mut self, spec: &TaskSpec) -> u64 {
        self.owner(spec, spec.priority).next_tag(spec)
    }

    /// A task waits, with its present priority.
    pub(crate) fn task_waits(&mut self, spec: &TaskSpec, priority: i8) {
        self.owner(spec, priority).waiting += 1;
    }

    /// A task does not wait any more.
    pub(crate) fn task_left(&mut self, spec: &TaskSpec, priority: i8) {
        self.owner(spec, priority).waiting -= 1;
    }

    /// When an owner is served among those of one queue and priority.
    pub(crate) fn virtual_start(&self, queue: &QueueName, priority: i8, owner: &Owner) -> VirtualStart {
        let clocks = self.owners.get(queue).and_then(|of| of.get(&priority)).and_then(|of| of.get(owner));
        clocks.map_or(VirtualStart { start: self.present, served: 0 }, |clocks| VirtualStart {
            start: clocks.clock.max(self.present),
            served: clocks.served,
        })
    }

    /// A task of this tag is given to a node, with its present priority.
    pub(crate) fn task_dispatched(&mut self, spec: &TaskSpec, priority: i8, tag: u64) {
        let of_tag = self.owner(spec, spec.priority);
        of_tag.present = of_tag.present.max(tag);
        self.dispatched += 1;
        let (dispatched, present) = (self.dispatched, self.present);
        let owner = self.owner(spec, priority);
        let start = owner.clock.max(present);
        owner.clock = start.saturating_add(size(spec));
        owner.served = dispatched;
        self.present = start;
    }

    /// Waiting tasks of all owners.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let owners = self.owners.values().flat_map(BTreeMap::values).flat_map(HashMap::values);
        owners.map(|clocks| clocks.waiting).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::spec;

    fn of(owner: &str, client: Option<&str>) -> TaskSpec {
        TaskSpec { owner: owner.parse().unwrap(), client: client.map(|c| c.parse().unwrap()), ..spec(1) }
    }

    /// The owner that is served next.
    fn next<'a>(fair: &FairQueue, owners: &[&'a str]) -> &'a str {
        let start = |name: &&str| fair.virtual_start(&spec(1).queue, 0, &name.parse().unwrap());
        owners.iter().min_by_key(|name| start(name)).unwrap()
    }

    #[test]
    fn owners_are_served_by_turns_and_a_new_one_starts_at_the_present() {
        let mut fair = FairQueue::default();
        let mut served = Vec::new();
        for round in 0..6 {
            // The third owner comes when the others were served twice each.
            let owners = if round < 4 { &["a", "b"][..] } else { &["a", "b", "c"] };
            let owner = next(&fair, owners);
            fair.task_dispatched(&of(owner, None), 0, 0);
            served.push(owner);
        }
        assert_eq!(served, ["a", "b", "a", "b", "c", "a"]);
    }

    #[test]
    fn tasks_of_one_client_are_tagged_behind_each_other_and_clients_beside_each_other() {
        let mut fair = FairQueue::default();
        let tags = [Some("x"), Some("x"), Some("y"), None].map(|client| fair.next_tag(&of("a", client)));
        assert_eq!(tags, [0, LEAST_SIZE, 0, 0]);
        // A new client starts at the last dispatched tag and not at 0.
        fair.task_dispatched(&of("a", Some("x")), 0, LEAST_SIZE);
        assert_eq!(fair.next_tag(&of("a", Some("z"))), LEAST_SIZE);
    }

    #[test]
    fn waiting_tasks_are_counted_by_priority() {
        let mut fair = FairQueue::default();
        fair.task_waits(&of("a", None), 0);
        fair.task_waits(&of("a", None), 1);
        fair.task_left(&of("a", None), 0);
        assert_eq!(fair.waiting(), 1);
    }
}
