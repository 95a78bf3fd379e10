//! Provides the TLS configuration of the dialling side, and reloads its certificate when the bundle's file is replaced.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::bundle::{Bundle, BundleError};
use crate::certificate::{Certificate, CredentialsError};
use crate::certificate_file::CertificateFile;
use crate::credentials::Credentials;

/// The TLS configuration of one peer.
#[derive(Debug)]
pub(crate) struct ReloadingTls(Mutex<Shown>);

#[derive(Debug)]
struct Shown {
    config: Arc<ClientConfig>,
    /// `None` for credentials that are not from a file.
    bundle: Option<BundleFile>,
}

#[derive(Debug)]
struct BundleFile {
    file: CertificateFile,
    own: Certificate,
}

/// Why the new content of a bundle's file is not used.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("it is for {found}, and this is {own}")]
    Name { found: String, own: String },
}

impl ReloadingTls {
    pub(crate) fn of(credentials: &Credentials) -> Result<Self, CredentialsError> {
        Ok(Self(Mutex::new(Shown { config: credentials.client()?, bundle: None })))
    }

    pub(crate) fn of_bundle(bundle: &Bundle) -> Result<Self, CredentialsError> {
        let file = CertificateFile::new(bundle.path.clone());
        let own = BundleFile { file, own: bundle.certificate.clone() };
        Ok(Self(Mutex::new(Shown { config: bundle.credentials.client()?, bundle: Some(own) })))
    }

    /// The configuration for the next connection.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let Shown { config, bundle } = &mut *self.0.lock();
        if let Some(BundleFile { file, own }) = bundle
            && let Some(renewed) = file.renewed(|path| config_of(path, own))
        {
            *config = renewed;
        }
        Arc::clone(config)
    }
}

fn config_of(path: &Path, own: &Certificate) -> Result<Arc<ClientConfig>, RenewalError> {
    let bundle = Bundle::read(path, &[own.role])?;
    if bundle.certificate.name != own.name {
        return Err(RenewalError::Name { found: bundle.certificate.name, own: own.name.clone() });
    }
    Ok(bundle.credentials.client()?)
}
