//! The dialling gate: private sockets like a scheduler's on this host, TLS to the scheduler behind them.
//!
//! Does not: reconnect by itself. Whoever uses a local socket finds it closed, and connects again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use lamagrid_domain::{Failure, FailureKind};

use super::blobs::Blobs;
use super::bundle::Bundle;
use super::credentials::{Credentials, CredentialsError, PeerRole, SCHEDULER_NAME};
use super::line::{self, NAMED};
use super::papers::Papers;
use super::relay::{relay, tune};
use super::zmtp::{ACCEPTING, Handshake, Held};
use crate::endpoint::{Endpoints, file_identity};

/// From the first packet to the scheduler's answer to the line.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long one try to connect may take; the handshake's limit holds for all together.
const KNOCK: Duration = Duration::from_secs(1);
/// A scheduler that cannot be reached is mentioned this often.
const MENTION_EVERY: Duration = Duration::from_secs(30);
/// How often the local sockets' files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Local sockets that lead to a scheduler elsewhere. Dropping it closes them.
#[derive(Debug)]
pub struct Dialler {
    shared: Arc<Shared>,
    blobs: Blobs,
    listening: Mutex<BTreeMap<String, JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    sockets: Endpoints,
    /// `host:port`
    scheduler: String,
    papers: Arc<Papers>,
    /// Why the scheduler refused this side for good.
    refused: Mutex<Option<Failure>>,
    mentioned: Mutex<Option<Instant>>,
}

impl Dialler {
    /// Makes `sockets` for all channels, in a private directory; each connection to one goes to `scheduler`
    /// (`host:port`). Sockets whose files are removed are made anew.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn open(
        credentials: &Credentials,
        scheduler: &str,
        sockets: impl Into<Endpoints>,
    ) -> Result<Self, DiallerError> {
        Self::with(Papers::of(credentials)?, scheduler, sockets.into())
    }

    /// The same with a bundle, whose file may be replaced by a new one of the same holder at any time.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn join(bundle: &Bundle, sockets: impl Into<Endpoints>) -> Result<Self, DiallerError> {
        Self::with(Papers::of_bundle(bundle)?, &bundle.scheduler, sockets.into())
    }

    fn with(papers: Papers, scheduler: &str, sockets: Endpoints) -> Result<Self, DiallerError> {
        let shared = Arc::new(Shared {
            sockets,
            scheduler: scheduler.to_owned(),
            papers: Arc::new(papers),
            refused: Mutex::new(None),
            mentioned: Mutex::new(None),
        });
        let blobs = Blobs::new(shared.scheduler.clone(), Arc::clone(&shared.papers));
        let dialler = Self { shared, blobs, listening: Mutex::default() };
        for channel in NAMED {
            dialler.listen(channel)?;
        }
        Ok(dialler)
    }

    /// Makes the socket of one channel, which may be a lane.
    ///
    /// # Errors
    /// [`DiallerError::Socket`].
    pub fn listen(&self, channel: &str) -> Result<(), DiallerError> {
        let local = Local::bind(&self.shared.sockets, channel)?;
        let task = tokio::spawn(accept(local, Arc::clone(&self.shared), channel.to_owned()));
        self.listening.lock().insert(channel.to_owned(), task);
        Ok(())
    }

    /// Closes what [`Dialler::listen`] made, and its connections.
    pub fn close(&self, channel: &str) {
        if let Some(task) = self.listening.lock().remove(channel) {
            task.abort();
            // The directory goes with the process; what is left in it misleads nobody.
            let _ = std::fs::remove_file(self.shared.sockets.dir().join(format!("{channel}.sock")));
        }
    }

    /// `host:port`
    #[must_use]
    pub fn scheduler(&self) -> &str {
        &self.shared.scheduler
    }

    /// What brings and fetches blobs.
    #[must_use]
    pub fn blobs(&self) -> Blobs {
        self.blobs.clone()
    }

    /// Why the scheduler refused this side, if it did so for good when it was last asked.
    #[must_use]
    pub fn refused(&self) -> Option<Failure> {
        self.shared.refused.lock().clone()
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        let channels: Vec<_> = self.listening.lock().keys().cloned().collect();
        channels.iter().for_each(|channel| self.close(channel));
    }
}

/// Tries once whether the scheduler lets the holder of a bundle in, and says what the clock of its host shows, in
/// milliseconds since the Unix epoch.
///
/// # Errors
/// Why not, with what to do.
pub async fn probe(bundle: &Bundle) -> Result<u64, Failure> {
    let invalid = |error: CredentialsError| Failure::new(FailureKind::InvalidInput, error.to_string());
    let shared = Shared {
        sockets: Endpoints::new(PathBuf::new()),
        scheduler: bundle.scheduler.clone(),
        papers: Arc::new(Papers::of(&bundle.credentials).map_err(invalid)?),
        refused: Mutex::new(None),
        mentioned: Mutex::new(None),
    };
    let channel = if bundle.certificate.role == PeerRole::Node { "control" } else { "client" };
    shared.dial_in_time(channel).await.map(|(_, wall_ms)| wall_ms)
}

/// Why a dialling gate does not open.
#[derive(Debug, thiserror::Error)]
pub enum DiallerError {
    /// The own credentials are of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A local socket cannot be made.
    #[error("cannot make {path}: {source}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
}

/// The socket of one channel.
struct Local {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    file: Option<(u64, u64)>,
}

impl Local {
    fn bind(sockets: &Endpoints, channel: &str) -> Result<Self, DiallerError> {
        let path = sockets.dir().join(format!("{channel}.sock"));
        // What a killed process of this name may have left.
        let _ = std::fs::remove_file(&path);
        let bound = UnixListener::bind(&path);
        let socket = bound.map_err(|source| DiallerError::Socket { path: path.clone(), source })?;
        Ok(Self { socket, file: file_identity(&path), path })
    }

    /// Whether nobody finds it any more.
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
    async fn dial_in_time(&self, channel: &str) -> Result<(TlsStream<TcpStream>, u64), Failure> {
        tokio::time::timeout(HANDSHAKE, self.dial(channel)).await.unwrap_or_else(|_| {
            let text = format!("no answer from {} within {} s", self.scheduler, HANDSHAKE.as_secs());
            Err(Failure::new(FailureKind::Disconnected, text))
        })
    }

    async fn serve(&self, local: UnixStream, channel: &str) {
        let tls = match self.dial_in_time(channel).await {
            Ok((tls, _)) => tls,
            Err(failure) => return self.mention(channel, failure),
        };
        *self.mentioned.lock() = None;
        *self.refused.lock() = None;
        // Its identity means nothing on this side.
        if let Err(error) = relay(tls, local, Handshake::new(ACCEPTING, Bytes::new()), Held::default()).await
        {
            tracing::debug!(channel, %error, "the connection to the scheduler broke");
        }
    }

    /// Says why, once in a while; what will not change is kept for [`Dialler::refused`].
    fn mention(&self, channel: &str, failure: Failure) {
        let mut mentioned = self.mentioned.lock();
        if mentioned.is_none_or(|at| at.elapsed() >= MENTION_EVERY) {
            *mentioned = Some(Instant::now());
            tracing::warn!(
                scheduler = self.scheduler,
                channel,
                reason = failure.message,
                "cannot reach the scheduler"
            );
        }
        if failure.kind != FailureKind::Disconnected && !channel.starts_with("lane-") {
            *self.refused.lock() = Some(failure);
        }
    }

    /// Knocks anew every second: the kernel itself waits longer and longer before it repeats a packet that was lost.
    async fn connect(&self) -> io::Result<TcpStream> {
        loop {
            if let Ok(connected) = tokio::time::timeout(KNOCK, TcpStream::connect(&self.scheduler)).await {
                return connected;
            }
        }
    }

    /// A connection to a channel, and what the clock of the scheduler's host shows.
    async fn dial(&self, channel: &str) -> Result<(TlsStream<TcpStream>, u64), Failure> {
        let away = |text: String| Failure::new(FailureKind::Disconnected, text);
        let stream = self
            .connect()
            .await
            .map_err(|error| away(format!("cannot connect to {}: {error}", self.scheduler)))?;
        if let Err(error) = tune(&stream) {
            tracing::debug!(%error, "a socket option is not to be had");
        }
        let name = ServerName::try_from(SCHEDULER_NAME).expect("a plain name");
        let connector = TlsConnector::from(self.papers.config());
        let mut tls = connector.connect(name, stream).await.map_err(|error| self.judge(&error))?;
        let asked = async {
            tls.write_all(line::request(channel).as_bytes()).await?;
            tls.flush().await?;
            line::read(&mut tls).await
        };
        let said = asked.await.map_err(|error| self.judge(&error))?;
        match line::read_answer(&said) {
            Some(Ok(wall_ms)) => Ok((tls, wall_ms)),
            Some(Err(refused)) => Err(Failure::new(refused.kind, refused.text)),
            None => Err(away(format!("{} is no gate of a LamaGrid scheduler", self.scheduler))),
        }
    }

    /// What a broken connection means: a certificate that is refused stays refused.
    fn judge(&self, error: &io::Error) -> Failure {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let final_text = match inner {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => Some("the scheduler's certificate is not good yet by the clock of this host: set it right".into()),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => Some(
                "the scheduler's certificate has ended by the clock of this host: is that right? else `lamagrid certs renew` \
                 there"
                    .into(),
            ),
            Some(rustls::Error::InvalidCertificate(reason)) => Some(format!(
                "the scheduler's certificate is refused ({reason:?}): is the bundle from its `lamagrid certs`?"
            )),
            Some(rustls::Error::AlertReceived(alert)) => Some(format!(
                "the scheduler refused this certificate ({alert:?}): ask for a new bundle (`lamagrid certs bundle`)"
            )),
            _ => None,
        };
        match final_text {
            Some(text) => Failure::new(FailureKind::InvalidInput, text),
            None => Failure::new(FailureKind::Disconnected, format!("{}: {error}", self.scheduler)),
        }
    }
}
