//! One file that makes a host a peer: where the scheduler is, who the host is, and the key to that.

use super::credentials::{Credentials, CredentialsError};

/// What the line with the scheduler's address begins with; PEM readers pass over it.
const ADDRESS: &str = "# scheduler: ";

/// What a bundle holds.
#[derive(Debug)]
pub struct Bundle {
    /// `host:port`
    pub scheduler: String,
    /// Certificate and key of its holder.
    pub credentials: Credentials,
}

/// Why a file is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It says no address.
    #[error("there is no line that begins with \"{ADDRESS}\": is this a file of `lamagrid certs bundle`?")]
    Address,
    /// It holds no credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Bundle {
    /// Reads one.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let address = text.lines().find_map(|line| line.strip_prefix(ADDRESS)).map(str::trim);
        let scheduler = address.filter(|address| address.contains(':')).ok_or(BundleError::Address)?;
        Ok(Self { scheduler: scheduler.to_owned(), credentials: Credentials::from_pem(text.as_bytes())? })
    }

    /// The text of one: `pem` is the holder's certificate and key and the authority's certificate.
    #[must_use]
    pub fn text(scheduler: &str, about: &str, pem: &str) -> String {
        format!("# {about}\n{ADDRESS}{scheduler}\n{pem}")
    }
}
