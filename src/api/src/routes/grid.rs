//! Shows the grid: models, nodes, queues, statistics.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};

use lamagrid_client::{AdminReply, GetStatistics, GridStatus};

use super::query::{Pairs, none};
use crate::access::Caller;
use crate::problem::Problem;
use crate::state::{Api, PATIENCE, unexpected};
use crate::views::{ModelList, NodeList, NodeView, QueueList, QueueView, StatisticsList};

/// Lists the models that connected nodes serve.
#[utoipa::path(get, path = "/models", tag = "grid", responses((status = 200, body = ModelList)))]
pub(crate) async fn models(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<ModelList>, Problem> {
    none(pairs)?;
    Ok(Json((&survey(&api, &caller).await?).into()))
}

/// Lists the connected nodes. For operators.
#[utoipa::path(get, path = "/nodes", tag = "grid", responses((status = 200, body = NodeList)))]
pub(crate) async fn nodes(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<NodeList>, Problem> {
    caller.must_be_operator()?;
    none(pairs)?;
    let mut nodes = survey(&api, &caller).await?.nodes;
    nodes.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    Ok(Json(NodeList { nodes: nodes.into_iter().map(NodeView::from).collect() }))
}

/// Lists the queues.
#[utoipa::path(get, path = "/queues", tag = "grid", responses((status = 200, body = QueueList)))]
pub(crate) async fn queues(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<QueueList>, Problem> {
    none(pairs)?;
    let queues = survey(&api, &caller).await?.queues;
    Ok(Json(QueueList { queues: queues.into_iter().map(QueueView::from).collect() }))
}

/// Shows how many tasks ended, and how long they waited and ran, per queue and model. For operators.
#[utoipa::path(get, path = "/stats", tag = "grid", responses((status = 200, body = StatisticsList)))]
pub(crate) async fn stats(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<StatisticsList>, Problem> {
    caller.must_be_operator()?;
    none(pairs)?;
    let mut statistics = Vec::new();
    loop {
        let skip = u32::try_from(statistics.len()).unwrap_or(u32::MAX);
        let AdminReply::Statistics(page) = api.admin(GetStatistics { skip }).await? else {
            return Err(unexpected());
        };
        let more = page.more && !page.lines.is_empty();
        statistics.extend(page.lines.into_iter().map(Into::into));
        if !more {
            return Ok(Json(StatisticsList { statistics }));
        }
    }
}

async fn survey(api: &Api, caller: &Caller) -> Result<GridStatus, Problem> {
    Ok(api.submitter(caller.owner()).survey(PATIENCE).await?)
}
