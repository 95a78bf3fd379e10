//! Identifies the connection that a message came from.

use bytes::Bytes;

use lamagrid_domain::Owner;

/// Length of the identities of connections from this host.
const OWN_BYTES: usize = 16;

/// The identity of one connection; every connection gets a new one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Bytes);

impl PeerId {
    /// Wraps an identity: a gate's, or 16 random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// True if a gate assigned the identity: a certificate's name and 33 characters. Identities of this host have 16 bytes.
    #[must_use]
    pub fn is_of_gate(&self) -> bool {
        self.0.len() > OWN_BYTES
    }

    /// The name of the certificate at the other end, or [`Owner::LOCAL`] for a process of this host and user.
    ///
    /// A gate puts the certificate's name into the identity, so that the name is known even after the connection has closed.
    #[must_use]
    pub fn holder(&self) -> &str {
        let name = self.0.split(|byte| *byte == b'/').next().filter(|_| self.is_of_gate());
        name.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or(Owner::LOCAL)
    }

    /// Creates an identity for tests and simulations.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take(8).try_for_each(|b| write!(f, "{b:02x}"))
    }
}
