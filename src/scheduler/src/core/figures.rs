//! What the core would say about itself at this instant, for gauges.

use std::collections::BTreeMap;

use lamagrid_domain::{QueueName, State};

use super::Core;

/// One queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueFigures {
    pub(crate) waiting: u64,
    pub(crate) running: u64,
    pub(crate) limit: u64,
    pub(crate) paused: bool,
}

/// The whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) queues: BTreeMap<QueueName, QueueFigures>,
    /// By the word that `lamagrid node list` has for a state.
    pub(crate) nodes: BTreeMap<&'static str, u64>,
    pub(crate) ended: u64,
    pub(crate) dead: u64,
    pub(crate) spool_bytes: u64,
    pub(crate) spool_limit_bytes: u64,
}

impl Core {
    /// Counts everything anew: cheap for some thousand tasks, and asked once a second.
    pub(crate) fn figures(&self) -> Figures {
        let mut queues: BTreeMap<_, _> = self
            .settings
            .queues
            .iter()
            .map(|(queue, limit)| {
                let (waiting, paused) = (self.queue_len[queue], self.paused.contains(queue));
                (queue.clone(), QueueFigures { waiting, running: 0, limit: *limit, paused })
            })
            .collect();
        for task in self.tasks.values().filter(|task| matches!(task.state, State::Assigned { .. })) {
            if let Some(queue) = queues.get_mut(&task.spec.queue) {
                queue.running += 1;
            }
        }
        let mut nodes =
            BTreeMap::from(["ready", "busy", "suspect", "aside", "draining"].map(|state| (state, 0)));
        for session in self.sessions.values() {
            *nodes.entry(self.state_of(session)).or_default() += 1;
        }
        Figures {
            queues,
            nodes,
            ended: self.ended.len() as u64,
            dead: self.ended.values().filter(|ended| ended.dead.is_some()).count() as u64,
            spool_bytes: self.usage.spool_bytes(),
            spool_limit_bytes: self.settings.limits.max_spool_bytes,
        }
    }
}
