//! Decides which of the authority's certificates are valid, by an allow list of fingerprints.
//!
//! A certificate that is not on the list is refused even if its signature is valid. A leaked authority key or
//! a leaked, revoked certificate therefore gives no access.

use std::collections::BTreeSet;

use lamagrid_domain::FailureKind;
use lamagrid_protocol::preamble::Refused;

use crate::certificate::Certificate;
use crate::fingerprint::Fingerprint;

/// The certificates that may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    /// Fingerprints of the valid certificates.
    pub valid: BTreeSet<Fingerprint>,
    /// Revoked names; used only for a more precise refusal.
    pub revoked: BTreeSet<String>,
}

/// The gate's current knowledge about certificates.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    /// The last list that could be read; open connections are checked against it.
    pub(crate) list: AllowList,
    /// False while the list cannot be read; new connections are refused then.
    pub(crate) is_current: bool,
}

impl Allowed {
    /// True if the certificate may appear on the list soon, because it was issued after the list was read.
    pub(crate) fn is_unknown(&self, certificate: &Certificate, fingerprint: Fingerprint) -> bool {
        self.is_current
            && !self.list.valid.contains(&fingerprint)
            && !self.list.revoked.contains(&certificate.name)
    }

    /// Decides whether a new connection is admitted.
    pub(crate) fn admit(&self, certificate: &Certificate, fingerprint: Fingerprint) -> Result<(), Refused> {
        if !self.is_current {
            let text =
                "the scheduler cannot read its list of certificates, so it lets nothing in: see its log";
            return Err(Refused::new(FailureKind::Disconnected, text));
        }
        if self.list.valid.contains(&fingerprint) {
            return Ok(());
        }
        let name = &certificate.name;
        let reason = if self.list.revoked.contains(name) {
            format!("the certificate {name} was revoked: ask for a new bundle")
        } else {
            format!(
                "this certificate of the name {name} is not in the scheduler's list, or a newer one replaced it: ask for a \
                 new bundle"
            )
        };
        Err(Refused::new(FailureKind::InvalidInput, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_printed_and_parsed() {
        let fingerprint = Fingerprint::of(b"a certificate");
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
        for wrong in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_listed_certificates_are_admitted_and_only_by_a_current_list() {
        let certificate: Certificate = "lamagrid:node/gpu-1".parse().unwrap();
        let (listed, other) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        let list = AllowList { valid: [listed].into(), revoked: ["gpu-1".to_owned()].into() };
        let mut allowed = Allowed { list, is_current: true };
        assert_eq!(allowed.admit(&certificate, listed), Ok(()));
        let refused = allowed.admit(&certificate, other).unwrap_err();
        assert_eq!(refused.kind, FailureKind::InvalidInput);
        assert!(refused.text.contains("was revoked"), "{refused}");
        allowed.list.revoked.clear();
        assert!(allowed.admit(&certificate, other).unwrap_err().text.contains("a newer one replaced it"));
        allowed.is_current = false;
        // Temporary, so that a refused node keeps trying.
        assert_eq!(allowed.admit(&certificate, listed).unwrap_err().kind, FailureKind::Disconnected);
        assert!(Allowed::default().admit(&certificate, listed).is_err());
    }
}
