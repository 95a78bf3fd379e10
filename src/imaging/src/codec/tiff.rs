//! TIFF files: reads the first picture, and writes files of one uncompressed strip.
//!
//! Does not: read rare variants (JPEG or fax compression, floats, YCbCr, unusual planes) or repair broken files as
//! libtiff does; those are left to Pillow.
//!
//! A TIFF file's own tags are its EXIF. Pillow turns such pictures upright while it decodes them and removes the
//! orientation from the tags; with every other format it keeps the tag.

use lamagrid_domain::PictureFormat;

use super::ifd::{self, Entry, File, Order, Overflow};
use super::{CodecError, Header, Metadata, Mode, Raster, Samples, Tags};
use crate::image::{Gray, Image, Rgb};

mod chunks;
mod errors;
mod layout;
mod tags;

use errors::{malformed, unsupported};
use layout::{Layout, Pixel};
use tags::tag;

const ICC_PROFILE: u16 = 34675;

fn overflown(overflow: Overflow) -> CodecError {
    malformed(match overflow {
        Overflow::Bytes => "it is over 4 GiB",
        Overflow::Tags => "it has too many tags",
    })
}

fn layout(bytes: &[u8]) -> Result<Layout<'_>, CodecError> {
    let file = File::open(bytes).ok_or_else(|| unsupported("big-endian BigTIFF"))?;
    layout::layout(bytes, file)
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let Layout { width, height, mode, plan } = layout(bytes)?;
    Ok(Header { format: PictureFormat::Tiff, width, height, mode, decodes: plan.is_some() })
}

pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let Layout { width, height, mode, plan } = layout(bytes)?;
    let (width, height) = (width as usize, height as usize);
    let plan = plan.ok_or_else(|| unsupported("layout"))?;
    let data = chunks::decode(&plan, width, height).ok_or_else(|| unsupported("damaged pixels"))?;
    let samples = match (mode, plan.pixel) {
        (_, Pixel::Grey16) => {
            Samples::I16(data.as_chunks().0.iter().map(|&value| plan.order.u16(value)).collect())
        }
        (Mode::La, _) => Samples::La(data),
        (Mode::Rgb, _) => Samples::Rgb(data),
        (Mode::Rgba, _) => Samples::Rgba(data),
        (Mode::P, _) => Samples::P(data, plan.palette),
        (Mode::Cmyk, _) => Samples::Cmyk(data),
        _ => Samples::L(data),
    };
    Ok(Raster { height, width, samples })
}

/// Copies the tags that describe the picture, not its storage, to a separate block.
pub(super) fn tags(bytes: &[u8]) -> Tags {
    let exif = File::open(bytes).and_then(|file| {
        // Omit the profile of a picture that is converted to other colours.
        let rgb =
            layout::layout(bytes, file).is_ok_and(|layout| matches!(layout.mode, Mode::Rgb | Mode::Rgba));
        let directory = file.copy(|tag| !is_structure(tag) && (tag != ICC_PROFILE || rgb));
        ifd::write(file.order, &directory).ok()
    });
    Tags { metadata: Metadata { exif, ..Metadata::default() }, ..Tags::default() }
}

/// Removes the orientation from the block.
pub(super) fn without_orientation(block: &[u8]) -> Option<Vec<u8>> {
    let file = File::open(block)?;
    ifd::write(file.order, &file.copy(|tag| tag != tag::ORIENTATION)).ok()
}

/// Whether the tag describes the storage rather than the picture; a written file gets its own.
fn is_structure(tag: u16) -> bool {
    matches!(
        tag,
        254..=259 | 262..=266 | 273 | 277..=281 | 284 | 288..=293 | 297 | 301 | 317 | 320..=334 | 336 | 338..=347
            | 512..=532 | 559 | 32995..=32998
    )
}

/// Writes one uncompressed strip with the descriptive tags of `metadata`, in Pillow's layout.
pub(super) fn write(
    pixels: &Image<Rgb>,
    alpha: Option<&Gray>,
    metadata: &Metadata,
) -> Result<Vec<u8>, CodecError> {
    let (height, width) = pixels.shape();
    let samples: u16 = if alpha.is_some() { 4 } else { 3 };
    let block = metadata.exif.as_deref().and_then(File::open);
    let order = block.map_or(Order::Little, |block| block.order);
    let mut directory = block.map(|block| block.copy(|tag| !is_structure(tag))).unwrap_or_default();
    let number = |number: usize| u32::try_from(number).map_err(|_| malformed("it is over 4 GiB"));
    let size = height * width * usize::from(samples);
    directory.extend([
        (tag::WIDTH, Entry::long(order, number(width)?)),
        (tag::HEIGHT, Entry::long(order, number(height)?)),
        (tag::BITS_PER_SAMPLE, Entry::shorts(order, &vec![8; samples.into()])),
        // No compression.
        (tag::COMPRESSION, Entry::shorts(order, &[1])),
        // RGB.
        (tag::PHOTOMETRIC, Entry::shorts(order, &[2])),
        (tag::STRIP_OFFSETS, Entry::long(order, 0)),
        (tag::SAMPLES_PER_PIXEL, Entry::shorts(order, &[samples])),
        (tag::ROWS_PER_STRIP, Entry::long(order, number(height)?)),
        (tag::STRIP_BYTE_COUNTS, Entry::long(order, number(size)?)),
        (tag::PLANAR_CONFIGURATION, Entry::shorts(order, &[1])),
    ]);
    if alpha.is_some() {
        // The fourth sample is alpha that is not premultiplied.
        directory.insert(tag::EXTRA_SAMPLES, Entry::shorts(order, &[2]));
    }
    let start = ifd::write(order, &directory).map_err(overflown)?.len();
    number(start + size)?;
    directory.insert(tag::STRIP_OFFSETS, Entry::long(order, number(start)?));
    let mut file = ifd::write(order, &directory).map_err(overflown)?;
    file.reserve_exact(size);
    match alpha {
        None => file.extend_from_slice(pixels.data()),
        Some(alpha) => {
            file.resize(start + size, 0);
            let colours = pixels.data().as_chunks().0.iter().zip(alpha.data());
            for (to, (&[red, green, blue], &alpha)) in file[start..].as_chunks_mut().0.iter_mut().zip(colours)
            {
                *to = [red, green, blue, alpha];
            }
        }
    }
    Ok(file)
}
