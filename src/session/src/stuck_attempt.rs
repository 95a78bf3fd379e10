//! Finds cancelled attempts that still hold their slot, because a forward pass cannot be interrupted.
//!
//! Does not: stop them; the worker decides.

use std::time::{Duration, Instant};

use crate::Session;
use crate::state::Stage;
use crate::state::shared::Shared;

/// A cancelled or abandoned attempt that is still in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StuckAttempt {
    /// Time since it was cancelled.
    pub since: Duration,
    /// Expected time until its slot is free, from the average of its model; `None` before the first finished task.
    pub rest: Option<Duration>,
    /// True if no other wanted attempt has entered a slot on this node.
    pub is_alone: bool,
}

impl Session {
    /// The attempt that was cancelled first among those that still hold a slot.
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
        // Attempts that have not entered a slot are returned without loss.
        let has_begun = |stage| matches!(stage, Stage::In | Stage::After);
        let is_alone =
            !state.has_held() && !state.running().any(|r| has_begun(r.stage) && !r.attempt.is_stopped());
        Some(StuckAttempt { since: since(stopped_at), rest, is_alone })
    }
}
