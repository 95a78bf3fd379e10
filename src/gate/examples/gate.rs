//! Measures the cost of the gate on loopback: `gate [ROUNDS]` prints one JSON object for `bench/gate.py`.
//!
//! Transfers blobs of 1, 10 and 30 MB from and into a spool, compared with a plain rustls stream of the same
//! size, both on open connections; and sends a message back and forth over a Unix socket and through the
//! gate. The rounds of both alternate.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed measurement panics at the line that failed"
)]

#[path = "../tests/authority/mod.rs"]
mod authority;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use authority::Authority;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use lamagrid_blobs::{BlobName, Grant, Grants, Spool, Ticket};
use lamagrid_domain::{LeaseToken, Role, TaskId};
use lamagrid_gate::{AllowList, BlobClient, Dialler, Gate, GateOptions, PeerRole, Registry};
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::{ClientReply, ClientRequest, Message, Ping, Pong};
use lamagrid_transport::link::Link;
use lamagrid_transport::router::{Incoming, Peers, Router};
use lamagrid_transport::{ConnectionLimits, Endpoints};

const SIZES_MB: [usize; 3] = [1, 10, 30];
const PINGS: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(5);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rate of `work`, which moves `megabytes`, in MB per second.
fn rate(megabytes: usize, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    megabytes as f64 / began.elapsed().as_secs_f64()
}

/// A plain TLS 1.3 stream that returns as many bytes as requested, on one connection.
struct Raw(StreamOwned<ClientConnection, TcpStream>);

impl Raw {
    fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["raw.lamagrid".to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = params.self_signed(&key).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, server) = (listener.local_addr().unwrap(), Arc::new(server));
        std::thread::spawn(move || {
            let tls = ServerConnection::new(server).unwrap();
            let mut stream = StreamOwned::new(tls, listener.accept().unwrap().0);
            let mut asked = [0; 8];
            while stream.read_exact(&mut asked).is_ok() {
                let (mut left, chunk) = (u64::from_be_bytes(asked) as usize, vec![7; 256 * 1024]);
                while left > 0 {
                    let n = left.min(chunk.len());
                    stream.write_all(&chunk[..n]).unwrap();
                    left -= n;
                }
                stream.flush().unwrap();
            }
        });
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("raw.lamagrid").unwrap();
        let tls = ClientConnection::new(Arc::new(client), name).unwrap();
        Self(StreamOwned::new(tls, stream))
    }

    fn get(&mut self, len: usize) {
        self.0.write_all(&(len as u64).to_be_bytes()).unwrap();
        self.0.flush().unwrap();
        let mut bytes = Vec::with_capacity(len);
        (&mut self.0).take(len as u64).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), len);
    }
}

fn ping(seq: u64) -> Frame {
    ClientRequest::from(Ping { seq }).to_frame(vec![]).unwrap()
}

/// Answers every ping.
async fn answer(mut router: Router) {
    while let Some(incoming) = router.recv().await {
        let Incoming::Frame { peer, frame } = incoming else { continue };
        let Ok(ClientRequest::Ping(Ping { seq })) = ClientRequest::from_frame(&frame) else { continue };
        let pong = Pong { seq, spool: String::new(), version: String::new() };
        let frame = ClientReply::from(pong).to_frame(vec![]).unwrap();
        router.sender().send(&peer, frame);
    }
}

/// The median time of one message and its answer, in microseconds.
async fn round_trip(link: &mut Link) -> f64 {
    let mut times = Vec::with_capacity(PINGS);
    for seq in 0..PINGS as u64 {
        let began = Instant::now();
        link.send(ping(seq)).await.unwrap();
        link.recv().await.unwrap();
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    median(times)
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(5, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (authority, dir, far) =
        (Authority::new(), tempfile::tempdir_in("/tmp").unwrap(), tempfile::tempdir_in("/tmp").unwrap());
    let (near, grants) = (Endpoints::new(dir.path()), Grants::default());
    let spool = Spool::create(dir.path().join("spool")).unwrap();
    let node = authority.issue(PeerRole::Node, "gpu-1", 1);
    let (gate, dialler, mut direct, mut through) = runtime.block_on(async {
        tokio::spawn(answer(
            Router::bind(&near.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap(),
        ));
        let own = authority.issue(PeerRole::Scheduler, "main", 1);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = GateOptions {
            sockets: near.clone(),
            spool: spool.clone(),
            registry: Registry::default(),
            grants: grants.clone(),
            max_connections_per_peer: 256,
        };
        let gate = Gate::open(address, &own, options).await.unwrap();
        let client = authority.issue(PeerRole::Client, "web-1", 1);
        let valid = [client.fingerprint(), node.fingerprint()].into();
        gate.allow(Some(AllowList { valid, ..AllowList::default() }));
        let dialler = Dialler::open(&client, &gate.address().to_string(), far.path()).unwrap();
        let direct = Link::connect(&near.client(), PATIENCE).await.unwrap();
        let through = Link::connect(&Endpoints::new(far.path()).client(), PATIENCE).await.unwrap();
        (gate, dialler, direct, through)
    });
    let node_dir = tempfile::tempdir_in("/tmp").unwrap();
    let blobs: BlobClient = runtime.block_on(async {
        Dialler::open(&node, &gate.address().to_string(), node_dir.path()).unwrap().blobs()
    });
    let mut raw = Raw::start();
    let mut sizes = Vec::new();
    for megabytes in SIZES_MB {
        let task = TaskId::from_bytes([megabytes as u8; 16]);
        let bytes = vec![7; megabytes * 1_000_000];
        spool.put(task, BlobName::Role(Role::Image), &bytes).unwrap();
        let (mut get, mut put, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            // Each attempt's result is a new file: replacing one would be another measurement.
            let token = LeaseToken::from_bytes([round as u8; 16]);
            let grant = Grant { certificate: "gpu-1".into(), task, max_bytes: u64::MAX };
            grants.grant(Ticket::Attempt(token), grant);
            alone.push(rate(megabytes, || raw.get(bytes.len())));
            get.push(rate(megabytes, || {
                blobs.get(token, Role::Image, bytes.len() as u64).unwrap();
            }));
            put.push(rate(megabytes, || blobs.put(token, &bytes).unwrap()));
            spool.remove(task, BlobName::Attempt(token)).unwrap();
        }
        sizes.push(format!(
            "{{\"mb\": {megabytes}, \"get\": {:.1}, \"put\": {:.1}, \"raw\": {:.1}}}",
            median(get),
            median(put),
            median(alone)
        ));
    }
    let (mut socket, mut gated) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        socket.push(runtime.block_on(round_trip(&mut direct)));
        gated.push(runtime.block_on(round_trip(&mut through)));
    }
    println!(
        "{{\"sizes\": [{}], \"socket_us\": {:.1}, \"gate_us\": {:.1}}}",
        sizes.join(", "),
        median(socket),
        median(gated)
    );
    drop((dialler, gate));
}
