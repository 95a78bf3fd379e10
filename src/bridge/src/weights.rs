//! `_native.fetch_weights`: a model's file, found or fetched as a Rust node does it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pyo3::prelude::*;

use lamagrid_domain::FailureKind;
use lamagrid_weights::Weights;

use crate::enter::outside;
use crate::errors;

/// A file of weights: the keys of a dictionary, `WeightsFile` in `_native.pyi`.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct WeightsFile {
    url: String,
    md5: Option<String>,
    /// The folder of downloads.
    checkpoints: PathBuf,
    /// Upstream's variables for the place and the MD5 of the file.
    variables: Option<(String, String)>,
}

/// Returns the path of a file, fetched if it is missing or `replace` is set; a fetched file's MD5 is checked. Calls `on_progress`
/// with the bytes done and in all, also while none arrive; an exception in it ends the fetch.
#[pyfunction]
#[pyo3(signature = (file, on_progress, *, replace=false))]
pub(crate) fn fetch_weights(
    py: Python<'_>,
    file: WeightsFile,
    on_progress: &Bound<'_, PyAny>,
    replace: bool,
) -> PyResult<PathBuf> {
    let WeightsFile { url, md5, checkpoints, variables } = file;
    let weights = Weights::other(url, md5, checkpoints, variables);
    let on_progress = on_progress.clone().unbind();
    let mut raised = None;
    let located = outside(py, || {
        let report = |done, len| {
            // Ctrl-C ends the fetch, whatever `on_progress` does.
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
