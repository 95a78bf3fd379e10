//! Deletes or moves aside files in the spool that belong to no known task.
//!
//! Does not: delete foreign files, or fail because of them, whatever they are and wherever they lie.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use lamagrid_domain::TaskId;

use super::{Spool, SpoolError, make_private};

/// The result of [`Spool::sweep`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Number of tasks whose blobs were deleted.
    pub deleted: usize,
    /// Number of tasks whose blobs were moved aside.
    pub moved: usize,
    /// Paths of foreign entries, which were left alone.
    pub foreign: Vec<PathBuf>,
}

/// True if the entry itself is a directory; a link to a directory is not.
fn is_dir(entry: &std::fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

impl Spool {
    /// Deletes the blobs of every task that is not in `known`, or moves them into the directory `aside`. Leaves alone, and
    /// reports, entries that do not look like a task's or cannot be deleted; the names in `ours` are not reported.
    ///
    /// Called once when a scheduler starts, before it accepts tasks.
    ///
    /// # Errors
    /// [`SpoolError::Io`] if the spool cannot be listed, or a directory cannot be moved to `aside`.
    pub fn sweep(
        &self,
        known: &HashSet<TaskId>,
        aside: Option<&Path>,
        ours: &[&str],
    ) -> Result<Swept, SpoolError> {
        let mut swept = Swept::default();
        let prefixes = std::fs::read_dir(&self.root);
        for prefix in prefixes.map_err(|source| self.io("list", self.root.clone(), source))? {
            let prefix = prefix.map_err(|source| self.io("list", self.root.clone(), source))?;
            let name = prefix.file_name();
            let is_prefix = name.len() == 2 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
            if !is_prefix || !is_dir(&prefix) {
                swept.foreign.extend((!ours.iter().any(|each| name == *each)).then(|| prefix.path()));
                continue;
            }
            let Ok(entries) = std::fs::read_dir(prefix.path()) else {
                swept.foreign.push(prefix.path());
                continue;
            };
            for entry in entries.flatten() {
                let id = entry.file_name().to_str().and_then(|name| name.parse::<TaskId>().ok());
                match id.filter(|id| is_dir(&entry) && entry.path() == self.path(*id, "")) {
                    Some(id) if known.contains(&id) => {}
                    Some(id) => self.sweep_one(id, aside, &mut swept)?,
                    None => swept.foreign.push(entry.path()),
                }
            }
        }
        Ok(swept)
    }

    fn sweep_one(&self, id: TaskId, aside: Option<&Path>, swept: &mut Swept) -> Result<(), SpoolError> {
        let dir = self.path(id, "");
        if let Some(aside) = aside {
            let relative = dir.strip_prefix(&self.root).unwrap_or(&dir);
            let to = aside.join(relative);
            let moved = make_private(to.parent().unwrap_or(aside)).and_then(|()| std::fs::rename(&dir, &to));
            moved.map_err(|source| self.io("move aside", dir, source))?;
            swept.moved += 1;
            return Ok(());
        }
        match self.delete(id) {
            Ok(()) => swept.deleted += 1,
            // A client is writing there at this moment, and will submit the task.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(_) => swept.foreign.push(dir),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::Role;

    use super::super::{BlobName, TRIES};
    use super::*;

    const IMAGE: BlobName = BlobName::Role(Role::Image);

    fn spool() -> (tempfile::TempDir, Spool, TaskId) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path().join("spool")).unwrap();
        (dir, spool, TaskId::from_bytes([7; 16]))
    }

    #[test]
    fn sweep_deletes_only_unknown_tasks() {
        let (_dir, spool, kept) = spool();
        let gone = TaskId::from_bytes([8; 16]);
        for task in [kept, gone] {
            spool.put(task, IMAGE, b"x").unwrap();
        }
        let swept = spool.sweep(&HashSet::from([kept]), None, &[]).unwrap();
        assert_eq!(swept, Swept { deleted: 1, ..Swept::default() });
        assert!(!spool.lacks(kept, IMAGE) && spool.lacks(gone, IMAGE));
    }

    /// R7.2: foreign entries are neither deleted nor an error, wherever they lie.
    #[test]
    fn sweep_reports_and_keeps_foreign_entries() {
        use std::os::unix::ffi::OsStrExt;
        let (dir, spool, kept) = spool();
        spool.put(kept, IMAGE, b"x").unwrap();
        let gone = TaskId::from_bytes([9; 16]).to_string();
        let strange = std::ffi::OsStr::from_bytes(b"\xff\xfe");
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        let mut foreign = Vec::new();
        for place in ["", "07"].map(|place| spool.root().join(place)) {
            for name in [std::ffi::OsStr::new("README"), strange, std::ffi::OsStr::new(&gone)] {
                std::fs::write(place.join(name), b"not ours").unwrap();
                foreign.push(place.join(name));
            }
            std::fs::create_dir(place.join("lost+found")).unwrap();
            std::os::unix::fs::symlink(dir.path().join("elsewhere"), place.join("aa")).unwrap();
            drop(std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap());
            foreign.extend(["lost+found", "aa", "socket"].map(|name| place.join(name)));
        }
        // Named like a task, but a file or in the wrong directory.
        let file = spool.root().join("07").join(format!("07{}", "08".repeat(15)));
        std::fs::write(&file, b"not ours").unwrap();
        foreign.push(file);
        std::fs::create_dir(spool.root().join("07").join("0a".repeat(16))).unwrap();
        foreign.push(spool.root().join("07").join("0a".repeat(16)));
        let swept = spool.sweep(&HashSet::from([kept]), None, &["ours"]).unwrap();
        let found: HashSet<_> = swept.foreign.iter().cloned().collect();
        assert_eq!(found, foreign.iter().cloned().collect());
        assert_eq!((swept.deleted, swept.moved), (0, 0));
        assert!(foreign.iter().all(|path| path.symlink_metadata().is_ok()));
    }

    #[test]
    fn sweep_moves_unknown_tasks_aside() {
        let (dir, spool, kept) = spool();
        let unknown = TaskId::from_bytes([8; 16]);
        for task in [kept, unknown] {
            spool.put(task, IMAGE, b"x").unwrap();
        }
        let aside = dir.path().join("aside");
        let swept = spool.sweep(&HashSet::from([kept]), Some(&aside), &[]).unwrap();
        assert_eq!(swept, Swept { moved: 1, ..Swept::default() });
        assert!(spool.lacks(unknown, IMAGE));
        assert!(!Spool::new(&aside).lacks(unknown, IMAGE));
        assert!(!spool.lacks(kept, IMAGE));
    }

    #[test]
    fn a_write_succeeds_during_a_sweep() {
        let (_dir, spool, task) = spool();
        // As if several schedulers started one after another during one write: more than happens in practice.
        let (rounds, sweeps) = (5_000, TRIES / 4);
        let together = std::sync::Barrier::new(2);
        // Neither side stops at an error, because the other side waits for it in each round.
        let sweep = |_| {
            together.wait();
            (0..sweeps).find_map(|_| spool.sweep(&HashSet::new(), None, &[]).err())
        };
        let write = |_| {
            together.wait();
            spool.put(task, IMAGE, b"pixels").err()
        };
        let failed: Vec<SpoolError> = std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| (0..rounds).filter_map(sweep).collect::<Vec<_>>());
            let failed = (0..rounds).filter_map(write).collect::<Vec<_>>();
            failed.into_iter().chain(sweeper.join().unwrap()).collect()
        });
        assert!(failed.is_empty(), "{} of {rounds}, the first: {}", failed.len(), failed[0]);
        std::fs::remove_dir_all(spool.root()).unwrap();
        assert!(matches!(spool.put(task, IMAGE, b"x"), Err(SpoolError::Io { .. })));
    }
}
