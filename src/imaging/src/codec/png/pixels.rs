//! Decodes the pixels of a PNG file: inflates them, undoes the filters and unpacks samples.
//!
//! Does not: inflate more than the picture needs, or allocate memory for pixels without data: buffers grow with the
//! decoded data.
//!
//! Source: Pillow `ZipDecode.c` and `Unpack.c`, 10.4.

use fdeflate::Decompressor;

use super::chunks::Data;
use super::filter::{Filter, undo};
use super::kind::Kind;
use crate::codec::Samples;

/// Maximum distance of deflate's repeats, bytes.
const WINDOW: usize = 1 << 15;
/// Size of the window and the data that is inflated at once, bytes; it fits a core's private cache.
const BUFFER: usize = 4 * WINDOW;
/// Maximum number of bytes that one byte of deflate's data can produce.
const MOST_PER_BYTE: usize = 1032;

/// Input after the end of the data: fdeflate holds back its last bits until it sees more. With this it returns as much
/// as zlib, so a picture that is still incomplete is incomplete in Pillow, too.
static PADDING: [u8; 8] = [0; 8];

/// First column, column step, first row and row step of Adam7's passes.
const ADAM7: [[usize; 4]; 7] =
    [[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]];

/// Why the pixels are incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// The file ends too early, and Pillow fails, too.
    CutOff,
    /// The data are damaged, or their stream ends too early: Pillow's result depends on the order of its calls.
    Damaged,
}

/// Inflates the content of the chunks step by step.
struct Inflated<'a> {
    data: Data<'a>,
    input: &'a [u8],
    inflater: Decompressor,
    buffer: Vec<u8>,
    /// Range of the buffer that is inflated and not yet consumed.
    start: usize,
    end: usize,
    /// Whether the data has ended and [`PADDING`] was added.
    padded: bool,
}

impl<'a> Inflated<'a> {
    fn new(data: Data<'a>) -> Self {
        let (inflater, buffer) = (Decompressor::new(), vec![0; BUFFER]);
        Self { data, input: &[], inflater, buffer, start: 0, end: 0, padded: false }
    }

    /// Inflates at least one more byte. All earlier bytes must have been consumed.
    fn more(&mut self) -> Result<(), Lack> {
        if self.end > BUFFER - WINDOW {
            self.buffer.copy_within(self.end - WINDOW..self.end, 0);
            self.end = WINDOW;
        }
        self.start = self.end;
        loop {
            let (read, written) = self
                .inflater
                .read(self.input, &mut self.buffer, self.end, false)
                .map_err(|_| Lack::Damaged)?;
            self.input = &self.input[read..];
            self.end += written;
            if written > 0 {
                return Ok(());
            }
            if self.inflater.is_done() {
                return Err(Lack::Damaged);
            }
            self.input = match self.data.next() {
                Some(input) => input,
                None if self.padded => return Err(Lack::CutOff),
                None => {
                    self.padded = true;
                    &PADDING
                }
            };
        }
    }

    fn byte(&mut self) -> Result<u8, Lack> {
        if self.start == self.end {
            self.more()?;
        }
        self.start += 1;
        Ok(self.buffer[self.start - 1])
    }

    /// Appends `count` bytes to `out`.
    fn append(&mut self, mut count: usize, out: &mut Vec<u8>) -> Result<(), Lack> {
        while count > 0 {
            if self.start == self.end {
                self.more()?;
            }
            let now = count.min(self.end - self.start);
            out.extend_from_slice(&self.buffer[self.start..self.start + now]);
            self.start += now;
            count -= now;
        }
        Ok(())
    }

    /// Whether Pillow accepts the data after the last pixel: an end with the right checksum, or data that it does not
    /// read. It does not accept the end of the file there, because it waits for more input before it takes the rest.
    fn ends_well(&mut self) -> bool {
        let more = self.start < self.end || self.more().is_ok();
        !self.padded && (self.inflater.is_done() || (more && !self.input.is_empty()))
    }
}

/// Bytes per pixel once unpacked.
fn unpacked(kind: Kind) -> usize {
    match kind {
        Kind::Grey(16) | Kind::GreyAlpha(8) => 2,
        Kind::Grey(_) | Kind::Palette(_) => 1,
        Kind::Rgb(_) => 3,
        Kind::GreyAlpha(_) | Kind::Rgba(_) => 4,
    }
}

/// Appends an unfiltered row of `width` pixels to `out` in the form of [`Samples`]; 16-bit grey stays big-endian, as in
/// the file.
fn unpack(kind: Kind, row: &[u8], width: usize, out: &mut Vec<u8>) {
    let small = |depth: u8, scale: u8, out: &mut Vec<u8>| {
        let depth = usize::from(depth);
        let in_byte = (0..8 / depth).map(move |i| 8 - depth - i * depth);
        let mask = (1_u8 << depth).wrapping_sub(1);
        let samples =
            row.iter().flat_map(|byte| in_byte.clone().map(move |shift| (byte >> shift & mask) * scale));
        out.extend(samples.take(width));
    };
    match kind {
        Kind::Grey(1) => small(1, 255, out),
        Kind::Grey(2) => small(2, 85, out),
        Kind::Grey(4) => small(4, 17, out),
        Kind::Palette(depth @ (1 | 2 | 4)) => small(depth, 1, out),
        Kind::Rgb(16) | Kind::Rgba(16) => out.extend(row.as_chunks::<2>().0.iter().map(|sample| sample[0])),
        Kind::GreyAlpha(16) => {
            let pixels = row.as_chunks::<4>().0.iter();
            out.extend(pixels.flat_map(|[grey, _, alpha, _]| [*grey, *grey, *grey, *alpha]));
        }
        Kind::Grey(_) | Kind::Palette(_) | Kind::Rgb(_) | Kind::GreyAlpha(_) | Kind::Rgba(_) => {
            out.extend_from_slice(row);
        }
    }
}

/// The layout of a picture's pixels in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) kind: Kind,
    pub(super) interlaced: bool,
}

impl Layout {
    /// Decodes the samples from the chunks' data. `size` is the size of the file in bytes, which bounds the amount of
    /// data.
    pub(super) fn samples(self, palette: &[u8], data: Data<'_>, size: usize) -> Result<Samples, Lack> {
        let Self { height, width, kind, interlaced } = self;
        let mut inflated = Inflated::new(data);
        let most = size.saturating_mul(MOST_PER_BYTE);
        let mut out = Vec::with_capacity((height * width * unpacked(kind)).min(most));
        if interlaced {
            for (_, height, width) in passes(height, width) {
                Self { height, width, ..self }.rows(&mut inflated, &mut out)?;
            }
        } else {
            self.rows(&mut inflated, &mut out)?;
        }
        if !inflated.ends_well() {
            return Err(Lack::Damaged);
        }
        if interlaced {
            out = match unpacked(kind) {
                1 => in_place::<1>(&out, height, width),
                2 => in_place::<2>(&out, height, width),
                3 => in_place::<3>(&out, height, width),
                _ => in_place::<4>(&out, height, width),
            };
        }
        Ok(match kind {
            Kind::Grey(16) => {
                Samples::I16(out.as_chunks().0.iter().map(|sample| u16::from_be_bytes(*sample)).collect())
            }
            Kind::Grey(_) => Samples::L(out),
            Kind::Palette(_) => Samples::P(out, palette.as_chunks().0.to_vec()),
            Kind::Rgb(_) => Samples::Rgb(out),
            Kind::GreyAlpha(8) => Samples::La(out),
            Kind::GreyAlpha(_) | Kind::Rgba(_) => Samples::Rgba(out),
        })
    }

    /// Appends all rows to `out`, unpacked.
    fn rows(self, inflated: &mut Inflated<'_>, out: &mut Vec<u8>) -> Result<(), Lack> {
        let Self { height, width, kind, .. } = self;
        let length = (width * kind.bits()).div_ceil(8);
        let bpp = kind.bits().div_ceil(8);
        // Rows that need no unpacking are unfiltered in place.
        let stay = kind == Kind::Grey(16) || kind.depth() == 8;
        let (mut row, mut above) = (Vec::new(), Vec::new());
        for y in 0..height {
            let filter = Filter::of(inflated.byte()?).ok_or(Lack::Damaged)?;
            if stay {
                let start = out.len();
                inflated.append(length, out)?;
                if y == 0 {
                    above.resize(length, 0);
                }
                let (before, row) = out.split_at_mut(start);
                undo(filter, row, if y == 0 { &above } else { &before[start - length..] }, bpp);
            } else {
                row.clear();
                inflated.append(length, &mut row)?;
                above.resize(length, 0);
                undo(filter, &mut row, &above, bpp);
                unpack(kind, &row, width, out);
                std::mem::swap(&mut row, &mut above);
            }
        }
        Ok(())
    }
}

/// The entry in [`ADAM7`], the height and the width of each pass; empty passes have no data and are left out.
fn passes(height: usize, width: usize) -> impl Iterator<Item = ([usize; 4], usize, usize)> {
    let size = move |pass: [usize; 4]| {
        let [left, right, top, down] = pass;
        (pass, height.saturating_sub(top).div_ceil(down), width.saturating_sub(left).div_ceil(right))
    };
    ADAM7.into_iter().map(size).filter(|(_, height, width)| *height > 0 && *width > 0)
}

/// Moves the pixels of consecutive passes, `N` bytes each, to their positions in the picture.
fn in_place<const N: usize>(pixels: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut picture = vec![0; pixels.len()];
    let places = picture.as_chunks_mut::<N>().0;
    let mut pixels = pixels.as_chunks::<N>().0.iter();
    for ([left, right, top, down], _, in_row) in passes(height, width) {
        for row in places.chunks_exact_mut(width).skip(top).step_by(down) {
            let row = row.iter_mut().skip(left).step_by(right);
            row.zip(pixels.by_ref().take(in_row)).for_each(|(place, pixel)| *place = *pixel);
        }
    }
    picture
}
