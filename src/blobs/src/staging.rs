//! Keeps uploads in files until their task is accepted.
//!
//! Does not: know tasks. The directory is on the spool's file system, so that an input becomes a link there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use lamagrid_domain::Hash;
use lamagrid_process::descriptors::with_reserve;

/// The name of the directory in the data directory.
const DIRECTORY: &str = "uploads";

/// A directory of files that belong to no task yet.
#[derive(Debug, Clone)]
pub struct Staging {
    root: Arc<Path>,
    /// Files begun; makes names unique.
    begun: Arc<AtomicU64>,
}

impl Staging {
    /// Creates the directory in `data_dir` with mode 0700, and deletes the files that an earlier process left in it.
    ///
    /// # Errors
    /// The system's error.
    pub fn create(data_dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let root = data_dir.join(DIRECTORY);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { root: root.into(), begun: Arc::default() })
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins a file.
    ///
    /// # Errors
    /// The system's error.
    pub fn begin(&self) -> io::Result<StagedWriter> {
        let path = self.root.join(self.begun.fetch_add(1, Ordering::Relaxed).to_string());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = with_reserve(|| rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(StagedWriter {
            file: File::from(file),
            hasher: lamagrid_protocol::Hasher::default(),
            staged: StagedFile { path, len: 0, hash: lamagrid_protocol::hash(&[]) },
        })
    }
}

/// Writes one file, and hashes what it writes. Dropping it deletes the file.
#[derive(Debug)]
pub struct StagedWriter {
    file: File,
    hasher: lamagrid_protocol::Hasher,
    staged: StagedFile,
}

impl StagedWriter {
    /// Appends bytes.
    ///
    /// # Errors
    /// The system's error.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.staged.len += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file.
    #[must_use]
    pub fn finish(self) -> StagedFile {
        let mut staged = self.staged;
        staged.hash = self.hasher.finish();
        staged
    }
}

/// A complete file, deleted when this is dropped.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    len: u64,
    hash: Hash,
}

impl StagedFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The BLAKE3 hash of its bytes.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // Ignored: the next start deletes what stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::{Role, TaskId};

    use super::*;
    use crate::{BlobName, Spool};

    #[test]
    fn a_file_becomes_a_blob_without_a_copy_and_leaves_nothing() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::create(dir.path()).unwrap();
        let spool = Spool::create(dir.path().join("spool")).unwrap();
        let mut writer = staging.begin().unwrap();
        writer.write(b"pict").unwrap();
        writer.write(b"ure").unwrap();
        let staged = writer.finish();
        assert_eq!((staged.len(), staged.hash()), (7, lamagrid_protocol::hash(b"picture")));
        let (task, name) = (TaskId::from_bytes([7; 16]), BlobName::Role(Role::Image));
        // Again, as after a restart of the scheduler.
        for _ in 0..2 {
            spool.link(task, name, staged.path()).unwrap();
        }
        let (file, len) = spool.reader(task, name).unwrap();
        assert_eq!(len, 7);
        assert_eq!(file.metadata().unwrap().ino(), std::fs::metadata(staged.path()).unwrap().ino());
        drop(staged);
        assert_eq!(spool.reader(task, name).unwrap().1, 7);
        drop(staging.begin().unwrap());
        assert_eq!(std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count(), 0);
    }

    #[test]
    fn files_of_a_killed_process_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::create(dir.path()).unwrap();
        std::mem::forget(staging.begin().unwrap());
        let again = Staging::create(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count(), 0);
        drop(again.begin().unwrap());
    }
}
