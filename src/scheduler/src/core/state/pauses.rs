//! Queues whose tasks are not given to nodes.

use std::collections::BTreeMap;

use lamagrid_domain::QueueName;

/// An order to stop a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pause {
    /// Who gave it.
    pub(crate) by: String,
    /// When, wall clock, ms; 0 if the store does not say.
    pub(crate) since_wall_ms: u64,
}

/// Paused queues.
#[derive(Debug, Default)]
pub(crate) struct Pauses(BTreeMap<QueueName, Pause>);

impl Pauses {
    pub(crate) fn recovered(paused: BTreeMap<QueueName, Pause>) -> Self {
        Self(paused)
    }

    pub(crate) fn contains(&self, queue: &QueueName) -> bool {
        self.0.contains_key(queue)
    }

    pub(crate) fn insert(&mut self, queue: QueueName, pause: Pause) {
        self.0.insert(queue, pause);
    }

    pub(crate) fn remove(&mut self, queue: &QueueName) {
        self.0.remove(queue);
    }

    /// Removes pauses of queues that the configuration does not have any more. Returns their queues.
    pub(crate) fn remove_unknown(&mut self, is_known: impl Fn(&QueueName) -> bool) -> Vec<QueueName> {
        let unknown: Vec<_> = self.0.keys().filter(|queue| !is_known(queue)).cloned().collect();
        unknown.iter().for_each(|queue| self.remove(queue));
        unknown
    }

    /// Tells a client that a queue is paused; `None` if it is not.
    pub(crate) fn text(&self, queue: &QueueName, now_wall_ms: u64) -> Option<String> {
        let Pause { by, since_wall_ms } = self.0.get(queue)?;
        // Pauses of older stores do not say since when.
        let since = match since_wall_ms {
            0 => String::new(),
            since => format!(" for {} s", now_wall_ms.saturating_sub(*since) / 1_000),
        };
        Some(format!(
            "queue {queue} has been paused{since} by {by}: its tasks wait until lamagrid queue resume {queue}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_with_its_age_if_the_store_knows_it() {
        let queue = |name: &str| name.parse::<QueueName>().unwrap();
        let pause = |since_wall_ms| Pause { by: "ann".into(), since_wall_ms };
        let mut pauses = Pauses::recovered([(queue("gpu"), pause(1_000)), (queue("old"), pause(0))].into());
        assert!(pauses.text(&queue("gpu"), 9_000).unwrap().contains("paused for 8 s by ann"));
        assert!(pauses.text(&queue("old"), 9_000).unwrap().contains("paused by ann"));
        assert_eq!(pauses.text(&queue("cpu"), 9_000), None);
        assert_eq!(pauses.remove_unknown(|each| *each == queue("gpu")), [queue("old")]);
        assert!(pauses.contains(&queue("gpu")) && !pauses.contains(&queue("old")));
    }
}
