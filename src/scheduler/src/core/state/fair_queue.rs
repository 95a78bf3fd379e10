//! Fair shares: between owners first, then between the clients of an owner.
//!
//! Start-time fair queueing on two levels. Each client has a virtual clock, within its owner, that each of its tasks
//! moves on by the task's size; a task's tag is its client's clock when it came. Each owner has one, too, which moves on
//! when a task of the owner is given to a node. The owner with the least clock goes first, and of its tasks the one with
//! the least tag. So those that have waiting tasks are served by turns, in proportion to bytes, whatever one of them
//! piles up, and whatever names an owner gives to its clients. Decision 0009.
//!
//! Does not: weigh what runs; slots are shared by what waits for them.

use std::collections::{BTreeMap, HashMap};

use lamagrid_domain::{ClientName, Owner, QueueName, TaskSpec};

/// A task counts at least this much, in bytes: below it, what it costs is not its pixels.
const LEAST_SIZE: u64 = 64 * 1024;
/// Clocks that are kept, of owners and of one owner's clients, before those that are behind are forgotten: they would
/// start at the present anyway.
const MAX_CLOCKS: usize = 4_096;

fn size(spec: &TaskSpec) -> u64 {
    spec.input_bytes().max(LEAST_SIZE)
}

/// Where an owner stands among those of one queue and priority: the least goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// The owner's clock, or the present.
    start: u64,
    /// When it was served last: of two that are even, the other one goes.
    served: u64,
}

/// The clocks of one owner in one queue and priority.
#[derive(Debug, Default)]
struct OwnerClocks {
    clock: u64,
    served: u64,
    /// The highest tag of a client's that was given to a node.
    present: u64,
    clients: HashMap<Option<ClientName>, u64>,
    /// Its tasks that wait.
    waiting: usize,
}

impl OwnerClocks {
    fn draw(&mut self, spec: &TaskSpec) -> u64 {
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
    /// The latest start of an owner's that was served.
    present: u64,
    /// Tasks that were given.
    given: u64,
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

    /// The tag of a task that comes now, among those of its owner.
    pub(crate) fn draw(&mut self, spec: &TaskSpec) -> u64 {
        self.owner(spec, spec.priority).draw(spec)
    }

    /// A task waits, with this priority now.
    pub(crate) fn enter(&mut self, spec: &TaskSpec, priority: i8) {
        self.owner(spec, priority).waiting += 1;
    }

    /// It does not any more.
    pub(crate) fn leave(&mut self, spec: &TaskSpec, priority: i8) {
        self.owner(spec, priority).waiting -= 1;
    }

    /// Where an owner stands in a queue among those of one priority.
    pub(crate) fn turn(&self, queue: &QueueName, priority: i8, owner: &Owner) -> Turn {
        let clocks = self.owners.get(queue).and_then(|of| of.get(&priority)).and_then(|of| of.get(owner));
        clocks.map_or(Turn { start: self.present, served: 0 }, |clocks| Turn {
            start: clocks.clock.max(self.present),
            served: clocks.served,
        })
    }

    /// A task of this tag was given to a node, with this priority.
    pub(crate) fn given(&mut self, spec: &TaskSpec, priority: i8, tag: u64) {
        let of_tag = self.owner(spec, spec.priority);
        of_tag.present = of_tag.present.max(tag);
        self.given += 1;
        let (given, present) = (self.given, self.present);
        let owner = self.owner(spec, priority);
        let start = owner.clock.max(present);
        owner.clock = start.saturating_add(size(spec));
        owner.served = given;
        self.present = start;
    }
}
