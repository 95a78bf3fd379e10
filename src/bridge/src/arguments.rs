//! Converts arguments from Python into the grid's types.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use serde::Deserialize;

use lamagrid_client::{Content, Input, NewTask, new_task_id};
use lamagrid_domain::{
    BlobForm, Durability, FailureKind, ModelName, OutputForm, Params, PictureSize, Role, Scalar,
};
use lamagrid_imaging::codec;
use lamagrid_process::wall_clock::wall_ms;

use crate::errors;

/// Height, width and channels of raw pixels.
pub(crate) type Dims = (u32, u32, u8);

/// Role, bytes, and for raw pixels their dimensions.
pub(crate) type Blob = (String, PyBackedBytes, Option<Dims>);

/// A task as a dictionary from Python.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    id: Option<String>,
    model: String,
    #[serde(default)]
    queue: Option<String>,
    #[serde(default)]
    params: BTreeMap<String, Scalar>,
    #[serde(default)]
    priority: i8,
    #[serde(default)]
    durability: Durability,
    /// Seconds from now.
    #[serde(default)]
    deadline_s: Option<f64>,
    #[serde(default)]
    wait_limit_s: Option<f64>,
    #[serde(default)]
    no_node_wait_s: Option<f64>,
    #[serde(default)]
    run_limit_s: Option<f64>,
    /// Name of the client on whose behalf it is submitted.
    #[serde(default)]
    client: Option<String>,
    /// File format of the result; raw pixels if `None`.
    #[serde(default)]
    output: Option<String>,
    /// Quality of the result's file, for lossy formats.
    #[serde(default = "default_quality")]
    quality: u8,
}

/// Upstream's default of `--quality`.
fn default_quality() -> u8 {
    95
}

/// Converts a dictionary into a task.
///
/// # Errors
/// `InvalidInputError` if a value is invalid.
pub(crate) fn new_task(spec: &Bound<'_, PyAny>, blobs: Vec<Blob>) -> PyResult<NewTask> {
    let py = spec.py();
    let spec: Spec = pythonize::depythonize(spec)
        .map_err(|error| errors::invalid(py, &format!("the task is wrong: {error}")))?;
    let id = match &spec.id {
        Some(text) => parsed(py, text)?,
        None => new_task_id(),
    };
    let model: ModelName = parsed(py, &spec.model)?;
    let queue = spec.queue.as_ref().map(|text| parsed(py, text)).transpose()?;
    let params = Params::try_from(spec.params).map_err(|error| errors::invalid(py, &error.to_string()))?;
    let output = match &spec.output {
        Some(text) => OutputForm::Encoded { format: parsed(py, text)?, quality: spec.quality },
        None => OutputForm::Raw,
    };
    let deadline_wall_ms = spec.deadline_s.map(|seconds| wall_ms_after(py, seconds)).transpose()?;
    let limit = |seconds: Option<f64>| -> PyResult<Option<u64>> {
        let limit = seconds.map(|s| patience(py, Some(s), Duration::ZERO)).transpose()?;
        Ok(limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)))
    };
    let (wait_limit_ms, run_limit_ms) = (limit(spec.wait_limit_s)?, limit(spec.run_limit_s)?);
    let no_node_wait_ms = limit(spec.no_node_wait_s)?;
    let client = spec.client.map(|text| parsed(py, &text)).transpose()?;
    let inputs: Vec<Input> = blobs.into_iter().map(|blob| input(py, blob)).collect::<PyResult<_>>()?;
    Ok(NewTask {
        id,
        model,
        queue,
        picture: picture_size(&inputs),
        params,
        priority: spec.priority,
        durability: spec.durability,
        deadline_wall_ms,
        wait_limit_ms,
        no_node_wait_ms,
        run_limit_ms,
        client,
        output,
        inputs,
    })
}

/// Takes the bytes without a copy; the Python object lives until they are no longer needed.
fn input(py: Python<'_>, (role, bytes, dims): Blob) -> PyResult<Input> {
    Ok(Input { role: self::role(py, &role)?, form: form(dims), content: Bytes::from_owner(bytes).into() })
}

/// The size of the picture, of which only the file's header is read; `None` if that cannot be read.
fn picture_size(inputs: &[Input]) -> Option<PictureSize> {
    let image = inputs.iter().find(|input| input.role == Role::Image)?;
    match image.form {
        BlobForm::Raw { height, width, .. } => Some(PictureSize { height, width }),
        BlobForm::Encoded => {
            let Content::Bytes(bytes) = &image.content else { return None };
            let header = codec::probe(bytes).ok()?;
            Some(PictureSize { height: header.height, width: header.width })
        }
    }
}

pub(crate) fn form(dims: Option<Dims>) -> BlobForm {
    match dims {
        Some((height, width, channels)) => BlobForm::Raw { height, width, channels },
        None => BlobForm::Encoded,
    }
}

/// Parses the name of a role.
///
/// # Errors
/// `InvalidInputError` if it is unknown.
pub(crate) fn role(py: Python<'_>, text: &str) -> PyResult<Role> {
    [Role::Image, Role::Mask, Role::Example, Role::Result]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| errors::invalid(py, &format!("role {text:?} is none of image, mask, example, result")))
}

/// Parses the name of a failure kind.
///
/// # Errors
/// `InvalidInputError` if it is unknown.
pub(crate) fn failure_kind(py: Python<'_>, text: &str) -> PyResult<FailureKind> {
    FailureKind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let known: Vec<_> = FailureKind::ALL.iter().map(|kind| kind.as_str()).collect();
        errors::invalid(py, &format!("failure kind {text:?} is none of {}", known.join(", ")))
    })
}

/// Parses a name or an id.
///
/// # Errors
/// `InvalidInputError` if it is invalid.
pub(crate) fn parsed<T: FromStr<Err: std::fmt::Display>>(py: Python<'_>, text: &str) -> PyResult<T> {
    text.parse().map_err(|error: T::Err| errors::invalid(py, &error.to_string()))
}

/// Converts a timeout in seconds; `None` becomes `default`.
///
/// # Errors
/// `InvalidInputError` for NaN and negative numbers.
pub(crate) fn patience(py: Python<'_>, seconds: Option<f64>, default: Duration) -> PyResult<Duration> {
    /// Ten years; tokio and the clock can add it without overflow.
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
    match seconds {
        None => Ok(default),
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
            Err(errors::invalid(py, &format!("timeout must be 0 or more seconds, not {seconds}")))
        }
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)),
    }
}

fn wall_ms_after(py: Python<'_>, seconds: f64) -> PyResult<u64> {
    let after = patience(py, Some(seconds), Duration::ZERO)?;
    Ok(u64::try_from(u128::from(wall_ms()) + after.as_millis()).unwrap_or(u64::MAX))
}
