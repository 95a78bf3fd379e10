//! File descriptors: as many as the system allows, with a reserve for what keeps the scheduler working.
//!
//! The soft limit lies below the hard one by the reserve. Sockets of peers fail at the soft limit; [`with_reserve`] then
//! raises it for the one call that must not fail.

use std::io;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that only [`with_reserve`] uses.
const RESERVE: u64 = 32;
/// With a lower hard limit there is no reserve.
const FEWEST: u64 = 4 * RESERVE;

/// Held while the limit is raised, so that one call at a time uses the reserve.
static RAISED: Mutex<()> = Mutex::new(());

/// Raises the limit of this process as far as the system allows, without the reserve.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map(|most| if most >= FEWEST { most - RESERVE } else { most });
    // If the system refuses, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
}

/// How many descriptors this process may have, without the reserve.
#[must_use]
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Calls `open`. Where no descriptor is left for it, calls it again with the reserve.
///
/// # Errors
/// Those of `open`.
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
