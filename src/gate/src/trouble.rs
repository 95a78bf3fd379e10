//! Describes why the scheduler cannot be reached, for the errors of callers that time out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A step that takes longer is named as the reason.
const SLOW: Duration = Duration::from_secs(1);
/// How long a stall is named as the reason: a path that drops packets soon stalls again.
const RECENT: Duration = Duration::from_secs(30);

/// The known reasons why the scheduler does not answer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The error of the last dial, if it failed.
    failed: Option<String>,
    /// The last stall of a connection, and when it ended.
    stalled: Option<(String, Instant)>,
    /// The current steps of dials, oldest first, with their start.
    steps: BTreeMap<u64, (String, Instant)>,
    next: u64,
}

impl Trouble {
    /// The most important current reason; `None` if no fault is known.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let known = self.0.lock();
        let slow = || {
            let (step, since) = known.steps.values().find(|(_, since)| since.elapsed() >= SLOW)?;
            Some(format!("{step} takes {} s already", since.elapsed().as_secs()))
        };
        let stalled = || {
            let (text, _) = known.stalled.as_ref().filter(|(_, at)| at.elapsed() < RECENT)?;
            Some(text.clone())
        };
        known.failed.clone().or_else(slow).or_else(stalled)
    }

    /// Starts to track a dial.
    pub(crate) fn begin(&self) -> Steps {
        let mut known = self.0.lock();
        known.next += 1;
        Steps { trouble: self.clone(), number: known.next }
    }

    /// Records the end of a dial: its error, or `None` for success.
    pub(crate) fn dialled(&self, failed: Option<String>) {
        self.0.lock().failed = failed;
    }

    /// Records the end of a connection or transfer: the description of a stall, or `None`.
    pub(crate) fn ended(&self, stalled: Option<String>) {
        self.0.lock().stalled = stalled.map(|text| (text, Instant::now()));
    }
}

/// The steps of one dial, tracked until this is dropped.
#[derive(Debug)]
pub(crate) struct Steps {
    trouble: Trouble,
    number: u64,
}

impl Steps {
    /// Names the step for which the dial waits from now on.
    pub(crate) fn step(&self, step: String) {
        self.trouble.0.lock().steps.insert(self.number, (step, Instant::now()));
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.trouble.0.lock().steps.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_takes_precedence_over_a_slow_step_and_that_over_a_stall() {
        let trouble = Trouble::default();
        assert_eq!(trouble.text(), None);
        trouble.ended(Some("stalled".into()));
        let steps = trouble.begin();
        steps.step("looking up name".into());
        assert_eq!(trouble.text().as_deref(), Some("stalled"), "it has just begun");
        for (_, since) in trouble.0.lock().steps.values_mut() {
            *since -= Duration::from_secs(3);
        }
        assert_eq!(trouble.text().as_deref(), Some("looking up name takes 3 s already"));
        trouble.dialled(Some("refused".into()));
        assert_eq!(trouble.text().as_deref(), Some("refused"));
        drop(steps);
        trouble.dialled(None);
        trouble.ended(None);
        assert_eq!(trouble.text(), None);
    }
}
