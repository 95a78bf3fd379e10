//! Accepts the connections of other programs on `http.listen`.
//!
//! Runs on a thread of its own, so that it answers even while the event loop is stuck. When all short connections are in
//! use, a new one replaces the oldest, so that slow or silent peers cannot block it. A connection that uses the API
//! counts against a limit of its own, and its requests are answered on other threads. An address in use is tried again
//! until it is free; health checks name the data directory, so that a probe sees which scheduler answers.
//!
//! Does not: know routes.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use lamagrid_client::Endpoints;
use lamagrid_config::Config;
use lamagrid_gate::Https;
use lamagrid_process::descriptors::{limit, with_reserve};

use crate::access::Access;
use crate::connection;
use crate::front::{ApiFront, Front};
use crate::health::{self, Health, Shown, token};
use crate::places::{Places, SHORT};
use crate::routes;
use crate::state::Api;

/// Connections that wait to be accepted, as many as the kernel allows. The client's kernel retries one that
/// does not fit a second later.
const BACKLOG: i32 = 4_096;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are accepted one after the other while all short places are taken, before those that exist go on.
/// Fewer would let a new connection wait for all work of the ones before it; more than the places would close
/// connections whose request was never read.
const IN_A_ROW: usize = SHORT / 4;
/// First and longest pause before an address in use is tried again; it doubles each time.
const BIND_PAUSE: Duration = Duration::from_millis(500);
const MAX_BIND_PAUSE: Duration = Duration::from_secs(5);
/// Threads that answer requests to the API.
const API_THREADS: usize = 2;
/// The API's connections take at most this part of the file descriptors.
const DESCRIPTORS_PART: usize = 4;

/// The HTTP server. Dropping it closes all connections.
pub struct Server {
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    api: Option<Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already logged.
            let _ = thread.join();
        }
        if let Some(api) = self.api.take() {
            api.shutdown_background();
        }
    }
}

/// Serves HTTP until the returned server is dropped; `endpoints` are the scheduler's. `None` if it is switched off or
/// cannot start, which is logged; the scheduler runs without it.
pub fn serve(
    config: &Config,
    data_dir: &Path,
    endpoints: &Endpoints,
    health: Arc<dyn Health>,
) -> Option<Server> {
    let http = &config.http;
    if http.listen.is_empty() {
        return None;
    }
    let token = match token(&http.token_file) {
        Ok(token) => token,
        Err(error) => {
            tracing::error!(file = %http.token_file.display(), %error,
                "no HTTP: the token of http.token_file cannot be read");
            return None;
        }
    };
    let https = match http.has_tls().then(|| Https::load(&http.certificate, &http.key)).transpose() {
        Ok(https) => https.map(Arc::new),
        Err(error) => {
            tracing::error!(%error, "no HTTP: the certificate of http.certificate cannot be used");
            return None;
        }
    };
    let access = Arc::new(Access::new(config, data_dir, token));
    let (runtime, api) = match start_api(config, data_dir, endpoints) {
        Ok((runtime, api)) => (Some(runtime), Some(api)),
        Err(error) => {
            tracing::error!(%error, "no HTTP API; metrics and health checks are served");
            (None, None)
        }
    };
    let shown =
        Shown { health, data_dir: data_dir.display().to_string().into(), access: Arc::clone(&access) };
    let front = Front { health: health::router(shown), api, access };
    let places = Places::new(config.api.max_connections.min((limit() / DESCRIPTORS_PART).max(1)));
    let address = http.listen.clone();
    let listener = listen(&address);
    match &listener {
        Ok(_) => tracing::info!(address, "HTTP is served"),
        Err(error) => tracing::warn!(address, %error,
            "no HTTP for now: another program has the address, perhaps another scheduler; it is tried again until it is \
             free, or set http.listen"),
    }
    let accepting = Accepting { address, https, front, places: Arc::new(places) };
    match start(listener, accepting) {
        Ok(mut server) => {
            server.api = runtime;
            Some(server)
        }
        Err(error) => {
            tracing::error!(%error, "no HTTP: the system refuses a thread for it");
            None
        }
    }
}

/// Starts the threads of the API and its connections to the scheduler.
fn start_api(
    config: &Config,
    data_dir: &Path,
    endpoints: &Endpoints,
) -> Result<(Runtime, ApiFront), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .thread_name("api")
        .enable_all()
        .build()?;
    let api = {
        let _inside = runtime.enter();
        Api::open(config, data_dir, endpoints)
    };
    match api {
        Ok(api) => {
            let front = ApiFront { router: routes::router(api), runtime: runtime.handle().clone() };
            Ok((runtime, front))
        }
        Err(error) => {
            // A runtime may not be dropped where another one runs.
            runtime.shutdown_background();
            Err(error.into())
        }
    }
}

/// The parts that the accepting thread needs.
struct Accepting {
    address: String,
    https: Option<Arc<Https>>,
    front: Front,
    places: Arc<Places>,
}

fn start(listener: io::Result<StdListener>, accepting: Accepting) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            let serve = async { accept(bind(listener, &accepting.address).await, &accepting).await };
            // Nothing is ever sent; the sender is dropped to stop this thread.
            tokio::select! {
                () = serve => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(Server { stop: Some(stop), thread: Some(thread), api: None })
}

/// Returns the listener, or retries until the address is free.
async fn bind(mut listener: io::Result<StdListener>, address: &str) -> TcpListener {
    let mut pause = BIND_PAUSE;
    loop {
        let is_first = pause == BIND_PAUSE;
        match listener.and_then(TcpListener::from_std) {
            Ok(listener) => {
                if !is_first {
                    tracing::info!(address, "HTTP is served now: the address is free");
                }
                return listener;
            }
            Err(error) => {
                tracing::debug!(address, %error, "the address for HTTP is taken")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(MAX_BIND_PAUSE);
        listener = listen(address);
    }
}

fn listen(address: &str) -> io::Result<StdListener> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let listener = StdListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept(listener: TcpListener, accepting: &Accepting) {
    let Accepting { https, front, places, .. } = accepting;
    let mut in_a_row = 0;
    for id in 0_u64.. {
        let stream = match next(&listener).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if in_a_row >= IN_A_ROW && places.is_full() {
            // Requests that have arrived are answered before a connection is closed for a new one.
            tokio::task::yield_now().await;
            in_a_row = 0;
        }
        in_a_row = in_a_row.saturating_add(1);
        // Responses go out at once, not with the next acknowledgement.
        let _ = stream.set_nodelay(true);
        let seat = places.seat(id);
        let (https, front) = (https.clone(), front.clone());
        let connection = tokio::spawn(async move {
            let own = Arc::clone(&seat);
            connection::serve(stream, https, seat, move |request| {
                let (front, seat) = (front.clone(), Arc::clone(&own));
                async move { front.respond(request, &seat).await }
            })
            .await;
        });
        places.enter(id, connection.abort_handle());
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A scheduler that is alive.
    struct Alive;

    impl Health for Alive {
        fn metrics(&self) -> String {
            "lamagrid_x 1\n".repeat(1_000)
        }

        fn is_alive(&self) -> bool {
            true
        }

        fn not_ready(&self) -> Option<&'static str> {
            Some("the store cannot be written")
        }
    }

    struct Started {
        address: SocketAddr,
        _dir: tempfile::TempDir,
        server: Server,
    }

    fn config(dir: &Path, set: &[(&str, &str)]) -> Config {
        let file = dir.join("none.toml");
        std::fs::write(&file, "").unwrap();
        let set: Vec<_> = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load(Some(&file), std::iter::empty(), &set).unwrap().config
    }

    fn started(set: &[(&str, &str)]) -> Started {
        let free = StdListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let dir = tempfile::tempdir().unwrap();
        let listen = address.to_string();
        let config = config(dir.path(), &[&[("http.listen", listen.as_str())], set].concat());
        let endpoints = Endpoints::new(dir.path().join("sockets"));
        let server = serve(&config, dir.path(), &endpoints, Arc::new(Alive)).unwrap();
        Started { address, _dir: dir, server }
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
        let Started { address, _dir, .. } = &started(&[]);
        let dir = _dir.path().display();
        assert!(
            get(*address, "/healthz", "").await.ends_with(&format!("\r\n\r\nok\ndata directory: {dir}\n"))
        );
        let failing = get(*address, "/readyz", "").await;
        assert!(failing.starts_with("HTTP/1.1 503") && failing.contains("cannot be written"), "{failing}");
        assert!(get(*address, "/metrics", "").await.contains("\nlamagrid_x 1\n"));
    }

    #[tokio::test]
    async fn bad_requests_get_an_error_response() {
        let started = started(&[]);
        let address = started.address;
        for (request, code) in [
            ("GET /nowhere HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".to_owned(), "404"),
            (
                "POST /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                    .to_owned(),
                "405",
            ),
            (
                format!(
                    "GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n",
                    "y".repeat(2 * crate::connection::HEAD_BYTES)
                ),
                "431",
            ),
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
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[("http.listen", &address.to_string())]);
        let endpoints = Endpoints::new(dir.path().join("sockets"));
        let _server = serve(&config, dir.path(), &endpoints, Arc::new(Alive)).unwrap();
        drop(other);
        let began = std::time::Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "nothing listens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(get(address, "/healthz", "").await.contains("\r\n\r\nok\n"));
    }

    /// Opens rows of slow peers: no head, half a head, a kept-alive connection, responses that are never
    /// read.
    #[tokio::test]
    async fn health_checks_answer_within_a_second_despite_slow_connections() {
        let Started { address, server, _dir } = started(&[]);
        let unread = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n".repeat(200);
        let kept = "GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n".to_owned();
        for said in [String::new(), "GET /healthz HTTP/1.1\r\nx: y".to_owned(), kept, unread] {
            let mut slow = Vec::new();
            for _ in 0..3 * SHORT {
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
        let started = started(&[]);
        let address = started.address;
        let request = b"GET /healthz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let burst = (0..5 * SHORT).map(|_| {
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
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let started = started(&[("http.token_file", file.path().to_str().unwrap())]);
        let address = started.address;
        for head in ["", "authorization: Bearer wrong\r\n", "authorization: s3cret\r\n"] {
            assert!(get(address, "/metrics", head).await.starts_with("HTTP/1.1 401"), "{head}");
        }
        assert!(get(address, "/healthz", "authorization: Bearer s3cret\r\n").await.contains("\r\n\r\nok\n"));
    }

    #[tokio::test]
    async fn connections_of_the_api_have_a_limit_of_their_own() {
        let started = started(&[("api.max_connections", "2")]);
        let address = started.address;
        let request = "GET /api/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
            held.push(stream);
        }
        let refused = get(address, "/api/openapi.json", "").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 2"), "{refused}");
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        // Short connections do not push out those of the API.
        for _ in 0..2 * SHORT {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(get(address, "/healthz", "").await.starts_with("HTTP/1.1 200"));
        held[0].write_all(request.as_bytes()).await.unwrap();
        drop(held);
        let began = std::time::Instant::now();
        while !get(address, "/api/openapi.json", "").await.starts_with("HTTP/1.1 200") {
            assert!(began.elapsed() < Duration::from_secs(5), "places are given back");
        }
    }

    #[tokio::test]
    async fn pages_of_other_sites_get_nothing_of_the_api() {
        let started = started(&[]);
        for (host, head, status) in
            [("evil.example", "", 421), ("localhost", "origin: https://evil.example\r\n", 403)]
        {
            let request =
                format!("GET /api/v1/queues HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{head}\r\n");
            let response = answer(started.address, &request).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
            assert!(response.contains("application/problem+json"), "{response}");
        }
        for (request, status) in
            [("GET /api/v1/nothing", 404), ("PUT /api/v1/tasks", 405), ("GET /api/v2", 404)]
        {
            let head = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            let response = answer(started.address, &format!("{request} HTTP/1.1\r\n{head}")).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
            assert!(response.contains("application/problem+json"), "{response}");
            assert_eq!(response.contains("allow: "), status == 405, "{response}");
        }
    }
}
