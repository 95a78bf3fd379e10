//! Ends a worker whose forward pass nobody wants any more, where starting it anew is faster than waiting for it.
//!
//! Only under a supervisor, which starts it again at once. The scheduler hears a goodbye, so nothing is counted.
//! Does not: end a worker that does something else that is wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::session::{Overdue, Session};
use crate::worker::end_process;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);
/// What a worker needs before it measures: the process itself and libtorch.
const STARTING: Duration = Duration::from_secs(1);

/// The signal by which such a worker ends, so that its supervisor knows what happened.
pub(crate) const ENDED_ITSELF: Signal = Signal::USR2;
/// The variable that says how many milliseconds of its life a worker must be patient.
pub(crate) const PATIENT_FOR: &str = "LAMAGRID_WORKER_PATIENT_FOR_MS";

/// How long the worker took to be ready, in milliseconds; unknown until then, and then nothing is ended.
#[derive(Debug, Default)]
pub(crate) struct Reload(AtomicU64);

impl Reload {
    /// The first model is in memory, so long after the worker's start.
    pub(crate) fn measured(&self, since_start: Duration) {
        let ms = u64::try_from((since_start + STARTING).as_millis()).unwrap_or(u64::MAX);
        self.0.store(ms.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        Some(self.0.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

/// Whether ending the process gives the slot back sooner, by more than the grace.
fn is_worth_it(overdue: &Overdue, grace: Duration, reload: Option<Duration>) -> bool {
    overdue.is_alone
        && overdue.since >= grace
        && overdue.rest.zip(reload).is_some_and(|(rest, reload)| rest > reload + grace)
}

/// Looks after `session` until the process ends.
pub(crate) fn watch(session: Arc<Session>, grace: Duration, reload: Arc<Reload>) -> std::io::Result<()> {
    let began = Instant::now();
    let patient = std::env::var(PATIENT_FOR)
        .ok()
        .and_then(|ms| ms.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    std::thread::Builder::new().name("impatience".into()).spawn(move || {
        loop {
            std::thread::sleep(LOOK);
            let Some(overdue) = session.overdue() else { continue };
            if began.elapsed() < patient || !is_worth_it(&overdue, grace, reload.get()) {
                continue;
            }
            let (since_ms, rest_ms) = (overdue.since.as_millis(), overdue.rest.map(|rest| rest.as_millis()));
            tracing::warn!(
                since_ms,
                rest_ms,
                "a cancelled task goes on: ending this worker, which is faster"
            );
            session.close();
            end_process(ENDED_ITSELF);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_only_where_that_is_faster_and_harms_nobody() {
        let s = Duration::from_secs;
        let overdue = Overdue { since: s(2), rest: Some(s(10)), is_alone: true };
        let (grace, reload) = (s(2), Some(s(5)));
        assert!(is_worth_it(&overdue, grace, reload));
        for (other, reload) in [
            (Overdue { is_alone: false, ..overdue }, reload),
            (Overdue { since: s(1), ..overdue }, reload),
            (Overdue { rest: Some(s(7)), ..overdue }, reload),
            (Overdue { rest: None, ..overdue }, reload),
            (overdue, Some(s(8))),
            (overdue, None),
        ] {
            assert!(!is_worth_it(&other, grace, reload), "{other:?} {reload:?}");
        }
    }
}
