//! How long tasks of a queue run, to tell clients how long they will wait.

use std::collections::BTreeMap;

use lamagrid_domain::QueueName;

/// The weight of the latest task: the average covers about the last ten.
const WEIGHT: f64 = 0.1;

/// A moving average per queue, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct RunTimes(BTreeMap<QueueName, f64>);

impl RunTimes {
    /// Counts the run time that a node reported.
    pub(crate) fn observe(&mut self, queue: &QueueName, ms: f64) {
        if ms.is_finite() && ms >= 0.0 {
            let average = self.0.entry(queue.clone()).or_insert(ms);
            *average += (ms - *average) * WEIGHT;
        }
    }

    /// How long a task waits with `ahead` tasks before it and this many slots that serve its queue. `None` without any
    /// experience or slot.
    pub(crate) fn expected_wait_ms(&self, queue: &QueueName, ahead: u64, slots: u64) -> Option<u64> {
        let run_ms = self.0.get(queue)?;
        (slots > 0).then(|| (ahead as f64 * run_ms / slots as f64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_wait_is_the_usual_run_time_over_the_slots() {
        let (mut run_times, queue) = (RunTimes::default(), "gpu".parse().unwrap());
        assert_eq!(run_times.expected_wait_ms(&queue, 4, 2), None);
        [100.0, f64::NAN, -1.0, 200.0].into_iter().for_each(|ms| run_times.observe(&queue, ms));
        assert_eq!(run_times.expected_wait_ms(&queue, 4, 2), Some(220));
        assert_eq!(run_times.expected_wait_ms(&queue, 4, 0), None);
    }
}
