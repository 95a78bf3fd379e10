//! The peers that are connected through the gate, and the lanes that each may reach.
//!
//! Does not: decide; the scheduler opens and closes lanes, the gate registers its peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use lamagrid_protocol::PeerId;

use crate::certificate::Certificate;
use crate::zmtp_guard::Held;

/// All peers and lanes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    peers: BTreeMap<PeerId, Arc<Certificate>>,
    /// By the names of certificates, while they are connected.
    held: BTreeMap<String, Held>,
    /// Names of lanes with the name of the certificate that may reach them.
    lanes: BTreeMap<String, String>,
}

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From a process of this user on this host.
    Here,
    /// Through the gate, by this certificate.
    Elsewhere(Arc<Certificate>),
    /// Through the gate, and it has closed.
    Gone,
}

/// A connection in the registry, for as long as this lives: whatever ends it.
pub(crate) struct Entry<'a> {
    registry: &'a Registry,
    peer: PeerId,
    name: String,
    held: Held,
}

impl Entry<'_> {
    /// What this peer's connections share.
    pub(crate) fn held(&self) -> Held {
        Arc::clone(&self.held)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut known = self.registry.0.lock();
        known.peers.remove(&self.peer);
        // The registry's own, and this one: nobody else's.
        if Arc::strong_count(&self.held) == 2 {
            known.held.remove(&self.name);
        }
    }
}

impl Registry {
    pub(crate) fn enter(&self, identity: &Bytes, certificate: &Arc<Certificate>) -> Entry<'_> {
        let peer = PeerId::from_bytes(identity.clone());
        let mut known = self.0.lock();
        known.peers.insert(peer.clone(), Arc::clone(certificate));
        let held = Arc::clone(known.held.entry(certificate.name.clone()).or_default());
        Entry { registry: self, peer, name: certificate.name.clone(), held }
    }

    /// Where a connection comes from.
    ///
    /// What it said may be heard after it has closed: then it is [`Origin::Gone`], never one of this host.
    #[must_use]
    pub fn origin(&self, peer: &PeerId) -> Origin {
        if !peer.is_of_gate() {
            return Origin::Here;
        }
        self.0.lock().peers.get(peer).cloned().map_or(Origin::Gone, Origin::Elsewhere)
    }

    /// Lets the holder of a certificate reach a lane, by the name of its socket.
    pub fn open_lane(&self, lane: &str, certificate: &Certificate) {
        self.0.lock().lanes.insert(lane.to_owned(), certificate.name.clone());
    }

    /// The lane is over.
    pub fn close_lane(&self, lane: &str) {
        self.0.lock().lanes.remove(lane);
    }

    /// Whether the holder of a certificate may reach this lane.
    pub(crate) fn has_lane(&self, certificate: &Certificate, lane: &str) -> bool {
        self.0.lock().lanes.get(lane) == Some(&certificate.name)
    }
}
