//! What a client may be told about its scheduler and its bounds.

use std::path::PathBuf;
use std::time::Duration;

use lamagrid_domain::Owner;

/// How a [`crate::Client`] behaves. [`ClientOptions::default`] is what the configuration's default says.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Who submits; the scheduler shows and cancels a task only for its owner.
    pub owner: Owner,
    /// Time between two signs of life.
    pub ping: Duration,
    /// After this silence the client connects anew.
    pub silence: Duration,
    /// The scheduler's data directory, for the text that says how to start it.
    pub data_dir: Option<PathBuf>,
    /// Tasks that this client follows at a time; more are refused here.
    pub max_tasks: usize,
    /// Bytes of inputs that this client keeps at a time; more are refused here.
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
