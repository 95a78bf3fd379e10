//! `_native.fetch_weights`: a model's file, found or fetched as a Rust node does it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pyo3::prelude::*;

use lamagrid_domain::FailureKind;
use lamagrid_weights::Weights;

use crate::enter::outside;
use crate::errors;

/// The file of a URL in `checkpoints`, fetched if it is missing or shall be replaced, and its MD5 checked then. `told` hears
/// bytes done and in all, also while none come; what it raises ends the fetch.
#[pyfunction]
#[pyo3(signature = (url, md5, checkpoints, variables, told, *, replace=false))]
pub(crate) fn fetch_weights(
    py: Python<'_>,
    url: String,
    md5: Option<String>,
    checkpoints: PathBuf,
    variables: Option<(String, String)>,
    told: &Bound<'_, PyAny>,
    replace: bool,
) -> PyResult<PathBuf> {
    let weights = Weights::other(url, md5, checkpoints, variables);
    let told = told.clone().unbind();
    let mut raised = None;
    let located = outside(py, || {
        let hear = |done, len| {
            // Ctrl-C counts here, too, whatever `told` does.
            let heard = |py: Python<'_>| py.check_signals().and_then(|()| told.call1(py, (done, len)));
            match Python::attach(heard) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        if replace { weights.replace(hear) } else { weights.locate(hear) }
    });
    match (raised, located) {
        (Some(error), _) => Err(error),
        (None, Ok(path)) => Ok(path),
        (None, Err(error)) => Err(errors::failure(py, FailureKind::ModelLoad, &error.to_string())),
    }
}
