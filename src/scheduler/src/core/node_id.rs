//! The identity of a node: its name, and the certificate that vouches for it.

use std::fmt;
use std::str::FromStr;

use lamagrid_domain::{NameError, NodeName, Owner};
use lamagrid_protocol::PeerId;

/// The identity of a node. Two nodes of one name whose certificates differ are two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId {
    /// The name of its certificate; [`Owner::LOCAL`] for a process of this host and user.
    pub(crate) holder: Owner,
    /// The name that it gives itself.
    pub(crate) name: NodeName,
}

impl NodeId {
    /// The node of this name that speaks on a connection.
    pub(crate) fn new(peer: &PeerId, name: NodeName) -> Self {
        Self { holder: peer.holder().parse().unwrap_or_else(|_| Owner::local()), name }
    }

    /// Whether a connection may speak for this node.
    pub(crate) fn is_behind(&self, peer: &PeerId) -> bool {
        self.holder.as_str() == peer.holder()
    }

    /// How the store writes it: the name alone for a node of this host, as all versions did, or behind its certificate.
    pub(crate) fn to_row(&self) -> String {
        if self.holder.as_str() == Owner::LOCAL {
            self.name.to_string()
        } else {
            format!("{}/{}", self.holder, self.name)
        }
    }
}

impl fmt::Display for NodeId {
    /// The name alone, as people know a node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    /// Reads [`NodeId::to_row`]. No name of a node or of a certificate has a slash.
    fn from_str(row: &str) -> Result<Self, NameError> {
        let (holder, name) = row.split_once('/').unwrap_or((Owner::LOCAL, row));
        Ok(Self { holder: holder.parse()?, name: name.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_stored_and_read_back() {
        for row in ["gpu-1", "gpu/gpu-1", "host:0"] {
            assert_eq!(row.parse::<NodeId>().unwrap().to_row(), row);
        }
        assert!(
            "".parse::<NodeId>().is_err()
                && "/a".parse::<NodeId>().is_err()
                && "a/".parse::<NodeId>().is_err()
        );
        assert_ne!("gpu-1".parse::<NodeId>().unwrap(), "gpu/gpu-1".parse().unwrap());
    }
}
