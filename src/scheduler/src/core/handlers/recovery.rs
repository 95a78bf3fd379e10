//! Restores the state of the core from the store.

use crate::core::policy::retry;
use crate::core::state::history;
use crate::core::state::task::{NewTask, Task};
use crate::core::{Core, StoredTask};

impl Core {
    pub(crate) fn recover(&mut self, stored: StoredTask) {
        match stored {
            StoredTask::Ended { id, ended } => {
                // Clamped: after the clock was set back, results must not be kept for years.
                let expiry =
                    ended.finished_wall_ms.min(self.clock.wall().later_ms()) + self.retention_ms(&ended);
                self.keep_finished(id, *ended, expiry);
            }
            StoredTask::Live { spec, digest, seq, created_wall_ms, counters, history, assigned, inline } => {
                let id = spec.id;
                let is_isolated = retry::has_shared_a_loss(&history);
                let created_wall_ms = created_wall_ms.min(self.clock.now().wall_ms);
                let waits_until_ms = assigned.is_none().then(|| self.clock.wall().believed_ms());
                let earlier_ms = history::waited_ms(created_wall_ms, &history, waits_until_ms);
                let new = NewTask { spec: *spec, digest, seq, created_wall_ms, inline };
                self.list_task(Task::recovered(new, counters, history, earlier_ms));
                if is_isolated {
                    self.tasks.isolate(id);
                }
                if let Some((token, node)) = assigned {
                    self.unqueue(id);
                    let until_ms = self.clock.elapsed_ms() + self.settings.scheduler.lease_ms;
                    self.leases.restore(token, id, node.clone(), until_ms);
                    let task = self.tasks.get_mut(id).expect("inserted above");
                    task.restore(token, &node, self.clock.now());
                    // The store does not tell whether its node is one of another queue.
                    for hop in self.settings.routes.spills(&task.spec().queue) {
                        self.ready.spill(task, hop.to.clone());
                    }
                    self.start_run_timer(id);
                }
            }
        }
    }
}
