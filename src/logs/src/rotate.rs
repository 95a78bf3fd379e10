//! Writes a log file that starts anew each day, and keeps the last few files.
//!
//! Does not: buffer, lock or print. `tracing-appender` also has a rolling file, but it treats other
//! processes' files with the same prefix as its own, deletes today's file on restart if one file is kept, has
//! no limit on a day's size, and panics on a closed stderr.
//!
//! The current file is `<process>.log`. An older one is `<process>.<yyyy-mm-dd>.log`, named for the day (UTC)
//! of its last lines, with a number if a day has several. Processes with the same name may share a file: all
//! append, and one that finds the file already renamed opens the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size limit of one file in bytes: a process that logs in a loop must not fill the disk.
const FILE_MAX_BYTES: u64 = 256 * 1024 * 1024;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The open log file of a process, with its rotation state.
#[derive(Debug)]
pub(crate) struct RotatedFile {
    dir: PathBuf,
    process: String,
    path: PathBuf,
    keep_files: usize,
    max_bytes: u64,
    clock: fn() -> SystemTime,
    file: File,
    /// Day of the last line, in days since 1970.
    day: u64,
    bytes: u64,
}

impl RotatedFile {
    /// Opens `<dir>/<process>.log` for appending, after renaming a file of an earlier day.
    ///
    /// Creates the directory if needed. `keep_files` includes the current file; 0 means 1.
    pub(crate) fn open(dir: &Path, process: &str, keep_files: u32) -> io::Result<Self> {
        Self::open_with(dir, process, keep_files, FILE_MAX_BYTES, SystemTime::now)
    }

    fn open_with(
        dir: &Path,
        process: &str,
        keep_files: u32,
        max_bytes: u64,
        clock: fn() -> SystemTime,
    ) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{process}.log"));
        let file = append_to(&path)?;
        let found = file.metadata()?;
        let today = day_of(clock());
        let day = if found.len() == 0 { today } else { found.modified().map_or(today, day_of) };
        let mut rotated = Self {
            dir: dir.to_owned(),
            process: process.to_owned(),
            path,
            keep_files: keep_files as usize,
            max_bytes,
            clock,
            file,
            day,
            bytes: found.len(),
        };
        rotated.rotate_if_due(0);
        Ok(rotated)
    }

    /// The path of the current file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a new file if the day is over or `more` bytes would exceed the limit. If that fails, the old
    /// file is used further: lines in the wrong file are better than lost lines.
    fn rotate_if_due(&mut self, more: u64) {
        let today = day_of((self.clock)());
        // A clock that steps back does not rotate: that file name would exist, and the order would be wrong.
        let due = today > self.day || (self.bytes > 0 && self.bytes + more > self.max_bytes);
        if !due {
            return;
        }
        if self.is_current() {
            let _ = fs::rename(&self.path, self.free_name());
        }
        if let Ok(file) = append_to(&self.path) {
            self.file = file;
        }
        // Also after a failure, so that the next try comes a day or a file's size later.
        self.day = today.max(self.day);
        self.bytes = 0;
        self.remove_old();
    }

    /// True if the open file still has the current name, so that no other process has renamed it.
    fn is_current(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }

    fn free_name(&self) -> PathBuf {
        let date = date_of(self.day);
        let taken = self.older().into_iter().filter(|(key, _)| key.0 == date).map(|(key, _)| key.1);
        let number = taken.max().map_or(0, |last| last + 1);
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        self.dir.join(format!("{}.{date}{suffix}.log", self.process))
    }

    /// This process's older files with date and number, oldest first.
    fn older(&self) -> Vec<((String, u32), PathBuf)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut older: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let middle = name.to_str()?.strip_prefix(self.process.as_str())?.strip_prefix('.')?;
                let middle = middle.strip_suffix(".log")?;
                let (date, number) = match middle.split_once('.') {
                    Some((date, number)) => (date, number.parse().ok()?),
                    None => (middle, 0),
                };
                is_date(date).then(|| ((date.to_owned(), number), entry.path()))
            })
            .collect();
        older.sort();
        older
    }

    fn remove_old(&self) {
        let older = self.older();
        let too_many = (older.len() + 1).saturating_sub(self.keep_files.max(1));
        for (_, path) in older.into_iter().take(too_many) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Write for RotatedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rotate_if_due(bytes.len() as u64);
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Converts a time to days since 1970; earlier times give 0.
fn day_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs()
}

fn is_date(text: &str) -> bool {
    text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, b)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() })
}

/// Converts a day since 1970 to the date `yyyy-mm-dd`.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn date_of(day: u64) -> String {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// The test's clock, in days since 1970.
        static TODAY: Cell<u64> = const { Cell::new(0) };
    }

    /// 2026-02-27.
    const START: u64 = 20_511;

    fn clock() -> SystemTime {
        UNIX_EPOCH + DAY * u32::try_from(TODAY.get()).unwrap()
    }

    fn open(dir: &Path, keep_files: u32, max_bytes: u64) -> RotatedFile {
        RotatedFile::open_with(dir, "node", keep_files, max_bytes, clock).unwrap()
    }

    fn files(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let text = fs::read_to_string(&path).unwrap();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
            })
            .collect();
        files.sort();
        files
    }

    fn expect(dir: &Path, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        assert_eq!(files(dir), expected);
    }

    #[test]
    fn days_are_converted_to_dates() {
        assert_eq!(date_of(0), "1970-01-01");
        assert_eq!(date_of(11_016), "2000-02-29");
        assert_eq!(date_of(START), "2026-02-27");
        assert_eq!(date_of(START + 2), "2026-03-01");
        assert!(is_date("2026-03-01") && !is_date("2026-3-01x") && !is_date("worker"));
    }

    #[test]
    fn a_new_day_starts_a_new_file_and_deletes_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        // Names with the same prefix belong to other processes.
        for other in ["node-worker.2020-01-01.log", "node.old.log", "nodes.log"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        TODAY.set(START);
        let mut log = open(dir.path(), 3, 1000);
        for line in ["a\n", "b\n", "c\n", "d\n"] {
            log.write_all(line.as_bytes()).unwrap();
            log.write_all(line.as_bytes()).unwrap();
            TODAY.set(TODAY.get() + 1);
        }
        expect(
            dir.path(),
            &[
                ("node-worker.2020-01-01.log", ""),
                ("node.2026-02-28.log", "b\nb\n"),
                ("node.2026-03-01.log", "c\nc\n"),
                ("node.log", "d\nd\n"),
                ("node.old.log", ""),
                ("nodes.log", ""),
            ],
        );
    }

    #[test]
    fn a_full_file_is_followed_by_another_of_the_same_day() {
        let dir = tempfile::tempdir().unwrap();
        TODAY.set(START);
        let mut log = open(dir.path(), 10, 4);
        for line in ["1\n", "2\n", "3\n", "longer than a file\n", "5\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        expect(
            dir.path(),
            &[
                ("node.2026-02-27.1.log", "3\n"),
                ("node.2026-02-27.2.log", "longer than a file\n"),
                ("node.2026-02-27.log", "1\n2\n"),
                ("node.log", "5\n"),
            ],
        );
    }

    #[test]
    fn a_restart_appends_on_the_same_day_and_rotates_on_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        TODAY.set(day_of(SystemTime::now()));
        open(dir.path(), 1, 1000).write_all(b"a\n").unwrap();
        TODAY.set(day_of(SystemTime::now()));
        open(dir.path(), 1, 1000).write_all(b"b\n").unwrap();
        expect(dir.path(), &[("node.log", "a\nb\n")]);
        TODAY.set(TODAY.get() + 2);
        open(dir.path(), 2, 1000).write_all(b"c\n").unwrap();
        let found = files(dir.path());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].1.as_str(), found[1].1.as_str()), ("a\nb\n", "c\n"));
    }

    #[test]
    fn two_processes_of_one_name_share_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        TODAY.set(START);
        let (mut one, mut two) = (open(dir.path(), 7, 1000), open(dir.path(), 7, 1000));
        one.write_all(b"1\n").unwrap();
        two.write_all(b"2\n").unwrap();
        TODAY.set(START + 1);
        one.write_all(b"3\n").unwrap();
        two.write_all(b"4\n").unwrap();
        expect(dir.path(), &[("node.2026-02-27.log", "1\n2\n"), ("node.log", "3\n4\n")]);
    }

    #[test]
    fn a_clock_that_steps_back_does_not_rotate() {
        let dir = tempfile::tempdir().unwrap();
        TODAY.set(START);
        let mut log = open(dir.path(), 7, 1000);
        log.write_all(b"1\n").unwrap();
        TODAY.set(START - 5);
        log.write_all(b"2\n").unwrap();
        expect(dir.path(), &[("node.log", "1\n2\n")]);
    }
}
