//! The due times of one task.

/// Its keys in [`super::task_timers`], which alone sets them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TimerKeys {
    pub(super) wait: Option<u64>,
    pub(super) run: Option<u64>,
    pub(super) rise: Option<u64>,
    pub(super) spill: Option<u64>,
    pub(super) no_node: Option<u64>,
}
