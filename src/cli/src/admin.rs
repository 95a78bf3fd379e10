//! Runs the commands of the `admin` channel: lists tasks, shows their histories, and changes tasks, queues
//! and nodes.
//!
//! Does not: check who owns a task. A user who may read the data directory may administer its tasks.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::runtime::Runtime;

use lamagrid_client::{
    AdminReply, AdminRequest, CancelTask, ClientError, DrainNode, Endpoint, GetTaskHistory, ListTasks, Page,
    PauseQueue, Purge, RetryTask, TaskHistory,
};
use lamagrid_config::Config;
use lamagrid_domain::{Failure, FailureKind, NodeName, QueueName, Status, TaskId};
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::args::{ListArgs, PurgeArgs};
use crate::error::{CliError, REFUSED};
use crate::grid::{PATIENCE, endpoint};
use crate::output::{Format, Show};
use crate::task_history::{Selection, TaskHistoryView, TaskLines};
use crate::units;

/// Sends administrators' requests to one scheduler, and formats the answers.
pub(crate) struct Admin {
    data_dir: PathBuf,
    endpoint: Endpoint,
    /// Runs all requests of one command.
    runtime: Runtime,
    pub(crate) format: Format,
}

impl Admin {
    pub(crate) fn new(config: &Config, join: Option<&Path>, format: Format) -> Result<Self, CliError> {
        let (runtime, endpoint) = endpoint(config, join)?;
        Ok(Self { data_dir: config.data_dir()?, endpoint, runtime, format })
    }

    pub(crate) fn ask(&self, request: impl Into<AdminRequest>) -> Result<AdminReply, CliError> {
        let asked = lamagrid_client::admin(&self.endpoint, &self.data_dir, request, PATIENCE);
        Ok(self.runtime.block_on(asked)?)
    }

    /// `lamagrid task list`: fetches page after page up to the limit.
    pub(crate) fn list(&self, args: ListArgs) -> Result<Answer, CliError> {
        let ListArgs { state: states, queue, model, client, limit } = args;
        self.pages(ListTasks { states, dead: false, queue, model, client, owner: None, after: None, limit })
    }

    fn pages(&self, mut request: ListTasks) -> Result<Answer, CliError> {
        let selection = if request.dead { Selection::DeadLetters } else { Selection::Tasks };
        let limit = request.limit;
        let mut lines = Vec::new();
        let total = loop {
            let AdminReply::Page(Page { tasks, next, total, .. }) = self.ask(request.clone())? else {
                return Err(unexpected());
            };
            lines.extend(tasks);
            request.limit = limit.saturating_sub(u32::try_from(lines.len()).unwrap_or(u32::MAX));
            match next {
                Some(next) if request.limit > 0 => request.after = Some(next),
                // Every page counts all tasks; the number may have changed since the first page.
                Some(_) | None => break total.max(lines.len() as u64),
            }
        };
        let more = total.saturating_sub(lines.len() as u64);
        let view = TaskLines::new(lines, selection, wall_ms());
        let remark = (more > 0).then(|| format!("{more} more; see them with --limit {total}"));
        Ok(Answer { text: self.format.render(&view)?, remark, code: 0 })
    }

    /// `lamagrid dead list`
    pub(crate) fn list_dead(&self, limit: u32) -> Result<Answer, CliError> {
        let (states, queue, model, client, after) = (Vec::new(), None, None, None, None);
        self.pages(ListTasks { states, dead: true, queue, model, client, owner: None, after, limit })
    }

    /// `lamagrid task show`
    pub(crate) fn show(&self, id: TaskId) -> Result<Answer, CliError> {
        let history = self.task_history(GetTaskHistory { id })?;
        let code = failure_code(&history).unwrap_or(0);
        Ok(Answer { text: self.rendered(history)?, remark: None, code })
    }

    /// `lamagrid task cancel`
    pub(crate) fn cancel(&self, id: TaskId) -> Result<Answer, CliError> {
        let history = self.task_history(CancelTask { id })?;
        let (code, remark) = match history.task.status {
            Status::Cancelled | Status::Queued | Status::Processing => (0, None),
            Status::Completed => {
                (REFUSED, Some(format!("error: task {id} completed before it could be cancelled")))
            }
            Status::Failed => {
                let code = failure_code(&history).unwrap_or(REFUSED);
                (code, Some(format!("error: task {id} failed before it could be cancelled")))
            }
        };
        Ok(Answer { text: self.rendered(history)?, remark, code })
    }

    /// `lamagrid task retry`, `lamagrid dead replay`
    pub(crate) fn retry(&self, id: TaskId) -> Result<Answer, CliError> {
        let AdminReply::Retried(retried) = self.ask(RetryTask { id })? else { return Err(unexpected()) };
        let text = if retried.runs_as == id {
            format!("task {id} is due now")
        } else {
            format!("task {id} was submitted again as {}", retried.runs_as)
        };
        #[derive(Serialize)]
        struct View {
            id: TaskId,
            runs_as: TaskId,
        }
        self.done(View { id, runs_as: retried.runs_as }, text)
    }

    /// `lamagrid queue pause`
    pub(crate) fn pause(&self, queue: QueueName) -> Result<Answer, CliError> {
        self.change_queue(PauseQueue { queue, paused: true, by: requester() })
    }

    /// `lamagrid queue resume`
    pub(crate) fn resume(&self, queue: QueueName) -> Result<Answer, CliError> {
        self.change_queue(PauseQueue { queue, paused: false, by: requester() })
    }

    fn change_queue(&self, request: PauseQueue) -> Result<Answer, CliError> {
        let AdminReply::Paused(now) = self.ask(request)? else {
            return Err(unexpected());
        };
        let state = if now.paused { "paused: its tasks wait" } else { "open: its tasks are given to nodes" };
        let text = format!("queue {} is {state} ({} waiting)", now.queue, now.waiting);
        #[derive(Serialize)]
        struct View {
            queue: QueueName,
            paused: bool,
            waiting: u64,
        }
        self.done(View { queue: now.queue, paused: now.paused, waiting: now.waiting }, text)
    }

    /// `lamagrid node drain`
    pub(crate) fn drain(&self, node: NodeName) -> Result<Answer, CliError> {
        let AdminReply::Draining(now) = self.ask(DrainNode { node, by: requester() })? else {
            return Err(unexpected());
        };
        let text = format!(
            "node {} leaves once it has finished what it has begun ({} running)",
            now.node, now.running
        );
        #[derive(Serialize)]
        struct View {
            node: NodeName,
            running: u32,
        }
        self.done(View { node: now.node, running: now.running }, text)
    }

    /// `lamagrid purge`: repeats the request until nothing is left, because the scheduler removes a part per
    /// request.
    pub(crate) fn purge(&self, args: &PurgeArgs) -> Result<Answer, CliError> {
        let older_than_ms = u64::try_from(args.older_than.as_millis()).unwrap_or(u64::MAX);
        let (mut tasks, mut bytes) = (0_u64, 0_u64);
        loop {
            let AdminReply::Purged(now) = self.ask(Purge { older_than_ms, dead: args.dead })? else {
                return Err(unexpected());
            };
            if now.tasks == 0 {
                break;
            }
            tasks += now.tasks;
            bytes = bytes.saturating_add(now.bytes);
        }
        let what = match (args.dead, tasks) {
            (true, 1) => "dead letter",
            (true, _) => "dead letters",
            (false, 1) => "ended task",
            (false, _) => "ended tasks",
        };
        let text = format!("{tasks} {what} removed, with {} of pictures", units::memory(bytes));
        #[derive(Serialize)]
        struct View {
            tasks: u64,
            bytes: u64,
        }
        self.done(View { tasks, bytes }, text)
    }

    fn task_history(&self, request: impl Into<AdminRequest>) -> Result<TaskHistory, CliError> {
        match self.ask(request)? {
            AdminReply::TaskHistory(history) => Ok(history),
            _ => Err(unexpected()),
        }
    }

    fn rendered(&self, history: TaskHistory) -> Result<String, CliError> {
        self.format.render(&TaskHistoryView::new(history, wall_ms()))
    }

    pub(crate) fn done(&self, view: impl Serialize, text: String) -> Result<Answer, CliError> {
        self.format.render(&Done { view, text }).map(Answer::ok)
    }
}

/// Answer of a command that changed something: a sentence for people, its figures for programs.
struct Done<V> {
    view: V,
    text: String,
}

impl<V: Serialize> Serialize for Done<V> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.view.serialize(serializer)
    }
}

impl<V: Serialize> Show for Done<V> {
    fn table(&self) -> String {
        self.text.clone()
    }
}

/// Names the user who gives an order, for the scheduler's log and for other administrators.
pub(crate) fn requester() -> Option<String> {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user = user.filter(|user| !user.is_empty());
    let uid = || format!("user {}", rustix::process::getuid().as_raw());
    Some(format!("{} (lamagrid, pid {})", user.unwrap_or_else(uid), std::process::id()))
}

pub(crate) fn unexpected() -> CliError {
    let text = "the scheduler answered something else than was asked; is it of the same version?";
    ClientError::from(Failure::new(FailureKind::Incompatible, text)).into()
}

fn failure_code(history: &TaskHistory) -> Option<u8> {
    let failed = history.task.failure.as_ref().filter(|_| history.task.status == Status::Failed);
    failed.map(|failure| failure.kind.exit_code())
}
