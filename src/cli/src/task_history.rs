//! Formats lists of tasks, and one task with its history, for people and programs. The JSON is a contract:
//! keys are only ever added.
//!
//! Does not: send requests; [`crate::admin`] does.

use serde::Serialize;

use lamagrid_client::{TaskHistory, TaskLine};
use lamagrid_domain::{
    ClientName, Entry, Failure, FailureKind, Milestone, ModelName, Owner, QueueName, Status, TaskId,
};

use crate::output::{Show, columns};
use crate::units::{ago, duration_ms, rfc3339};
use crate::view::TaskView;

/// One task with its history.
#[derive(Serialize)]
pub(crate) struct TaskHistoryView {
    #[serde(flatten)]
    task: TaskView,
    owner: Owner,
    client: Option<ClientName>,
    priority: i8,
    dead: bool,
    replay_of: Option<TaskId>,
    history: Vec<EntryView>,
    #[serde(skip)]
    began_ms: u64,
}

/// One event of a task's history.
#[derive(Serialize)]
struct EntryView {
    at: String,
    attempt: u32,
    #[serde(flatten)]
    what: What,
    #[serde(skip)]
    at_ms: u64,
}

/// An event: one word and its data for programs, a sentence for people.
#[derive(Serialize)]
struct What {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spilled_to: Option<QueueName>,
    #[serde(skip)]
    text: String,
}

impl What {
    fn new(milestone: Milestone) -> Self {
        let entry = |event, text: String| Self {
            event,
            node: None,
            failure: None,
            retry_in_ms: None,
            task: None,
            spilled_to: None,
            text,
        };
        match milestone {
            Milestone::Accepted => entry("accepted", "accepted into its queue".into()),
            Milestone::Replays { task } => {
                Self { task: Some(task), ..entry("accepted", format!("accepted as the replay of {task}")) }
            }
            Milestone::Assigned { node, spilled_to } => {
                let mut text = format!("given to node {node}");
                text.extend(spilled_to.iter().map(|queue| format!("; it had spilled to queue {queue}")));
                Self { node: Some(node.to_string()), spilled_to, ..entry("assigned", text) }
            }
            Milestone::Failed { failure, retry_in_ms } => {
                let failure = failure.bounded();
                let then = match retry_in_ms {
                    None => "not tried again".to_owned(),
                    Some(0) => "tried again at once".to_owned(),
                    Some(ms) => format!("tried again after {}", duration_ms(ms as f64)),
                };
                let text = format!("failed: {}: {failure}; {then}", failure.kind);
                Self { failure: Some(failure), retry_in_ms, ..entry("failed", text) }
            }
            Milestone::NodeLost { counts: true, .. } => {
                entry("crashed", "its node was lost while it worked on it and on nothing else".into())
            }
            Milestone::NodeLost { counts: false, shared: true } => {
                let text = "its node was lost while it had several tasks; tried again alone, and not held against the task";
                entry("node_lost", text.into())
            }
            Milestone::NodeLost { counts: false, shared: false } => {
                entry("node_lost", "its node was lost; not held against the task".into())
            }
            Milestone::GivenBack => entry("given_back", "its node gave it back".into()),
            Milestone::Ended { status } => entry("ended", format!("ended: {status}")),
            Milestone::ReplayedAs { task } => {
                Self { task: Some(task), ..entry("replayed", format!("submitted again as {task}")) }
            }
            Milestone::Skipped { entries } => entry("skipped", format!("({entries} entries are left out)")),
        }
    }
}

impl TaskHistoryView {
    /// `now_ms` is the wall clock, for the ages in the table.
    pub(crate) fn new(found: TaskHistory, now_ms: u64) -> Self {
        let began_ms = found.task.created_wall_ms;
        let entry = |Entry { at_wall_ms, attempt, what }| EntryView {
            at: rfc3339(at_wall_ms),
            attempt,
            what: What::new(what),
            at_ms: at_wall_ms,
        };
        Self {
            owner: found.owner,
            client: found.client,
            priority: found.priority,
            dead: found.dead,
            replay_of: found.replay_of,
            history: found.history.into_iter().map(entry).collect(),
            task: TaskView::new(found.task, now_ms),
            began_ms,
        }
    }
}

impl Show for TaskHistoryView {
    fn table(&self) -> String {
        let mut rows = vec![vec![
            "client".to_owned(),
            self.client.as_ref().map_or(self.owner.to_string(), ToString::to_string),
        ]];
        if self.priority != 0 {
            rows.push(vec!["priority".into(), self.priority.to_string()]);
        }
        if self.dead {
            rows.push(vec!["dead".into(), "its inputs are kept: lamagrid dead replay".into()]);
        }
        let history = self.history.iter().map(|entry| {
            let after = duration_ms(entry.at_ms.saturating_sub(self.began_ms) as f64);
            let attempt = if entry.attempt == 0 { "-".to_owned() } else { entry.attempt.to_string() };
            vec![format!("+{after}"), attempt, entry.what.text.clone()]
        });
        let parts = [
            self.task.table(),
            columns(&[], rows),
            String::new(),
            columns(&["AFTER", "ATTEMPT", "WHAT"], history),
        ];
        parts.join("\n")
    }
}

/// The tasks that a list was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection {
    Tasks,
    DeadLetters,
}

/// A list of tasks.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct TaskLines {
    lines: Vec<LineView>,
    #[serde(skip)]
    selection: Selection,
}

#[derive(Serialize)]
struct LineView {
    id: TaskId,
    state: Status,
    model: ModelName,
    queue: QueueName,
    client: Option<ClientName>,
    node: Option<String>,
    attempts: u32,
    failure: Option<FailureKind>,
    dead: bool,
    created: String,
    finished: Option<String>,
    #[serde(skip)]
    created_ago: String,
}

impl TaskLines {
    pub(crate) fn new(lines: Vec<TaskLine>, selection: Selection, now_ms: u64) -> Self {
        let view = |line: TaskLine| LineView {
            id: line.id,
            state: line.status,
            model: line.model,
            queue: line.queue,
            client: line.client,
            node: line.node,
            attempts: line.attempts,
            failure: line.failure,
            dead: line.dead,
            created: rfc3339(line.created_wall_ms),
            finished: line.finished_wall_ms.map(rfc3339),
            created_ago: ago(line.created_wall_ms, now_ms),
        };
        Self { lines: lines.into_iter().map(view).collect(), selection }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl Show for TaskLines {
    fn table(&self) -> String {
        if self.lines.is_empty() {
            return match self.selection {
                Selection::DeadLetters => "no dead letters".to_owned(),
                Selection::Tasks => "no tasks".to_owned(),
            };
        }
        let row = |line: &LineView| {
            let why =
                line.failure.map_or_else(|| line.state.to_string(), |kind| format!("{}: {kind}", line.state));
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            vec![
                line.id.to_string(),
                why,
                line.model.to_string(),
                line.queue.to_string(),
                or_none(line.node.clone()),
                line.attempts.to_string(),
                or_none(line.client.as_ref().map(ToString::to_string)),
                line.created_ago.clone(),
            ]
        };
        let header = ["TASK", "STATE", "MODEL", "QUEUE", "NODE", "ATTEMPTS", "CLIENT", "CREATED"];
        columns(&header, self.lines.iter().map(row))
    }
}
