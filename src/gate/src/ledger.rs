//! Records the certificates of one data directory: holders, end of validity and revocations.
//!
//! The ledger `issued.json` is an allow list: a certificate is valid only if the ledger has its fingerprint.
//! Without a readable ledger no certificate is valid.
//!
//! Does not: issue certificates; `authority` does. The scheduler only reads the ledger.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use lamagrid_domain::QueueName;

use crate::allow_list::AllowList;
use crate::certificate::PeerRole;
use crate::credentials::Credentials;
use crate::fingerprint::Fingerprint;

const LEDGER: &str = "issued.json";
/// The scheduler's own certificate and key, and the authority's certificate.
const OWN: &str = "scheduler.pem";
/// The folder of all other certificates, so that a holder's name cannot replace a file of the authority.
const OTHERS: &str = "issued";
/// The file that is locked while the ledger is changed.
const LOCK: &str = "lock";

const REMEDY: &str = "put a backup in its place, or write [] into it and issue each certificate again";

/// Why certificates could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// An operation on a file failed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The ledger does not exist.
    #[error("there is no list of certificates ({0}), so none is valid: {REMEDY}")]
    NoLedger(PathBuf),
    /// The ledger cannot be parsed.
    #[error("{path} is not a list of certificates ({reason}), so none is valid: {REMEDY}")]
    Ledger {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        reason: String,
    },
}

impl CertsError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

/// The ledger's entry for one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The holder's name; unique among all that were ever issued here.
    pub name: String,
    /// The holder's role.
    pub role: PeerRole,
    /// The queues that a node may serve; empty for all.
    #[serde(default)]
    pub queues: Vec<QueueName>,
    /// End of the newest certificate's validity, in milliseconds since the Unix epoch.
    pub until_wall_ms: u64,
    /// True if the name was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Fingerprints of the valid certificates of this name, newest last. An older one stays valid until its
    /// end, so that its holder can work until it has the new one, unless the new one allows less.
    #[serde(default)]
    pub fingerprints: Vec<Fingerprint>,
}

impl Issued {
    /// True if a certificate with this role and these queues allows everything that this entry allows.
    #[must_use]
    pub fn is_covered_by(&self, role: PeerRole, queues: &[QueueName]) -> bool {
        let all = |queues: &[QueueName]| queues.is_empty();
        self.role == role
            && (all(queues) || !all(&self.queues) && self.queues.iter().all(|queue| queues.contains(queue)))
    }
}

/// Builds the allow list from a ledger's entries.
#[must_use]
pub fn allow_list(issued: &[Issued]) -> AllowList {
    let (revoked, good): (Vec<_>, Vec<_>) = issued.iter().partition(|each| each.revoked);
    AllowList {
        valid: good.iter().flat_map(|each| &each.fingerprints).copied().collect(),
        revoked: revoked.into_iter().map(|each| each.name.clone()).collect(),
    }
}

/// The folder of a scheduler's certificates.
#[derive(Debug, Clone)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Names the folder in a data directory; it need not exist.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("certs") }
    }

    /// The folder's path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the scheduler's own certificate, its key and the authority's certificate, in PEM.
    #[must_use]
    pub fn own(&self) -> PathBuf {
        self.dir.join(OWN)
    }

    /// The path of a holder's certificate, its key and the authority's certificate, in PEM.
    #[must_use]
    pub fn of_holder(&self, name: &str) -> PathBuf {
        self.dir.join(OTHERS).join(format!("{name}.pem"))
    }

    /// Reads the ledger's entries, oldest first.
    ///
    /// Ledgers of earlier versions have no fingerprints. There the newest certificate is read from its file, and only that one
    /// is valid. If the file is missing, the entry has no fingerprint, and the certificate must be issued again.
    ///
    /// # Errors
    /// [`CertsError`]; no certificate is valid then.
    pub fn issued(&self) -> Result<Vec<Issued>, CertsError> {
        self.read().map(|issued| self.with_fingerprints(issued))
    }

    /// Adds missing fingerprints to the ledger of an earlier version, so that they are not searched for again.
    ///
    /// # Errors
    /// [`CertsError`]; the ledger is unchanged then.
    pub fn migrate(&self) -> Result<(), CertsError> {
        let _lock = self.lock()?;
        let before = self.read()?;
        let issued = self.with_fingerprints(before.clone());
        if issued == before { Ok(()) } else { self.record(&issued) }
    }

    fn read(&self) -> Result<Vec<Issued>, CertsError> {
        let path = self.dir.join(LEDGER);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CertsError::NoLedger(path)),
            Err(error) => return Err(CertsError::file("read", &path)(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| CertsError::Ledger { path, reason: error.to_string() })
    }

    fn with_fingerprints(&self, mut issued: Vec<Issued>) -> Vec<Issued> {
        for each in issued.iter_mut().filter(|each| each.fingerprints.is_empty()) {
            each.fingerprints.extend(self.fingerprint_of_holder(&each.name));
        }
        issued
    }

    /// The fingerprint of the certificate in a holder's file; `None` if it cannot be read.
    fn fingerprint_of_holder(&self, name: &str) -> Option<Fingerprint> {
        let pem = std::fs::read(self.of_holder(name)).ok()?;
        Credentials::from_pem(&pem).ok().map(|credentials| credentials.fingerprint())
    }

    /// Locks the ledger against changes by other commands until the returned file is dropped.
    ///
    /// # Errors
    /// [`CertsError::File`].
    pub fn lock(&self) -> Result<File, CertsError> {
        self.make_folder()?;
        let path = self.dir.join(LOCK);
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(CertsError::file("lock", &path))
    }

    /// Writes the ledger.
    ///
    /// # Errors
    /// [`CertsError::File`].
    pub fn record(&self, issued: &[Issued]) -> Result<(), CertsError> {
        let mut text = serde_json::to_vec_pretty(issued).expect("a list of texts and numbers");
        text.push(b'\n');
        self.write(&self.dir.join(LEDGER), &text)
    }

    /// Writes a file in the folder, atomically and readable only by its owner.
    ///
    /// # Errors
    /// [`CertsError::File`].
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), CertsError> {
        self.make_folder()?;
        write_private(path, bytes)
    }

    fn make_folder(&self) -> Result<(), CertsError> {
        let others = self.dir.join(OTHERS);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&others);
        made.map_err(CertsError::file("make", &others))
    }
}

/// Writes a file atomically and readable only by its owner.
///
/// # Errors
/// [`CertsError::File`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertsError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    // A killed process may have left the file.
    let _ = std::fs::remove_file(&new);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&new, path))
        // Synced, because a revocation must survive a power loss.
        .and_then(|()| {
            File::open(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        })
        .and_then(|dir| dir.sync_all());
    written.map_err(CertsError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(role: PeerRole, queues: &[&str]) -> Issued {
        Issued {
            name: "gpu-1".into(),
            role,
            queues: queues.iter().map(|queue| queue.parse().unwrap()).collect(),
            until_wall_ms: 1,
            revoked: false,
            fingerprints: vec![Fingerprint::of(b"1")],
        }
    }

    #[test]
    fn a_certificate_with_fewer_queues_or_another_role_does_not_cover_the_older_one() {
        let queues = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        for (old, new, covered) in [
            (&["gpu"][..], &["gpu"][..], true),
            (&["gpu"], &["gpu", "cpu"], true),
            (&["gpu", "cpu"], &["gpu"], false),
            (&["gpu"], &[], true),
            (&[], &["gpu"], false),
            (&[], &[], true),
        ] {
            let entry = entry(PeerRole::Node, old);
            assert_eq!(entry.is_covered_by(PeerRole::Node, &queues(new)), covered, "{old:?}, then {new:?}");
        }
        assert!(!entry(PeerRole::Admin, &[]).is_covered_by(PeerRole::Client, &[]));
    }

    #[test]
    fn revoked_entries_are_not_on_the_allow_list() {
        let (good, mut revoked) = (entry(PeerRole::Node, &[]), entry(PeerRole::Node, &[]));
        revoked.name = "gpu-2".into();
        revoked.revoked = true;
        revoked.fingerprints = vec![Fingerprint::of(b"2")];
        let list = allow_list(&[good, revoked]);
        assert_eq!(list.valid, [Fingerprint::of(b"1")].into());
        assert_eq!(list.revoked, ["gpu-2".to_owned()].into());
    }

    #[test]
    fn a_missing_or_damaged_ledger_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::of(dir.path());
        assert!(matches!(certs.issued(), Err(CertsError::NoLedger(_))));
        certs.record(&[entry(PeerRole::Node, &[])]).unwrap();
        assert_eq!(certs.issued().unwrap(), [entry(PeerRole::Node, &[])]);
        let whole = std::fs::read(certs.dir().join(LEDGER)).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"{}", b"null", &vec![0; whole.len()]] {
            std::fs::write(certs.dir().join(LEDGER), damaged).unwrap();
            assert!(matches!(certs.issued(), Err(CertsError::Ledger { .. })));
        }
    }
}
