//! Describes why a connection to the gate failed, and decides whether to try again.

use std::io;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::preamble::Refused;

use crate::validity::{SCHEDULER_SHOWS, date, out_of_validity};

/// Limit on the TLS handshake, and on the gate's answer to the line.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// Names of the steps of a connection in error texts.
pub(crate) const HANDSHAKE: &str = "the TLS handshake";
pub(crate) const REPLY: &str = "the answer of the gate";

/// Why a connection to the gate failed.
#[derive(Debug)]
pub(crate) struct DialError {
    pub(crate) failure: Failure,
    /// True if the gate answered with a temporary refusal.
    pub(crate) is_refusal_for_now: bool,
}

impl DialError {
    /// Creates the error for a scheduler that could not be reached.
    pub(crate) fn away(text: String) -> Self {
        Self { failure: Failure::new(FailureKind::Disconnected, text), is_refusal_for_now: false }
    }

    /// Creates the error for a temporary refusal.
    pub(crate) fn for_now(text: String) -> Self {
        Self { failure: Failure::new(FailureKind::Disconnected, text), is_refusal_for_now: true }
    }
}

/// The text for a scheduler's certificate that is not valid by this host's clock; names both clocks if the
/// scheduler sent its own. `None` for a valid certificate.
pub(crate) fn wrong_time(
    presented: Option<&[CertificateDer<'_>]>,
    answer: Option<&Result<u64, Refused>>,
) -> Option<String> {
    let valid = out_of_validity(presented?.first()?).ok().flatten()?;
    let theirs = match answer {
        Some(Ok(wall_ms)) => format!("; {SCHEDULER_SHOWS} {}", date(*wall_ms)),
        Some(Err(refused)) => format!("; it says: {}", refused.text),
        None => String::new(),
    };
    Some(format!(
        "the scheduler's certificate is {valid}, and the clock of this host shows {}{theirs}: set the wrong clock right, or run `lamagrid certs renew` there",
        date(wall_ms())
    ))
}

/// Adds this host's time to a refusal that names the scheduler's.
pub(crate) fn with_own_clock(text: String) -> String {
    if !text.contains(SCHEDULER_SHOWS) {
        return text;
    }
    format!("{text}; the clock of this host shows {}", date(wall_ms()))
}

/// Classifies the failure of the step `what`: a refused certificate is a permanent refusal, unless a clock may be wrong.
pub(crate) fn judge(error: &io::Error, what: &str) -> DialError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let refused = |text: String| DialError {
        failure: Failure::new(FailureKind::InvalidInput, text),
        is_refusal_for_now: false,
    };
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => refused(format!(
            "the scheduler's certificate is refused ({reason:?}): is the bundle from its `lamagrid certs`?"
        )),
        // Sent by schedulers of earlier versions; today's explain it in the answer to the line.
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            DialError::for_now(format!(
                "the scheduler refused this certificate by its clock, and the clock of this host shows {}: compare both, or ask \
             for a new bundle (`lamagrid certs bundle`)",
                date(wall_ms())
            ))
        }
        Some(rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        )) => refused(format!(
            "the scheduler refused this certificate ({alert:?}): ask for a new bundle (`lamagrid certs bundle`)"
        )),
        Some(other) => DialError::away(format!("{what}: {other}")),
        None => DialError::away(broken(error, what)),
    }
}

/// Describes how a socket failed during the step `what`.
pub(crate) fn broken(error: &io::Error, what: &str) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!(
                "{what} did not come within {} s: does a firewall let it through, is the path's MTU smaller?",
                ANSWER.as_secs()
            )
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            format!("the connection was closed during {what}: has the gate no room? see the scheduler's log")
        }
        _ => format!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(error: rustls::Error) -> DialError {
        judge(&io::Error::new(io::ErrorKind::InvalidData, error), "the TLS handshake")
    }

    #[test]
    fn only_failures_that_cannot_pass_are_permanent() {
        use AlertDescription as Alert;
        for alert in [Alert::UnknownCA, Alert::CertificateRevoked, Alert::BadCertificate] {
            assert_eq!(judged(rustls::Error::AlertReceived(alert)).failure.kind, FailureKind::InvalidInput);
        }
        for alert in
            [Alert::CertificateExpired, Alert::BadRecordMac, Alert::InternalError, Alert::DecodeError]
        {
            assert_eq!(judged(rustls::Error::AlertReceived(alert)).failure.kind, FailureKind::Disconnected);
        }
        let expired = judged(rustls::Error::AlertReceived(Alert::CertificateExpired));
        assert!(
            expired.is_refusal_for_now && expired.failure.message.contains("the clock of this host shows")
        );
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert_eq!(judged(unknown).failure.kind, FailureKind::InvalidInput);
    }

    #[test]
    fn a_timeout_names_the_step_and_the_limit() {
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let text = judge(&kind.into(), "the answer of the gate of a:1").failure.message.to_string();
            assert!(text.starts_with("the answer of the gate of a:1 did not come within 5 s: "), "{text}");
        }
    }
}
