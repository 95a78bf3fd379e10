//! `lamagrid certs`: the certificates by which hosts know each other.
//!
//! Does not: talk to a running scheduler; that one looks at the folder itself, once a second.
//!
//! This module is the door for `rcgen`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde::Serialize;

use lamagrid_domain::{Owner, QueueName};
use lamagrid_gate::{
    Bundle, Certificate, Credentials, CredentialsError, PeerRole, SCHEDULER_NAME, check_name, is_node_of,
};
use lamagrid_scheduler::certs::{Certs, CertsError, Issued, write_private};

use crate::Answer;
use crate::args::{BundleArgs, IssueArgs};
use crate::error::CliError;
use crate::output::{Format, Show, columns};
use crate::units;

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const DAY: Duration = Duration::from_secs(86_400);
/// An authority that ends makes every host of its grid a stranger at once.
const AUTHORITY_DAYS: u32 = 3_650;
/// Clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// A certificate is marked in the list so long before its end.
const SOON_MS: u64 = 30 * 86_400_000;

/// Why certificates are not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error(transparent)]
    Certs(#[from] CertsError),
    #[error(
        "{0} exists already: it was made before, and what it issued would be worth nothing with another one"
    )]
    Exists(PathBuf),
    #[error("there is no authority in {0}: run `lamagrid certs init` first")]
    NoAuthority(PathBuf),
    #[error("no certificate of the name {0} was issued: see `lamagrid certs list`")]
    Unknown(String),
    #[error("the name {0} was revoked, and so would be what is issued now: choose another one")]
    Revoked(String),
    #[error("the name {} is for the programs of the scheduler's own host: choose another", Owner::LOCAL)]
    Local,
    #[error("{0}")]
    Name(String),
    #[error(
        "the name {name} is too like {other}, which was issued before: the nodes of {short} may call themselves {short}-0, \
         {short}-1 and so on; choose another name, or revoke {other}"
    )]
    Alike { name: String, other: String, short: String },
    #[error(
        "the file of the certificate {0} is not the one that was issued last: run `lamagrid certs issue` again"
    )]
    NotIssued(String),
    #[error("the certificate that was made cannot be read: {0}")]
    Credentials(#[from] CredentialsError),
    #[error("--queue is for certificates of the role node")]
    Queues,
    #[error("a scheduler's certificate is made by `lamagrid certs init`")]
    Scheduler,
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("a certificate cannot be made: {0}")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate as it is shown.
#[derive(Serialize)]
struct Row {
    name: String,
    role: PeerRole,
    queues: Vec<QueueName>,
    until_wall_ms: u64,
    revoked: bool,
    /// BLAKE3 of the valid certificates in DER, the newest last.
    fingerprints: Vec<String>,
}

struct List {
    rows: Vec<Row>,
    now_ms: u64,
}

impl Serialize for List {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rows.serialize(serializer)
    }
}

impl Show for List {
    fn table(&self) -> String {
        let row = |row: &Row| {
            let queues = row.queues.iter().map(QueueName::as_str).collect::<Vec<_>>().join(", ");
            let state = match row.until_wall_ms.checked_sub(self.now_ms) {
                _ if row.revoked => "revoked",
                _ if row.fingerprints.is_empty() => "not let in: issue it again",
                None => "over",
                Some(left) if left < SOON_MS => "ends soon",
                Some(_) => "good",
            };
            let until = units::rfc3339(row.until_wall_ms)[..10].to_owned();
            let queues = if row.role == PeerRole::Node && queues.is_empty() { "all".into() } else { queues };
            vec![row.name.clone(), row.role.to_string(), queues, until, state.into()]
        };
        columns(&["NAME", "ROLE", "QUEUES", "UNTIL", "STATE"], self.rows.iter().map(row))
    }
}

/// A file that was written.
#[derive(Serialize)]
struct Written {
    name: String,
    path: PathBuf,
    #[serde(skip)]
    text: String,
}

impl Show for Written {
    fn table(&self) -> String {
        self.text.clone()
    }
}

/// The certificates of a data directory.
pub(crate) struct Desk {
    certs: Certs,
    format: Format,
}

impl Desk {
    pub(crate) fn new(data_dir: &Path, format: Format) -> Self {
        Self { certs: Certs::of(data_dir), format }
    }

    /// `lamagrid certs init`
    pub(crate) fn init(&self) -> Result<Answer, CliError> {
        let path = self.certs.dir().join(AUTHORITY);
        if path.exists() {
            return Err(CertificateError::Exists(path).into());
        }
        let key = KeyPair::generate().map_err(CertificateError::from)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "LamaGrid authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, AUTHORITY_DAYS);
        let pem = params.self_signed(&key).map_err(CertificateError::from)?.pem();
        let authority = Authority { issuer: Issuer::new(params, key), pem };
        // The authority last: without it, another `init` begins anew.
        let own = authority.issue(PeerRole::Scheduler, "scheduler", &[], AUTHORITY_DAYS)?;
        self.certs.write(&self.certs.own(), own.as_bytes()).map_err(CertificateError::from)?;
        let key = authority.issuer.key().serialize_pem();
        self.certs
            .write(&self.certs.dir().join(AUTHORITY_KEY), key.as_bytes())
            .map_err(CertificateError::from)?;
        self.certs.record(&[]).map_err(CertificateError::from)?;
        self.certs.write(&path, authority.pem.as_bytes()).map_err(CertificateError::from)?;
        let text = format!(
            "made an authority and the scheduler's certificate in {}\nnext: lamagrid certs issue --role node --name gpu-1",
            self.certs.dir().display()
        );
        self.written("scheduler", self.certs.own(), text)
    }

    /// `lamagrid certs renew`
    pub(crate) fn renew(&self) -> Result<Answer, CliError> {
        let own = self.authority()?.issue(PeerRole::Scheduler, "scheduler", &[], AUTHORITY_DAYS)?;
        self.certs.write(&self.certs.own(), own.as_bytes()).map_err(CertificateError::from)?;
        let text =
            "made the scheduler's certificate anew: a running scheduler shows it within a second, and open \
                    connections go on"
                .to_owned();
        self.written("scheduler", self.certs.own(), text)
    }

    /// `lamagrid certs issue`
    pub(crate) fn issue(&self, args: &IssueArgs) -> Result<Answer, CliError> {
        if args.role == PeerRole::Scheduler {
            return Err(CertificateError::Scheduler.into());
        }
        if args.role != PeerRole::Node && !args.queue.is_empty() {
            return Err(CertificateError::Queues.into());
        }
        check_name(&args.name).map_err(CertificateError::Name)?;
        if args.name == Owner::LOCAL {
            return Err(CertificateError::Local.into());
        }
        let authority = self.authority()?;
        let _lock = self.certs.lock().map_err(CertificateError::from)?;
        let mut issued = self.issued()?;
        if issued.iter().any(|each| each.name == args.name && each.revoked) {
            return Err(CertificateError::Revoked(args.name.clone()).into());
        }
        if args.role == PeerRole::Node {
            check_unlike(&args.name, &issued)?;
        }
        let pem = authority.issue(args.role, &args.name, &args.queue, args.days)?;
        let fingerprint =
            Credentials::from_pem(pem.as_bytes()).map_err(CertificateError::from)?.fingerprint();
        let file = self.certs.of_holder(&args.name);
        self.certs.write(&file, pem.as_bytes()).map_err(CertificateError::from)?;
        let before = issued.iter().position(|each| each.name == args.name).map(|at| issued.remove(at));
        let (mut fingerprints, ended) = match before {
            Some(before) if before.is_covered_by(args.role, &args.queue) => (before.fingerprints, false),
            Some(_) => (Vec::new(), true),
            None => (Vec::new(), false),
        };
        fingerprints.push(fingerprint);
        let until = SystemTime::now() + DAY * args.days;
        issued.push(Issued {
            name: args.name.clone(),
            role: args.role,
            queues: args.queue.clone(),
            until_wall_ms: units::wall_ms(until),
            revoked: false,
            fingerprints,
        });
        self.certs.record(&issued).map_err(CertificateError::from)?;
        let ended = if ended {
            "\nthe older certificate may do what this one may not, so that it is refused from now on"
        } else {
            ""
        };
        let text = format!(
            "issued a certificate for the {} {}, for {} days{ended}\nnext: lamagrid certs bundle {} --scheduler HOST:PORT",
            args.role, args.name, args.days, args.name
        );
        self.written(&args.name, file, text)
    }

    /// `lamagrid certs list`
    pub(crate) fn list(&self) -> Result<Answer, CliError> {
        let row = |Issued { name, role, queues, until_wall_ms, revoked, fingerprints }| Row {
            name,
            role,
            queues,
            until_wall_ms,
            revoked,
            fingerprints: fingerprints.iter().map(ToString::to_string).collect(),
        };
        let rows = self.issued()?.into_iter().map(row).collect();
        let list = List { rows, now_ms: units::wall_ms(SystemTime::now()) };
        self.format.render(&list).map(Answer::ok)
    }

    /// `lamagrid certs revoke`
    pub(crate) fn revoke(&self, name: &str) -> Result<Answer, CliError> {
        let _lock = self.certs.lock().map_err(CertificateError::from)?;
        let mut issued = self.issued()?;
        let found = issued.iter_mut().find(|each| each.name == name);
        found.ok_or_else(|| CertificateError::Unknown(name.to_owned()))?.revoked = true;
        self.certs.record(&issued).map_err(CertificateError::from)?;
        let text = format!("revoked {name}: a running scheduler closes its connections within a second");
        self.written(name, self.certs.dir().to_owned(), text)
    }

    /// `lamagrid certs bundle`
    pub(crate) fn bundle(&self, args: &BundleArgs) -> Result<Answer, CliError> {
        let issued = self.issued()?;
        let unknown = || CertificateError::Unknown(args.name.clone());
        let entry = issued.iter().find(|each| each.name == args.name).ok_or_else(unknown)?;
        if entry.revoked {
            return Err(CertificateError::Revoked(args.name.clone()).into());
        }
        let pem = read(&self.certs.of_holder(&args.name))?;
        let fingerprint =
            Credentials::from_pem(pem.as_bytes()).map_err(CertificateError::from)?.fingerprint();
        if entry.fingerprints.last() != Some(&fingerprint) {
            return Err(CertificateError::NotIssued(args.name.clone()).into());
        }
        let until = &units::rfc3339(entry.until_wall_ms)[..10];
        let about = format!(
            "LamaGrid: the {} {}, until {until}. Whoever has this file is that {}: keep it secret.",
            entry.role, entry.name, entry.role
        );
        let bundle = Bundle::text(&args.scheduler, &about, &pem);
        let to = args.out.clone().unwrap_or_else(|| format!("{}.bundle", args.name).into());
        write_private(&to, bundle.as_bytes()).map_err(CertificateError::from)?;
        let command = match entry.role {
            PeerRole::Node | PeerRole::Scheduler => "lamagrid-node --join",
            PeerRole::Client => "lama-cleaner-grid --grid-join",
            PeerRole::Admin => "lamagrid node list --join",
        };
        let shown = to.display();
        let text = format!("wrote {shown}, readable by you alone\nnext, on its host: {command} {shown}");
        self.written(&args.name, to, text)
    }

    fn issued(&self) -> Result<Vec<Issued>, CertificateError> {
        self.certs.issued().map_err(|error| match error {
            CertsError::NoLedger(_) if !self.certs.dir().join(AUTHORITY).exists() => {
                CertificateError::NoAuthority(self.certs.dir().to_owned())
            }
            error => error.into(),
        })
    }

    fn authority(&self) -> Result<Authority, CertificateError> {
        let dir = self.certs.dir();
        let (pem, key) = (dir.join(AUTHORITY), dir.join(AUTHORITY_KEY));
        if !pem.exists() {
            return Err(CertificateError::NoAuthority(dir.to_owned()));
        }
        let pem = read(&pem)?;
        let key = KeyPair::from_pem(&read(&key)?)?;
        Ok(Authority { issuer: Issuer::from_ca_cert_pem(&pem, key)?, pem })
    }

    fn written(&self, name: &str, path: PathBuf, text: String) -> Result<Answer, CliError> {
        self.format.render(&Written { name: name.to_owned(), path, text }).map(Answer::ok)
    }
}

fn read(path: &Path) -> Result<String, CertificateError> {
    std::fs::read_to_string(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
}

/// Refuses a node's name that could also be the name of a node of another certificate: those may append a number.
fn check_unlike(name: &str, issued: &[Issued]) -> Result<(), CertificateError> {
    let others = issued.iter().filter(|each| each.role == PeerRole::Node && !each.revoked);
    for other in others {
        let short = [(name, other.name.as_str()), (other.name.as_str(), name)]
            .into_iter()
            .find(|(long, short)| is_node_of(long, short))
            .map(|(_, short)| short.to_owned());
        if let Some(short) = short.filter(|_| other.name != name) {
            return Err(CertificateError::Alike { name: name.to_owned(), other: other.name.clone(), short });
        }
    }
    Ok(())
}

fn valid(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * days).into();
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Certificate, key and the authority's certificate, in PEM.
    fn issue(
        &self,
        role: PeerRole,
        name: &str,
        queues: &[QueueName],
        days: u32,
    ) -> Result<String, CertificateError> {
        let uri = Certificate { role, name: name.to_owned(), queues: queues.to_vec() }.uri();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = if role == PeerRole::Scheduler {
            params.subject_alt_names.push(SanType::DnsName(SCHEDULER_NAME.try_into()?));
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        } else {
            vec![ExtendedKeyUsagePurpose::ClientAuth]
        };
        valid(&mut params, days);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok([certificate.pem(), key.serialize_pem(), self.pem.clone()].concat())
    }
}
