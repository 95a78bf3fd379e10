//! Tombstones: ids that have expired and must not run again.
//!
//! The number per owner is bounded. A tombstone that is dropped is covered by the watermark of its owner: an id
//! contains the time at which it was drawn, and ids up to the watermark count as expired. So the cancels of one owner
//! push out only tombstones of that owner.

use std::collections::{BTreeMap, HashSet, VecDeque};

use lamagrid_domain::{Owner, TaskId};

/// A watermark is raised in steps of this size, so that it is not written with every dropped tombstone.
const STEP_MS: u64 = 1_000;

/// An id that has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) id: TaskId,
    pub(crate) owner: Owner,
    /// The tombstone itself expires at this time, wall clock, ms.
    pub(crate) until_wall_ms: u64,
}

/// The tombstones of one owner.
#[derive(Debug, Default)]
struct OwnerTombstones {
    /// In the order of their expiry, with the wall clock of it.
    order: VecDeque<(TaskId, u64)>,
    /// Ids of the owner drawn up to here have expired, unless they are known otherwise.
    watermark_ms: u64,
}

/// Ids of an owner drawn up to this time have expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watermark {
    pub(crate) owner: Owner,
    pub(crate) wall_ms: u64,
}

/// A dropped tombstone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) id: TaskId,
    /// The owner's watermark, if it was raised to cover the id.
    pub(crate) raised: Option<Watermark>,
}

/// All tombstones.
#[derive(Debug)]
pub(crate) struct Tombstones {
    ids: HashSet<TaskId>,
    by_owner: BTreeMap<Owner, OwnerTombstones>,
    /// The bound per owner.
    max: usize,
}

impl Tombstones {
    pub(crate) fn new(max: usize, watermarks: Vec<Watermark>) -> Self {
        let entry = |Watermark { owner, wall_ms }| {
            (owner, OwnerTombstones { order: VecDeque::new(), watermark_ms: wall_ms })
        };
        let by_owner = watermarks.into_iter().map(entry).collect();
        Self { ids: HashSet::new(), by_owner, max }
    }

    /// Whether an id of this owner has expired.
    pub(crate) fn covers(&self, id: TaskId, owner: &Owner) -> bool {
        let watermark_ms = self.watermark_ms(owner);
        self.ids.contains(&id) || (watermark_ms > 0 && id.drawn_wall_ms() <= watermark_ms)
    }

    pub(crate) fn contains(&self, id: TaskId) -> bool {
        self.ids.contains(&id)
    }

    /// 0 until a tombstone of the owner is dropped.
    pub(crate) fn watermark_ms(&self, owner: &Owner) -> u64 {
        self.by_owner.get(owner).map_or(0, |tombstones| tombstones.watermark_ms)
    }

    /// Adds a tombstone, and drops the oldest one of an owner that has too many.
    pub(crate) fn remember(&mut self, id: TaskId, owner: &Owner, until_wall_ms: u64) -> Option<Dropped> {
        if !self.ids.insert(id) {
            return None;
        }
        if !self.by_owner.contains_key(owner) {
            self.by_owner.insert(owner.clone(), OwnerTombstones::default());
        }
        let tombstones = self.by_owner.get_mut(owner).expect("inserted above");
        tombstones.order.push_back((id, until_wall_ms));
        if tombstones.order.len() > self.max { self.drop_oldest(&owner.clone()) } else { None }
    }

    /// Drops one expired tombstone.
    pub(crate) fn expire(&mut self, now_wall_ms: u64) -> Option<Dropped> {
        let is_over = |tombstones: &OwnerTombstones| {
            tombstones.order.front().is_some_and(|(_, until)| *until <= now_wall_ms)
        };
        let owner = self
            .by_owner
            .iter()
            .find(|(_, tombstones)| is_over(tombstones))
            .map(|(owner, _)| owner.clone())?;
        self.drop_oldest(&owner)
    }

    fn drop_oldest(&mut self, owner: &Owner) -> Option<Dropped> {
        let tombstones = self.by_owner.get_mut(owner)?;
        let (id, _) = tombstones.order.pop_front()?;
        self.ids.remove(&id);
        let drawn_ms = id.drawn_wall_ms();
        let raised = (drawn_ms > tombstones.watermark_ms || tombstones.watermark_ms == 0).then(|| {
            tombstones.watermark_ms = drawn_ms.next_multiple_of(STEP_MS).max(STEP_MS);
            Watermark { owner: owner.clone(), wall_ms: tombstones.watermark_ms }
        });
        Some(Dropped { id, raised })
    }

    /// The clock was set back for good: ids drawn from now on must not count as expired. Returns the changed
    /// watermarks.
    pub(crate) fn lower_to(&mut self, wall_ms: u64) -> Vec<Watermark> {
        let above = self.by_owner.iter_mut().filter(|(_, tombstones)| tombstones.watermark_ms > wall_ms);
        above
            .map(|(owner, tombstones)| {
                tombstones.watermark_ms = wall_ms;
                Watermark { owner: owner.clone(), wall_ms }
            })
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let in_order: usize = self.by_owner.values().map(|of_owner| of_owner.order.len()).sum();
        invariant!(self.ids.len() == in_order, "{} tombstones, {in_order} in order", self.ids.len());
        let over = self.by_owner.iter().find(|(_, of_owner)| of_owner.order.len() > self.max);
        invariant!(over.is_none(), "more tombstones than {} of one owner: {over:?}", self.max);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        name.parse().unwrap()
    }

    fn id(wall_ms: u64, n: u8) -> TaskId {
        TaskId::drawn_at(wall_ms, [n; 16])
    }

    #[test]
    fn one_owner_drops_only_its_own_and_they_stay_over() {
        let mut all = Tombstones::new(2, Vec::new());
        let (alice, mallory) = (owner("alice"), owner("mallory"));
        assert_eq!(all.remember(id(5_000, 1), &alice, 9), None);
        (0..2).for_each(|n| assert_eq!(all.remember(id(6_000, n), &mallory, 9), None));
        let dropped = all.remember(id(6_000, 9), &mallory, 9).unwrap();
        assert_eq!(
            dropped,
            Dropped { id: id(6_000, 0), raised: Some(Watermark { owner: mallory.clone(), wall_ms: 6_000 }) }
        );
        // Within the same step it is not written again.
        assert_eq!(all.remember(id(6_000, 10), &mallory, 9).unwrap().raised, None);
        assert!(all.covers(id(6_000, 0), &mallory) && !all.covers(id(6_000, 0), &alice));
        assert!(all.covers(id(5_000, 1), &alice) && !all.covers(id(6_001, 1), &mallory));
    }

    #[test]
    fn what_expires_is_covered_and_a_clock_that_was_set_back_is_no_end() {
        let mut all = Tombstones::new(9, vec![Watermark { owner: owner("b"), wall_ms: 700 }]);
        all.remember(id(1_500, 1), &owner("a"), 10_000);
        assert_eq!(all.expire(9_999), None);
        let raised = Some(Watermark { owner: owner("a"), wall_ms: 2_000 });
        assert_eq!(all.expire(10_000), Some(Dropped { id: id(1_500, 1), raised }));
        assert!(all.covers(id(1_500, 1), &owner("a")) && all.covers(id(700, 3), &owner("b")));
        assert_eq!(all.lower_to(1_000), [Watermark { owner: owner("a"), wall_ms: 1_000 }]);
        assert!(!all.covers(id(1_500, 1), &owner("a")));
        all.check().unwrap();
        assert!(!all.contains(id(1_500, 1)));
    }
}
