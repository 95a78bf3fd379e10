//! Checks when a certificate is valid, and describes it when it is not.
//!
//! TLS verifies a certificate's signature and purpose as of a time at which it is valid. The gate compares
//! the validity with the clock afterwards. A peer with a wrong clock or an expired certificate thus gets a
//! text that names both clocks, and tries again, instead of a TLS alert that would be final.
//!
//! Invariant: code that uses [`AtAnyTime`] calls [`out_of_validity`] before it serves the peer.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::time::ASN1Time;

use lamagrid_process::wall_clock::wall_ms;

use crate::certificate::CredentialsError;

/// The phrase with which a gate's refusal names its clock; the other side recognizes it and adds its own clock.
pub(crate) const SCHEDULER_SHOWS: &str = "the scheduler's clock shows";

/// Start and end of the validity of a certificate in DER, in milliseconds since the Unix epoch.
pub(crate) fn validity(der: &[u8]) -> Result<(u64, u64), CredentialsError> {
    let unusable = |error: &dyn std::fmt::Display| CredentialsError::Unusable(error.to_string());
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| unusable(&error))?;
    let ms = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0) * 1_000;
    let validity = parsed.validity();
    Ok((ms(validity.not_before), ms(validity.not_after)))
}

/// Formats a time for people.
pub(crate) fn date(wall_ms: u64) -> String {
    let seconds = i64::try_from(wall_ms / 1_000).unwrap_or(i64::MAX);
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("{wall_ms} ms"), |time| time.to_string())
}

/// Describes the validity of a certificate that is not valid by this host's clock; `None` for a valid one.
pub(crate) fn out_of_validity(der: &[u8]) -> Result<Option<String>, CredentialsError> {
    let (begins_ms, ends_ms) = validity(der)?;
    let now_ms = wall_ms();
    // The last second is part of the validity.
    let is_valid = (begins_ms..ends_ms.saturating_add(1_000)).contains(&now_ms);
    Ok((!is_valid).then(|| format!("valid from {} to {}", date(begins_ms), date(ends_ms))))
}

/// Verifies like the inner verifier, as of the time closest to now at which the certificate is valid.
#[derive(Debug)]
pub(crate) struct AtAnyTime<V: ?Sized>(pub(crate) Arc<V>);

fn nearest(end_entity: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
    let (begins_ms, ends_ms) =
        validity(end_entity).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let (begins, ends) = (begins_ms.div_ceil(1_000), ends_ms / 1_000);
    if begins > ends {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().clamp(begins, ends))))
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for AtAnyTime<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let at = nearest(end_entity, now)?;
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for AtAnyTime<V> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, nearest(end_entity, now)?)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
