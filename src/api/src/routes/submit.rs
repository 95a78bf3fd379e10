//! Submits tasks.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use lamagrid_client::{Client, ClientError, Input, NewTask};
use lamagrid_domain::{BlobForm, Hash, PictureSize, Role, TaskId};
use lamagrid_imaging::codec;
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::Hasher;

use super::BASE;
use super::query::{Pairs, none};
use super::result::{TASK, picture};
use crate::access::Caller;
use crate::body::{Field, NamedFile};
use crate::idempotency::IdempotencyKey;
use crate::options::{TaskOptions, milliseconds};
use crate::problem::{Fault, Problem};
use crate::state::{Api, PATIENCE};
use crate::views::{NewTaskForm, TaskView};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest time that a response waits for its task.
const MAX_WAIT_S: u64 = 600;
const ROLES: [(&str, Role); 3] = [("image", Role::Image), ("mask", Role::Mask), ("example", Role::Example)];

/// Submits a task. With `Prefer: wait=N` the response is its picture, if it is made within N seconds.
///
/// A repeated request with the same Idempotency-Key gets the same task for 24 hours. If the program disconnects while it
/// waits for the picture, a task without Idempotency-Key and task_id is cancelled.
#[utoipa::path(
    post,
    path = "/tasks",
    tag = "tasks",
    params(
        ("Prefer" = Option<String>, Header, description = "wait=N answers the picture if it is made within N seconds"),
        ("Idempotency-Key" = Option<String>, Header, description = "A random text that stands for this request")
    ),
    request_body(content(
        (NewTaskForm = "multipart/form-data"),
        (NewTaskForm = "application/json")
    )),
    responses(
        (status = 200, description = "The picture", content_type = "image/*"),
        (status = 202, description = "The task; Location is where to ask for it", body = TaskView)
    )
)]
pub(crate) async fn submit(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
    request: Request,
) -> Result<Response, Problem> {
    none(pairs)?;
    let wait = wait(request.headers());
    let key = idempotency_key(request.headers())?;
    let limits = caller.limits();
    let max_bytes = limits.and_then(|limits| limits.max_task_bytes).unwrap_or(u64::MAX);
    let mut form = api.forms.read(caller.owner(), request, max_bytes).await?;
    let fields = std::mem::take(&mut form.fields);
    let files = std::mem::take(&mut form.files);
    let request_hash = hash_of(&fields, &files);
    let options = TaskOptions::of(fields)?;
    if let Some(limits) = limits.filter(|limits| options.priority > limits.max_priority) {
        let text = format!(
            "priority {} is above {}, the highest one of the API key; send a lower one",
            options.priority, limits.max_priority
        );
        return Err(Problem::new(Fault::Forbidden, text));
    }
    if options.id.is_some() && key.is_some() {
        return Err(Problem::bad("task_id and Idempotency-Key do the same; send one of them"));
    }
    let is_repeatable = options.id.is_some() || key.is_some();
    let mut task = new_task(options, files)?;
    let new = task.id;
    task.id = match &key {
        Some(key) => api.idempotency.task(caller.owner(), key, request_hash, new).await?,
        None => new,
    };
    let id = task.id;
    let bytes = task.inputs.iter().map(|input| input.content.len()).sum();
    let reservation = match limits.filter(|_| id == new) {
        Some(limits) => {
            api.usage.reserve(caller.owner(), &limits, bytes, || api.unfinished(caller.owner())).await
        }
        // A repeated request is no further task.
        None => Ok(None),
    };
    let reservation = match reservation {
        Ok(reservation) => reservation,
        Err(problem) => {
            if let Some(key) = &key {
                api.idempotency.forget(caller.owner(), key).await?;
            }
            return Err(problem);
        }
    };
    let client = api.submitter(caller.owner());
    let is_awaited = wait.is_some() && !is_repeatable;
    let abandoned = is_awaited.then(|| CancelOnDrop { client: client.clone(), id: Some(id) });
    let submission = Submission { api: Arc::clone(&api), caller: caller.clone(), key };
    // On a task of its own: a program that disconnects now must not leave an id that can never be used.
    let submitted = tokio::spawn(async move {
        let done = submission.run(task).await;
        drop((form, reservation));
        done
    });
    let submitted = submitted.await.unwrap_or_else(|_| {
        Err(Problem::new(Fault::Internal, "the submission failed; see the scheduler's log"))
    });
    let outcome = match (submitted, wait) {
        (Ok(()), Some(wait)) => Ok(Some(api.follower(caller.owner()).wait(id, wait).await)),
        (Ok(()), None) => Ok(None),
        (Err(problem), _) => Err(problem),
    };
    // From here on the program gets a response.
    abandoned.into_iter().for_each(CancelOnDrop::disarm);
    let Some(outcome) = outcome? else { return accepted(&client, id).await };
    let applied = HeaderValue::try_from(format!("wait={}", wait.unwrap_or_default().as_secs()));
    let mut response = match outcome {
        Ok(outcome) => picture(outcome, caller).await?,
        Err(ClientError::Timeout { .. }) => accepted(&client, id).await?,
        Err(error) => return Err(Problem::from(error).about(id)),
    };
    response.headers_mut().insert(PREFERENCE_APPLIED, applied.unwrap_or(HeaderValue::from_static("wait")));
    Ok(response)
}

/// One submission under way.
struct Submission {
    api: Arc<Api>,
    caller: Caller,
    key: Option<IdempotencyKey>,
}

impl Submission {
    async fn run(self, task: NewTask) -> Result<(), Problem> {
        let id = task.id;
        let owner = self.caller.owner();
        let Err(error) = self.api.submitter(owner).submit_unfollowed(task, PATIENCE).await else {
            return Ok(());
        };
        // An expired task ran once, and must not run again under another id.
        if let (Some(key), false) = (&self.key, matches!(error, ClientError::Unknown { .. })) {
            self.api.idempotency.forget(owner, key).await?;
        }
        Err(Problem::from(error).about(id))
    }
}

/// Cancels a task whose program has disconnected.
struct CancelOnDrop {
    client: Client,
    id: Option<TaskId>,
}

impl CancelOnDrop {
    fn disarm(mut self) {
        self.id = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let client = self.client.clone();
        tokio::spawn(async move {
            match client.cancel(id, PATIENCE).await {
                Ok(_) => tracing::info!(task.id = %id, "cancelled: its program disconnected while it waited"),
                Err(error) => tracing::debug!(task.id = %id, %error, "an abandoned task was not cancelled"),
            }
        });
    }
}

/// The response to a task that is not waited for.
async fn accepted(client: &Client, id: TaskId) -> Result<Response, Problem> {
    let task = client.query(id, PATIENCE).await?;
    let headers = [(header::LOCATION, format!("{BASE}/tasks/{id}")), (TASK, id.to_string())];
    Ok((StatusCode::ACCEPTED, headers, Json(TaskView::from(task))).into_response())
}

fn new_task(options: TaskOptions, files: Vec<NamedFile>) -> Result<NewTask, Problem> {
    for name in ["image", "mask"] {
        if !files.iter().any(|file| file.name == name && !file.upload.content.is_empty()) {
            return Err(Problem::bad(format!(
                "the file {name} is missing or empty; a task needs image and mask"
            )));
        }
    }
    let id = options.id_or_new();
    let header = files
        .iter()
        .find(|file| file.name == "image")
        .and_then(|image| codec::probe(&image.upload.head).ok());
    let picture = header.map(|header| PictureSize { height: header.height, width: header.width });
    let inputs = files.into_iter().filter_map(|NamedFile { name, upload }| {
        let (_, role) = ROLES.into_iter().find(|(role, _)| *role == name)?;
        Some(Input { role, form: BlobForm::Encoded, content: upload.content })
    });
    Ok(NewTask {
        queue: options.queue,
        picture,
        params: options.params,
        priority: options.priority,
        durability: options.durability,
        deadline_wall_ms: options.deadline.map(|deadline| wall_ms().saturating_add(milliseconds(deadline))),
        wait_limit_ms: options.wait_limit.map(milliseconds),
        no_node_wait_ms: options.no_node_wait.map(milliseconds),
        run_limit_ms: options.run_limit.map(milliseconds),
        client: options.client,
        output: options.output,
        ..NewTask::new(id, options.model, inputs.collect())
    })
}

/// Tells two requests apart: their fields and files, in any order.
fn hash_of(fields: &[Field], files: &[NamedFile]) -> Hash {
    let mut parts: Vec<String> =
        fields.iter().map(|field| format!("{:?} = {:?}", field.name, field.value)).collect();
    parts.extend(files.iter().map(|file| {
        format!("{:?}: {} {:?}", file.name, file.upload.content.len(), file.upload.content.hash())
    }));
    parts.sort_unstable();
    let mut hasher = Hasher::default();
    parts.iter().for_each(|part| hasher.update(part.as_bytes()));
    hasher.finish()
}

/// Reads `wait` of the header Prefer. Invalid preferences are ignored, as RFC 7240 requires.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let words = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let seconds = words.flat_map(|value| value.split(',')).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("wait").then(|| value.parse::<u64>().ok())?
    });
    seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.min(MAX_WAIT_S)))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut all = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => IdempotencyKey::parse(key.to_str().unwrap_or_default()).map(Some),
        (Some(_), Some(_)) => Err(Problem::bad("the request has two Idempotency-Key headers; send one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preference_to_wait_is_read_as_the_rfc_says() {
        let wait_of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PREFER, value.parse().unwrap());
            }
            wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait_of(&["wait=10"]), Some(10));
        assert_eq!(wait_of(&["return=minimal, WAIT = \"7\"; x=y"]), Some(7));
        assert_eq!(wait_of(&["respond-async", "wait=99999"]), Some(MAX_WAIT_S));
        for wrong in [&[][..], &["wait"], &["wait=-1"], &["wait=x"], &["wait=0"], &["await=1"]] {
            assert_eq!(wait_of(wrong), None, "{wrong:?}");
        }
    }
}
