//! Sets up the log of every process: lines to stderr and to a rotated file.
//!
//! Does not: decide which events are logged, or stop the process. If the log directory cannot be written, the
//! file is left out and one warning is logged; a closed stderr is ignored.
//!
//! A process calls [`init`] once, early in `main`, and holds the [`LogGuard`] until it ends. Libraries use
//! `tracing` only; no other crate depends on `tracing-subscriber` or `tracing-appender`.

mod panics;
mod report;
mod rotate;
mod subscriber;

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use tracing_appender::non_blocking::{ErrorCounter, WorkerGuard};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use lamagrid_config::{LogConfig, LogLevel};

pub use report::report;

/// The environment variable whose filter directives replace the configured level, for example
/// `info,lamagrid_node=trace`.
pub const FILTER_VARIABLE: &str = "LAMAGRID_LOG";

/// Replaces the filter of this process's log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `LAMAGRID_LOG` is not a valid filter.
    #[error(
        "`{value}` in {FILTER_VARIABLE} is not a log filter; write for example `debug` or `info,lamagrid_node=trace`"
    )]
    Filter {
        /// The variable's value.
        value: String,
        /// The parser's error.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process's name is not usable as a file name.
    #[error("`{process}` cannot name a log file; use letters, digits, `-` and `_`")]
    ProcessName {
        /// The rejected name.
        process: String,
    },
    /// This process has no log whose level could change.
    #[error("this process writes no log of its own, so that its level cannot change")]
    NotSetUp,
    /// Logging was already set up, by LamaGrid or by the program that embeds it.
    #[error("logging is already set up in this process")]
    AlreadySet {
        /// The subscriber's error.
        source: tracing_subscriber::util::TryInitError,
    },
}

/// Writes the remaining lines to the log file when dropped; hold it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping the guard ends the log file"]
pub struct LogGuard {
    file: Option<(PathBuf, ErrorCounter)>,
    /// Directory, process name and number of kept files, for reopening the file after a fork.
    place: (PathBuf, String, u32),
    writer: subscriber::FileWriter,
    pid: u32,
    // Dropping it waits up to a second for the file's thread, which does not exist in a forked child.
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
    /// The log file's path; `None` if its directory could not be written.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Starts the file's thread again in a forked child, where only the thread that forked still runs.
    pub fn after_fork(&mut self) {
        let (dir, process, keep_files) = &self.place;
        // On failure the lines still go to stderr; the file was writable before the fork.
        let Ok(file) = rotate::RotatedFile::open(dir, process, *keep_files) else { return };
        let (writer, path, worker) = subscriber::in_background(file);
        self.file = Some((path, writer.error_counter()));
        // Another thread of the parent may have held the lock during the fork; in the child it is then never released.
        if let Ok(mut slot) = self.writer.try_write() {
            *slot = Some(writer);
        }
        (self.worker, self.pid) = (ManuallyDrop::new(Some(worker)), std::process::id());
    }

    /// Number of lines missing in the file because the disk was slower than the process.
    #[must_use]
    pub fn dropped_lines(&self) -> usize {
        self.file.as_ref().map_or(0, |(_, counter)| counter.dropped_lines())
    }
}

/// Sends this process's log lines to stderr and to `<dir>/<process>.log`, and logs panics.
///
/// Creates the directory if needed (see [`lamagrid_config::Config::log_dir`]). A new file starts each day
/// (UTC); older ones are renamed `<process>.<date>.log`, and `config.keep_files` files are kept in all. A
/// separate thread writes the file and drops lines rather than slow the process down.
///
/// # Errors
/// [`LogError`]. A directory that cannot be written is not an error: it causes one warning on stderr.
pub fn init(process: &str, config: &LogConfig, dir: &Path) -> Result<LogGuard, LogError> {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if process.is_empty() || !process.chars().all(named) {
        return Err(LogError::ProcessName { process: process.to_owned() });
    }
    let directives = std::env::var(FILTER_VARIABLE).ok().filter(|value| !value.trim().is_empty());
    let (filter, handle) = reload::Layer::new(subscriber::filter(config.level, directives)?);
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
    // Reached by the first call only: `try_init` refuses a second one.
    let _ = FILTER.set(handle);
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

/// Changes the lowest severity that this process logs; it replaces a filter of [`FILTER_VARIABLE`], too.
///
/// # Errors
/// [`LogError::NotSetUp`] before [`init`].
pub fn set_level(level: LogLevel) -> Result<(), LogError> {
    let filter = subscriber::filter(level, None)?;
    let handle = FILTER.get().ok_or(LogError::NotSetUp)?;
    handle.reload(filter).map_err(|_| LogError::NotSetUp)
}
