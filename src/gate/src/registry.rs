//! Records the peers connected through the gate, and the lanes that each may use.
//!
//! Does not: decide. The scheduler opens and closes lanes; the gate registers its peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use lamagrid_protocol::PeerId;

use crate::certificate::Certificate;
use crate::zmtp_guard::UnfinishedBytes;

/// All peers and lanes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    peers: BTreeMap<PeerId, Arc<Certificate>>,
    /// Bytes of incomplete messages by certificate name, while it is connected.
    unfinished_bytes: BTreeMap<String, UnfinishedBytes>,
    /// Names of lanes, with the name of the certificate that may use each.
    lanes: BTreeMap<String, String>,
}

/// The origin of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A process of this user on this host.
    Here,
    /// A peer of the gate with this certificate.
    Elsewhere(Arc<Certificate>),
    /// A peer of the gate that has disconnected.
    Gone,
}

/// A registered connection; removed on drop.
pub(crate) struct Entry<'a> {
    registry: &'a Registry,
    peer: PeerId,
    name: String,
    unfinished_bytes: UnfinishedBytes,
}

impl Entry<'_> {
    /// The count of incomplete bytes that all connections of this certificate share.
    pub(crate) fn unfinished_bytes(&self) -> UnfinishedBytes {
        Arc::clone(&self.unfinished_bytes)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut known = self.registry.0.lock();
        known.peers.remove(&self.peer);
        // Only the registry and this entry hold it: this was the certificate's last connection.
        if Arc::strong_count(&self.unfinished_bytes) == 2 {
            known.unfinished_bytes.remove(&self.name);
        }
    }
}

impl Registry {
    pub(crate) fn enter(&self, identity: &Bytes, certificate: &Arc<Certificate>) -> Entry<'_> {
        let peer = PeerId::from_bytes(identity.clone());
        let mut known = self.0.lock();
        known.peers.insert(peer.clone(), Arc::clone(certificate));
        let unfinished_bytes =
            Arc::clone(known.unfinished_bytes.entry(certificate.name.clone()).or_default());
        Entry { registry: self, peer, name: certificate.name.clone(), unfinished_bytes }
    }

    /// Returns the origin of a connection.
    ///
    /// A message may be handled after its connection closed. The origin is [`Origin::Gone`] then, never this host.
    #[must_use]
    pub fn origin(&self, peer: &PeerId) -> Origin {
        if !peer.is_of_gate() {
            return Origin::Here;
        }
        self.0.lock().peers.get(peer).cloned().map_or(Origin::Gone, Origin::Elsewhere)
    }

    /// Permits a certificate to use the lane with this socket name.
    pub fn open_lane(&self, lane: &str, certificate: &Certificate) {
        self.0.lock().lanes.insert(lane.to_owned(), certificate.name.clone());
    }

    /// Withdraws the permission to use a lane.
    pub fn close_lane(&self, lane: &str) {
        self.0.lock().lanes.remove(lane);
    }

    /// True if a certificate may use this lane.
    pub(crate) fn has_lane(&self, certificate: &Certificate, lane: &str) -> bool {
        self.0.lock().lanes.get(lane) == Some(&certificate.name)
    }
}
