//! Prepares a task for submission: checks and hashes its inputs, and decides whether they travel inline.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use lamagrid_blobs::StagedFile;
use lamagrid_domain::{
    BlobForm, BlobMeta, ClientName, Durability, Failure, FailureKind, Hash, ModelName, OutputForm, Owner,
    Params, ParamsError, PictureSize, QueueName, Role, Scalar, TaskId, TaskSpec,
};
use lamagrid_protocol::frame::{MAX_HEADER_BYTES, MAX_INLINE_BYTES, MAX_MESSAGE_BYTES};

use crate::error::ClientError;

/// Limit on the total size of inline inputs; the rest of a message is for headers.
const MAX_INLINE_SUM: u64 = (MAX_MESSAGE_BYTES - 2 * MAX_HEADER_BYTES) as u64;
/// Inputs up to this total size are hashed on the calling thread, which is faster than a switch to another one.
const HASH_HERE_BYTES: u64 = 256 * 1024;

/// One input of a task.
#[derive(Debug, Clone)]
pub struct Input {
    /// The input's role; not [`Role::Result`].
    pub role: Role,
    /// The encoding of the bytes.
    pub form: BlobForm,
    /// The input's bytes.
    pub content: Content,
}

/// The bytes of an input. They are shared, never copied.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which becomes a blob by a link if the scheduler is on this host.
    File(Arc<StagedFile>),
}

impl Content {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(file) => file.len(),
        }
    }

    /// True if it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of it that is in memory, in bytes.
    fn held(&self) -> u64 {
        if let Self::Bytes(bytes) = self { bytes.len() as u64 } else { 0 }
    }

    /// The BLAKE3 hash of the bytes.
    #[must_use]
    pub fn hash(&self) -> Hash {
        match self {
            Self::Bytes(bytes) => lamagrid_protocol::hash(bytes),
            Self::File(file) => file.hash(),
        }
    }

    /// The bytes, if they may travel in a message.
    fn inline(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) if bytes.len() <= MAX_INLINE_BYTES => Some(bytes),
            Self::Bytes(_) | Self::File(_) => None,
        }
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

/// A task as the caller describes it.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// The task's id, drawn by the caller with [`crate::new_task_id`].
    pub id: TaskId,
    /// The model to run.
    pub model: ModelName,
    /// The queue that the task waits in; `None` lets the scheduler choose it.
    pub queue: Option<QueueName>,
    /// The size of the picture, for the choice of the queue; `None` if unknown.
    pub picture: Option<PictureSize>,
    /// Upstream's parameters for the model.
    pub params: Params,
    /// Higher priorities are served first.
    pub priority: i8,
    /// The failures that the acknowledged task survives.
    pub durability: Durability,
    /// Deadline, in milliseconds since the Unix epoch; the task fails after it.
    pub deadline_wall_ms: Option<u64>,
    /// Longest total wait for a node, in milliseconds.
    pub wait_limit_ms: Option<u64>,
    /// Longest time without a node that can run it, in milliseconds; `None` for the scheduler's.
    pub no_node_wait_ms: Option<u64>,
    /// Longest duration of one attempt, in milliseconds.
    pub run_limit_ms: Option<u64>,
    /// The end user for whom it is submitted, for fair shares and limits; `None` for this client's owner.
    pub client: Option<ClientName>,
    /// The form of the result.
    pub output: OutputForm,
    /// The inputs; each role at most once.
    pub inputs: Vec<Input>,
}

impl NewTask {
    /// Creates a task for `model`, whose queue the scheduler chooses, with default values for the other fields.
    #[must_use]
    pub fn new(id: TaskId, model: ModelName, inputs: Vec<Input>) -> Self {
        Self {
            id,
            model,
            queue: None,
            picture: None,
            params: Params::default(),
            priority: 0,
            durability: Durability::default(),
            client: None,
            deadline_wall_ms: None,
            wait_limit_ms: None,
            no_node_wait_ms: None,
            run_limit_ms: None,
            output: OutputForm::default(),
            inputs,
        }
    }

    /// Sets the parameters.
    ///
    /// # Errors
    /// [`ParamsError`] if there are too many or one is too long.
    pub fn with_params(mut self, params: BTreeMap<String, Scalar>) -> Result<Self, ParamsError> {
        self.params = Params::try_from(params)?;
        Ok(self)
    }
}

/// A task ready to be sent, repeatedly if needed.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: TaskSpec,
    pub(crate) digest: Hash,
    pub(crate) inputs: Vec<Input>,
    /// All inputs, if they travel in the message itself.
    pub(crate) inline: Option<Vec<Bytes>>,
}

impl Prepared {
    /// Checks and hashes the inputs.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with `InvalidInput`.
    pub(crate) async fn new(owner: Owner, task: NewTask) -> Result<Self, ClientError> {
        check(&task.inputs)?;
        // Files were hashed when they were written.
        let sum: u64 = task.inputs.iter().map(|input| input.content.held()).sum();
        if sum <= HASH_HERE_BYTES {
            return Ok(Self::build(owner, task));
        }
        tokio::task::spawn_blocking(move || Self::build(owner, task)).await.map_err(|_| ClientError::Closed)
    }

    fn build(owner: Owner, task: NewTask) -> Self {
        let blobs = task
            .inputs
            .iter()
            .map(|input| BlobMeta {
                role: input.role,
                len: input.content.len(),
                hash: input.content.hash(),
                form: input.form,
            })
            .collect();
        let routed = task.queue.is_none();
        let spec = TaskSpec {
            id: task.id,
            owner,
            client: task.client,
            // A scheduler before protocol 1.6 does not choose.
            queue: task.queue.unwrap_or_else(|| task.model.default_queue()),
            routed,
            model: task.model,
            picture: task.picture,
            params: task.params,
            priority: task.priority,
            durability: task.durability,
            deadline_wall_ms: task.deadline_wall_ms,
            wait_limit_ms: task.wait_limit_ms,
            no_node_wait_ms: task.no_node_wait_ms,
            run_limit_ms: task.run_limit_ms,
            replay_of: None,
            output: task.output,
            blobs,
        };
        let inline: Option<Vec<Bytes>> =
            task.inputs.iter().map(|input| input.content.inline().cloned()).collect();
        let inline = inline.filter(|_| spec.input_bytes() <= MAX_INLINE_SUM);
        Self { digest: lamagrid_protocol::payload_digest(&spec), spec, inputs: task.inputs, inline }
    }

    /// Total size of the inputs, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.spec.input_bytes()
    }

    /// Memory that the inputs take, in bytes.
    pub(crate) fn held(&self) -> u64 {
        self.inputs.iter().map(|input| input.content.held()).sum()
    }
}

fn check(inputs: &[Input]) -> Result<(), ClientError> {
    let wrong = |text: String| Err(Failure::new(FailureKind::InvalidInput, text).into());
    for (at, input) in inputs.iter().enumerate() {
        let role = input.role;
        if role == Role::Result {
            return wrong("a task has no input with the role `result`; the node makes that".to_owned());
        }
        if inputs[..at].iter().any(|earlier| earlier.role == role) {
            return wrong(format!("the task has two inputs with the role `{role}`; each may come once"));
        }
        if let Some(wanted) = input.form.raw_len().filter(|len| *len != input.content.len()) {
            let found = input.content.len();
            return wrong(format!(
                "the {role} holds {found} bytes, but its height, width and channels make {wanted}"
            ));
        }
    }
    Ok(())
}
