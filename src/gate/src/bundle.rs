//! Reads and writes bundles: files that let a host connect, with the scheduler's address, a certificate and its key.

use std::path::{Path, PathBuf};

use crate::certificate::{Certificate, CredentialsError, PeerRole};
use crate::credentials::Credentials;

/// Prefix of the line with the scheduler's address; PEM readers ignore that line.
const ADDRESS: &str = "# scheduler: ";

/// The content of a bundle file.
#[derive(Debug)]
pub struct Bundle {
    /// The path it was read from.
    pub path: PathBuf,
    /// The scheduler's address, `host:port`.
    pub scheduler: String,
    /// The holder's certificate and key.
    pub credentials: Credentials,
    /// The holder's name, role and queues.
    pub certificate: Certificate,
}

/// Why a file is not a usable bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file has no line with the scheduler's address.
    #[error(
        "{path}: there is no line that begins with \"{ADDRESS}\": is this a file of `lamagrid certs bundle`?"
    )]
    Address {
        /// The file.
        path: PathBuf,
    },
    /// The file has no valid credentials.
    #[error("{path}: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The error.
        source: CredentialsError,
    },
    /// The certificate has a role that this program cannot use.
    #[error("{path}: it is for a {found}, and this is a {wanted}: issue one with --role {wanted}")]
    Role {
        /// The file.
        path: PathBuf,
        /// The certificate's role.
        found: PeerRole,
        /// A suitable role.
        wanted: PeerRole,
    },
}

impl Bundle {
    /// Reads the bundle at `path`, whose role must be one of `roles`.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn read(path: &Path, roles: &[PeerRole]) -> Result<Self, BundleError> {
        let io = |source| BundleError::Io { path: path.to_owned(), source };
        let wrong = |source| BundleError::Credentials { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let address = text.lines().find_map(|line| line.strip_prefix(ADDRESS)).map(str::trim);
        let scheduler = address.filter(|address| address.contains(':'));
        let scheduler = scheduler.ok_or_else(|| BundleError::Address { path: path.to_owned() })?.to_owned();
        let credentials = Credentials::from_pem(text.as_bytes()).map_err(wrong)?;
        let certificate = credentials.certificate().map_err(wrong)?;
        match roles.first() {
            Some(wanted) if !roles.contains(&certificate.role) => {
                Err(BundleError::Role { path: path.to_owned(), found: certificate.role, wanted: *wanted })
            }
            _ => Ok(Self { path: path.to_owned(), scheduler, credentials, certificate }),
        }
    }

    /// Builds the text of a bundle; `pem` has the holder's certificate and key and the authority's certificate.
    #[must_use]
    pub fn text(scheduler: &str, about: &str, pem: &str) -> String {
        format!("# {about}\n{ADDRESS}{scheduler}\n{pem}")
    }
}
