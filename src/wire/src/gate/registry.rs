//! Who is connected through the gate, and what is whose: lanes and blobs.
//!
//! Does not: decide; the scheduler writes lanes and grants, the gate its peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use lamagrid_domain::{FailureKind, TaskId};

use super::blobs::{Grant, Ticket, Transfer};
use super::credentials::Certificate;
use super::line::{Channel, Refused};
use super::zmtp::Held;
use crate::router::PeerId;
use crate::spool::{BlobName, SpoolError, Writer};

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
    grants: BTreeMap<Ticket, Granted>,
    partial: Vec<Partial>,
}

/// A grant, and what was written by it.
#[derive(Debug)]
struct Granted {
    grant: Grant,
    blobs: Vec<Written>,
}

/// One blob of a grant: it has come, is coming, or came in part.
#[derive(Debug)]
struct Written {
    name: BlobName,
    /// As long as it will be.
    len: u64,
    /// Tells the connection that brings it to stop.
    coming: Option<Arc<Notify>>,
}

/// A blob that one connection brings, until this is dropped. No other one brings it meanwhile.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    registry: &'a Registry,
    ticket: Ticket,
    name: BlobName,
    stop: Arc<Notify>,
}

impl Incoming<'_> {
    /// Resolves when the grant was withdrawn, or the owner brings this blob on another connection.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Gives a blob that is complete its name, if the grant still holds: else its task may be over, and would never
    /// delete it, or be accepted, and have its inputs changed.
    pub(super) fn finish(&self, writer: Writer) -> Result<Result<(), SpoolError>, Refused> {
        let mut known = self.registry.0.lock();
        if known.coming(self).is_none() {
            return Err(Refused::not_granted());
        }
        Ok(writer.finish())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let mut known = self.registry.0.lock();
        // What came stays counted: its owner can replace it, and nothing else takes its room.
        if let Some(blob) = known.coming(self) {
            blob.coming = None;
        }
    }
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

    /// Lets the holder of a certificate have what a ticket is for. One that it has already may grow by that, and what was
    /// written by it stays counted.
    pub fn grant(&self, ticket: Ticket, grant: Grant) {
        let mut known = self.0.lock();
        match known.grants.get_mut(&ticket) {
            Some(granted) if granted.grant.certificate == grant.certificate => granted.grant = grant,
            _ => _ = known.grants.insert(ticket, Granted { grant, blobs: Vec::new() }),
        }
    }

    /// A task of a certificate's has been accepted, or was not and will not be: nothing of its inputs is to be brought
    /// any more.
    pub fn withdraw_inputs(&self, task: TaskId, certificate: &str) {
        let mut known = self.0.lock();
        let ticket = Ticket::Inputs(task);
        if known.grants.get(&ticket).is_some_and(|granted| granted.grant.certificate == certificate) {
            known.give_up(task);
            known.withdraw(ticket);
        }
    }

    /// The task has ended: its attempts are over.
    pub fn withdraw_attempts(&self, task: TaskId) {
        let mut known = self.0.lock();
        known.give_up(task);
        // Tickets of attempts come first: of them there are as many as tasks that run, whatever results are kept.
        let attempts = known.grants.iter().take_while(|(ticket, _)| matches!(ticket, Ticket::Attempt(_)));
        let over: Vec<Ticket> =
            attempts.filter(|(_, granted)| granted.grant.task == task).map(|(ticket, _)| *ticket).collect();
        for ticket in over {
            known.withdraw(ticket);
        }
    }

    /// The result of an ended task is gone.
    pub fn withdraw_result(&self, task: TaskId) {
        self.0.lock().withdraw(Ticket::Result(task));
    }

    pub(super) fn granted(&self, certificate: &Certificate, transfer: Transfer) -> Option<Grant> {
        let known = self.0.lock();
        let granted = known.grants.get(&transfer.ticket()).map(|granted| &granted.grant);
        granted.filter(|grant| grant.certificate == certificate.name).cloned()
    }

    /// Takes room for a blob of `len` bytes. `None` while another connection brings it, which is told to stop.
    pub(super) fn take_in(
        &self,
        ticket: Ticket,
        name: BlobName,
        len: u64,
    ) -> Result<Option<Incoming<'_>>, Refused> {
        let mut known = self.0.lock();
        let Some(Granted { grant, blobs }) = known.grants.get_mut(&ticket) else {
            return Err(Refused::not_granted());
        };
        let others = blobs.iter().filter(|blob| blob.name != name).fold(0_u64, |sum, blob| sum + blob.len);
        if len > grant.max_bytes.saturating_sub(others) {
            let text = format!(
                "a blob of {len} bytes; {} are allowed for the task, and its other blobs have {others}",
                grant.max_bytes
            );
            return Err(Refused::new(FailureKind::InvalidInput, text));
        }
        let stop = Arc::new(Notify::new());
        match blobs.iter_mut().find(|blob| blob.name == name) {
            Some(Written { coming: Some(other), .. }) => {
                other.notify_one();
                return Ok(None);
            }
            Some(blob) => *blob = Written { name, len, coming: Some(Arc::clone(&stop)) },
            None => blobs.push(Written { name, len, coming: Some(Arc::clone(&stop)) }),
        }
        Ok(Some(Incoming { registry: self, ticket, name, stop }))
    }

    /// Keeps what a cut left of a blob, while it may still be brought.
    pub(super) fn keep(&self, incoming: &Incoming<'_>, partial: Partial) {
        let mut known = self.0.lock();
        if known.coming(incoming).is_none() {
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
            Channel::Lane(_) | Channel::Named(_) | Channel::Blob(_) | Channel::Probe => Ok(()),
        }
    }
}

impl Known {
    fn coming(&mut self, incoming: &Incoming<'_>) -> Option<&mut Written> {
        let blobs = &mut self.grants.get_mut(&incoming.ticket)?.blobs;
        let is_it =
            |blob: &Written| blob.coming.as_ref().is_some_and(|stop| Arc::ptr_eq(stop, &incoming.stop));
        blobs.iter_mut().find(|blob| blob.name == incoming.name && is_it(blob))
    }

    fn withdraw(&mut self, ticket: Ticket) {
        let granted = self.grants.remove(&ticket);
        granted
            .iter()
            .flat_map(|granted| &granted.blobs)
            .filter_map(|blob| blob.coming.as_ref())
            .for_each(|coming| coming.notify_one());
    }

    /// Nothing of a task is to come in any more: what a cut left of it goes.
    fn give_up(&mut self, task: TaskId) {
        self.partial.retain(|each| each.task != task);
    }
}
