//! Sends the picture that a task made, in pieces.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::mpsc;

use lamagrid_client::{Outcome, ResultReader, TaskResult};
use lamagrid_domain::{Hash, Status, TaskId};
use lamagrid_protocol::Hasher;

use super::BASE;
use super::query::{Pairs, none, task_id};
use crate::access::Caller;
use crate::problem::{Fault, Problem};
use crate::state::{Api, PATIENCE};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait for the connection.
const PIECES: usize = 2;
/// The task of a picture.
pub(crate) const TASK: HeaderName = HeaderName::from_static("x-lamagrid-task");
const NODE: HeaderName = HeaderName::from_static("x-lamagrid-node");

/// Sends the picture of a completed task. Of a failed one it answers the failure, of an unfinished one 409.
#[utoipa::path(
    get,
    path = "/tasks/{id}/result",
    tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses((status = 200, description = "The picture", content_type = "image/*"))
)]
pub(crate) async fn result(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Response, Problem> {
    none(pairs)?;
    let task = api.task(&caller, task_id(&id)?).await?;
    if task.owner != *caller.owner() && !caller.is_admin() {
        return Err(Problem::new(
            Fault::Forbidden,
            "pictures of other owners need an API key of the role admin",
        ));
    }
    if !task.info.status.is_terminal() {
        let text =
            format!("task {} is {}; wait for its end (GET .../events)", task.info.id, task.info.status);
        let retry = Some(Duration::from_secs(1));
        return Err(Problem::new(Fault::Conflict, text).about(task.info.id).retry(retry));
    }
    let outcome = api.follower(&task.owner).wait(task.info.id, PATIENCE).await?;
    picture(outcome, caller).await
}

/// The response with the picture of an ended task, or its failure.
pub(crate) async fn picture(outcome: Outcome, caller: Caller) -> Result<Response, Problem> {
    let (id, status, node) = (outcome.task.id, outcome.task.status, outcome.task.node.clone());
    let result = outcome.into_result().map_err(|failure| {
        let problem = Problem::of_failure(&failure).about(id);
        // It completed, and its owner deleted the result.
        if status == Status::Completed { problem.turned_into(Fault::Gone) } else { problem }
    })?;
    let (first, pieces) = begin(id, result.clone()).await?;
    let kind = lamagrid_imaging::codec::sniff(&first)
        .map_or_else(|| "application/octet-stream".to_owned(), |format| format!("image/{format}"));
    let length = result.meta.len;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(pieces.send(first, sender, caller));
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let mut headers = HeaderMap::new();
    let text = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
    headers.insert(header::CONTENT_TYPE, text(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CONTENT_LOCATION, text(format!("{BASE}/tasks/{id}/result")));
    headers.insert(TASK, text(id.to_string()));
    if let Some(node) = node {
        headers.insert(NODE, text(node));
    }
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// A result that is being read.
struct Pieces {
    id: TaskId,
    reader: ResultReader,
    left: u64,
    hash: Hash,
}

/// Opens a result and reads its first bytes.
async fn begin(id: TaskId, result: TaskResult) -> Result<(Bytes, Pieces), Problem> {
    let open = move || {
        let mut reader = result.open()?;
        let first = piece(&mut reader);
        Ok::<_, lamagrid_client::ClientError>((first, reader, result.meta.len, result.meta.hash))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let (first, reader, len, hash) =
        opened.map_err(|_| Problem::new(Fault::Internal, "reading the result failed; see the log"))??;
    let first = first.map_err(|error| {
        tracing::error!(task.id = %id, %error, "a result cannot be read");
        Problem::new(Fault::Internal, "the result cannot be read; see the scheduler's log").about(id)
    })?;
    let left = len.saturating_sub(first.len() as u64);
    Ok((first, Pieces { id, reader, left, hash }))
}

/// Reads up to [`PIECE_BYTES`]; fewer only at the end.
fn piece(reader: &mut ResultReader) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    reader.take(PIECE_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

impl Pieces {
    /// Sends all pieces. Bytes that are not the announced ones break the response off.
    async fn send(mut self, first: Bytes, sender: mpsc::Sender<io::Result<Bytes>>, _caller: Caller) {
        let mut hasher = Hasher::default();
        let mut next = first;
        loop {
            hasher.update(&next);
            if self.left == 0 && hasher.finish() != self.hash {
                tracing::error!(task.id = %self.id, "a result is damaged: its hash differs");
                let _ = sender.send(Err(io::Error::other("the result is damaged"))).await;
                return;
            }
            // An error means that the connection has closed.
            if sender.send(Ok(next)).await.is_err() || self.left == 0 {
                return;
            }
            let mut reader = self.reader;
            let read = tokio::task::spawn_blocking(move || (piece(&mut reader), reader)).await;
            let Ok((piece, reader)) = read else { return };
            self.reader = reader;
            next = match piece {
                Ok(piece) if !piece.is_empty() => piece,
                Ok(_) => return drop(sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await),
                Err(error) => return drop(sender.send(Err(error)).await),
            };
            self.left = self.left.saturating_sub(next.len() as u64);
        }
    }
}
