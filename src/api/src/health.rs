//! Answers `/metrics`, `/healthz` and `/readyz`.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::access::Access;

/// The state of a scheduler, as other programs may see it.
pub trait Health: Send + Sync + 'static {
    /// All metrics in the text format of Prometheus.
    fn metrics(&self) -> String;

    /// True while the scheduler's loop turns.
    fn is_alive(&self) -> bool;

    /// Reason why no tasks are accepted now; `None` if they are.
    fn not_ready(&self) -> Option<&'static str>;
}

/// The figures that the routes show, and the rules who may see them.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) health: Arc<dyn Health>,
    /// The data directory, as text.
    pub(crate) data_dir: Arc<str>,
    pub(crate) access: Arc<Access>,
}

/// Reads the first line of the token file; `None` if no file is configured.
pub(crate) fn token(file: &Path) -> std::io::Result<Option<String>> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Some(line.to_owned())),
        None => Err(std::io::Error::other("its first line is empty")),
    }
}

pub(crate) fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /api/v1, /metrics, /healthz and /readyz\n"))
        .layer(middleware::from_fn_with_state(shown.clone(), authorize))
        .with_state(shown)
}

async fn authorize(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    if shown.access.may_see(request.uri().path(), request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let text = "bring the token of http.token_file, or the API key of an operator, as a Bearer token\n";
    (StatusCode::UNAUTHORIZED, challenge, text).into_response()
}

async fn metrics_text(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shown.health.metrics())
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    let standing = "the scheduler's loop stands still; see its log, or restart it";
    answer(&shown, "ok", (!shown.health.is_alive()).then_some(standing))
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    answer(&shown, "ready", shown.health.not_ready())
}

/// Answers a health check with `good`, or with the reason why not.
fn answer(shown: &Shown, good: &str, reason: Option<&str>) -> (StatusCode, String) {
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = reason.unwrap_or(good);
    (code, format!("{word}\ndata directory: {}\n", shown.data_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_without_a_token_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(token(file.path()).is_err());
        std::fs::write(file.path(), " s3cret \nmore\n").unwrap();
        assert_eq!(token(file.path()).unwrap().as_deref(), Some("s3cret"));
        assert_eq!(token(Path::new("")).unwrap(), None);
    }
}
