//! Records which blobs each certificate may read and write, and which uploads are running or interrupted.
//!
//! Does not: decide who gets access; the scheduler grants and withdraws.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use lamagrid_domain::{FailureKind, LeaseToken, TaskId};
use lamagrid_protocol::preamble::Refused;
use lamagrid_protocol::transfer::{Blob, Transfer};

use crate::spool::{BlobName, SpoolError, Writer};

/// Most interrupted uploads that are kept for resuming; the oldest is dropped first.
const MAX_PARTIAL: usize = 64;

/// The permission of one certificate for the blobs of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The name of the certificate that holds the grant.
    pub certificate: String,
    /// The task whose blobs the grant covers.
    pub task: TaskId,
    /// Limit on the total size of the blobs written under the grant, in bytes.
    pub max_bytes: u64,
}

/// The key of a grant: the transfers that it permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ticket {
    /// For a node: reading an attempt's inputs and writing its result.
    Attempt(LeaseToken),
    /// For an owner: writing the inputs of a task that it will submit.
    Inputs(TaskId),
    /// For an owner: reading the result of its task.
    Result(TaskId),
}

impl Ticket {
    /// The ticket that a transfer of `blob` requires.
    #[must_use]
    pub const fn of(blob: Blob) -> Self {
        match blob {
            Blob::Input(token, _) | Blob::Attempt(token) => Self::Attempt(token),
            Blob::Upload(task, _) => Self::Inputs(task),
            Blob::Result(task) => Self::Result(task),
        }
    }
}

/// All grants. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Grants(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    grants: BTreeMap<Ticket, Granted>,
    partial: Vec<Partial>,
}

/// A grant, with the blobs written under it.
#[derive(Debug)]
struct Granted {
    grant: Grant,
    blobs: Vec<Written>,
}

/// One blob written under a grant: complete, being uploaded, or interrupted.
#[derive(Debug)]
struct Written {
    name: BlobName,
    /// The announced length in bytes.
    len: u64,
    /// Tells the connection that uploads the blob to stop; `None` while no connection does.
    coming: Option<Arc<Notify>>,
}

/// The exclusive right of one connection to upload a blob, until this is dropped.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    grants: &'a Grants,
    ticket: Ticket,
    name: BlobName,
    stop: Arc<Notify>,
}

impl Incoming<'_> {
    /// Resolves when the grant is withdrawn, or when the owner uploads this blob on another connection.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Gives a complete blob its final name if the grant still holds. Without the grant the task may have
    /// ended, and would never delete the blob, or may have been accepted, and its inputs must not change.
    pub(crate) fn finish(&self, writer: Writer) -> Result<Result<(), SpoolError>, Refused> {
        let mut known = self.grants.0.lock();
        if known.coming(self).is_none() {
            return Err(Refused::not_granted());
        }
        Ok(writer.finish())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let mut known = self.grants.0.lock();
        // The blob's bytes stay counted: the owner can replace the blob, but no other blob takes its room.
        if let Some(blob) = known.coming(self) {
            blob.coming = None;
        }
    }
}

/// An interrupted upload.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) task: TaskId,
    pub(crate) name: BlobName,
    pub(crate) writer: Writer,
    pub(crate) written: u64,
}

impl Grants {
    /// Adds a grant. If the same certificate already holds this ticket, only the limit is replaced: blobs
    /// written before stay counted.
    pub fn grant(&self, ticket: Ticket, grant: Grant) {
        let mut known = self.0.lock();
        match known.grants.get_mut(&ticket) {
            Some(granted) if granted.grant.certificate == grant.certificate => granted.grant = grant,
            _ => _ = known.grants.insert(ticket, Granted { grant, blobs: Vec::new() }),
        }
    }

    /// Withdraws an owner's permission to upload a task's inputs, because the task was accepted or will not be.
    pub fn withdraw_inputs(&self, task: TaskId, certificate: &str) {
        let mut known = self.0.lock();
        let ticket = Ticket::Inputs(task);
        if known.grants.get(&ticket).is_some_and(|granted| granted.grant.certificate == certificate) {
            known.give_up(task);
            known.withdraw(ticket);
        }
    }

    /// Withdraws the grants of a task's attempts; called when the task has ended.
    pub fn withdraw_attempts(&self, task: TaskId) {
        let mut known = self.0.lock();
        known.give_up(task);
        // Attempts sort first among tickets, so that this visits only the running tasks' grants and no kept results.
        let attempts = known.grants.iter().take_while(|(ticket, _)| matches!(ticket, Ticket::Attempt(_)));
        let over: Vec<Ticket> =
            attempts.filter(|(_, granted)| granted.grant.task == task).map(|(ticket, _)| *ticket).collect();
        for ticket in over {
            known.withdraw(ticket);
        }
    }

    /// Withdraws the permission to read a task's result; called when the result is deleted.
    pub fn withdraw_result(&self, task: TaskId) {
        self.0.lock().withdraw(Ticket::Result(task));
    }

    /// The grant that permits a certificate's holder a transfer; `None` without such a grant.
    #[must_use]
    pub fn granted(&self, certificate: &str, transfer: Transfer) -> Option<Grant> {
        let known = self.0.lock();
        let granted = known.grants.get(&Ticket::of(transfer.blob)).map(|granted| &granted.grant);
        granted.filter(|grant| grant.certificate == certificate).cloned()
    }

    /// Reserves room for a blob of `len` bytes. `None` while another connection uploads it, which is told to stop.
    pub(crate) fn take_in(
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
        Ok(Some(Incoming { grants: self, ticket, name, stop }))
    }

    /// Keeps an interrupted upload for resuming, unless the grant was withdrawn meanwhile.
    pub(crate) fn keep(&self, incoming: &Incoming<'_>, partial: Partial) {
        let mut known = self.0.lock();
        if known.coming(incoming).is_none() {
            return;
        }
        known.partial.retain(|other| (other.task, other.name) != (partial.task, partial.name));
        if known.partial.len() >= MAX_PARTIAL {
            known.partial.remove(0);
        }
        known.partial.push(partial);
    }

    /// Takes the interrupted upload of a blob, if there is one.
    pub(crate) fn resume(&self, task: TaskId, name: BlobName) -> Option<Partial> {
        let partial = &mut self.0.lock().partial;
        let at = partial.iter().position(|each| (each.task, each.name) == (task, name))?;
        Some(partial.remove(at))
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

    /// Drops the interrupted uploads of a task.
    fn give_up(&mut self, task: TaskId) {
        self.partial.retain(|each| each.task != task);
    }
}
