//! The `admin` channel: lists, task histories, and orders about tasks, queues and nodes.
//!
//! Does not: check who owns a task. Processes that reach this channel can read the data directory anyway.

use std::cmp::Reverse;

use lamagrid_domain::{
    Entry, Event, Failure, FailureKind, LineFeeds, Milestone, Owner, QueueName, Status, TaskId, printable,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, Cursor, ListTasks, PAGE_TASKS, Page, PauseQueue, Paused, Purge, Purged,
    Refused, Retried, TaskHistory, TaskLine, Unknown,
};

use crate::core::effect::Authority;
use crate::core::policy::admission::AdmissionRequest;
use crate::core::state::pauses::Pause;
use crate::core::state::task::{NewTask, Task};
use crate::core::{Core, Effect, FinishedTask, StoreOp};

/// Tasks that one request removes, so that it does not delay others; the caller repeats it.
const MAX_PURGED: usize = 10_000;
/// The name of who gave an order is kept up to this length.
const MAX_BY_CHARS: usize = 80;
/// Bytes of failure texts of a history in one message: the rest of it and the task's own failure fit beside them.
const HISTORY_BYTES: usize = 32 * 1024;

/// The ended tasks that a purge removes.
#[derive(Debug, Clone, Copy)]
enum Purgeable {
    DeadLetters,
    /// All others.
    Finished,
}

impl Purgeable {
    fn of(purge: &Purge) -> Self {
        if purge.dead { Self::DeadLetters } else { Self::Finished }
    }

    fn includes(self, ended: &FinishedTask) -> bool {
        match self {
            Self::DeadLetters => ended.dead.is_some(),
            Self::Finished => ended.dead.is_none(),
        }
    }
}

impl Core {
    pub(crate) fn on_admin(&mut self, peer: PeerId, request: AdminRequest) {
        let reply = match request {
            AdminRequest::ListTasks(list) => self.list(&list).into(),
            AdminRequest::GetTaskHistory(tell) => self.task_history(tell.id),
            AdminRequest::CancelTask(cancel) => {
                tracing::info!(task.id = %cancel.id, "cancelled by an administrator");
                self.cancel(cancel.id);
                self.task_history(cancel.id)
            }
            AdminRequest::RetryTask(retry) => self.retry_now(&peer, retry.id),
            AdminRequest::PauseQueue(pause) => self.pause_or_resume(&peer, pause),
            AdminRequest::DrainNode(drain) => self.drain_node(&peer, drain),
            AdminRequest::Purge(purge) => self.purge(purge.older_than_ms, Purgeable::of(&purge)).into(),
            AdminRequest::GetNode(get) => self.node_detail(&get.node),
            AdminRequest::UndrainNode(undrain) => self.undrain_node(&peer, undrain),
            AdminRequest::RemoveNode(remove) => self.remove_node(&peer, remove),
            AdminRequest::SetNode(set) => self.set_node(&peer, set),
            AdminRequest::GetStatistics(get) => self.statistics.page(get.skip).into(),
        };
        self.emit(Effect::Admin { peer, reply });
    }

    /// Cancels an unfinished task; a finished one stays as it is.
    pub(crate) fn cancel(&mut self, id: TaskId) {
        if self.tasks.contains(id) {
            self.stop_attempt(id);
            self.end(id, Event::Cancel, None);
        }
    }

    fn list(&self, wanted: &ListTasks) -> Page {
        let is_of = |owner: &Owner| wanted.owner.as_ref().is_none_or(|of| of == owner);
        let mut input_bytes = 0_u64;
        let live = self.tasks.values().filter(|task| is_of(&task.spec().owner));
        let live = live.map(|task| (unfinished_line(task), task.spec().input_bytes()));
        let ended = self.retention.iter().filter(|(_, ended)| is_of(&ended.owner));
        let ended = ended.map(|(id, ended)| (finished_line(*id, ended), 0));
        let fits = |line: &TaskLine| {
            (wanted.states.is_empty() || wanted.states.contains(&line.status))
                && (!wanted.dead || line.dead)
                && wanted.queue.as_ref().is_none_or(|queue| *queue == line.queue)
                && wanted.model.as_ref().is_none_or(|model| *model == line.model)
                && (wanted.client.is_none() || wanted.client == line.client)
        };
        let key = |line: &TaskLine| (line.created_wall_ms, line.id);
        let mut total = 0;
        let mut rest: Vec<_> = live
            .chain(ended)
            .filter(|(line, _)| fits(line))
            .map(|(line, bytes)| {
                total += 1;
                input_bytes = input_bytes.saturating_add(bytes);
                line
            })
            .filter(|line| {
                wanted.after.as_ref().is_none_or(|after| key(line) < (after.created_wall_ms, after.id))
            })
            .collect();
        let limit = (wanted.limit as usize).clamp(1, PAGE_TASKS);
        let more = rest.len() > limit;
        if more {
            rest.select_nth_unstable_by_key(limit, |line| Reverse(key(line)));
            rest.truncate(limit);
        }
        rest.sort_unstable_by_key(|line| Reverse(key(line)));
        let last = rest.last().filter(|_| more);
        let next = last.map(|line| Cursor { created_wall_ms: line.created_wall_ms, id: line.id });
        Page { tasks: rest, next, total, input_bytes }
    }

    fn task_history(&self, id: TaskId) -> AdminReply {
        if let Some(task) = self.tasks.get(id) {
            let spec = task.spec();
            return TaskHistory {
                task: self.info(task),
                owner: spec.owner.clone(),
                client: spec.client.clone(),
                priority: spec.priority,
                input_bytes: spec.input_bytes(),
                dead: false,
                replay_of: spec.replay_of,
                history: full_history(task.created_wall_ms(), spec.replay_of, task.history()),
            }
            .into();
        }
        let Some(finished) = self.retention.get(id) else { return self.unknown(id) };
        TaskHistory {
            task: finished.info(id),
            owner: finished.owner.clone(),
            client: finished.client.clone(),
            priority: finished.priority,
            input_bytes: finished.dead.as_ref().map_or(0, |dead| dead.spec.input_bytes()),
            dead: finished.dead.is_some(),
            replay_of: finished.replay_of,
            history: full_history(finished.created_wall_ms, finished.replay_of, &finished.history),
        }
        .into()
    }

    fn unknown(&self, id: TaskId) -> AdminReply {
        Unknown { seq: 0, id, expired: self.retention.tombstones().contains(id) }.into()
    }

    fn retry_now(&mut self, peer: &PeerId, id: TaskId) -> AdminReply {
        if let Some(task) = self.tasks.get_mut(id) {
            let Some(not_before_ms) = task.not_before_ms() else {
                return refused(format!("task {id} is on a node now"));
            };
            if not_before_ms > self.clock.elapsed_ms() {
                self.unqueue(id);
                self.tasks.get_mut(id).expect("looked up above").end_delay();
                self.enqueue(id);
                self.dispatch_task(id);
            }
            return Retried { id, runs_as: id }.into();
        }
        let Some(ended) = self.retention.get(id) else { return self.unknown(id) };
        let Some(dead) = &ended.dead else {
            let replayed = ended.history.iter().rev().find_map(|entry| match entry.what {
                Milestone::ReplayedAs { task } => Some(task),
                _ => None,
            });
            let text = match (replayed, ended.status) {
                (Some(task), _) => format!(
                    "task {id} was replayed already, as {task}: see lamagrid task show {task}; if that one failed, too, \
                     replay it"
                ),
                (None, Status::Failed) => {
                    format!("the inputs of task {id} are gone: only dead letters keep them; submit it again")
                }
                (None, status) => format!("task {id} is {status}; only what failed can be tried again"),
            };
            return refused(text);
        };
        let mut spec = dead.spec.clone();
        let inline = dead.inline.clone();
        let (digest, drawn_ms) = (ended.digest, self.clock.wall().later_ms());
        let new = TaskId::drawn_at(drawn_ms, self.random_bytes());
        (spec.id, spec.replay_of, spec.deadline_wall_ms) = (new, Some(id), None);
        if let Err(failure) = self.route(&mut spec) {
            return refusal(failure);
        }
        // Its inputs are in the spool already: only its place in the queue counts.
        let wanted = AdmissionRequest { bytes: 0, ..AdmissionRequest::of(&spec, Authority::Administrator) };
        let evicted = match self.admit(peer, &wanted) {
            Ok(evicted) => evicted,
            Err(failure) => return refusal(failure),
        };
        let (seq, created_wall_ms) = (self.tasks.next_seq(), self.clock.now().wall_ms);
        let task = Task::new(NewTask { spec, digest, seq, created_wall_ms, inline });
        self.make_room(evicted, |core| core.take_over(id, task));
        tracing::info!(task.id = %id, runs_as = %new, "dead letter is replayed");
        self.dispatch_task(new);
        Retried { id, runs_as: new }.into()
    }

    /// Moves the inputs of a dead letter to the task that replays it.
    fn take_over(&mut self, dead: TaskId, task: Task) {
        let new = task.id();
        self.admission.task_removed(self.retention.get(dead).expect("the caller looked it up"));
        let wall_ms = self.clock.now().wall_ms;
        let ended = self.retention.mark_replayed(dead, new, wall_ms).expect("looked up above");
        let release = StoreOp::Release { id: dead, ended };
        self.together(|core| {
            core.accept_task(task, Vec::new(), Some(dead));
            core.emit(Effect::Store(release));
        });
    }

    fn pause_or_resume(&mut self, peer: &PeerId, request: PauseQueue) -> AdminReply {
        let PauseQueue { queue, paused, by } = request;
        let Some(waiting) = self.ready.length(&queue) else {
            let known: Vec<_> = self.ready.queues().map(QueueName::as_str).collect();
            return refused(format!("there is no queue {queue}; there are {}", known.join(", ")));
        };
        if self.paused.contains(&queue) != paused {
            let by = asked_by(peer, by);
            let pause = if paused {
                tracing::info!(%queue, by, waiting, "queue is paused: its tasks wait");
                let pause = Pause { by, since_wall_ms: self.clock.now().wall_ms };
                self.paused.insert(queue.clone(), pause.clone());
                Some(pause)
            } else {
                tracing::info!(%queue, by, waiting, "queue goes on");
                self.paused.remove(&queue);
                None
            };
            self.emit(Effect::Store(StoreOp::Pause { queue: queue.clone(), pause }));
            self.sessions.ids().into_iter().for_each(|session| self.dispatch_to(session));
        }
        Paused { queue, paused, waiting }.into()
    }

    /// At the start: a queue that was removed from the configuration is not paused if it is added again.
    pub(crate) fn forget_unknown_pauses(&mut self) {
        let known = &self.settings.queues;
        for queue in self.paused.remove_unknown(|queue| known.contains_key(queue)) {
            tracing::info!(%queue, "the pause of a queue is forgotten: the configuration has no such queue any more");
            self.emit(Effect::Store(StoreOp::Pause { queue, pause: None }));
        }
    }

    /// Tells a client that a queue is paused; `None` if it is not.
    pub(crate) fn pause_text(&self, queue: &QueueName) -> Option<String> {
        self.paused.text(queue, self.clock.now().wall_ms)
    }

    fn purge(&mut self, older_than_ms: u64, which: Purgeable) -> Purged {
        let until = self.clock.wall().later_ms().saturating_sub(older_than_ms);
        let over = self.retention.iter().filter(|(_, e)| which.includes(e) && e.finished_wall_ms <= until);
        let ids: Vec<TaskId> = over.map(|(id, _)| *id).take(MAX_PURGED).collect();
        let mut bytes = 0_u64;
        for id in &ids {
            bytes = bytes.saturating_add(self.retention.get(*id).map_or(0, FinishedTask::kept_bytes));
            self.forget(*id);
        }
        if !ids.is_empty() {
            tracing::info!(tasks = ids.len(), bytes, ?which, "ended tasks are removed by an administrator");
        }
        Purged { tasks: ids.len() as u64, bytes }
    }
}

/// The name of who gave an order, as logs and refusals show it.
pub(crate) fn asked_by(peer: &PeerId, by: Option<String>) -> String {
    let by = by.filter(|by| !by.trim().is_empty());
    let by = by.map_or_else(
        || "an administrator".to_owned(),
        |by| printable(&by, MAX_BY_CHARS, LineFeeds::Replace).into_owned(),
    );
    match peer.holder() {
        Owner::LOCAL => by,
        // The name in the request is only a claim.
        certificate => format!("{by}, certificate {certificate}"),
    }
}

/// A history from the acceptance on, as one message can hold it: of many long failures, each is shortened.
fn full_history(created_wall_ms: u64, replay_of: Option<TaskId>, history: &[Entry]) -> Vec<Entry> {
    let what = replay_of.map_or(Milestone::Accepted, |task| Milestone::Replays { task });
    let accepted = Entry { at_wall_ms: created_wall_ms, attempt: 0, what };
    let max_bytes = HISTORY_BYTES / history.len().max(1);
    let shortened = history.iter().cloned().map(|mut entry| {
        if let Milestone::Failed { failure, retry_in_ms } = entry.what {
            entry.what = Milestone::Failed { failure: failure.cut(max_bytes), retry_in_ms };
        }
        entry
    });
    std::iter::once(accepted).chain(shortened).collect()
}

pub(crate) fn refused(text: String) -> AdminReply {
    refusal(Failure::new(FailureKind::InvalidInput, text))
}

pub(super) fn refusal(failure: Failure) -> AdminReply {
    Refused { seq: 0, failure, queue_len: 0, wait_ms: None }.into()
}

pub(super) fn unfinished_line(task: &Task) -> TaskLine {
    TaskLine {
        id: task.id(),
        model: task.spec().model.clone(),
        queue: task.spec().queue.clone(),
        client: task.spec().client.clone(),
        status: task.state().status(),
        failure: None,
        node: task.node().map(ToString::to_string),
        attempts: task.counters().attempts,
        dead: false,
        created_wall_ms: task.created_wall_ms(),
        finished_wall_ms: None,
    }
}

fn finished_line(id: TaskId, ended: &FinishedTask) -> TaskLine {
    TaskLine {
        id,
        model: ended.model.clone(),
        queue: ended.queue.clone(),
        client: ended.client.clone(),
        status: ended.status,
        failure: ended.failure.as_ref().map(|failure| failure.kind),
        node: ended.node.clone(),
        attempts: ended.counters.attempts,
        dead: ended.dead.is_some(),
        created_wall_ms: ended.created_wall_ms,
        finished_wall_ms: Some(ended.finished_wall_ms),
    }
}
