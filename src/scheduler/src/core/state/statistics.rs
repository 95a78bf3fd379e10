//! Figures of ended tasks per queue and model, since the data directory was created.
//!
//! Totals, not increments, are written with each end: a commit that is repeated after an error counts nothing twice.

use std::collections::BTreeMap;

use lamagrid_domain::{ModelName, QueueName, Status};
use lamagrid_protocol::message::{STATISTICS_LINES, Statistics as Page, StatisticsLine};

use super::finished_task::FinishedTask;

/// Queues and models that are counted apart; the tasks of further ones count as [`OTHER`].
const MAX_LINES: usize = 1_000;
/// The name of the queue and of the model of all further tasks.
const OTHER: &str = "other";

/// One line per queue and model.
///
/// Invariant: at most [`MAX_LINES`] lines, and the one of [`OTHER`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Statistics(BTreeMap<(QueueName, ModelName), StatisticsLine>);

impl Statistics {
    /// The totals of the last scheduler.
    pub(crate) fn recovered(lines: Vec<StatisticsLine>) -> Self {
        Self(lines.into_iter().map(|line| ((line.queue.clone(), line.model.clone()), line)).collect())
    }

    /// Counts an ended task. Returns the new totals of its line.
    pub(crate) fn count(&mut self, ended: &FinishedTask) -> StatisticsLine {
        let key = (ended.queue.clone(), ended.model.clone());
        let is_counted_apart = self.0.len() < MAX_LINES || self.0.contains_key(&key);
        let (queue, model) = if is_counted_apart { key } else { other() };
        let line = self.0.entry((queue.clone(), model.clone())).or_insert(StatisticsLine {
            queue,
            model,
            completed: 0,
            failed: 0,
            cancelled: 0,
            wait_ms: 0,
            run_ms: 0,
        });
        match ended.status {
            Status::Completed => {
                line.completed += 1;
                let wait_ms = ended.stages.queue_ms.max(0.0) as u64;
                let total_ms = ended.stages.total_ms.max(0.0) as u64;
                line.wait_ms = line.wait_ms.saturating_add(wait_ms);
                line.run_ms = line.run_ms.saturating_add(total_ms.saturating_sub(wait_ms));
            }
            Status::Cancelled => line.cancelled += 1,
            Status::Failed | Status::Queued | Status::Processing => line.failed += 1,
        }
        line.clone()
    }

    /// The lines after the first `skip`.
    pub(crate) fn page(&self, skip: u32) -> Page {
        let mut rest = self.0.values().skip(skip as usize);
        let lines = rest.by_ref().take(STATISTICS_LINES).cloned().collect();
        Page { lines, more: rest.next().is_some() }
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        invariant!(self.0.len() <= MAX_LINES + 1, "{} lines of statistics", self.0.len());
        Ok(())
    }
}

fn other() -> (QueueName, ModelName) {
    let name = "five letters are a name";
    (OTHER.parse().expect(name), OTHER.parse().expect(name))
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::{Owner, Stages};

    use super::*;
    use crate::core::tests::finished;

    fn ended(model: &str, status: Status) -> FinishedTask {
        let stages = Stages { queue_ms: 30.0, total_ms: 100.0, ..Stages::default() };
        FinishedTask { model: model.parse().unwrap(), status, stages, ..finished(Owner::local()) }
    }

    #[test]
    fn each_queue_and_model_has_its_totals_after_a_restart_too() {
        let mut statistics = Statistics::default();
        for status in [Status::Completed, Status::Failed, Status::Cancelled, Status::Completed] {
            statistics.count(&ended("lama", status));
        }
        statistics.count(&ended("cv2", Status::Failed));
        let page = statistics.page(0);
        let mut statistics = Statistics::recovered(page.lines);
        let line = statistics.count(&ended("lama", Status::Completed));
        assert_eq!((line.queue.as_str(), line.model.as_str()), ("gpu", "lama"));
        assert_eq!((line.completed, line.failed, line.cancelled), (3, 1, 1));
        assert_eq!((line.wait_ms, line.run_ms), (90, 210));
        assert_eq!(statistics.page(1).lines, [line]);
    }

    #[test]
    fn too_many_queues_and_models_are_counted_together() {
        let mut statistics = Statistics::default();
        for n in 0..1_100 {
            statistics.count(&ended(&format!("m{n}"), Status::Completed));
        }
        statistics.check().unwrap();
        let line = statistics.count(&ended("m1099", Status::Completed));
        assert_eq!((line.queue.as_str(), line.model.as_str(), line.completed), ("other", "other", 101));
        assert_eq!(statistics.count(&ended("m1", Status::Completed)).completed, 2);
        let mut listed = 0;
        for page in (0..).map(|page| statistics.page(page * STATISTICS_LINES as u32)) {
            listed += page.lines.len();
            if !page.more {
                break;
            }
        }
        assert_eq!(listed, 1_001);
    }
}
