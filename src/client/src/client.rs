//! Defines the handle through which callers use a scheduler.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use lamagrid_domain::{Owner, TaskId};
use lamagrid_protocol::message::{GridStatus, TaskInfo};
use lamagrid_transport::Endpoints;

use crate::actor::{Actor, Command, Connection};
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::options::ClientOptions;
use crate::outcome::Outcome;
use crate::pending_requests::{OwnedTask, PendingRequest, Reply};
use crate::task::{NewTask, Prepared};
use crate::task_watch::{AfterAcceptance, Phase, TaskWatch};

/// Capacity of the channel to the actor, which handles a command in microseconds.
const COMMANDS: usize = 256;

/// A client of one scheduler. Cheap to clone; the connection closes with the last clone.
///
/// Every call has a time limit, `patience`. The client keeps trying while no scheduler answers; the error
/// after the limit names the address that it tried and how to start a scheduler.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    options: ClientOptions,
    commands: mpsc::Sender<Command>,
    connection: watch::Receiver<Connection>,
}

impl Client {
    /// Creates a client of the scheduler behind `endpoints`. It connects at the first request.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(endpoints: &Endpoints, options: ClientOptions) -> Self {
        Self::with_endpoint(Endpoint::near(endpoints), options)
    }

    /// Creates a client of a scheduler on this or another host.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn with_endpoint(endpoint: Endpoint, options: ClientOptions) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (connection_tx, connection) = watch::channel(Connection::Idle);
        let endpoint = Arc::new(endpoint);
        tokio::spawn(Actor::new(Arc::clone(&endpoint), options.clone(), receiver, connection_tx).run());
        Self { endpoint, options, commands, connection }
    }

    /// The options of this client.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// A client on the same connection that acts for another owner.
    ///
    /// Only programs of the scheduler's own host and user may name any owner; a certificate acts for its own name.
    #[must_use]
    pub fn on_behalf_of(&self, owner: Owner) -> Self {
        Self { options: ClientOptions { owner, ..self.options.clone() }, ..self.clone() }
    }

    /// Submits a task. Returns once the task is recorded, with the number of tasks before it in its queue.
    ///
    /// Inputs of at most 256 KiB each travel in the message, larger ones through the spool. The inputs are kept, not copied,
    /// until the task has ended. A repeated submission of the same task gets the same answer.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if the task is invalid or a limit of this client is reached,
    /// [`ClientError::Refused`], [`ClientError::NoScheduler`], [`ClientError::Timeout`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the task: if it was sent, it is cancelled within a second.
    pub async fn submit(&self, task: NewTask, patience: Duration) -> Result<u64, ClientError> {
        self.submit_and(task, AfterAcceptance::Follow, patience).await
    }

    /// Submits a task like [`Client::submit`], and forgets it once it is recorded: it counts against no limit on followed
    /// tasks. [`Client::wait`] and [`Client::follow`] ask the scheduler for it again.
    ///
    /// # Errors
    /// As [`Client::submit`].
    ///
    /// # Cancel safety
    /// As [`Client::submit`].
    pub async fn submit_unfollowed(&self, task: NewTask, patience: Duration) -> Result<u64, ClientError> {
        self.submit_and(task, AfterAcceptance::Forget, patience).await
    }

    async fn submit_and(
        &self,
        task: NewTask,
        after: AfterAcceptance,
        patience: Duration,
    ) -> Result<u64, ClientError> {
        let id = task.id;
        let owner = self.options.owner.clone();
        self.within(patience, || format!("the acceptance of task {id}"), async {
            let prepared = Prepared::new(owner, task).await?;
            let (reply, answer) = oneshot::channel();
            self.command(Command::Submit { prepared, after, reply }).await?;
            let mut phases = answer.await.map_err(|_| ClientError::Closed)??;
            loop {
                match &*phases.borrow_and_update() {
                    Phase::Sending => {}
                    Phase::Accepted { position } => return Ok(*position),
                    Phase::Ended(_) => return Ok(0),
                    Phase::Broken(error) => return Err(error.clone()),
                }
                phases.changed().await.map_err(|_| ClientError::Closed)?;
            }
        })
        .await
    }

    /// Waits until a task has ended. A failed or cancelled task is an outcome, not an error.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Refused`], [`ClientError::NotAdmitted`], [`ClientError::NoScheduler`],
    /// [`ClientError::Timeout`]; the call may be repeated after the last three.
    ///
    /// # Cancel safety
    /// Safe: the task continues, and the next call waits further.
    pub async fn wait(&self, id: TaskId, patience: Duration) -> Result<Outcome, ClientError> {
        self.within(patience, || format!("the end of task {id}"), async {
            let mut phases = self.subscribe(id).await?.phases;
            loop {
                let ended = match &*phases.borrow_and_update() {
                    Phase::Sending | Phase::Accepted { .. } => None,
                    Phase::Ended(ended) => Some(ended.clone()),
                    Phase::Broken(error) => return Err(error.clone()),
                };
                if let Some(ended) = ended {
                    return Ok(ended.outcome());
                }
                phases.changed().await.map_err(|_| ClientError::Closed)?;
            }
        })
        .await
    }

    /// Subscribes to a task's events, starting with the next one.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if this client follows too many tasks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn follow(&self, id: TaskId) -> Result<TaskWatch, ClientError> {
        self.subscribe(id).await
    }

    /// Cancels a task and returns its status after that. A task that has ended is not changed.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Refused`], [`ClientError::NoScheduler`], [`ClientError::Timeout`].
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request if it was not sent yet.
    pub async fn cancel(&self, id: TaskId, patience: Duration) -> Result<TaskInfo, ClientError> {
        self.ask(
            patience,
            || format!("the cancel of task {id}"),
            |reply| PendingRequest::Cancel { of: self.owned(id), reply },
        )
        .await
    }

    /// Returns a task's status.
    ///
    /// # Errors
    /// As [`Client::cancel`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn query(&self, id: TaskId, patience: Duration) -> Result<TaskInfo, ClientError> {
        self.ask(
            patience,
            || format!("the status of task {id}"),
            |reply| PendingRequest::Query { of: self.owned(id), reply },
        )
        .await
    }

    /// Returns the scheduler's version, nodes and queues.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::NoScheduler`], [`ClientError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn survey(&self, patience: Duration) -> Result<GridStatus, ClientError> {
        let page = async |after| {
            let what = || "the scheduler's overview".to_owned();
            self.ask(patience, what, |reply| PendingRequest::GetGridStatus { after, reply }).await
        };
        let mut overview = page(None).await?;
        while let Some(next) = overview.next.take() {
            let more = page(Some(next)).await?;
            overview.nodes.extend(more.nodes);
            overview.next = more.next;
        }
        Ok(overview)
    }

    /// Deletes a task's result before its retention ends. Returns when the scheduler has received the request.
    ///
    /// # Errors
    /// [`ClientError::NoScheduler`], [`ClientError::Timeout`]; the result is then deleted after its
    /// retention.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn release(&self, id: TaskId, patience: Duration) -> Result<(), ClientError> {
        self.ask(
            patience,
            || format!("the release of task {id}"),
            |reply| PendingRequest::Release { of: self.owned(id), reply },
        )
        .await
    }

    async fn subscribe(&self, id: TaskId) -> Result<TaskWatch, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Follow { of: self.owned(id), reply }).await?;
        answer.await.map_err(|_| ClientError::Closed)?
    }

    fn owned(&self, id: TaskId) -> OwnedTask {
        OwnedTask { id, owner: self.options.owner.clone() }
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        what: impl FnOnce() -> String,
        ask: impl FnOnce(Reply<T>) -> PendingRequest,
    ) -> Result<T, ClientError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::PendingRequest(ask(reply));
        self.within(patience, what, async {
            self.command(command).await?;
            answer.await.map_err(|_| ClientError::Closed)?
        })
        .await
    }

    async fn command(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| ClientError::Closed)
    }

    /// Limits `future` to `patience`. The error after that names the operation.
    async fn within<T>(
        &self,
        patience: Duration,
        what: impl FnOnce() -> String,
        future: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let Ok(result) = tokio::time::timeout(patience, future).await else {
            return Err(match &*self.connection.borrow() {
                Connection::Up => ClientError::Timeout {
                    what: what(),
                    waited: patience,
                    trouble: self.endpoint.trouble().text(),
                },
                down => ClientError::NoScheduler {
                    address: self.endpoint.address(),
                    reason: self.endpoint.trouble().text().unwrap_or_else(|| match down {
                        Connection::Down { reason } => reason.clone(),
                        Connection::Idle | Connection::Up => "the connection was not made in time".to_owned(),
                    }),
                    waited: patience,
                    hint: self.endpoint.hint(self.options.data_dir.as_deref()),
                },
            });
        };
        result
    }
}
