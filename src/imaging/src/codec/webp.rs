//! WebP files, read and written by libwebp as in Pillow.
//!
//! Does not: decode later frames of an animation, or write lossless files: upstream's `save` passes only the quality.

use lamagrid_domain::PictureFormat;

use super::{CodecError, Header, Metadata, Mode, Raster, Samples, Tags, exif};
use crate::image::{Gray, Image, Rgb};

mod libwebp;

use libwebp::{Channels, File};

/// Flag in the `VP8X` chunk: the file has an `EXIF` chunk.
const HAS_EXIF: u8 = 0x08;

fn malformed(reason: &str) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Webp, reason: reason.into() }
}

fn open(bytes: &[u8]) -> Result<File<'_>, CodecError> {
    File::open(bytes).ok_or_else(|| malformed("its container is broken or cut short"))
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let (width, height) = open(bytes)?.canvas();
    // Like Pillow, assume alpha if libwebp cannot tell.
    let mode = if libwebp::has_alpha(bytes) == Some(false) { Mode::Rgb } else { Mode::Rgba };
    Ok(Header { format: PictureFormat::Webp, width, height, mode, decodes: true })
}

pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let channels = if libwebp::has_alpha(bytes) == Some(false) { Channels::Rgb } else { Channels::Rgba };
    let file = open(bytes)?;
    let frame = file.first_frame().ok_or_else(|| malformed("it has no frame"))?;
    let (width, height) = file.canvas();
    let (width, height) = (width as usize, height as usize);
    let stride = width * channels.count();
    // The canvas outside a smaller frame is transparent black.
    let mut canvas = vec![0; stride * height];
    libwebp::decode(&frame, &mut canvas, stride, channels)
        .ok_or_else(|| malformed("its bitstream is broken"))?;
    let samples = match channels {
        Channels::Rgb => Samples::Rgb(canvas),
        Channels::Rgba => Samples::Rgba(canvas),
    };
    Ok(Raster { height, width, samples })
}

/// Reads EXIF only: Pillow does not search a WebP file's XMP for an orientation.
pub(super) fn tags(bytes: &[u8]) -> Tags {
    let file = File::open(bytes);
    let exif = file.as_ref().and_then(|file| file.chunk(c"EXIF"));
    let exif = exif.map(exif::strip_prefix).filter(|block| !block.is_empty());
    Tags { metadata: Metadata { exif: exif.map(<[u8]>::to_vec), ..Metadata::default() }, ..Tags::default() }
}

pub(super) fn write(
    pixels: &Image<Rgb>,
    alpha: Option<&Gray>,
    quality: u8,
    metadata: &Metadata,
) -> Result<Vec<u8>, CodecError> {
    let (height, width) = pixels.shape();
    let colours = pixels.data().as_chunks().0.iter();
    let pack = |alpha, &[red, green, blue]: &[u8; 3]| u32::from_be_bytes([alpha, red, green, blue]);
    let mut packed: Vec<u32> = match alpha {
        Some(alpha) => colours.zip(alpha.data()).map(|(colour, &alpha)| pack(alpha, colour)).collect(),
        None => colours.map(|colour| pack(255, colour)).collect(),
    };
    let encoded = libwebp::encode(&mut packed, width, quality)
        .ok_or_else(|| malformed("a side is over 16383, or the quality over 100"))?;
    let exif = metadata.exif.as_deref().filter(|exif| !exif.is_empty()).unwrap_or(exif::EMPTY);
    with_exif(&encoded, width, height, exif).ok_or_else(|| malformed("it is over 4 GiB"))
}

/// Adds `exif` as a chunk after the chunks of `encoded`, with a `VP8X` chunk that declares it.
///
/// `None` if a length exceeds the container's limit.
///
/// Source: `WebPMuxAssemble`; <https://developers.google.com/speed/webp/docs/riff_container>.
fn with_exif(encoded: &[u8], width: usize, height: usize, exif: &[u8]) -> Option<Vec<u8>> {
    let chunks = encoded.get(12..)?;
    // With alpha, libwebp already writes the extended form.
    let (flags, image) = match chunks.strip_prefix(b"VP8X") {
        Some(extended) => (*extended.get(4)?, extended.get(14..)?),
        None => (0, chunks),
    };
    let padding = exif.len() % 2;
    let size = 4 + 18 + image.len() + 8 + exif.len() + padding;
    let mut file = Vec::with_capacity(8 + size);
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&u32::try_from(size).ok()?.to_le_bytes());
    file.extend_from_slice(b"WEBPVP8X\x0a\0\0\0");
    file.extend_from_slice(&[flags | HAS_EXIF, 0, 0, 0]);
    for side in [width, height] {
        file.extend_from_slice(&u32::try_from(side - 1).ok()?.to_le_bytes()[..3]);
    }
    file.extend_from_slice(image);
    file.extend_from_slice(b"EXIF");
    file.extend_from_slice(&u32::try_from(exif.len()).ok()?.to_le_bytes());
    file.extend_from_slice(exif);
    file.resize(8 + size, 0);
    Some(file)
}
