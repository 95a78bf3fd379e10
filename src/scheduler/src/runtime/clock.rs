//! The instant at which something happened, as the core is told it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::Now;

/// A commit takes no longer than this on a disk that works, and leaves most of the accept timeout to the node.
const USUAL_COMMIT: Duration = Duration::from_millis(200);

/// The core's clock. It stands still while a slow commit holds every message back: a node cannot accept in time what
/// has not left, and nobody is silent who was not answered.
pub(super) struct Clock {
    start: Instant,
    /// Time that does not count.
    held_back: Duration,
    /// Since when a group is being committed.
    committing: Option<Instant>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), held_back: Duration::ZERO, committing: None }
    }

    pub(super) fn now(&self) -> Now {
        let now = Instant::now();
        let counted = now.duration_since(self.start).saturating_sub(self.held_back + self.stall(now));
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: counted.as_millis() as u64, wall_ms: wall.as_millis() as u64 }
    }

    /// How much longer than usual the commit in hand takes.
    fn stall(&self, now: Instant) -> Duration {
        self.committing.map_or(Duration::ZERO, |since| now.duration_since(since).saturating_sub(USUAL_COMMIT))
    }

    pub(super) fn commit_begins(&mut self) {
        self.committing = Some(Instant::now());
    }

    /// Gives how long it took.
    pub(super) fn commit_ended(&mut self) -> Duration {
        let now = Instant::now();
        self.held_back += self.stall(now);
        self.committing.take().map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_a_slow_commit_holds_everything_back() {
        let earlier =
            Instant::now().checked_sub(Duration::from_secs(60)).expect("the host runs for a minute");
        let mut clock = Clock { start: earlier, held_back: Duration::ZERO, committing: Some(earlier) };
        let usual_ms = USUAL_COMMIT.as_millis() as u64;
        assert_eq!(clock.now().mono_ms, usual_ms);
        clock.commit_ended();
        let after_ms = clock.now().mono_ms;
        assert!((usual_ms..10_000).contains(&after_ms), "{after_ms}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock.now().mono_ms >= after_ms + 20);
    }
}
