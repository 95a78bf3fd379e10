//! Reads headers of image files, for the web process. Does not decode pixels.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use lamagrid_imaging::codec;

/// Reads the header of an image file: `format`, Pillow's `mode`, `width` and `height` in pixels before
/// orientation, whether nodes decode it to Pillow's exact pixels (`decodes`), and whether they write the
/// format (`encodes`). `None` if it is not a supported image file.
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
