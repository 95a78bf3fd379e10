//! Limits the requests of one API key per second.

use std::time::{Duration, Instant};

/// A token bucket that holds the requests of one second.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl RateLimit {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, left: per_second, at: now }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// How long to wait before the next one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.per_second);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_second_passes_and_then_the_rate_holds() {
        let began = Instant::now();
        let mut limit = RateLimit::new(4, began);
        assert!((0..4).all(|_| limit.take(began).is_ok()));
        assert_eq!(limit.take(began), Err(Duration::from_millis(250)));
        assert_eq!(limit.take(began + Duration::from_millis(250)), Ok(()));
        assert!(limit.take(began + Duration::from_millis(250)).is_err());
        let later = began + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| limit.take(later).is_ok()).count(), 4);
    }
}
