//! Counts tasks and bytes against the bounds: in total, per owner and per client.

use std::collections::{BTreeMap, HashMap};

use lamagrid_domain::{ClientName, Owner, QueueName, TaskId, TaskSpec};

use super::finished_task::FinishedTask;
use super::uploads::{Upload, Uploads};

/// Unfinished tasks and uploads, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) tasks: u64,
    pub(crate) bytes: u64,
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.tasks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn sub(&mut self, bytes: u64) {
        self.tasks -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The usage of one owner.
#[derive(Debug, Default)]
struct OwnerUsage {
    unfinished: Usage,
    /// The same by client.
    clients: HashMap<Option<ClientName>, Usage>,
    /// Bytes of results and dead letters.
    kept_bytes: u64,
    /// Waiting tasks by queue.
    queued: BTreeMap<QueueName, u64>,
}

/// Counts admitted tasks and kept results, and reserves room for announced uploads.
///
/// Invariant: the totals are the sums over all owners, and an owner that uses nothing is not listed.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Inputs of unfinished tasks and dead letters, results, and reserved uploads.
    spool_bytes: u64,
    /// The part of it that is reserved.
    reserved_bytes: u64,
    owners: HashMap<Owner, OwnerUsage>,
    /// Finished tasks that can be replayed.
    dead_letters: u64,
    /// Free space on the file system, as last reported.
    free_bytes: Option<u64>,
    uploads: Uploads,
}

impl Admission {
    pub(crate) fn spool_bytes(&self) -> u64 {
        self.spool_bytes
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }

    pub(crate) fn set_free_bytes(&mut self, free_bytes: u64) {
        self.free_bytes = Some(free_bytes);
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    fn owner(&mut self, owner: &Owner) -> &mut OwnerUsage {
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), OwnerUsage::default());
        }
        self.owners.get_mut(owner).expect("inserted above")
    }

    /// Changes what an owner uses, and forgets an owner that uses nothing.
    fn change(&mut self, owner: &Owner, change: impl FnOnce(&mut OwnerUsage)) {
        let usage = self.owner(owner);
        change(usage);
        if usage.unfinished.tasks == 0 && usage.kept_bytes == 0 && usage.queued.is_empty() {
            self.owners.remove(owner);
        }
    }

    fn add(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        let usage = self.owner(owner);
        usage.unfinished.add(bytes);
        usage.clients.entry(client.cloned()).or_default().add(bytes);
        self.spool_bytes = self.spool_bytes.saturating_add(bytes);
    }

    fn sub(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        self.change(owner, |usage| {
            usage.unfinished.sub(bytes);
            let client = client.cloned();
            if let Some(of_client) = usage.clients.get_mut(&client) {
                of_client.sub(bytes);
                if of_client.tasks == 0 {
                    usage.clients.remove(&client);
                }
            }
        });
        self.spool_bytes = self.spool_bytes.saturating_sub(bytes);
    }

    pub(crate) fn task_accepted(&mut self, spec: &TaskSpec) {
        self.add(&spec.owner, spec.client.as_ref(), spec.input_bytes());
    }

    pub(crate) fn task_ended(&mut self, spec: &TaskSpec) {
        self.sub(&spec.owner, spec.client.as_ref(), spec.input_bytes());
    }

    /// A task entered its queue.
    pub(crate) fn task_queued(&mut self, spec: &TaskSpec) {
        *self.owner(&spec.owner).queued.entry(spec.queue.clone()).or_default() += 1;
    }

    /// A task left its queue.
    pub(crate) fn task_unqueued(&mut self, spec: &TaskSpec) {
        self.change(&spec.owner, |usage| {
            if let Some(waiting) = usage.queued.get_mut(&spec.queue) {
                *waiting -= 1;
                if *waiting == 0 {
                    usage.queued.remove(&spec.queue);
                }
            }
        });
    }

    /// A finished task keeps its result, or its inputs as a dead letter.
    pub(crate) fn task_kept(&mut self, finished: &FinishedTask) {
        self.dead_letters += u64::from(finished.dead.is_some());
        let bytes = finished.kept_bytes();
        self.spool_bytes = self.spool_bytes.saturating_add(bytes);
        if bytes > 0 {
            self.owner(&finished.owner).kept_bytes += bytes;
        }
    }

    /// A finished task is removed, or a replay takes over the inputs of a dead letter.
    pub(crate) fn task_removed(&mut self, finished: &FinishedTask) {
        self.dead_letters -= u64::from(finished.dead.is_some());
        self.bytes_released(&finished.owner, finished.kept_bytes());
    }

    /// Kept bytes of an owner were deleted.
    pub(crate) fn bytes_released(&mut self, owner: &Owner, bytes: u64) {
        self.spool_bytes = self.spool_bytes.saturating_sub(bytes);
        if bytes > 0 {
            self.change(owner, |usage| usage.kept_bytes = usage.kept_bytes.saturating_sub(bytes));
        }
    }

    /// Reserves room for announced inputs: they count as a task of that size.
    pub(crate) fn reserve(&mut self, id: TaskId, upload: Upload) {
        self.add(&upload.owner, upload.client.as_ref(), upload.bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_add(upload.bytes);
        self.uploads.insert(id, upload);
    }

    /// Gives a reservation back: the upload has become a task, or is given up.
    pub(crate) fn unreserve(&mut self, id: TaskId) -> Option<Upload> {
        let upload = self.uploads.remove(id)?;
        self.sub(&upload.owner, upload.client.as_ref(), upload.bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_sub(upload.bytes);
        Some(upload)
    }

    pub(crate) fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// The usage of an owner, with the bytes of its finished tasks.
    pub(crate) fn used_by_owner(&self, owner: &Owner) -> Usage {
        let Some(usage) = self.owners.get(owner) else { return Usage::default() };
        let bytes = usage.unfinished.bytes.saturating_add(usage.kept_bytes);
        Usage { bytes, ..usage.unfinished }
    }

    /// The usage of one client of an owner.
    pub(crate) fn used_by_client(&self, owner: &Owner, client: Option<&ClientName>) -> Usage {
        let of_client = self.owners.get(owner).and_then(|usage| usage.clients.get(&client.cloned()));
        of_client.copied().unwrap_or_default()
    }

    /// Waiting tasks of an owner in a queue.
    pub(crate) fn queued_by(&self, owner: &Owner, queue: &QueueName) -> u64 {
        self.owners.get(owner).and_then(|usage| usage.queued.get(queue)).copied().unwrap_or(0)
    }

    /// Unfinished tasks and uploads of all owners.
    #[cfg(test)]
    pub(crate) fn unfinished(&self) -> u64 {
        self.owners.values().map(|usage| usage.unfinished.tasks).sum()
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut total = 0;
        for (owner, usage) in &self.owners {
            let OwnerUsage { unfinished, clients, kept_bytes, queued } = usage;
            total += unfinished.bytes + kept_bytes;
            let is_used = unfinished.tasks > 0 || *kept_bytes > 0 || !queued.is_empty();
            invariant!(is_used, "{owner} is listed and uses nothing");
            let tasks: u64 = clients.values().map(|of_client| of_client.tasks).sum();
            let bytes: u64 = clients.values().map(|of_client| of_client.bytes).sum();
            let by_client = Usage { tasks, bytes };
            invariant!(*unfinished == by_client, "{owner} uses {unfinished:?}, its clients {by_client:?}");
        }
        let (spool, reserved) = (self.spool_bytes, self.reserved_bytes);
        invariant!(spool == total, "{spool} bytes are counted in the spool, owners have {total}");
        let uploads = self.uploads.bytes();
        invariant!(reserved == uploads, "{reserved} bytes are reserved for uploads of {uploads}");
        self.uploads.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{finished, spec};

    #[test]
    fn what_came_and_went_leaves_nothing_behind() {
        let mut admission = Admission::default();
        let (task, done) = (spec(1), finished(spec(1).owner));
        let upload = Upload { owner: task.owner.clone(), client: None, bytes: 5, until_ms: 9 };
        admission.reserve(task.id, upload);
        assert_eq!((admission.reserved_bytes(), admission.spool_bytes()), (5, 5));
        admission.unreserve(task.id).unwrap();
        admission.task_accepted(&task);
        admission.task_queued(&task);
        assert_eq!(admission.used_by_owner(&task.owner), Usage { tasks: 1, bytes: 9 });
        assert_eq!(admission.queued_by(&task.owner, &task.queue), 1);
        admission.check().unwrap();
        admission.task_unqueued(&task);
        admission.task_ended(&task);
        admission.task_kept(&done);
        assert_eq!(admission.used_by_owner(&task.owner), Usage { tasks: 0, bytes: 4 });
        assert_eq!(admission.used_by_client(&task.owner, None), Usage::default());
        admission.check().unwrap();
        admission.task_removed(&done);
        assert!(admission.owners.is_empty() && admission.spool_bytes() == 0);
        admission.check().unwrap();
    }
}
