//! Attempts that were stopped and go on all the same: a forward pass looks at nothing until it is over.
//!
//! Does not: end anything; the worker decides.

use std::time::{Duration, Instant};

use super::Session;
use super::state::{Shared, Stage};

/// An attempt in its slot that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// How long it has been unwanted.
    pub(crate) since: Duration,
    /// How much longer its slot will be in use, by what tasks of its model took so far; `None` before the first.
    pub(crate) rest: Option<Duration>,
    /// Nothing else that somebody wants is under way on this node.
    pub(crate) is_alone: bool,
}

impl Session {
    /// The attempt that has been unwanted in its slot for longest.
    #[must_use]
    pub(crate) fn overdue(&self) -> Option<Overdue> {
        self.shared.overdue(Instant::now())
    }
}

impl Shared {
    fn overdue(&self, now: Instant) -> Option<Overdue> {
        let state = self.lock();
        let since = |at: Instant| now.saturating_duration_since(at);
        let stopped = state.running().filter(|running| running.stage == Stage::In);
        let (stopped_at, running) =
            stopped.filter_map(|r| Some((r.attempt.stopped_at()?, r))).min_by_key(|(at, _)| *at)?;
        let usual = state.slot_time(&running.attempt.spec.model);
        let rest = usual.zip(running.attempt.entered_at()).map(|(usual, at)| usual.saturating_sub(since(at)));
        let has_begun = |stage| matches!(stage, Stage::In | Stage::After); // what has not goes back without harm
        let is_alone =
            !state.has_held() && !state.running().any(|r| has_begun(r.stage) && !r.attempt.is_stopped());
        Some(Overdue { since: since(stopped_at), rest, is_alone })
    }
}
