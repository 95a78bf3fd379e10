//! The directory that holds blobs: `<aa>/<task>/<name>`, shared by the processes of one host and one user.
//!
//! Does not: take a path from anybody. Names are made of a task's id, a closed role or a lease token, and
//! every directory on the way is opened without following links.

mod sweep;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use lamagrid_domain::{BlobMeta, Durability, FailureKind, LeaseToken, Role, TaskId, TaskSpec};
use lamagrid_process::descriptors::with_reserve;

pub use sweep::Swept;

/// Which file of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobName {
    /// An input, or the accepted result.
    Role(Role),
    /// The result of one attempt, before it is accepted.
    Attempt(LeaseToken),
}

impl BlobName {
    fn file(self) -> String {
        match self {
            Self::Role(role) => role.as_str().to_owned(),
            Self::Attempt(token) => format!("result-{token}"),
        }
    }
}

/// Why a blob could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The file is not what was announced.
    #[error("blob {path} is not what was announced: {what}")]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
}

impl SpoolError {
    /// What it is as the failure of a task.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        if self.is_disk_full() { FailureKind::DiskFull } else { FailureKind::Internal }
    }

    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the disk is full, so that it is the host's trouble and not the task's.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Writers of this process: no two share a temporary name.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// A blob under a temporary name, which goes with this unless it is finished.
#[derive(Debug)]
pub struct Writer {
    dir: OwnedFd,
    file: File,
    temporary: String,
    name: String,
    /// For messages.
    path: PathBuf,
    renamed: bool,
}

impl Writer {
    /// Adds to it.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.file.write_all(bytes).map_err(|source| self.io(source))
    }

    /// Takes room on the disk for what will be written next, `len` bytes from the byte `from` on: page by page it costs twice
    /// as much. A file system that cannot do that, or has no room, says so when it is written.
    pub(crate) fn reserve(&self, from: u64, len: u64) {
        let _ = rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, from, len);
    }

    /// Gives it its name, so that a reader sees all of it or nothing.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; nothing is left behind then.
    pub fn finish(mut self) -> Result<(), SpoolError> {
        self.rename().map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> SpoolError {
        SpoolError::Io { action: "write", path: self.path.clone(), source }
    }

    fn rename(&mut self) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, self.temporary.as_str(), &self.dir, self.name.as_str())?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.renamed {
            // The first error is the one that matters.
            let _ = rustix::fs::unlinkat(&self.dir, self.temporary.as_str(), AtFlags::empty());
        }
    }
}

/// A spool directory.
#[derive(Debug, Clone)]
pub struct Spool {
    root: PathBuf,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How often a step is repeated that another process undid: a client may write a task's first blob while a starting
/// scheduler, which has no row of it yet, deletes what it finds. One deletion undoes a write twice at most (its file,
/// then its directory), and a start deletes once.
const TRIES: usize = 20;

/// Does `step` again while it fails with `undone`, a bounded number of times.
fn repeated<T>(undone: io::ErrorKind, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match step() {
            Err(error) if error.kind() == undone => {}
            done => return done,
        }
    }
    step()
}

impl Spool {
    /// The spool at `root`; nothing is touched yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Creates the directory, mode 0700, where it is missing.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, SpoolError> {
        let spool = Self::new(root);
        make_private(&spool.root).map_err(|source| spool.io("create", spool.root.clone(), source))?;
        if let Some(parent) = spool.root.parent() {
            // What is forced to disk below it shall be found there again.
            let force = File::open(parent).and_then(|dir| dir.sync_all());
            force.map_err(|source| spool.io("sync", parent.to_path_buf(), source))?;
        }
        Ok(spool)
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, task: TaskId, name: &str) -> PathBuf {
        let id = task.to_string();
        self.root.join(&id[..2]).join(&id).join(name)
    }

    fn io(&self, action: &'static str, path: PathBuf, source: io::Error) -> SpoolError {
        SpoolError::Io { action, path, source }
    }

    /// Opens `<aa>/<task>` step by step, refusing links, making it where `create` says so.
    fn task_dir(&self, task: TaskId, create: bool) -> io::Result<OwnedFd> {
        let id = task.to_string();
        let mut dir = with_reserve(|| rustix::fs::open(&self.root, DIRECTORY, Mode::empty()))?;
        for name in [&id[..2], &id] {
            if create {
                match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            dir = with_reserve(|| rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty()))?;
        }
        Ok(dir)
    }

    /// Writes a blob under a temporary name and renames it, so that a reader sees all of it or nothing.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; then nothing of that name is left behind.
    pub fn put(&self, task: TaskId, name: BlobName, bytes: &[u8]) -> Result<(), SpoolError> {
        self.write(task, name, bytes, false)
    }

    fn write(&self, task: TaskId, name: BlobName, bytes: &[u8], sync: bool) -> Result<(), SpoolError> {
        let write = || -> io::Result<()> {
            let mut writer = self.begin(task, name)?;
            writer.file.write_all(bytes)?;
            if sync {
                writer.file.sync_all()?;
            }
            writer.rename()
        };
        repeated(io::ErrorKind::NotFound, write)
            .map_err(|source| self.io("write", self.path(task, &name.file()), source))
    }

    /// Begins a blob that comes bit by bit; of several with one name, the last one that is finished counts.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn writer(&self, task: TaskId, name: BlobName) -> Result<Writer, SpoolError> {
        repeated(io::ErrorKind::NotFound, || self.begin(task, name))
            .map_err(|source| self.io("write", self.path(task, &name.file()), source))
    }

    fn begin(&self, task: TaskId, name: BlobName) -> io::Result<Writer> {
        let dir = self.task_dir(task, true)?;
        let name = name.file();
        let path = self.path(task, &name);
        let temporary = format!(".{name}.{}.{}", std::process::id(), BEGUN.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = with_reserve(|| rustix::fs::openat(&dir, temporary.as_str(), flags, mode))?;
        Ok(Writer { dir, file: File::from(fd), temporary, name, path, renamed: false })
    }

    fn open(&self, task: TaskId, file_name: &str) -> Result<File, SpoolError> {
        let open = || -> io::Result<File> {
            let dir = self.task_dir(task, false)?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            with_reserve(|| rustix::fs::openat(&dir, file_name, flags, Mode::empty())).map(File::from)
        };
        open().map_err(|source| self.io("open", self.path(task, file_name), source))
    }

    /// Opens a blob and checks that it is a plain file of the announced length, before a byte of it is allocated.
    fn open_checked(&self, task: TaskId, name: BlobName, len: u64) -> Result<File, SpoolError> {
        let file_name = name.file();
        let file = self.open(task, &file_name)?;
        let meta =
            file.metadata().map_err(|source| self.io("inspect", self.path(task, &file_name), source))?;
        let mismatch = |what| Err(SpoolError::Mismatch { path: self.path(task, &file_name), what });
        if !meta.is_file() {
            return mismatch("it is not a plain file");
        }
        if meta.len() != len {
            return mismatch("its length differs");
        }
        Ok(file)
    }

    /// Opens a blob for reading, with its length.
    ///
    /// # Errors
    /// [`SpoolError::Io`], [`SpoolError::Mismatch`] if it is no plain file.
    pub fn reader(&self, task: TaskId, name: BlobName) -> Result<(File, u64), SpoolError> {
        let file = self.open(task, &name.file())?;
        let meta =
            file.metadata().map_err(|source| self.io("inspect", self.path(task, &name.file()), source))?;
        self.open_checked(task, name, meta.len()).map(|file| (file, meta.len()))
    }

    /// Reads a blob and checks its length and hash.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`] if it is not what `meta` says, [`SpoolError::Io`].
    pub fn get(&self, task: TaskId, name: BlobName, meta: &BlobMeta) -> Result<Vec<u8>, SpoolError> {
        let mut file = self.open_checked(task, name, meta.len)?;
        let path = || self.path(task, &name.file());
        let mut bytes = Vec::new();
        let len = usize::try_from(meta.len)
            .map_err(|_| SpoolError::Mismatch { path: path(), what: "it does not fit into memory" })?;
        bytes.reserve_exact(len);
        file.read_to_end(&mut bytes).map_err(|source| self.io("read", path(), source))?;
        if lamagrid_protocol::hash(&bytes) != meta.hash {
            return Err(SpoolError::Mismatch { path: path(), what: "its hash differs" });
        }
        Ok(bytes)
    }

    /// As [`Spool::get`], into memory of the caller's.
    ///
    /// # Errors
    /// As [`Spool::get`]; [`SpoolError::Mismatch`], too, if `out` is not of the announced length.
    pub fn get_into(
        &self,
        task: TaskId,
        name: BlobName,
        meta: &BlobMeta,
        out: &mut [u8],
    ) -> Result<(), SpoolError> {
        let mut file = self.open_checked(task, name, meta.len)?;
        let path = || self.path(task, &name.file());
        if out.len() as u64 != meta.len {
            return Err(SpoolError::Mismatch { path: path(), what: "its length differs" });
        }
        file.read_exact(out).map_err(|source| self.io("read", path(), source))?;
        if lamagrid_protocol::hash(out) != meta.hash {
            return Err(SpoolError::Mismatch { path: path(), what: "its hash differs" });
        }
        Ok(())
    }

    /// Checks that a blob lies there with the announced length and, at `sync`, forces it and its directory to disk.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`], [`SpoolError::Io`].
    pub fn seal(&self, task: TaskId, name: BlobName, len: u64, sync: bool) -> Result<(), SpoolError> {
        let file = self.open_checked(task, name, len)?;
        if sync {
            let force = || -> io::Result<()> {
                file.sync_all()?;
                File::from(self.task_dir(task, false)?).sync_all()?;
                // The task's own entry, and that of its two-digit parent, which may both be new.
                let parent = self.path(task, "");
                for dir in parent.ancestors().skip(1).take(2) {
                    File::open(dir)?.sync_all()?;
                }
                Ok(())
            };
            force().map_err(|source| self.io("sync", self.path(task, &name.file()), source))?;
        }
        Ok(())
    }

    /// Whether a blob's bytes were last changed before `instant`.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn written_before(
        &self,
        task: TaskId,
        name: BlobName,
        instant: SystemTime,
    ) -> Result<bool, SpoolError> {
        let file_name = name.file();
        let changed = self.open(task, &file_name)?.metadata().and_then(|meta| meta.modified());
        let changed = changed.map_err(|source| self.io("inspect", self.path(task, &file_name), source))?;
        Ok(changed < instant)
    }

    /// Writes a blob anew, from its own bytes, and forces the new file to disk before it takes the old one's place.
    ///
    /// After an fsync that failed this is the only way to know that the bytes are on disk: the next fsync of the same
    /// file succeeds without them.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`] if they are not what `meta` says any more, or cannot be read; [`SpoolError::Io`].
    pub fn rewrite(&self, task: TaskId, name: BlobName, meta: &BlobMeta) -> Result<(), SpoolError> {
        let bytes = match self.get(task, name, meta) {
            Err(SpoolError::Io { action: "read", path, .. }) => {
                return Err(SpoolError::Mismatch { path, what: "it cannot be read back from the disk" });
            }
            bytes => bytes?,
        };
        self.write(task, name, &bytes, true)
    }

    /// Makes the result of an attempt the result of its task as well.
    ///
    /// The attempt's own name stays until the caller has committed and removes it: a delivery that is
    /// repeated after a crash in between still finds its file. On a file system without hard links it goes at
    /// once, and such a delivery becomes a failure of its attempt.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn promote(&self, task: TaskId, token: LeaseToken) -> Result<(), SpoolError> {
        let from = BlobName::Attempt(token).file();
        let to = BlobName::Role(Role::Result).file();
        let link = || -> io::Result<()> {
            let dir = self.task_dir(task, false)?;
            let link = || rustix::fs::linkat(&dir, from.as_str(), &dir, to.as_str(), AtFlags::empty());
            let mut linked = link();
            if linked == Err(Errno::EXIST) {
                rustix::fs::unlinkat(&dir, to.as_str(), AtFlags::empty())?;
                linked = link();
            }
            if let Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) = linked {
                linked = rustix::fs::renameat(&dir, from.as_str(), &dir, to.as_str());
            }
            Ok(linked?)
        };
        link().map_err(|source| self.io("link", self.path(task, &from), source))
    }

    /// Gives the inputs of `from` to the task of `spec` as well, and forces their new names to disk where that task's
    /// durability asks for it. Repeated, it changes nothing.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn inherit(&self, from: TaskId, spec: &TaskSpec) -> Result<(), SpoolError> {
        for blob in &spec.blobs {
            let name = BlobName::Role(blob.role).file();
            let link = || -> io::Result<()> {
                let (old, new) = (self.task_dir(from, false)?, self.task_dir(spec.id, true)?);
                match rustix::fs::linkat(&old, name.as_str(), &new, name.as_str(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            };
            match link() {
                // It is in the row, or went with an earlier try of the same commit.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                linked => linked.map_err(|source| self.io("link", self.path(spec.id, &name), source))?,
            }
            self.seal(spec.id, BlobName::Role(blob.role), blob.len, spec.durability == Durability::Full)?;
        }
        Ok(())
    }

    /// Deletes one blob; absent is fine.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn remove(&self, task: TaskId, name: BlobName) -> Result<(), SpoolError> {
        let file_name = name.file();
        let unlink = || -> io::Result<()> {
            let dir = self.task_dir(task, false)?;
            Ok(rustix::fs::unlinkat(&dir, file_name.as_str(), AtFlags::empty())?)
        };
        match unlink() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.io("delete", self.path(task, &file_name), error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes all blobs of a task; absent is fine.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn remove_task(&self, task: TaskId) -> Result<(), SpoolError> {
        repeated(io::ErrorKind::DirectoryNotEmpty, || self.delete(task))
            .map_err(|source| self.io("delete", self.path(task, ""), source))
    }

    fn delete(&self, task: TaskId) -> io::Result<()> {
        match std::fs::remove_dir_all(self.path(task, "")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    /// Whether a blob is not there; one that cannot be looked at is.
    #[must_use]
    pub fn lacks(&self, task: TaskId, name: BlobName) -> bool {
        let found = std::fs::symlink_metadata(self.path(task, &name.file()));
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamagrid_domain::BlobForm;

    fn meta(bytes: &[u8]) -> BlobMeta {
        BlobMeta {
            role: Role::Image,
            len: bytes.len() as u64,
            hash: lamagrid_protocol::hash(bytes),
            form: BlobForm::Encoded,
        }
    }

    fn spool() -> (tempfile::TempDir, Spool, TaskId) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path().join("spool")).unwrap();
        (dir, spool, TaskId::from_bytes([7; 16]))
    }

    #[test]
    fn a_blob_comes_back_and_goes_away() {
        let (_dir, spool, task) = spool();
        let name = BlobName::Role(Role::Image);
        spool.put(task, name, b"pixels").unwrap();
        spool.seal(task, name, 6, true).unwrap();
        assert_eq!(spool.get(task, name, &meta(b"pixels")).unwrap(), b"pixels");
        let mut read = [0; 6];
        spool.get_into(task, name, &meta(b"pixels"), &mut read).unwrap();
        assert_eq!(&read, b"pixels");
        for (wrong, len) in [(b"pixelz", 6), (b"pixels", 5)] {
            let mut out = vec![0; len];
            let read = spool.get_into(task, name, &meta(wrong), &mut out);
            assert!(matches!(read, Err(SpoolError::Mismatch { .. })));
        }
        assert!(matches!(spool.get(task, name, &meta(b"pixelz")), Err(SpoolError::Mismatch { .. })));
        assert!(matches!(spool.get(task, name, &meta(b"pixel")), Err(SpoolError::Mismatch { .. })));
        spool.remove(task, name).unwrap();
        spool.remove(task, name).unwrap();
        assert!(matches!(spool.get(task, name, &meta(b"pixels")), Err(SpoolError::Io { .. })));
    }

    #[test]
    fn links_are_not_followed() {
        let (dir, spool, task) = spool();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, b"secret").unwrap();
        spool.put(task, BlobName::Role(Role::Mask), b"x").unwrap();
        let link = spool.path(task, "image");
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert!(spool.get(task, BlobName::Role(Role::Image), &meta(b"secret")).is_err());
        spool.put(task, BlobName::Role(Role::Image), b"fine").unwrap();
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    }

    #[test]
    fn an_attempt_becomes_the_result() {
        let (_dir, spool, task) = spool();
        let token = LeaseToken::from_bytes([9; 16]);
        spool.put(task, BlobName::Attempt(token), b"out").unwrap();
        spool.promote(task, token).unwrap();
        spool.promote(task, token).unwrap();
        assert_eq!(spool.get(task, BlobName::Role(Role::Result), &meta(b"out")).unwrap(), b"out");
        spool.remove(task, BlobName::Attempt(token)).unwrap();
        assert!(spool.promote(task, token).is_err());
    }
}
