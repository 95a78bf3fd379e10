//! The accepting gate: TLS on the network, the scheduler's private sockets behind it.
//!
//! Does not: know messages. A peer is known by its certificate; what it may reach, its role decides.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use lamagrid_domain::FailureKind;

use super::blobs::{self, KEPT_HERE, Transfer};
use super::credentials::{Certificate, Credentials, CredentialsError};
use super::line::{self, Channel, Refused};
use super::registry::Registry;
use super::relay::{RelayError, relay, tune};
use super::zmtp::{DIALLING, Handshake};
use crate::memory::GiveBack;
use crate::random::random_id;
use crate::spool::Spool;

/// From the first byte to the end of the line before ZMTP.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections of one address, and of all.
const MOST_OF_ONE: usize = 256;
const MOST: usize = 8_192;
/// Descriptors of one connection: its socket, and both ends of the private one behind it. Others need some, too.
const DESCRIPTORS: usize = 3;
const DESCRIPTORS_OF_OTHERS: usize = 128;
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a gate does not open.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What came back.
        source: io::Error,
    },
    /// The scheduler's own credentials are of no use.
    #[error("the scheduler's certificate: {0}")]
    Credentials(#[from] CredentialsError),
}

/// What the gate shows to peers; may be replaced.
type Shown = Arc<Mutex<Arc<ServerConfig>>>;

/// The accepting gate. Dropping it closes every connection.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shown: Shown,
    accepting: JoinHandle<()>,
    revoked: watch::Sender<BTreeSet<String>>,
}

impl Gate {
    /// Listens on `address`, in front of the sockets in `dir` and of the blobs in `spool`.
    ///
    /// # Errors
    /// [`GateError`].
    pub async fn open(
        address: SocketAddr,
        credentials: &Credentials,
        dir: PathBuf,
        spool: Spool,
        registry: Registry,
    ) -> Result<Self, GateError> {
        let shown: Shown = Arc::new(Mutex::new(credentials.server()?));
        let listen = |source| GateError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (revoked, revocations) = watch::channel(BTreeSet::new());
        let desk = Desk {
            shown: Arc::clone(&shown),
            dir: dir.into(),
            spool,
            registry,
            revocations,
            grumble: Arc::default(),
        };
        let accepting = tokio::spawn(accept(listener, desk));
        Ok(Self { address, shown, accepting, revoked })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows these credentials to whoever connects from now on; open connections go on.
    ///
    /// # Errors
    /// [`CredentialsError`]; then the old ones stay.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        *self.shown.lock() = credentials.server()?;
        Ok(())
    }

    /// Ends and refuses connections with certificates of these names from now on.
    pub fn revoke(&self, names: BTreeSet<String>) {
        self.revoked.send_if_modified(|revoked| {
            let is_new = *revoked != names;
            *revoked = names;
            is_new
        });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Desk {
    shown: Shown,
    dir: Arc<std::path::Path>,
    spool: Spool,
    registry: Registry,
    revocations: watch::Receiver<BTreeSet<String>>,
    grumble: Arc<Grumble>,
}

/// How often a second refused connections are told of: whoever knocks on and on does not fill the log.
const TOLD_PER_SECOND: u32 = 10;

/// Counts what is told of refused connections.
#[derive(Debug, Default)]
struct Grumble(Mutex<(Option<Instant>, u32, u64)>);

impl Grumble {
    /// Whether one more may be told; says now and then how many were not.
    fn may(&self) -> bool {
        let mut state = self.0.lock();
        let (since, told, untold) = &mut *state;
        if since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            if *untold > 0 {
                tracing::warn!(connections = *untold, "the gate refused more of them than it tells");
            }
            (*since, *told, *untold) = (Some(Instant::now()), 0, 0);
        }
        *told += 1;
        *untold += u64::from(*told > TOLD_PER_SECOND);
        *told <= TOLD_PER_SECOND
    }
}

/// How many connections of one address, and of all, this process has the descriptors for.
fn room() -> (usize, usize) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let most = (limit.saturating_sub(DESCRIPTORS_OF_OTHERS) / DESCRIPTORS).clamp(1, MOST);
    (MOST_OF_ONE.min(most.div_ceil(2)), most)
}

async fn accept(listener: TcpListener, desk: Desk) {
    let (most_of_one, most) = room();
    // Ends with this task, and every connection with it.
    let mut connections = JoinSet::new();
    let mut of_one: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let mut give_back = GiveBack::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = give_back.due() => continue,
            Some(ended) = connections.join_next() => {
                give_back.ended();
                // A connection does not panic; if one did, its address keeps one place less.
                if let Ok(from) = ended && let Some(count) = of_one.get_mut(&from) {
                    *count -= 1;
                    if *count == 0 {
                        of_one.remove(&from);
                    }
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the gate cannot accept a connection; it waits a moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let count = of_one.entry(from.ip()).or_default();
        if *count >= most_of_one || connections.len() >= most {
            if desk.grumble.may() {
                tracing::warn!(%from, connections = *count, "the gate has no room for another connection");
            }
            if *count == 0 {
                of_one.remove(&from.ip());
            }
            continue;
        }
        *count += 1;
        let desk = desk.clone();
        connections.spawn(async move {
            desk.serve(stream, from).await;
            from.ip()
        });
    }
}

impl Desk {
    async fn serve(self, stream: TcpStream, from: SocketAddr) {
        if let Err(error) = tune(&stream) {
            tracing::debug!(%from, %error, "a socket option is not to be had");
        }
        let greeted = match tokio::time::timeout(HANDSHAKE, self.greet(stream)).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(reason)) => {
                if self.grumble.may() {
                    tracing::warn!(%from, reason, "the gate refused a connection");
                }
                return;
            }
            Err(_) => {
                if self.grumble.may() {
                    tracing::warn!(%from, limit_s = HANDSHAKE.as_secs(), "the gate gave up a handshake");
                }
                return;
            }
        };
        let Greeted { tls, local, certificate, channel } = greeted;
        let name = channel.name().to_owned();
        tracing::debug!(%from, peer = %certificate, channel = name, "connected");
        let mut revocations = self.revocations.clone();
        let revoked = async {
            let is_revoked = |names: &BTreeSet<String>| names.contains(&certificate.name);
            if revocations.wait_for(is_revoked).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let work = async {
            match (local, &channel) {
                (None, Channel::Blob(transfer)) => self.transfers(tls, &certificate, *transfer).await,
                (Some(local), _) => self.relay(tls, local, &certificate).await,
                (None, _) => Ok(()),
            }
        };
        tokio::select! {
            ended = work => match ended {
                Ok(()) => tracing::debug!(%from, peer = %certificate, channel = name, "closed"),
                Err(error) if !self.grumble.may() => {
                    tracing::debug!(%from, peer = %certificate, channel = name, %error, "the gate dropped a peer");
                }
                Err(error) => {
                    tracing::warn!(%from, peer = %certificate, channel = name, %error, "the gate dropped a peer");
                }
            },
            () = revoked => {
                tracing::warn!(%from, peer = %certificate, channel = name, "closed: it was revoked");
            }
        }
    }

    async fn relay(
        &self,
        tls: TlsStream<TcpStream>,
        local: UnixStream,
        certificate: &Arc<Certificate>,
    ) -> Result<(), RelayError> {
        let identity = identity(certificate);
        let entry = self.registry.enter(&identity, certificate);
        relay(tls, local, Handshake::new(DIALLING, identity), entry.held()).await
    }

    /// One transfer after the other, until the peer leaves.
    async fn transfers(
        &self,
        mut tls: TlsStream<TcpStream>,
        certificate: &Certificate,
        first: Transfer,
    ) -> Result<(), RelayError> {
        let mut next = Ok(first);
        let refused = loop {
            let transfer = match next {
                Ok(transfer) => transfer,
                Err(refused) => break refused,
            };
            let Some(grant) = self.registry.granted(certificate, transfer) else {
                break Refused::not_granted();
            };
            blobs::serve(&mut tls, &self.spool, &self.registry, &grant, transfer).await?;
            let text = match tokio::time::timeout(KEPT_HERE, line::read(&mut tls)).await {
                Ok(Ok(text)) => text,
                // It has left, or has had its time; nothing was under way.
                Ok(Err(_)) | Err(_) => return Ok(tls.shutdown().await?),
            };
            next = line::parse(&text).and_then(|channel| match channel {
                Channel::Blob(transfer) if transfer.is_for(certificate.role) => Ok(transfer),
                _ => Err(Refused::new(FailureKind::InvalidInput, "this connection carries blobs")),
            });
        };
        blobs::answer(&mut tls, Err(&refused)).await?;
        // What was said last shall arrive before the end.
        Ok(tls.shutdown().await?)
    }

    /// TLS, and the line before ZMTP.
    async fn greet(&self, stream: TcpStream) -> Result<Greeted, String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.shown.lock()));
        let mut tls = acceptor.accept(stream).await.map_err(|error| format!("TLS: {error}"))?;
        let presented = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = presented.ok_or("no certificate")?;
        let certificate = Arc::new(Certificate::of(certificate).map_err(|error| error.to_string())?);
        let text = line::read(&mut tls).await.map_err(|error| format!("{certificate}: {error}"))?;
        let verdict = self.admit(&certificate, &text).await;
        let said = line::answer(verdict.as_ref().map(|_| ()));
        let sent = async {
            tls.write_all(said.as_bytes()).await?;
            tls.flush().await
        };
        // A transfer says by itself whether it can begin.
        if !matches!(verdict, Ok((Channel::Blob(_), _))) {
            sent.await.map_err(|error| format!("{certificate}: {error}"))?;
        }
        match verdict {
            Ok((channel, local)) => Ok(Greeted { tls, local, certificate, channel }),
            Err(refused) => {
                // Its sender reads why before the connection closes.
                let _ = tls.shutdown().await;
                Err(format!("{certificate}: {refused}"))
            }
        }
    }

    async fn admit(
        &self,
        certificate: &Certificate,
        text: &str,
    ) -> Result<(Channel, Option<UnixStream>), Refused> {
        let channel = line::parse(text)?;
        if self.revocations.borrow().contains(&certificate.name) {
            let text = format!("the certificate {} was revoked: ask for a new bundle", certificate.name);
            return Err(Refused::new(FailureKind::InvalidInput, text));
        }
        self.registry.may_reach(certificate, &channel)?;
        if matches!(channel, Channel::Blob(_)) {
            return Ok((channel, None));
        }
        let path = self.dir.join(format!("{}.sock", channel.name()));
        match UnixStream::connect(&path).await {
            Ok(local) => Ok((channel, Some(local))),
            Err(error) => {
                let text = format!("the channel {} is closed just now: {error}", channel.name());
                Err(Refused::new(FailureKind::Disconnected, text))
            }
        }
    }
}

struct Greeted {
    tls: TlsStream<TcpStream>,
    /// None for a blob.
    local: Option<UnixStream>,
    certificate: Arc<Certificate>,
    channel: Channel,
}

/// Of one connection: longer than that of any peer of this host, see [`PeerId::is_of_gate`].
fn identity(certificate: &Certificate) -> Bytes {
    let instance = random_id().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}/{instance}", certificate.name).into()
}
