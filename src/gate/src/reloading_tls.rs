//! What the dialling side shows: its certificate, read again when the bundle's file was replaced.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::bundle::Bundle;
use crate::certificate::{Certificate, CredentialsError};
use crate::credentials::Credentials;

/// The tls_config of one peer.
#[derive(Debug)]
pub(crate) struct ReloadingTls {
    /// None for credentials that are in memory alone.
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

    /// What the next connection shows.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let mut shown = self.shown.lock();
        if let Some((path, own)) = &self.bundle
            && let Some(at) = modified(path).filter(|at| Some(*at) != shown.0)
        {
            // Once for each change, whatever comes of it.
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
