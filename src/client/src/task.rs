//! A task before it is submitted: checked, hashed, and cut into what travels inline and what goes by reference.

use std::collections::BTreeMap;

use bytes::Bytes;

use lamagrid_domain::{
    BlobForm, BlobMeta, ClientName, Durability, Failure, FailureKind, Hash, ModelName, OutputForm, Owner,
    Params, ParamsError, QueueName, Role, Scalar, TaskId, TaskSpec,
};
use lamagrid_protocol::frame::{MAX_HEADER_BYTES, MAX_INLINE_BYTES, MAX_MESSAGE_BYTES};

use crate::error::ClientError;

/// Most bytes of all inputs in one message; the rest of it is the header's.
const MAX_INLINE_SUM: usize = MAX_MESSAGE_BYTES - 2 * MAX_HEADER_BYTES;
/// Hashing fewer bytes than this takes less time than handing them to another thread.
const HASH_HERE_BYTES: usize = 256 * 1024;

/// One input of a task. Its bytes are shared, never copied.
#[derive(Debug, Clone)]
pub struct Input {
    /// What it is for; [`Role::Result`] is not an input.
    pub role: Role,
    /// How to read it.
    pub form: BlobForm,
    /// The bytes.
    pub bytes: Bytes,
}

/// What to do, as a caller says it.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Drawn by the caller: see [`crate::new_task_id`].
    pub id: TaskId,
    /// Which model shall work.
    pub model: ModelName,
    /// Which queue it waits in.
    pub queue: QueueName,
    /// Upstream's parameters.
    pub params: Params,
    /// Higher goes first.
    pub priority: i8,
    /// What its acknowledgement survives.
    pub durability: Durability,
    /// Milliseconds since the Unix epoch after which nobody wants it.
    pub deadline_wall_ms: Option<u64>,
    /// How long it may wait for a node, in milliseconds.
    pub wait_limit_ms: Option<u64>,
    /// How long one attempt may take, in milliseconds.
    pub run_limit_ms: Option<u64>,
    /// On whose behalf, for fair shares and limits; absent for this client's owner.
    pub client: Option<ClientName>,
    /// What the result shall be.
    pub output: OutputForm,
    /// Each role once.
    pub inputs: Vec<Input>,
}

impl NewTask {
    /// A task for `model` in the queue that models of its class wait in, with everything else at its default.
    #[must_use]
    pub fn new(id: TaskId, model: ModelName, inputs: Vec<Input>) -> Self {
        let queue = model.default_queue();
        Self {
            id,
            model,
            queue,
            params: Params::default(),
            priority: 0,
            durability: Durability::default(),
            client: None,
            deadline_wall_ms: None,
            wait_limit_ms: None,
            run_limit_ms: None,
            output: OutputForm::default(),
            inputs,
        }
    }

    /// The same with these parameters.
    ///
    /// # Errors
    /// [`ParamsError`] if there are too many or one is too long.
    pub fn with_params(mut self, params: BTreeMap<String, Scalar>) -> Result<Self, ParamsError> {
        self.params = Params::try_from(params)?;
        Ok(self)
    }
}

/// A task as it is sent, as often as need be.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: TaskSpec,
    pub(crate) digest: Hash,
    pub(crate) inputs: Vec<Input>,
    /// Whether all inputs travel in the message itself.
    pub(crate) inline: bool,
}

impl Prepared {
    /// Checks and hashes.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with `InvalidInput`.
    pub(crate) async fn new(owner: Owner, task: NewTask) -> Result<Self, ClientError> {
        check(&task.inputs)?;
        let sum: usize = task.inputs.iter().map(|input| input.bytes.len()).sum();
        if sum <= HASH_HERE_BYTES {
            return Ok(Self::build(owner, task, sum));
        }
        tokio::task::spawn_blocking(move || Self::build(owner, task, sum))
            .await
            .map_err(|_| ClientError::Closed)
    }

    fn build(owner: Owner, task: NewTask, sum: usize) -> Self {
        let blobs = task
            .inputs
            .iter()
            .map(|input| BlobMeta {
                role: input.role,
                len: input.bytes.len() as u64,
                hash: lamagrid_protocol::hash(&input.bytes),
                form: input.form,
            })
            .collect();
        let spec = TaskSpec {
            id: task.id,
            owner,
            client: task.client,
            model: task.model,
            queue: task.queue,
            params: task.params,
            priority: task.priority,
            durability: task.durability,
            deadline_wall_ms: task.deadline_wall_ms,
            wait_limit_ms: task.wait_limit_ms,
            run_limit_ms: task.run_limit_ms,
            replay_of: None,
            output: task.output,
            blobs,
        };
        let inline =
            sum <= MAX_INLINE_SUM && task.inputs.iter().all(|input| input.bytes.len() <= MAX_INLINE_BYTES);
        Self { digest: lamagrid_protocol::payload_digest(&spec), spec, inputs: task.inputs, inline }
    }

    /// Bytes of all inputs.
    pub(crate) fn bytes(&self) -> u64 {
        self.spec.input_bytes()
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
        if let Some(wanted) = input.form.raw_len().filter(|len| *len != input.bytes.len() as u64) {
            let found = input.bytes.len();
            return wrong(format!(
                "the {role} holds {found} bytes, but its height, width and channels make {wanted}"
            ));
        }
    }
    Ok(())
}
