//! `lamagrid node list` and `queue show`: asks what any client may ask.
//!
//! Does not: change anything; [`crate::admin`] does.

use std::time::Duration;

use lamagrid_client::{Client, ClientError, ClientOptions, Endpoints};
use lamagrid_config::Config;

use crate::Answer;
use crate::error::CliError;
use crate::output::Format;
use crate::view::{NodeView, QueueView};

/// A scheduler that restarts is back before; whoever forgot to start one shall know within three seconds,
/// the start of the command included.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2_500);

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
