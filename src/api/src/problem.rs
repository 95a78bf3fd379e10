//! Errors as RFC 9457 problem documents.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use lamagrid_client::ClientError;
use lamagrid_domain::{Failure, FailureKind, TaskId};

/// The media type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// When to try again, unless something better is known.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The longest time that `Retry-After` names.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// An error, as RFC 9457 describes it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Identifies the kind of problem: `urn:lamagrid:problem:` and a word.
    #[serde(rename = "type", serialize_with = "urn")]
    #[schema(value_type = String, example = "urn:lamagrid:problem:not_found")]
    word: &'static str,
    /// The kind of problem for people; the same for all of its type.
    title: &'static str,
    /// The status of the response.
    status: u16,
    /// The fault, its object and the remedy.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// The kind of failure, as `lamagrid.errors` names it.
    #[schema(value_type = String, example = "invalid_input")]
    kind: FailureKind,
    /// The task that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    task: Option<TaskId>,
    /// Number of tasks that wait in the queue of a refused task.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_length: Option<u64>,
    /// Expected wait of a refused task in milliseconds, if it can be estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_wait_ms: Option<u64>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

/// A fault of a request that the API itself finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    BodyTimeout,
    Conflict,
    Gone,
    TooLarge,
    UnsupportedMediaType,
    Misdirected,
    KeyReused,
    TooManyRequests,
    Busy,
    Internal,
}

/// The parts of a problem that are the same for all of its type.
#[derive(Debug, Clone, Copy)]
struct Kind {
    status: StatusCode,
    /// The last word of the type.
    word: &'static str,
    title: &'static str,
    failure: FailureKind,
}

impl Fault {
    fn kind(self) -> Kind {
        use FailureKind::{DeadlineExceeded, Internal, InvalidInput, Overloaded};
        let (status, word, title, failure) = match self {
            Self::BadRequest => {
                (StatusCode::BAD_REQUEST, "bad_request", "The request is invalid", InvalidInput)
            }
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "A valid API key is needed", InvalidInput)
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "This is not allowed", InvalidInput),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such thing", InvalidInput),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The method is not allowed here",
                InvalidInput,
            ),
            Self::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body came too slowly", DeadlineExceeded)
            }
            Self::Conflict => {
                (StatusCode::CONFLICT, "conflict", "The state of the task does not allow this", InvalidInput)
            }
            Self::Gone => (StatusCode::GONE, "gone", "The task is past its retention", InvalidInput),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large", InvalidInput)
            }
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media_type",
                "The type of the body is not supported",
                InvalidInput,
            ),
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                "The server does not answer by this name",
                InvalidInput,
            ),
            Self::KeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The idempotency key belongs to another request",
                InvalidInput,
            ),
            Self::TooManyRequests => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "A limit of the API key is reached",
                Overloaded,
            ),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "The server is busy", Overloaded),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server has a defect", Internal)
            }
        };
        Kind { status, word, title, failure }
    }
}

impl Problem {
    /// A problem that the API found.
    pub(crate) fn new(fault: Fault, detail: impl Into<String>) -> Self {
        let retry_after = matches!(fault, Fault::TooManyRequests | Fault::Busy).then_some(RETRY_AFTER);
        Self::build(fault.kind(), detail.into()).retry(retry_after)
    }

    /// A bad request.
    pub(crate) fn bad(detail: impl Into<String>) -> Self {
        Self::new(Fault::BadRequest, detail)
    }

    /// The failure of a task or of a request to the scheduler.
    pub(crate) fn of_failure(failure: &Failure) -> Self {
        let of = failure.kind;
        let status = StatusCode::from_u16(of.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER);
        let kind = Kind { status, word: of.as_str(), title: title(of), failure: of };
        Self::build(kind, failure.message.clone()).retry(retry_after)
    }

    fn build(kind: Kind, detail: String) -> Self {
        Self {
            word: kind.word,
            title: kind.title,
            status: kind.status.as_u16(),
            detail: detail.into(),
            kind: kind.failure,
            task: None,
            queue_length: None,
            expected_wait_ms: None,
            retry_after: None,
        }
    }

    /// Names the task.
    pub(crate) fn about(mut self, task: TaskId) -> Self {
        self.task = Some(task);
        self
    }

    /// Says when to try again.
    pub(crate) fn retry(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after.map(|after| after.min(MAX_RETRY_AFTER));
        self
    }

    /// The same text as another kind of problem.
    pub(crate) fn turned_into(self, fault: Fault) -> Self {
        Self { task: self.task, ..Self::new(fault, self.detail) }
    }

    /// The status of the response.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed(failure) => Self::of_failure(&failure),
            ClientError::Refused { failure, queue_len, wait } => Self {
                queue_length: Some(queue_len),
                expected_wait_ms: wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
                retry_after: (failure.kind.http_status() == 503)
                    .then(|| wait.unwrap_or(RETRY_AFTER).clamp(Duration::from_secs(1), MAX_RETRY_AFTER)),
                ..Self::of_failure(&failure)
            },
            ClientError::Unknown { id, expired: true } => {
                Self::new(Fault::Gone, ClientError::Unknown { id, expired: true }.to_string()).about(id)
            }
            // The same text for a task of another owner and for none.
            ClientError::Unknown { id, expired: false } => Self::new(
                Fault::NotFound,
                format!("there is no task {id} of yours; check the id and the API key"),
            )
            .about(id),
            // The texts of the others name paths of this host.
            ClientError::NoScheduler { .. } | ClientError::NotAdmitted { .. } | ClientError::Closed => {
                let text = "the scheduler does not answer; try again in some seconds";
                Self::of_failure(&Failure::new(FailureKind::Disconnected, text))
            }
            ClientError::Timeout { .. } => {
                let text = "the scheduler did not answer in time; try again in some seconds";
                Self::of_failure(&Failure::new(FailureKind::Disconnected, text))
            }
            ClientError::Result { id, source } if source.is_missing() => {
                Self::new(Fault::Gone, format!("the result of task {id} was deleted; submit it again"))
                    .about(id)
            }
            ClientError::Result { id, .. } | ClientError::Fetch { id, .. } => {
                tracing::error!(task.id = %id, %error, "a result cannot be read");
                let text = format!("the result of task {id} cannot be read; see the scheduler's log");
                Self::of_failure(&Failure::new(error.kind(), text)).about(id)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers
                .insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn urn<S: serde::Serializer>(word: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("urn:lamagrid:problem:{word}"))
}

fn title(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::NodeLost => "No node could do the task",
        FailureKind::Disconnected => "The scheduler does not answer",
        FailureKind::DeadlineExceeded => "The deadline has passed",
        FailureKind::WaitedTooLong => "The task waited too long",
        FailureKind::RanTooLong => "The task ran too long",
        FailureKind::OutOfMemory => "The memory was not enough",
        FailureKind::DiskFull => "The disk is full",
        FailureKind::Overloaded => "The grid is overloaded",
        FailureKind::UnknownModel => "No node serves the model",
        FailureKind::ModelLoad => "The model cannot be loaded",
        FailureKind::Inference => "The model failed",
        FailureKind::InvalidInput => "The request is invalid",
        FailureKind::Cancelled => "The task was cancelled",
        FailureKind::Incompatible => "The versions do not fit together",
        FailureKind::Internal => "The server has a defect",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_says_when_to_try_again() {
        let failure = Failure::new(FailureKind::Overloaded, "queue gpu is full");
        let wait = Some(Duration::from_millis(4_200));
        let refused = ClientError::Refused { failure, queue_len: 7, wait };
        let response = Problem::from(refused).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let limit = Problem::new(Fault::TooManyRequests, "x").retry(Some(Duration::from_millis(10)));
        assert_eq!(limit.into_response().headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_problem_is_complete_and_names_no_path_of_the_host() {
        let id = TaskId::from_bytes([1; 16]);
        let problem = Problem::from(ClientError::Unknown { id, expired: false });
        let json: serde_json::Value = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:lamagrid:problem:not_found");
        assert_eq!((&json["status"], &json["kind"]), (&404.into(), &"invalid_input".into()));
        assert_eq!(json["task"], id.to_string());
        let (address, hint) = ("ipc:///home/me/s".to_owned(), "--data-dir /home/me".to_owned());
        let waited = Duration::from_secs(1);
        let down = ClientError::NoScheduler { address, reason: String::new(), waited, hint };
        let text = serde_json::to_string(&Problem::from(down)).unwrap();
        assert!(text.contains("\"kind\":\"disconnected\"") && !text.contains("/home"), "{text}");
    }
}
