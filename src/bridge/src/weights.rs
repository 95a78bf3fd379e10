//! `_native.fetch_weights`: a model's file, found or fetched as a Rust node does it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pyo3::prelude::*;

use lamagrid_domain::FailureKind;
use lamagrid_node::weights::Weights;

use crate::enter::outside;
use crate::errors;

/// The file of a URL in `checkpoints`, fetched if it is missing, and its MD5 checked then. `told` hears bytes done and in all; what
/// it raises ends the fetch.
#[pyfunction]
pub(crate) fn fetch_weights(
    py: Python<'_>,
    url: String,
    md5: Option<String>,
    checkpoints: PathBuf,
    variables: Option<(String, String)>,
    told: &Bound<'_, PyAny>,
) -> PyResult<PathBuf> {
    let weights = Weights::other(url, md5, checkpoints, variables);
    let told = told.clone().unbind();
    let mut raised = None;
    let located = outside(py, || {
        weights.locate(|done, len| match Python::attach(|py| told.call1(py, (done, len))) {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                raised = Some(error);
                ControlFlow::Break(())
            }
        })
    });
    match (raised, located) {
        (Some(error), _) => Err(error),
        (None, Ok(path)) => Ok(path),
        (None, Err(error)) => Err(errors::failure(py, FailureKind::ModelLoad, &error.to_string())),
    }
}
