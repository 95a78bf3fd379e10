//! How long tasks run, to tell clients how long they will wait.

use std::collections::BTreeMap;

use lamagrid_domain::{ModelName, QueueName};

/// The weight of the latest task: the average covers about the last ten.
const WEIGHT: f64 = 0.1;
/// Models with an average of their own; that of the queue counts for others.
const MAX_MODELS: usize = 1_024;

/// Moving averages per queue and per model, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct RunTimes {
    queues: BTreeMap<QueueName, f64>,
    models: BTreeMap<ModelName, f64>,
}

impl RunTimes {
    /// Counts the run time that a node reported.
    pub(crate) fn observe(&mut self, queue: &QueueName, model: &ModelName, ms: f64) {
        if !ms.is_finite() || ms < 0.0 {
            return;
        }
        let follow = |average: &mut f64| *average += (ms - *average) * WEIGHT;
        follow(self.queues.entry(queue.clone()).or_insert(ms));
        if self.models.len() < MAX_MODELS || self.models.contains_key(model) {
            follow(self.models.entry(model.clone()).or_insert(ms));
        }
    }

    /// The usual run time of a model's tasks, or of all tasks of its queue. `None` without any experience.
    pub(crate) fn usual_ms(&self, queue: &QueueName, model: Option<&ModelName>) -> Option<f64> {
        let of_model = model.and_then(|model| self.models.get(model));
        of_model.or_else(|| self.queues.get(queue)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_tasks_count_most_and_a_model_without_experience_takes_its_queue_s() {
        let (mut run_times, queue) = (RunTimes::default(), "gpu".parse().unwrap());
        let [lama, sd]: [ModelName; 2] = ["lama", "sd"].map(|name| name.parse().unwrap());
        assert_eq!(run_times.usual_ms(&queue, Some(&lama)), None);
        [100.0, f64::NAN, -1.0, 200.0].into_iter().for_each(|ms| run_times.observe(&queue, &lama, ms));
        assert_eq!(run_times.usual_ms(&queue, Some(&lama)), Some(110.0));
        assert_eq!(run_times.usual_ms(&queue, Some(&sd)), Some(110.0));
        run_times.observe(&queue, &sd, 1_110.0);
        assert_eq!(run_times.usual_ms(&queue, Some(&lama)), Some(110.0));
        assert_eq!(run_times.usual_ms(&queue, None), Some(210.0));
    }
}
