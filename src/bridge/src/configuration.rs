//! Loads the layered configuration, for Python.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use lamagrid_config::{Config, ConfigError, Loaded, find_sockets, process_env};

use crate::errors;

/// Loads the configuration; `data_dir` has the rank of a flag.
pub(crate) fn load(data_dir: Option<&Path>) -> Result<Loaded, ConfigError> {
    let flag = data_dir.map(|dir| ("data_dir".to_owned(), dir.to_string_lossy().into_owned()));
    Config::load(None, process_env(), &Vec::from_iter(flag))
}

/// Returns the resolved configuration of this process.
///
/// `flags` are dotted keys with values; they override all other layers.
#[pyfunction]
#[pyo3(signature = (file=None, flags=None))]
pub(crate) fn config<'py>(
    py: Python<'py>,
    file: Option<PathBuf>,
    flags: Option<Vec<(String, String)>>,
) -> PyResult<Bound<'py, PyDict>> {
    let wrong = |error: ConfigError| errors::config(py, &error);
    let loaded = Config::load(file.as_deref(), process_env(), &flags.unwrap_or_default()).map_err(wrong)?;
    let config = &loaded.config;
    let data_dir = config.data_dir().map_err(wrong)?;
    let dict = PyDict::new(py);
    dict.set_item("runtime_dir", text(&find_sockets(&data_dir).map_err(wrong)?))?;
    dict.set_item("data_dir", text(&data_dir))?;
    dict.set_item("log_dir", text(&config.log_dir().map_err(wrong)?))?;
    let join = &config.client.join;
    dict.set_item("join", (!join.as_os_str().is_empty()).then(|| text(join)))?;
    dict.set_item("max_pixels", config.limits.max_pixels)?;
    dict.set_item("timeout_s", config.client.timeout_ms as f64 / 1_000.0)?;
    let with_file = config.models.iter().filter(|(_, model)| model.has_file()).map(|(name, _)| name);
    dict.set_item("models", PyList::new(py, with_file.collect::<Vec<_>>())?)?;
    dict.set_item("allowed_hosts", &config.web.allowed_hosts)?;
    dict.set_item("allowed_origins", &config.web.allowed_origins)?;
    dict.set_item("trusted_proxies", &config.web.trusted_proxies)?;
    dict.set_item("queues", PyList::new(py, config.queues.keys())?)?;
    dict.set_item("rows", pythonize::pythonize(py, &loaded.rows())?)?;
    Ok(dict)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
