//! The private directories that sockets lie in: which one a data directory's scheduler uses, and which ones killed
//! processes left.
//!
//! A process locks the directory that it made for as long as it lives, so that an unlocked one may be removed. The
//! scheduler writes its directory into the data directory, where everybody else finds it whatever the environment says.
//!
//! Does not: bind sockets, or decide who owns the data directory.

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

/// Bytes of a socket's address, `sun_path`, without its closing zero.
const SUN_PATH_MAX: usize = 107;
/// Bytes kept for what follows the directory; the longest is `/lane-<16 hex>-<8 hex>.sock`.
const SOCKET_NAME_MAX: usize = 60;
/// In the data directory: where its scheduler's sockets are.
const RECORD: &str = "sockets";
/// In the data directory: locked by its scheduler, whose process id is in it.
const LOCK: &str = "lock";
/// Tries to make a directory which another process removes at the same time.
const TRIES: usize = 20;
/// Names that are tried for one data directory; another one is taken where a container shares the runtime directory.
const NAMES: usize = 16;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// What the place of a socket directory depends on, besides the data directory.
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

    /// The directories in which socket directories are made, with the variables that name them, the best one first.
    fn parents(&self) -> Vec<(PathBuf, &'static str)> {
        // After `su` or in a container the variable may name another user's directory, or none.
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
    /// Whose scheduler's it is, in full; none for one that only this process knows.
    data_dir: Option<PathBuf>,
    around: Surroundings,
    claimed: Mutex<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    path: PathBuf,
    /// The directory itself, locked.
    lock: File,
}

impl SocketDir {
    /// Makes the directory for the scheduler of a data directory, whose lock the caller holds, and records it there.
    ///
    /// It is `$XDG_RUNTIME_DIR/lamagrid/<8 hex>` if that variable names a directory of this user, else
    /// `<temporary directory>/lamagrid-<uid>/<8 hex>`. The digits are a hash of the data directory's path. Directories
    /// beside it that killed processes left are removed.
    ///
    /// # Errors
    /// [`ConfigError::PathTooLong`] if no socket's address would fit, [`ConfigError::NotPrivate`] if a directory is
    /// somebody else's or open to others, [`ConfigError::Io`] if it cannot be made or recorded.
    pub fn of_scheduler(data_dir: &Path) -> Result<Self, ConfigError> {
        Self::claim(Some(data_dir), Surroundings::of_process())
    }

    /// Makes a directory that only this process knows.
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }

    /// Makes the directory anew if it was removed, in another place if its own cannot be used any more, and records it
    /// again. The sockets in it are to be bound anew if that gives true.
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
            // A record that is left is replaced by the next scheduler.
            let _ = fs::remove_file(data_dir.join(RECORD));
        }
        if is_same(&claimed.lock, &claimed.path) {
            remove(&claimed.path);
        }
        if let Some(parent) = claimed.path.parent() {
            // It stays for as long as others have directories in it.
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Claimed {
    /// Takes the first place that can be used.
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
        let base = match data_dir {
            Some(data_dir) => short_hash(data_dir.as_os_str().as_bytes()),
            None => format!("process-{}", std::process::id()),
        };
        for number in 0..NAMES {
            let path = parent.join(if number == 0 { base.clone() } else { format!("{base}-{number}") });
            let (length, limit) = (path.as_os_str().len(), SUN_PATH_MAX - SOCKET_NAME_MAX);
            if length > limit {
                return Err(ConfigError::PathTooLong { path, length, limit, variable });
            }
            if let Some(lock) = take(&path, parent, uid)? {
                empty(&path); // of what a killed process left
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

/// Makes and locks a directory; none if another process has locked it.
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

/// Where the sockets of a data directory's scheduler are: as it recorded, else where it would make them.
///
/// # Errors
/// [`ConfigError::NotPrivate`] if there is a directory that others may have made sockets in, [`ConfigError::Io`] if it
/// cannot be looked at.
pub fn find_sockets(data_dir: &Path) -> Result<PathBuf, ConfigError> {
    find_sockets_in(data_dir, &Surroundings::of_process())
}

/// [`find_sockets`] for whoever connects again and again: a scheduler that starts anew may have another directory.
///
/// # Errors
/// As [`find_sockets`].
pub fn socket_finder(data_dir: &Path) -> Result<impl Fn() -> PathBuf + Send + Sync + use<>, ConfigError> {
    find_sockets(data_dir)?;
    let data_dir = data_dir.to_owned();
    // Without a private directory nothing is found: no socket lies in the data directory itself.
    Ok(move || find_sockets(&data_dir).unwrap_or_else(|_| data_dir.clone()))
}

/// A [`SocketDir::of_process`] that is made anew when it was removed, and goes with the function that finds it.
///
/// # Errors
/// As [`SocketDir::of_process`].
pub fn own_socket_finder() -> Result<impl Fn() -> PathBuf + Send + Sync, ConfigError> {
    let dir = SocketDir::of_process()?;
    Ok(move || {
        // Where it cannot be made, binding a socket in it says why.
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
    // An administrator may look at another user's grid.
    let owner = fs::metadata(&data_dir).map_or(around.uid, |found| found.uid());
    for dir in path.parent().into_iter().chain([path.as_path()]) {
        match check_private(dir, &[around.uid, owner]) {
            Err(ConfigError::Io { source, .. }) if is_absent(&source) => break,
            checked => checked?,
        }
    }
    Ok(path)
}

/// The process id of the scheduler that runs on a data directory, as it wrote it; none if no scheduler runs there.
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

/// Writes the directory into the data directory, in one step.
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

/// Removes the directories in `parent` whose processes are dead.
fn sweep(parent: &Path, uid: u32) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().take(MAX_ENTRIES) {
        let path = entry.path();
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == uid);
        if !is_ours {
            continue;
        }
        // Held until it is removed: whoever makes it anew sees that it locked another one.
        let Ok(lock) = File::open(&path) else { continue };
        let is_free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_free && is_same(&lock, &path) && !is_listened_on(&path) {
            remove(&path);
        }
    }
}

/// Whether a process listens on a socket in this directory: one of an older version, which locks no directory.
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
        // One that stays shows in the bind that follows.
        let _ = fs::remove_file(path);
    }
}

fn remove(dir: &Path) {
    empty(dir);
    // A directory with files that are not ours stays.
    let _ = fs::remove_dir(dir);
}

/// Whether there is nothing at a path, also where a file has the place of a directory before it.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether an open directory is still the one that the path leads to.
fn is_same(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Makes the directory, or checks that an existing one is this user's and nobody else's.
fn make_private(path: &Path, uid: u32) -> Result<(), ConfigError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("make the socket directory", path, source)),
    }
    check_private(path, &[uid])
}

fn check_private(path: &Path, owners: &[u32]) -> Result<(), ConfigError> {
    // Without following a link: a link in the temporary directory may be somebody's trap.
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

/// The canonical path, also of a directory that does not exist yet: the part that exists is
/// resolved, so that making the rest later does not change the answer.
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

/// FNV-1a of 64 bits, both halves folded: stable over versions and machines, unlike std's hashers.
fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
#[path = "socket_dir_tests.rs"]
mod tests;
