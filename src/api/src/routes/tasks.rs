//! Shows, lists, cancels and retries tasks.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use lamagrid_client::{AdminReply, ListTasks, Page, RetryTask};
use lamagrid_domain::Status;

use super::BASE;
use super::query::{ListQuery, Pairs, cursor_text, none, task_id};
use crate::access::Caller;
use crate::problem::{Fault, Problem};
use crate::state::{Api, PATIENCE, unexpected};
use crate::views::{RetriedView, TaskList, TaskView};

/// Shows a task.
#[utoipa::path(
    get,
    path = "/tasks/{id}",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, body = TaskView))
)]
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Json<TaskView>, Problem> {
    none(pairs)?;
    Ok(Json(api.task(&caller, task_id(&id)?).await?.info.into()))
}

/// Cancels a task. A task that has ended is not changed.
#[utoipa::path(
    delete,
    path = "/tasks/{id}",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, description = "The cancelled task", body = TaskView))
)]
pub(crate) async fn cancel(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Json<TaskView>, Problem> {
    none(pairs)?;
    let task = api.task(&caller, task_id(&id)?).await?;
    let now = api.submitter(&task.owner).cancel(task.info.id, PATIENCE).await?;
    match now.status {
        Status::Cancelled | Status::Queued | Status::Processing => Ok(Json(now.into())),
        Status::Completed | Status::Failed => {
            let text = format!("task {} {} before it could be cancelled", now.id, ended(now.status));
            Err(Problem::new(Fault::Conflict, text).about(now.id))
        }
    }
}

fn ended(status: Status) -> &'static str {
    if status == Status::Failed { "failed" } else { "completed" }
}

/// Retries a task: one that waits after a failure becomes due, a dead letter is submitted as a new task.
#[utoipa::path(
    post,
    path = "/tasks/{id}/retry",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses((status = 202, description = "Location is the task that runs", body = RetriedView))
)]
pub(crate) async fn retry(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Response, Problem> {
    none(pairs)?;
    let id = api.task(&caller, task_id(&id)?).await?.info.id;
    let reply = api.admin(RetryTask { id }).await.map_err(|problem| match problem.status() {
        400 => problem.about(id).turned_into(Fault::Conflict),
        _ => problem.about(id),
    })?;
    let AdminReply::Retried(retried) = reply else { return Err(unexpected()) };
    let view = RetriedView { id: id.to_string(), runs_as: retried.runs_as.to_string() };
    let location = [(header::LOCATION, format!("{BASE}/tasks/{}", retried.runs_as))];
    Ok((StatusCode::ACCEPTED, location, Json(view)).into_response())
}

/// Lists tasks, the newest first: those of the API key, for operators those of all owners.
#[utoipa::path(
    get,
    path = "/tasks",
    tag = "tasks",
    params(
        ("state" = Option<String>, Query, description = "Only tasks in one of these states, separated by commas"),
        ("queue" = Option<String>, Query, description = "Only tasks of this queue"),
        ("model" = Option<String>, Query, description = "Only tasks of this model"),
        ("client" = Option<String>, Query, description = "Only tasks that were submitted for this client"),
        ("owner" = Option<String>, Query, description = "Only tasks of this owner; for operators"),
        ("limit" = Option<u32>, Query, description = "Tasks on a page, 1 to 100; 50 by default"),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
    ),
    responses((status = 200, body = TaskList))
)]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<TaskList>, Problem> {
    page(&api, request(ListQuery::parse(pairs, &caller)?)).await
}

/// Lists dead letters, the newest first: tasks that failed for good and can be retried.
#[utoipa::path(
    get,
    path = "/dead-letters",
    tag = "tasks",
    params(
        ("queue" = Option<String>, Query, description = "Only tasks of this queue"),
        ("model" = Option<String>, Query, description = "Only tasks of this model"),
        ("owner" = Option<String>, Query, description = "Only tasks of this owner; for operators"),
        ("limit" = Option<u32>, Query, description = "Tasks on a page, 1 to 100; 50 by default"),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
    ),
    responses((status = 200, body = TaskList))
)]
pub(crate) async fn dead_letters(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Json<TaskList>, Problem> {
    page(&api, ListTasks { dead: true, ..request(ListQuery::parse(pairs, &caller)?) }).await
}

fn request(query: ListQuery) -> ListTasks {
    let ListQuery { states, queue, model, client, owner, limit, after } = query;
    ListTasks { states, dead: false, queue, model, client, owner, after, limit }
}

async fn page(api: &Api, request: ListTasks) -> Result<Json<TaskList>, Problem> {
    let AdminReply::Page(Page { tasks, next, total, .. }) = api.admin(request).await? else {
        return Err(unexpected());
    };
    let tasks = tasks.into_iter().map(Into::into).collect();
    Ok(Json(TaskList { tasks, next: next.as_ref().map(cursor_text), total }))
}
