//! Reads the identity and permissions of a peer from its certificate.
//!
//! A certificate carries one URI, `lamagrid:<role>/<name>` and, for a node, `?queues=gpu,cpu`. No other part is used.
//!
//! Does not: check signatures or times.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use lamagrid_domain::{NameError, QueueName};

/// The DNS name in every scheduler's certificate. It is the same for all, because addresses change; a bundle has the address.
pub const SCHEDULER_NAME: &str = "scheduler.lamagrid";
/// The scheme of the URI.
const SCHEME: &str = "lamagrid:";
/// Longest name in a certificate, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The role of a certificate's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerRole {
    /// Accepts the connections of all other roles.
    Scheduler,
    /// Works on tasks.
    Node,
    /// Submits tasks.
    Client,
    /// Submits tasks and administers the scheduler.
    Admin,
}

impl PeerRole {
    /// The name in certificates and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Node => "node",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PeerRole {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let roles = [Self::Scheduler, Self::Node, Self::Client, Self::Admin];
        let found = roles.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| IdentityError::Role(roles.map(Self::as_str).join(", ")))
    }
}

/// Why a text is no identity of a certificate's holder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is no URI of LamaGrid's scheme.
    #[error("it does not begin with {SCHEME}")]
    Scheme,
    /// It has no name behind the role.
    #[error("it has no name")]
    NoName,
    /// The name is invalid.
    #[error("a name has 1 to {MAX_NAME_BYTES} letters, digits, dots, dashes and underscores, not {0:?}")]
    Name(String),
    /// The role is not one of these.
    #[error("a role is one of {0}")]
    Role(String),
    /// The name of a queue is invalid.
    #[error(transparent)]
    Queue(#[from] NameError),
}

/// Why credentials are unusable.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The text is not PEM with certificates and a key.
    #[error("no certificates and key in PEM: {0}")]
    Pem(String),
    /// The certificate does not name a holder in LamaGrid's form.
    #[error("the certificate names no holder: {0}")]
    Name(String),
    /// Certificate and key do not match, or cannot be used for TLS.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(String),
}

/// The identity of a certificate's holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The holder's role.
    pub role: PeerRole,
    /// The holder's name: letters, digits, dots, dashes and underscores.
    pub name: String,
    /// The queues that a node may serve; empty for all.
    pub queues: Vec<QueueName>,
}

impl Certificate {
    /// Reads the holder's identity from a certificate in DER.
    ///
    /// # Errors
    /// [`CredentialsError::Name`].
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, CredentialsError> {
        let wrong = |reason: String| CredentialsError::Name(reason);
        let parsed = webpki::EndEntityCert::try_from(der).map_err(|error| wrong(error.to_string()))?;
        let mut uris = parsed.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse().map_err(|error: IdentityError| wrong(error.to_string())),
            (None, _) => Err(wrong(format!("it has no URI that begins with {SCHEME}"))),
            (Some(_), Some(_)) => Err(wrong("it has two".into())),
        }
    }

    /// The URI that encodes this identity in a certificate.
    #[must_use]
    pub fn uri(&self) -> String {
        let queues = self.queues.iter().map(QueueName::as_str).collect::<Vec<_>>().join(",");
        let suffix = if queues.is_empty() { String::new() } else { format!("?queues={queues}") };
        format!("{SCHEME}{}/{}{suffix}", self.role, self.name)
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

impl FromStr for Certificate {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (who, queues) = rest.split_once("?queues=").unwrap_or((rest, ""));
        let (role, name) = who.split_once('/').ok_or(IdentityError::NoName)?;
        check_name(name)?;
        let queues = queues.split(',').filter(|queue| !queue.is_empty());
        let queues = queues.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { role: role.parse()?, name: name.to_owned(), queues })
    }
}

/// Checks that a certificate may have this name.
pub(crate) fn check_name(name: &str) -> Result<(), IdentityError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
        return Err(IdentityError::Name(name.to_owned()));
    }
    Ok(())
}

/// True if a node with the certificate `certificate` may use the name `node`: the same, or with a number appended.
#[must_use]
pub fn is_node_of(node: &str, certificate: &str) -> bool {
    let rest = node.strip_prefix(certificate);
    rest.is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('-').is_some_and(|number| number.parse::<u16>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_append_a_number_to_its_certificates_name() {
        for (node, certificate, may) in [
            ("gpu", "gpu", true),
            ("gpu-0", "gpu", true),
            ("gpu-65535", "gpu", true),
            ("gpu-65536", "gpu", false),
            ("gpu-1-2", "gpu-1", true),
            ("gpu-1-2", "gpu", false),
            ("gpu-", "gpu", false),
            ("gpu1", "gpu", false),
            ("gpu", "gpu-1", false),
        ] {
            assert_eq!(is_node_of(node, certificate), may, "{node} of {certificate}");
        }
    }

    #[test]
    fn an_identity_is_printed_and_parsed() {
        for uri in ["lamagrid:node/gpu-1?queues=gpu,cpu", "lamagrid:client/web.1", "lamagrid:admin/a_b"] {
            assert_eq!(uri.parse::<Certificate>().map(|found| found.uri()).as_deref(), Ok(uri));
        }
        for wrong in
            ["http:node/a", "lamagrid:node", "lamagrid:root/a", "lamagrid:node/../a", "lamagrid:node/"]
        {
            assert!(wrong.parse::<Certificate>().is_err(), "{wrong}");
        }
    }
}
