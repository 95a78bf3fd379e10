//! Places the spool's files before the commit that names them, and deletes files after the commit that no
//! longer does.

use std::collections::HashSet;
use std::io;

use lamagrid_blobs::{BlobName, SpoolError};
use lamagrid_domain::{BlobMeta, Durability, Role, TaskId};

use super::{Store, StoreError};
use crate::core::{ResultPlace, StoreOp};

impl Store {
    /// Moves the files that an operation names to the paths that its row implies. Adds tasks whose results
    /// have vanished to `gone`.
    pub(super) fn place_files(&self, op: &StoreOp, gone: &mut HashSet<TaskId>) -> Result<(), StoreError> {
        let placed = match op {
            StoreOp::Together(ops) => return ops.iter().try_for_each(|op| self.place_files(op, gone)),
            StoreOp::Insert { spec, inherits: Some(dead), .. } => self.spool.inherit(*dead, spec),
            StoreOp::Insert { spec, inline, .. } if spec.durability == Durability::Full => spec
                .blobs
                .iter()
                .filter(|blob| !inline.iter().any(|(role, _)| *role == blob.role))
                .try_for_each(|blob| self.force(spec.id, blob)),
            StoreOp::End { id, ended, place: Some(ResultPlace::Spool(token)), durability, .. } => {
                // In a retried group, the attempt's file may already have been renamed to the result.
                match self.spool.promote(*id, *token) {
                    Err(SpoolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
                    promoted => promoted,
                }
                // After the rename, so that the new directory entry is synced as well.
                .and_then(|()| match &ended.result {
                    Some(result) if *durability == Durability::Full => self.force(*id, result),
                    Some(result) => {
                        self.spool.seal(*id, BlobName::Role(Role::Result), result.len, Durability::Process)
                    }
                    None => Ok(()),
                })
            }
            _ => Ok(()),
        };
        let lost = match &placed {
            Err(SpoolError::Mismatch { .. }) => true,
            Err(SpoolError::Io { source, .. }) => source.kind() == io::ErrorKind::NotFound,
            Ok(()) => false,
        };
        if !lost {
            return Ok(placed?);
        }
        // Its owner deleted it after announcing it, or the disk lost it. That concerns this task only; the
        // store goes on.
        if let (Err(error), StoreOp::End { id, .. }) = (&placed, op) {
            tracing::error!(task.id = %id, %error, "a result vanished before it was on record");
            gone.insert(*id);
        } else if let (Err(error), StoreOp::Insert { spec, .. }) = (&placed, op) {
            tracing::error!(task.id = %spec.id, %error, "an input vanished before its task was on record");
        }
        Ok(())
    }

    /// Syncs a blob to disk. If an earlier fsync of its file may have failed, it is rewritten first: another
    /// fsync would succeed without its bytes.
    fn force(&self, task: TaskId, blob: &BlobMeta) -> Result<(), SpoolError> {
        let name = BlobName::Role(blob.role);
        if self.doubtful || self.spool.written_before(task, name, self.opened)? {
            self.spool.rewrite(task, name, blob)?;
        }
        self.spool.seal(task, name, blob.len, Durability::Full)
    }

    pub(super) fn remove_files(&self, op: &StoreOp) -> Result<(), SpoolError> {
        match op {
            StoreOp::Together(ops) => ops.iter().try_for_each(|op| self.remove_files(op)),
            StoreOp::End { ended, .. } if ended.dead.is_some() => Ok(()),
            StoreOp::End { id, place: Some(ResultPlace::Spool(token)), .. } => {
                for role in [Role::Image, Role::Mask, Role::Example] {
                    self.spool.remove(*id, BlobName::Role(role))?;
                }
                self.spool.remove(*id, BlobName::Attempt(*token))
            }
            StoreOp::End { id, place: Some(ResultPlace::Inline(_)), .. } => self.spool.remove_task(*id),
            StoreOp::End { id, place: None, .. }
            | StoreOp::Release { id, .. }
            | StoreOp::Forget { id, .. }
                if !self.aside.contains(id) =>
            {
                self.spool.remove_task(*id)
            }
            StoreOp::End { .. } | StoreOp::Release { .. } | StoreOp::Forget { .. } => Ok(()),
            StoreOp::Insert { .. }
            | StoreOp::Assign { .. }
            | StoreOp::Requeue { .. }
            | StoreOp::Remember { .. }
            | StoreOp::Unremember { .. }
            | StoreOp::Watermark { .. }
            | StoreOp::Clock { .. }
            | StoreOp::Pause { .. }
            | StoreOp::NodeOrder { .. } => Ok(()),
        }
    }
}
