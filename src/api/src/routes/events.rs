//! Streams the events of a task as server-sent events.
//!
//! Each event's id is made of the task's state, so that a reader that comes back with `Last-Event-ID` gets the present
//! state unless it has seen it: no state is lost, and none comes twice.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use lamagrid_client::{Client, TaskEvent, TaskInfo, TaskWatch};
use lamagrid_domain::Advance;

use super::query::{Pairs, none, task_id};
use crate::access::Caller;
use crate::problem::Problem;
use crate::state::{Api, PATIENCE};
use crate::views::{ProgressView, TaskView};

/// Events that wait for the connection; progress beyond them is left out.
const EVENTS: usize = 16;
/// How often the API key is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A comment is sent after this many looks, so that a connection that is gone is noticed.
const LOOKS_PER_COMMENT: u32 = 15;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Streams a task's events: `state` with the task at each change, `progress`, and at the end `done` with the task.
#[utoipa::path(
    get,
    path = "/tasks/{id}/events",
    tag = "tasks",
    params(
        ("id" = String, Path, description = "The task's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")
    ),
    responses(
        (status = 200, description = "Server-sent events", content_type = "text/event-stream"),
        (status = 204, description = "The last event was seen; do not connect again")
    )
)]
pub(crate) async fn events(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    none(pairs)?;
    let owned = api.task(&caller, task_id(&id)?).await?;
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let client = api.submitter(&owned.owner);
    let (watch, task) = if owned.info.status.is_terminal() {
        if seen.as_deref() == Some(state_id(&owned.info).as_str()) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        (None, owned.info)
    } else {
        let watch = api.follower(&owned.owner).follow(owned.info.id).await?;
        // Asked again, so that no change is missed in between.
        (Some(watch), client.query(owned.info.id, PATIENCE).await?)
    };
    let (sender, receiver) = mpsc::channel(EVENTS);
    let stream = Stream { client, caller, sender };
    tokio::spawn(async move { stream.run(watch, task, seen).await });
    let body = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|event| (Ok::<_, std::io::Error>(event), receiver))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // nginx buffers responses otherwise.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The reader has gone.
struct Gone;

/// One open stream.
struct Stream {
    client: Client,
    caller: Caller,
    sender: mpsc::Sender<Bytes>,
}

impl Stream {
    async fn run(self, watch: Option<TaskWatch>, task: TaskInfo, seen: Option<String>) {
        // A reader that has gone needs nothing more.
        let _ = self.all(watch, task, seen).await;
    }

    async fn all(
        &self,
        watch: Option<TaskWatch>,
        mut task: TaskInfo,
        seen: Option<String>,
    ) -> Result<(), Gone> {
        let id = state_id(&task);
        let is_seen = seen.is_some_and(|seen| seen == id || seen.starts_with(&format!("{id}.")));
        if !is_seen || task.status.is_terminal() {
            self.state(&task).await?;
        }
        let Some(mut watch) = watch else { return Ok(()) };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        while !task.status.is_terminal() {
            let event = tokio::select! {
                event = watch.next() => event,
                _ = look.tick() => {
                    if !self.caller.is_valid() {
                        return Ok(());
                    }
                    looks += 1;
                    if looks.is_multiple_of(LOOKS_PER_COMMENT) {
                        self.send(Bytes::from_static(b":\n\n")).await?;
                    }
                    continue;
                }
                () = self.sender.closed() => return Err(Gone),
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(error) => return self.problem(error.into()).await,
            };
            if event.status == task.status && !event.status.is_terminal() {
                // The answer to the question for events says nothing about the progress.
                if event.advance != Advance::default() {
                    self.progress(&task, event).await?;
                }
                continue;
            }
            task = match self.client.query(task.id, PATIENCE).await {
                Ok(task) => task,
                Err(error) => return self.problem(error.into()).await,
            };
            self.state(&task).await?;
        }
        Ok(())
    }

    async fn state(&self, task: &TaskInfo) -> Result<(), Gone> {
        let name = if task.status.is_terminal() { "done" } else { "state" };
        self.send(event(name, &state_id(task), &TaskView::from(task.clone()))).await
    }

    async fn progress(&self, task: &TaskInfo, moved: TaskEvent) -> Result<(), Gone> {
        let (activity, step, of) = (moved.advance.activity.as_str(), moved.advance.step, moved.advance.of);
        let id = format!("{}.{activity}.{step}", state_id(task));
        let view = ProgressView { state: moved.status.as_str(), activity, step, of };
        self.send(event("progress", &id, &view)).await
    }

    async fn problem(&self, problem: Problem) -> Result<(), Gone> {
        let data = serde_json::to_string(&problem).unwrap_or_default();
        // Without an id, so that a reader comes back where it was.
        self.send(format!("event: problem\ndata: {data}\n\n").into()).await
    }

    async fn send(&self, event: Bytes) -> Result<(), Gone> {
        self.sender.send(event).await.map_err(|_| Gone)
    }
}

/// Identifies a task's state: its word, and the number of its attempt.
fn state_id(task: &TaskInfo) -> String {
    format!("{}.{}", task.status, task.counters.attempts)
}

/// One event. JSON has no line feeds outside of its strings, where they are escaped.
fn event(name: &str, id: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}
