//! What a scheduler shows to other programs: `/metrics`, `/healthz` and `/readyz`, on a loopback address.
//!
//! Runs on a thread of its own, so that it answers whatever the scheduler's loop does. A connection that stays slow or
//! silent makes room for a new one: when all places are taken, the oldest connection is closed. An address that is taken is
//! tried again until it is free; health checks name the data directory, so that a probe sees which scheduler answers.
//!
//! Does not: touch the core. The service writes into [`Metrics`]; a slow reader waits for itself only.
//!
//! This module is the door for `axum`, `hyper` and `prometheus-client`.

mod metrics;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use lamagrid_config::HttpConfig;
use lamagrid_process::descriptors::with_reserve;

pub(crate) use metrics::Metrics;

/// Connections at a time: an honest one lasts milliseconds, so the oldest of so many is not honest.
const CONNECTIONS: usize = 64;
/// Connections that wait to be accepted, as many as the kernel allows: one that does not fit is tried again a second later.
const BACKLOG: i32 = 4_096;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// A request's head comes within this time, and a connection lasts no longer than the second.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Before an address that is taken is tried again; doubles up to the second.
const BIND_PAUSE: Duration = Duration::from_millis(500);
const MAX_BIND_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    /// As text.
    data_dir: Arc<str>,
    /// What a request must bring; none is asked for where it is absent.
    token: Option<Arc<str>>,
}

/// The HTTP side while it serves. Dropping it closes everything.
pub(crate) struct Server {
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was logged.
            let _ = thread.join();
        }
    }
}

/// Serves `metrics` until the result is dropped. A fault is logged; the scheduler works without.
pub(crate) fn serve(config: &HttpConfig, data_dir: &Path, metrics: Arc<Metrics>) -> Option<Server> {
    if config.listen.is_empty() {
        return None;
    }
    let token = match token(&config.token_file) {
        Ok(token) => token.map(Arc::from),
        Err(error) => {
            tracing::error!(file = %config.token_file.display(), %error,
                "no metrics and health checks: the token of http.token_file cannot be read");
            return None;
        }
    };
    let address = config.listen.clone();
    let listener = listen(&address);
    match &listener {
        Ok(_) => tracing::info!(address, "metrics and health checks are served"),
        Err(error) => tracing::warn!(address, %error,
            "no metrics and health checks for now: another program has the address, perhaps another scheduler; it is tried \
             again until it is free, or set http.listen"),
    }
    let shown = Shown { metrics, token, data_dir: data_dir.display().to_string().into() };
    match start(listener, address, router(shown)) {
        Ok(server) => Some(server),
        Err(error) => {
            tracing::error!(%error, "no metrics and health checks: the system refuses a thread for them");
            None
        }
    }
}

fn start(listener: io::Result<StdListener>, address: String, app: Router) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            let serve = async { accept(bind(listener, &address).await, app).await };
            // The other end is only ever dropped.
            tokio::select! {
                () = serve => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(Server { stop: Some(stop), thread: Some(thread) })
}

/// The listener, or the first one that another program leaves room for.
async fn bind(mut listener: io::Result<StdListener>, address: &str) -> TcpListener {
    let mut pause = BIND_PAUSE;
    loop {
        let is_first = pause == BIND_PAUSE;
        match listener.and_then(TcpListener::from_std) {
            Ok(listener) => {
                if !is_first {
                    tracing::info!(address, "metrics and health checks are served now: the address is free");
                }
                return listener;
            }
            Err(error) => {
                tracing::debug!(address, %error, "the address for metrics and health checks is taken")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(MAX_BIND_PAUSE);
        listener = listen(address);
    }
}

/// The first line of the token file, if one is configured.
fn token(file: &Path) -> std::io::Result<Option<String>> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Some(line.to_owned())),
        None => Err(std::io::Error::other("its first line is empty")),
    }
}

fn listen(address: &str) -> io::Result<StdListener> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let listener = StdListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"))
        .layer(middleware::from_fn_with_state(shown.clone(), authorize))
        .with_state(shown)
}

async fn accept(listener: TcpListener, app: Router) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match next(&listener).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics or health checks cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= CONNECTIONS {
            connections.retain(|connection| !connection.is_finished());
        }
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(app.clone());
        let connection = tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // How a stranger's connection ends is its own affair.
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
        });
        connections.push_back(connection.abort_handle());
    }
}

/// The next connection, with a descriptor of the reserve where no other is left.
async fn next(listener: &TcpListener) -> io::Result<TcpStream> {
    let accepted = std::future::poll_fn(|context| {
        let accepted = with_reserve(|| match listener.poll_accept(context) {
            Poll::Ready(accepted) => accepted.map(Some),
            Poll::Pending => Ok(None),
        });
        accepted.transpose().map_or(Poll::Pending, Poll::Ready)
    });
    accepted.await.map(|(stream, _)| stream)
}

async fn authorize(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match &shown.token {
        Some(token) if !is_same(token.as_bytes(), given.as_bytes()) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge, "bring the token of http.token_file as a Bearer token\n")
                .into_response()
        }
        _ => next.run(request).await,
    }
}

/// Compares in a time that says nothing about where they differ: the hashes are what is compared.
fn is_same(token: &[u8], given: &[u8]) -> bool {
    lamagrid_protocol::hash(token) == lamagrid_protocol::hash(given)
}

async fn metrics_text(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shown.metrics.text())
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    let standing = "the scheduler's loop stands still; see its log, or restart it";
    health(&shown, "ok", (!shown.metrics.is_alive()).then_some(standing))
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    health(&shown, "ready", shown.metrics.not_ready())
}

/// What a probe is told: `good`, or the reason why not.
fn health(shown: &Shown, good: &str, reason: Option<&str>) -> (StatusCode, String) {
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = reason.unwrap_or(good);
    (code, format!("{word}\ndata directory: {}\n", shown.data_dir))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn started(token: Option<&str>) -> (SocketAddr, Arc<Metrics>, Server) {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new());
        let shown = shown(&metrics, token);
        (address, metrics, start(Ok(listener), address.to_string(), router(shown)).unwrap())
    }

    fn shown(metrics: &Arc<Metrics>, token: Option<&str>) -> Shown {
        Shown { metrics: metrics.clone(), token: token.map(Arc::from), data_dir: "/srv/grid".into() }
    }

    async fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The other side may answer, and close, before it has read it all.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    async fn get(address: SocketAddr, path: &str, head: &str) -> String {
        answer(address, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{head}\r\n")).await
    }

    #[tokio::test]
    async fn pages_say_how_the_scheduler_is() {
        let (address, metrics, _server) = started(None);
        metrics.turned();
        metrics.committed(0.002);
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz", "").await.ends_with("\r\n\r\nready\ndata directory: /srv/grid\n"));
        metrics.failing(true);
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        let failing = get(address, "/readyz", "").await;
        assert!(failing.starts_with("HTTP/1.1 503") && failing.contains("disk full"), "{failing}");
        assert!(failing.ends_with("\ndata directory: /srv/grid\n"), "{failing}");
        metrics.unreachable(true);
        let unreachable = get(address, "/readyz", "").await;
        assert!(unreachable.starts_with("HTTP/1.1 503") && unreachable.contains("sockets"), "{unreachable}");
        let text = get(address, "/metrics", "").await;
        assert!(
            text.contains("lamagrid_store_failing 1\n") && text.contains("lamagrid_commits_total 1\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn what_is_wrong_is_answered_and_the_next_request_is_served() {
        let (address, metrics, _server) = started(None);
        metrics.turned();
        for (request, code) in [
            ("GET /nowhere HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".to_owned(), "404"),
            (
                "POST /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                    .to_owned(),
                "405",
            ),
            (format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_BYTES)), "431"),
            ("nonsense\r\n\r\n".to_owned(), "400"),
        ] {
            let told = answer(address, &request).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {code}")), "{code}: {told}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_served_once_it_is_free() {
        let other = listen("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new());
        metrics.turned();
        let config = HttpConfig { listen: address.to_string(), token_file: "".into() };
        let _server = serve(&config, Path::new("/srv/grid"), metrics.clone()).unwrap();
        drop(other);
        let began = std::time::Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "nothing listens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(get(address, "/healthz", "").await.ends_with("\r\n\r\nok\ndata directory: /srv/grid\n"));
    }

    /// Row after row of slow peers: half a head, no head, a keep-alive, an answer that is never read.
    #[tokio::test]
    async fn health_is_told_within_a_second_beside_slow_connections() {
        let (address, metrics, server) = started(None);
        metrics.turned();
        let unread = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n".repeat(200);
        let kept = "GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n".to_owned();
        for said in [String::new(), "GET /healthz HTTP/1.1\r\nx: y".to_owned(), kept, unread] {
            let mut slow = Vec::new();
            for _ in 0..3 * CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(said.as_bytes()).await;
                slow.push(stream);
            }
            let began = std::time::Instant::now();
            assert!(get(address, "/healthz", "").await.contains("\r\n\r\nok\n"), "{said:?}");
            assert!(began.elapsed() < Duration::from_secs(1), "{said:?}: {:?}", began.elapsed());
        }
        // Nothing is left of it.
        drop(server);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_token_is_asked_for() {
        let (address, metrics, _server) = started(Some("s3cret"));
        metrics.turned();
        for head in ["", "authorization: Bearer wrong\r\n", "authorization: s3cret\r\n"] {
            assert!(get(address, "/metrics", head).await.starts_with("HTTP/1.1 401"), "{head}");
        }
        assert!(get(address, "/healthz", "authorization: Bearer s3cret\r\n").await.contains("\r\n\r\nok\n"));
    }

    #[test]
    fn a_token_file_without_a_token_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(token(file.path()).is_err());
        std::fs::write(file.path(), " s3cret \nmore\n").unwrap();
        assert_eq!(token(file.path()).unwrap().as_deref(), Some("s3cret"));
        assert_eq!(token(Path::new("")).unwrap(), None);
    }
}
