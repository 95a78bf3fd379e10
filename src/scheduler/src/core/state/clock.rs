//! The two times the core goes by: the lease clock, and the wall clock as far as it can be trusted.

use super::now::Now;
use super::wall_clock::{ClockChange, WallClock};

/// The most that one input advances the lease clock: a scheduler that was suspended must not expire leases whose
/// heartbeats are still in its socket buffers.
const MAX_STEP_MS: u64 = 500;

/// The time of the current input.
#[derive(Debug)]
pub(crate) struct Clock {
    elapsed_ms: u64,
    now: Now,
    wall: WallClock,
}

impl Clock {
    /// `recorded_ms` is the last trusted wall time in the store; see [`WallClock`] for `grace_ms`.
    pub(crate) fn start(now: Now, recorded_ms: Option<u64>, grace_ms: u64) -> Self {
        Self { elapsed_ms: 0, now, wall: WallClock::start(now, recorded_ms, grace_ms) }
    }

    /// Moves the lease clock to the time of an input. The wall clock follows with [`Self::observe_wall`].
    pub(crate) fn advance(&mut self, now: Now) {
        let step_ms = now.mono_ms.saturating_sub(self.now.mono_ms);
        self.elapsed_ms += step_ms.min(MAX_STEP_MS);
        self.now = now;
    }

    /// Compares the wall clock with the monotonic one.
    pub(crate) fn observe_wall(&mut self) -> Option<ClockChange> {
        self.wall.observe(self.now)
    }

    /// The lease clock: milliseconds since the start, in bounded steps.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.elapsed_ms
    }

    /// Both clocks as the input reported them.
    pub(crate) fn now(&self) -> Now {
        self.now
    }

    pub(crate) fn wall(&self) -> &WallClock {
        &self.wall
    }

    /// The trusted wall time, if it is due to be stored.
    pub(crate) fn record(&mut self) -> Option<u64> {
        self.wall.record()
    }

    /// A planted fault: the wall clock is trusted, whatever it shows.
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) fn trust_wall(&mut self) {
        self.wall = WallClock::start(self.now, None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_input_advances_the_lease_clock_by_half_a_second_at_most() {
        let at = |mono_ms| Now { mono_ms, wall_ms: mono_ms };
        let mut clock = Clock::start(at(1_000), None, 0);
        for (mono_ms, elapsed_ms) in [(1_200, 200), (900_000, 700), (899_000, 700), (899_100, 800)] {
            clock.advance(at(mono_ms));
            assert_eq!(clock.elapsed_ms(), elapsed_ms);
        }
    }
}
