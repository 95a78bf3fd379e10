//! The memory that the attempts of a session take together, computed once after each change.

use std::cell::{Ref, RefCell};

use lamagrid_domain::ModelName;

use super::task::Task;

/// The memory of attempts on one device, where those of one model share it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TakenMemory {
    bytes: u64,
    models: Vec<ModelName>,
}

impl TakenMemory {
    /// Adds an attempt that needs this much alone.
    pub(crate) fn add(&mut self, task: &Task, need_bytes: u64) {
        self.bytes = self.bytes_with(task, need_bytes);
        if !self.models.contains(&task.spec().model) {
            self.models.push(task.spec().model.clone());
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memory with another attempt that needs this much alone.
    pub(crate) fn bytes_with(&self, task: &Task, need_bytes: u64) -> u64 {
        let is_shared = self.models.contains(&task.spec().model);
        let model_bytes = if is_shared { task.demand().model_bytes } else { 0 };
        self.bytes.saturating_add(need_bytes.saturating_sub(model_bytes))
    }
}

/// The last computed figure, with the version of the learned needs on which it rests.
#[derive(Debug, Default)]
pub(super) struct CachedMemory(RefCell<Option<(u64, TakenMemory)>>);

impl CachedMemory {
    /// The attempts have changed.
    pub(super) fn forget(&mut self) {
        *self.0.get_mut() = None;
    }

    pub(super) fn get(
        &self,
        needs_version: u64,
        compute: impl FnOnce() -> TakenMemory,
    ) -> Ref<'_, TakenMemory> {
        if self.0.borrow().as_ref().is_none_or(|(version, _)| *version != needs_version) {
            let computed = compute();
            *self.0.borrow_mut() = Some((needs_version, computed));
        }
        Ref::map(self.0.borrow(), |cached| &cached.as_ref().expect("computed above").1)
    }
}
