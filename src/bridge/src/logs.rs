//! Logs of this project's Python processes, in the same format and place as those of the Rust processes.
//!
//! Does not: start by itself. A program that imports `lamagrid` keeps its own logging.

use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use lamagrid_logs::LogGuard;

use crate::{configuration, errors};

/// Writes the last lines when the process ends. A process has one log.
static GUARD: OnceLock<Mutex<LogGuard>> = OnceLock::new();

/// Starts this process's log: standard error, and `<log dir>/<process>.log`, rotated.
#[pyfunction]
pub(crate) fn start_logs(py: Python<'_>, process: &str, data_dir: Option<PathBuf>) -> PyResult<()> {
    let config = configuration::load(data_dir.as_deref()).map_err(|error| errors::config(py, &error))?.config;
    let dir = config.log_dir().map_err(|error| errors::config(py, &error))?;
    let name: String = process.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    match lamagrid_logs::init(&name, &config.log, &dir) {
        Ok(guard) => {
            // Reached by the first call only: `init` refuses a second one.
            let _ = GUARD.set(Mutex::new(guard));
            // A server that forks after its start, such as gunicorn with --preload, logs in its children.
            let hooks = PyDict::new(py);
            hooks.set_item("after_in_child", wrap_pyfunction!(logs_after_fork, py)?)?;
            py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
            Ok(())
        }
        Err(error) => Err(errors::invalid(py, &error.to_string())),
    }
}

/// Restarts the log in a forked child.
#[pyfunction]
fn logs_after_fork() {
    // Never contended: only this function locks it, and a forked child has one thread.
    if let Some(mut guard) = GUARD.get().and_then(Mutex::try_lock) {
        guard.after_fork();
    }
}

/// Logs a handled exception: `message` is a constant, `error` its text, `stack` its traceback.
#[pyfunction]
pub(crate) fn log_error(message: &str, error: &str, stack: &str) {
    tracing::error!(error, stack, "{message}");
}
