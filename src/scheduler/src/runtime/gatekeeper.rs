//! Opens the scheduler's gate with its certificates, and tells it which certificate may use which lanes and
//! blobs.
//!
//! Does not: relay bytes. The gate has threads of its own, so that encryption never delays the core.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use lamagrid_blobs::{Grant, Grants, Spool, Ticket};
use lamagrid_config::Config;
use lamagrid_domain::{Failure, FailureKind, LeaseToken, Owner, QueueName, SessionId, TaskId};
use lamagrid_gate::{
    Certificate, CertificateFile, Certs, Credentials, CredentialsError, Gate, GateOptions, Origin, PeerRole,
    Registry, allow_list, is_node_of,
};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{ClientReply, ClientRequest, Hello, LaneAddress};
use lamagrid_transport::Endpoints;

use super::SchedulerError;
use crate::core::{Authority, StoredTask};

/// Threads that encrypt; one full stream needs less than one.
const THREADS: usize = 2;
/// How often the list of certificates is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Interval between warnings about a certificate. They start [`ENDS_SOON_MS`] before its end.
const LOG_EVERY: Duration = Duration::from_secs(6 * 3_600);
const ENDS_SOON_MS: u64 = 30 * 86_400_000;
/// Shortest interval between two log lines about an unreadable list of certificates.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 86_400_000;
/// Upper bound of a result's bytes per pixel, with room for a file that compresses badly.
const RESULT_BYTES_PER_PIXEL: u64 = 8;

pub(super) struct Gatekeeper {
    gate: Gate,
    certs: Certs,
    registry: Registry,
    grants: Grants,
    /// Certificates of sessions from other hosts.
    sessions: HashMap<SessionId, Arc<Certificate>>,
    max_result_bytes: u64,
    /// The scheduler's own certificate, and its end (ms since the Unix epoch).
    own: CertificateFile,
    own_ends_ms: u64,
    /// Names and ends of the other certificates.
    ends: Vec<(String, u64)>,
    /// When the list was last logged as unreadable; `None` while it can be read.
    unreadable: Option<Instant>,
    looked: Instant,
    last_logged: Option<Instant>,
    runtime: Option<Runtime>,
}

impl Gatekeeper {
    /// Opens the gate, if one is configured. Grants the owners in `owned` access to their results again: they
    /// may have been told of them before this start and not have fetched them yet.
    pub(super) async fn open(
        config: &Config,
        data_dir: &Path,
        endpoints: &Endpoints,
        spool: &Spool,
        owned: Vec<(TaskId, Owner)>,
    ) -> Result<Option<Self>, SchedulerError> {
        if config.gate.listen.is_empty() {
            return Ok(None);
        }
        let address = config.gate.listen.parse().expect("the configuration checked it");
        let certs = Certs::of(data_dir);
        let own = CertificateFile::new(certs.own());
        let OwnCertificate { credentials, ends_ms } = read_own(own.path())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("gate")
            .enable_all()
            .build()?;
        let (registry, grants) = (Registry::default(), Grants::default());
        let options = GateOptions {
            sockets: endpoints.clone(),
            spool: spool.clone(),
            registry: registry.clone(),
            grants: grants.clone(),
            max_connections_per_peer: config.gate.max_connections_per_peer,
        };
        let opening = runtime.spawn(async move { Gate::open(address, &credentials, options).await });
        let gate = opening.await.map_err(std::io::Error::other)??;
        tracing::info!(address = %gate.address(), "the gate is open to other hosts");
        let mut keeper = Self {
            gate,
            certs,
            registry,
            grants,
            sessions: HashMap::new(),
            max_result_bytes: config.limits.max_pixels.saturating_mul(RESULT_BYTES_PER_PIXEL),
            own,
            own_ends_ms: ends_ms,
            ends: Vec::new(),
            unreadable: None,
            looked: Instant::now(),
            last_logged: None,
            runtime: Some(runtime),
        };
        for (task, owner) in owned {
            let grant = Grant { certificate: owner.as_str().to_owned(), task, max_bytes: 0 };
            keeper.grants.grant(Ticket::Result(task), grant);
        }
        if let Err(error) = keeper.certs.migrate() {
            tracing::debug!(%error, "the list of certificates stays as it is");
        }
        keeper.refresh();
        Ok(Some(keeper))
    }

    /// Reads the list of certificates again, once a second.
    pub(super) fn on_tick(&mut self) {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.refresh();
        }
    }

    /// Ends of the scheduler's own certificate and of all that are not revoked, in milliseconds since the
    /// Unix epoch.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&str, u64)> {
        let others = self.ends.iter().map(|(name, ends_ms)| (name.as_str(), *ends_ms));
        std::iter::once(("scheduler", self.own_ends_ms)).chain(others)
    }

    /// True while the list of certificates can be read.
    pub(super) fn has_ledger(&self) -> bool {
        self.unreadable.is_none()
    }

    /// Starts to use a new certificate of the scheduler if its file has changed.
    fn renew(&mut self) {
        let gate = &self.gate;
        let renewed = self.own.renewed(|path| {
            let OwnCertificate { credentials, ends_ms } = read_own(path)?;
            let used = gate.renew(&credentials);
            used.map_err(|source| SchedulerError::Certificate { path: path.to_owned(), source })?;
            Ok::<_, SchedulerError>(ends_ms)
        });
        self.own_ends_ms = renewed.unwrap_or(self.own_ends_ms);
    }

    fn refresh(&mut self) {
        self.renew();
        let issued = match self.certs.issued() {
            Ok(issued) => issued,
            Err(error) => {
                // Revoked certificates stay revoked, and no new connection is accepted.
                self.gate.allow(None);
                if self.unreadable.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                    self.unreadable = Some(Instant::now());
                    tracing::error!(%error, "the gate lets in no new connection");
                }
                return;
            }
        };
        if self.unreadable.take().is_some() {
            tracing::info!("the list of certificates can be read again");
        }
        self.gate.allow(Some(allow_list(&issued)));
        let good = issued.iter().filter(|each| !each.revoked);
        self.ends = good.clone().map(|each| (each.name.clone(), each.until_wall_ms)).collect();
        if self.last_logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        self.last_logged = Some(Instant::now());
        let now_ms = wall_ms();
        for each in good.filter(|each| each.fingerprints.is_empty()) {
            tracing::warn!(
                certificate = each.name,
                "its file is gone, so that it is not let in: issue it again"
            );
        }
        for (name, ends_ms) in self.ends() {
            let left_ms = ends_ms.saturating_sub(now_ms);
            if left_ms < ENDS_SOON_MS {
                let days = left_ms / DAY_MS;
                tracing::warn!(
                    certificate = name,
                    days,
                    "a certificate ends soon: lamagrid certs issue, or renew"
                );
            }
        }
    }

    /// True if a connection comes, or came, from another host.
    pub(super) fn is_far(&self, peer: &PeerId) -> bool {
        self.registry.origin(peer) != Origin::Here
    }

    /// Compares a node's name and queues with its certificate, and removes the queues that it may not serve. Returns the
    /// queues of the certificate, among which the scheduler chooses; empty for all.
    pub(super) fn check(&self, peer: &PeerId, hello: &mut Hello) -> Result<Vec<QueueName>, Failure> {
        let certificate = match self.registry.origin(peer) {
            Origin::Here => return Ok(Vec::new()),
            Origin::Elsewhere(certificate) => certificate,
            Origin::Gone => return Err(Failure::new(FailureKind::Disconnected, "the connection has closed")),
        };
        let refused = |text: String| {
            tracing::warn!(peer = %certificate, reason = text, "a node was refused");
            Err(Failure::new(FailureKind::InvalidInput, text))
        };
        let name = hello.info.name.as_str();
        if !is_node_of(name, &certificate.name) {
            return refused(format!(
                "the node calls itself {name}, but its certificate is for {0}: leave --name out, or issue one for {name}",
                certificate.name
            ));
        }
        if !certificate.queues.is_empty() && !hello.info.models.is_empty() {
            hello.info.models.retain(|offer| offer.routed || certificate.queues.contains(&offer.queue));
            if hello.info.models.is_empty() {
                return refused(format!(
                    "the certificate {} is for other queues than those of the node's models: issue it with --queue",
                    certificate.name
                ));
            }
        }
        Ok(certificate.queues.clone())
    }

    /// Opens the lanes of a newly welcomed session from another host.
    pub(super) fn welcomed(&mut self, peer: &PeerId, session: SessionId, lanes: &[LaneAddress]) {
        let Origin::Elsewhere(certificate) = self.registry.origin(peer) else { return };
        for lane in lanes.iter().filter_map(|lane| Endpoints::lane_name(&lane.address)) {
            self.registry.open_lane(lane, &certificate);
        }
        self.sessions.insert(session, certificate);
    }

    /// Closes the lanes of a session that has ended.
    pub(super) fn closed(&mut self, session: SessionId, lanes: impl Iterator<Item = String>) {
        if self.sessions.remove(&session).is_some() {
            lanes.for_each(|address| {
                if let Some(lane) = Endpoints::lane_name(&address) {
                    self.registry.close_lane(lane);
                }
            });
        }
    }

    /// Lets the session's node read an attempt's inputs and write its result.
    pub(super) fn assigned(&self, session: SessionId, token: LeaseToken, task: TaskId) {
        if let Some(certificate) = self.sessions.get(&session) {
            self.grant(certificate, token, task);
        }
    }

    /// Grants the same access for an attempt that a node still holds when it reconnects.
    pub(super) fn adopted(&self, peer: &PeerId, token: LeaseToken, task: TaskId) {
        if let Origin::Elsewhere(certificate) = self.registry.origin(peer) {
            self.grant(&certificate, token, task);
        }
    }

    fn grant(&self, certificate: &Certificate, token: LeaseToken, task: TaskId) {
        let certificate = certificate.name.clone();
        let grant = Grant { certificate, task, max_bytes: self.max_result_bytes };
        self.grants.grant(Ticket::Attempt(token), grant);
    }

    /// True if a peer's requests may name this owner.
    pub(super) fn may_speak_for(&self, peer: &PeerId, owner: &Owner) -> bool {
        match self.registry.origin(peer) {
            Origin::Here => true,
            Origin::Elsewhere(certificate) => certificate.name == owner.as_str(),
            Origin::Gone => false,
        }
    }

    /// Checks whether a client may send this request: on another host, a client owns the tasks whose owner is
    /// its certificate's name.
    ///
    /// # Errors
    /// The refused request's number and the refusal; `None` if the client has left or the request has no
    /// answer.
    pub(super) fn authorize(
        &self,
        peer: &PeerId,
        request: &ClientRequest,
    ) -> Result<Authority, Option<(u64, String)>> {
        let certificate = match self.registry.origin(peer) {
            Origin::Here => return Ok(Authority::Administrator),
            Origin::Elsewhere(certificate) => certificate,
            Origin::Gone => return Err(None),
        };
        if let Some((seq, owner)) = owner_of(request)
            && owner.as_str() != certificate.name
        {
            let text = format!(
                "the certificate {0} has the tasks of the owner {0}, not those of {owner}",
                certificate.name
            );
            tracing::warn!(peer = %certificate, reason = text, "a request was refused");
            return Err(seq.map(|seq| (seq, text)));
        }
        if let ClientRequest::Submit(submit) = request {
            // Its inputs must be complete by now; to bring others, the client has to offer the task again.
            self.grants.withdraw_inputs(submit.spec.id, &certificate.name);
        }
        Ok(match certificate.role {
            PeerRole::Admin => Authority::Administrator,
            PeerRole::Client | PeerRole::Node | PeerRole::Scheduler => Authority::Client,
        })
    }

    /// Lets an owner upload the inputs of a task that it has offered; owners on this host need no grant.
    pub(super) fn upload_opens(&self, owner: &Owner, task: TaskId, max_bytes: u64) {
        if *owner != Owner::local() {
            let grant = Grant { certificate: owner.as_str().to_owned(), task, max_bytes };
            self.grants.grant(Ticket::Inputs(task), grant);
        }
    }

    /// Ends an upload: no more inputs are accepted for the task.
    pub(super) fn upload_closes(&self, owner: &Owner, task: TaskId) {
        self.grants.withdraw_inputs(task, owner.as_str());
    }

    /// Lets a client fetch the result of the outcome that it is about to receive.
    pub(super) fn answering(&self, peer: &PeerId, reply: &ClientReply) {
        let ClientReply::Outcome(outcome) = reply else { return };
        if let (Origin::Elsewhere(certificate), Some(_)) = (self.registry.origin(peer), &outcome.result) {
            let (certificate, task) = (certificate.name.clone(), outcome.task.id);
            self.grants.grant(Ticket::Result(task), Grant { certificate, task, max_bytes: 0 });
        }
    }

    /// Withdraws the grants of a finished task's attempts.
    pub(super) fn ended(&self, task: TaskId) {
        self.grants.withdraw_attempts(task);
    }

    /// Withdraws the grant of a result that was deleted.
    pub(super) fn forgotten(&self, task: TaskId) {
        self.grants.withdraw_result(task);
    }
}

/// The content of the scheduler's certificate file.
struct OwnCertificate {
    credentials: Credentials,
    ends_ms: u64,
}

fn read_own(path: &Path) -> Result<OwnCertificate, SchedulerError> {
    let pem = std::fs::read(path)
        .map_err(|source| SchedulerError::NoCertificate { path: path.to_owned(), source })?;
    let read = || -> Result<OwnCertificate, CredentialsError> {
        let credentials = Credentials::from_pem(&pem)?;
        let (_, ends_ms) = credentials.validity()?;
        Ok(OwnCertificate { credentials, ends_ms })
    };
    read().map_err(|source| SchedulerError::Certificate { path: path.to_owned(), source })
}

/// Results in the spool whose owners are certificates.
pub(super) fn results_elsewhere(tasks: &[StoredTask]) -> Vec<(TaskId, Owner)> {
    let owned = tasks.iter().filter_map(|task| match task {
        StoredTask::Ended { id, ended } if ended.result.is_some() && !ended.inline => {
            Some((*id, ended.owner.clone()))
        }
        StoredTask::Ended { .. } | StoredTask::Live { .. } => None,
    });
    owned.filter(|(_, owner)| owner.as_str() != Owner::LOCAL).collect()
}

/// The request's number, if it has one, and the owner that it names; `None` if it names no owner.
fn owner_of(request: &ClientRequest) -> Option<(Option<u64>, &Owner)> {
    match request {
        ClientRequest::Offer(said) => Some((Some(said.seq), &said.owner)),
        ClientRequest::Submit(said) => Some((Some(said.seq), &said.spec.owner)),
        ClientRequest::Attach(said) => Some((Some(said.seq), &said.owner)),
        ClientRequest::Cancel(said) => Some((Some(said.seq), &said.owner)),
        ClientRequest::Query(said) => Some((Some(said.seq), &said.owner)),
        ClientRequest::Release(said) => Some((None, &said.owner)),
        ClientRequest::Ping(_) | ClientRequest::GetGridStatus(_) => None,
    }
}

impl Drop for Gatekeeper {
    fn drop(&mut self) {
        // Called inside another runtime, where waiting would block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
