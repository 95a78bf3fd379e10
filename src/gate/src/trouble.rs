//! What keeps this side from its scheduler, in words, for whoever gives up waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A step that takes longer is mentioned.
const SLOW: Duration = Duration::from_secs(1);
/// A stall is mentioned for this long: a path that swallows packets soon causes the next.
const RECENT: Duration = Duration::from_secs(30);

/// Why the scheduler does not answer, as far as the dialling side knows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// How the last dial ended, if it failed.
    failed: Option<String>,
    /// How the last connection ended, and when, if its bytes did not get through.
    stalled: Option<(String, Instant)>,
    /// What dials wait for, oldest first, and since when.
    steps: BTreeMap<u64, (String, Instant)>,
    next: u64,
}

impl Trouble {
    /// The reason, if there is one.
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

    /// A dial begins.
    pub(crate) fn begin(&self) -> Steps {
        let mut known = self.0.lock();
        known.next += 1;
        Steps { trouble: self.clone(), number: known.next }
    }

    /// How a dial ended.
    pub(crate) fn dialled(&self, failed: Option<String>) {
        self.0.lock().failed = failed;
    }

    /// How a connection, or a transfer on one, ended.
    pub(crate) fn ended(&self, stalled: Option<String>) {
        self.0.lock().stalled = stalled.map(|text| (text, Instant::now()));
    }
}

/// The steps of one dial, until this is dropped.
#[derive(Debug)]
pub(crate) struct Steps {
    trouble: Trouble,
    number: u64,
}

impl Steps {
    /// The dial waits for this from now on.
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
    fn a_failure_is_told_before_a_slow_step_and_that_before_a_stall() {
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
