//! Tests the gate between a scheduler's sockets and peers on TCP: which peers get in, and what is rejected.

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]

mod authority;
#[path = "gate/blobs.rs"]
mod blobs;
#[path = "gate/passing.rs"]
mod passing;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use authority::Authority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use lamagrid_blobs::{BlobName, Grant, Grants, Spool, Ticket};
use lamagrid_domain::{FailureKind, LeaseToken, Role, TaskId};
use lamagrid_gate::{
    AllowList, BlobClient, BlobError, Bundle, Credentials, Dialler, Gate, GateOptions, Origin, PeerRole,
    Registry, SCHEDULER_NAME, answering, probe,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::{Frame, MAJOR, MINOR};
use lamagrid_protocol::message::{ClientReply, ClientRequest, Message, Ping, Pong};
use lamagrid_transport::link::Link;
use lamagrid_transport::request::Requester;
use lamagrid_transport::router::{Incoming, Peers, Router};
use lamagrid_transport::{ConnectionLimits, Endpoints, LaneReceiver, LaneSender, SocketError};

const SOON: Duration = Duration::from_secs(5);

/// A scheduler's `client` and `control` sockets behind a gate.
struct Host {
    authority: Authority,
    endpoints: Endpoints,
    gate: Gate,
    registry: Registry,
    grants: Grants,
    router: Router,
    spool: Spool,
    allowed: Mutex<AllowList>,
    _dir: TempDir,
}

impl Host {
    async fn start() -> Self {
        Self::with_room(256).await
    }

    async fn with_room(most: usize) -> Self {
        let (authority, dir) = (Authority::new(), TempDir::new().unwrap());
        let endpoints = Endpoints::new(dir.path());
        let router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
        let (registry, grants) = (Registry::default(), Grants::default());
        let spool = Spool::create(dir.path().join("spool")).unwrap();
        let own = authority.issue(PeerRole::Scheduler, "main", 1);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = GateOptions {
            sockets: endpoints.clone(),
            spool: spool.clone(),
            registry: registry.clone(),
            grants: grants.clone(),
            max_connections_per_peer: most,
        };
        let gate = Gate::open(address, &own, options).await.unwrap();
        Self {
            authority,
            endpoints,
            gate,
            registry,
            grants,
            router,
            spool,
            allowed: Mutex::default(),
            _dir: dir,
        }
    }

    /// Issues a certificate and puts it on the allow list.
    fn issue(&self, role: PeerRole, name: &str, days: i64) -> Credentials {
        self.allow(self.authority.issue(role, name, days))
    }

    fn allow(&self, credentials: Credentials) -> Credentials {
        let mut allowed = self.allowed.lock().unwrap();
        allowed.valid.insert(credentials.fingerprint());
        self.gate.allow(Some(allowed.clone()));
        credentials
    }

    fn dialler(&self, credentials: &Credentials, dir: &Path) -> Dialler {
        Dialler::open(credentials, &self.gate.address().to_string(), dir).unwrap()
    }

    /// Answers the next frame and returns its sender.
    async fn answer_one(&mut self) -> PeerId {
        loop {
            match tokio::time::timeout(SOON, self.router.recv()).await.expect("in time").unwrap() {
                Incoming::Gone { .. } | Incoming::Drained { .. } => {}
                Incoming::Frame { peer, frame } => {
                    let ClientRequest::Ping(Ping { seq }) = ClientRequest::from_frame(&frame).unwrap() else {
                        panic!("not a ping")
                    };
                    let pong = Pong { seq, spool: String::new(), version: String::new() };
                    let frame = ClientReply::from(pong).to_frame(vec![]).unwrap();
                    self.router.sender().send(&peer, frame);
                    return peer;
                }
            }
        }
    }
}

fn ping(seq: u64) -> Frame {
    ClientRequest::from(Ping { seq }).to_frame(vec![]).unwrap()
}

/// Sends one ping and receives its answer.
async fn exchange(host: &mut Host, dir: &Path) -> PeerId {
    let mut link = Link::connect(&Endpoints::new(dir).client(), SOON).await.unwrap();
    link.send(ping(7)).await.unwrap();
    let (peer, answer) = tokio::join!(host.answer_one(), link.recv());
    assert!(matches!(
        ClientReply::from_frame(&answer.unwrap()).unwrap(),
        ClientReply::Pong(Pong { seq: 7, .. })
    ));
    peer
}

/// Waits until the scheduler has refused this side permanently; returns the reason.
async fn refusal(
    dialler: &Dialler,
    dir: &Path,
    channel: impl Fn(&Endpoints) -> String,
) -> (FailureKind, String) {
    let mut requester = Requester::new(channel(&Endpoints::new(dir)));
    for _ in 0..50 {
        if let Some(refused) = dialler.refused() {
            return (refused.kind, refused.message);
        }
        assert!(requester.request(ping(1), Duration::from_millis(200)).await.is_err(), "it was let in");
    }
    panic!("no refusal was reported");
}

/// Waits until the scheduler has refused this side for now; returns the reason.
async fn trouble(dialler: &Dialler, dir: &Path, channel: impl Fn(&Endpoints) -> String) -> String {
    let mut requester = Requester::new(channel(&Endpoints::new(dir)));
    for _ in 0..50 {
        assert!(requester.request(ping(1), Duration::from_millis(200)).await.is_err(), "it was let in");
        if let Some(text) = dialler.trouble().text() {
            assert_eq!(dialler.refused(), None, "{text}");
            return text;
        }
    }
    panic!("no fault was reported");
}

#[tokio::test]
async fn a_peer_is_identified_by_its_certificate_not_by_its_own_identity() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let _dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let first = exchange(&mut host, dir.path()).await;
    let second = exchange(&mut host, dir.path()).await;
    assert_ne!(first, second, "each connection has its own instance");
    // The second one is still open or closing; a connection of this host has no certificate.
    let mut local = Link::connect(&host.endpoints.client(), SOON).await.unwrap();
    local.send(ping(1)).await.unwrap();
    let peer = host.answer_one().await;
    local.recv().await.unwrap();
    assert_eq!(host.registry.origin(&peer), Origin::Here);
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    link.send(ping(2)).await.unwrap();
    let peer = host.answer_one().await;
    link.recv().await.unwrap();
    let Origin::Elsewhere(certificate) = host.registry.origin(&peer) else {
        panic!("it came through the gate")
    };
    assert_eq!((certificate.role, certificate.name.as_str()), (PeerRole::Client, "web-1"));
    // A peer's last message is handled after it left: it must not be taken for one of this host.
    drop(link);
    for _ in 0..100 {
        if host.registry.origin(&peer) == Origin::Gone {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the connection is still known: {:?}", host.registry.origin(&peer));
}

/// A logout empties the runtime directory: open connections continue, and the sockets are created again.
#[tokio::test]
async fn removed_local_sockets_are_recreated_and_open_connections_continue() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let _dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    link.send(ping(1)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    let is_there = async {
        while !dir.path().join("client.sock").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, is_there).await.expect("in time");
    exchange(&mut host, dir.path()).await;
}

#[tokio::test]
async fn wrong_certificates_are_refused_with_a_remedy() {
    let host = Host::start().await;
    let other = Authority::new();
    let dir = TempDir::new().unwrap();
    let dialler = host.dialler(&other.issue(PeerRole::Client, "web-1", 1), dir.path());
    let (kind, text) = refusal(&dialler, dir.path(), Endpoints::client).await;
    assert_eq!(kind, FailureKind::InvalidInput);
    assert!(text.contains("is the bundle from its `lamagrid certs`?"), "{text}");
    let dir = TempDir::new().unwrap();
    let dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let (_, text) = refusal(&dialler, dir.path(), Endpoints::control).await;
    assert!(text.contains("role client does not open the channel control"), "{text}");
}

#[tokio::test]
async fn revocation_ends_open_connections_and_refuses_new_ones() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    link.send(ping(1)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    let all = host.allowed.lock().unwrap().clone();
    host.gate.allow(Some(AllowList { revoked: ["web-1".to_owned()].into(), ..AllowList::default() }));
    let ended = tokio::time::timeout(SOON, link.recv()).await.expect("in time");
    assert!(matches!(ended, Err(SocketError::Broken { .. })), "{ended:?}");
    let (_, text) = refusal(&dialler, dir.path(), Endpoints::client).await;
    assert!(text.contains("web-1 was revoked"), "{text}");
    host.gate.allow(Some(all));
    exchange(&mut host, dir.path()).await;
}

/// While the list cannot be read no new peer is admitted, and admitted ones stay connected.
#[tokio::test]
async fn without_a_list_open_connections_stay_and_new_ones_are_refused() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let _dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    link.send(ping(1)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    host.gate.allow(None);
    let mut other = Requester::new(Endpoints::new(dir.path()).client());
    assert!(other.request(ping(2), Duration::from_millis(500)).await.is_err(), "it was let in");
    link.send(ping(3)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    // The list is back, without this certificate.
    host.gate.allow(Some(AllowList::default()));
    let ended = tokio::time::timeout(SOON, link.recv()).await.expect("in time");
    assert!(matches!(ended, Err(SocketError::Broken { .. })), "{ended:?}");
}

/// A newer certificate of the same name that allows less replaces the older one.
#[tokio::test]
async fn a_validly_signed_certificate_that_is_not_on_the_list_is_refused() {
    let (host, dir) = (Host::start().await, TempDir::new().unwrap());
    host.issue(PeerRole::Client, "web-1", 1);
    let dialler = host.dialler(&host.authority.issue(PeerRole::Client, "web-1", 1), dir.path());
    let (kind, text) = refusal(&dialler, dir.path(), Endpoints::client).await;
    assert_eq!(kind, FailureKind::InvalidInput);
    assert!(text.contains("a newer one replaced it"), "{text}");
}

/// A connection ends with its certificate, and no session is resumed without a check of it.
#[tokio::test]
async fn a_connection_ends_when_its_certificate_does() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let pem = host.authority.pem_until(PeerRole::Client, "web-1", SystemTime::now() + Duration::from_secs(3));
    let credentials = host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
    let dialler = host.dialler(&credentials, dir.path());
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    link.send(ping(1)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    let ended = tokio::time::timeout(SOON, link.recv()).await.expect("in time");
    assert!(matches!(ended, Err(SocketError::Broken { .. })), "{ended:?}");
    let text = trouble(&dialler, dir.path(), Endpoints::client).await;
    assert!(text.contains("ask for a new bundle"), "{text}");
}

/// A session that is resumed is not verified again, so it would outlive its certificate.
#[tokio::test]
async fn sessions_are_not_resumed() {
    let host = Host::start().await;
    let pem = host.authority.pem(PeerRole::Client, "web-1", 1);
    host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates[1].clone()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    // This client would resume by default.
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificates[0].clone()], key)
            .unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..3 {
        let stream = TcpStream::connect(host.gate.address()).await.unwrap();
        let mut tls = connector.connect(SCHEDULER_NAME.try_into().unwrap(), stream).await.unwrap();
        tls.write_all(format!("lamagrid {MAJOR}.{MINOR} client\n").as_bytes()).await.unwrap();
        let mut said = [0; 8];
        tls.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"welcome ");
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

/// A scheduler of another major version refuses by itself, whatever else its gate does.
#[tokio::test]
async fn another_major_version_is_refused_with_a_remedy() {
    let (authority, dir) = (Authority::new(), TempDir::new().unwrap());
    let pem = authority.pem(PeerRole::Scheduler, "main", 1);
    let certificate = CertificateDer::pem_slice_iter(pem.as_bytes()).next().unwrap().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut tls = acceptor.accept(stream).await.unwrap();
            let mut line = [0; 64];
            let n = tls.read(&mut line).await.unwrap();
            assert!(line[..n].starts_with(b"lamagrid 1."));
            tls.write_all(b"refused incompatible you speak protocol 1.5, the scheduler 2.0: install it\n")
                .await
                .unwrap();
            tls.shutdown().await.unwrap();
        }
    });
    let credentials = authority.issue(PeerRole::Node, "gpu-1", 1);
    let dialler = Dialler::open(&credentials, &address.to_string(), dir.path()).unwrap();
    let (kind, text) = refusal(&dialler, dir.path(), Endpoints::control).await;
    // The kind decides the exit code of a node, 76.
    assert_eq!(
        (kind, text.as_str()),
        (FailureKind::Incompatible, "you speak protocol 1.5, the scheduler 2.0: install it")
    );
}

/// R4.3: certificates are replaced without a restart, and open connections continue.
#[tokio::test]
async fn both_sides_renew_their_certificates_while_running() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let (path, address) = (dir.path().join("web-1.bundle"), host.gate.address().to_string());
    let mut seconds = 0;
    let mut write = |pem: &str| {
        std::fs::write(&path, Bundle::text(&address, "a test", pem)).unwrap();
        // Two writes may fall on one tick of the file system's clock.
        seconds += 1;
        let later = std::time::SystemTime::now() + Duration::from_secs(seconds);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    };
    let pem = host.authority.pem(PeerRole::Client, "web-1", 1);
    host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
    write(&pem);
    let _dialler = Dialler::join(&Bundle::read(&path, &[PeerRole::Client]).unwrap(), dir.path()).unwrap();
    let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
    link.send(ping(1)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    // The client would refuse this certificate of the scheduler, but the open connection continues.
    let authority = Authority::new();
    host.gate.renew(&authority.issue(PeerRole::Scheduler, "main", 1)).unwrap();
    link.send(ping(2)).await.unwrap();
    host.answer_one().await;
    link.recv().await.unwrap();
    let pem = authority.pem(PeerRole::Client, "web-1", 1);
    host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
    write(&pem);
    exchange(&mut host, dir.path()).await;
    // A bundle of another name, or an invalid one, is not used.
    for wrong in [authority.pem(PeerRole::Client, "web-2", 1), "nothing".to_owned()] {
        write(&wrong);
        let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
        link.send(ping(3)).await.unwrap();
        let peer = host.answer_one().await;
        link.recv().await.unwrap();
        let Origin::Elsewhere(certificate) = host.registry.origin(&peer) else {
            panic!("it came through the gate")
        };
        assert_eq!(certificate.name, "web-1");
    }
}

#[tokio::test]
async fn a_lane_is_open_only_to_its_own_node() {
    let host = Host::start().await;
    let lane = "lane-0123456789abcdef-0";
    let address = format!("ipc://{}/{lane}.sock", host.endpoints.dir().display());
    let (connected_tx, mut connected) = tokio::sync::mpsc::unbounded_channel();
    let sender =
        LaneSender::bind(&address, &ConnectionLimits::default(), move |_| connected_tx.send(()).unwrap())
            .unwrap();
    let of_node = |name: &str| host.issue(PeerRole::Node, name, 1);
    let mine = of_node("gpu-1");
    host.registry.open_lane(lane, &mine.certificate().unwrap());
    for (credentials, may) in [(of_node("gpu-2"), false), (mine, true)] {
        let dir = TempDir::new().unwrap();
        let dialler = host.dialler(&credentials, dir.path());
        dialler.listen(lane).unwrap();
        let local = format!("ipc://{}/{lane}.sock", dir.path().display());
        let reached = LaneReceiver::connect(&local, Duration::from_secs(1)).await;
        assert_eq!(reached.is_ok(), may, "{reached:?}");
        if let Ok(mut receiver) = reached {
            tokio::time::timeout(SOON, connected.recv()).await.unwrap();
            sender.send(ping(3));
            tokio::time::timeout(SOON, receiver.recv()).await.unwrap().unwrap();
        }
    }
}

/// Connections without TLS, with oversized records or without data never reach ZeroMQ; honest peers are served meanwhile.
#[tokio::test]
async fn connections_without_tls_are_dropped() {
    let (mut host, dir) = (Host::start().await, TempDir::new().unwrap());
    let _dialler = host.dialler(&host.issue(PeerRole::Client, "web-1", 1), dir.path());
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    greeting.extend_from_slice(b"NULL");
    greeting.resize(64, 0);
    greeting.extend_from_slice(&[6, 0x40, 0, 0, 0, 0, 0, 0, 0]); // a command of 2^62 bytes
    for bytes in [&greeting[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 1 << 16], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(host.gate.address()).await.unwrap();
        // The gate may close it while this is sent.
        let _ = stream.write_all(bytes).await;
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{} bytes held the gate", bytes.len());
        exchange(&mut host, dir.path()).await;
    }
    let mut silent = TcpStream::connect(host.gate.address()).await.unwrap();
    let began = std::time::Instant::now();
    let n = tokio::time::timeout(Duration::from_secs(8), silent.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(n, Ok(0) | Err(_)));
    assert!(began.elapsed() >= Duration::from_secs(4), "a slow honest peer needs some time");
}
