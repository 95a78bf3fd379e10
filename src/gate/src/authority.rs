//! Issues a grid's certificates and records them in the ledger.
//!
//! Does not: contact a running scheduler, which reads the ledger once per second.
//!
//! This module is the only one that uses `rcgen`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use lamagrid_domain::{Owner, QueueName};
use lamagrid_process::wall_clock::wall_ms;

use crate::certificate::{
    Certificate, CredentialsError, IdentityError, PeerRole, SCHEDULER_NAME, check_name, is_node_of,
};
use crate::credentials::Credentials;
use crate::ledger::{Certs, CertsError, Issued};

const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const DAY: Duration = Duration::from_secs(86_400);
/// Validity of the authority. When it ends, all certificates of the grid become invalid at once.
const AUTHORITY_DAYS: u32 = 3_650;
/// Certificates are valid from this long before their creation, because the clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(3_600);

/// Why a certificate could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The ledger or another file of the folder cannot be read or written.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// `init` was called before.
    #[error(
        "{0} exists already: it was made before, and what it issued would be worth nothing with another one"
    )]
    Exists(PathBuf),
    /// `init` was not called yet.
    #[error("there is no authority in {0}: run `lamagrid certs init` first")]
    NoAuthority(PathBuf),
    /// The ledger has no such name.
    #[error("no certificate of the name {0} was issued: see `lamagrid certs list`")]
    Unknown(String),
    /// The name was revoked; it is never valid again.
    #[error("the name {0} was revoked, and so would be what is issued now: choose another one")]
    Revoked(String),
    /// The name is reserved for the owner on the scheduler's own host.
    #[error("the name {} is for the programs of the scheduler's own host: choose another", Owner::LOCAL)]
    Local,
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] IdentityError),
    /// A node's name would be valid under two certificates.
    #[error(
        "the name {name} is too like {other}, which was issued before: the nodes of {short} may call themselves {short}-0, \
         {short}-1 and so on; choose another name, or revoke {other}"
    )]
    Alike {
        /// The requested name.
        name: String,
        /// The conflicting name of an earlier certificate.
        other: String,
        /// The shorter of the two names.
        short: String,
    },
    /// The certificate's file is older than the ledger's entry.
    #[error(
        "the file of the certificate {0} is not the one that was issued last: run `lamagrid certs issue` again"
    )]
    NotIssued(String),
    /// The new certificate cannot be read back.
    #[error("the certificate that was made cannot be read: {0}")]
    Credentials(#[from] CredentialsError),
    /// Queues were given for a role that does not serve queues.
    #[error("--queue is for certificates of the role node")]
    Queues,
    /// `issue` was called with the scheduler's role.
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
    /// The encoder failed.
    #[error("a certificate cannot be made: {0}")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate to issue.
#[derive(Debug, Clone)]
pub struct NewCertificate {
    /// The holder's role, which decides its permissions.
    pub role: PeerRole,
    /// The holder's name.
    pub name: String,
    /// The queues that a node may serve; empty for all.
    pub queues: Vec<QueueName>,
    /// Duration of the validity, in days.
    pub days: u32,
}

/// The effect on older certificates of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// They stay valid until their end, or there are no older ones.
    StayValid,
    /// They allow more than the new one, and are refused from now on.
    Refused,
}

impl Certs {
    /// Creates an authority and the scheduler's certificate.
    ///
    /// # Errors
    /// [`CertificateError::Exists`] if there is an authority; after any other error there is still none, and
    /// it can be called again.
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
        // Written last, so that `init` can be repeated if it stops before this.
        Ok(self.write(&path, authority.pem.as_bytes())?)
    }

    /// Issues a new certificate for the scheduler.
    ///
    /// # Errors
    /// [`CertificateError`]; the previous one is kept.
    pub fn renew(&self) -> Result<(), CertificateError> {
        let own = self.authority()?.issue(&scheduler())?;
        Ok(self.write(&self.own(), own.as_bytes())?)
    }

    /// Issues a certificate and records it. Its file is [`Certs::of_holder`].
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
        check_name(&new.name)?;
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

    /// Revokes all certificates of a name permanently.
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

    /// Returns the newest certificate of a name: its ledger entry and its file's content.
    ///
    /// # Errors
    /// [`CertificateError`] if it was revoked or its file has another certificate.
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

    /// Returns all entries of the ledger, oldest first.
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

/// Refuses a node's name that overlaps with the names under another certificate, to which nodes may append a number.
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
    /// Returns the new certificate, its key and the authority's certificate, in PEM.
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
