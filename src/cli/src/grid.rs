//! `lamagrid node list` and `queue show`: sends the requests that any client may send.
//!
//! Does not: change anything; [`crate::admin`] does.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;

use lamagrid_client::{Client, ClientOptions, Endpoint, GridStatus};
use lamagrid_config::Config;

use crate::Answer;
use crate::error::CliError;
use crate::output::Format;
use crate::view::NodeView;

/// How long to wait for the scheduler. Long enough for a restarting scheduler; short enough that, if none
/// runs, the command reports it within three seconds, its own start included.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2_500);

/// `lamagrid node list`
pub(crate) fn node_list(config: &Config, join: Option<&Path>, format: Format) -> Result<Answer, CliError> {
    let mut nodes = survey(config, join)?.nodes;
    nodes.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    format.render(&nodes.into_iter().map(NodeView::from).collect::<Vec<_>>()).map(Answer::ok)
}

/// `lamagrid queue show`
pub(crate) fn queue_show(config: &Config, join: Option<&Path>, format: Format) -> Result<Answer, CliError> {
    let mut queues = survey(config, join)?.queues;
    queues.sort_by(|a, b| a.queue.cmp(&b.queue));
    format.render(&queues).map(Answer::ok)
}

/// Fetches the grid's status, in a runtime that lives only for this request.
pub(crate) fn survey(config: &Config, join: Option<&Path>) -> Result<GridStatus, CliError> {
    let (runtime, endpoint) = endpoint(config, join)?;
    let options = ClientOptions {
        owner: endpoint.owner().clone(),
        ping: Duration::from_millis(config.client.ping_ms),
        silence: Duration::from_millis(config.client.silence_ms),
        data_dir: Some(config.data_dir()?),
        ..ClientOptions::default()
    };
    Ok(runtime.block_on(async {
        endpoint.look_up().await?;
        Client::with_endpoint(endpoint, options).survey(PATIENCE).await
    })?)
}

/// Endpoint of the scheduler of the data directory, or of `join`'s, with the runtime in which to use it.
pub(crate) fn endpoint(config: &Config, join: Option<&Path>) -> Result<(Runtime, Endpoint), CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let inside = runtime.enter();
    let endpoint = match join {
        None => Endpoint::of_data_dir(&config.data_dir()?)?,
        Some(bundle) => Endpoint::far(bundle)?,
    };
    drop(inside);
    Ok((runtime, endpoint))
}
