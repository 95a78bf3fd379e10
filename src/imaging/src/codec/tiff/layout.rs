//! Derives the layout of a TIFF file's pixels from its tags.
//!
//! Does not: read the pixels. If Pillow or libtiff would deviate from the specification or guess missing tags,
//! [`Layout::plan`] is `None`.
//!
//! Source: Pillow 10.4 `TiffImageFile._setup` and its table `OPEN_INFO`.

use super::errors::{malformed, unsupported};
use super::tags::{Tags, tag};
use crate::codec::ifd::{File, Order};
use crate::codec::{CodecError, Mode};
use crate::image::MAX_PIXELS;

/// Pillow's limit.
const MAX_SAMPLES_PER_PIXEL: usize = 6;

/// Maximum side of a tile, pixels; more is an error or an attack.
const MAX_TILE_SIDE: usize = 1 << 14;

/// Size that is always allowed for a tile, bytes.
const MAX_TILE_BYTES: u64 = 1 << 24;

/// The compression of strips and tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Lzw,
    Deflate,
    PackBits,
}

impl Compression {
    /// Upper bound of the bytes that one compressed byte decodes to.
    pub(super) fn most(self) -> u64 {
        match self {
            Self::None => 1,
            Self::Lzw => 4096,
            Self::Deflate => 1100,
            Self::PackBits => 64,
        }
    }
}

/// The format of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pixel {
    /// 1 bit; `white` is the value of white.
    Bilevel {
        white: u8,
    },
    /// 2, 4 or 8 bits.
    Grey {
        inverted: bool,
    },
    Grey16,
    GreyAlpha,
    Rgb,
    Rgba,
    /// RGBA with premultiplied alpha.
    Premultiplied,
    /// 1, 2, 4 or 8 bits.
    Index,
    Cmyk,
}

impl Pixel {
    /// Samples per decoded pixel; other samples of the file are skipped.
    pub(super) fn samples(self) -> usize {
        match self {
            Self::Bilevel { .. } | Self::Grey { .. } | Self::Grey16 | Self::Index => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba | Self::Premultiplied | Self::Cmyk => 4,
        }
    }

    fn mode(self) -> Mode {
        match self {
            Self::Bilevel { .. } => Mode::Bilevel,
            Self::Grey { .. } => Mode::L,
            Self::Grey16 => Mode::I16,
            Self::GreyAlpha => Mode::La,
            Self::Rgb => Mode::Rgb,
            Self::Rgba | Self::Premultiplied => Mode::Rgba,
            Self::Index => Mode::P,
            Self::Cmyk => Mode::Cmyk,
        }
    }
}

/// A strip or tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    /// The data from its offset on; limited to its length if the file states one.
    pub(super) data: &'a [u8],
    pub(super) left: usize,
    pub(super) top: usize,
    /// Rows to decode.
    pub(super) rows: usize,
    /// The index of its sample if each sample has a separate plane; else 0.
    pub(super) plane: usize,
}

/// The position and the format of the pixels.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) order: Order,
    pub(super) pixel: Pixel,
    /// Per sample: 1, 2, 4, 8 or 16.
    pub(super) bits: usize,
    /// Per pixel of a chunk.
    pub(super) samples: usize,
    /// Each sample has a separate plane.
    pub(super) planar: bool,
    pub(super) compression: Compression,
    /// Samples are stored as differences to the left pixel.
    pub(super) differences: bool,
    /// Columns of every chunk.
    pub(super) chunk_width: usize,
    pub(super) chunks: Vec<Chunk<'a>>,
    pub(super) palette: Vec<[u8; 3]>,
}

impl Plan<'_> {
    /// Bytes of a row of a chunk.
    pub(super) fn row_bytes(&self) -> usize {
        (self.chunk_width * self.samples * self.bits).div_ceil(8)
    }
}

/// The size, the mode and the pixel layout of a file.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) mode: Mode,
    /// `None` for files that are not decoded here.
    pub(super) plan: Option<Plan<'a>>,
}

/// Reads the tags of the first picture.
///
/// # Errors
/// [`CodecError::Malformed`] if Pillow does not open the file.
pub(super) fn layout<'a>(bytes: &'a [u8], file: File<'a>) -> Result<Layout<'a>, CodecError> {
    let tags = Tags::of(file);
    let side = |tag| match tags.one(tag, 0) {
        None => Err(unsupported("sizes of an odd type")),
        Some(number) => match u32::try_from(number) {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(malformed("it has no size")),
        },
    };
    let (width, height) = (side(tag::WIDTH)?, side(tag::HEIGHT)?);
    if tags.has(tag::WINDOWS_MEDIA_PHOTO) {
        return Err(malformed("it is a Windows Media Photo"));
    }
    let Some(description) = describe(&tags) else {
        return Ok(Layout { width, height, mode: Mode::Other, plan: None });
    };
    let mode = description.pixel.mode();
    let exists = u64::from(width) * u64::from(height) <= MAX_PIXELS as u64;
    let sides = (width as usize, height as usize);
    let plan = if exists { plan(bytes, &tags, sides, description) } else { None };
    Ok(Layout { width, height, mode, plan })
}

struct Description {
    pixel: Pixel,
    bits: usize,
    samples: usize,
    extra: Vec<u64>,
}

/// The format of the pixels; `None` if it is not supported here, whether or not Pillow supports it.
fn describe(tags: &Tags<'_>) -> Option<Description> {
    let photometric = tags.one(tag::PHOTOMETRIC, 0)?;
    let extra = tags.list(tag::EXTRA_SAMPLES, &[])?;
    let samples = usize::try_from(tags.one(tag::SAMPLES_PER_PIXEL, 1)?).ok()?;
    if !(1..=MAX_SAMPLES_PER_PIXEL).contains(&samples) {
        return None;
    }
    let mut depths = tags.list(tag::BITS_PER_SAMPLE, &[1])?;
    if depths.len() == 1 {
        depths = vec![depths[0]; samples];
    }
    depths.truncate(samples);
    let bits = depths[0];
    if depths.len() != samples || depths.iter().any(|&depth| depth != bits) {
        return None;
    }
    let formats = tags.list(tag::SAMPLE_FORMAT, &[1])?;
    // Pillow reads signed 8-bit grey as unsigned.
    let signed = formats == [2] && (photometric, samples, bits) == (1, 1, 8);
    if formats.iter().any(|&format| format != 1) && !signed {
        return None;
    }
    let rest = |kept: usize, first: &[u64]| {
        extra
            .strip_prefix(first)
            .is_some_and(|extra| samples == kept + extra.len() && extra.iter().all(|&e| e == 0))
    };
    let big = tags.order() == Order::Big;
    let pixel = match (photometric, bits) {
        (0 | 1, 1) if samples == 1 && extra.is_empty() => Pixel::Bilevel { white: photometric as u8 },
        (0 | 1, 2 | 4 | 8) if samples == 1 && extra.is_empty() => Pixel::Grey { inverted: photometric == 0 },
        (1, 16) if samples == 1 && extra.is_empty() => Pixel::Grey16,
        // Pillow does not invert it, and does not support it in big-endian files.
        (0, 16) if samples == 1 && extra.is_empty() && !big => Pixel::Grey16,
        (1, 8) if samples == 2 && extra == [2] => Pixel::GreyAlpha,
        (2, 8 | 16) if rest(3, &[]) && (bits == 8 || samples <= 4) => Pixel::Rgb,
        (2, 8 | 16) if samples == 4 && extra.is_empty() => Pixel::Rgba,
        (2, 8) if samples == 4 && extra == [999] => Pixel::Rgba,
        (2, 8 | 16) if rest(4, &[2]) && (bits == 8 || samples == 4) => Pixel::Rgba,
        (2, 8) if rest(4, &[1]) => Pixel::Premultiplied,
        (3, 1 | 2 | 4 | 8) if samples == 1 && extra.is_empty() => Pixel::Index,
        (5, 8) if rest(4, &[]) => Pixel::Cmyk,
        _ => return None,
    };
    Some(Description { pixel, bits: bits as usize, samples, extra })
}

fn plan<'a>(
    bytes: &'a [u8],
    tags: &Tags<'a>,
    (width, height): (usize, usize),
    Description { pixel, bits, samples, extra }: Description,
) -> Option<Plan<'a>> {
    let compression = match tags.one(tag::COMPRESSION, 1)? {
        1 => Compression::None,
        5 => Compression::Lzw,
        8 | 32946 => Compression::Deflate,
        32773 => Compression::PackBits,
        _ => return None,
    };
    if tags.one(tag::FILL_ORDER, 1)? != 1 || !tags.are_ordinary() {
        return None;
    }
    if compression != Compression::None && !tags.suit_libtiff() {
        return None;
    }
    let predictor = match compression {
        Compression::Lzw | Compression::Deflate => tags.one(tag::PREDICTOR, 1)?,
        Compression::None | Compression::PackBits => 1,
    };
    let differences = match predictor {
        1 => false,
        2 if matches!(bits, 8 | 16) => true,
        _ => return None,
    };
    let planar = match tags.one(tag::PLANAR_CONFIGURATION, 1)? {
        1 => false,
        2 if samples == 1 => {
            // libtiff treats it like 1. Without libtiff, Pillow only uses the first letter of the mode.
            let letter = matches!(
                (pixel, bits),
                (Pixel::Bilevel { white: 1 }, 1) | (Pixel::Grey { inverted: false } | Pixel::Index, 8)
            );
            if compression == Compression::None && !letter {
                return None;
            }
            false
        }
        2 => {
            let exact = match pixel {
                Pixel::Rgb | Pixel::Cmyk => extra.is_empty(),
                Pixel::Rgba => extra == [2],
                _ => false,
            };
            if !exact || bits != 8 {
                return None;
            }
            true
        }
        _ => return None,
    };
    if compression != Compression::None && (pixel, bits, samples) == (Pixel::Rgb, 16, 4) {
        // Pillow cannot convert libtiff's pixels.
        return None;
    }
    let mut palette = Vec::new();
    if pixel == Pixel::Index {
        let map = tags.list(tag::COLOR_MAP, &[])?;
        let colours = 1 << bits;
        if map.len() != 3 * colours || map.iter().any(|&value| value > 0xffff) {
            return None;
        }
        let part = |colour: usize| (map[colour] / 256) as u8;
        palette = (0..colours).map(|index| [0, 1, 2].map(|plane| part(plane * colours + index))).collect();
    }
    let mut plan = Plan {
        order: tags.order(),
        pixel,
        bits,
        samples: if planar { 1 } else { samples },
        planar,
        compression,
        differences,
        chunk_width: width,
        chunks: Vec::new(),
        palette,
    };
    chunks(bytes, tags, (width, height), if planar { samples } else { 1 }, &mut plan)?;
    Some(plan)
}

/// Finds the strips or tiles of `planes` planes. `None` unless there are exactly as many as needed, each with enough
/// data for its pixels.
fn chunks<'a>(
    bytes: &'a [u8],
    tags: &Tags<'a>,
    (width, height): (usize, usize),
    planes: usize,
    plan: &mut Plan<'a>,
) -> Option<()> {
    let tiled = tags.has(tag::TILE_OFFSETS);
    let foreign: &[u16] = if tiled {
        &[tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS]
    } else {
        &[tag::TILE_WIDTH, tag::TILE_HEIGHT, tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS]
    };
    if foreign.iter().any(|&tag| tags.has(tag)) {
        return None;
    }
    let side = |tag, default| usize::try_from(tags.one(tag, default)?).ok().filter(|&side| side > 0);
    let (offsets, counts, chunk_height) = if tiled {
        plan.chunk_width = side(tag::TILE_WIDTH, 0).filter(|&side| side <= MAX_TILE_SIDE)?;
        // Otherwise Pillow computes other row sizes than the specification for tiles that the picture cuts.
        if !(plan.chunk_width * plan.samples * plan.bits).is_multiple_of(8) {
            return None;
        }
        (
            tag::TILE_OFFSETS,
            tag::TILE_BYTE_COUNTS,
            side(tag::TILE_HEIGHT, 0).filter(|&side| side <= MAX_TILE_SIDE)?,
        )
    } else {
        (tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS, side(tag::ROWS_PER_STRIP, height as u64)?.min(height))
    };
    let offsets = tags.list(offsets, &[])?;
    let compressed = plan.compression != Compression::None;
    let counts = if compressed { tags.list(counts, &[])? } else { vec![u64::MAX; offsets.len()] };
    let (across, down) = (width.div_ceil(plan.chunk_width), height.div_ceil(chunk_height));
    let needed = across.checked_mul(down)?.checked_mul(planes)?;
    if offsets.len() != needed || counts.len() != needed {
        return None;
    }
    let row_bytes = plan.row_bytes() as u64;
    let picture = (width * plan.samples * plan.bits).div_ceil(8) as u64 * height as u64;
    let largest = picture.saturating_mul(4).max(MAX_TILE_BYTES);
    for (index, (&offset, &count)) in offsets.iter().zip(&counts).enumerate() {
        let (place, plane) = (index % (across * down), index / (across * down));
        let (left, top) = (place % across * plan.chunk_width, place / across * chunk_height);
        let rows = if tiled && compressed { chunk_height } else { chunk_height.min(height - top) };
        let rest = bytes.get(usize::try_from(offset).ok()?..)?;
        let data = &rest[..usize::try_from(count).unwrap_or(usize::MAX).min(rest.len())];
        // Leave to Pillow: truncated data, too little data for the pixels, and tiles far larger than the picture.
        let whole = !compressed || data.len() as u64 == count;
        let size = row_bytes * rows as u64;
        if !whole || size > largest || (data.len() as u64).saturating_mul(plan.compression.most()) < size {
            return None;
        }
        plan.chunks.push(Chunk { data, left, top, rows, plane });
    }
    Some(())
}
