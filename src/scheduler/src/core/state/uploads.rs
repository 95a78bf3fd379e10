//! Inputs that were announced and whose task is not submitted yet.

use std::collections::{BTreeSet, HashMap};

use lamagrid_domain::{ClientName, Owner, TaskId};

/// Room that is reserved for the inputs of one task.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) owner: Owner,
    pub(crate) client: Option<ClientName>,
    pub(crate) bytes: u64,
    /// Lease clock: the upload is given up then.
    pub(crate) until_ms: u64,
}

/// All reservations.
///
/// Invariant: each has one entry among the ends.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    by_id: HashMap<TaskId, Upload>,
    ends: BTreeSet<(u64, TaskId)>,
}

impl Uploads {
    pub(super) fn insert(&mut self, id: TaskId, upload: Upload) {
        self.ends.insert((upload.until_ms, id));
        self.by_id.insert(id, upload);
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Upload> {
        let upload = self.by_id.remove(&id)?;
        self.ends.remove(&(upload.until_ms, id));
        Some(upload)
    }

    /// Whether another owner reserved room under this id.
    pub(crate) fn is_of_another(&self, id: TaskId, owner: &Owner) -> bool {
        self.by_id.get(&id).is_some_and(|upload| upload.owner != *owner)
    }

    /// An upload whose time is over.
    pub(crate) fn expired(&self, clock_ms: u64) -> Option<TaskId> {
        self.ends.first().filter(|(at, _)| *at <= clock_ms).map(|(_, id)| *id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.by_id.values().map(|upload| upload.bytes).sum()
    }

    #[cfg(test)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.by_id.keys()
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let ends: BTreeSet<_> = self.by_id.iter().map(|(id, upload)| (upload.until_ms, *id)).collect();
        invariant!(ends == self.ends, "uploads end at {ends:?}, listed is {:?}", self.ends);
        Ok(())
    }
}
