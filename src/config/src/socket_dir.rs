//! Creates, finds and removes the private directories for Unix sockets.
//!
//! A process holds a lock on its directory until it ends, so unlocked directories were left by killed processes and
//! may be removed. The scheduler records its directory in the data directory, so that clients find it even if their
//! environment differs.
//!
//! Does not: bind sockets, or lock the data directory.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::ConfigError;

/// Size of a socket's address, `sun_path`, without the terminating zero, bytes.
const SUN_PATH_MAX: usize = 107;
/// Bytes reserved for a socket's name; the longest is `/lane-<16 hex>-<8 hex>.sock`.
const SOCKET_NAME_MAX: usize = 60;
/// The file in the data directory that records the scheduler's socket directory.
const RECORD: &str = "sockets";
/// The file in the data directory that the scheduler locks and writes its process id to.
const LOCK: &str = "lock";
/// Attempts to create a directory while another process removes it.
const TRIES: usize = 20;
/// Names that are tried per data directory; more than one is needed if containers share a runtime directory.
const NAMES: usize = 16;
/// Names that are tried per process: each connection to another host has a directory of its own.
const NAMES_OF_PROCESS: usize = 4_096;
/// Maximum number of directory entries that are examined.
const MAX_ENTRIES: usize = 10_000;

/// The parts of the environment that determine the path of a socket directory.
#[derive(Debug, Clone)]
struct Surroundings {
    xdg_runtime_dir: Option<PathBuf>,
    temp_dir: PathBuf,
    uid: u32,
}

impl Surroundings {
    fn of_process() -> Self {
        Self {
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
            temp_dir: std::env::temp_dir(),
            uid: rustix::process::getuid().as_raw(),
        }
    }

    /// The parents of socket directories in order of preference, with the variables that name them.
    fn parents(&self) -> Vec<(PathBuf, &'static str)> {
        // After `su` or in a container the variable may name another user's directory or a missing one.
        let is_own = |path: &&PathBuf| {
            path.is_absolute()
                && fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == self.uid)
        };
        let xdg = self.xdg_runtime_dir.as_ref().filter(is_own);
        let xdg = xdg.map(|xdg| (xdg.join("lamagrid"), "XDG_RUNTIME_DIR"));
        let temp = std::path::absolute(&self.temp_dir).unwrap_or_else(|_| "/tmp".into());
        xdg.into_iter().chain([(temp.join(format!("lamagrid-{}", self.uid)), "TMPDIR")]).collect()
    }
}

/// A directory for the sockets of this process, mode 0700. Dropping it removes the directory and the sockets in it.
#[derive(Debug)]
pub struct SocketDir {
    /// The canonical data directory of the scheduler; `None` if the directory is not recorded.
    data_dir: Option<PathBuf>,
    around: Surroundings,
    claimed: Mutex<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    path: PathBuf,
    /// The open directory, which holds the lock.
    lock: File,
}

impl SocketDir {
    /// Creates the directory for the scheduler of a data directory, whose lock the caller holds, and records it there.
    ///
    /// It is `$XDG_RUNTIME_DIR/lamagrid/<8 hex>` if that variable names a directory of this user, else
    /// `<temporary directory>/lamagrid-<uid>/<8 hex>`. The digits are a hash of the data directory's path. Removes
    /// directories of killed processes from the same parent.
    ///
    /// # Errors
    /// [`ConfigError::PathTooLong`] if no socket's address would fit, [`ConfigError::NotPrivate`] if a directory
    /// belongs to another user or others can access it, [`ConfigError::Io`] if it cannot be created or recorded.
    pub fn of_scheduler(data_dir: &Path) -> Result<Self, ConfigError> {
        Self::claim(Some(data_dir), Surroundings::of_process())
    }

    /// Creates a directory that is not recorded for other processes.
    ///
    /// # Errors
    /// As [`SocketDir::of_scheduler`].
    pub fn of_process() -> Result<Self, ConfigError> {
        Self::claim(None, Surroundings::of_process())
    }

    fn claim(data_dir: Option<&Path>, around: Surroundings) -> Result<Self, ConfigError> {
        let data_dir = data_dir.map(canonical);
        let claimed = Claimed::make(data_dir.as_deref(), &around)?;
        for (parent, _) in around.parents() {
            sweep(&parent, around.uid);
        }
        if let Some(data_dir) = &data_dir {
            record(data_dir, &claimed.path)?;
        }
        Ok(Self { data_dir, around, claimed: Mutex::new(claimed) })
    }

    /// Its present path; [`SocketDir::renew`] may change it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }

    /// Creates the directory again if it was removed, under another path if necessary, and restores its record.
    /// Returns true if the caller must bind its sockets again.
    ///
    /// # Errors
    /// As [`SocketDir::of_scheduler`].
    pub fn renew(&self) -> Result<bool, ConfigError> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = !is_same(&claimed.lock, &claimed.path);
        if is_lost {
            *claimed = Claimed::make(self.data_dir.as_deref(), &self.around)?;
        }
        if let Some(data_dir) = &self.data_dir
            && recorded(data_dir).as_ref() != Some(&claimed.path)
        {
            record(data_dir, &claimed.path)?;
        }
        Ok(is_lost)
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        let claimed = self.claimed.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(data_dir) = &self.data_dir {
            // The next scheduler replaces a record that cannot be removed.
            let _ = fs::remove_file(data_dir.join(RECORD));
        }
        if is_same(&claimed.lock, &claimed.path) {
            remove(&claimed.path);
        }
        if let Some(parent) = claimed.path.parent() {
            // Fails while other processes have directories in it.
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Claimed {
    /// Claims a directory in the first parent that can be used.
    fn make(data_dir: Option<&Path>, around: &Surroundings) -> Result<Self, ConfigError> {
        let mut refused = None;
        for (parent, variable) in around.parents() {
            match Self::make_in(&parent, variable, data_dir, around.uid) {
                Ok(claimed) => return Ok(claimed),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            io_error("make the socket directory", &around.temp_dir, io::ErrorKind::NotFound.into())
        }))
    }

    fn make_in(
        parent: &Path,
        variable: &'static str,
        data_dir: Option<&Path>,
        uid: u32,
    ) -> Result<Self, ConfigError> {
        let (base, names) = match data_dir {
            Some(data_dir) => (short_hash(data_dir.as_os_str().as_bytes()), NAMES),
            None => (format!("process-{}", std::process::id()), NAMES_OF_PROCESS),
        };
        for number in 0..names {
            let path = parent.join(if number == 0 { base.clone() } else { format!("{base}-{number}") });
            let (length, limit) = (path.as_os_str().len(), SUN_PATH_MAX - SOCKET_NAME_MAX);
            if length > limit {
                return Err(ConfigError::PathTooLong { path, length, limit, variable });
            }
            if let Some(lock) = take(&path, parent, uid)? {
                empty(&path); // remove the sockets of a killed process
                return Ok(Self { path, lock });
            }
        }
        Err(io_error(
            "find a free name for the socket directory in",
            parent,
            io::ErrorKind::AlreadyExists.into(),
        ))
    }
}

/// Creates and locks a directory; `None` if another process holds its lock.
fn take(path: &Path, parent: &Path, uid: u32) -> Result<Option<File>, ConfigError> {
    let failed = |source| io_error("lock the socket directory", path, source);
    for _ in 0..TRIES {
        make_private(parent, uid)?;
        match make_private(path, uid) {
            Err(ConfigError::Io { source, .. }) if is_absent(&source) => continue,
            made => made?,
        }
        let lock = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(|errno| failed(errno.into()))?,
        }
        // Another process may have removed it before it was locked.
        if is_same(&lock, path) {
            return Ok(Some(lock));
        }
    }
    Err(failed(io::ErrorKind::ResourceBusy.into()))
}

/// The socket directory of a data directory's scheduler: as recorded, else the one that it would create.
///
/// # Errors
/// [`ConfigError::NotPrivate`] if another user may have created sockets in the directory, [`ConfigError::Io`] if it
/// cannot be examined.
pub fn find_sockets(data_dir: &Path) -> Result<PathBuf, ConfigError> {
    find_sockets_in(data_dir, &Surroundings::of_process())
}

/// [`find_sockets`] as a function for clients that reconnect: a restarted scheduler may use another directory. Reads the
/// environment once, here: other threads call the function while the program may change its environment, which the C library
/// does not allow.
///
/// # Errors
/// As [`find_sockets`].
pub fn socket_finder(data_dir: &Path) -> Result<impl Fn() -> PathBuf + Send + Sync + use<>, ConfigError> {
    let around = Surroundings::of_process();
    find_sockets_in(data_dir, &around)?;
    let data_dir = data_dir.to_owned();
    // If the directory is not private, return one without sockets, so that connecting fails.
    Ok(move || find_sockets_in(&data_dir, &around).unwrap_or_else(|_| data_dir.clone()))
}

/// A function that returns this process's [`SocketDir::of_process`] and creates it again if it was removed. Dropping
/// the function removes the directory.
///
/// # Errors
/// As [`SocketDir::of_process`].
pub fn own_socket_finder() -> Result<impl Fn() -> PathBuf + Send + Sync, ConfigError> {
    let dir = SocketDir::of_process()?;
    Ok(move || {
        // If it cannot be created, binding a socket in it reports the reason.
        let _ = dir.renew();
        dir.path()
    })
}

fn find_sockets_in(data_dir: &Path, around: &Surroundings) -> Result<PathBuf, ConfigError> {
    let data_dir = canonical(data_dir);
    let path = recorded(&data_dir).unwrap_or_else(|| {
        let parent = around.parents().swap_remove(0).0;
        parent.join(short_hash(data_dir.as_os_str().as_bytes()))
    });
    // An administrator may inspect another user's grid.
    let owner = fs::metadata(&data_dir).map_or(around.uid, |found| found.uid());
    for dir in path.parent().into_iter().chain([path.as_path()]) {
        match check_private(dir, &[around.uid, owner]) {
            Err(ConfigError::Io { source, .. }) if is_absent(&source) => break,
            checked => checked?,
        }
    }
    Ok(path)
}

/// The process id that the running scheduler of a data directory recorded; `None` if no scheduler runs there.
#[must_use]
pub fn running_scheduler(data_dir: &Path) -> Option<String> {
    let lock = File::open(data_dir.join(LOCK)).ok()?;
    if flock(&lock, FlockOperation::NonBlockingLockShared) != Err(Errno::WOULDBLOCK) {
        return None;
    }
    let text = fs::read_to_string(data_dir.join(LOCK)).unwrap_or_default();
    let pid = text.trim();
    Some(if pid.is_empty() || pid.len() > 20 { "unknown".to_owned() } else { pid.to_owned() })
}

fn recorded(data_dir: &Path) -> Option<PathBuf> {
    let text = fs::read(data_dir.join(RECORD)).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(line.to_owned()));
    path.is_absolute().then_some(path)
}

/// Records the socket directory in the data directory, atomically.
fn record(data_dir: &Path, sockets: &Path) -> Result<(), ConfigError> {
    let path = data_dir.join(RECORD);
    let written = || -> io::Result<()> {
        let new = data_dir.join(format!("{RECORD}.new"));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(sockets.as_os_str().as_bytes())?;
        file.write_all(b"\n")?;
        fs::rename(&new, &path)
    };
    written().map_err(|source| io_error("record the socket directory in", &path, source))
}

/// Removes the directories in `parent` whose processes have ended.
fn sweep(parent: &Path, uid: u32) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().take(MAX_ENTRIES) {
        let path = entry.path();
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == uid);
        if !is_ours {
            continue;
        }
        // Held until the directory is removed, so that a process that waits for this lock finds it gone and retries.
        let Ok(lock) = File::open(&path) else { continue };
        let is_free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_free && is_same(&lock, &path) && !is_listened_on(&path) {
            remove(&path);
        }
    }
}

/// Whether a process listens on a socket in this directory. Older versions lock no directory.
fn is_listened_on(dir: &Path) -> bool {
    sockets(dir).iter().any(|path| {
        let Ok(address) = SocketAddrUnix::new(path) else { return false };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(probe) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
            return true;
        };
        !matches!(connect(&probe, &address), Err(Errno::CONNREFUSED | Errno::NOENT))
    })
}

fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_ENTRIES);
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect()
}

fn empty(dir: &Path) {
    for path in sockets(dir) {
        // Binding the socket reports one that cannot be removed.
        let _ = fs::remove_file(path);
    }
}

fn remove(dir: &Path) {
    empty(dir);
    // Fails if the directory holds other files.
    let _ = fs::remove_dir(dir);
}

/// Whether the error means that the path does not exist, also because one of its parents is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether the path still leads to the open directory.
fn is_same(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Creates the directory, or checks that an existing one is private to this user.
fn make_private(path: &Path, uid: u32) -> Result<(), ConfigError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("make the socket directory", path, source)),
    }
    check_private(path, &[uid])
}

fn check_private(path: &Path, owners: &[u32]) -> Result<(), ConfigError> {
    // Do not follow links: in the temporary directory another user may have planted one.
    let found = fs::symlink_metadata(path)
        .map_err(|source| io_error("look at the socket directory", path, source))?;
    let wrong = if !found.is_dir() {
        "it is not a directory".to_owned()
    } else if !owners.contains(&found.uid()) {
        format!("its owner is user {}, not {}", found.uid(), owners[0])
    } else if found.mode() & 0o077 != 0 {
        format!("its mode is {:04o}", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(ConfigError::NotPrivate { path: path.to_owned(), found: wrong })
}

/// The canonical path, also of a directory that does not exist yet: only the existing part is resolved, so creating
/// the rest later does not change the result.
fn canonical(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for existing in path.ancestors() {
        if let Ok(found) = existing.canonicalize() {
            let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { found } else { found.join(rest) };
        }
    }
    path
}

fn io_error(act: &'static str, path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Io { act, path: path.to_owned(), source }
}

/// 64-bit FNV-1a folded to 32 bits: stable across versions and machines, unlike std's hashers.
fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
#[path = "socket_dir_tests.rs"]
mod tests;
