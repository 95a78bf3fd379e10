//! Errors of TIFF files.

use lamagrid_domain::PictureFormat;

use crate::codec::CodecError;

pub(super) fn malformed(reason: &str) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Tiff, reason: reason.into() }
}

pub(super) fn unsupported(what: &str) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Tiff, what: what.into() }
}
