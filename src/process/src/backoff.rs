//! Computes the pauses between attempts: growing, capped and jittered.

use std::time::Duration;

use crate::random_bytes;

/// The pauses of one retried operation. They double from the first to the cap, and each is shortened at
/// random by up to a half, so that many processes do not retry in step.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Creates pauses that grow from `first` to `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// Restarts from the first pause; call it after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The next pause. Counts as a failure.
    pub fn pause(&mut self) -> Duration {
        let full = doubled(self.first, self.failures).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let [byte] = random_bytes();
        full - full.mul_f64(f64::from(byte) / 510.0)
    }
}

/// Returns `first`, doubled `times` times; at most 20 times.
#[must_use]
pub fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_again_after_a_reset() {
        let (first, cap) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, cap);
        let pauses: Vec<_> = (0..40).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= first / 2 && pauses[0] <= first, "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| *pause >= cap / 2 && *pause <= cap), "{pauses:?}");
        assert_eq!(backoff.failures(), 40);
        backoff.reset();
        assert!(backoff.pause() <= first);
    }
}
