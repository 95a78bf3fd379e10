//! PNG files.
//!
//! Does not: follow the PNG specification where Pillow deviates from it. The chunks that are read, the checksums that
//! are checked and the pixels of a damaged file are Pillow's. A file whose result cannot be reproduced is refused as
//! unsupported, so that Pillow can decode it; it is damaged only if Pillow fails, too.

use lamagrid_domain::PictureFormat;

use self::chunks::{Found, Opened};
use self::info::{Fault, Texts};
use self::pixels::{Lack, Layout};
use super::{CodecError, Header, Metadata, Mode, Raster, Tags};
use crate::image::{self, Gray, Image, Rgb};

mod bits;
mod block;
mod chunk_writer;
mod chunks;
mod deflate;
mod filter;
mod huffman;
mod info;
mod kind;
mod pixels;
mod write;

/// The first bytes of a file.
const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// The key of the text that upstream copies to its answer.
const PARAMETERS: &[u8] = b"parameters";
/// Maximum number of colours in a palette.
const MAX_COLOURS: usize = 256;

fn malformed(reason: impl Into<String>) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Png, reason: reason.into() }
}

fn unsupported(what: impl Into<String>) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Png, what: what.into() }
}

/// Reads size and mode as Pillow does.
///
/// Source: Pillow `PngImageFile._open`, 10.4.
pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let Opened { info, kind, .. } = Opened::open(bytes, Texts::Skip).map_err(malformed)?;
    let (width, height, mode) = (info.width, info.height, kind.mode());
    Ok(Header { format: PictureFormat::Png, width, height, mode, decodes: true })
}

/// Reads the pixels; those of the first picture if the file is an animation.
///
/// # Errors
/// [`CodecError::Malformed`], [`CodecError::Unsupported`]; [`CodecError::Image`] for sides that no image can have.
///
/// Source: Pillow `ImageFile.load`, `PngImageFile.load_read` and `load_end`, 10.4.
pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let opened = Opened::open(bytes, Texts::Read).map_err(malformed)?;
    let (height, width) = (opened.info.height as usize, opened.info.width as usize);
    image::pixels(height, width)?;
    match (opened.found, opened.info.frame) {
        (Found::Nothing, _) => return Err(malformed("it has no pixels")),
        (Found::Frame, _) => return Err(unsupported("an animation without a first picture")),
        (Found::Pixels, None) => {}
        (Found::Pixels, Some(frame)) if frame == [0, 0, width as u64, height as u64] => {}
        (Found::Pixels, Some(_)) => {
            return Err(unsupported("an animation whose first picture is a part of it"));
        }
    }
    let (kind, palette) = (opened.kind, opened.info.palette.unwrap_or_default());
    if kind.mode() != Mode::P && opened.info.palette.is_some() {
        return Err(unsupported("a palette from before its header"));
    }
    if palette.len() / 3 > MAX_COLOURS {
        return Err(malformed("its palette has more than 256 colours"));
    }

    if let Some(what) = opened.info.odd {
        return Err(unsupported(what));
    }
    let layout = Layout { height, width, kind, interlaced: opened.info.interlaced };
    let samples = layout.samples(palette, opened.data(), bytes.len()).map_err(|lack| match lack {
        Lack::CutOff if opened.goes_on() => unsupported("pixels in chunks of other kinds"),
        Lack::CutOff => malformed("it ends before its last pixel"),
        Lack::Damaged => unsupported("damaged pixels"),
    })?;
    as_pillow_goes_on(&opened).map_err(unsupported)?;
    Ok(Raster { height, width, samples })
}

/// Checks that Pillow reads the chunks after the pixels without an exception, and that upstream reads the same tags
/// from a picture and from a mask.
fn as_pillow_goes_on(opened: &Opened<'_>) -> Result<(), Fault> {
    let info = opened.after()?;
    if let Some(what) = info.odd {
        return Err(what);
    }
    // With EXIF before the pixels, upstream reads a picture's tags before the chunks after the pixels, but a mask's
    // tags after them.
    if opened.info.exif.is_some() && opened.info.tags() != info.tags() {
        return Err("tags before and after its pixels");
    }
    Ok(())
}

/// Reads EXIF and the text `parameters` as upstream does. To find EXIF, Pillow also reads the chunks after the pixels,
/// unless it has found some before them. Upstream reads `parameters` only if `info` was not empty before the pixels.
///
/// Source: Lama Cleaner `helper.load_img`, 1.2.5; Pillow `PngImageFile.getexif`, 10.4.
pub(super) fn tags(bytes: &[u8]) -> Tags {
    let Ok(opened) = Opened::open(bytes, Texts::Read) else { return Tags::default() };
    let before = &opened.info;
    let info = if before.exif.is_some() { before.clone() } else { opened.after().unwrap_or_default() };
    let parameters = info.parameters.clone().filter(|_| before.any);
    let (exif, fault) = match info.exif_block() {
        Ok(exif) => (exif, None),
        Err(fault) => (None, Some(fault)),
    };
    Tags { metadata: Metadata { exif, parameters }, xmp: info.xmp, fault }
}

/// Writes 8-bit RGB, or RGBA with `alpha`, with `parameters` and EXIF as in Pillow.
///
/// Source: Pillow `PngImagePlugin._save`, 10.4.
pub(super) fn write(
    pixels: &Image<Rgb>,
    alpha: Option<&Gray>,
    metadata: &Metadata,
) -> Result<Vec<u8>, CodecError> {
    Ok(write::write(pixels, alpha, metadata))
}
