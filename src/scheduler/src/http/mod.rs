//! Serves `/metrics`, `/healthz` and `/readyz` to other programs, on a loopback address.
//!
//! Runs on a thread of its own, so that it answers even while the event loop is stuck. When all connections
//! are in use, a new one replaces the oldest, so that slow or silent peers cannot block it. An address in use
//! is tried again until it is free; health checks name the data directory, so that a probe sees which
//! scheduler answers.
//!
//! Does not: touch the core. The event loop writes into [`Metrics`]; a slow reader delays only itself.
//!
//! Only this module names `axum`, `hyper` and `prometheus-client`.

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

/// Upper bound of open connections. A regular one lasts milliseconds, so the oldest of this many can be
/// closed.
const CONNECTIONS: usize = 64;
/// Connections that wait to be accepted, as many as the kernel allows. The client's kernel retries one that
/// does not fit a second later.
const BACKLOG: i32 = 4_096;
/// Upper bound of a request's head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// How long a request's head may take, and how long a connection may last.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// First and longest pause before an address in use is tried again; it doubles each time.
const BIND_PAUSE: Duration = Duration::from_millis(500);
const MAX_BIND_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    /// The data directory, as text.
    data_dir: Arc<str>,
    /// The token that each request must carry; `None` if no token is required.
    token: Option<Arc<str>>,
}

/// The HTTP server. Dropping it closes all connections.
pub(crate) struct Server {
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already logged.
            let _ = thread.join();
        }
    }
}

/// Serves `metrics` until the returned server is dropped. `None` if it is switched off or cannot start, which
/// is logged; the scheduler runs without it.
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
            // Nothing is ever sent; the sender is dropped to stop this thread.
            tokio::select! {
                () = serve => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(Server { stop: Some(stop), thread: Some(thread) })
}

/// Returns the listener, or retries until the address is free.
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

/// Reads the first line of the token file; `None` if no file is configured.
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
            // Requests that have arrived are answered before a connection is closed for a new one.
            tokio::task::yield_now().await;
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
            // Errors of a peer's connection, and its timeout, need no action here.
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
        });
        connections.push_back(connection.abort_handle());
    }
}

/// Accepts the next connection, with a reserved file descriptor if no other is left.
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

/// Compares the hashes, so that the time taken does not tell where the tokens differ.
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

/// Answers a health check with `good`, or with the reason why not.
fn health(shown: &Shown, good: &str, reason: Option<&str>) -> (StatusCode, String) {
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = reason.unwrap_or(good);
    (code, format!("{word}\ndata directory: {}\n", shown.data_dir))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::store::WriteFault;

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
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    async fn get(address: SocketAddr, path: &str, head: &str) -> String {
        answer(address, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{head}\r\n")).await
    }

    #[tokio::test]
    async fn health_checks_and_metrics_report_failures() {
        let (address, metrics, _server) = started(None);
        metrics.turned();
        metrics.committed(0.002);
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz", "").await.ends_with("\r\n\r\nready\ndata directory: /srv/grid\n"));
        metrics.commit_failed(WriteFault::Disk);
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        let failing = get(address, "/readyz", "").await;
        assert!(failing.starts_with("HTTP/1.1 503") && failing.contains("disk full"), "{failing}");
        assert!(failing.ends_with("\ndata directory: /srv/grid\n"), "{failing}");
        metrics.sockets_lost();
        let unreachable = get(address, "/readyz", "").await;
        assert!(unreachable.starts_with("HTTP/1.1 503") && unreachable.contains("sockets"), "{unreachable}");
        let text = get(address, "/metrics", "").await;
        assert!(
            text.contains("lamagrid_store_failing 1\n") && text.contains("lamagrid_commits_total 1\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn bad_requests_get_an_error_response() {
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
            let response = answer(address, &request).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {code}")), "{code}: {response}");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_served_once_it_is_free() {
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

    /// Opens rows of slow peers: no head, half a head, a kept-alive connection, responses that are never
    /// read.
    #[tokio::test]
    async fn health_checks_answer_within_a_second_despite_slow_connections() {
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
        // Dropping the server closes its port.
        drop(server);
        assert!(TcpStream::connect(address).await.is_err());
    }

    /// Connects many clients before the server runs at all.
    #[tokio::test]
    async fn every_request_of_a_burst_is_answered() {
        let (address, metrics, _server) = started(None);
        metrics.turned();
        let request = b"GET /healthz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let burst = (0..5 * CONNECTIONS).map(|_| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, request).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        });
        for stream in burst.collect::<Vec<_>>() {
            let mut answer = String::new();
            let read = TcpStream::from_std(stream).unwrap().read_to_string(&mut answer).await;
            assert!(read.is_ok() && answer.starts_with("HTTP/1.1 200"), "{read:?} {answer}");
        }
    }

    #[tokio::test]
    async fn requests_without_the_token_are_refused() {
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
