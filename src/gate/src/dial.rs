//! Provides private sockets like a scheduler's on this host, and relays their connections to the scheduler by TLS.
//!
//! Does not: reconnect. When a connection is lost its local socket closes, and the local program connects again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_process::Backoff;
use lamagrid_protocol::preamble::{self, NAMED};
use lamagrid_transport::{Endpoints, file_identity};

use crate::blob_client::BlobClient;
use crate::bundle::Bundle;
use crate::certificate::{CredentialsError, SCHEDULER_NAME};
use crate::connect::connect;
use crate::credentials::Credentials;
use crate::dial_error::{ANSWER, DialError, HANDSHAKE, REPLY, judge, with_own_clock, wrong_time};
use crate::preamble::{is_temporary, read_line};
use crate::proxy::{ProxyError, relay, tune};
use crate::reloading_tls::ReloadingTls;
use crate::trouble::Trouble;
use crate::zmtp_guard::{ACCEPTING, Handshake, UnfinishedBytes};

/// Interval of log lines about an unreachable scheduler.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// How often the files of the local sockets are checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause after a temporary refusal, during which no connection is tried; it grows with each further refusal.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Local sockets that lead to a scheduler on another host. Dropping it closes them.
#[derive(Debug)]
pub struct Dialler {
    shared: Arc<Shared>,
    blobs: BlobClient,
    listening: Mutex<BTreeMap<String, JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    sockets: Endpoints,
    /// The scheduler's address, `host:port`.
    scheduler: String,
    tls_config: Arc<ReloadingTls>,
    /// The scheduler's permanent refusal, if it refused at the last try.
    refused: Mutex<Option<Failure>>,
    trouble: Trouble,
    rest: Mutex<Rest>,
    /// The last log line, unless a connection was made since.
    last_log: Mutex<Option<LastLog>>,
}

/// Why no connection is open, as far as the rate limit of log lines is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Unreachable,
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct LastLog {
    at: Instant,
    obstacle: Obstacle,
}

/// Delays new tries after a temporary refusal.
#[derive(Debug)]
struct Rest {
    until: Option<Instant>,
    backoff: Backoff,
}

impl Rest {
    const fn new() -> Self {
        Self { until: None, backoff: Backoff::new(FIRST_REST, LONGEST_REST) }
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    fn begin(&mut self) {
        self.until = Some(Instant::now() + self.backoff.pause());
    }
}

impl Dialler {
    /// Creates the sockets of all channels in a private directory; each connection is relayed to `scheduler`
    /// (`host:port`). Sockets whose files are removed are created again.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn open(
        credentials: &Credentials,
        scheduler: &str,
        sockets: impl Into<Endpoints>,
    ) -> Result<Self, DiallerError> {
        Self::with(ReloadingTls::of(credentials)?, scheduler, sockets.into())
    }

    /// Like [`Dialler::open`], with a bundle whose file may be replaced at any time by a new one of the same holder.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn join(bundle: &Bundle, sockets: impl Into<Endpoints>) -> Result<Self, DiallerError> {
        Self::with(ReloadingTls::of_bundle(bundle)?, &bundle.scheduler, sockets.into())
    }

    fn with(tls_config: ReloadingTls, scheduler: &str, sockets: Endpoints) -> Result<Self, DiallerError> {
        let shared = Arc::new(Shared {
            sockets,
            scheduler: scheduler.to_owned(),
            tls_config: Arc::new(tls_config),
            refused: Mutex::new(None),
            trouble: Trouble::default(),
            rest: Mutex::new(Rest::new()),
            last_log: Mutex::new(None),
        });
        let blobs =
            BlobClient::new(shared.scheduler.clone(), Arc::clone(&shared.tls_config), shared.trouble.clone());
        let dialler = Self { shared, blobs, listening: Mutex::default() };
        for channel in NAMED {
            dialler.listen(channel)?;
        }
        Ok(dialler)
    }

    /// Creates the socket of one channel, which may be a lane.
    ///
    /// # Errors
    /// [`DiallerError::Socket`].
    pub fn listen(&self, channel: &str) -> Result<(), DiallerError> {
        let local = Local::bind(&self.shared.sockets, channel)?;
        let task = tokio::spawn(accept(local, Arc::clone(&self.shared), channel.to_owned()));
        self.listening.lock().insert(channel.to_owned(), task);
        Ok(())
    }

    /// Closes the socket of [`Dialler::listen`] and its connections.
    pub fn close(&self, channel: &str) {
        if let Some(task) = self.listening.lock().remove(channel) {
            task.abort();
            // Errors are ignored: the directory is removed with the process, and a remaining file does no harm.
            let _ = std::fs::remove_file(self.shared.sockets.dir().join(format!("{channel}.sock")));
        }
    }

    /// The scheduler's address, `host:port`.
    #[must_use]
    pub fn scheduler(&self) -> &str {
        &self.shared.scheduler
    }

    /// The client for blobs of this scheduler.
    #[must_use]
    pub fn blobs(&self) -> BlobClient {
        self.blobs.clone()
    }

    /// The scheduler's refusal, if its last answer was a permanent refusal.
    #[must_use]
    pub fn refused(&self) -> Option<Failure> {
        self.shared.refused.lock().clone()
    }

    /// The current fault of the connection to the scheduler.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.shared.trouble.clone()
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        let channels: Vec<_> = self.listening.lock().keys().cloned().collect();
        channels.iter().for_each(|channel| self.close(channel));
    }
}

/// Why a dialling gate could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiallerError {
    /// The own credentials are unusable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A local socket cannot be created.
    #[error("cannot make {path}: {source}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The socket of one channel.
struct Local {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode number of its file.
    file: Option<(u64, u64)>,
}

impl Local {
    fn bind(sockets: &Endpoints, channel: &str) -> Result<Self, DiallerError> {
        let path = sockets.dir().join(format!("{channel}.sock"));
        // A killed process of this name may have left the file.
        let _ = std::fs::remove_file(&path);
        let bound = UnixListener::bind(&path);
        let socket = bound.map_err(|source| DiallerError::Socket { path: path.clone(), source })?;
        Ok(Self { socket, file: file_identity(&path), path })
    }

    /// True if the socket's file was removed or replaced.
    fn is_lost(&self) -> bool {
        self.file.is_none() || file_identity(&self.path) != self.file
    }
}

async fn accept(mut local: Local, shared: Arc<Shared>, channel: String) {
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = local.socket.accept() => match accepted {
                Ok((stream, _)) => {
                    let (shared, channel) = (Arc::clone(&shared), channel.clone());
                    connections.spawn(async move { shared.serve(stream, &channel).await });
                }
                Err(error) => {
                    tracing::warn!(%error, channel, "a local connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = look.tick() => if local.is_lost() {
                match Local::bind(&shared.sockets, &channel) {
                    Ok(anew) => {
                        tracing::warn!(path = %local.path.display(), "a socket was removed; it is made anew");
                        local = anew;
                    }
                    Err(error) => tracing::debug!(%error, channel, "a removed socket cannot be made anew yet"),
                }
            },
        }
    }
}

impl Shared {
    async fn serve(&self, local: UnixStream, channel: &str) {
        if !self.rest.lock().is_over() {
            return;
        }
        let dialled = {
            let steps = self.trouble.begin();
            dial(&self.scheduler, &self.tls_config, channel, |step| steps.step(step)).await
        };
        let tls = match dialled {
            Ok((tls, _)) => tls,
            Err(error) => return self.refused(channel, error),
        };
        *self.last_log.lock() = None;
        *self.refused.lock() = None;
        *self.rest.lock() = Rest::new();
        self.trouble.dialled(None);
        if has_left(&local).await {
            return;
        }
        // ZeroMQ on this side does not use an identity of the scheduler's socket.
        let handshake = Handshake::new(ACCEPTING, Bytes::new());
        let ended =
            relay(tls, local, handshake, UnfinishedBytes::default(), |text| self.trouble.ended(Some(text)))
                .await;
        let stalled = match ended {
            Err(ProxyError::Stalled(text)) => {
                self.log(channel, &text, Obstacle::Unreachable);
                Some(text)
            }
            Err(error) => {
                tracing::debug!(channel, %error, "the connection to the scheduler broke");
                None
            }
            Ok(()) => None,
        };
        self.trouble.ended(stalled);
    }

    /// Logs a failed connection; keeps a permanent refusal for [`Dialler::refused`].
    fn refused(&self, channel: &str, DialError { failure, is_refusal_for_now }: DialError) {
        let obstacle = if is_refusal_for_now { Obstacle::Refused } else { Obstacle::Unreachable };
        self.log(channel, &failure.message, obstacle);
        // A refused lane is a consequence of its session's end.
        if channel.starts_with("lane-") {
            return;
        }
        if is_refusal_for_now {
            self.rest.lock().begin();
        }
        self.trouble.dialled(Some(failure.message.to_string()));
        if failure.kind != FailureKind::Disconnected {
            *self.refused.lock() = Some(failure);
        }
    }

    /// Logs at intervals, and whenever the scheduler changes between unreachable and refusing.
    fn log(&self, channel: &str, reason: &str, obstacle: Obstacle) {
        let mut last = self.last_log.lock();
        if last.is_none_or(|last| last.at.elapsed() >= LOG_EVERY || last.obstacle != obstacle) {
            *last = Some(LastLog { at: Instant::now(), obstacle });
            tracing::warn!(scheduler = self.scheduler, channel, reason, "cannot reach the scheduler");
        }
    }
}

/// True if the local process has closed its socket meanwhile.
async fn has_left(local: &UnixStream) -> bool {
    let ready = tokio::time::timeout(Duration::ZERO, local.ready(Interest::READABLE)).await;
    matches!(ready, Ok(Ok(ready)) if ready.is_read_closed())
}

/// Connects to the gate and requests a channel. Returns the connection and the time of the scheduler's host;
/// calls `step` with a description of each step.
pub(crate) async fn dial(
    scheduler: &str,
    tls_config: &ReloadingTls,
    channel: &str,
    step: impl Fn(String),
) -> Result<(TlsStream<TcpStream>, u64), DialError> {
    let stream = connect(scheduler, &step).await.map_err(|error| DialError::away(error.to_string()))?;
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "a socket option is not to be had");
    }
    let what = |what: &str| format!("{what} of {scheduler}");
    let name = ServerName::try_from(SCHEDULER_NAME).expect("a plain name");
    step(what(HANDSHAKE));
    let connecting = TlsConnector::from(tls_config.config()).connect(name, stream);
    let mut tls = in_time(connecting).await.map_err(|error| judge(&error, &what(HANDSHAKE)))?;
    step(what(REPLY));
    let asked = async {
        // A gate that refused the certificate does not read; its reason is already received.
        let _ = tls.write_all(preamble::request(channel).as_bytes()).await;
        let _ = tls.flush().await;
        read_line(&mut tls).await
    };
    let said = in_time(asked).await.map_err(|error| judge(&error, &what(REPLY)))?;
    let answer = preamble::read_answer(&said);
    if let Some(text) = wrong_time(tls.get_ref().1.peer_certificates(), answer.as_ref()) {
        return Err(DialError::for_now(text));
    }
    match answer {
        Some(Ok(wall_ms)) => Ok((tls, wall_ms)),
        Some(Err(refused)) if is_temporary(&refused) => Err(DialError::for_now(with_own_clock(refused.text))),
        Some(Err(refused)) => {
            let failure = Failure::new(refused.kind, refused.text);
            Err(DialError { failure, is_refusal_for_now: false })
        }
        None => Err(DialError::away(format!("{scheduler} is no gate of a LamaGrid scheduler"))),
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(ANSWER, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap() {
        let mut rest = Rest::new();
        assert!(rest.is_over());
        let rests = (0..20).map(|_| {
            rest.begin();
            rest.until.unwrap().duration_since(Instant::now())
        });
        let rests: Vec<_> = rests.collect();
        assert!(rests[0] <= FIRST_REST && rests[19] <= LONGEST_REST);
        assert!(rests[19] >= LONGEST_REST / 2 - Duration::from_millis(100), "{rests:?}");
    }
}
