//! Provides the TLS configuration of the dialling side, and reloads its certificate when the bundle's file is replaced.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::bundle::Bundle;
use crate::certificate::{Certificate, CredentialsError};
use crate::credentials::Credentials;

/// The TLS configuration of one peer.
#[derive(Debug)]
pub(crate) struct ReloadingTls {
    /// The bundle's path and identity; `None` for credentials that are not from a file.
    bundle: Option<(PathBuf, Certificate)>,
    shown: Mutex<(Option<SystemTime>, Arc<ClientConfig>)>,
}

impl ReloadingTls {
    pub(crate) fn of(credentials: &Credentials) -> Result<Self, CredentialsError> {
        Ok(Self { bundle: None, shown: Mutex::new((None, credentials.client()?)) })
    }

    pub(crate) fn of_bundle(bundle: &Bundle) -> Result<Self, CredentialsError> {
        let own = (bundle.path.clone(), bundle.certificate.clone());
        let shown = Mutex::new((modified(&bundle.path), bundle.credentials.client()?));
        Ok(Self { bundle: Some(own), shown })
    }

    /// The configuration for the next connection.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let mut shown = self.shown.lock();
        if let Some((path, own)) = &self.bundle
            && let Some(at) = modified(path).filter(|at| Some(*at) != shown.0)
        {
            // Each change is tried only once, even if it fails.
            shown.0 = Some(at);
            let renewed = Bundle::read(path, &[own.role]).map_err(|error| error.to_string());
            let renewed = renewed.and_then(|bundle| {
                if bundle.certificate.name != own.name {
                    return Err(format!("it is for {}, and this is {}", bundle.certificate.name, own.name));
                }
                bundle.credentials.client().map_err(|error| error.to_string())
            });
            match renewed {
                Ok(config) => {
                    tracing::info!(path = %path.display(), "the certificate was renewed");
                    shown.1 = config;
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "the new bundle is not used");
                }
            }
        }
        Arc::clone(&shown.1)
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|found| found.modified()).ok()
}
