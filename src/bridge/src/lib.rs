//! The Python module `lamagrid._native`: adapters, and nothing that decides.
//!
//! Python shapes arrays and names arguments; this moves bytes. Names here are private to the package
//! `lamagrid`, whose Python modules are the public API.
//!
//! Does not: start a runtime, a thread or a connection, or set up logs, when it is imported.
//!
//! Invariant: every wait goes through `enter`, which lets other Python threads run and hears Ctrl-C.
//! This crate is the door for `pyo3` and `pythonize`.

mod arguments;
mod client;
mod configuration;
mod enter;
mod errors;
mod logs;
mod node;
mod pictures;
mod process;
mod weights;

use pyo3::prelude::*;

/// `lamagrid._native`, see `_native.pyi` for the shapes.
#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::client::{Client, Follow};
    #[pymodule_export]
    use crate::configuration::config;
    #[pymodule_export]
    use crate::logs::{log_error, start_logs};
    #[pymodule_export]
    use crate::node::{Job, NodeSession};
    #[pymodule_export]
    use crate::pictures::probe;
    #[pymodule_export]
    use crate::weights::fetch_weights;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The protocol that this build speaks, `(major, minor)`.
    #[pyfunction]
    fn protocol_version() -> (u8, u8) {
        lamagrid_client::PROTOCOL
    }

    /// What this build is, for reports.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let info = PyDict::new(py);
        let (major, minor) = lamagrid_client::PROTOCOL;
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("protocol", format!("{major}.{minor}"))?;
        info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        info.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
        Ok(info)
    }

    /// The name of the node that a bundle is for.
    #[pyfunction]
    fn bundle_name(py: Python<'_>, path: std::path::PathBuf) -> PyResult<String> {
        let found = lamagrid_session::read_node_bundle(&path);
        let named = found.map(|bundle| bundle.certificate.name);
        named.map_err(|error| crate::errors::invalid(py, &error.to_string()))
    }

    /// The process id of the scheduler that runs on a data directory; `None` if none does.
    #[pyfunction]
    fn running_scheduler(data_dir: std::path::PathBuf) -> Option<String> {
        lamagrid_config::running_scheduler(&data_dir)
    }

    /// The kinds of failure and the names of their classes, for tests and tables.
    #[pyfunction]
    fn failure_kinds() -> Vec<(&'static str, &'static str)> {
        let kinds = lamagrid_domain::FailureKind::ALL;
        kinds.iter().map(|kind| (kind.as_str(), kind.python_class())).collect()
    }

    /// The exception of a failure, for tests.
    #[pyfunction]
    fn raise_failure(py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        let kind = crate::arguments::failure_kind(py, kind)?;
        Err(crate::errors::failure(py, kind, message))
    }

    /// The command `lamagrid`; returns its exit status.
    #[pyfunction]
    fn main(py: Python<'_>, argv: Vec<String>) -> u8 {
        crate::enter::outside(py, || lamagrid_cli::main(argv))
    }
}
