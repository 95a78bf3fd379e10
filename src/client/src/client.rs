//! What callers see.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use lamagrid_domain::TaskId;
use lamagrid_protocol::message::{GridStatus, TaskInfo};
use lamagrid_transport::Endpoints;

use crate::actor::{Actor, Command, Connection};
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::options::ClientOptions;
use crate::outcome::Outcome;
use crate::pending_requests::{PendingRequest, Reply};
use crate::task::{NewTask, Prepared};
use crate::task_watch::Phase;
use crate::task_watch::TaskWatch;

/// Commands on their way to the actor, which takes each in microseconds.
const COMMANDS: usize = 256;

/// A client of one scheduler. Cheap to clone; the connection closes with the last clone.
///
/// Every call takes the caller's patience. While no scheduler answers, the client keeps trying, and a call
/// whose patience ends then says where it looked and how to start one.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    options: ClientOptions,
    commands: mpsc::Sender<Command>,
    connection: watch::Receiver<Connection>,
}

impl Client {
    /// A client of the scheduler behind `endpoints`. It connects when something is asked first.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(endpoints: &Endpoints, options: ClientOptions) -> Self {
        Self::with_endpoint(Endpoint::near(endpoints), options)
    }

    /// A client of a scheduler of this host or another.
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

    /// Who this client submits as.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Submits a task and returns how many tasks are before it in its queue, once it is on record.
    ///
    /// Inputs of at most 256 KiB each travel with the message, others through the spool. The inputs are kept,
    /// not copied, until the task has ended. Submitting the same task again is answered as the first time.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if the task is wrong in itself or a bound of this client is reached,
    /// [`ClientError::Refused`], [`ClientError::NoScheduler`], [`ClientError::Timeout`].
    ///
    /// # Cancel safety
    /// Dropping the future before it is done gives the task up: if it was sent, it is cancelled within a second.
    pub async fn submit(&self, task: NewTask, patience: Duration) -> Result<u64, ClientError> {
        let id = task.id;
        let owner = self.options.owner.clone();
        self.within(patience, || format!("the acceptance of task {id}"), async {
            let prepared = Prepared::new(owner, task).await?;
            let (reply, answer) = oneshot::channel();
            self.command(Command::Submit { prepared, reply }).await?;
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

    /// Waits for a task's end. A failed or cancelled task is an outcome, too.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Refused`], [`ClientError::NotAdmitted`], [`ClientError::NoScheduler`],
    /// [`ClientError::Timeout`]; after the last three it may be called again.
    ///
    /// # Cancel safety
    /// Safe: the task goes on, and the next call waits on.
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

    /// The events of a task, beginning with the next one.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if this client follows too many tasks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn follow(&self, id: TaskId) -> Result<TaskWatch, ClientError> {
        self.subscribe(id).await
    }

    /// PendingRequests that a task be stopped; it says how the task is doing then. An ended task stays as it is.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Refused`], [`ClientError::NoScheduler`], [`ClientError::Timeout`].
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back if it was not sent yet.
    pub async fn cancel(&self, id: TaskId, patience: Duration) -> Result<TaskInfo, ClientError> {
        self.ask(
            patience,
            || format!("the cancel of task {id}"),
            |reply| PendingRequest::Cancel { id, reply },
        )
        .await
    }

    /// How a task is doing.
    ///
    /// # Errors
    /// As [`Client::cancel`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn query(&self, id: TaskId, patience: Duration) -> Result<TaskInfo, ClientError> {
        self.ask(patience, || format!("the status of task {id}"), |reply| PendingRequest::Query { id, reply })
            .await
    }

    /// What the grid is made of.
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

    /// Says that a task's result is not needed any more; it is gone then. Returns when the scheduler heard it.
    ///
    /// # Errors
    /// [`ClientError::NoScheduler`], [`ClientError::Timeout`]; the result goes away after its retention, too.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn release(&self, id: TaskId, patience: Duration) -> Result<(), ClientError> {
        self.ask(
            patience,
            || format!("the release of task {id}"),
            |reply| PendingRequest::Release { id, reply },
        )
        .await
    }

    async fn subscribe(&self, id: TaskId) -> Result<TaskWatch, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Follow { id, reply }).await?;
        answer.await.map_err(|_| ClientError::Closed)?
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

    /// Ends `future` with the caller's patience, and says what was missing then.
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
