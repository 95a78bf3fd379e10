//! One file that makes a host a peer: where the scheduler is, who the host is, and the key to that.

use std::path::{Path, PathBuf};

use crate::certificate::{Certificate, CredentialsError, PeerRole};
use crate::credentials::Credentials;

/// What the line with the scheduler's address begins with; PEM readers pass over it.
const ADDRESS: &str = "# scheduler: ";

/// What a bundle holds.
#[derive(Debug)]
pub struct Bundle {
    /// Where it was read.
    pub path: PathBuf,
    /// `host:port`
    pub scheduler: String,
    /// Certificate and key of its holder.
    pub credentials: Credentials,
    /// Who that is.
    pub certificate: Certificate,
}

/// Why a file is no bundle, or none for this program.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// It says no address.
    #[error(
        "{path}: there is no line that begins with \"{ADDRESS}\": is this a file of `lamagrid certs bundle`?"
    )]
    Address {
        /// Which file.
        path: PathBuf,
    },
    /// It holds no credentials.
    #[error("{path}: {source}")]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: CredentialsError,
    },
    /// It is for another program.
    #[error("{path}: it is for a {found}, and this is a {wanted}: issue one with --role {wanted}")]
    Role {
        /// Which file.
        path: PathBuf,
        /// The certificate's.
        found: PeerRole,
        /// One that would do.
        wanted: PeerRole,
    },
}

impl Bundle {
    /// Reads the one at `path`, which is for a peer of one of these roles.
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

    /// The text of one: `pem` is the holder's certificate and key and the authority's certificate.
    #[must_use]
    pub fn text(scheduler: &str, about: &str, pem: &str) -> String {
        format!("# {about}\n{ADDRESS}{scheduler}\n{pem}")
    }
}
