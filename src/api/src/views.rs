//! The JSON of responses. Names are those of `lamagrid ... --output json`; none is ever renamed or removed.

use serde::Serialize;
use utoipa::ToSchema;

use lamagrid_client::{GridStatus, NodeStatus, QueueStatus, StatisticsLine, TaskInfo, TaskLine};
use lamagrid_domain::{Failure, Stages, rfc3339};

/// Why a task failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FailureView {
    /// The kind of failure, as `lamagrid.errors` names it.
    #[schema(example = "out_of_memory")]
    kind: &'static str,
    /// For people.
    message: String,
}

impl From<Failure> for FailureView {
    fn from(failure: Failure) -> Self {
        let failure = failure.bounded();
        Self { kind: failure.kind.as_str(), message: failure.message }
    }
}

/// The time that a task spent in each stage, in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StagesView {
    queue_ms: f64,
    transfer_ms: f64,
    decode_ms: f64,
    load_ms: f64,
    infer_ms: f64,
    pixels_ms: f64,
    encode_ms: f64,
    store_ms: f64,
    total_ms: f64,
}

impl From<Stages> for StagesView {
    fn from(stages: Stages) -> Self {
        Self {
            queue_ms: stages.queue_ms,
            transfer_ms: stages.transfer_ms,
            decode_ms: stages.decode_ms,
            load_ms: stages.load_ms,
            infer_ms: stages.infer_ms,
            pixels_ms: stages.pixels_ms,
            encode_ms: stages.encode_ms,
            store_ms: stages.store_ms,
            total_ms: stages.total_ms,
        }
    }
}

/// A task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskView {
    /// 32 hexadecimal digits.
    pub(crate) id: String,
    model: String,
    queue: String,
    /// queued, processing, completed, failed or cancelled.
    #[schema(example = "queued")]
    state: &'static str,
    /// Number of tasks before it, while it waits.
    position: Option<u64>,
    /// How long it is expected to wait, if that can be estimated.
    expected_wait_ms: Option<u64>,
    /// The node that works, or last worked, on it.
    node: Option<String>,
    failure: Option<FailureView>,
    /// Number of assignments to nodes.
    attempts: u32,
    /// Attempts that ended by the loss of their node.
    crashes: u32,
    /// Attempts that ended with a reported failure.
    failures: u32,
    stages: StagesView,
    #[schema(format = "date-time")]
    created: String,
    #[schema(format = "date-time")]
    finished: Option<String>,
}

impl From<TaskInfo> for TaskView {
    fn from(task: TaskInfo) -> Self {
        Self {
            id: task.id.to_string(),
            model: task.model.into(),
            queue: task.queue.into(),
            state: task.status.as_str(),
            position: task.position,
            expected_wait_ms: task.wait_ms,
            node: task.node,
            failure: task.failure.map(FailureView::from),
            attempts: task.counters.attempts,
            crashes: task.counters.crashes,
            failures: task.counters.failures,
            stages: task.stages.into(),
            created: rfc3339(task.created_wall_ms),
            finished: task.finished_wall_ms.map(rfc3339),
        }
    }
}

/// A task in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskLineView {
    id: String,
    model: String,
    queue: String,
    /// On whose behalf it was submitted.
    client: Option<String>,
    /// queued, processing, completed, failed or cancelled.
    state: &'static str,
    /// The kind of failure of a failed task.
    failure: Option<&'static str>,
    node: Option<String>,
    attempts: u32,
    /// True if it is a dead letter, which can be retried.
    dead: bool,
    #[schema(format = "date-time")]
    created: String,
    #[schema(format = "date-time")]
    finished: Option<String>,
}

impl From<TaskLine> for TaskLineView {
    fn from(line: TaskLine) -> Self {
        Self {
            id: line.id.to_string(),
            model: line.model.into(),
            queue: line.queue.into(),
            client: line.client.map(String::from),
            state: line.status.as_str(),
            failure: line.failure.map(lamagrid_domain::FailureKind::as_str),
            node: line.node,
            attempts: line.attempts,
            dead: line.dead,
            created: rfc3339(line.created_wall_ms),
            finished: line.finished_wall_ms.map(rfc3339),
        }
    }
}

/// A page of a list of tasks, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskList {
    pub(crate) tasks: Vec<TaskLineView>,
    /// The `cursor` of the next page; null on the last one.
    pub(crate) next: Option<String>,
    /// Number of tasks that match, on all pages.
    pub(crate) total: u64,
}

/// The answer to a retry.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RetriedView {
    pub(crate) id: String,
    /// The task that runs: the same one, or for a dead letter a new one.
    pub(crate) runs_as: String,
}

/// A model that connected nodes serve.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelView {
    name: String,
    /// Its usual queue.
    queue: String,
    /// Number of connected nodes that serve it.
    nodes: u32,
    /// Number of those that have it in memory.
    loaded: u32,
}

/// The models of a grid.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    models: Vec<ModelView>,
}

impl From<&GridStatus> for ModelList {
    fn from(grid: &GridStatus) -> Self {
        let mut models = std::collections::BTreeMap::<String, ModelView>::new();
        for offer in grid.nodes.iter().flat_map(|node| &node.info.models) {
            let name = offer.model.as_str().to_owned();
            let model = models.entry(name.clone()).or_insert_with(|| ModelView {
                name,
                queue: offer.queue.as_str().to_owned(),
                nodes: 0,
                loaded: 0,
            });
            model.nodes += 1;
            model.loaded += u32::from(offer.loaded);
        }
        Self { models: models.into_values().collect() }
    }
}

/// A connected node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeView {
    name: String,
    /// torch, python or echo.
    kind: &'static str,
    /// ready, busy, suspect, draining or aside.
    state: String,
    /// Number of tasks that run on it.
    running: u32,
    /// Number of tasks that it runs at once.
    slots: u32,
    device: String,
    gpu: Option<String>,
    /// Memory of the device; null if unknown.
    memory_bytes: Option<u64>,
    cores: u32,
    version: String,
    models: Vec<String>,
    queues: Vec<String>,
    labels: Vec<String>,
}

impl From<NodeStatus> for NodeView {
    fn from(node: NodeStatus) -> Self {
        let info = node.info;
        Self {
            name: info.name.into(),
            kind: info.kind.as_str(),
            state: node.state,
            running: node.running,
            slots: node.slots,
            device: info.device.to_string(),
            gpu: info.gpu.map(|gpu| gpu.to_string()),
            memory_bytes: Some(info.memory_bytes).filter(|bytes| *bytes > 0),
            cores: info.cores,
            version: info.version.to_string(),
            models: info.models.into_iter().map(|offer| offer.model.into()).collect(),
            queues: node.queues.into_iter().map(String::from).collect(),
            labels: info.labels.into_iter().map(|label| label.to_string()).collect(),
        }
    }
}

/// The connected nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeList {
    pub(crate) nodes: Vec<NodeView>,
}

/// A queue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueView {
    queue: String,
    waiting: u64,
    running: u64,
    /// Number of tasks that may wait.
    max_tasks: u64,
    /// True if an administrator paused it: its tasks wait.
    paused: bool,
}

impl From<QueueStatus> for QueueView {
    fn from(queue: QueueStatus) -> Self {
        let QueueStatus { queue, waiting, running, max_tasks, paused } = queue;
        Self { queue: queue.into(), waiting, running, max_tasks, paused }
    }
}

/// The queues.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueList {
    pub(crate) queues: Vec<QueueView>,
}

/// The ended tasks of one model in one queue, since the data directory was created.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatisticsView {
    queue: String,
    model: String,
    completed: u64,
    failed: u64,
    cancelled: u64,
    /// Total time that completed tasks waited.
    wait_ms: u64,
    /// Total time that completed tasks ran.
    run_ms: u64,
}

impl From<StatisticsLine> for StatisticsView {
    fn from(line: StatisticsLine) -> Self {
        let StatisticsLine { queue, model, completed, failed, cancelled, wait_ms, run_ms } = line;
        Self { queue: queue.into(), model: model.into(), completed, failed, cancelled, wait_ms, run_ms }
    }
}

/// Statistics of ended tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatisticsList {
    pub(crate) statistics: Vec<StatisticsView>,
}

/// A progress event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProgressView {
    /// queued, processing, completed, failed or cancelled.
    pub(crate) state: &'static str,
    /// loading or running.
    pub(crate) activity: &'static str,
    /// Steps done; for a download, the percentage done.
    pub(crate) step: u32,
    /// Total steps; 0 if unknown.
    pub(crate) of: u32,
}

/// The files and options of a task, as form fields or as members of a JSON object. Files are base64 in JSON.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read piece by piece")]
pub(crate) struct NewTaskForm {
    /// The picture, a file of at most `limits.max_pixels` pixels.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    image: String,
    /// The mask: white pixels are the hole.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    mask: String,
    /// The example picture of paint by example.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    example: Option<String>,
    /// As nodes offer it.
    #[schema(default = "lama")]
    model: Option<String>,
    /// Where it waits; by default the scheduler chooses.
    queue: Option<String>,
    /// The format of the result: png, jpeg, webp, bmp or tiff.
    #[schema(default = "png")]
    output: Option<String>,
    /// Quality of the result, where its format is lossy.
    #[schema(default = 95, minimum = 1, maximum = 100)]
    quality: Option<u8>,
    /// Higher goes first; at most the API key's.
    #[schema(default = 0)]
    priority: Option<i8>,
    /// full survives power loss, process the death of any process.
    #[schema(default = "full")]
    durability: Option<String>,
    /// Seconds after which the result is useless; the task fails then.
    deadline: Option<f64>,
    /// Seconds that it may wait for a node.
    wait_limit: Option<f64>,
    /// Seconds that it may wait while no node can run it.
    no_node_wait: Option<f64>,
    /// Seconds that one attempt may take.
    run_limit: Option<f64>,
    /// On whose behalf: shares are fair between clients.
    client: Option<String>,
    /// An id drawn by the program: 12 hexadecimal digits of milliseconds since 1970, then 20 random ones.
    task_id: Option<String>,
}
