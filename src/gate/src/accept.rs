//! Accepts TLS connections from the network and connects them to the scheduler's private sockets.
//!
//! Does not: interpret messages. A certificate identifies its peer, and the certificate's role decides which
//! channels the peer may use.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use lamagrid_blobs::{Grants, KEPT_OPEN, Spool, refuse, serve};
use lamagrid_domain::FailureKind;
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_process::{MemoryTrim, descriptors, random_id};
use lamagrid_protocol::preamble::{self, Channel, Refused};
use lamagrid_protocol::transfer::Transfer;
use lamagrid_transport::Endpoints;

use crate::allow_list::{AllowList, Allowed};
use crate::certificate::{Certificate, CredentialsError, PeerRole};
use crate::credentials::Credentials;
use crate::fingerprint::Fingerprint;
use crate::log_limiter::LogLimiter;
use crate::places::{Bounds, Place, Places, Room};
use crate::preamble::{may_transfer, may_use, no_room, read_line, wrong_time};
use crate::probe;
use crate::proxy::{ProxyError, relay, tune};
use crate::registry::Registry;
use crate::validity::{out_of_validity, validity};
use crate::zmtp_guard::{DIALLING, Handshake};

/// Limit on the handshake, from the first byte to the end of the line before ZMTP.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long a new certificate may be missing from the allow list, which the scheduler reads once per second.
const LISTED_WITHIN: Duration = Duration::from_secs(2);
/// Interval at which the end of a certificate is compared with the wall clock, which may be changed at any time.
const VALIDITY_CHECK: Duration = Duration::from_secs(60);

/// Why the gate could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The scheduler's own credentials are unusable.
    #[error("the scheduler's certificate: {0}")]
    Credentials(#[from] CredentialsError),
}

/// The TLS configuration with the gate's certificate, replaced when it is renewed.
type Shown = Arc<Mutex<Arc<ServerConfig>>>;

/// The resources that a gate gives access to.
#[derive(Debug)]
pub struct GateOptions {
    /// The scheduler's private sockets.
    pub sockets: Endpoints,
    /// The scheduler's blobs.
    pub spool: Spool,
    /// The connected peers and their lanes.
    pub registry: Registry,
    /// The blobs that each peer may read and write.
    pub grants: Grants,
    /// Limit on the connections of one kind from one host or one certificate.
    pub max_connections_per_peer: usize,
}

/// The accepting gate. Dropping it closes all connections.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shown: Shown,
    accepting: JoinHandle<()>,
    allowed: watch::Sender<Allowed>,
}

impl Gate {
    /// Listens on `address`. Admits no peer before [`Gate::allow`] is called.
    ///
    /// # Errors
    /// [`GateError`].
    pub async fn open(
        address: SocketAddr,
        credentials: &Credentials,
        options: GateOptions,
    ) -> Result<Self, GateError> {
        let shown: Shown = Arc::new(Mutex::new(credentials.server()?));
        let listen = |source| GateError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (allowed, allow_list) = watch::channel(Allowed::default());
        let places = Places::new(Bounds::of(descriptors::limit(), options.max_connections_per_peer));
        let context = ConnectionContext {
            shown: Arc::clone(&shown),
            options: Arc::new(options),
            allow_list,
            log_limiter: Arc::default(),
        };
        let accepting = tokio::spawn(accept(listener, context, places));
        Ok(Self { address, shown, accepting, allowed })
    }

    /// The address on which the gate listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Uses these credentials for new connections; open ones are not affected.
    ///
    /// # Errors
    /// [`CredentialsError`]; the gate keeps the previous ones.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        *self.shown.lock() = credentials.server()?;
        Ok(())
    }

    /// Admits only the certificates of `list` from now on, and closes the connections of all others.
    ///
    /// `None` means that the list cannot be read: the gate then admits no new peer, and keeps the connections
    /// that the last list allowed.
    pub fn allow(&self, list: Option<AllowList>) {
        self.allowed.send_if_modified(|allowed| {
            let before = std::mem::replace(&mut allowed.is_current, list.is_some());
            let is_new = list.as_ref().is_some_and(|list| *list != allowed.list);
            if let Some(list) = list.filter(|_| is_new) {
                allowed.list = list;
            }
            is_new || before != allowed.is_current
        });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The state that every connection needs. Cheap to clone.
#[derive(Clone)]
struct ConnectionContext {
    shown: Shown,
    options: Arc<GateOptions>,
    allow_list: watch::Receiver<Allowed>,
    log_limiter: Arc<LogLimiter>,
}

async fn accept(listener: TcpListener, context: ConnectionContext, places: Places) {
    // Dropping the set ends every connection.
    let mut connections = JoinSet::new();
    let mut trim = MemoryTrim::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = trim.due() => continue,
            Some(_) = connections.join_next() => {
                trim.schedule();
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
        let (place, evicted) = places.enter(from.ip());
        connections.spawn(context.clone().serve(stream, from, place, evicted));
    }
}

impl ConnectionContext {
    async fn serve(self, stream: TcpStream, from: SocketAddr, place: Place, evicted: oneshot::Receiver<()>) {
        if let Err(error) = tune(&stream) {
            tracing::debug!(%from, %error, "a socket option was refused");
        }
        let evicted = async {
            // An error means that the place is authenticated, and its handshake can no longer be evicted.
            if evicted.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, self.handshake(stream, &place)) => shaken,
            () = evicted => {
                if self.log_limiter.allows() {
                    tracing::warn!(%from, "the gate ended a handshake to make room for newer ones");
                }
                return;
            }
        };
        let established = match shaken {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => {
                if self.log_limiter.allows() {
                    let reason = error.to_string();
                    tracing::warn!(%from, reason, "the gate refused a connection");
                }
                return;
            }
            Err(_) => {
                if self.log_limiter.allows() {
                    tracing::warn!(%from, limit_s = HANDSHAKE.as_secs(), "the gate gave up a handshake");
                }
                return;
            }
        };
        let Established { tls, local, peer: Peer { certificate, fingerprint, ends_ms }, channel } =
            established;
        let name = channel.name().to_owned();
        tracing::debug!(%from, peer = %certificate, channel = name, "connected");
        let mut allow_list = self.allow_list.clone();
        let no_longer_allowed = async {
            let is_out = |allowed: &Allowed| !allowed.list.valid.contains(&fingerprint);
            if allow_list.wait_for(is_out).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let work = async {
            match (local, &channel) {
                (None, Channel::Blob(transfer)) => self.transfers(tls, &certificate, *transfer).await,
                (None, Channel::Probe) => {
                    let mut tls = tls;
                    Ok(probe::serve(&mut tls).await?)
                }
                (Some(local), _) => self.proxy(tls, local, &certificate).await,
                (None, _) => Ok(()),
            }
        };
        tokio::select! {
            ended = work => match ended {
                Ok(()) => tracing::debug!(%from, peer = %certificate, channel = name, "closed"),
                Err(error) if !self.log_limiter.allows() => {
                    tracing::debug!(%from, peer = %certificate, channel = name, %error, "the gate dropped a peer");
                }
                Err(error) => {
                    tracing::warn!(%from, peer = %certificate, channel = name, %error, "the gate dropped a peer");
                }
            },
            () = no_longer_allowed => {
                tracing::warn!(%from, peer = %certificate, channel = name,
                    "closed: its certificate was revoked or replaced");
            }
            () = wall_clock_reaches(ends_ms) => {
                tracing::warn!(%from, peer = %certificate, channel = name, "closed: its certificate has ended");
            }
        }
    }

    async fn proxy(
        &self,
        tls: TlsStream<TcpStream>,
        local: UnixStream,
        certificate: &Arc<Certificate>,
    ) -> Result<(), ProxyError> {
        let identity = identity(certificate);
        let entry = self.options.registry.enter(&identity, certificate);
        relay(tls, local, Handshake::new(DIALLING, identity), entry.unfinished_bytes(), |_| ()).await
    }

    /// Serves one transfer after another until the peer leaves.
    async fn transfers(
        &self,
        mut tls: TlsStream<TcpStream>,
        certificate: &Certificate,
        first: Transfer,
    ) -> Result<(), ProxyError> {
        let mut next = Ok(first);
        let refused = loop {
            let transfer = match next {
                Ok(transfer) => transfer,
                Err(refused) => break refused,
            };
            let Some(grant) = self.options.grants.granted(&certificate.name, transfer) else {
                break Refused::not_granted();
            };
            serve(&mut tls, &self.options.spool, &self.options.grants, &grant, transfer).await?;
            let text = match tokio::time::timeout(KEPT_OPEN, read_line(&mut tls)).await {
                Ok(Ok(text)) => text,
                // The peer left or was idle too long; no transfer was running.
                Ok(Err(_)) | Err(_) => return Ok(tls.shutdown().await?),
            };
            next = preamble::parse(&text).and_then(|channel| match channel {
                Channel::Blob(transfer) if may_transfer(certificate.role, transfer) => Ok(transfer),
                _ => Err(Refused::new(FailureKind::InvalidInput, "this connection carries blobs")),
            });
        };
        refuse(&mut tls, &refused).await?;
        // Shut down properly, so that the refusal arrives before the connection closes.
        Ok(tls.shutdown().await?)
    }

    /// Performs the TLS handshake, then reads and answers the line before ZMTP.
    async fn handshake(&self, stream: TcpStream, place: &Place) -> Result<Established, HandshakeError> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.shown.lock()));
        let mut tls = acceptor.accept(stream).await.map_err(HandshakeError::Tls)?;
        let presented = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let der = presented.ok_or(HandshakeError::NoCertificate)?;
        let certificate = Arc::new(Certificate::of(der)?);
        // The last second is part of the validity.
        let ends_ms = validity(der)?.1.saturating_add(1_000);
        let fingerprint = Fingerprint::of(der);
        let valid = out_of_validity(der)?;
        let broken = |source| HandshakeError::Broken { certificate: Arc::clone(&certificate), source };
        let text = read_line(&mut tls).await.map_err(broken)?;
        let peer = Peer { certificate: Arc::clone(&certificate), fingerprint, ends_ms };
        let verdict = match valid {
            Some(valid) => Err(wrong_time(&certificate, &valid)),
            None => self.admit(&peer, place, &text).await,
        };
        let answer = preamble::answer(verdict.as_ref().map(|_| wall_ms()));
        let sent = async {
            tls.write_all(answer.as_bytes()).await?;
            tls.flush().await
        };
        // A transfer sends its own answer.
        if !matches!(verdict, Ok((Channel::Blob(_), _))) {
            sent.await.map_err(broken)?;
        }
        match verdict {
            Ok((channel, local)) => Ok(Established { tls, local, peer, channel }),
            Err(refused) => {
                // The peer reads the refusal before the connection closes.
                let _ = tls.shutdown().await;
                Err(HandshakeError::Refused { certificate, refused })
            }
        }
    }

    async fn admit(
        &self,
        Peer { certificate, fingerprint, .. }: &Peer,
        place: &Place,
        text: &str,
    ) -> Result<(Channel, Option<UnixStream>), Refused> {
        let channel = preamble::parse(text)?;
        let mut allow_list = self.allow_list.clone();
        let is_known = |allowed: &Allowed| !allowed.is_unknown(certificate, *fingerprint);
        // Waits for the list, which may be older than a certificate that was just issued.
        let _ = tokio::time::timeout(LISTED_WITHIN, allow_list.wait_for(is_known)).await;
        allow_list.borrow().admit(certificate, *fingerprint)?;
        self.may_reach(certificate, &channel)?;
        let room = match (certificate.role, &channel) {
            (PeerRole::Node, _) => Room::Nodes,
            (_, Channel::Blob(_) | Channel::Probe) => Room::Transfers,
            _ => Room::Clients,
        };
        place.authenticated(&certificate.name, room).map_err(|reason| no_room(&reason))?;
        if matches!(channel, Channel::Blob(_) | Channel::Probe) {
            return Ok((channel, None));
        }
        let path = self.options.sockets.dir().join(format!("{}.sock", channel.name()));
        match UnixStream::connect(&path).await {
            Ok(local) => Ok((channel, Some(local))),
            Err(error) => {
                let text = format!("the channel {} is closed just now: {error}", channel.name());
                Err(Refused::new(FailureKind::Disconnected, text))
            }
        }
    }

    fn may_reach(&self, certificate: &Certificate, channel: &Channel) -> Result<(), Refused> {
        let refused = |text: String| Err(Refused::new(FailureKind::InvalidInput, text));
        if !may_use(certificate.role, channel) {
            return refused(format!(
                "a certificate of the role {} does not open the channel {}: issue one with another --role",
                certificate.role,
                channel.name()
            ));
        }
        match channel {
            Channel::Lane(lane) if !self.options.registry.has_lane(certificate, lane) => {
                refused(format!("the lane {lane} is not yours, or its session is over"))
            }
            Channel::Blob(transfer)
                if self.options.grants.granted(&certificate.name, *transfer).is_none() =>
            {
                Err(Refused::not_granted())
            }
            Channel::Lane(_) | Channel::Named(_) | Channel::Blob(_) | Channel::Probe => Ok(()),
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("no certificate")]
    NoCertificate,
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("{certificate}: {source}")]
    Broken { certificate: Arc<Certificate>, source: io::Error },
    #[error("{certificate}: {refused}")]
    Refused { certificate: Arc<Certificate>, refused: Refused },
}

/// A connection after its handshake.
struct Established {
    tls: TlsStream<TcpStream>,
    /// The private socket; `None` for a blob or a probe.
    local: Option<UnixStream>,
    peer: Peer,
    channel: Channel,
}

/// The authenticated peer.
struct Peer {
    certificate: Arc<Certificate>,
    fingerprint: Fingerprint,
    /// End of the certificate's validity, in milliseconds since the Unix epoch.
    ends_ms: u64,
}

/// Resolves when the wall clock reaches `end_ms`.
async fn wall_clock_reaches(end_ms: u64) {
    loop {
        match end_ms.checked_sub(wall_ms()) {
            None | Some(0) => return,
            Some(left_ms) => tokio::time::sleep(VALIDITY_CHECK.min(Duration::from_millis(left_ms))).await,
        }
    }
}

/// Creates a connection's identity, longer than any of this host; see
/// [`lamagrid_protocol::PeerId::is_of_gate`].
fn identity(certificate: &Certificate) -> Bytes {
    let instance = random_id().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}/{instance}", certificate.name).into()
}
