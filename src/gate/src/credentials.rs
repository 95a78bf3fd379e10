//! Holds a certificate with its key, and builds TLS configurations from them.
//!
//! Does not: issue certificates, or check signatures (rustls does) or times (`validity` does).

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::certificate::{Certificate, CredentialsError};
use crate::fingerprint::Fingerprint;
use crate::validity::{AtAnyTime, validity};

/// A certificate with its key, and the certificate of the authority that issues all certificates of the grid.
#[derive(Debug)]
pub struct Credentials {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
}

impl Credentials {
    /// Parses PEM: the own certificate first, the authority's last, the key anywhere.
    ///
    /// # Errors
    /// [`CredentialsError::Pem`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CredentialsError> {
        let wrong = |reason: String| CredentialsError::Pem(reason);
        let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(error.to_string()))?;
        let [certificate, authority] = &found[..] else {
            return Err(wrong(format!("{} certificates where two are needed", found.len())));
        };
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { certificate: certificate.clone(), key, authority: authority.clone() })
    }

    /// The identity of the certificate's holder.
    ///
    /// # Errors
    /// [`CredentialsError::Name`].
    pub fn certificate(&self) -> Result<Certificate, CredentialsError> {
        Certificate::of(&self.certificate)
    }

    /// The certificate's fingerprint, under which an [`AllowList`](super::AllowList) lists it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Start and end of the certificate's validity, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`CredentialsError::Unusable`].
    pub fn validity(&self) -> Result<(u64, u64), CredentialsError> {
        validity(&self.certificate)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, CredentialsError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(unusable)?;
        Ok(Arc::new(roots))
    }

    /// Builds the configuration of the accepting side, which accepts only peers with a certificate of the
    /// same authority. The certificate's times are checked afterwards; see [`crate::validity`].
    ///
    /// # Errors
    /// [`CredentialsError::Unusable`].
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(AtAnyTime(verifier)))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(unusable)?;
        // A resumed session is not verified again, so that it would outlive its certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Builds the configuration of the dialling side, which accepts only a scheduler with a certificate of
    /// the same authority. The certificate's times are checked afterwards; see [`crate::validity`].
    ///
    /// # Errors
    /// [`CredentialsError::Unusable`].
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AtAnyTime(verifier)))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(unusable)?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn unusable(error: impl fmt::Display) -> CredentialsError {
    CredentialsError::Unusable(error.to_string())
}
