//! Allows one scheduler per data directory, through an advisory lock that ends with its process.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::SchedulerError;

/// How long to wait for the lock: `lamagrid doctor` and clients that find no scheduler hold it for a moment
/// to check whether one runs.
const PROBES: Duration = Duration::from_millis(300);

/// The lock, held while the process serves the directory.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Creates `dir` (mode 0700) if it is missing, and locks `dir/lock`, which names the owner's pid.
    pub(crate) fn take(dir: &Path) -> Result<Self, SchedulerError> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let refused = |source| SchedulerError::DataDir { path: dir.to_path_buf(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(refused)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // the owner's pid is in it
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(refused)?;
        let mut locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let until = Instant::now() + PROBES;
        while locked == Err(rustix::io::Errno::WOULDBLOCK) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        }
        if locked == Err(rustix::io::Errno::WOULDBLOCK) {
            let mut pid = String::new();
            // A number of at most ten digits, but the file may hold anything.
            let read = (&mut file).take(20).read_to_string(&mut pid);
            let pid = match (read, pid.trim()) {
                (Ok(_), pid) if !pid.is_empty() => pid.to_owned(),
                _ => "unknown".to_owned(),
            };
            return Err(SchedulerError::SecondInstance { path: dir.to_path_buf(), pid });
        }
        // Other errors, for example a network file system without locks.
        locked.map_err(|error| refused(error.into()))?;
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(refused)?;
        Ok(Self { _file: file })
    }
}
