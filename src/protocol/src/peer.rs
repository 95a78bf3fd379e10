//! Who sent a message: one connection.

use bytes::Bytes;

use lamagrid_domain::Owner;

/// Of the identities that sockets of this host are given.
const OWN_BYTES: usize = 16;

/// The identity of one connection; fresh for every connection, so it never names two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Bytes);

impl PeerId {
    /// The identity that a gate gives.
    #[must_use]
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether a gate gave it: a certificate's name and 33 characters. Those of this host have 16 bytes.
    #[must_use]
    pub fn is_of_gate(&self) -> bool {
        self.0.len() > OWN_BYTES
    }

    /// Who is at the other end: the name of its certificate, or [`Owner::LOCAL`] for a process of this host and user.
    ///
    /// A gate writes a certificate's name into the identities that it gives, so this also holds after the connection has
    /// closed.
    #[must_use]
    pub fn holder(&self) -> &str {
        let name = self.0.split(|byte| *byte == b'/').next().filter(|_| self.is_of_gate());
        name.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or(Owner::LOCAL)
    }

    /// A peer of tests and simulations.
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
