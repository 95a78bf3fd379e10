//! Ends a worker whose forward pass was cancelled, if a restart frees the slot sooner than the end of the pass.
//!
//! Used only under a supervisor, which restarts the worker at once. The worker says goodbye to the scheduler, so that no
//! crash is counted.
//! Does not: end a worker on which another attempt has begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use lamagrid_process::end_by_signal;
use lamagrid_session::{Session, StuckAttempt};

/// Interval at which the session is checked.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Time to start the process and load libtorch, which passes before the worker begins to measure.
const STARTING: Duration = Duration::from_secs(1);

/// The signal with which a worker ends itself, so that its supervisor recognises the reason.
pub(crate) const ENDED_ITSELF: Signal = Signal::USR2;
/// The environment variable with the time after its start, in milliseconds, during which a worker must not end itself.
pub(crate) const NOT_BEFORE: &str = "LAMAGRID_WORKER_PATIENT_FOR_MS";

/// Time from the worker's start until its model was loaded, in milliseconds. While it is 0, the worker does not end itself.
#[derive(Debug, Default)]
pub(crate) struct StartupTime(AtomicU64);

impl StartupTime {
    /// Records that the first model was loaded `since_start` after the worker began to measure.
    pub(crate) fn record(&self, since_start: Duration) {
        let ms = u64::try_from((since_start + STARTING).as_millis()).unwrap_or(u64::MAX);
        self.0.store(ms.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

/// True if the grace period is over, no other attempt is lost, and a restart frees the slot sooner than the attempt does, by
/// more than the grace period.
fn is_worth_it(stuck: &StuckAttempt, grace: Duration, startup: Option<Duration>) -> bool {
    stuck.is_alone
        && stuck.since >= grace
        && stuck.rest.zip(startup).is_some_and(|(rest, startup)| rest > startup + grace)
}

/// Starts a thread that checks `session` until the process ends.
pub(crate) fn watch(
    session: Arc<Session>,
    grace: Duration,
    startup: Arc<StartupTime>,
) -> std::io::Result<()> {
    let began = Instant::now();
    let not_before = std::env::var(NOT_BEFORE)
        .ok()
        .and_then(|ms| ms.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    std::thread::Builder::new().name("cancel-watchdog".into()).spawn(move || {
        loop {
            std::thread::sleep(CHECK_EVERY);
            let Some(stuck) = session.stuck_attempt() else { continue };
            if began.elapsed() < not_before || !is_worth_it(&stuck, grace, startup.get()) {
                continue;
            }
            let (since_ms, rest_ms) = (stuck.since.as_millis(), stuck.rest.map(|rest| rest.as_millis()));
            tracing::warn!(
                since_ms,
                rest_ms,
                "a cancelled task goes on: ending this worker, which is faster"
            );
            session.close();
            end_by_signal(ENDED_ITSELF);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_only_where_that_is_faster_and_no_other_attempt_is_lost() {
        let s = Duration::from_secs;
        let stuck = StuckAttempt { since: s(2), rest: Some(s(10)), is_alone: true };
        let (grace, startup) = (s(2), Some(s(5)));
        assert!(is_worth_it(&stuck, grace, startup));
        for (other, startup) in [
            (StuckAttempt { is_alone: false, ..stuck }, startup),
            (StuckAttempt { since: s(1), ..stuck }, startup),
            (StuckAttempt { rest: Some(s(7)), ..stuck }, startup),
            (StuckAttempt { rest: None, ..stuck }, startup),
            (stuck, Some(s(8))),
            (stuck, None),
        ] {
            assert!(!is_worth_it(&other, grace, startup), "{other:?} {startup:?}");
        }
    }
}
