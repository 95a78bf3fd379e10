//! Locks, opens and recovers the data directory of one scheduler.

use std::path::{Path, PathBuf};

use lamagrid_config::Config;

use super::SchedulerError;
use super::instance_lock::InstanceLock;
use crate::core::Recovered;
use crate::store::Store;

/// A locked and opened data directory. No other scheduler can use it while this value exists.
pub struct DataDir {
    pub(super) path: PathBuf,
    pub(super) store: Store,
    pub(super) recovered: Recovered,
    /// Number of tasks without a row whose blobs were deleted.
    pub(super) swept: usize,
    pub(super) _lock: InstanceLock,
}

impl std::fmt::Debug for DataDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataDir").field("path", &self.path).finish_non_exhaustive()
    }
}

impl DataDir {
    /// Locks the configured data directory, opens its store and reads the stored tasks.
    ///
    /// # Errors
    /// [`SchedulerError`] if the directory cannot be used, another scheduler has it, or the store cannot be
    /// opened.
    pub fn open(config: &Config) -> Result<Self, SchedulerError> {
        let path = config.data_dir()?;
        let _lock = InstanceLock::take(&path)?;
        let mut store = Store::open(&path)?;
        let (recovered, swept) = store.recover()?;
        Ok(Self { path, store, recovered, swept, _lock })
    }

    /// Path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
