//! The accepting gate: TLS on the network, the scheduler's private sockets behind it.
//!
//! Does not: know messages. A peer is known by its certificate; what it may reach, its role decides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use lamagrid_domain::FailureKind;

use super::allow_list::{AllowList, Allowed, Fingerprint};
use super::blobs::{self, KEPT_HERE, Transfer};
use super::credentials::{Certificate, Credentials, CredentialsError, PeerRole};
use super::line::{self, Channel, Refused};
use super::places::{Bounds, Place, Places, Room};
use super::probe;
use super::registry::Registry;
use super::relay::{RelayError, relay, tune};
use super::validity::{out_of_validity, validity, wall_ms};
use super::zmtp::{DIALLING, Handshake};
use crate::endpoint::Endpoints;
use crate::memory::GiveBack;
use crate::random::random_id;
use crate::spool::Spool;

/// From the first byte to the end of the line before ZMTP.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A new certificate is on the allow list within this time: the scheduler reads it once a second.
const LISTED_WITHIN: Duration = Duration::from_secs(2);
/// How often the wall clock is compared with the end of a certificate: it may be set meanwhile.
const VALIDITY_CHECK: Duration = Duration::from_secs(60);

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
    allowed: watch::Sender<Allowed>,
}

impl Gate {
    /// Listens on `address`, in front of `sockets` and of the blobs in `spool`. Nothing is let in before
    /// [`Gate::allow`], and no more than `max_connections_per_peer` of a kind from one host or certificate.
    ///
    /// # Errors
    /// [`GateError`].
    pub async fn open(
        address: SocketAddr,
        credentials: &Credentials,
        sockets: impl Into<Endpoints>,
        spool: Spool,
        registry: Registry,
        max_connections_per_peer: usize,
    ) -> Result<Self, GateError> {
        let shown: Shown = Arc::new(Mutex::new(credentials.server()?));
        let listen = |source| GateError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (allowed, allow_list) = watch::channel(Allowed::default());
        let desk = Desk {
            shown: Arc::clone(&shown),
            sockets: sockets.into(),
            spool,
            registry,
            allow_list,
            grumble: Arc::default(),
        };
        let places = Places::new(Bounds::of(crate::descriptors::limit(), max_connections_per_peer));
        let accepting = tokio::spawn(accept(listener, desk, places));
        Ok(Self { address, shown, accepting, allowed })
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

    /// Lets in the certificates of this list alone from now on, and ends the connections of all others.
    ///
    /// `None` says that the list cannot be read: then nothing new is let in, and connections that the last list allowed
    /// stay open.
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

/// What every connection needs.
#[derive(Clone)]
struct Desk {
    shown: Shown,
    sockets: Endpoints,
    spool: Spool,
    registry: Registry,
    allow_list: watch::Receiver<Allowed>,
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

async fn accept(listener: TcpListener, desk: Desk, places: Places) {
    // Ends with this task, and every connection with it.
    let mut connections = JoinSet::new();
    let mut give_back = GiveBack::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = give_back.due() => continue,
            Some(_) = connections.join_next() => {
                give_back.ended();
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
        connections.spawn(desk.clone().serve(stream, from, place, evicted));
    }
}

impl Desk {
    async fn serve(self, stream: TcpStream, from: SocketAddr, place: Place, evicted: oneshot::Receiver<()>) {
        if let Err(error) = tune(&stream) {
            tracing::debug!(%from, %error, "a socket option is not to be had");
        }
        let evicted = async {
            // An error says that nothing can end it any more.
            if evicted.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(HANDSHAKE, self.greet(stream, &place)) => greeted,
            () = evicted => {
                if self.grumble.may() {
                    tracing::warn!(%from, "the gate ended a handshake to make room for newer ones");
                }
                return;
            }
        };
        let greeted = match greeted {
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
        let Greeted { tls, local, peer: Peer { certificate, fingerprint, ends_ms }, channel } = greeted;
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
            () = no_longer_allowed => {
                tracing::warn!(%from, peer = %certificate, channel = name,
                    "closed: its certificate was revoked or replaced");
            }
            () = wall_clock_reaches(ends_ms) => {
                tracing::warn!(%from, peer = %certificate, channel = name, "closed: its certificate has ended");
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
        relay(tls, local, Handshake::new(DIALLING, identity), entry.held(), |_| ()).await
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
    async fn greet(&self, stream: TcpStream, place: &Place) -> Result<Greeted, String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.shown.lock()));
        let mut tls = acceptor.accept(stream).await.map_err(|error| format!("TLS: {error}"))?;
        let presented = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let der = presented.ok_or("no certificate")?;
        let certificate = Arc::new(Certificate::of(der).map_err(|error| error.to_string())?);
        // Its last second is part of its validity.
        let ends_ms = validity(der).map_err(|error| error.to_string())?.1.saturating_add(1_000);
        let fingerprint = Fingerprint::of(der);
        let valid = out_of_validity(der).map_err(|error| error.to_string())?;
        let text = line::read(&mut tls).await.map_err(|error| format!("{certificate}: {error}"))?;
        let peer = Peer { certificate: Arc::clone(&certificate), fingerprint, ends_ms };
        let verdict = match valid {
            Some(valid) => Err(Refused::wrong_time(&certificate, &valid)),
            None => self.admit(&peer, place, &text).await,
        };
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
            Ok((channel, local)) => Ok(Greeted { tls, local, peer, channel }),
            Err(refused) => {
                // Its sender reads why before the connection closes.
                let _ = tls.shutdown().await;
                Err(format!("{certificate}: {refused}"))
            }
        }
    }

    async fn admit(
        &self,
        Peer { certificate, fingerprint, .. }: &Peer,
        place: &Place,
        text: &str,
    ) -> Result<(Channel, Option<UnixStream>), Refused> {
        let channel = line::parse(text)?;
        let mut allow_list = self.allow_list.clone();
        let is_known = |allowed: &Allowed| !allowed.is_unknown(certificate, *fingerprint);
        // A certificate that was issued just now is not refused for good because the list is a second old.
        let _ = tokio::time::timeout(LISTED_WITHIN, allow_list.wait_for(is_known)).await;
        allow_list.borrow().admit(certificate, *fingerprint)?;
        self.registry.may_reach(certificate, &channel)?;
        let room = match (certificate.role, &channel) {
            (PeerRole::Node, _) => Room::Nodes,
            (_, Channel::Blob(_) | Channel::Probe) => Room::Transfers,
            _ => Room::Clients,
        };
        place.authenticated(&certificate.name, room).map_err(|reason| Refused::no_room(&reason))?;
        if matches!(channel, Channel::Blob(_) | Channel::Probe) {
            return Ok((channel, None));
        }
        let path = self.sockets.dir().join(format!("{}.sock", channel.name()));
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
    /// None for a blob or a probe.
    local: Option<UnixStream>,
    peer: Peer,
    channel: Channel,
}

/// Who is at the other end.
struct Peer {
    certificate: Arc<Certificate>,
    fingerprint: Fingerprint,
    /// Milliseconds since the Unix epoch.
    ends_ms: u64,
}

/// Resolves when the wall clock shows `end_ms`.
async fn wall_clock_reaches(end_ms: u64) {
    loop {
        match end_ms.checked_sub(wall_ms()) {
            None | Some(0) => return,
            Some(left_ms) => tokio::time::sleep(VALIDITY_CHECK.min(Duration::from_millis(left_ms))).await,
        }
    }
}

/// Of one connection: longer than that of any peer of this host, see [`PeerId::is_of_gate`].
fn identity(certificate: &Certificate) -> Bytes {
    let instance = random_id().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}/{instance}", certificate.name).into()
}
