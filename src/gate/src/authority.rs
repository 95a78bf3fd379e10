//! The authority of a grid: makes certificates and records them in the ledger.
//!
//! Does not: talk to a running scheduler, which reads the ledger again once a second.
//!
//! This module is the door for `rcgen`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use lamagrid_domain::{Owner, QueueName};
use lamagrid_process::wall_clock::wall_ms;

use crate::certificate::{Certificate, CredentialsError, PeerRole, SCHEDULER_NAME, check_name, is_node_of};
use crate::credentials::Credentials;
use crate::ledger::{Certs, CertsError, Issued};

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const DAY: Duration = Duration::from_secs(86_400);
/// When an authority ends, all hosts of its grid become strangers at once.
const AUTHORITY_DAYS: u32 = 3_650;
/// Clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(3_600);

/// Why certificates are not made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The ledger or a file of the folder.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// `init` for a second time.
    #[error(
        "{0} exists already: it was made before, and what it issued would be worth nothing with another one"
    )]
    Exists(PathBuf),
    /// Before `init`.
    #[error("there is no authority in {0}: run `lamagrid certs init` first")]
    NoAuthority(PathBuf),
    /// No such name in the ledger.
    #[error("no certificate of the name {0} was issued: see `lamagrid certs list`")]
    Unknown(String),
    /// A revoked name is never valid again.
    #[error("the name {0} was revoked, and so would be what is issued now: choose another one")]
    Revoked(String),
    /// The owner of the scheduler's own host.
    #[error("the name {} is for the programs of the scheduler's own host: choose another", Owner::LOCAL)]
    Local,
    /// Not a name.
    #[error("{0}")]
    Name(String),
    /// Two certificates would be valid for one node's name.
    #[error(
        "the name {name} is too like {other}, which was issued before: the nodes of {short} may call themselves {short}-0, \
         {short}-1 and so on; choose another name, or revoke {other}"
    )]
    Alike {
        /// The name that was asked for.
        name: String,
        /// The one of an earlier certificate.
        other: String,
        /// The shorter one of both.
        short: String,
    },
    /// The file is older than the ledger's entry.
    #[error(
        "the file of the certificate {0} is not the one that was issued last: run `lamagrid certs issue` again"
    )]
    NotIssued(String),
    /// A file that was just written.
    #[error("the certificate that was made cannot be read: {0}")]
    Credentials(#[from] CredentialsError),
    /// Queues for a role that serves none.
    #[error("--queue is for certificates of the role node")]
    Queues,
    /// `issue` with the scheduler's role.
    #[error("a scheduler's certificate is made by `lamagrid certs init`")]
    Scheduler,
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The encoder's error.
    #[error("a certificate cannot be made: {0}")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate to issue.
#[derive(Debug, Clone)]
pub struct NewCertificate {
    /// What its holder may do.
    pub role: PeerRole,
    /// Its name.
    pub name: String,
    /// For a node: the queues that it may serve; empty for all.
    pub queues: Vec<QueueName>,
    /// How long it is valid.
    pub days: u32,
}

/// What became of older certificates of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// They stay valid until their end, or there are none.
    StayValid,
    /// They allow more than the new one, so they are refused from now on.
    Refused,
}

impl Certs {
    /// Makes an authority and the scheduler's certificate.
    ///
    /// # Errors
    /// [`CertificateError::Exists`] if there is one; any other error leaves no authority, so that it can be called again.
    pub fn init(&self) -> Result<(), CertificateError> {
        let path = self.dir().join(AUTHORITY);
        if path.exists() {
            return Err(CertificateError::Exists(path));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "LamaGrid authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_DAYS);
        let pem = params.self_signed(&key)?.pem();
        let authority = Authority { issuer: Issuer::new(params, key), pem };
        let own = authority.issue(&scheduler())?;
        self.write(&self.own(), own.as_bytes())?;
        let key = authority.issuer.key().serialize_pem();
        self.write(&self.dir().join(AUTHORITY_KEY), key.as_bytes())?;
        self.record(&[])?;
        // Last: without it, another `init` starts again.
        Ok(self.write(&path, authority.pem.as_bytes())?)
    }

    /// Makes a new certificate for the scheduler.
    ///
    /// # Errors
    /// [`CertificateError`]; the old one stays.
    pub fn renew(&self) -> Result<(), CertificateError> {
        let own = self.authority()?.issue(&scheduler())?;
        Ok(self.write(&self.own(), own.as_bytes())?)
    }

    /// Makes a certificate and records it. Its file is [`Certs::of_holder`].
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn issue(&self, new: &NewCertificate) -> Result<Older, CertificateError> {
        if new.role == PeerRole::Scheduler {
            return Err(CertificateError::Scheduler);
        }
        if new.role != PeerRole::Node && !new.queues.is_empty() {
            return Err(CertificateError::Queues);
        }
        check_name(&new.name).map_err(CertificateError::Name)?;
        if new.name == Owner::LOCAL {
            return Err(CertificateError::Local);
        }
        let authority = self.authority()?;
        let _lock = self.lock()?;
        let mut issued = self.all_issued()?;
        if issued.iter().any(|each| each.name == new.name && each.revoked) {
            return Err(CertificateError::Revoked(new.name.clone()));
        }
        if new.role == PeerRole::Node {
            check_unlike(&new.name, &issued)?;
        }
        let pem = authority.issue(new)?;
        let fingerprint = Credentials::from_pem(pem.as_bytes())?.fingerprint();
        self.write(&self.of_holder(&new.name), pem.as_bytes())?;
        let before = issued.iter().position(|each| each.name == new.name).map(|at| issued.remove(at));
        let (mut fingerprints, older) = match before {
            Some(before) if before.is_covered_by(new.role, &new.queues) => {
                (before.fingerprints, Older::StayValid)
            }
            Some(_) => (Vec::new(), Older::Refused),
            None => (Vec::new(), Older::StayValid),
        };
        fingerprints.push(fingerprint);
        issued.push(Issued {
            name: new.name.clone(),
            role: new.role,
            queues: new.queues.clone(),
            until_wall_ms: wall_ms() + (DAY * new.days).as_millis() as u64,
            revoked: false,
            fingerprints,
        });
        self.record(&issued)?;
        Ok(older)
    }

    /// Revokes all certificates of a name for good.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn revoke(&self, name: &str) -> Result<(), CertificateError> {
        let _lock = self.lock()?;
        let mut issued = self.all_issued()?;
        let found = issued.iter_mut().find(|each| each.name == name);
        found.ok_or_else(|| CertificateError::Unknown(name.to_owned()))?.revoked = true;
        Ok(self.record(&issued)?)
    }

    /// The newest certificate of a name: its entry, and its file's content.
    ///
    /// # Errors
    /// [`CertificateError`] if it was revoked, or its file is another one.
    pub fn newest(&self, name: &str) -> Result<(Issued, String), CertificateError> {
        let unknown = || CertificateError::Unknown(name.to_owned());
        let entry = self.all_issued()?.into_iter().find(|each| each.name == name).ok_or_else(unknown)?;
        if entry.revoked {
            return Err(CertificateError::Revoked(name.to_owned()));
        }
        let pem = read(&self.of_holder(name))?;
        let fingerprint = Credentials::from_pem(pem.as_bytes())?.fingerprint();
        if entry.fingerprints.last() != Some(&fingerprint) {
            return Err(CertificateError::NotIssued(name.to_owned()));
        }
        Ok((entry, pem))
    }

    /// All entries of the ledger, oldest first.
    ///
    /// # Errors
    /// [`CertificateError::NoAuthority`] before `init`; [`CertsError`].
    pub fn all_issued(&self) -> Result<Vec<Issued>, CertificateError> {
        self.issued().map_err(|error| match error {
            CertsError::NoLedger(_) if !self.dir().join(AUTHORITY).exists() => {
                CertificateError::NoAuthority(self.dir().to_owned())
            }
            error => error.into(),
        })
    }

    fn authority(&self) -> Result<Authority, CertificateError> {
        let dir = self.dir();
        let (pem, key) = (dir.join(AUTHORITY), dir.join(AUTHORITY_KEY));
        if !pem.exists() {
            return Err(CertificateError::NoAuthority(dir.to_owned()));
        }
        let pem = read(&pem)?;
        let key = KeyPair::from_pem(&read(&key)?)?;
        Ok(Authority { issuer: Issuer::from_ca_cert_pem(&pem, key)?, pem })
    }
}

fn scheduler() -> NewCertificate {
    NewCertificate {
        role: PeerRole::Scheduler,
        name: "scheduler".to_owned(),
        queues: Vec::new(),
        days: AUTHORITY_DAYS,
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

fn set_validity(params: &mut CertificateParams, days: u32) {
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
    fn issue(&self, new: &NewCertificate) -> Result<String, CertificateError> {
        let NewCertificate { role, name, queues, days } = new;
        let uri = Certificate { role: *role, name: name.clone(), queues: queues.clone() }.uri();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = if *role == PeerRole::Scheduler {
            params.subject_alt_names.push(SanType::DnsName(SCHEDULER_NAME.try_into()?));
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        } else {
            vec![ExtendedKeyUsagePurpose::ClientAuth]
        };
        set_validity(&mut params, *days);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok([certificate.pem(), key.serialize_pem(), self.pem.clone()].concat())
    }
}
