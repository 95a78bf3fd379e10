//! Limits the number of connections per host, per certificate and in total.
//!
//! Connections that are not authenticated yet have a separate budget, so that strangers never take a place
//! from peers. When it is used up, the oldest handshake of the host with the most handshakes is ended: a
//! flooding host ends its own. Authenticated connections are counted by purpose, so that many clients behind
//! an address cannot keep nodes behind it out, and admitted peers can transfer their blobs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Limit on all authenticated connections.
const MAX_PEERS: usize = 8_192;
/// Limit on concurrent handshakes.
const MAX_HANDSHAKES: usize = 512;
const MIN_HANDSHAKES: usize = 8;
/// Handshakes may use this fraction (1/8) of the descriptors.
const HANDSHAKE_SHARE: usize = 8;
/// Descriptors reserved per authenticated connection. It uses three: its socket and both ends of the private
/// one behind it. The fourth is left to the local connections of this host.
const DESCRIPTORS_OF_PEER: usize = 4;
/// Descriptors reserved for other parts of the process: the store, the private sockets, HTTP.
const DESCRIPTORS_OF_OTHERS: usize = 96;

/// The purpose of an authenticated connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// The session of a client or administrator.
    Clients,
    /// A client's blob transfer or probe.
    Transfers,
    /// Any connection of a node.
    Nodes,
}

impl Room {
    /// The fraction of all places, in quarters, that this purpose and the ones before it may take together:
    /// some places are left to transfers, and some to nodes.
    const fn quarters(self) -> usize {
        match self {
            Self::Clients => 2,
            Self::Transfers => 3,
            Self::Nodes => 4,
        }
    }

    const fn of_what(self) -> &'static str {
        match self {
            Self::Clients => "connections of clients",
            Self::Transfers => "transfers of clients",
            Self::Nodes => "connections of nodes",
        }
    }
}

/// The setting that limits the connections of one host and of one certificate.
const SETTING: &str = "gate.max_connections_per_peer";

/// The limits on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    handshakes: usize,
    peers: usize,
    of_one: usize,
}

impl Bounds {
    /// Derives the limits from the number of descriptors; `of_one` limits the connections of one purpose from
    /// one host or certificate.
    pub(crate) fn of(descriptors: usize, of_one: usize) -> Self {
        let available = descriptors.saturating_sub(DESCRIPTORS_OF_OTHERS);
        let handshakes = (available / HANDSHAKE_SHARE).clamp(MIN_HANDSHAKES, MAX_HANDSHAKES);
        let peers = (available.saturating_sub(handshakes) / DESCRIPTORS_OF_PEER).clamp(1, MAX_PEERS);
        Self { handshakes, peers, of_one: of_one.min(peers.div_ceil(2)) }
    }
}

/// All places. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    bounds: Bounds,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// The handshakes of each host, oldest first, with the sender that ends each one.
    handshakes: BTreeMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
    by_room: BTreeMap<Room, usize>,
    by_host: BTreeMap<(Room, IpAddr), usize>,
    by_certificate: BTreeMap<(Room, String), usize>,
}

/// Why an authenticated connection gets no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// Its host or certificate has reached its limit.
    #[error("{limit} {} of {of} are open (limit {limit}, {SETTING} in the scheduler's configuration)", room.of_what())]
    One {
        /// The host or certificate.
        of: String,
        /// The purpose of the connections.
        room: Room,
        /// The limit.
        limit: usize,
    },
    /// All connections together have reached the limit.
    #[error("the gate has {limit} {} open, which is the limit (by the descriptors of its process: ulimit -n)", room.of_what())]
    All {
        /// The purpose of the connections.
        room: Room,
        /// The limit.
        limit: usize,
    },
}

/// The place of one connection; returned on drop.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    host: IpAddr,
    number: u64,
    /// The purpose and certificate, once the connection is authenticated.
    peer: Mutex<Option<(Room, String)>>,
}

impl Places {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, taken: Arc::default() }
    }

    /// Takes a place for a handshake. The receiver gets a value if this handshake must end to make room for a newer one.
    pub(crate) fn enter(&self, from: IpAddr) -> (Place, oneshot::Receiver<()>) {
        let host = host_of(from);
        let mut taken = self.taken.lock();
        if taken.handshakes.values().map(BTreeMap::len).sum::<usize>() >= self.bounds.handshakes {
            taken.evict();
        }
        let number = taken.next;
        taken.next += 1;
        let (end, evicted) = oneshot::channel();
        taken.handshakes.entry(host).or_default().insert(number, end);
        drop(taken);
        (Place { places: self.clone(), host, number, peer: Mutex::new(None) }, evicted)
    }
}

impl Place {
    /// Moves an authenticated connection from the handshakes to the places of peers.
    pub(crate) fn authenticated(&self, certificate: &str, room: Room) -> Result<(), NoPlace> {
        let Bounds { peers, of_one, .. } = self.places.bounds;
        let mut taken = self.places.taken.lock();
        let limit = (peers * room.quarters() / 4).max(1);
        if taken.by_room.range(..=room).map(|(_, count)| count).sum::<usize>() >= limit
            || taken.all() >= peers
        {
            return Err(NoPlace::All { room, limit });
        }
        let is_full = |count: Option<&usize>| count.is_some_and(|count| *count >= of_one);
        let (of_host, of_certificate) = ((room, self.host), (room, certificate.to_owned()));
        if is_full(taken.by_host.get(&of_host)) {
            return Err(NoPlace::One { of: format!("your address {}", self.host), room, limit: of_one });
        }
        if is_full(taken.by_certificate.get(&of_certificate)) {
            return Err(NoPlace::One { of: format!("the certificate {certificate}"), room, limit: of_one });
        }
        taken.end_handshake(self.host, self.number);
        *taken.by_room.entry(room).or_default() += 1;
        *taken.by_host.entry(of_host).or_default() += 1;
        *taken.by_certificate.entry(of_certificate).or_default() += 1;
        *self.peer.lock() = Some((room, certificate.to_owned()));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        match self.peer.get_mut().take() {
            None => taken.end_handshake(self.host, self.number),
            Some(peer) => {
                trim(&mut taken.by_room, &peer.0);
                trim(&mut taken.by_host, &(peer.0, self.host));
                trim(&mut taken.by_certificate, &peer);
            }
        }
    }
}

impl Taken {
    fn all(&self) -> usize {
        self.by_room.values().sum()
    }

    fn end_handshake(&mut self, host: IpAddr, number: u64) {
        if let Some(of_host) = self.handshakes.get_mut(&host) {
            of_host.remove(&number);
            if of_host.is_empty() {
                self.handshakes.remove(&host);
            }
        }
    }

    /// Ends the oldest handshake of the host with the most handshakes.
    fn evict(&mut self) {
        let Some(host) =
            self.handshakes.iter().max_by_key(|(_, of_host)| of_host.len()).map(|(host, _)| *host)
        else {
            return;
        };
        if let Some((number, end)) = self.handshakes.get_mut(&host).and_then(BTreeMap::pop_first) {
            // Fails only if the connection is ending at this moment.
            let _ = end.send(());
            self.end_handshake(host, number);
        }
    }
}

fn trim<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The host that an address counts for: in IPv6, one host usually has a whole /64.
fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const FEW: Bounds = Bounds { handshakes: 4, peers: 8, of_one: 3 };

    fn one(of: &str, room: Room) -> NoPlace {
        NoPlace::One { of: of.to_owned(), room, limit: 3 }
    }

    #[test]
    fn an_ipv6_network_counts_as_one_host() {
        assert_eq!(host_of(ip("2001:db8:1:2:3:4:5:6")), host_of(ip("2001:db8:1:2:ffff::1")));
        assert_ne!(host_of(ip("2001:db8:1:2::1")), host_of(ip("2001:db8:1:3::1")));
        assert_eq!(host_of(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
        assert_ne!(host_of(ip("10.0.0.1")), host_of(ip("10.0.0.2")));
    }

    #[test]
    fn a_flood_of_handshakes_evicts_handshakes_of_its_own_host() {
        let places = Places::new(FEW);
        let (_honest, mut honest_evicted) = places.enter(ip("10.0.0.1"));
        let mut flood: Vec<_> = (0..20).map(|n| places.enter(ip(&format!("2001:db8::{n:x}")))).collect();
        let evicted: Vec<_> = flood.iter_mut().map(|(_, evicted)| evicted.try_recv().is_ok()).collect();
        // Three places remain beside the honest handshake, for the newest three of the flood.
        assert_eq!(evicted, [[true; 17].as_slice(), &[false; 3]].concat());
        assert!(honest_evicted.try_recv().is_err());
        drop(flood);
        assert_eq!(places.taken.lock().handshakes.len(), 1);
    }

    #[test]
    fn authenticated_connections_are_not_evicted_but_limited_per_host_certificate_and_in_total() {
        let places = Places::new(FEW);
        let peer = |address: &str, certificate: &str, room| {
            let (place, evicted) = places.enter(ip(address));
            place.authenticated(certificate, room).map(|()| (place, evicted))
        };
        let (clients, transfers, nodes) = (Room::Clients, Room::Transfers, Room::Nodes);
        let mut kept: Vec<_> =
            (0..3).map(|n| peer(&format!("10.0.0.{n}"), "web", clients).unwrap()).collect();
        assert_eq!(peer("10.0.0.9", "web", clients).unwrap_err(), one("the certificate web", clients));
        kept.push(peer("10.0.0.1", "other", clients).unwrap());
        // Half of the places is for the sessions of clients, and a quarter is left to nodes.
        assert_eq!(peer("10.0.0.7", "new", clients).unwrap_err(), NoPlace::All { room: clients, limit: 4 });
        kept.push(peer("10.0.0.1", "web", transfers).unwrap());
        kept.push(peer("10.0.0.1", "web", transfers).unwrap());
        assert_eq!(
            peer("10.0.0.1", "web", transfers).unwrap_err(),
            NoPlace::All { room: transfers, limit: 6 }
        );
        kept.push(peer("10.0.0.1", "gpu", nodes).unwrap());
        kept.push(peer("10.0.0.1", "gpu", nodes).unwrap());
        assert_eq!(peer("10.0.0.1", "gpu-2", nodes).unwrap_err(), NoPlace::All { room: nodes, limit: 8 });
        drop(kept.remove(0));
        kept.push(peer("10.0.0.1", "gpu", nodes).unwrap());
        drop(kept.remove(0));
        assert_eq!(peer("10.0.0.1", "gpu-2", nodes).unwrap_err(), one("your address 10.0.0.1", nodes));
        let _flood: Vec<_> = (0..20).map(|_| places.enter(ip("10.0.0.1"))).collect();
        for (_, evicted) in &mut kept {
            assert!(evicted.try_recv().is_err());
        }
        drop(kept);
        let taken = places.taken.lock();
        assert_eq!((taken.all(), taken.by_host.len(), taken.by_certificate.len()), (0, 0, 0));
    }

    #[test]
    fn a_refusal_names_the_count_the_address_and_the_setting() {
        assert_eq!(
            one("your address 10.0.0.1", Room::Clients).to_string(),
            "3 connections of clients of your address 10.0.0.1 are open (limit 3, gate.max_connections_per_peer in the \
             scheduler's configuration)"
        );
    }

    #[test]
    fn limits_leave_descriptors_to_others() {
        for descriptors in [0, 64, 224, 1_024, 20_000, 1 << 20] {
            let Bounds { handshakes, peers, of_one } = Bounds::of(descriptors, 256);
            assert!(of_one <= peers && peers >= 1 && handshakes >= MIN_HANDSHAKES);
            if descriptors >= 224 {
                assert!(handshakes + DESCRIPTORS_OF_PEER * peers + DESCRIPTORS_OF_OTHERS <= descriptors);
            }
        }
    }
}
