//! The trusted wall time, by which deadlines and retention are measured.
//!
//! Between two inputs the wall clock should advance as far as the monotonic clock. If it does not, it was set, or is
//! broken: the trusted time then continues from its last value by the monotonic clock, until the wall clock returns to
//! it, or has been steady for a grace period and is trusted again. Does not: change times in histories, which are those
//! of the wall clock.

use super::now::Now;

/// The wall clock may move apart from the monotonic clock by this much in one step without being doubted.
const MAX_DRIFT_MS: u64 = 5_000;
/// A scheduler that starts this long after its store was last written may have a wrong clock.
const MAX_DOWNTIME_MS: u64 = 3_600_000;
/// The trusted time is recorded this often, for the next start.
const RECORD_EVERY_MS: u64 = 600_000;

/// The trusted time, and whether the wall clock shows another one.
#[derive(Debug)]
pub(crate) struct WallClock {
    last: Now,
    believed_ms: u64,
    /// Monotonic time since which the wall clock has been steady at another time than the trusted one.
    doubted_since_ms: Option<u64>,
    /// It is trusted again after being steady for this long.
    grace_ms: u64,
    recorded_ms: u64,
}

/// The wall clock lost or regained trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockChange {
    /// It jumped: this far ahead of the trusted time, in milliseconds.
    Doubted { ahead_ms: i64 },
    /// It shows the trusted time again.
    Returned,
    /// It was steady for long enough and is trusted; the trusted time jumped by this much.
    Believed { ahead_ms: i64 },
}

impl WallClock {
    /// `recorded_ms` is the last trusted time in the store.
    pub(crate) fn start(now: Now, recorded_ms: Option<u64>, grace_ms: u64) -> Self {
        let is_likely = |recorded_ms: &u64| {
            now.wall_ms.saturating_add(MAX_DRIFT_MS) >= *recorded_ms
                && now.wall_ms - (*recorded_ms).min(now.wall_ms) <= MAX_DOWNTIME_MS
        };
        let doubtful = recorded_ms.filter(|recorded_ms| !is_likely(recorded_ms));
        Self {
            last: now,
            believed_ms: doubtful.unwrap_or(now.wall_ms),
            doubted_since_ms: doubtful.map(|_| now.mono_ms),
            grace_ms,
            recorded_ms: recorded_ms.unwrap_or(0),
        }
    }

    /// The trusted time, in milliseconds since the Unix epoch.
    pub(crate) fn believed_ms(&self) -> u64 {
        self.believed_ms
    }

    /// The later one of the trusted time and the wall clock: for ends of retention, which must not be early.
    pub(crate) fn later_ms(&self) -> u64 {
        self.believed_ms.max(self.last.wall_ms)
    }

    fn ahead_ms(&self, now: Now) -> i64 {
        now.wall_ms.cast_signed().saturating_sub(self.believed_ms.cast_signed())
    }

    /// The change to report at the start.
    pub(crate) fn initial_change(&self) -> Option<ClockChange> {
        self.doubted_since_ms.map(|_| ClockChange::Doubted { ahead_ms: self.ahead_ms(self.last) })
    }

    /// Takes the time of an input.
    pub(crate) fn observe(&mut self, now: Now) -> Option<ClockChange> {
        let step_ms = now.mono_ms.saturating_sub(self.last.mono_ms);
        let expected_ms = self.last.wall_ms.saturating_add(step_ms);
        let jumped = now.wall_ms.abs_diff(expected_ms) > MAX_DRIFT_MS;
        self.last = now;
        if !jumped && self.doubted_since_ms.is_none() {
            self.believed_ms = now.wall_ms;
            return None;
        }
        self.believed_ms = self.believed_ms.saturating_add(step_ms);
        let ahead_ms = self.ahead_ms(now);
        if ahead_ms.unsigned_abs() <= MAX_DRIFT_MS {
            self.believed_ms = now.wall_ms;
            return self.doubted_since_ms.take().map(|_| ClockChange::Returned);
        }
        if jumped {
            self.doubted_since_ms = Some(now.mono_ms);
            return Some(ClockChange::Doubted { ahead_ms });
        }
        if self.doubted_since_ms.is_some_and(|since| now.mono_ms - since >= self.grace_ms) {
            self.doubted_since_ms = None;
            self.believed_ms = now.wall_ms;
            return Some(ClockChange::Believed { ahead_ms });
        }
        None
    }

    /// The time to record, if that is due.
    pub(crate) fn record(&mut self) -> Option<u64> {
        let due = self.believed_ms.abs_diff(self.recorded_ms) >= RECORD_EVERY_MS;
        due.then(|| {
            self.recorded_ms = self.believed_ms;
            self.believed_ms
        })
    }

    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted_since_ms.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const WALL_MS: u64 = 1_700_000_000_000;

    fn at(mono_ms: u64, offset_ms: i64) -> Now {
        Now { mono_ms, wall_ms: (WALL_MS + mono_ms).saturating_add_signed(offset_ms) }
    }

    #[test]
    fn a_jump_that_goes_back_changes_nothing() {
        for offset_ms in [2 * HOUR_MS, -2 * HOUR_MS] {
            let mut clock = WallClock::start(at(0, 0), None, 60_000);
            assert_eq!(clock.observe(at(50, 0)), None);
            let doubted = clock.observe(at(100, offset_ms));
            assert_eq!(doubted, Some(ClockChange::Doubted { ahead_ms: offset_ms }));
            assert_eq!(clock.observe(at(2_000, offset_ms)), None);
            assert_eq!(clock.believed_ms(), WALL_MS + 2_000);
            assert_eq!(clock.observe(at(2_100, 0)), Some(ClockChange::Returned));
            assert_eq!(clock.believed_ms(), WALL_MS + 2_100);
        }
    }

    #[test]
    fn a_jump_that_stays_is_believed_after_the_grace_and_each_jump_begins_it_anew() {
        let mut clock = WallClock::start(at(0, 0), None, 60_000);
        clock.observe(at(1_000, HOUR_MS));
        clock.observe(at(50_000, 2 * HOUR_MS));
        assert_eq!(clock.observe(at(109_999, 2 * HOUR_MS)), None);
        assert_eq!(clock.believed_ms(), WALL_MS + 109_999);
        let believed = clock.observe(at(110_000, 2 * HOUR_MS));
        assert_eq!(believed, Some(ClockChange::Believed { ahead_ms: 2 * HOUR_MS }));
        assert_eq!(clock.believed_ms(), at(110_000, 2 * HOUR_MS).wall_ms);
    }

    #[test]
    fn slow_drift_and_a_process_that_stood_still_are_no_jump() {
        let mut clock = WallClock::start(at(0, 0), None, 60_000);
        for n in 1..100 {
            assert_eq!(clock.observe(at(n * 1_000, n as i64 * 4_000)), None);
        }
        assert_eq!(clock.observe(at(9_000_000, 99 * 4_000)), None);
        assert_eq!(clock.believed_ms(), at(9_000_000, 99 * 4_000).wall_ms);
    }

    #[test]
    fn a_start_long_after_the_last_record_or_before_it_is_doubted() {
        let starts = [(0, false), (-HOUR_MS, false), (-2 * HOUR_MS, true), (60_000, true)];
        for (recorded, doubted) in starts {
            let recorded_ms = WALL_MS.saturating_add_signed(recorded);
            let clock = WallClock::start(at(0, 0), Some(recorded_ms), 60_000);
            assert_eq!(clock.is_doubted(), doubted, "{recorded}");
            assert_eq!(clock.believed_ms(), if doubted { recorded_ms } else { WALL_MS });
        }
    }
}
