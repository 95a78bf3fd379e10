//! Log lines of every process: stderr and a rotated file.
//!
//! Does not: decide what is worth a line, or ever stop the process: a log directory that cannot be
//! written costs the file and one warning, a closed stderr costs nothing.
//!
//! A process calls [`init`] once, early in `main`, and holds the [`LogGuard`] to its end. Libraries
//! only use `tracing`. This crate is the door for `tracing-subscriber` and `tracing-appender`.

mod panics;
mod report;
mod rotate;
mod subscriber;

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use tracing_appender::non_blocking::{ErrorCounter, WorkerGuard};
use tracing_subscriber::util::SubscriberInitExt;

use lamagrid_config::LogConfig;

pub use report::report;

/// The variable whose filter directives replace the configured level, for example
/// `info,lamagrid_node=trace`.
pub const FILTER_VARIABLE: &str = "LAMAGRID_LOG";

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `LAMAGRID_LOG` cannot be understood.
    #[error(
        "`{value}` in {FILTER_VARIABLE} is not a log filter; write for example `debug` or `info,lamagrid_node=trace`"
    )]
    Filter {
        /// The variable's value.
        value: String,
        /// The parser's reason.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process's name would not be a file name.
    #[error("`{process}` cannot name a log file; use letters, digits, `-` and `_`")]
    ProcessName {
        /// The name.
        process: String,
    },
    /// Logging was set up before, here or by the program that LamaGrid runs in.
    #[error("logging is already set up in this process")]
    AlreadySet {
        /// The subscriber's reason.
        source: tracing_subscriber::util::TryInitError,
    },
}

/// Writes what is left to the log file when it is dropped; hold it to the end of `main`.
#[derive(Debug)]
#[must_use = "dropping the guard ends the log file"]
pub struct LogGuard {
    file: Option<(PathBuf, ErrorCounter)>,
    /// How the file is opened again.
    place: (PathBuf, String, u32),
    writer: subscriber::FileWriter,
    pid: u32,
    // Dropped last: waits up to a second for the file's thread, which a child of a fork does not have.
    worker: ManuallyDrop<Option<WorkerGuard>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            let worker = std::mem::replace(&mut self.worker, ManuallyDrop::new(None));
            drop(ManuallyDrop::into_inner(worker));
        }
    }
}

impl LogGuard {
    /// The log file; none if its directory could not be written.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Gives the file a thread again in a child of a fork, where only the thread that forked goes on.
    pub fn after_fork(&mut self) {
        let (dir, process, keep_files) = &self.place;
        // The same file as before: it was writable then, and stderr has the lines in any case.
        let Ok(file) = rotate::RotatedFile::open(dir, process, *keep_files) else { return };
        let (writer, path, worker) = subscriber::in_background(file);
        self.file = Some((path, writer.error_counter()));
        // Another thread of the parent may have held the lock at the moment of the fork, for ever as seen from here.
        if let Ok(mut slot) = self.writer.try_write() {
            *slot = Some(writer);
        }
        (self.worker, self.pid) = (ManuallyDrop::new(Some(worker)), std::process::id());
    }

    /// Lines that are missing in the file because the disk was slower than the process.
    #[must_use]
    pub fn dropped_lines(&self) -> usize {
        self.file.as_ref().map_or(0, |(_, counter)| counter.dropped_lines())
    }
}

/// Sends this process's log lines to stderr and to `<dir>/<process>.log`, and panics into the log.
///
/// The directory is made if need be ([`lamagrid_config::Config::log_dir`]). The file begins anew
/// each day (UTC); older ones are `<process>.<date>.log`, `config.keep_files` files in all. It is
/// written by a thread of its own, which drops lines rather than slow the process down.
///
/// # Errors
/// [`LogError`]. A directory that cannot be written is not an error but one warning on stderr.
pub fn init(process: &str, config: &LogConfig, dir: &Path) -> Result<LogGuard, LogError> {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if process.is_empty() || !process.chars().all(named) {
        return Err(LogError::ProcessName { process: process.to_owned() });
    }
    let directives = std::env::var(FILTER_VARIABLE).ok().filter(|value| !value.trim().is_empty());
    let filter = subscriber::filter(config.level, directives)?;
    let (file, failed) = match rotate::RotatedFile::open(dir, process, config.keep_files) {
        Ok(file) => (Some(file), None),
        Err(error) => (None, Some(error)),
    };
    let (file, worker) = match file.map(subscriber::in_background) {
        Some((writer, path, worker)) => (Some((writer, path)), Some(worker)),
        None => (None, None),
    };
    let writer: subscriber::FileWriter =
        Arc::new(RwLock::new(file.as_ref().map(|(writer, _)| writer.clone())));
    subscriber::build(config.format, filter, subscriber::Stderr, Arc::clone(&writer))
        .try_init()
        .map_err(|source| LogError::AlreadySet { source })?;
    panics::install_hook();
    if let Some(error) = failed {
        tracing::warn!(
            dir = %dir.display(),
            error = %error,
            "cannot write a log file, logging to stderr only; check the directory and its permissions"
        );
    }
    let file = file.map(|(writer, path)| (path, writer.error_counter()));
    let place = (dir.to_owned(), process.to_owned(), config.keep_files);
    Ok(LogGuard { file, place, writer, pid: std::process::id(), worker: ManuallyDrop::new(worker) })
}
