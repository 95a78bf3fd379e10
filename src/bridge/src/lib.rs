//! The Python module `lamagrid._native`: adapters without logic of their own.
//!
//! Python shapes arrays and names arguments; this module moves bytes. Its names are private to the package
//! `lamagrid`, whose Python modules are the public API.
//!
//! Does not: start a runtime, a thread or a connection, or set up logs, when it is imported.
//!
//! Invariant: every wait goes through `enter`, so that other Python threads run and Ctrl-C works.
//! Only this crate names `pyo3` and `pythonize`.

mod arguments;
mod client;
mod configuration;
mod enter;
mod errors;
mod hardware;
mod logs;
mod node;
mod pictures;
mod process;
mod weights;

use pyo3::prelude::*;

/// `lamagrid._native`; `_native.pyi` declares its types.
#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::client::{Client, Follow};
    #[pymodule_export]
    use crate::configuration::config;
    #[pymodule_export]
    use crate::hardware::{capability_offer, cuda_gpus};
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

    /// Protocol version of this build, as `(major, minor)`.
    #[pyfunction]
    fn protocol_version() -> (u8, u8) {
        lamagrid_client::PROTOCOL
    }

    /// Describes this build, for reports.
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

    /// Name of the node for which a bundle was made.
    #[pyfunction]
    fn bundle_name(py: Python<'_>, path: std::path::PathBuf) -> PyResult<String> {
        let found = lamagrid_session::read_node_bundle(&path);
        let named = found.map(|bundle| bundle.certificate.name);
        named.map_err(|error| crate::errors::invalid(py, &error.to_string()))
    }

    /// Process id of the scheduler that runs on a data directory; `None` if no scheduler does.
    #[pyfunction]
    fn running_scheduler(data_dir: std::path::PathBuf) -> Option<String> {
        lamagrid_config::running_scheduler(&data_dir)
    }

    /// Failure kinds with the names of their exception classes, for tests and tables.
    #[pyfunction]
    fn failure_kinds() -> Vec<(&'static str, &'static str)> {
        let kinds = lamagrid_domain::FailureKind::ALL;
        kinds.iter().map(|kind| (kind.as_str(), kind.python_class())).collect()
    }

    /// Raises the exception of a failure, for tests.
    #[pyfunction]
    fn raise_failure(py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        let kind = crate::arguments::failure_kind(py, kind)?;
        Err(crate::errors::failure(py, kind, message))
    }

    /// Runs the command `lamagrid` and returns its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, argv: Vec<String>) -> u8 {
        crate::enter::outside(py, || lamagrid_cli::main(argv))
    }
}
