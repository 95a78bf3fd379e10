//! Why a connection to the gate was not made, in words, and whether to try again.

use std::io;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::preamble::Refused;

use crate::validity::{SCHEDULER_SHOWS, date, out_of_validity};

/// Limit on TLS, and on the scheduler's answer to the line.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// The steps of a dial, as texts name them.
pub(crate) const HANDSHAKE: &str = "the TLS handshake";
pub(crate) const REPLY: &str = "the answer of the gate";

/// Why a connection to the gate was not made.
#[derive(Debug)]
pub(crate) struct DialError {
    pub(crate) failure: Failure,
    /// The scheduler answered, and refuses for now.
    pub(crate) is_refusal_for_now: bool,
}

impl DialError {
    /// The scheduler was not reached.
    pub(crate) fn away(text: String) -> Self {
        Self { failure: Failure::new(FailureKind::Disconnected, text), is_refusal_for_now: false }
    }

    /// It was, and the reason may pass.
    pub(crate) fn for_now(text: String) -> Self {
        Self { failure: Failure::new(FailureKind::Disconnected, text), is_refusal_for_now: true }
    }
}

/// What is said when the scheduler's certificate is not valid by the clock of this host: both clocks, as far as the
/// scheduler told its own.
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

/// Adds the clock of this host to a refusal that names the scheduler's.
pub(crate) fn with_own_clock(text: String) -> String {
    if !text.contains(SCHEDULER_SHOWS) {
        return text;
    }
    format!("{text}; the clock of this host shows {}", date(wall_ms()))
}

/// What a connection that broke during `what` means: a certificate that is refused stays refused, unless a clock is wrong.
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
        // Of a scheduler that is older than this side: one of today says it in the answer to the line.
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

/// How a socket broke during `what`, in words.
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
    fn only_what_time_does_not_cure_is_final() {
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
    fn a_socket_that_gave_nothing_in_time_is_told_in_words() {
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut] {
            let text = judge(&kind.into(), "the answer of the gate of a:1").failure.message.to_string();
            assert!(text.starts_with("the answer of the gate of a:1 did not come within 5 s: "), "{text}");
        }
    }
}
