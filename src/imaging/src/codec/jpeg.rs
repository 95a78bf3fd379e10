//! JPEG files, decoded and encoded by libjpeg-turbo with the calls of Pillow 10.4: the same pixels, also of damaged
//! files, and the same bytes.
//!
//! Does not: decode rare variants (arithmetic coding, lossless, 12 bits) or more than [`MAX_SCANS`] scans. Pillow may.

use lamagrid_domain::PictureFormat;

use self::libjpeg::Failure;
use self::markers::{Prologue, malformed, unsupported};
use super::{CodecError, Header, Metadata, Mode, Raster, Samples, Tags, exif};
use crate::image::{Gray, Image, Rgb};

mod libjpeg;
mod markers;

/// Maximum side that libjpeg writes, pixels (`JPEG_MAX_DIMENSION`).
const MAX_SIDE_PX: usize = 65500;

/// Maximum size of a marker segment without its length field, bytes.
const MAX_SEGMENT_BYTES: usize = 65533;

/// Maximum number of scans. Encoders write 10 to 25; every scan visits all blocks, so a small file with very many
/// scans would take hours.
const MAX_SCANS: u16 = 100;

impl From<Failure> for CodecError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TooManyScans => unsupported(format!("more than {MAX_SCANS} scans")),
            Failure::Refused(reason) => malformed(reason),
        }
    }
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let frame = Prologue::parse(bytes)?.frame;
    Ok(Header {
        format: PictureFormat::Jpeg,
        width: frame.width.into(),
        height: frame.height.into(),
        mode: match frame.channels {
            1 => Mode::L,
            3 => Mode::Rgb,
            4 => Mode::Cmyk,
            _ => Mode::Other,
        },
        decodes: frame.decodes(),
    })
}

/// `L`, `RGB` or `CMYK`.
///
/// Four channels are read as inverted, as Adobe writes them, with or without Adobe's marker.
///
/// Source: Pillow 10.4 `JpegImagePlugin`, `JpegDecode.c`.
pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let Prologue { frame, .. } = Prologue::parse(bytes)?;
    if !frame.decodes() {
        return Err(unsupported("coding process"));
    }
    let mut data = libjpeg::decode(bytes, (frame.width, frame.height), frame.channels, MAX_SCANS)?;
    let samples = match frame.channels {
        1 => Samples::L(data),
        3 => Samples::Rgb(data),
        _ => {
            for sample in &mut data {
                *sample = !*sample;
            }
            Samples::Cmyk(data)
        }
    };
    Ok(Raster { height: frame.height.into(), width: frame.width.into(), samples })
}

/// Reads EXIF only: Pillow 10.4 ignores an orientation in a JPEG file's XMP.
pub(super) fn tags(bytes: &[u8]) -> Tags {
    let exif = Prologue::parse(bytes).ok().and_then(|prologue| prologue.exif);
    Tags { metadata: Metadata { exif, parameters: None }, ..Tags::default() }
}

/// Writes baseline JPEG with 4:2:0 and the standard Huffman tables; alpha is [`CodecError::Unsupported`].
///
/// Always writes an EXIF segment, because upstream always passes an `Exif` object to Pillow.
pub(super) fn write(
    pixels: &Image<Rgb>,
    alpha: Option<&Gray>,
    quality: u8,
    metadata: &Metadata,
) -> Result<Vec<u8>, CodecError> {
    if alpha.is_some() {
        return Err(unsupported("alpha"));
    }
    let (height, width) = pixels.shape();
    if height.max(width) > MAX_SIDE_PX {
        return Err(malformed(format!("a side is longer than {MAX_SIDE_PX} pixels")));
    }
    let exif = metadata.exif.as_deref().unwrap_or(exif::EMPTY);
    if exif::PREFIX.len() + exif.len() > MAX_SEGMENT_BYTES {
        return Err(malformed("EXIF block over 64 KiB"));
    }
    let segment = [exif::PREFIX, exif].concat();
    Ok(libjpeg::encode(pixels.data(), width as u16, quality.clamp(1, 100), &segment)?) // at most MAX_SIDE_PX
}
