//! Limits the log lines about refused connections, so that a peer that reconnects in a loop does not fill the log.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const LOGGED_PER_SECOND: u32 = 10;

/// The limiter; shared by all connections of a gate.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    since: Option<Instant>,
    /// Number of lines in the second that began at `since`.
    logged: u32,
    suppressed: u64,
}

impl LogLimiter {
    /// True if one more line may be logged. Logs the number of suppressed lines about once per second.
    pub(crate) fn allows(&self) -> bool {
        let mut counts = self.0.lock();
        if counts.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            if counts.suppressed > 0 {
                tracing::warn!(
                    connections = counts.suppressed,
                    "the gate refused more connections than it logs"
                );
            }
            *counts = Counts { since: Some(Instant::now()), ..Counts::default() };
        }
        counts.logged += 1;
        let allowed = counts.logged <= LOGGED_PER_SECOND;
        counts.suppressed += u64::from(!allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_are_allowed_per_second() {
        let limiter = LogLimiter::default();
        assert_eq!((0..50).filter(|_| limiter.allows()).count(), 10);
        limiter.0.lock().since = Instant::now().checked_sub(Duration::from_secs(2));
        assert!(limiter.allows());
        assert_eq!(limiter.0.lock().suppressed, 0, "the last count was logged");
    }
}
