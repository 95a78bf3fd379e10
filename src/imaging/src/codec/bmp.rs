//! BMP files: headers of 12 to 124 bytes, 1 to 32 bits, runs, bit fields.
//!
//! Does not: follow the specification where Pillow deviates from it. Plain 32-bit files, including those of
//! [`write()`], have no alpha; a grey ramp is not treated as a palette; a palette of black and white gives mode `1` for
//! every depth.
//!
//! Source: Pillow 10.4 `BmpImagePlugin.py`, step by step.

use lamagrid_domain::PictureFormat;

use super::{CodecError, Header, Mode, Raster, Samples};
use crate::image::{Gray, Image, Rgb};

const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

/// Size of the file header, which precedes the header with the picture's size, bytes.
const FILE_HEADER: usize = 14;

/// Pixels per metre for Pillow's 96 dpi.
const PIXELS_PER_METRE: u32 = 3780;

/// The pixel format of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// One bit each, highest first.
    Bits,
    /// Four bits each, highest first.
    Nibbles,
    Bytes,
    /// 5 bits per colour in 16, blue lowest.
    Bgr15,
    /// 5, 6 and 5 bits in 16, blue lowest.
    Bgr16,
    Bgr,
    /// Four bytes in the order of the letters; `X` is unused.
    Bgrx,
    Xbgr,
    Bgxr,
    Abgr,
    Rgba,
    Bgra,
    Bgar,
}

impl Packing {
    /// Bits per pixel.
    fn bits(self) -> u64 {
        match self {
            Self::Bits => 1,
            Self::Nibbles => 4,
            Self::Bytes => 8,
            Self::Bgr15 | Self::Bgr16 => 16,
            Self::Bgr => 24,
            _ => 32,
        }
    }
}

/// The header of a file.
struct Layout {
    width: u32,
    height: u32,
    /// Rows are stored from the top down; else from the bottom up.
    top_down: bool,
    mode: Mode,
    packing: Packing,
    /// The depth of run-length encoded indices; `None` if they are packed.
    runs: Option<u8>,
    /// Bytes from row to row.
    stride: u64,
    /// Offset of the pixels.
    start: u64,
    palette: Vec<[u8; 3]>,
}

fn malformed(reason: &str) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Bmp, reason: reason.into() }
}

fn unsupported(what: &str) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Bmp, what: what.into() }
}

/// Little-endian numbers of a slice. Callers check the length; beyond the end they are 0.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&number| u16::from_le_bytes(number))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&number| u32::from_le_bytes(number))
}

/// The pixel format and mode of bit fields; `None` if Pillow does not support them.
fn bit_fields(bits: u16, masks: [u32; 4]) -> Option<(Packing, Mode)> {
    let [red, green, blue, _] = masks;
    Some(match (bits, masks) {
        (32, [0xff_0000, 0xff00, 0xff, 0]) => (Packing::Bgrx, Mode::Rgb),
        (32, [0xff00_0000, 0xff_0000, 0xff00, 0]) => (Packing::Xbgr, Mode::Rgb),
        (32, [0xff00_0000, 0xff00, 0xff, 0]) => (Packing::Bgxr, Mode::Rgb),
        (32, [0xff00_0000, 0xff_0000, 0xff00, 0xff]) => (Packing::Abgr, Mode::Rgba),
        (32, [0xff, 0xff00, 0xff_0000, 0xff00_0000]) => (Packing::Rgba, Mode::Rgba),
        (32, [0xff_0000, 0xff00, 0xff, 0xff00_0000] | [0, 0, 0, 0]) => (Packing::Bgra, Mode::Rgba),
        (32, [0xff00_0000, 0xff00, 0xff, 0xff_0000]) => (Packing::Bgar, Mode::Rgba),
        (24, _) if [red, green, blue] == [0xff_0000, 0xff00, 0xff] => (Packing::Bgr, Mode::Rgb),
        (16, _) if [red, green, blue] == [0xf800, 0x7e0, 0x1f] => (Packing::Bgr16, Mode::Rgb),
        (16, _) if [red, green, blue] == [0x7c00, 0x3e0, 0x1f] => (Packing::Bgr15, Mode::Rgb),
        _ => return None,
    })
}

/// The palette of `count` colours, each of `size` bytes, and the mode it stands for.
fn palette(bytes: &[u8], count: usize, size: usize) -> Result<(Mode, Vec<[u8; 3]>), CodecError> {
    if !(1..=65536).contains(&count) {
        return Err(malformed("its palette has an impossible size"));
    }
    let bytes = &bytes[..bytes.len().min(count * size)];
    let grey = |index: usize| if count == 2 { index * 255 } else { index } as u8;
    let is_grey = |index: usize| bytes.get(index * size..index * size + 3) == Some(&[grey(index); 3]);
    if (0..count).all(is_grey) {
        return Ok((if count == 2 { Mode::Bilevel } else { Mode::L }, Vec::new()));
    }
    if bytes.len() / size > 256 {
        return Err(malformed("its palette has over 256 colours"));
    }
    let colours = bytes.chunks_exact(size).map(|colour| [colour[2], colour[1], colour[0]]);
    Ok((Mode::P, colours.collect()))
}

fn layout(bytes: &[u8]) -> Result<Layout, CodecError> {
    let short = || malformed("its header is cut short");
    let header_size = u32_at(bytes.get(FILE_HEADER..FILE_HEADER + 4).ok_or_else(short)?, 0) as usize;
    if !matches!(header_size, 12 | 40 | 52 | 56 | 64 | 108 | 124) {
        return Err(malformed("its header has an unknown size"));
    }
    let mut position = FILE_HEADER + header_size;
    let header = bytes.get(FILE_HEADER + 4..position).ok_or_else(short)?;
    let (width, height, top_down, bits, compression, colours, colour_size);
    if header_size == 12 {
        (width, height) = (u32::from(u16_at(header, 0)), u32::from(u16_at(header, 2)));
        (top_down, bits, compression, colours, colour_size) = (false, u16_at(header, 6), RAW, 0, 3);
    } else {
        top_down = header[7] == 0xff;
        width = u32_at(header, 0);
        height = if top_down { u32_at(header, 4).wrapping_neg() } else { u32_at(header, 4) };
        (bits, compression, colours) = (u16_at(header, 10), u32_at(header, 12), u32_at(header, 28));
        colour_size = 4;
    }
    if width == 0 || height == 0 {
        return Err(malformed("it has no pixels"));
    }
    let (mut packing, mut mode) = match bits {
        1 => (Packing::Bits, Mode::P),
        4 => (Packing::Nibbles, Mode::P),
        8 => (Packing::Bytes, Mode::P),
        16 => (Packing::Bgr15, Mode::Rgb),
        24 => (Packing::Bgr, Mode::Rgb),
        32 => (Packing::Bgrx, Mode::Rgb),
        _ => return Err(malformed("its pixels have an unknown depth")),
    };
    let colours = if colours == 0 { 1 << bits.min(31) } else { colours };
    let mut runs = None;
    match compression {
        RAW => {}
        RLE8 => runs = Some(8),
        RLE4 => runs = Some(4),
        BITFIELDS => {
            // The shortest of these headers has no room for masks: they follow it.
            let masks = if header_size == 40 { bytes.get(position..position + 12) } else { header.get(36..) };
            let masks = masks.ok_or_else(short)?;
            position += if header_size == 40 { 12 } else { 0 };
            let alpha = if header_size >= 56 { u32_at(masks, 12) } else { 0 };
            (packing, mode) = bit_fields(bits, [u32_at(masks, 0), u32_at(masks, 4), u32_at(masks, 8), alpha])
                .ok_or_else(|| malformed("its bit fields are unknown"))?;
        }
        _ => return Err(malformed("its compression is unknown")),
    }
    let mut entries = Vec::new();
    let mut start = u64::from(u32_at(bytes, 10));
    if mode == Mode::P {
        // If the pixels start at the offset of the palette, they actually follow it.
        if start == (FILE_HEADER + header_size) as u64 {
            start += 4 * u64::from(colours);
        }
        let rest = bytes.get(position..).unwrap_or_default();
        (mode, entries) = palette(rest, colours as usize, colour_size)?;
        if start == 0 {
            start = (position + rest.len().min(colours as usize * colour_size)) as u64;
        }
        packing = match mode {
            Mode::Bilevel => Packing::Bits,
            Mode::L => Packing::Bytes,
            _ => packing,
        };
    } else if start == 0 {
        start = position as u64;
    }
    let stride = ((u64::from(width) * u64::from(bits) + 31) >> 3) & !3;
    Ok(Layout { width, height, top_down, mode, packing, runs, stride, start, palette: entries })
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let Layout { width, height, mode, .. } = layout(bytes)?;
    Ok(Header { format: PictureFormat::Bmp, width, height, mode, decodes: true })
}

pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let layout = layout(bytes)?;
    let (width, height) = (layout.width as usize, layout.height as usize);
    let start = usize::try_from(layout.start).unwrap_or(usize::MAX);
    let data = bytes.get(start..).unwrap_or_default();
    if let Some(bits) = layout.runs {
        if !matches!(layout.mode, Mode::P | Mode::L) {
            return Err(malformed("it has runs, but no palette"));
        }
        let unit = if bits == 4 { RunUnit::Nibble } else { RunUnit::Byte };
        let mut rows = unroll(data, start, width, height, unit)?;
        if !layout.top_down {
            turn_over(&mut rows, width);
        }
        return Ok(Raster { height, width, samples: indices(rows, layout) });
    }
    let used = (u64::from(layout.width) * layout.packing.bits()).div_ceil(8);
    if used > layout.stride {
        // Pillow's first attempt fails, and upstream continues with the black picture that it left.
        return Err(unsupported("pixels wider than the rows"));
    }
    // The padding of the last row may be missing.
    let needed = layout.stride * (u64::from(layout.height) - 1) + used;
    if needed > data.len() as u64 {
        return Err(malformed("its pixels are cut short"));
    }
    let rows = data.chunks(layout.stride as usize).take(height).map(|row| &row[..used as usize]);
    let rows: Vec<&[u8]> = if layout.top_down { rows.collect() } else { rows.rev().collect() };
    let samples = match layout.packing {
        Packing::Bits => {
            let white = if layout.mode == Mode::Bilevel { 255 } else { 1 };
            let bits = |&byte: &u8| (0..8).rev().map(move |bit| (byte >> bit & 1) * white);
            indices(rows.iter().flat_map(|row| row.iter().flat_map(bits).take(width)).collect(), layout)
        }
        Packing::Nibbles => {
            let nibbles = |&byte: &u8| [byte >> 4, byte & 15];
            indices(rows.iter().flat_map(|row| row.iter().flat_map(nibbles).take(width)).collect(), layout)
        }
        Packing::Bytes => indices(rows.concat(), layout),
        Packing::Bgr15 => Samples::Rgb(unpack(&rows, |&pixel| {
            let pixel = u16::from_le_bytes(pixel);
            [pixel >> 10 & 31, pixel >> 5 & 31, pixel & 31].map(|colour| (colour * 255 / 31) as u8)
        })),
        Packing::Bgr16 => Samples::Rgb(unpack(&rows, |&pixel| {
            let pixel = u16::from_le_bytes(pixel);
            [(pixel >> 11) * 255 / 31, (pixel >> 5 & 63) * 255 / 63, (pixel & 31) * 255 / 31].map(|c| c as u8)
        })),
        Packing::Bgr => Samples::Rgb(unpack(&rows, |&[b, g, r]| [r, g, b])),
        Packing::Bgrx => Samples::Rgb(unpack(&rows, |&[b, g, r, _]| [r, g, b])),
        Packing::Xbgr => Samples::Rgb(unpack(&rows, |&[_, b, g, r]| [r, g, b])),
        Packing::Bgxr => Samples::Rgb(unpack(&rows, |&[b, g, _, r]| [r, g, b])),
        Packing::Abgr => Samples::Rgba(unpack(&rows, |&[a, b, g, r]| [r, g, b, a])),
        Packing::Rgba => Samples::Rgba(rows.concat()),
        Packing::Bgra => Samples::Rgba(unpack(&rows, |&[b, g, r, a]| [r, g, b, a])),
        Packing::Bgar => Samples::Rgba(unpack(&rows, |&[b, g, a, r]| [r, g, b, a])),
    };
    Ok(Raster { height, width, samples })
}

/// One-byte samples, with the palette if the mode has one.
fn indices(rows: Vec<u8>, layout: Layout) -> Samples {
    if layout.mode == Mode::P { Samples::P(rows, layout.palette) } else { Samples::L(rows) }
}

/// Converts each pixel of `N` bytes to `M` samples, row by row.
fn unpack<const N: usize, const M: usize>(rows: &[&[u8]], pixel: impl Fn(&[u8; N]) -> [u8; M]) -> Vec<u8> {
    let row = rows.first().map_or(0, |row| row.len() / N * M);
    let mut samples = vec![0; row * rows.len()];
    for (to, from) in samples.chunks_exact_mut(row.max(1)).zip(rows) {
        for (to, from) in to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
            *to = pixel(from);
        }
    }
    samples
}

/// Reverses the order of rows.
fn turn_over(rows: &mut [u8], width: usize) {
    let half = rows.len() / width / 2;
    let (top, bottom) = rows.split_at_mut(rows.len() - half * width);
    for (upper, lower) in top.chunks_exact_mut(width).zip(bottom.rchunks_exact_mut(width)) {
        upper.swap_with_slice(lower);
    }
}

/// The size of an index in run-length encoded data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunUnit {
    Byte,
    Nibble,
}

/// Decodes run-length encoded indices, in the order of the file. `start` is the offset of `data` in the file, because
/// alignment is relative to the file's start.
///
/// # Errors
/// [`CodecError::Malformed`] if the data end before the picture does.
///
/// Source: Pillow 10.4 `BmpRleDecoder.decode`, including its deviations: an end of line in an empty row adds no row,
/// and literal pixels may run past the row's end.
fn unroll(
    data: &[u8],
    start: usize,
    width: usize,
    height: usize,
    unit: RunUnit,
) -> Result<Vec<u8>, CodecError> {
    let total = width * height;
    let mut pixels = Vec::new();
    let mut column = 0;
    let mut at = 0;
    while pixels.len() < total {
        let Some(&[count, value]) = data.get(at..).and_then(<[u8]>::first_chunk) else { break };
        at += 2;
        match (count, value) {
            (0, 0) => {
                pixels.resize(pixels.len().next_multiple_of(width), 0);
                column = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                // Skip two bytes: Pillow reads the offsets from the two bytes after them.
                let Some(&[_, _, right, up]) = data.get(at..).and_then(<[u8]>::first_chunk) else { break };
                at += 4;
                let step = usize::from(right) + usize::from(up) * width;
                pixels.resize(total.min(pixels.len() + step), 0);
                column = pixels.len() % width;
            }
            (0, literal) => {
                let length = usize::from(literal) / if unit == RunUnit::Nibble { 2 } else { 1 };
                let literals = &data[at..data.len().min(at + length)];
                if unit == RunUnit::Nibble {
                    pixels.extend(literals.iter().flat_map(|byte| [byte >> 4, byte & 15]));
                } else {
                    pixels.extend_from_slice(literals);
                }
                if literals.len() < length {
                    break;
                }
                column += usize::from(literal);
                at += length;
                at += usize::from((at % 2 == 1) != (start % 2 == 1));
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(column));
                if unit == RunUnit::Nibble {
                    let pair = [value >> 4, value & 15];
                    pixels.extend((0..count).map(|index| pair[index % 2]));
                } else {
                    pixels.resize(pixels.len() + count, value);
                }
                column += count;
            }
        }
    }
    if pixels.len() < total {
        return Err(malformed("its pixels are cut short"));
    }
    pixels.truncate(total);
    Ok(pixels)
}

/// Writes uncompressed rows from the bottom up: 24 bits, or 32 with `alpha`.
///
/// The bytes equal Pillow's. The format stores neither a quality nor EXIF; readers, including Pillow, ignore the
/// alpha of such files.
pub(super) fn write(pixels: &Image<Rgb>, alpha: Option<&Gray>) -> Result<Vec<u8>, CodecError> {
    let (height, width) = pixels.shape();
    let bits: u16 = if alpha.is_some() { 32 } else { 24 };
    let row = width * usize::from(bits / 8);
    let stride = row.next_multiple_of(4);
    let start = FILE_HEADER + 40;
    let number = |number: usize| u32::try_from(number).map_err(|_| malformed("it is over 4 GiB"));
    let mut file = Vec::with_capacity(start + stride * height);
    file.extend_from_slice(b"BM");
    let fields = [number(start + stride * height)?, 0, number(start)?, 40, number(width)?, number(height)?];
    file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    file.extend([1, bits].iter().flat_map(|field| field.to_le_bytes()));
    let fields = [RAW, number(stride * height)?, PIXELS_PER_METRE, PIXELS_PER_METRE, 0, 0];
    file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    file.resize(start + stride * height, 0);
    for (y, to) in file[start..].rchunks_exact_mut(stride).enumerate() {
        let from = pixels.span(y, 0, width).as_chunks().0;
        match alpha {
            None => {
                for (to, &[red, green, blue]) in to.as_chunks_mut().0.iter_mut().zip(from) {
                    *to = [blue, green, red];
                }
            }
            Some(alpha) => {
                let alpha = alpha.span(y, 0, width);
                for ((to, &[red, green, blue]), &alpha) in
                    to.as_chunks_mut().0.iter_mut().zip(from).zip(alpha)
                {
                    *to = [blue, green, red, alpha];
                }
            }
        }
    }
    Ok(file)
}
