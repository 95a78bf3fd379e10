//! Runs the tasks of a run: the seam between the run and the way to the grid.
//!
//! [`SocketTransport`] uses the scheduler's socket, of this host or through a bundle of another one.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use lamagrid_client::{BatchAct, Client, ClientError, NewTask};
use lamagrid_domain::{BatchId, Failure, FailureKind, Label, TaskId};

/// How long one request may take. Longer than a restart of the scheduler.
const REQUEST: Duration = Duration::from_secs(60);
/// Requests in a row that no scheduler answers, before the run ends.
const GIVE_UP_AFTER: u32 = 5;
/// Pauses between submissions that the grid has no room for.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a cancel or a release may take.
const SMALL_REQUEST: Duration = Duration::from_secs(5);

/// Why a task gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("{0}")]
    Failed(Failure),
    /// The grid refuses the task: one of this id, for example because it has expired, or any.
    #[error("{0}")]
    Refused(Failure),
    /// The grid cannot be used: no task of this run can go on.
    #[error("{0}")]
    Grid(ClientError),
}

/// A way to the grid.
pub(crate) trait Transport: Send + Sync + 'static {
    /// Submits a task, or takes up the one that the grid has by this id, and waits for its result. Waits while the grid has
    /// no room, and across restarts of the scheduler.
    ///
    /// # Errors
    /// [`TaskError`].
    fn run(&self, task: NewTask) -> impl Future<Output = Result<Bytes, TaskError>> + Send;

    /// Cancels a task. One that has ended stays as it is.
    fn cancel(&self, id: TaskId) -> impl Future<Output = ()> + Send;

    /// Tells the grid that the result may be deleted.
    fn release(&self, id: TaskId) -> impl Future<Output = ()> + Send;

    /// Makes a batch for the tasks of a run. Grids that know no batches run the tasks all the same.
    fn open_batch(&self, id: BatchId, name: Label) -> impl Future<Output = ()> + Send;

    /// Tells the grid that a batch gets no more tasks.
    fn close_batch(&self, id: BatchId) -> impl Future<Output = ()> + Send;
}

/// The scheduler's socket.
#[derive(Debug)]
pub(crate) struct SocketTransport {
    client: Client,
}

impl SocketTransport {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn submit(&self, task: &NewTask) -> Result<(), TaskError> {
        let (mut pause, mut unanswered) = (FIRST_PAUSE, 0);
        loop {
            let error = match self.client.submit(task.clone(), REQUEST).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match judged(error, &mut unanswered) {
                Some(error) => return Err(error),
                None => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn outcome(&self, id: TaskId) -> Result<Bytes, TaskError> {
        let mut unanswered = 0;
        loop {
            let outcome = match self.client.wait(id, REQUEST).await {
                Ok(outcome) => outcome,
                Err(error) => match judged(error, &mut unanswered) {
                    Some(error) => return Err(error),
                    None => continue,
                },
            };
            let result = outcome.into_result().map_err(TaskError::Failed)?;
            let read = tokio::task::spawn_blocking(move || result.read()).await;
            return match read.map_err(|_| TaskError::Grid(ClientError::Closed))? {
                Ok(bytes) => Ok(bytes),
                Err(error) => Err(TaskError::Failed(Failure::new(error.kind(), error.to_string()))),
            };
        }
    }
}

impl Transport for SocketTransport {
    async fn run(&self, task: NewTask) -> Result<Bytes, TaskError> {
        let id = task.id;
        self.submit(&task).await?;
        // The client keeps the inputs that it still needs.
        drop(task);
        self.outcome(id).await
    }

    async fn cancel(&self, id: TaskId) {
        // A task that is not reached ends by itself, and its result after its retention.
        let _ = self.client.cancel(id, SMALL_REQUEST).await;
    }

    async fn release(&self, id: TaskId) {
        let _ = self.client.release(id, SMALL_REQUEST).await;
    }

    async fn open_batch(&self, id: BatchId, name: Label) {
        // The first task makes the batch, too, without its name.
        let _ = self.client.batch(id, BatchAct::Open { name }, SMALL_REQUEST).await;
    }

    async fn close_batch(&self, id: BatchId) {
        let _ = self.client.batch(id, BatchAct::Close, SMALL_REQUEST).await;
    }
}

/// The meaning of an error for a task; `None` if the request is to be repeated.
fn judged(error: ClientError, unanswered: &mut u32) -> Option<TaskError> {
    if !matches!(error, ClientError::NoScheduler { .. }) {
        *unanswered = 0;
    }
    match error {
        ClientError::NoScheduler { .. } => {
            *unanswered += 1;
            (*unanswered >= GIVE_UP_AFTER).then_some(TaskError::Grid(error))
        }
        ClientError::Timeout { .. } => None,
        ClientError::Refused { failure, .. } | ClientError::Failed(failure) => match failure.kind {
            FailureKind::Overloaded | FailureKind::DiskFull => None,
            FailureKind::Incompatible => Some(TaskError::Grid(ClientError::Failed(failure))),
            _ => Some(TaskError::Refused(failure)),
        },
        ClientError::Unknown { .. } => {
            Some(TaskError::Refused(Failure::new(FailureKind::InvalidInput, error.to_string())))
        }
        ClientError::NotAdmitted { .. } | ClientError::Closed => Some(TaskError::Grid(error)),
        ClientError::Result { .. } | ClientError::Fetch { .. } => {
            Some(TaskError::Failed(Failure::new(error.kind(), error.to_string())))
        }
    }
}
