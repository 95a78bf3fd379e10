//! Raises the exceptions that Python's `lamagrid.errors` defines; imports that module once.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

use lamagrid_client::ClientError;
use lamagrid_config::ConfigError;
use lamagrid_domain::{Failure, FailureKind, TaskId};

static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn make(py: Python<'_>, class: &str, message: &str, notes: &[(&str, Bound<'_, PyAny>)]) -> PyErr {
    let made = || -> PyResult<PyErr> {
        let module = MODULE.get_or_try_init(py, || py.import("lamagrid.errors").map(Bound::unbind))?;
        let notes_dict = PyDict::new(py);
        for (name, value) in notes {
            notes_dict.set_item(name, value)?;
        }
        let error = module.bind(py).getattr(class)?.call((message,), Some(&notes_dict))?;
        Ok(PyErr::from_value(error))
    };
    made().unwrap_or_else(|error| error)
}

/// Exception of a failure kind.
pub(crate) fn failure(py: Python<'_>, kind: FailureKind, message: &str) -> PyErr {
    make(py, kind.python_class(), message, &[])
}

/// `InvalidInputError` with this message.
pub(crate) fn invalid(py: Python<'_>, message: &str) -> PyErr {
    failure(py, FailureKind::InvalidInput, message)
}

/// `InternalError` with this message.
pub(crate) fn internal(py: Python<'_>, message: &str) -> PyErr {
    failure(py, FailureKind::Internal, message)
}

/// `ConfigError` with the error's text.
pub(crate) fn config(py: Python<'_>, error: &ConfigError) -> PyErr {
    make(py, "ConfigError", &chain(error), &[])
}

/// Exception of a task that ended without a result.
pub(crate) fn ended(py: Python<'_>, id: TaskId, failure: &Failure) -> PyErr {
    let id = id.to_string().into_pyobject(py);
    let notes = id.map(|id| [("task_id", id.into_any())]);
    let notes = notes.as_ref().map_or(&[][..], |notes| &notes[..]);
    make(py, failure.kind.python_class(), &failure.message, notes)
}

/// Exception of a failed call.
pub(crate) fn client(py: Python<'_>, error: &ClientError) -> PyErr {
    let class = match error {
        ClientError::Timeout { .. } => "WaitTimeoutError",
        ClientError::Unknown { .. } => "UnknownTaskError",
        _ => error.kind().python_class(),
    };
    let mut notes = Vec::new();
    if let ClientError::Refused { queue_len, wait, .. } = error {
        // Converting numbers to Python objects cannot fail.
        notes.extend(queue_len.into_pyobject(py).ok().map(|n| ("queue_len", n.into_any())));
        let wait = wait.map(|wait| wait.as_secs_f64());
        notes.extend(wait.into_pyobject(py).ok().map(|s| ("wait_s", s)));
    }
    if let ClientError::Unknown { id, .. } | ClientError::Result { id, .. } = error {
        notes.extend(id.to_string().into_pyobject(py).ok().map(|id| ("task_id", id.into_any())));
    }
    make(py, class, &chain(error), &notes)
}

/// Joins the texts of an error and its sources; texts that repeat are left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = inner.source();
    }
    text
}
