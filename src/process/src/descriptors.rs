//! Raises the limit on file descriptors, and keeps a reserve for the files that the scheduler needs to keep working.
//!
//! The soft limit is set below the hard limit by the reserve. Peers' sockets fail at the soft limit;
//! [`with_reserve`] raises it for one call that must not fail.

use std::io;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that only [`with_reserve`] may use.
const RESERVE: u64 = 32;
/// The lowest hard limit from which a reserve is subtracted.
const FEWEST: u64 = 4 * RESERVE;

/// Held while the limit is raised, so that only one call at a time uses the reserve.
static RAISED: Mutex<()> = Mutex::new(());

/// Raises this process's limit as far as the system allows, minus the reserve.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map(|most| if most >= FEWEST { most - RESERVE } else { most });
    // If the system refuses, the limit stays unchanged.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
}

/// The number of descriptors that this process may have, without the reserve.
#[must_use]
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Calls `open`; if the descriptors are used up, calls it again with the reserve.
///
/// # Errors
/// The errors of `open`.
pub fn with_reserve<T, E: Into<io::Error>>(mut open: impl FnMut() -> Result<T, E>) -> io::Result<T> {
    match open().map_err(Into::into) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::MFILE) => {
            let _one = RAISED.lock();
            let limit = getrlimit(Resource::Nofile);
            let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
            let opened = open().map_err(Into::into);
            let _ = setrlimit(Resource::Nofile, limit);
            opened
        }
        opened => opened,
    }
}
