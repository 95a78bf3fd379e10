//! JPEG files, decoded and encoded by a Rust port of libjpeg-turbo that gives the same samples and the same bytes
//! as libjpeg-turbo 3.0, which Pillow 10.4 contains.
//!
//! Does not: repair. libjpeg goes on after much damage, with pixels that depend on its buffers; here a damaged file
//! is an error.

use lamagrid_domain::PictureFormat;
use libjpeg_turbo_rs::{DecodeLimits, Decoder, Encoder, JpegError, PixelFormat, Subsampling};

use self::markers::{MAX_SCANS, Prologue, malformed, unsupported};
use super::{CodecError, Header, Metadata, Mode, Raster, Samples, Tags, exif};
use crate::image::{Gray, Image, Rgb};

mod markers;

/// Longest side that libjpeg writes, pixels (`JPEG_MAX_DIMENSION`).
const MAX_SIDE_PX: usize = 65500;

/// Most bytes of a marker segment, its length field not counted.
const MAX_SEGMENT_BYTES: usize = 65533;

impl From<JpegError> for CodecError {
    fn from(error: JpegError) -> Self {
        match error {
            JpegError::Unsupported(what) => unsupported(what),
            other => malformed(other.to_string()),
        }
    }
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let frame = Prologue::parse(bytes)?.frame;
    Ok(Header {
        format: PictureFormat::Jpeg,
        width: frame.width.into(),
        height: frame.height.into(),
        mode: match frame.channels() {
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
/// Four channels are taken as Adobe writes them, inverted, with or without Adobe's marker.
///
/// Source: Pillow 10.4 `JpegImagePlugin`, `JpegDecode.c`.
pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let Prologue { frame, scans, .. } = Prologue::parse(bytes)?;
    if !frame.decodes() {
        return Err(unsupported("coding process"));
    }
    scans.check_scans(&frame)?;
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let limits = DecodeLimits {
        max_width: width,
        max_height: height,
        max_pixels: u64::from(frame.width) * u64::from(frame.height),
        max_scans: MAX_SCANS,
        ..DecodeLimits::default()
    };
    let format = match frame.channels() {
        1 => PixelFormat::Grayscale,
        3 => PixelFormat::Rgb,
        _ => PixelFormat::Cmyk,
    };
    let image = Decoder::new_with_limits(bytes, limits)?
        .with_output_format(format)
        .with_stop_on_warning(true)
        .decode_image()?;
    let mut data = image.data;
    if (image.width, image.height) != (width, height) || data.len() != width * height * frame.channels() {
        return Err(malformed("its size is in doubt"));
    }
    let samples = match frame.channels() {
        1 => Samples::L(data),
        3 => Samples::Rgb(data),
        _ => {
            for sample in &mut data {
                *sample = !*sample;
            }
            Samples::Cmyk(data)
        }
    };
    Ok(Raster { height, width, samples })
}

/// EXIF alone: Pillow 10.4 takes no orientation from a JPEG file's XMP.
pub(super) fn tags(bytes: &[u8]) -> Tags {
    let Ok(Prologue { exif: segments, .. }) = Prologue::parse(bytes) else {
        return Tags::default();
    };
    // A block over 64 KiB comes in several segments.
    let block: Vec<_> = segments.into_iter().map(exif::strip_prefix).collect();
    let exif = (!block.is_empty()).then(|| block.concat());
    Tags { metadata: Metadata { exif, parameters: None }, xmp: None }
}

/// Baseline, 4:2:0, the Huffman tables of the standard; alpha is [`CodecError::Unsupported`].
///
/// An EXIF segment is always there, as upstream always gives Pillow an `Exif` object.
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
    let jpeg = Encoder::new(pixels.data(), width, height, PixelFormat::Rgb)
        .quality(quality.clamp(1, 100))
        .subsampling(Subsampling::S420)
        .force_baseline(true)
        .exif_data(exif);
    Ok(jpeg.encode()?)
}
