//! The state that the routes share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use lamagrid_client::{
    AdminReply, AdminRequest, Client, ClientError, ClientOptions, Endpoint, Endpoints, GetTaskHistory,
    ListTasks, Staging, TaskInfo,
};
use lamagrid_config::Config;
use lamagrid_domain::{Failure, FailureKind, Owner, Status, TaskId};

use crate::access::Caller;
use crate::body::FormReader;
use crate::idempotency::Idempotency;
use crate::keys::KeyError;
use crate::options::FILES;
use crate::problem::{Fault, Problem};
use crate::usage::{Amount, UsageTable};

/// How long a request waits for the scheduler.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Allowance for the header of a file with uncompressed pixels; the same as the scheduler's.
const FILE_SLACK_BYTES: u64 = 1 << 20;
/// Requests on the admin channel at the same time; each opens a connection.
const ADMIN_REQUESTS: usize = 8;
/// Tasks that are watched or waited for at the same time.
const MAX_FOLLOWED: usize = 100_000;

/// Why the API cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("cannot prepare the directory of uploads: {0}; check the permissions of the data directory")]
    Staging(std::io::Error),
    #[error(transparent)]
    Database(#[from] KeyError),
}

/// The state that the routes share.
#[derive(Debug)]
pub(crate) struct Api {
    /// Submits tasks, and asks about them. It follows none, so that its submissions count against no limit.
    submitter: Client,
    /// Waits for tasks.
    follower: Client,
    endpoint: Endpoint,
    data_dir: PathBuf,
    admin: Semaphore,
    pub(crate) forms: FormReader,
    pub(crate) idempotency: Idempotency,
    pub(crate) usage: UsageTable,
}

/// A task, and the owner on whose behalf the caller may act on it.
#[derive(Debug)]
pub(crate) struct OwnedTask {
    pub(crate) info: TaskInfo,
    pub(crate) owner: Owner,
}

impl Api {
    /// Call inside the runtime that is to serve the connections to the scheduler.
    pub(crate) fn open(
        config: &Config,
        data_dir: &Path,
        endpoints: &Endpoints,
    ) -> Result<Arc<Self>, ApiError> {
        let options = ClientOptions {
            ping: Duration::from_millis(config.client.ping_ms),
            silence: Duration::from_millis(config.client.silence_ms),
            data_dir: Some(data_dir.to_owned()),
            max_tasks: MAX_FOLLOWED,
            ..ClientOptions::default()
        };
        let max_file_bytes = config.limits.max_pixels.saturating_mul(4).saturating_add(FILE_SLACK_BYTES);
        let staging = Staging::create(data_dir).map_err(ApiError::Staging)?;
        Ok(Arc::new(Self {
            submitter: Client::new(endpoints, options.clone()),
            follower: Client::new(endpoints, options),
            endpoint: Endpoint::near(endpoints),
            data_dir: data_dir.to_owned(),
            admin: Semaphore::new(ADMIN_REQUESTS),
            forms: FormReader::new(staging, max_file_bytes, config.limits.min_free_bytes, FILES),
            idempotency: Idempotency::open(data_dir)?,
            usage: UsageTable::default(),
        }))
    }

    /// The client that submits and asks on behalf of an owner.
    pub(crate) fn submitter(&self, owner: &Owner) -> Client {
        self.submitter.on_behalf_of(owner.clone())
    }

    /// The client that waits on behalf of an owner.
    pub(crate) fn follower(&self, owner: &Owner) -> Client {
        self.follower.on_behalf_of(owner.clone())
    }

    /// Sends a request of an administrator.
    pub(crate) async fn admin(&self, request: impl Into<AdminRequest>) -> Result<AdminReply, Problem> {
        let waited = tokio::time::timeout(PATIENCE, self.admin.acquire()).await;
        let Ok(Ok(_place)) = waited else {
            return Err(Problem::new(
                Fault::Busy,
                "the scheduler is asked too much at the moment; try again later",
            ));
        };
        Ok(lamagrid_client::admin(&self.endpoint, &self.data_dir, request, PATIENCE).await?)
    }

    /// A task that the caller may see: its own, or for operators any.
    ///
    /// # Errors
    /// 404 for an unknown task and for one of another owner.
    pub(crate) async fn task(&self, caller: &Caller, id: TaskId) -> Result<OwnedTask, Problem> {
        match self.submitter(caller.owner()).query(id, PATIENCE).await {
            Ok(info) => Ok(OwnedTask { info, owner: caller.owner().clone() }),
            Err(ClientError::Unknown { expired, .. }) if caller.is_operator() => {
                match self.admin(GetTaskHistory { id }).await {
                    Ok(AdminReply::TaskHistory(history)) => {
                        Ok(OwnedTask { info: history.task, owner: history.owner })
                    }
                    Ok(_) => Err(unexpected()),
                    Err(problem) if problem.status() == 404 => {
                        Err(ClientError::Unknown { id, expired }.into())
                    }
                    Err(problem) => Err(problem),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// An owner's unfinished tasks, as the scheduler counts them.
    pub(crate) async fn unfinished(&self, owner: &Owner) -> Result<Amount, Problem> {
        let request = ListTasks {
            states: vec![Status::Queued, Status::Processing],
            dead: false,
            queue: None,
            model: None,
            client: None,
            owner: Some(owner.clone()),
            after: None,
            limit: 1,
        };
        match self.admin(request).await? {
            AdminReply::Page(page) => Ok(Amount { tasks: page.total, bytes: page.input_bytes }),
            _ => Err(unexpected()),
        }
    }
}

pub(crate) fn unexpected() -> Problem {
    let text = "the scheduler answered something else than was asked; is it of the same version?";
    Problem::of_failure(&Failure::new(FailureKind::Incompatible, text))
}
