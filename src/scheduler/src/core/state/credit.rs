//! How many more tasks a node can be given.

/// Credit of one session, cumulative: a repeated or late report does no harm.
///
/// Invariant: `given <= granted <= given + slots + overlap`.
#[derive(Debug)]
pub(crate) struct Credit {
    slots: u16,
    /// Tasks that the node can prepare while its slots work.
    overlap: u16,
    /// Credit that the node counts beyond `slots` and `overlap`, and does not get.
    excess: u64,
    /// Tasks that the node reported it can take.
    granted: u64,
    /// Tasks that the node was given.
    given: u64,
}

impl Credit {
    pub(crate) fn new(slots: u16, overlap: u16) -> Self {
        let allowed = overlap.min(slots); // more than one prepared task per slot saves no time
        Self { slots, overlap: allowed, excess: u64::from(overlap - allowed), granted: 0, given: 0 }
    }

    pub(crate) fn slots(&self) -> u16 {
        self.slots
    }

    pub(crate) fn overlap(&self) -> u16 {
        self.overlap
    }

    fn capacity(&self) -> u64 {
        u64::from(self.slots) + u64::from(self.overlap)
    }

    /// Raises the credit, up to slots and overlap; a repeated or late report does not lower it. Returns the rise.
    pub(crate) fn report(&mut self, credit: u64) -> u64 {
        let before = self.granted;
        let ceiling = self.given + self.capacity();
        self.granted = before.max(credit.saturating_sub(self.excess).min(ceiling));
        self.granted - before
    }

    /// A task is given to the node.
    pub(crate) fn spend(&mut self) {
        self.given += 1;
    }

    pub(crate) fn free(&self) -> u64 {
        self.granted - self.given
    }

    /// Tasks that it could begin with at once: the first credits stand for idle slots.
    pub(crate) fn idle_slots(&self) -> u64 {
        self.free().saturating_sub(u64::from(self.overlap))
    }

    /// Used credits: of attempts that wait, run, were cancelled or are still on their way.
    pub(crate) fn used(&self) -> u64 {
        self.capacity().saturating_sub(self.free())
    }

    /// Attempts that no slot has begun with. A task uses its credit until it has left its slot, so attempts that use
    /// credit beyond the slots wait for one.
    ///
    /// A draining node gives no credit back: its last attempts look as if they waited.
    pub(crate) fn waiting(&self) -> u64 {
        u64::from(self.overlap).saturating_sub(self.free())
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let (given, granted) = (self.given, self.granted);
        invariant!(given <= granted, "{given} of {granted} credits were given");
        invariant!(granted <= given + self.capacity(), "more than slots and overlap is granted: {self:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_only_rises_and_never_above_slots_and_overlap() {
        let mut credit = Credit::new(1, 3);
        assert_eq!(credit.overlap(), 1, "one prepared task per slot");
        assert_eq!((credit.report(4), credit.report(1)), (2, 0));
        assert_eq!((credit.idle_slots(), credit.used(), credit.waiting()), (1, 0, 0));
        credit.spend();
        credit.check().unwrap();
        assert_eq!((credit.idle_slots(), credit.free(), credit.waiting()), (0, 1, 0));
        credit.spend();
        credit.check().unwrap();
        assert_eq!((credit.free(), credit.used(), credit.waiting()), (0, 2, 1));
        assert_eq!((credit.report(99), credit.idle_slots(), credit.used()), (2, 1, 0));
        credit.check().unwrap();
    }
}
