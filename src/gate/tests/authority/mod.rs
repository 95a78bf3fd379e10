//! Issues certificates for tests and measurements.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use lamagrid_gate::{Certificate, Credentials, PeerRole, SCHEDULER_NAME};

/// An authority that exists only in this process.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, role: PeerRole, name: &str, days: i64) -> Credentials {
        Credentials::from_pem(self.pem(role, name, days).as_bytes()).unwrap()
    }

    /// Issues a certificate that ends in `days` (or ended, if negative): certificate, key and authority in PEM.
    pub(crate) fn pem(&self, role: PeerRole, name: &str, days: i64) -> String {
        let (now, span) = (SystemTime::now(), Duration::from_secs(days.unsigned_abs() * 86_400));
        self.pem_until(role, name, if days < 0 { now - span } else { now + span })
    }

    /// Issues a certificate that is valid until `until`.
    pub(crate) fn pem_until(&self, role: PeerRole, name: &str, until: SystemTime) -> String {
        self.pem_between(role, name, SystemTime::now() - Duration::from_secs(10 * 86_400), until)
    }

    /// Issues a certificate that is valid from `begin` until `until`.
    pub(crate) fn pem_between(
        &self,
        role: PeerRole,
        name: &str,
        begin: SystemTime,
        until: SystemTime,
    ) -> String {
        let uri = Certificate { role, name: name.into(), queues: vec![] }.uri();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        if role == PeerRole::Scheduler {
            params.subject_alt_names.push(SanType::DnsName(SCHEDULER_NAME.try_into().unwrap()));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        params.not_before = begin.into();
        params.not_after = until.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        [certificate.pem(), key.serialize_pem(), self.pem.clone()].concat()
    }
}
