//! The pause between two attempts to connect.

use std::time::Duration;

use lamagrid_wire::random_bytes;

/// The first pause: a scheduler that restarts is back in less than a second.
const FIRST: Duration = Duration::from_millis(20);
/// The longest pause.
const CAP: Duration = Duration::from_secs(1);
/// The first time that a handshake may take; a free scheduler answers in less than a millisecond.
const FIRST_PATIENCE: Duration = Duration::from_millis(200);

/// Doubles from 20 ms to 1 s, each pause shortened at random by up to a half, so that many clients of a
/// scheduler that comes back do not arrive in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    failed: u32,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { failed: 0 }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failed.min(10)).min(CAP);
        self.failed = self.failed.saturating_add(1);
        let [byte] = random_bytes();
        full - full.mul_f64(f64::from(byte) / 510.0)
    }

    /// How long the next handshake may take: longer each time, since a slow scheduler is not an absent one.
    pub(crate) fn patience(&self, cap: Duration) -> Duration {
        FIRST_PATIENCE.saturating_mul(1 << self.failed.min(10)).min(cap.max(FIRST_PATIENCE))
    }

    /// The scheduler answered.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap_and_start_anew() {
        let mut backoff = Backoff::new();
        let first = backoff.pause();
        assert!(first >= FIRST / 2 && first <= FIRST, "{first:?}");
        let last = (0..40).map(|_| backoff.pause()).last().unwrap();
        assert!(last >= CAP / 2 && last <= CAP, "{last:?}");
        assert_eq!(backoff.patience(Duration::from_secs(3)), Duration::from_secs(3));
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
