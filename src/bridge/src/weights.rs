//! `_native.fetch_weights`: finds or downloads a model's file, as a Rust node does.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pyo3::prelude::*;

use lamagrid_domain::FailureKind;
use lamagrid_weights::{Environment, Weights};

use crate::enter::outside;
use crate::errors;

/// A model's file, as a dictionary from Python: `_WeightsFile` in `_native.pyi`.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct WeightsFile {
    url: String,
    md5: Option<String>,
    /// Folder of downloads.
    checkpoints: PathBuf,
    /// The file of a model of the configuration; `None` for the URL's name in `checkpoints`.
    path: Option<PathBuf>,
    /// Its sum, if it is in the configuration.
    sha256: Option<String>,
    /// Names of upstream's environment variables for the file's location and its MD5.
    variables: Option<(String, String)>,
}

/// Returns the path of a file, after downloading it if it is missing or `replace` is set; the sum of a
/// download is checked. Calls `on_progress` with the bytes done and the total, even while no data arrives; an
/// exception from it ends the download.
#[pyfunction]
#[pyo3(signature = (file, on_progress, *, replace=false))]
pub(crate) fn fetch_weights(
    py: Python<'_>,
    file: WeightsFile,
    on_progress: &Bound<'_, PyAny>,
    replace: bool,
) -> PyResult<PathBuf> {
    let WeightsFile { url, md5, checkpoints, path, sha256, variables } = file;
    let weights = match path {
        Some(path) => {
            let sum = sha256.unwrap_or_default();
            Weights::configured(&url, &path, &sum, Environment::of_process())
        }
        None => Weights::other(url, md5, checkpoints, variables),
    };
    let on_progress = on_progress.clone().unbind();
    let mut raised = None;
    let located = outside(py, || {
        let report = |done, len| {
            // Checks for Ctrl-C as well, so that it ends the download independently of `on_progress`.
            let called =
                |py: Python<'_>| py.check_signals().and_then(|()| on_progress.call1(py, (done, len)));
            match Python::attach(called) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        if replace { weights.replace(report) } else { weights.locate(report) }
    });
    match (raised, located) {
        (Some(error), _) => Err(error),
        (None, Ok(path)) => Ok(path),
        (None, Err(error)) => Err(errors::failure(py, FailureKind::ModelLoad, &error.to_string())),
    }
}
