//! Formats tasks, nodes and queues for people and programs. The JSON is a contract: keys are only ever added.
//!
//! Does not: send requests; [`crate::grid`] does.

use serde::Serialize;

use lamagrid_client::{NodeStatus, QueueStatus, StatisticsLine, TaskInfo};
use lamagrid_domain::{
    Failure, Label, LiveFigures, ModelName, ModelOffer, NodeKind, NodeName, QueueName, Stages, Status,
    TaskId, WithheldModel,
};

use crate::output::{Show, columns};
use crate::units::{ago, duration_ms, memory, rfc3339};

/// Models of one node shown in a table; a node may offer 256.
const MODELS_SHOWN: usize = 6;

/// One task.
#[derive(Serialize)]
pub(crate) struct TaskView {
    id: TaskId,
    model: ModelName,
    queue: QueueName,
    state: Status,
    position: Option<u64>,
    /// Estimated wait until it starts, from run times of its queue's tasks; null if unknown.
    expected_wait_ms: Option<u64>,
    node: Option<String>,
    failure: Option<Failure>,
    attempts: u32,
    crashes: u32,
    failures: u32,
    stages: Stages,
    created: String,
    finished: Option<String>,
    #[serde(skip)]
    people: People,
}

/// Texts that only the table shows.
struct People {
    created: String,
    finished: Option<String>,
}

impl TaskView {
    /// `now_ms` is the wall clock, for the ages in the table.
    pub(crate) fn new(task: TaskInfo, now_ms: u64) -> Self {
        Self {
            id: task.id,
            model: task.model,
            queue: task.queue,
            state: task.status,
            position: task.position,
            expected_wait_ms: task.wait_ms,
            node: task.node,
            failure: task.failure.map(Failure::bounded),
            attempts: task.counters.attempts,
            crashes: task.counters.crashes,
            failures: task.counters.failures,
            stages: task.stages,
            created: rfc3339(task.created_wall_ms),
            finished: task.finished_wall_ms.map(rfc3339),
            people: People {
                created: ago(task.created_wall_ms, now_ms),
                finished: task.finished_wall_ms.map(|at| ago(at, now_ms)),
            },
        }
    }
}

impl Show for TaskView {
    fn table(&self) -> String {
        let mut rows = vec![
            ("task", self.id.to_string()),
            ("state", self.state.to_string()),
            ("model", self.model.to_string()),
            ("queue", self.queue.to_string()),
        ];
        match self.position {
            Some(0) => rows.push(("position", "next".to_owned())),
            Some(before) => rows.push(("position", format!("{before} before it"))),
            None => {}
        }
        rows.extend(
            self.expected_wait_ms.map(|ms| ("begins", format!("in about {}", duration_ms(ms as f64)))),
        );
        rows.extend(self.node.clone().map(|node| ("node", node)));
        rows.extend(self.failure.as_ref().map(|failure| ("failure", format!("{}: {failure}", failure.kind))));
        rows.push((
            "attempts",
            format!("{} ({} crashed, {} failed)", self.attempts, self.crashes, self.failures),
        ));
        rows.push(("created", self.people.created.clone()));
        rows.extend(self.people.finished.clone().map(|at| ("finished", at)));
        let stages = [
            ("queue", self.stages.queue_ms),
            ("transfer", self.stages.transfer_ms),
            ("decode", self.stages.decode_ms),
            ("load", self.stages.load_ms),
            ("infer", self.stages.infer_ms),
            ("pixels", self.stages.pixels_ms),
            ("encode", self.stages.encode_ms),
            ("store", self.stages.store_ms),
            ("total", self.stages.total_ms),
        ];
        // Before the task has ended, most stages are unknown and left out.
        let known = stages.iter().filter(|(_, ms)| self.finished.is_some() || *ms > 0.0);
        let known: Vec<_> = known.map(|(name, ms)| format!("{name} {}", duration_ms(*ms))).collect();
        if !known.is_empty() {
            rows.push(("stages", known.join(", ")));
        }
        columns(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]))
    }
}

/// One connected node.
#[derive(Serialize)]
pub(crate) struct NodeView {
    name: NodeName,
    pub(crate) kind: NodeKind,
    pub(crate) state: String,
    pub(crate) running: u32,
    pub(crate) slots: u32,
    device: Label,
    gpu: Option<Label>,
    /// Memory of the device; null if unknown.
    memory_bytes: Option<u64>,
    pub(crate) cores: u32,
    pub(crate) version: Label,
    pub(crate) pid: u32,
    pub(crate) models: Vec<ModelOffer>,
    /// The queues that it serves.
    pub(crate) queues: Vec<QueueName>,
    pub(crate) labels: Vec<Label>,
    /// Configured models that it does not offer, with the reasons.
    pub(crate) withheld: Vec<WithheldModel>,
    pub(crate) device_id: Option<Label>,
    /// Memory of its host; null if unknown.
    pub(crate) host_memory_bytes: Option<u64>,
    pub(crate) cpu_features: Vec<Label>,
    /// Null before the first.
    pub(crate) figures: Option<LiveFigures>,
}

impl From<NodeStatus> for NodeView {
    fn from(node: NodeStatus) -> Self {
        Self {
            name: node.info.name,
            kind: node.info.kind,
            state: node.state,
            running: node.running,
            slots: node.slots,
            device: node.info.device,
            gpu: node.info.gpu,
            memory_bytes: Some(node.info.memory_bytes).filter(|bytes| *bytes > 0),
            cores: node.info.cores,
            version: node.info.version,
            pid: node.info.pid,
            models: node.info.models,
            queues: node.queues,
            labels: node.info.labels,
            withheld: node.info.withheld,
            device_id: node.info.device_id,
            host_memory_bytes: Some(node.info.host_memory_bytes).filter(|bytes| *bytes > 0),
            cpu_features: node.info.cpu_features,
            figures: node.figures,
        }
    }
}

impl NodeView {
    /// The device with its name.
    pub(crate) fn device_text(&self) -> String {
        self.gpu.as_ref().map_or_else(|| self.device.to_string(), |gpu| format!("{} {gpu}", self.device))
    }

    /// The memory of the device, and how much of it is free.
    pub(crate) fn memory_text(&self) -> String {
        let total = self.memory_bytes.map_or_else(|| "-".to_owned(), memory);
        let free = self.figures.and_then(|figures| figures.free_memory_bytes);
        free.map_or_else(|| total.clone(), |free| format!("{total}, {} free", memory(free)))
    }

    fn row(&self) -> Vec<String> {
        let loaded = |offer: &ModelOffer| match (offer.loaded, offer.present) {
            (true, _) => " (loaded)",
            (false, true) => "",
            (false, false) => " (not fetched yet)",
        };
        let mut models: Vec<_> =
            self.models.iter().take(MODELS_SHOWN).map(|m| format!("{}{}", m.model, loaded(m))).collect();
        if self.models.len() > MODELS_SHOWN {
            models.push(format!("{} more", self.models.len() - MODELS_SHOWN));
        }
        vec![
            self.name.to_string(),
            self.kind.as_str().to_owned(),
            self.state.clone(),
            format!("{} of {}", self.running, self.slots),
            self.device_text(),
            self.memory_text(),
            self.queues.iter().map(QueueName::as_str).collect::<Vec<_>>().join(", "),
            models.join(", "),
            self.version.to_string(),
            self.pid.to_string(),
        ]
    }
}

impl Show for Vec<NodeView> {
    fn table(&self) -> String {
        if self.is_empty() {
            return "no node is connected; start one with `lamagrid-node` or `lamagrid pynode`".to_owned();
        }
        let header =
            ["NODE", "KIND", "STATE", "TASKS", "DEVICE", "MEMORY", "QUEUES", "MODELS", "VERSION", "PID"];
        columns(&header, self.iter().map(NodeView::row))
    }
}

impl Show for Vec<QueueStatus> {
    fn table(&self) -> String {
        if self.is_empty() {
            return "no queue is configured; add one with [queues.NAME] in the configuration".to_owned();
        }
        let row = |queue: &QueueStatus| {
            let counts = [queue.waiting, queue.running, queue.max_tasks].map(|count| count.to_string());
            let state = if queue.paused { "paused" } else { "open" };
            std::iter::once(queue.queue.to_string()).chain(counts).chain([state.to_owned()]).collect()
        };
        columns(&["QUEUE", "WAITING", "RUNNING", "LIMIT", "STATE"], self.iter().map(row))
    }
}

impl Show for Vec<StatisticsLine> {
    fn table(&self) -> String {
        if self.is_empty() {
            return "no task has ended yet".to_owned();
        }
        let row = |line: &StatisticsLine| {
            let mean = |total_ms: u64| match line.completed {
                0 => "-".to_owned(),
                completed => duration_ms(total_ms as f64 / completed as f64),
            };
            let counts = [line.completed, line.failed, line.cancelled].map(|count| count.to_string());
            let names = [line.queue.to_string(), line.model.to_string()];
            names.into_iter().chain(counts).chain([mean(line.wait_ms), mean(line.run_ms)]).collect()
        };
        let header = ["QUEUE", "MODEL", "COMPLETED", "FAILED", "CANCELLED", "MEAN WAIT", "MEAN RUN"];
        columns(&header, self.iter().map(row))
    }
}
