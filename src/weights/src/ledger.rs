//! Remembers which files were checked, so that the next start need not read them again.
//!
//! Does not: check files, or lock: when two processes write at once, one entry may be lost, and its file is checked again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Identifies a version of a file by its length and modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    len: u64,
    modified_ns: i128,
}

impl Version {
    fn of(path: &Path) -> io::Result<Self> {
        let about = fs::metadata(path)?;
        let modified_ns = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
        Ok(Self { len: about.len(), modified_ns })
    }
}

/// The checks that files have passed, kept in a file of one line per entry: length, modification time, check, path.
#[derive(Debug)]
pub struct Ledger {
    file: PathBuf,
}

/// A check and the file that passed it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    check: String,
    path: PathBuf,
}

impl Ledger {
    /// Uses `file`, which need not exist.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// True if `path` passed `check` and has not changed since.
    #[must_use]
    pub fn has_passed(&self, path: &Path, check: &str) -> bool {
        let recorded = self.read().get(&Entry { check: check.to_owned(), path: path.to_owned() }).copied();
        recorded.is_some() && Version::of(path).ok() == recorded
    }

    /// Records that `path` passed `check`.
    ///
    /// # Errors
    /// If the ledger cannot be written, or `path` cannot be inspected.
    pub fn record(&self, path: &Path, check: &str) -> io::Result<()> {
        let mut entries = self.read();
        entries.retain(|entry, version| Version::of(&entry.path).is_ok_and(|found| found == *version));
        let entry = Entry { check: check.to_owned(), path: path.to_owned() };
        entries.insert(entry, Version::of(path)?);
        let line = |(Entry { check, path }, version): (&Entry, &Version)| {
            format!("{} {} {check} {}\n", version.len, version.modified_ns, path.display())
        };
        let text: String = entries.iter().map(line).collect();
        if let Some(dir) = self.file.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = self.file.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, text)?;
        fs::rename(&new, &self.file)
    }

    fn read(&self) -> BTreeMap<Entry, Version> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let entry = |line: &str| {
            let mut words = line.splitn(4, ' ');
            let version =
                Version { len: words.next()?.parse().ok()?, modified_ns: words.next()?.parse().ok()? };
            let entry = Entry { check: words.next()?.to_owned(), path: PathBuf::from(words.next()?) };
            Some((entry, version))
        };
        text.lines().filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (model, other) = (dir.path().join("a model.pt"), dir.path().join("other.pt"));
        fs::write(&model, "1234").unwrap();
        fs::write(&other, "1").unwrap();
        let ledger = || Ledger::new(dir.path().join("new/verified-models"));
        assert!(!ledger().has_passed(&model, "load"));
        ledger().record(&model, "load").unwrap();
        ledger().record(&other, "md5:00").unwrap();
        assert!(ledger().has_passed(&model, "load") && ledger().has_passed(&other, "md5:00"));
        assert!(!ledger().has_passed(&model, "md5:00") && !ledger().has_passed(&other, "load"));
        fs::write(&model, "12345").unwrap();
        assert!(!ledger().has_passed(&model, "load"));
        fs::remove_file(&model).unwrap();
        assert!(!ledger().has_passed(&model, "load"));
        ledger().record(&other, "load").unwrap();
        let text = fs::read_to_string(dir.path().join("new/verified-models")).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        fs::write(dir.path().join("new/verified-models"), "no ledger\n1 2\n\u{fffd}").unwrap();
        assert!(!ledger().has_passed(&other, "load"), "a damaged ledger knows nothing");
    }
}
