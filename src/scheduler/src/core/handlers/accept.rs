//! Accepts tasks: admits them, evicts others for them, writes and lists them.

use bytes::Bytes;

use lamagrid_domain::{Event, Failure, FailureKind, Role, TaskId};
use lamagrid_protocol::PeerId;

use crate::core::policy::admission::{AdmissionPolicy, AdmissionRequest};
use crate::core::policy::needs::Demand;
use crate::core::state::task::Task;
use crate::core::{Core, Effect, StoreOp};

impl Core {
    /// Whether a task may come in over a connection. See [`AdmissionPolicy::admit`].
    pub(crate) fn admit(&self, peer: &PeerId, wanted: &AdmissionRequest<'_>) -> Result<Vec<TaskId>, Failure> {
        let policy = AdmissionPolicy {
            settings: &self.settings,
            now_wall_ms: self.clock.now().wall_ms,
            admission: &self.admission,
            tasks: &self.tasks,
            ready: &self.ready,
            paused: &self.paused,
            #[cfg(any(test, feature = "sabotage"))]
            faults: self.faults,
        };
        policy.admit(self.followers.followed_by(peer), wanted)
    }

    /// Evicts tasks and runs `enter`, in one transaction.
    pub(crate) fn make_room(&mut self, evicted: Vec<TaskId>, enter: impl FnOnce(&mut Self)) {
        self.together(|core| {
            for id in evicted {
                let text = "the task was given up unbegun: the grid is full, and more important work came";
                let failure = Failure::new(FailureKind::Overloaded, text);
                core.end(id, Event::Fail(failure), None);
            }
            enter(core);
        });
    }

    /// Runs `act` and joins its writes into one transaction, ahead of all messages.
    pub(crate) fn together(&mut self, act: impl FnOnce(&mut Self)) {
        let mark = self.effects.mark();
        act(self);
        self.effects.join_writes_since(mark);
    }

    /// Writes a new task and lists it.
    pub(crate) fn accept_task(&mut self, task: Task, inline: Vec<(Role, Bytes)>, inherits: Option<TaskId>) {
        let spec = task.spec();
        tracing::info!(
            task.id = %spec.id, queue = %spec.queue, model = %spec.model, owner = %spec.owner,
            priority = spec.priority, "task accepted"
        );
        self.write_accepted(&task, inline, inherits);
        self.list_task(task);
    }

    fn write_accepted(&mut self, task: &Task, inline: Vec<(Role, Bytes)>, inherits: Option<TaskId>) {
        fault!(self, RowForgotten(task.id()) => return);
        self.emit(Effect::Store(StoreOp::Insert {
            spec: Box::new(task.spec().clone()),
            digest: task.digest(),
            seq: task.seq(),
            created_wall_ms: task.created_wall_ms(),
            inline,
            inherits,
        }));
    }

    /// Lists a queued task in every part.
    pub(crate) fn list_task(&mut self, mut task: Task) {
        let id = task.id();
        task.set_demand(Demand::of(task.spec(), &self.settings.routes.needs));
        self.ready.set_tag(&mut task);
        self.admission.task_accepted(task.spec());
        self.timers.start_deadline(&task);
        self.tasks.insert(task);
        self.enqueue(id);
    }
}
