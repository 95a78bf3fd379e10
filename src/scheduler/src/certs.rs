//! The certificates of one data directory: who has one, until when, and which are revoked.
//!
//! Does not: make them; `lamagrid certs` does. The scheduler reads what that wrote.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use lamagrid_domain::QueueName;
use lamagrid_wire::gate::PeerRole;

/// The list of what was issued.
const LEDGER: &str = "issued.json";
/// The scheduler's own certificate and key, and the authority's certificate.
const OWN: &str = "scheduler.pem";
/// Where those of everybody else lie: whatever they are called, they replace nothing of the authority's.
const OTHERS: &str = "issued";

/// Why certificates cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file refused.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The list of what was issued is none.
    #[error("{path} is not a list of certificates: {reason}; put a backup in its place")]
    Ledger {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl CertsError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

/// One certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its name; unique among all that were ever issued here.
    pub name: String,
    /// What its holder may do.
    pub role: PeerRole,
    /// For a node: the queues that it may serve; empty for all.
    #[serde(default)]
    pub queues: Vec<QueueName>,
    /// Its end, milliseconds since the Unix epoch.
    pub until_wall_ms: u64,
    /// Whether its connections are refused.
    #[serde(default)]
    pub revoked: bool,
}

/// The folder of a scheduler's certificates.
#[derive(Debug, Clone)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Those of a data directory; the folder need not exist.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("certs") }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The scheduler's own certificate, its key and the authority's certificate, in PEM.
    #[must_use]
    pub fn own(&self) -> PathBuf {
        self.dir.join(OWN)
    }

    /// A holder's certificate, its key and the authority's certificate, in PEM.
    #[must_use]
    pub fn of_holder(&self, name: &str) -> PathBuf {
        self.dir.join(OTHERS).join(format!("{name}.pem"))
    }

    /// What was issued, oldest first; nothing if there is no list yet.
    ///
    /// # Errors
    /// [`CertsError`].
    pub fn issued(&self) -> Result<Vec<Issued>, CertsError> {
        let path = self.dir.join(LEDGER);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| CertsError::Ledger { path, reason: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(CertsError::file("read", &path)(error)),
        }
    }

    /// The names whose connections are refused.
    ///
    /// # Errors
    /// As [`Certs::issued`].
    pub fn revoked(&self) -> Result<BTreeSet<String>, CertsError> {
        Ok(self.issued()?.into_iter().filter(|issued| issued.revoked).map(|issued| issued.name).collect())
    }

    /// Writes the list.
    ///
    /// # Errors
    /// [`CertsError::File`].
    pub fn record(&self, issued: &[Issued]) -> Result<(), CertsError> {
        let mut text = serde_json::to_vec_pretty(issued).expect("a list of texts and numbers");
        text.push(b'\n');
        self.write(&self.dir.join(LEDGER), &text)
    }

    /// Writes a file of the folder, which nobody but its owner may read: whole, or not at all.
    ///
    /// # Errors
    /// [`CertsError::File`].
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), CertsError> {
        let others = self.dir.join(OTHERS);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&others);
        made.map_err(CertsError::file("make", &others))?;
        write_private(path, bytes)
    }
}

/// Writes a file that nobody but its owner may read: whole, or not at all.
///
/// # Errors
/// [`CertsError::File`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertsError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    // What a killed process may have left.
    let _ = std::fs::remove_file(&new);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&new, path));
    written.map_err(CertsError::file("write", path))
}
