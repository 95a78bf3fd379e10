//! What a picture file's header says, for the web process: it decodes nothing.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use lamagrid_imaging::codec;

/// Reads the header of a picture file: `format`, Pillow's `mode`, `width` and `height` in pixels before
/// orientation, whether nodes promise Pillow's pixels for it (`decodes`) and write that format (`encodes`).
/// `None` if it is no such file.
#[pyfunction]
pub(crate) fn probe<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Ok(header) = codec::probe(data) else { return Ok(None) };
    let dict = PyDict::new(py);
    dict.set_item("format", header.format.as_str())?;
    dict.set_item("mode", header.mode.as_str())?;
    dict.set_item("width", header.width)?;
    dict.set_item("height", header.height)?;
    dict.set_item("decodes", header.decodes)?;
    dict.set_item("encodes", codec::encodes(header.format))?;
    Ok(Some(dict))
}
