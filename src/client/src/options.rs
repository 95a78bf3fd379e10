//! Defines a client's options and limits.

use std::path::PathBuf;
use std::time::Duration;

use lamagrid_domain::Owner;

/// Options of a [`crate::Client`]. The default values are those of the default configuration.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The user that submits; the scheduler shows and cancels a task only for its owner.
    pub owner: Owner,
    /// Interval between pings.
    pub ping: Duration,
    /// The client reconnects after this time without a message.
    pub silence: Duration,
    /// The scheduler's data directory, named in the hint how to start it.
    pub data_dir: Option<PathBuf>,
    /// Limit on the tasks followed at a time; further ones are refused.
    pub max_tasks: usize,
    /// Limit on the bytes of inputs kept at a time; tasks beyond it are refused.
    pub max_bytes: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            owner: Owner::local(),
            ping: Duration::from_secs(1),
            silence: Duration::from_secs(3), // three pings
            data_dir: None,
            max_tasks: 1_024,   // the default bound of a scheduler's queue
            max_bytes: 2 << 30, // five pictures of 100 megapixels with their masks, as arrays
        }
    }
}
