//! Growing, capped, jittered pauses between attempts.

use std::time::Duration;

/// The pauses of one thing that is tried again.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// Begins anew, after a success that lasted.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: half of it fixed, half at random, so that many nodes do not come back in step.
    pub(crate) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.cap);
        let jitter = f64::from(u16::from_be_bytes(lamagrid_wire::random_bytes())) / f64::from(u16::MAX);
        full.mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_begin_anew() {
        let (first, cap) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, cap);
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= first / 2 && pauses[0] <= first);
        assert!(pauses[10..].iter().all(|pause| *pause >= cap / 2 && *pause <= cap));
        backoff.reset();
        assert!(backoff.pause() <= first);
    }
}
