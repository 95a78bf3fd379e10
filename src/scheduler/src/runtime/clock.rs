//! Measures the time that the core is given with each input.

use std::time::{Duration, Instant};

use lamagrid_process::wall_clock::wall_ms;

use crate::core::Now;

/// Usual upper bound of a commit on a healthy disk. It leaves most of the accept timeout to the node.
const USUAL_COMMIT: Duration = Duration::from_millis(200);

/// The core's clock. It stops while a commit takes longer than usual, because the commit barrier delays every
/// message: a node must not time out over an assignment that was not sent, nor a peer over a reply that was
/// not sent.
pub(super) struct Clock {
    start: Instant,
    /// Total time for which the clock was stopped.
    held_back: Duration,
    /// Start of the commit in progress.
    committing: Option<Instant>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), held_back: Duration::ZERO, committing: None }
    }

    pub(super) fn now(&self) -> Now {
        let now = Instant::now();
        let counted = now.duration_since(self.start).saturating_sub(self.held_back + self.stall(now));
        Now { mono_ms: counted.as_millis() as u64, wall_ms: wall_ms() }
    }

    /// Time by which the commit in progress exceeds the usual one.
    fn stall(&self, now: Instant) -> Duration {
        self.committing.map_or(Duration::ZERO, |since| now.duration_since(since).saturating_sub(USUAL_COMMIT))
    }

    pub(super) fn commit_begins(&mut self) {
        self.committing = Some(Instant::now());
    }

    /// Records the end of a commit and returns its duration.
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
    fn the_clock_stops_during_a_slow_commit() {
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
