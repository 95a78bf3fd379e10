//! Cancelled attempts that still hold their slot: a forward pass cannot be interrupted.
//!
//! Does not: end anything; the worker decides.

use std::time::{Duration, Instant};

use crate::Session;
use crate::state::{Shared, Stage};

/// An attempt in its slot that was cancelled or abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StuckAttempt {
    /// Time since it was stopped.
    pub since: Duration,
    /// Expected time until its slot is free, by what tasks of its model took so far; `None` before the first.
    pub rest: Option<Duration>,
    /// No other attempt that is still wanted has begun on this node.
    pub is_alone: bool,
}

impl Session {
    /// The attempt that was stopped first of those that still hold a slot.
    #[must_use]
    pub fn stuck_attempt(&self) -> Option<StuckAttempt> {
        self.shared.stuck_attempt(Instant::now())
    }
}

impl Shared {
    fn stuck_attempt(&self, now: Instant) -> Option<StuckAttempt> {
        let state = self.lock();
        let since = |at: Instant| now.saturating_duration_since(at);
        let stopped = state.running().filter(|running| running.stage == Stage::In);
        let (stopped_at, running) =
            stopped.filter_map(|r| Some((r.attempt.stopped_at()?, r))).min_by_key(|(at, _)| *at)?;
        let usual = state.slot_time(&running.attempt.spec.model);
        let rest = usual.zip(running.attempt.entered_at()).map(|(usual, at)| usual.saturating_sub(since(at)));
        // An attempt that has not begun is given back without loss.
        let has_begun = |stage| matches!(stage, Stage::In | Stage::After);
        let is_alone =
            !state.has_held() && !state.running().any(|r| has_begun(r.stage) && !r.attempt.is_stopped());
        Some(StuckAttempt { since: since(stopped_at), rest, is_alone })
    }
}
