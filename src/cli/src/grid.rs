//! `lamagrid task`, `node` and `queue`: asks the running scheduler.
//!
//! Does not: wait for a task's end.

use std::time::{Duration, SystemTime};

use lamagrid_client::{Client, ClientError, ClientOptions, Endpoints, TaskInfo};
use lamagrid_config::Config;
use lamagrid_domain::{Status, TaskId};

use crate::Answer;
use crate::error::{CliError, REFUSED};
use crate::output::Format;
use crate::units;
use crate::view::{NodeView, QueueView, TaskView};

/// A scheduler that restarts is back before; whoever forgot to start one shall know within three seconds,
/// the start of the command included.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// `lamagrid task show`
pub(crate) fn task_show(config: &Config, id: TaskId, format: Format) -> Result<Answer, CliError> {
    let task = ask(config, async |client| client.query(id, PATIENCE).await)?;
    let code = failure_code(&task).unwrap_or(0);
    Ok(Answer { text: shown(task, format)?, remark: None, code })
}

/// `lamagrid task cancel`
pub(crate) fn task_cancel(config: &Config, id: TaskId, format: Format) -> Result<Answer, CliError> {
    let task = ask(config, async |client| client.cancel(id, PATIENCE).await)?;
    let (code, remark) = match task.status {
        Status::Cancelled | Status::Queued | Status::Processing => (0, None),
        Status::Completed => {
            (REFUSED, Some(format!("error: task {id} completed before it could be cancelled")))
        }
        Status::Failed => {
            let code = failure_code(&task).unwrap_or(REFUSED);
            (code, Some(format!("error: task {id} failed before it could be cancelled")))
        }
    };
    Ok(Answer { text: shown(task, format)?, remark, code })
}

/// `lamagrid node list`
pub(crate) fn node_list(config: &Config, format: Format) -> Result<Answer, CliError> {
    let mut nodes = ask(config, async |client| client.survey(PATIENCE).await)?.nodes;
    nodes.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    format.render(&nodes.into_iter().map(NodeView::from).collect::<Vec<_>>()).map(Answer::ok)
}

/// `lamagrid queue show`
pub(crate) fn queue_show(config: &Config, format: Format) -> Result<Answer, CliError> {
    let mut queues = ask(config, async |client| client.survey(PATIENCE).await)?.queues;
    queues.sort_by(|a, b| a.queue.cmp(&b.queue));
    format.render(&queues.into_iter().map(QueueView::from).collect::<Vec<_>>()).map(Answer::ok)
}

fn shown(task: TaskInfo, format: Format) -> Result<String, CliError> {
    format.render(&TaskView::new(task, units::wall_ms(SystemTime::now())))
}

fn failure_code(task: &TaskInfo) -> Option<u8> {
    let failed = task.failure.as_ref().filter(|_| task.status == Status::Failed);
    failed.map(|failure| failure.kind.exit_code())
}

/// Asks the scheduler of the configured data directory, in a runtime that lives no longer than the question.
fn ask<T>(
    config: &Config,
    question: impl AsyncFnOnce(Client) -> Result<T, ClientError>,
) -> Result<T, CliError> {
    let data_dir = config.data_dir()?;
    let endpoints = Endpoints::new(lamagrid_config::runtime_dir(&data_dir)?);
    let options = ClientOptions {
        ping: Duration::from_millis(config.client.ping_ms),
        silence: Duration::from_millis(config.client.silence_ms),
        data_dir: Some(data_dir),
        ..ClientOptions::default() // the owner is every local program's
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    Ok(runtime.block_on(async { question(Client::new(&endpoints, options)).await })?)
}
