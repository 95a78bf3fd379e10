//! Which blobs each certificate may read and write, and the blobs that are being brought or came in part.
//!
//! Does not: decide; the scheduler grants and withdraws.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use lamagrid_domain::{FailureKind, LeaseToken, TaskId};
use lamagrid_protocol::preamble::Refused;
use lamagrid_protocol::transfer::{Blob, Transfer};

use crate::spool::{BlobName, SpoolError, Writer};

/// Blobs that are kept in part, for peers that resume them; the oldest is dropped first.
const MOST_PARTIAL: usize = 64;

/// What the holder of a certificate may do with the blobs of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The certificate's name.
    pub certificate: String,
    /// Whose blobs.
    pub task: TaskId,
    /// Longest blob that may be written, in bytes.
    pub max_bytes: u64,
}

/// What a grant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ticket {
    /// For a node: an attempt's inputs, and its own result.
    Attempt(LeaseToken),
    /// For an owner: the inputs of a task that it will submit.
    Inputs(TaskId),
    /// For an owner: the result of its task.
    Result(TaskId),
}

impl Ticket {
    /// The ticket that a transfer of `blob` needs.
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
pub(crate) struct Incoming<'a> {
    grants: &'a Grants,
    ticket: Ticket,
    name: BlobName,
    stop: Arc<Notify>,
}

impl Incoming<'_> {
    /// Resolves when the grant was withdrawn, or the owner brings this blob on another connection.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Gives a blob that is complete its name, if the grant still holds: else its task may be over, and would never
    /// delete it, or be accepted, and have its inputs changed.
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
        // What came stays counted: its owner can replace it, and nothing else takes its room.
        if let Some(blob) = known.coming(self) {
            blob.coming = None;
        }
    }
}

/// A blob that has come in part.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) task: TaskId,
    pub(crate) name: BlobName,
    pub(crate) writer: Writer,
    pub(crate) written: u64,
}

impl Grants {
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

    /// The grant by which the holder of a certificate may make a transfer.
    #[must_use]
    pub fn granted(&self, certificate: &str, transfer: Transfer) -> Option<Grant> {
        let known = self.0.lock();
        let granted = known.grants.get(&Ticket::of(transfer.blob)).map(|granted| &granted.grant);
        granted.filter(|grant| grant.certificate == certificate).cloned()
    }

    /// Takes room for a blob of `len` bytes. `None` while another connection brings it, which is told to stop.
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

    /// Keeps what a cut left of a blob, while it may still be brought.
    pub(crate) fn keep(&self, incoming: &Incoming<'_>, partial: Partial) {
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

    /// Nothing of a task is to come in any more: what a cut left of it goes.
    fn give_up(&mut self, task: TaskId) {
        self.partial.retain(|each| each.task != task);
    }
}
