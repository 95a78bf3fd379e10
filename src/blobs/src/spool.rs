//! Stores blobs as files `<aa>/<task>/<name>` in a directory that the processes of one host and user share.
//!
//! Does not: accept paths from callers. File names are built from a task's id and a role or lease token, and
//! every directory on the way is opened without following links.

mod link;
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

/// The treatment of missing directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Fail,
}

/// Names one file of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobName {
    /// An input, or the accepted result.
    Role(Role),
    /// The result of one attempt before it is accepted.
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
    /// The file system returned an error.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file's length, hash or type is not as announced.
    #[error("blob {path} is not what was announced: {what}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The property that differs.
        what: &'static str,
    },
}

impl SpoolError {
    /// The failure kind of a task that fails by this error.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        if self.is_disk_full() { FailureKind::DiskFull } else { FailureKind::Internal }
    }

    /// True if the file does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// True if the disk or quota is full, which is a fault of the host and not of the task.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Number of writers begun by this process; makes temporary names unique.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Writes a blob under a temporary name; the file is deleted on drop unless it was finished.
#[derive(Debug)]
pub struct Writer {
    dir: OwnedFd,
    file: File,
    temporary: String,
    name: String,
    /// The final path, for error messages.
    path: PathBuf,
    renamed: bool,
}

impl Writer {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.file.write_all(bytes).map_err(|source| self.io(source))
    }

    /// Preallocates `len` bytes from offset `from`; allocating page by page takes twice as long. Errors are
    /// ignored: if there is no room, the write reports it.
    pub(crate) fn reserve(&self, from: u64, len: u64) {
        let _ = rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, from, len);
    }

    /// Renames the file to its final name atomically, so that a reader sees all of it or nothing.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; the temporary file is deleted then.
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
            // Ignored: the error that made this writer end is the one to report.
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

/// How often a step is repeated after another process has undone it. A client may write a task's first blob
/// while a starting scheduler, which has no row for the task yet, deletes unknown tasks. One deletion undoes
/// a write at most twice (its file, then its directory), and a scheduler deletes once per start.
const TRIES: usize = 20;

/// Repeats `step` while it fails with `undone`, at most [`TRIES`] times.
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
    /// Names the spool at `root`, without touching the disk.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Creates the spool's directory with mode 0700 if it is missing.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, SpoolError> {
        let spool = Self::new(root);
        make_private(&spool.root).map_err(|source| spool.io("create", spool.root.clone(), source))?;
        if let Some(parent) = spool.root.parent() {
            // Without this, a power loss could remove the directory together with blobs that were fsynced in it.
            let force = File::open(parent).and_then(|dir| dir.sync_all());
            force.map_err(|source| spool.io("sync", parent.to_path_buf(), source))?;
        }
        Ok(spool)
    }

    /// The spool's directory.
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

    /// Opens `<aa>/<task>` component by component without following links; `missing` applies to components that do not exist.
    fn task_dir(&self, task: TaskId, missing: Missing) -> io::Result<OwnedFd> {
        let id = task.to_string();
        let mut dir = with_reserve(|| rustix::fs::open(&self.root, DIRECTORY, Mode::empty()))?;
        for name in [&id[..2], &id] {
            if missing == Missing::Create {
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
    /// [`SpoolError::Io`]; no partial file is left behind.
    pub fn put(&self, task: TaskId, name: BlobName, bytes: &[u8]) -> Result<(), SpoolError> {
        self.write(task, name, bytes, Durability::Process)
    }

    fn write(
        &self,
        task: TaskId,
        name: BlobName,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<(), SpoolError> {
        let write = || -> io::Result<()> {
            let mut writer = self.begin(task, name)?;
            writer.file.write_all(bytes)?;
            if durability == Durability::Full {
                writer.file.sync_all()?;
            }
            writer.rename()
        };
        repeated(io::ErrorKind::NotFound, write)
            .map_err(|source| self.io("write", self.path(task, &name.file()), source))
    }

    /// Starts a blob that is written in pieces. If several writers use one name, the last one to finish wins.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn writer(&self, task: TaskId, name: BlobName) -> Result<Writer, SpoolError> {
        repeated(io::ErrorKind::NotFound, || self.begin(task, name))
            .map_err(|source| self.io("write", self.path(task, &name.file()), source))
    }

    fn begin(&self, task: TaskId, name: BlobName) -> io::Result<Writer> {
        let dir = self.task_dir(task, Missing::Create)?;
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
            let dir = self.task_dir(task, Missing::Fail)?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            with_reserve(|| rustix::fs::openat(&dir, file_name, flags, Mode::empty())).map(File::from)
        };
        open().map_err(|source| self.io("open", self.path(task, file_name), source))
    }

    /// Opens a blob and checks that it is a plain file of the announced length, before memory is allocated for it.
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

    /// Opens a blob for reading; returns the file and its length.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; [`SpoolError::Mismatch`] if it is not a plain file.
    pub fn reader(&self, task: TaskId, name: BlobName) -> Result<(File, u64), SpoolError> {
        let file = self.open(task, &name.file())?;
        let meta =
            file.metadata().map_err(|source| self.io("inspect", self.path(task, &name.file()), source))?;
        self.open_checked(task, name, meta.len()).map(|file| (file, meta.len()))
    }

    /// Reads a blob and checks its length and hash.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`] if the file differs from `meta`; [`SpoolError::Io`].
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

    /// Reads a blob like [`Spool::get`], into the caller's memory.
    ///
    /// # Errors
    /// As [`Spool::get`]; also [`SpoolError::Mismatch`] if `out` does not have the announced length.
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

    /// Checks that a blob exists with the announced length. At [`Durability::Full`], also fsyncs it and the directories
    /// above it.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`], [`SpoolError::Io`].
    pub fn seal(
        &self,
        task: TaskId,
        name: BlobName,
        len: u64,
        durability: Durability,
    ) -> Result<(), SpoolError> {
        let file = self.open_checked(task, name, len)?;
        if durability == Durability::Full {
            let force = || -> io::Result<()> {
                file.sync_all()?;
                File::from(self.task_dir(task, Missing::Fail)?).sync_all()?;
                // The entries of the task's directory and of its two-digit parent may be new, too.
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

    /// True if a blob's bytes were last changed before `instant`.
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

    /// Rewrites a blob from its own bytes into a new file, which is fsynced before it replaces the old one.
    ///
    /// After a failed fsync this is the only way to know that the bytes are on disk: a second fsync of the
    /// same file may succeed without having written them.
    ///
    /// # Errors
    /// [`SpoolError::Mismatch`] if the bytes no longer match `meta` or cannot be read; [`SpoolError::Io`].
    pub fn rewrite(&self, task: TaskId, name: BlobName, meta: &BlobMeta) -> Result<(), SpoolError> {
        let bytes = match self.get(task, name, meta) {
            Err(SpoolError::Io { action: "read", path, .. }) => {
                return Err(SpoolError::Mismatch { path, what: "it cannot be read back from the disk" });
            }
            bytes => bytes?,
        };
        self.write(task, name, &bytes, Durability::Full)
    }

    /// Links the result of an attempt as the result of its task.
    ///
    /// The attempt's own name stays until the caller has committed and removes it, so that a delivery
    /// repeated after a crash in between still finds the file. On a file system without hard links the file
    /// is renamed instead, and such a repeated delivery becomes a failure of its attempt.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn promote(&self, task: TaskId, token: LeaseToken) -> Result<(), SpoolError> {
        let from = BlobName::Attempt(token).file();
        let to = BlobName::Role(Role::Result).file();
        let link = || -> io::Result<()> {
            let dir = self.task_dir(task, Missing::Fail)?;
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

    /// Links the inputs of the task `from` into the task of `spec`, and fsyncs the new names if that task's
    /// durability requires it. Calling it again changes nothing.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn inherit(&self, from: TaskId, spec: &TaskSpec) -> Result<(), SpoolError> {
        for blob in &spec.blobs {
            let name = BlobName::Role(blob.role).file();
            let link = || -> io::Result<()> {
                let (old, new) =
                    (self.task_dir(from, Missing::Fail)?, self.task_dir(spec.id, Missing::Create)?);
                match rustix::fs::linkat(&old, name.as_str(), &new, name.as_str(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            };
            match link() {
                // The input is stored in the task's row instead, or an earlier try of the same commit has removed the source.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                linked => linked.map_err(|source| self.io("link", self.path(spec.id, &name), source))?,
            }
            self.seal(spec.id, BlobName::Role(blob.role), blob.len, spec.durability)?;
        }
        Ok(())
    }

    /// Deletes one blob; a missing blob is not an error.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn remove(&self, task: TaskId, name: BlobName) -> Result<(), SpoolError> {
        let file_name = name.file();
        let unlink = || -> io::Result<()> {
            let dir = self.task_dir(task, Missing::Fail)?;
            Ok(rustix::fs::unlinkat(&dir, file_name.as_str(), AtFlags::empty())?)
        };
        match unlink() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.io("delete", self.path(task, &file_name), error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes all blobs of a task; missing ones are not an error.
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

    /// True if the blob's file does not exist; false if that cannot be determined.
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
    fn a_blob_is_read_back_and_checked_and_can_be_deleted() {
        let (_dir, spool, task) = spool();
        let name = BlobName::Role(Role::Image);
        spool.put(task, name, b"pixels").unwrap();
        spool.seal(task, name, 6, Durability::Full).unwrap();
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
    fn promote_makes_an_attempt_the_result_and_can_be_repeated() {
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
