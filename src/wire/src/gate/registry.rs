//! Who is connected through the gate, and what is whose: lanes and blobs.
//!
//! Does not: decide; the scheduler writes lanes and grants, the gate its peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use lamagrid_domain::{FailureKind, TaskId};

use super::blobs::{Grant, Ticket, Transfer};
use super::credentials::Certificate;
use super::line::{Channel, Refused};
use super::zmtp::Held;
use crate::router::PeerId;
use crate::spool::{BlobName, Writer};

/// What cuts left of blobs, for peers that come back; the oldest goes first.
const MOST_PARTIAL: usize = 64;

/// Who is connected, and which lanes are whose. Cheap to clone; the scheduler writes lanes, the gate peers.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    peers: BTreeMap<PeerId, Arc<Certificate>>,
    /// By the names of certificates, while they are connected.
    held: BTreeMap<String, Held>,
    /// Names of lanes with the name of the certificate that may reach them.
    lanes: BTreeMap<String, String>,
    grants: BTreeMap<Ticket, Grant>,
    partial: Vec<Partial>,
}

/// A blob that has come in part.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) task: TaskId,
    pub(super) name: BlobName,
    pub(super) writer: Writer,
    pub(super) written: u64,
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
pub(super) struct Entry<'a> {
    registry: &'a Registry,
    peer: PeerId,
    name: String,
    held: Held,
}

impl Entry<'_> {
    /// What this peer's connections share.
    pub(super) fn held(&self) -> Held {
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
    pub(super) fn enter(&self, identity: &Bytes, certificate: &Arc<Certificate>) -> Entry<'_> {
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

    /// Lets the holder of a certificate have what a ticket is for.
    pub fn grant(&self, ticket: Ticket, grant: Grant) {
        self.0.lock().grants.insert(ticket, grant);
    }

    /// The task has been accepted, or was not and will not be: nothing of its inputs is to be brought any more.
    pub fn withdraw_inputs(&self, task: TaskId) {
        let mut known = self.0.lock();
        known.give_up(task);
        known.grants.remove(&Ticket::Inputs(task));
    }

    /// The task has ended: its attempts are over.
    pub fn withdraw_attempts(&self, task: TaskId) {
        let mut known = self.0.lock();
        known.give_up(task);
        // Tickets of attempts come first: of them there are as many as tasks that run, whatever results are kept.
        let attempts = known.grants.iter().take_while(|(ticket, _)| matches!(ticket, Ticket::Attempt(_)));
        let over: Vec<Ticket> =
            attempts.filter(|(_, grant)| grant.task == task).map(|(ticket, _)| *ticket).collect();
        for ticket in over {
            known.grants.remove(&ticket);
        }
    }

    /// The result of an ended task is gone.
    pub fn withdraw_result(&self, task: TaskId) {
        self.0.lock().grants.remove(&Ticket::Result(task));
    }

    pub(super) fn granted(&self, certificate: &Certificate, transfer: Transfer) -> Option<Grant> {
        let known = self.0.lock();
        known.grants.get(&transfer.ticket()).filter(|grant| grant.certificate == certificate.name).cloned()
    }

    pub(super) fn is_granted(&self, ticket: Ticket) -> bool {
        self.0.lock().grants.contains_key(&ticket)
    }

    /// Keeps what a cut left of a blob, while it may still be brought.
    pub(super) fn keep(&self, ticket: Ticket, partial: Partial) {
        let mut known = self.0.lock();
        if !known.grants.contains_key(&ticket) {
            return;
        }
        known.partial.retain(|other| (other.task, other.name) != (partial.task, partial.name));
        if known.partial.len() >= MOST_PARTIAL {
            known.partial.remove(0);
        }
        known.partial.push(partial);
    }

    /// What a cut left of a blob.
    pub(super) fn resume(&self, task: TaskId, name: BlobName) -> Option<Partial> {
        let partial = &mut self.0.lock().partial;
        let at = partial.iter().position(|each| (each.task, each.name) == (task, name))?;
        Some(partial.remove(at))
    }

    pub(super) fn may_reach(&self, certificate: &Certificate, channel: &Channel) -> Result<(), Refused> {
        let refused = |text: String| Err(Refused::new(FailureKind::InvalidInput, text));
        if !channel.is_for(certificate.role) {
            return refused(format!(
                "a certificate of the role {} does not open the channel {}: issue one with another --role",
                certificate.role,
                channel.name()
            ));
        }
        match channel {
            Channel::Lane(lane) if self.0.lock().lanes.get(lane) != Some(&certificate.name) => {
                refused(format!("the lane {lane} is not yours, or its session is over"))
            }
            Channel::Blob(transfer) if self.granted(certificate, *transfer).is_none() => {
                Err(Refused::not_granted())
            }
            Channel::Lane(_) | Channel::Named(_) | Channel::Blob(_) => Ok(()),
        }
    }
}

impl Known {
    /// Nothing of a task is to come in any more: what a cut left of it goes.
    fn give_up(&mut self, task: TaskId) {
        self.partial.retain(|each| each.task != task);
    }
}
