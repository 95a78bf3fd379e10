//! Reads the bodies of requests within limits of size, time and number, large parts into files.

mod form;
mod json;
mod multipart;
mod reader;
mod upload;

pub(crate) use form::{Field, FieldValue, FormReader, NamedFile};
